"""stages: which versions hold stages, or held them on a day."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path

from dvc_modelver.api.elsewhere import open_repository
from dvc_modelver.api.select import find_known
from dvc_modelver.errors import UsageError
from dvc_modelver.registry.stages import Tenure, tenures
from dvc_modelver.registry.tags import ModelTag, read_tags

Say = Callable[[str], None]


def stages(
    name: str | None = None,
    *,
    on: str | None = None,
    history: bool = False,
    say: Say = lambda _line: None,
    folder: Path | None = None,
) -> list[Tenure]:
    """Tell which versions hold stages, or held them.

    Args:
        name: One model; all when not given.
        on: A time (ISO 8601), or a day (``2026-05-01``, ``yesterday``) of which every holder is given; now when not
            given. Without a zone it is local time.
        history: All that ever held one.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.

    Returns:
        Sorted by model and stage, the newest first.

    Raises:
        NotFoundError: No such model.
        UsageError: `on` is no time.
    """
    repo = open_repository(None, folder, say)
    tags = read_tags(repo.git)
    if name is not None and not any(tag.name == name for tag in tags):
        name = find_known(repo, name).name
    by_name: dict[str, list[ModelTag]] = {}
    for tag in tags:
        if name is None or tag.name == name:
            by_name.setdefault(tag.name, []).append(tag)
    start, end = parse_when(on) if on is not None else (time.time(), time.time() + 1)
    found: list[Tenure] = []
    for own in by_name.values():
        held = tenures(own)
        if not history:
            held = [t for t in held if (t.overlaps(start, end) if on is not None else t.end is None)]
        found += reversed(held)
    return sorted(found, key=lambda t: (t.tag.name, t.stage))


def parse_when(text: str) -> tuple[float, float]:
    """Give start and end, in seconds since 1970, of a day or of a moment.

    Raises:
        UsageError: It is neither.
    """
    days = {"today": 0, "yesterday": 1}
    try:
        if text in days:
            day = date.today() - timedelta(days=days[text])
        elif len(text) <= 10:
            day = date.fromisoformat(text)
        else:
            moment = datetime.fromisoformat(text).astimezone().timestamp()
            return moment, moment + 1
        midnight = datetime(day.year, day.month, day.day)
        return midnight.astimezone().timestamp(), (midnight + timedelta(days=1)).astimezone().timestamp()
    except (ValueError, OverflowError) as err:
        raise UsageError(
            f"{text[:60]!r}: not a time, expected one like 2026-05-01, 2026-05-01T12:00 or yesterday"
        ) from err
