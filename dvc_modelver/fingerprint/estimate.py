"""How far apart two tensors, or two models, are: from their norms and RSCS-1 sketches alone.

Standard library only: this runs inside ``git diff``. Formulas and measured errors are those of
docs/sketch.md, section "Estimators".
"""

from __future__ import annotations

import binascii
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from operator import mul

from dvc_modelver.errors import BadMetadataError
from dvc_modelver.fingerprint.row import TensorRow

ERROR_P95 = {16: 0.34, 32: 0.24, 64: 0.17, 128: 0.12, 256: 0.08}
"""Relative error of an estimated distance that 95 of 100 tensors stay below, by sketch size."""
VISIBLE_L2 = 2e-7
"""The smallest relative L2 distance that a sketch shows: its values have 24 bits."""
PRINTED_L2 = 1e-6
"""Below this an estimated relative L2 distance is printed as ``< 1e-6``."""
RENAME_COSINE = {16: 0.90, 32: 0.80, 64: 0.70, 128: 0.70, 256: 0.70}
"""Two unmatched tensors whose cosine exceeds this are one renamed tensor, by sketch size."""

_NEAR_COSINE = 0.27
_MAX_EXPONENT = 1023
_MAX_NORM = 1e150


@dataclass(frozen=True, slots=True)
class Sketch:
    """A decoded sketch.

    Attributes:
        k: Number of values.
        values: The values.
    """

    k: int
    values: tuple[float, ...]

    def fold(self, k: int) -> Sketch:
        """Give the sketch of the same tensor with fewer values.

        Raises:
            ValueError: `k` is not one of the sizes up to this one's.
        """
        if k not in ERROR_P95 or k > self.k:
            raise ValueError(f"k is {k}, expected one of {[size for size in ERROR_P95 if size <= self.k]}")
        rows = [list(self.values[i : i + k]) for i in range(0, self.k, k)]
        while len(rows) > 1:
            half = len(rows) // 2
            rows = [[x + y for x, y in zip(rows[i], rows[half + i], strict=True)] for i in range(half)]
        return Sketch(k, tuple(rows[0]))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A comparison of two tensors or models, old (a) and new (b); None where undefined.

    Attributes:
        cosine: Cosine similarity, in [-1, 1]; None where a norm is zero.
        relative_l2: ``|b - a| / |a|``; None where ``|a|`` is zero.
        error: What `relative_l2` may be off by, in 95 of 100 cases; 0 where it is exact.
        squared_distance: ``|b - a|^2``.
        dot: ``a . b``.
        norm_a: ``|a|``.
        norm_b: ``|b|``.
    """

    cosine: float | None
    relative_l2: float | None
    error: float | None
    squared_distance: float | None
    dot: float | None
    norm_a: float | None
    norm_b: float | None

    @property
    def is_below_floor(self) -> bool:
        """Whether the distance is too small to print as a number: say "< 1e-6, bytes differ"."""
        return self.relative_l2 is not None and self.relative_l2 < PRINTED_L2


UNDEFINED = Estimate(None, None, None, None, None, None, None)


def decode(text: str, where: str = "tensor table") -> Sketch:
    """Read a sketch, ``<exponent>:<base64>``.

    Raises:
        BadMetadataError: It is no RSCS-1 sketch of 16, 32, 64, 128 or 256 values; `where` is named.
    """
    exponent_text, _, packed = text.partition(":")
    try:
        exponent = int(exponent_text)
        raw = binascii.a2b_base64(packed, strict_mode=True)
    except ValueError as err:
        raise BadMetadataError(f"{where}: sketch is {text[:40]!r}, expected <exponent>:<base64>") from err
    k, rest = divmod(len(raw), 3)
    if rest or k not in ERROR_P95 or abs(exponent) > _MAX_EXPONENT:
        raise BadMetadataError(
            f"{where}: sketch has {len(raw)} bytes and exponent {exponent}, "
            "expected 3 bytes for each of 16 to 256 values"
        )
    # Each value goes into the upper three bytes of an int32, which keeps its sign.
    padded = bytearray(4 * k)
    padded[1::4], padded[2::4], padded[3::4] = raw[0::3], raw[1::3], raw[2::3]
    scale = math.ldexp(1.0, exponent - 31)
    return Sketch(k, tuple([value * scale for value in struct.unpack(f"<{k}i", padded)]))


def estimate_rows(old: TensorRow, new: TensorRow, where: str = "tensor table") -> Estimate:
    """Compare two tensors by their rows: exactly where the bytes are equal, else by `estimate`.

    Returns:
        `UNDEFINED` where the numbers of elements differ, or values are not finite.

    Raises:
        BadMetadataError: A sketch cannot be read; `where` is named.
    """
    if old.digest and old.digest == new.digest and old.dtype == new.dtype:
        return identical(old.norm, is_finite=not old.nonfinite)
    if old.numel != new.numel or old.nonfinite or new.nonfinite or not old.sketch or not new.sketch:
        return UNDEFINED
    return estimate(old.norm, decode(old.sketch, where), new.norm, decode(new.sketch, where))


def identical(norm: float | None, *, is_finite: bool = True) -> Estimate:
    """Give the comparison of a tensor with one of equal bytes: exact.

    Args:
        norm: Norm of the finite values; None where unknown.
        is_finite: False where some values are not: then there is no cosine and no relative distance.
    """
    if norm is None or norm > _MAX_NORM:
        return Estimate(None, 0.0, 0.0, 0.0, None, None, None)
    if not norm or not is_finite:
        return Estimate(None, None, None, 0.0, norm * norm, norm, norm)
    return Estimate(1.0, 0.0, 0.0, 0.0, norm * norm, norm, norm)


def one_sided(norm: float | None, *, is_new: bool) -> Estimate:
    """Give the comparison of a tensor that only one model has with a tensor of zeros: exact."""
    if norm is None or norm > _MAX_NORM:
        return UNDEFINED
    return _against_zero(0.0, norm) if is_new else _against_zero(norm, 0.0)


def estimate(norm_a: float | None, sketch_a: Sketch | None, norm_b: float | None, sketch_b: Sketch | None) -> Estimate:
    """Compare two tensors of equal length by their norms and sketches.

    A pure rescale comes out exact, a change of one element nearly so. Tensors whose digests are equal
    are `identical` instead: a sketch cannot tell "equal" from "differs by less than `VISIBLE_L2`".

    Args:
        norm_a: Norm of the old tensor.
        sketch_a: Sketch of the old tensor; the larger of two sketches is folded to the other's size.
        norm_b: Norm of the new tensor.
        sketch_b: Sketch of the new tensor.

    Returns:
        `UNDEFINED` where a norm or sketch is unknown. Where a norm is zero there is no cosine, and the
        distance is exact.
    """
    if norm_a is None or norm_b is None or sketch_a is None or sketch_b is None:
        return UNDEFINED
    if max(norm_a, norm_b) > _MAX_NORM:
        return UNDEFINED
    if not norm_a or not norm_b:
        return _against_zero(norm_a, norm_b)
    k = min(sketch_a.k, sketch_b.k)
    a = sketch_a.values if sketch_a.k == k else sketch_a.fold(k).values
    b = sketch_b.values if sketch_b.k == k else sketch_b.fold(k).values
    unit_a = [value / norm_a for value in a]
    unit_b = [value / norm_b for value in b]
    away = math.dist(unit_a, unit_b)
    away *= away / 2
    if away >= 1 - _NEAR_COSINE:
        away = 1 - max(-1.0, min(1.0, sum(map(mul, unit_a, unit_b))))
    # Only the part of the distance that comes from the angle is uncertain; the norms are exact.
    ratio = norm_b / norm_a
    stretch, turn = 1 - ratio, math.sqrt(2 * ratio * away)
    relative = math.hypot(stretch, turn)
    error = math.hypot(stretch, turn * (1 + ERROR_P95[k])) - relative
    distance = relative * norm_a
    squared, dot = distance * distance, norm_a * norm_b * (1 - away)
    if not math.isfinite(squared):
        return UNDEFINED
    return Estimate(1 - away, relative, max(error, VISIBLE_L2), squared, dot, norm_a, norm_b)


def from_norms(norm_a: float, norm_b: float, distance: float, dot: float | None = None) -> Estimate:
    """Give the comparison that exact norms, distance ``|b - a|`` and dot product make: its error is 0.

    Without the dot product the cosine follows from the rest, which is exact only for norms that are alike.
    """
    if not math.isfinite(norm_a + norm_b + distance) or max(norm_a, norm_b) > _MAX_NORM:
        return UNDEFINED
    if not norm_a or not norm_b:
        return _against_zero(norm_a, norm_b)
    squared = distance * distance
    cosine = _cosine(norm_a, norm_b, squared, dot)
    return Estimate(cosine, distance / norm_a, 0.0, squared, cosine * norm_a * norm_b, norm_a, norm_b)


def _cosine(norm_a: float, norm_b: float, squared: float, dot: float | None) -> float:
    """Give the cosine from whichever of squared distance and dot product loses no digits.

    Near 1, and for norms that are alike, the distance knows it to many digits; elsewhere it would be a small
    difference of large numbers.
    """
    away = (squared - (norm_a - norm_b) ** 2) / (2 * norm_a * norm_b)
    if dot is not None and not (0.5 < norm_b / norm_a < 2 and away < 0.1):
        return max(-1.0, min(1.0, dot / norm_a / norm_b))
    return max(-1.0, min(1.0, 1 - away))


def combine(estimates: Iterable[Estimate]) -> Estimate:
    """Compare two models by the comparisons of their tensors: the noise averages out.

    Errors of single tensors are taken as independent.

    Returns:
        `UNDEFINED` where a tensor's distance or norm is, or where nothing was given.
    """
    distances, norms_a, norms_b, errors, dots = [], [], [], [], []
    for one in estimates:
        if one.squared_distance is None or one.norm_a is None or one.norm_b is None:
            return UNDEFINED
        distances.append(one.squared_distance)
        norms_a.append(one.norm_a)
        norms_b.append(one.norm_b)
        dots.append(one.dot)
        if one.error:
            errors.append(2 * math.sqrt(one.squared_distance) * one.error * one.norm_a)
    if not distances:
        return UNDEFINED
    norm_a, norm_b = math.hypot(*norms_a), math.hypot(*norms_b)
    if not norm_a or not norm_b:
        return _against_zero(norm_a, norm_b)
    squared = math.fsum(distances)
    distance = math.sqrt(squared)
    spread = 2 * distance * norm_a
    error = math.hypot(*errors) / spread if spread else 0.0
    dot = math.fsum(d for d in dots if d is not None) if None not in dots else None
    cosine = _cosine(norm_a, norm_b, squared, dot)
    return Estimate(cosine, distance / norm_a, error, squared, cosine * norm_a * norm_b, norm_a, norm_b)


def _against_zero(norm_a: float, norm_b: float) -> Estimate:
    squared = norm_a * norm_a + norm_b * norm_b
    if not norm_a:
        return Estimate(None, None, None, squared, 0.0, norm_a, norm_b)
    return Estimate(None, 1.0, 0.0, squared, 0.0, norm_a, norm_b)
