"""best: the version with the best value of a metric."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dvc_modelver.api.history import LoggedVersion, Say, log
from dvc_modelver.errors import NotFoundError, UsageError, word
from dvc_modelver.registry.metrics import find_direction


@dataclass(frozen=True)
class Best:
    """The answer of ``best``.

    Attributes:
        direction: ``min`` or ``max``.
        is_guessed: Whether it was taken from the metric's name.
        versions: Those with the best value, newest first; several where they tie.
        with_value: How many versions have the metric.
        without: How many do not, or have no finite number.
    """

    name: str
    metric: str
    direction: str
    is_guessed: bool
    value: float
    versions: tuple[LoggedVersion, ...]
    with_value: int
    without: int


def best(
    reference: str,
    metric: str,
    *,
    direction: str | None = None,
    where: str | None = None,
    everywhere: bool = False,
    repo: str | None = None,
    say: Say = lambda _line: None,
    folder: Path | None = None,
) -> Best:
    """Give the version of a model with the best value of a metric.

    Args:
        reference: Name or path.
        metric: Its name.
        direction: ``min`` or ``max``; by the metric's name when not given.
        where: Only versions that fit; see `log`.
        everywhere: All refs rather than HEAD's history.
        repo: Another repository, by URL or path.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.

    Raises:
        NotFoundError: No such model, or no version has the metric.
        UsageError: The metric's name does not say which way is better.
    """
    found = log(reference, where=where, everywhere=everywhere, repo=repo, say=say, folder=folder)
    metric = known_metric(metric, found, reference)
    taken = direction or find_direction(metric)
    if taken is None:
        raise UsageError(
            f"{metric}: its name does not say whether more is better, expected --min or --max",
            hint=f"modelver best {word(reference)} --metric {word(metric)} --max",
        )
    values = [(value, one) for one in found if (value := one.metric(metric)) is not None]
    top = (min if taken == "min" else max)(value for value, _ in values)
    return Best(
        name=found[0].name, metric=metric, direction=taken, is_guessed=direction is None, value=top,
        versions=tuple(one for value, one in values if value == top),
        with_value=len(values), without=len(found) - len(values),
    )  # fmt: skip


def known_metric(metric: str, found: Sequence[LoggedVersion], reference: str) -> str:
    """Give a metric's name as versions have it; ``metrics.`` in front may be left out or not.

    Raises:
        NotFoundError: No version has a number under that name.
    """
    known = sorted({name for one in found for name in one.measured if one.metric(name) is not None})
    if metric not in known and metric.removeprefix("metrics.") in known:
        return metric.removeprefix("metrics.")
    if metric in known:
        return metric
    close = difflib.get_close_matches(metric, known, n=1, cutoff=0.5)
    listed = f"known: {', '.join(known[:8])}" if known else f"modelver eval {word(reference)} adds results"
    n_versions = f"{len(found)} version{'s' * (len(found) != 1)}"
    raise NotFoundError(
        f"{reference}: none of {n_versions} has the metric {metric}",
        hint=f"did you mean {close[0]}?" if close else listed,
    )
