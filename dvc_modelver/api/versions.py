"""rollback, load: getting a version back."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from dvc_modelver.api.select import (
    Selected,
    find_known,
    find_past,
    reference_to,
    select,
    split_reference,
    warn_of_others,
)
from dvc_modelver.errors import NotFoundError, ObjectMissing, UsageError, word
from dvc_modelver.metadata import ModelMetadata, metadata_path, table_path
from dvc_modelver.pipeline import flatten
from dvc_modelver.registry.history import Version, iter_versions
from dvc_modelver.repository import Repository
from dvc_modelver.store.pointers import Pointer, read_lock_stage, replace_lock_stage, write_pointer
from dvc_modelver.transfer import Wanted, fetch
from dvc_modelver.worktree.destination import keep_weights
from dvc_modelver.worktree.state import is_special, locked
from dvc_modelver.worktree.sync import Keeper, path_in_file, read_pointer_text, write_if_changed
from dvc_modelver.worktree.track import Tracker

Say = Callable[[str], None]


@dataclass(frozen=True)
class RolledBack:
    """What a rollback restored.

    Attributes:
        moved: Parameters and dependencies of the pipeline that now differ from the work tree's.
    """

    path: str
    old: ModelMetadata | None
    new: ModelMetadata
    label: str
    moved: tuple[str, ...] = ()


def rollback(
    name: str, version: str | None = None, *, say: Say = lambda _line: None, folder: Path | None = None
) -> RolledBack:
    """Restore an earlier version's weights, pointer and metadata together, and stage them; nothing is committed.

    Args:
        name: The model's name or path.
        version: What may follow ``@``; the version before the current one when not given.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.

    Raises:
        NotFoundError: There is no such version, or none before the current one.
        ObjectMissing: Its weights are neither in the cache nor on the remote; nothing was changed.
    """
    repo = Repository.open(folder)
    if repo.head is None:
        raise NotFoundError(f"{name}: nothing was committed yet, so there is no earlier version")
    name, path, version, metadata = _asked_for(repo, name, version)
    current = repo.metadata(repo.index(), path) or metadata
    if version is not None:
        chosen = select(repo, reference_to(name, version))
    else:
        before = _version_before(repo, path, current)
        chosen = _selected_at(repo, before, name)
    if current is None and chosen.pointer.stage and path not in {p.path for p in repo.pointers(repo.work_tree)}:
        raise NotFoundError(
            f"{path}: its stage {chosen.pointer.stage} of the pipeline is not there any more",
            hint=f"modelver load {word(chosen.label)} -o {word(path)}",
        )
    with locked(repo.layout.state_dir):
        return _restore(repo, chosen, path, current, say)


def _asked_for(repo: Repository, name: str, version: str | None) -> tuple[str, str, str | None, ModelMetadata | None]:
    """Give name, path, version and metadata of a model that may be removed, and may be named with its version."""
    try:
        model = find_known(repo, name)
        return model.name, model.path, version, repo.current(model)
    except NotFoundError:
        bare, number, stage = split_reference(name)
        if version is None and (number or stage):
            return _asked_for(repo, bare, number or f"#{stage}")
        past = find_past(repo, name)
        if past is None:
            raise
        return *past, version, None


def _selected_at(repo: Repository, version: Version, name: str) -> Selected:
    return select(repo, f"{name}@{version.metadata.md5}")


def _version_before(repo: Repository, path: str, current: ModelMetadata | None) -> Version:
    versions = list(iter_versions(repo.git, repo.objects, path, "HEAD"))
    by_md5 = {v.metadata.md5: v for v in versions}
    for parent in current.version.parents if current is not None else ():
        if parent in by_md5:
            return by_md5[parent]
    number = current.version.number if current is not None else 0
    older = [v for v in versions if v.number < number]
    if current is None and versions:
        return versions[0]
    if not older:
        raise NotFoundError(
            f"{path}: there is no version before {number} in this history", hint=_older_hint(repo, path)
        )
    return max(older, key=lambda v: v.number)


def _older_hint(repo: Repository, path: str) -> str:
    if (repo.layout.common_dir / "shallow").exists():
        return "git fetch --unshallow: this clone has only the newest commits"
    return f"modelver log {word(path)}"


def _restore(repo: Repository, chosen: Selected, path: str, current: ModelMetadata | None, say: Say) -> RolledBack:
    md5, then = chosen.metadata.md5, chosen.model.path
    pointer = replace(chosen.pointer, md5=md5)
    have_object(repo, pointer, say)
    keeper = Keeper(repo, say)
    tracker = Tracker(keeper)
    file = repo.top / path
    seen = next(iter(keeper.look(only=[path])), None)
    if file.exists() and (seen is None or seen.md5 != md5):
        kept = repo.cache(path).store_path(file, link=False)
        if current is None or kept.md5 not in (current.md5, *_known_md5s(repo, path)):
            say(
                f"{path}: these weights were in no version; kept in the cache:\n"
                f"hint: modelver load {chosen.model.name}@{kept.md5} -o FILE gives them back"
            )
    view = repo.at(chosen.commit) if chosen.commit else repo.work_tree
    blobs: dict[str, bytes | None] = {metadata_path(path): view.read(metadata_path(then))}
    table = view.read(table_path(then))
    if table is not None or repo.git.index_entries(table_path(path)):
        blobs[table_path(path)] = table
    moved: tuple[str, ...] = ()
    if path != then:  # it was renamed since: the version comes back under today's path
        moved_facts = replace(chosen.metadata, model=replace(chosen.metadata.model, path=path))
        blobs[metadata_path(path)] = moved_facts.render()
        name = f"{path}.dvc"
        old, size = read_pointer_text(repo.top / name, name), chosen.metadata.model.bytes_
        n_files = len(list(repo.cache(path).iter_folder(md5))) if pointer.is_folder else None
        spelled = path_in_file(name, path, old)
        blobs[name] = write_pointer(old, path_in_file=spelled, md5=md5, size=size, n_files=n_files).encode()
    elif pointer.kind == "dvc":
        blobs[pointer.file] = view.read(pointer.file)
    else:
        blobs[pointer.file], moved = _restored_lock(repo, chosen, view.read(pointer.file) or b"")
    with repo.cache(path).prepare(md5, file, legacy=pointer.legacy) as put:
        for name, content in blobs.items():
            if content is None:
                (repo.top / name).unlink(missing_ok=True)
            else:
                write_if_changed(repo.top / name, content)
        repo.git.stage_blobs(blobs)
        tracker.stage_ignore_line(path)
        put()
    found = keeper.look(only=[path])
    for now in found:
        keeper.remember(now, agreed=md5, md5=md5)
    keeper.save()
    return RolledBack(path, current, chosen.metadata, chosen.label, moved)


def _known_md5s(repo: Repository, path: str) -> set[str]:
    return {v.metadata.md5 for v in iter_versions(repo.git, repo.objects, path, "--all")}


def have_object(repo: Repository, pointer: Pointer, say: Say) -> None:
    """Let the cache have what a pointer names, from the remote where need be.

    Raises:
        ObjectMissing: It is in neither.
    """
    md5 = pointer.md5 or ""
    if repo.cache(pointer.path).has(md5, legacy=pointer.legacy):
        return
    got = fetch(repo, [Wanted(pointer)], say)
    if md5 in got.failed:
        line, _, hint = got.failed[md5].partition("\nhint: ")
        raise ObjectMissing(
            f"{pointer.path}: object {md5[:8]} is not in the cache, and: {line}",
            hint=hint or "modelver fsck --remote",
        )


def _restored_lock(repo: Repository, chosen: Selected, old: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Give the work tree's dvc.lock with one stage as it was, and what of its inputs differs now."""
    pointer = chosen.pointer
    disk = repo.top / pointer.file
    text = replace_lock_stage(disk.read_text(encoding="utf-8"), pointer.stage or "", old.decode())
    now = read_lock_stage(disk.read_bytes(), pointer.stage or "")
    then = read_lock_stage(old, pointer.stage or "")
    moved = []
    for file, values in then.params.items():
        current = dict(flatten(now.params.get(file, {})))
        for key, value in flatten(values):
            if current.get(key) != value:
                moved.append(f"{file}: {key} was {value}, is {current.get(key)}")
    deps = {dep.path: dep.md5 for dep in now.deps}
    moved += [f"{posixpath.normpath(d.path)}: changed since" for d in then.deps if deps.get(d.path) != d.md5]
    return text.encode(), tuple(moved)


