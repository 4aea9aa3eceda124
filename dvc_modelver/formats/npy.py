"""NPY: one array, as `numpy.save` writes it; and what an array's header says, which NPZ needs too.

Headers are parsed here as Python literals and nothing is ever unpickled; numpy itself is imported only
to swap bytes and to reorder Fortran arrays.

Source: ``numpy/lib/_format_impl.py`` (the NPY format).
"""

from __future__ import annotations

import ast
import io
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import Extent, FileReader, Folder, count_elements, measure, quote, read_exactly, rechunk
from dvc_modelver.tensors import TensorSpec

FORMAT = "npy"
SUFFIXES = (".npy",)
ARRAY_NAME = "arr_0"
"""What `numpy.savez` calls an array without a name, so that the same array has one digest in both formats."""
MAX_FORTRAN_BYTES = 4 << 30

_MAGIC = b"\x93NUMPY"
_MAX_HEADER_BYTES = 10_000
_DTYPES = {
    "b1": "BOOL", "i1": "I8", "i2": "I16", "i4": "I32", "i8": "I64", "u1": "U8", "u2": "U16", "u4": "U32",
    "u8": "U64", "f2": "F16", "f4": "F32", "f8": "F64", "c8": "C64", "c16": "C128",
}  # fmt: skip
_REFUSED_KINDS = {
    "O": "Python objects, which only unpickling could read",
    "V": "raw bytes without a type (ml_dtypes arrays such as bfloat16 end up so)",
    "S": "byte strings",
    "U": "strings",
    "M": "dates",
    "m": "time spans",
}
_HINT = "save it again as safetensors, or with plain numeric arrays"


def matches(file: BinaryIO) -> bool:
    """Tell whether a file begins with the signature of an array."""
    return measure(file) >= len(_MAGIC) and read_exactly(file, 0, len(_MAGIC), FORMAT) == _MAGIC


def open_file(source: Path | BinaryIO, name: str, folder: Folder | None = None) -> NpyReader:
    """Open a file of this format; it is whole without the files beside it."""
    return NpyReader(source, name)


@dataclass(frozen=True)
class StoredArray:
    """How an array lies in its file.

    Attributes:
        spec: Name, dtype and shape.
        n_header_bytes: Where its values begin.
        item_bytes: Bytes of one element.
        is_swapped: Elements are big-endian.
        is_fortran: Values are in Fortran order.
    """

    spec: TensorSpec
    n_header_bytes: int
    item_bytes: int
    is_swapped: bool
    is_fortran: bool


