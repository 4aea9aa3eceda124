"""Moves objects between cache and remotes: what a push needs, what a work tree lacks."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dvc_modelver.errors import BadMetadataError, EnvironmentFailed, ObjectMissing
from dvc_modelver.git.porcelain import ZERO_OID
from dvc_modelver.progress import human_bytes
from dvc_modelver.repository import Repository, is_pointer_file
from dvc_modelver.store.cache import Cache
from dvc_modelver.store.folders import folder_bytes, parse_listing
from dvc_modelver.store.lock import held
from dvc_modelver.store.objects import MAX_LISTING_BYTES
from dvc_modelver.store.pointers import Pointer, read_pointers

if TYPE_CHECKING:
    from dvc_modelver.store.remotes import Remote

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """One object that a commit's pointers name.

    Attributes:
        path: The output that it was or is.
        commit: A commit that brings it in; empty for the work tree's own.
    """

    pointer: Pointer
    commit: str = ""

    @property
    def md5(self) -> str:
        """The object's id."""
        return self.pointer.md5 or ""

    @property
    def path(self) -> str:
        """The output's path."""
        return self.pointer.path

    @property
    def key(self) -> tuple[str, bool, str | None, bool, str]:
        """What tells wanted objects apart: two outputs, or one at two times, may send one object differently."""
        pointer = self.pointer
        return self.md5, pointer.legacy, pointer.remote, pointer.push, posixpath.dirname(pointer.file)


@dataclass(frozen=True)
class Upload:
    """What a push did.

    Attributes:
        sent: md5 of the objects uploaded now, files of folders included.
        present: md5 of those wanted that the remote had already.
        size: Bytes uploaded.
    """

    url: str
    sent: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    size: int = 0


def objects_of_commits(
    repo: Repository, new: str | Sequence[str], known: Sequence[str], *, never_pushed: bool = False
) -> list[Wanted]:
    """Give the objects that the pointers of some commits name, each once per remote.

    Args:
        repo: The repository.
        new: The newest commits (or tags) to be pushed, or arguments of ``git rev-list`` for them.
        known: Arguments of ``git rev-list`` for what the other side has: ``--remotes=origin`` and the like.
        never_pushed: Also those of outputs with ``push: false``.
    """
    tips = [new] if isinstance(new, str) else list(new)
    found: dict[tuple[object, ...], Wanted] = {}
    for commit, oid, path in _pointer_files(repo, tips, known):
        for pointer in _pointers_of_blob(repo, commit, oid, path):
            if pointer.md5 and pointer.cache and (pointer.push or never_pushed):
                wanted = Wanted(pointer, commit)
                found.setdefault(wanted.key, wanted)
    return list(found.values())


def all_tips(repo: Repository) -> list[str]:
    """Give what names every commit that a ref or a stash reaches, as arguments of ``git rev-list``."""
    return ["--all", *repo.git.text("rev-list", "-g", "--ignore-missing", "refs/stash", "--", codes=(0, 128)).split()]


