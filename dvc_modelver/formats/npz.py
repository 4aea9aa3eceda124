"""NPZ: a zip archive of ``.npy`` members, as `numpy.savez` and `numpy.savez_compressed` write it.

Headers are parsed here as Python literals and nothing is ever unpickled; numpy itself is imported only
to swap bytes and to reorder Fortran arrays.

Sources: ``numpy/lib/_format_impl.py`` (the NPY format) and APPNOTE.TXT 6.3.10, sections 4.3.14 to 4.3.16
(the end of a zip archive).
"""

from __future__ import annotations

import ast
import io
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import (
    MAX_HEADER_BYTES,
    FileReader,
    Folder,
    count_elements,
    ended_early,
    fill,
    measure,
    quote,
    read_exactly,
)
from dvc_modelver.tensors import TensorSpec

FORMAT = "npz"
SUFFIXES = (".npz",)
MAX_MEMBERS = 1_000_000
MAX_FORTRAN_BYTES = 4 << 30

_MAX_NPY_HEADER_BYTES = 10_000
_DEFLATE_LIMIT = 1032
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
    """Tell whether a file is a zip archive whose first member is called ``*.npy``."""
    n_bytes = measure(file)
    if n_bytes < 30:
        return False
    start = read_exactly(file, 0, 30, FORMAT)
    n_name_bytes = int.from_bytes(start[26:28], "little")
    if not start.startswith(b"PK\x03\x04") or 30 + n_name_bytes > n_bytes:
        return False
    return read_exactly(file, 30, n_name_bytes, FORMAT).endswith(b".npy")


@dataclass(frozen=True)
class _Member:
    info: zipfile.ZipInfo
    spec: TensorSpec
    n_header_bytes: int
    item_bytes: int
    is_swapped: bool
    is_fortran: bool


def open_file(source: Path | BinaryIO, name: str, folder: Folder | None = None) -> NpzReader:
    """Open a file of this format; it is whole without the files beside it."""
    return NpzReader(source, name)


