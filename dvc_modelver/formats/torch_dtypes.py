"""PyTorch's types: how it names them, how many bytes they have, and what a tensor table calls them.

Sources: ``torch/storage.py`` (``_dtype_to_storage_type_map``, ``_new_dtypes``), ``c10/core/ScalarType.h`` of
PyTorch 2.13; safetensors for ``float4_e2m1fn_x2``, which it lists as two ``F4``.
"""

from __future__ import annotations

from typing import NamedTuple


class TorchDtype(NamedTuple):
    """A type of PyTorch.

    Attributes:
        dtype: Of `tensors.DTYPE_BITS`.
        item_bytes: Bytes of one element.
        part_bytes: Bytes that a change of byte order swaps: of one of the two numbers, for a complex type.
        tail: Numbers of `dtype` in one element.
    """

    dtype: str
    item_bytes: int
    part_bytes: int
    tail: int = 1

    @property
    def is_complex(self) -> bool:
        """Whether one element is a real and an imaginary number."""
        return self.item_bytes == 2 * self.part_bytes


TORCH_DTYPES = {
    "float64": TorchDtype("F64", 8, 8), "float32": TorchDtype("F32", 4, 4), "float16": TorchDtype("F16", 2, 2),
    "bfloat16": TorchDtype("BF16", 2, 2), "float8_e5m2": TorchDtype("F8_E5M2", 1, 1),
    "float8_e4m3fn": TorchDtype("F8_E4M3", 1, 1), "float8_e5m2fnuz": TorchDtype("F8_E5M2FNUZ", 1, 1),
    "float8_e4m3fnuz": TorchDtype("F8_E4M3FNUZ", 1, 1), "float8_e8m0fnu": TorchDtype("F8_E8M0", 1, 1),
    "float4_e2m1fn_x2": TorchDtype("F4", 1, 1, 2),
    "int64": TorchDtype("I64", 8, 8), "int32": TorchDtype("I32", 4, 4), "int16": TorchDtype("I16", 2, 2),
    "int8": TorchDtype("I8", 1, 1), "uint8": TorchDtype("U8", 1, 1), "uint16": TorchDtype("U16", 2, 2),
    "uint32": TorchDtype("U32", 4, 4), "uint64": TorchDtype("U64", 8, 8), "bool": TorchDtype("BOOL", 1, 1),
    "complex32": TorchDtype("F16", 4, 2, 2), "complex64": TorchDtype("C64", 8, 4),
    "complex128": TorchDtype("C128", 16, 8),
    "qint8": TorchDtype("QI8", 1, 1), "quint8": TorchDtype("QU8", 1, 1), "qint32": TorchDtype("QI32", 4, 4),
    "bits8": TorchDtype("U8", 1, 1), "bits16": TorchDtype("U16", 2, 2), "bits1x8": TorchDtype("U8", 1, 1),
    "bits2x4": TorchDtype("U8", 1, 1), "bits4x2": TorchDtype("U8", 1, 1),
    "quint4x2": TorchDtype("U8", 1, 1), "quint2x4": TorchDtype("U8", 1, 1),
}  # fmt: skip
"""By PyTorch's name of the type."""

RESEMBLING = frozenset(
    {"float4_e2m1fn_x2", "complex32", "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2", "quint4x2", "quint2x4"}
)
"""Types whose name a tensor table cannot say, so that `Reader.structure` does."""

STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "LongStorage": "int64",
    "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool", "BFloat16Storage": "bfloat16", "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64", "QInt8Storage": "qint8", "QInt32Storage": "qint32",
    "QUInt8Storage": "quint8", "QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4",
}  # fmt: skip
"""PyTorch's name of the type of a typed storage."""

ALIASES = {"double": "float64", "float": "float32", "half": "float16", "long": "int64", "int": "int32",
           "short": "int16", "cfloat": "complex64", "cdouble": "complex128"}  # fmt: skip
"""Second names of types."""
