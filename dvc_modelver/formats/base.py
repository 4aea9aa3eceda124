"""What every reader of a model file offers, and the few steps they share.

A reader lists tensors from the header alone and gives values piece by piece, so neither the size of a
file nor where it lies (disk, object storage) matters to the rest of the program. Nothing in a file is
ever executed, and nothing it declares is believed before it is checked against the bytes.
"""

from __future__ import annotations

import io
import reprlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self, cast

from dvc_modelver.errors import BadModelError
from dvc_modelver.tensors import TensorSpec

MAX_HEADER_BYTES = 100_000_000
MAX_ELEMENTS = 2**63 - 1

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120
_SHORT.maxlist = _SHORT.maxdict = 8
_SHORT.maxlevel = 2


class Reader(Protocol):
    """An open model file.

    Attributes:
        format: ``"safetensors"``, ``"npz"``...
        framework: ``"pytorch"``, ``"tensorflow"``... where the file itself says so, else None.
        specs: Every tensor, sorted by name.
    """

    format: str
    framework: str | None
    specs: tuple[TensorSpec, ...]

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

    def close(self) -> None:
        """Release the file, if the reader opened it; a caller's file object stays open."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class FileReader:
    """Holds the file of a reader, and closes it only if it was opened here.

    Args:
        source: A path, or a seekable binary file object (a remote file read by range, too).
        name: How errors call the file; the path where there is one.
    """

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
