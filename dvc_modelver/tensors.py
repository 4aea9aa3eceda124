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
}  # fmt: skip
"""Bits per element of each dtype, spelled as safetensors does."""

_OPTIMIZER = re.compile(
    r"(^|[./])(optimizer|optimizer_state|optimizer_states|optim|exp_avg|exp_avg_sq|max_exp_avg_sq|momentum_buffer)([./]|$)"
)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What is known of a tensor without its values.

    Attributes:
        name: The name in the file.
        dtype: One of `DTYPE_BITS`.
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
        return (self.numel * DTYPE_BITS[self.dtype] + 7) // 8

    @property
    def role(self) -> str:
        """``"optimizer"`` for optimiser state, by its name, else ``"parameter"``."""
        return find_role(self.name)


def find_role(name: str) -> str:
    """Tell optimiser state (``optimizer.*``, ``exp_avg``...) from parameters, by name."""
    return "optimizer" if _OPTIMIZER.search(name) else "parameter"


def is_float(dtype: str) -> bool:
    """Whether a dtype holds (real or complex) floating-point values."""
    return dtype[0] in "FC" or dtype == "BF16"
