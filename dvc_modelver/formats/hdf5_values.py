"""Values of HDF5 datasets in C order, piece by piece: contiguous ones from the file itself, chunks decompressed here.

HDF5's own filters grow their output until the compressed stream ends, and load plug-ins for codes they do not know.
Here a filter's output is bounded by the chunk it must fill, and gzip, lzf, shuffle and fletcher32 are all it may be.

Sources: HDF5 File Format Specification 3.0, section IV.A.2.l (filter pipeline), and ``H5Zshuffle.c``, ``H5checksum.c``
of https://github.com/HDFGroup/hdf5; LZF as in ``lzf_d.c`` of http://oldhome.schmorp.de/marc/liblzf.html.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from dvc_modelver.formats.base import quote
from dvc_modelver.formats.hdf5_objects import (
    MAX_LISTING_BYTES,
    MAX_READ_BYTES,
    Stored,
    Window,
    bad,
    reports,
)

MAX_CHUNKS = 250_000
MAX_STRINGS = 1_000
MAX_BAND_BYTES = 256 << 20
MAX_UNWRITTEN_BYTES = 256 << 20
MAX_EXPANSION = 1032

_DEFLATE, _SHUFFLE, _FLETCHER32, _LZF = 1, 2, 3, 32000
_KNOWN = frozenset({_DEFLATE, _SHUFFLE, _FLETCHER32, _LZF})
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Filter:
    """One step of a dataset's pipeline: its code, and the first of its settings."""

    code: int
    setting: int


def check_sizes(root: Any, stored: Iterable[Stored], window: Window) -> None:
    """Check that the file can hold what its datasets declare, so that reading all of them ends soon.

    Datasets that were never written take no room, and compressed zeros little: both are usual and small.

    Raises:
        BadModelError: Together they declare far more than the bytes that are stored for them can hold.
    """
    import h5py  # type: ignore[import-untyped]

    listed = list(stored)
    if sum(one.nbytes for one in listed) <= max(MAX_UNWRITTEN_BYTES, 4 * window.length):
        return
    n_stored_bytes = n_unwritten_bytes = 0
    for one in listed:
        dataset = h5py.h5d.open(root, one.path.encode())
        n_bytes = dataset.get_storage_size()
        ratio = MAX_EXPANSION if dataset.get_create_plist().get_nfilters() else 1
        n_stored_bytes += n_bytes
        n_unwritten_bytes += max(0, one.nbytes - n_bytes * ratio)
        where = f"{window.name}: dataset {quote(one.path)}"
        if n_stored_bytes > window.length:
            raise bad(where, "overlaps other datasets: together they are larger than the file")
        if n_unwritten_bytes > MAX_UNWRITTEN_BYTES:
            raise bad(where, f"declares {one.nbytes} bytes, which its {n_bytes} stored cannot hold")


def iter_pieces(root: Any, stored: Stored, window: Window, n_bytes: int) -> Iterator[memoryview]:
    """Give a dataset's bytes, little-endian, in pieces of any length.

    Args:
        root: The low-level identifier of the root group.
        stored: The dataset.
        window: The file it lies in.
        n_bytes: How long pieces should be, where that is free to choose; a multiple of the element's bytes.

    Raises:
        BadModelError: A damaged or unknown compression, or chunks that need too much memory.
    """
    import h5py

    where = f"dataset {quote(stored.path)}"
    with reports(window, where):
        dataset = h5py.h5d.open(root, stored.path.encode())
        layout = dataset.get_create_plist().get_layout()
        offset, n_stored_bytes = dataset.get_offset(), dataset.get_storage_size()
    if not stored.nbytes:
        return
    if layout == h5py.h5d.CHUNKED:
        yield from _iter_bands(dataset, stored, window)
    elif not n_stored_bytes:
        yield from _iter_fill(dataset, stored, window)
    elif n_stored_bytes < stored.nbytes:
        raise bad(f"{window.name}: {where}", f"has {n_stored_bytes} bytes stored, expected {stored.nbytes}")
    elif offset is None:
        yield _read_compact(dataset, stored, window)
    else:
        yield from _iter_contiguous(offset, stored, window, n_bytes)


