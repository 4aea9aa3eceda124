"""Numbers, text and bytes of a pickle: what stands in the stream behind an opcode, checked before it is read."""

from __future__ import annotations

import codecs
import struct
import warnings
from collections.abc import Callable

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import ended_early, quote
from dvc_modelver.formats.pickle_records import Span
from dvc_modelver.formats.pickle_source import Source

MAX_TEXT_BYTES = 32 << 20
"""Of one text, and of one byte string that is not left in the file."""

MAX_LINE_BYTES = 8 << 20
"""Of a text in protocols 0 and 1, whose length is not known beforehand."""

MAX_INTEGER_BYTES = 1024
"""Of one integer: what Python prints without complaint."""

_OBJECT_BYTES = 60
_MAX_NAME_BYTES = 10_000


class Literals:
    """Reads the values that opcodes push.

    The argument of each method is the unsigned number behind the opcode, 0 where there is none.

    Args:
        source: The pickle, behind the opcode and that number.
        charge: Told of the memory that a value needs before it is read; raises where it is too much.
        bad: Makes an error of what was found and expected.
        max_inline_bytes: Longer byte strings become a `Span`; None for none.
    """

    def __init__(
        self,
        source: Source,
        charge: Callable[[int], None],
        bad: Callable[[str], BadModelError],
        max_inline_bytes: int | None,
    ) -> None:
        self._source = source
        self._charge = charge
        self._bad = bad
        self._max_inline_bytes = max_inline_bytes

    def read_uint(self, n_bytes: int) -> int:
        """Give the little-endian unsigned number in the next bytes; 0 for none of them."""
        return int.from_bytes(self._source.read(n_bytes), "little")

    def read_small(self, value: int) -> int:
        """Give the number itself."""
        return value

    def read_signed(self, value: int) -> int:
        """Give the number with the sign that its 32 bits say."""
        return value - (1 << 32) if value >> 31 else value

    def read_integer(self, n_bytes: int) -> int:
        """Give an integer of any length."""
        if n_bytes > MAX_INTEGER_BYTES:
            raise self._bad(f"has an integer of {n_bytes} bytes, expected at most {MAX_INTEGER_BYTES}")
        self._charge(n_bytes)
        return int.from_bytes(self._source.read(n_bytes), "little", signed=True)

    def read_int(self, _: int) -> int | bool:
        """Give an integer written as a line; ``00`` and ``01`` are the booleans."""
        line = self._source.read_line(2 * MAX_INTEGER_BYTES)
        return line == b"01" if line in (b"00", b"01") else self._parse_integer(line)

    def read_long(self, _: int) -> int:
        """Give an integer written as a line, perhaps with an ``L``."""
        return self._parse_integer(self._source.read_line(2 * MAX_INTEGER_BYTES).removesuffix(b"L"))

    def read_float(self, _: int) -> float:
        """Give a number written as a line."""
        line = self._source.read_line(2 * MAX_INTEGER_BYTES)
        try:
            return float(line)
        except ValueError:
            raise self._bad(f"found the number {quote(line)}, expected digits") from None

    def read_binary_float(self, bits: int) -> float:
        """Give the number of the eight bytes that were read, which are big-endian."""
        value: float = struct.unpack(">d", bits.to_bytes(8, "little"))[0]
        return value

    def read_text(self, n_bytes: int) -> str:
        """Give a text in UTF-8."""
        self._check_length(n_bytes)
        self._charge(_OBJECT_BYTES + 4 * n_bytes)
        return self._decode(self._source.read(n_bytes), "utf-8")

    def read_escaped_text(self, _: int) -> str:
        """Give a text written as a line with escapes."""
        line = self._source.read_line(MAX_LINE_BYTES)
        self._charge(_OBJECT_BYTES + 4 * len(line))
        return self._decode(line, "raw_unicode_escape")

    def read_name(self) -> str:
        """Give a name written as a line."""
        return self._decode(self._source.read_line(_MAX_NAME_BYTES), "utf-8")

    def read_bytes(self, n_bytes: int) -> bytes | Span:
        """Give bytes, or where they are."""
        self._check_left(n_bytes)
        if self._max_inline_bytes is not None and n_bytes > self._max_inline_bytes:
            self._charge(_OBJECT_BYTES)
            span = Span(self._source.position, n_bytes)
            self._source.skip(n_bytes)
            return span
        self._check_length(n_bytes)
        self._charge(_OBJECT_BYTES + n_bytes)
        return self._source.read(n_bytes)

    def read_old_text(self, n_bytes: int) -> str | bytes | Span:
        """Give what Python 2 called a string: text where it is UTF-8, else bytes."""
        data = self.read_bytes(n_bytes)
        return self._decode_old(data) if isinstance(data, bytes) else data

    def read_quoted_text(self, _: int) -> str | bytes:
        """Give what Python 2 called a string, written as a line in quotes."""
        line = self._source.read_line(MAX_LINE_BYTES).strip()
        self._charge(_OBJECT_BYTES + len(line))
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise self._bad(f"has the string {quote(line[:200])}, expected quotes around it")
        try:
            with warnings.catch_warnings():
                # An escape that Python does not have stands for itself.
                warnings.simplefilter("ignore", DeprecationWarning)
                text = codecs.escape_decode(line[1:-1])[0]
            return self._decode_old(text)
        except ValueError:
            raise self._bad(f"has the string {quote(line[:200])}, expected Python's escapes") from None

    def _check_left(self, n_bytes: int) -> None:
        left = self._source.left
        if left is not None and n_bytes > left:
            raise ended_early(self._source.name, left, n_bytes)

    def _check_length(self, n_bytes: int) -> None:
        self._check_left(n_bytes)
        if n_bytes > MAX_TEXT_BYTES:
            raise self._bad(f"has a text of {n_bytes} bytes, expected at most {MAX_TEXT_BYTES}")

    def _parse_integer(self, digits: bytes) -> int:
        try:
            return int(digits, 10)
        except ValueError:
            raise self._bad(f"found the integer {quote(digits)}, expected digits") from None

    def _decode(self, data: bytes, encoding: str) -> str:
        try:
            return data.decode(encoding, "surrogatepass")
        except UnicodeError:
            raise self._bad(f"has the text {quote(data[:200])}, expected {encoding}") from None

    def _decode_old(self, data: bytes) -> str | bytes:
        self._charge(4 * len(data))
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data
