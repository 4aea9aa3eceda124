"""Hashes a file while it is written."""

from __future__ import annotations

import queue
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from dvc_modelver.store.hashing import BUFFER_BYTES, Hasher, Hashes, rotate_buffers


class FollowingHasher:
    """Hashes a file, in a thread of its own, while it is written from its beginning to its end.

    Args:
        path: The file, which is there already.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._is_wanted = path, True
        self._written: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(1)
        self._hashes = self._pool.submit(self._run)

    def __enter__(self) -> FollowingHasher:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_wanted = False
        self._written.put(None)
        self._pool.shutdown()

    def advance(self, n_bytes: int) -> None:
        """Take note that so many bytes more are written, and stay as they are."""
        self._written.put(n_bytes)

    def finish(self) -> Future[Hashes]:
        """Have the rest hashed: the file is complete, and nothing of it is held in memory."""
        self._written.put(None)
        return self._hashes

    def _run(self) -> Hashes:
        hasher, buffers = Hasher(), rotate_buffers()
        try:
            with self._path.open("rb", buffering=0) as file:
                ready = 0
                while (n := self._written.get()) is not None:
                    ready += n
                    while ready >= BUFFER_BYTES and (n := file.readinto(buffer := next(buffers))):
                        hasher.update(buffer[:n])
                        ready -= n
                while self._is_wanted and (n := file.readinto(buffer := next(buffers))):
                    hasher.update(buffer[:n])
        except BaseException:
            hasher.close()
            raise
        return hasher.finish()
