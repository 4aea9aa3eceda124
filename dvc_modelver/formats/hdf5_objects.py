"""What lies in an HDF5 file: its datasets and groups, listed through h5py without following anything out of the file.

h5py is asked for names, types, shapes and places only. Values are read by `hdf5_values`, past HDF5 where that is
possible, so that neither a filter nor a link decides how much memory a file takes.

Source: HDF5 File Format Specification 3.0 (https://docs.hdfgroup.org/hdf5/latest/_f_m_t3.html).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import count_elements, ended_early, fill, quote

MAX_OBJECTS = 50_000
MAX_DEPTH = 100
MAX_ATTRIBUTE_BYTES = 8 << 20
MAX_READ_BYTES = 512 << 20
MAX_LISTING_BYTES = 64 << 20

_HINT = "save the model again with the library that wrote it, without links and virtual datasets"
_INTEGERS = {1: "8", 2: "16", 4: "32", 8: "64"}
_FLOATS = {
    (2, 15, 10, 5, 0, 10, 15): "F16",
    (2, 15, 7, 8, 0, 7, 127): "BF16",
    (4, 31, 23, 8, 0, 23, 127): "F32",
    (8, 63, 52, 11, 0, 52, 1023): "F64",
    (1, 7, 2, 5, 0, 2, 15): "F8_E5M2",
}
"""Bytes, places of sign, exponent, exponent's bits, mantissa, mantissa's bits, and bias of each float."""


class Window:
    """The part of a file that holds HDF5, as a file object for h5py.

    h5py takes a short read for a full one and loses what a callback raises, so both are noted here.

    Attributes:
        failure: What the file object beneath raised last, to be raised again in place of what h5py makes of it.
        budget: How many bytes h5py may still read; a damaged index can make it read for ever.
    """

    def __init__(self, file: BinaryIO, start: int, length: int, name: str) -> None:
        self.file, self.start, self.length, self.name = file, start, length, name
        self.failure: BaseException | None = None
        self.budget = MAX_LISTING_BYTES
        self._position = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to an offset of the window."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.length}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Give the offset in the window."""
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer, or note why not."""
        view = memoryview(buffer).cast("B")
        try:
            self.read_at(self._position, view)
        except BaseException as err:
            self.failure = err
            raise
        self._position += len(view)
        return len(view)

    def read(self, size: int = -1, /) -> bytes:
        """Give bytes from here on."""
        buffer = bytearray(max(0, self.length - self._position) if size < 0 else size)
        self.readinto(buffer)
        return bytes(buffer)

    def read_at(self, offset: int, view: memoryview) -> None:
        """Fill a buffer from an offset of the window.

        Raises:
            BadModelError: The window ends first, or more is read than a listing can need.
        """
        self.budget -= len(view)
        if len(view) > MAX_READ_BYTES or self.budget < 0:
            raise bad(self.name, "needs too much memory to be read, expected an index in proportion to its tensors")
        if offset < 0 or offset + len(view) > self.length:
            raise ended_early(self.name, max(0, self.length - offset), len(view))
        self.file.seek(self.start + offset)
        n_read = fill(self.file, view)
        if n_read < len(view):
            raise ended_early(self.name, n_read, len(view))


@dataclass(frozen=True)
class Stored:
    """A dataset.

    Attributes:
        path: Its first name in the file, without the leading ``/``.
        dtype: As in `tensors`, None for what is no tensor.
        kind: What it holds, in words, where it is no tensor.
        item_bytes: Bytes of one element; 0 where elements differ in length.
    """

    path: str
    dtype: str | None
    kind: str
    shape: tuple[int, ...]
    item_bytes: int
    is_swapped: bool

    @property
    def nbytes(self) -> int:
        """Bytes of all values, uncompressed."""
        return (count_elements(self.shape) or 0) * self.item_bytes


@dataclass
class Listing:
    """What `list_objects` found.

    Attributes:
        datasets: By path.
        groups: Path of every group but the root.
        names: What the attribute ``name`` of a group called ``vars`` says, by the path of the group above it.
        layers: Paths of groups that have the attribute ``weight_names``.
        links: Other names of a dataset or group, and soft links, with what they lead to.
    """

    datasets: dict[str, Stored] = field(default_factory=dict)
    groups: set[str] = field(default_factory=set)
    names: dict[str, str] = field(default_factory=dict)
    layers: set[str] = field(default_factory=set)
    links: dict[str, str] = field(default_factory=dict)


def bad(where: str, finding: str) -> BadModelError:
    """Give the error for a file that breaks HDF5's rules, or ours."""
    return BadModelError(f"{where}: {finding}", hint=_HINT)


