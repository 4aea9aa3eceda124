"""What a comparison found, as values that renderers read: nothing is decided here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dvc_modelver.diff.groups import group_tensors
from dvc_modelver.fingerprint.estimate import UNDEFINED, Estimate
from dvc_modelver.fingerprint.row import TensorRow
from dvc_modelver.metadata import ModelMetadata, TensorTable

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
        return {"path": self.path, "rev": self.rev or None, "md5": self.md5 or None, "format": self.format or None}


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
        is_transposed: Whether it was transposed on the way to another framework; `exact` and `measured` compare it
            with the old tensor in the new one's order.
        applied: Of the factors of an adapter's layer, what their product says; it stands for both in the model.
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
    is_transposed: bool = False
    applied: Estimate | None = None

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
        """Whether anything but its name, and the order of a transposed tensor's axes, changed."""
        if self.is_transposed and self.exact is not None and self.old is not None and self.new is not None:
            return not self.exact.is_same or self.old.dtype != self.new.dtype
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
            **({"product": _numbers(self.applied)} if self.applied else {}),
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


def unravel(index: int, shape: Sequence[int]) -> list[int]:
    """Give the position of a flat index in C order."""
    at = []
    for axis in reversed(shape):
        index, here = divmod(index, axis)
        at.append(here)
    return at[::-1]


def _numbers(found: Estimate) -> dict[str, float | None]:
    return {"cosine": _rounded(found.cosine), "relative_l2": _rounded(found.relative_l2)}


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.9g}")
