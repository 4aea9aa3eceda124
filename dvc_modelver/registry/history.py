"""The versions of a model, read from the commits that changed its metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from dvc_modelver.errors import BadMetadataError, NotFoundError, UsageError
from dvc_modelver.git.objects import ObjectReader
from dvc_modelver.git.porcelain import ZERO_OID, Git
from dvc_modelver.metadata import METADATA_SUFFIX, ModelMetadata, find_model_path, metadata_path
from dvc_modelver.registry.backfill import read_backfill
from dvc_modelver.registry.tags import ModelTag, find_version_tag, stage_holder

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_NUMBER = re.compile(r"(\d+)(?:\.([0-9a-f]{4,32}))?")


@dataclass(frozen=True)
class Version:
    """One version.

    Attributes:
        metadata: As the newest commit that changed it has it: what a refresh corrected counts.
        path: The model's path in `commit`.
        commit: Full id of the commit that first brought it in.
        date: Author date, ISO 8601.
    """

    metadata: ModelMetadata
    path: str
    commit: str
    date: str
    author: str
    subject: str

    @property
    def number(self) -> int:
        """The integer version."""
        return self.metadata.version.number


@dataclass(frozen=True)
class _Changed:
    """A metadata file that a commit brought, changed or deleted, or that was backfilled for it."""

    commit: str
    date: str
    author: str
    subject: str
    path: str
    old_oid: str
    new_oid: str
    backfilled: ModelMetadata | None = None


class ModelHistory:
    """The versions of the model at `path` in the histories of revisions; each history is walked once.

    Attributes:
        path: The model's path; those that it had before it was renamed count as well.
    """

    def __init__(self, git: Git, objects: ObjectReader, path: str) -> None:
        self.path = path
        self._git, self._objects = git, objects
        self._walks: dict[str, tuple[list[str], list[Version], int]] = {}

    def versions(self, rev: str) -> list[Version]:
        """Give the versions, each md5 once, in the order of the commits that first brought them, newest first.

        Args:
            rev: Where history starts; ``--all`` for every ref.
        """
        return self._walk(rev)[1]

    def paths(self, rev: str) -> list[str]:
        """Give the paths that the model has had, today's first."""
        return self._walk(rev)[0]

    def unreadable(self, rev: str) -> int:
        """Give the number of metadata files in a history that are damaged, or not in this clone, and so left out."""
        return self._walk(rev)[2]

    def at(self, commit: str, label: str) -> Version:
        """Give the version that a commit has, without date and author.

        Raises:
            NotFoundError: It has none; the message begins with `label`.
        """
        try:
            return version_at(self._objects, [self.path], commit, label)
        except NotFoundError:
            return version_at(self._objects, self.paths("--all"), commit, label)

    def _walk(self, rev: str) -> tuple[list[str], list[Version], int]:
        if rev not in self._walks:
            paths = [self.path]
            while True:
                files = [*map(metadata_path, paths), *_pointers(self._objects, paths)]
                changes = _completed(self._objects, _iter_changed(self._git, rev, files), paths)
                self._objects.prefetch(c.new_oid for c in changes)
                older = self._renamed_from(paths[-1], changes)
                if older is None or older in paths:
                    break
                paths.append(older)
            there = {c.new_oid: c.path for c in changes if c.new_oid != ZERO_OID}
            lost = sum(read_version_file(self._objects, oid, path) is None for oid, path in there.items())
            self._walks[rev] = paths, _versions_of(self._objects, changes), lost
        return self._walks[rev]

    def _renamed_from(self, path: str, changes: list[_Changed]) -> str | None:
        """Give the path of the metadata file that disappeared where a path's own began, with its name or md5."""
        file = metadata_path(path)
        born = {c.commit: c.new_oid for c in changes if c.path == file and c.old_oid == ZERO_OID != c.new_oid}
        if not born:
            return None
        others = _iter_changed(self._git, "--no-walk", [f"*{METADATA_SUFFIX}"], born, literal=False)
        gone = [change for change in others if change.new_oid == ZERO_OID and change.path != file]
        self._objects.prefetch(change.old_oid for change in gone)
        for change in gone:
            before = read_version_file(self._objects, change.old_oid, change.path)
            after = read_version_file(self._objects, born[change.commit], file)
            if before and after and (before.md5 == after.md5 or before.model.name == after.model.name):
                return find_model_path(change.path)
        return None


