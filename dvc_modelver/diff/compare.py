"""Measures what changed between two versions, from their tensor tables; decides everything that is printed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dvc_modelver.diff.classify import Classified, classify
from dvc_modelver.diff.groups import group_tensors
from dvc_modelver.diff.match import Pair, is_explained, match_tensors
from dvc_modelver.fingerprint.estimate import UNDEFINED, Estimate, combine, estimate_rows
from dvc_modelver.fingerprint.row import TensorRow
from dvc_modelver.metadata import ModelMetadata, TensorTable
from dvc_modelver.tensors import TensorSpec, is_float

if TYPE_CHECKING:
    from dvc_modelver.diff.exact import Measured
    from dvc_modelver.formats import Reader

SCHEMA = "modelver.diff/1"


@dataclass(frozen=True)
class Side:
    """One version to be compared.

    Attributes:
        rev: How the user named it; empty when nobody did.
        table: None for a model that no reader knows.
        metadata: Gives hyper-parameters, metrics and data; None where only the table is at hand.
        open: Opens the weights; None where they are not to be had.
        is_remote: Whether they would be read from a remote.
    """

    path: str
    rev: str
    table: TensorTable | None
    metadata: ModelMetadata | None
    md5: str
    format: str
    open: Callable[[], Reader] | None = field(default=None, compare=False, repr=False)
    is_remote: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Give the side as the contract has it."""
        return {"rev": self.rev or None, "md5": self.md5 or None, "format": self.format or None}


