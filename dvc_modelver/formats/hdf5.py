"""HDF5: weights and whole models of Keras (``.h5``, ``.weights.h5``), and plain files of datasets.

Names follow Keras where its layout is found (see `keras_names`), else they are paths in the file.

Sources: HDF5 File Format Specification 3.0, and for Keras ``keras/src/saving/saving_lib.py`` and
``keras/src/legacy/saving/legacy_h5_format.py`` of https://github.com/keras-team/keras.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from dvc_modelver.formats.base import FileReader, Folder, Scalar, measure, printable, read_exactly
from dvc_modelver.formats.hdf5_objects import (
    Listing,
    Stored,
    Window,
    bad,
    has_attribute,
    list_objects,
    read_text,
    reports,
)
from dvc_modelver.formats.hdf5_values import check_sizes, iter_pieces, iter_strings
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
    n_bytes, offset = measure(file), 0
    while offset <= MAX_USER_BLOCK and offset + len(SIGNATURE) <= n_bytes:
        if read_exactly(file, offset, len(SIGNATURE), FORMAT) == SIGNATURE:
            return True
        offset = offset * 2 or 512
    return False


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
        self._hdf5: Any = None
        try:
            window = Window(self._file, 0, measure(self._file), self.name)
            self._open_window(window)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release h5py's view of the file, and the file if it was opened here."""
        if self._hdf5 is not None:
            self._hdf5.close()
            self._hdf5 = None
        super().close()

    def iter_buffers(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give a tensor's values; see `Reader`."""
        stored = self._stored[spec.name]
        aligned = -(-n_bytes // stored.item_bytes) * stored.item_bytes
        buffer = self._take_buffer(min(n_bytes, spec.nbytes))
        try:
            yield from _rechunk(iter_pieces(self._hdf5.id, stored, self._window, aligned), n_bytes, buffer)
        finally:
            self._return_buffer(buffer)

    def _open_window(
        self,
        window: Window,
        config: Mapping[str, Any] | None = None,
        facts: Mapping[str, Scalar] = _NO_STRUCTURE,
    ) -> None:
        import h5py  # type: ignore[import-untyped]

        self._window = window
        if window.length < len(SIGNATURE):
            raise bad(self.name, f"found {window.length} bytes, expected HDF5's signature")
        with reports(window):
            self._hdf5 = h5py.File(window, "r")
            root = h5py.h5g.open(self._hdf5.id, b"/")
            listing = list_objects(root, window)
            texts = {key: read_text(root, key, window) for key in ("model_config", "training_config")}
            weights = h5py.h5o.open(root, b"model_weights") if "model_weights" in listing.groups else root
            texts.update({key: read_text(weights, key, window) for key in ("keras_version", "backend")})
            layout = find_layout(listing, has_attribute(weights, "layer_names"))
            check_sizes(self._hdf5.id, listing.datasets.values(), window)
        if config is None and texts["model_config"] is not None:
            config = parse_config(texts["model_config"], self.name)
        compiled = texts["training_config"]
        if layout is not Layout.PLAIN:
            _find_bfloat16(listing)
        tensors = {path: one for path, one in listing.datasets.items() if one.dtype}
        names = name_weights(tensors, listing, layout, config)
        self._stored = {names[path]: one for path, one in tensors.items()}
        self.specs = tuple(TensorSpec(name, str(one.dtype), one.shape) for name, one in sorted(self._stored.items()))
        self.framework = "keras" if layout is not Layout.PLAIN or config is not None else None
        structure = describe_config(config, None if compiled is None else parse_config(compiled, self.name))
        for key in ("keras_version", "backend"):
            if texts[key] is not None:
                structure[key] = printable(texts[key] or "")[:200]
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
        if stored.kind == "variable-length strings":
            values: Iterable[bytes | memoryview] = iter_strings(self._hdf5.id, stored, self._window)
        elif stored.item_bytes:
            values = iter_pieces(self._hdf5.id, stored, self._window, stored.item_bytes)
        else:
            return ""
        digest = hashlib.sha256()
        for value in values:
            digest.update(value)
        return f" sha256:{digest.hexdigest()[:32]}"


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


def _rechunk(pieces: Iterator[memoryview], n_bytes: int, buffer: bytearray) -> Iterator[memoryview]:
    view = memoryview(buffer)[:n_bytes]
    n_filled = 0
    for piece in pieces:
        start = 0
        while start < len(piece):
            n = min(len(piece) - start, len(view) - n_filled)
            view[n_filled : n_filled + n] = piece[start : start + n]
            start, n_filled = start + n, n_filled + n
            if n_filled == len(view):
                yield view
                n_filled = 0
    if n_filled:
        yield view[:n_filled]
