"""Folders for files that are being written; what a killed process left there is removed by the next one."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STALE_S = 24 * 3600
"""Age at which a temporary file of another machine is taken for abandoned."""


class TempFolder:
    """A folder of temporary files, named after the process that writes them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def new_file(self) -> Iterator[Path]:
        """Give a path that nothing else uses; what is there at the end is removed.

        Raises:
            OSError: The folder cannot be made.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self.sweep()
        path = self._path_for(os.getpid(), str(time.monotonic_ns()))
        try:
            yield path
        finally:
            remove(path)

    def hand_over(self, made: Path, name: str, pid: int) -> None:
        """Leave a complete file at `new_file` for whoever asks for its name first, while process `pid` lives."""
        made.replace(self._path_for(pid, name))

    def take_over(self, name: str, target: Path) -> bool:
        """Move the file that was left under a name; False where none was, or none that can be moved there."""
        for found in self._folder.glob(f"{os.uname().nodename}~*~{name}"):
            try:
                found.replace(target)
            except OSError:
                continue
            return True
        return False

    def _path_for(self, pid: int, name: str) -> Path:
        return self._folder / f"{os.uname().nodename}~{pid}~{name}"

    def sweep(self) -> None:
        """Remove what processes left that are no more."""
        for old in self._folder.iterdir() if self._folder.is_dir() else ():
            try:
                if _is_abandoned(old):
                    remove(old)
            except OSError:
                continue


def open_alone(path: Path) -> int:
    """Open a file that no other process writes, empty, and give its descriptor; waits for one that does.

    A temporary file with a fixed name: what a killed process left there is the next one's.

    Raises:
        OSError: It cannot be opened; a link is not followed.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            is_ours = os.path.samestat(os.fstat(fd), path.lstat())
            if is_ours:
                os.ftruncate(fd, 0)
        except FileNotFoundError:
            is_ours = False  # the other one renamed it
        except BaseException:
            os.close(fd)  # kept open, it would lock out our own next try
            raise
        if is_ours:
            return fd
        os.close(fd)


def permissions(mode: int) -> int:
    """Give what the process's mask leaves of the permissions of a new file or folder."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mode & ~mask


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; nothing where there is nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def separate(path: Path) -> None:
    """Make a file, or the files of a folder, copies of their own where they are links to something else."""
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        if file.is_symlink() or file.stat().st_nlink > 1:
            copy = file.with_name(f".{file.name}~{os.getpid()}")
            try:
                shutil.copyfile(file, copy)
                with copy.open("rb") as opened:
                    os.fsync(opened.fileno())
                copy.replace(file)
            finally:
                copy.unlink(missing_ok=True)


def _is_abandoned(path: Path) -> bool:
    host, _, rest = path.name.partition("~")
    pid = rest.partition("~")[0]
    if host != os.uname().nodename or not pid.isdigit():
        return time.time() - path.stat().st_mtime > STALE_S
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
