"""Large JSON and UBJSON documents, walked without building them: arrays of numbers stay in the file until asked for.

Members of one named list may be shrunk to something small as soon as each is read, so that a document of many
thousand equal objects takes little memory.

Sources: RFC 8259 (JSON) and https://ubjson.org, draft 12, sections "Types" and "Optimized Format".
"""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import fill, measure, quote, read_exactly

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_JSON_BYTES = 256 << 20
"""JSON is held as text while it is walked; a larger model is refused."""
MAX_VALUES = 500_000
"""Values that are kept: not those within arrays of numbers, nor those of shrunk objects."""
MAX_DEPTH = 64
MAX_NUMBERS = 1 << 24
MAX_JSON_NUMBERS = 1 << 22
"""Numbers of one array, which is read whole."""

# Possessive quantifiers: a text without an end is refused without going back over it.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_TOKEN = re.compile(rb"[ \t\r\n]*+(" + _STRING + rb'|[{}\[\],:]|[^\s{}\[\],:"]++)')
_NO_NESTING = re.compile(rb'\[[^\[\]{}"]*+\]')
_SPACE = b" \t\r\n"
_CODES = {b"i": "i1", b"U": "u1", b"I": ">i2", b"l": ">i4", b"L": ">i8", b"d": ">f4", b"D": ">f8"}
_UNPACKERS = {
    marker: struct.Struct(">" + code)
    for marker, code in zip(b"iUIlLdD", ("b", "B", "h", "i", "q", "f", "d"), strict=True)
}
_CONSTANTS = {ord("T"): True, ord("F"): False, ord("Z"): None}
_WINDOW_BYTES = 16_384

Shrink = Callable[[dict[str, Any], int, int], object]


class Numbers(NamedTuple):
    """An array of numbers, by where it lies in the file.

    Attributes:
        code: numpy's code of its items; empty for JSON text.
    """

    start: int
    end: int
    n_items: int
    code: str


class Document(Protocol):
    """A JSON or UBJSON file."""

    def parse(self, start: int = 0, end: int | None = None) -> object:
        """Read the value that lies between two positions, as Python objects with `Numbers` in them.

        Raises:
            BadModelError: It is damaged, too large or too deeply nested.
        """
        ...

    def read_numbers(self, found: object, dtype: str) -> NDArray[Any]:
        """Give an array of numbers that `parse` found, as ``"f4"``, ``"f8"`` or ``"i8"``.

        Raises:
            BadModelError: It holds something else.
        """
        ...


class _Walker:
    """What both notations share: the limits, and what is shrunk."""

    hint = "fetch the file again, or save the model again"

    def __init__(self, file: BinaryIO, name: str, shrunk_key: str = "", shrink: Shrink | None = None) -> None:
        self._file, self._name = file, name
        self._shrunk_key, self._shrink = shrunk_key, shrink
        self._values_left = 0

    def _bad(self, finding: str) -> BadModelError:
        return BadModelError(f"{self._name}: {finding}", hint=self.hint)

    def _check_count(self, count: int, most: int) -> None:
        if count > most:
            raise self._bad(f"has an array of {count} numbers, expected at most {most}")

    def _count_value(self, depth: int) -> None:
        self._values_left -= 1
        if self._values_left < 0:
            raise self._bad(f"holds more than {MAX_VALUES} values, expected a model")
        if depth > MAX_DEPTH:
            raise self._bad(f"is nested deeper than {MAX_DEPTH} levels, expected a model")

    def _shrunk(self, item: object, key: str, start: int, end: int, left: int) -> object:
        if self._shrink is None or key != self._shrunk_key or not isinstance(item, dict):
            return item
        self._values_left = left - 1
        return self._shrink(item, start, end)

    def _checked(self, items: list[Any], dtype: str) -> NDArray[Any]:
        import numpy as np

        kinds = (int, bool) if dtype[0] == "i" else (int, float, bool)
        if not all(type(item) in kinds for item in items):
            raise self._bad(f"has {quote(items)}, expected an array of {'whole ' * (dtype[0] == 'i')}numbers")
        try:
            with np.errstate(over="ignore"):  # what float32 cannot hold is infinite
                return np.array(items, dtype)
        except OverflowError as err:
            raise self._bad(f"has {quote(items)}, expected numbers of 64 bits") from err


