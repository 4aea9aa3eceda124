"""Checkpoints of TensorFlow (version 2 of the format): ``NAME.index``, and values in ``NAME.data-00000-of-00001``...

The index is a table (`dvc_modelver.formats.sstable`) from each variable's key to a small message: dtype, shape, and
where in which data file the values lie. A variable that was split when it was saved has one more entry per slice.

Sources: ``tensorflow/core/protobuf/tensor_bundle.proto`` and ``tensorflow/core/util/tensor_bundle/tensor_bundle.h``;
keys of slices: ``tensorflow/core/util/saved_tensor_slice_util.cc`` and ``core/lib/strings/ordered_code.h``.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import (
    FileReader,
    Folder,
    LocalFolder,
    count_elements,
    ended_early,
    fill,
    flatten,
    measure,
    quote,
    read_exactly,
)
from dvc_modelver.formats.protobuf import BYTES, Field, Walker
from dvc_modelver.formats.sstable import FOOTER_BYTES, MAGIC, Table, unmask
from dvc_modelver.formats.tensorflow_names import OBJECT_GRAPH, name_variables, names_need_graph, read_graph
from dvc_modelver.tensors import TensorSpec

FORMAT = "tf-checkpoint"
SUFFIXES = (".index",)
MAX_INDEX_BYTES = 64 << 20
MAX_SHARDS = 99_999
MAX_AXES = 254

DTYPES = {
    1: "F32", 2: "F64", 3: "I32", 4: "U8", 5: "I16", 6: "I8", 8: "C64", 9: "I64", 10: "BOOL", 11: "I8", 12: "U8",
    13: "I32", 14: "BF16", 15: "I16", 16: "U16", 17: "U16", 18: "C128", 19: "F16", 22: "U32", 23: "U64",
    24: "F8_E5M2", 25: "F8_E4M3", 26: "F8_E4M3FNUZ", 28: "F8_E5M2FNUZ",
}  # fmt: skip
"""``tensorflow.DataType``. Quantised integers (11 to 13, 15, 16) are given as integers: a checkpoint has no scale."""

_STRINGS = {7: "strings", 21: "variants"}
_MAX_OPEN = 8
_HINT = "fetch the files again, or save the checkpoint again"


def matches(file: BinaryIO) -> bool:
    """Tell whether a file ends as a table does and begins, as only a checkpoint's index does, with an empty key."""
    n_bytes = measure(file)
    if n_bytes < FOOTER_BYTES + 3 or read_exactly(file, n_bytes - len(MAGIC), len(MAGIC), FORMAT) != MAGIC:
        return False
    return read_exactly(file, 0, 2, FORMAT) == b"\0\0"


def open_file(source: Path | BinaryIO, name: str, folder: Folder | None = None) -> CheckpointReader:
    """Open a checkpoint by its index; its data files are taken from the folder."""
    return CheckpointReader(source, name, folder)


