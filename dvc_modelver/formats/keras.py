"""Keras 3 (and late Keras 2) ``.keras``: a zip archive of ``config.json``, ``metadata.json`` and ``model.weights.h5``.

The weights are stored without compression and read in place; in an archive that was packed again they are
decompressed into a temporary file, up to `MAX_INFLATED_BYTES`.

Source: ``_save_model_to_fileobj`` in ``keras/src/saving/saving_lib.py`` of https://github.com/keras-team/keras.
"""

from __future__ import annotations

import tempfile
import zlib
from pathlib import Path
from typing import IO, BinaryIO, cast

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import FileReader, Folder, Scalar, measure, printable, quote, read_exactly
from dvc_modelver.formats.hdf5 import Hdf5Reader
from dvc_modelver.formats.hdf5_process import Window
from dvc_modelver.formats.keras_names import MAX_CONFIG_BYTES, parse_config
from dvc_modelver.formats.zip_directory import DEFLATED, STORED, Member, find_data, read_directory, read_member

FORMAT = "keras"
SUFFIXES = (".keras",)
MAX_INFLATED_BYTES = 1 << 30

_WEIGHTS = "model.weights.h5"
_CONFIG = "config.json"
_METADATA = "metadata.json"
_SPOOLED_BYTES = 32 << 20
_PIECE_BYTES = 1 << 20
_DEFLATE_LIMIT = 1032


def matches(file: BinaryIO) -> bool:
    """Tell whether a file is a zip archive with the members of a Keras model."""
    if measure(file) < 30 or read_exactly(file, 0, 4, FORMAT) != b"PK\x03\x04":
        return False
    try:
        members = read_directory(file, FORMAT)
    except BadModelError:
        return False
    return _CONFIG in members and any(name.startswith("model.weights.") for name in members)


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
            members = read_directory(self._file, self.name)
            if _CONFIG not in members or _WEIGHTS not in members:
                missing = _WEIGHTS if _CONFIG in members else _CONFIG
                raise _bad(self.name, f"found no member {missing}, expected a configuration and weights in HDF5")
            config = self._read_json(members[_CONFIG])
            self._open_window(self._find_weights(members[_WEIGHTS]), config, self._describe_members(members))
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

    def _find_weights(self, member: Member) -> Window:
        where = f"{self.name}: member {quote(member.name)}"
        start = find_data(self._file, member, self.name)
        if member.method == STORED:
            return Window(self._file, start, member.n_bytes, self.name)
        if member.method != DEFLATED:
            raise _bad(where, f"is compressed by method {member.method}, expected stored or deflated")
        if member.n_bytes > min(MAX_INFLATED_BYTES, member.n_stored_bytes * _DEFLATE_LIMIT):
            raise _bad(where, f"declares {member.n_bytes} bytes compressed, expected at most {MAX_INFLATED_BYTES}")
        self._inflated = tempfile.SpooledTemporaryFile(max_size=_SPOOLED_BYTES)  # noqa: SIM115 - close() closes it
        self._inflate(member, start, where, self._inflated)
        return Window(cast(BinaryIO, self._inflated), 0, member.n_bytes, self.name)

    def _inflate(self, member: Member, start: int, where: str, target: IO[bytes]) -> None:
        stream, n_bytes, crc = zlib.decompressobj(-zlib.MAX_WBITS), 0, 0
        end = start + member.n_stored_bytes
        try:
            while n_bytes <= member.n_bytes and not stream.eof:
                # What did not fit into the last piece comes first.
                data = stream.unconsumed_tail
                if not data and start < end:
                    data = read_exactly(self._file, start, min(_PIECE_BYTES, end - start), where)
                    start += len(data)
                piece = stream.decompress(data, _PIECE_BYTES)
                if not data and not piece:
                    break
                n_bytes, crc = n_bytes + len(piece), zlib.crc32(piece, crc)
                target.write(piece)
        except zlib.error as err:
            raise _bad(where, f"is damaged ({quote(str(err))}), expected deflated data") from err
        if n_bytes != member.n_bytes or crc != member.crc:
            raise _bad(where, f"holds {n_bytes} bytes with the checksum {crc:08x}, expected {member.n_bytes}")

    def _read_json(self, member: Member) -> dict[str, object]:
        return parse_config(read_member(self._file, member, MAX_CONFIG_BYTES, self.name), self.name)

    def _describe_members(self, members: dict[str, Member]) -> dict[str, Scalar]:
        facts: dict[str, Scalar] = {}
        if _METADATA in members:
            facts["keras_version"] = printable(str(self._read_json(members[_METADATA]).get("keras_version", "")))[:200]
        for name in sorted(members):
            if name.startswith("assets/") and not name.endswith("/"):
                facts[f"asset.{printable(name[7:])}"] = (
                    f"crc32:{members[name].crc:08x} ({members[name].n_bytes:,} bytes)"
                )
        return facts


def _bad(where: str, finding: str) -> BadModelError:
    return BadModelError(f"{where}: {finding}", hint="save the model again with Keras")
