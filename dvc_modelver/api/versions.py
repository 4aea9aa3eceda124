"""tag, rollback, load: names for versions, and getting one back."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from dvc_modelver.api.compare import diff
from dvc_modelver.api.select import Selected, find_known, select, split_reference
from dvc_modelver.errors import EnvironmentFailed, NotFoundError, ObjectMissing, RefusedError, UsageError, word
from dvc_modelver.git.porcelain import GitFailed
from dvc_modelver.metadata import ModelMetadata, metadata_path, table_path
from dvc_modelver.pipeline import flatten
from dvc_modelver.registry.history import Version, iter_versions
from dvc_modelver.registry.tags import bumped, check_name, create_tag, read_tags, version_key, versions_of
from dvc_modelver.repository import Repository
from dvc_modelver.store.pointers import Pointer, read_lock_stage, replace_lock_stage, write_pointer
from dvc_modelver.transfer import Wanted, fetch
from dvc_modelver.worktree.state import locked
from dvc_modelver.worktree.sync import Keeper, path_in_file, read_pointer_text, write_if_changed
from dvc_modelver.worktree.track import Tracker

Say = Callable[[str], None]


@dataclass(frozen=True)
class Tagged:
    """A tag that was made.

    Attributes:
        reason: What the level of an automatic bump follows from; empty otherwise.
        declared: Whether dvc.yaml has the model's ``artifacts:`` entry, which ``dvc artifacts get`` needs.
        is_first: Whether it is the model's first version tag.
    """

    tag: str
    commit: str
    reason: str
    declared: bool
    is_first: bool
    path: str


def tag(
    name: str,
    version: str | None = None,
    rev: str = "HEAD",
    *,
    bump: str | None = None,
    push: bool = False,
    sign: bool = False,
    folder: Path | None = None,
) -> Tagged:
    """Give a committed version its semantic version, as an annotated tag that GTO reads.

    Args:
        name: The model's name or path.
        version: Like ``v1.2.0``.
        rev: The commit that has the version.
        bump: ``major``, ``minor``, ``patch``, or ``auto``: the level that follows from the measured change.
        push: Push the tag to the branch's remote as well.
        sign: Sign it, as ``git tag --sign`` does.
        folder: Anywhere in the work tree.

    Raises:
        UsageError: Neither or both of `version` and `bump`, or the tag is there already.
        NotFoundError: No such model, or no metadata at `rev`.
        RefusedError: An automatic bump, and nothing changed since the last version.
    """
    if (version is None) == (bump is None):
        raise UsageError(
            "modelver tag: expected a version like v1.0.0, or --bump", hint=f"modelver tag {name} --bump auto"
        )
    repo = Repository.open(folder)
    commit = repo.git.commit_of(rev)
    model = repo.find_model(repo.at(commit), name)
    check_name(model.name)
    if model.metadata is None:
        raise NotFoundError(f"{rev}: has no metadata of {model.path}", hint=f"modelver add {word(model.path)}")
    tags = versions_of(read_tags(repo.git, model.name))
    latest = tags[-1] if tags else None
    reason = ""
    if bump is not None:
        if bump == "auto" and latest is not None:
            bump, reason = _measured_level(model.path, latest.commit, commit, model.metadata, repo)
        elif bump == "auto":
            bump, reason = "major", "the first version"
        version = bumped(latest.version if latest else None, bump)
    assert version is not None
    version = "v" + version.removeprefix("v")
    version_key(version)
    here = [t.tag for t in tags if t.commit == commit]
    if here:
        raise UsageError(
            f"{commit[:8]}: is {here[-1]} already, and GTO reads one version per commit", hint=f"git show {here[-1]}"
        )
    label = f"{model.name}@{version}"
    record = {
        "schema": "modelver.tag/1", "path": model.path, "md5": model.metadata.md5,
        "number": model.metadata.version.number, "parameters_digest": model.metadata.model.parameters_digest,
    }  # fmt: skip
    create_tag(
        repo.git,
        label,
        commit,
        f"{model.name} {version}",
        {k: v for k, v in record.items() if v is not None},
        sign=sign,
    )
    if push:
        push_tag(repo, label)
    declared = repo.declared_name(repo.at(commit), model.path) is not None
    return Tagged(label, commit, reason, declared, latest is None, model.path)


def _measured_level(path: str, old: str, new: str, metadata: ModelMetadata, repo: Repository) -> tuple[str, str]:
    """Give the level of an automatic bump and the measured facts that it follows from."""
    found = diff(old, new, repo.top / path, folder=repo.top)
    change = found[0] if found else None
    if change is None or change.kind == "identical":
        if _training_at(repo, old, path) == metadata.training:
            raise RefusedError(f"{path}: nothing changed since the last version", hint="git status")
        return "patch", "same weights, other metadata"
    if change.kind == "architecture":
        return "major", change.reason
    if change.kind in ("metadata-only", "conversion"):
        return "patch", change.reason
    l2 = f"; relative L2 {change.relative_l2:.3g}" if change.relative_l2 is not None else ""
    return "minor", change.reason + l2


def _training_at(repo: Repository, commit: str, path: str) -> object:
    metadata = repo.metadata(repo.at(commit), path)
    return metadata.training if metadata is not None else None


def push_tag(repo: Repository, label: str) -> None:
    """Push one tag to the remote of the current branch, else to origin.

    Raises:
        EnvironmentFailed: Git could not push it.
    """
    code, out = repo.git.run_for_code(
        "config", f"branch.{repo.git.text('branch', '--show-current')}.remote", codes=(0, 1)
    )
    remote = out.decode().strip() if code == 0 else "origin"
    try:
        repo.git.run("push", "--quiet", remote, f"refs/tags/{label}", env={"MODELVER_SKIP": ""})
    except GitFailed as err:
        raise EnvironmentFailed(f"{label}: tagged here, not pushed: {err}", hint=f"git push {remote} {label}") from err


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
    if version is None and "@" in name:
        name, version, _ = split_reference(name)
    model = find_known(repo, name)
    current = repo.metadata(repo.index(), model.path) or model.metadata
    if version is not None:
        chosen = select(repo, f"{model.name}@{version.removeprefix(f'{model.name}@')}")
    else:
        before = _version_before(repo, model.path, current)
        chosen = _selected_at(repo, before, model.name)
    with locked(repo.layout.state_dir):
        return _restore(repo, chosen, model.path, current, say)


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
    _have_object(repo, pointer, say)
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


def _have_object(repo: Repository, pointer: Pointer, say: Say) -> None:
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
        pointer = select(repo, reference).pointer
    except NotFoundError:
        pointer = _loose_object(repo, reference)
    if target.is_dir() and not (pointer.is_folder and repo.repo_path(target) == pointer.path):
        target = target / posixpath.basename(pointer.path)
    if target.exists() and not force:
        raise UsageError(f"{target}: is there already", hint=f"modelver load {reference} -o {word(target)} --force")
    _have_object(repo, pointer, say)
    cache = repo.cache(pointer.path)
    target.parent.mkdir(parents=True, exist_ok=True)
    inside = repo.repo_path(target)
    if inside in {p.path for p in repo.pointers(repo.work_tree)} and target.exists():
        repo.cache(inside or "").store_path(target, link=False)  # a model's own place: what is there is kept
    cache.copy_out(pointer.md5 or "", target, legacy=pointer.legacy)
    return target


def _loose_object(repo: Repository, reference: str) -> Pointer:
    """Give a pointer for an object of the cache that no version names (weights set aside by a rollback)."""
    name, md5, _ = split_reference(reference)
    model = find_known(repo, name)
    if len(md5.removesuffix(".dir")) == 32 and repo.cache(model.path).has(md5):
        return replace(model.pointer, md5=md5, size=None)
    raise NotFoundError(f"{reference}: no such version", hint=f"modelver log {name}")
