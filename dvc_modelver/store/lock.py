"""Locks of files. One keeps ``gc`` from taking objects away while they are sent; neither waits for anything else."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

QUIET_S = 1.0
"""Who waits no longer than this says nothing."""


def wait_for(file: IO[str], kind: int, announce: Callable[[], None]) -> None:
    """Take a lock of a file, however long that takes.

    Args:
        file: An open file.
        kind: ``LOCK_EX`` or ``LOCK_SH``.
        announce: Called where it takes a while, before the rest of it.
    """
    limit = time.monotonic() + QUIET_S
    while time.monotonic() < limit:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return
    announce()
    fcntl.flock(file, kind)


@contextmanager
def held(folder: Path, say: Callable[[str], None], *, alone: bool) -> Iterator[None]:
    """Hold the lock of a repository's objects; one that waits says so.

    Args:
        folder: Our state folder that all work trees share.
        say: Takes lines for the user.
        alone: Nobody else may hold it; else any number who are not alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    with (folder / "objects.lock").open("a") as file:
        wait_for(file, kind, lambda: say("waiting for another modelver: one sends objects, the other frees them"))
        yield
