"""NumPy's arrays, scalars and dtypes among the records of a pickle: what they claim, checked against what is there.

Sources: ``numpy/_core/src/multiarray/methods.c`` (``array_reduce``, ``array_setstate``), ``descriptor.c``
(``arraydescr_reduce``), ``numpy/_core/numeric.py`` (``_frombuffer``) and ``numpy/ma/core.py`` of NumPy 2.4.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import MAX_ELEMENTS, count_elements, quote
from dvc_modelver.formats.pickles import Call, Global, Span

HINT = "fetch the file again, or save the model again"
MAX_FIELDS = 1_000
"""Of one structured dtype."""

_MAX_AXES = 64
_MAX_FIELD_NESTING = 4
_MODULES = ("numpy._core.", "numpy.core.")
_CODE = re.compile(r"[<>|=]?([?a-zA-Z])([0-9]{0,10})")
_PLAIN = {
    "b1": "BOOL", "i1": "I8", "i2": "I16", "i4": "I32", "i8": "I64", "u1": "U8", "u2": "U16", "u4": "U32",
    "u8": "U64", "f2": "F16", "f4": "F32", "f8": "F64", "c8": "C64", "c16": "C128",
}  # fmt: skip
_EXTENDED = {
    "bfloat16": ("BF16", 2), "float8_e4m3fn": ("F8_E4M3", 1), "float8_e5m2": ("F8_E5M2", 1),
    "float8_e4m3fnuz": ("F8_E4M3FNUZ", 1), "float8_e5m2fnuz": ("F8_E5M2FNUZ", 1), "float8_e8m0fnu": ("F8_E8M0", 1),
}  # fmt: skip
_ENCODERS = ("_codecs.encode", "builtins.bytearray")
_STRUCT = {
    "BOOL": "?", "I8": "b", "I16": "h", "I32": "i", "I64": "q", "U8": "B", "U16": "H", "U32": "I", "U64": "Q",
    "F16": "e", "F32": "f", "F64": "d", "C64": "2f", "C128": "2d",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class NumpyType:
    """A dtype of NumPy.

    Attributes:
        code: As NumPy spells it: ``"<f8"``, ``"|V64"``.
        item_bytes: Bytes of one element.
        dtype: What a tensor table calls it; None for what is no plain number.
        fields: Of a structured type.
    """

    code: str
    item_bytes: int
    dtype: str | None = None
    fields: tuple[Field, ...] = ()

    @property
    def swapped_bytes(self) -> int:
        """Length of the numbers whose bytes are in the other order; 0 where none are."""
        part_bytes = self.item_bytes // 2 if self.dtype and self.dtype[0] == "C" else self.item_bytes
        return part_bytes if self.code[0] == ">" and self.dtype and part_bytes > 1 else 0

    @property
    def has_objects(self) -> bool:
        """Whether elements are, or contain, Python objects."""
        return self.code[1] == "O" or any(field.kind.has_objects for field in self.fields)


@dataclass(frozen=True, slots=True)
class Field:
    """A member of each element of a structured array; `offset` in bytes from the element's start."""

    name: str
    offset: int
    kind: NumpyType


@dataclass(frozen=True, slots=True)
class Encoded:
    """Bytes that protocols 0 to 2 keep as text: each character stands for one byte, and is kept as UTF-8."""

    span: Span


Data = bytes | Span | Encoded


