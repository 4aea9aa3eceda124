"""What lies in an HDF5 file: its datasets and groups, and where each keeps its bytes.

h5py is asked for names, types, shapes and places only, of hard links only, and in a process of its own
(`hdf5_process`), since the library behind it can crash on a damaged file. Values are read by `hdf5_values` past h5py.

Source: HDF5 File Format Specification 3.0 (https://docs.hdfgroup.org/hdf5/latest/_f_m_t3.html).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import count_elements, quote

MAX_OBJECTS = 50_000
MAX_DEPTH = 100
MAX_CHUNKS = 250_000
MAX_STRINGS = 1_000
MAX_COMPACT_BYTES = 1 << 16
MAX_TEXT_BYTES = 8 << 20

_INTEGERS = {1: "8", 2: "16", 4: "32", 8: "64"}
_FLOATS = {
    (2, 15, 10, 5, 0, 10, 15): "F16",
    (2, 15, 7, 8, 0, 7, 127): "BF16",
    (4, 31, 23, 8, 0, 23, 127): "F32",
    (8, 63, 52, 11, 0, 52, 1023): "F64",
    (1, 7, 2, 5, 0, 2, 15): "F8_E5M2",
}
"""Bytes, places of sign, exponent, exponent's bits, mantissa, mantissa's bits, and bias of each float."""


@dataclass(frozen=True)
class Stored:
    """A dataset, and where its bytes are.

    Attributes:
        path: Its first name in the file, without the leading ``/``.
        dtype: As in `tensors`, None for what is no tensor.
        kind: What it holds, in words, where it is no tensor.
        item_bytes: Bytes of one element; 0 where elements differ in length.
        is_swapped: Whether they are big-endian.
        offset: Where the bytes begin; None where they are chunked, compact, or were never written.
        n_stored_bytes: How many are in the file, compressed or not.
        compact: Hexadecimal bytes that stand in the header itself.
        fill: Hexadecimal bytes of an element that was never written; empty where that is not known.
        digest: Digest of strings of differing lengths; empty where they are no few.
        chunk: Axis lengths of a chunk; empty where there are none.
        filters: Code and first setting of each step of compression.
        chunks: Of each chunk its first element, then the filters left out (a bit for each), offset and length.
    """

    path: str
    dtype: str | None
    kind: str
    shape: tuple[int, ...]
    item_bytes: int = 0
    is_swapped: bool = False
    offset: int | None = None
    n_stored_bytes: int = 0
    compact: str = ""
    fill: str = ""
    digest: str = ""
    chunk: tuple[int, ...] = ()
    filters: tuple[tuple[int, int], ...] = ()
    chunks: tuple[tuple[int, ...], ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all values, uncompressed."""
        return math.prod(self.shape) * self.item_bytes


@dataclass
class Listing:
    """What `list_objects` found.

    Attributes:
        datasets: By path.
        groups: Paths of all groups but the root.
        names: What the attribute ``name`` of a group called ``vars`` says, by the path of the group above it.
        layers: Paths of groups that have the attribute ``weight_names``.
        links: Other names of a dataset or group, and soft links, with what they lead to.
        texts: Attributes that Keras gives a whole model.
        has_layer_names: Whether the root, or ``model_weights``, has the attribute ``layer_names``.
    """

    datasets: dict[str, Stored] = field(default_factory=dict)
    groups: set[str] = field(default_factory=set)
    names: dict[str, str] = field(default_factory=dict)
    layers: set[str] = field(default_factory=set)
    links: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    has_layer_names: bool = False


def bad(where: str, finding: str) -> BadModelError:
    """Give the error for a file that breaks HDF5's rules, or ours."""
    return BadModelError(
        f"{where}: {finding}", hint="fetch the file again, or save it again without links and virtual datasets"
    )


@contextmanager
def reports(name: str) -> Iterator[None]:
    """Turn what h5py raises into one line."""
    try:
        yield
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, MemoryError) as err:
        detail = quote(str(err).split("\n", 1)[0])
        raise bad(name, f"no readable HDF5 ({detail}), expected an intact file") from err