def _iter_changed(
    git: Git, rev: str, files: Iterable[str], commits: Iterable[str] = (), *, literal: bool = True
) -> Iterator[_Changed]:
    found = git.iter_changes(
        "--topo-order", "--diff-merges=first-parent", rev, *commits, "--", *files, literal=literal
    )  # fmt: skip
    for commit, change in found:
        yield _Changed(*commit, change.path, change.old_oid, change.new_oid)


def _pointers(objects: ObjectReader, paths: Iterable[str] | None = None) -> dict[str, set[str]]:
    """Give pointer file -> models that were backfilled for commits which changed it; of some paths, or of all."""
    found: dict[str, set[str]] = {}
    for path, known in read_backfill(objects).by_object.items():
        if paths is None or path in paths:
            for one in known.values():
                found.setdefault(one.pointer, set()).add(path)
    return found


def _completed(
    objects: ObjectReader, changes: Iterable[_Changed], paths: Iterable[str] | None = None
) -> list[_Changed]:
    """Replace changes of pointers by the metadata that was backfilled for them, where the commit has none itself."""
    models = _pointers(objects, paths)
    found = []
    for c in changes:
        if c.path.endswith(METADATA_SUFFIX):
            found.append(c)
        for path in sorted(models.get(c.path, ())):
            one = read_backfill(objects).find(objects, c.commit, path)
            if one is not None and objects.find_blob(c.commit, metadata_path(path)) is None:
                found.append(replace(c, path=metadata_path(path), new_oid=ZERO_OID, backfilled=one.metadata))
    return found


def _versions_of(objects: ObjectReader, changes: Sequence[_Changed]) -> list[Version]:
    found: dict[str, Version] = {}
    for c in changes:
        metadata = c.backfilled or read_version_file(objects, c.new_oid, c.path)
        if metadata is not None:
            newer = found.pop(metadata.md5, None)
            facts, path = newer.metadata if newer is not None else metadata, find_model_path(c.path) or ""
            found[metadata.md5] = Version(facts, path, c.commit, c.date, c.author, c.subject)
    return list(found.values())


_read: MutableMapping[ObjectReader, dict[str, ModelMetadata | None]] = WeakKeyDictionary()
"""What metadata blobs say, by id, as long as their reader lives."""


def read_version_file(objects: ObjectReader, oid: str, where: str) -> ModelMetadata | None:
    """Give what a metadata blob says; None for one that is absent, cannot be read, or was not completed."""
    known = _read.setdefault(objects, {})
    if oid not in known:
        known[oid] = _parsed(objects, oid, where)
    return known[oid]


def _parsed(objects: ObjectReader, oid: str, where: str) -> ModelMetadata | None:
    if set(oid) == {"0"}:
        return None
    try:
        metadata = ModelMetadata.parse(objects.read_blob(oid), where)
    except (BadMetadataError, NotFoundError):
        return None
    return None if metadata.pending is not None else metadata


def iter_histories(git: Git, objects: ObjectReader, rev: str) -> Iterator[tuple[str, list[Version]]]:
    """Give each model of a history by its newest path, with its versions, newest commit first, from one walk.

    Args:
        git: Runs ``git log``.
        objects: Reads the metadata files.
        rev: Where history starts; ``--all`` for every ref.
    """
    files = [f"*{METADATA_SUFFIX}", *(f":(literal){file}" for file in _pointers(objects))]
    changes = _completed(objects, _iter_changed(git, rev, files, literal=False))
    objects.prefetch(c.new_oid for c in changes)
    newest: dict[str, str] = {}  # path -> the path that the model has today
    at: dict[str, list[_Changed]] = {}
    for c in changes:
        at.setdefault(c.commit, []).append(c)
    groups: dict[str, list[_Changed]] = {}
    for several in at.values():
        gone = [c for c in several if c.new_oid == ZERO_OID and c.backfilled is None]
        for c in several:
            if c.new_oid != ZERO_OID or c.backfilled is not None:
                groups.setdefault(newest.setdefault(c.path, c.path), []).append(c)
            if c.old_oid == ZERO_OID != c.new_oid and gone:
                _follow(objects, c, gone, newest)
    for path, own in groups.items():
        versions = _versions_of(objects, own)
        if versions:
            yield find_model_path(path) or path, versions