@dataclass(frozen=True, slots=True, eq=False)
class Array:
    """An array whose claims hold; two are the same only as objects.

    Attributes:
        kind: Type of its elements.
        shape: Axis lengths, outermost first.
        strides: Elements from one index to the next, per axis; 0 for an axis with one index.
        data: Its bytes; for Python objects, the objects in C order.
    """

    kind: NumpyType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    data: Data | list[object]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return count_elements(self.shape) or 0

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return self.numel * self.kind.item_bytes

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements lie in C order."""
        return self.numel == 0 or self.strides == _c_strides(self.shape)


class ArrayParser:
    """Tells arrays among the records of a pickle.

    Args:
        name: How errors call the file.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._kinds: dict[int, tuple[object, object, NumpyType | None]] = {}

    def parse(self, value: object) -> dict[str, Array] | None:
        """Give the array that a record stands for, under ``""``; of a masked one, ``data`` and ``mask``.

        None for a record of something else.

        Raises:
            BadModelError: It stands for an array that cannot be.
        """
        if isinstance(value, Array):
            return {"": value}
        if not isinstance(value, Call):
            return None
        name, args, state = value.name, value.args, value.states[-1] if value.states else None
        if _is_from(name, "multiarray._reconstruct") and isinstance(state, tuple):
            match state[1:] if len(state) == 5 else state:
                case (shape, dtype, is_fortran, data):
                    return self._one(dtype, shape, bool(is_fortran), data)
        elif _is_from(name, "numeric._frombuffer"):
            match args:
                case (data, dtype, shape, str() as order):
                    return self._one(dtype, shape, order == "F", data)
                case (data, dtype, shape, _, axes):
                    found = self._one(dtype, shape, False, data)
                    return {"": self._transpose(found[""], axes)} if found else None
        elif name == "numpy.ma.core._mareconstruct":
            match state:
                case (_, shape, dtype, is_fortran, data, mask, _):
                    found = self._one(dtype, shape, bool(is_fortran), data)
                    kind = NumpyType("|b1", 1, "BOOL")
                    return found and {"data": found[""], "mask": self.make(kind, shape, bool(is_fortran), mask)}
        return None

    def make(self, kind: NumpyType, shape: object, is_fortran: bool, data: object) -> Array:
        """Give an array, checked.

        Raises:
            BadModelError: Its shape cannot be, or does not fit the data.
        """
        axes, n_bytes = self.check_shape(kind, shape)
        data = find_bytes(data)
        if not _fits(data, n_bytes, count_elements(axes) if kind.has_objects else None):
            found = f"{data.n_bytes} bytes" if isinstance(data, Span) else quote(data)
            raise self._bad(f"has an array of {kind.code} {quote(axes)} made of {found}, expected {n_bytes} bytes")
        strides = _c_strides(axes[::-1])[::-1] if is_fortran else _c_strides(axes)
        return Array(kind, axes, strides, data)  # type: ignore[arg-type]

    def check_shape(self, kind: NumpyType, shape: object) -> tuple[tuple[int, ...], int]:
        """Give the axis lengths of an array, and its bytes.

        Raises:
            BadModelError: Its shape cannot be.
        """
        axes = tuple(shape[: _MAX_AXES + 1]) if isinstance(shape, tuple | list) else (None,)
        numel = count_elements(axes) if len(axes) <= _MAX_AXES and all(type(axis) is int for axis in axes) else None
        if numel is None or numel * kind.item_bytes > MAX_ELEMENTS:
            raise self._bad(f"has an array of shape {quote(shape)}, expected lengths with a product below 2^63")
        return axes, numel * kind.item_bytes

    def parse_type(self, value: object) -> NumpyType | None:
        """Give the dtype that a record stands for; None for another record, and for a type of unknown length."""
        known = self._kinds.get(id(value))
        states = value.states if isinstance(value, Call) else None
        if known is None or known[1] is not states:
            known = self._kinds[id(value)] = (value, states, self._parse_type(value, 0))
        return known[2]

    def _bad(self, finding: str) -> BadModelError:
        return BadModelError(f"{self._name}: {finding}", hint=HINT)

    def _one(self, dtype: object, shape: object, is_fortran: bool, data: object) -> dict[str, Array] | None:
        kind = self.parse_type(dtype)
        return None if kind is None else {"": self.make(kind, shape, is_fortran, data)}

    def _transpose(self, array: Array, axes: object) -> Array:
        if not isinstance(axes, tuple) or sorted(a for a in axes if type(a) is int) != list(range(len(array.shape))):
            raise self._bad(f"has an array with its axes in the order {quote(axes)}, expected each once")
        shape, strides = tuple(array.shape[axis] for axis in axes), tuple(array.strides[axis] for axis in axes)
        return Array(array.kind, shape, strides, array.data)

    def _parse_type(self, value: object, depth: int) -> NumpyType | None:
        if not isinstance(value, Call) or value.name != "numpy.dtype" or not value.args:
            return None
        state = value.states[-1] if value.states else ()
        state = state if isinstance(state, tuple) and len(state) >= 6 else (3, "=", None, None, None, -1)
        order = state[1] if state[1] in (">", "|") else "<"
        match value.args[0]:
            case Global("ml_dtypes", name) if name in _EXTENDED:
                dtype, item_bytes = _EXTENDED[name]
                return NumpyType(order + name, item_bytes, dtype)
            case str() as text if found := _CODE.fullmatch(text):
                letter, digits = found.groups()
            case _:
                return None
        size = int(digits or 0)
        code = letter + digits
        if code in _PLAIN:
            return NumpyType(order + code, size, _PLAIN[code])
        if letter == "V" and state[3] is not None:
            return NumpyType(f"|V{size}", size, None, tuple(self._parse_fields(state[3], state[4], size, depth)))
        if letter == "O":
            return NumpyType("|O", 8)
        return NumpyType(order + code, 4 * size if letter == "U" else size)

    def _parse_fields(self, names: object, fields: object, item_bytes: int, depth: int) -> Iterator[Field]:
        if not isinstance(names, tuple) or not isinstance(fields, dict) or len(names) > MAX_FIELDS:
            raise self._bad(f"has a dtype with the fields {quote(names)}, expected at most {MAX_FIELDS} names")
        if depth > _MAX_FIELD_NESTING:
            raise self._bad(f"nests the fields of a dtype deeper than {_MAX_FIELD_NESTING}, expected less")
        for name in names:
            match fields.get(name) if isinstance(name, str) else None:
                case (dtype, int() as offset, *_):
                    kind = self._parse_type(dtype, depth + 1)
                    if kind is None or not 0 <= offset <= item_bytes - kind.item_bytes:
                        raise self._bad(f"has the field {quote(name)} outside of its {item_bytes} bytes")
                    yield Field(name, offset, kind)
                case found:
                    raise self._bad(
                        f"has a dtype whose field {quote(name)} is {quote(found)}, expected type and offset"
                    )


