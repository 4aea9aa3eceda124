"""Where a PyTorch file keeps its pickle and its storages: the zip archive of today, and the stream of before 1.6.

Sources: ``torch/serialization.py`` (``_save``, ``_legacy_save``), ``caffe2/serialize/inline_container.h``,
``torch/csrc/generic/serialization.cpp`` and ``torch/csrc/jit/serialization/export_module.cpp`` of PyTorch 2.13.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO, NoReturn

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import MAX_ELEMENTS, ended_early, measure, quote, read_exactly
from dvc_modelver.formats.pickles import Global, Source, Span, load
from dvc_modelver.formats.torch_dtypes import STORAGES, TORCH_DTYPES
from dvc_modelver.formats.zip_directory import STORED, Member, find_data, read_directory, read_member

MAX_DEFLATED_PICKLE_BYTES = 100_000_000
MAX_INLINE_BYTES = 1 << 20
MAX_CODE_BYTES = 8 << 20

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
HINT = "fetch the file again, or save it again with torch.save"


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of bytes that tensors are views of.

    Attributes:
        key: Its name in the file; two views of one storage have the same.
        dtype: PyTorch's name of the type it was saved as (``"float32"``); None for untyped bytes.
        n_bytes: Its length.
        start: Where it begins in the bytes of that key; not 0 for the storage views of old files alone.
        data: Its bytes, where they are part of the pickle.
    """

    key: str
    dtype: str | None
    n_bytes: int
    start: int = 0
    data: bytes | Span | None = None


@dataclass(slots=True)
class Container:
    """What a file holds before anybody asks what it means.

    Attributes:
        roots: The objects in it, by the prefix their tensors' names have.
        facts: What else is known of the file.
        locate: Gives the offset of a storage's bytes in the file, checked.
        is_big_endian: The byte order of its storages.
    """

    roots: dict[str, object]
    facts: dict[str, object]
    locate: Callable[[Storage], int]
    is_big_endian: bool = False


def is_zip(start: bytes) -> bool:
    """Tell by a file's first bytes whether it is a zip archive."""
    return start.startswith(b"PK\x03\x04")


def is_legacy(start: bytes) -> bool:
    """Tell by a file's first bytes whether it is a stream of before PyTorch 1.6."""
    number = LEGACY_MAGIC.to_bytes(10, "little")
    if start[:1] == b"\x80" and number in start[:24]:
        return True
    return start.startswith(b"L%dL\n." % LEGACY_MAGIC)


def is_ancient(start: bytes) -> bool:
    """Tell by a file's first bytes whether it is a tar archive of before PyTorch 0.1.10."""
    return start.startswith(b"sys_info\0") and start[257:262] == b"ustar"


def open_container(file: BinaryIO, name: str) -> Container:
    """Read the pickles of a PyTorch file and find its storages; no value is read.

    Raises:
        BadModelError: It is none, or damaged.
    """
    n_bytes = measure(file)
    start = read_exactly(file, 0, min(n_bytes, 512), name)
    if is_zip(start):
        return _open_zip(file, name)
    if is_legacy(start):
        return _open_legacy(file, name, n_bytes)
    if is_ancient(start):
        raise BadModelError(
            f"{name}: found a tar archive of before PyTorch 0.1.10, expected one of a later version",
            hint="load it with torch.load(..., weights_only=False) if you trust it, and save it again",
        )
    if start.startswith(b"\x80") or not start:
        what = "a pickle that torch.save did not write" if start else "an empty file"
        raise _bad(name, f"found {what}, expected a file of torch.save")
    raise _bad(name, f"starts with {quote(start[:8])}, expected a file of torch.save")


def find_prefix(directory: Mapping[str, Member]) -> str | None:
    """Give the folder at the top of an archive that holds ``data.pkl``, with its slash; None where there is none."""
    found = (path for path in directory if path.endswith("/data.pkl") and path.count("/") == 1)
    path = next(found, None)
    return None if path is None else path.removesuffix("data.pkl")


