"""Reads blobs and trees without starting a process (pygit2), but for what a partial clone has to fetch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dvc_modelver.errors import EnvironmentFailed, NotFoundError, UsageError
from dvc_modelver.git.porcelain import Git

if TYPE_CHECKING:
    import pygit2


class ObjectReader:
    """The object database of one repository, read only.

    With `is_other` it is not the repository whose hook may be running; see `Git`.
    """

    def __init__(self, git_dir: Path, *, is_other: bool = False) -> None:
        import pygit2

        self._git = Git(git_dir, is_other=is_other)
        try:
            self._repo = pygit2.Repository(str(git_dir), pygit2.enums.RepositoryOpenFlag.NO_SEARCH)
        except pygit2.GitError as err:
            raise EnvironmentFailed(f"{git_dir}: cannot be read ({err})", hint="git fsck") from err

    def head(self) -> str | None:
        """Give the commit of HEAD; None before the first one."""
        import pygit2

        try:
            return str(self._repo.head.peel(pygit2.Commit).id)
        except pygit2.GitError:
            return None

    def find_ref(self, name: str) -> str | None:
        """Give the commit that a ref points at; None where there is no such ref, or it is no commit's."""
        import pygit2

        try:
            return str(self._repo.references[name].peel(pygit2.Commit).id)
        except (KeyError, ValueError, pygit2.GitError):
            return None

    def has_tags(self) -> bool:
        """Whether there is any tag."""
        return any(name.startswith("refs/tags/") for name in self._repo.references)

    def fetches_no_tags(self) -> bool:
        """Whether a remote is configured to be fetched without its tags, as ``git clone --no-tags`` does."""
        config = self._repo.config
        keys = [f"remote.{name}.tagopt" for name in self._repo.remotes.names() if name]
        return any(key in config and config[key] == "--no-tags" for key in keys)

    def is_ancestor(self, old: str, new: str) -> bool:
        """Whether one commit is another, or in its history."""
        import pygit2

        try:
            return old == new or self._repo.descendant_of(new, old)
        except (ValueError, pygit2.GitError):
            return False  # a shallow history ends before

    def remotes(self) -> dict[str, list[str]]:
        """Give the remotes that are configured: name -> what ``git fetch`` fetches from it."""
        found = {}
        for name in self._repo.remotes.names():
            if name:
                found[name] = [spec for spec in self._repo.remotes[name].fetch_refspecs if spec]
        return found

    def read_blob(self, oid: str, max_bytes: int = 1 << 30) -> bytes:
        """Give a blob's bytes.

        Raises:
            NotFoundError: No such object, and none that a partial clone could fetch.
            UsageError: The blob is larger than `max_bytes`.
        """
        try:
            kind, content = self._repo.read(oid)
        except (KeyError, ValueError) as err:
            return self._fetch_blob(oid, err)
        if kind != _BLOB:
            raise NotFoundError(f"object {oid}: found no blob, expected one")
        if len(content) > max_bytes:
            raise UsageError(f"blob {oid}: {len(content)} bytes, expected at most {max_bytes}")
        return content

    def _fetch_blob(self, oid: str, why: Exception) -> bytes:
        """Have git fetch a blob that a partial clone lacks."""
        code, content = self._git.run_for_code("cat-file", "blob", oid, codes=(0, 1, 128))
        if code != 0:
            raise NotFoundError(f"blob {oid}: not in this repository", hint="git fetch --refetch") from why
        return content

    def prefetch(self, oids: Iterable[str]) -> None:
        """Have git fetch the blobs that a partial clone lacks, all at once; elsewhere, and offline, nothing is done."""
        config = self._repo.config
        promisors = [name for name in self._repo.remotes.names() if name and f"remote.{name}.promisor" in config]
        if not promisors:
            return
        missing = [oid for oid in dict.fromkeys(oids) if set(oid) != {"0"} and oid not in self._repo.odb]
        if missing:
            self._git.run_for_code(
                "-c", "fetch.negotiationAlgorithm=noop", "fetch", promisors[0], "--quiet", "--no-tags",
                "--no-write-fetch-head", "--recurse-submodules=no", "--filter=blob:none", "--stdin",
                stdin="".join(f"{oid}\n" for oid in missing).encode(), codes=(0, 1, 128),
            )  # fmt: skip

    def blob_size(self, oid: str) -> int:
        """Give a blob's size in bytes without reading it; 0 for an object that is no blob or not here."""
        try:
            return int(self._repo.odb.read_header(oid)[1])
        except KeyError:
            return 0

    def find_blob(self, commit: str, path: str) -> str | None:
        """Give the id of the blob at `path` in a commit; None where there is none."""
        import pygit2

        node: pygit2.Object = self._repo[commit].peel(pygit2.Tree)
        for part in path.split("/"):
            if not isinstance(node, pygit2.Tree) or part not in node:
                return None
            try:
                node = node[part]
            except KeyError:
                return None
        return str(node.id) if isinstance(node, pygit2.Blob) else None

    def read_file(self, commit: str, path: str) -> bytes | None:
        """Give the bytes at `path` in a commit; None where there is no such file."""
        oid = self.find_blob(commit, path)
        return None if oid is None else self.read_blob(oid)

    def iter_files(self, commit: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
        """Give (path, blob id) of every file of a commit whose path is `wanted`, in the order of paths."""
        import pygit2

        def walk(tree: pygit2.Tree, prefix: str) -> Iterator[tuple[str, str]]:
            for entry in tree:
                path = prefix + os.fsdecode(entry.raw_name or b"")
                if entry.filemode == pygit2.enums.FileMode.TREE:
                    yield from walk(self._repo[entry.id].peel(pygit2.Tree), path + "/")
                elif entry.filemode != pygit2.enums.FileMode.COMMIT and wanted(path):
                    yield path, str(entry.id)

        yield from walk(self._repo[commit].peel(pygit2.Tree), "")

    def iter_notes(self, commit: str) -> Iterator[tuple[str, str, str]]:
        """Give (annotated id, path, blob id) of every note in a commit of a notes ref, whatever its fan-out.

        Source: git-notes(1), "the path name is the object name, with directory separators here and there".
        """
        import pygit2

        root = self._repo[commit].peel(pygit2.Tree)
        length = 2 * len(root.id.raw)

        def walk(tree: pygit2.Tree, prefix: str, digits: str) -> Iterator[tuple[str, str, str]]:
            for entry in tree:
                name = os.fsdecode(entry.raw_name or b"")
                if not set(name) <= _HEX:
                    continue
                known = digits + name
                if isinstance(entry, pygit2.Blob) and len(known) == length:
                    yield known, prefix + name, str(entry.id)
                elif isinstance(entry, pygit2.Tree) and len(name) == 2 and len(known) < length:
                    yield from walk(entry, f"{prefix}{name}/", known)

        yield from walk(root, "", "")

    def find_notes(self, commit: str, oid: str) -> list[tuple[str, str]]:
        """Give (path, blob id) of the notes of one object in a commit of a notes ref; rarely more than one."""
        import pygit2

        tree, prefix, digits, found = self._repo[commit].peel(pygit2.Tree), "", oid, []
        while digits:
            note = _entry(tree, digits)
            if isinstance(note, pygit2.Blob):
                found.append((prefix + digits, str(note.id)))
            below = _entry(tree, digits[:2])
            if not isinstance(below, pygit2.Tree):
                break
            tree, prefix, digits = below, f"{prefix}{digits[:2]}/", digits[2:]
        return found


_HEX = frozenset("0123456789abcdef")
_BLOB = 3
"""Git's number for a blob. Source: gitformat-pack(5), "Object types"."""


def _entry(tree: pygit2.Tree, name: str) -> pygit2.Object | None:
    try:
        return tree[name]
    except KeyError:
        return None
