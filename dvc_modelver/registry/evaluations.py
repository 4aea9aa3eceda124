"""Results that were measured after the commit: appended by md5, and what they make of a version's metrics."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from dvc_modelver.errors import UsageError
from dvc_modelver.git.notes import append_notes, blob_id, committer, notes_tips, read_notes
from dvc_modelver.git.objects import ObjectReader
from dvc_modelver.git.porcelain import Git
from dvc_modelver.metadata import ModelMetadata
from dvc_modelver.registry.notes import EVALUATIONS_REF

EVALUATION_SCHEMA = "modelver.evaluation/1"
MAX_METRICS = 500
MAX_TEXT = 1000
_MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")
_SKEW = timedelta(minutes=5)
"""How far clocks may differ: what is later than now by more is no time of a measurement."""


@dataclass(frozen=True)
class Evaluation:
    """One result of one version.

    Attributes:
        md5: The object that was measured.
        metrics: Finite numbers by name.
        time: When it was measured, in UTC, with a fraction where it is known: ``2026-11-21T18:40:12.345678Z``.
        by: Who measured, as Git names people: ``Ada <ada@example.org>``.
        source: Where the numbers come from: the metrics file; empty for numbers that were typed.
        data: What it was measured on: objects with ``path`` and ``md5``, as in the metadata's ``training.data``.
    """

    md5: str
    metrics: Mapping[str, float]
    time: str
    by: str = ""
    source: str = ""
    data: tuple[Mapping[str, Any], ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Give the JSON object of its line; what is empty is absent."""
        facts = {
            "schema": EVALUATION_SCHEMA, "md5": self.md5, "metrics": dict(sorted(self.metrics.items())),
            "data": [dict(one) for one in self.data], "time": self.time, "by": self.by, "source": self.source,
        }  # fmt: skip
        return {key: value for key, value in facts.items() if value}

    def render(self) -> bytes:
        """Give its line, without the newline."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()

    @classmethod
    def parse(cls, line: bytes) -> Evaluation:
        """Read one line.

        Raises:
            ValueError: It is no such line; the message says why.
        """
        try:
            data = json.loads(line)
        except RecursionError as err:
            raise ValueError("nested too deeply") from err
        if not isinstance(data, dict) or data.get("schema") != EVALUATION_SCHEMA:
            raise ValueError(f"no object of the schema {EVALUATION_SCHEMA}")
        md5, time, metrics, on = data.get("md5"), data.get("time"), data.get("metrics"), data.get("data", [])
        if not isinstance(md5, str) or not _MD5.fullmatch(md5):
            raise ValueError("md5 is not 32 hex digits")
        if not isinstance(time, str) or not _TIME.fullmatch(time):
            raise ValueError("time is not like 2026-11-21T18:40:12Z")
        if (
            not isinstance(metrics, dict)
            or not 0 < len(metrics) <= MAX_METRICS
            or not all(map(_is_metric, metrics.items()))
        ):
            raise ValueError("metrics is not an object of finite numbers")
        if not isinstance(on, list) or not all(isinstance(one, dict) and isinstance(one.get("md5"), str) for one in on):
            raise ValueError("data is not a list of objects with an md5")
        by, source = (_text(data.get(key, "")) for key in ("by", "source"))
        return cls(md5, metrics, time, by, source, tuple(on))


def _is_metric(item: tuple[str, object]) -> bool:
    name, value = item
    return 0 < len(name) <= MAX_TEXT and is_metric(value)


def is_metric(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise ValueError(f"by or source is not a text of at most {MAX_TEXT} characters")
    return value


def as_time(text: str) -> str:
    """Give a time in UTC as evaluations have it; one without a zone is taken as UTC.

    Raises:
        UsageError: Not ISO 8601, or not over yet: until then no later result would count.
    """
    try:
        found = datetime.fromisoformat(text)
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError) as err:
        raise UsageError(f"{text!r}: not a time, expected one like 2026-11-21T18:40:12Z") from err
    if found > datetime.now(UTC) + _SKEW:
        raise UsageError(
            f"{text!r}: lies in the future, expected when it was measured (in UTC where no zone is given)",
            hint="--time 2026-11-21T18:40:12+01:00",
        )
    return _written(found)


def now() -> str:
    """Give the time as evaluations have it, to the microsecond: two in a row keep their order."""
    return _written(datetime.now(UTC))


def _written(when: datetime) -> str:
    return when.isoformat().replace("+00:00", "Z")


def read_evaluations(
    objects: ObjectReader,
    md5s: Iterable[str] | None = None,
    *,
    skip: Callable[[str], None] = lambda _why: None,
) -> dict[str, list[Evaluation]]:
    """Give md5 -> its evaluations, oldest first: this clone's, and those that were fetched from remotes.

    Args:
        objects: The object database.
        md5s: Read those of these objects alone, which is faster for a few.
        skip: Called with the reason for each line that cannot be read; such lines are left out.
    """
    tips = notes_tips(objects, EVALUATIONS_REF)
    if not tips:
        return {}
    only = None if md5s is None else [blob_id(md5.encode(), tips[0]) for md5 in dict.fromkeys(md5s)]
    found: dict[str, list[tuple[str, bytes, Evaluation]]] = {}
    for oid, lines in read_notes(objects, tips, only).items():
        for line in lines:
            try:
                one = Evaluation.parse(line)
                if blob_id(one.md5.encode(), oid) != oid:
                    raise ValueError(f"a line about {one.md5[:8]}, attached to another object")
            except ValueError as err:
                skip(f"{EVALUATIONS_REF}: {oid[:8]}: {err}")
                continue
            found.setdefault(one.md5, []).append((one.time.rstrip("Z"), line, one))
    return {md5: [one for _, _, one in sorted(several, key=_in_order)] for md5, several in found.items()}


def _in_order(item: tuple[str, bytes, Evaluation]) -> tuple[str, bytes]:
    return item[:2]  # the line decides between two of one time, so that every clone has one order


def record_evaluation(git: Git, objects: ObjectReader, new: Evaluation) -> bool:
    """Append a result to those of its version; one that says nothing new is not written again.

    Returns:
        False where the newest result with these names, or one of the same time, is the same already.

    Raises:
        UsageError: Git knows nobody who could have measured.
        EnvironmentFailed: Git could not write it.
    """
    known = read_evaluations(objects, [new.md5]).get(new.md5, [])
    same = [one for one in known if replace(one, time=new.time) == new]
    rivals = [one for one in known if one.metrics.keys() & new.metrics.keys()]
    if same and (rivals[-1] in same or any(one.time == new.time for one in same)):
        return False
    try:
        Evaluation.parse(new.render())
    except ValueError as err:
        raise UsageError(f"evaluation of {new.md5[:8]}: {err}") from err
    return append_notes(
        git, objects, EVALUATIONS_REF, {blob_id(new.md5.encode(), objects.head() or "0" * 40): [new.render()]},
        f"Evaluate {new.md5[:8]}\n", committer(git, new.by),
    )  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One metric of a version.

    Attributes:
        value: What counts: the newest evaluation's value, else what training recorded.
        source: ``training`` or ``evaluation``.
        trained: What training recorded; None where it did not.
        evaluation: The result that the value is of; None for training's.
    """

    value: Any
    source: str
    trained: Any = None
    evaluation: Evaluation | None = None


def measured_metrics(metadata: ModelMetadata, evaluations: Sequence[Evaluation] = ()) -> dict[str, Measured]:
    """Give the metrics of a version: those of its training, overlaid by the newest evaluation that has the name.

    Args:
        metadata: The version.
        evaluations: Its evaluations, oldest first, as `read_evaluations` gives them for its md5.
    """
    trained = metadata.training.metrics or {}
    found = {name: Measured(value, "training", value) for name, value in trained.items()}
    for one in evaluations:
        for name, value in one.metrics.items():
            found[name] = Measured(value, "evaluation", trained.get(name), one)
    return found
