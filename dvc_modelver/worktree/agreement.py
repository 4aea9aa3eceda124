"""Does a metadata file say what the weights are? Its own words against pointer, tensor table and object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc_modelver.errors import BadMetadataError
from dvc_modelver.formats import Folder, Reader
from dvc_modelver.metadata import (
    ModelMetadata,
    TensorTable,
    describe_tensors,
    metadata_path,
    summarise,
    table_digest,
    table_path,
)
from dvc_modelver.progress import ProgressLine
from dvc_modelver.repository import Repository, TrackedModel
from dvc_modelver.store.folders import is_folder_oid
from dvc_modelver.store.pointers import Pointer
from dvc_modelver.views import View
from dvc_modelver.worktree.describe import OPAQUE, open_model

_STATISTICS = ("norm", "mean", "std", "min", "max", "zeros", "nonfinite", "sketch")


@dataclass(frozen=True)
class Contradiction:
    """One thing that a metadata file says, and that is not so.

    Attributes:
        path: The model.
        field: What of it: ``model.bytes``, or a tensor's name.
        said: What the file says.
        found: What is so.
        source: Where that was found: ``pointer``, ``tensor table``, ``object``.
    """

    path: str
    field: str
    said: Any
    found: Any
    source: str

    @property
    def line(self) -> str:
        """Say it in one line."""
        is_fact = self.field.startswith("model.")
        where = metadata_path(self.path) if is_fact else table_path(self.path)
        field = self.field.removeprefix("model.")
        return f"{where}: {field} is {_short(self.said)}, the {self.source} has {_short(self.found)}"


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 100 else text[:97] + "..."


def find_contradictions(
    repo: Repository, view: View, model: TrackedModel, *, deep: bool = False
) -> Iterator[Contradiction]:
    """Give what a model's metadata and tensor table say that its weights contradict, each field once.

    The files are compared with each other and with the pointer, and with the header of the object where it is in the
    cache; nothing is fetched.

    Args:
        repo: The repository.
        view: Where the files are read from: the work tree, the index, a commit.
        model: One of that view's.
        deep: Read the object, too: its sha256, and the values' digests and statistics.

    Raises:
        ObjectCorrupt: With `deep`, the cache's bytes are not what their name says.
    """
    if model.metadata is not None and model.metadata.pending is None:
        named: set[str] = set()
        for one in _iter_contradictions(repo, view, model.metadata, model.pointer, deep=deep):
            if one.field not in named:
                yield one
            named.add(one.field)


def _iter_contradictions(
    repo: Repository, view: View, metadata: ModelMetadata, pointer: Pointer, *, deep: bool
) -> Iterator[Contradiction]:
    path, facts = pointer.path, metadata.model
    if pointer.md5 != metadata.md5:
        yield Contradiction(path, "model.md5", metadata.md5, pointer.md5, "pointer")
        return
    if pointer.size is not None and pointer.size != facts.bytes_:
        yield Contradiction(path, "model.bytes", facts.bytes_, pointer.size, "pointer")
    content = view.read(table_path(path))
    try:
        table = TensorTable.parse(content, table_path(path)) if content is not None else None
    except BadMetadataError as err:
        yield Contradiction(path, "tensor table", "one", str(err), "file")
        table = None
    if not metadata.is_table(content):
        found = "nothing" if content is None else table_digest(content)
        yield Contradiction(path, "model.tensors_digest", facts.tensors_digest, found, "tensor table")
    if table is not None:
        yield from _against_table(metadata, path, table)
    yield from _against_object(repo, metadata, pointer, table, deep=deep)


def _against_table(metadata: ModelMetadata, path: str, table: TensorTable) -> Iterator[Contradiction]:
    facts = metadata.model
    if table.md5 != facts.md5:
        yield Contradiction(path, "model.md5", facts.md5, table.md5, "tensor table")
    for name, value in summarise(table.rows).items():
        if getattr(facts, name) != value:
            yield Contradiction(path, f"model.{name}", getattr(facts, name), value, "tensor table")


def _against_object(
    repo: Repository, metadata: ModelMetadata, pointer: Pointer, table: TensorTable | None, *, deep: bool
) -> Iterator[Contradiction]:
    path, facts, cache = pointer.path, metadata.model, repo.cache(pointer.file)
    if not cache.has(facts.md5, legacy=pointer.legacy):
        return
    is_folder = is_folder_oid(facts.md5)
    if is_folder and pointer.legacy:
        return  # DVC's older layout of folders is not opened
    stored: Path | Folder
    stored = cache.open_folder(facts.md5) if is_folder else cache.path_of(facts.md5, legacy=pointer.legacy)
    if isinstance(stored, Path) and stored.stat().st_size != facts.bytes_ and not pointer.legacy:
        yield Contradiction(path, "model.bytes", facts.bytes_, stored.stat().st_size, "object")
    if deep:
        with ProgressLine(f"hashing {path}", facts.bytes_) as progress:
            hashes = cache.hash_object(facts.md5, legacy=pointer.legacy, progress=progress)
        if facts.sha256 is not None and hashes.sha256 and facts.sha256 != hashes.sha256:
            yield Contradiction(path, "model.sha256", facts.sha256, hashes.sha256, "object")
    with ExitStack() as stack:
        reader, _ = open_model(stored, path, None, stack)
        if reader is None:
            if facts.format != OPAQUE:
                yield Contradiction(path, "model.format", facts.format, "no format that can be read", "object")
            return
        yield from _against_header(metadata, path, table, reader)
        if deep and table is not None:
            yield from _against_values(path, table, reader, facts.bytes_)


def _against_header(
    metadata: ModelMetadata, path: str, table: TensorTable | None, reader: Reader
) -> Iterator[Contradiction]:
    facts = metadata.model
    if table is not None:
        rows = {row.name: _tensor(row.dtype, row.shape) for row in table.rows}
        specs = {spec.name: _tensor(spec.dtype, spec.shape) for spec in reader.specs}
        for name in sorted(rows.keys() | specs.keys()):
            if rows.get(name) != specs.get(name):
                yield Contradiction(path, f"tensor {name}", rows.get(name), specs.get(name), "object")
                return  # one names the file; there may be thousands
    own = [spec for spec in reader.specs if spec.role != "optimizer"]
    found: dict[str, Any] = {
        "format": reader.format, "framework": reader.framework,
        "parameters": sum(spec.numel for spec in own), "n_tensors": len(own),
        "dtypes": dict(sorted(Counter(spec.dtype for spec in own).items())),
    }  # fmt: skip
    for name, value in found.items():
        if getattr(facts, name) != value and not (name == "framework" and value is None):
            yield Contradiction(path, f"model.{name}", getattr(facts, name), value, "object")
    if facts.tensors_digest is None:
        yield Contradiction(path, "model.tensors_digest", None, f"{len(reader.specs)} tensors", "object")


def _tensor(dtype: str, shape: Sequence[int]) -> str:
    return f"{dtype} {'x'.join(map(str, shape)) or 'scalar'}"


def _against_values(path: str, table: TensorTable, reader: Reader, size: int) -> Iterator[Contradiction]:
    with ProgressLine(f"reading {path}", size) as progress:
        measured = {row.name: row for row in describe_tensors(reader, table.md5, progress=progress).rows}
    for row in table.rows:
        real = measured.get(row.name)
        if real is None:
            continue
        if real.digest != row.digest:
            yield Contradiction(path, f"digest of {row.name}", row.digest, real.digest, "object")
            return
        for name in _STATISTICS:
            if not _is_same(getattr(row, name), getattr(real, name)):
                field = f"{name} of {row.name}"
                yield Contradiction(path, field, getattr(row, name), getattr(real, name), "object")
                return


def _is_same(said: Any, found: Any) -> bool:
    """Whether two statistics are one: the last of nine digits may differ between processors."""
    if isinstance(said, float) or (isinstance(found, float) and isinstance(said, int)):
        return found is not None and abs(said - found) <= 1e-7 * max(abs(said), abs(found), 1e-30)
    return bool(said == found)
