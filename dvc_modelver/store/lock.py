"""Keeps ``gc`` from taking objects away while they are being sent; both are rare, neither waits for anything else."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


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
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another modelver: one sends objects, the other frees them")
            fcntl.flock(file, kind)
        yield
