"""Integers that stand for real numbers by scale and zero point, ``(q - zero_point) * scale``, and narrow integers.

Shared by the formats that store such tensors (ONNX behind DequantizeLinear, TFLite), with one scale for the whole
tensor or one per index of an axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dvc_modelver.tensors import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

QUANTISED = {"I8": "QI8", "U8": "QU8", "I16": "QI16", "I32": "QI32"}
"""The dtype of a tensor of integers that has a scale."""

PIECE = 1 << 16
"""Elements that are turned into floats at a time."""

_ITEMS = {"QI8": "<i1", "QU8": "<u1", "QI16": "<i2", "QI32": "<i4"}


@dataclass(frozen=True)
class Affine:
    """What turns stored integers into real numbers.

    Attributes:
        scale: One number, or one per index of `axis`.
        zero_point: As many.
        axis: The axis of the tensor along which they differ; unused where there is one of each.
    """

    scale: NDArray[np.float64]
    zero_point: NDArray[np.int64]
    axis: int = 0


def iter_dequantised(stored: Iterable[memoryview], spec: TensorSpec, affine: Affine) -> Iterator[memoryview]:
    """Give the real numbers of a quantised tensor.

    Args:
        stored: Its integers, in C order, in buffers of whole elements.
        spec: Its dtype (one of `QUANTISED`) and shape.
        affine: Scale and zero point; of as many numbers as the axis has indices, or of one.

    Yields:
        float32 of at most `PIECE` elements, rounded once from the exact product.
    """
    import numpy as np

    inner = math.prod(spec.shape[affine.axis + 1 :])
    n = len(affine.scale)
    at = 0
    for buffer in stored:
        items: NDArray[Any] = np.frombuffer(buffer, _ITEMS[spec.dtype])
        for start in range(0, len(items), PIECE):
            part = items[start : start + PIECE].astype(np.int64)
            index = np.arange(at, at + len(part)) // inner % n if n > 1 else np.zeros(1, np.int64)
            at += len(part)
            with np.errstate(all="ignore"):
                values = ((part - affine.zero_point[index]) * affine.scale[index]).astype(np.float32)
            yield values.data


def read_reals(data: bytes, dtype: str) -> NDArray[np.float64]:
    """Give stored scales or zero points as float64.

    Args:
        data: Their bytes.
        dtype: NumPy's name of their type.
    """
    import numpy as np

    with np.errstate(invalid="ignore"):  # a signaling NaN, of a damaged file, is a NaN
        return np.frombuffer(data, dtype).astype(np.float64)


def iter_widened(packed: Iterable[memoryview], bits: int, is_signed: bool, numel: int) -> Iterator[memoryview]:
    """Give integers of 4 or 2 bits, of which several share a byte, one per byte.

    Args:
        packed: The bytes; the first integer of each is in its lowest bits.
        bits: Of each integer.
        is_signed: Whether they are in two's complement.
        numel: How many there are; what the last byte has beyond is left out.
    """
    import numpy as np

    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    mask, sign = np.uint8((1 << bits) - 1), np.uint8(1 << bits - 1 if is_signed else 0)
    for piece in packed:
        codes = (np.frombuffer(piece, np.uint8)[:, None] >> shifts & mask).reshape(-1)[:numel]
        numel -= len(codes)
        yield ((codes ^ sign) - sign).data
