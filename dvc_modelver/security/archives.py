"""Zip and tar archives: what lies in them, as every program that might load them would see it; nothing is unpacked.

Programs do not agree on zip archives: PyTorch ignores the names in local headers, the flag of encryption and
checksums, Python counts offsets from where the archive begins. Where two readings differ, both are scanned, and the
difference itself is a finding.

Sources: APPNOTE.TXT 6.3.10; ``miniz.c`` as PyTorch uses it; ``Lib/zipfile``; POSIX ustar and pax.
"""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, BinaryIO, cast

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import fill, measure, quote, read_exactly
from dvc_modelver.formats.expansion import expansion_limit
from dvc_modelver.formats.zip_directory import STORED, read_directory
from dvc_modelver.security.parts import ZIP_METHODS, Budget, Part, Unpacked, window_part
from dvc_modelver.security.verdicts import Findings, Verdict

MAX_MEMBERS = 50_000
MAX_DIRECTORY_BYTES = 8 << 20

_LOCAL_BYTES = 30
_BLOCK = 512
_LONG_NAME, _PAX = b"L", b"x"


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    method: int
    n_stored_bytes: int
    n_bytes: int
    start: int
    is_link: bool = False
    is_encrypted: bool = False


def has_end_of_zip(file: BinaryIO) -> bool:
    """Tell whether a file ends like a zip archive, whatever it begins with."""
    n_bytes = measure(file)
    n_tail = min(n_bytes, 22 + 65_535)
    return b"PK\x05\x06" in read_exactly(file, n_bytes - n_tail, n_tail, "")


def iter_zip(part: Part, findings: Findings, budget: Budget) -> Iterator[Part]:
    """Give the members of a zip archive; note those that would be unpacked elsewhere, and what is odd about it.

    Args:
        part: The archive; its length is known. Where something else comes first, it is what Python makes of its end.
        findings: Take what is odd.
        budget: Pays for members that are compressed.
    """
    file = part.open()
    if part.read(2) == b"PK":
        entries = _list_entries(file, part, findings)
    else:
        try:
            entries = [_entry_of(info) for info in _list_as_python(file)]
        except BadModelError:
            return
    if len(entries) > MAX_MEMBERS:
        _damage(part, findings, f"has {len(entries)} members, expected at most {MAX_MEMBERS}")
    n_bytes, n_file_bytes = sum(entry.n_bytes for entry in entries), measure(file)
    if n_bytes > max(expansion_limit(n_file_bytes), n_file_bytes):
        _damage(part, findings, f"expands to {n_bytes} bytes from {n_file_bytes}, expected a model")
    for entry in entries[:MAX_MEMBERS]:
        check_path(part, entry.name, findings, is_link=entry.is_link)
        if entry.name.endswith("/") and not entry.n_bytes:
            continue
        if entry.is_encrypted:
            _damage(part, findings, f"member {quote(entry.name)} says it is encrypted, expected plain data")
        try:
            yield _open_entry(file, entry, part, findings, budget)
        except BadModelError as err:
            _damage(part, findings, str(err))


def check_path(part: Part, name: str, findings: Findings, *, is_link: bool) -> None:
    """Note a member that would be unpacked outside of the folder that an archive is unpacked in."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    why = ""
    if is_link:
        why = "is a link, through which others would be written elsewhere"
    elif "\0" in name:
        why = "has a name that programs cut at its zero byte"
    elif ".." in parts or name.startswith(("/", "\\")) or name[1:3] in (":\\", ":/"):
        why = "would be unpacked outside of the folder"
    if why:
        findings.add(part.member, name, "path", Verdict.DANGEROUS, why)


def _damage(part: Part, findings: Findings, reason: str) -> None:
    findings.add(part.member, "", "damage", Verdict.UNKNOWN, reason.removeprefix(f"{part.name}: "))


class _Capped(io.RawIOBase):
    """A file of which `zipfile` may not read a directory of any size at once."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            here = self._file.tell()
            size = measure(self._file) - here
            self._file.seek(here)
        if size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a directory of {size} bytes, expected at most {MAX_DIRECTORY_BYTES}")
        buffer = bytearray(size)
        return bytes(buffer[: fill(self._file, memoryview(buffer))])


def _list_entries(file: BinaryIO, part: Part, findings: Findings) -> list[_Entry]:
    entries: dict[tuple[str, int], _Entry] = {}
    try:
        entries = {(entry.name, entry.start): entry for entry in map(_entry_of, _list_as_python(file))}
    except BadModelError as err:
        _damage(part, findings, str(err))
    try:
        members = read_directory(file, part.name).values()
    except BadModelError as err:
        _damage(part, findings, str(err))
        return list(entries.values())
    starts = {start for _, start in entries}
    if entries and starts != {member.start for member in members}:
        findings.add(part.member, "", "path", Verdict.DANGEROUS, "programs find different members in this archive")
    for member in members:
        if member.start not in starts:
            found = _Entry(member.name, member.method, member.n_stored_bytes, member.n_bytes, member.start)
            entries[found.name, found.start] = found
    return list(entries.values())


