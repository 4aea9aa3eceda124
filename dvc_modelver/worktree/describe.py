"""Builds metadata and tensor table of a model's bytes, as the next version of what HEAD has."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from dvc_modelver.errors import BadMetadataError, BadModelError, NotFoundError
from dvc_modelver.formats import Folder, Reader, open_folder, open_reader
from dvc_modelver.metadata import (
    METADATA_SUFFIX,
    ChangeFacts,
    ModelFacts,
    ModelMetadata,
    TensorTable,
    TrainingFacts,
    VersionFacts,
    describe_tensors,
    metadata_path,
    summarise,
    table_digest,
    table_path,
)
from dvc_modelver.pipeline import gather_training
from dvc_modelver.repository import Repository
from dvc_modelver.store.folders import hash_path
from dvc_modelver.store.hashing import Hashes
from dvc_modelver.store.pointers import Pointer
from dvc_modelver.views import CommitView, View

Progress = Callable[[int], None]
OPAQUE = "opaque"
"""Format of a model that no reader knows: digests and size only, no tensor table."""

_UPDATE_OF_KIND = {
    "conversion": "conversion", "metadata-only": "conversion", "scaled": "conversion",
    "retrained": "batch", "architecture": "batch",
}  # fmt: skip
"""How a version was made, by its kind of change; any other is a fine-tune."""


@dataclass(frozen=True)
class Contents:
    """What a file's bytes are, before history comes in.

    Attributes:
        table: None for a model that no reader knows.
        warning: Why a file with a known suffix could not be read; empty when it could.
    """

    hashes: Hashes
    format: str
    framework: str | None
    table: TensorTable | None
    warning: str = ""


@dataclass(frozen=True)
class Description:
    """The two files that lie beside a model."""

    metadata: ModelMetadata
    table: bytes | None
    warning: str = ""


def read_contents(
    file: Path | Folder,
    name: str,
    hashes: Hashes | None = None,
    *,
    hash_with: Callable[[Path], Hashes] = hash_path,
    beside: Folder | None = None,
    progress: Progress | None = None,
) -> Contents:
    """Hash and fingerprint a file, both at once where it was not hashed yet.

    Args:
        file: The weights, in the cache or in the work tree; the files of a folder in the cache.
        name: The model's path, for its suffix and for messages.
        hashes: The file's digests when they are known.
        hash_with: What gives them otherwise: reading the file, or storing it as well.
        beside: Files that the model may keep values in; None for a version, which is what its md5 names alone.
        progress: Called with the number of bytes read since the last call.

    Raises:
        UsageError: The file is being written.
    """
    found: list[Hashes | BaseException] = [] if hashes is None else [hashes]

    def run() -> None:
        try:
            assert isinstance(file, Path)  # what lies in the cache has its digests
            found.append(hash_with(file))
        except BaseException as err:
            found.append(err)

    with ExitStack() as stack:
        # Opened before there are threads: a reader may list a file in a process of its own.
        reader, warning = open_model(file, name, beside, stack)
        hashing = threading.Thread(target=run)
        if hashes is None:
            hashing.start()
        try:
            table, warning = _describe_tensors(reader, warning, progress)
        finally:
            if hashes is None:
                hashing.join()
    result = found[0]
    if isinstance(result, BaseException):
        raise result
    if reader is None or table is None:
        return Contents(result, OPAQUE, None, None, warning)
    return Contents(result, reader.format, reader.framework, replace(table, md5=result.md5))


def open_model(file: Path | Folder, name: str, beside: Folder | None, stack: ExitStack) -> tuple[Reader | None, str]:
    """Give a reader that is closed with `stack`, or why there is none; nothing is to be said of unknown formats."""
    try:
        if isinstance(file, Path) and not file.is_dir():
            stream = cast("BinaryIO", stack.enter_context(file.open("rb", buffering=0)))
            reader = open_reader(stream, name, beside)
        else:
            reader = open_reader(file, name) if isinstance(file, Path) else open_folder(file, name)
    except BadModelError as err:
        return None, _one_line(err)
    return (None if reader is None else stack.enter_context(reader)), ""


def find_defect(file: Path, name: str) -> str:
    """Give why a model cannot be opened; empty where it can, or is not there."""
    with ExitStack() as stack:
        try:
            return open_model(file, name, None, stack)[1]
        except OSError:
            return ""


def _describe_tensors(reader: Reader | None, warning: str, progress: Progress | None) -> tuple[TensorTable | None, str]:
    if reader is None:
        return None, warning
    try:
        return describe_tensors(reader, "", progress=progress), ""
    except BadModelError as err:
        return None, _one_line(err)


def _one_line(err: BadModelError) -> str:
    return f"{err} ({err.hint})" if err.hint else str(err)


def describe(
    repo: Repository,
    path: str,
    contents: Contents,
    *,
    view: View,
    pointer: Pointer | None,
    facts: TrainingFacts | None = None,
    declared_by: str | None = None,
    name: str | None = None,
    anew: bool = False,
) -> Description:
    """Give the metadata and table of a version.

    Bytes that are a version already, anywhere in HEAD's history, get that version's files back.

    Args:
        repo: The repository.
        path: The model.
        contents: What its bytes are.
        view: Where the training facts are read from.
        pointer: Its pointer, for the stage that made it; None before there is one.
        facts: What the user declared; wins over what was gathered.
        declared_by: ``user`` for an out of a pipeline that was changed outside it.
        name: The model's name; chosen when not given.
        anew: Believe the bytes rather than what history says of them.
    """
    known = find_version(repo, path, contents.hashes.md5)
    facts = facts or TrainingFacts()
    if known is not None and anew:
        known = _measured_anew(known, contents)
    if known is not None:
        training = known.metadata.training.merged_with(facts)
        model = replace(known.metadata.model, name=name or known.metadata.model.name)
        return Description(replace(known.metadata, training=training, model=model), known.table, contents.warning)
    parents = parent_versions(repo, path)
    return describe_as(
        repo, path, contents, parents, view=view, pointer=pointer, facts=facts, declared_by=declared_by, name=name
    )


def describe_as(
    repo: Repository,
    path: str,
    contents: Contents,
    parents: Sequence[KnownVersion],
    *,
    view: View,
    pointer: Pointer | None,
    facts: TrainingFacts | None = None,
    declared_by: str | None = None,
    name: str | None = None,
) -> Description:
    """Give the metadata and table of a new version that was made from `parents`; the rest as for `describe`."""
    table = contents.table.render() if contents.table is not None else None
    from_pipeline = pointer is not None and pointer.kind == "lock" and pointer.md5 == contents.hashes.md5
    gathered = gather_training(
        view.read, pointer if from_pipeline else None, repo.settings, is_outside=declared_by == "user"
    )
    change = describe_change(path, contents, parents[0]) if parents else None
    first = parents[0].metadata if parents else None
    model = ModelFacts(
        name=name or repo.declared_name(view, path) or (first.model.name if first else repo.new_name(view, path)),
        path=path,
        extra=first.model.extra if first else {},
        **_measured_facts(contents, table),
    )
    update = "initial" if change is None else _UPDATE_OF_KIND.get(change.kind, "fine-tune")
    version = VersionFacts(
        number=1 + max((p.metadata.version.number for p in parents), default=0),
        parents=tuple(p.metadata.md5 for p in parents),
        update="merge" if len(parents) > 1 else update,
        declared_by=declared_by or ("pipeline" if from_pipeline else "measured"),
    )
    metadata = ModelMetadata(
        model=model, version=version, change=change, training=gathered.merged_with(facts or TrainingFacts())
    )
    return Description(metadata, table, contents.warning)


@dataclass(frozen=True)
class KnownVersion:
    """A version's two files as some commit holds them."""

    metadata: ModelMetadata
    table: bytes | None

    @property
    def is_whole(self) -> bool:
        """Whether the table is the one that the metadata names."""
        return self.metadata.is_table(self.table)