def iter_strings(root: Any, stored: Stored, window: Window) -> Iterator[bytes]:
    """Give the strings of a small dataset, each behind its length; none of a large or chunked one."""
    import h5py
    import numpy as np

    with reports(window, f"dataset {quote(stored.path)}"):
        dataset = h5py.h5d.open(root, stored.path.encode())
        is_chunked = dataset.get_create_plist().get_layout() == h5py.h5d.CHUNKED
        if is_chunked or math.prod(stored.shape) > MAX_STRINGS:
            return
        space, value = dataset.get_space(), np.empty((1,), object)
        cell = h5py.h5s.create_simple((1,))
        for index in np.ndindex(stored.shape):
            if index:
                space.select_hyperslab(index, (1,) * len(index))
            dataset.read(cell, space, value, dataset.get_type())
            text = bytes(value[0] or b"")
            yield len(text).to_bytes(8, "little") + text


def _iter_contiguous(offset: int, stored: Stored, window: Window, n_bytes: int) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(n_bytes, stored.nbytes)))
    for start in range(0, stored.nbytes, n_bytes):
        piece = buffer[: min(n_bytes, stored.nbytes - start)]
        window.budget = len(piece)
        window.read_at(offset + start, piece)
        yield _to_little_endian(piece, stored)


def _read_compact(dataset: Any, stored: Stored, window: Window) -> memoryview:
    import h5py
    import numpy as np

    values = np.empty(stored.shape, f"V{stored.item_bytes}")
    if stored.nbytes > _PIECE_BYTES:
        raise bad(f"{window.name}: dataset {quote(stored.path)}", f"has {stored.nbytes} bytes in its header")
    with reports(window, f"dataset {quote(stored.path)}"):
        dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values, dataset.get_type())
    return _to_little_endian(values.reshape(-1).view(np.uint8).data, stored)


