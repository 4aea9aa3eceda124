"""Does what the law says with the models of a work tree."""

from __future__ import annotations

import posixpath
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from dvc_modelver.errors import EnvironmentFailed, ModelverError, NotFoundError, word
from dvc_modelver.metadata import ModelMetadata, TrainingFacts, metadata_path, table_path
from dvc_modelver.repository import Repository
from dvc_modelver.store.hashing import Hashes
from dvc_modelver.store.pointers import Pointer, read_pointers, read_wdir, write_pointer
from dvc_modelver.worktree.departed import is_shared, let_go
from dvc_modelver.worktree.describe import Description, describe, find_anywhere, read_contents
from dvc_modelver.worktree.law import Action
from dvc_modelver.worktree.look import Seen, committed_md5, look
from dvc_modelver.worktree.state import ABSENT, UNSETTLED, Row, read_state, stamp_of, write_file, write_state

Say = Callable[[str], None]


class Keeper:
    """Applies the law to a work tree; holds its state while it does.

    Attributes:
        say: Takes one line for the user about each thing done or left.
    """

    def __init__(self, repo: Repository, say: Say) -> None:
        self.repo, self.say = repo, say
        self.state = read_state(repo.layout.state_dir)
        self._again: set[str] = set()

    def look(
        self, *, max_bytes: int | None = None, only: Iterable[str] | None = None, storing: bool = False
    ) -> list[Seen]:
        """Look at the models, as `look` does."""
        return look(self.repo, self.state, max_bytes=max_bytes, only=only, storing=storing)

    def save(self) -> None:
        """Write the state file; rows of models that are no more are dropped by `remember_all`."""
        for path in self._again & self.state.rows.keys():
            self.state.rows[path] = replace(self.state.rows[path], metadata_stamp=UNSETTLED)
        write_state(self.repo.layout.state_dir, self.state)

    def remember(self, seen: Seen, *, agreed: str | None = None, md5: str | None = None) -> None:
        """Record a model as it lies there now.

        Args:
            seen: What was looked at; its stamp is recorded with its md5.
            agreed: The new K; unchanged when not given.
            md5: M, when something of ours just put other bytes there.
        """
        file = self.repo.top / seen.path
        if md5 is not None:
            stamp, known = stamp_of(file, at_ns=time.time_ns() + RELINKED_NS), md5
        else:
            stamp, known = seen.stamp, seen.md5 or ""
        self.state.rows[seen.path] = Row(
            path=seen.path,
            agreed=agreed or seen.agreed or "",
            md5="" if known.startswith("?") else known,
            model_stamp=stamp,
            metadata_stamp=stamp_of(self.repo.top / metadata_path(seen.path)),
            pointer_stamp=stamp_of(self.repo.top / seen.model.pointer.file),
            pointer_path=seen.model.pointer.file,
        )

    def look_again(self, path: str) -> None:
        """Let the next look find that this model moved: its metadata does not say yet what the weights are."""
        self._again.add(path)

    def remember_all(self, found: Iterable[Seen]) -> None:
        """Add a row for the models that have none, and renew those whose files moved.

        Weights that no pointer names now keep their row: it may be in conflict, or Git may be about to write it.
        """
        paths = set()
        for seen in found:
            paths.add(seen.path)
            row = self.state.rows.get(seen.path)
            if row is None or UNSETTLED in (row.model_stamp, seen.stamp) or _is_stale(self.repo, row):
                self.remember(seen, agreed=row.agreed if row is not None else None)
        for path, row in list(self.state.rows.items()):
            if path in paths:
                continue
            if stamp_of(self.repo.top / path) == ABSENT:
                del self.state.rows[path]
                continue
            metadata, pointer = self.repo.top / metadata_path(path), self.repo.top / row.pointer_path
            agreed = (
                "" if is_shared(path, paths) else row.agreed
            )  # a folder's files are models of their own here, or were
            self.state.rows[path] = replace(
                row, agreed=agreed, metadata_stamp=stamp_of(metadata), pointer_stamp=stamp_of(pointer)
            )

    # What the law says

    def agree(self, seen: Seen) -> None:
        """Take note that somebody brought model, metadata and pointer together."""
        self.remember(seen, agreed=seen.md5)

    def describe(self, seen: Seen, *, facts: TrainingFacts | None = None, declared_by: str | None = None,
                 name: str | None = None, progress: Callable[[int], None] | None = None) -> Description:  # fmt: skip
        """Rewrite metadata, tensor table and ``.dvc`` pointer from the model on disk.

        Raises:
            UsageError: The file is being written.
        """
        before = time.time_ns()
        file = self.repo.top / seen.path
        stamp = seen.stamp if seen.contents is not None else stamp_of(file, at_ns=before)
        contents = seen.contents or read_contents(
            file, seen.path, hash_with=self.repo.cache(seen.path).hash_path, progress=progress
        )
        made = describe(self.repo, seen.path, contents, view=self.repo.work_tree, pointer=seen.model.pointer,
                        facts=facts, declared_by=declared_by, name=name)  # fmt: skip
        write_description(self.repo, seen.path, made)
        md5 = contents.hashes.md5
        write_dvc_pointer(self.repo, seen.model.pointer, seen.path, contents.hashes)
        done = replace(seen, md5=md5, stamp=stamp, contents=contents)
        agree = seen.model.pointer.kind == "dvc" or seen.model.pointer.md5 == md5
        self.remember(done, agreed=md5 if agree else None)
        if made.warning:
            self.say(f"{made.warning}; recorded as an opaque file")
        return made

    def mark_pending(self, seen: Seen) -> None:
        """Write into the metadata that the model moved but is not described yet."""
        metadata = seen.model.metadata
        if metadata is not None and metadata.pending != seen.stamp:
            path = self.repo.top / metadata_path(seen.path)
            write_file(path, replace(metadata, pending=seen.stamp).render())
        self.remember(seen)

    def wait_for(self, seen: Seen) -> None:
        """Leave metadata as it is while the model is being written, and say so once."""
        row = self.state.rows.get(seen.path)
        if row is None or row.md5:
            self.say(f"{seen.path}: still being written; described when that is done")
        self.remember(seen)

    def follow(self, seen: Seen, target: str) -> bool:
        """Make the model the object that is recorded, if the cache has it; the bytes it replaces go there.

        It is K only where metadata and pointer both name it; else `bring_together` comes next.

        Returns:
            False when the cache lacks the object; nothing was touched then.

        Raises:
            ObjectCorrupt: The cache's bytes are not what their name says; nothing was replaced.
        """
        cache, file = self.repo.cache(seen.path), self.repo.top / seen.path
        if not cache.has(target, legacy=seen.model.pointer.legacy):
            return False
        had = seen.md5
        if had is not None and not cache.holds(had):
            had = cache.store_path(file, link=False).md5
        cache.materialise(target, file, legacy=seen.model.pointer.legacy)
        named = {seen.model.pointer.md5, seen.model.metadata.md5 if seen.model.metadata is not None else None}
        self.remember(seen, agreed=target if named <= {target, None} else None, md5=target)
        if had is not None and had != target and not self._is_known(seen.path, had):
            name = seen.model.name
            self.say(
                f"{seen.path}: the weights that were here are in no commit; the cache keeps them\n"
                f"hint: modelver load {word(f'{name}@{had}')} -o FILE gives them back"
            )
        return True

    def _is_known(self, path: str, md5: str) -> bool:
        is_described = bool(find_anywhere(self.repo, {md5})) or self.repo.backfilled(path, md5) is not None
        return is_described or is_pointed_to(self.repo, md5)

    def bring_together(self, seen: Seen, md5: str, *, head_moves: bool = False) -> None:
        """Bring metadata and a ``.dvc`` pointer, of which one was left behind, to the object that is in place now.

        Args:
            seen: What was looked at before.
            md5: The object.
            head_moves: Git may set HEAD only after this: metadata that HEAD does not have yet is left to the next look,
                which knows from it which version was there before.
        """
        metadata, pointer = seen.model.metadata, seen.model.pointer
        if metadata is None or metadata.md5 == pointer.md5:
            return
        if md5 != pointer.md5:
            if pointer.kind == "dvc":
                self.describe(replace(seen, md5=md5, contents=None))
            return
        if head_moves and metadata.md5 not in (seen.agreed, committed_md5(self.repo, seen.path)):
            self.look_again(seen.path)
            return
        self.describe(replace(seen, md5=md5, contents=seen.contents if seen.md5 == md5 else None))
        self.say(f"{seen.path}: {seen.disagreement}; written anew\nhint: git commit -a takes it in")

    def keep_conflict(self, seen: Seen) -> None:
        """Put the model's bytes into the cache as well, and name the conflict."""
        metadata, pointer = seen.model.metadata, seen.model.pointer
        names = f"metadata names {metadata.md5[:8]}" if metadata else f"pointer names {(pointer.md5 or '?')[:8]}"
        if metadata is not None and pointer.md5 is not None and metadata.md5 != pointer.md5:
            names = f"pointer names {pointer.md5[:8]}, metadata describes {metadata.md5[:8]}"
        if seen.md5 is not None and not seen.md5.startswith("?"):
            cache = self.repo.cache(seen.path)
            if not cache.holds(seen.md5):
                cache.store_path(self.repo.top / seen.path, link=False)
        found = "moved" if (seen.md5 or "").startswith("?") else (seen.md5 or "absent")[:8]
        why = seen.model.problem or f"weights are {found}, the checked-out {names}"
        self.say(
            f"conflict: {seen.path}: {why}; nothing was replaced\n"
            f"hint: modelver add {word(seen.path)} keeps these weights as the next version; "
            f"modelver pull --force {word(seen.path)} takes the recorded ones"
        )
        self.remember(seen)