@contextmanager
def reports(window: Window, what: str = "") -> Iterator[None]:
    """Turn what h5py raises into one line; what the file itself raised is raised as it was."""
    where = f"{window.name}: {what}" if what else window.name
    window.failure = None
    try:
        yield
    except BadModelError:
        raise
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, MemoryError) as err:
        if window.failure is not None:
            raise window.failure from None
        detail = quote(str(err).split("\n", 1)[0])
        raise bad(where, f"no readable HDF5 ({detail}), expected an intact file") from err


def list_objects(root: Any, window: Window) -> Listing:
    """Visit every group and dataset once, by hard links only.

    Args:
        root: The low-level identifier of the root group.
        window: Names the file in errors.

    Raises:
        BadModelError: Part of the model lies elsewhere (external links, external storage, virtual datasets), or there
            are more objects, or deeper groups, than a model has.
    """
    import h5py  # type: ignore[import-untyped]

    listing, refused = Listing(), list[str]()
    seen: dict[object, str] = {_address(root): ""}
    todo: list[tuple[str, Any]] = [("", root)]
    n_links = 0
    while todo:
        above, group = todo.pop()
        _note_attributes(listing, above, group, window)
        inner: list[tuple[str, Any]] = []
        for link, kind in _links(group, window):
            n_links += 1
            path = f"{above}/{link}" if above else link
            if n_links > MAX_OBJECTS or path.count("/") >= MAX_DEPTH:
                raise bad(window.name, f"holds more than {MAX_OBJECTS} objects or {MAX_DEPTH} levels, expected a model")
            if kind == h5py.h5l.TYPE_SOFT:
                target = group.links.get_val(link.encode()).decode(errors="replace")
                listing.links[path] = target[1:] if target.startswith("/") else f"{above}/{target}".lstrip("/")
                continue
            if kind != h5py.h5l.TYPE_HARD:
                refused.append(f"external link {quote(path)}")
                continue
            item = h5py.h5o.open(group, link.encode())
            first = seen.setdefault(_address(item), path)
            if first != path:
                listing.links[path] = first
            elif isinstance(item, h5py.h5g.GroupID):
                listing.groups.add(path)
                inner.append((path, item))
            elif isinstance(item, h5py.h5d.DatasetID):
                reason = _refusal(item)
                if reason:
                    refused.append(f"{reason} {quote(path)}")
                else:
                    listing.datasets[path] = _describe(item, path, window)
        todo.extend(reversed(inner))
    _choose_first_names(listing)
    if refused:
        more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
        raise bad(window.name, f"found {', '.join(refused[:3])}{more}, expected all values inside the file")
    return listing


def read_text(item: Any, name: str, window: Window) -> str | None:
    """Give a scalar text attribute; None where there is none, or it is something else.

    Raises:
        BadModelError: It is longer than a configuration can be.
    """
    import h5py

    key = name.encode()
    if not h5py.h5a.exists(item, key):
        return None
    attribute = h5py.h5a.open(item, key)
    kind = attribute.get_type()
    if not isinstance(kind, h5py.h5t.TypeStringID) or attribute.get_space().get_simple_extent_npoints() != 1:
        return None
    if not kind.is_variable_str() and kind.get_size() > MAX_ATTRIBUTE_BYTES:
        raise bad(window.name, f"attribute {quote(name)} has {kind.get_size()} bytes, expected {MAX_ATTRIBUTE_BYTES}")
    import numpy as np

    value = np.empty(attribute.shape, attribute.dtype)
    attribute.read(value)
    found = value.reshape(-1)[0]
    text = found.decode(errors="replace") if isinstance(found, bytes) else str(found)
    if len(text) > MAX_ATTRIBUTE_BYTES:
        raise bad(window.name, f"attribute {quote(name)} has {len(text)} bytes, expected {MAX_ATTRIBUTE_BYTES}")
    return text


def has_attribute(item: Any, name: str) -> bool:
    """Tell whether there is an attribute, or the first part of one that Keras split for its length."""
    import h5py

    return bool(h5py.h5a.exists(item, name.encode()) or h5py.h5a.exists(item, f"{name}0".encode()))


def _choose_first_names(listing: Listing) -> None:
    aliases: dict[str, list[str]] = {}
    for path, target in listing.links.items():
        if target in listing.datasets:
            aliases.setdefault(target, []).append(path)
    for target, paths in aliases.items():
        first = min(target, *paths)
        if first != target:
            listing.datasets[first] = replace(listing.datasets.pop(target), path=first)
            del listing.links[first]
            listing.links.update({path: first for path in (target, *paths) if path != first})


def _address(item: Any) -> object:
    import h5py

    info = h5py.h5o.get_info(item)
    return info.addr