def _entry_of(info: zipfile.ZipInfo) -> _Entry:
    is_link = stat.S_ISLNK(info.external_attr >> 16)
    is_encrypted = bool(info.flag_bits & 1)
    name, sizes = info.orig_filename, (info.compress_size, info.file_size)
    return _Entry(name, info.compress_type, *sizes, info.header_offset, is_link, is_encrypted)


def _list_as_python(file: BinaryIO) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(cast("IO[bytes]", _Capped(file))) as archive:
            return archive.infolist()
    except (
        zipfile.BadZipFile,
        ValueError,
        OSError,
        NotImplementedError,
        LookupError,
        OverflowError,
        struct.error,
    ) as err:
        raise BadModelError(f"no directory of a zip archive ({quote(str(err))}), expected one") from err


def _open_entry(file: BinaryIO, entry: _Entry, part: Part, findings: Findings, budget: Budget) -> Part:
    where = f"member {quote(entry.name)}"
    if not 0 <= entry.start <= measure(file) - _LOCAL_BYTES:
        raise BadModelError(f"{where} begins at {entry.start}, behind the end of the file")
    header = read_exactly(file, entry.start, _LOCAL_BYTES, where)
    n_name, n_extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    name = read_exactly(file, entry.start + _LOCAL_BYTES, n_name, where)
    if entry.name not in (name.decode("utf-8", "backslashreplace"), name.decode("cp437")):
        local = name.decode("utf-8", "backslashreplace")
        reason = f"is called {quote(local)} in front of its data: programs differ in which name they take"
        findings.add(part.member, entry.name, "path", Verdict.DANGEROUS, reason)
    start, depth = entry.start + _LOCAL_BYTES + n_name + n_extra, part.depth + 1
    member = f"{part.member}/{entry.name}" if part.member else entry.name
    if entry.method == STORED:
        n_bytes = max(entry.n_bytes, entry.n_stored_bytes)
        return window_part(file, member, entry.name, start, n_bytes, depth)
    make = ZIP_METHODS.get(entry.method)
    if make is None:
        raise BadModelError(f"{where} is compressed by method {entry.method}, expected stored or deflated")
    stored = window_part(file, member, entry.name, start, entry.n_stored_bytes, depth)
    return Part(
        member, entry.name, lambda: cast(BinaryIO, Unpacked(stored.open(), make, budget, entry.name)), None, depth
    )


# Tar


def is_tar(start: bytes) -> bool:
    """Tell by a file's first bytes whether it is a tar archive."""
    return start[257:262] == b"ustar"


def iter_tar(part: Part, findings: Findings) -> Iterator[Part]:
    """Give the members of a tar archive that is not compressed; note those that would be unpacked elsewhere."""
    file, at, name, n_found = part.open(), 0, "", 0
    n_file_bytes = measure(file)
    try:
        while at + _BLOCK <= n_file_bytes:
            header = read_exactly(file, at, _BLOCK, part.name)
            if not header.strip(b"\0"):
                return
            n_found += 1
            if n_found > MAX_MEMBERS or not is_tar(header):
                raise BadModelError(f"no header at byte {at}, expected at most {MAX_MEMBERS} members of a tar archive")
            kind, n_bytes = header[156:157], _read_size(header)
            begin = at + _BLOCK
            at = begin + -(-n_bytes // _BLOCK) * _BLOCK
            if kind in (_LONG_NAME, _PAX):
                name = _read_long_name(read_exactly(file, begin, min(n_bytes, 1 << 16), part.name), kind) or name
                continue
            name = name or _join_name(header)
            check_path(part, name, findings, is_link=kind in (b"1", b"2"))
            if kind in (b"0", b"\0", b"7") and n_bytes:
                member = f"{part.member}/{name}" if part.member else name
                yield window_part(file, member, name, begin, n_bytes, part.depth + 1)
            name = ""
    except BadModelError as err:
        _damage(part, findings, str(err))


def _read_size(header: bytes) -> int:
    field = header[124:136]
    if field[0] & 0x80:
        return int.from_bytes(field[4:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise BadModelError(f"a member of {quote(field)} bytes, expected octal digits") from None


def _join_name(header: bytes) -> str:
    name, prefix = (header[a:b].split(b"\0")[0].decode("utf-8", "backslashreplace") for a, b in ((0, 100), (345, 500)))
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name


def _read_long_name(data: bytes, kind: bytes) -> str:
    if kind == _LONG_NAME:
        return data.split(b"\0")[0].decode("utf-8", "backslashreplace")
    for line in data.split(b"\n"):
        key, _, value = line.partition(b"=")
        if key.endswith(b" path"):
            return value.decode("utf-8", "backslashreplace")
    return ""
