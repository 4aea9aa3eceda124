"""Pickled estimators: what ``pickle.dump`` and ``joblib.dump`` write of scikit-learn's models, and of any arrays.

Nothing is unpickled: `pickles` turns the pickle into inert records, `joblib_stream` finds the arrays that joblib puts
between the opcodes, `numpy_records` tells which records are arrays, `sklearn_objects` gives them their names. Here
their values are read. The format is called ``pickle``, since any other object that holds arrays is read alike: a
dictionary, or the wrapper of another library.

A compressed file of joblib is known by its suffix together with its first bytes, protocols 0 and 1 by the suffix alone:
they have no mark of their own.
"""

from __future__ import annotations

import codecs
import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import (
    FileReader,
    Folder,
    Reader,
    ended_early,
    fill,
    flatten,
    measure,
    quote,
    read_exactly,
    rechunk,
)
from dvc_modelver.formats.expansion import expand, find_method
from dvc_modelver.formats.joblib_stream import StreamMachine
from dvc_modelver.formats.numpy_records import HINT, Array, Data, Encoded
from dvc_modelver.formats.pickles import Source, Span
from dvc_modelver.formats.sklearn_objects import View, Walk
from dvc_modelver.formats.strided import iter_blocks
from dvc_modelver.formats.torch_container import is_legacy
from dvc_modelver.tensors import TensorSpec

FORMAT = "pickle"
SUFFIXES = (".pkl", ".pickle", ".joblib")

MAX_PICKLES = 10_000
"""One after the other, in one file."""

MAX_REPEATED_BYTES = 1 << 30
"""What all tensors may have together, beyond four times the file: records may claim the same bytes again and again."""

MAX_TEXT_BYTES = 256 << 20
"""Of an array that is kept as text (protocols 0 to 2), which is held in memory while its values are given."""

MAX_RECORD_BYTES = 16 << 20
"""Of a structured array that is held in memory, so that it is read once for all of its fields."""

_FIRST_OPCODES = b"\x95c(]})XUTCBKMJGN\x88\x89\x8a\x8c\x8d\x8e\x8f\x96"
_CHUNK_BYTES = 1 << 20
_FRAMEWORKS = {"sklearn": "scikit-learn", "lightgbm": "lightgbm", "xgboost": "xgboost", "catboost": "catboost"}


def matches(file: BinaryIO) -> bool:
    """Tell whether a file begins and ends as a pickle of protocols 2 to 5 does, and is none of PyTorch's."""
    n_bytes = measure(file)
    start = read_exactly(file, 0, min(n_bytes, 32), FORMAT)
    if n_bytes < 4 or start[0] != 0x80 or not 2 <= start[1] <= 5 or start[2] not in _FIRST_OPCODES or is_legacy(start):
        return False
    if start[2] == 0x95 and int.from_bytes(start[3:11], "little") > n_bytes:
        return False
    return read_exactly(file, n_bytes - 1, 1, FORMAT) == b"."


def open_file(source: Path | BinaryIO, name: str, folder: Folder | None = None) -> PickleReader:
    """Open a file of this format; it is whole without the files beside it."""
    return PickleReader(source, name)