@dataclass(frozen=True)
class TensorChange:
    """One tensor, or one that is only on one side.

    Attributes:
        change: ``modified``, ``added``, ``removed``, ``renamed`` or ``unchanged``. A renamed tensor may have
            changed as well; its numbers say so.
        measured: Cosine, relative L2 and distance; exact where the bytes are equal.
        bytes_equal: Whether dtypes and digests are equal.
        by_rule: Whether its new name follows from one of the model's `renames`.
        exact: What the values say; None where only fingerprints were compared.
        note: What else was measured, for a tensor whose shape changed; empty when nothing was.
    """

    name: str
    old_name: str | None
    change: str
    old: TensorRow | None
    new: TensorRow | None
    measured: Estimate = UNDEFINED
    bytes_equal: bool = False
    by_rule: bool = False
    exact: Measured | None = None
    note: str = ""

    @property
    def cosine(self) -> float | None:
        """Cosine similarity of the values, in [-1, 1]; None where undefined."""
        return self.measured.cosine

    @property
    def relative_l2(self) -> float | None:
        """``|new - old| / |old|``; None where undefined."""
        return self.measured.relative_l2

    @property
    def row(self) -> TensorRow:
        """The tensor's row on the new side, or on the old one where it was removed."""
        found = self.new or self.old
        assert found is not None
        return found

    @property
    def is_parameter(self) -> bool:
        """Whether it counts for the model: optimiser state does not."""
        return self.row.role != "optimizer"

    @property
    def is_moved(self) -> bool:
        """Whether anything but its name changed."""
        return not (self.bytes_equal and self.old is not None and self.new is not None
                    and (self.old.dtype, self.old.shape) == (self.new.dtype, self.new.shape))  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Give the tensor as the contract has it."""
        return {
            "name": self.name,
            "old_name": self.old_name,
            "change": self.change,
            "old_shape": list(self.old.shape) if self.old else None,
            "new_shape": list(self.new.shape) if self.new else None,
            "old_dtype": self.old.dtype if self.old else None,
            "new_dtype": self.new.dtype if self.new else None,
            "cosine": _rounded(self.cosine),
            "relative_l2": _rounded(self.relative_l2),
            "max_abs": _rounded(self.exact.max_abs) if self.exact else None,
            "bytes_equal": self.bytes_equal,
            "role": self.row.role,
            **(self._values() if self.exact else {}),
            **({"note": self.note} if self.note else {}),
        }

    def _values(self) -> dict[str, Any]:
        """Give what only the values tell."""
        assert self.exact is not None
        at = self.exact.max_abs_at
        return {
            "max_abs_at": unravel(at, self.row.shape) if at is not None else None,
            "values_changed": self.exact.values_changed,
            "sign_flips": self.exact.sign_flips,
            "newly_nonfinite": self.exact.nonfinite,
            "update_rank": self.exact.rank,
        }


@dataclass(frozen=True)
class FactChange:
    """One hyper-parameter, metric or data file that differs; None on a side that does not have it."""

    name: str
    old: Any
    new: Any

    def to_dict(self) -> dict[str, Any]:
        """Give the row as the contract has it."""
        return {"name": self.name, "old": self.old, "new": self.new}


@dataclass(frozen=True)
class ModelDiff:
    """Everything that a renderer prints.

    Attributes:
        kind: One of the kinds of change of `classify`.
        reason: The measured facts that it follows from, in one sentence.
        cosine: Of all matched parameters as one vector; None where undefined.
        relative_l2: Likewise.
        distance: Euclidean distance ``|new - old|``, likewise.
        relative_l2_error: Absolute 95 % bound of the error of `relative_l2`; 0 when it is exact.
        parameters: Numbers of elements: ``old``, ``new`` and ``changed`` (in tensors that changed or are new).
        structure: What else of the model differs: lines of its configuration, of its graph.
        renames: What renamed tensors have in common, one line each.
        warnings: What training seldom means to do, one line each: values that are not finite, layers gone dead.
        exact: Whether the numbers come from the values.
    """

    path: str
    old: Side | None
    new: Side | None
    kind: str
    reason: str
    cosine: float | None
    relative_l2: float | None
    relative_l2_error: float | None
    distance: float | None
    bytes_equal: bool
    parameters: Mapping[str, int]
    tensors: tuple[TensorChange, ...]
    hyperparameters: tuple[FactChange, ...] = ()
    metrics: tuple[FactChange, ...] = ()
    data: tuple[FactChange, ...] = ()
    structure: tuple[FactChange, ...] = ()
    renames: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    exact: bool = False

    @property
    def tensors_changed(self) -> int:
        """Number of tensors modified, added, removed or renamed, optimiser state apart."""
        return sum(t.change != "unchanged" for t in self.tensors if t.is_parameter)

    @property
    def tensors_total(self) -> int:
        """Number of tensors on both sides together, optimiser state apart."""
        return sum(t.is_parameter for t in self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """Give the model as the contract ``modelver.diff/1`` has it."""
        return {
            "path": self.path,
            "old": self.old.to_dict() if self.old else None,
            "new": self.new.to_dict() if self.new else None,
            "kind": self.kind,
            "exact": self.exact,
            "cosine": _rounded(self.cosine),
            "relative_l2": _rounded(self.relative_l2),
            "relative_l2_error": _rounded(self.relative_l2_error),
            "euclidean_distance": _rounded(self.distance),
            "bytes_equal": self.bytes_equal,
            "parameters": dict(self.parameters),
            "tensors_changed": self.tensors_changed,
            "tensors_total": self.tensors_total,
            "hyperparameters": [f.to_dict() for f in self.hyperparameters],
            "metrics": [f.to_dict() for f in self.metrics],
            "data": [f.to_dict() for f in self.data],
            "structure": [f.to_dict() for f in self.structure],
            "groups": [group.to_dict() for group in group_tensors(self.tensors)],
            "renames": list(self.renames),
            "warnings": list(self.warnings),
            "tensors": [t.to_dict() for t in self.tensors],
        }


def compare(
    old: Side | None, new: Side | None, *, exact: bool = False, progress: Callable[[int], None] = lambda _n: None
) -> ModelDiff:
    """Compare two versions; a side that is None does not exist (the model was added or removed).

    "Did it change?" is answered by digests alone; the numbers are estimates from norms and sketches, or are measured
    on the values of the tensors whose digests differ.

    Args:
        old: The old version.
        new: The new version.
        exact: Measure the values; both sides must be able to `open` them.
        progress: Called with the number of bytes read since the last call.

    Raises:
        ValueError: Both sides are None.
        BadModelError: A file is damaged.
    """
    there = new or old
    if there is None:
        raise ValueError("two absent sides have nothing to compare")
    old_rows = old.table.rows if old is not None and old.table is not None else ()
    new_rows = new.table.rows if new is not None and new.table is not None else ()
    matching = match_tensors(old_rows, new_rows)
    pairs = matching.pairs
    if exact and old is not None and new is not None and old.open is not None and new.open is not None:
        shared = not (old.is_remote or new.is_remote)
        changes = _measure_values(pairs, old.open, new.open, progress, shared=shared)
    else:
        changes, exact = [_measure(p) for p in pairs], False
    tensors = tuple(sorted(changes, key=lambda t: t.name))
    bytes_equal = old is not None and new is not None and bool(old.md5) and old.md5 == new.md5
    whole = (
        combine(t.measured for t in tensors if _is_comparable(t)) if old is not None and new is not None else UNDEFINED
    )
    facts = _facts(old.metadata if old else None, new.metadata if new else None)
    kind = _kind(old, new, tensors, whole, bytes_equal=bytes_equal)
    return ModelDiff(
        path=there.path,
        old=old,
        new=new,
        kind=kind.kind,
        reason=kind.reason,
        cosine=whole.cosine,
        relative_l2=whole.relative_l2,
        relative_l2_error=whole.error,
        distance=None if whole.squared_distance is None else math.sqrt(whole.squared_distance),
        bytes_equal=bytes_equal,
        parameters=_parameters(tensors),
        tensors=tensors,
        hyperparameters=facts["hyperparameters"],
        metrics=facts["metrics"],
        data=facts["data"],
        structure=_structure(old, new),
        warnings=tuple(_warnings(tensors)),
        renames=matching.rules,
        exact=exact,
    )


def _kind(old: Side | None, new: Side | None, tensors: tuple[TensorChange, ...], whole: Estimate, *,
          bytes_equal: bool) -> Classified:  # fmt: skip
    if old is None or new is None:
        return Classified("added" if old is None else "removed", "only on one side")
    if bytes_equal:
        return Classified("identical", "same bytes")
    if old.table is None or new.table is None:
        opaque = [name for name, side in (("old", old), ("new", new)) if side.table is None]
        which = f"the {opaque[0]} side is" if len(opaque) == 1 else "both sides are"
        return Classified("unknown", f"bytes differ; {which} opaque: no reader could list the tensors")
    return classify(tensors, whole.cosine, same_container=old.format == new.format)


def _measure(pair: Pair) -> TensorChange:
    old, new = pair.old, pair.new
    if old is None or new is None:
        row = old or new
        assert row is not None
        return TensorChange(row.name, None, "added" if old is None else "removed", old, new)
    same = bool(old.digest) and old.digest == new.digest and old.dtype == new.dtype
    change = "unchanged" if same and old.shape == new.shape else "modified"
    if pair.how != "name":
        change = "renamed"
    old_name = old.name if old.name != new.name else None
    return TensorChange(new.name, old_name, change, old, new, estimate_rows(old, new), same, by_rule=is_explained(pair))


def _measure_values(
    pairs: Sequence[Pair],
    open_old: Callable[[], Reader],
    open_new: Callable[[], Reader],
    progress: Callable[[int], None],
    *,
    shared: bool,
) -> list[TensorChange]:
    """Measure the pairs whose digests differ on their values."""
    from dataclasses import replace

    from dvc_modelver.diff import blocks, exact

    changes = [_measure(p) for p in pairs]
    todo = [(i, (_spec(t.old), _spec(t.new))) for i, t in enumerate(changes) if t.old and t.new and not t.bytes_equal]
    alike = [(i, s) for i, s in todo if blocks.is_measurable(*s)]
    found = exact.measure_pairs([s for _, s in alike], open_old, open_new, shared=shared, progress=progress)
    for (i, _), values in zip(alike, found, strict=True):
        t = changes[i]
        assert t.old is not None and t.new is not None
        same = values.is_same and t.old.dtype == t.new.dtype
        change = "unchanged" if same and t.change == "modified" and t.old.shape == t.new.shape else t.change
        changes[i] = replace(t, measured=values.estimate, exact=values, bytes_equal=same, change=change)
    unlike = [(i, s) for i, s in todo if s[0].shape != s[1].shape and all(map(blocks.has_numbers, s))]
    if unlike:
        with open_old() as old, open_new() as new:
            for i, (a, b) in unlike:
                changes[i] = replace(changes[i], note=_shape_note(old, a, new, b))
    return changes


def _spec(row: TensorRow) -> TensorSpec:
    return TensorSpec(row.name, row.dtype, row.shape)


def _shape_note(old: Reader, a: TensorSpec, new: Reader, b: TensorSpec) -> str:
    """Say what a tensor of another shape has in common with the old one."""
    from dvc_modelver.diff import reshaped

    turned = reshaped.measure_transposed(old, a, new, b)
    if turned is not None and turned.estimate.relative_l2 is not None and turned.estimate.relative_l2 < 1:
        return f"transposed, relative L2 {turned.estimate.relative_l2:.3g}"
    rows = reshaped.measure_rows(old, a, new, b) if a.numel != b.numel else None
    if rows is None:
        return ""
    shared = reshaped.match_rows(old, a, new, b)
    if shared is not None and shared.same > min(a.shape[0], b.shape[0]) // 2:
        parts = [f"{n:,} rows {word}" for n, word in ((shared.removed, "removed"), (shared.added, "added")) if n]
        return f"{', '.join(parts)}; the other {shared.same:,} are the same"
    common = f"the first {min(a.shape[0], b.shape[0]):,} rows"
    if rows.is_same:
        return f"{common} are the same"
    l2 = rows.estimate.relative_l2
    return f"{common} moved, relative L2 {l2:.3g}" if l2 is not None else ""


def unravel(index: int, shape: Sequence[int]) -> list[int]:
    """Give the position of a flat index in C order."""
    at = []
    for axis in reversed(shape):
        index, here = divmod(index, axis)
        at.append(here)
    return at[::-1]


def _warnings(tensors: Sequence[TensorChange]) -> Iterator[str]:
    for t in tensors:
        old, new = t.old, t.new
        if new is None or not t.is_moved:
            continue
        before = old.nonfinite or 0 if old is not None else 0
        bad = max(new.nonfinite or 0, t.exact.nonfinite if t.exact else 0)
        if bad > before:
            yield f"{t.name}: {bad:,} values are NaN or infinite{f', {before:,} were' if before else ''}"
        if new.numel > 1 and new.zeros == new.numel and old is not None and old.zeros != old.numel:
            yield f"{t.name}: all values are zero now"


def _is_comparable(t: TensorChange) -> bool:
    """Whether a tensor counts in the model's distance: a floating-point parameter with values on both sides."""
    return (
        t.is_parameter and t.old is not None and t.new is not None and t.old.numel == t.new.numel > 0
        and is_float(t.old.dtype) and is_float(t.new.dtype)
    )  # fmt: skip


