"""Gives two tensors side by side as numbers, in blocks of fixed size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dvc_modelver.errors import BadModelError
from dvc_modelver.fingerprint.values import make_decoder, real_bytes
from dvc_modelver.formats import Reader
from dvc_modelver.tensors import TensorSpec, value_dtype

BLOCK = 1 << 17
"""Elements that are held of each side at a time."""

Progress = Callable[[int], None]


def is_measurable(old: TensorSpec, new: TensorSpec) -> bool:
    """Whether two tensors can be compared value by value: as many elements, of dtypes that hold numbers."""
    return old.numel == new.numel and has_numbers(old) and has_numbers(new)


def has_numbers(spec: TensorSpec) -> bool:
    """Whether a tensor's values can be decoded; those of packed dtypes (F4, F6) cannot."""
    return real_bytes(value_dtype(spec.dtype)) is not None


def iter_blocks(
    old: Reader, a: TensorSpec, new: Reader, b: TensorSpec, progress: Progress, numel: int | None = None
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Give both tensors, or their first `numel` elements, as real numbers of one type; valid until the next block."""
    left = max(a.numel, b.numel) if numel is None else numel
    left *= 2 if a.dtype.startswith("C") else 1
    dtypes = value_dtype(a.dtype), value_dtype(b.dtype)
    decode_a, decode_b = (make_decoder(dtype, np.empty(BLOCK, np.float32)) for dtype in dtypes)
    sides = zip(
        old.iter_values(a, BLOCK * (real_bytes(dtypes[0]) or 1)),
        new.iter_values(b, BLOCK * (real_bytes(dtypes[1]) or 1)),
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


def iter_numbers(reader: Reader, spec: TensorSpec) -> Iterator[NDArray[Any]]:
    """Give one tensor as real numbers, in blocks that are valid until the next one."""
    dtype = value_dtype(spec.dtype)
    decode = make_decoder(dtype, np.empty(BLOCK, np.float32))
    for raw in reader.iter_values(spec, BLOCK * (real_bytes(dtype) or 1)):
        yield decode(raw)