class JsonDocument(_Walker):
    """A JSON file, of at most `MAX_JSON_BYTES`."""

    _data: bytes | bytearray = b""
    _base = 0

    def parse(self, start: int = 0, end: int | None = None) -> object:
        """Read the value that lies between two positions; see `Document`."""
        self._values_left = MAX_VALUES
        n_bytes = measure(self._file)
        end = n_bytes if end is None else end
        if end - start > MAX_JSON_BYTES:
            raise BadModelError(
                f"{self._name}: is JSON of {n_bytes} bytes, expected at most {MAX_JSON_BYTES}",
                hint="save the model in its binary notation (XGBoost: a name that ends in .ubj)",
            )
        self._data, self._base = bytearray(end - start), start
        self._file.seek(start)
        if fill(self._file, memoryview(self._data)) < len(self._data):
            raise self._bad("ended early, expected the bytes that were there before")
        try:
            value, at = self._value(0, 0, "")
            if self._data[at:].strip(_SPACE):
                raise self._bad(f"has more text after byte {at}, expected one JSON value")
        finally:
            self._data = b""
        return value

    def read_numbers(self, found: object, dtype: str) -> NDArray[Any]:
        """Give an array of numbers; see `Document`."""
        if not isinstance(found, Numbers):
            return self._checked(found if isinstance(found, list) else [found], dtype)
        self._check_count(found.n_items, MAX_JSON_NUMBERS)
        text = read_exactly(self._file, found.start, found.end - found.start, self._name)
        try:
            items = json.loads(text)
        except (ValueError, RecursionError) as err:
            raise self._bad(f"has the array {quote(text)}, expected numbers") from err
        return _to_float32(self._checked(items, "f8"), text) if dtype == "f4" else self._checked(items, dtype)

    def _token(self, at: int) -> tuple[bytes, int]:
        match = _TOKEN.match(self._data, at)
        if match is None:
            left = bytes(self._data[at : at + 20])
            raise self._bad(
                f"is no whole JSON text (found {quote(left)} at byte {self._base + at}), expected more of it"
            )
        return match[1], match.end()

    def _value(self, at: int, depth: int, key: str) -> tuple[Any, int]:
        self._count_value(depth)
        token, end = self._token(at)
        if token.startswith(b'"'):
            return self._text(token), end
        if token == b"{":
            return self._object(end, depth)
        if token == b"[":
            flat = _NO_NESTING.match(self._data, end - 1)
            if flat is None:
                return self._list(end, depth, key)
            start, stop = flat.span()
            is_empty = not self._data[start + 1 : stop - 1].strip(_SPACE)
            count = 0 if is_empty else self._data.count(b",", start, stop) + 1
            return Numbers(self._base + start, self._base + stop, count, ""), stop
        return self._scalar(token, end), end

    def _object(self, at: int, depth: int) -> tuple[dict[str, Any], int]:
        members: dict[str, Any] = {}
        token, at = self._token(at)
        if token == b"}":
            return members, at
        while True:
            if not token.startswith(b'"'):
                raise self._unexpected(token, at, "a member's name")
            name = sys.intern(self._text(token))
            if name in members:
                raise self._bad(f"has the member {quote(name)} twice in one object, expected once")
            token, at = self._token(at)
            if token != b":":
                raise self._unexpected(token, at, "':'")
            members[name], at = self._value(at, depth + 1, name)
            token, at = self._token(at)
            if token == b"}":
                return members, at
            if token != b",":
                raise self._unexpected(token, at, "',' or '}'")
            token, at = self._token(at)

    def _list(self, at: int, depth: int, key: str) -> tuple[list[Any], int]:
        items: list[Any] = []
        while True:
            left, start = self._values_left, at
            value, at = self._value(at, depth + 1, "")
            items.append(self._shrunk(value, key, self._base + start, self._base + at, left))
            token, at = self._token(at)
            if token == b"]":
                return items, at
            if token != b",":
                raise self._unexpected(token, at, "',' or ']'")

    def _unexpected(self, token: bytes, end: int, wanted: str) -> BadModelError:
        return self._bad(f"has {quote(token)} before byte {self._base + end}, expected {wanted}")

    def _text(self, token: bytes) -> str:
        try:
            text = token[1:-1].decode() if b"\\" not in token else str(json.loads(token))
            text.encode()
        except ValueError as err:
            raise self._bad(f"has the text {quote(token)}, expected UTF-8") from err
        return text

    def _scalar(self, token: bytes, end: int) -> object:
        try:
            return json.loads(token)
        except ValueError as err:
            raise self._unexpected(token, end, "a JSON value") from err


def _to_float32(values: NDArray[Any], text: bytes) -> NDArray[Any]:
    """Round decimals to float32 once: by way of float64 they may land on a tie that they are not."""
    import numpy as np

    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
        towards = np.where(values > rounded, np.float32(np.inf), np.float32(-np.inf))
        other = np.nextafter(rounded, towards)
        is_tie = (values != rounded) & (np.float64(0.5) * rounded + np.float64(0.5) * other == values)
    if is_tie.any():
        decimals = text.strip(_SPACE + b"[]").split(b",")
        for i in np.flatnonzero(is_tie):
            exact, tie = Fraction(decimals[i].decode()), Fraction(float(values[i]))
            if exact != tie:
                rounded[i] = (max if exact > tie else min)(rounded[i], other[i])
    return rounded


