"""RSCS-1: a linear projection of a tensor's values to k numbers, and their statistics in the same pass.

A rotated-segment CountSketch. ``sketch(a) - sketch(b) = sketch(a - b)``, so the distance of two tensors
of equal length follows from their sketches, to a relative error of about ``1/sqrt(2k)``. A sketch in
somebody's Git history must stay comparable for ever: every sum here is a fixed sequence of elementwise
IEEE operations, and none is left to BLAS, `numpy.sum` or a random module. Any change of a bit is a new
algorithm with a new name.

Sources: M. Charikar, K. Chen, M. Farach-Colton, "Finding Frequent Items in Data Streams" (2002), section
3.1; the step numbers are those of docs/sketch.md, which has the definition and the test vectors.
"""

from __future__ import annotations

import base64
import hashlib
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dvc_modelver.fingerprint.values import WIDE_DTYPES, Real, make_decoder, real_bytes

ALGORITHM = "RSCS-1"
LANES = 1 << 14
CHUNK = 1 << 20
K_MAX = 256
K_CHOICES = (16, 32, 64, 128, 256)

_ZERO_EXPONENT = -128
_FRACTION_BITS = 23
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_FLOAT32_TINY = float(np.finfo(np.float32).tiny)
_WIDE_ABOVE = 2.0**62
_WIDE_BELOW = 2.0**-50
_VARIANCE_FLOOR = 1e-7

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@cache
def sign_table() -> F32:
    """Give the signs, +1 or -1 (step 1). Shape ``[2^16 + LANES]``."""
    n_signs = (1 << 16) + LANES
    random = hashlib.shake_128(b"dvc-modelver/rscs1/signs").digest(n_signs // 8)
    bits = np.unpackbits(np.frombuffer(random, np.uint8), bitorder="little")
    return (1 - 2 * bits.astype(np.int8)).astype(np.float32)


@cache
def lane_permutation() -> NDArray[np.intp]:
    """Give the order in which lanes are dealt to buckets (step 2). Shape ``[LANES]``."""
    random = hashlib.shake_128(b"dvc-modelver/rscs1/lanes").digest(8 * LANES)
    return np.argsort(np.frombuffer(random, "<u8"), kind="stable")


def segment_parameters(first: int, count: int) -> list[tuple[int, int, int]]:
    """Give (sign offset, lane rotation, flip) of `count` segments from segment `first` (step 3)."""
    z = np.arange(first + 1, first + 1 + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    offsets = (z & np.uint64(0xFFFF)).tolist()
    rotations = ((z >> np.uint64(16)) & np.uint64(LANES - 1)).tolist()
    return list(zip(offsets, rotations, (z >> np.uint64(63)).tolist(), strict=True))


@cache
def _first_segment() -> tuple[int, int, int]:
    return segment_parameters(0, 1)[0]


@cache
def _short_positions() -> NDArray[np.intp]:
    # Where the lanes of segment 0, the only one of a short tensor, come to lie after the permutation.
    permutation = lane_permutation()
    positions = np.empty_like(permutation)
    positions[permutation] = np.arange(LANES)
    _, rotation, _ = _first_segment()
    return np.roll(positions, -rotation)


def fold_buckets(buckets: F64, k: int) -> F64:
    """Fold a sketch of 256 values to `k` (step 8).

    Raises:
        ValueError: `k` is not one of `K_CHOICES`.
    """
    if k not in K_CHOICES:
        raise ValueError(f"k is {k}, expected one of {K_CHOICES}")
    return _halve(buckets.copy(), k)


def encode_buckets(buckets: F64) -> str:
    """Write a sketch as ``<exponent>:<base64>``, three bytes a value (step 9)."""
    largest = float(np.abs(buckets).max())
    exponent = math.frexp(largest)[1] if largest else _ZERO_EXPONENT
    limit = (1 << _FRACTION_BITS) - 1
    scaled = np.rint(np.ldexp(buckets, _FRACTION_BITS - exponent))
    integers = np.maximum(np.minimum(scaled, limit), -limit).astype("<i4")
    packed = integers.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    return f"{exponent}:{base64.b64encode(packed).decode()}"


@dataclass(frozen=True, slots=True)
class Statistics:
    """Exact statistics of a tensor's finite values; None where undefined.

    Attributes:
        norm: L2 norm.
        mean: Arithmetic mean.
        std: Population standard deviation. None when it is below 3e-4 of the root mean square in a tensor
            of more than `LANES` values: float32 sums cannot tell it from rounding.
        min: Smallest value.
        max: Largest value.
        zeros: Number of values equal to zero.
        nonfinite: Number of NaN and infinite values.
    """

    norm: float
    mean: float | None
    std: float | None
    min: float | None
    max: float | None
    zeros: int
    nonfinite: int


class Workspace:
    """The fixed buffers of `SketchAccumulator`, about 6 MB; one accumulator uses them at a time."""

    def __init__(self) -> None:
        self.values = np.empty(CHUNK, np.float32)
        self.flags = np.empty(CHUNK, np.bool_)
        self.lanes = np.empty(2 * LANES, np.float32)
        self.sums = np.empty((2, LANES), np.float32)
        self.terms = np.empty(LANES, np.float32)
        self.total = np.empty(LANES, np.float64)
        self.tree = np.empty(LANES, np.float64)
        self.short = np.zeros(LANES, np.float64)
        self.moments = np.empty((LANES, 4), np.float64)


class SketchAccumulator:
    """Takes in a tensor chunk by chunk and gives its sketch and statistics.

    Args:
        dtype: A dtype for which `is_sketchable` holds.
        numel: Number of elements of the tensor.
        workspace: Buffers to reuse for one tensor after the other.

    Attributes:
        sum: Sum of the finite values.
        sum_squares: Sum of their squares.
    """

    def __init__(self, dtype: str, numel: int, workspace: Workspace | None = None) -> None:
        size = real_bytes(dtype)
        if size is None:
            raise ValueError(f"dtype is {dtype}, expected one with numbers of whole bytes")
        self._space = workspace or Workspace()
        self._decode = make_decoder(dtype, self._space.values)
        self._chunk_bytes = CHUNK * size
        self._numel = numel * 2 if dtype[0] == "C" else numel
        self._is_wide = dtype in WIDE_DTYPES
        self._n_seen = 0
        self._buckets: F64 | None = None
        self._variance: float | None = None
        self._low, self._high = math.inf, -math.inf
        self._zeros = self._nonfinite = 0
        self.sum = self.sum_squares = 0.0
        if self._numel > LANES:
            self._space.total.fill(0)

    def update(self, buffer: bytes | bytearray | memoryview) -> None:
        """Take in the next values, stored as little-endian bytes.

        Args:
            buffer: A whole number of chunks of `CHUNK` real numbers; the tensor's last may be shorter.

        Raises:
            ValueError: More follows a shorter chunk, or more than `numel` values in all.
        """
        view = memoryview(buffer).cast("B")
        with np.errstate(all="ignore"):
            for start in range(0, len(view), self._chunk_bytes):
                self._add(self._decode(view[start : start + self._chunk_bytes]))

    def fold(self, k: int) -> F64:
        """Give the sketch as `k` float64 values; call it after the last `update`."""
        return fold_buckets(self._find_buckets(), k)

    def encode(self, k: int) -> str | None:
        """Give the sketch as text; None where the largest value is beyond what float32 holds."""
        largest = max(abs(self._low), abs(self._high)) if self._low <= self._high else 0.0
        if self._is_wide and largest and not _FLOAT32_TINY <= largest <= _FLOAT32_MAX:
            return None
        return encode_buckets(self.fold(k))

    def finish(self) -> Statistics:
        """Give the statistics; call it after the last `update`."""
        n_finite = self._n_seen - self._nonfinite
        norm = math.sqrt(self.sum_squares)
        if not n_finite:
            return Statistics(norm, None, None, None, None, self._zeros, self._nonfinite)
        mean, std = self.sum / n_finite, self._find_std(n_finite)
        if self._low == self._high:
            mean = self._low
        return Statistics(norm, mean, std, self._low, self._high, self._zeros, self._nonfinite)

    def _find_std(self, n_finite: int) -> float | None:
        if self._low == self._high:
            return 0.0
        if self._variance is not None:
            return math.sqrt(self._variance)
        mean_square = self.sum_squares / n_finite
        mean = self.sum / n_finite
        variance = mean_square - mean * mean
        # The comparison is also false for NaN, after sums beyond float64.
        return math.sqrt(variance) if variance > mean_square * _VARIANCE_FLOOR else None

    def _find_buckets(self) -> F64:
        if self._buckets is None:
            if self._numel > LANES:
                np.take(self._space.total, lane_permutation(), out=self._space.tree, mode="clip")
                self._buckets = _halve(self._space.tree, K_MAX).copy()
            else:
                self._buckets = np.zeros(K_MAX)
        return self._buckets

    def _add(self, values: Real) -> None:
        if self._n_seen % CHUNK or self._n_seen + values.size > self._numel:
            raise ValueError(f"{values.size} values after {self._n_seen} of {self._numel}, expected whole chunks")
        low, high = _find_range(values)
        finite: NDArray[np.bool_] | None = None
        self._zeros += self._count_zeros(values, low, high)
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = np.isfinite(values)
            self._nonfinite += values.size - int(np.count_nonzero(finite))
            values = np.where(finite, values, values.dtype.type(0))
            low, high = _find_range(values[finite])
        self._low, self._high = min(self._low, low), max(self._high, high)
        largest = max(abs(low), abs(high)) if low <= high else 0.0
        wide = self._is_wide or largest > _WIDE_ABOVE or 0 < largest < _WIDE_BELOW
        if self._numel <= LANES:
            self._add_short(values, wide, finite)
        elif wide:
            self._add_wide(values)
        else:
            self._add_narrow(values)
        self._n_seen += values.size

    def _count_zeros(self, values: Real, low: float, high: float) -> int:
        if low > 0 or high < 0:
            return 0
        flags = self._space.flags[: values.size]
        np.equal(values, values.dtype.type(0), out=flags)
        return int(np.count_nonzero(flags))

    def _add_narrow(self, values: F32) -> None:
        space = self._space
        space.lanes.fill(0)
        space.sums.fill(0)
        self._add_segments(values, values, space.lanes, space.sums, space.terms)

    def _add_wide(self, values: Real) -> None:
        exact = values.astype(np.float64)
        rounded = values.astype(np.float32)
        lanes, sums, terms = np.zeros(2 * LANES), np.zeros((2, LANES)), np.empty(LANES)
        self._add_segments(exact, rounded, lanes, sums, terms)

    def _add_segments(
        self, exact: NDArray[Any], rounded: F32, lanes: NDArray[Any], sums: NDArray[Any], terms: NDArray[Any]
    ) -> None:
        # Steps 5 and 6. `lanes`, `sums` and `terms` have one type, which is that of the arithmetic.
        add, subtract, multiply = np.add, np.subtract, np.multiply
        signs, (plain, squares) = sign_table(), sums
        n = exact.size
        parameters = segment_parameters(self._n_seen // LANES, -(-n // LANES))
        for start, (offset, rotation, flip) in zip(range(0, n, LANES), parameters, strict=True):
            x = exact[start : start + LANES]
            m = x.size
            term, here, square, lane = terms[:m], plain[:m], squares[:m], lanes[rotation : rotation + m]
            multiply(rounded[start : start + m], signs[offset : offset + m], out=term)
            (subtract if flip else add)(lane, term, out=lane)
            multiply(x, x, out=term)
            add(square, term, out=square)
            add(here, x, out=here)
        space = self._space
        np.copyto(space.tree, lanes[:LANES])
        add(space.tree, lanes[LANES:], out=space.tree)
        add(space.total, space.tree, out=space.total)
        np.copyto(space.tree, plain)
        self.sum += float(_halve(space.tree, 1)[0])
        np.copyto(space.tree, squares)
        self.sum_squares += float(_halve(space.tree, 1)[0])

    def _add_short(self, values: Real, wide: bool, finite: NDArray[np.bool_] | None) -> None:
        # The same sums, without the lanes that stay zero: adding those changes nothing.
        n = values.size
        exact = values.astype(np.float64)
        offset, _, flip = _first_segment()
        signed = values.astype(np.float32) * sign_table()[offset : offset + n]
        positions, short, tree = _short_positions()[:n], self._space.short, self._space.tree
        short[positions] = np.subtract(0, signed) if flip else np.add(0, signed)
        half = LANES // 2
        np.add(short[:half], short[half:], out=tree[:half])
        self._buckets = _halve(tree[:half], K_MAX).copy()
        short[positions] = 0
        squares = exact * exact if wide else values * values
        self._add_moments(exact, squares, finite)

    def _add_moments(self, exact: F64, squares: NDArray[Any], finite: NDArray[np.bool_] | None) -> None:
        # The variance is taken about a value of the tensor: no cancellation, whatever the mean.
        n = exact.size
        n_rows = 1 << (n - 1).bit_length()
        moments = self._space.moments[:n_rows]
        moments[n:] = 0
        deviations = exact - self._low if self._low <= self._high else exact
        if finite is not None:
            deviations[~finite] = 0
        moments[:n, 0] = exact
        moments[:n, 1] = squares
        moments[:n, 2] = deviations
        np.multiply(deviations, deviations, out=moments[:n, 3])
        totals = _halve(moments.reshape(-1), 4).tolist()
        self.sum, self.sum_squares = totals[:2]
        n_finite = n if finite is None else int(np.count_nonzero(finite))
        if n_finite:
            self._variance = max(0.0, totals[3] / n_finite - (totals[2] / n_finite) ** 2)


def is_sketchable(dtype: str) -> bool:
    """Whether a dtype has statistics and a sketch; packed ones (F4, F6) have a digest only."""
    return real_bytes(dtype) is not None


def _find_range(values: Real) -> tuple[float, float]:
    if not values.size:
        return math.inf, -math.inf
    return float(values.min()), float(values.max())


def _halve(tree: F64, width: int) -> F64:
    """Add the upper half to the lower one, in place, until `width` values are left."""
    rows = tree.size
    while rows > width:
        rows //= 2
        np.add(tree[:rows], tree[rows : 2 * rows], out=tree[:rows])
    return tree[:width]
