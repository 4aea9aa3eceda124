"""The versions of a model, read from the commits that changed its metadata."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dvc_modelver.errors import BadMetadataError, NotFoundError, UsageError
from dvc_modelver.git.objects import ObjectReader
from dvc_modelver.git.porcelain import Git
from dvc_modelver.metadata import ModelMetadata, find_model_path, metadata_path
from dvc_modelver.registry.tags import ModelTag, find_version_tag, stage_holder

_NUMBER = re.compile(r"(\d+)(?:\.([0-9a-f]{4,32}))?")


@dataclass(frozen=True)
class Version:
    """One version as the commit that first brought it in has it.

    Attributes:
        commit: Full id of that commit.
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


def paths_of(git: Git, objects: ObjectReader, path: str, rev: str) -> list[str]:
    """Give the paths a model has had, today's first: renames of its metadata file under one name or md5.

    Args:
        git: Runs ``git log``.
        objects: Reads the metadata files.
        path: The model's path.
        rev: Where history starts; ``--all`` for every ref.
    """
    out = git.run(
        "log", "-z", "--follow", "-M", "--diff-filter=R", "--raw", "--no-abbrev", "--format=", rev, "--",
        metadata_path(path),
    )  # fmt: skip
    found = [path]
    parts = iter(out.split(b"\0"))
    for part in parts:
        if not part.strip().startswith(b":"):
            continue
        _, _, old_oid, new_oid, _ = part.decode().split(" ")
        old, new = find_model_path(os.fsdecode(next(parts))), find_model_path(os.fsdecode(next(parts)))
        before, after = _read(objects, old_oid, old or ""), _read(objects, new_oid, new or "")
        is_same = before and after and (before.md5 == after.md5 or before.model.name == after.model.name)
        if new not in found or old is None or not is_same:
            break
        found.append(old)
    return list(dict.fromkeys(found))


def iter_versions(git: Git, objects: ObjectReader, path: str, rev: str) -> Iterator[Version]:
    """Give the versions of the model at `path`, newest commit first, each md5 at its first appearance.

    Args:
        git: Runs ``git log``.
        objects: Reads the metadata files.
        path: The model's path; those it had before it was renamed count as well.
        rev: Where history starts; ``--all`` for every ref.
    """
    files = [metadata_path(p) for p in paths_of(git, objects, path, rev)]
    out = git.run(
        "log", "-z", "--topo-order", "--raw", "--no-abbrev", "--no-renames", "--diff-merges=first-parent",
        "--format=%x01%H%x02%aI%x02%an%x02%s", rev, "--", *files,
    )  # fmt: skip
    found: dict[str, Version] = {}
    head: list[str] = []
    parts = iter(out.split(b"\0"))
    for part in parts:
        text = part.decode("utf-8", "replace").strip()
        if text.startswith("\x01"):
            head = text[1:].split("\x02")
        elif text.startswith(":"):
            oid, file = text.split(" ")[3], os.fsdecode(next(parts))
            metadata = _read(objects, oid, file)
            if metadata is not None:
                commit, date, author, subject = head
                found.pop(metadata.md5, None)
                found[metadata.md5] = Version(metadata, find_model_path(file) or path, commit, date, author, subject)
    yield from found.values()


def _read(objects: ObjectReader, oid: str, where: str) -> ModelMetadata | None:
    if set(oid) == {"0"}:
        return None
    try:
        metadata = ModelMetadata.parse(objects.read_blob(oid), where)
    except (BadMetadataError, NotFoundError):
        return None
    return None if metadata.pending is not None else metadata


def find_version(
    git: Git, objects: ObjectReader, path: str, name: str, wanted: str, tags: list[ModelTag]
) -> tuple[Version, str]:
    """Give a version by what follows ``name@``: ``v1.2.0``, ``3``, ``3.a1b2c3``, or an md5 of 8 digits or more.

    Returns:
        The version, and the commit to read its files from.

    Raises:
        NotFoundError: There is no such version.
        UsageError: More than one version has that number; the message lists them.
    """
    number = _NUMBER.fullmatch(wanted)
    if number is not None:
        for rev in ("HEAD", "--all"):
            pool = iter_versions(git, objects, path, rev)
            fits = [v for v in pool if v.number == int(number[1]) and v.metadata.md5.startswith(number[2] or "")]
            if len(fits) > 1:
                names = ", ".join(f"{name}@{v.number}.{v.metadata.md5[:6]}" for v in fits)
                raise UsageError(
                    f"{name}@{wanted}: {len(fits)} versions have this number: {names}",
                    hint=f"modelver log {name}",
                )
            if fits:
                return fits[0], fits[0].commit
        if len(wanted) < 8:  # else it may be an md5 that has no letter
            raise NotFoundError(f"{name}@{wanted}: no such version in this history", hint=f"modelver log {name}")
    if re.fullmatch(r"[0-9a-f]{8,32}(\.dir)?", wanted):
        for rev in ("HEAD", "--all"):
            for version in iter_versions(git, objects, path, rev):
                if version.metadata.md5.startswith(wanted):
                    return version, version.commit
    tag = find_version_tag(tags, name, wanted)
    return version_at(objects, paths_of(git, objects, path, "--all"), tag.commit, tag.tag), tag.commit


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
    return version_at(objects, paths_of(git, objects, path, "--all"), holder.commit, holder.tag), holder.commit


def version_at(objects: ObjectReader, paths: Sequence[str], commit: str, label: str) -> Version:
    """Give the version that a commit has at the first of some paths that is there.

    Raises:
        NotFoundError: The commit has no metadata for the model.
    """
    for path in paths:
        oid = objects.find_blob(commit, metadata_path(path))
        metadata = _read(objects, oid, metadata_path(path)) if oid else None
        if metadata is not None:
            return Version(metadata, path, commit, "", "", "")
    raise NotFoundError(
        f"{label}: its commit {commit[:8]} has no metadata of {paths[0]}", hint=f"git show --stat {commit[:8]}"
    )
