"""TensorProto: where a tensor of an ONNX file keeps its values, and the values as the dtype's own bytes.

Values lie in ``raw_data``, in one of the typed fields (where small types are widened to varints), or in another file.

Source: ``TensorProto`` and ``SparseTensorProto`` in https://github.com/onnx/onnx, ``onnx/onnx.proto``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import count_elements, ended_early, quote
from dvc_modelver.formats.protobuf import BYTES, VARINT, Field, Walker
from dvc_modelver.tensors import DTYPE_BITS, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STRING = 8
MAX_RANK = 64
MAX_LOCATION_CHARS = 1_024

DTYPES = {
    1: "F32", 2: "U8", 3: "I8", 4: "U16", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64", 12: "U32",
    13: "U64", 14: "C64", 15: "C128", 16: "BF16", 17: "F8_E4M3", 18: "F8_E4M3FNUZ", 19: "F8_E5M2", 20: "F8_E5M2FNUZ",
    21: "U8", 22: "I8", 23: "F4", 24: "F8_E8M0", 25: "U8", 26: "I8", 27: "F6_E2M3", 28: "F6_E3M2",
}  # fmt: skip
"""The dtype of each ``TensorProto.DataType``; integers of 4 and 2 bits are given one per byte."""

NARROW = {21: ("UINT4", 4), 22: ("INT4", 4), 25: ("UINT2", 2), 26: ("INT2", 2)}
"""Types of which several share a byte in the file, the first in the lowest bits: name and bits."""

_RAW, _FLOATS, _INT32S, _INT64S, _DOUBLES, _UINT64S = 9, 4, 5, 7, 10, 11
_TYPED = frozenset({_FLOATS, _INT32S, _INT64S, _DOUBLES, _UINT64S})
_FIELDS = {
    1: _FLOATS, 14: _FLOATS, 7: _INT64S, 11: _DOUBLES, 15: _DOUBLES, 12: _UINT64S, 13: _UINT64S,
}  # fmt: skip
_WIDTHS = {_FLOATS: 4, _DOUBLES: 8}
_WIRES = {1: VARINT, 2: VARINT, 14: VARINT, 3: BYTES, 6: BYTES, 8: BYTES, 9: BYTES, 12: BYTES, 13: BYTES, 16: BYTES}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor and where its values lie.

    Attributes:
        name: As stored; empty where it has none.
        data_type: The number of its type in ``TensorProto.DataType``.
        shape: Axis lengths.
        start: Where the values begin (``field`` 0), or the message of which ``field`` holds them.
        end: Where these end.
        field: Number of the repeated field that holds the values, one by one; 0 where they lie in their own bytes.
        width: Of that field: bytes of each number, 0 for varints.
        location: The other file that has them; empty for this one.
    """

    name: str
    data_type: int
    shape: tuple[int, ...]
    start: int
    end: int
    field: int = 0
    width: int = 0
    location: str = ""

    @property
    def dtype(self) -> str:
        """The dtype of its values as they are given."""
        return DTYPES[self.data_type]

    @property
    def numel(self) -> int:
        """Number of its elements."""
        return TensorSpec("", "U8", self.shape).numel

    @property
    def nbytes(self) -> int:
        """Bytes that its values take in the file where they lie in their own bytes."""
        bits = NARROW[self.data_type][1] if self.data_type in NARROW else DTYPE_BITS[self.dtype]
        return (self.numel * bits + 7) // 8