def load(
    reference: str,
    output: str | Path,
    *,
    force: bool = False,
    say: Say = lambda _line: None,
    folder: Path | None = None,
) -> Path:
    """Write one version's weights to a file, from cache or remote, verified by md5.

    Args:
        reference: ``NAME``, ``NAME@V``, ``NAME#STAGE``, or ``NAME@`` and the md5 of an object in the cache.
        output: Where to; a folder gets the model's own file name.
        force: Replace a file that is there.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.

    Raises:
        UsageError: The file is there already.
        ObjectMissing: The object is nowhere.
    """
    repo = Repository.open(folder)
    target = Path(output)
    try:
        chosen = select(repo, reference)
        warn_of_others(repo, chosen, say)
        pointer = chosen.pointer
    except NotFoundError:
        pointer = _loose_object(repo, reference)
    if target.is_dir() and not (pointer.is_folder and repo.repo_path(target) == pointer.path):
        target = target / posixpath.basename(pointer.path)
    if is_special(target):
        raise UsageError(f"{target}: a device or a pipe, expected a file", hint="-o FILE")
    if target.exists() and not force:
        raise UsageError(f"{target}: is there already", hint=f"modelver load {reference} -o {word(target)} --force")
    have_object(repo, pointer, say)
    cache = repo.cache(pointer.path)
    target.parent.mkdir(parents=True, exist_ok=True)
    keep_weights(target)
    cache.copy_out(pointer.md5 or "", target, legacy=pointer.legacy)
    return target


def _loose_object(repo: Repository, reference: str) -> Pointer:
    """Give a pointer for an object of the cache that no version names (weights set aside by a rollback)."""
    name, md5, _ = split_reference(reference)
    model = find_known(repo, name)
    if len(md5.removesuffix(".dir")) == 32 and repo.cache(model.path).has(md5):
        return replace(model.pointer, md5=md5, size=None)
    raise NotFoundError(f"{reference}: no such version", hint=f"modelver log {name}")
