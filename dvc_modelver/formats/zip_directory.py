"""The directory of a zip archive, read without trusting it: names, sizes and where the data of each member begins.

The standard library's `zipfile` reads the whole directory that the last bytes announce, and a member only through a
file object of its own; here the members of an archive are stretches of the file that can be read in any order.

Source: APPNOTE.TXT 6.3.10, sections 4.3.7 (local header), 4.3.12 (directory), 4.3.14 to 4.3.16 (end), 4.5.3 (zip64).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import BinaryIO

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import MAX_HEADER_BYTES, ended_early, measure, quote, read_exactly

MAX_MEMBERS = 500_000
STORED, DEFLATED = 0, 8

_ENTRY_BYTES = 46
_LOCAL_BYTES = 30
_END_BYTES = 22
_LOCATOR_BYTES = 20
_HINT = "fetch the file again, or save it again"


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an archive, as the directory tells it.

    Attributes:
        name: Its path.
        method: `STORED`, `DEFLATED`, or another number of the specification.
        n_stored_bytes: Length in the file.
        n_bytes: Length after decompression.
        crc: Of the decompressed bytes, as the writer says.
        start: Offset of its local header.
    """

    name: str
    method: int
    n_stored_bytes: int
    n_bytes: int
    crc: int
    start: int


def read_directory(file: BinaryIO, name: str) -> dict[str, Member]:
    """Give the members of an archive by their names, in the order of its directory.

    Args:
        file: A seekable binary file object.
        name: How errors call it.

    Raises:
        BadModelError: There is no directory, it is damaged, or what it says cannot be true.
    """
    n_file_bytes = measure(file)
    n_members, n_directory_bytes, start = find_directory(file, name)
    if start + n_directory_bytes > n_file_bytes:
        raise _bad(
            name,
            f"announces {n_directory_bytes} bytes of directory from {start}, "
            f"expected them inside its {n_file_bytes} bytes",
        )
    directory = read_exactly(file, start, n_directory_bytes, name)
    members: dict[str, Member] = {}
    position = n_total = 0
    for _ in range(n_members):
        member, position = _parse_entry(directory, position, name)
        n_total += member.n_stored_bytes
        if member.name in members:
            raise _bad(name, f"has the member {quote(member.name)} twice, expected once")
        if member.start + _LOCAL_BYTES + n_total > n_file_bytes + member.start:
            raise _bad(name, f"members up to {quote(member.name)} are larger than the file, expected them inside it")
        members[member.name] = member
    return members


def find_directory(file: BinaryIO, name: str, max_members: int = MAX_MEMBERS) -> tuple[int, int, int]:
    """Give how many members the end of an archive announces, the length of their directory, and where it begins.

    Raises:
        BadModelError: There is no such end, or it announces more than a directory may hold.
    """
    n_members, n_directory_bytes, start = _read_end(file, measure(file), name)
    if n_members > max_members or n_directory_bytes > MAX_HEADER_BYTES:
        raise _bad(
            name,
            f"announces {n_members} members in a directory of {n_directory_bytes} bytes, "
            f"expected at most {max_members} and {MAX_HEADER_BYTES}",
        )
    if n_members * _ENTRY_BYTES > n_directory_bytes:
        raise _bad(
            name,
            f"announces {n_members} members in a directory of {n_directory_bytes} bytes, "
            f"expected at least {n_members * _ENTRY_BYTES} bytes",
        )
    return n_members, n_directory_bytes, start


def find_data(file: BinaryIO, member: Member, name: str) -> int:
    """Give the offset of a member's data, which only its local header knows.

    Raises:
        BadModelError: The local header is not there, or is that of another member.
    """
    where = f"{name}: member {quote(member.name)}"
    header = read_exactly(file, member.start, _LOCAL_BYTES, where)
    n_name_bytes, n_extra_bytes = _uint(header, 26, 2), _uint(header, 28, 2)
    found = read_exactly(file, member.start + _LOCAL_BYTES, n_name_bytes, where)
    if header[:4] != b"PK\x03\x04" or _decode(found) != member.name:
        raise _bad(where, f"found {quote(header[:4])} and the name {quote(found)}, expected its local header")
    start = member.start + _LOCAL_BYTES + n_name_bytes + n_extra_bytes
    left = measure(file) - start
    if member.n_stored_bytes > left:
        raise ended_early(where, max(left, 0), member.n_stored_bytes)
    return start


