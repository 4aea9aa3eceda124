"""The files of a repository in one state: the work tree, the index, a commit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dvc_modelver.errors import UsageError
from dvc_modelver.git.objects import ObjectReader
from dvc_modelver.git.porcelain import Git

if TYPE_CHECKING:
    from dvc_modelver.registry.backfill import Backfill


class View(Protocol):
    """Files of a repository in one state: the work tree, the index, or a commit."""

    label: str

    def read(self, path: str) -> bytes | None:
        """Give the bytes at `path`; None where there is no such file."""

    def paths(self, wanted: Callable[[str], bool]) -> list[str]:
        """Give the paths that are `wanted`, sorted."""


class WorkTreeView:
    """What lies on disk, untracked files that are not ignored included."""

    label = "work tree"

    def __init__(self, top: Path, git: Git) -> None:
        self._top, self._git = top, git

    def read(self, path: str) -> bytes | None:
        """Give the bytes at `path`; None where there is no regular file."""
        target = self._top / path
        try:
            return target.read_bytes() if target.is_file() else None
        except OSError as err:
            raise UsageError(f"{path}: cannot be read ({err.strerror})") from err

    def paths(self, wanted: Callable[[str], bool]) -> list[str]:
        """Give the tracked or untracked paths that are `wanted`; ignored ones are not looked at."""
        out = self._git.paths("ls-files", "-c", "-o", "--exclude-standard", "-z")
        return sorted({p for p in out if wanted(p) and os.path.lexists(self._top / p)})


class IndexView:
    """What is staged; of a path in conflict, nothing.

    Attributes:
        entries: Mode and blob of each path.
    """

    label = "index"

    def __init__(self, git: Git, objects: ObjectReader) -> None:
        self.entries, self._objects = git.index_entries(), objects

    def read(self, path: str) -> bytes | None:
        """Give the staged bytes at `path`."""
        entry = self.entries.get(path)
        return None if entry is None else self._objects.read_blob(entry[1])

    def paths(self, wanted: Callable[[str], bool]) -> list[str]:
        """Give the staged paths that are `wanted`."""
        return sorted(p for p in self.entries if wanted(p))


class CommitView:
    """What a commit holds.

    Args:
        commit: Its full id.
        objects: Reads blobs and trees.
        backfill: Stands in for metadata files and tensor tables that the commit was made without.
    """

    def __init__(self, commit: str, objects: ObjectReader, backfill: Backfill | None = None) -> None:
        self.label = commit[:8]
        self.commit, self._objects, self._backfill = commit, objects, backfill

    def read(self, path: str) -> bytes | None:
        """Give the committed bytes at `path`."""
        found = self._objects.read_file(self.commit, path)
        if found is None and self._backfill is not None:
            return self._backfill.read(self._objects, self.commit, path)
        return found

    def paths(self, wanted: Callable[[str], bool]) -> list[str]:
        """Give the committed paths that are `wanted`."""
        return [path for path, _ in self._objects.iter_files(self.commit, wanted)]
