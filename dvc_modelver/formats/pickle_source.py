"""The bytes of pickles: a stretch of a file, read in pieces, that knows where it stands."""

from __future__ import annotations

from typing import BinaryIO

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import ended_early

_CHUNK_BYTES = 1 << 16


class Source:
    """A stretch of a file, read from front to back; several pickles may follow each other in it.

    Args:
        file: A binary file object.
        name: How errors call it.
        start: Where the stretch begins in the file.
        n_bytes: Its length. None for a stream whose length nobody knows (one being decompressed): it is read from
            where it stands and never sought in.
    """

    def __init__(self, file: BinaryIO, name: str, start: int = 0, n_bytes: int | None = None) -> None:
        self.file = file
        self.name = name
        self._end = None if n_bytes is None else start + n_bytes
        self._base = start
        self._buffer = b""
        self._at = 0

    @property
    def position(self) -> int:
        """Offset in the file of the byte that is read next."""
        return self._base + self._at

    @property
    def left(self) -> int | None:
        """Number of bytes to the end of the stretch; None where that is not known."""
        return None if self._end is None else self._end - self.position

    def at_end(self) -> bool:
        """Tell whether no byte is left; where the length is not known, by reading on."""
        if self._end is None and self._at == len(self._buffer):
            self._base, self._buffer, self._at = self.position, self.file.read(_CHUNK_BYTES), 0
        return self._at == len(self._buffer) and not self.left

    def read_byte(self) -> int:
        """Give the next byte."""
        if self._at == len(self._buffer):
            self._refill(1)
        self._at += 1
        return self._buffer[self._at - 1]

    def read(self, n_bytes: int) -> bytes:
        """Give the next `n_bytes` bytes; memory grows with what is there, not with what is asked for.

        Raises:
            BadModelError: The file ends first.
        """
        if n_bytes > len(self._buffer) - self._at:
            self._refill(n_bytes)
        self._at += n_bytes
        return self._buffer[self._at - n_bytes : self._at]

    def read_line(self, max_bytes: int) -> bytes:
        """Give the bytes before the next newline, and step over it.

        Raises:
            BadModelError: The file ends first, or the line is longer than `max_bytes`.
        """
        searched = 0
        while (end := self._buffer.find(b"\n", self._at + searched)) < 0:
            searched = len(self._buffer) - self._at
            if searched > max_bytes:
                raise BadModelError(f"{self.name}: found a line of over {max_bytes} bytes, expected a shorter one")
            self._refill(searched + 1)
        return self.read(end + 1 - self._at)[:-1]

    def skip(self, n_bytes: int) -> None:
        """Step over bytes without keeping them.

        Raises:
            BadModelError: The file ends first.
        """
        self._check_left(n_bytes)
        n_buffered = min(n_bytes, len(self._buffer) - self._at)
        self._at += n_buffered
        n_bytes -= n_buffered
        if n_bytes and self._end is not None:
            self._base, self._buffer, self._at = self.position + n_bytes, b"", 0
            return
        while n_bytes:
            piece = min(n_bytes, _CHUNK_BYTES)
            self.read(piece)
            n_bytes -= piece

    def _refill(self, n_bytes: int) -> None:
        self._check_left(n_bytes)
        self._base, self._buffer, self._at = self.position, self._buffer[self._at :], 0
        pieces = [self._buffer]
        n_found = len(self._buffer)
        if self._end is not None:
            self.file.seek(self._base + n_found)
        while n_found < n_bytes:
            n_wanted = min(max(n_bytes - n_found, _CHUNK_BYTES), 1 << 20)
            if self._end is not None:
                n_wanted = min(n_wanted, self._end - self._base - n_found)
            piece = self.file.read(n_wanted)
            if not piece:
                raise ended_early(self.name, n_found, n_bytes)
            pieces.append(piece)
            n_found += len(piece)
        self._buffer = b"".join(pieces)

    def _check_left(self, n_bytes: int) -> None:
        if self._end is not None and n_bytes > self._end - self.position:
            raise ended_early(self.name, max(self._end - self.position, 0), n_bytes)
