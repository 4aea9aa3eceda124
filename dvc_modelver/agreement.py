"""Whether a metadata file says what its tensor table, its pointer and its weights say: someone may have edited it."""

from __future__ import annotations

from collections.abc import Iterator

from dvc_modelver.errors import BadMetadataError
from dvc_modelver.formats import Reader
from dvc_modelver.metadata import ModelMetadata, TensorTable, metadata_path, summarise, table_digest, table_path
from dvc_modelver.store.pointers import Pointer


def find_contradictions(metadata: ModelMetadata, table: bytes | None, pointer: Pointer | None) -> list[str]:
    """Give one line for each thing in which a metadata file contradicts what lies beside it in Git.

    Args:
        metadata: What the file says.
        table: The tensor table; None where there is none.
        pointer: What names the weights; None where nothing does.
    """
    return [f"{metadata_path(metadata.model.path)}: {line}" for line in _iter_lines(metadata, table, pointer)]


def _iter_lines(metadata: ModelMetadata, table: bytes | None, pointer: Pointer | None) -> Iterator[str]:
    facts = metadata.model
    if pointer is None:
        yield f"metadata of {facts.md5[:8]}, and no pointer"
    elif pointer.md5 != facts.md5:
        yield f"md5 is {facts.md5[:8]}, the pointer's is {(pointer.md5 or '?')[:8]}"
    elif pointer.size is not None and pointer.size != facts.bytes_ and not pointer.is_folder:
        yield f"bytes is {facts.bytes_}, the pointer's size is {pointer.size}"
    if table is None:
        if facts.tensors_digest is not None:
            yield f"there is no {table_path(facts.path)}, whose digest it has"
        return
    if facts.tensors_digest != table_digest(table):
        yield f"tensors_digest is not that of {table_path(facts.path)}"
    try:
        found = TensorTable.parse(table, table_path(facts.path))
    except BadMetadataError as err:
        yield str(err)
        return
    if found.md5 != facts.md5:
        yield f"md5 is {facts.md5[:8]}, the tensor table is of {found.md5[:8]}"
    for key, value in summarise(found.rows).items():
        if getattr(facts, key) != value:
            yield f"{key} is {_short(getattr(facts, key))}, the tensor table has {_short(value)}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def find_contradictions_of_weights(metadata: ModelMetadata, table: TensorTable, reader: Reader) -> list[str]:
    """Give one line for each thing in which a tensor table contradicts the header of the weights; no value is read.

    Args:
        metadata: The metadata of the version, for its path and format.
        table: Its tensor table.
        reader: The open weights.
    """
    where = table_path(metadata.model.path)
    lines = []
    if metadata.model.format != reader.format:
        lines.append(
            f"{metadata_path(metadata.model.path)}: format is {metadata.model.format}, the weights are {reader.format}"
        )
    said = {row.name: (row.dtype, tuple(row.shape)) for row in table.rows}
    real = {spec.name: (spec.dtype, tuple(spec.shape)) for spec in reader.specs}
    for name in sorted(said.keys() | real.keys()):
        if said.get(name) != real.get(name):
            lines.append(f"{where}: {name} is {_tensor(said.get(name))}, in the weights {_tensor(real.get(name))}")
    return lines


def _tensor(found: tuple[str, tuple[int, ...]] | None) -> str:
    return "not there" if found is None else f"{found[0]} {'x'.join(map(str, found[1])) or 'scalar'}"
