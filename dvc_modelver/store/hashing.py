"""Hashes files as they are read: md5 is DVC's key of an object, sha256 what the world publishes."""

from __future__ import annotations

import hashlib
import itertools
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dvc_modelver.errors import EnvironmentFailed, UsageError, word

BUFFER_BYTES = 4 << 20
RACY_NS = 20_000_000
"""A file modified less than this before it was read may change again within one tick of the clock."""
Progress = Callable[[int], None]
Sink = Callable[[memoryview | bytes], object]


@dataclass(frozen=True)
class Hashes:
    """Digests of a file or folder, in hex, and its size in bytes.

    Attributes:
        md5: DVC's key; ends in ``.dir`` for a folder.
        sha256: Empty where it is not wanted, and for a folder.
        n_files: Files of a folder; None for a file.
    """

    md5: str
    sha256: str
    size: int
    n_files: int | None = None


@dataclass(frozen=True)
class FileStamp:
    """What tells that a file was written: size, modification and change time in ns, inode."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, file: int | Path) -> FileStamp:
        """Give the stamp of a path (links followed) or of an open file."""
        st = os.stat(file)
        return cls(st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_ino)


class _Stage(threading.Thread):
    """One consumer of the bytes, beside the others: hashlib and writes give up the interpreter's lock."""

    def __init__(self, work: Sequence[Sink]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._queue: queue.Queue[memoryview | bytes | None] = queue.Queue(maxsize=1)
        self.error: BaseException | None = None
        self.start()

    def put(self, data: memoryview | bytes) -> None:
        """Take over a buffer; waits until the one before the last is done with."""
        self._queue.put(data)

    def run(self) -> None:
        while (data := self._queue.get()) is not None:
            if self.error is None:
                try:
                    for work in self._work:
                        work(data)
                except BaseException as err:  # carried to the caller's thread
                    self.error = err

    def finish(self) -> None:
        self._queue.put(None)
        self.join()


class Hasher:
    """md5 and sha256 of the same bytes, which also go to a sink.

    md5 takes most of the time and has a thread of its own; sha256 and the sink share another.

    Args:
        sink: Called with every buffer, in order.
        sha256: Whether sha256 is wanted; else it stays empty.
    """

    def __init__(self, sink: Sink | None = None, *, sha256: bool = True) -> None:
        self._md5, self._sha256, self._size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
        self._wants_sha256 = sha256
        others: list[Sink] = [self._sha256.update] if sha256 else []
        others += [sink] if sink is not None else []
        self._stages = [_Stage([self._md5.update]), *([_Stage(others)] if others else [])]

    def update(self, data: memoryview | bytes) -> None:
        """Take in bytes, which must stay as they are during the next two calls.

        Raises:
            OSError: The sink could not write.
        """
        self._size += len(data)
        for stage in self._stages:
            stage.put(data)
            if stage.error is not None:
                raise stage.error

    def finish(self) -> Hashes:
        """Give the digests.

        Raises:
            OSError: The sink could not write.
        """
        self.close()
        for stage in self._stages:
            if stage.error is not None:
                raise stage.error
        return Hashes(self._md5.hexdigest(), self._sha256.hexdigest() if self._wants_sha256 else "", self._size)

    def close(self) -> None:
        """Wait for the threads; what they found does not matter any more."""
        for stage in self._stages:
            stage.finish()


def rotate_buffers() -> Iterator[memoryview]:
    """Give buffers in turn, as many as `Hasher.update` holds on to and one to fill."""
    return itertools.cycle([memoryview(bytearray(BUFFER_BYTES)) for _ in range(3)])


def hash_file(path: Path, *, sha256: bool = True, progress: Progress | None = None) -> Hashes:
    """Hash a file in fixed buffers.

    Raises:
        UsageError: The file was written while it was read.
        EnvironmentFailed: It cannot be read.
    """
    try:
        return consume(path, None, sha256=sha256, progress=progress)
    except OSError as err:
        raise EnvironmentFailed(f"{path}: cannot be read ({err.strerror})", hint=f"ls -l {word(path)}") from err


def consume(path: Path, sink: Sink | None, *, sha256: bool = True, progress: Progress | None = None) -> Hashes:
    """Read a file once, hash it and hand every buffer to `sink`.

    Raises:
        UsageError: The file was written while it was read.
        OSError: It cannot be read, or `sink` cannot write.
    """
    hasher, buffers = Hasher(sink, sha256=sha256), rotate_buffers()
    try:
        with path.open("rb", buffering=0) as file:
            before = FileStamp.of(file.fileno())
            left = before.size
            while left >= 0 and (n := file.readinto(buffer := next(buffers))):
                hasher.update(buffer[:n])
                left -= n  # a file that grows as fast as it is read must not hold us for ever
                if progress is not None:
                    progress(n)
            after = FileStamp.of(file.fileno())
    except BaseException:
        hasher.close()
        raise
    found = hasher.finish()
    if before != after or found.size != before.size:
        raise still_writing(path)
    return found


def still_writing(path: Path) -> UsageError:
    """Give the error for a file that moved while it was read."""
    return UsageError(
        f"{path}: still being written (its size or time moved while it was read)",
        hint="try again when training is done",
    )


def hash_pieces(pieces: Iterable[bytes], sink: Sink, *, progress: Progress | None = None) -> Hashes:
    """Hash a stream of small pieces and hand its bytes to `sink` in larger ones.

    Raises:
        OSError: `sink` cannot write.
    """
    hasher, buffers = Hasher(sink), rotate_buffers()
    try:
        buffer, n = next(buffers), 0
        for piece in pieces:
            start = 0
            while start < len(piece):
                taken = min(len(piece) - start, BUFFER_BYTES - n)
                buffer[n : n + taken] = piece[start : start + taken]
                start, n = start + taken, n + taken
                if n == BUFFER_BYTES:
                    hasher.update(buffer)
                    buffer, n = next(buffers), 0
            if progress is not None:
                progress(len(piece))
        hasher.update(buffer[:n])
    except BaseException:
        hasher.close()
        raise
    return hasher.finish()