class CheckpointReader(FileReader):
    """Reads a checkpoint; opening it reads the index, and looks whether the data files are long enough.

    Names are those of ``tf.train.list_variables`` without ``/.ATTRIBUTES/VARIABLE_VALUE``; see `name_variables`
    for what belongs to an optimiser. Strings are no tensors: their checksums are in the structure.

    Args:
        source: The index: a path, or a seekable binary file object.
        name: How errors call the index; its data files are called after its last part.
        folder: The files beside it; by default the folder that a path lies in.
        owns: Close a file object, too.

    Raises:
        BadModelError: The index breaks the format's rules, or its data files are not there or too short.
    """

    format = FORMAT
    framework: str | None = "tensorflow"

    def __init__(
        self, source: Path | BinaryIO, name: str = "", folder: Folder | None = None, *, owns: bool = False
    ) -> None:
        super().__init__(source, name)
        self._owned = self._owned or owns
        self._open_shards: dict[int, BinaryIO] = {}
        try:
            n_bytes = measure(self._file)
            if n_bytes > MAX_INDEX_BYTES:
                raise _bad(self.name, f"is an index of {n_bytes} bytes, expected at most {MAX_INDEX_BYTES}")
            self._n_shards, entries = _read_index(read_exactly(self._file, 0, n_bytes, self.name), self.name)
            self._prefix = self._find_prefix(folder)
            self._folder = LocalFolder(source.parent) if folder is None and isinstance(source, Path) else folder
            self._check_places(entries.values())
            self._describe(entries)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the files that were opened here."""
        super().close()
        while self._open_shards:
            self._open_shards.popitem()[1].close()

    def iter_buffers(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give a tensor's values; see `Reader`."""
        buffer = self._take_buffer(min(n_bytes, spec.nbytes))
        view = memoryview(buffer)[: min(n_bytes, spec.nbytes)]
        where = f"{self.name}: tensor {quote(spec.name)}"
        n_filled = 0
        try:
            for shard, begin, length in _iter_extents(self._entries[spec.name], where):
                position, end = begin, begin + length
                while position < end:
                    count = min(end - position, len(view) - n_filled)
                    file = self._open_shard(shard)
                    file.seek(position)
                    n_read = fill(file, view[n_filled : n_filled + count])
                    if n_read < count:
                        raise ended_early(where, n_read, count)
                    position += count
                    n_filled += count
                    if n_filled == len(view):
                        yield view
                        n_filled = 0
            if n_filled:
                yield view[:n_filled]
        finally:
            self._return_buffer(buffer)

    def _describe(self, entries: dict[str, _Entry]) -> None:
        graph = entries.get(OBJECT_GRAPH)
        paths = self._read_graph(graph) if graph is not None and names_need_graph(entries) else {}
        names = name_variables(entries, paths)
        if len(set(names.values())) < len(names):
            raise _bad(self.name, "has two variables of one name, expected one of each")
        self._entries = {names[key]: entry for key, entry in entries.items() if entry.dtype in DTYPES}
        self.specs = tuple(
            TensorSpec(name, DTYPES[self._entries[name].dtype], self._entries[name].shape)
            for name in sorted(self._entries)
        )
        strings = {
            names[key]: f"crc32c:{unmask(entry.checksum):08x} ({entry.n_bytes:,} bytes)"
            for key, entry in entries.items()
            if entry.dtype in _STRINGS
        }
        self.structure = flatten(strings) if strings else {}

    def _read_graph(self, entry: _Entry) -> dict[str, str]:
        # A string is stored as its length, the checksum of that, and its bytes.
        file = self._open_shard(entry.shard)
        walker = Walker(file, measure(file), f"{self.name}: {OBJECT_GRAPH}")
        end = entry.offset + entry.n_bytes
        length, begin = walker.varint(entry.offset, end)
        if begin + 4 + length != end:
            raise _bad(self.name, f"has an object graph of {length} bytes, expected {end - begin - 4}")
        return read_graph(walker, begin + 4, end)

    def _find_prefix(self, folder: Folder | None) -> str:
        path = PurePosixPath(self.name)
        if not path.name.endswith(".index"):
            raise BadModelError(
                f"{self.name}: is the index of a checkpoint, expected a name that ends in .index, "
                "since its data files are called after it",
                hint="give it back the name that it was saved with",
            )
        if folder is not None:
            known = set(folder.names())
            for i in range(len(path.parts)):
                prefix = "/".join(path.parts[i:]).removesuffix(".index")
                if f"{prefix}{self._ending(0)}" in known:
                    return prefix
        return path.name.removesuffix(".index")

    def _ending(self, shard: int) -> str:
        return f".data-{shard:05d}-of-{self._n_shards:05d}"

    def _open_shard(self, shard: int) -> BinaryIO:
        if shard not in self._open_shards:
            name = f"{self._prefix}{self._ending(shard)}"
            if len(self._open_shards) == _MAX_OPEN:
                self._open_shards.pop(next(iter(self._open_shards))).close()
            try:
                if self._folder is None:
                    raise BadModelError("no folder is known")
                self._open_shards[shard] = self._folder.open(name)
            except BadModelError as err:
                raise BadModelError(
                    f"{self.name}: its values are in {quote(name)}, which is not there, expected it beside the index",
                    hint="put all files of the checkpoint into one folder, and track the folder as one model",
                ) from err
        return self._open_shards[shard]

    def _check_places(self, entries: Iterable[_Entry]) -> None:
        """Check that data files are there and long enough, and that no byte of them is used twice."""
        stored = sorted(
            (part.shard, part.offset, part.n_bytes)
            for entry in entries
            for part in (entry.parts or (entry,))
            if part.n_bytes
        )
        last_shard, position, n_found = -1, 0, 0
        for shard, offset, n_bytes in stored:
            if shard != last_shard:
                last_shard, position, n_found = shard, 0, measure(self._open_shard(shard))
            where = f"the data file {quote(self._prefix + self._ending(shard))}"
            if offset + n_bytes > n_found:
                raise _bad(self.name, f"{where} ended early, found {n_found} bytes, expected {offset + n_bytes}")
            if offset < position:
                raise _bad(self.name, f"two variables overlap in {where} at byte {offset}, expected one in each place")
            position = offset + n_bytes