def list_objects(file: Any, name: str) -> Listing:
    """Visit every group and dataset once, by hard links only.

    Args:
        file: A seekable file object that begins with HDF5's signature.
        name: How errors call the file.

    Raises:
        BadModelError: A damaged file; part of the model lies elsewhere (external links, external storage, virtual
            datasets); there are more objects, or deeper groups, than a model has.
    """
    import h5py  # type: ignore[import-untyped]

    with reports(name), h5py.File(file, "r") as opened:
        root = h5py.h5g.open(opened.id, b"/")
        listing = _walk(root, name)
        weights = h5py.h5o.open(root, b"model_weights") if "model_weights" in listing.groups else root
        listing.has_layer_names = _has_attribute(weights, "layer_names")
        keys = [(root, "model_config"), (root, "training_config"), (weights, "keras_version"), (weights, "backend")]
        for item, key in keys:
            text = _read_text(item, key, name)
            if text is not None:
                listing.texts[key] = text
    return listing


def _walk(root: Any, name: str) -> Listing:
    import h5py

    listing, refused = Listing(), list[str]()
    seen: dict[int, str] = {_address(root): ""}
    todo: list[tuple[str, Any]] = [("", root)]
    n_links = n_chunks = 0
    while todo:
        above, group = todo.pop()
        _note_attributes(listing, above, group, name)
        for link, kind in _links(group, name):
            n_links += 1
            path = f"{above}/{link}" if above else link
            if n_links > MAX_OBJECTS or path.count("/") >= MAX_DEPTH:
                raise bad(name, f"holds more than {MAX_OBJECTS} objects or {MAX_DEPTH} levels, expected a model")
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
                todo.append((path, item))
            elif isinstance(item, h5py.h5d.DatasetID) and (reason := _refusal(item)):
                refused.append(f"{reason} {quote(path)}")
            elif isinstance(item, h5py.h5d.DatasetID):
                one = listing.datasets[path] = _describe(item, path, name)
                n_chunks += len(one.chunks)
                if n_chunks > MAX_CHUNKS:
                    raise bad(name, f"holds more than {MAX_CHUNKS} chunks, expected fewer and larger ones")
    _choose_first_names(listing)
    if refused:
        more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
        raise bad(name, f"found {', '.join(sorted(refused)[:3])}{more}, expected all values inside the file")
    return listing


def _read_text(item: Any, key: str, name: str) -> str | None:
    import h5py
    import numpy as np

    if not h5py.h5a.exists(item, key.encode()):
        return None
    attribute = h5py.h5a.open(item, key.encode())
    kind = attribute.get_type()
    if not isinstance(kind, h5py.h5t.TypeStringID) or attribute.get_space().get_simple_extent_npoints() != 1:
        return None
    if not kind.is_variable_str() and kind.get_size() > MAX_TEXT_BYTES:
        raise bad(name, f"attribute {quote(key)} has {kind.get_size()} bytes, expected at most {MAX_TEXT_BYTES}")
    value = np.empty(attribute.shape, attribute.dtype)
    attribute.read(value)
    found = value.reshape(-1)[0]
    text = found.decode(errors="replace") if isinstance(found, bytes) else str(found)
    if len(text) > MAX_TEXT_BYTES:
        raise bad(name, f"attribute {quote(key)} has {len(text)} bytes, expected at most {MAX_TEXT_BYTES}")
    return text


def _has_attribute(item: Any, key: str) -> bool:
    import h5py

    # Keras splits an attribute that is too long into parts with numbers.
    return bool(h5py.h5a.exists(item, key.encode()) or h5py.h5a.exists(item, f"{key}0".encode()))


def _choose_first_names(listing: Listing) -> None:
    aliases: dict[str, list[str]] = {}
    for path, direct in list(listing.links.items()):
        # A soft link may lead to what turned out to be the second name of a dataset.
        target = listing.links[path] = listing.links.get(direct, direct)
        if target in listing.datasets:
            aliases.setdefault(target, []).append(path)
    for target, paths in aliases.items():
        first = min(target, *paths)
        if first != target:
            listing.datasets[first] = replace(listing.datasets.pop(target), path=first)
            del listing.links[first]
            listing.links.update({path: first for path in (target, *paths) if path != first})


def _address(item: Any) -> int:
    import h5py

    return int(h5py.h5o.get_info(item).addr)


def _links(group: Any, name: str) -> list[tuple[str, int]]:
    found: list[tuple[bytes, int]] = []

    def note(link: bytes, info: Any) -> bool | None:
        found.append((bytes(link), int(info.type)))
        return True if len(found) > MAX_OBJECTS else None

    group.links.iterate(note, info=True)
    links = []
    for link, kind in found:
        try:
            text = link.decode()
        except UnicodeDecodeError as err:
            raise bad(name, f"the name {quote(link)} is not Unicode text, expected UTF-8") from err
        if not text or text == "." or "/" in text:
            raise bad(name, f"the name {quote(text)} is no single step of a path, expected one")
        links.append((text, kind))
    return sorted(links)


