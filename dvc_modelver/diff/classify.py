"""Names the kind of a change, from measurements only."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dvc_modelver.tensors import is_float

if TYPE_CHECKING:
    from dvc_modelver.diff.changes import TensorChange

KINDS = (
    "identical", "metadata-only", "conversion", "scaled", "head", "partial", "fine-tune", "retrained",
    "architecture", "added", "removed", "unknown",
)  # fmt: skip
"""All kinds; the last three are for a model on one side only, and for one that no reader knows."""

ROUNDING = {"BF16": 2**-8, "F16": 2**-11, "F32": 2**-24, "F8_E4M3": 2**-4, "F8_E5M2": 2**-3}
"""Largest relative rounding error of a cast to each dtype (half a unit in the last place)."""
RESOLUTION = 2**-20
"""Relative distance below which sketches see none: they sum float32 values and have 24 bits each."""
WIDER = {
    "F8_E4M3": {"F16", "BF16", "F32", "F64"}, "F8_E5M2": {"F16", "BF16", "F32", "F64"},
    "F16": {"F32", "F64"}, "BF16": {"F32", "F64"}, "F32": {"F64"},
}  # fmt: skip
"""Dtypes that hold every value of another one."""
RETRAINED_COSINE = 0.5
"""Below this the weights point elsewhere; between releases trained anew it is near 0."""
UNCHANGED_SHARE = 0.05
"""A larger share of untouched parameters is a partial change; constants and buffers stay below it."""
SPARSE_SHARE = 0.2
"""Where fewer of the values changed, the share is said."""
SCALED_TURN = 0.03
"""Of a tensor that was only scaled, at most this part of the distance comes from its direction: rounding."""
SCALED_COSINE = 0.999

_HEAD = re.compile(
    r"(^|[._/])(head|lm_head|classifier|cls|fc|logits|output|out|score|pooler|top|predictions?)([._/\d]|$)",
    re.IGNORECASE,
)
_LAYER = re.compile(r"^(?P<prefix>.*?)(?<![^._/])(?P<index>\d+)(?=[._/])")


@dataclass(frozen=True)
class Classified:
    """A kind, and the measured facts it follows from in one sentence."""

    kind: str
    reason: str


def classify(tensors: Sequence[TensorChange], cosine: float | None, *, same_container: bool) -> Classified:
    """Name the kind of change between two versions whose bytes differ.

    Args:
        tensors: All tensors of both sides.
        cosine: Of the whole model; None where undefined.
        same_container: Whether both files have the same format.
    """
    own = [t for t in tensors if t.is_parameter]
    moved = [t for t in own if t.is_moved]
    added = sum(t.change == "added" for t in own)
    removed = sum(t.change == "removed" for t in own)
    reshaped = sum(bool(t.old and t.new and t.old.shape != t.new.shape and not t.is_transposed) for t in own)
    transposed = sum(t.is_transposed for t in own)
    renamed = sum(t.change == "renamed" for t in own)
    if added or removed or reshaped:
        parts = [
            f"{n} {word}" for n, word in ((added, "added"), (removed, "removed"), (reshaped, "of another shape")) if n
        ]
        return Classified("architecture", f"tensors: {', '.join(parts)}")
    if not moved:
        if same_container and not renamed:
            return Classified(
                "metadata-only", f"all {len(own)} tensors have the same bytes; the file differs around them"
            )
        what = f"{renamed} renamed" if renamed else "another container"
        if transposed:
            return Classified(
                "conversion", f"all {len(own)} tensors have the same values; {what}, {transposed} of them transposed"
            )
        return Classified("conversion", f"all {len(own)} tensors have the same bytes; {what}")
    if all(_is_cast(t) for t in moved):
        old, new = moved[0].old, moved[0].new
        dtypes = f"{old.dtype} to {new.dtype}" if old is not None and new is not None else "dtypes"
        how = "a wider dtype" if all(is_widened(t) for t in moved) else "within rounding"
        return Classified("conversion", f"{len(moved)} tensors cast from {dtypes}, {how}")
    if all(_is_scaled(t) for t in moved):
        return Classified("scaled", f"{_counted(moved, own)} kept their direction and changed their norm")
    still = [t for t in own if not t.is_moved and is_float(t.row.dtype)]
    total = sum(t.row.numel for t in own if is_float(t.row.dtype))
    share = sum(t.row.numel for t in still) / total if total else 0.0
    if still and len(moved) * 2 <= len(own) and _is_head(moved, own):
        return Classified("head", f"only the last layers moved: {_counted(moved, own)}{_values(moved)}")
    if share > UNCHANGED_SHARE:
        what = f"{_counted(moved, own)} moved, {share:.0%} of the parameters did not"
        return Classified("partial", what + _values(moved))
    if cosine is not None and cosine < RETRAINED_COSINE:
        return Classified("retrained", f"same architecture, cosine {cosine:.3f}; {_counted(moved, own)} moved")
    return Classified("fine-tune", f"{_counted(moved, own)} moved{_values(moved)}")


def _values(moved: Sequence[TensorChange]) -> str:
    """Say what only the values tell: updates of low rank, and how sparse the change is."""
    exact = [(t.exact, t.row.numel) for t in moved if t.exact is not None]
    if len(exact) < len(moved) or not exact:
        return ""
    ranks = [e.rank for e, _ in exact if e.rank is not None]
    changed, numel = sum(e.values_changed for e, _ in exact), sum(n for _, n in exact)
    if len(ranks) == len(exact):
        return f", by updates of rank {min(ranks)}" + (f" to {max(ranks)}" if max(ranks) > min(ranks) else "")
    if numel and changed / numel < SPARSE_SHARE:
        return f"; {100 * changed / numel:.2g} % of their values changed"
    return ""


def _counted(moved: Sequence[TensorChange], own: Sequence[TensorChange]) -> str:
    return f"all {len(own):,} tensors" if len(moved) == len(own) else f"{len(moved):,} of {len(own):,} tensors"


def _is_cast(t: TensorChange) -> bool:
    if t.old is None or t.new is None or t.old.dtype == t.new.dtype:
        return False
    if t.measured.squared_distance == 0.0:
        return True  # zeros on both sides have no relative distance
    noise = RESOLUTION if t.exact is None else 0.0
    return t.relative_l2 is not None and t.relative_l2 <= max(
        ROUNDING.get(t.old.dtype, 0.0), ROUNDING.get(t.new.dtype, 0.0), noise
    )


def is_widened(t: TensorChange) -> bool:
    """Whether a tensor was only cast, as far as was measured, to a dtype that holds every value it had."""
    return t.old is not None and t.new is not None and t.new.dtype in WIDER.get(t.old.dtype, ()) and _is_cast(t)


def _is_scaled(t: TensorChange) -> bool:
    found = t.measured
    if found.cosine is None or not found.relative_l2 or not found.norm_a or found.norm_b is None:
        return False
    turn = math.sqrt(max(0.0, 2 * found.norm_b / found.norm_a * (1 - found.cosine)))
    return found.cosine > SCALED_COSINE and turn <= SCALED_TURN * found.relative_l2


def _is_head(moved: Sequence[TensorChange], own: Sequence[TensorChange]) -> bool:
    """Whether what moved is called a head, or lies in the last two numbered layers of its stack."""
    last: dict[str, int] = {}
    for t in own:
        if found := _LAYER.match(t.name):
            last[found["prefix"]] = max(last.get(found["prefix"], 0), int(found["index"]))
    for t in moved:
        found = _LAYER.match(t.name)
        deep = found is not None and last[found["prefix"]] >= 3 and int(found["index"]) >= last[found["prefix"]] - 1
        if not deep and not _HEAD.search(t.name):
            return False
    return True