class UbjsonDocument(_Walker):
    """A UBJSON file: typed arrays are skipped over, so that little more than the names is read."""

    _buffer = b""
    _at = 0
    _buffer_start = 0
    _end = 0

    def parse(self, start: int = 0, end: int | None = None) -> object:
        """Read the value that lies between two positions; see `Document`."""
        self._values_left = MAX_VALUES
        self._end = measure(self._file) if end is None else end
        self._buffer, self._buffer_start, self._at = b"", start, 0
        value = self._value(self._take(1)[0], 0, "")
        if self._position != self._end:
            raise self._bad(f"has {self._end - self._position} more bytes, expected one UBJSON value")
        return value

    def read_numbers(self, found: object, dtype: str) -> NDArray[Any]:
        """Give an array of numbers; see `Document`."""
        import numpy as np

        if not isinstance(found, Numbers):
            return self._checked(found if isinstance(found, list) else [found], dtype)
        self._check_count(found.n_items, MAX_NUMBERS)
        if dtype[0] == "i" and found.code[-2] == "f":
            raise self._bad("has an array of floats, expected whole numbers")
        stored = np.frombuffer(read_exactly(self._file, found.start, found.end - found.start, self._name), found.code)
        with np.errstate(over="ignore", invalid="ignore"):  # as in lists; a signaling NaN is a NaN
            return stored.astype(dtype)

    @property
    def _position(self) -> int:
        return self._buffer_start + self._at

    def _take(self, n_bytes: int) -> bytes:
        stop = self._at + n_bytes
        if stop > len(self._buffer):
            self._refill(n_bytes)
            stop = n_bytes
        taken = self._buffer[self._at : stop]
        self._at = stop
        return taken

    def _refill(self, n_bytes: int) -> None:
        start = self._position
        self._check_left(n_bytes)
        self._buffer = read_exactly(self._file, start, min(max(n_bytes, _WINDOW_BYTES), self._end - start), self._name)
        self._buffer_start, self._at = start, 0

    def _check_left(self, n_bytes: int) -> None:
        left = self._end - self._position
        if n_bytes > left:
            raise self._bad(f"ended early, found {left} of {n_bytes} bytes at byte {self._position}")

    def _length(self) -> int:
        marker = self._take(1)[0]
        if marker not in b"iUIlL":
            raise self._bad(f"has a length of the type {quote(chr(marker))}, expected a whole number")
        unpacker = _UNPACKERS[marker]
        (length,) = unpacker.unpack(self._take(unpacker.size))
        if length < 0:
            raise self._bad(f"has the length {length}, expected at least 0")
        self._check_left(length)
        return int(length)

    def _text(self) -> str:
        raw = self._take(self._length())
        try:
            return raw.decode()
        except UnicodeDecodeError as err:
            raise self._bad(f"has the text {quote(raw)}, expected UTF-8") from err

    def _value(self, marker: int, depth: int, key: str) -> Any:
        self._count_value(depth)
        if marker in _UNPACKERS:
            unpacker = _UNPACKERS[marker]
            return unpacker.unpack(self._take(unpacker.size))[0]
        if marker == ord("S"):
            return self._text()
        if marker == ord("{"):
            return self._object(depth)
        if marker == ord("["):
            return self._array(depth, key)
        if marker in _CONSTANTS:
            return _CONSTANTS[marker]
        raise self._bad(f"has a value of the type {quote(chr(marker))} at byte {self._position}, expected UBJSON")

    def _object(self, depth: int) -> dict[str, Any]:
        members: dict[str, Any] = {}
        while self._take(1) != b"}":
            self._at -= 1
            name = sys.intern(self._text())
            if name in members:
                raise self._bad(f"has the member {quote(name)} twice in one object, expected once")
            members[name] = self._value(self._take(1)[0], depth + 1, name)
        return members

    def _array(self, depth: int, key: str) -> list[Any] | Numbers:
        mark = self._take(1)
        if mark == b"$":
            return self._numbers()
        items: list[Any] = []
        if mark == b"#":
            for _ in range(self._length()):
                items.append(self._item(self._take(1)[0], depth, key))
            return items
        while mark != b"]":
            items.append(self._item(mark[0], depth, key))
            mark = self._take(1)
        return items

    def _item(self, marker: int, depth: int, key: str) -> object:
        left, start = self._values_left, self._position - 1
        value = self._value(marker, depth + 1, "")
        return self._shrunk(value, key, start, self._position, left)

    def _numbers(self) -> Numbers:
        kind, mark = self._take(1), self._take(1)
        if kind not in _CODES or mark != b"#":
            raise self._bad(f"has an array of the type {quote(kind)}, expected numbers and their count")
        count, start = self._length(), self._position
        n_bytes = count * _UNPACKERS[kind[0]].size
        self._check_left(n_bytes)
        self._at += n_bytes
        return Numbers(start, start + n_bytes, count, _CODES[kind])