def demangle(text: str) -> str:
    """Take from TorchScript's names the numbers that tell classes of one name apart, which differ between saves."""
    return re.sub(r"[./]___torch_mangle_\d+", "", text)


def _bad(where: str, finding: str) -> BadModelError:
    return BadModelError(f"{where}: {finding}", hint=HINT)


# The zip archive.


@dataclass(slots=True)
class _Archive:
    file: BinaryIO
    name: str
    directory: Mapping[str, Member]
    prefix: str
    found: dict[str, int] = field(default_factory=dict)

    def load(self, path: str, folder: str) -> object:
        """Read one pickle, whose storages are in a folder of the archive."""
        where = f"{self.name}: {path}"
        member = self.directory[self.prefix + path]
        find = partial(self._find_storage, folder)
        if member.method == STORED:
            start = find_data(self.file, member, self.name)
            source = Source(self.file, where, start, member.n_bytes)
            return load(source, find_persistent=find, max_inline_bytes=MAX_INLINE_BYTES).root
        data = read_member(self.file, member, MAX_DEFLATED_PICKLE_BYTES, self.name)
        return load(Source(io.BytesIO(data), where, 0, len(data)), find_persistent=find).root

    def locate(self, storage: Storage) -> int:
        """Give the offset of a storage's bytes."""
        member = self.directory[self.prefix + storage.key]
        if member.name not in self.found:
            self.found[member.name] = find_data(self.file, member, self.name)
        return self.found[member.name]

    def describe_code(self) -> dict[str, object]:
        """Give a digest of each module's code, the same each time that the same module is saved."""
        folder, left = f"{self.prefix}code/", MAX_CODE_BYTES
        digests: dict[str, list[str]] = {}
        for path, member in self.directory.items():
            if path.startswith(folder) and path.endswith(".py"):
                left -= max(member.n_bytes, member.n_stored_bytes)
                if left < 0:
                    return {"torchscript": f"over {MAX_CODE_BYTES} bytes of code, not compared"}
                code = read_member(self.file, member, MAX_CODE_BYTES, self.name).decode("utf-8", "replace")
                # Constants are written in the order of a set, another one in each process.
                lines = sorted(demangle(code).split("\n"), key=lambda line: line if " : Final[" in line else "")
                digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]
                digests.setdefault(demangle(path.removeprefix(folder)), []).append(f"sha256:{digest}")
        return {f"torchscript.{path}": ", ".join(sorted(found)) for path, found in digests.items()}

    def _find_storage(self, folder: str, pid: object) -> object:
        storage, _ = _parse_storage(pid, self.name)
        path = f"{folder}/{storage.key}"
        member = self.directory.get(self.prefix + path)
        where = f"{self.name}: storage {quote(path)}"
        if member is None:
            raise _bad(where, "is not in the archive, expected a member of that name")
        if member.method != STORED:
            raise _bad(where, f"is compressed by method {member.method}, expected stored bytes")
        if member.n_bytes < storage.n_bytes:
            raise _bad(where, f"has {member.n_bytes} bytes, expected {storage.n_bytes}")
        return Storage(path, storage.dtype, storage.n_bytes)


def _open_zip(file: BinaryIO, name: str) -> Container:
    directory = read_directory(file, name)
    prefix = find_prefix(directory)
    if prefix is None:
        raise _bad(name, "found a zip archive without data.pkl, expected a file of torch.save or torch.jit.save")
    archive = _Archive(file, name, directory, prefix)
    order = directory.get(prefix + "byteorder")
    byteorder = read_member(file, order, 100, name) if order else b"little"
    if byteorder not in (b"little", b"big"):
        raise _bad(name, f"has the byte order {quote(byteorder)}, expected little or big")
    roots = {"": archive.load("data.pkl", "data")}
    facts: dict[str, object] = {"torch.container": "zip archive"}
    if prefix + "constants.pkl" in directory:
        facts["torch.container"] = "TorchScript archive"
        roots |= {"constants": constants} if (constants := archive.load("constants.pkl", "constants")) else {}
        facts |= archive.describe_code()
    return Container(roots, facts, archive.locate, byteorder == b"big")


# The stream.


