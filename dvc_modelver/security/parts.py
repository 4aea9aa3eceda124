"""The bytes to scan: a file, a stretch of one, or what a compressed stretch holds; nothing is written anywhere."""

from __future__ import annotations

import bz2
import io
import lzma
import posixpath
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol, cast

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import fill, measure
from dvc_modelver.formats.pickles import Source

MAX_LZMA_BYTES = 128 << 20
"""Memory that an LZMA stream may ask for."""

_PIECE_BYTES = 1 << 16


class Budget:
    """What one file may cost, however it is nested.

    Args:
        n_file_bytes: Its length.

    Attributes:
        memory: Bytes that the objects of its pickles may still take, which bounds the opcodes, too.
        guesses: Likewise, of pickles in places where none is expected.
        inflated: Bytes that decompressing may still give: honest weights shrink to a third, bombs to a thousandth.
    """

    def __init__(self, n_file_bytes: int) -> None:
        self.memory = 320 << 20
        self.guesses = 64 << 20
        self.inflated = (256 << 20) + 20 * n_file_bytes


class Window(io.RawIOBase):
    """A stretch of a file as a file of its own.

    Args:
        file: Seekable; its position is changed.
        start: Where the stretch begins.
        n_bytes: Its length; the file may end before.
    """

    def __init__(self, file: BinaryIO, start: int, n_bytes: int) -> None:
        super().__init__()
        self._file, self._start = file, start
        self._n_bytes = max(0, min(n_bytes, measure(file) - start))
        self._at = 0

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell that it can be sought in."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to an offset in the stretch."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._n_bytes}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """Give the position in the stretch."""
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        """Read at most to the end of the stretch."""
        view = memoryview(buffer).cast("B")[: max(0, self._n_bytes - self._at)]
        self._file.seek(self._start + self._at)
        n_read = fill(self._file, view)
        self._at += n_read
        return n_read


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes: ...


class _Inflate:
    """`zlib.decompressobj` with the manners of the other decompressors."""

    def __init__(self, window_bits: int) -> None:
        self._inner = zlib.decompressobj(window_bits)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail and not self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


Decompress = Callable[[], _Decompressor]
"""Makes what unpacks a stream from its start."""


def _make_lzma(form: int) -> _Decompressor:
    return lzma.LZMADecompressor(form, memlimit=MAX_LZMA_BYTES)


COMPRESSIONS: dict[bytes, Decompress] = {
    b"\x1f\x8b": lambda: _Inflate(31),
    b"\x78\x01": lambda: _Inflate(15),
    b"\x78\x5e": lambda: _Inflate(15),
    b"\x78\x9c": lambda: _Inflate(15),
    b"\x78\xda": lambda: _Inflate(15),
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": lambda: _make_lzma(lzma.FORMAT_XZ),
    b"\x5d\0\0": lambda: _make_lzma(lzma.FORMAT_ALONE),
}
"""How files begin that joblib and others have compressed, and what unpacks them."""

ZIP_METHODS: dict[int, Decompress] = {8: lambda: _Inflate(-15), 12: bz2.BZ2Decompressor}


def find_compression(start: bytes) -> Decompress | None:
    """Give what unpacks a file that begins so; None for one that is not compressed."""
    return next((make for magic, make in COMPRESSIONS.items() if start.startswith(magic)), None)


class Unpacked(io.RawIOBase):
    """What a compressed file holds, read from front to back.

    Args:
        file: The compressed bytes.
        make: Makes the decompressor; streams that follow each other are one.
        budget: Pays for what is read.
        name: How errors call it.
    """

    def __init__(self, file: BinaryIO, make: Decompress, budget: Budget, name: str) -> None:
        super().__init__()
        self._file, self._make, self._budget, self._name = file, make, budget, name
        self._inner = make()

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Read some bytes.

        Raises:
            BadModelError: The stream is damaged, or gives more than the budget allows.
        """
        view = memoryview(buffer).cast("B")
        data = self._decompress(len(view)) if view else b""
        self._budget.inflated -= len(data)
        if self._budget.inflated < 0:
            raise BadModelError(f"{self._name}: unpacks to far more than its size, expected a compressed model")
        view[: len(data)] = data
        return len(data)

    def _decompress(self, max_bytes: int) -> bytes:
        while True:
            piece = b""
            if self._inner.eof:
                piece = self._inner.unused_data or self._file.read(_PIECE_BYTES)
                if not piece.strip(b"\0"):
                    return b""
                self._inner = self._make()
            elif self._inner.needs_input:
                piece = self._file.read(_PIECE_BYTES)
                if not piece:
                    raise BadModelError(f"{self._name}: ended early, expected the end of the compressed data")
            try:
                data = self._inner.decompress(piece, max_bytes)
            except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, MemoryError) as err:
                raise BadModelError(f"{self._name}: damaged ({err}), expected compressed data") from err
            if data:
                return data


@dataclass(frozen=True)
class Part:
    """Something to scan: a file or what lies in it.

    Attributes:
        member: How findings call it; empty for the file itself.
        name: What its suffix is taken from.
        open: Opens it at its first byte.
        n_bytes: Its length; None where it has to be unpacked to know, and cannot be sought in.
        depth: How many archives, compressed streams and pickles it lies in.
    """

    member: str
    name: str
    open: Callable[[], BinaryIO]
    n_bytes: int | None
    depth: int = 0

    @property
    def suffix(self) -> str:
        """Its suffix, in small letters, with the dot."""
        return posixpath.splitext(self.name)[1].lower()

    def source(self) -> Source:
        """Give its bytes for pickles."""
        return Source(self.open(), self.name, 0, self.n_bytes)

    def read(self, n_bytes: int) -> bytes:
        """Give its first bytes, at most so many; fewer where it ends, or is damaged there."""
        file, pieces, left = self.open(), [], n_bytes
        try:
            while left and (piece := file.read(min(left, 1 << 20))):
                pieces.append(piece)
                left -= len(piece)
        except BadModelError:
            pass
        return b"".join(pieces)


def window_part(file: BinaryIO, member: str, name: str, start: int, n_bytes: int, depth: int) -> Part:
    """Give a stretch of a file to scan."""
    return Part(member, name, lambda: cast(BinaryIO, Window(file, start, n_bytes)), n_bytes, depth)


def bytes_part(data: bytes, member: str, name: str, depth: int) -> Part:
    """Give bytes to scan."""
    return Part(member, name, lambda: io.BytesIO(data), len(data), depth)
