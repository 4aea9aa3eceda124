"""FlatBuffers, read table by table from a seekable file: every offset checked, vectors of values never loaded.

Offsets lead forward only (an offset of 0, to itself, is refused), so tables cannot form a cycle; that many may share
one is bounded by the number of tables that are visited.

Source: https://flatbuffers.dev/internals/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import MAX_HEADER_BYTES, read_exactly

MAX_TABLES = 400_000
MAX_TEXT_BYTES = 65_536

_PAGE = 2_048
_MAX_PAGES = 8_192


class FlatBuffer:
    """Reads numbers anywhere in a file, in small pages of which some are kept.

    Args:
        file: Seekable; only its position is changed.
        n_bytes: Its length.
        where: How errors call the file.
    """

    def __init__(self, file: BinaryIO, n_bytes: int, where: str) -> None:
        self._file = file
        self.n_bytes = n_bytes
        self.where = where
        self._pages: dict[int, bytes] = {}
        self._n_tables = 0
        self._n_read_bytes = 0

    def root(self) -> Table:
        """Give the table that holds all others."""
        return self.table(0)

    def table(self, at: int) -> Table:
        """Give the table to which the offset at a position leads.

        Raises:
            BadModelError: It leads out of the file, or more than `MAX_TABLES` are asked for.
        """
        self._n_tables += 1
        if self._n_tables > MAX_TABLES:
            raise self.bad(at, f"found more than {MAX_TABLES} tables, expected a model's graph")
        return Table(self, self.follow(at))

    def follow(self, at: int) -> int:
        """Give the position to which the offset at a position leads."""
        offset = self.number(at, "<I")
        if not 4 <= offset <= self.n_bytes - at - 4:
            raise self.bad(at, f"found an offset of {offset}, expected 4 to {max(self.n_bytes - at - 4, 4)}")
        return at + offset

    def number(self, at: int, code: str) -> int:
        """Give the number at a position, by its code in `struct`."""
        found: int = struct.unpack(code, self.read(at, at + struct.calcsize(code)))[0]
        return found

    def vector(self, at: int, width: int) -> tuple[int, int]:
        """Give where the elements of the vector begin to which the offset at a position leads, and how many it has."""
        start = self.follow(at)
        count = self.number(start, "<I")
        if count * width > self.n_bytes - start - 4:
            raise self.bad(start, f"found a vector of {count} × {width} bytes, expected at most the rest of the file")
        return start + 4, count

    def read(self, start: int, end: int) -> bytes:
        """Give the bytes of a small range; `MAX_HEADER_BYTES` in all.

        Raises:
            BadModelError: It reaches out of the file, or more than that were asked for.
        """
        if not 0 <= start <= end <= self.n_bytes:
            raise self.bad(start, f"ended early, found {self.n_bytes} bytes, expected {end}")
        self._n_read_bytes += end - start
        if self._n_read_bytes > MAX_HEADER_BYTES:
            raise self.bad(start, f"found a graph of more than {MAX_HEADER_BYTES} bytes, expected less")
        first, last = start // _PAGE, (end - 1) // _PAGE
        if end - start > _PAGE:
            return read_exactly(self._file, start, end - start, self.where)
        data = b"".join(self._page(i) for i in range(first, last + 1))
        return data[start - first * _PAGE : end - first * _PAGE]

    def bad(self, at: int, finding: str) -> BadModelError:
        """Give the error for what was found at a position."""
        return BadModelError(f"{self.where}: at byte {at}: {finding}", hint="fetch the file again, or convert it again")

    def _page(self, i: int) -> bytes:
        page = self._pages.get(i)
        if page is None:
            if len(self._pages) >= _MAX_PAGES:
                self._pages.clear()
            size = min(_PAGE, self.n_bytes - i * _PAGE)
            page = self._pages[i] = read_exactly(self._file, i * _PAGE, size, self.where)
        return page


class Table:
    """A table; its fields are numbered as the schema declares them, from 0.

    Args:
        buffer: What it lies in.
        at: Where it begins.

    Raises:
        BadModelError: It, or the table of its fields' places, reaches out of the file.
    """

    def __init__(self, buffer: FlatBuffer, at: int) -> None:
        self.buffer = buffer
        self.at = at
        vtable = at - buffer.number(at, "<i")
        n_bytes, self.n_bytes = struct.unpack("<HH", buffer.read(vtable, vtable + 4))
        if n_bytes < 4 or n_bytes % 2 or self.n_bytes < 4 or at + self.n_bytes > buffer.n_bytes:
            raise buffer.bad(
                at, f"found a table of {self.n_bytes} bytes with a list of {n_bytes}, expected both in the file"
            )
        self.places: tuple[int, ...] = struct.unpack(f"<{n_bytes // 2 - 2}H", buffer.read(vtable + 4, vtable + n_bytes))

    def place(self, slot: int, n_bytes: int) -> int:
        """Give where a field of `n_bytes` lies; 0 where it has its default value."""
        place = self.places[slot] if slot < len(self.places) else 0
        if place and not 4 <= place <= self.n_bytes - n_bytes:
            raise self.buffer.bad(self.at, f"found field {slot} at byte {place} of a table of {self.n_bytes} bytes")
        return self.at + place if place else 0

    def number(self, slot: int, code: str, default: int = 0) -> int:
        """Give a number by its code in `struct`."""
        at = self.place(slot, struct.calcsize(code))
        return self.buffer.number(at, code) if at else default

    def table(self, slot: int) -> Table | None:
        """Give a table that this one holds."""
        at = self.place(slot, 4)
        return self.buffer.table(at) if at else None

    def vector(self, slot: int, width: int) -> tuple[int, int]:
        """Give where the elements of a vector begin, and how many it has; none where it is left out."""
        at = self.place(slot, 4)
        return self.buffer.vector(at, width) if at else (0, 0)

    def numbers(self, slot: int, code: str, limit: int) -> tuple[int, ...]:
        """Give a vector of at most `limit` numbers, by their code in `struct` (without byte order)."""
        width = struct.calcsize(f"<{code}")
        start, count = self.vector(slot, width)
        if count > limit:
            raise self.buffer.bad(start, f"found {count} numbers, expected at most {limit}")
        return struct.unpack(f"<{count}{code}", self.buffer.read(start, start + count * width))

    def tables(self, slot: int) -> Iterator[Table]:
        """Give the tables of a vector."""
        start, count = self.vector(slot, 4)
        for i in range(count):
            yield self.buffer.table(start + 4 * i)

    def text(self, slot: int) -> str:
        """Give a text, empty where it is left out.

        Raises:
            BadModelError: It is not UTF-8, or longer than `MAX_TEXT_BYTES`.
        """
        start, count = self.vector(slot, 1)
        if count > MAX_TEXT_BYTES:
            raise self.buffer.bad(start, f"found a text of {count} bytes, expected at most {MAX_TEXT_BYTES}")
        try:
            return self.buffer.read(start, start + count).decode()
        except UnicodeDecodeError as err:
            raise self.buffer.bad(start, "found text that is not Unicode, expected UTF-8") from err
