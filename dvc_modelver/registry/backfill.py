"""Metadata of commits that were made without it, kept in Git notes: found as if the commits had the files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from dvc_modelver.errors import BadMetadataError
from dvc_modelver.git.notes import append_notes, blob_id, committer, notes_tips, read_notes
from dvc_modelver.git.objects import ObjectReader
from dvc_modelver.git.porcelain import ZERO_OID, Git
from dvc_modelver.metadata import ModelMetadata, find_model_path, metadata_path
from dvc_modelver.registry.notes import METADATA_REF, TENSORS_REF
from dvc_modelver.store.pointers import read_pointers

BACKFILL_SCHEMA = "modelver.backfill/1"
TABLE_SCHEMA = "modelver.backfill-table/1"


@dataclass(frozen=True)
class Backfilled:
    """One version of a commit that has its pointer and no metadata.

    Attributes:
        commit: The commit that brought the pointer in.
        pointer: The ``.dvc`` or ``dvc.lock`` file that names the object there.
        metadata: What the metadata file would say.
        table: Its tensor table; None for an opaque model, and where it is only read when it is needed.
    """

    commit: str
    pointer: str
    metadata: ModelMetadata
    table: bytes | None = None

    @property
    def path(self) -> str:
        """The model."""
        return self.metadata.model.path

    def render(self) -> bytes:
        """Give the line of its commit, without the newline."""
        text = self.metadata.render().decode()
        return _line({"schema": BACKFILL_SCHEMA, "path": self.path, "pointer": self.pointer, "metadata": text})


def _line(data: Mapping[str, object]) -> bytes:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


def _parse(commit: str, line: bytes) -> Backfilled | None:
    try:
        data = json.loads(line)
        if not isinstance(data, dict) or data.get("schema") != BACKFILL_SCHEMA:
            return None
        path, pointer, text = data.get("path"), data.get("pointer"), data.get("metadata")
        if not isinstance(path, str) or not isinstance(pointer, str) or not isinstance(text, str):
            return None
        metadata = ModelMetadata.parse(text.encode(), metadata_path(path))
    except (ValueError, RecursionError, BadMetadataError):
        return None
    is_its_own = metadata.model.path == path and metadata.pending is None
    return Backfilled(commit, pointer, metadata) if is_its_own else None


@dataclass(frozen=True)
class Backfill:
    """All that was backfilled, by commit, and by path and md5; empty where nothing was.

    Attributes:
        by_commit: The versions that a commit brought in.
        by_object: path -> md5 -> version.
    """

    by_commit: Mapping[str, list[Backfilled]] = field(default_factory=dict)
    by_object: Mapping[str, dict[str, Backfilled]] = field(default_factory=dict)

    def find(self, objects: ObjectReader, commit: str, path: str) -> Backfilled | None:
        """Give the version that a commit's pointer names of a model; None where nothing was backfilled for it."""
        for file, known in self._by_pointer(path).items():
            text = objects.read_file(commit, file)
            if text is None:
                continue
            try:
                md5s = [pointer.md5 for pointer in read_pointers(text, file) if pointer.path == path]
            except BadMetadataError:
                continue
            for md5 in md5s:
                if md5 in known:
                    return known[md5]
        return None

    def _by_pointer(self, path: str) -> dict[str, dict[str, Backfilled]]:
        found: dict[str, dict[str, Backfilled]] = {}
        for md5, one in self.by_object.get(path, {}).items():
            found.setdefault(one.pointer, {})[md5] = one
        return found

    def read(self, objects: ObjectReader, commit: str, file: str) -> bytes | None:
        """Give a metadata file or tensor table that a commit does not have; None for any other file."""
        path = find_model_path(file)
        if path is None or path not in self.by_object:
            return None
        one = self.find(objects, commit, path)
        if one is None or file == metadata_path(path):
            return None if one is None else one.metadata.render()
        return read_backfilled_table(objects, one.metadata)


_read: MutableMapping[ObjectReader, Backfill] = WeakKeyDictionary()
"""What was read, as long as its reader lives."""


def read_backfill(objects: ObjectReader) -> Backfill:
    """Read all that was backfilled, here and in what was fetched, once; lines that cannot be read are left out."""
    if objects not in _read:
        _read[objects] = _collected(objects, notes_tips(objects, METADATA_REF))
    return _read[objects]


def _collected(objects: ObjectReader, tips: list[str]) -> Backfill:
    by_commit: dict[str, list[Backfilled]] = {}
    by_object: dict[str, dict[str, Backfilled]] = {}
    for commit, lines in read_notes(objects, tips).items():
        for line in lines:
            one = _parse(commit, line)
            if one is not None:
                by_commit.setdefault(commit, []).append(one)
                by_object.setdefault(one.path, {}).setdefault(one.metadata.md5, one)
    return Backfill(by_commit, by_object)


def read_backfilled_table(objects: ObjectReader, metadata: ModelMetadata) -> bytes | None:
    """Give the tensor table that was backfilled for a version; None where there is none."""
    tips = notes_tips(objects, TENSORS_REF)
    if metadata.model.tensors_digest is None or not tips:
        return None
    for lines in read_notes(objects, tips, [blob_id(metadata.md5.encode(), tips[0])]).values():
        for line in lines:
            try:
                data = json.loads(line)
            except (ValueError, RecursionError):
                continue
            text = data.get("table") if isinstance(data, dict) and data.get("schema") == TABLE_SCHEMA else None
            if isinstance(text, str) and metadata.is_table(text.encode()):
                return text.encode()
    return None


def keep(git: Git, objects: ObjectReader, found: Iterable[Backfilled]) -> None:
    """Append versions to the notes of their commits, and their tensor tables to those of their objects.

    The tables come first: what is noted on a commit is whole.

    Raises:
        UsageError: Git knows no user.
        EnvironmentFailed: Git could not write it.
    """
    versions, who = list(found), committer(git)
    tables: dict[str, list[bytes]] = {}
    lines: dict[str, list[bytes]] = {}
    for one in versions:
        lines.setdefault(one.commit, []).append(one.render())
        if one.table is not None:
            line = _line({"schema": TABLE_SCHEMA, "md5": one.metadata.md5, "table": one.table.decode()})
            tables[blob_id(one.metadata.md5.encode(), objects.head() or ZERO_OID)] = [line]
    message = f"Describe {len(versions)} version{'s' * (len(versions) != 1)} of before\n"
    if tables:
        append_notes(git, objects, TENSORS_REF, tables, message, who)
    if lines:
        append_notes(git, objects, METADATA_REF, lines, message, who)
    _read.pop(objects, None)
