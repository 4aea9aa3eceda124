"""FlatBuffers read in place: tables and vectors by position, each checked against the bytes before it is followed.

Source: https://flatbuffers.dev/internals/, "Encoding".
"""

from __future__ import annotations

import struct
from typing import BinaryIO, NamedTuple

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import quote, read_exactly

_PAGE_BYTES = 65_536
_MAX_PAGES = 64
_MAX_TEXT_BYTES = 64 << 20
"""Of all texts together: many members may point to one."""


class Vector(NamedTuple):
    """Where a vector's items lie in the file."""

    start: int
    n_items: int


class FlatBuffer:
    """One buffer inside a file. Positions are the file's; 0 stands for a member that is absent.

    Args:
        file: The file.
        start: Where the buffer begins.
        end: Where it ends.
        name: How errors call the file.
        hint: What errors advise.
    """

    def __init__(self, file: BinaryIO, start: int, end: int, name: str, hint: str) -> None:
        self._file, self._start, self._end, self._name, self._hint = file, start, end, name, hint
        self._pages: dict[int, bytes] = {}
        self._text_bytes_left = _MAX_TEXT_BYTES

    def bad(self, finding: str) -> BadModelError:
        """Make an error that names the file."""
        return BadModelError(f"{self._name}: {finding}", hint=self._hint)

    def root(self) -> int:
        """Give the position of the buffer's first table."""
        return self._follow(self._start)

    def scalar(self, table: int, slot: int, code: str, default: float = 0) -> int | float:
        """Give a number of a table, or its default where it is left out."""
        at = self._member(table, slot)
        return self._unpack(at, code) if at else default

    def table(self, table: int, slot: int) -> int:
        """Give the position of a table's table; 0 where there is none."""
        at = self._member(table, slot)
        return self._follow(at) if at else 0

    def tables(self, table: int, slot: int, most: int) -> list[int]:
        """Give the positions of a vector's tables.

        Raises:
            BadModelError: There are more than `most`.
        """
        found = self.vector(table, slot, 4)
        if found.n_items > most:
            raise self.bad(f"has a list of {found.n_items} tables, expected at most {most}")
        return [self._follow(found.start + 4 * i) for i in range(found.n_items)]

    def vector(self, table: int, slot: int, item_bytes: int) -> Vector:
        """Give the place of a vector of numbers or structs; an absent one is empty."""
        at = self._member(table, slot)
        if not at:
            return Vector(self._start, 0)
        return self._items(self._follow(at), item_bytes)

    def _items(self, at: int, item_bytes: int) -> Vector:
        count = int(self._unpack(at, "I"))
        if count * item_bytes > self._end - at - 4:
            raise self.bad(f"has {count} items of {item_bytes} bytes at byte {at}, expected them before {self._end}")
        return Vector(at + 4, count)

    def text(self, table: int, slot: int) -> str:
        """Give a table's text; empty where it is absent."""
        return self._decode(self.vector(table, slot, 1))

    def texts(self, table: int, slot: int, most: int) -> list[str]:
        """Give a vector's texts.

        Raises:
            BadModelError: There are more than `most`.
        """
        return [self._decode(self._items(at, 1)) for at in self.tables(table, slot, most)]

    def read(self, start: int, n_bytes: int) -> bytes:
        """Give bytes of the buffer."""
        if not self._start <= start <= self._end - n_bytes:
            raise self.bad(f"points to byte {start}, expected {self._start} to {self._end - n_bytes}")
        if n_bytes > _PAGE_BYTES:
            return read_exactly(self._file, start, n_bytes, self._name)
        number, offset = divmod(start, _PAGE_BYTES)
        found = self._page(number)[offset : offset + n_bytes]
        return found if len(found) == n_bytes else found + self._page(number + 1)[: n_bytes - len(found)]

    def _decode(self, place: Vector) -> str:
        self._text_bytes_left -= place.n_items
        if self._text_bytes_left < 0:
            raise self.bad(f"has more than {_MAX_TEXT_BYTES} bytes of text, expected at most so many")
        raw = self.read(place.start, place.n_items)
        try:
            return raw.decode()
        except UnicodeDecodeError as err:
            raise self.bad(f"has the text {quote(raw)}, expected UTF-8") from err

    def _page(self, number: int) -> bytes:
        if number not in self._pages:
            if len(self._pages) >= _MAX_PAGES:
                del self._pages[next(iter(self._pages))]
            start = number * _PAGE_BYTES
            self._pages[number] = read_exactly(self._file, start, min(_PAGE_BYTES, self._end - start), self._name)
        return self._pages[number]

    def _unpack(self, at: int, code: str) -> int | float:
        unpacker = struct.Struct("<" + code)
        value: int | float = unpacker.unpack(self.read(at, unpacker.size))[0]
        return value

    def _follow(self, at: int) -> int:
        return at + int(self._unpack(at, "I"))

    def _member(self, table: int, slot: int) -> int:
        names = table - int(self._unpack(table, "i"))
        n_bytes, at = int(self._unpack(names, "H")), 4 + 2 * slot
        offset = int(self._unpack(names + at, "H")) if at + 2 <= n_bytes else 0
        return table + offset if offset else 0
