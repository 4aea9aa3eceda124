"""GGUF: the files of llama.cpp. Keys and values, the table of tensors, then the values, each tensor aligned.

The header is parsed here, in pieces and without building what it only takes to compare two vocabularies: a
long array becomes the digest of its bytes while it is read. Package `gguf` is imported for the values of
quantised tensors alone.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, and ``GGUFReader`` of gguf-py.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import (
    Extent,
    FileReader,
    Folder,
    count_elements,
    ended_early,
    flatten,
    measure,
    quote,
    read_exactly,
    rechunk,
)
from dvc_modelver.tensors import BLOCKS, DTYPE_BITS, TensorSpec, is_quantised

FORMAT = "gguf"
SUFFIXES = (".gguf",)
MAX_GGUF_HEADER_BYTES = 64 << 20
MAX_KEYS = 10_000
MAX_TENSORS = 200_000
MAX_NAME_BYTES = 65_535
MAX_AXES = 8

_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
"""``ggml_type``. Q8_1 and Q8_K are missing: they hold what a matrix product computes on its way, never weights."""

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_FLOAT32, _UINT32, _STRING, _ARRAY = 6, 4, 8, 9
_ALIGNMENT_KEY = "general.alignment"
_DEFAULT_ALIGNMENT = 32
_READ_BYTES = 1 << 17
_MAX_TEXT_BYTES = 1 << 10
_MAX_LISTED = 16
_MAX_GROUP = 1 << 18
_HINT = "fetch the file again, or convert the model again with llama.cpp"


def matches(file: BinaryIO) -> bool:
    """Tell whether a file begins with ``GGUF``."""
    return measure(file) >= 4 and read_exactly(file, 0, 4, FORMAT) == b"GGUF"


def open_file(source: Path | BinaryIO, name: str, folder: Folder | None = None) -> GgufReader:
    """Open a file of this format; of a model in several files, each lists its own tensors."""
    return GgufReader(source, name)


class GgufReader(FileReader):
    """Reads a GGUF file of version 2 or 3; opening it reads the header only, however large the vocabulary.

    Shapes are given outermost axis first, as numpy and the model's own framework have them; the file stores
    the innermost first. The keys and values of the header are the structure.

    Args:
        source: A path, or a seekable binary file object.
        name: How errors call the file.

    Raises:
        BadModelError: The header breaks the format's rules, the file is of version 1 or big-endian, or a
            tensor is of a type that stands for no weights.
    """

    format = FORMAT
    framework: str | None = "ggml"

    def __init__(self, source: Path | BinaryIO, name: str = "") -> None:
        super().__init__(source, name)
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    def iter_buffers(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give a tensor's values, or its blocks as they are stored; see `Reader`."""
        begin = self._begins[spec.name]
        return self._iter_span(begin, begin + spec.nbytes, n_bytes, f"tensor {quote(spec.name)}")

    def iter_values(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give a tensor's values as real numbers; see `Reader`.

        Raises:
            BadModelError: Package `gguf` is missing, or too old for this type of blocks.
        """
        if not is_quantised(spec.dtype):
            return self.iter_buffers(spec, n_bytes)
        n_elements, n_block_bytes = BLOCKS[spec.dtype]
        dequantise = _make_dequantiser(spec.dtype, f"{self.name}: tensor {quote(spec.name)}")
        n_blocks = max(1, min(n_bytes // 4, _MAX_GROUP) // n_elements)
        groups = self.iter_buffers(spec, n_blocks * n_block_bytes)
        return rechunk(map(dequantise, groups), min(n_bytes, 4 * spec.numel))

    def find_extent(self, spec: TensorSpec) -> Extent:
        """Give where a tensor's values lie; see `FileReader`."""
        begin = self._begins[spec.name]
        return Extent(self._file, begin, begin + spec.nbytes)

    def _read_header(self) -> None:
        header = _Header(self._file, self.name)
        n_tensors, n_keys = _read_counts(header)
        facts: dict[str, object] = {}
        for _ in range(n_keys):
            key = header.text("key")
            if key in facts:
                raise header.bad(f"has the key {quote(key)} twice, expected once")
            facts[key] = _read_value(header, key)
        alignment = facts.get(_ALIGNMENT_KEY, _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise header.bad(f"has {_ALIGNMENT_KEY} {quote(alignment)}, expected a power of two")
        entries = [_read_entry(header, alignment) for _ in range(n_tensors)]
        data_begin = -(-header.position // alignment) * alignment
        _check_places(entries, header.n_file_bytes - data_begin, header)
        self.specs = tuple(sorted((spec for spec, _ in entries), key=lambda spec: spec.name))
        self._begins = {spec.name: data_begin + offset for spec, offset in entries}
        self.structure = flatten(facts) if facts else {}


class _Header:
    """The header, read from start to end in pieces; none of its lengths is believed before it is compared.

    Attributes:
        position: Offset in the file of what comes next.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._piece = b""
        self._at = 0
        self._piece_end = 0
        self.n_file_bytes = measure(file)

    @property
    def position(self) -> int:
        return self._piece_end - len(self._piece) + self._at

    def bad(self, finding: str) -> BadModelError:
        return BadModelError(f"{self._name}: {finding}", hint=_HINT)

    def check_left(self, n_bytes: int) -> None:
        """Refuse lengths beyond the file's end, and headers beyond the limit."""
        left = self.n_file_bytes - self.position
        if n_bytes > left:
            raise ended_early(f"{self._name}: the header", left, n_bytes)
        if self.position + n_bytes > MAX_GGUF_HEADER_BYTES:
            raise self.bad(f"has a header of {self.position + n_bytes} bytes or more, expected {MAX_GGUF_HEADER_BYTES}")

    def take(self, n_bytes: int) -> bytes:
        """Give the next bytes; for what is small."""
        if self._at + n_bytes > len(self._piece):
            self.check_left(n_bytes)
            self._fill(n_bytes)
        self._at += n_bytes
        return self._piece[self._at - n_bytes : self._at]

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def text(self, what: str) -> str:
        """Give a name."""
        length = self.number("<Q")
        if length > MAX_NAME_BYTES:
            raise self.bad(f"has a {what} of {length} bytes, expected at most {MAX_NAME_BYTES}")
        stored = self.take(length)
        try:
            return stored.decode()
        except UnicodeDecodeError as err:
            raise self.bad(f"has the {what} {quote(stored)}, expected UTF-8") from err

    def hash(self, n_bytes: int, digest: Any) -> None:
        """Read on over any number of bytes into a digest."""
        self.check_left(n_bytes)
        while n_bytes:
            count = min(n_bytes, len(self._piece) - self._at) or min(n_bytes, _READ_BYTES)
            digest.update(self.take(count))
            n_bytes -= count

    def hash_strings(self, n_strings: int, digest: Any) -> None:
        """Read on over strings into a digest."""
        length_at = struct.Struct("<Q").unpack_from
        while n_strings:
            piece, at, last = self._piece, self._at, len(self._piece) - 8
            while n_strings and at <= last and (end := at + 8 + length_at(piece, at)[0]) <= last + 8:
                at = end
                n_strings -= 1
            digest.update(memoryview(piece)[self._at : at])
            self._at = at
            if n_strings:
                stored = self.take(8)
                digest.update(stored)
                self.hash(int.from_bytes(stored, "little"), digest)
                n_strings -= 1

    def _fill(self, n_bytes: int) -> None:
        rest = self._piece[self._at :]
        n_wanted = min(max(n_bytes - len(rest), _READ_BYTES), self.n_file_bytes - self._piece_end)
        fresh = read_exactly(self._file, self._piece_end, n_wanted, self._name)
        self._piece, self._at = rest + fresh, 0
        self._piece_end += len(fresh)


def _read_counts(header: _Header) -> tuple[int, int]:
    magic = header.take(4)
    if magic != b"GGUF":
        raise header.bad(f"starts with {magic!r}, expected b'GGUF'")
    version = header.number("<I")
    if version and version & 0xFFFF == 0:
        raise header.bad("is big-endian, expected a little-endian GGUF file (gguf-convert-endian makes one)")
    if version not in (2, 3):
        raise header.bad(f"is GGUF version {version}, expected 2 or 3")
    n_tensors, n_keys = header.number("<Q"), header.number("<Q")
    for n, limit, what in ((n_tensors, MAX_TENSORS, "tensors"), (n_keys, MAX_KEYS, "keys")):
        if n > limit:
            raise header.bad(f"announces {n} {what}, expected at most {limit}")
    return n_tensors, n_keys


def _read_value(header: _Header, key: str) -> object:
    kind = header.number("<I")
    if kind == _ARRAY:
        return _read_array(header, key)
    if key == _ALIGNMENT_KEY and kind != _UINT32:
        raise header.bad(f"has {_ALIGNMENT_KEY} of type {kind}, expected {_UINT32}, an unsigned integer of 32 bits")
    return _read_item(header, key, kind)


def _read_item(header: _Header, key: str, kind: int) -> object:
    if kind == _STRING:
        length = header.number("<Q")
        if length <= _MAX_TEXT_BYTES:
            return header.take(length).decode(errors="backslashreplace")
        digest = hashlib.sha256()
        header.hash(length, digest)
        return f"sha256:{digest.hexdigest()[:32]} ({length:,} bytes)"
    if kind not in _SCALARS:
        raise header.bad(f"key {quote(key)} has a value of type {kind}, expected 0 to 12")
    value = header.number(_SCALARS[kind])
    return _shorten(value) if kind == _FLOAT32 else value


def _read_array(header: _Header, key: str) -> object:
    kind, count = header.number("<I"), header.number("<Q")
    if kind not in _SCALARS and kind != _STRING:
        raise header.bad(f"key {quote(key)} has an array of type {kind}, expected numbers or strings")
    n_item_bytes = 8 if kind == _STRING else struct.calcsize(_SCALARS[kind])
    header.check_left(count * n_item_bytes)
    if count <= _MAX_LISTED:
        return [_read_item(header, key, kind) for _ in range(count)]
    digest = hashlib.sha256(struct.pack("<IQ", kind, count))
    if kind == _STRING:
        header.hash_strings(count, digest)
    else:
        header.hash(count * n_item_bytes, digest)
    return f"sha256:{digest.hexdigest()[:32]} ({count:,} values)"


def _shorten(value: float) -> float:
    # 1e-05 as float32 is 9.999999747378752e-06 as float64: the shortest decimal that is the same float32 is
    # what its author wrote.
    if not math.isfinite(value):
        return value
    stored = struct.pack("<f", value)
    decimals = (float(f"{value:.{n_digits}g}") for n_digits in range(6, 9))
    return next((d for d in decimals if abs(d) < 3.4e38 and struct.pack("<f", d) == stored), value)


def _read_entry(header: _Header, alignment: int) -> tuple[TensorSpec, int]:
    name = header.text("tensor name")

    def bad(finding: str) -> BadModelError:
        return header.bad(f"tensor {quote(name)} {finding}")

    n_axes = header.number("<I")
    if n_axes > MAX_AXES:
        raise bad(f"has {n_axes} axes, expected at most {MAX_AXES}")
    axes = struct.unpack(f"<{n_axes}Q", header.take(8 * n_axes))
    kind, offset = header.number("<I"), header.number("<Q")
    shape = axes[::-1]
    if count_elements(shape) is None:
        raise bad(f"has shape {quote(shape)}, expected axis lengths with a product below 2^63")
    dtype = _TYPES.get(kind)
    if dtype is None:
        raise bad(f"has type {kind}, expected one of {', '.join(map(str, _TYPES))}")
    if dtype not in DTYPE_BITS and (not shape or shape[-1] % BLOCKS[dtype][0]):
        raise bad(f"has shape {quote(shape)}, expected rows of whole blocks: multiples of {BLOCKS[dtype][0]}")
    if offset % alignment:
        raise bad(f"begins at {offset}, expected a multiple of {alignment}")
    return TensorSpec(name, dtype, shape), offset


def _check_places(entries: list[tuple[TensorSpec, int]], n_data_bytes: int, header: _Header) -> None:
    seen: set[str] = set()
    position = 0
    for spec, offset in sorted(entries, key=lambda entry: (entry[1], entry[0].nbytes)):
        where = f"tensor {quote(spec.name)}"
        if spec.name in seen:
            raise header.bad(f"{where} is there twice, expected once")
        if offset < position and spec.nbytes:
            raise header.bad(f"{where} overlaps the one before: begins at {offset}, expected at least {position}")
        if spec.nbytes and offset + spec.nbytes > n_data_bytes:
            n_needed, n_found = offset + spec.nbytes, max(n_data_bytes, 0)
            raise header.bad(f"{where} ends early, found {n_found} bytes of values, expected at least {n_needed}")
        seen.add(spec.name)
        position = max(position, offset + spec.nbytes)


def _make_dequantiser(dtype: str, where: str) -> Callable[[memoryview], memoryview]:
    import numpy as np

    if dtype == "Q1_0":
        return _dequantise_q1_0
    try:
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        kind = GGMLQuantizationType[dtype]
        dequantize(np.zeros((1, BLOCKS[dtype][1]), np.uint8), kind)
    except ImportError as err:
        raise BadModelError(
            f"{where} is quantised ({dtype}), and package gguf, which gives its values, is not installed",
            hint="pip install gguf",
        ) from err
    except (KeyError, NotImplementedError) as err:
        raise BadModelError(
            f"{where} is quantised ({dtype}), which the installed package gguf cannot read",
            hint="pip install --upgrade gguf",
        ) from err

    def dequantise(blocks: memoryview) -> memoryview:
        # Damaged scales are infinite or no number: that shows in the statistics, it needs no warning.
        with np.errstate(all="ignore"):
            values = dequantize(np.frombuffer(blocks, np.uint8).reshape(1, -1), kind)
        return np.ascontiguousarray(values, "<f4").reshape(-1).view(np.uint8).data

    return dequantise


def _dequantise_q1_0(blocks: memoryview) -> memoryview:
    # gguf-py knows the size of these blocks and not their meaning: one scale, then a bit per value, its sign.
    import numpy as np

    stored = np.frombuffer(blocks, np.uint8).reshape(-1, BLOCKS["Q1_0"][1])
    scales = stored[:, :2].copy().view("<f2").astype("<f4")
    is_positive = np.unpackbits(stored[:, 2:], axis=1, bitorder="little").astype(bool)
    return np.where(is_positive, scales, -scales).reshape(-1).view(np.uint8).data
