"""Completes the index before a commit: every staged model gets pointer, metadata, table and object."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cached_property, partial

from dvc_modelver.errors import BadMetadataError, RefusedError, UsageError, word
from dvc_modelver.git.porcelain import ZERO_OID, Change
from dvc_modelver.git.process import find_command, is_amending
from dvc_modelver.metadata import ModelMetadata, find_model_path, metadata_path, table_path
from dvc_modelver.repository import Repository, is_pointer_file
from dvc_modelver.store.folders import is_folder_oid
from dvc_modelver.store.gate import MAX_GATE_BYTES, GatePointer, find_gate, is_raw_weights
from dvc_modelver.store.hashing import Hashes
from dvc_modelver.store.pointers import Pointer
from dvc_modelver.views import CommitView, IndexView
from dvc_modelver.worktree.describe import OPAQUE, find_defect
from dvc_modelver.worktree.handover import clear_gates, read_gates
from dvc_modelver.worktree.law import Action
from dvc_modelver.worktree.look import Seen
from dvc_modelver.worktree.remarks import Remarks
from dvc_modelver.worktree.resolved import HEADS, kept_against_removal
from dvc_modelver.worktree.safety import find_unsafe, find_unsafe_raw, refusal
from dvc_modelver.worktree.state import stamp_of, write_file
from dvc_modelver.worktree.sync import Keeper
from dvc_modelver.worktree.track import Tracker, new_pointer

UNFINISHED_HINT = "commit again when training has finished writing it"
OUTSIDE_HINT = "dvc repro; or, to keep these weights: modelver add --accept {}"


class Stager:
    """One pre-commit run.

    Args:
        keeper: Holds the work tree's state.

    Attributes:
        raw: Paths whose raw weights were staged past the filter and are pointers now.
    """

    def __init__(self, keeper: Keeper) -> None:
        self.keeper, self.repo = keeper, keeper.repo
        self.tracker, self.remarks = Tracker(keeper), Remarks(keeper.repo, keeper.say)
        self.raw: list[str] = []

    @cached_property
    def _committed(self) -> CommitView:
        return self.repo.at("HEAD")

    def complete(self, *, commit_all: bool, merging: bool = False) -> list[str]:
        """Complete the index; give the paths staged.

        Args:
            commit_all: ``git commit -a``: take in every retrained model.
            merging: This is a merge, whose commit may well change nothing.

        Raises:
            RefusedError: What is staged is not one version, nothing is left to commit, a pipeline's model was changed
                outside it, or loading a new model would run what the settings refuse.
        """
        before = changes = self.repo.git.staged_changes()
        gated = dict(self._find_gated(changes))
        for path, gate in gated.items():
            self._replace_gate(path, gate)
        if commit_all:
            self._take_in_retrained()
        self._conclude_renames()
        changes = self.repo.git.staged_changes()
        self.remarks.name_raw(changes)
        view = self.repo.index()
        self.remarks.name_unknown_settings(changes, view)
        pointers = {p.path: p for p in self.repo.pointers(view)}
        for path in self._affected(changes, pointers, view):
            self._complete_one(path, pointers.get(path), {c.path for c in changes}, view)
        self._measure_amended()
        for path in kept_against_removal(self.repo):
            self.tracker.stage_ignore_line(path)  # the side that removed the model took it away
        self._name_opaque()
        self._refuse_unsafe()
        seen = self._settle()
        self.remarks.name_untracked()
        self.remarks.name_kept_ours()
        if not commit_all:
            self.remarks.name_left_out(seen)
        self.keeper.save()
        clear_gates(self.repo)
        is_empty = bool(before) and not merging and not self.repo.git.staged_changes()
        if is_empty and self.repo.git.find_commit("MERGE_HEAD") is None:
            raise RefusedError("nothing to commit: the models are those of HEAD again", hint="git reset -q")
        return self.tracker.staged

    # Raw weights and gate pointers

    def _find_gated(self, changes: Iterable[Change]) -> Iterator[tuple[str, GatePointer]]:
        attributes = self.repo.git.attributes([c.path for c in changes], "filter")
        for change in changes:
            if not change.new_mode.startswith("100"):
                continue
            size = self.repo.objects.blob_size(change.new_oid)
            gate = find_gate(self.repo.objects.read_blob(change.new_oid)) if size <= MAX_GATE_BYTES else None
            if gate is not None:
                yield change.path, gate
            elif (
                self.repo.settings.is_gated(change.path)
                and attributes.get(change.path, {}).get("filter") in ("modelver", "unspecified")
                and not self._is_kept_raw(change, size)
            ):
                yield change.path, self._store_blob(change)

    def _is_kept_raw(self, change: Change, size: int) -> bool:
        """Whether a raw file stays in Git: weights are there already, or it is a small text."""
        objects = self.repo.objects
        if not is_raw_weights(size, partial(objects.read_blob, change.new_oid)):
            return True
        if change.old_oid == ZERO_OID or not change.old_mode.startswith("100"):
            return False
        return is_raw_weights(objects.blob_size(change.old_oid), partial(objects.read_blob, change.old_oid))

    def _store_blob(self, change: Change) -> GatePointer:
        self.raw.append(change.path)
        self.keeper.say(f"{change.path}: raw weights were staged; they go to the DVC cache, a pointer to Git")
        hashes = self.repo.cache(change.path).store_stream(self.repo.git.iter_blob(change.new_oid))
        return GatePointer(hashes.md5, hashes.sha256, hashes.size)

    def _replace_gate(self, path: str, gate: GatePointer) -> None:
        hashes = Hashes(gate.md5, gate.sha256, gate.size)
        cache = self.repo.cache(path)
        if not cache.has(gate.md5):
            self._restore_object(path, gate.md5)
        pointers = {p.path: p for p in self.repo.pointers(self.repo.work_tree)}
        pointer = pointers.get(path)
        if pointer is not None and pointer.kind == "lock" and pointer.md5 != gate.md5:
            raise RefusedError(
                f"{path}: an output of the pipeline in {pointer.file}, changed outside dvc repro",
                hint=OUTSIDE_HINT.format(word(path)),
            )
        self.tracker.track(path, hashes, pointer)
        file, note = self.repo.top / path, read_gates(self.repo).get(path, {})
        stamp = stamp_of(file)
        if note.get("md5") != gate.md5 or note.get("stamp") != stamp:
            return  # not the bytes that were added; the next look hashes it
        if cache.prefers_links:
            cache.materialise(gate.md5, file)
            stamp = stamp_of(file)
        self.tracker.settle(path, pointer or new_pointer(path, hashes), gate.md5, stamp)

    def _restore_object(self, path: str, md5: str) -> None:
        file = self.repo.top / path
        if file.is_file() and self.repo.cache(path).store_path(file, link=False).md5 == md5:
            return
        raise RefusedError(
            f"{path}: its object {md5} is not in the DVC cache any more, and the file changed",
            hint=f"git add {word(path)}",
        )

    def _model_md5(self, path: str) -> str | None:
        for seen in self.keeper.look(only=[path]):
            return seen.md5
        return None

    # Retrained models

    def _take_in_retrained(self) -> None:
        entries = self.repo.index().entries
        for seen in self.keeper.look():
            if seen.action is Action.DESCRIBE and metadata_path(seen.path) in entries:
                _refuse_unfinished(seen)
                self._refuse_outside(seen)
                self.tracker.add(seen.path, seen.model.pointer)

    def _refuse_outside(self, seen: Seen) -> None:
        pointer = seen.model.pointer
        if pointer.kind == "lock" and seen.md5 != pointer.md5:
            raise RefusedError(
                f"{seen.path}: an output of stage {pointer.stage!r} in {pointer.file}, changed outside dvc repro",
                hint=OUTSIDE_HINT.format(word(seen.path)),
            )

    # One staged model

    def _affected(self, changes: Iterable[Change], pointers: dict[str, Pointer], view: IndexView) -> list[str]:
        paths = set()
        for change in changes:
            model = find_model_path(change.path)
            if change.status == "D":
                if model is not None and change.path == table_path(model):
                    paths.add(model)  # its metadata may have stayed
                continue
            if model is not None:
                paths.add(model)
            elif is_pointer_file(change.path):
                try:
                    staged = self.repo.pointers_in(view, change.path)
                except BadMetadataError as err:
                    raise RefusedError(str(err), hint=err.hint) from err
                before = self._committed_pointers(change)
                paths |= {p.path for p in staged if before.get(p.path) != p.md5 and self.repo.is_model(view, p)}
        return sorted(paths)

    def _committed_pointers(self, change: Change) -> dict[str, str | None]:
        if change.old_oid == ZERO_OID or self.repo.head is None:
            return {}
        try:
            return {p.path: p.md5 for p in self.repo.pointers_in(self._committed, change.path)}
        except BadMetadataError:
            return {}

    def _complete_one(self, path: str, pointer: Pointer | None, staged: set[str], view: IndexView) -> None:
        try:
            metadata = self.repo.metadata(view, path)
        except BadMetadataError as err:
            raise RefusedError(str(err), hint=f"modelver refresh {word(path)}") from err
        if pointer is None:
            moved = find_moved(self.repo, view, path)
            if moved is not None and metadata is not None:
                self.tracker.finish_move(moved, path, metadata)
            else:
                self._stage_pointer_of(path, metadata, view)
            return
        if metadata is not None and metadata.pending is not None:
            self._describe_pending(path, pointer)
            return
        if metadata is not None and metadata.md5 == pointer.md5:
            self._check_object(path, pointer)
            self._check_table(path, metadata, pointer, view)
            return
        if metadata is None or metadata_path(path) not in staged:
            self._describe_object(path, pointer)
            return
        if pointer.kind == "lock":
            raise RefusedError(
                f"{path}: its metadata names {metadata.md5[:8]}, {pointer.file} names {(pointer.md5 or '?')[:8]}: "
                "changed outside dvc repro",
                hint=OUTSIDE_HINT.format(word(path)),
            )
        if pointer.file in staged:
            raise RefusedError(
                f"{path}: the staged metadata is that of {metadata.md5[:8]}, the staged pointer that of "
                f"{(pointer.md5 or '?')[:8]}; expected one version",
                hint=f"modelver add {word(path)}",
            )
        self._stage_pointer_of(path, metadata, view)

    def _stage_pointer_of(self, path: str, metadata: ModelMetadata | None, view: IndexView) -> None:
        """Stage the work tree's pointer along with metadata that was staged without it."""
        if metadata is None:
            return
        found = [p for p in self.repo.pointers(self.repo.work_tree) if p.path == path]
        if not found or found[0].md5 != metadata.md5:
            raise RefusedError(
                f"{path}: metadata of {metadata.md5[:8]} is staged, but no pointer names that object",
                hint=f"modelver add {word(path)}",
            )
        self._check_object(path, found[0])
        self.repo.git.stage_blobs({found[0].file: (self.repo.top / found[0].file).read_bytes()})
        self.tracker.staged.append(found[0].file)
        self._check_table(path, metadata, found[0], view)

    def _describe_pending(self, path: str, pointer: Pointer) -> None:
        seen = next(iter(self.keeper.look(only=[path])), None)
        if seen is None or seen.md5 is None:
            raise RefusedError(
                f"{path}: metadata is pending, but the model is gone",
                hint=f"git restore {word(metadata_path(path))}",
            )
        _refuse_unfinished(seen)
        self._refuse_outside(seen)
        try:
            self.tracker.add(path, pointer)
        except UsageError as err:
            raise RefusedError(str(err), hint=UNFINISHED_HINT) from err

    def _describe_object(self, path: str, pointer: Pointer) -> None:
        """Write metadata for a pointer that was staged without: ``dvc add`` or ``dvc repro`` by hand."""
        if pointer.md5 is None or not self._check_object(path, pointer):
            self.keeper.say(
                f"{path}: metadata cannot be written without the object\n"
                f"hint: modelver pull {word(path)} && modelver refresh {word(path)}"
            )
            return
        cache = self.repo.cache(path)
        with_hashes = self._known_hashes(path, pointer.md5) or cache.hash_object(pointer.md5, legacy=pointer.legacy)
        self.tracker.track(path, with_hashes, pointer)

    def _known_hashes(self, path: str, md5: str) -> Hashes | None:
        """Take the digests from the work tree's metadata where it describes the object already."""
        try:
            metadata = self.repo.metadata(self.repo.work_tree, path)
        except BadMetadataError:
            return None
        if metadata is None or metadata.md5 != md5 or metadata.model.sha256 is None or metadata.pending:
            return None
        return Hashes(md5, metadata.model.sha256, metadata.model.bytes_)

    def _check_object(self, path: str, pointer: Pointer) -> bool:
        """Make sure that a pointer's object is in the cache, from the work tree if need be."""
        cache, md5 = self.repo.cache(path), pointer.md5 or ""
        if cache.has(md5, legacy=pointer.legacy):
            if cache.prefers_links and self._model_md5(path) == md5:
                cache.materialise(md5, self.repo.top / path)
            return True
        if self._model_md5(path) == md5:
            self.tracker.store(path, self._known_hashes(path, md5))
            return True
        self.keeper.say(f"{path}: object {md5[:8]} is not in the DVC cache; git push will look for it on the remote")
        return False

    def _check_table(self, path: str, metadata: ModelMetadata, pointer: Pointer, view: IndexView) -> None:
        if metadata.is_table(view.read(table_path(path))):
            return
        on_disk = self.repo.work_tree.read(table_path(path))
        if on_disk is not None and metadata.is_table(on_disk):
            self.repo.git.stage_blobs({table_path(path): on_disk})
            self.tracker.staged.append(table_path(path))
            return
        self.keeper.say(f"{path}: the staged tensor table is not that of the metadata; rebuilt")
        self._describe_object(path, pointer)

    def _measure_amended(self) -> None:
        """Have versions of ``git commit --amend`` name what the new commit is made from, and the change from there."""
        if not is_amending(find_command(os.environ.get("MODELVER_GIT_PID", "")) or []):
            return
        from dvc_modelver.worktree.amend import measured_again

        view = self.repo.index()
        for path, metadata in measured_again(self.repo, view, self.repo.git.staged_changes()):
            text = metadata.render()
            if self.repo.work_tree.read(metadata_path(path)) == view.read(metadata_path(path)):
                write_file(self.repo.top / metadata_path(path), text)
            self.repo.git.stage_blobs({metadata_path(path): text})
            self.tracker.staged.append(metadata_path(path))

    def _conclude_renames(self) -> None:
        """Merge models that one side renamed, where Git's conflict was resolved by removing the old files."""
        if not any((self.repo.layout.git_dir / name).exists() for name in HEADS):
            return
        from dvc_modelver.worktree.merge_files import choose_version
        from dvc_modelver.worktree.merging import Merger
        from dvc_modelver.worktree.renames import conclude, find_renamed, let_old_go

        for renamed in find_renamed(self.repo):
            chosen = choose_version(Merger(self.repo, self.keeper.say), renamed.new, renamed.versions)
            if not chosen.is_clean:
                raise RefusedError(
                    f"{renamed.new}: {renamed.old} was renamed by {renamed.side}, and both sides trained it; "
                    f"this commit would keep {renamed.side} whole",
                    hint="modelver merge --take ours|theirs|mean decides; modelver merge says what is open",
                )
            made = conclude(self.repo, renamed, chosen)
            self.keeper.say(f"merged {renamed.new}, which was {renamed.old}: {made.md5[:8]}")
            for seen in self.keeper.look(only=[renamed.new]):
                if seen.action is Action.FOLLOW:
                    self.keeper.follow(seen, made.md5)
            let_old_go(self.keeper, renamed)

    # After the index is complete

    def _refuse_unsafe(self) -> None:
        """Refuse new objects that would run code when they are loaded, as ``security.refuse`` says."""
        view, changes = self.repo.index(), self.repo.git.staged_changes()
        settings = self.repo.settings_in(view)
        if settings.refuse == "never":
            return
        unsafe = []
        paths = {find_model_path(change.path) for change in changes if change.status != "D"}
        for path in sorted(path for path in paths if path is not None):
            metadata = self.repo.metadata(view, path)
            if metadata is not None:
                unsafe += find_unsafe(self.repo, path, metadata.md5, settings)
        raw, left = find_unsafe_raw(self.repo, changes, settings)
        for line in left:
            self.keeper.say(line)
        if unsafe or raw:
            raise refusal(self.repo, [*unsafe, *raw], settings)

    def _settle(self) -> list[Seen]:
        found = self.keeper.look()
        for seen in found:
            if seen.action is Action.AGREE:
                self.keeper.agree(seen)
        self.keeper.remember_all(found)
        return found

    def _name_opaque(self) -> None:
        """Name models that can be read no more; a folder that lost a shard is refused, since nobody means that."""
        view = self.repo.index()
        for change in self.repo.git.staged_changes():
            path = find_model_path(change.path)
            if path is None or change.path != metadata_path(path) or change.status != "M":
                continue
            new = self.repo.metadata(view, path)
            if new is None or new.model.format != OPAQUE or not self._was_readable(path):
                continue
            why = find_defect(self.repo.top / path, path).removeprefix(f"{path}: ")
            if is_folder_oid(new.md5):
                raise RefusedError(
                    f"{path}: {why or 'no model any more'}",
                    hint=f"wait until it is written; or git restore {word(metadata_path(path))}, then "
                    f"modelver pull --force {word(path)}",
                )
            self.keeper.say(f"{path}: {why or 'no reader knows it any more'}; committed as an opaque file")

    def _was_readable(self, path: str) -> bool:
        """Whether HEAD has a version of a model that a reader knew."""
        try:
            old = self.repo.metadata(self._committed, path)
        except BadMetadataError:
            return False  # this commit may well be what mends it
        return old is not None and old.model.format != OPAQUE


def _refuse_unfinished(seen: Seen) -> None:
    if seen.unfinished:
        why = seen.unfinished.removeprefix(f"{seen.path}: ")
        raise RefusedError(f"{seen.path}: still being written: {why}", hint=UNFINISHED_HINT)


def find_moved(repo: Repository, view: IndexView, path: str) -> Pointer | None:
    """Give the pointer that ``git mv`` brought to a model's new path, and that names the old one still."""
    if view.read(path + ".dvc") is None:
        return None
    named = [p for p in repo.pointers_in(view, path + ".dvc") if view.read(metadata_path(p.path)) is None]
    return named[0] if len(named) == 1 else None
