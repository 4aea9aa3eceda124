"""bisect: the version between two at which a metric went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from dvc_modelver.api.best import known_metric
from dvc_modelver.api.history import LoggedVersion, Say, log
from dvc_modelver.errors import UsageError, word


@dataclass(frozen=True)
class Bisected:
    """The answer of ``bisect``: versions along one line of history, oldest first.

    Attributes:
        bad: The first version whose value is beyond the limit after one whose value was not; where none was good, the
            first of all. None where there is none.
        good: The last one before it with a value that is good.
        between: Versions between the two, which have no value.
        again: The first one after `bad` that is good again; None where there is none.
        early: Those before the first good one, which are beyond the limit as well.
        line: All versions that were looked at.
        without: Those without a value.
    """

    name: str
    metric: str
    bad: LoggedVersion | None
    good: LoggedVersion | None
    between: tuple[LoggedVersion, ...]
    again: LoggedVersion | None
    early: tuple[LoggedVersion, ...]
    line: tuple[LoggedVersion, ...]
    without: tuple[LoggedVersion, ...]


def bisect(
    reference: str,
    metric: str,
    *,
    below: float | None = None,
    above: float | None = None,
    say: Say = lambda _line: None,
    folder: Path | None = None,
) -> Bisected:
    """Find the version with which a metric became bad, by the values that are recorded; nothing is run.

    The line of history goes from the current version along the first recorded parents; where a parent is not in
    history, along the commits.

    Args:
        reference: Name or path.
        metric: Its name.
        below: Values below this are bad.
        above: Values above this are bad.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.

    Raises:
        NotFoundError: No such model, or no version has the metric.
        UsageError: Neither or both of `below` and `above`.
    """
    if (below is None) == (above is None):
        raise UsageError(
            "modelver bisect: expected --below X or --above X",
            hint=f"modelver bisect {word(reference)} --metric {word(metric)} --below 0.9",
        )
    found = log(reference, say=say, folder=folder)
    metric = known_metric(metric, found, reference)
    line = line_of(found)
    values = [(one, value) for one in line if (value := one.metric(metric)) is not None]
    is_bad = [value < below if below is not None else value > (above or 0.0) for _, value in values]
    start = is_bad.index(False) if False in is_bad else 0
    at = next((i for i in range(start, len(values)) if is_bad[i]), None)
    bad = values[at][0] if at is not None else None
    good = values[at - 1][0] if at else None
    return Bisected(
        name=found[0].name, metric=metric, bad=bad, good=good, between=_between(line, good, bad),
        again=next((one for i, (one, _) in enumerate(values) if at is not None and i > at and not is_bad[i]), None),
        early=tuple(one for one, _ in values[:start]), line=tuple(line),
        without=tuple(one for one in line if one.metric(metric) is None),
    )  # fmt: skip


def _between(
    line: Sequence[LoggedVersion], good: LoggedVersion | None, bad: LoggedVersion | None
) -> tuple[LoggedVersion, ...]:
    if bad is None:
        return ()
    return tuple(line[line.index(good) + 1 if good is not None else 0 : line.index(bad)])


def line_of(versions: Sequence[LoggedVersion]) -> list[LoggedVersion]:
    """Give the line of history that ends in the current version, else in the newest: oldest first.

    Args:
        versions: Newest first.
    """
    if not versions:
        return []
    by_md5 = {one.version.metadata.md5: one for one in versions}
    older = {a.version.metadata.md5: b for a, b in pairwise(versions)}
    now: LoggedVersion | None = next((one for one in versions if one.is_current), versions[0])
    line: dict[str, LoggedVersion] = {}
    while now is not None and now.version.metadata.md5 not in line:
        line[now.version.metadata.md5] = now
        parents = now.version.metadata.version.parents
        known = next((by_md5[md5] for md5 in parents if md5 in by_md5), None)
        now = known or (older.get(now.version.metadata.md5) if parents else None)
    return list(reversed(line.values()))
