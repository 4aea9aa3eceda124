"""Elements of a strided view in C order, read from a file in bounded memory.

A transposed or sliced tensor is stored in another order than it is meant. It is gathered block by block: each block is
as many rows of the tensor as fit, filled from reads that cover dense stretches of the storage.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

MAX_BLOCK_BYTES = 64 << 20
MAX_READ_BYTES = 16 << 20

_MIN_READ_BYTES = 1 << 14
_MAX_WASTE = 16

Read = Callable[[int, int], Any]
"""Gives a buffer of a number of bytes (second) from a position in the storage (first)."""


def iter_blocks(
    read: Read, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], item_bytes: int
) -> Iterator[memoryview]:
    """Give the elements of a view in C order.

    Args:
        read: Reads the storage.
        offset: Elements before the first.
        shape: Axis lengths, outermost first; none is 0.
        strides: Elements from one index to the next, per axis; not negative.
        item_bytes: Bytes of one element: 1, 2, 4, 8 or 16.

    Yields:
        Whole elements, up to about `MAX_BLOCK_BYTES` of them, writable.
    """
    import numpy as np

    dtype: np.dtype[Any] = np.dtype(f"u{item_bytes}" if item_bytes <= 8 else "c16")
    axes = _merge(shape, strides)
    n_split, n_rows = _split(axes, item_bytes)
    outer, (length, step), inner = axes[:n_split], axes[n_split], axes[n_split + 1 :]
    for index in itertools.product(*(range(n) for n, _ in outer)):
        start = offset + sum(i * stride for i, (_, stride) in zip(index, outer, strict=True))
        for row in range(0, length, n_rows):
            block = [(min(n_rows, length - row), step), *inner]
            out = np.empty([n for n, _ in block], dtype)
            _gather(read, out, start + row * step, block)
            yield out.reshape(-1).data.cast("B")


def _merge(shape: tuple[int, ...], strides: tuple[int, ...]) -> list[tuple[int, int]]:
    """Give length and stride of each axis, without those of length 1, and with neighbours in one where they can be."""
    axes: list[tuple[int, int]] = []
    for length, stride in zip(shape, strides, strict=True):
        if length == 1:
            continue
        if axes and axes[-1][1] == length * stride:
            axes[-1] = (axes[-1][0] * length, stride)
        else:
            axes.append((length, stride))
    return axes or [(1, 0)]


def _split(axes: list[tuple[int, int]], item_bytes: int) -> tuple[int, int]:
    """Give the axis along which blocks are cut, and how many of its rows make one."""
    row_bytes = item_bytes
    for i in reversed(range(len(axes))):
        if row_bytes * axes[i][0] > MAX_BLOCK_BYTES:
            return i, max(1, MAX_BLOCK_BYTES // row_bytes)
        row_bytes *= axes[i][0]
    return 0, axes[0][0]


def _gather(read: Read, out: Any, start: int, axes: list[tuple[int, int]]) -> None:
    import numpy as np

    item_bytes = out.dtype.itemsize
    extent = 1 + sum((length - 1) * stride for length, stride in axes)
    is_dense = extent <= _MAX_WASTE * out.size
    limit = (MAX_READ_BYTES if is_dense else _MIN_READ_BYTES) // item_bytes
    if extent <= limit:
        raw = read(start * item_bytes, extent * item_bytes)
        out[...] = np.ndarray(out.shape, out.dtype, raw, strides=[stride * item_bytes for _, stride in axes])
        return
    widest = max(range(len(axes)), key=lambda i: axes[i][1] if axes[i][0] > 1 else -1)
    length, stride = axes[widest]
    rest = extent - (length - 1) * stride
    n_steps = max(1, min(length, (limit - rest) // stride + 1))
    for i in range(0, length, n_steps):
        part = out[(slice(None),) * widest + (slice(i, i + n_steps),)]
        n_found = part.shape[widest]
        _gather(read, part, start + i * stride, [*axes[:widest], (n_found, stride), *axes[widest + 1 :]])
