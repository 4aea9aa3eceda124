"""Copies files: inside the kernel where it can, synced on the way, for the work tree ahead of time."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dvc_modelver.errors import EnvironmentFailed, environment_error, word
from dvc_modelver.progress import human_bytes
from dvc_modelver.store.hashing import Progress
from dvc_modelver.store.temp import TempFolder

COPY_BYTES = 64 << 20


class CopyAhead:
    """A copy of a file that is to be an object, for the work tree; none where there is no place for it.

    Args:
        folder: Where it waits.
        temp: Where it is made.
        pid: The process in whose lifetime it is wanted.
    """

    def __init__(self, folder: TempFolder | None, temp: Path | None, pid: int) -> None:
        self._folder, self._temp, self._pid = folder, temp, pid

    def copy(self, source: Path) -> None:
        """Copy the complete file, if the disk has room for that and more."""
        if self._temp is None:
            return
        try:
            if shutil.disk_usage(self._temp.parent).free >= 2 * source.stat().st_size:
                copy_bytes(source, self._temp, None)
        except OSError:
            self._temp.unlink(missing_ok=True)  # it only saves time

    def keep(self, md5: str) -> None:
        """Leave the copy for the one who puts the object `md5` into the work tree."""
        if self._folder is not None and self._temp is not None and self._temp.is_file():
            with suppress(OSError):
                self._folder.hand_over(self._temp, ahead_name(md5), self._pid)


def ahead_name(oid: str) -> str:
    """Give the name under which a copy of an object waits."""
    return f"ahead-{oid}"


def copy_bytes(source: Path, target: Path, progress: Progress | None) -> None:
    """Copy a file inside the kernel, or by reflink, and sync it."""
    if reflink(source, target):
        return
    with source.open("rb", buffering=0) as old, target.open("wb", buffering=0) as new:
        for n in _iter_copied(old.fileno(), new.fileno()):
            if progress is not None:
                progress(n)
        os.fsync(new.fileno())


def _iter_copied(source: int, target: int) -> Iterator[int]:
    """Copy from one descriptor to the end of the file of another one; give the number of bytes of each step."""
    try:
        while n := os.copy_file_range(source, target, COPY_BYTES):
            yield n
    except (OSError, AttributeError) as err:
        if getattr(err, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
    while n := os.sendfile(target, source, None, COPY_BYTES):  # two file systems, or a kernel that cannot
        yield n


class SyncedWriter:
    """Writes buffers to a file and has them synced on the way, while the next ones are hashed."""

    def __init__(self, fd: int) -> None:
        self._fd, self._unsynced = fd, 0

    def __call__(self, data: memoryview | bytes) -> None:
        """Write the next bytes.

        Raises:
            OSError: The disk is full.
        """
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        self._unsynced += len(data)
        if self._unsynced >= COPY_BYTES:
            os.fsync(self._fd)
            self._unsynced = 0


def reflink(source: Path, target: Path) -> bool:
    """Share a file's blocks, copied when one is written; False where the file system cannot."""
    import fcntl

    ficlone = 0x40049409  # _IOW(0x94, 9, int), linux/fs.h
    try:
        with source.open("rb") as old, target.open("wb") as new:
            fcntl.ioctl(new.fileno(), ficlone, old.fileno())
            os.fsync(new.fileno())
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.ENOENT):
            raise
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Have a folder's names on disk, so that a rename survives a crash."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def disk_error(err: OSError, folder: Path, needed: int, what: str) -> EnvironmentFailed:
    """Give the error of a failed write, with what is needed and what is free."""
    if err.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and err.filename is not None:
        return environment_error(err)
    if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        try:
            free = human_bytes(shutil.disk_usage(folder).free)
        except OSError:
            free = "unknown"
        need = f"{human_bytes(needed)} needed, " if needed else ""
        return EnvironmentFailed(f"{what} {folder}: the disk is full ({need}{free} free)", hint=f"df -h {word(folder)}")
    return EnvironmentFailed(f"{what} {folder}: {err.strerror or err}", hint=f"ls -ld {word(folder)}")
