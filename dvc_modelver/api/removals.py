"""Models that one side of a merge removed and the other changed: kept or removed as a whole, with all their files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dvc_modelver.errors import BadMetadataError
from dvc_modelver.metadata import find_model_path, metadata_path, table_path
from dvc_modelver.repository import Repository
from dvc_modelver.store.pointers import read_pointers
from dvc_modelver.worktree.resolved import HEADS
from dvc_modelver.worktree.sync import Keeper, Say, write_if_changed
from dvc_modelver.worktree.track import Tracker, ignore_file

Oids = tuple[str | None, str | None, str | None]
"""Blobs of base, ours and theirs; None where one has no such file."""

_HEADS = ("HEAD", *HEADS, "refs/stash")
"""Where the version that one side has may be committed."""


@dataclass(frozen=True)
class Removal:
    """A model that one side removed and the other changed.

    Attributes:
        path: The model.
        side: Who removed it: ``ours`` or ``theirs``.
        blobs: Its files in conflict, and the blobs that the other side has.
    """

    path: str
    side: str
    blobs: Mapping[str, str]

    @property
    def other(self) -> str:
        """The side that changed it."""
        return "theirs" if self.side == "ours" else "ours"


def removed_by(oids: Oids) -> str:
    """Give the side that removed a file which the other changed; empty where that is not the conflict."""
    base, ours, theirs = oids
    if base is None or (ours is None) == (theirs is None):
        return ""
    return "ours" if ours is None else "theirs"


def find_removals(repo: Repository, unmerged: Mapping[str, Oids]) -> dict[str, Removal]:
    """Give path -> model that one side removed, from the files in conflict."""
    found: dict[str, Removal] = {}
    for file, oids in unmerged.items():
        side, blob = removed_by(oids), oids[1] or oids[2]
        path = _model_of(repo, file, blob) if side and blob else None
        if path is not None and blob is not None:
            known = found.get(path, Removal(path, side, {}))
            found[path] = Removal(path, known.side, {**known.blobs, file: blob})
    return found


def _model_of(repo: Repository, file: str, blob: str) -> str | None:
    """Give the model that a file is of; None for data, and for a pointer file that names several outputs."""
    path = find_model_path(file)
    if path is not None or not file.endswith(".dvc"):
        return path
    try:
        outs = read_pointers(repo.objects.read_blob(blob), file)
    except BadMetadataError:
        return None
    return outs[0].path if len(outs) == 1 and repo.is_model(repo.work_tree, outs[0]) else None


def settle_removals(repo: Repository, found: Iterable[tuple[Removal, str]], unmerged: Iterable[str], say: Say) -> None:
    """Keep or remove models as a side has it; files, index and ignore line. Weights follow by the law.

    Args:
        repo: The repository.
        found: The models, and the side that is taken.
        unmerged: All files in conflict; a ``.gitignore`` among them is left to the user.
        say: Takes lines for the user.
    """
    tracker = Tracker(Keeper(repo, say))
    for removal, side in found:
        is_kept = side != removal.side
        path = removal.path
        files = {metadata_path(path), table_path(path), f"{path}.dvc", *removal.blobs}
        blobs: dict[str, bytes | None] = {name: _read(repo, removal, name) if is_kept else None for name in files}
        there = repo.git.index_entries(*files).keys() | removal.blobs.keys()
        for name, content in blobs.items():
            if content is None:
                (repo.top / name).unlink(missing_ok=True)
            else:
                write_if_changed(repo.top / name, content)
        repo.git.stage_blobs({name: text for name, text in blobs.items() if text is not None or name in there})
        if ignore_file(path) not in unmerged:
            (tracker.stage_ignore_line if is_kept else tracker.unstage_ignore_line)(path)


def _read(repo: Repository, removal: Removal, file: str) -> bytes | None:
    """Give a file as the side that kept the model has it; one that it did not change is in its commit alone."""
    if file in removal.blobs:
        return repo.objects.read_blob(removal.blobs[file])
    known, oid = next(iter(removal.blobs.items()))
    text = repo.objects.read_blob(oid)
    for commit in filter(None, map(repo.git.find_commit, _HEADS)):
        if repo.objects.read_file(commit, known) == text:
            return repo.objects.read_file(commit, file)
    return None
