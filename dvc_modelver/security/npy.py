"""Arrays of NumPy: one of Python objects is a pickle behind a header.

Source: ``numpy/lib/_format_impl.py`` (``read_array`` with ``allow_pickle``).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import count_elements, quote
from dvc_modelver.security.parts import Part, window_part

_MAGIC = b"\x93NUMPY"
_MAX_HEADER_BYTES = 1 << 16
_MAX_PARTS = 10_000
_NUMBERS = re.compile(r"[<>|=]?[?a-zA-NP-Z]\d*(?:\[\w+\])?")
"""Types as `numpy.save` writes them, but for ``O``."""
_SIZED = re.compile(r"[<>|=]?([?bBiufcSUV])(\d{0,9})")
_LONG = re.compile(r"(\d)L\b")
"""Numbers as Python 2 wrote them."""


def is_npy(start: bytes) -> bool:
    """Tell by a file's first bytes whether it is an array."""
    return start.startswith(_MAGIC)


def iter_npy(part: Part, head: bytes) -> Iterator[tuple[Part, bool]]:
    """Give what lies behind the header where it is a pickle, and whether that is sure.

    Raises:
        BadModelError: The header is damaged.
    """
    n_length = 2 if head[6:7] == b"\x01" else 4
    begin = 8 + n_length
    n_header = int.from_bytes(head[8:begin], "little")
    if len(head) < begin or n_header > _MAX_HEADER_BYTES:
        raise BadModelError(f"{part.name}: a header of {n_header} bytes, expected at most {_MAX_HEADER_BYTES}")
    header = part.read(begin + n_header)[begin:]
    if len(header) < n_header or b"descr" not in header:
        raise BadModelError(f"{part.name}: found the header {quote(header[:100])}, expected that of an array")
    is_pickled = _has_objects(header)
    start = begin + n_header
    if is_pickled is False:
        if part.n_bytes is not None:
            _check_length(part, header, part.n_bytes - start)
        return
    if part.n_bytes is not None:
        n_bytes = part.n_bytes - start
        yield window_part(part.open(), part.member, part.name, start, n_bytes, part.depth + 1), bool(is_pickled)
    else:
        yield Part(part.member, part.name, lambda: _open_behind(part, start), None, part.depth + 1), bool(is_pickled)
    if is_pickled is None:
        raise BadModelError(f"{part.name}: found the header {quote(header[:100])}, expected that of an array")


def _check_length(part: Part, header: bytes, n_bytes: int) -> None:
    facts = _parse(header)
    numbers = _SIZED.fullmatch(facts["descr"]) if isinstance(facts["descr"], str) else None
    shape = facts.get("shape")
    numel = count_elements(shape) if isinstance(shape, tuple) and all(type(axis) is int for axis in shape) else None
    if numbers is None or numel is None:
        return  # records and the like
    expected = numel * int(numbers[2] or 1) * (4 if numbers[1] == "U" else 1)
    if n_bytes != expected:
        raise BadModelError(f"{part.name}: holds {n_bytes} bytes of values, expected {expected}")


def _open_behind(part: Part, start: int) -> BinaryIO:
    file, left = part.open(), start
    while left and (piece := file.read(left)):
        left -= len(piece)
    return file


def _parse(header: bytes) -> Any:
    return ast.literal_eval(_LONG.sub(r"\1", header.decode("latin-1").strip()))


def _has_objects(header: bytes) -> bool | None:
    """Tell whether an array holds objects; None where the header is none that is understood."""
    try:
        todo = [_parse(header)["descr"]]
    except (ValueError, SyntaxError, TypeError, LookupError, MemoryError, RecursionError):
        return None
    for _ in range(_MAX_PARTS):
        if not todo:
            return False
        descr = todo.pop()
        if isinstance(descr, str):
            if not _NUMBERS.fullmatch(descr):
                return True
        elif isinstance(descr, tuple) and descr:  # a type and a shape
            todo.append(descr[0])
        elif isinstance(descr, list) and all(isinstance(field, tuple) and len(field) > 1 for field in descr):
            todo.extend(field[1] for field in descr)
        else:
            return None
    return None
