"""Model files: one small module per format behind one `Reader`, found by content first and name second.

Importing this package loads neither numpy nor any framework.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats import npz, safetensors
from dvc_modelver.formats.base import Reader

__all__ = ["Reader", "known_suffixes", "open_reader"]


@dataclass(frozen=True)
class _Format:
    name: str
    suffixes: tuple[str, ...]
    matches: Callable[[BinaryIO], bool]
    open: Callable[[Path | BinaryIO, str], Reader]


_FORMATS = (
    _Format(safetensors.FORMAT, safetensors.SUFFIXES, safetensors.is_safetensors, safetensors.SafetensorsReader),
    _Format(npz.FORMAT, npz.SUFFIXES, npz.is_npz, npz.NpzReader),
)


def open_reader(source: Path | BinaryIO, name: str = "") -> Reader | None:
    """Open a model file by what it holds; its name decides only where the content does not.

    Args:
        source: A path, or a seekable binary file object, of which only the parts asked for are read.
        name: How the file is called, for its suffix and in errors; the path's own where there is one.

    Returns:
        A reader, to be closed by the caller; None for a format that no reader knows.

    Raises:
        BadModelError: The file breaks its format's rules, or its suffix claims a format that it is not.
        OSError: The file cannot be opened.
    """
    name = name or (str(source) if isinstance(source, Path) else str(getattr(source, "name", "")))
    if isinstance(source, Path):
        with source.open("rb") as file:
            found = _find_by_content(file)
    else:
        found = _find_by_content(source)
    claimed = next((known for known in _FORMATS if name.lower().endswith(known.suffixes)), None)
    if found and claimed and found is not claimed:
        raise BadModelError(
            f"{name}: found a file in the format {found.name}, expected {claimed.name} by its name",
            hint=f"rename it to end in {found.suffixes[0]}",
        )
    chosen = found or claimed
    return chosen.open(source, name) if chosen else None


def known_suffixes() -> tuple[str, ...]:
    """Give the suffixes of the formats that have a reader, with their dots."""
    return tuple(suffix for known in _FORMATS for suffix in known.suffixes)


def _find_by_content(file: BinaryIO) -> _Format | None:
    return next((known for known in _FORMATS if known.matches(file)), None)
