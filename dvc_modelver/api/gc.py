"""gc: cached weights that nothing needs, and taking them away."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from dvc_modelver.errors import BadMetadataError, ModelverError, RefusedError, environment_error
from dvc_modelver.reachable import Named, Needs, read_named, read_needs, work_trees
from dvc_modelver.repository import Repository
from dvc_modelver.store.cache import Cache
from dvc_modelver.store.folders import is_folder_oid, parse_listing
from dvc_modelver.store.lock import held
from dvc_modelver.store.objects import MAX_LISTING_BYTES, TEMP_FOLDER
from dvc_modelver.store.remotes import Remote
from dvc_modelver.store.temp import TempFolder
from dvc_modelver.transfer import objects_of_commits
from dvc_modelver.worktree.state import locked

Say = Callable[[str], None]
MIN_AGE_HOURS = 24.0
OTHER = Named("", "", 0)
"""Stands for objects that are no model's."""


@dataclass(frozen=True)
class FreedVersion:
    """One version whose weights go.

    Attributes:
        number: The integer version; 0 for objects of other outputs.
        md5: Its object; empty for those of other outputs.
        size: Bytes that go; objects that another version needs stay.
    """

    number: int
    md5: str
    size: int


@dataclass
class Freed:
    """What `gc` found.

    Attributes:
        done: Whether it was taken away; else it would be.
        models: (name, path) -> its versions; the name is empty for outputs that are no models.
        objects: Objects that go, files of folders included.
        size: Their bytes.
        unknown: Objects, and bytes of them, that nothing in Git names, kept unless asked for.
        young: Likewise, too young to be taken.
    """

    done: bool = False
    models: dict[tuple[str, str], list[FreedVersion]] = field(default_factory=dict)
    objects: int = 0
    size: int = 0
    unknown: tuple[int, int] = (0, 0)
    young: tuple[int, int] = (0, 0)


def gc(
    *,
    force: bool = False,
    cloud_backed: bool = False,
    everything: bool = False,
    projects: Iterable[str | Path] = (),
    min_age_hours: float = MIN_AGE_HOURS,
    say: Say = lambda _line: None,
    folder: Path | None = None,
) -> Freed:
    """Free cached objects that no ref, stash, reflog, index or work tree needs and that this repository named once.

    Args:
        force: Take them away; else it is only said what would go.
        cloud_backed: Also those that only history needs, if the remote is asked now and has them.
        everything: Also those that nothing in Git ever named: weights that were never committed.
        projects: Other repositories that use the same cache; what they need stays.
        min_age_hours: Younger objects stay.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.

    Raises:
        RefusedError: The cache lies outside of the repository, and no `projects` are named.
        UsageError: A work tree of the repository is not there.
        EnvironmentFailed: A remote cannot be reached.
    """
    repo = Repository.open(folder)
    repo.dvc_root()
    named = [Repository.open(Path(p)) for p in projects]
    others = {one.layout.common_dir: one for one in named if one.layout.common_dir != repo.layout.common_dir}
    repos = [repo, *others.values()]
    caches = _caches(repo, is_told=bool(named))
    with ExitStack() as stack:
        if force:
            for common_dir in sorted(one.layout.common_dir for one in repos):
                stack.enter_context(held(common_dir / "modelver", say, alone=True))
            for state_dir in sorted({tree.layout.state_dir for one in repos for tree in work_trees(one)}):
                stack.enter_context(locked(state_dir))
        plan = _Plan(repo, caches, [read_needs(one) for one in repos], say)
        chosen = plan.choose(cloud_backed=cloud_backed, everything=everything, min_age_hours=min_age_hours)
        result = plan.describe(chosen)
        if force:
            _delete(chosen)
            for cache in caches:
                for top in (cache.folder, cache.settings.root / ".dvc" / "tmp"):
                    TempFolder(top / TEMP_FOLDER).sweep()
            result.done = True
    return result


def _caches(repo: Repository, *, is_told: bool) -> list[Cache]:
    """Give the caches of a repository's DVC repositories.

    Raises:
        RefusedError: One lies outside of it: others may use it.
    """
    tops = [tree.top.resolve() for tree in work_trees(repo)]
    files = [file for file in repo.git.paths("ls-files", "-z") if file.endswith("/.dvc/config")]
    caches = {}
    for cache in [repo.cache(), *(repo.cache(file.removesuffix(".dvc/config") + "x") for file in files)]:
        place = cache.folder.resolve()
        if not is_told and not any(place.is_relative_to(top) for top in tops):
            raise RefusedError(
                f"{cache.folder}: a cache outside of this repository, which others may use",
                hint="modelver gc --project PATH for each repository that does; --project . when there is none",
            )
        caches[place] = cache
    return list(caches.values())


@dataclass(frozen=True)
class _Object:
    """One file of a cache, as it was when it was looked at."""

    oid: str
    path: Path
    size: int
    changed_ns: int

    @property
    def is_listing(self) -> bool:
        return is_folder_oid(self.oid)


def _iter_objects(cache: Cache) -> Iterator[_Object]:
    top = cache.folder / "files" / "md5"
    for path in top.glob("[0-9a-f][0-9a-f]/*"):
        name = path.name.removesuffix(".dir")
        if len(name) == 30 and not set(name) - set("0123456789abcdef") and not path.is_symlink() and path.is_file():
            st = path.stat()
            if st.st_nlink == 1:  # a file that has it by a hard link keeps it on disk anyway
                changed = max(st.st_mtime_ns, st.st_ctime_ns)
                yield _Object(path.parent.name + path.name, path, st.st_size, changed)


