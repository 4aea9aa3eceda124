"""Measures pairs of tensors from their values, streamed through fixed buffers; `fingerprint.estimate` only estimates.

Squares are added up in float32 over `SUM` elements, and these sums in float64: norms and distances are within 1e-6 of
the float64 result, relative (tests/numerics/test_exact.py).
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dvc_modelver.diff.blocks import BLOCK, Progress, is_measurable, iter_blocks
from dvc_modelver.diff.rank import find_rank
from dvc_modelver.errors import EnvironmentFailed
from dvc_modelver.fingerprint.estimate import UNDEFINED, Estimate, from_norms
from dvc_modelver.formats import Reader
from dvc_modelver.tensors import TensorSpec

SUM = 1 << 14
"""Elements whose squares are added up in their own type."""
SPLIT_BYTES = 256 << 20
"""More than this on both sides together is shared out to two processes."""

Open = Callable[[], Reader]
Pair = tuple[TensorSpec, TensorSpec]


@dataclass(frozen=True, slots=True)
class Measured:
    """What the values of an old tensor a and a new tensor b say.

    Attributes:
        estimate: Cosine, relative L2 and distance; its error is 0.
        values_changed: Elements whose bits differ (whose values differ, where the dtype changed).
        max_abs: Largest ``|b - a|`` over finite elements; None where there is none.
        max_abs_at: Flat index of it, in C order; None where nothing changed.
        sign_flips: Elements whose sign changed, zeros apart.
        nonfinite: Elements of b that are NaN or infinite where a is finite.
        rank: Number of directions of a low-rank update ``b - a`` of a matrix; None where it is not low or not known.
    """

    estimate: Estimate
    values_changed: int
    max_abs: float | None
    max_abs_at: int | None
    sign_flips: int
    nonfinite: int
    rank: int | None = None

    @property
    def is_same(self) -> bool:
        """Whether every value is the same."""
        return not self.values_changed


def measure_pairs(
    pairs: Sequence[Pair],
    open_old: Open,
    open_new: Open,
    *,
    shared: bool = True,
    progress: Progress = lambda _n: None,
) -> list[Measured]:
    """Measure pairs of tensors of two files, in two processes where there is much to read.

    Args:
        pairs: Old and new tensor of each, `is_measurable`.
        open_old: Opens the old file; called once in every process.
        open_new: Likewise the new one.
        shared: Whether a second process may take a share; not where a file lies on a remote, whose connections do
            not survive a fork.
        progress: Called with the number of bytes read since the last call.

    Raises:
        BadModelError: A file is damaged, or shorter than its header says.
        EnvironmentFailed: The second process was killed.
    """
    total = sum(old.nbytes + new.nbytes for old, new in pairs)
    if not shared or total < SPLIT_BYTES or len(pairs) < 2 or (os.cpu_count() or 1) < 2 or "fork" not in _START_METHODS:
        return _measure_here(pairs, open_old, open_new, progress)
    halves = _halve(pairs)
    context: Any = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure_there, args=(sender, [pairs[i] for i in halves[1]], open_old, open_new))
    child.start()
    sender.close()
    try:
        mine = _measure_here([pairs[i] for i in halves[0]], open_old, open_new, lambda n: progress(2 * n))
        theirs = receiver.recv()
    except EOFError as err:
        raise EnvironmentFailed(
            "comparing: the second process was killed", hint="free some memory, then again"
        ) from err
    finally:
        receiver.close()
        child.join()
    if isinstance(theirs, BaseException):
        raise theirs
    found = dict(zip([*halves[0], *halves[1]], [*mine, *theirs], strict=True))
    return [found[i] for i in range(len(pairs))]


_START_METHODS = multiprocessing.get_all_start_methods()


def _halve(pairs: Sequence[Pair]) -> tuple[list[int], list[int]]:
    """Share out indices so that both halves have about as many bytes, each in the order of the file."""
    loads = [0, 0]
    halves: tuple[list[int], list[int]] = ([], [])
    for i in sorted(range(len(pairs)), key=lambda i: -pairs[i][0].nbytes):
        side = int(loads[1] < loads[0])
        loads[side] += pairs[i][0].nbytes + pairs[i][1].nbytes
        halves[side].append(i)
    return sorted(halves[0]), sorted(halves[1])


def _measure_there(sender: Any, pairs: Sequence[Pair], open_old: Open, open_new: Open) -> None:
    try:
        result: object = _measure_here(pairs, open_old, open_new, lambda _n: None)
    except BaseException as err:  # carried to the parent
        result = err
    sender.send(result)


def _measure_here(pairs: Sequence[Pair], open_old: Open, open_new: Open, progress: Progress) -> list[Measured]:
    with open_old() as old, open_new() as new:
        return [measure(old, a, new, b, progress=progress) for a, b in pairs]


def measure(
    old: Reader, a: TensorSpec, new: Reader, b: TensorSpec, *, progress: Progress = lambda _n: None
) -> Measured:
    """Measure one pair of tensors.

    Args:
        old: The open file of `a`.
        a: The old tensor.
        new: The open file of `b`.
        b: The new tensor, with as many elements.
        progress: Called with the number of bytes read since the last call.

    Raises:
        ValueError: The pair is not `is_measurable`.
        BadModelError: A file is damaged.
    """
    if not is_measurable(a, b):
        raise ValueError(f"{a.dtype}{list(a.shape)} and {b.dtype}{list(b.shape)} cannot be compared by value")
    sums = Sums()
    for x, y in iter_blocks(old, a, new, b, progress):
        sums.add(x, y)
    found = sums.finish()
    if found.values_changed > 0 and not found.nonfinite and found.estimate.squared_distance:
        return replace(found, rank=find_rank(old, a, new, b))
    return found


class Sums:
    """What is added up over the blocks of a pair."""

    def __init__(self) -> None:
        self._n = self._changed = self._flips = self._nonfinite = self._undefined = 0
        self._aa = self._bb = self._dd = self._ab = 0.0
        self._max = 0.0
        self._max_at: int | None = None
        self._differs = np.empty(BLOCK, np.bool_)
        self._work: dict[Any, NDArray[Any]] = {}

    def add(self, x: NDArray[Any], y: NDArray[Any]) -> None:
        """Take in the next block of each side, of one dtype."""
        bits_x, bits_y = _bits(x), _bits(y)
        flags = self._differs[: x.size]
        np.not_equal(bits_x, bits_y, out=flags)
        changed = int(np.count_nonzero(flags))
        if x.dtype.kind != "f":
            x, y = x.astype(np.float64), y.astype(np.float64)
        if changed:
            self._add_changed(x, y, flags, changed)
        else:
            self._add_same(x)
        self._n += x.size

    def _add_same(self, x: NDArray[Any]) -> None:
        square = _square(x)
        if not math.isfinite(square):
            finite = np.isfinite(x)
            self._undefined += x.size - int(np.count_nonzero(finite))
            exact = x[finite].astype(np.float64)
            square = float(np.dot(exact, exact))
        self._aa += square
        self._bb += square
        self._ab += square

    def _add_changed(self, x: NDArray[Any], y: NDArray[Any], flags: NDArray[np.bool_], changed: int) -> None:
        delta = self._scratch(x)
        with np.errstate(invalid="ignore", over="ignore"):
            np.subtract(y, x, out=delta)
            sums = [_square(v) for v in (x, y, delta)]
            low, high = float(delta.min()), float(delta.max())
        if not all(map(math.isfinite, (*sums, low, high))):
            x, y, delta, sums = self._finite_part(x, y)
            low, high = (float(delta.min()), float(delta.max())) if delta.size else (0.0, 0.0)
        self._aa, self._bb, self._dd = self._aa + sums[0], self._bb + sums[1], self._dd + sums[2]
        self._ab += _dot(x, y, *sums)
        largest = max(-low, high)
        if largest > self._max or self._max_at is None:
            at = int(delta.argmax() if high >= -low else delta.argmin()) if delta.size else int(flags.argmax())
            self._max, self._max_at = largest, self._n + at
        self._changed += changed
        product = np.multiply(x, y, out=delta if delta.size == x.size else None)
        self._flips += int(np.count_nonzero(np.less(product, 0, out=self._differs[: product.size])))

    def _finite_part(
        self, x: NDArray[Any], y: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], list[float]]:
        """Count what is not finite, put 0 in its place on both sides, and sum up in float64."""
        finite_x, finite_y = np.isfinite(x), np.isfinite(y)
        both = finite_x & finite_y
        self._nonfinite += int(np.count_nonzero(finite_x & ~finite_y))
        self._undefined += x.size - int(np.count_nonzero(both))
        x, y = np.where(both, x, 0).astype(np.float64), np.where(both, y, 0).astype(np.float64)
        delta = y - x
        return x, y, delta, [float(np.dot(v, v)) for v in (x, y, delta)]

    def _scratch(self, x: NDArray[Any]) -> NDArray[Any]:
        if x.dtype not in self._work:
            self._work[x.dtype] = np.empty(BLOCK, x.dtype)
        return self._work[x.dtype][: x.size]

    def finish(self) -> Measured:
        """Give the result."""
        norms = math.sqrt(self._aa), math.sqrt(self._bb)
        found = UNDEFINED if self._undefined else from_norms(*norms, math.sqrt(self._dd), self._ab)
        return Measured(
            estimate=found,
            values_changed=self._changed,
            max_abs=self._max,
            max_abs_at=self._max_at,
            sign_flips=self._flips,
            nonfinite=self._nonfinite,
        )


def _square(x: NDArray[Any]) -> float:
    """Add up the squares: in the values' own type over `SUM` of them, then in float64."""
    pieces = [x[i : i + SUM] for i in range(0, x.size, SUM)]
    return math.fsum([float(np.dot(v, v)) for v in pieces])


def _dot(x: NDArray[Any], y: NDArray[Any], xx: float, yy: float, dd: float) -> float:
    """Give the dot product: from the squares where they are alike, since that costs no pass over the values."""
    if 0.25 * xx < yy < 4 * xx:
        return (xx + yy - dd) / 2
    pieces = [(x[i : i + SUM], y[i : i + SUM]) for i in range(0, x.size, SUM)]
    return math.fsum([float(np.dot(a.astype(np.float64), b.astype(np.float64))) for a, b in pieces])


def _bits(x: NDArray[Any]) -> NDArray[Any]:
    return x.view(f"u{x.dtype.itemsize}")
