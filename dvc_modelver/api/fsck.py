"""fsck: are the objects that commits name there, and what their names say; and bringing back those that are not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from dvc_modelver.checks import check_commits
from dvc_modelver.errors import (
    BadMetadataError,
    EnvironmentFailed,
    ModelverError,
    NotFoundError,
    ObjectCorrupt,
    UsageError,
    word,
)
from dvc_modelver.metadata import METADATA_SUFFIX, find_model_path
from dvc_modelver.progress import ProgressLine
from dvc_modelver.repository import Repository, TrackedModel
from dvc_modelver.store.cache import Cache
from dvc_modelver.store.dvcconfig import find_dvc_root
from dvc_modelver.store.dvcconfig import read_settings as read_dvc_settings
from dvc_modelver.store.folders import folder_bytes, is_folder_oid, parse_listing
from dvc_modelver.store.hashing import hash_pieces
from dvc_modelver.store.lock import held
from dvc_modelver.store.objects import MAX_LISTING_BYTES
from dvc_modelver.store.remotes import Remote
from dvc_modelver.transfer import Wanted, all_tips, objects_of_commits
from dvc_modelver.views import CommitView, View
from dvc_modelver.worktree.agreement import find_contradictions

Say = Callable[[str], None]
Source = Callable[[], BinaryIO]
READ_BYTES = 8 << 20


@dataclass(frozen=True)
class Repaired:
    """One object that was lost or damaged somewhere, and is not any more.

    Attributes:
        path: The file that it is, or was.
        found: Where its bytes were.
        done: What was done with them, in a few words each.
    """

    path: str
    md5: str
    found: str
    done: tuple[str, ...]


@dataclass
class Fsck:
    """What `fsck` found.

    Attributes:
        objects: Objects looked at, files of folders included.
        problems: One line each, those that were mended left out.
        hints: The command to run next, for each problem.
        repaired: What was mended.
    """

    objects: int = 0
    problems: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    repaired: list[Repaired] = field(default_factory=list)

    def add(self, problem: str, hint: str) -> None:
        """Take down a problem."""
        self.problems.append(problem)
        self.hints.append(hint)


def fsck(
    *,
    remote: bool = False,
    everything: bool = False,
    deep: bool = False,
    repair: bool = False,
    say: Say = lambda _line: None,
    folder: Path | None = None,
) -> Fsck:
    """Prove that the objects which commits name are there and are what they say.

    Args:
        remote: Ask the DVC remotes as well: each object must be there, and have the size that it has here.
        everything: All commits that a ref or a stash reaches rather than HEAD's files.
        deep: Read what the remotes have, and hash it; measure the values of cached models anew.
        repair: Bring back what is lost or damaged from work trees, caches and other remotes, verified by md5.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.

    Raises:
        EnvironmentFailed: A remote cannot be reached.
    """
    repo = Repository.open(folder)
    repo.dvc_root()
    result = Fsck()
    for file, err in repo.unreadable(repo.work_tree).items():
        result.add(str(err), err.hint or f"git checkout HEAD -- {word(file)}")
    _check_files(repo, result, deep=deep)
    if everything:
        _check_history(repo, result, deep=deep)
    options = {"--remote": remote, "--deep": deep, "--all": everything, "--repair": True}
    hint = " ".join(["modelver fsck", *(option for option, given in options.items() if given)])
    hints = _Hints() if repair else _Hints(hint, f"modelver fsck --remote --all --repair; else {_ASK}")
    with held(repo.layout.common_dir / "modelver", say, alone=False):
        groups: dict[tuple[Path, str | None, bool], list[Wanted]] = {}
        for item in _wanted(repo, everything=everything):
            key = (repo.dvc_root(item.pointer.file), item.pointer.remote, item.pointer.legacy)
            groups.setdefault(key, []).append(item)
        for (root, name, legacy), items in groups.items():
            checker = _Checker(repo, root, name, result, hints, legacy=legacy, asking=remote or deep, deep=deep)
            checker.check(items, repair=repair)
    _check_metadata(repo, result)
    return result


def _check_files(repo: Repository, result: Fsck, *, deep: bool) -> None:
    """Compare what the work tree's metadata and tables say with pointers and objects."""
    for model in repo.models(repo.work_tree):
        mend = f"modelver refresh {word(model.path)}"
        if model.problem:
            result.add(model.problem, mend)
        for one in _contradictions(repo, repo.work_tree, model, deep=deep):
            result.add(one, mend)


