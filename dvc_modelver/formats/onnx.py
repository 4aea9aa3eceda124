"""ONNX: one protocol buffer with graph and weights, or weights in files beside it.

Initialisers are listed under their own names, also those of subgraphs; so are large constants and large attributes
(under the name of the value or ``<node>.<attribute>``), which is where models from scikit-learn keep their weights.
An integer initialiser that feeds a DequantizeLinear, and nothing else, is a quantised tensor.

Source: https://github.com/onnx/onnx, ``onnx/onnx.proto``, ``docs/ExternalData.md``, ``docs/Operators.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import (
    Extent,
    FileReader,
    Folder,
    LocalFolder,
    ended_early,
    flatten,
    measure,
    quote,
    read_exactly,
    rechunk,
)
from dvc_modelver.formats.onnx_graph import GRAPH_FIELDS, MODEL_FIELDS, Dequantised, Model, read_model
from dvc_modelver.formats.onnx_tensors import NARROW, Stored, iter_typed
from dvc_modelver.formats.protobuf import BYTES, VARINT, Walker
from dvc_modelver.formats.quantised import QUANTISED, Affine, iter_dequantised, iter_widened, read_reals
from dvc_modelver.tensors import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT = "onnx"
SUFFIXES = (".onnx",)
MAX_SCALES = 1 << 20

_FRAMEWORKS = {"pytorch": "pytorch", "tf2onnx": "tensorflow", "skl2onnx": "sklearn"}
_NUMBERS = {"F32": "<f4", "BF16": "<f4", "F16": "<f2", "I8": "<i1", "U8": "<u1", "I16": "<i2", "I32": "<i4"}
_PIECE = 1 << 18


def matches(file: BinaryIO) -> bool:
    """Tell whether a file is a ModelProto: its version first, known fields only, one graph, and no byte left over.

    ONNX has no signature; a file that was cut, or whose graph does not begin as one, is not recognised.
    """
    n_bytes = measure(file)
    if n_bytes < 4 or read_exactly(file, 0, 1, FORMAT) != b"\x08":
        return False
    walker = Walker(file, n_bytes, FORMAT)
    graph = None
    try:
        for i, item in enumerate(walker.fields(0, n_bytes)):
            is_version = item.number == 1 and item.wire == VARINT and 0 < item.value < 1 << 16
            if MODEL_FIELDS.get(item.number) != item.wire or (i == 0 and not is_version):
                return False
            if item.number == 7:
                if graph is not None:
                    return False
                graph = item
        if graph is None:
            return False
        first = next(walker.fields(graph.start, graph.end), None)
    except BadModelError:
        return False
    return first is not None and first.number in GRAPH_FIELDS and first.wire == BYTES


def open_file(source: Path | BinaryIO, name: str, folder: Folder | None = None) -> OnnxReader:
    """Open a file of this format; values that lie beside it are read from `folder`, by default its own one."""
    return OnnxReader(source, name, folder)


class OnnxReader(FileReader):
    """Reads an ONNX model; opening it reads the graph, and of the weights only where they lie.

    Args:
        source: A path, or a seekable binary file object.
        name: How errors call the file.
        folder: The files beside it; the path's own folder where there is one.

    Raises:
        BadModelError: It breaks the rules of ONNX, or keeps values in a file that is not inside its folder.
    """

    format = FORMAT

    def __init__(self, source: Path | BinaryIO, name: str = "", folder: Folder | None = None) -> None:
        super().__init__(source, name)
        self._folder = LocalFolder(source.parent) if folder is None and isinstance(source, Path) else folder
        try:
            self._n_bytes = measure(self._file)
            model = read_model(Walker(self._file, self._n_bytes, self.name), self._n_bytes)
            self._read(model)
        except BaseException:
            self.close()
            raise

    def iter_buffers(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give a tensor's values; see `Reader`."""
        stored = self._stored[spec.name]
        if stored.field or stored.data_type in NARROW:
            yield from rechunk(self._iter_decoded(stored), n_bytes)
        else:
            yield from self._iter_raw(stored, n_bytes)

    def iter_values(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give a tensor's values, those behind DequantizeLinear as it computes them; see `Reader`."""
        node = self._dequantised.get(spec.name)
        if node is None:
            yield from self.iter_buffers(spec, n_bytes)
            return
        integers = self.iter_buffers(spec, _PIECE)
        yield from rechunk(iter_dequantised(integers, spec, self._read_affine(node, spec)), n_bytes)

    def find_extent(self, spec: TensorSpec) -> Extent | None:
        """Give where a tensor's values lie; see `FileReader`."""
        stored = self._stored[spec.name]
        if stored.field or stored.location or stored.data_type in NARROW or spec.name in self._dequantised:
            return None
        return Extent(self._file, stored.start, stored.end)

    def _read(self, model: Model) -> None:
        self.framework = _FRAMEWORKS.get(model.producer)
        external = self._check_files(model)
        self._parameters = {**model.constants, **model.tensors}
        self._dequantised = _find_dequantised(model, self._parameters)
        specs: dict[str, TensorSpec] = {}
        tied: dict[str, str] = {}
        self._stored: dict[str, Stored] = {}
        seen: dict[tuple[object, ...], str] = {}
        for name in sorted(model.tensors):
            stored = model.tensors[name]
            dtype = QUANTISED[stored.dtype] if name in self._dequantised else stored.dtype
            place = (stored.location, stored.start, stored.end, dtype, stored.data_type, stored.shape)
            first = seen.setdefault(place, name) if stored.location and stored.start < stored.end else name
            if first != name:
                tied[name] = first
                continue
            specs[name] = TensorSpec(name, dtype, stored.shape)
            self._stored[name] = stored
        self.specs = tuple(specs.values())
        narrow = {name: NARROW[s.data_type][0] for name, s in self._stored.items() if s.data_type in NARROW}
        facts = {**model.facts, "packed": narrow, "external": external, "tied": tied}
        self.structure = flatten({name: fact for name, fact in facts.items() if fact != {}})

    def _check_files(self, model: Model) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for name, stored in model.tensors.items():
            if not stored.location:
                continue
            where = f"{self.name}: tensor {quote(name)}"
            if self._folder is None:
                raise BadModelError(
                    f"{where} lies in the file {quote(stored.location)}, expected all values in one file",
                    hint="track the folder that holds both",
                )
            if stored.location not in sizes:
                with self._folder.open(stored.location) as file:
                    sizes[stored.location] = measure(file)
            if stored.end > sizes[stored.location]:
                raise ended_early(f"{where} in {quote(stored.location)}", sizes[stored.location], stored.end)
        return sizes

    def _iter_raw(self, stored: Stored, n_bytes: int) -> Iterator[memoryview]:
        what = f"tensor {quote(stored.name)}"
        with ExitStack() as stack:
            file = self._file
            if stored.location:
                assert self._folder is not None
                file = stack.enter_context(self._folder.open(stored.location))
            yield from self._iter_span(stored.start, stored.end, n_bytes, what, file)

    def _iter_decoded(self, stored: Stored) -> Iterator[memoryview]:
        where = f"{self.name}: tensor {quote(stored.name)}"
        if stored.field:
            walker = Walker(self._file, self._n_bytes, where)
            packed: Iterator[memoryview] = (values.data for values in iter_typed(walker, stored, where))
        else:
            packed = self._iter_raw(stored, _PIECE)
        if stored.data_type not in NARROW:
            yield from packed
            return
        yield from iter_widened(packed, NARROW[stored.data_type][1], stored.dtype == "I8", stored.numel)

    def _read_affine(self, node: Dequantised, spec: TensorSpec) -> Affine:
        import numpy as np

        scale = self._read_small(node.scale)
        zero_point = self._read_small(node.zero_point) if node.zero_point else np.zeros(len(scale))
        axis = node.axis + len(spec.shape) if node.axis < 0 else node.axis
        return Affine(scale, zero_point.astype(np.int64), axis)

    def _read_small(self, name: str) -> NDArray[np.float64]:
        import numpy as np

        stored = self._parameters[name]
        whole = (
            self._iter_decoded(stored) if stored.field or stored.data_type in NARROW else self._iter_raw(stored, _PIECE)
        )
        data = b"".join(bytes(piece) for piece in whole)
        if stored.dtype == "BF16":
            data = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).tobytes()
        return read_reals(data, _NUMBERS[stored.dtype])


def _find_dequantised(model: Model, parameters: Mapping[str, Stored]) -> dict[str, Dequantised]:
    """Give the node of each quantised tensor: integers that feed it alone, one scale per tensor or per axis index."""
    found = {}
    for node in model.dequantised:
        x, scale = model.tensors.get(node.x), parameters.get(node.scale)
        zero_point = parameters.get(node.zero_point) if node.zero_point else None
        if x is None or scale is None or node.x not in model.initializers or model.n_uses[node.x] != 1:
            continue
        if node.zero_point and (zero_point is None or (zero_point.dtype, zero_point.numel) != (x.dtype, scale.numel)):
            continue
        if x.dtype not in QUANTISED or scale.dtype not in ("F32", "F16", "BF16") or node.block_size:
            continue
        axis = node.axis + len(x.shape) if node.axis < 0 else node.axis
        is_per_axis = len(scale.shape) == 1 and 0 <= axis < len(x.shape) and scale.shape[0] == x.shape[axis]
        if scale.numel == 1 or (is_per_axis and 0 < scale.numel <= MAX_SCALES):
            found[node.x] = node
    return found
