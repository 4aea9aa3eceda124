"""Compressed files, expanded once into a temporary file that has no name.

What is expanded may not be much larger than what is there: a bomb ends at a limit that grows with the file. Only the
first `MAX_IN_MEMORY_BYTES` stay in memory.

Sources: RFC 1950 (zlib), RFC 1952 (gzip), ``joblib/compressor.py`` of joblib 1.6 (which of them joblib writes).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from dvc_modelver.errors import BadModelError, environment_error
from dvc_modelver.formats.base import ended_early, quote

MAX_IN_MEMORY_BYTES = 32 << 20
MAX_EXPANDED_BYTES = 32 << 30
MAX_RATIO = 100
MIN_LIMIT_BYTES = 128 << 20
"""A file may expand to `MAX_RATIO` times its length and so much more, and in no case beyond `MAX_EXPANDED_BYTES`."""

MAX_WINDOW_BYTES = 256 << 20
"""What LZMA may take to expand; its strongest preset needs 65 MiB."""

_CHUNK_BYTES = 1 << 16
_PIECE_BYTES = 1 << 20


def find_method(start: bytes) -> str | None:
    """Tell by a file's first bytes how it was compressed; None where it is not, by any method that joblib has."""
    if start[:1] == b"\x78" and len(start) > 1 and int.from_bytes(start[:2], "big") % 31 == 0:
        return "zlib"
    marks = {
        b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ": "xz", b"\x5d\0": "lzma", b"\x04\x22\x4d\x18": "lz4",
        b"ZF0x": "joblib before 0.10",
    }  # fmt: skip
    return next((method for mark, method in marks.items() if start.startswith(mark)), None)


def expansion_limit(n_bytes: int) -> int:
    """Give the bytes that a file of `n_bytes` may expand to."""
    return min(MAX_RATIO * n_bytes + MIN_LIMIT_BYTES, MAX_EXPANDED_BYTES)


def expand(file: BinaryIO, n_bytes: int, method: str, name: str) -> BinaryIO:
    """Give the expanded content of a file of `n_bytes`, in a temporary file; the caller closes it.

    Raises:
        BadModelError: It is damaged, needs a package that is missing, or expands beyond the limits.
        EnvironmentFailed: The temporary folder has no room for it.
    """
    limit = expansion_limit(n_bytes)
    target: BinaryIO = io.BytesIO()
    n_found = 0
    try:
        for piece in _iter_expanded(file, method, name):
            n_found += len(piece)
            if n_found > limit:
                raise BadModelError(
                    f"{name}: expands to over {limit} bytes from {n_bytes}, expected at most {MAX_RATIO} times as many",
                    hint="save the model again without compression",
                )
            target = _append(target, n_found, piece)
    except BaseException:
        target.close()
        raise
    return target


def _append(target: BinaryIO, n_bytes: int, piece: bytes) -> BinaryIO:
    import tempfile

    try:
        if n_bytes > MAX_IN_MEMORY_BYTES and isinstance(target, io.BytesIO):
            small, target = target, cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - the caller closes it
            target.write(small.getbuffer())
        target.write(piece)
    except OSError as err:
        target.close()
        raise environment_error(err) from err
    return target


def _iter_expanded(file: BinaryIO, method: str, name: str) -> Iterator[bytes]:
    decompressor, errors = _find_decompressor(method, name)
    file.seek(0)
    data, n_read = b"", 0
    while not decompressor.eof:
        if not data and getattr(decompressor, "needs_input", True):
            data = file.read(_CHUNK_BYTES)
            n_read += len(data)
            if not data:
                raise ended_early(f"{name}: {method} data", n_read, n_read + 1)
        try:
            piece = decompressor.decompress(data, _PIECE_BYTES)
        except errors as err:
            raise _bad(
                name, f"damaged {method} data near byte {n_read} ({quote(str(err))}), expected intact ones"
            ) from err
        # zlib hands back what it did not use; the others keep it.
        data = getattr(decompressor, "unconsumed_tail", b"")
        yield piece
    if decompressor.unused_data or file.read(1):
        raise _bad(name, f"has more bytes after its {method} data, expected none")


def _find_decompressor(method: str, name: str) -> tuple[Any, tuple[type[Exception], ...]]:
    if method in ("zlib", "gzip"):
        import zlib

        return zlib.decompressobj(15 if method == "zlib" else 31), (zlib.error,)
    if method == "bz2":
        import bz2

        return bz2.BZ2Decompressor(), (OSError, ValueError)
    if method in ("xz", "lzma"):
        import lzma

        kind = lzma.FORMAT_XZ if method == "xz" else lzma.FORMAT_ALONE
        return lzma.LZMADecompressor(kind, memlimit=MAX_WINDOW_BYTES), (lzma.LZMAError, EOFError, MemoryError)
    if method != "lz4":
        raise BadModelError(
            f"{name}: found a file of {method}, expected one of a later version",
            hint="load it with joblib.load if you trust it, and save it again",
        )
    try:
        import lz4.frame  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as err:
        raise BadModelError(
            f"{name}: is compressed by lz4, which needs the package lz4", hint="pip install lz4"
        ) from err
    return lz4.frame.LZ4FrameDecompressor(), (RuntimeError, EOFError, ValueError)


def _bad(where: str, finding: str) -> BadModelError:
    return BadModelError(f"{where}: {finding}", hint="fetch the file again, or save the model again")