RELINKED_NS = 1_000_000_000
"""A file that we put there ourselves, complete, is settled at once."""


def is_pointed_to(repo: Repository, md5: str) -> bool:
    """Whether a pointer of any branch, tag or stash names an object, with metadata or without."""
    out = repo.git.run(
        "log", "--all", "-1", "--format=%H", "--no-renames", "--diff-merges=first-parent", f"-S{md5}",
        *(["HEAD"] if repo.head else []), "--", "*.dvc", "dvc.lock", "*/dvc.lock", literal=False,
    )  # fmt: skip
    return bool(out.strip())


def _is_stale(repo: Repository, row: Row) -> bool:
    return (
        row.model_stamp != stamp_of(repo.top / row.path)
        or row.metadata_stamp != stamp_of(repo.top / metadata_path(row.path))
        or row.pointer_stamp != stamp_of(repo.top / row.pointer_path)
    )


def write_description(repo: Repository, path: str, made: Description) -> None:
    """Write metadata and tensor table beside a model, where they differ from what is there."""
    write_if_changed(repo.top / metadata_path(path), made.metadata.render())
    table = repo.top / table_path(path)
    if made.table is not None:
        write_if_changed(table, made.table)
    else:
        table.unlink(missing_ok=True)


def write_if_changed(path: Path, content: bytes) -> bool:
    """Replace a file unless it has these bytes already; True when it was written."""
    try:
        if path.read_bytes() == content:
            return False
    except OSError:
        pass
    write_file(path, content)
    return True


