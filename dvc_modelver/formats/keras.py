"""Keras 3 (and late Keras 2) ``.keras``: a zip archive of ``config.json``, ``metadata.json`` and ``model.weights.h5``.

The weights are stored without compression and read in place; in an archive that was packed again they are
decompressed into a temporary file, up to `MAX_INFLATED_BYTES`.

Sources: ``_save_model_to_fileobj`` in ``keras/src/saving/saving_lib.py`` of https://github.com/keras-team/keras, and
APPNOTE.TXT 6.3.10, sections 4.3.7 (local headers) and 4.3.12 to 4.3.16 (the directory).
"""

from __future__ import annotations

import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import FileReader, Folder, Scalar, measure, printable, quote, read_exactly
from dvc_modelver.formats.hdf5 import Hdf5Reader
from dvc_modelver.formats.hdf5_process import Window
from dvc_modelver.formats.keras_names import MAX_CONFIG_BYTES, parse_config

FORMAT = "keras"
SUFFIXES = (".keras",)
MAX_DIRECTORY_BYTES = 8 << 20
MAX_INFLATED_BYTES = 1 << 30

_WEIGHTS = "model.weights.h5"
_CONFIG = "config.json"
_METADATA = "metadata.json"
_SPOOLED_BYTES = 32 << 20
_DEFLATE_LIMIT = 1032
_HINT = "save the model again with Keras"


def matches(file: BinaryIO) -> bool:
    """Tell whether a file is a zip archive with the members of a Keras model."""
    if measure(file) < 30 or read_exactly(file, 0, 4, FORMAT) != b"PK\x03\x04":
        return False
    try:
        names = {info.filename for info in _read_directory(file, FORMAT)}
    except BadModelError:
        return False
    return _CONFIG in names and any(name.startswith("model.weights.") for name in names)


def open_file(source: Path | BinaryIO, name: str, folder: Folder | None = None) -> KerasReader:
    """Open a file of this format; it is whole without the files beside it."""
    return KerasReader(source, name)