def _check_history(repo: Repository, result: Fsck, *, deep: bool) -> None:
    """Do the same for each metadata file of history, once, where a commit brought it in."""
    seen: set[tuple[str, str]] = set()
    args = ("--diff-filter=AM", "--diff-merges=first-parent", *all_tips(repo), "--", f"*{METADATA_SUFFIX}")
    for commit, change in repo.git.iter_changes(*args):
        path = find_model_path(change.path)
        if path is None or (path, change.new_oid) in seen:
            continue
        seen.add((path, change.new_oid))
        view = CommitView(commit.id, repo.objects)
        model = _model_at(repo, view, path)
        for line in _contradictions(repo, view, model, deep=deep) if model is not None else ():
            result.add(f"{commit.id[:8]}: {line}", f"git show {commit.id[:8]}; modelver refresh mends the newest alone")


def _model_at(repo: Repository, view: View, path: str) -> TrackedModel | None:
    try:
        beside = repo.pointers_in(view, f"{path}.dvc")
        pointer = next((p for p in beside or repo.pointers(view) if p.path == path), None)
        metadata = repo.metadata(view, path)
    except (BadMetadataError, NotFoundError):
        return None  # what cannot be read is named by check
    return None if pointer is None or metadata is None else TrackedModel(metadata.model.name, path, pointer, metadata)


def _contradictions(repo: Repository, view: View, model: TrackedModel, *, deep: bool) -> list[str]:
    try:
        return [one.line for one in find_contradictions(repo, view, model, deep=deep)]
    except (ObjectCorrupt, NotFoundError):
        return []  # the objects are looked at one by one, and blobs by git fsck


def _wanted(repo: Repository, *, everything: bool) -> list[Wanted]:
    if everything:
        return objects_of_commits(repo, all_tips(repo), [], never_pushed=True)
    view = repo.at("HEAD") if repo.head is not None else repo.index()
    found = (Wanted(p) for p in repo.pointers(view) if p.md5 and p.cache)
    return list({item.key: item for item in found}.values())


def _check_metadata(repo: Repository, result: Fsck) -> None:
    if repo.head is None:
        return
    for problem in check_commits(repo, "HEAD", []):
        if problem.refuses:
            result.add(problem.line, problem.hint)


@dataclass(frozen=True)
class _Part:
    """One object of an output.

    Attributes:
        path: The file that it is; the folder's, for a listing.
        item: The output that it belongs to.
        size: Its bytes, where known.
    """

    md5: str
    path: str
    item: Wanted
    size: int | None


_ASK = "ask whoever committed it to run: modelver push"


@dataclass(frozen=True)
class _Hints:
    """What to run where an object can be mended from here, and where it is lost; once mending was tried, ask others."""

    mend: str = _ASK
    lost: str = _ASK