class _Entry(NamedTuple):
    """Where one variable, or one slice of one, lies.

    Attributes:
        checksum: Of the stored bytes, masked.
        slices: Of a split variable: begin and length of each slice along each axis, None for all of the axis.
        begins: Of a slice: where it begins in its variable, along each axis.
        parts: The slices of a split variable as entries, in their order along `last`.
        last: The last axis that a variable is split along.
    """

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    n_bytes: int
    checksum: int
    slices: tuple[tuple[tuple[int, int] | None, ...], ...] = ()
    begins: tuple[int, ...] = ()
    parts: tuple[_Entry, ...] = ()
    last: int = 0


def _bad(name: str, finding: str) -> BadModelError:
    return BadModelError(f"{name}: {finding}", hint=_HINT)


def _iter_extents(entry: _Entry, where: str) -> Iterator[tuple[int, int, int]]:
    """Give shard, offset and length of the stored pieces of a variable, in its C order."""
    if not entry.parts:
        yield entry.shard, entry.offset, entry.n_bytes
    elif entry.n_bytes:
        yield from _iter_runs([(part, 0) for part in entry.parts], 0, entry, where)


def _iter_runs(parts: list[tuple[_Entry, int]], axis: int, whole: _Entry, where: str) -> Iterator[tuple[int, int, int]]:
    # Each part comes with the number of its rows that lie before the one that is looked at: along all axes so far.
    length = whole.shape[axis]
    if axis == whole.last:
        position = 0
        for part, n_before in parts:
            if part.begins[axis] != position:
                break
            n_bytes = part.n_bytes // math.prod(part.shape[:axis])
            yield part.shard, part.offset + n_before * n_bytes, n_bytes
            position += part.shape[axis]
        if position != length:
            raise _bad(where, f"has no slice at {position} along axis {axis}, expected slices up to {length}")
        return
    cuts = sorted({0, length, *(cut for part, _ in parts for cut in (part.begins[axis], _end(part, axis)))})
    for begin, end in pairwise(cuts):
        here = [(part, n) for part, n in parts if part.begins[axis] <= begin < _end(part, axis)]
        for i in range(begin, end):
            rows = [(part, n * part.shape[axis] + i - part.begins[axis]) for part, n in here]
            yield from _iter_runs(rows, axis + 1, whole, where)


def _end(part: _Entry, axis: int) -> int:
    return part.begins[axis] + part.shape[axis]


def _read_index(data: bytes, name: str) -> tuple[int, dict[str, _Entry]]:
    walker = Walker(io.BytesIO(data), len(data), name)
    n_shards = 0
    entries: dict[str, _Entry] = {}
    slices: dict[bytes, _Entry] = {}
    shapes: dict[bytes, tuple[int, ...]] = {}
    for key, begin, end in Table(data, name).iter_entries():
        if not n_shards:
            if key:
                raise _bad(name, f"begins with the key {quote(key)}, expected the header of a checkpoint")
            n_shards = _read_header(walker, begin, end, name)
        elif key.startswith(b"\0"):
            slices[key] = _read_entry(walker, begin, end, f"{name}: slice {quote(key)}", n_shards, shapes)
        else:
            try:
                variable = key.decode()
            except UnicodeDecodeError as err:
                raise _bad(name, f"has the key {quote(key)}, expected UTF-8") from err
            entries[variable] = _read_entry(walker, begin, end, f"{name}: variable {quote(variable)}", n_shards, shapes)
    if not n_shards:
        raise _bad(name, "is empty, expected the header of a checkpoint")
    for variable, entry in entries.items():
        if entry.slices:
            entries[variable] = _join(variable, entry, slices, name)
    if slices:
        raise _bad(name, f"has the slice {quote(next(iter(slices)))} of no variable")
    return n_shards, entries


def _read_header(walker: Walker, begin: int, end: int, name: str) -> int:
    numbers = {field.number: field.value for field in walker.fields(begin, end) if field.wire != BYTES}
    n_shards = numbers.get(1, 0)
    if not 0 < n_shards <= MAX_SHARDS:
        raise _bad(name, f"names {n_shards} data files, expected 1 to {MAX_SHARDS}")
    if numbers.get(2, 0) != 0:
        raise _bad(name, "is big-endian, expected a little-endian checkpoint")
    return n_shards


