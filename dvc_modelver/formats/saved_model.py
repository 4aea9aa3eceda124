"""SavedModel folders of TensorFlow: ``saved_model.pb``, the graph, and ``variables/``, a checkpoint.

The graph is not compared node by node: its size and digest tell whether it changed, the signatures how it is called.

Source: ``tensorflow/core/protobuf/saved_model.proto`` and ``meta_graph.proto``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

from dvc_modelver.formats.base import FileReader, Folder, flatten, measure
from dvc_modelver.formats.protobuf import BYTES, Field, Walker
from dvc_modelver.formats.tensorflow import DTYPES, CheckpointReader
from dvc_modelver.tensors import TensorSpec

FORMAT = "saved-model"
GRAPH_FILE = "saved_model.pb"
INDEX_FILE = "variables/variables.index"
MAX_DIGESTED_BYTES = 16 << 20

_META_GRAPH = 2
_META_INFO, _SIGNATURE = 1, 5
_TAG, _VERSION = 4, 5
_INIT = "__saved_model_init_op"
_TYPES = {**DTYPES, 7: "string"}


def matches_folder(names: Sequence[str]) -> bool:
    """Tell whether the files of a folder are those of a SavedModel."""
    return GRAPH_FILE in names


def open_folder(folder: Folder, name: str) -> SavedModelReader:
    """Open a folder of this format.

    Args:
        folder: The files of the model.
        name: How errors call it.
    """
    return SavedModelReader(folder, name)


class SavedModelReader(FileReader):
    """Reads a SavedModel; opening it reads its graph (up to `MAX_DIGESTED_BYTES`) and the index of its variables.

    A model without variables has all values in its graph, and no tensors here.

    Args:
        folder: The files of the model.
        name: How errors call it.

    Raises:
        BadModelError: A file of it breaks its format's rules, or is missing.
    """

    format = FORMAT
    framework: str | None = "tensorflow"

    def __init__(self, folder: Folder, name: str) -> None:
        self._variables: CheckpointReader | None = None
        super().__init__(folder.open(GRAPH_FILE), name)
        self._owned = True
        try:
            graph = _describe_graph(Walker(self._file, measure(self._file), f"{name}: {GRAPH_FILE}"), self._file)
            if INDEX_FILE in folder.names():
                index = folder.open(INDEX_FILE)
                self._variables = CheckpointReader(index, f"{name}/{INDEX_FILE}", folder, owns=True)
            self.specs = self._variables.specs if self._variables else ()
            self.structure = {**flatten(graph), **(self._variables.structure if self._variables else {})}
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the files that were opened here."""
        super().close()
        if self._variables is not None:
            self._variables.close()

    def iter_buffers(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give a tensor's values; see `Reader`."""
        return cast(CheckpointReader, self._variables).iter_buffers(spec, n_bytes)


def _describe_graph(walker: Walker, file: Any) -> dict[str, object]:
    n_bytes = measure(file)
    facts: dict[str, object] = {"graph.bytes": n_bytes}
    if n_bytes <= MAX_DIGESTED_BYTES:
        facts["graph.digest"] = f"sha256:{hashlib.sha256(walker.read(0, n_bytes)).hexdigest()[:32]}"
    for top in _messages(walker, 0, n_bytes, _META_GRAPH):
        for field in walker.fields(top.start, top.end):
            if field.number == _META_INFO and field.wire == BYTES:
                info = list(walker.fields(field.start, field.end))
                facts["tags"] = [walker.text(f) for f in info if f.number == _TAG]
                facts["tensorflow"] = next((walker.text(f) for f in info if f.number == _VERSION), None)
            elif field.number == _SIGNATURE and field.wire == BYTES:
                key, value = _pair(walker, field)
                if value is not None and key != _INIT:
                    facts |= {f"signatures.{key}.{what}": said for what, said in _describe_signature(walker, value)}
    return facts


def _describe_signature(walker: Walker, signature: Field) -> Iterator[tuple[str, str]]:
    for field in walker.fields(signature.start, signature.end):
        if field.number in (1, 2) and field.wire == BYTES:
            key, value = _pair(walker, field)
            if value is not None:
                yield f"{'inputs' if field.number == 1 else 'outputs'}.{key}", _describe_tensor(walker, value)
        elif field.number == 3:
            yield "method", walker.text(field)


def _describe_tensor(walker: Walker, info: Field) -> str:
    dtype, shape = 0, "of any shape"
    for field in walker.fields(info.start, info.end):
        if field.number == 2 and field.wire != BYTES:
            dtype = field.value
        elif field.number == 3 and field.wire == BYTES:
            shape = _describe_shape(walker, field)
    return f"{_TYPES.get(dtype, f'type {dtype}')} {shape}"


def _describe_shape(walker: Walker, shape: Field) -> str:
    axes = []
    for field in walker.fields(shape.start, shape.end):
        if field.number == 3 and field.value:
            return "of any shape"
        if field.number == 2 and field.wire == BYTES:
            size = next((f.value for f in walker.fields(field.start, field.end) if f.number == 1), 0)
            axes.append("?" if size >= 1 << 63 else str(size))
    return f"[{', '.join(axes)}]"


def _pair(walker: Walker, entry: Field) -> tuple[str, Field | None]:
    """Give key and value of an entry of a map."""
    key, value = "", None
    for field in walker.fields(entry.start, entry.end):
        if field.number == 1:
            key = walker.text(field)
        elif field.number == 2 and field.wire == BYTES:
            value = field
    return key, value


def _messages(walker: Walker, begin: int, end: int, number: int) -> Iterator[Field]:
    return (field for field in walker.fields(begin, end) if field.number == number and field.wire == BYTES)
