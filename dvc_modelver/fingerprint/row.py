"""One line of the tensor table: what is known of a tensor's values without having them.

Standard library only: the diff driver reads rows inside ``git diff``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dvc_modelver.errors import BadMetadataError

_MAX_EXACT_INTEGER = 1e15


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRow:
    """A tensor's name, type, digest, statistics and sketch.

    Statistics are over the finite values; None is "unknown or undefined", and absent from the file.
    Those of a complex tensor are over its real and imaginary parts taken as one list.

    Attributes:
        name: The name in the model file.
        dtype: Spelled as safetensors does.
        shape: Axis lengths, outermost first.
        role: ``"parameter"``, or ``"optimizer"`` for optimiser state.
        digest: ``blake3:`` and 32 hex digits, of the little-endian values in C order; of ``QI8`` and its like followed
            by the float32 values that they stand for.
        norm: L2 norm.
        mean: Arithmetic mean.
        std: Population standard deviation; None where rounding would swallow it (see `Statistics`).
        min: Smallest value.
        max: Largest value.
        zeros: Number of values equal to zero.
        nonfinite: Number of NaN and infinite values.
        sketch: ``<exponent>:<base64>``, RSCS-1.
        extra: Fields of a newer program, kept and written back.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: str = "parameter"
    digest: str
    norm: float | None = None
    mean: float | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None
    zeros: int | None = None
    nonfinite: int | None = None
    sketch: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Give the row with its keys in the order of the contract."""
        out: dict[str, Any] = {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}
        if self.role != "parameter":
            out["role"] = self.role
        out["digest"] = self.digest
        for key in _OPTIONAL:
            value = getattr(self, key)
            if value is not None:
                out[key] = value
        out.update(self.extra)
        return out

    @classmethod
    def from_dict(cls, data: object, where: str = "tensor table") -> TensorRow:
        """Read one parsed line of a tensor table.

        Raises:
            BadMetadataError: A field is missing or of another type; `where` and the field are named.
        """
        if not isinstance(data, dict):
            raise BadMetadataError(f"{where}: found {type(data).__name__}, expected an object")
        values: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        for key, value in data.items():
            check = _FIELDS.get(key)
            if check is None:
                extra[key] = value
            elif value is not None or key not in _OPTIONAL:
                is_valid, wanted = check
                if not is_valid(value):
                    raise BadMetadataError(f"{where}: {key} is {_show(value)}, expected {wanted}")
                values[key] = value
        for key in ("name", "dtype", "shape", "digest"):
            if key not in values:
                raise BadMetadataError(f"{where}: {key} is missing, expected name, dtype, shape and digest")
        values["shape"] = tuple(values["shape"])
        return cls(**values, extra=extra)


def round_statistic(value: float | None) -> float | None:
    """Give a number as the table holds it: 9 significant digits, an int when integral, None if not finite."""
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.9g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < _MAX_EXACT_INTEGER else rounded


def _show(value: object) -> str:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return repr(value)[:80]
    return type(value).__name__


def _is_text(value: object) -> bool:
    return type(value) is str


def _is_number(value: object) -> bool:
    if type(value) is float:
        return math.isfinite(value)
    return type(value) is int and value.bit_length() < 1024


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_shape(value: object) -> bool:
    return type(value) is list and all(map(_is_count, value))


def _is_digest(value: object) -> bool:
    return type(value) is str and 0 < value.find(":") < len(value) - 1


def _is_role(value: object) -> bool:
    return value in ("parameter", "optimizer")


_TEXT = (_is_text, "a string")
_NUMBER = (_is_number, "a finite number")
_COUNT = (_is_count, "a count")
_OPTIONAL: dict[str, tuple[Callable[[object], bool], str]] = {
    "norm": _NUMBER,
    "mean": _NUMBER,
    "std": _NUMBER,
    "min": _NUMBER,
    "max": _NUMBER,
    "zeros": _COUNT,
    "nonfinite": _COUNT,
    "sketch": _TEXT,
}
_FIELDS = {
    "name": _TEXT,
    "dtype": _TEXT,
    "shape": (_is_shape, "a list of axis lengths"),
    "role": (_is_role, "'parameter' or 'optimizer'"),
    "digest": (_is_digest, "an algorithm, a colon and hex digits"),
    **_OPTIONAL,
}
