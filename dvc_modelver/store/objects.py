"""DVC's cache, in exactly DVC's layout: ``files/md5/ab/cdef...``, objects read-only.

Every object is written to a temporary file in ``<cache>/modelver.tmp``, synced, and renamed into place, so that
an object that is there is whole. DVC's lock is not needed for that and never taken.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dvc_modelver.errors import ObjectCorrupt, ObjectMissing
from dvc_modelver.store.copying import CopyAhead, SyncedWriter, ahead_name, copy_bytes, disk_error, reflink, sync_folder
from dvc_modelver.store.dvcconfig import DvcSettings
from dvc_modelver.store.hashing import FileStamp, Hashes, Progress, consume, hash_file, hash_pieces, still_writing
from dvc_modelver.store.temp import TempFolder, permissions, remove
from dvc_modelver.store.verified import Verified

TEMP_FOLDER = "modelver.tmp"
MAX_LISTING_BYTES = 1 << 30


class Objects:
    """The objects of one DVC repository, each by itself; `Cache` adds folders."""

    def __init__(self, settings: DvcSettings) -> None:
        self.settings = settings
        self.folder = settings.cache_dir
        self._verified = Verified(settings.root / ".dvc" / "tmp" / "modelver.verified")

    @property
    def prefers_links(self) -> bool:
        """Whether the work tree is linked to the cache rather than a copy of it."""
        return self.settings.cache_types[0] in ("hardlink", "symlink")

    def path_of(self, oid: str, *, legacy: bool = False) -> Path:
        """Give where an object lies, or would lie."""
        base = self.folder if legacy else self.folder / "files" / "md5"
        return base / oid[:2] / oid[2:]

    def has(self, oid: str, *, legacy: bool = False) -> bool:
        """Whether the object is there, by name; its bytes are not read."""
        return len(oid) > 2 and self.path_of(oid, legacy=legacy).is_file()

    # Into the cache

    def store_file(
        self, path: Path, *, link: bool, known: Hashes | None = None, progress: Progress | None = None
    ) -> Hashes:
        """Put a file's bytes into the cache, reading it once.

        Args:
            path: The file; it stays where it is.
            link: Replace it by a link to the object, where ``cache.type`` prefers links.
            known: Its digests, where the caller knows that it did not move since they were taken.
            progress: Called with the number of bytes read since the last call.

        Raises:
            UsageError: It is being written.
            EnvironmentFailed: The disk is full, or the cache cannot be written.
        """
        if self._is_object(path):
            found = hash_file(path, progress=progress)
            if path.resolve() == self.path_of(found.md5).resolve():
                return found  # a link to the cache already: the bytes are there
            known = None  # written through the link: the object has other bytes than its name says now
        stamp = FileStamp.of(path)
        with self._new_object(path, stamp.size) as temp:
            if known is not None:
                copy_bytes(path, temp, progress)
            hashes = known or self._copy_in(path, temp, progress)
            if FileStamp.of(path) != stamp:
                raise still_writing(path)
            self._publish(temp, hashes.md5, is_hashed=known is None)
        if link and self.prefers_links and FileStamp.of(path) == stamp:
            self.materialise(hashes.md5, path)
        return hashes

    def _is_object(self, path: Path) -> bool:
        """Whether a file is itself an object of this cache, through a symbolic link."""
        return path.is_symlink() and path.resolve().is_relative_to(self.folder.resolve())

    def _copy_in(self, path: Path, temp: Path, progress: Progress | None) -> Hashes:
        if reflink(path, temp):
            return hash_file(temp, progress=progress)
        with temp.open("wb", buffering=0) as out:
            hashes = consume(path, SyncedWriter(out.fileno()), progress=progress)
            os.fsync(out.fileno())
        return hashes

    def store_stream(self, pieces: Iterable[bytes], *, progress: Progress | None = None) -> Hashes:
        """Put a stream into the cache.

        Raises:
            EnvironmentFailed: The disk is full, or the cache cannot be written.
        """
        with self._new_object(Path("stream"), 0) as temp:
            with temp.open("wb", buffering=0) as out:
                hashes = hash_pieces(pieces, SyncedWriter(out.fileno()), progress=progress)
                os.fsync(out.fileno())
            self._publish(temp, hashes.md5, is_hashed=True)
        return hashes

    @contextmanager
    def new_path(self, name: str) -> Iterator[Path]:
        """Give a path beside the objects for a file or folder that is to be made, and then to be adopted.

        Args:
            name: What it is, for messages.

        Raises:
            EnvironmentFailed: The disk is full, or the cache cannot be written.
        """
        with self._new_object(Path(name), 0) as temp:
            yield temp

    @contextmanager
    def copied_ahead(self, pid: int | None) -> Iterator[CopyAhead]:
        """Give what copies a file at `new_path` for the work tree, while it is read anyhow; it costs no waiting later.

        Args:
            pid: The process that is about to put the object into the work tree, through others; None for none.
        """
        here = self._temp_here
        if pid is None or here is None or {"hardlink", "symlink"} & set(self.settings.cache_types):
            yield CopyAhead(None, None, 0)
            return
        with here.new_file() as temp:
            yield CopyAhead(here, temp, pid)

    def adopt(self, made: Path, known: Hashes | None = None) -> Hashes:
        """Make an object of a complete file at `new_path`; it is moved, not copied.

        Args:
            made: The file.
            known: Its digests, where they were taken since it is complete.

        Raises:
            EnvironmentFailed: The cache cannot be written.
        """
        hashes = known or hash_file(made)
        self._publish(made, hashes.md5, is_hashed=True)
        return hashes

    def store_listing(self, oid: str, text: bytes) -> None:
        """Put the listing of a folder into the cache, whose files are there.

        Raises:
            EnvironmentFailed: The disk is full, or the cache cannot be written.
        """
        with self._new_object(Path("listing"), len(text)) as temp:
            with temp.open("wb") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            self._publish(temp, oid, is_hashed=True)

    def restore(
        self, oid: str, pieces: Iterable[bytes], *, legacy: bool = False, progress: Progress | None = None
    ) -> bool:
        """Put an object into the cache from bytes that were found elsewhere, if they are what its name says.

        Other bytes under its name, written through a link, are kept under the md5 that they have.

        Returns:
            False when they are not; nothing was touched then.

        Raises:
            EnvironmentFailed: The disk is full, or the cache cannot be written.
        """
        with self._new_object(Path(oid), 0) as temp:
            with temp.open("wb", buffering=0) as out:
                hashes = hash_pieces(pieces, SyncedWriter(out.fileno()), progress=progress)
                os.fsync(out.fileno())
            if hashes.md5 != oid.removesuffix(".dir"):
                return False
            target = self.path_of(oid, legacy=legacy)
            if target.is_file():
                self._keep_bytes(target)
            self._publish(temp, oid, is_hashed=True, legacy=legacy)
        return True

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """Give a new folder on the cache's file system, for objects that are to be hashed; it goes in the end."""
        with self._new_object(Path("object"), 0) as temp:
            temp.mkdir()
            yield temp

    def take_in(self, file: Path, oid: str, *, legacy: bool = False) -> bool:
        """Make a file an object of the cache, if its bytes are what the name says; of legacy text that cannot be told.

        Returns:
            False when they are not; nothing was touched then.
        """
        if hash_file(file, sha256=False).md5 != oid.removesuffix(".dir") and (not legacy or oid.endswith(".dir")):
            return False
        with file.open("rb") as written:
            os.fsync(written.fileno())
        self._publish(file, oid, is_hashed=True, legacy=legacy)
        return True

    def _keep_bytes(self, wrong: Path) -> None:
        """Give an object with other bytes than its name says a second name, which says so."""
        right = self.path_of(hash_file(wrong, sha256=False).md5)
        if right.is_file():
            return
        right.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(wrong, right)
        except OSError:
            wrong.rename(right)  # no hard links here
        sync_folder(right.parent)

    @contextmanager
    def _new_object(self, source: Path, size: int) -> Iterator[Path]:
        try:
            with TempFolder(self.folder / TEMP_FOLDER).new_file() as temp:
                yield temp
        except OSError as err:
            raise disk_error(err, self.folder, size, f"{source.name}: cannot be stored in") from err

    def _publish(self, temp: Path, md5: str, *, is_hashed: bool, legacy: bool = False) -> None:
        target = self.path_of(md5, legacy=legacy)
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.settings.shared:
            target.parent.chmod(0o2775)
        if not legacy and target.is_file() and target.stat().st_nlink > 1 and self.verify(md5):
            return  # a work tree is linked to it: another inode here would look like a write there
        temp.chmod(0o444)
        temp.replace(target)
        sync_folder(target.parent)
        if is_hashed:
            self._verified.note(md5, target)

    # Out of the cache

    def materialise(self, oid: str, target: Path, *, legacy: bool = False, progress: Progress | None = None) -> None:
        """Put an object at a path of the work tree, as ``cache.type`` says; what is there is replaced at once.

        The caller has seen to it that the bytes replaced are in the cache.

        Raises:
            ObjectMissing, ObjectCorrupt, EnvironmentFailed: As `prepare`; the target is untouched.
        """
        with self.prepare(oid, target, legacy=legacy, progress=progress) as put:
            put()

    @contextmanager
    def prepare(
        self, oid: str, target: Path, *, legacy: bool = False, progress: Progress | None = None
    ) -> Iterator[Callable[[], None]]:
        """Lay an object beside a path of the work tree, verified; nothing that can fail is left but a rename.

        Args:
            oid: The object.
            target: Where it is to go.
            legacy: The object lies in the layout of DVC before 3.0.
            progress: Called with the number of bytes copied since the last call.

        Yields:
            What puts it into place.

        Raises:
            ObjectMissing: The cache does not have it.
            ObjectCorrupt: Its bytes are not what its name says.
            EnvironmentFailed: The disk is full.
        """
        source = self._existing(oid, legacy=legacy)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._beside(target) as temp:

                def put() -> None:
                    temp.replace(target)
                    sync_folder(target.parent)

                self.lay(oid, temp, legacy=legacy, progress=progress)
                yield put
        except OSError as err:
            raise disk_error(err, target.parent, source.stat().st_size, f"{target.name}: cannot be written in") from err

    def lay(self, oid: str, place: Path, *, legacy: bool = False, progress: Progress | None = None) -> None:
        """Make a new file of an object, verified, as ``cache.type`` says.

        Raises:
            ObjectMissing, ObjectCorrupt: As `prepare`.
            OSError: The disk is full.
        """
        source = self._existing(oid, legacy=legacy)
        for kind in (*self.settings.cache_types, "copy"):
            if self._place(kind, source, place, oid, legacy, progress):
                return

    @contextmanager
    def _beside(self, target: Path) -> Iterator[Path]:
        """Give a temporary path on the target's file system: in ``.dvc/tmp``, which Git ignores, where that is."""
        here = self._temp_here
        if here is not None and (self.settings.root / ".dvc").stat().st_dev == target.parent.stat().st_dev:
            with here.new_file() as temp:
                yield temp
            return
        temp = target.with_name(f".{target.name[:80]}.modelver-{os.getpid()}-{time.monotonic_ns()}")
        try:
            yield temp
        finally:
            remove(temp)

    @property
    def _temp_here(self) -> TempFolder | None:
        ours = self.settings.root / ".dvc"
        return TempFolder(ours / "tmp" / TEMP_FOLDER) if ours.is_dir() else None

    def _place(self, kind: str, source: Path, temp: Path, oid: str, legacy: bool, progress: Progress | None) -> bool:
        try:
            if kind in ("hardlink", "symlink"):
                self.check(oid, legacy=legacy)
            if kind == "hardlink":
                os.link(source, temp)
                self._verified.note_link(oid, source)
            elif kind == "symlink":
                temp.symlink_to(source)
            elif kind == "reflink":
                if not reflink(source, temp):
                    temp.unlink(missing_ok=True)
                    return False
                self.check(oid, legacy=legacy)
                temp.chmod(permissions(0o666))
            elif self._verified.knows(oid, source):
                here = self._temp_here
                if here is None or not here.take_over(ahead_name(oid), temp):
                    copy_bytes(source, temp, progress)
            else:
                self._copy_verified(source, temp, None if legacy else oid, progress)
        except OSError as err:
            if kind in ("hardlink", "symlink") and err.errno in (
                errno.EXDEV,
                errno.EPERM,
                errno.EMLINK,
                errno.ENOTSUP,
            ):
                return False
            raise
        return True

    def _copy_verified(self, source: Path, temp: Path, md5: str | None, progress: Progress | None) -> None:
        with temp.open("wb", buffering=0) as out:
            found = consume(source, SyncedWriter(out.fileno()), sha256=False, progress=progress)
            os.fsync(out.fileno())
        if md5 is None:
            return
        if found.md5 != md5:
            raise self._corrupt(md5, source)
        self._verified.note(md5, source)

    def copy_out(self, oid: str, target: Path, *, legacy: bool = False, progress: Progress | None = None) -> None:
        """Copy an object to any path, verified, never linked.

        Raises:
            ObjectMissing, ObjectCorrupt, EnvironmentFailed: As `materialise`.
        """
        source = self._existing(oid, legacy=legacy)
        try:
            with self._beside(target) as temp:
                self._copy_verified(source, temp, None if legacy else oid, progress)
                temp.replace(target)
        except OSError as err:
            raise disk_error(err, target.parent, source.stat().st_size, f"{target.name}: cannot be written in") from err

    # Looking

    def _existing(self, oid: str, *, legacy: bool) -> Path:
        source = self.path_of(oid, legacy=legacy)
        if not source.is_file():
            raise ObjectMissing(f"object {oid}: not in the cache {self.folder}", hint="modelver pull")
        return source

    def _corrupt(self, oid: str, source: Path) -> ObjectCorrupt:
        return ObjectCorrupt(
            f"{source}: its bytes do not have the md5 {oid} that names it",
            hint="modelver fsck --all --repair",
        )

    def hash_object(self, oid: str, *, legacy: bool = False, progress: Progress | None = None) -> Hashes:
        """Hash an object, and prove that it is what its name says.

        Raises:
            ObjectMissing: The cache does not have it.
            ObjectCorrupt: Its bytes have another md5.
        """
        source = self._existing(oid, legacy=legacy)
        found = hash_file(source, progress=progress)
        if not legacy and found.md5 != oid.removesuffix(".dir"):
            raise self._corrupt(oid, source)
        return found

    def check(self, oid: str, *, legacy: bool = False) -> None:
        """Make sure of an object's bytes, as `verify` does.

        Raises:
            ObjectMissing: The cache does not have it.
            ObjectCorrupt: Its bytes are not what its name says.
        """
        if not self.verify(oid, legacy=legacy):
            raise self._corrupt(oid, self.path_of(oid, legacy=legacy))

    def verify(self, oid: str, *, legacy: bool = False, anew: bool = False, progress: Progress | None = None) -> bool:
        """Whether an object's bytes have the md5 of its name; of a legacy text object that cannot be told here.

        An object that was verified, and not written since, is not read again, unless it is to be read `anew`.
        """
        source = self._existing(oid, legacy=legacy)
        if legacy and not oid.endswith(".dir"):
            return True
        if anew or not self._verified.knows(oid, source):
            if hash_file(source, sha256=False, progress=progress).md5 != oid.removesuffix(".dir"):
                return False
            self._verified.note(oid, source)
        return True
