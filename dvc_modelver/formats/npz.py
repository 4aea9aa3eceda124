"""NPZ: a zip archive of ``.npy`` members, as `numpy.savez` and `numpy.savez_compressed` write it.

The arrays themselves are read as `dvc_modelver.formats.npy` says.

Source: APPNOTE.TXT 6.3.10, sections 4.3.14 to 4.3.16 (the end of a zip archive).
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, cast

from dvc_modelver.formats.base import FileReader, Folder, ended_early, fill, measure, quote, read_exactly
from dvc_modelver.formats.expansion import MAX_RATIO, expansion_limit
from dvc_modelver.formats.npy import StoredArray, bad_array, iter_array, read_array_header
from dvc_modelver.formats.zip_directory import find_directory
from dvc_modelver.tensors import TensorSpec

FORMAT = "npz"
SUFFIXES = (".npz",)
MAX_MEMBERS = 1_000_000

_DEFLATE_LIMIT = 1032


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
    array: StoredArray


def open_file(source: Path | BinaryIO, name: str, folder: Folder | None = None) -> NpzReader:
    """Open a file of this format; it is whole without the files beside it."""
    return NpzReader(source, name)


class NpzReader(FileReader):
    """Reads an NPZ archive, stored or deflated; opening it reads the directory and the members' headers.

    Values are streamed. Only an array in Fortran order is read whole (and copied once) to give its values
    in C order; beyond `npy.MAX_FORTRAN_BYTES` it is refused.

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
            # zipfile reads the whole directory that the last bytes announce before anyone can object.
            find_directory(self._file, self.name, MAX_MEMBERS)
            try:
                self._archive = zipfile.ZipFile(cast("IO[bytes]", self._file))
            except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as err:
                raise bad_array(
                    self.name, f"no readable zip archive ({quote(str(err))}), expected an .npz file"
                ) from err
            _check_archive(self._archive.infolist(), measure(self._file), self.name)
            members = [self._read_member(info) for info in self._archive.infolist()]
        except BaseException:
            self.close()
            raise
        self._members = {member.array.spec.name: member for member in members}
        self.specs = tuple(self._members[tensor].array.spec for tensor in sorted(self._members))

    @property
    def is_compressed(self) -> bool:
        """Whether a member is deflated."""
        return any(member.info.compress_type != zipfile.ZIP_STORED for member in self._members.values())

    def stored_order(self) -> list[str]:
        """Give the name of every array in the order of the archive."""
        return list(self._members)

    def iter_buffers(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give a tensor's values; see `Reader`."""
        member = self._members[spec.name]
        where = f"{self.name}: array {quote(spec.name)}"
        return iter_array(member.array, partial(self._iter_stored, member, where), n_bytes, where)

    def _iter_stored(self, member: _Member, where: str, n_bytes: int) -> Iterator[memoryview]:
        left = member.array.spec.nbytes
        buffer = self._take_buffer(min(n_bytes, left))
        view = memoryview(buffer)
        try:
            with _reports_damage(where), self._archive.open(member.info) as file:
                file.read(member.array.n_header_bytes)
                while left:
                    piece = view[: min(n_bytes, left)]
                    n_read = fill(cast(BinaryIO, file), piece)
                    if n_read < len(piece):
                        raise ended_early(where, n_read, len(piece))
                    left -= n_read
                    if not left and file.read(1):
                        raise bad_array(where, "found more bytes than its header says")
                    yield piece
        finally:
            self._return_buffer(buffer)

    def _read_member(self, info: zipfile.ZipInfo) -> _Member:
        name = info.filename.removesuffix(".npy")
        where = f"{self.name}: array {quote(name)}"
        with _reports_damage(where), self._archive.open(info) as file:
            return _Member(info, read_array_header(file, name, info.file_size, where))


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
            raise bad_array(self._where, f"damaged member ({quote(str(error))}), expected intact data") from error


def _check_archive(infos: list[zipfile.ZipInfo], n_file_bytes: int, name: str) -> None:
    seen: set[str] = set()
    n_stored_bytes = 0
    n_bytes, limit = sum(info.file_size for info in infos), expansion_limit(n_file_bytes)
    if n_bytes > max(limit, n_file_bytes):
        raise bad_array(
            name, f"expands to {n_bytes} bytes from {n_file_bytes}, expected at most {MAX_RATIO} times as many"
        )
    for info in infos:
        where = f"{name}: member {quote(info.filename)}"
        if not info.filename.endswith(".npy"):
            raise bad_array(where, "is no array, expected names that end in .npy")
        if info.filename in seen:
            raise bad_array(where, "is there twice, expected once")
        if info.flag_bits & 0x1:
            raise bad_array(where, "is encrypted, expected plain data")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise bad_array(where, f"is compressed by method {info.compress_type}, expected stored or deflated")
        ratio = _DEFLATE_LIMIT if info.compress_type == zipfile.ZIP_DEFLATED else 1
        if info.file_size > info.compress_size * ratio:
            raise bad_array(
                where, f"declares {info.file_size} bytes, which its {info.compress_size} stored cannot hold"
            )
        n_stored_bytes += info.compress_size
        if n_stored_bytes > n_file_bytes:
            raise bad_array(where, "overlaps other members: together they are larger than the file")
        seen.add(info.filename)