class NpzReader(FileReader):
    """Reads an NPZ archive, stored or deflated; opening it reads the directory and the members' headers.

    Values are streamed. Only an array in Fortran order is read whole (and copied once) to give its values
    in C order; beyond `MAX_FORTRAN_BYTES` it is refused.

    Args:
        source: A path, or a seekable binary file object.
        name: How errors call the file.

    Raises:
        BadModelError: No archive, a damaged or encrypted one, one whose declared sizes cannot be true, or
            a member that is no array of numbers.
    """

    format = FORMAT
    framework: str | None = None

    def __init__(self, source: Path | BinaryIO, name: str = "") -> None:
        super().__init__(source, name)
        try:
            n_bytes = _check_directory(self._file, self.name)
            try:
                self._archive = zipfile.ZipFile(cast("IO[bytes]", self._file))
            except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as err:
                raise _bad(self.name, f"no readable zip archive ({quote(str(err))}), expected an .npz file") from err
            _check_archive(self._archive.infolist(), n_bytes, self.name)
            members = [self._read_member(info) for info in self._archive.infolist()]
        except BaseException:
            self.close()
            raise
        self._members = {member.spec.name: member for member in members}
        self.specs = tuple(self._members[tensor].spec for tensor in sorted(self._members))

    def iter_buffers(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give a tensor's values; see `Reader`."""
        member = self._members[spec.name]
        if member.is_fortran:
            yield from self._iter_reordered(member, n_bytes)
        elif member.is_swapped and n_bytes % member.item_bytes:
            aligned = self._iter_stored(member, -(-n_bytes // member.item_bytes) * member.item_bytes)
            yield from _rechunk(aligned, n_bytes)
        else:
            yield from self._iter_stored(member, n_bytes)

    def _iter_stored(self, member: _Member, n_bytes: int) -> Iterator[memoryview]:
        where = f"{self.name}: array {quote(member.spec.name)}"
        left = member.spec.nbytes
        buffer = self._take_buffer(min(n_bytes, left))
        view = memoryview(buffer)
        try:
            with _reports_damage(where), self._archive.open(member.info) as file:
                file.read(member.n_header_bytes)
                while left:
                    piece = view[: min(n_bytes, left)]
                    n_read = fill(cast(BinaryIO, file), piece)
                    if n_read < len(piece):
                        raise ended_early(where, n_read, len(piece))
                    left -= n_read
                    if not left and file.read(1):
                        raise _bad(where, "found more bytes than its header says")
                    if member.is_swapped:
                        _swap(piece, member.item_bytes, member.spec.dtype)
                    yield piece
        finally:
            self._return_buffer(buffer)

    def _iter_reordered(self, member: _Member, n_bytes: int) -> Iterator[memoryview]:
        import numpy as np

        spec = member.spec
        if spec.nbytes > MAX_FORTRAN_BYTES:
            raise _bad(
                f"{self.name}: array {quote(spec.name)}",
                f"found {spec.nbytes} bytes in Fortran order, expected at most {MAX_FORTRAN_BYTES}",
            )
        raw = bytearray(spec.nbytes)
        position = 0
        for piece in self._iter_stored(member, 1 << 20):
            raw[position : position + len(piece)] = piece
            position += len(piece)
        items = np.frombuffer(raw, np.dtype(f"V{member.item_bytes}")).reshape(spec.shape[::-1])
        values = np.ascontiguousarray(items.T).data.cast("B")
        for start in range(0, len(values), n_bytes):
            yield values[start : start + n_bytes]

    def _read_member(self, info: zipfile.ZipInfo) -> _Member:
        where = f"{self.name}: array {quote(info.filename.removesuffix('.npy'))}"
        with _reports_damage(where), self._archive.open(info) as file:
            text, n_header_bytes = _read_npy_header(file, where)
        descr, is_fortran, shape = _parse_npy_header(text, where)
        order, code = descr[0], descr[1:]
        if code not in _DTYPES or order not in "<>|=":
            kind = _REFUSED_KINDS.get(code[:1], "a type no tensor has")
            raise _bad(where, f"dtype {quote(descr)} is {kind}, expected numbers")
        if count_elements(shape) is None:
            raise _bad(where, f"has shape {quote(shape)}, expected axis lengths with a product below 2^63")
        spec = TensorSpec(info.filename.removesuffix(".npy"), _DTYPES[code], shape)
        if info.file_size - n_header_bytes != spec.nbytes:
            found = info.file_size - n_header_bytes
            raise _bad(
                where,
                f"holds {found} bytes of values, expected {spec.nbytes} for {spec.dtype} {quote(shape)}",
            )
        item_bytes = int(code[1:])
        return _Member(
            info,
            spec,
            n_header_bytes,
            item_bytes,
            order == ">" and item_bytes > 1,
            is_fortran and len(shape) > 1,
        )


class _reports_damage:  # noqa: N801 - reads as a phrase in a with statement
    """Turns what zipfile and zlib raise on damaged members into one line that names the array."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(
            error, zipfile.BadZipFile | zlib.error | EOFError | ValueError | NotImplementedError | RuntimeError
        ):
            raise _bad(self._where, f"damaged member ({quote(str(error))}), expected intact data") from error


def _bad(where: str, finding: str) -> BadModelError:
    return BadModelError(f"{where}: {finding}", hint=_HINT)


def _check_directory(file: BinaryIO, name: str) -> int:
    # zipfile reads the whole directory that the last bytes announce before anyone can object.
    n_bytes = measure(file)
    n_tail = min(n_bytes, 22 + 65_535 + 20)
    tail = read_exactly(file, n_bytes - n_tail, n_tail, name)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > n_tail:
        raise _bad(name, "no end of a zip archive, expected an .npz file (is it still being written?)")
    n_members = int.from_bytes(tail[at + 10 : at + 12], "little")
    n_directory_bytes = int.from_bytes(tail[at + 12 : at + 16], "little")
    if at >= 20 and tail[at - 20 : at - 16] == b"PK\x06\x07":
        offset = int.from_bytes(tail[at - 12 : at - 4], "little")
        record = read_exactly(file, offset, 56, name) if offset + 56 <= n_bytes else b""
        n_members = int.from_bytes(record[32:40], "little")
        n_directory_bytes = int.from_bytes(record[40:48], "little")
    if n_members > MAX_MEMBERS or n_directory_bytes > MAX_HEADER_BYTES:
        raise _bad(
            name,
            f"announces {n_members} members in a directory of {n_directory_bytes} bytes, "
            f"expected at most {MAX_MEMBERS} and {MAX_HEADER_BYTES}",
        )
    return n_bytes


def _check_archive(infos: list[zipfile.ZipInfo], n_file_bytes: int, name: str) -> None:
    seen: set[str] = set()
    n_stored_bytes = 0
    for info in infos:
        where = f"{name}: member {quote(info.filename)}"
        if not info.filename.endswith(".npy"):
            raise _bad(where, "is no array, expected names that end in .npy")
        if info.filename in seen:
            raise _bad(where, "is there twice, expected once")
        if info.flag_bits & 0x1:
            raise _bad(where, "is encrypted, expected plain data")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _bad(where, f"is compressed by method {info.compress_type}, expected stored or deflated")
        ratio = _DEFLATE_LIMIT if info.compress_type == zipfile.ZIP_DEFLATED else 1
        if info.file_size > info.compress_size * ratio:
            raise _bad(where, f"declares {info.file_size} bytes, which its {info.compress_size} stored cannot hold")
        n_stored_bytes += info.compress_size
        if n_stored_bytes > n_file_bytes:
            raise _bad(where, "overlaps other members: together they are larger than the file")
        seen.add(info.filename)


def _read_npy_header(file: IO[bytes], where: str) -> tuple[bytes, int]:
    start = file.read(8)
    if start[:6] != b"\x93NUMPY" or len(start) < 8:
        raise _bad(where, f"starts with {start[:6]!r}, expected the .npy signature")
    if start[6] not in (1, 2, 3):
        raise _bad(where, f"is .npy version {start[6]}, expected 1 to 3")
    n_length_bytes = 2 if start[6] == 1 else 4
    length = int.from_bytes(file.read(n_length_bytes), "little")
    if length > _MAX_NPY_HEADER_BYTES:
        raise _bad(where, f"has an .npy header of {length} bytes, expected at most {_MAX_NPY_HEADER_BYTES}")
    text = file.read(length)
    if len(text) < length:
        raise _bad(where, f"ended early, found {len(text)} bytes of an .npy header of {length}")
    return text, 8 + n_length_bytes + length


def _parse_npy_header(text: bytes, where: str) -> tuple[str, bool, tuple[int, ...]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = ast.literal_eval(text.decode("utf-8").strip())
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as err:
        raise _bad(where, f"has the .npy header {quote(text)}, expected a Python dictionary") from err
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        raise _bad(where, f"has the .npy header {quote(header)}, expected descr, fortran_order and shape")
    descr, is_fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    if isinstance(descr, list):
        raise _bad(where, "has a structured dtype, expected numbers")
    if not isinstance(descr, str) or not re.fullmatch(r"[<>|=].{1,20}", descr) or not isinstance(is_fortran, bool):
        raise _bad(
            where,
            f"has descr {quote(descr)} and fortran_order {quote(is_fortran)}, expected a dtype and a bool",
        )
    if not isinstance(shape, tuple) or not all(type(axis) is int for axis in shape):
        raise _bad(where, f"has shape {quote(shape)}, expected a tuple of integers")
    return descr, is_fortran, shape


def _swap(piece: memoryview, item_bytes: int, dtype: str) -> None:
    import numpy as np

    part_bytes = item_bytes // 2 if dtype[0] == "C" else item_bytes
    np.frombuffer(piece, f"u{part_bytes}").byteswap(inplace=True)


def _rechunk(pieces: Iterator[memoryview], n_bytes: int) -> Iterator[memoryview]:
    rest = io.BytesIO()
    for piece in pieces:
        rest.write(piece)
        pending = rest.getvalue()
        n_whole = len(pending) // n_bytes * n_bytes
        for start in range(0, n_whole, n_bytes):
            yield memoryview(pending)[start : start + n_bytes]
        rest = io.BytesIO()
        rest.write(pending[n_whole:])
    if rest.tell():
        yield memoryview(rest.getvalue())