def _open_legacy(file: BinaryIO, name: str, n_file_bytes: int) -> Container:
    source = Source(file, name, 0, n_file_bytes)
    storages: dict[str, Storage] = {}

    def find(pid: object) -> object:
        match pid:
            case ("module", Global() as kind, *_):
                return kind
        storage, view = _parse_storage(pid, name)
        known = storages.setdefault(storage.key, storage)
        if known.n_bytes != storage.n_bytes:
            raise _bad(name, f"storage {quote(storage.key)} has {known.n_bytes} and {storage.n_bytes} bytes")
        return view or storage

    magic, protocol = load(source).root, load(source).root
    if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL:
        found = f"{quote(magic)[:40]} and {quote(protocol)[:40]}"
        raise _bad(name, f"starts with {found}, expected the numbers that torch.save writes")
    load(source)
    root = load(source, find_persistent=find, max_inline_bytes=MAX_INLINE_BYTES).root
    keys = load(source).root
    starts = _lay_out(keys, storages, source.position, name)
    n_needed = max((starts[key] + storage.n_bytes for key, storage in storages.items()), default=source.position)
    if n_needed > n_file_bytes:
        raise ended_early(name, n_file_bytes, n_needed)

    def locate(storage: Storage) -> int:
        whole = storages[storage.key]
        start = starts[storage.key]
        numel = int.from_bytes(read_exactly(file, start - 8, 8, name), "little")
        item_bytes = TORCH_DTYPES[whole.dtype or "uint8"].item_bytes
        if numel * item_bytes != whole.n_bytes:
            raise _bad(f"{name}: storage {quote(whole.key)}", f"has {numel} elements, expected {whole.n_bytes} bytes")
        return start + storage.start

    # Storages are little-endian whatever machine wrote them: THPStorage_writeFileRaw swaps.
    return Container({"": root}, {"torch.container": "legacy stream"}, locate)


def _lay_out(keys: object, storages: dict[str, Storage], position: int, name: str) -> dict[str, int]:
    if not isinstance(keys, list) or not all(isinstance(key, str | int) for key in keys):
        raise _bad(name, "has no list of storage keys behind its pickle, expected one")
    starts: dict[str, int] = {}
    for key in map(str, keys):
        if key not in storages or key in starts:
            raise _bad(name, f"lists the storage {quote(key)}, expected each that the pickle names, once")
        starts[key] = position + 8
        position += 8 + storages[key].n_bytes
    missing = next((key for key in storages if key not in starts), None)
    if missing is not None:
        raise _bad(name, f"lacks the storage {quote(missing)}, expected each that the pickle names")
    return starts


def _parse_storage(pid: object, name: str) -> tuple[Storage, Storage | None]:
    """Give the storage that a persistent id names, and the part of it that is meant, if only a part is."""

    def refuse(what: object) -> NoReturn:
        raise _bad(name, f"names the storage {quote(what)}, expected its type, key, place and number of elements")

    match pid:
        case ("storage", Global() as kind, str() | int() as key, _, int() as numel, *views) if len(views) < 2:
            view = views[0] if views else None
        case _:
            refuse(pid)
    if kind.name in ("UntypedStorage", "_UntypedStorage"):
        dtype = None
    elif (dtype := STORAGES.get(kind.name)) is None:
        raise _bad(name, f"has a storage of type {quote(str(kind))}, expected one of {', '.join(STORAGES)}")
    item_bytes = TORCH_DTYPES[dtype or "uint8"].item_bytes
    if not 0 <= numel * item_bytes <= MAX_ELEMENTS:
        refuse(pid)
    whole = Storage(str(key), dtype, numel * item_bytes)
    if view is None:
        return whole, None
    if isinstance(view, tuple) and len(view) == 3 and all(type(part) is int and part >= 0 for part in view[1:]):
        _, start, n_view = view
        if start + n_view <= numel:
            return whole, Storage(str(key), dtype, n_view * item_bytes, start * item_bytes)
    raise _bad(name, f"has a view {quote(view)} of a storage of {numel} elements, expected one inside it")