class _Plan:
    def __init__(self, repo: Repository, caches: list[Cache], needs: list[Needs], say: Say) -> None:
        self.repo, self.caches, self.say = repo, caches, say
        self._listings: dict[str, list[str] | None] = {}
        by_trees = {md5 for need in needs for md5 in need.by_work_trees}
        self.by_history = {md5 for need in needs for md5 in need.by_history}
        others = {md5 for need in needs[1:] for md5 in need.by_history | need.by_work_trees}
        self.by_trees = self._with_files(by_trees | others)
        self.owners: dict[str, Named] = {}
        self.members: set[str] = set()
        self.unknown: list[_Object] = []
        self.young: list[_Object] = []

    def choose(self, *, cloud_backed: bool, everything: bool, min_age_hours: float) -> list[_Object]:
        objects = {o.oid: o for cache in self.caches for o in _iter_objects(cache)}
        history = self._with_files(self.by_history)
        named = self._read_names()
        chosen = []
        for oid, one in objects.items():
            if oid in self.by_trees or oid in history:
                continue
            if oid not in named and not everything:
                self.unknown.append(one)
            else:
                chosen.append(one)
        if any(files is None for files in self._listings.values()):
            self.say("a folder's listing is neither in the cache nor on the remote: files of folders stay")
            chosen = [o for o in chosen if o.is_listing or (o.oid in named and o.oid not in self.members)]
        if cloud_backed:
            chosen += self._on_remotes([o for o in objects.values() if o.oid in history and o.oid not in self.by_trees])
        limit = time.time_ns() - int(min_age_hours * 3600e9)
        self.young = [o for o in chosen if o.changed_ns > limit]
        return [o for o in chosen if o.changed_ns <= limit]

    # Folders

    def _with_files(self, md5s: Iterable[str]) -> set[str]:
        """Add the files of folders; a listing that cannot be read leaves a note."""
        found = set(md5s)
        for oid in [md5 for md5 in found if is_folder_oid(md5)]:
            found.update(self._files_of(oid, everywhere=True))
        return found

    def _files_of(self, oid: str, *, everywhere: bool = False) -> list[str]:
        if oid not in self._listings:
            self._listings[oid] = self._read_listing(oid, everywhere=everywhere)
        return self._listings[oid] or []

    def _read_listing(self, oid: str, *, everywhere: bool) -> list[str] | None:
        for cache in self.caches:
            for legacy in (False, True):
                if cache.has_alone(oid, legacy=legacy):
                    try:
                        return [md5 for _, md5 in cache.iter_folder(oid, legacy=legacy)]
                    except BadMetadataError:
                        continue
        if not everywhere:
            return []
        try:
            with Remote.open(self.repo.dvc_root()).open_object(oid) as stream:
                return [md5 for _, md5 in parse_listing(stream.read(MAX_LISTING_BYTES), oid, "")]
        except (ModelverError, OSError):
            return None

    # Names

    def _read_names(self) -> set[str]:
        """Give every object that Git's blobs name, whether or not anything reaches them, and note the models'."""
        named, self.owners = read_named(self.repo)
        for oid in sorted(md5 for md5 in named if is_folder_oid(md5)):
            for md5 in self._files_of(oid):
                self.members.add(md5)
                self.owners.setdefault(md5, self.owners.get(oid, OTHER))
        return named | self.members

    def describe(self, chosen: list[_Object]) -> Freed:
        versions: dict[tuple[str, str], Counter[tuple[int, str]]] = {}
        for one in chosen:
            owner = self.owners.get(one.oid, OTHER)
            versions.setdefault((owner.name, owner.path), Counter())[owner.number, owner.md5] += one.size
        models = {
            key: [FreedVersion(number, md5, size) for (number, md5), size in sorted(found.items())]
            for key, found in sorted(versions.items())
        }
        return Freed(
            models=models, objects=len(chosen), size=_total(chosen),
            unknown=(len(self.unknown), _total(self.unknown)), young=(len(self.young), _total(self.young)),
        )  # fmt: skip

    # Remotes

    def _on_remotes(self, objects: list[_Object]) -> list[_Object]:
        """Give those objects that each remote which should have them has, whole; the remotes are asked now."""
        wanted: dict[str, set[tuple[Path, str | None]]] = {}
        kept: set[str] = set()
        for item in objects_of_commits(self.repo, ["--all", "--reflog"], [], never_pushed=True):
            key = (self.repo.dvc_root(item.pointer.file), item.pointer.remote)
            for md5 in [item.md5, *(self._files_of(item.md5) if item.pointer.is_folder else [])]:
                if not item.pointer.push:
                    kept.add(md5)
                elif not item.pointer.legacy:
                    wanted.setdefault(md5, set()).add(key)
        sizes: dict[tuple[Path, str | None], Mapping[str, int]] = {}
        asked = [o for o in objects if o.oid in wanted and o.oid not in kept]
        for key in {key for o in asked for key in wanted[o.oid]}:
            sizes[key] = Remote.open(*key).sizes({o.oid for o in asked if key in wanted[o.oid]})
        return [o for o in asked if all(sizes[key].get(o.oid) == o.size for key in wanted[o.oid])]


def _total(objects: Iterable[_Object]) -> int:
    return sum(o.size for o in objects)


def _delete(chosen: list[_Object]) -> None:
    """Take objects away; a folder's listing after its files, so that what is left over is still named."""
    for one in sorted(chosen, key=lambda o: o.is_listing):
        try:
            st = one.path.stat()
        except FileNotFoundError:
            continue
        if st.st_nlink == 1 and st.st_size == one.size and max(st.st_mtime_ns, st.st_ctime_ns) == one.changed_ns:
            try:
                one.path.unlink()
            except OSError as err:
                raise environment_error(err) from err
