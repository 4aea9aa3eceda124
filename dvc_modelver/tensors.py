"""Tensors as names, dtypes and shapes: no file, no Git, no numpy."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8,
    "BOOL": 8, "C64": 64, "C128": 128,
    "QI32": 32, "QI16": 16, "QI8": 8, "QU8": 8,
}  # fmt: skip
"""Bits per element of each dtype, spelled as safetensors does.

``QI8`` and its like hold integers that stand for real numbers by a scale and a zero point kept elsewhere in the file.
"""

BLOCKS = {
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34), "Q2_K": (256, 84),
    "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210), "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74), "IQ3_XXS": (256, 98), "IQ1_S": (256, 50), "IQ4_NL": (32, 18), "IQ3_S": (256, 110),
    "IQ2_S": (256, 82), "IQ4_XS": (256, 136), "IQ1_M": (256, 56), "TQ1_0": (256, 54), "TQ2_0": (256, 66),
    "MXFP4": (32, 17), "NVFP4": (64, 36), "Q1_0": (128, 18),
}  # fmt: skip
"""Elements and bytes of one block of each dtype that packs values with their scale.

Only dtypes whose values a reader can give stand here, because every quantised tensor is fingerprinted by them.

Source: ``GGML_QUANT_SIZES`` in gguf-py of https://github.com/ggml-org/llama.cpp.
"""

_OPTIMIZER = re.compile(
    r"(^|[./])(optimizer|optimizer_state|optimizer_states|optim|exp_avg|exp_avg_sq|max_exp_avg_sq|momentum_buffer)([./]|$)"
)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What is known of a tensor without its values.

    Attributes:
        name: The name in the file.
        dtype: One of `DTYPE_BITS` or `BLOCKS`.
        shape: Axis lengths, outermost first; ``()`` is a scalar.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements; 1 for a scalar, 0 when an axis is empty."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values, packed."""
        if self.dtype in BLOCKS:
            n_elements, n_bytes = BLOCKS[self.dtype]
            return -(-self.numel // n_elements) * n_bytes
        return (self.numel * DTYPE_BITS[self.dtype] + 7) // 8

    @property
    def role(self) -> str:
        """``"optimizer"`` for optimiser state, by its name, else ``"parameter"``."""
        return find_role(self.name)


def find_role(name: str) -> str:
    """Tell optimiser state (``optimizer.*``, ``exp_avg``...) from parameters, by name."""
    return "optimizer" if _OPTIMIZER.search(name) else "parameter"


def is_quantised(dtype: str) -> bool:
    """Whether the stored numbers stand for real ones by a scale, so that only a reader can give their values."""
    return dtype in BLOCKS or dtype[:2] in ("QI", "QU")


def value_dtype(dtype: str) -> str:
    """Give the dtype of a tensor's values as `Reader.iter_values` gives them: ``F32`` for a quantised one."""
    return "F32" if is_quantised(dtype) else dtype


def is_float(dtype: str) -> bool:
    """Whether a dtype holds, or stands for, (real or complex) floating-point values."""
    return dtype[0] in "FC" or dtype == "BF16" or is_quantised(dtype)
