"""Looks at the models of a work tree: what each is now, and what the law says of it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dvc_modelver.errors import BadMetadataError, UsageError
from dvc_modelver.progress import ProgressLine
from dvc_modelver.repository import Repository, TrackedModel
from dvc_modelver.store.folders import folder_bytes, is_folder_oid, iter_files
from dvc_modelver.store.pointers import Pointer
from dvc_modelver.views import CommitView
from dvc_modelver.worktree.describe import OPAQUE, Contents, read_contents
from dvc_modelver.worktree.law import Action, Decision, decide
from dvc_modelver.worktree.state import ABSENT, UNSETTLED, State, stamp_of

WRITING_NS = 5_000_000_000
"""A file that ends early counts as being written for so long after it was modified."""


@dataclass(frozen=True)
class Seen:
    """One model as it lies in the work tree, and what the law says of it.

    Attributes:
        agreed: K.
        md5: M; None for no file; starts with ``?`` when the file was too large to hash now, or is being written.
        stamp: The model file's stamp when it was looked at.
        contents: Known only when the file was read just now.
        is_committed: HEAD has metadata and pointer as they are here, though of two versions.
        unfinished: Why the file counts as being written: it moved while it was read, or was written just now and
            cannot be read; empty when it does not.
    """

    model: TrackedModel
    agreed: str | None
    md5: str | None
    stamp: str
    decision: Decision
    contents: Contents | None = None
    is_committed: bool = False
    unfinished: str = ""

    @property
    def path(self) -> str:
        """The model's path."""
        return self.model.path

    def is_unstaged(self, staged: bytes | None) -> bool:
        """Whether model and metadata agree, but the metadata in the index is another version's.

        Args:
            staged: The metadata file as the index has it; None where it has none.
        """
        settled = self.action in (Action.NOTHING, Action.AGREE) and self.model.metadata is not None
        return settled and not self.is_outdated and self.md5 is not None and self.md5.encode() not in (staged or b"")

    @property
    def is_outdated(self) -> bool:
        """Whether the weights are those of the pointer, and the metadata describes others: it was left behind."""
        metadata, pointer = self.model.metadata, self.model.pointer
        return metadata is not None and metadata.md5 != pointer.md5 and self.md5 == pointer.md5

    @property
    def disagreement(self) -> str:
        """What metadata and pointer name, where somebody moved the pointer without this tool."""
        described = self.model.metadata.md5 if self.model.metadata is not None else ""
        pointer = self.model.pointer.md5 or ""
        return f"the pointer names {pointer[:8]} (moved without modelver), the metadata describes {described[:8]}"

    @property
    def action(self) -> Action:
        """What is to be done."""
        return self.decision.action


def look(
    repo: Repository,
    state: State,
    *,
    max_bytes: int | None = None,
    only: Iterable[str] | None = None,
    storing: bool = False,
) -> list[Seen]:
    """Look at every model of the work tree, hashing only those whose stamp moved.

    Args:
        repo: The repository.
        state: What was seen before.
        max_bytes: A larger file that moved is not hashed; its md5 counts as unlike any other.
        only: Paths to look at; all by default.
        storing: Put what is read into the cache in the same pass.
    """
    wanted = None if only is None else set(only)
    models = repo.models(repo.work_tree)
    return [
        see(repo, state, model, max_bytes, storing=storing)
        for model in models
        if wanted is None or model.path in wanted
    ]


