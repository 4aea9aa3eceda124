"""Remembers which files were hashed, so that none is hashed twice, and no object of the cache is trusted unread."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dvc_modelver.store.hashing import FileStamp

MAX_NOTES = 20_000
"""Beyond this, notes on files that are gone are dropped."""


class _Notes:
    """A small JSON file of what only saves time; may be deleted at any time."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._notes: dict[str, Any] | None = None

    def _worth_keeping(self, notes: dict[str, Any]) -> dict[str, Any]:
        return notes

    def _read(self) -> dict[str, Any]:
        if self._notes is None:
            try:
                found = json.loads(self._file.read_bytes())
            except (OSError, ValueError):
                found = {}
            self._notes = found if isinstance(found, dict) else {}
        return self._notes

    def _add(self, notes: Mapping[str, Any]) -> None:
        self._notes = None  # another process may have written since
        self._notes = self._read() | dict(notes)
        if len(self._notes) > MAX_NOTES:
            self._notes = self._worth_keeping(self._notes)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            fd, temp = tempfile.mkstemp(prefix=f".{self._file.name}.", dir=self._file.parent)
            with os.fdopen(fd, "w") as file:
                json.dump(self._notes, file, separators=(",", ":"))
            Path(temp).replace(self._file)
        except OSError:
            return  # it only saves time


class Verified(_Notes):
    """Objects whose bytes are known to be what their name says, until their file moves.

    Args:
        file: Where it is kept.
    """

    def knows(self, oid: str, path: Path) -> bool:
        """Whether the object at `path` was verified, and not written since."""
        return bool(self._read().get(oid) == _stamp(path))

    def note(self, oid: str, path: Path) -> None:
        """Take down that the object at `path` has just been verified."""
        stamp = _stamp(path)
        if self._read().get(oid) != stamp:
            self._add({oid: stamp})

    def note_link(self, oid: str, path: Path) -> None:
        """Take down a new hard link to a verified object: it moves the file's change time, not its bytes."""
        known, stamp = self._read().get(oid), _stamp(path)
        if known is not None and (known[0], known[1], known[3]) == (stamp[0], stamp[1], stamp[3]):
            self.note(oid, path)


class Hashed(_Notes):
    """The md5 of files of the work tree, until they move.

    Args:
        file: Where it is kept.
    """

    def find(self, path: Path) -> str | None:
        """Give the md5 of a file that was not written since it was hashed; None for any other."""
        known = self._read().get(str(path))
        if not isinstance(known, list) or len(known) != 5:
            return None
        try:
            return str(known[4]) if known[:4] == _stamp(path) else None
        except OSError:
            return None

    def note(self, found: Mapping[Path, str]) -> None:
        """Take down the md5 of files that were just hashed, or put there."""
        notes: dict[str, Any] = {}
        for path, md5 in found.items():
            try:
                notes[str(path)] = [*_stamp(path), md5]
            except OSError:
                continue
        if notes:
            self._add(notes)

    def _worth_keeping(self, notes: dict[str, Any]) -> dict[str, Any]:
        return {path: note for path, note in notes.items() if os.path.lexists(path)}


def _stamp(path: Path) -> list[int]:
    found = FileStamp.of(path)
    return [found.size, found.mtime_ns, found.ctime_ns, found.inode]