def read_member(file: BinaryIO, member: Member, max_bytes: int, name: str) -> bytes:
    """Give the content of a small member, stored or deflated.

    Raises:
        BadModelError: It is larger than `max_bytes`, compressed in another way, or damaged.
    """
    where = f"{name}: member {quote(member.name)}"
    if max(member.n_bytes, member.n_stored_bytes) > max_bytes:
        raise _bad(where, f"has {max(member.n_bytes, member.n_stored_bytes)} bytes, expected at most {max_bytes}")
    if member.method not in (STORED, DEFLATED):
        raise _bad(where, f"is compressed by method {member.method}, expected stored or deflated")
    data = read_exactly(file, find_data(file, member, name), member.n_stored_bytes, where)
    if member.method == DEFLATED:
        try:
            data = zlib.decompressobj(-15).decompress(data, member.n_bytes + 1)
        except zlib.error as err:
            raise _bad(where, f"is damaged ({quote(str(err))}), expected deflated data") from err
    if len(data) != member.n_bytes:
        raise _bad(where, f"holds {len(data)} bytes, expected {member.n_bytes}")
    return data


def _bad(where: str, finding: str) -> BadModelError:
    return BadModelError(f"{where}: {finding}", hint=_HINT)


def _uint(data: bytes, at: int, n_bytes: int) -> int:
    return int.from_bytes(data[at : at + n_bytes], "little")


def _decode(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _read_end(file: BinaryIO, n_file_bytes: int, name: str) -> tuple[int, int, int]:
    n_tail = min(n_file_bytes, _LOCATOR_BYTES + _END_BYTES + 65_535)
    tail = read_exactly(file, n_file_bytes - n_tail, n_tail, name)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END_BYTES > n_tail:
        raise _bad(name, "no end of a zip archive, expected one (is it still being written?)")
    n_members, n_directory_bytes, start = (_uint(tail, at + i, n) for i, n in ((10, 2), (12, 4), (16, 4)))
    locator = tail[at - _LOCATOR_BYTES : at] if at >= _LOCATOR_BYTES else b""
    if locator[:4] == b"PK\x06\x07":
        offset = _uint(locator, 8, 8)
        if offset + 56 > n_file_bytes:
            raise ended_early(f"{name}: end of the zip archive", max(n_file_bytes - offset, 0), 56)
        record = read_exactly(file, offset, 56, name)
        if record[:4] != b"PK\x06\x06":
            raise _bad(name, f"found {quote(record[:4])} at the end of the zip archive, expected its zip64 record")
        n_members, n_directory_bytes, start = (_uint(record, i, 8) for i in (32, 40, 48))
    return n_members, n_directory_bytes, start


def _parse_entry(directory: bytes, at: int, name: str) -> tuple[Member, int]:
    entry = directory[at : at + _ENTRY_BYTES]
    if len(entry) < _ENTRY_BYTES or entry[:4] != b"PK\x01\x02":
        raise _bad(name, f"found {quote(entry[:4])} in the zip directory, expected the entry of a member")
    method, crc, n_stored, n_bytes = (_uint(entry, i, n) for i, n in ((10, 2), (16, 4), (20, 4), (24, 4)))
    n_name, n_extra, n_comment = (_uint(entry, i, 2) for i in (28, 30, 32))
    start = _uint(entry, 42, 4)
    end = at + _ENTRY_BYTES + n_name + n_extra + n_comment
    if end > len(directory):
        raise ended_early(f"{name}: zip directory", len(directory) - at, end - at)
    path = _decode(directory[at + _ENTRY_BYTES : at + _ENTRY_BYTES + n_name])
    if _uint(entry, 8, 2) & 1:
        raise _bad(name, f"member {quote(path)} is encrypted, expected plain data")
    if 0xFFFFFFFF in (n_stored, n_bytes, start):
        extra = directory[at + _ENTRY_BYTES + n_name : end - n_comment]
        n_bytes, n_stored, start = _widen(extra, (n_bytes, n_stored, start), f"{name}: member {quote(path)}")
    if method == STORED and n_stored != n_bytes:
        raise _bad(name, f"member {quote(path)} is stored in {n_stored} bytes, expected {n_bytes}")
    return Member(path, method, n_stored, n_bytes, crc, start), end


def _widen(extra: bytes, values: tuple[int, int, int], where: str) -> tuple[int, int, int]:
    at = 0
    while at + 4 <= len(extra) and _uint(extra, at, 2) != 1:
        at += 4 + _uint(extra, at + 2, 2)
    wide = extra[at + 4 : at + 4 + _uint(extra, at + 2, 2)]
    n_wanted = 8 * values.count(0xFFFFFFFF)
    if len(wide) < n_wanted:
        raise _bad(where, f"has a zip64 field of {len(wide)} bytes, expected {n_wanted}")
    parts = iter(range(0, n_wanted, 8))
    first, second, third = (_uint(wide, next(parts), 8) if value == 0xFFFFFFFF else value for value in values)
    return first, second, third
