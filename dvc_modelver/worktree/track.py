"""Makes a file a tracked model: object, pointer, ignore line, metadata; on disk and in the index."""

from __future__ import annotations

import posixpath
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dvc_modelver.errors import BadMetadataError, UsageError
from dvc_modelver.metadata import ModelMetadata, TrainingFacts, metadata_path, table_path
from dvc_modelver.progress import ProgressLine
from dvc_modelver.store.folders import folder_bytes, is_folder_oid
from dvc_modelver.store.hashing import Hashes
from dvc_modelver.store.pointers import Pointer, rename_pointer, write_pointer
from dvc_modelver.worktree.describe import Description, describe, read_contents
from dvc_modelver.worktree.state import Row, stamp_of
from dvc_modelver.worktree.sync import Keeper, path_in_file, read_pointer_text, write_description, write_if_changed


def new_pointer(path: str, hashes: Hashes) -> Pointer:
    """Give the pointer that ``dvc add`` of `path` would make."""
    return Pointer(path=path, file=path + ".dvc", kind="dvc", md5=hashes.md5, size=hashes.size)


def ignore_line(path: str) -> str:
    """Give the line of ``.gitignore`` that hides a model, as DVC writes it."""
    name = posixpath.basename(path)
    return "/" + "".join("\\" + c if c in "*?[]\\!#" else c for c in name)


def with_ignore_line(text: str, path: str) -> str:
    """Give the text of a ``.gitignore`` with the model's line in it, once."""
    line = ignore_line(path)
    if line in text.splitlines():
        return text
    return text + ("\n" if text and not text.endswith("\n") else "") + line + "\n"


def without_ignore_line(text: str, path: str) -> str:
    """Give the text of a ``.gitignore`` without the model's line."""
    line = ignore_line(path)
    return "".join(kept for kept in text.splitlines(keepends=True) if kept.rstrip("\r\n") != line)


def ignore_file(path: str) -> str:
    """Give the ``.gitignore`` beside a model."""
    return posixpath.join(posixpath.dirname(path), ".gitignore")