def _pointer_files(repo: Repository, tips: Sequence[str], known: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Give (commit, blob id, path) of every pointer file that a commit brought in, or whose flags it changed."""
    args = ("-m", "--full-history", *tips, "--not", *known, "--", "*.dvc", "*dvc.lock", "*dvc.yaml")
    for commit, change in repo.git.iter_changes(*args):
        path, oid = change.path, change.new_oid
        if posixpath.basename(path) == "dvc.yaml":
            path = posixpath.join(posixpath.dirname(path), "dvc.lock")
            oid = repo.objects.find_blob(commit.id, path) or ZERO_OID
        if is_pointer_file(path) and change.status != "D" and oid != ZERO_OID:
            yield commit.id, oid, path


def _pointers_of_blob(repo: Repository, commit: str, oid: str, path: str) -> list[Pointer]:
    folder, name = posixpath.split(path)
    dvc_yaml = repo.objects.read_file(commit, posixpath.join(folder, "dvc.yaml")) if name == "dvc.lock" else None
    try:
        return read_pointers(repo.objects.read_blob(oid), path, dvc_yaml=dvc_yaml)
    except BadMetadataError:
        return []


# To the remote


@dataclass(frozen=True)
class _Plan:
    """What one remote is to be sent.

    Attributes:
        legacy: All lies in the layout of DVC before 3.0.
        todo: Objects to send: md5 -> path of the file that it is.
        broken: Those that the remote has with other bytes.
        lost: Paths, with md5, of objects that are nowhere.
    """

    remote: Remote
    cache: Cache
    legacy: bool
    present: tuple[str, ...]
    todo: dict[str, str]
    broken: frozenset[str]
    lost: tuple[str, ...]


def upload(repo: Repository, wanted: Iterable[Wanted], say: Say, *, remote_name: str | None = None) -> list[Upload]:
    """Put objects onto their remotes; nothing is sent for those that are there.

    Raises:
        ObjectMissing: An object is neither in the cache, nor in the work tree, nor on the remote; nothing was sent.
        ObjectCorrupt: The cache's bytes are not what their name says; nothing was sent.
        EnvironmentFailed: The remote cannot be reached or written.
    """
    groups: dict[tuple[Path, str | None, bool], list[Wanted]] = {}
    for item in wanted:
        key = (repo.dvc_root(item.pointer.file), remote_name or item.pointer.remote, item.pointer.legacy)
        groups.setdefault(key, []).append(item)
    if not groups:
        return []
    with held(repo.layout.common_dir / "modelver", say, alone=False):
        plans = [
            _plan(repo, _open_remote(root, name), items, legacy=legacy)
            for (root, name, legacy), items in groups.items()
        ]
        lost = [line for plan in plans for line in plan.lost]
        if lost:
            urls = ", ".join(dict.fromkeys(plan.remote.url for plan in plans if plan.lost))
            names = ", ".join(lost[:5]) + (" ..." if len(lost) > 5 else "")
            raise ObjectMissing(
                f"{len(lost)} object{'s' * (len(lost) > 1)} neither in the cache nor on {urls}: {names}",
                hint="modelver fsck --remote --all --repair looks everywhere else; or push from the machine that has "
                "them; or MODELVER_SKIP=1 git push to send the commits without, later modelver push where they are",
            )
        for plan in plans:
            for md5 in plan.todo:
                plan.cache.check_alone(md5, legacy=plan.legacy)
        return [_send(plan, say) for plan in plans]


def _open_remote(root: Path, name: str | None) -> Remote:
    from dvc_modelver.store.remotes import Remote  # most hooks ask none

    return Remote.open(root, name)


def _plan(repo: Repository, remote: Remote, items: list[Wanted], *, legacy: bool) -> _Plan:
    cache = repo.cache(items[0].pointer.file)
    there = remote.sizes({i.md5 for i in items}, legacy=legacy)
    todo: dict[str, str] = {}
    present, lost, broken = [], [], set()
    for item in items:
        expected = None if item.pointer.is_folder else item.pointer.size
        if item.md5 in there and expected in (None, there[item.md5]):
            present.append(item.md5)
        elif not _is_in_cache(repo, cache, item):
            lost.append(f"{item.path} ({item.md5[:8]})")
        else:
            broken |= {item.md5} & there.keys()
            todo[item.md5] = item.path
    files = {
        md5: f"{item.path}/{name}"
        for item in items
        if item.md5 in todo and item.pointer.is_folder
        for name, md5 in cache.iter_folder(item.md5, legacy=legacy)
    }
    there = remote.sizes(set(files), legacy=legacy) if files else {}
    for md5, path in files.items():
        if not cache.has_alone(md5, legacy=legacy):
            lost += [] if md5 in there else [f"{path} ({md5[:8]})"]
        elif there.get(md5) != cache.path_of(md5, legacy=legacy).stat().st_size:
            broken |= {md5} & there.keys()
            todo[md5] = path
    return _Plan(remote, cache, legacy, tuple(present), todo, frozenset(broken), tuple(lost))


def missing_on_remote(repo: Repository, item: Wanted) -> tuple[str, list[str]]:
    """Ask the remote of one output for its object, and for the files of a folder.

    Returns:
        The remote's name, and the paths, with md5, of what is not there or is there with other bytes.

    Raises:
        ObjectMissing: The listing of a folder is neither in the cache nor on the remote.
        EnvironmentFailed: The remote cannot be reached.
    """
    pointer = item.pointer
    remote = _open_remote(repo.dvc_root(pointer.file), pointer.remote)
    wanted: dict[str, tuple[str, int | None]] = {item.md5: (item.path, None if pointer.is_folder else pointer.size)}
    there = remote.sizes({item.md5}, legacy=pointer.legacy)
    if pointer.is_folder and item.md5 in there:
        cache = repo.cache(pointer.file)
        if not cache.has_alone(item.md5, legacy=pointer.legacy):
            with remote.open_object(item.md5, legacy=pointer.legacy) as listing:
                files = list(parse_listing(listing.read(MAX_LISTING_BYTES), item.path, ""))
        else:
            files = list(cache.iter_folder(item.md5, legacy=pointer.legacy))
        wanted |= {md5: (f"{item.path}/{name}", None) for name, md5 in files}
        there |= remote.sizes({md5 for _, md5 in files}, legacy=pointer.legacy)
    missing = [
        f"{path} ({md5[:8]})"
        for md5, (path, size) in wanted.items()
        if md5 not in there or size not in (None, there[md5])
    ]
    return remote.name, missing


def _is_in_cache(repo: Repository, cache: Cache, item: Wanted) -> bool:
    """Whether an object is in the cache; one that only the work tree has is stored first, a folder with its files."""
    if cache.has(item.md5, legacy=item.pointer.legacy):
        return True
    file = repo.top / item.path
    if file.exists() and folder_bytes(file) == item.pointer.size and not item.pointer.legacy:
        cache.store_path(file, link=False)
    return cache.has_alone(item.md5, legacy=item.pointer.legacy)


def _send(plan: _Plan, say: Say) -> Upload:
    remote, todo = plan.remote, plan.todo
    if not todo:
        return Upload(remote.url, (), plan.present)
    total = sum(plan.cache.path_of(md5, legacy=plan.legacy).stat().st_size for md5 in todo)
    say(f"uploading {len(todo)} object{'s' * (len(todo) > 1)}, {human_bytes(total)} to {remote.url}")
    result = remote.push(set(todo), legacy=plan.legacy, broken=plan.broken)
    if result.failed:
        names = ", ".join(f"{path} ({md5[:8]})" for md5, path in todo.items() if md5 in result.failed)
        raise EnvironmentFailed(
            f"{remote.url}: could not upload {names}", hint="git push again: it goes on where it stopped"
        )
    return Upload(remote.url, tuple(todo), plan.present, total)


# From the remote


@dataclass
class Fetched:
    """What a fetch did.

    Attributes:
        md5s: Objects that are in the cache now and were not before.
        skipped: Those larger than the limit.
        failed: md5 -> one line why.
    """

    md5s: set[str] = field(default_factory=set)
    skipped: list[Wanted] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def fetch(repo: Repository, wanted: Iterable[Wanted], say: Say, *, max_bytes: int | None = None) -> Fetched:
    """Bring objects that the cache lacks from their remotes, verified by md5.

    Args:
        repo: The repository.
        wanted: What is needed.
        say: Takes lines for the user.
        max_bytes: Larger objects are skipped; with 0 all are.
    """
    done = Fetched()
    groups: dict[tuple[Path, str | None, bool], list[Wanted]] = {}
    for item in wanted:
        if repo.cache(item.pointer.file).has(item.md5, legacy=item.pointer.legacy):
            continue
        if max_bytes == 0 or (max_bytes is not None and (item.pointer.size or 0) > max_bytes):
            done.skipped.append(item)
            continue
        key = (repo.dvc_root(item.pointer.file), item.pointer.remote, item.pointer.legacy)
        groups.setdefault(key, []).append(item)
    for (root, name, legacy), items in groups.items():
        try:
            remote = _open_remote(root, name)
            say(f"fetching {len(items)} object{'s' * (len(items) > 1)} from {remote.url}")
            result = remote.fetch({i.md5 for i in items}, legacy=legacy)
        except EnvironmentFailed as err:
            line = f"{err}\nhint: {err.hint}" if err.hint else str(err)
            done.failed.update({i.md5: line for i in items})
            continue
        for item in items:
            if item.md5 in result.failed or not repo.cache(item.pointer.file).has(item.md5, legacy=legacy):
                done.failed[item.md5] = (
                    result.failed.get(item.md5) or f"{item.path}: object {item.md5[:8]} is not on {remote.url}"
                )
            else:
                done.md5s.add(item.md5)
    return done


def by_reason(failed: Mapping[str, str]) -> list[tuple[list[str], str]]:
    """Give the paths that share a reason, with it, so that a remote out of reach is not named once a model."""
    paths: dict[str, list[str]] = {}
    for path, why in failed.items():
        paths.setdefault(why, []).append(path)
    return [(some, why) for why, some in paths.items()]


def known_refs(remote: str, remote_oid: str) -> list[str]:
    """Give the ``git rev-list`` arguments for what a Git remote has.

    Args:
        remote: Its name, or its URL when it has none.
        remote_oid: What the ref to be updated points at there; zeros for a new ref.
    """
    known = [f"--remotes={remote}"] if "/" not in remote and ":" not in remote else []
    return known if remote_oid == ZERO_OID else [*known, remote_oid]