def _follow(objects: ObjectReader, new: _Changed, gone: list[_Changed], newest: dict[str, str]) -> None:
    after = read_version_file(objects, new.new_oid, new.path)
    for old in gone:
        before = read_version_file(objects, old.old_oid, old.path)
        if before and after and (before.md5 == after.md5 or before.model.name == after.model.name):
            newest[old.path] = newest[new.path]


def paths_of(git: Git, objects: ObjectReader, path: str, rev: str) -> list[str]:
    """Give the paths a model has had, today's first: renames of its metadata file under one name or md5.

    Args:
        git: Runs ``git log``.
        objects: Reads the metadata files.
        path: The model's path.
        rev: Where history starts; ``--all`` for every ref.
    """
    return ModelHistory(git, objects, path).paths(rev)


def iter_versions(git: Git, objects: ObjectReader, path: str, rev: str) -> Iterator[Version]:
    """Give the versions of the model at `path`, newest commit first, each md5 at its first appearance.

    Args:
        git: Runs ``git log``.
        objects: Reads the metadata files.
        path: The model's path; those it had before it was renamed count as well.
        rev: Where history starts; ``--all`` for every ref.
    """
    yield from ModelHistory(git, objects, path).versions(rev)


def find_version(
    git: Git, objects: ObjectReader, path: str, name: str, wanted: str, tags: list[ModelTag]
) -> tuple[Version, str]:
    """Give a version by what follows ``name@``: ``v1.2.0``, ``3``, ``3.a1b2c3``, or an md5 of 6 digits or more.

    Returns:
        The version, and the commit to read its files from.

    Raises:
        NotFoundError: There is no such version.
        UsageError: More than one version has that number; the message lists them.
    """
    history = ModelHistory(git, objects, path)
    number = _NUMBER.fullmatch(wanted)
    if number is not None:
        for rev in ("HEAD", "--all"):
            pool = history.versions(rev)
            fits = [v for v in pool if v.number == int(number[1]) and v.metadata.md5.startswith(number[2] or "")]
            if len(fits) > 1:
                names = ", ".join(f"{name}@{v.number}.{v.metadata.md5[:6]}" for v in fits)
                raise UsageError(
                    f"{name}@{wanted}: {len(fits)} versions have this number: {names}",
                    hint=f"modelver log {name}",
                )
            if fits:
                return fits[0], fits[0].commit
        if len(wanted) < 6:  # else it may be an md5 that has no letter
            raise NotFoundError(f"{name}@{wanted}: no such version in this history", hint=f"modelver log {name}")
    if re.fullmatch(r"[0-9a-f]{6,32}(\.dir)?", wanted):
        for rev in ("HEAD", "--all"):
            fits = [v for v in history.versions(rev) if v.metadata.md5.startswith(wanted)]
            if len({v.metadata.md5 for v in fits}) > 1:
                names = ", ".join(f"{name}@{md5[:12]}" for md5 in {v.metadata.md5: None for v in fits})
                raise UsageError(f"{name}@{wanted}: more than one md5 starts so: {names}", hint=f"modelver log {name}")
            if fits:
                return fits[0], fits[0].commit
    tag = find_version_tag(tags, name, wanted)
    return history.at(tag.commit, tag.tag), tag.commit


def find_stage(
    git: Git, objects: ObjectReader, path: str, name: str, stage: str, tags: list[ModelTag]
) -> tuple[Version, str]:
    """Give the version that holds a stage, and its commit.

    Raises:
        NotFoundError: Nothing holds it.
    """
    holder = stage_holder((t for t in tags if t.name == name), stage)
    if holder is None:
        raise NotFoundError(f"{name}#{stage}: no version holds this stage", hint=f"modelver log {name}")
    return ModelHistory(git, objects, path).at(holder.commit, holder.tag), holder.commit


def version_at(objects: ObjectReader, paths: Sequence[str], commit: str, label: str) -> Version:
    """Give the version that a commit has at the first of some paths that is there.

    Raises:
        NotFoundError: The commit has no metadata for the model.
    """
    for path in paths:
        oid = objects.find_blob(commit, metadata_path(path))
        metadata = read_version_file(objects, oid, metadata_path(path)) if oid else None
        before = read_backfill(objects).find(objects, commit, path) if oid is None else None
        if before is not None:
            metadata = before.metadata
        if metadata is not None:
            return Version(metadata, path, commit, "", "", "")
    raise NotFoundError(
        f"{label}: its commit {commit[:8]} has no metadata of {paths[0]}", hint=f"git show --stat {commit[:8]}"
    )
