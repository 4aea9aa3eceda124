"""Measures pairs of tensors from their values, streamed through fixed buffers; `fingerprint.estimate` only estimates.

Squares are added up in float32 over `SUM` elements, and these sums in float64: norms and distances are within 1e-6 of
the float64 result, relative (tests/numerics/test_exact.py).
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dvc_modelver.errors import BadModelError
from dvc_modelver.fingerprint.estimate import UNDEFINED, Estimate, from_norms
from dvc_modelver.fingerprint.values import make_decoder, real_bytes
from dvc_modelver.formats import Reader
from dvc_modelver.tensors import TensorSpec

BLOCK = 1 << 17
"""Elements that are held of each side at a time."""
SUM = 1 << 14
"""Elements whose squares are added up in their own type."""
SPLIT_BYTES = 256 << 20
"""More than this on both sides together is shared out to two processes."""
MAX_ROWS = 2_000_000
"""Rows that are told apart one by one; each takes about 100 bytes of memory."""
MAX_RANK = 48
"""Updates of a higher rank are not called low rank."""

Open = Callable[[], Reader]
Pair = tuple[TensorSpec, TensorSpec]
Progress = Callable[[int], None]


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


def is_measurable(old: TensorSpec, new: TensorSpec) -> bool:
    """Whether two tensors can be compared value by value: as many elements, of dtypes that hold numbers."""
    return old.numel == new.numel and real_bytes(old.dtype) is not None and real_bytes(new.dtype) is not None


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
    loads, halves = [0, 0], ([], [])  # type: tuple[list[int], tuple[list[int], list[int]]]
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


def measure_rows(old: Reader, a: TensorSpec, new: Reader, b: TensorSpec) -> Measured | None:
    """Measure the rows that two tensors of unlike lengths have in common: a vocabulary that was trimmed or grown.

    Returns:
        None where anything but the length of the first axis differs.
    """
    if len(a.shape) != len(b.shape) or a.shape[1:] != b.shape[1:] or not all((*a.shape, *b.shape)):
        return None
    numel = min(a.numel, b.numel)
    sums = _Sums()
    for x, y in _blocks(old, a, new, b, lambda _n: None, numel):
        sums.add(x, y)
    return sums.finish()


@dataclass(frozen=True)
class Rows:
    """Rows of two tensors, told apart by their bytes, in whatever order.

    Attributes:
        same: Rows that both have.
        removed: Rows of the old tensor alone.
        added: Rows of the new tensor alone.
    """

    same: int
    removed: int
    added: int


def match_rows(old: Reader, a: TensorSpec, new: Reader, b: TensorSpec) -> Rows | None:
    """Count the rows that two tensors share: a vocabulary that was trimmed anywhere, not only at its end.

    Returns:
        None where the rows are not of one shape and dtype, or are too many.
    """
    if a.dtype != b.dtype or a.shape[1:] != b.shape[1:] or max(a.shape[0], b.shape[0]) > MAX_ROWS:
        return None
    first, second = _row_digests(old, a), _row_digests(new, b)
    same = sum((first & second).values())
    return Rows(same, a.shape[0] - same, b.shape[0] - same)


def _row_digests(reader: Reader, spec: TensorSpec) -> Counter[bytes]:
    n_bytes = spec.nbytes // spec.shape[0]
    found: Counter[bytes] = Counter()
    if not n_bytes:
        return found
    for buffer in reader.iter_buffers(spec, n_bytes * max(1, (1 << 20) // n_bytes)):
        for i in range(0, len(buffer), n_bytes):
            found[hashlib.blake2b(buffer[i : i + n_bytes], digest_size=16).digest()] += 1
    return found


def measure_transposed(old: Reader, a: TensorSpec, new: Reader, b: TensorSpec) -> Measured | None:
    """Measure a matrix against the transpose of another: dense layers of two frameworks.

    Returns:
        None where the shapes are not each other's reverse, or the matrices are too large to be held.
    """
    if len(a.shape) != 2 or a.shape != b.shape[::-1] or a.numel > _MAX_CELLS:
        return None
    whole: tuple[list[NDArray[Any]], list[NDArray[Any]]] = ([], [])
    for x, y in _blocks(old, a, new, b, lambda _n: None):
        whole[0].append(x.copy())
        whole[1].append(y.copy())
    first = np.concatenate(whole[0])
    second = np.concatenate(whole[1]).reshape(b.shape).T.ravel()
    sums = _Sums()
    for i in range(0, first.size, BLOCK):
        sums.add(first[i : i + BLOCK], second[i : i + BLOCK])
    return sums.finish()


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
    sums = _Sums()
    for x, y in _blocks(old, a, new, b, progress):
        sums.add(x, y)
    found = sums.finish()
    if found.values_changed > 0 and not found.nonfinite and found.estimate.squared_distance:
        rank = find_rank(old, a, new, b)
        return replace(found, rank=rank)
    return found


def _blocks(
    old: Reader, a: TensorSpec, new: Reader, b: TensorSpec, progress: Progress, numel: int | None = None
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Give both tensors, or their first `numel` elements, as real numbers of one type; valid until the next block."""
    left = max(a.numel, b.numel) if numel is None else numel
    left *= 2 if a.dtype.startswith("C") else 1
    decode_a, decode_b = (make_decoder(s.dtype, np.empty(BLOCK, np.float32)) for s in (a, b))
    sides = zip(
        old.iter_buffers(a, BLOCK * (real_bytes(a.dtype) or 1)),
        new.iter_buffers(b, BLOCK * (real_bytes(b.dtype) or 1)),
        strict=numel is None,
    )
    try:
        for raw_a, raw_b in sides:
            x, y = decode_a(raw_a)[:left], decode_b(raw_b)[:left]
            left -= x.size
            if not x.size:
                return
            progress(len(raw_a) + len(raw_b))
            if x.size != y.size:
                raise ValueError
            if x.dtype != y.dtype:
                x, y = x.astype(np.float64), y.astype(np.float64)
            yield x, y
    except ValueError as err:
        raise BadModelError(f"tensor {a.name!r}: its two sides ended at different lengths") from err


