"""Moves objects between cache and remotes: what a push needs, what a work tree lacks."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dvc_modelver.errors import BadMetadataError, EnvironmentFailed, NotFoundError, ObjectMissing
from dvc_modelver.git.porcelain import ZERO_OID
from dvc_modelver.progress import human_bytes
from dvc_modelver.repository import Repository, is_pointer_file
from dvc_modelver.store.folders import folder_bytes
from dvc_modelver.store.pointers import Pointer, read_pointers
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


@dataclass(frozen=True)
class Upload:
    """What a push did.

    Attributes:
        sent: md5 of the objects uploaded now.
        present: md5 of those that the remote had already.
    """

    url: str
    sent: tuple[str, ...] = ()
    present: tuple[str, ...] = ()


def objects_of_commits(repo: Repository, new: str, known: Sequence[str]) -> list[Wanted]:
    """Give the objects that the pointers of some commits name, each once.

    Args:
        repo: The repository.
        new: The newest commit (or tag) to be pushed.
        known: Arguments of ``git rev-list`` for what the other side has: ``--remotes=origin`` and the like.
    """
    found: dict[str, Wanted] = {}
    for commit, oid, path in _pointer_files(repo, new, known):
        for pointer in _pointers_of_blob(repo, commit, oid, path):
            if pointer.md5 and pointer.cache and pointer.push:
                found.setdefault(pointer.md5, Wanted(pointer, new))
    return list(found.values())


def _pointer_files(repo: Repository, new: str, known: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Give (commit, blob id, path) of every pointer file that a commit brought in."""
    out = repo.git.run(
        "log", "-z", "--format=%x01%H", "--raw", "--no-abbrev", "--no-renames", "--root", "-m", "--full-history",
        new, "--not", *known, "--", "*.dvc", "*dvc.lock", literal=False,
    )  # fmt: skip
    parts, commit = iter(out.split(b"\0")), ""
    for part in parts:
        text = part.strip()
        if text.startswith(b"\x01"):
            commit = text[1:].decode()
        elif text.startswith(b":"):
            oid, path = text.split(b" ")[3].decode(), os.fsdecode(next(parts))
            if is_pointer_file(path) and set(oid) != {"0"}:
                yield commit, oid, path


def _pointers_of_blob(repo: Repository, commit: str, oid: str, path: str) -> list[Pointer]:
    folder, name = posixpath.split(path)
    dvc_yaml = repo.objects.read_file(commit, posixpath.join(folder, "dvc.yaml")) if name == "dvc.lock" else None
    try:
        return read_pointers(repo.objects.read_blob(oid), path, dvc_yaml=dvc_yaml)
    except (BadMetadataError, NotFoundError):
        return []


def upload(repo: Repository, wanted: Iterable[Wanted], say: Say, *, remote_name: str | None = None) -> list[Upload]:
    """Put objects onto their remotes; nothing is sent for those that are there.

    Raises:
        ObjectMissing: An object is neither in the cache, nor in the work tree, nor on the remote.
        EnvironmentFailed: The remote cannot be reached or written.
    """
    groups: dict[tuple[Path, str | None], list[Wanted]] = {}
    for item in wanted:
        key = (repo.dvc_root(item.pointer.file), remote_name or item.pointer.remote)
        groups.setdefault(key, []).append(item)
    return [_upload_group(repo, root, name, items, say) for (root, name), items in groups.items()]


def _upload_group(repo: Repository, root: Path, name: str | None, items: list[Wanted], say: Say) -> Upload:
    remote = Remote.open(root, name)
    missing = remote.missing({i.md5 for i in items}, legacy={i.md5 for i in items if i.pointer.legacy})
    present = tuple(i.md5 for i in items if i.md5 not in missing)
    todo = [i for i in items if i.md5 in missing]
    if not todo:
        return Upload(remote.url, (), present)
    lost = [i for i in todo if not _in_cache(repo, i)]
    if lost:
        names = ", ".join(f"{i.path} ({i.md5[:8]})" for i in lost[:5]) + (" ..." if len(lost) > 5 else "")
        raise ObjectMissing(
            f"{len(lost)} object{'s' * (len(lost) > 1)} neither in the cache nor on {remote.url}: {names}",
            hint="push from the machine that has them; or MODELVER_SKIP=1 git push to send the commits without",
        )
    total = sum(i.pointer.size or 0 for i in todo)
    say(f"uploading {len(todo)} object{'s' * (len(todo) > 1)}, {human_bytes(total)} to {remote.url}")
    result = remote.push({i.md5 for i in todo}, legacy={i.md5 for i in todo if i.pointer.legacy})
    if result.failed:
        names = ", ".join(f"{i.path} ({i.md5[:8]})" for i in todo if i.md5 in result.failed)
        raise EnvironmentFailed(
            f"{remote.url}: could not upload {names}", hint="git push again: it goes on where it stopped"
        )
    return Upload(remote.url, tuple(i.md5 for i in todo), present)


def _in_cache(repo: Repository, item: Wanted) -> bool:
    """Whether an object is in the cache, whole; one that only the work tree has is stored first.

    Raises:
        ObjectCorrupt: The cache's bytes are not what their name says.
    """
    cache = repo.cache(item.pointer.file)
    if cache.has(item.md5, legacy=item.pointer.legacy):
        cache.check(item.md5, legacy=item.pointer.legacy)
        return True
    file = repo.top / item.path
    if not file.exists() or folder_bytes(file) != (item.pointer.size or -1):
        return False
    return cache.store_path(file, link=False).md5 == item.md5


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
        max_bytes: Larger objects are skipped.
    """
    done = Fetched()
    groups: dict[tuple[Path, str | None], list[Wanted]] = {}
    for item in wanted:
        if repo.cache(item.pointer.file).has(item.md5, legacy=item.pointer.legacy):
            continue
        if max_bytes is not None and (item.pointer.size or 0) > max_bytes:
            done.skipped.append(item)
            continue
        groups.setdefault((repo.dvc_root(item.pointer.file), item.pointer.remote), []).append(item)
    for (root, name), items in groups.items():
        try:
            remote = Remote.open(root, name)
            say(f"fetching {len(items)} object{'s' * (len(items) > 1)} from {remote.url}")
            result = remote.fetch({i.md5 for i in items}, legacy={i.md5 for i in items if i.pointer.legacy})
        except EnvironmentFailed as err:
            line = f"{err}\nhint: {err.hint}" if err.hint else str(err)
            done.failed.update({i.md5: line for i in items})
            continue
        for item in items:
            if item.md5 in result.failed or not repo.cache(item.pointer.file).has(item.md5, legacy=item.pointer.legacy):
                done.failed[item.md5] = (
                    result.failed.get(item.md5) or f"{item.path}: object {item.md5[:8]} is not on {remote.url}"
                )
            else:
                done.md5s.add(item.md5)
    return done


def known_refs(remote: str, remote_oid: str) -> list[str]:
    """Give the ``git rev-list`` arguments for what a Git remote has.

    Args:
        remote: Its name, or its URL when it has none.
        remote_oid: What the ref to be updated points at there; zeros for a new ref.
    """
    known = [f"--remotes={remote}"] if "/" not in remote and ":" not in remote else []
    return known if remote_oid == ZERO_OID else [*known, remote_oid]
