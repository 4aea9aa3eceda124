"""Recognises an update of low rank, like that of a merged LoRA adapter."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dvc_modelver.diff.blocks import iter_blocks
from dvc_modelver.formats import Reader
from dvc_modelver.tensors import TensorSpec

MAX_RANK = 48
"""Updates of a higher rank are not called low rank."""

_ROUNDING = {"BF16": 2**-9, "F16": 2**-12, "F32": 2**-25, "F64": 2**-54}
_PROBE = 64
_MAX_CELLS = 1 << 23
"""Cells of the largest matrix that is held: 64 MB while its singular values are found."""


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
    coarse = any(s.dtype not in _ROUNDING for s in (a, b))
    if min(rows, columns) < 16 or a.shape != b.shape or coarse:
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
    for x, y in iter_blocks(old, a, new, b, lambda _n: None):
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
    for x, y in iter_blocks(old, a, new, b, lambda _n: None):
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