def _measured_facts(contents: Contents, table: bytes | None) -> dict[str, Any]:
    """Give the fields of `ModelFacts` that follow from the bytes alone."""
    unknown = dict.fromkeys(("parameters", "n_tensors", "dtypes", "parameters_digest"))
    return {
        "format": contents.format, "framework": contents.framework, "bytes_": contents.hashes.size,
        "md5": contents.hashes.md5, "sha256": contents.hashes.sha256 or None,
        "tensors_digest": table_digest(table) if table is not None else None,
    } | (summarise(contents.table.rows) if contents.table is not None else unknown)  # fmt: skip


def _measured_anew(known: KnownVersion, contents: Contents) -> KnownVersion:
    """Give a version with what its bytes say in place of what its files say of them."""
    table = contents.table.render() if contents.table is not None else None
    model = replace(known.metadata.model, **_measured_facts(contents, table))
    return KnownVersion(replace(known.metadata, model=model), table)


def describe_change(path: str, contents: Contents, parent: KnownVersion) -> ChangeFacts:
    """Compare a model's bytes with a version, from the tensor tables."""
    from dvc_modelver.diff.changes import Side
    from dvc_modelver.diff.compare import compare

    new = Side(path, "", contents.table, None, contents.hashes.md5, contents.format)
    old_table = TensorTable.parse(parent.table, table_path(path)) if parent.table is not None else None
    old = Side(path, "", old_table, parent.metadata, parent.metadata.md5, parent.metadata.model.format)
    found = compare(old, new)
    return ChangeFacts(
        from_=parent.metadata.md5,
        kind=found.kind,
        cosine=_rounded(found.cosine, 9),
        relative_l2=_rounded(found.relative_l2, 4),
        tensors_changed=found.tensors_changed,
    )


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else float(f"{value:.{digits}g}")


