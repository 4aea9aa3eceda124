"""Tables of sorted keys, as LevelDB defined them and TensorFlow writes them for its checkpoints.

A table is data blocks, one index block that says where they are, and a footer that says where that is. In a
block each key is given by how much of the one before it repeats. A table here is an index, small enough to be
in memory whole; every length in it is checked against what is there.

Sources: https://github.com/google/leveldb/blob/main/doc/table_format.md, and for the checksum RFC 3720,
appendix B.4 (CRC-32C), masked as ``leveldb/util/crc32c.h`` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import quote

MAGIC = bytes.fromhex("57fb808b247547db")
FOOTER_BYTES = 48
MAX_ENTRIES = 100_000
MAX_KEY_BYTES = 8_192
MAX_ALL_KEYS_BYTES = 32 << 20

_TRAILER_BYTES = 5
_MAX_CHECKED_BYTES = 1 << 20
_MASK_DELTA = 0xA282EAD8
_HINT = "fetch the file again, or save the checkpoint again"


class Table:
    """A table in memory.

    Args:
        data: The whole file.
        where: How errors call it.

    Raises:
        BadModelError: It has no footer.
    """

    def __init__(self, data: bytes, where: str) -> None:
        self._data = data
        self._where = where
        if len(data) < FOOTER_BYTES or not data.endswith(MAGIC):
            raise self.bad("does not end as a table of TensorFlow or LevelDB does, expected its last bytes to say so")

    def iter_entries(self) -> Iterator[tuple[bytes, int, int]]:
        """Give every key, in their order, with the range of the file that its value takes.

        Raises:
            BadModelError: Blocks that overlap, are compressed, damaged or out of order; keys out of order; more than
                `MAX_ENTRIES` entries or `MAX_ALL_KEYS_BYTES` bytes of keys.
        """
        footer_at = len(self._data) - FOOTER_BYTES
        position = footer_at
        for _ in range(2):
            _, position = self._varint(position, footer_at + 40)
        begin, position = self._varint(position, footer_at + 40)
        length, position = self._varint(position, footer_at + 40)
        n_entries = n_key_bytes = block_end = 0
        last = None
        for _, handle_at, handle_end in self._iter_block(begin, length):
            block_at, position = self._varint(handle_at, handle_end)
            block_bytes, _ = self._varint(position, handle_end)
            if block_at < block_end:
                raise self.bad(f"has a block at byte {block_at}, expected it at {block_end} or later")
            block_end = block_at + block_bytes
            for key, value_at, value_end in self._iter_block(block_at, block_bytes):
                if last is not None and key <= last:
                    raise self.bad(f"has the key {quote(key)} after {quote(last)}, expected ascending keys")
                n_entries += 1
                n_key_bytes += len(key)
                if n_entries > MAX_ENTRIES or n_key_bytes > MAX_ALL_KEYS_BYTES:
                    raise self.bad(f"has more than {MAX_ENTRIES} keys or {MAX_ALL_KEYS_BYTES} bytes of them")
                last = key
                yield key, value_at, value_end

    def bad(self, finding: str) -> BadModelError:
        """Give the error for what was found in this table."""
        return BadModelError(f"{self._where}: {finding}", hint=_HINT)

    def _iter_block(self, begin: int, length: int) -> Iterator[tuple[bytes, int, int]]:
        position, end = begin, self._check_block(begin, length)
        key = b""
        while position < end:
            n_shared, position = self._varint(position, end)
            n_own, position = self._varint(position, end)
            n_value, position = self._varint(position, end)
            if n_shared > len(key) or n_own + n_value > end - position or n_shared + n_own > MAX_KEY_BYTES:
                raise self.bad(
                    f"has at byte {position} an entry of {n_shared} + {n_own} bytes of key and {n_value} of value, "
                    f"expected at most {len(key)} repeated, {MAX_KEY_BYTES} in all and {end - position} stored"
                )
            key = key[:n_shared] + self._data[position : position + n_own]
            position += n_own
            yield key, position, position + n_value
            position += n_value

    def _check_block(self, begin: int, length: int) -> int:
        """Check that a block is there, whole and not compressed; give where its entries end."""
        end = begin + length
        if length < 4 or end + _TRAILER_BYTES > len(self._data) - FOOTER_BYTES:
            raise self.bad(f"names a block of {length} bytes at byte {begin}, expected one inside the file")
        kind = self._data[end]
        if kind != 0:
            what = "is compressed by snappy" if kind == 1 else f"is of type {kind}"
            raise self.bad(f"has a block that {what}, expected plain ones, as TensorFlow writes them")
        stored = int.from_bytes(self._data[end + 1 : end + _TRAILER_BYTES], "little")
        if end <= _MAX_CHECKED_BYTES and mask(crc32c(self._data[begin : end + 1])) != stored:
            raise self.bad(f"has a damaged block at byte {begin}: its checksum is not {stored:#010x}")
        n_restarts = int.from_bytes(self._data[end - 4 : end], "little")
        if 4 * n_restarts + 4 > length:
            raise self.bad(f"has a block of {length} bytes with {n_restarts} restarts, expected fewer")
        return end - 4 - 4 * n_restarts

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = 0
        for i in range(min(end - position, 10)):
            byte = self._data[position + i]
            value |= (byte & 0x7F) << 7 * i
            if byte < 0x80:
                return value, position + i + 1
        raise self.bad(f"has an unfinished number at byte {position}, expected one of at most 64 bits")


def crc32c(data: bytes) -> int:
    """Give the CRC-32C of some bytes; one by one, for small ones."""
    table = _crc_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def mask(crc: int) -> int:
    """Give a checksum as it is stored: turned by 15 bits and moved by a constant."""
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def unmask(stored: int) -> int:
    """Give the checksum that `mask` made a stored one of."""
    turned = (stored - _MASK_DELTA) & 0xFFFFFFFF
    return (turned >> 17 | turned << 15) & 0xFFFFFFFF


@cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)  # noqa: PLW2901 - the same number, bit by bit
        table.append(crc)
    return tuple(table)
