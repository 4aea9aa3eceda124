"""HDF5: weights and whole models of Keras (``.h5``, ``.weights.h5``), and plain files of datasets.

Names follow Keras where its layout is found (see `keras_names`), else they are paths in the file.

Sources: HDF5 File Format Specification 3.0, and for Keras ``keras/src/saving/saving_lib.py`` and
``keras/src/legacy/saving/legacy_h5_format.py`` of https://github.com/keras-team/keras.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from dvc_modelver.formats.base import (
    Extent,
    FileReader,
    Folder,
    Scalar,
    ended_early,
    measure,
    printable,
    quote,
    read_exactly,
    rechunk,
)
from dvc_modelver.formats.hdf5_objects import Listing, Stored, bad
from dvc_modelver.formats.hdf5_process import Window, list_contained
from dvc_modelver.formats.hdf5_values import check_places, iter_pieces
from dvc_modelver.formats.keras_names import Layout, describe_config, find_layout, name_weights, parse_config
from dvc_modelver.tensors import TensorSpec

FORMAT = "hdf5"
SUFFIXES = (".h5", ".hdf5")
SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_USER_BLOCK = 1 << 16
MAX_OTHER_BYTES = 16 << 20

_NO_STRUCTURE: Mapping[str, Scalar] = MappingProxyType({})


def matches(file: BinaryIO) -> bool:
    """Tell whether a file has HDF5's signature, at its start or behind a block of the user's."""
    return _find_start(file) is not None


def open_file(source: Path | BinaryIO, name: str, folder: Folder | None = None) -> Hdf5Reader:
    """Open a file of this format; it is whole without the files beside it."""
    return Hdf5Reader(source, name)


class Hdf5Reader(FileReader):
    """Reads an HDF5 file through h5py; opening it reads objects' headers only.

    Args:
        source: A path, or a seekable binary file object.
        name: How errors call the file.

    Raises:
        BadModelError: A damaged file, one that keeps values elsewhere, or one whose declared sizes cannot be true.
    """

    format = FORMAT
    framework: str | None = None

    def __init__(self, source: Path | BinaryIO, name: str = "") -> None:
        super().__init__(source, name)
        try:
            n_bytes, start = measure(self._file), _find_start(self._file)
            if start is None:
                raise bad(self.name, f"found no signature of HDF5 in {n_bytes} bytes, expected one")
            self._open_window(Window(self._file, start, n_bytes - start, self.name))
        except BaseException:
            self.close()
            raise

    def iter_buffers(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give a tensor's values; see `Reader`."""
        stored = self._stored[spec.name]
        aligned = -(-n_bytes // stored.item_bytes) * stored.item_bytes
        yield from rechunk(iter_pieces(stored, self._window, aligned), n_bytes)

    def find_extent(self, spec: TensorSpec) -> Extent | None:
        """Give where a tensor's values lie; see `FileReader`."""
        stored = self._stored[spec.name]
        if stored.chunk or stored.compact or stored.offset is None or stored.is_swapped:
            return None
        return self._window.find_extent(stored.offset, stored.nbytes, self._file)

    def _open_window(
        self,
        window: Window,
        config: Mapping[str, Any] | None = None,
        facts: Mapping[str, Scalar] = _NO_STRUCTURE,
    ) -> None:
        self._window = window
        _check_length(window)
        listing = list_contained(window)
        check_places(listing.datasets.values(), window)
        layout, texts = find_layout(listing), listing.texts
        if config is None and "model_config" in texts:
            config = parse_config(texts["model_config"], self.name)
        compiled = texts.get("training_config")
        if layout is not Layout.PLAIN:
            _find_bfloat16(listing)
        tensors = {path: one for path, one in listing.datasets.items() if one.dtype}
        names = name_weights(tensors, listing, layout, config)
        self._stored = {names[path]: one for path, one in tensors.items()}
        self.specs = tuple(TensorSpec(name, str(one.dtype), one.shape) for name, one in sorted(self._stored.items()))
        self.framework = "keras" if layout is not Layout.PLAIN or config is not None else None
        structure = describe_config(config, None if compiled is None else parse_config(compiled, self.name))
        for key in ("keras_version", "backend"):
            if key in texts:
                structure[key] = printable(texts[key])[:200]
        structure.update(facts)
        structure.update(_describe_links(listing, names))
        structure.update(self._describe_others(listing))
        self.structure = MappingProxyType(structure)

    def _describe_others(self, listing: Listing) -> dict[str, Scalar]:
        found: dict[str, Scalar] = {}
        left = MAX_OTHER_BYTES
        for path, one in listing.datasets.items():
            if one.dtype:
                continue
            left -= one.nbytes
            digest = self._digest(one) if left >= 0 else ""
            found[f"dataset.{printable(path)}"] = f"{one.kind} {list(one.shape)}{digest}"
        return found

    def _digest(self, stored: Stored) -> str:
        found = stored.digest
        if not found and stored.nbytes:
            digest = hashlib.sha256()
            for piece in iter_pieces(stored, self._window, stored.item_bytes):
                digest.update(piece)
            found = digest.hexdigest()[:32]
        return f" sha256:{found}" if found else ""


def _find_start(file: BinaryIO) -> int | None:
    n_bytes, offset = measure(file), 0
    while offset <= MAX_USER_BLOCK and offset + len(SIGNATURE) <= n_bytes:
        if read_exactly(file, offset, len(SIGNATURE), FORMAT) == SIGNATURE:
            return offset
        offset = offset * 2 or 512
    return None


def _check_length(window: Window) -> None:
    # A file that is still being written, or was cut, is by far the most frequent damage, and found here at once.
    start = bytearray(min(64, window.length))
    window.read_at(0, memoryview(start))
    if not start.startswith(SIGNATURE):
        raise bad(window.name, f"found {quote(bytes(start[:8]))}, expected the signature of HDF5")
    version = start[8] if len(start) > 8 else 0
    n_offset_bytes, at = (start[9:10], 12) if version > 1 else (start[13:14], 28 if version else 24)
    if n_offset_bytes == b"\x08" and len(start) == 64:
        base, end = (int.from_bytes(start[at + skip : at + skip + 8], "little") for skip in (0, 16))
        if end - base > window.length:
            raise ended_early(window.name, window.length, end - base)


def _find_bfloat16(listing: Listing) -> None:
    # Keras' legacy layout has no word of it: h5py keeps the two bytes of its one type that NumPy lacks as opaque.
    for path, one in listing.datasets.items():
        if one.kind == "raw bytes" and one.item_bytes == 2:
            listing.datasets[path] = replace(one, dtype="BF16", kind="")


def _describe_links(listing: Listing, names: Mapping[str, str]) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {}
    for path, target in listing.links.items():
        if target in names:
            found[f"tied.{printable(path)}"] = printable(names[target])
        else:
            found[f"link.{printable(path)}"] = printable(target)[:200]
    return found