class KerasReader(Hdf5Reader):
    """Reads a ``.keras`` archive; opening it reads the directory, the configuration and HDF5's headers.

    Args:
        source: A path, or a seekable binary file object.
        name: How errors call the file.

    Raises:
        BadModelError: No archive, a damaged or encrypted one, one without weights in HDF5, or weights that
            `Hdf5Reader` refuses.
    """

    format = FORMAT

    def __init__(self, source: Path | BinaryIO, name: str = "") -> None:
        FileReader.__init__(self, source, name)
        self._inflated: IO[bytes] | None = None
        try:
            members = {info.filename: info for info in _read_directory(self._file, self.name)}
            config = parse_config(self._read_small(members, _CONFIG), self.name)
            facts = self._describe(members)
            self._open_window(self._find_weights(members), config, facts)
        except BaseException:
            self.close()
            raise
        self.framework = "keras"

    def close(self) -> None:
        """Release everything that was opened here."""
        super().close()
        if self._inflated is not None:
            self._inflated.close()
            self._inflated = None

    def _find_weights(self, members: dict[str, zipfile.ZipInfo]) -> Window:
        info = members.get(_WEIGHTS)
        if info is None:
            raise _bad(self.name, f"found no member {_WEIGHTS}, expected weights in HDF5 (npz holds pickled objects)")
        where = f"{self.name}: member {quote(_WEIGHTS)}"
        if info.compress_type == zipfile.ZIP_STORED:
            if info.file_size != info.compress_size:
                raise _bad(where, f"declares {info.file_size} bytes, expected the {info.compress_size} that are stored")
            return Window(self._file, self._locate(info), info.file_size, self.name)
        if info.file_size > min(MAX_INFLATED_BYTES, info.compress_size * _DEFLATE_LIMIT):
            raise _bad(where, f"declares {info.file_size} bytes compressed, expected at most {MAX_INFLATED_BYTES}")
        self._inflated = tempfile.SpooledTemporaryFile(max_size=_SPOOLED_BYTES)  # noqa: SIM115 - close() closes it
        with _reports_damage(where), self._open_member(info) as member:
            while piece := member.read(1 << 20):
                self._inflated.write(piece)
        return Window(cast(BinaryIO, self._inflated), 0, info.file_size, self.name)

    def _locate(self, info: zipfile.ZipInfo) -> int:
        # The lengths in the local header may differ from those in the directory.
        n_file_bytes = measure(self._file)
        where = f"{self.name}: member {quote(info.filename)}"
        if info.header_offset + 30 > n_file_bytes:
            raise _bad(where, f"begins at {info.header_offset}, behind the end of the file")
        header = read_exactly(self._file, info.header_offset, 30, where)
        n_names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        offset = info.header_offset + 30 + n_names
        if not header.startswith(b"PK\x03\x04") or offset + info.compress_size > n_file_bytes:
            raise _bad(where, f"found {header[:4]!r} at {info.header_offset}, expected a member inside the file")
        return offset

    def _read_small(self, members: dict[str, zipfile.ZipInfo], member: str) -> bytes:
        info = members.get(member)
        where = f"{self.name}: member {quote(member)}"
        if info is None or info.file_size > MAX_CONFIG_BYTES:
            found = "is missing" if info is None else f"has {info.file_size} bytes"
            raise _bad(where, f"{found}, expected at most {MAX_CONFIG_BYTES} bytes of JSON")
        with _reports_damage(where), self._open_member(info) as file:
            return file.read(MAX_CONFIG_BYTES)

    def _open_member(self, info: zipfile.ZipInfo) -> IO[bytes]:
        return zipfile.ZipFile(cast("IO[bytes]", self._file)).open(info)

    def _describe(self, members: dict[str, zipfile.ZipInfo]) -> dict[str, Scalar]:
        facts: dict[str, Scalar] = {}
        if _METADATA in members:
            metadata = parse_config(self._read_small(members, _METADATA), self.name)
            facts["keras_version"] = printable(str(metadata.get("keras_version", "")))[:200]
        for name in sorted(members):
            if name.startswith("assets/") and not name.endswith("/"):
                info = members[name]
                facts[f"asset.{printable(name[7:])}"] = f"crc32:{info.CRC:08x} ({info.file_size:,} bytes)"
        return facts


def _bad(where: str, finding: str) -> BadModelError:
    return BadModelError(f"{where}: {finding}", hint=_HINT)


@contextmanager
def _reports_damage(where: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as err:
        raise _bad(where, f"damaged member ({quote(str(err))}), expected intact data") from err


def _read_directory(file: BinaryIO, name: str) -> list[zipfile.ZipInfo]:
    # zipfile reads the whole directory that the last bytes announce before anyone can object.
    n_bytes = measure(file)
    n_tail = min(n_bytes, 22 + 65_535 + 20)
    tail = read_exactly(file, n_bytes - n_tail, n_tail, name)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > n_tail:
        raise _bad(name, "no end of a zip archive, expected a .keras file (is it still being written?)")
    n_directory_bytes = int.from_bytes(tail[at + 12 : at + 16], "little")
    if at >= 20 and tail[at - 20 : at - 16] == b"PK\x06\x07":
        offset = int.from_bytes(tail[at - 12 : at - 4], "little")
        record = read_exactly(file, offset, 56, name) if offset + 56 <= n_bytes else b""
        n_directory_bytes = int.from_bytes(record[40:48], "little")
    if n_directory_bytes > MAX_DIRECTORY_BYTES:
        raise _bad(name, f"announces a directory of {n_directory_bytes} bytes, expected at most {MAX_DIRECTORY_BYTES}")
    with _reports_damage(name), zipfile.ZipFile(cast("IO[bytes]", file)) as archive:
        infos = archive.infolist()
    names = [info.filename for info in infos]
    if len(set(names)) < len(names):
        raise _bad(name, "holds two members of one name, expected each once")
    return infos