def read_tensor(walker: Walker, start: int, end: int, name: str = "") -> Stored | None:
    """Give a tensor by its message; None for strings, which are no tensor here.

    Args:
        walker: Of the file.
        start: Where the message begins.
        end: Where it ends.
        name: How errors call it where it has no name of its own.

    Raises:
        BadModelError: Its type, shape and values contradict each other, or it is stored in a way that nothing writes.
    """
    found = _Message()
    for field in walker.fields(start, end, _TYPED):
        number = field.number
        if number in _WIRES and field.wire != _WIRES[number] and not (number == 1 and field.wire == BYTES):
            raise walker.bad(field.start, f"found wire type {field.wire} in field {number} of a tensor")
        if number == 1:
            found.dims += map(signed, [field.value] if field.wire == VARINT else read_packed(walker, field))
            if len(found.dims) > MAX_RANK:
                raise walker.bad(field.start, f"found a shape of more than {MAX_RANK} axes, expected fewer")
        elif number == 2:
            found.data_type = field.value
        elif number == 3:
            raise walker.bad(field.start, "found a tensor stored in segments, expected a whole one")
        elif number in _TYPED:
            found.count(number, field.wire, field.value)
        elif number == 8:
            found.name = walker.text(field)
        elif number == _RAW:
            found.raw = (field.start, field.end)
        elif number == 13:
            key, value = read_pair(walker, field.start, field.end)
            found.external[key] = value
        elif number == 14:
            found.is_external = field.value == 1
    return found.check(walker, start, end, found.name or name)


def read_pair(walker: Walker, start: int, end: int) -> tuple[str, str]:
    """Give a StringStringEntryProto of two short texts."""
    texts = {1: "", 2: ""}
    for field in walker.fields(start, end):
        if field.number in texts:
            texts[field.number] = walker.text(field)
    return texts[1], texts[2]


def read_packed(walker: Walker, field: Field) -> list[int]:
    """Give the numbers of a packed field of axis lengths, `MAX_RANK` and one more at most."""
    numbers: list[int] = []
    at = field.start
    while at < field.end and len(numbers) <= MAX_RANK:
        number, at = walker.varint(at, field.end)
        numbers.append(number)
    return numbers


def signed(value: int) -> int:
    """Give an int64 by the 64 bits that a varint holds."""
    return value - (1 << 64) if value >> 63 else value


