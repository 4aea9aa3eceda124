"""safetensors: eight bytes of length, a JSON header, then the values of all tensors without a gap.

Source: https://github.com/huggingface/safetensors, README section "Format", and the checks of
``Metadata::validate`` in ``safetensors/src/tensor.rs``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import (
    MAX_ELEMENTS,
    MAX_HEADER_BYTES,
    Extent,
    FileReader,
    Folder,
    count_elements,
    measure,
    quote,
    read_exactly,
)
from dvc_modelver.tensors import DTYPE_BITS, TensorSpec, is_quantised

FORMAT = "safetensors"
SUFFIXES = (".safetensors",)

_FRAMEWORKS = {"pt": "pytorch", "tf": "tensorflow", "np": "numpy", "mlx": "mlx", "flax": "flax", "jax": "jax"}
_ALIGNMENT = 8
_ORDER = (
    "U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8",
    "U8", "BOOL",
)  # fmt: skip
_RANKS = {dtype: rank for rank, dtype in enumerate(_ORDER)}
_DTYPES = tuple(dtype for dtype in DTYPE_BITS if not is_quantised(dtype))
_FIELDS = frozenset({"dtype", "shape", "data_offsets"})


def matches(file: BinaryIO) -> bool:
    """Tell whether a file begins as safetensors does: a possible header length, then ``{``."""
    n_bytes = measure(file)
    if n_bytes < 10:
        return False
    start = read_exactly(file, 0, 9, FORMAT)
    return int.from_bytes(start[:8], "little") <= min(MAX_HEADER_BYTES, n_bytes - 8) and start[8:] == b"{"


def open_file(source: Path | BinaryIO, name: str, folder: Folder | None = None) -> SafetensorsReader:
    """Open a file of this format; it is whole without the files beside it."""
    return SafetensorsReader(source, name)


class SafetensorsReader(FileReader):
    """Reads a safetensors file; opening it reads the header only.

    Args:
        source: A path, or a seekable binary file object.
        name: How errors call the file.

    Attributes:
        metadata: The header's ``__metadata__``: text the writer left.

    Raises:
        BadModelError: The header breaks the format's rules; nothing was allocated on its word alone.
    """

    format = FORMAT

    def __init__(self, source: Path | BinaryIO, name: str = "") -> None:
        super().__init__(source, name)
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    def iter_buffers(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give a tensor's values; see `Reader`."""
        begin, end = self._spans[spec.name]
        return self._iter_span(begin, end, n_bytes, f"tensor {quote(spec.name)}")

    def stored_order(self) -> list[TensorSpec]:
        """Give every tensor in the order in which they lie in the file."""
        return sorted(self.specs, key=lambda spec: (*self._spans[spec.name], self._places[spec.name]))

    def read_header(self) -> bytes:
        """Give the bytes before the values."""
        length = int.from_bytes(read_exactly(self._file, 0, 8, self.name), "little")
        return read_exactly(self._file, 0, 8 + length, self.name)

    def find_extent(self, spec: TensorSpec) -> Extent:
        """Give where a tensor's values lie; see `FileReader`."""
        return Extent(self._file, *self._spans[spec.name])

    def _read_header(self) -> None:
        n_file_bytes = measure(self._file)
        if n_file_bytes < 8:
            raise _bad(self.name, f"found {n_file_bytes} bytes, expected at least the 8 of the header's length")
        length = int.from_bytes(read_exactly(self._file, 0, 8, self.name), "little")
        if length > MAX_HEADER_BYTES:
            raise _bad(
                self.name,
                f"the header's length is {length}, expected at most {MAX_HEADER_BYTES} in a safetensors file",
            )
        if length > n_file_bytes - 8:
            raise _bad(self.name, f"ended early, found {n_file_bytes - 8} bytes of a header of {length}")
        header = _parse_header(read_exactly(self._file, 8, length, self.name), self.name)
        self.metadata = _check_metadata(header.pop("__metadata__", {}), self.name)
        self.framework = _FRAMEWORKS.get(self.metadata.get("format", ""))
        self._places = {name: place for place, name in enumerate(header)}
        entries = [_parse_entry(name, header[name], self.name) for name in sorted(header)]
        self.specs = tuple(spec for spec, _, _ in entries)
        _check_tiling(entries, n_file_bytes - 8 - length, self.name)
        self._spans = {spec.name: (8 + length + begin, 8 + length + end) for spec, begin, end in entries}


def render_header(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Give the length and header of a file whose tensors lie in the order of `specs`, without a gap."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    for spec in specs:
        offsets = [begin, begin + spec.nbytes]
        header[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": offsets}
        begin = offsets[1]
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def ordered(specs: Iterable[TensorSpec]) -> list[TensorSpec]:
    """Give tensors in the order in which the library writes them: by alignment, then by dtype and name."""
    return sorted(specs, key=lambda spec: (-DTYPE_BITS[spec.dtype], _RANKS.get(spec.dtype, -1), spec.name))


def _bad(name: str, finding: str) -> BadModelError:
    return BadModelError(f"{name}: {finding}", hint="fetch the file again, or save it again with safetensors")


def _parse_header(text: bytes, name: str) -> dict[str, Any]:
    if not text.startswith(b"{"):
        raise _bad(name, f"the header starts with {text[:8]!r}, expected '{{'")
    try:
        header = json.loads(text, object_pairs_hook=_object_without_duplicates)
        for key in header:
            key.encode()
    except BadModelError as err:
        raise _bad(name, str(err)) from err
    except UnicodeEncodeError as err:
        raise _bad(name, f"the tensor name {quote(err.object)} is not Unicode text, expected UTF-8") from err
    except (ValueError, RecursionError) as err:
        detail = quote(str(err).split("\n", 1)[0])
        raise _bad(name, f"the header is not JSON ({detail}), expected an object of tensors") from err
    assert isinstance(header, dict)
    return header


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadModelError(f"the header has the key {quote(twice)} twice, expected once")
    return members


def _check_metadata(metadata: object, name: str) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _bad(name, f"__metadata__ is {quote(metadata)}, expected an object of strings")
    return metadata


def _parse_entry(tensor: str, entry: object, name: str) -> tuple[TensorSpec, int, int]:
    def bad(finding: str) -> BadModelError:
        return _bad(name, f"tensor {quote(tensor)} {finding}")

    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise bad(f"is {quote(entry)}, expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise bad(f"has dtype {quote(dtype)}, expected one of {', '.join(_DTYPES)}")
    numel = count_elements(shape) if _is_list_of_int(shape) else None
    if numel is None:
        raise bad(f"has shape {quote(shape)}, expected axis lengths with a product below 2^63")
    if not _is_list_of_int(offsets) or len(offsets) != 2 or not 0 <= offsets[0] <= offsets[1] <= MAX_ELEMENTS:
        raise bad(f"has data_offsets {quote(offsets)}, expected two ascending integers below 2^63")
    begin, end = offsets
    n_bits = numel * DTYPE_BITS[dtype]
    if n_bits % 8 or (end - begin) * 8 != n_bits:
        expected = f"{n_bits // 8} bytes" if n_bits % 8 == 0 else "whole bytes"
        raise bad(f"spans {end - begin} bytes, expected {expected} for {dtype} {quote(shape)}")
    return TensorSpec(tensor, dtype, tuple(shape)), begin, end


def _is_list_of_int(value: object) -> bool:
    # bool is an int to isinstance, and `true` is no axis length.
    return isinstance(value, list) and all(type(item) is int for item in value)


def _check_tiling(entries: list[tuple[TensorSpec, int, int]], n_data_bytes: int, name: str) -> None:
    position = 0
    for begin, end, tensor in sorted((begin, end, spec.name) for spec, begin, end in entries):
        if begin != position:
            what = "overlaps the one before" if begin < position else "leaves a gap"
            raise _bad(name, f"tensor {quote(tensor)} {what}: begins at {begin}, expected {position}")
        position = end
    if position > n_data_bytes:
        raise _bad(name, f"ended early, found {n_data_bytes} of the {position} bytes that its tensors need")
    if position < n_data_bytes:
        raise _bad(name, f"found {n_data_bytes} bytes of values, expected {position}")
