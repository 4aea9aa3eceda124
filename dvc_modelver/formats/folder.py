"""A folder as one model: a sharded or whole Hugging Face checkpoint, a diffusers pipeline, an MLflow model.

Every file that a reader knows gives its tensors, under the name they have there; those of a subfolder have its name in
front (``unet.conv_in.weight``). A file whose tensors are all there already is the same model in another container: it
is named in `structure` and not counted twice. JSON and YAML files become `structure`, any other file its digest.

Sources: the index of shards as ``huggingface_hub`` writes it (``serialization/_base.py``: ``weight_map`` from tensor to
file name); the layout of a diffusers pipeline (``model_index.json``); MLflow's ``MLmodel`` file.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, Self

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import (
    MAX_STRUCTURE,
    Extent,
    FileReader,
    Folder,
    Reader,
    Scalar,
    flatten,
    measure,
    quote,
    read_exactly,
)
from dvc_modelver.settings import WEIGHT_SUFFIXES
from dvc_modelver.tensors import TensorSpec, find_role

FORMAT = "folder"
MAX_FILES = 10_000
MAX_OPEN = 500
"""Files with tensors in one folder; each stays open while it is read."""
MAX_CONFIG_BYTES = 256 << 10
"""A larger JSON file (a tokenizer's vocabulary) is known by its digest."""
MAX_INDEX_BYTES = 64 << 20
MAX_HASHED_BYTES = 64 << 20
INDEX_SUFFIX = ".index.json"
GRAPH_FILE = "saved_model.pb"
MARKERS = ("config.json", "model_index.json", "adapter_config.json", "MLmodel", GRAPH_FILE)
"""Files that only a model's folder has at its top, besides shards and their indices."""
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.(safetensors|bin)$")

_FIRST = (".safetensors", ".bin", ".pt", ".pth")
"""Where several containers hold the same tensors, the first of these counts."""
_STATE = ("optimizer", "scheduler", "scaler", "rng_state", "random_states", "training_args")
"""Stems of what a trainer keeps to go on, beside the weights."""


def is_model_folder(names: Iterable[str]) -> bool:
    """Whether the files at the top of a folder are those of one model."""
    return any(
        name in MARKERS
        or name.endswith((".safetensors" + INDEX_SUFFIX, ".bin" + INDEX_SUFFIX))
        or _SHARD.search(name) is not None
        for name in names
    )


def holds_weights(names: Iterable[str]) -> bool:
    """Whether any of a folder's files has weights in it, by their names: TensorFlow's have no suffix of their own."""
    return any(
        name.endswith(WEIGHT_SUFFIXES) or posixpath.basename(name) == GRAPH_FILE or ".data-00000-of-" in name
        for name in names
    )


def check_shards(folder: Folder, name: str) -> None:
    """Check that the shards which a folder's indices name are there.

    Raises:
        BadModelError: One is missing, or an index is no JSON.
    """
    names = set(folder.names())
    for file_name in sorted(names):
        if file_name.endswith(INDEX_SUFFIX):
            _check_index(folder, name, file_name, names)


@dataclass(frozen=True)
class Part:
    """One file of a folder that has tensors.

    Attributes:
        file_name: Its path in the folder.
        reader: Open.
        file: What it reads.
        names: Of its tensors in the folder, by the names in the file.
    """

    file_name: str
    reader: Reader
    file: BinaryIO
    names: Mapping[str, str]


class FolderReader:
    """Reads all files of a folder as one model; opening it reads their headers.

    Args:
        folder: The files.
        name: How errors call the folder.

    Attributes:
        format: ``"folder"``.
        framework: Of the first file that says one.
        parts: The files that have its tensors.

    Raises:
        BadModelError: A file breaks its format's rules, a shard is missing, or there are too many files.
    """

    format = FORMAT

    def __init__(self, folder: Folder, name: str) -> None:
        self.name = name
        self._folder = folder
        self.parts: list[Part] = []
        self._places: dict[str, tuple[Reader, TensorSpec]] = {}
        self.framework: str | None = None
        self.structure: Mapping[str, Scalar] = {}
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def iter_buffers(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give a tensor's values as they are stored; see `Reader`."""
        reader, own = self._places[spec.name]
        return reader.iter_buffers(own, n_bytes)

    def find_extent(self, spec: TensorSpec) -> Extent | None:
        """Give where a tensor's values lie; see `FileReader`."""
        reader, own = self._places[spec.name]
        return reader.find_extent(own) if isinstance(reader, FileReader) else None

    def iter_values(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give a tensor's values as real numbers; see `Reader`."""
        reader, own = self._places[spec.name]
        return reader.iter_values(own, n_bytes)

    def close(self) -> None:
        """Close all files."""
        for part in self.parts:
            part.reader.close()
            part.file.close()
        self.parts.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> None:
        names = list(self._folder.names())
        if len(names) > MAX_FILES:
            raise BadModelError(f"{self.name}: {len(names)} files, expected at most {MAX_FILES} in a model's folder")
        facts: dict[str, Scalar] = {}
        for file_name in sorted(names, key=_order):
            if file_name.endswith(INDEX_SUFFIX):
                _check_index(self._folder, self.name, file_name, set(names))
            elif not self._take_tensors(file_name, facts):
                facts |= self._describe(file_name)
        self.specs = tuple(TensorSpec(full, own.dtype, own.shape) for full, (_, own) in sorted(self._places.items()))
        self.structure = _bounded(facts)

    def _take_tensors(self, file_name: str, facts: dict[str, Scalar]) -> bool:
        """Add a file's tensors; False where it is no model file, or holds the same tensors as those before."""
        from dvc_modelver.formats import open_reader

        file = self._folder.open(file_name)
        reader = None
        try:
            where = f"{self.name}/{file_name}"
            reader = open_reader(file, where, _Below(self._folder, posixpath.dirname(file_name)))
            if reader is None:
                return False
            named = {name_prefix(file_name) + spec.name: spec for spec in reader.specs}
            twice = named.keys() & self._places.keys()
            if twice and len(twice) == len(named):
                reader.close()
                reader = None
                return False
            if twice:
                named = {f"{file_name}/{name}" if name in twice else name: spec for name, spec in named.items()}
            if len(self.parts) >= MAX_OPEN:
                raise BadModelError(f"{self.name}: more than {MAX_OPEN} files with tensors, expected one model")
            self.parts.append(Part(file_name, reader, file, {spec.name: name for name, spec in named.items()}))
            self._places |= {name: (reader, spec) for name, spec in named.items()}
            self.framework = self.framework or reader.framework
            facts |= {f"{name_prefix(file_name)}{key}": value for key, value in reader.structure.items()}
            return True
        finally:
            if reader is None:
                file.close()

    def _describe(self, file_name: str) -> dict[str, Scalar]:
        """Give what is said of a file without tensors: its contents where it is a configuration, else its digest."""
        with self._folder.open(file_name) as file:
            n_bytes = measure(file)
            if n_bytes > MAX_HASHED_BYTES:
                return {f"file.{file_name}": f"{n_bytes:,} bytes"}
            data = read_exactly(file, 0, n_bytes, f"{self.name}/{file_name}")
        parsed = _parse_config(data, file_name) if n_bytes <= MAX_CONFIG_BYTES else None
        if parsed is not None:
            return flatten(parsed, posixpath.splitext(file_name)[0].replace("/", "."))
        return {f"file.{file_name}": f"sha256:{hashlib.sha256(data).hexdigest()[:32]} ({n_bytes:,} bytes)"}


def _check_index(folder: Folder, folder_name: str, file_name: str, names: set[str]) -> None:
    where = f"{folder_name}/{file_name}"
    weight_map = _parse_index(folder, where, file_name).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise BadModelError(f"{where}: weight_map is {quote(weight_map)}, expected file names by tensor")
    top = posixpath.dirname(file_name)
    missing = sorted({shard for shard in weight_map.values() if posixpath.join(top, shard) not in names})
    if missing:
        raise BadModelError(
            f"{where}: names the shard {quote(missing[0])}, which is not there",
            hint="wait until the program that writes the folder is done, or fetch it again",
        )


def _parse_index(folder: Folder, where: str, file_name: str) -> dict[str, Any]:
    with folder.open(file_name) as file:
        n_bytes = measure(file)
        text = read_exactly(file, 0, n_bytes, file_name) if n_bytes <= MAX_INDEX_BYTES else b""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as err:
        detail = quote(str(err).split("\n", 1)[0])
        raise BadModelError(f"{where}: not JSON ({detail}), expected an object") from err
    return found if isinstance(found, dict) else {}


class _Below:
    """A subfolder of a folder."""

    def __init__(self, folder: Folder, top: str) -> None:
        self._folder, self._top = folder, f"{top}/" if top else ""

    def names(self) -> list[str]:
        return [name.removeprefix(self._top) for name in self._folder.names() if name.startswith(self._top)]

    def open(self, name: str) -> BinaryIO:
        full = posixpath.normpath(self._top + name)
        if name.startswith("/") or not full.startswith(self._top):
            raise BadModelError(
                f"{self._top or 'folder'}: names the file {quote(name)}, expected one inside this folder"
            )
        return self._folder.open(full)


def _bounded(facts: dict[str, Scalar]) -> dict[str, Scalar]:
    names = sorted(facts)
    if len(names) <= MAX_STRUCTURE:
        return {name: facts[name] for name in names}
    rest = hashlib.sha256(repr([(name, facts[name]) for name in names[MAX_STRUCTURE:]]).encode("utf-8", "replace"))
    return {name: facts[name] for name in names[:MAX_STRUCTURE]} | {"...": f"sha256:{rest.hexdigest()[:32]}"}


def _order(name: str) -> tuple[int, str]:
    suffix = posixpath.splitext(name)[1].lower()
    return (_FIRST.index(suffix) if suffix in _FIRST else len(_FIRST), name)


def name_prefix(file_name: str) -> str:
    """Give what stands before the names of a file's tensors."""
    folder, _, base = file_name.rpartition("/")
    prefix = f"{folder.replace('/', '.')}." if folder else ""
    stem = base.split(".", 1)[0]
    if stem.startswith(_STATE) and find_role(prefix) != "optimizer":
        return f"{prefix}optimizer." if stem == "optimizer" else f"{prefix}optimizer.{stem}."
    return prefix


def _parse_config(data: bytes, name: str) -> object:
    """Parse a configuration; None where it is none, or not what its name says."""
    if posixpath.basename(name) == "MLmodel":
        import yaml

        try:
            return yaml.safe_load(data)
        except (yaml.YAMLError, ValueError, RecursionError):
            return None
    try:
        found = json.loads(data) if name.endswith(".json") else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