class _Message:
    """What the fields of a TensorProto said, before they are held against each other."""

    def __init__(self) -> None:
        self.name = ""
        self.data_type = 0
        self.dims: list[int] = []
        self.raw: tuple[int, int] | None = None
        self.external: dict[str, str] = {}
        self.is_external = False
        self.n_fixed: dict[int, int] = {}
        self.n_varint_bytes: dict[int, list[int]] = {}

    def count(self, number: int, wire: int, value: int) -> None:
        if number in _WIDTHS:
            n = value // _WIDTHS[number] if wire == BYTES else value
            self.n_fixed[number] = self.n_fixed.get(number, 0) + n
        else:
            # A packed field of n bytes has n/10 to n numbers; a run was counted.
            least, most = self.n_varint_bytes.get(number, [0, 0])
            more = (-(-value // 10), value) if wire == BYTES else (value, value)
            self.n_varint_bytes[number] = [least + more[0], most + more[1]]

    def check(self, walker: Walker, start: int, end: int, name: str) -> Stored | None:
        where = f"tensor {quote(name)}"
        if self.data_type == STRING:
            return None
        if self.data_type not in DTYPES:
            raise walker.bad(start, f"{where} has data type {self.data_type}, expected one of 1 to {max(DTYPES)}")
        shape = tuple(self.dims)
        if count_elements((*shape, 16)) is None:
            raise walker.bad(
                start, f"{where} has shape {quote(shape)}, expected axis lengths with a product below 2^59"
            )
        if self.is_external:
            return self._check_external(walker, start, where)
        if self.raw is not None:
            stored = Stored(self.name, self.data_type, shape, *self.raw)
            if self.raw[1] - self.raw[0] != stored.nbytes:
                n = self.raw[1] - self.raw[0]
                raise walker.bad(start, f"{where} holds {n} bytes, expected {stored.nbytes} for {_describe(stored)}")
            return stored
        field = _FIELDS.get(self.data_type, _INT32S)
        stored = Stored(self.name, self.data_type, shape, start, end, field, _WIDTHS.get(field, 0))
        n_numbers = count_numbers(stored)
        if field in _WIDTHS:
            least = most = self.n_fixed.get(field, 0)
        else:
            least, most = self.n_varint_bytes.get(field, [0, 0])
        if not least <= n_numbers <= most:
            n_found = f"{least}" if least == most else f"{least} to {most}"
            raise walker.bad(start, f"{where} holds {n_found} numbers, expected {n_numbers} for {_describe(stored)}")
        return stored

    def _check_external(self, walker: Walker, start: int, where: str) -> Stored:
        location = self.external.get("location", "")
        numbers = {}
        for key in ("offset", "length"):
            text = self.external.get(key, "0")
            if not (text.isascii() and text.isdigit() and len(text) <= 19):
                raise walker.bad(start, f"{where} has {key} {quote(text)} in another file, expected a count of bytes")
            numbers[key] = int(text)
        path = PurePosixPath(location)
        parts = path.parts
        if (
            not parts
            or path.is_absolute()
            or ".." in parts
            or len(location) > MAX_LOCATION_CHARS
            or any(len(part.encode()) > 255 for part in parts)
            or not location.isprintable()
            or "\\" in location
        ):
            raise BadModelError(
                f"{walker.where}: {where} lies in the file {quote(location)}, expected one in the model's folder",
                hint="save the model again with its values beside it",
            )
        offset = numbers["offset"]
        stored = Stored(self.name, self.data_type, tuple(self.dims), offset, offset, location=str(path))
        n = numbers["length"] if "length" in self.external else stored.nbytes
        if n != stored.nbytes:
            raise walker.bad(start, f"{where} holds {n} bytes, expected {stored.nbytes} for {_describe(stored)}")
        return Stored(self.name, self.data_type, stored.shape, offset, offset + n, location=stored.location)


def count_numbers(stored: Stored) -> int:
    """Give how many numbers a typed field must have: packed types count bytes, complex ones both parts."""
    if stored.data_type in NARROW or stored.dtype == "F4":
        return stored.nbytes
    return stored.numel * (2 if stored.dtype[0] == "C" else 1)


def iter_typed(walker: Walker, stored: Stored, where: str) -> Iterator[NDArray[Any]]:
    """Give the values of a typed field as the bytes that ``raw_data`` would have.

    Raises:
        BadModelError: There are fewer or more numbers than the shape says.
    """
    import numpy as np

    n_expected, n_found = count_numbers(stored), 0
    is_packed = stored.data_type in NARROW or stored.dtype[:3] in ("F4", "F6_")
    width = stored.width or (1 if is_packed else DTYPE_BITS[stored.dtype] // 8)
    codes = np.zeros(0, np.uint8)
    for numbers in walker.iter_numbers(stored.start, stored.end, stored.field, stored.width):
        values = numbers if stored.width else numbers.view("<u8").astype(f"<u{width}").view("u1")
        n_found += len(values) // width
        if n_found > n_expected:
            break
        if stored.dtype[:3] != "F6_":
            yield values
            continue
        codes = np.concatenate((codes, values))
        n_whole = len(codes) // 4 * 4
        yield _pack6(codes[:n_whole])
        codes = codes[n_whole:]
    if n_found < n_expected:
        raise ended_early(where, n_found * width, n_expected * width)
    if n_found > n_expected:
        raise BadModelError(f"{where}: found more numbers than {n_expected}", hint="export the model again")
    if len(codes):
        yield _pack6(np.concatenate((codes, np.zeros(-len(codes) % 4, np.uint8))))[: (len(codes) * 6 + 7) // 8]


def _pack6(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    import numpy as np

    groups = (codes & np.uint8(0x3F)).reshape(-1, 4).astype(np.uint32)
    words = groups[:, 0] | groups[:, 1] << 6 | groups[:, 2] << 12 | groups[:, 3] << 18
    return np.ascontiguousarray(words.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3]).reshape(-1)


def _describe(stored: Stored) -> str:
    return f"{NARROW[stored.data_type][0] if stored.data_type in NARROW else stored.dtype} {quote(stored.shape)}"