def _note_attributes(listing: Listing, path: str, group: Any, name: str) -> None:
    import h5py

    above, _, last = path.rpartition("/")
    if last == "vars" and h5py.h5a.exists(group, b"name"):
        layer = _read_text(group, "name", name)
        if layer and "/" not in layer:
            listing.names[above] = layer
    elif path and _has_attribute(group, "weight_names"):
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


def _describe(dataset: Any, path: str, name: str) -> Stored:
    import h5py

    kind, space = dataset.get_type(), dataset.get_space()
    if space.get_simple_extent_type() == h5py.h5s.NULL:
        return Stored(path, None, "nothing", ())
    shape = tuple(int(axis) for axis in space.get_simple_extent_dims())
    dtype, is_swapped = _find_dtype(kind)
    if dtype is None and isinstance(kind, h5py.h5t.TypeOpaqueID) and kind.get_size() == 2:
        dtype = "BF16" if _read_text(dataset, "dtype", name) == "bfloat16" else None
    words = "" if dtype else _name_kind(kind)
    item_bytes = 0 if words in _VARIABLE else int(kind.get_size())
    where = f"{name}: dataset {quote(path)}"
    if count_elements((*shape, item_bytes)) is None or count_elements(shape) is None:
        raise bad(where, f"has shape {quote(shape)}, expected fewer than 2^63 bytes")
    one = Stored(path, dtype, words, shape, item_bytes, is_swapped)
    if words == "variable-length strings":
        return replace(one, digest=_digest_strings(dataset, shape))
    return _place(dataset, one, where) if one.nbytes else one


def _place(dataset: Any, one: Stored, where: str) -> Stored:
    import h5py
    import numpy as np

    settings = dataset.get_create_plist()
    layout = settings.get_layout()
    one = replace(one, fill=_read_fill(dataset, settings, one), n_stored_bytes=int(dataset.get_storage_size()))
    if layout == h5py.h5d.CHUNKED:
        steps = [settings.get_filter(i) for i in range(settings.get_nfilters())]
        filters = tuple((int(step[0]), int(step[2][0]) if step[2] else 0) for step in steps)
        chunk = tuple(int(step) for step in settings.get_chunk())
        return replace(one, chunk=chunk, filters=filters, chunks=_list_chunks(dataset))
    if layout == h5py.h5d.COMPACT:
        if one.nbytes > MAX_COMPACT_BYTES:
            raise bad(where, f"has {one.nbytes} bytes in its header, expected at most {MAX_COMPACT_BYTES}")
        values = np.empty(one.shape, f"V{one.item_bytes}")
        dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values, dataset.get_type())
        return replace(one, compact=values.tobytes().hex(), n_stored_bytes=one.nbytes)
    return replace(one, offset=dataset.get_offset())


def _read_fill(dataset: Any, settings: Any, one: Stored) -> str:
    import h5py
    import numpy as np

    if settings.fill_value_defined() != h5py.h5d.FILL_VALUE_USER_DEFINED:
        return bytes(one.item_bytes).hex()
    value = np.zeros((), dataset.dtype)
    if value.dtype.itemsize != one.item_bytes or value.dtype.kind not in "fiubcSV":
        return ""
    settings.get_fill_value(value)
    return value.astype(value.dtype.newbyteorder(">" if one.is_swapped else "<")).tobytes().hex()


def _list_chunks(dataset: Any) -> tuple[tuple[int, ...], ...]:
    found: list[tuple[int, ...]] = []

    def note(info: Any) -> bool | None:
        found.append((*map(int, info.chunk_offset), int(info.filter_mask), int(info.byte_offset), int(info.size)))
        return True if len(found) > MAX_CHUNKS else None

    dataset.chunk_iter(note)
    return tuple(sorted(found))


def _digest_strings(dataset: Any, shape: tuple[int, ...]) -> str:
    import h5py
    import numpy as np

    if math.prod(shape) > MAX_STRINGS or dataset.get_create_plist().get_layout() == h5py.h5d.CHUNKED:
        return ""
    # The dtype carries the mark of text: without it h5py takes the library's pointers for Python objects.
    space, value, digest = dataset.get_space(), np.empty((1,), dataset.dtype), hashlib.sha256()
    for index in np.ndindex(shape):
        if index:
            space.select_hyperslab(index, (1,) * len(index))
        dataset.read(h5py.h5s.create_simple((1,)), space, value)
        text = bytes(value[0] or b"")
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()[:32]


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


_VARIABLE = frozenset({"variable-length strings", "variable-length records", "references"})


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