class PickleReader(FileReader):
    """Reads a pickle; opening it walks the opcodes and steps over the arrays.

    A compressed file is expanded once when it is opened, see `expansion`; its arrays are read from there.

    Args:
        source: A path, or a seekable binary file object.
        name: How errors call the file.

    Raises:
        BadModelError: It is no pickle, it is damaged, an array cannot be what it claims, or the limits of this
            format's modules are passed.
        EnvironmentFailed: There is no room to expand it.
    """

    format = FORMAT
    framework: str | None = None

    def __init__(self, source: Path | BinaryIO, name: str = "") -> None:
        super().__init__(source, name)
        self._data = self._file
        self._inner: dict[str, tuple[Reader, TensorSpec]] = {}
        self._held: tuple[Data | None, bytes] = (None, b"")
        self._digests: dict[Span, str] = {}
        try:
            n_bytes = measure(self._file)
            method = find_method(read_exactly(self._file, 0, min(n_bytes, 8), self.name))
            if method is not None:
                self._data = expand(self._file, n_bytes, method, self.name)
            self._read_objects(measure(self._data))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the file, if it was opened here, and what it was expanded to."""
        if self._data is not self._file:
            self._data.close()
        super().close()

    def iter_buffers(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give a tensor's values; see `Reader`."""
        if spec.name in self._inner:
            reader, inner = self._inner[spec.name]
            yield from reader.iter_buffers(inner, n_bytes)
        elif spec.nbytes:
            yield from self._iter_view(self._views[spec.name], n_bytes)

    def _read_objects(self, n_bytes: int) -> None:
        roots = self._load(n_bytes)
        walk = Walk(self.name, self._read_array, self._digest)
        for i, root in enumerate(roots):
            walk.add("" if len(roots) == 1 else str(i), root)
        self._views, facts = _find_ties(walk)
        own = [TensorSpec(name, view.kind.dtype or "", view.array.shape) for name, view in self._views.items()]
        n_claimed = sum(spec.nbytes for spec in own)
        if n_claimed > 4 * n_bytes + MAX_REPEATED_BYTES or sum(map(_count_bytes, walk.boosters.values())) > 4 * n_bytes:
            raise BadModelError(
                f"{self.name}: its members claim the same bytes again and again, expected at most four times the file",
                hint=HINT,
            )
        for prefix, (kind, data) in walk.boosters.items():
            facts |= self._open_booster(prefix, kind, data)
        own += [replace(spec, name=name) for name, (_, spec) in self._inner.items()]
        self.specs = tuple(sorted(own, key=lambda spec: spec.name))
        self.framework = _find_framework(facts)
        if facts:
            self.structure = flatten(dict(sorted(facts.items(), key=lambda fact: fact[0].count("."))))

    def _load(self, n_bytes: int) -> list[object]:
        source = Source(self._data, self.name, 0, n_bytes)
        machine = StreamMachine(source)
        roots = [machine.load()]
        while source.left and len(roots) < MAX_PICKLES:
            machine = StreamMachine(source, machine)
            roots.append(machine.load())
        if source.left:
            raise BadModelError(f"{self.name}: holds over {MAX_PICKLES} pickles, expected fewer", hint=HINT)
        return roots

    def _open_booster(self, prefix: str, kind: str, data: Data) -> dict[str, object]:
        """Add the tensors of another library's model that lies in the pickle; give its facts."""
        dot = prefix and prefix + "."
        file, start = self._locate(data)
        n_bytes = data.n_bytes if isinstance(data, Span) else measure(file)
        try:
            module = import_module(f"dvc_modelver.formats.{kind}")
            reader: Reader = module.open_file(io.BufferedReader(_Window(file, start, n_bytes)), self.name, None)
        except BadModelError as err:
            return {f"{dot}model": f"sha256:{self._digest(data)} ({n_bytes:,} bytes)", f"{dot}unread": str(err)}
        for spec in reader.specs:
            name = dot + spec.name
            if name not in self._views:
                self._inner[name] = (reader, spec)
        return {f"{dot}model.{key}": fact for key, fact in reader.structure.items()}

    # Values.

    def _iter_view(self, view: View, n_bytes: int) -> Iterator[memoryview]:
        swapped = view.kind.swapped_bytes
        if not view.array.is_contiguous or view.kind is not view.array.kind:
            pieces = self._iter_gathered(view)
        elif swapped and n_bytes % swapped:
            pieces = self._iter_run(view.array, -(-n_bytes // swapped) * swapped)
        else:
            pieces = self._iter_run(view.array, n_bytes)
        if swapped:
            pieces = _iter_swapped(pieces, swapped)
        yield from rechunk(pieces, n_bytes)

    def _iter_run(self, array: Array, n_bytes: int) -> Iterator[memoryview]:
        file, position = self._locate(array.data)
        end = position + array.nbytes
        buffer = self._take_buffer(min(n_bytes, array.nbytes))
        try:
            while position < end:
                piece = memoryview(buffer)[: min(n_bytes, end - position)]
                file.seek(position)
                n_read = fill(file, piece)
                if n_read < len(piece):
                    raise ended_early(self.name, n_read, len(piece))
                position += n_read
                yield piece
        finally:
            self._return_buffer(buffer)

    def _iter_gathered(self, view: View) -> Iterator[memoryview]:
        array, item_bytes = view.array, view.array.kind.item_bytes
        file, base = self._locate(array.data, is_record=view.kind is not array.kind)

        def read(position: int, n_bytes: int) -> bytes:
            return read_exactly(file, base + position, n_bytes, self.name)

        if view.kind is array.kind and item_bytes in (1, 2, 4, 8, 16):
            return iter_blocks(read, 0, array.shape, array.strides, item_bytes)
        # A field begins anywhere in its record: it is a run of bytes on an axis of its own.
        strides = (*(stride * item_bytes for stride in array.strides), 1)
        return iter_blocks(read, view.offset, (*array.shape, view.kind.item_bytes), strides, 1)

    def _read_array(self, array: Array) -> bytes:
        if not array.nbytes:
            return b""
        return b"".join(map(bytes, self._iter_view(View(array, array.kind, 0, None), _CHUNK_BYTES)))

    def _locate(self, data: Data | list[object], *, is_record: bool = False) -> tuple[BinaryIO, int]:
        if isinstance(data, Span) and not (is_record and data.n_bytes <= MAX_RECORD_BYTES):
            return self._data, data.start
        if isinstance(data, bytes):
            return io.BytesIO(data), 0
        if isinstance(data, Span | Encoded) and self._held[0] != data:
            self._held = (data, self._hold(data))
        return io.BytesIO(self._held[1]), 0

    def _hold(self, data: Span | Encoded) -> bytes:
        if isinstance(data, Span):
            return read_exactly(self._data, data.start, data.n_bytes, self.name)
        span = data.span
        if span.n_bytes > MAX_TEXT_BYTES:
            raise BadModelError(
                f"{self.name}: has an array as a text of {span.n_bytes} bytes, expected at most {MAX_TEXT_BYTES}",
                hint="save the model again with pickle protocol 4 or 5",
            )
        decoder = codecs.getincrementaldecoder("utf-8")()
        found = bytearray()
        try:
            for at in range(0, span.n_bytes, _CHUNK_BYTES):
                n_bytes = min(_CHUNK_BYTES, span.n_bytes - at)
                piece = read_exactly(self._data, span.start + at, n_bytes, self.name)
                found += decoder.decode(piece, at + n_bytes == span.n_bytes).encode("latin-1")
        except UnicodeError as err:
            raise BadModelError(
                f"{self.name}: has an array as text that stands for no bytes ({quote(str(err))}), expected Latin-1",
                hint=HINT,
            ) from err
        return bytes(found)

    def _digest(self, data: Data) -> str:
        if isinstance(data, Encoded):
            return self._digest(data.span)
        if isinstance(data, bytes):
            return hashlib.sha256(data).hexdigest()[:32]
        if data not in self._digests:
            found = hashlib.sha256()
            for at in range(0, data.n_bytes, _CHUNK_BYTES):
                n_bytes = min(_CHUNK_BYTES, data.n_bytes - at)
                found.update(read_exactly(self._data, data.start + at, n_bytes, self.name))
            self._digests[data] = found.hexdigest()[:32]
        return self._digests[data]


class _Window(io.RawIOBase):
    """A stretch of a file as a file of its own."""

    def __init__(self, file: BinaryIO, start: int, n_bytes: int) -> None:
        self._file, self._start, self._n_bytes, self._at = file, start, n_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = offset + (0, self._at, self._n_bytes)[whence]
        return self._at

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        view = memoryview(buffer)[: max(self._n_bytes - self._at, 0)]
        self._file.seek(self._start + self._at)
        n_read = fill(self._file, view)
        self._at += n_read
        return n_read


def _count_bytes(booster: tuple[str, Data]) -> int:
    data = booster[1].span if isinstance(booster[1], Encoded) else booster[1]
    return data.n_bytes if isinstance(data, Span) else len(data)


def _iter_swapped(pieces: Iterator[memoryview], item_bytes: int) -> Iterator[memoryview]:
    import numpy as np

    for piece in pieces:
        np.frombuffer(piece, f"u{item_bytes}").byteswap(inplace=True)
        yield piece


def _find_ties(walk: Walk) -> tuple[dict[str, View], dict[str, object]]:
    """Give each tensor once, sorted by name, and the facts; among them the other names of tensors."""
    kept: dict[str, View] = {}
    first: dict[object, str] = {}
    version = walk.facts.get("_sklearn_version")
    facts = {key: fact for key, fact in walk.facts.items() if not key.endswith("._sklearn_version") or fact != version}
    for name in sorted(walk.views):
        view = walk.views[name]
        if view.origin in first:
            facts[f"tied.{name}"] = first[view.origin]
        else:
            first[view.origin] = name
            kept[name] = view
    return kept, facts


def _find_framework(facts: Mapping[str, object]) -> str | None:
    classes = (str(fact) for key, fact in facts.items() if key == "class" or key.endswith(".class"))
    return next((_FRAMEWORKS[top] for kind in classes if (top := kind.partition(".")[0]) in _FRAMEWORKS), None)
