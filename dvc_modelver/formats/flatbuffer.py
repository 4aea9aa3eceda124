"""FlatBuffers, read table by table from a seekable file: every offset checked, vectors of values never loaded.

Offsets lead forward only (an offset of 0, to itself, is refused), so tables cannot form a cycle; that many may share
one is bounded by the number of tables that are visited, and that many may share a text by the bytes of all texts.

Source: https://flatbuffers.dev/internals/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import MAX_HEADER_BYTES, quote, read_exactly

MAX_TABLES = 400_000
MAX_TEXT_BYTES = 65_536
"""Of one text, where a format asks for no other limit."""
MAX_TEXTS_BYTES = 64 << 20
"""Of all texts together."""

_KEPT_BYTES = 16 << 20


class Vector(NamedTuple):
    """Where the items of a vector lie in the file, and how many there are."""

    start: int
    n_items: int


class FlatBuffer:
    """Reads numbers anywhere in a buffer, in small pages of which some are kept; positions are the file's.

    Args:
        file: Seekable; only its position is changed.
        start: Where the buffer begins in it.
        end: Where it ends.
        where: How errors call the file.
        hint: What errors advise.
        page_bytes: What is read at once: little where tables lie between weights, more where they lie together.
    """

    def __init__(self, file: BinaryIO, start: int, end: int, where: str, hint: str, *, page_bytes: int = 2_048) -> None:
        self._file = file
        self.start = start
        self.end = end
        self.where = where
        self._hint = hint
        self._page_bytes = page_bytes
        self._pages: dict[int, bytes] = {}
        self._n_tables = 0
        self._n_read_bytes = 0
        self._n_text_bytes = 0

    def root(self) -> Table:
        """Give the table that holds all others."""
        return self.table(self.start)

    def table(self, at: int) -> Table:
        """Give the table to which the offset at a position leads.

        Raises:
            BadModelError: It leads out of the buffer, or more than `MAX_TABLES` are asked for.
        """
        self._n_tables += 1
        if self._n_tables > MAX_TABLES:
            raise self.bad(at, f"found more than {MAX_TABLES} tables, expected fewer of them in a model")
        return Table(self, self.follow(at))

    def follow(self, at: int) -> int:
        """Give the position to which the offset at a position leads."""
        offset = int(self.number(at, "<I"))
        if not 4 <= offset <= self.end - at - 4:
            raise self.bad(at, f"found an offset of {offset}, expected 4 to {max(self.end - at - 4, 4)}")
        return at + offset

    def number(self, at: int, code: str) -> Any:
        """Give the number at a position, by its code in `struct`."""
        return struct.unpack(code, self.read(at, at + struct.calcsize(code)))[0]

    def vector(self, at: int, width: int) -> Vector:
        """Give the vector to which the offset at a position leads, by the bytes of one item."""
        start = self.follow(at)
        count = int(self.number(start, "<I"))
        if count * width > self.end - start - 4:
            raise self.bad(
                start, f"found a vector of {count} × {width} bytes, expected at most {self.end - start - 4} bytes"
            )
        return Vector(start + 4, count)

    def text(self, at: int, limit: int = MAX_TEXT_BYTES) -> str:
        """Give the text to which the offset at a position leads.

        Raises:
            BadModelError: It is not UTF-8, or longer than `limit`, or all texts are longer than `MAX_TEXTS_BYTES`.
        """
        start, count = self.vector(at, 1)
        if count > limit:
            raise self.bad(start, f"found a text of {count} bytes, expected at most {limit}")
        self._n_text_bytes += count
        if self._n_text_bytes > MAX_TEXTS_BYTES:
            raise self.bad(start, f"found more than {MAX_TEXTS_BYTES} bytes of text, expected at most so many")
        raw = self.read(start, start + count)
        try:
            return raw.decode()
        except UnicodeDecodeError as err:
            raise self.bad(start, f"found the text {quote(raw)}, expected UTF-8") from err

    def read(self, start: int, end: int) -> bytes:
        """Give the bytes of a small range; `MAX_HEADER_BYTES` in all.

        Raises:
            BadModelError: It reaches out of the buffer, or more than that were asked for.
        """
        self._n_read_bytes += max(end - start, 0)
        if self._n_read_bytes > MAX_HEADER_BYTES:
            raise self.bad(start, f"found a header of more than {MAX_HEADER_BYTES} bytes, expected less")
        return self.read_values(start, end)

    def read_values(self, start: int, end: int) -> bytes:
        """Give the bytes of a range whose length the caller has bounded.

        Raises:
            BadModelError: It reaches out of the buffer.
        """
        if not self.start <= start <= end:
            raise self.bad(start, f"found a value that begins there, expected it from byte {self.start} on")
        if end > self.end:
            raise self.bad(start, f"ended early, found {self.end} bytes, expected {end}")
        size = self._page_bytes
        if end - start > size:
            return read_exactly(self._file, start, end - start, self.where)
        first, last = start // size, (end - 1) // size
        data = b"".join(self._page(i) for i in range(first, last + 1))
        return data[start - first * size : end - first * size]

    def bad(self, at: int, finding: str) -> BadModelError:
        """Give the error for what was found at a position."""
        return BadModelError(f"{self.where}: at byte {at}: {finding}", hint=self._hint)

    def _page(self, i: int) -> bytes:
        page = self._pages.get(i)
        if page is None:
            size = self._page_bytes
            if len(self._pages) * size >= _KEPT_BYTES:
                del self._pages[next(iter(self._pages))]
            page = self._pages[i] = read_exactly(self._file, i * size, min(size, self.end - i * size), self.where)
        return page


class Table:
    """A table; its fields are numbered as the schema declares them, from 0.

    Args:
        buffer: What it lies in.
        at: Where it begins.

    Raises:
        BadModelError: It, or the table of its fields' places, reaches out of the buffer.
    """

    __slots__ = ("_places", "at", "buffer", "n_bytes")

    def __init__(self, buffer: FlatBuffer, at: int) -> None:
        self.buffer = buffer
        self.at = at
        vtable = at - buffer.number(at, "<i")
        n_bytes, self.n_bytes = struct.unpack("<HH", buffer.read(vtable, vtable + 4))
        if n_bytes < 4 or n_bytes % 2 or self.n_bytes < 4 or at + self.n_bytes > buffer.end:
            raise buffer.bad(
                at, f"found a table of {self.n_bytes} bytes with a list of {n_bytes}, expected both in the buffer"
            )
        # Kept as they are read: of a hostile list, a tuple would take twenty times the memory.
        self._places = buffer.read(vtable + 4, vtable + n_bytes)

    @property
    def places(self) -> tuple[int, ...]:
        """Where each field lies behind `at`; 0 where it has its default value."""
        return struct.unpack(f"<{len(self._places) // 2}H", self._places)

    def place(self, slot: int, n_bytes: int) -> int:
        """Give where a field of `n_bytes` lies; 0 where it has its default value."""
        place = int.from_bytes(self._places[2 * slot : 2 * slot + 2], "little")
        if place and not 4 <= place <= self.n_bytes - n_bytes:
            raise self.buffer.bad(
                self.at, f"found field {slot} at byte {place}, expected it in a table of {self.n_bytes} bytes"
            )
        return self.at + place if place else 0

    def number(self, slot: int, code: str, default: int = 0) -> int:
        """Give a whole number by its code in `struct`."""
        at = self.place(slot, struct.calcsize(code))
        found: int = self.buffer.number(at, code) if at else default
        return found

    def real(self, slot: int, code: str, default: float = 0) -> float:
        """Give a real number by its code in `struct`."""
        at = self.place(slot, struct.calcsize(code))
        found: float = self.buffer.number(at, code) if at else default
        return found

    def table(self, slot: int) -> Table | None:
        """Give a table that this one holds."""
        at = self.place(slot, 4)
        return self.buffer.table(at) if at else None

    def vector(self, slot: int, width: int) -> Vector:
        """Give a vector by the bytes of one item; an empty one where it is left out."""
        at = self.place(slot, 4)
        return self.buffer.vector(at, width) if at else Vector(self.buffer.start, 0)

    def numbers(self, slot: int, code: str, limit: int) -> tuple[int, ...]:
        """Give a vector of at most `limit` numbers, by their code in `struct` (without byte order)."""
        width = struct.calcsize(f"<{code}")
        start, count = self.vector(slot, width)
        if count > limit:
            raise self.buffer.bad(start, f"found {count} numbers, expected at most {limit}")
        return struct.unpack(f"<{count}{code}", self.buffer.read(start, start + count * width))

    def tables(self, slot: int, limit: int = MAX_TABLES) -> Iterator[Table]:
        """Give the tables of a vector of at most `limit`."""
        return map(self.buffer.table, self._offsets(slot, limit))

    def text(self, slot: int, limit: int = MAX_TEXT_BYTES) -> str:
        """Give a text of at most `limit` bytes, empty where it is left out; see `FlatBuffer.text`."""
        at = self.place(slot, 4)
        return self.buffer.text(at, limit) if at else ""

    def texts(self, slot: int, limit: int) -> list[str]:
        """Give the texts of a vector of at most `limit`."""
        return [self.buffer.text(at) for at in self._offsets(slot, limit)]

    def _offsets(self, slot: int, limit: int) -> range:
        start, count = self.vector(slot, 4)
        if count > limit:
            raise self.buffer.bad(start, f"found a list of {count} members, expected at most {limit}")
        return range(start, start + 4 * count, 4)