def find_class(made: Call) -> str:
    """Give the class of the object that a record stands for; the function that would make it, where that is all."""
    # Protocols 0 and 1, and classes of Cython, name a function that is given the class.
    function = made.name.rpartition(".")[2]
    is_maker = made.name == "copyreg._reconstructor" or function == "newObj" or function.startswith("__pyx_unpickle_")
    if is_maker and made.args and isinstance(made.args[0], Global):
        return str(made.args[0])
    return made.name or "?"


def find_bytes(value: object) -> object:
    """Give the bytes that a record stands for, where it does; else the record."""
    match value:
        case str():
            return value.encode("utf-8", "surrogatepass")  # Python 2's bytes, which were taken for text
        case Call(args=(Span() as span, "latin1" | "latin-1")) if value.name in _ENCODERS:
            return Encoded(span)
        case Call(args=(Call() as inner,)) if value.name == "builtins.bytearray" and inner.name == "_codecs.encode":
            found = find_bytes(inner)
            return found if isinstance(found, Encoded) else value
    return value


def find_scalar(value: object, parser: ArrayParser) -> object:
    """Give the number or text of a NumPy scalar; the record itself for another one."""
    if not isinstance(value, Call) or not _is_from(value.name, "multiarray.scalar") or len(value.args) != 2:
        return value
    kind, data = parser.parse_type(value.args[0]), find_bytes(value.args[1])
    if kind is None:
        return value
    if kind.code[1] == "O":
        return value.args[1] if isinstance(value.args[1], str | bytes | int | float | bool | None) else value
    if not isinstance(data, bytes) or len(data) != kind.item_bytes:
        return value
    return decode(kind, data)[0]


def decode(kind: NumpyType, data: bytes) -> list[object]:
    """Give elements as Python's numbers and texts; those of other types as hexadecimal digits."""
    if kind.item_bytes == 0:
        return [""]
    items = [data[i : i + kind.item_bytes] for i in range(0, len(data), kind.item_bytes)]
    order = ">" if kind.code[0] == ">" else "<"
    if kind.dtype in _STRUCT:
        parts = (struct.unpack(order + _STRUCT[kind.dtype], item) for item in items)
        return [part[0] if len(part) == 1 else complex(*part) for part in parts]
    if kind.code[1] == "U":
        encoding = "utf-32-be" if order == ">" else "utf-32-le"
        return [item.decode(encoding, "replace").rstrip("\0") for item in items]
    if kind.code[1] == "S":
        return [item.rstrip(b"\0") for item in items]
    return [item.hex() for item in items]


def _fits(data: object, n_bytes: int, n_objects: int | None) -> bool:
    if n_objects is not None:
        return isinstance(data, list) and len(data) == n_objects
    if isinstance(data, Encoded):
        return n_bytes <= data.span.n_bytes <= 2 * n_bytes
    return n_bytes == data.n_bytes if isinstance(data, Span) else isinstance(data, bytes) and len(data) == n_bytes


def _is_from(name: str, function: str) -> bool:
    return name.startswith(_MODULES) and name.endswith("." + function)


def _c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for axis in reversed(shape):
        strides.append(step if axis != 1 else 0)
        step *= axis
    return tuple(reversed(strides))