def _parameters(tensors: tuple[TensorChange, ...]) -> dict[str, int]:
    own = [t for t in tensors if t.is_parameter]
    return {
        "old": sum(t.old.numel for t in own if t.old is not None),
        "new": sum(t.new.numel for t in own if t.new is not None),
        "changed": sum(t.new.numel for t in own if t.new is not None and t.is_moved),
    }


def _facts(old: ModelMetadata | None, new: ModelMetadata | None) -> dict[str, tuple[FactChange, ...]]:
    a, b = (old.training if old else None), (new.training if new else None)
    pairs: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
        "hyperparameters": (
            (a.hyperparameters if a else None) or {},
            (b.hyperparameters if b else None) or {},
        ),
        "metrics": ((a.metrics if a else None) or {}, (b.metrics if b else None) or {}),
        "data": (
            {str(d.get("path")): d.get("md5") for d in (a.data if a else None) or ()},
            {str(d.get("path")): d.get("md5") for d in (b.data if b else None) or ()},
        ),
    }
    return {kind: _changed(x, y) for kind, (x, y) in pairs.items()}


def _structure(old: Side | None, new: Side | None) -> tuple[FactChange, ...]:
    """Compare the structures of two files that both have one; another container's has nothing in common with it."""
    a, b = (side.table.structure if side is not None and side.table is not None else {} for side in (old, new))
    return _changed(a, b) if a and b else ()


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[FactChange, ...]:
    names = dict.fromkeys([*old, *new])
    return tuple(
        FactChange(n, old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n) or (n in old) != (n in new)
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.9g}")
