"""A small writer of TensorFlow checkpoints, for files that TensorFlow would not write."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dvc_modelver.formats.sstable import MAGIC, crc32c, mask
from tests.formats.contract import Arrays

DTYPES = {"f4": 1, "f8": 2, "i4": 3, "u1": 4, "i2": 5, "i1": 6, "i8": 9, "b1": 10, "u2": 17, "f2": 19}


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, payload: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(payload)) + payload


def header(n_shards: int = 1, endianness: int = 0) -> bytes:
    return number(1, n_shards) + (number(2, endianness) if endianness else b"") + message(3, number(1, 1))


def entry(
    dtype: int = 1,
    shape: Iterable[int] = (),
    offset: int = 0,
    n_bytes: int = 4,
    shard: int = 0,
    slices: Iterable[Iterable[tuple[int, int] | None]] = (),
) -> bytes:
    axes = b"".join(message(2, number(1, axis)) for axis in shape)
    tiles = (
        b"".join(message(1, b"" if span is None else number(1, span[0]) + number(2, span[1])) for span in ranges)
        for ranges in slices
    )
    numbers = number(1, dtype) + number(3, shard) + number(4, offset) + number(5, n_bytes)
    return numbers + message(2, axes) + b"".join(message(7, tile) for tile in tiles)


def block(items: Iterable[tuple[bytes, bytes]], kind: int = 0) -> bytes:
    """Give a block with its trailer; keys repeat what they share with the one before."""
    content, last = b"", b""
    for key, value in items:
        n_shared = next(
            (i for i, (a, b) in enumerate(zip(last, key, strict=False)) if a != b), min(len(last), len(key))
        )
        content += varint(n_shared) + varint(len(key) - n_shared) + varint(len(value)) + key[n_shared:] + value
        last = key
    return sealed(content + bytes(4) + (1).to_bytes(4, "little"), kind)


def sealed(content: bytes, kind: int = 0) -> bytes:
    stored = content + bytes([kind])
    return stored + mask(crc32c(stored)).to_bytes(4, "little")


def table(*blocks: bytes, index: bytes | None = None) -> bytes:
    data, handles = b"", []
    for i, stored in enumerate(blocks):
        handles.append((b"%04d" % i, varint(len(data)) + varint(len(stored) - 5)))
        data += stored
    places = b""
    for stored in (block([]), block(handles) if index is None else index):
        places += varint(len(data)) + varint(len(stored) - 5)
        data += stored
    return data + places.ljust(40, b"\0") + MAGIC


def checkpoint(*items: tuple[bytes, bytes], first: bytes | None = None) -> bytes:
    return table(block([(b"", header() if first is None else first), *items]))


def write_checkpoint(index: Path, arrays: Arrays) -> None:
    data, items = b"", []
    for name in sorted(arrays):
        array = arrays[name]
        items.append((name.encode(), entry(DTYPES[array.dtype.str[1:]], array.shape, len(data), array.nbytes)))
        data += array.tobytes()
    index.write_bytes(table(block([(b"", header()), *items[:3]]), block(items[3:])))
    index.with_name(index.name.removesuffix(".index") + ".data-00000-of-00001").write_bytes(data)
