"""TFLite: a FlatBuffer with graph and constant tensors, whose values may also lie behind it.

Integers with a scale are quantised tensors: int8, uint8, int16 and int32, per tensor and per axis. A name that comes
twice gets ``#2``. Tensors that share a buffer are listed each, since the converter stores equal constants once, which
says nothing about their being one parameter; only the same tensor in several subgraphs is listed once.

Source: ``tflite/schema/schema.fbs`` in https://github.com/tensorflow/tensorflow.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dvc_modelver.formats.base import Extent, FileReader, Folder, flatten, measure, quote, read_exactly, rechunk
from dvc_modelver.formats.flatbuffer import FlatBuffer
from dvc_modelver.formats.quantised import QUANTISED, Affine, iter_dequantised, iter_widened, read_reals
from dvc_modelver.formats.tflite_graph import NARROW, Constant, read_model
from dvc_modelver.tensors import TensorSpec

FORMAT = "tflite"
SUFFIXES = (".tflite",)
MAX_SCALES = 1 << 20

_HINT = "fetch the file again, or convert it again"
_PIECE = 1 << 18


def matches(file: BinaryIO) -> bool:
    """Tell whether a file has TFLite's identifier behind its first offset."""
    return measure(file) >= 8 and read_exactly(file, 4, 4, FORMAT) == b"TFL3"


def open_file(source: Path | BinaryIO, name: str, folder: Folder | None = None) -> TfliteReader:
    """Open a file of this format; it is whole without the files beside it."""
    return TfliteReader(source, name)


class TfliteReader(FileReader):
    """Reads a TFLite model; opening it reads the graph, and of the weights only where they lie.

    Args:
        source: A path, or a seekable binary file object.
        name: How errors call the file.

    Raises:
        BadModelError: It breaks the rules of FlatBuffers or of TFLite.
    """

    format = FORMAT
    framework: str | None = "tensorflow"

    def __init__(self, source: Path | BinaryIO, name: str = "") -> None:
        super().__init__(source, name)
        try:
            self._buffer = FlatBuffer(self._file, 0, measure(self._file), self.name, _HINT)
            if not matches(self._file):
                raise self._buffer.bad(4, "found no identifier, expected TFL3")
            model = read_model(self._buffer)
        except BaseException:
            self.close()
            raise
        self._constants = model.tensors
        self.specs = tuple(_describe(name, model.tensors[name]) for name in sorted(model.tensors))
        narrow = {name: NARROW[c.kind][0] for name, c in sorted(model.tensors.items()) if c.kind in NARROW}
        facts = {**model.facts, "packed": narrow}
        self.structure = flatten({name: fact for name, fact in facts.items() if fact not in ({}, "")})

    def iter_buffers(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give a tensor's values; see `Reader`."""
        constant = self._constants[spec.name]
        if constant.kind in NARROW:
            packed = self._iter_raw(spec.name, constant, _PIECE)
            widened = iter_widened(packed, NARROW[constant.kind][1], constant.dtype == "I8", spec.numel)
            yield from rechunk(widened, n_bytes)
        else:
            yield from self._iter_raw(spec.name, constant, n_bytes)

    def iter_values(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give a tensor's values, quantised ones as the interpreter dequantises them; see `Reader`."""
        if spec.dtype not in QUANTISED.values():
            yield from self.iter_buffers(spec, n_bytes)
            return
        affine = self._read_affine(self._constants[spec.name])
        yield from rechunk(iter_dequantised(self.iter_buffers(spec, _PIECE), spec, affine), n_bytes)

    def find_extent(self, spec: TensorSpec) -> Extent | None:
        """Give where a tensor's values lie; see `FileReader`."""
        constant = self._constants[spec.name]
        if constant.kind in NARROW or spec.dtype in QUANTISED.values():
            return None
        return Extent(self._file, constant.start, constant.end)

    def _iter_raw(self, name: str, constant: Constant, n_bytes: int) -> Iterator[memoryview]:
        return self._iter_span(constant.start, constant.end, n_bytes, f"tensor {quote(name)}")

    def _read_affine(self, constant: Constant) -> Affine:
        import numpy as np

        at, n = constant.scale
        scale = read_reals(read_exactly(self._file, at, 4 * n, self.name), "<f4")
        at, n_zero = constant.zero_point
        zero_point = np.frombuffer(read_exactly(self._file, at, 8 * n_zero, self.name), "<i8").astype(np.int64)
        return Affine(scale, np.resize(zero_point, n) if n_zero else np.zeros(n, np.int64), constant.axis)


def _describe(name: str, constant: Constant) -> TensorSpec:
    (_, n), (_, n_zero), axis, shape = constant.scale, constant.zero_point, constant.axis, constant.shape
    is_per_axis = 0 <= axis < len(shape) and n == shape[axis] and n <= MAX_SCALES
    is_quantised = constant.dtype in QUANTISED and n and n_zero in (0, 1, n) and (n == 1 or is_per_axis)
    return TensorSpec(name, QUANTISED[constant.dtype] if is_quantised else constant.dtype, shape)