class Tracker:
    """Writes what a version consists of to the work tree and stages it.

    Args:
        keeper: Holds the work tree's state.
        recorded: Called with the path of everything staged.
    """

    def __init__(self, keeper: Keeper) -> None:
        self.keeper, self.repo = keeper, keeper.repo
        self.staged: list[str] = []

    def track(
        self,
        path: str,
        hashes: Hashes,
        pointer: Pointer | None,
        *,
        facts: TrainingFacts | None = None,
        declared_by: str | None = None,
        name: str | None = None,
        anew: bool = False,
    ) -> Description:
        """Write and stage pointer, ignore line, metadata and table for an object that is in the cache.

        Args:
            path: The model.
            hashes: The object's digests.
            pointer: What tracks it already; None makes a ``.dvc``.
            facts: What the user declared of its training.
            declared_by: Who says how it was made, when not measured.
            name: The model's name.
            anew: Believe the bytes rather than what history says of them.
        """
        cache = self.repo.cache(path)
        stored = cache.open_folder(hashes.md5) if is_folder_oid(hashes.md5) else cache.path_of(hashes.md5)
        with ProgressLine(f"describing {path}", hashes.size) as progress:
            contents = read_contents(stored, path, hashes, progress=progress)
        pointer = pointer or new_pointer(path, hashes)
        if pointer.kind == "dvc":
            pointer = replace(pointer, md5=hashes.md5, size=hashes.size)
        made = describe(self.repo, path, contents, view=self.repo.work_tree, pointer=pointer, facts=facts,
                        declared_by=declared_by, name=name, anew=anew)  # fmt: skip
        if made.warning:
            self.keeper.say(f"{made.warning}; recorded as an opaque file")
        if pointer.kind == "dvc":
            self._write_pointer(pointer, hashes)
        self.stage_ignore_line(path)
        write_description(self.repo, path, made)
        self.stage(path, pointer, made)
        return made

    def _write_pointer(self, pointer: Pointer, hashes: Hashes) -> None:
        disk = self.repo.top / pointer.file
        try:
            old = read_pointer_text(disk, pointer.file)
        except BadMetadataError:
            ours = self.repo.git.staged_version(pointer.file, 2)  # a conflict: these weights decide it
            if ours is None:
                raise
            old = ours.decode()
        name = path_in_file(pointer.file, pointer.path, old)
        text = write_pointer(old, path_in_file=name, md5=hashes.md5, size=hashes.size, n_files=hashes.n_files)
        write_if_changed(disk, text.encode())

    def stage(self, path: str, pointer: Pointer, made: Description) -> None:
        """Put a version's files into the index; raw weights or a gate pointer there are dropped."""
        blobs: dict[str, bytes | None] = {metadata_path(path): made.metadata.render()}
        in_index = self.repo.git.index_entries(path, table_path(path))
        if made.table is not None:
            blobs[table_path(path)] = made.table
        elif table_path(path) in in_index:
            blobs[table_path(path)] = None
        if pointer.kind == "dvc":
            blobs[pointer.file] = (self.repo.top / pointer.file).read_bytes()
        if path in in_index:
            blobs[path] = None
        self.repo.git.stage_blobs(blobs)
        self.staged += blobs

    def stage_ignore_line(self, path: str) -> None:
        """Hide the model from Git, in the work tree's ``.gitignore`` and in the staged one."""
        file = ignore_file(path)
        if path in self.repo.git.ignored([path]) and ignore_line(path) not in _read(self.repo.top / file):
            return  # another rule hides it
        self._edit(file, lambda text: with_ignore_line(text, path))

    def unstage_ignore_line(self, path: str) -> None:
        """Take the model's line out of both again."""
        self._edit(ignore_file(path), lambda text: without_ignore_line(text, path))

    def _edit(self, file: str, edit: Callable[[str], str]) -> None:
        _edit_file(self.repo.top / file, edit)
        entry = self.repo.git.index_entries(file).get(file)
        old = self.repo.objects.read_blob(entry[1]).decode("utf-8", "surrogateescape") if entry else ""
        new = edit(old)
        if new != old:
            self.repo.git.stage_blobs({file: new.encode("utf-8", "surrogateescape") or None})
            self.staged.append(file)

    def store(self, path: str, known: Hashes | None = None) -> Hashes:
        """Put a work-tree file into the cache, linked as DVC's ``cache.type`` says.

        Args:
            path: The model.
            known: Its digests, where it did not move since they were taken.

        Raises:
            UsageError: No such file, or it is being written.
        """
        file = self.repo.top / path
        if not file.is_file() and not file.is_dir():
            raise UsageError(f"{path}: no such file")
        with ProgressLine(f"storing {path}", folder_bytes(file)) as progress:
            return self.repo.cache(path).store_path(file, link=True, known=known, progress=progress)

    def finish_move(self, moved: Pointer, path: str, metadata: ModelMetadata) -> None:
        """Bring the rest along where ``git mv`` moved a model's files: weights, ignore line, and the path inside them.

        Args:
            moved: The pointer at its new place, which names the old path.
            path: The new path.
            metadata: The metadata at its new place.
        """
        old, file = self.repo.top / moved.path, self.repo.top / path
        text = (self.repo.top / moved.file).read_text(encoding="utf-8")
        named = path_in_file(moved.file, moved.path, text), path_in_file(moved.file, path, text)
        blobs: dict[str, bytes | None] = {
            moved.file: rename_pointer(text, *named).encode(),
            metadata_path(path): replace(metadata, model=replace(metadata.model, path=path)).render(),
        }
        for name, content in blobs.items():
            write_if_changed(self.repo.top / name, content or b"")
        self.repo.git.stage_blobs(blobs)
        self.staged += blobs
        self.stage_ignore_line(path)
        if old.exists() and not file.exists():
            old.rename(file)
        self.unstage_ignore_line(moved.path)
        row = self.keeper.state.rows.pop(moved.path, None)
        for seen in self.keeper.look(only=[path]):
            self.keeper.remember(seen, agreed=row.agreed if row is not None else None)

    def settle(self, path: str, pointer: Pointer, md5: str, stamp: str) -> None:
        """Record that model, metadata and pointer agree at `md5`, the model having had `stamp` then."""
        self.keeper.state.rows[path] = Row(
            path=path,
            agreed=md5,
            md5=md5,
            model_stamp=stamp,
            metadata_stamp=stamp_of(self.repo.top / metadata_path(path)),
            pointer_stamp=stamp_of(self.repo.top / pointer.file),
            pointer_path=pointer.file,
        )

    def add(
        self,
        path: str,
        pointer: Pointer | None,
        *,
        facts: TrainingFacts | None = None,
        declared_by: str | None = None,
        name: str | None = None,
    ) -> Description:
        """Store and track the file at `path` as it lies on disk."""
        hashes = self.store(path)
        stamp = stamp_of(self.repo.top / path, at_ns=time.time_ns() + 1_000_000_000)
        made = self.track(path, hashes, pointer, facts=facts, declared_by=declared_by, name=name)
        if pointer is None:
            pointer = new_pointer(path, hashes)
        self.settle(path, pointer, hashes.md5, stamp)
        return made


def show_again(top: Path, path: str) -> None:
    """Take a model's line out of the ``.gitignore`` of the work tree alone; the file goes with its last line."""
    _edit_file(top / ignore_file(path), lambda text: without_ignore_line(text, path))


def _edit_file(disk: Path, edit: Callable[[str], str]) -> None:
    if disk.exists() or edit(""):
        write_if_changed(disk, edit(_read(disk)).encode("utf-8", "surrogateescape"))
        if not _read(disk):
            disk.unlink()


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except OSError:
        return ""
