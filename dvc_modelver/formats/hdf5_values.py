"""Values of HDF5 datasets in C order, piece by piece, read from the file itself and decompressed here.

HDF5's own filters grow their output until the compressed stream ends, and load plug-ins for codes they do not know.
Here a filter's output is bounded by the chunk it must fill, and gzip, lzf, shuffle and fletcher32 are all it may be.

Sources: HDF5 File Format Specification 3.0, section IV.A.2.l (filter pipeline), and ``H5Zshuffle.c``, ``H5checksum.c``
of https://github.com/HDFGroup/hdf5; LZF as in ``lzf_d.c`` of http://oldhome.schmorp.de/marc/liblzf.html.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from dvc_modelver.formats.base import quote
from dvc_modelver.formats.hdf5_objects import MAX_CHUNKS, Stored, bad
from dvc_modelver.formats.hdf5_process import Window

MAX_BAND_BYTES = 256 << 20
MAX_UNWRITTEN_BYTES = 256 << 20
MAX_EXPANSION = 1032

_DEFLATE, _SHUFFLE, _FLETCHER32, _LZF = 1, 2, 3, 32000
_KNOWN = frozenset({_DEFLATE, _SHUFFLE, _FLETCHER32, _LZF})
_PIECE_BYTES = 1 << 20


def check_places(datasets: Iterable[Stored], window: Window) -> None:
    """Check that the file can hold what its datasets declare, so that reading all of them ends soon.

    Datasets that were never written take no room, and compressed zeros little: both are usual and small.

    Raises:
        BadModelError: Bytes lie outside the file, datasets overlap, or they declare far more than is stored for them.
    """
    n_stored_bytes = n_unwritten_bytes = 0
    for one in datasets:
        where = f"{window.name}: dataset {quote(one.path)}"
        if one.chunk:
            _check_chunks(one, where)
            n_bytes = sum(chunk[-1] for chunk in one.chunks)
        else:
            n_bytes = one.n_stored_bytes
        ends = [chunk[-2] + chunk[-1] for chunk in one.chunks] or [(one.offset or 0) + n_bytes]
        if max(ends) > window.length:
            raise bad(where, f"ends at {max(ends)}, expected at most {window.length}, the end of the file")
        if not one.chunk and 0 < n_bytes < one.nbytes:
            raise bad(where, f"has {n_bytes} bytes stored, expected {one.nbytes}")
        n_stored_bytes += n_bytes
        n_unwritten_bytes += max(0, one.nbytes - n_bytes * (MAX_EXPANSION if one.filters else 1))
        if n_stored_bytes > window.length:
            raise bad(where, "overlaps other datasets: together they are larger than the file")
        if n_unwritten_bytes > MAX_UNWRITTEN_BYTES:
            raise bad(where, f"declares {one.nbytes} bytes, which its {n_bytes} stored cannot hold")


def iter_pieces(stored: Stored, window: Window, n_bytes: int) -> Iterator[memoryview]:
    """Give a dataset's bytes, little-endian, in pieces of any length.

    Args:
        stored: The dataset.
        window: The file it lies in.
        n_bytes: How long pieces should be, where that is free to choose; a multiple of the element's bytes.

    Raises:
        BadModelError: A damaged or unknown compression, or a file that ends too soon.
    """
    if not stored.nbytes:
        return
    if stored.chunk:
        yield from _iter_bands(stored, window)
    elif stored.compact:
        yield _to_little_endian(memoryview(bytearray.fromhex(stored.compact)), stored)
    elif stored.offset is None:
        yield from _iter_fill(stored, window)
    else:
        buffer = memoryview(bytearray(min(n_bytes, stored.nbytes)))
        for start in range(0, stored.nbytes, n_bytes):
            piece = buffer[: min(n_bytes, stored.nbytes - start)]
            window.read_at(stored.offset + start, piece)
            yield _to_little_endian(piece, stored)


def _check_chunks(one: Stored, where: str) -> None:
    unknown = [str(code) for code, _ in one.filters if code not in _KNOWN]
    if unknown:
        raise bad(where, f"is compressed by filter {', '.join(unknown)}, expected gzip or lzf, shuffled or not")
    if len(one.chunk) != len(one.shape) or min(one.chunk) < 1:
        raise bad(where, f"has chunks {quote(one.chunk)} for shape {quote(one.shape)}, expected as many axes")
    n_places = math.prod(-(-axis // step) for axis, step in zip(one.shape, one.chunk, strict=True))
    if n_places > MAX_CHUNKS:
        raise bad(where, f"has {n_places} chunks, expected at most {MAX_CHUNKS}")
    n_band_items = min(one.chunk[0], one.shape[0]) * math.prod(one.shape[1:])
    n_chunk_bytes = math.prod(one.chunk) * one.item_bytes
    n_bytes = max(n_band_items * one.item_bytes, n_chunk_bytes)
    if n_bytes > MAX_BAND_BYTES:
        detail = f"that need {n_bytes} bytes of memory, expected at most {MAX_BAND_BYTES}"
        raise bad(where, f"has chunks {quote(one.chunk)} of {quote(one.shape)} {detail}")
    seen: set[tuple[int, ...]] = set()
    for chunk in one.chunks:
        place, (_, _, length) = chunk[:-3], chunk[-3:]
        steps = zip(place, one.shape, one.chunk, strict=True)
        # A filter that would make a chunk longer is left out of it, but for a few bytes of checksum.
        if (
            place in seen
            or length > n_chunk_bytes + 64
            or any(at % step or not 0 <= at < end for at, end, step in steps)
        ):
            raise bad(where, f"has a chunk of {length} bytes at {quote(place)}, expected a place of its own")
        seen.add(place)


def _iter_fill(stored: Stored, window: Window) -> Iterator[memoryview]:
    value = _fill_value(stored, window)
    n_items = max(1, min(_PIECE_BYTES, stored.nbytes) // len(value))
    whole = _to_little_endian(memoryview(bytearray(value * n_items)), stored)
    for start in range(0, stored.nbytes, len(whole)):
        yield whole[: stored.nbytes - start]


def _fill_value(stored: Stored, window: Window) -> bytes:
    value = bytes.fromhex(stored.fill)
    if len(value) != stored.item_bytes:
        raise bad(f"{window.name}: dataset {quote(stored.path)}", "was not written whole, expected values")
    return value


def _iter_bands(stored: Stored, window: Window) -> Iterator[memoryview]:
    # A band is what one row of chunks along the first axis covers: whole rows of the dataset, in C order.
    import numpy as np

    shape, step, item = stored.shape, stored.chunk, f"V{stored.item_bytes}"
    fill_value = _fill_value(stored, window)
    bands = {row: list(members) for row, members in groupby(stored.chunks, key=lambda chunk: chunk[0])}
    for start in range(0, shape[0], step[0]):
        band = np.zeros((min(step[0], shape[0] - start), *shape[1:]), item)
        if any(fill_value):
            band[...] = np.frombuffer(fill_value, item)[0]
        for chunk in bands.get(start, []):
            values = np.frombuffer(_read_chunk(stored, chunk, window), item).reshape(step)
            places = tuple(slice(at, at + n) for at, n in zip(chunk[1:-3], step[1:], strict=True))
            target = band[(slice(None), *places)]
            target[...] = values[tuple(slice(0, n) for n in target.shape)]
        yield _to_little_endian(band.reshape(-1).view(np.uint8).data, stored)


def _read_chunk(stored: Stored, chunk: tuple[int, ...], window: Window) -> bytes:
    mask, offset, length = chunk[-3:]
    n_bytes = math.prod(stored.chunk) * stored.item_bytes
    where = f"{window.name}: dataset {quote(stored.path)}"
    buffer = bytearray(length)
    window.read_at(offset, memoryview(buffer))
    raw = bytes(buffer)
    try:
        for i, (code, setting) in reversed(list(enumerate(stored.filters))):
            if not mask >> i & 1:
                raw = _undo(raw, code, setting, n_bytes + 4 * len(stored.filters))
    except (zlib.error, ValueError, IndexError) as err:
        raise bad(where, f"has a damaged chunk ({quote(str(err))}), expected intact data") from err
    if len(raw) != n_bytes:
        raise bad(where, f"has a chunk of {len(raw)} bytes, expected {n_bytes}")
    return raw


def _undo(raw: bytes, code: int, setting: int, limit: int) -> bytes:
    if code == _DEFLATE:
        stream = zlib.decompressobj()
        data = stream.decompress(raw, limit)
        if not stream.eof:
            raise ValueError("the compressed data do not end where the chunk does")
        return data
    if code == _LZF:
        return _expand_lzf(raw, limit)
    if code == _FLETCHER32:
        return _check_fletcher32(raw)
    return _unshuffle(raw, setting)


def _unshuffle(raw: bytes, item_bytes: int) -> bytes:
    import numpy as np

    if item_bytes < 1 or item_bytes > len(raw):
        return raw
    n_items = len(raw) // item_bytes
    whole = np.frombuffer(raw, np.uint8, n_items * item_bytes).reshape(item_bytes, n_items)
    return whole.T.tobytes() + raw[n_items * item_bytes :]


def _expand_lzf(raw: bytes, limit: int) -> bytes:
    out = bytearray()
    at = 0
    while at < len(raw):
        control = raw[at]
        at += 1
        if control < 32:
            out += raw[at : at + control + 1]
            at += control + 1
        else:
            length = control >> 5
            if length == 7:
                length += raw[at]
                at += 1
            begin = len(out) - ((control & 31) << 8) - raw[at] - 1
            at += 1
            length += 2
            if begin < 0:
                raise ValueError("a repetition of what was not there yet")
            pattern = out[begin : begin + length]
            out += (pattern * -(-length // len(pattern)))[:length]
        if len(out) > limit:
            raise ValueError("more data than the chunk holds")
    return bytes(out)


def _check_fletcher32(raw: bytes) -> bytes:
    import numpy as np

    data, expected = raw[:-4], int.from_bytes(raw[-4:], "little")
    words = np.frombuffer(data + b"\0" * (len(data) % 2), ">u2").astype(np.uint64)
    first = second = 0
    for block in np.array_split(words, max(1, len(words) // 65_536)):
        # In blocks, since the weighted sum of a large chunk would overflow.
        weights = np.arange(len(block), 0, -1, dtype=np.uint64)
        second = (second + first * len(block) + int((block * weights).sum())) % 65_535
        first = (first + int(block.sum())) % 65_535
    if (first - (expected & 0xFFFF)) % 65_535 or (second - (expected >> 16)) % 65_535:
        raise ValueError("the checksum differs")
    return data


def _to_little_endian(piece: memoryview, stored: Stored) -> memoryview:
    if not stored.is_swapped:
        return piece
    import numpy as np

    part_bytes = stored.item_bytes // 2 if (stored.dtype or "").startswith("C") else stored.item_bytes
    values: Any = np.frombuffer(piece, f"u{part_bytes}")
    values.byteswap(inplace=True)
    return piece
