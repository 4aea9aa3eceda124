"""Hashes files as they are read: md5 is DVC's key of an object, sha256 what the world publishes."""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from dvc_modelver.errors import EnvironmentFailed, UsageError

BUFFER_BYTES = 4 << 20
Progress = Callable[[int], None]
Sink = Callable[[memoryview | bytes], object]


@dataclass(frozen=True)
class Hashes:
    """Digests of a file, in hex, and its size in bytes."""

    md5: str
    sha256: str
    size: int


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


class Hasher:
    """md5 and sha256 of the same bytes, which also go to a sink.

    md5 takes most of the time, so sha256 and the sink run in a thread beside it: hashlib and writes give up the
    interpreter's lock.
    """

    def __init__(self, sink: Sink | None = None) -> None:
        self._md5, self._sha256, self._size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
        self._sink = sink
        self._queue: queue.Queue[memoryview | bytes | None] = queue.Queue(maxsize=1)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            try:
                if self._error is None:
                    self._sha256.update(data)
                    if self._sink is not None:
                        self._sink(data)
            except BaseException as err:  # carried to the caller's thread
                self._error = err
            self._queue.task_done()

    def update(self, data: memoryview | bytes) -> None:
        """Take in bytes; they may be overwritten after it returns.

        Raises:
            OSError: The sink could not write.
        """
        self._queue.put(data)
        self._md5.update(data)
        self._size += len(data)
        self._queue.join()
        if self._error is not None:
            raise self._error

    def finish(self) -> Hashes:
        """Give the digests."""
        self._queue.put(None)
        self._thread.join()
        return Hashes(self._md5.hexdigest(), self._sha256.hexdigest(), self._size)


def hash_file(path: Path, *, progress: Progress | None = None) -> Hashes:
    """Hash a file in fixed buffers.

    Raises:
        UsageError: The file was written while it was read.
        EnvironmentFailed: It cannot be read.
    """
    try:
        return consume(path, None, progress=progress)
    except OSError as err:
        raise EnvironmentFailed(f"{path}: cannot be read ({err.strerror})", hint=f"ls -l {path}") from err


def consume(path: Path, sink: Sink | None, *, progress: Progress | None = None) -> Hashes:
    """Read a file once, hash it and hand every buffer to `sink`.

    Raises:
        UsageError: The file was written while it was read.
        OSError: It cannot be read, or `sink` cannot write.
    """
    hashes = Hasher(sink)
    buffer = memoryview(bytearray(BUFFER_BYTES))
    try:
        with path.open("rb", buffering=0) as file:
            before = FileStamp.of(file.fileno())
            left = before.size
            while left >= 0 and (n := file.readinto(buffer)):
                hashes.update(buffer[:n])
                left -= n  # a file that grows as fast as it is read must not hold us for ever
                if progress is not None:
                    progress(n)
            after = FileStamp.of(file.fileno())
    except BaseException:
        hashes.finish()
        raise
    found = hashes.finish()
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
    """Hash a stream and hand its bytes to `sink`, in larger pieces than they came in."""
    hashes = Hasher(sink)
    batch = bytearray()
    try:
        for piece in pieces:
            batch += piece
            if len(batch) >= BUFFER_BYTES:
                hashes.update(memoryview(bytes(batch)))
                batch.clear()
            if progress is not None:
                progress(len(piece))
        hashes.update(bytes(batch))
    except BaseException:
        hashes.finish()
        raise
    return hashes.finish()