def write_dvc_pointer(repo: Repository, pointer: Pointer, path: str, hashes: Hashes) -> None:
    """Bring a ``.dvc`` pointer to an object; ``dvc.lock`` is left to ``dvc repro``."""
    if pointer.kind != "dvc":
        return
    file = repo.top / pointer.file
    old = read_pointer_text(file, pointer.file)
    name = path_in_file(pointer.file, path, old)
    text = write_pointer(old, path_in_file=name, md5=hashes.md5, size=hashes.size, n_files=hashes.n_files)
    write_if_changed(file, text.encode())


def read_pointer_text(disk: Path, file: str) -> str | None:
    """Give the text of a ``.dvc`` file; None where there is none.

    Raises:
        BadMetadataError: It cannot be read.
    """
    if not disk.is_file():
        return None
    text = disk.read_bytes()
    read_pointers(text, file)
    return text.decode()


def path_in_file(pointer_file: str, path: str, text: str | None) -> str:
    """Give the out's path as its ``.dvc`` file spells it.

    Raises:
        BadMetadataError: The file cannot be read.
    """
    wdir = read_wdir(text.encode(), pointer_file) if text is not None else ""
    base = posixpath.normpath(posixpath.join(posixpath.dirname(pointer_file), wdir))
    return posixpath.relpath(path, base)