def parent_versions(repo: Repository, path: str) -> list[KnownVersion]:
    """Give the versions that HEAD, and a merge under way, have of a model; the same md5 once."""
    found: list[KnownVersion] = []
    for rev in ("HEAD", "MERGE_HEAD"):
        commit = repo.head if rev == "HEAD" else repo.git.find_commit(rev)
        version = version_at(repo, commit, path) if commit else None
        if version is not None and all(version.metadata.md5 != other.metadata.md5 for other in found):
            found.append(version)
    return found


def version_at(repo: Repository, commit: str, path: str) -> KnownVersion | None:
    """Give the version that a commit has of a model; None where it has none that can be read."""
    view = CommitView(commit, repo.objects, repo.backfill)
    try:
        metadata = repo.metadata(view, path)
    except BadMetadataError:
        return None
    return None if metadata is None else KnownVersion(metadata, view.read(table_path(path)))


def find_version(repo: Repository, path: str, md5: str) -> KnownVersion | None:
    """Give the version with these bytes from HEAD's history, nearest first, else from what was backfilled."""
    if repo.head is None:
        return None
    wanted = f'"md5": "{md5}"'.encode()
    out = repo.git.run(
        "log",
        "--format=%H",
        "--raw",
        "--no-abbrev",
        "--no-renames",
        "--diff-merges=first-parent",
        "HEAD",
        "--",
        metadata_path(path),
    )
    commit = ""
    for line in out.decode("utf-8", "replace").splitlines():
        if not line.startswith(":"):
            commit = line or commit
            continue
        oid = line.split(" ")[3]
        try:
            if set(oid) == {"0"} or wanted not in repo.objects.read_blob(oid):
                continue
        except NotFoundError:
            continue
        found = version_at(repo, commit, path)
        if found is not None and found.metadata.md5 == md5 and found.metadata.pending is None and found.is_whole:
            return found
    before = repo.backfill.by_object.get(path, {}).get(md5)
    if before is None:
        return None
    from dvc_modelver.registry.backfill import read_backfilled_table

    return KnownVersion(before.metadata, read_backfilled_table(repo.objects, before.metadata))


def find_anywhere(repo: Repository, md5s: set[str], revs: Iterable[str] = ()) -> dict[str, KnownVersion]:
    """Give the versions with these bytes from any branch, tag or stash, newest first, under whatever path.

    Args:
        repo: The repository.
        md5s: What is looked for.
        revs: Commits that are under no ref.
    """
    out = repo.git.run(
        "log", "--all", "--format=%H", "--raw", "--no-abbrev", "--no-renames", "--diff-merges=first-parent",
        *(["HEAD"] if repo.head else []), *revs, "--", f"*{METADATA_SUFFIX}", literal=False,
    )  # fmt: skip
    found: dict[str, KnownVersion] = {}
    commit = ""
    for line in os.fsdecode(out).splitlines():
        if not line.startswith(":"):
            commit = line or commit
            continue
        head, _, file = line.partition("\t")
        oid = head.split(" ")[3]
        if len(found) == len(md5s) or set(oid) == {"0"}:
            continue
        try:
            metadata = ModelMetadata.parse(repo.objects.read_blob(oid), file)
        except (BadMetadataError, NotFoundError):
            continue
        if metadata.md5 in md5s - set(found) and metadata.pending is None:
            table = repo.objects.read_file(commit, table_path(file.removesuffix(METADATA_SUFFIX)))
            found[metadata.md5] = KnownVersion(metadata, table)
    return found
