"""index --backfill: metadata for commits that have models and were made before there was any."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dvc_modelver.checks import parents_of
from dvc_modelver.errors import BadMetadataError, ModelverError, UsageError, word
from dvc_modelver.metadata import ModelMetadata, metadata_path, table_path
from dvc_modelver.progress import ProgressLine
from dvc_modelver.registry.backfill import Backfilled, keep, read_backfill, read_backfilled_table
from dvc_modelver.repository import Repository, is_pointer_file
from dvc_modelver.store.folders import is_folder_oid
from dvc_modelver.store.pointers import Pointer
from dvc_modelver.transfer import Wanted, fetch
from dvc_modelver.views import CommitView
from dvc_modelver.worktree.describe import KnownVersion, describe_as, read_contents

Say = Callable[[str], None]
_AT_ONCE = 20
"""Versions that are fetched, described and noted together; a run that is stopped loses at most these."""


@dataclass
class Indexed:
    """What `index` did.

    Attributes:
        described: Commit and metadata of each version that was noted now, oldest first.
        known: Versions that had a note, or the same bytes as another.
        failed: ``commit path`` -> why it could not be described.
    """

    described: list[tuple[str, ModelMetadata]] = field(default_factory=list)
    known: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def index(backfill: str, *, say: Say = lambda _line: None, folder: Path | None = None) -> Indexed:
    """Describe the models of commits that have their pointers and no metadata, and keep that in Git notes.

    No commit changes. Objects come from the cache or the remote, verified by md5. What has a note already is left,
    so that a run that was stopped goes on where it was.

    Args:
        backfill: ``OLD..``, ``OLD..NEW``, or one revision for all commits up to it.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.

    Raises:
        NotFoundError: No such revision.
        UsageError: Git knows no user.
    """
    repo = Repository.open(folder)
    repo.dvc_root()
    old, dots, new = backfill.partition("..")
    tip = repo.git.commit_of((new.lstrip(".") or "HEAD") if dots else old)
    known = [repo.git.commit_of(old)] if dots and old else []
    job = _Job(repo, say)
    todo = list(job.find(tip, known))
    job.total = len({one.key for one in todo} - job.versions.keys())
    for start in range(0, len(todo), _AT_ONCE):
        job.describe(todo[start : start + _AT_ONCE])
    return job.done


@dataclass(frozen=True)
class _Todo:
    commit: str
    pointer: Pointer

    @property
    def key(self) -> tuple[str, str]:
        return self.pointer.path, self.pointer.md5 or ""


class _Job:
    def __init__(self, repo: Repository, say: Say) -> None:
        self.repo, self.say = repo, say
        self.done = Indexed()
        self.lost: set[tuple[str, str]] = set()
        self.total = 0
        backfill = read_backfill(repo.objects)
        self.noted = {(commit, one.path) for commit, found in backfill.by_commit.items() for one in found}
        self.versions = {
            (path, md5): KnownVersion(one.metadata, read_backfilled_table(repo.objects, one.metadata))
            for path, found in backfill.by_object.items()
            for md5, one in found.items()
        }

    def find(self, tip: str, known: list[str]) -> Iterator[_Todo]:
        """Give what is to be described, oldest commit first."""
        args = ("--reverse", "--topo-order", "--diff-merges=first-parent", tip, "--not", *known, "--")
        for logged, change in self.repo.git.iter_changes(*args, "*.dvc", "*dvc.lock"):
            commit = logged.id
            if not is_pointer_file(change.path) or change.status == "D":
                continue
            view = CommitView(commit, self.repo.objects)
            try:
                pointers = self.repo.pointers_in(view, change.path)
            except BadMetadataError as err:
                self.done.failed[f"{commit[:8]} {change.path}"] = str(err)
                continue
            for pointer in pointers:
                if view.read(metadata_path(pointer.path)) is not None or not self.repo.is_model(view, pointer):
                    continue
                if (commit, pointer.path) in self.noted:
                    self.done.known += 1
                else:
                    yield _Todo(commit, pointer)

    def describe(self, some: list[_Todo]) -> None:
        """Describe and note some versions."""
        new = [todo for todo in some if todo.key not in self.versions]
        got = fetch(self.repo, [Wanted(todo.pointer, todo.commit) for todo in new], self.say)
        found = []
        for todo in some:
            version = self.versions.get(todo.key)
            try:
                if (todo.pointer.md5 or "") in got.failed:
                    raise UsageError(got.failed[todo.pointer.md5 or ""].replace("\nhint: ", "; "))
                if version is None:
                    version = self.versions[todo.key] = self._described(todo)
                    self.done.described.append((todo.commit, version.metadata))
                else:
                    self.done.known += 1
            except ModelverError as err:
                self.done.failed[f"{todo.commit[:8]} {todo.pointer.path}"] = str(err)
                self.lost.add(todo.key)
                continue
            found.append(Backfilled(todo.commit, todo.pointer.file, version.metadata, version.table))
        keep(self.repo.git, self.repo.objects, found)

    def _described(self, todo: _Todo) -> KnownVersion:
        pointer, view = todo.pointer, CommitView(todo.commit, self.repo.objects)
        path, md5 = todo.key
        if is_folder_oid(md5) and pointer.legacy:
            raise UsageError(f"{path}: a folder of DVC before 3.0", hint=f"modelver add {word(path)}")
        cache = self.repo.cache(pointer.file)
        stored = cache.open_folder(md5) if is_folder_oid(md5) else cache.path_of(md5, legacy=pointer.legacy)
        hashes = cache.hash_object(md5, legacy=pointer.legacy)
        where = f"version {len(self.done.described) + len(self.done.failed) + 1} of {self.total}, {path}"
        with ProgressLine(f"describing {where}", hashes.size) as progress:
            contents = read_contents(stored, path, hashes, progress=progress)
        parents = {known.metadata.md5: known for known in self._parents(todo)}.values()
        made = describe_as(self.repo, path, contents, list(parents), view=view, pointer=pointer)
        if made.warning:
            self.say(f"{made.warning}; described as an opaque file")
        return KnownVersion(made.metadata, made.table)

    def _parents(self, todo: _Todo) -> Iterator[KnownVersion]:
        """Give the versions that the commits before had: by their metadata files, else of what was backfilled.

        Raises:
            UsageError: One of them should have been backfilled, and could not be.
        """
        pointer = todo.pointer
        for commit in parents_of(self.repo, todo.commit):
            view = CommitView(commit, self.repo.objects)
            try:
                metadata = self.repo.metadata(view, pointer.path)
                before = [p for p in self.repo.pointers_in(view, pointer.file) if p.path == pointer.path]
            except BadMetadataError:
                continue
            if metadata is not None:
                yield KnownVersion(metadata, view.read(table_path(pointer.path)))
                continue
            for key in ((p.path, p.md5 or "") for p in before):
                if key in self.lost:
                    raise UsageError(f"{pointer.path}: the version before it, {key[1][:8]}, could not be described")
                if key in self.versions:
                    yield self.versions[key]
