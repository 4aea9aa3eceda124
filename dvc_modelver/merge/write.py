"""Writes the tensors of a merge into a file: a new one where the format is simple, else new values in a side's file.

safetensors and NPZ files are written anew, with any tensors. Of other formats the file of one side that has the
result's tensors and facts is copied, and values are replaced where they lie plainly (`FileReader.find_extent`).
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import IO, BinaryIO, cast

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats import Reader
from dvc_modelver.formats.base import Extent, FileReader, fill, measure, read_exactly
from dvc_modelver.formats.npz import NpzReader
from dvc_modelver.formats.safetensors import SafetensorsReader, ordered, render_header
from dvc_modelver.formats.zip_directory import find_data, find_directory, read_directory
from dvc_modelver.merge.result import Result
from dvc_modelver.tensors import DTYPE_BITS, TensorSpec, is_quantised

Progress = Callable[[int], None]

COPY_BYTES = 64 << 20
PIECE_BYTES = 4 << 20

_NUMPY_CODES = {
    "BOOL": "|b1", "I8": "|i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "U8": "|u1", "U16": "<u2", "U32": "<u4",
    "U64": "<u8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8", "C128": "<c16",
}  # fmt: skip
_LOCAL_CRC, _ENTRY_CRC, _ENTRY_BYTES = 14, 16, 46
_HAS_DESCRIPTOR = 1 << 3


def is_rewritable(format_: str) -> bool:
    """Whether files of a format are written anew, so that tensors may come, go and change their shape."""
    return format_ in (SafetensorsReader.format, NpzReader.format)


def find_unwritable(format_: str, specs: Iterable[TensorSpec]) -> list[str]:
    """Give the tensors whose dtype a format that is written anew does not have."""
    return (
        [s.name for s in specs if s.dtype not in _NUMPY_CODES]
        if format_ == NpzReader.format
        else [s.name for s in specs if s.dtype not in DTYPE_BITS or is_quantised(s.dtype)]
    )


def write_safetensors(
    out: BinaryIO, result: Result, ours: SafetensorsReader, metadata: Mapping[str, str], progress: Progress
) -> None:
    """Write a safetensors file: with the header of ours where nothing in it changed, else as the library writes it."""
    if ours.specs == result.specs and ours.metadata == metadata:
        specs, header = ours.stored_order(), ours.read_header()
    else:
        specs = ours.stored_order() if ours.specs == result.specs else ordered(result.specs)
        header = render_header(specs, metadata)
    out.write(header)
    at = len(header)
    for spec in specs:
        write_values(out, at, result, spec, progress)
        at += spec.nbytes


def write_npz(out: BinaryIO, result: Result, ours: NpzReader, progress: Progress) -> None:
    """Write an NPZ archive as NumPy does, in the order of ours, compressed where ours is."""
    import numpy as np

    names = [name for name in ours.stored_order() if name in result.decisions]
    names += [spec.name for spec in result.specs if spec.name not in set(names)]
    specs = {spec.name: spec for spec in result.specs}
    method = zipfile.ZIP_DEFLATED if ours.is_compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(cast("IO[bytes]", out), "w", method, allowZip64=True) as archive:
        for name in names:
            spec = specs[name]
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = method
            with archive.open(info, "w", force_zip64=True) as member:
                header = {"descr": _NUMPY_CODES[spec.dtype], "fortran_order": False, "shape": spec.shape}
                np.lib.format.write_array_header_1_0(member, header)
                for piece in result.iter_buffers(spec, PIECE_BYTES):
                    member.write(piece)
                    progress(len(piece))


def patch(
    out: BinaryIO, source: BinaryIO, result: Result, template: Reader, digests: Mapping[str, str], progress: Progress
) -> None:
    """Copy a side's file, and put the result's values where that side's lie.

    Args:
        out: The new file, empty, open for reading too.
        source: The file of that side.
        result: Has tensors of the same names, dtypes and shapes.
        template: The reader of that side; `find_patches` found nothing in the way.
        digests: Of the tensors in it.
        progress: Called with the number of bytes written since the last call.
    """
    patches, _ = find_patches(result, template, digests)
    copy_file(source, out, progress)
    for spec, extent in patches:
        write_values(out, extent.begin, result, spec, progress)
    out.flush()
    if patches and read_exactly(out, 0, min(4, measure(out)), template.format) == b"PK\x03\x04":
        _mend_checksums(out, [extent for _, extent in patches], template.format)


def find_patches(
    result: Result, template: Reader, digests: Mapping[str, str]
) -> tuple[list[tuple[TensorSpec, Extent]], list[str]]:
    """Give the tensors whose values differ from those in a side's file and where they go, and those that cannot go."""
    found, cannot = [], []
    for spec in template.specs:
        if not spec.numel or result.digests.get(spec.name) == digests[spec.name]:
            continue
        extent = template.find_extent(spec) if isinstance(template, FileReader) else None
        if extent is not None:
            found.append((spec, extent))
        else:
            cannot.append(spec.name)
    return found, cannot