class NpyReader(FileReader):
    """Reads an NPY file; opening it reads the header only.

    Values are streamed. Only an array in Fortran order is read whole (and copied once) to give its values
    in C order; beyond `MAX_FORTRAN_BYTES` it is refused.

    Args:
        source: A path, or a seekable binary file object.
        name: How errors call the file.

    Raises:
        BadModelError: No array, one that is no array of numbers, or a file of another length than it needs.
    """

    format = FORMAT
    framework: str | None = None

    def __init__(self, source: Path | BinaryIO, name: str = "") -> None:
        super().__init__(source, name)
        try:
            n_bytes = measure(self._file)
            start = read_exactly(self._file, 0, min(n_bytes, _MAX_HEADER_BYTES + 12), self.name)
            self._array = read_array_header(io.BytesIO(start), ARRAY_NAME, n_bytes, self.name)
        except BaseException:
            self.close()
            raise
        self.specs = (self._array.spec,)

    def iter_buffers(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give the array's values; see `Reader`."""
        return iter_array(self._array, self._iter_stored, n_bytes, self.name)

    def find_extent(self, spec: TensorSpec) -> Extent | None:
        """Give where a tensor's values lie; see `FileReader`."""
        if self._array.is_fortran or self._array.is_swapped:
            return None
        begin = self._array.n_header_bytes
        return Extent(self._file, begin, begin + spec.nbytes)

    def _iter_stored(self, n_bytes: int) -> Iterator[memoryview]:
        begin = self._array.n_header_bytes
        return self._iter_span(begin, begin + self._array.spec.nbytes, n_bytes, "the array")


def bad_array(where: str, finding: str) -> BadModelError:
    """Give the error for an array that is damaged, or holds no numbers."""
    return BadModelError(f"{where}: {finding}", hint=_HINT)


def read_array_header(file: IO[bytes], name: str, n_file_bytes: int, where: str) -> StoredArray:
    """Read an array's header, and check it against the length of its file.

    Args:
        file: Stands at the array's first byte.
        name: What the array is called.
        n_file_bytes: Bytes of the header and of the values together.
        where: The file, or the member of an archive, for errors.

    Raises:
        BadModelError: No header of an array of numbers, or one that needs another number of bytes.
    """
    text, n_header_bytes = _read_text(file, where)
    descr, is_fortran, shape = _parse_text(text, where)
    order, code = descr[0], descr[1:]
    if code not in _DTYPES or order not in "<>|=":
        kind = _REFUSED_KINDS.get(code[:1], "a type no tensor has")
        raise bad_array(where, f"dtype {quote(descr)} is {kind}, expected numbers")
    if count_elements(shape) is None:
        raise bad_array(where, f"has shape {quote(shape)}, expected axis lengths with a product below 2^63")
    spec = TensorSpec(name, _DTYPES[code], shape)
    if n_file_bytes - n_header_bytes != spec.nbytes:
        found = n_file_bytes - n_header_bytes
        raise bad_array(where, f"holds {found} bytes of values, expected {spec.nbytes} for {spec.dtype} {quote(shape)}")
    item_bytes = int(code[1:])
    return StoredArray(spec, n_header_bytes, item_bytes, order == ">" and item_bytes > 1, is_fortran and len(shape) > 1)


def iter_array(
    array: StoredArray, iter_stored: Callable[[int], Iterator[memoryview]], n_bytes: int, where: str
) -> Iterator[memoryview]:
    """Give an array's values, little-endian and in C order, in buffers of `n_bytes`.

    Args:
        array: What its header said.
        iter_stored: Gives the bytes as they are stored, in buffers of the length asked for that may be written to.
        n_bytes: Length of every buffer but the last.
        where: The file, or the member of an archive, for errors.

    Raises:
        BadModelError: The file ended early, or the array in Fortran order is too large to reorder.
    """
    if array.is_fortran:
        return _iter_reordered(array, iter_stored, n_bytes, where)
    return _iter_native(array, iter_stored, n_bytes)


def _iter_native(
    array: StoredArray, iter_stored: Callable[[int], Iterator[memoryview]], n_bytes: int
) -> Iterator[memoryview]:
    if not array.is_swapped:
        return iter_stored(n_bytes)
    if n_bytes % array.item_bytes:
        n_whole = -(-n_bytes // array.item_bytes) * array.item_bytes
        return rechunk(_iter_swapped(array, iter_stored(n_whole)), min(n_bytes, array.spec.nbytes))
    return _iter_swapped(array, iter_stored(n_bytes))


def _iter_swapped(array: StoredArray, pieces: Iterator[memoryview]) -> Iterator[memoryview]:
    import numpy as np

    part_bytes = array.item_bytes // 2 if array.spec.dtype[0] == "C" else array.item_bytes
    for piece in pieces:
        np.frombuffer(piece, f"u{part_bytes}").byteswap(inplace=True)
        yield piece


def _iter_reordered(
    array: StoredArray, iter_stored: Callable[[int], Iterator[memoryview]], n_bytes: int, where: str
) -> Iterator[memoryview]:
    import numpy as np

    spec = array.spec
    if spec.nbytes > MAX_FORTRAN_BYTES:
        raise bad_array(where, f"found {spec.nbytes} bytes in Fortran order, expected at most {MAX_FORTRAN_BYTES}")
    raw = bytearray(spec.nbytes)
    position = 0
    for piece in _iter_native(array, iter_stored, 1 << 20):
        raw[position : position + len(piece)] = piece
        position += len(piece)
    items = np.frombuffer(raw, np.dtype(f"V{array.item_bytes}")).reshape(spec.shape[::-1])
    values = np.ascontiguousarray(items.T).data.cast("B")
    for start in range(0, len(values), n_bytes):
        yield values[start : start + n_bytes]


def _read_text(file: IO[bytes], where: str) -> tuple[bytes, int]:
    start = file.read(8)
    if start[:6] != _MAGIC or len(start) < 8:
        raise bad_array(where, f"starts with {start[:6]!r}, expected the .npy signature")
    if start[6] not in (1, 2, 3):
        raise bad_array(where, f"is .npy version {start[6]}, expected 1 to 3")
    n_length_bytes = 2 if start[6] == 1 else 4
    length = int.from_bytes(file.read(n_length_bytes), "little")
    if length > _MAX_HEADER_BYTES:
        raise bad_array(where, f"has an .npy header of {length} bytes, expected at most {_MAX_HEADER_BYTES}")
    text = file.read(length)
    if len(text) < length:
        raise bad_array(where, f"ended early, found {len(text)} bytes of an .npy header of {length}")
    return text, 8 + n_length_bytes + length


def _parse_text(text: bytes, where: str) -> tuple[str, bool, tuple[int, ...]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = ast.literal_eval(text.decode("utf-8").strip())
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as err:
        raise bad_array(where, f"has the .npy header {quote(text)}, expected a Python dictionary") from err
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        raise bad_array(where, f"has the .npy header {quote(header)}, expected descr, fortran_order and shape")
    descr, is_fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    if isinstance(descr, list):
        raise bad_array(where, "has a structured dtype, expected numbers")
    if not isinstance(descr, str) or not re.fullmatch(r"[<>|=].{1,20}", descr) or not isinstance(is_fortran, bool):
        raise bad_array(
            where,
            f"has descr {quote(descr)} and fortran_order {quote(is_fortran)}, expected a dtype and a bool",
        )
    if not isinstance(shape, tuple) or not all(type(axis) is int for axis in shape):
        raise bad_array(where, f"has shape {quote(shape)}, expected a tuple of integers")
    return descr, is_fortran, shape
