"""DVC's cache as models use it: an output is one object, or a folder's listing and the objects that it names."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from dvc_modelver.errors import BadMetadataError, BadModelError, ObjectCorrupt, word
from dvc_modelver.store.copying import disk_error, sync_folder
from dvc_modelver.store.dvcconfig import DvcSettings
from dvc_modelver.store.folders import hash_folder, is_folder_oid, parse_listing
from dvc_modelver.store.hashing import RACY_NS, Hashes, Progress, hash_file
from dvc_modelver.store.objects import MAX_LISTING_BYTES, Objects
from dvc_modelver.store.verified import Hashed

__all__ = ["Cache", "ObjectFolder"]

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


class Cache(Objects):
    """The objects of one DVC repository, files and folders alike; an oid that ends in ``.dir`` is a folder's."""

    def __init__(self, settings: DvcSettings) -> None:
        super().__init__(settings)
        self._hashed = Hashed(settings.root / ".dvc" / "tmp" / "modelver.hashed")

    def has(self, oid: str, *, legacy: bool = False) -> bool:
        """Whether the object is there, by name, and all that a folder's listing names; no bytes of theirs are read."""
        is_there = super().has(oid, legacy=legacy)
        if not is_there or not is_folder_oid(oid):
            return is_there
        try:
            return all(super(Cache, self).has(md5, legacy=legacy) for _, md5 in self.iter_folder(oid, legacy=legacy))
        except BadMetadataError:
            return False

    def has_alone(self, oid: str, *, legacy: bool = False) -> bool:
        """Whether this one object is there, by name; of a folder, its listing."""
        return super().has(oid, legacy=legacy)

    def holds(self, oid: str) -> bool:
        """Whether the object is there with all its files, and each is what its name says."""
        if not self.has(oid):
            return False
        try:
            self.check(oid)
        except ObjectCorrupt:
            return False
        return True

    def check_alone(self, oid: str, *, legacy: bool = False) -> None:
        """Make sure of this one object's bytes; of a folder's, its listing's; see `Objects.check`."""
        super().check(oid, legacy=legacy)

    # Into the cache

    def hash_path(self, path: Path, *, progress: Progress | None = None) -> Hashes:
        """Hash a file or a folder; of a folder, only the files that moved since they were hashed.

        Raises:
            UsageError: Something is being written there.
            EnvironmentFailed: Something cannot be read.
        """
        if not path.is_dir():
            return hash_file(path, progress=progress)
        return self._walk(path, lambda file: hash_file(file, sha256=False, progress=progress).md5)[0]

    def list_folder(self, path: Path) -> bytes:
        """Give the listing of a folder as it lies there, hashing only the files that moved.

        Raises:
            UsageError: Something is being written there.
            EnvironmentFailed: Something cannot be read.
        """
        return self._walk(path, lambda file: hash_file(file, sha256=False).md5)[1]

    def store_path(
        self, path: Path, *, link: bool, known: Hashes | None = None, progress: Progress | None = None
    ) -> Hashes:
        """Put a file or all files of a folder into the cache; arguments and errors as for `store_file`."""
        if not path.is_dir():
            return self.store_file(path, link=link, known=known, progress=progress)
        hashes, listing = self._walk(
            path, lambda file: self.store_file(file, link=False, progress=progress).md5, stored=True
        )
        if not self.path_of(hashes.md5).is_file():
            self.store_listing(hashes.md5, listing)
        if link and self.prefers_links:
            self.materialise(hashes.md5, path)
        return hashes

    def adopt(self, made: Path, known: Hashes | None = None) -> Hashes:
        """Make objects of a complete file or folder at `new_path`; see `Objects.adopt`."""
        return super().adopt(made, known) if not made.is_dir() else self.store_path(made, link=False)

    def _walk(self, top: Path, read: Callable[[Path], str], *, stored: bool = False) -> tuple[Hashes, bytes]:
        """Hash a folder; `read` gives the md5 of a file that moved, or (`stored`) whose object is not there."""
        fresh: dict[Path, str] = {}

        def md5_of(file: Path, status: os.stat_result) -> str:
            started = time.time_ns()
            known = self._hashed.find(file)
            if known is not None and (not stored or Objects.has(self, known)):
                return known
            found = read(file)
            if started - max(status.st_mtime_ns, status.st_ctime_ns) > RACY_NS:
                fresh[file] = found
            return found

        try:
            return hash_folder(top, md5_of)
        finally:
            self._hashed.note(fresh)

    # Out of the cache

    @contextmanager
    def prepare(
        self, oid: str, target: Path, *, legacy: bool = False, progress: Progress | None = None
    ) -> Iterator[Callable[[], None]]:
        """Lay an object or a folder beside a path of the work tree; see `Objects.prepare`.

        A folder replaces what is there as a whole, in one step where the file system can exchange two names.
        """
        if not is_folder_oid(oid) and not target.is_dir():
            with super().prepare(oid, target, legacy=legacy, progress=progress) as put:
                yield put
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._beside(target) as temp:
                if is_folder_oid(oid):
                    self._fill(temp, oid, target, legacy, progress)
                else:
                    self.lay(oid, temp, legacy=legacy, progress=progress)

                def put() -> None:
                    _exchange(temp, target)
                    sync_folder(target.parent)
                    if is_folder_oid(oid) and not legacy:
                        self._hashed.note({target / name: md5 for name, md5 in self.iter_folder(oid)})

                yield put
        except OSError as err:
            raise disk_error(err, target.parent, 0, f"{target.name}: cannot be written in") from err

    def _fill(self, temp: Path, oid: str, target: Path, legacy: bool, progress: Progress | None) -> None:
        temp.mkdir()
        for name, md5 in self.iter_folder(oid, legacy=legacy):
            there, place = target / name, temp / name
            place.parent.mkdir(parents=True, exist_ok=True)
            is_same = not legacy and there.is_file() and self._hashed.find(there) == md5
            if not (is_same and _linked(there, place)):
                self.lay(md5, place, legacy=legacy, progress=progress)

    def copy_out(self, oid: str, target: Path, *, legacy: bool = False, progress: Progress | None = None) -> None:
        """Copy an object or a folder to any path, verified, never linked; what is there is replaced.

        Raises:
            ObjectMissing, ObjectCorrupt, EnvironmentFailed: As `Objects.materialise`.
        """
        if not is_folder_oid(oid):
            super().copy_out(oid, target, legacy=legacy, progress=progress)
            return
        try:
            with self._beside(target) as temp:
                temp.mkdir()
                for name, md5 in self.iter_folder(oid, legacy=legacy):
                    (temp / name).parent.mkdir(parents=True, exist_ok=True)
                    super().copy_out(md5, temp / name, legacy=legacy, progress=progress)
                _exchange(temp, target)
        except OSError as err:
            raise disk_error(err, target.parent, 0, f"{target.name}: cannot be written in") from err

    # Looking

    def iter_folder(self, oid: str, *, legacy: bool = False) -> Iterator[tuple[str, str]]:
        """Give (relative path, md5) of every file of a folder object.

        Raises:
            ObjectMissing: The cache does not have the listing.
            BadMetadataError: The listing cannot be read.
        """
        source = self._existing(oid, legacy=legacy)
        if source.stat().st_size > MAX_LISTING_BYTES:
            raise BadMetadataError(f"{source}: {source.stat().st_size} bytes, expected a folder listing")
        yield from parse_listing(source.read_bytes(), str(source), f"rm -f {word(source)}; dvc fetch")

    def hash_object(self, oid: str, *, legacy: bool = False, progress: Progress | None = None) -> Hashes:
        """Hash an object or a folder's, and prove that each is what its name says; see `Objects.hash_object`."""
        found = super().hash_object(oid, legacy=legacy, progress=progress)
        if not is_folder_oid(oid):
            return found
        self.check(oid, legacy=legacy)
        sizes = [self.path_of(md5, legacy=legacy).stat().st_size for _, md5 in self.iter_folder(oid, legacy=legacy)]
        return Hashes(oid, "", sum(sizes), len(sizes))

    def check(self, oid: str, *, legacy: bool = False) -> None:
        """Make sure of an object's bytes, and of those that a folder's listing names; see `Objects.check`."""
        super().check(oid, legacy=legacy)
        if is_folder_oid(oid):
            for _, md5 in self.iter_folder(oid, legacy=legacy):
                super().check(md5, legacy=legacy)

    def open_folder(self, oid: str) -> ObjectFolder:
        """Give the files of a folder object, to be read where they lie.

        Raises:
            ObjectMissing, BadMetadataError: As `iter_folder`.
        """
        entries = dict(self.iter_folder(oid))
        return ObjectFolder(entries, self._open_object)

    def _open_object(self, oid: str) -> BinaryIO:
        return cast(BinaryIO, self._existing(oid, legacy=False).open("rb", buffering=0))