def copy_file(source: BinaryIO, out: BinaryIO, progress: Progress) -> None:
    """Copy a whole file into an empty one."""
    copy_bytes(Extent(source, 0, measure(source)), out, 0, progress)


def write_values(out: BinaryIO, at: int, result: Result, spec: TensorSpec, progress: Progress) -> None:
    """Put one tensor at an offset of a file: by the kernel where it lies plainly on one side, else in pieces."""
    extent = result.find_extent(spec)
    if extent is not None:
        copy_bytes(extent, out, at, progress)
        return
    out.seek(at)
    for piece in result.iter_buffers(spec, PIECE_BYTES):
        out.write(piece)
        progress(len(piece))


def copy_bytes(extent: Extent, out: BinaryIO, at: int, progress: Progress) -> None:
    """Copy bytes of a file to an offset of another; the kernel shares or moves them where it can."""
    begin = extent.begin
    out.flush()
    try:
        source_fd, out_fd = extent.file.fileno(), out.fileno()
        while begin < extent.end:
            n_copied = os.copy_file_range(source_fd, out_fd, min(COPY_BYTES, extent.end - begin), begin, at)
            if not n_copied:
                break
            begin, at = begin + n_copied, at + n_copied
            progress(n_copied)
    except (OSError, AttributeError):
        pass  # another file system, a file in memory, a kernel without it: what is left is copied below
    buffer = memoryview(bytearray(min(PIECE_BYTES, extent.end - begin)))
    extent.file.seek(begin)
    out.seek(at)
    while begin < extent.end:
        piece = buffer[: min(PIECE_BYTES, extent.end - begin)]
        n_read = fill(extent.file, piece)
        if not n_read:
            raise BadModelError(f"ended early, found {begin} of {extent.end} bytes (somebody is writing it)")
        out.write(piece[:n_read])
        begin += n_read
        progress(n_read)
    out.seek(0, os.SEEK_END)


def _mend_checksums(out: BinaryIO, extents: Iterable[Extent], name: str) -> None:
    """Correct the CRC-32 of each member of a zip archive whose bytes were replaced.

    Source: APPNOTE.TXT 6.3.10, sections 4.3.7 (local header), 4.3.9 (data descriptor) and 4.3.12 (directory).
    """
    begins = sorted(extent.begin for extent in extents)
    n_members, n_bytes, start = find_directory(out, name)
    directory = read_exactly(out, start, n_bytes, name)
    members = list(read_directory(out, name).values())
    at = 0
    for member in members[:n_members]:
        n_name, n_extra, n_comment = (int.from_bytes(directory[at + i : at + i + 2], "little") for i in (28, 30, 32))
        begin = find_data(out, member, name)
        if any(begin <= b < begin + member.n_stored_bytes for b in begins):
            crc = _checksum(out, begin, member.n_stored_bytes).to_bytes(4, "little")
            flags = int.from_bytes(directory[at + 8 : at + 10], "little")
            _write_at(out, start + at + _ENTRY_CRC, crc)
            if flags & _HAS_DESCRIPTOR:
                after = begin + member.n_stored_bytes
                signed = read_exactly(out, after, 4, name) == b"PK\x07\x08"
                _write_at(out, after + (4 if signed else 0), crc)
            if not flags & _HAS_DESCRIPTOR or any(read_exactly(out, member.start + _LOCAL_CRC, 4, name)):
                _write_at(out, member.start + _LOCAL_CRC, crc)
        at += _ENTRY_BYTES + n_name + n_extra + n_comment


def _checksum(file: BinaryIO, begin: int, n_bytes: int) -> int:
    buffer = memoryview(bytearray(min(PIECE_BYTES, n_bytes)))
    crc, left = 0, n_bytes
    file.seek(begin)
    while left:
        piece = buffer[: min(PIECE_BYTES, left)]
        n_read = fill(file, piece)
        crc = zlib.crc32(piece[:n_read], crc)
        left -= n_read
    return crc


def _write_at(out: BinaryIO, at: int, data: bytes) -> None:
    out.seek(at)
    out.write(data)