def _iter_fill(dataset: Any, stored: Stored, window: Window) -> Iterator[memoryview]:
    value = _fill_value(dataset, stored, window)
    whole = memoryview(value * (max(1, min(_PIECE_BYTES, stored.nbytes) // len(value))))
    for start in range(0, stored.nbytes, len(whole)):
        yield whole[: stored.nbytes - start]


def _fill_value(dataset: Any, stored: Stored, window: Window) -> bytes:
    import h5py
    import numpy as np

    settings = dataset.get_create_plist()
    zeros = bytes(stored.item_bytes)
    with reports(window, f"dataset {quote(stored.path)}"):
        if settings.fill_value_defined() != h5py.h5d.FILL_VALUE_USER_DEFINED:
            return zeros
        value = np.zeros((), dataset.dtype)
        settings.get_fill_value(value)
    if not any(value.tobytes()):
        return zeros
    if value.dtype.itemsize != stored.item_bytes or value.dtype.kind not in "fiubc":
        raise bad(f"{window.name}: dataset {quote(stored.path)}", "was never written, expected values")
    return value.astype(value.dtype.newbyteorder("<")).tobytes()


def _iter_bands(dataset: Any, stored: Stored, window: Window) -> Iterator[memoryview]:
    # A band is what one row of chunks along the first axis covers: whole rows of the dataset, in C order.
    import numpy as np

    shape, item = stored.shape, f"V{stored.item_bytes}"
    chunk, filters = _read_pipeline(dataset, stored, window)
    fill_value = _fill_value(dataset, stored, window)
    bands = {
        row: list(places) for row, places in groupby(_list_chunks(dataset, stored, chunk, window), lambda at: at[0])
    }
    for start in range(0, shape[0], chunk[0]):
        band = np.zeros((min(chunk[0], shape[0] - start), *shape[1:]), item)
        if any(fill_value):
            band[...] = np.frombuffer(fill_value, item)[0]
        for place in bands.get(start, []):
            raw = _read_chunk(dataset, place, chunk, filters, stored, window)
            target = band[(slice(None), *(slice(at, at + step) for at, step in zip(place[1:], chunk[1:], strict=True)))]
            target[...] = np.frombuffer(raw, item).reshape(chunk)[tuple(slice(0, axis) for axis in target.shape)]
        yield _to_little_endian(band.reshape(-1).view(np.uint8).data, stored)


def _read_chunk(
    dataset: Any, place: tuple[int, ...], chunk: tuple[int, ...], filters: list[Filter], stored: Stored, window: Window
) -> bytes:
    n_bytes = math.prod(chunk) * stored.item_bytes
    with reports(window, f"dataset {quote(stored.path)}"):
        window.budget = MAX_READ_BYTES
        mask, raw = dataset.read_direct_chunk(place)
    return _decode(raw, mask, filters, n_bytes, f"{window.name}: dataset {quote(stored.path)}")


def _read_pipeline(dataset: Any, stored: Stored, window: Window) -> tuple[tuple[int, ...], list[Filter]]:
    where = f"{window.name}: dataset {quote(stored.path)}"
    with reports(window, f"dataset {quote(stored.path)}"):
        settings = dataset.get_create_plist()
        chunk = tuple(int(step) for step in settings.get_chunk())
        steps = [settings.get_filter(i) for i in range(settings.get_nfilters())]
    filters = [Filter(int(step[0]), int(step[2][0]) if step[2] else 0) for step in steps]
    unknown = [str(one.code) for one in filters if one.code not in _KNOWN]
    if unknown:
        raise bad(where, f"is compressed by filter {', '.join(unknown)}, expected gzip or lzf, shuffled or not")
    if len(chunk) != len(stored.shape) or min(chunk) < 1:
        raise bad(where, f"has chunks {quote(chunk)} for shape {quote(stored.shape)}, expected as many axes")
    n_places = math.prod(-(-axis // step) for axis, step in zip(stored.shape, chunk, strict=True))
    if n_places > MAX_CHUNKS:
        raise bad(where, f"has {n_places} chunks, expected at most {MAX_CHUNKS}")
    n_band_items = min(chunk[0], stored.shape[0]) * math.prod(stored.shape[1:])
    n_bytes = max(n_band_items, math.prod(chunk)) * stored.item_bytes
    if n_bytes > MAX_BAND_BYTES:
        detail = f"that need {n_bytes} bytes of memory, expected at most {MAX_BAND_BYTES}"
        raise bad(where, f"has chunks {quote(chunk)} of {quote(stored.shape)} {detail}")
    return chunk, filters


def _list_chunks(dataset: Any, stored: Stored, chunk: tuple[int, ...], window: Window) -> list[tuple[int, ...]]:
    found: set[tuple[int, ...]] = set()
    limit = math.prod(chunk) * stored.item_bytes * 2 + 4096
    faults: list[str] = []

    def note(info: Any) -> bool | None:
        offset = tuple(int(at) for at in info.chunk_offset)
        is_placed = all(
            0 <= at < axis and at % step == 0 for at, axis, step in zip(offset, stored.shape, chunk, strict=True)
        )
        if not is_placed or offset in found or info.size > limit:
            faults.append(f"has a chunk of {info.size} bytes at {quote(offset)}, expected a place of its own")
            return True
        found.add(offset)
        return None

    with reports(window, f"dataset {quote(stored.path)}"):
        window.budget = MAX_LISTING_BYTES
        dataset.chunk_iter(note)
    if faults:
        raise bad(f"{window.name}: dataset {quote(stored.path)}", faults[0])
    return sorted(found)


def _decode(raw: bytes, mask: int, filters: list[Filter], n_bytes: int, where: str) -> bytes:
    try:
        for i, step in reversed(list(enumerate(filters))):
            if not mask >> i & 1:
                raw = _undo(raw, step, n_bytes + 4 * len(filters))
    except (zlib.error, ValueError, IndexError) as err:
        raise bad(where, f"damaged chunk ({quote(str(err))}), expected intact data") from err
    if len(raw) != n_bytes:
        raise bad(where, f"has a chunk of {len(raw)} bytes, expected {n_bytes}")
    return raw


def _undo(raw: bytes, step: Filter, limit: int) -> bytes:
    if step.code == _DEFLATE:
        stream = zlib.decompressobj()
        data = stream.decompress(raw, limit)
        if not stream.eof:
            raise ValueError("the compressed data do not end where the chunk does")
        return data
    if step.code == _LZF:
        return _expand_lzf(raw, limit)
    if step.code == _FLETCHER32:
        return _check_fletcher32(raw)
    return _unshuffle(raw, step.setting)


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
    # Weights in blocks, since the second sum of a large chunk would overflow.
    first = second = 0
    for block in np.array_split(words, max(1, len(words) // 65_536)):
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
    np.frombuffer(piece, f"u{part_bytes}").byteswap(inplace=True)
    return piece