def _read_entry(
    walker: Walker, begin: int, end: int, where: str, n_shards: int, shapes: dict[bytes, tuple[int, ...]]
) -> _Entry:
    numbers: dict[int, int] = {}
    shape: tuple[int, ...] = ()
    slices = []
    for field in walker.fields(begin, end):
        if field.wire != BYTES:
            numbers[field.number] = field.value
        elif field.number == 2:
            stored = walker.read(field.start, field.end)
            if stored not in shapes:
                shapes[stored] = tuple(_iter_axes(walker, field))
            shape = shapes[stored]
        elif field.number == 7:
            slices.append(tuple(_iter_ranges(walker, field)))
    dtype, shard, n_bytes = numbers.get(1, 0), numbers.get(3, 0), numbers.get(5, 0)
    if dtype not in DTYPES and dtype not in _STRINGS:
        raise _bad(where, f"has dtype {dtype}, expected one of {', '.join(map(str, DTYPES))}")
    if shard >= n_shards:
        raise _bad(where, f"is in data file {shard}, expected 0 to {n_shards - 1}")
    if len(shape) > MAX_AXES or count_elements(shape) is None:
        raise _bad(where, f"has shape {quote(shape)}, expected axis lengths with a product below 2^63")
    if dtype in DTYPES and not slices:
        n_expected = TensorSpec("", DTYPES[dtype], shape).nbytes
        if n_bytes != n_expected:
            raise _bad(where, f"has {n_bytes} bytes, expected {n_expected} for {DTYPES[dtype]} {quote(shape)}")
    return _Entry(dtype, shape, shard, numbers.get(4, 0), n_bytes, numbers.get(6, 0) & 0xFFFFFFFF, tuple(slices))


def _iter_axes(walker: Walker, shape: Field) -> Iterator[int]:
    for field in walker.fields(shape.start, shape.end):
        if field.number == 2 and field.wire == BYTES:
            yield {f.number: f.value for f in walker.fields(field.start, field.end) if f.wire != BYTES}.get(1, 0)


def _iter_ranges(walker: Walker, part: Field) -> Iterator[tuple[int, int] | None]:
    for field in walker.fields(part.start, part.end):
        if field.number == 1 and field.wire == BYTES:
            numbers = {f.number: f.value for f in walker.fields(field.start, field.end) if f.wire != BYTES}
            yield (numbers.get(1, 0), numbers[2]) if 2 in numbers else None


def _join(variable: str, entry: _Entry, slices: dict[bytes, _Entry], name: str) -> _Entry:
    """Find the slices of a split variable, and check that they may be tiles of it."""
    where = f"{name}: variable {quote(variable)}"
    parts, last = [], 0
    for ranges in entry.slices:
        part = slices.pop(_slice_key(variable, ranges), None)
        full = [span or (0, axis) for span, axis in zip(ranges, entry.shape, strict=False)]
        begins, shape = tuple(begin for begin, _ in full), tuple(length for _, length in full)
        if part is None or part.slices or part.dtype != entry.dtype or part.shape != shape or not shape:
            raise _bad(where, f"has no slice of shape {quote(shape)} at {quote(begins)}, as it announces")
        if len(ranges) != len(entry.shape) or any(
            sum(span) > axis for span, axis in zip(full, entry.shape, strict=True)
        ):
            raise _bad(where, f"has a slice of shape {quote(shape)} at {quote(begins)}, outside {quote(entry.shape)}")
        last = max([last, *(i for i, span in enumerate(full) if span != (0, entry.shape[i]))])
        if part.n_bytes:
            parts.append(part._replace(begins=begins))
    n_bytes = TensorSpec("", DTYPES[entry.dtype], entry.shape).nbytes if entry.dtype in DTYPES else -1
    if sum(part.n_bytes for part in parts) != n_bytes:
        raise _bad(where, f"has slices of other sizes, expected {n_bytes} bytes in all for {quote(entry.shape)}")
    parts.sort(key=lambda part: part.begins[last])
    return entry._replace(parts=tuple(parts), last=last, n_bytes=n_bytes)


def _slice_key(variable: str, ranges: tuple[tuple[int, int] | None, ...]) -> bytes:
    key = b"\0" + variable.encode().replace(b"\0", b"\0\xff") + b"\0\1" + bytes([1, len(ranges) & 0xFF])
    return key + b"".join(_order(number) for part in ranges for number in part or (0, -1))


def _order(number: int) -> bytes:
    """Give a signed number in as few bytes as sort like it does: their count is said by as many bits in front."""
    n_bytes = next(n for n in range(1, 11) if -(1 << 7 * n - 1) <= number < 1 << 7 * n - 1)
    stored = int.from_bytes(number.to_bytes(n_bytes, "big", signed=True), "big")
    return (stored ^ ((1 << n_bytes) - 1) << 7 * n_bytes).to_bytes(n_bytes, "big")