def apply_law(repo: Repository, say: Say, *, describing: bool, following: bool, storing: bool = False) -> list[Seen]:
    """Look at all models once and do what the law says, as far as the caller may.

    Args:
        repo: The repository.
        say: Takes lines for the user.
        describing: Rewrite metadata of retrained models (when Git looks at the work tree). Files that are
            large or still being written are only marked as pending.
        following: Put recorded objects into place (after a checkout, merge, reset), from the cache only.
        storing: A commit comes next: store what is read in the same pass.

    Returns:
        What is left undone: behind without its object, in conflict, or retrained when not describing.
    """
    keeper = Keeper(repo, say)
    limit = repo.settings.describe_max_bytes
    left = []
    found = keeper.look(max_bytes=limit, storing=storing)
    for seen in found:
        try:
            if not _apply_one(keeper, seen, describing=describing, following=following, committing=storing):
                left.append(seen)
        except (EnvironmentFailed, NotFoundError) as err:
            where = "" if posixpath.basename(seen.path) in str(err) else f"{seen.path}: "
            say(f"{where}{err}" + (f"\nhint: {err.hint}" if err.hint else ""))
            left.append(seen)
    if following:
        let_go(keeper, found)
    keeper.remember_all(found)
    for seen in left:
        if seen.action is Action.DESCRIBE:
            keeper.look_again(seen.path)
    keeper.save()
    return left


def _apply_one(keeper: Keeper, seen: Seen, *, describing: bool, following: bool, committing: bool) -> bool:
    metadata: ModelMetadata | None = seen.model.metadata
    match seen.action:
        case Action.AGREE:
            keeper.agree(seen)
        case Action.DESCRIBE if seen.unfinished and not committing:  # a commit refuses what is pending
            keeper.wait_for(seen)
        case Action.DESCRIBE if seen.is_outdated and seen.is_committed and seen.md5 is not None:
            keeper.bring_together(seen, seen.md5)
        case Action.DESCRIBE if describing:
            if (seen.md5 or "").startswith("?"):
                keeper.mark_pending(seen)
                return True
            try:
                keeper.describe(seen)
            except ModelverError:
                keeper.mark_pending(seen)
        case Action.FOLLOW if following and seen.decision.target is not None:
            if not keeper.follow(seen, seen.decision.target):
                return False
            keeper.bring_together(seen, seen.decision.target, head_moves=True)
        case Action.CONFLICT:
            row = keeper.state.rows.get(seen.path)
            if row is None or _is_stale(keeper.repo, row):
                keeper.keep_conflict(seen)
            return False
        case Action.NOTHING if metadata is not None and metadata.pending is not None:
            if not describing:
                keeper.look_again(seen.path)  # a stash gave back what was pending then
                return True
            path = keeper.repo.top / metadata_path(seen.path)
            write_file(path, replace(metadata, pending=None).render())
            keeper.remember(seen)
        case Action.DESCRIBE | Action.FOLLOW:
            return False
        case _:
            pass
    return True