class _Checker:
    """Checks the outputs of one DVC repository that have one remote and one layout."""

    def __init__(
        self, repo: Repository, root: Path, name: str | None, result: Fsck, hints: _Hints, *,
        legacy: bool, asking: bool, deep: bool,
    ) -> None:  # fmt: skip
        self.repo, self.root, self.name, self.result = repo, root, name, result
        self.legacy, self.asking, self.deep = legacy, asking, deep
        self.cache = Cache(read_dvc_settings(root))
        self.hints = hints
        self._remote: Remote | None = None
        self._lines: dict[tuple[str, str, str, str], list[_Part]] = {}

    def check(self, items: list[Wanted], *, repair: bool) -> None:
        items = sorted(items, key=lambda item: item.pointer.push)  # what any pointer sends should be on the remote
        parts = list({part.md5: part for item in items for part in self._parts(item)}.values())
        self.result.objects += len(parts)
        state = self._look_into_cache(parts)
        pushed = [p for p in parts if p.item.pointer.push]
        asked = [p for p in pushed if self.asking or state[p.md5] != "whole"]
        sizes = self._sizes({p.md5 for p in asked})
        whole_there = {p.md5 for p in asked if self._is_whole_on_remote(p, sizes)}
        mended = set()
        if repair:
            mended = self._repair(parts, state, sizes, whole_there)
        for part in parts:
            if part.md5 not in mended:
                self._judge(part, state[part.md5], sizes, whole_there)
        self._report()

    # Looking

    def _parts(self, item: Wanted) -> Iterator[_Part]:
        if not item.pointer.is_folder:
            yield _Part(item.md5, item.path, item, item.pointer.size)
            return
        listing = self._find_listing(item)
        for name, md5 in parse_listing(listing, item.path, "") if listing is not None else []:
            yield _Part(md5, f"{item.path}/{name}", item, None)
        yield _Part(item.md5, item.path, item, len(listing) if listing is not None else None)

    def _find_listing(self, item: Wanted) -> bytes | None:
        """Give the listing of a folder, from wherever it is whole."""
        cache = self.cache
        if cache.has_alone(item.md5, legacy=self.legacy) and cache.verify(item.md5, legacy=self.legacy, anew=True):
            return cache.path_of(item.md5, legacy=self.legacy).read_bytes()
        for _, source in self._sources(_Part(item.md5, item.path, item, None), from_remote=True):
            try:
                with source() as stream:
                    text = stream.read(MAX_LISTING_BYTES)
            except (OSError, ModelverError):
                continue
            if hash_pieces([text], len).md5 == item.md5.removesuffix(".dir"):
                return text
        return None

    def _look_into_cache(self, parts: list[_Part]) -> dict[str, str]:
        there = [p for p in parts if self.cache.has_alone(p.md5, legacy=self.legacy)]
        total = sum(self.cache.path_of(p.md5, legacy=self.legacy).stat().st_size for p in there)
        state = {p.md5: "absent" for p in parts}
        with ProgressLine("reading the cache", total) as progress:
            for part in there:
                whole = self.cache.verify(part.md5, legacy=self.legacy, anew=True, progress=progress)
                state[part.md5] = "whole" if whole else "damaged"
        return state

    @property
    def remote(self) -> Remote:
        if self._remote is None:
            self._remote = Remote.open(self.root, self.name)
        return self._remote

    def _sizes(self, md5s: set[str]) -> dict[str, int]:
        settings = read_dvc_settings(self.root)
        if not md5s or (not self.asking and (self.name or settings.default_remote) is None):
            return {}
        return self.remote.sizes(md5s, legacy=self.legacy)

    def _is_whole_on_remote(self, part: _Part, sizes: dict[str, int]) -> bool:
        if part.md5 not in sizes or sizes[part.md5] != self._expected(part, sizes):
            return False
        if not self.deep or (self.legacy and not is_folder_oid(part.md5)):
            return True
        with (
            self.remote.open_object(part.md5, legacy=self.legacy, block_bytes=READ_BYTES) as stream,
            ProgressLine(f"reading {part.path} on {self.remote.url}", sizes[part.md5]) as progress,
        ):
            return hash_pieces(_pieces(stream), len, progress=progress).md5 == part.md5.removesuffix(".dir")

    def _expected(self, part: _Part, sizes: dict[str, int]) -> int:
        """Give the bytes that an object should have; what the remote has where nothing else is known."""
        if part.size is not None:
            return part.size
        if self.cache.has_alone(part.md5, legacy=self.legacy) and self.cache.verify(part.md5, legacy=self.legacy):
            return self.cache.path_of(part.md5, legacy=self.legacy).stat().st_size
        return sizes[part.md5]

    # Judging

    def _judge(self, part: _Part, cached: str, sizes: dict[str, int], whole_there: set[str]) -> None:
        if cached == "damaged":
            self._add(part, "{} in the cache with other bytes than its name says", self.hints.mend)
        elif cached == "absent" and part.md5 not in whole_there:
            if self._is_in_work_tree(part):
                self._add(part, "{} in the work tree alone, not in the cache", self.hints.mend)
            elif part.md5 in sizes:
                self._add(part, f"{{}} on {self.remote.url} with other bytes, and not in the cache", self.hints.lost)
            else:
                self._add(part, "{} neither in the cache nor on the remote", self.hints.lost)
        elif self.asking and part.item.pointer.push and part.md5 not in whole_there:
            if part.md5 in sizes:
                self._add(part, f"{{}} on {self.remote.url} with other bytes", self.hints.mend)
            else:
                self._add(part, f"{{}} not on {self.remote.url}", self.hints.mend)

    def _is_in_work_tree(self, part: _Part) -> bool:
        file = self.repo.top / part.path
        if is_folder_oid(part.md5):
            return file.is_dir() and self.cache.hash_path(file).md5 == part.md5
        if not file.is_file() or part.size not in (None, file.stat().st_size):
            return False
        return self.cache.hash_path(file).md5 == part.md5

    def _add(self, part: _Part, words: str, hint: str) -> None:
        self._lines.setdefault((part.item.path, part.item.md5, words, hint), []).append(part)

    def _report(self) -> None:
        for (path, _, words, hint), parts in self._lines.items():
            if len(parts) == 1:
                self.result.add(f"{parts[0].path}: object {parts[0].md5} {words.format('is')}", hint)
            else:
                names = ", ".join(p.md5 for p in parts[:3]) + (", ..." if len(parts) > 3 else "")
                self.result.add(f"{path}: {len(parts)} objects {words.format('are')}: {names}", hint)

    # Mending

    def _repair(
        self, parts: list[_Part], state: dict[str, str], sizes: dict[str, int], whole_there: set[str]
    ) -> set[str]:
        """Bring back what can be; give the md5 of objects that are whole now wherever they were asked for."""
        found: dict[str, str] = {}
        lost: set[str] = set()
        for part in parts:
            if state[part.md5] == "whole":
                found[part.md5] = "the cache"
            elif state[part.md5] == "damaged" or part.md5 not in whole_there:
                where = self._restore(part, from_remote=part.md5 in whole_there)
                if where is None:
                    lost.add(part.md5)
                else:
                    found[part.md5] = where
        incomplete = {p.item.md5 for p in parts if p.md5 in lost}
        todo = {
            p.md5
            for p in parts
            if p.item.pointer.push and p.md5 in found and p.md5 not in whole_there and p.md5 not in incomplete
            if self.asking or state[p.md5] != "whole"
        }
        sent = self._send(todo, broken=todo & sizes.keys())
        mended = set()
        for part in parts:
            done = ["put into the cache"] if part.md5 in found and state[part.md5] != "whole" else []
            done += [f"uploaded to {self.remote.url}"] if part.md5 in sent else []
            if done:
                self.result.repaired.append(Repaired(part.path, part.md5, found[part.md5], tuple(done)))
                mended |= {part.md5} if part.md5 in sent or part.md5 not in todo else set()
        return mended

    def _send(self, todo: set[str], broken: set[str]) -> set[str]:
        if not todo or (not self.asking and (self.name or read_dvc_settings(self.root).default_remote) is None):
            return set()
        return set(self.remote.push(todo, legacy=self.legacy, broken=broken).sent)

    def _restore(self, part: _Part, *, from_remote: bool) -> str | None:
        """Put an object into the cache from where its bytes are found; give where, None for nowhere."""
        for where, source in self._sources(part, from_remote=from_remote):
            try:
                with source() as stream, ProgressLine(f"reading {part.path}", part.size or 0) as progress:
                    if self.cache.restore(part.md5, _pieces(stream), legacy=self.legacy, progress=progress):
                        return where
            except (FileNotFoundError, IsADirectoryError, PermissionError, UsageError):
                continue
        return None

    def _sources(self, part: _Part, *, from_remote: bool) -> Iterator[tuple[str, Source]]:
        """Give where an object's bytes may be, nearest first; whoever reads them hashes them."""
        tops = [self.repo.top, *(top for top in self.repo.git.worktrees() if top != self.repo.top)]
        for top in tops:
            file = top / part.path
            if is_folder_oid(part.md5) and file.is_dir():
                yield f"work tree {top}", partial(self._open_listing, file)
            elif file.is_file() and part.size in (None, folder_bytes(file)):
                yield f"work tree {top}", partial(_open_file, file)
        for path in self._cache_paths(tops, part.md5):
            yield str(path), partial(_open_file, path)
        own = self.remote_name
        for name in [own, *(other for other in read_dvc_settings(self.root).remotes if other != own)]:
            if name is not None:
                yield from self._on_remote(name, part, both=name != own or not from_remote)

    def _open_listing(self, folder: Path) -> BinaryIO:
        return BytesIO(self.cache.list_folder(folder))

    @property
    def remote_name(self) -> str | None:
        return self.name or read_dvc_settings(self.root).default_remote

    def _cache_paths(self, tops: Iterable[Path], md5: str) -> list[Path]:
        """Give the files that are an object in any cache of this repository's work trees, of either layout."""
        found: dict[Path, None] = {}
        for top in tops:
            root = find_dvc_root(top / self.root.relative_to(self.repo.top.resolve()), top) if top.is_dir() else None
            if root is None:
                continue
            settings = read_dvc_settings(root)
            for cache in (Cache(settings), Cache(settings.at(root / ".dvc" / "cache"))):
                for legacy in (False, True):
                    path = cache.path_of(md5, legacy=legacy)
                    if path.is_file() and path != self.cache.path_of(md5, legacy=self.legacy):
                        found[path] = None
        return list(found)

    def _on_remote(self, name: str, part: _Part, *, both: bool) -> Iterator[tuple[str, Source]]:
        try:
            remote = self.remote if name == self.remote_name else Remote.open(self.root, name)
            for legacy in (False, True) if both else (self.legacy,):
                if part.md5 in remote.sizes({part.md5}, legacy=legacy):
                    opened = partial(remote.open_object, part.md5, legacy=legacy, block_bytes=READ_BYTES)
                    yield remote.url, opened
        except EnvironmentFailed:
            return  # a remote that is not the one asked for may be out of reach


def _open_file(path: Path) -> BinaryIO:
    return path.open("rb")


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    while piece := stream.read(READ_BYTES):
        yield piece
