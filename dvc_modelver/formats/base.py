"""What every reader of a model file offers, and the few steps they share.

A reader lists tensors from the header alone and gives values piece by piece, so neither the size of a
file nor where it lies (disk, object storage) matters to the rest of the program. Nothing in a file is
ever executed, and nothing it declares is believed before it is checked against the bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType, TracebackType
from typing import BinaryIO, Protocol, Self, cast

from dvc_modelver.errors import BadModelError
from dvc_modelver.tensors import TensorSpec

MAX_HEADER_BYTES = 100_000_000
MAX_ELEMENTS = 2**63 - 1
MAX_STRUCTURE = 5_000
MAX_VISITED = 200_000
MAX_SCALAR_CHARS = 200

Scalar = str | int | float | bool | None

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120
_SHORT.maxlist = _SHORT.maxdict = 8
_SHORT.maxlevel = 2


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the values of a tensor lie in a file just as `Reader.iter_buffers` gives them.

    Attributes:
        file: The open file.
        begin: Offset of the first byte.
        end: Offset behind the last.
    """

    file: BinaryIO
    begin: int
    end: int


class Reader(Protocol):
    """An open model file.

    Attributes:
        format: ``"safetensors"``, ``"npz"``...
        framework: ``"pytorch"``, ``"tensorflow"``... where the file itself says so, else None.
        specs: Every tensor, sorted by name; tied ones once, under the first of their names.
        structure: What else makes the model: layers of a configuration, nodes of a graph, classes of a pipeline,
            names of tied tensors. Flat, as `flatten` gives it; empty where the format has nothing of the kind.
    """

    format: str
    framework: str | None
    specs: tuple[TensorSpec, ...]
    structure: Mapping[str, Scalar]

    def iter_buffers(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give a tensor's values: C order of its logical shape, little-endian, in the stored dtype.

        Args:
            spec: One of `specs`.
            n_bytes: Length of every buffer but the last, which may be shorter. An empty tensor gives none.

        Yields:
            Buffers whose content is valid only until the next one is asked for.

        Raises:
            BadModelError: The file is shorter than its header says, or damaged.
        """
        ...

    def iter_values(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give a tensor's values as real numbers, of the dtype `tensors.value_dtype`.

        What `iter_buffers` gives, but for a quantised tensor: the float32 values it stands for.

        Args:
            spec: One of `specs`.
            n_bytes: As for `iter_buffers`, of what is given.
        """
        ...

    def close(self) -> None:
        """Release the file, if the reader opened it; a caller's file object stays open."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Folder(Protocol):
    """The files of one model, wherever they lie: a folder on disk, a ``.dir`` object of the cache or of a remote."""

    def names(self) -> Sequence[str]:
        """Give the paths of all files in it, relative, with ``/``, sorted."""
        ...

    def open(self, name: str) -> BinaryIO:
        """Open one of `names` for reading; the caller closes it.

        Raises:
            BadModelError: There is no such file in the folder; links and ``..`` lead nowhere.
        """
        ...


class LocalFolder:
    """A folder on disk. Links that lead out of it, and hidden files, are not part of it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> Sequence[str]:
        """Give the paths of all files in it; see `Folder`."""
        found = []
        for top, folders, files in os.walk(self.path):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            for name in files:
                path = Path(top, name)
                if not name.startswith(".") and self._holds(path):
                    found.append(path.relative_to(self.path).as_posix())
        return sorted(found)

    def open(self, name: str) -> BinaryIO:
        """Open one of `names`; see `Folder`."""
        path = self.path / name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or not self._holds(path):
            raise BadModelError(
                f"{self.path}: names the file {quote(name)}, expected one inside this folder",
                hint="put the file there, and track the folder as one model",
            )
        return cast(BinaryIO, path.open("rb", buffering=0))

    def _holds(self, path: Path) -> bool:
        return path.is_file() and path.resolve().is_relative_to(self.path.resolve())


class FileReader:
    """Holds the file of a reader, and closes it only if it was opened here.

    Args:
        source: A path, or a seekable binary file object (a remote file read by range, too).
        name: How errors call the file; the path where there is one.
    """

    specs: tuple[TensorSpec, ...]
    structure: Mapping[str, Scalar] = MappingProxyType({})

    def __init__(self, source: Path | BinaryIO, name: str = "") -> None:
        self._owned = isinstance(source, Path)
        self._file = cast(BinaryIO, source.open("rb", buffering=0)) if isinstance(source, Path) else source
        self.name = name or (str(source) if isinstance(source, Path) else "model file")
        self._spare: bytearray | None = None

    def close(self) -> None:
        """Release the file, if it was opened here."""
        if self._owned:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def iter_buffers(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give a tensor's values as they are stored; see `Reader`."""
        raise NotImplementedError

    def iter_values(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give a tensor's values as real numbers; see `Reader`. A format with quantised tensors has its own."""
        return self.iter_buffers(spec, n_bytes)

    def find_extent(self, spec: TensorSpec) -> Extent | None:
        """Give where a tensor's values lie, all that depends on them; other values there make another file of it.

        None where they are compressed, in another order or byte order, in another file, or mean numbers only together
        with what lies elsewhere (the scale of quantised ones), and where nobody has looked.
        """
        return None

    def _iter_span(
        self, begin: int, end: int, n_bytes: int, what: str, file: BinaryIO | None = None
    ) -> Iterator[memoryview]:
        """Give the bytes of a file from `begin` to `end`, in writable buffers of `n_bytes`.

        Args:
            begin: Position of the first.
            end: Position behind the last.
            n_bytes: Length of every buffer but the last.
            what: How errors call them, after the name of the reader's file.
            file: Another file than the reader's own.
        """
        file = self._file if file is None else file
        buffer = self._take_buffer(min(n_bytes, end - begin))
        view = memoryview(buffer)
        try:
            while begin < end:
                piece = view[: min(n_bytes, end - begin)]
                file.seek(begin)
                n_read = fill(file, piece)
                if n_read < len(piece):
                    raise ended_early(f"{self.name}: {what}", n_read, len(piece))
                begin += n_read
                yield piece
        finally:
            self._return_buffer(buffer)

    def _take_buffer(self, n_bytes: int) -> bytearray:
        # Fresh pages cost as much as hashing them: one tensor hands its buffer on to the next. Two
        # iterators that run at the same time still get one each.
        spare, self._spare = self._spare, None
        return spare if spare is not None and len(spare) >= n_bytes else bytearray(n_bytes)

    def _return_buffer(self, buffer: bytearray) -> None:
        if self._spare is None or len(self._spare) < len(buffer):
            self._spare = buffer


def measure(file: BinaryIO) -> int:
    """Give the length of a file in bytes."""
    return file.seek(0, io.SEEK_END)


def fill(file: BinaryIO, view: memoryview) -> int:
    """Read into a buffer until it is full or the file ends; give the number of bytes read."""
    source = cast(io.RawIOBase, file)
    n_read = 0
    while n_read < len(view):
        count = source.readinto(view[n_read:])
        if not count:
            break
        n_read += count
    return n_read


def ended_early(where: str, found: int, expected: int) -> BadModelError:
    """Give the error for a file that has fewer bytes than it says."""
    return BadModelError(
        f"{where}: ended early, found {found} of {expected} bytes",
        hint="wait until the program that writes it is done, or fetch it again",
    )


def read_exactly(file: BinaryIO, offset: int, n_bytes: int, where: str) -> bytes:
    """Give `n_bytes` bytes from `offset` of a file.

    Raises:
        BadModelError: The file ends first; `where` is named.
    """
    buffer = bytearray(n_bytes)
    file.seek(offset)
    n_read = fill(file, memoryview(buffer))
    if n_read < n_bytes:
        raise ended_early(where, n_read, n_bytes)
    return bytes(buffer)


def rechunk(pieces: Iterable[memoryview], n_bytes: int) -> Iterator[memoryview]:
    """Give the same bytes in buffers of `n_bytes` but for the last, whatever the pieces' lengths and items.

    What lies whole in one piece is passed on as a part of it.
    """
    buffer = memoryview(bytearray())
    n_filled = 0
    for piece in pieces:
        # A view with an axis of length 0 cannot be cast.
        view = piece.cast("B") if piece.nbytes else buffer[:0]
        at = 0
        while at < len(view):
            count = min(len(view) - at, n_bytes - n_filled)
            part = view[at : at + count]
            at += count
            if count == n_bytes:
                yield part
                continue
            if n_filled + count > len(buffer):
                grown = memoryview(bytearray(min(n_bytes, max(n_filled + count, 2 * len(buffer)))))
                grown[:n_filled] = buffer[:n_filled]
                buffer = grown
            buffer[n_filled : n_filled + count] = part
            n_filled += count
            if n_filled == n_bytes:
                yield buffer
                n_filled = 0
    if n_filled:
        yield buffer[:n_filled]


def count_elements(shape: Iterable[int]) -> int | None:
    """Multiply axis lengths; None where one is negative, or where a product on the way exceeds 2^63 - 1."""
    numel = 1
    for axis in shape:
        if axis < 0 or axis > MAX_ELEMENTS:
            return None
        numel *= axis
        if numel > MAX_ELEMENTS:
            return None
    return numel


def quote(value: object) -> str:
    """Give a name or value from a file as it may be printed: quoted, escaped, no longer than a line."""
    return _SHORT.repr(value)


def flatten(value: object, prefix: str = "") -> dict[str, Scalar]:
    """Give a nested configuration as flat names and scalars, bounded in size, so that two can be compared line by line.

    Members are joined with ``.``; lists of scalars stay one JSON text; what is longer than `MAX_SCALAR_CHARS` becomes
    its digest, and beyond `MAX_STRUCTURE` names the rest is one digest under ``...``.

    Args:
        value: Mappings, sequences and scalars; anything else is given by its `quote`.
        prefix: Put before every name.
    """
    found: dict[str, Scalar] = {}
    rest = hashlib.sha256()
    todo: list[tuple[str, object]] = [(prefix, value)]
    for _ in range(MAX_VISITED):
        if not todo:
            break
        name, item = todo.pop()
        if isinstance(item, Mapping) and (item or not name):
            todo.extend((f"{name}.{key}" if name else str(key), member) for key, member in reversed(list(item.items())))
        elif isinstance(item, list | tuple) and any(isinstance(member, Mapping | list | tuple) for member in item):
            todo.extend((f"{name}.{i}" if name else str(i), item[i]) for i in reversed(range(len(item))))
        elif len(found) < MAX_STRUCTURE:
            found[printable(name)] = _scalar(item)
        else:
            rest.update(f"{name}={item!r}\n".encode("utf-8", "backslashreplace"))
            found["..."] = ""
    if todo or "..." in found:
        found["..."] = "sha256:" + rest.hexdigest()[:32]
    return found


def printable(text: str) -> str:
    """Give text with its control characters and lone surrogates escaped, so that it may reach a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _scalar(item: object) -> Scalar:
    if item is None or isinstance(item, bool):
        return item
    if isinstance(item, int):
        return item if item.bit_length() < 64 else str(item)[:MAX_SCALAR_CHARS]
    if isinstance(item, float):
        return item if math.isfinite(item) else str(item)
    if isinstance(item, str):
        text = printable(item)
    elif isinstance(item, list | tuple):
        text = json.dumps([_scalar(member) for member in item])
    elif isinstance(item, Mapping):
        text = "{}"
    else:
        text = quote(item)
    if len(text) <= MAX_SCALAR_CHARS:
        return text
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:32]} ({len(text):,} characters)"
