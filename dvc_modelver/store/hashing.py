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


class TwoHashes:
    """md5 and sha256 of the same bytes; sha256 runs in a thread, since hashlib gives up the GIL."""

    def __init__(self) -> None:
        self._md5, self._sha256, self._size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
        self._queue: queue.Queue[memoryview | bytes | None] = queue.Queue(maxsize=1)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            self._sha256.update(data)
            self._queue.task_done()

    def update(self, data: memoryview | bytes) -> None:
        """Take in bytes; they may be overwritten after it returns."""
        self._queue.put(data)
        self._md5.update(data)
        self._size += len(data)
        self._queue.join()

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
        return consume(path, lambda _data: None, progress=progress)
    except OSError as err:
        raise EnvironmentFailed(f"{path}: cannot be read ({err.strerror})", hint=f"ls -l {path}") from err


def consume(path: Path, sink: Callable[[memoryview], object], *, progress: Progress | None = None) -> Hashes:
    """Read a file once, hash it and hand every buffer to `sink`.

    Raises:
        UsageError: The file was written while it was read.
        OSError: It cannot be read, or `sink` cannot write.
    """
    hashes = TwoHashes()
    buffer = memoryview(bytearray(BUFFER_BYTES))
    try:
        with path.open("rb", buffering=0) as file:
            before = FileStamp.of(file.fileno())
            while n := file.readinto(buffer):
                hashes.update(buffer[:n])
                sink(buffer[:n])
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


def hash_pieces(
    pieces: Iterable[bytes], sink: Callable[[bytes], object], *, progress: Progress | None = None
) -> Hashes:
    """Hash a stream and hand every piece to `sink`."""
    hashes = TwoHashes()
    try:
        for piece in pieces:
            hashes.update(piece)
            sink(piece)
            if progress is not None:
                progress(len(piece))
    except BaseException:
        hashes.finish()
        raise
    return hashes.finish()
