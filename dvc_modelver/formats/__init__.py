"""Model files: one small module per format behind one `Reader`, found by content first and name second.

Every module of a format has the same four names: ``FORMAT``, ``SUFFIXES``, ``matches(file)`` (does the content look
like it?) and ``open_file(source, name, folder)``. Another package adds one by an entry point in the group
``dvc_modelver.formats`` that names such a module. Importing this package loads neither numpy nor any format.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import Folder, LocalFolder, Reader, measure, read_exactly
from dvc_modelver.formats.impostors import START_BYTES, find_impostor

__all__ = ["Folder", "LocalFolder", "Reader", "claimed_format", "known_suffixes", "open_folder", "open_reader"]

ENTRY_POINTS = "dvc_modelver.formats"

_FORMATS: dict[str, tuple[str, ...]] = {
    "safetensors": (".safetensors",),
    "npz": (".npz",),
    "torch": (".pt", ".pth"),
    "npy": (".npy",),
    "gguf": (".gguf",),
    "tensorflow": (".index",),
    "tflite": (".tflite",),
    "onnx": (".onnx",),
    "keras": (".keras",),
    "hdf5": (".h5", ".hdf5"),
    "xgboost": (".ubj",),
    "lightgbm": (".lgb", ".lgbm"),
    "catboost": (".cbm",),
    "sklearn": (
        ".pkl",
        ".pickle",
        ".joblib",
        ".joblib.gz",
        ".joblib.xz",
        ".joblib.z",
        ".joblib.bz2",
        ".joblib.lzma",
        ".pkl.gz",
        ".pkl.xz",
        ".pkl.z",
        ".pkl.bz2",
        ".pkl.lzma",
    ),
}
"""The module of each format and the suffixes that claim it, in the order in which contents are asked."""


_ALSO_DATA = frozenset({".npy", ".index", ".pkl", ".pickle", ".pkl.gz", ".pkl.xz", ".pkl.z", ".pkl.bz2", ".pkl.lzma"})
"""Suffixes that data, and indices of other programs, have as well."""


class _Format(Protocol):
    FORMAT: str
    SUFFIXES: tuple[str, ...]

    def matches(self, file: BinaryIO) -> bool: ...

    def open_file(self, source: Path | BinaryIO, name: str, folder: Folder | None) -> Reader: ...


def open_reader(source: Path | BinaryIO, name: str = "", folder: Folder | None = None) -> Reader | None:
    """Open a model file by what it holds; its name decides only where the content does not.

    Args:
        source: A path (a folder is one model), or a seekable binary file object, of which only the parts asked for
            are read.
        name: How the file is called, for its suffix and in errors; the path's own where there is one.
        folder: The files beside it, for a format that keeps its values in several.

    Returns:
        A reader, to be closed by the caller; None for a format that no reader knows.

    Raises:
        BadModelError: The file breaks the rules of its format, or of the one that its name claims.
        OSError: The file cannot be opened.
    """
    name = name or (str(source) if isinstance(source, Path) else str(getattr(source, "name", "")))
    if isinstance(source, Path) and source.is_dir():
        return open_folder(LocalFolder(source), name)
    claimed = _find_claimed(name)
    if isinstance(source, Path):
        with source.open("rb") as file:
            found = _find_by_content(file, claimed) or _claimed_by_name(file, claimed, name)
    else:
        found = _find_by_content(source, claimed) or _claimed_by_name(source, claimed, name)
    return found.open_file(source, name, folder) if found else None


def open_folder(folder: Folder, name: str) -> Reader:
    """Open all files of a folder as one model.

    Raises:
        BadModelError: A file breaks its format's rules, or a shard is missing.
    """
    from dvc_modelver.formats import saved_model
    from dvc_modelver.formats.folder import FolderReader

    if saved_model.matches_folder(folder.names()):
        return saved_model.open_folder(folder, name)
    return FolderReader(folder, name)


def known_suffixes() -> tuple[str, ...]:
    """Give the suffixes, with their dots, of files that are models as a rule; `.npy` is as often data."""
    ours = (suffix for suffixes in _FORMATS.values() for suffix in suffixes)
    return (
        *(suffix for suffix in ours if suffix not in _ALSO_DATA),
        *(suffix for known in _plugins() for suffix in known.SUFFIXES),
    )


def claimed_format(name: str) -> str | None:
    """Give the format that files of this name have as a rule; None where the suffix says nothing."""
    claimed = _find_claimed(name)
    return claimed.FORMAT if claimed is not None else None


def _claimed_by_name(file: BinaryIO, claimed: _Format | None, name: str) -> _Format | None:
    """Give the format that a name claims, unless the file only has a model's name."""
    if claimed is None:
        return None
    size = measure(file)
    impostor = find_impostor(read_exactly(file, 0, min(size, START_BYTES), name), size)
    if impostor is not None:
        raise BadModelError(f"{name}: {impostor.what}, expected weights", hint=impostor.hint)
    return claimed


def _find_claimed(name: str) -> _Format | None:
    for module, suffixes in _FORMATS.items():
        if name.lower().endswith(suffixes):
            return _load(module)
    return next((known for known in _plugins() if name.lower().endswith(known.SUFFIXES)), None)


def _find_by_content(file: BinaryIO, claimed: _Format | None) -> _Format | None:
    if claimed is not None and claimed.matches(file):
        return claimed
    return next((known for known in _iter_formats() if known.matches(file)), None)


def _iter_formats() -> Iterator[_Format]:
    yield from map(_load, _FORMATS)
    yield from _plugins()


def _load(module: str) -> _Format:
    return cast(_Format, import_module(f"{__name__}.{module}"))


@cache
def _plugins() -> tuple[_Format, ...]:
    from importlib.metadata import entry_points

    return tuple(cast(_Format, entry.load()) for entry in entry_points(group=ENTRY_POINTS))
