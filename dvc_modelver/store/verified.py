"""Remembers which objects of the cache were hashed, so that none is hashed twice and none is trusted unread."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from dvc_modelver.store.hashing import FileStamp


class Verified:
    """Objects whose bytes are known to be what their name says, until their file moves.

    Args:
        file: Where it is kept; may be deleted at any time.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stamps: dict[str, list[int]] | None = None

    def knows(self, oid: str, path: Path) -> bool:
        """Whether the object at `path` was verified, and not written since."""
        return self._read().get(oid) == _stamp(path)

    def note(self, oid: str, path: Path) -> None:
        """Take down that the object at `path` has just been verified."""
        stamp = _stamp(path)
        if self._read().get(oid) != stamp:
            self._stamps = None  # another process may have written since
            self._write(self._read() | {oid: stamp})

    def note_link(self, oid: str, path: Path) -> None:
        """Take down a new hard link to a verified object: it moves the file's change time, not its bytes."""
        known, stamp = self._read().get(oid), _stamp(path)
        if known is not None and (known[0], known[1], known[3]) == (stamp[0], stamp[1], stamp[3]):
            self.note(oid, path)

    def _read(self) -> dict[str, list[int]]:
        if self._stamps is None:
            try:
                found = json.loads(self._file.read_bytes())
            except (OSError, ValueError):
                found = {}
            self._stamps = found if isinstance(found, dict) else {}
        return self._stamps

    def _write(self, stamps: dict[str, list[int]]) -> None:
        self._stamps = stamps
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            fd, temp = tempfile.mkstemp(prefix=f".{self._file.name}.", dir=self._file.parent)
            with os.fdopen(fd, "w") as file:
                json.dump(stamps, file, separators=(",", ":"))
            Path(temp).replace(self._file)
        except OSError:
            return  # it only saves time


def _stamp(path: Path) -> list[int]:
    found = FileStamp.of(path)
    return [found.size, found.mtime_ns, found.ctime_ns, found.inode]