class _Sums:
    """What is added up over the blocks of a pair."""

    def __init__(self) -> None:
        self._n = self._changed = self._flips = self._nonfinite = self._undefined = 0
        self._aa = self._bb = self._dd = 0.0
        self._max, self._max_at = 0.0, None  # type: float, int | None
        self._is_any = False
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
        found = UNDEFINED if self._undefined else from_norms(*norms, math.sqrt(self._dd))
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


def _bits(x: NDArray[Any]) -> NDArray[Any]:
    return x.view(f"u{x.dtype.itemsize}")


# Low rank

_ROUNDING = {"BF16": 2**-9, "F16": 2**-12, "F32": 2**-25, "F64": 2**-54}
_PROBE = 64
_MAX_CELLS = 1 << 25


def find_rank(old: Reader, a: TensorSpec, new: Reader, b: TensorSpec) -> int | None:
    """Give the rank of the update of a matrix where it is low, like that of a merged LoRA adapter.

    A corner of the update is looked at first, since its rank is a lower bound. Where that is low, the update D is
    multiplied by a random matrix of twice as many columns, and the singular values of the product above the noise
    that rounding the weights leaves are counted.

    Returns:
        None where the rank exceeds `MAX_RANK` or an eighth of the smaller side, where a side is shorter than 16, or
        for dtypes whose rounding is too coarse.

    Source: Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 53 (2011), algorithm 4.1.
    """
    rows = a.shape[0] if len(a.shape) > 1 else 0
    columns = a.numel // rows if rows else 0
    step = max(_ROUNDING.get(s.dtype, 0.0) for s in (a, b))
    if min(rows, columns) < 16 or a.shape != b.shape or not step:
        return None
    limit = min(MAX_RANK, min(rows, columns) // 8)
    corner, size = _corner(old, a, new, b, min(rows, _PROBE), columns, min(columns, _PROBE))
    noise = 2 * step * size
    low = _count(corner, noise * _edge(*corner.shape))
    if not 0 < low <= limit or low == min(corner.shape):
        return None
    k = min(2 * low + 16, columns)
    if rows * k > _MAX_CELLS or columns * k > _MAX_CELLS:
        return None
    random = np.random.default_rng(0).standard_normal((columns, k), dtype=np.float32)
    product = np.concatenate([block @ random for block in _row_blocks(old, a, new, b, columns)])
    found = _count(product, noise * math.sqrt(columns) * _edge(rows, k))
    return found if 0 < found <= limit and found < k else None


def _corner(
    old: Reader, a: TensorSpec, new: Reader, b: TensorSpec, rows: int, columns: int, width: int
) -> tuple[NDArray[np.float32], float]:
    """Give the top left corner of the update, and the largest magnitude of the weights there."""
    pieces, size, n = [], 0.0, 0
    for x, y in _blocks(old, a, new, b, lambda _n: None):
        size = max(size, float(np.abs(x).max()), float(np.abs(y).max()))
        pieces.append(np.subtract(y, x, dtype=np.float32))
        n += x.size
        if n >= rows * columns:
            break
    flat = np.concatenate(pieces)
    rows = min(rows, flat.size // columns)
    return flat[: rows * columns].reshape(rows, columns)[:, :width], size


def _row_blocks(old: Reader, a: TensorSpec, new: Reader, b: TensorSpec, columns: int) -> Iterator[NDArray[np.float32]]:
    """Give the update in blocks of whole rows."""
    rest = np.empty(0, np.float32)
    for x, y in _blocks(old, a, new, b, lambda _n: None):
        rest = np.concatenate([rest, np.subtract(y, x, dtype=np.float32)])
        whole = rest.size // columns * columns
        if whole:
            yield rest[:whole].reshape(-1, columns)
            rest = rest[whole:]


def _edge(rows: int, columns: int) -> float:
    """Largest singular value of a matrix of independent values of unit variance, nearly."""
    return math.sqrt(rows) + math.sqrt(columns)


def _count(matrix: NDArray[np.float32], above: float) -> int:
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    return int(np.count_nonzero(values > max(above, 1e-6 * values[0])))