def see(
    repo: Repository, state: State, model: TrackedModel, max_bytes: int | None = None, *, storing: bool = False
) -> Seen:
    """Look at one model, as `look` does at all."""
    row = state.rows.get(model.path)
    file = repo.top / model.path
    is_of_its_kind = file.is_dir() == model.pointer.is_folder
    stamp, md5, contents = stamp_of(file) if is_of_its_kind else ABSENT, None, None
    described = model.metadata.md5 if model.metadata is not None else None
    unfinished = ""
    if row is not None and not (stamp == ABSENT and row.pointer_stamp == ABSENT):
        agreed = row.agreed or None
    elif state.known and stamp == ABSENT:
        agreed = None  # its pointer came back (a revert, another branch): the weights follow
    else:
        agreed = committed_md5(repo, model.path)
    if stamp != ABSENT:
        if row is not None and row.md5 and row.model_stamp == stamp:
            md5 = row.md5
        elif max_bytes is not None and folder_bytes(file) > max_bytes:
            md5 = f"?{stamp}"
        else:
            before = time.time_ns()
            with ProgressLine(f"reading {model.path}", folder_bytes(file)) as progress:
                cache = repo.cache(model.path)
                hash_with = partial(cache.store_path, link=False) if storing else cache.hash_path
                try:
                    contents = read_contents(file, model.path, hash_with=hash_with, progress=progress)
                except UsageError:
                    unfinished = "its size or time moved while it was read"
            if contents is not None:
                md5, stamp = contents.hashes.md5, stamp_of(file, at_ns=before)
                is_known = md5 in (agreed, described, model.pointer.md5)
                is_cut = bool(contents.warning) and not is_known and _was_readable(model)
                unfinished = contents.warning if is_cut and _was_written_now(file) else ""
            if unfinished:
                md5, stamp, contents = f"?{stamp}", UNSETTLED, None
    is_committed = _is_committed_apart(repo, model)
    decision = decide(agreed, md5, described, model.pointer.md5, committed_apart=is_committed)
    if decision.action is Action.DESCRIBE and model.pointer.kind == "lock" and md5 == described:
        decision = Decision(Action.NOTHING)  # described already; dvc.lock is dvc repro's to write
    if decision.action is Action.CONFLICT and agreed is None and _is_part_of(repo, model, described):
        decision = Decision(Action.FOLLOW, described)
    if model.problem:
        decision = Decision(Action.CONFLICT if decision.action is not Action.NOTHING else Action.NOTHING)
    return Seen(model, agreed, md5, stamp, decision, contents, is_committed, unfinished)


def _was_readable(model: TrackedModel) -> bool:
    return model.metadata is not None and model.metadata.model.format != OPAQUE


def _was_written_now(file: Path) -> bool:
    """Whether a file, or the newest one of a folder, was modified within the last few seconds, or by a clock ahead."""
    stamp = stamp_of(file)
    return stamp != ABSENT and time.time_ns() - int(stamp.split(":")[1]) < WRITING_NS


def _is_committed_apart(repo: Repository, model: TrackedModel) -> bool:
    """Whether metadata and pointer name two versions, and HEAD has both as they are here."""
    described, pointer = model.metadata.md5 if model.metadata is not None else None, model.pointer
    if None in (described, pointer.md5, repo.head) or described == pointer.md5:
        return False
    return committed_md5(repo, model.path) == described and committed_pointer(repo, pointer) == pointer.md5


def _is_part_of(repo: Repository, model: TrackedModel, target: str | None) -> bool:
    """Whether every file of a folder on disk is one of the recorded folder, so that nothing is lost by following it."""
    cache, folder = repo.cache(model.path), repo.top / model.path
    if not is_folder_oid(target) or target is None or target != model.pointer.md5 or not cache.has(target):
        return False
    recorded = dict(cache.iter_folder(target))
    return all(cache.hash_path(folder / name).md5 == recorded.get(name) for name, _ in iter_files(folder))


def committed_md5(repo: Repository, path: str) -> str | None:
    """Give the md5 that HEAD's metadata names for a model; None where HEAD has none."""
    if repo.head is None:
        return None
    try:
        metadata = repo.metadata(CommitView(repo.head, repo.objects), path)
    except BadMetadataError:
        return None
    return None if metadata is None else metadata.md5


def committed_pointer(repo: Repository, pointer: Pointer) -> str | None:
    """Give the md5 that a pointer names in HEAD; None where HEAD has none."""
    if repo.head is None:
        return None
    try:
        found = repo.pointers_in(CommitView(repo.head, repo.objects), pointer.file)
    except BadMetadataError:
        return None
    return next((p.md5 for p in found if p.path == pointer.path), None)
