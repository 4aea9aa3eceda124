"""Protocol buffers, walked field by field over any range of a seekable file: no schema, no payload loaded.

A message is a range of the file. `Walker.fields` gives what lies in it, one level deep; a nested message is again a
range, so that gigabytes of values are stepped over by one seek. Whoever descends keeps count of the depth
(`check_depth`) and decides which field numbers mean what.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from functools import cache
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import MAX_HEADER_BYTES, read_exactly

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_DEPTH = 32
MAX_FIELDS = 1_500_000
MAX_NAME_BYTES = 8_192

_WIDTHS = {FIXED64: 8, FIXED32: 4}
_SMALL_WINDOW, _LARGE_WINDOW = 512, 1 << 16
_LOOKAHEAD = 16
_PIECE = 1 << 18
_HIGH = bytes(range(0x80, 0x100))
_NO_RUNS: frozenset[int] = frozenset()


class Field(NamedTuple):
    """A field of a message.

    Attributes:
        number: As the schema numbers it.
        wire: `VARINT`, `FIXED64`, `BYTES` or `FIXED32`.
        value: The number, unsigned; of `BYTES` the length; of a run how many numbers it has.
        start: Where the payload begins in the file; of a run, where its first key does.
        end: Where the payload ends.
    """

    number: int
    wire: int
    value: int
    start: int
    end: int


class Walker:
    """Walks messages in a file, in few and small reads: a window grows while it is read through, and shrinks at a seek.

    Args:
        file: Seekable; only its position is changed.
        n_bytes: Its length.
        where: How errors call the file.
    """

    def __init__(self, file: BinaryIO, n_bytes: int, where: str) -> None:
        self._file = file
        self._n_bytes = n_bytes
        self.where = where
        self._window = b""
        self._at = 0
        self._size = _SMALL_WINDOW
        self._n_fields = 0
        self._n_payload_bytes = 0

    def fields(self, start: int, end: int, runs: Set[int] = _NO_RUNS) -> Iterator[Field]:
        """Give the fields of the message between two positions, in the order of the file.

        Args:
            start: Where the message begins.
            end: Where it ends; no field may reach beyond.
            runs: Numbers of repeated fields whose neighbours are given as one `Field` where they are not packed.

        Raises:
            BadModelError: A truncated or overlong number, a payload longer than its message, a group, more than
                `MAX_FIELDS` fields.
        """
        position = start
        while position < end:
            begin = position
            # Most keys and lengths have one byte: those are taken here, without a call.
            at = position - self._at
            window = self._window
            if 0 <= at < len(window) - _LOOKAHEAD and window[at] < 0x80:
                key, position = window[at], position + 1
            else:
                key, position = self.varint(position, end)
            number, wire = key >> 3, key & 7
            self._n_fields += 1
            if self._n_fields > MAX_FIELDS:
                raise self.bad(begin, f"found more than {MAX_FIELDS} fields, expected a model's graph")
            if not 0 < number < 1 << 29:
                raise self.bad(begin, f"found field number {number}, expected 1 to 2^29 - 1")
            if wire == BYTES:
                at = position - self._at
                window = self._window
                if 0 <= at < len(window) - _LOOKAHEAD and window[at] < 0x80 and position < end:
                    value, position = window[at], position + 1
                else:
                    value, position = self.varint(position, end)
                after = position + value
                if after > end:
                    raise self.bad(begin, f"found a field of {value} bytes, expected at most {end - position}")
            elif wire == VARINT:
                value, after = self.varint(position, end)
            elif wire in _WIDTHS:
                after = position + _WIDTHS[wire]
                if after > end:
                    raise self.bad(begin, f"found {end - position} bytes of a number, expected {_WIDTHS[wire]}")
                value = 0 if number in runs else int.from_bytes(self._peek(position, after), "little")
            else:
                raise self.bad(begin, f"found wire type {wire}, expected 0, 1, 2 or 5")
            if number in runs and wire != BYTES:
                value, after = self._find_run_end(begin, position, after, end, wire)
                position = begin
            yield Field(number, wire, value, position, after)
            position = after

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """Give the number that begins at a position, and where it ends.

        Raises:
            BadModelError: It reaches beyond `end`, or has more than 64 bits.
        """
        at = position - self._at
        if not 0 <= at < len(self._window) - _LOOKAHEAD:
            self._load(position)
            at = position - self._at
        window = self._window
        n_left = min(end - position, len(window) - at)
        value = 0
        for i in range(min(n_left, 10)):
            byte = window[at + i]
            value |= (byte & 0x7F) << 7 * i
            if byte < 0x80:
                if value >> 64:
                    break
                return value, position + i + 1
        if n_left < 10 and not value >> 64:
            raise self.bad(position, f"ended early, found {max(n_left, 0)} bytes of an unfinished number")
        raise self.bad(position, "found a number of more than 64 bits, expected at most 64")

    def read(self, start: int, end: int) -> bytes:
        """Give the bytes of a range; `MAX_HEADER_BYTES` in all, so that a graph, but no weights, may be read.

        Raises:
            BadModelError: More than that were asked for.
        """
        self._n_payload_bytes += end - start
        if self._n_payload_bytes > MAX_HEADER_BYTES:
            raise self.bad(start, f"found a graph of more than {MAX_HEADER_BYTES} bytes, expected less")
        return self._peek(start, end)

    def text(self, field: Field) -> str:
        """Give a name.

        Raises:
            BadModelError: It is no text in UTF-8, or longer than `MAX_NAME_BYTES`.
        """
        if field.wire != BYTES or field.value > MAX_NAME_BYTES:
            found = f"{field.value} bytes" if field.wire == BYTES else "a number"
            raise self.bad(field.start, f"found {found}, expected a name of at most {MAX_NAME_BYTES} bytes")
        try:
            return self.read(field.start, field.end).decode()
        except UnicodeDecodeError as err:
            raise self.bad(field.start, "found a name that is not Unicode text, expected UTF-8") from err

    def iter_numbers(self, start: int, end: int, number: int, width: int) -> Iterator[NDArray[np.uint8]]:
        """Give the numbers of one repeated field of a message, packed or not, as little-endian bytes.

        Args:
            start: Where the message begins.
            end: Where it ends.
            number: The field.
            width: Bytes of each: 4 or 8 for fixed ones; 0 for varints, which are given in 8.

        Raises:
            BadModelError: The field is of another type.
        """
        import numpy as np

        for field in self.fields(start, end, frozenset((number,))):
            if field.number != number:
                continue
            if field.wire not in (BYTES, VARINT if width == 0 else FIXED32 if width == 4 else FIXED64):
                raise self.bad(field.start, f"found wire type {field.wire}, expected numbers of field {number}")
            is_run = field.wire != BYTES
            if width == 0:
                yield from self._iter_varints(field, is_run)
                continue
            n_key = (field.end - field.start) // field.value - width if is_run else 0
            step = n_key + width
            if (field.end - field.start) % step:
                raise self.bad(field.start, f"found {field.value} bytes, expected a multiple of {width}")
            for at in range(field.start, field.end, _PIECE // step * step):
                piece = read_exactly(self._file, at, min(_PIECE // step * step, field.end - at), self.where)
                items = np.frombuffer(piece, np.uint8).reshape(-1, step)
                yield np.ascontiguousarray(items[:, n_key:]).reshape(-1)

    def bad(self, position: int, finding: str) -> BadModelError:
        """Give the error for what was found at a position."""
        return BadModelError(
            f"{self.where}: at byte {position}: {finding}", hint="fetch the file again, or export it again"
        )

    def _iter_varints(self, field: Field, is_run: bool) -> Iterator[NDArray[np.uint8]]:
        rest, n_seen = b"", 0
        for at in range(field.start, field.end, _PIECE):
            piece = rest + read_exactly(self._file, at, min(_PIECE, field.end - at), self.where)
            values, n_used = decode_varints(piece)
            if values is None or len(piece) - n_used > 10:
                raise self.bad(at, "found a number of more than 64 bits, expected at most 64")
            rest = piece[n_used:]
            if is_run:
                # Keys and values take turns, across pieces too.
                values, n_seen = values[1 - n_seen % 2 :: 2], n_seen + len(values)
            yield values.view("u1") if values.flags.c_contiguous else values.copy().view("u1")
        if rest:
            raise self.bad(field.end, f"ended early, found {len(rest)} bytes of an unfinished number")

    def _find_run_end(self, begin: int, position: int, after: int, end: int, wire: int) -> tuple[int, int]:
        pattern = _run_pattern(self._peek(begin, position), wire)
        n_key, count = position - begin, 1
        while after < end:
            at = after - self._at
            if not 0 <= at < len(self._window) - _LOOKAHEAD:
                self._load(after)
                at = after - self._at
            match = pattern.match(self._window, at, min(len(self._window), at + end - after))
            if match is None:
                break
            found = match.group()
            # A number has one byte below 0x80, its last; so has a key.
            count += len(found.translate(None, _HIGH)) // 2 if wire == VARINT else len(found) // (n_key + _WIDTHS[wire])
            after += len(found)
        return count, after

    def _peek(self, start: int, end: int) -> bytes:
        at = start - self._at
        if at >= 0 and at + end - start <= len(self._window):
            return self._window[at : at + end - start]
        return read_exactly(self._file, start, end - start, self.where)

    def _load(self, position: int) -> None:
        follows = 0 <= position - self._at <= len(self._window) and self._window
        self._size = min(2 * self._size, _LARGE_WINDOW) if follows else _SMALL_WINDOW
        size = max(min(self._size, self._n_bytes - position), 0)
        self._window = read_exactly(self._file, position, size, self.where)
        self._at = position


def check_depth(depth: int, where: str) -> None:
    """Refuse messages nested deeper than `MAX_DEPTH`.

    Raises:
        BadModelError: They are.
    """
    if depth > MAX_DEPTH:
        raise BadModelError(
            f"{where}: found messages nested more than {MAX_DEPTH} deep, expected fewer", hint="export the model again"
        )


def decode_varints(data: bytes) -> tuple[NDArray[np.uint64] | None, int]:
    """Give all whole numbers at the start of `data` and how many bytes they take; None where one exceeds 64 bits."""
    import numpy as np

    items = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(items < 0x80)
    if not len(ends):
        return np.zeros(0, np.uint64), 0
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    longest = int(lengths.max())
    if longest > 10 or (longest == 10 and bool((items[ends[lengths == 10]] > 1).any())):
        return None, 0
    values = (items[starts] & 0x7F).astype(np.uint64)
    for i in range(1, longest):
        has = lengths > i
        values[has] |= (items[starts[has] + i] & 0x7F).astype(np.uint64) << np.uint64(7 * i)
    return values, int(ends[-1]) + 1


@cache
def _run_pattern(key: bytes, wire: int) -> re.Pattern[bytes]:
    payload = rb"[\x80-\xff]{0,9}+[\x00-\x7f]" if wire == VARINT else rb"[\x00-\xff]{%d}" % _WIDTHS[wire]
    return re.compile(rb"(?:%s%s)++" % (re.escape(key), payload))