def _links(group: Any, window: Window) -> list[tuple[str, int]]:
    found: list[tuple[bytes, int]] = []

    def note(name: bytes, info: Any) -> bool | None:
        found.append((bytes(name), int(info.type)))
        return True if len(found) > MAX_OBJECTS else None

    group.links.iterate(note, info=True)
    links = []
    for name, kind in found:
        try:
            text = name.decode()
        except UnicodeDecodeError as err:
            raise bad(window.name, f"the name {quote(name)} is not Unicode text, expected UTF-8") from err
        if not text or text == "." or "/" in text:
            raise bad(window.name, f"the name {quote(text)} is no single step of a path, expected one")
        links.append((text, kind))
    return sorted(links)


def _note_attributes(listing: Listing, path: str, group: Any, window: Window) -> None:
    import h5py

    above, _, last = path.rpartition("/")
    if last == "vars" and h5py.h5a.exists(group, b"name"):
        name = read_text(group, "name", window)
        if name and "/" not in name:
            listing.names[above] = name
    elif path and has_attribute(group, "weight_names"):
        listing.layers.add(path)


def _refusal(dataset: Any) -> str:
    import h5py

    # Asking a virtual dataset for its shape may already open the files that it names.
    settings = dataset.get_create_plist()
    if settings.get_layout() == h5py.h5d.VIRTUAL:
        return "virtual dataset"
    if settings.get_layout() == h5py.h5d.CONTIGUOUS and settings.get_external_count():
        return "external storage of"
    return ""


def _describe(dataset: Any, path: str, window: Window) -> Stored:
    import h5py

    kind, space = dataset.get_type(), dataset.get_space()
    if space.get_simple_extent_type() == h5py.h5s.NULL:
        return Stored(path, None, "nothing", (), 0, False)
    shape = tuple(int(axis) for axis in space.get_simple_extent_dims())
    dtype, is_swapped = _find_dtype(kind)
    if dtype is None and isinstance(kind, h5py.h5t.TypeOpaqueID) and kind.get_size() == 2:
        dtype = "BF16" if read_text(dataset, "dtype", window) == "bfloat16" else None
    words = "" if dtype else _name_kind(kind)
    item_bytes = 0 if words.startswith("variable") or "reference" in words else int(kind.get_size())
    numel = count_elements(shape)
    if numel is None or count_elements((numel, item_bytes)) is None:
        raise bad(f"{window.name}: dataset {quote(path)}", f"has shape {quote(shape)}, expected fewer than 2^63 bytes")
    return Stored(path, dtype, words, shape, item_bytes, is_swapped)


def _find_dtype(kind: Any) -> tuple[str | None, bool]:
    import h5py

    t = h5py.h5t
    if isinstance(kind, t.TypeEnumID):
        members = {kind.get_member_name(i): kind.get_member_value(i) for i in range(min(kind.get_nmembers(), 3))}
        if members == {b"FALSE": 0, b"TRUE": 1} and kind.get_size() == 1:
            return "BOOL", False
        return _find_dtype(kind.get_super())
    if isinstance(kind, t.TypeIntegerID | t.TypeFloatID | t.TypeBitfieldID):
        size = int(kind.get_size())
        is_swapped = size > 1 and kind.get_order() == t.ORDER_BE
        if kind.get_precision() != 8 * size or kind.get_offset():
            return None, False
        if isinstance(kind, t.TypeFloatID):
            return _FLOATS.get((size, *kind.get_fields(), kind.get_ebias())), is_swapped
        letter = "I" if isinstance(kind, t.TypeIntegerID) and kind.get_sign() != t.SGN_NONE else "U"
        return letter + _INTEGERS[size] if size in _INTEGERS else None, is_swapped
    if isinstance(kind, t.TypeCompoundID) and kind.get_nmembers() == 2:
        names = (kind.get_member_name(0), kind.get_member_name(1))
        parts = [_find_dtype(kind.get_member_type(i)) for i in range(2)]
        part_bytes = {"F32": 4, "F64": 8}.get(parts[0][0] or "")
        offsets = (kind.get_member_offset(0), kind.get_member_offset(1))
        if names == (b"r", b"i") and parts[0] == parts[1] and part_bytes and offsets == (0, part_bytes):
            return {4: "C64", 8: "C128"}[part_bytes] if kind.get_size() == 2 * part_bytes else None, parts[0][1]
    return None, False


def _name_kind(kind: Any) -> str:
    import h5py

    t = h5py.h5t
    if isinstance(kind, t.TypeStringID):
        return "variable-length strings" if kind.is_variable_str() else "strings"
    if kind.detect_class(t.REFERENCE):
        return "references"
    if kind.detect_class(t.VLEN) or kind.detect_class(t.STRING):
        return "variable-length records"
    words = {t.TypeCompoundID: "records", t.TypeArrayID: "arrays", t.TypeOpaqueID: "raw bytes"}
    return words.get(type(kind), "unusual numbers")
