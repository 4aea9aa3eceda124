"""A folder as DVC keeps it: every file an object of its own, and a listing whose md5, with ``.dir``, names them all.

Source: ``dvc_data/hashfile/tree.py`` (``Tree.as_bytes``), found to give the same bytes by tests/store/test_folders.py.
"""

from __future__ import annotations

import binascii
import hashlib
import json
import os
import posixpath
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from dvc_modelver.errors import BadMetadataError
from dvc_modelver.store.hashing import Hashes, hash_file, still_writing

MAX_FILES = 1_000_000
IGNORED = frozenset({".git", ".hg", ".dvc"})
"""Folders that DVC never takes for data."""


def is_folder_oid(oid: str | None) -> bool:
    """Whether an object is the listing of a folder."""
    return oid is not None and oid.endswith(".dir")


def iter_files(top: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Give path, relative and with ``/``, and status of every regular file of a folder, sorted by path.

    Links are followed to files, not to folders.
    """
    found = []
    for folder, below, names in os.walk(top):
        below[:] = [name for name in below if name not in IGNORED]
        for name in names:
            try:
                status = os.stat(os.path.join(folder, name))
            except OSError:
                continue  # gone while we looked, or a link that leads nowhere
            if stat.S_ISREG(status.st_mode):
                found.append((posixpath.join(*Path(folder).relative_to(top).parts, name), status))
    yield from sorted(found, key=lambda item: item[0])


def folder_bytes(path: Path) -> int:
    """Give the size of a file, or of all files of a folder together."""
    return sum(status.st_size for _, status in iter_files(path)) if path.is_dir() else path.stat().st_size


def stamp_folder(top: Path) -> str:
    """Give what tells that a folder changed: total size, latest modification and change time (ns), and a checksum of
    path, size, times and inode of every file.

    `drivers.probe` computes the same.
    """  # noqa: D205
    size = modified = changed = crc = 0
    for name, st in iter_files(top):
        size += st.st_size
        modified, changed = max(modified, st.st_mtime_ns), max(changed, st.st_ctime_ns)
        line = f"{name}:{st.st_size}:{st.st_mtime_ns}:{st.st_ctime_ns}:{st.st_ino}\n"
        crc = binascii.crc32(line.encode("utf-8", "surrogateescape"), crc)
    return f"{size}:{modified}:{changed}:{crc}"


def render_listing(entries: Iterable[tuple[str, str]]) -> tuple[str, bytes]:
    """Give the oid and the bytes of the listing of a folder.

    Args:
        entries: Relative path and md5 of every file.
    """
    listed = [{"md5": md5, "relpath": name} for name, md5 in sorted(entries)]
    text = json.dumps(listed, sort_keys=True).encode()
    return hashlib.md5(text, usedforsecurity=False).hexdigest() + ".dir", text


def hash_folder(top: Path, md5_of: Callable[[Path, os.stat_result], str]) -> tuple[Hashes, bytes]:
    """Hash a folder; give its digests and its listing.

    Args:
        top: The folder.
        md5_of: Gives the md5 of one of its files.

    Raises:
        UsageError: Something is being written there.
    """
    before, entries, size = stamp_folder(top), [], 0
    for name, status in iter_files(top):
        entries.append((name, md5_of(top / name, status)))
        size += status.st_size
    if stamp_folder(top) != before:
        raise still_writing(top)
    oid, listing = render_listing(entries)
    return Hashes(oid, "", size, len(entries)), listing


def hash_path(path: Path) -> Hashes:
    """Hash a file, or a folder, as they lie there.

    Raises:
        UsageError: Something is being written there.
        EnvironmentFailed: Something cannot be read.
    """
    if not path.is_dir():
        return hash_file(path)
    return hash_folder(path, lambda file, _status: hash_file(file, sha256=False).md5)[0]


def merge_listings(
    base: dict[str, str], ours: dict[str, str], theirs: dict[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Merge the listings of a folder file by file.

    Args:
        base: md5 by relative path, of the common ancestor.
        ours: Likewise.
        theirs: Likewise.

    Returns:
        The merged listing, ours where both sides changed a file; and the paths of those.
    """
    merged, conflicts = {}, []
    for name in sorted({*base, *ours, *theirs}):
        old, mine, other = base.get(name), ours.get(name), theirs.get(name)
        if mine != other and old not in (mine, other):
            conflicts.append(name)
        chosen = other if mine == old else mine
        if chosen is not None:
            merged[name] = chosen
    return merged, conflicts


def parse_listing(text: bytes, where: str, hint: str) -> list[tuple[str, str]]:
    """Give (relative path, md5) of every file that a listing names.

    Raises:
        BadMetadataError: It is no listing, or one that leads out of its folder.
    """
    try:
        found = [(str(entry["relpath"]), str(entry["md5"])) for entry in json.loads(text)]
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise BadMetadataError(f"{where}: not a folder listing of DVC's", hint=hint) from err
    for name, _ in found:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\0" in name or set(parts) & IGNORED:
            raise BadMetadataError(f"{where}: lists {name!r}, expected a path inside the folder", hint=hint)
    if len(found) > MAX_FILES:
        raise BadMetadataError(f"{where}: lists {len(found)} files, expected at most {MAX_FILES}", hint=hint)
    return found
