"""Says what tensors of unlike shapes have in common: rows that were removed or added, and transposes."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dvc_modelver.diff.blocks import BLOCK, iter_blocks
from dvc_modelver.diff.exact import Measured, Sums
from dvc_modelver.fingerprint.match import find_axes
from dvc_modelver.formats import Reader
from dvc_modelver.tensors import BLOCKS, TensorSpec

MAX_ROWS = 2_000_000
"""Rows that are told apart one by one; each takes about 100 bytes of memory."""

_MAX_CELLS = 1 << 23
"""Elements of the largest matrix that is held to be transposed; four copies are, of each side two."""


def measure_rows(old: Reader, a: TensorSpec, new: Reader, b: TensorSpec) -> Measured | None:
    """Measure the rows that two tensors of unlike lengths have in common: a vocabulary that was trimmed or grown.

    Returns:
        None where anything but the length of the first axis differs.
    """
    if len(a.shape) != len(b.shape) or a.shape[1:] != b.shape[1:] or not all((*a.shape, *b.shape)):
        return None
    numel = min(a.numel, b.numel)
    sums = Sums()
    for x, y in iter_blocks(old, a, new, b, lambda _n: None, numel):
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
        None where the rows are not of one shape and dtype, are too many, or are packed in blocks.
    """
    if a.dtype in BLOCKS or a.dtype != b.dtype or a.shape[1:] != b.shape[1:] or max(a.shape[0], b.shape[0]) > MAX_ROWS:
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
    """Measure a tensor against another whose axes are in the order of another framework, see `match.find_axes`.

    Returns:
        None where the shapes do not fit so, or the tensors are too large to be held.
    """
    order = find_axes(a.shape, b.shape)
    if order is None or a.numel > _MAX_CELLS:
        return None
    whole: tuple[list[NDArray[Any]], list[NDArray[Any]]] = ([], [])
    for x, y in iter_blocks(old, a, new, b, lambda _n: None):
        whole[0].append(x.copy())
        whole[1].append(y.copy())
    first = np.concatenate(whole[0])
    second = np.concatenate(whole[1]).reshape(b.shape).transpose(order).ravel()
    sums = Sums()
    for i in range(0, first.size, BLOCK):
        sums.add(first[i : i + BLOCK], second[i : i + BLOCK])
    return sums.finish()