@dataclass(frozen=True)
class ObjectFolder:
    """The files of a folder object, in the cache or on a remote.

    Attributes:
        entries: md5 by relative path.
        open_object: Opens one by its md5.
    """

    entries: dict[str, str]
    open_object: Callable[[str], BinaryIO]

    def names(self) -> list[str]:
        """Give the paths of all files, sorted; hidden ones are not part of the model."""
        return sorted(name for name in self.entries if not any(part.startswith(".") for part in name.split("/")))

    def open(self, name: str) -> BinaryIO:
        """Open one file.

        Raises:
            BadModelError: There is none of this name.
            ObjectMissing: Its object is not there.
        """
        if name not in self.entries:
            raise BadModelError(f"names the file {name!r}, expected one inside the folder")
        return self.open_object(self.entries[name])


def _linked(source: Path, target: Path) -> bool:
    """Give a file a second name; False where the file system has no such thing."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        return False
    return True


def _exchange(new: Path, target: Path) -> None:
    """Put a path in another's place, and what was there in its own; at once where Linux can."""
    if not os.path.lexists(target):
        new.rename(target)
        return
    import ctypes

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename and rename(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE) == 0:
        return
    aside = new.with_name(new.name + "~old")
    target.rename(aside)
    new.rename(target)
    aside.rename(new)
