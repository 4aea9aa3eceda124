"""The metadata file and the tensor table that lie beside a model in Git.

Both are functions of the weights, of what training recorded and of the versions named as parents:
no clock, host or commit enters them. The layouts are described by the JSON Schemas in
``dvc_modelver/schemas``.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

from dvc_modelver.errors import BadMetadataError, word
from dvc_modelver.fingerprint.row import TensorRow

if TYPE_CHECKING:
    from dvc_modelver.formats.base import Reader

METADATA_SCHEMA = "modelver.metadata/1"
TABLE_SCHEMA = "modelver.tensors/1"
METADATA_SUFFIX = ".modelver.json"
TABLE_SUFFIX = ".modelver.tensors"
MAX_METADATA_BYTES = 16 << 20
MAX_TABLE_BYTES = 1 << 30
UPDATES = ("initial", "batch", "incremental", "fine-tune", "merge", "conversion", "rollback")

_MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")


def metadata_path(model_path: str) -> str:
    """Give the path of a model's metadata file, beside it."""
    return model_path + METADATA_SUFFIX


def table_path(model_path: str) -> str:
    """Give the path of a model's tensor table, beside it."""
    return model_path + TABLE_SUFFIX


def find_model_path(path: str) -> str | None:
    """Give the model that a metadata file or tensor table describes; None for any other path."""
    for suffix in (METADATA_SUFFIX, TABLE_SUFFIX):
        if path.endswith(suffix):
            return path.removesuffix(suffix)
    return None


@dataclass(frozen=True, kw_only=True)
class _Section:
    """One object of the metadata file; keys it does not know are kept and written back, last."""

    section: ClassVar[str]
    required: ClassVar[tuple[str, ...]] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: object, where: str) -> Self:
        if not isinstance(data, dict):
            raise BadMetadataError(f"{where}: {cls.section!r} is {_kind(data)}, expected an object")
        known = _known_fields(cls)  # type: ignore[arg-type] # mypy 2 takes no class for hashable
        values: dict[str, Any] = {}
        for key, value in data.items():
            if key in known:
                name, types, wanted, is_optional = known[key]
                if type(value) not in types and not (value is None and is_optional):
                    raise BadMetadataError(f"{where}: {cls.section}.{key} is {_kind(value)}, expected {wanted}")
                values[name] = tuple(value) if isinstance(value, list) else value
        for name in cls.required:
            if name not in values:
                raise BadMetadataError(f"{where}: {cls.section}.{name} is missing, expected as the schema says")
        return cls(**values, extra={k: v for k, v in data.items() if k not in known})

    def to_dict(self) -> dict[str, Any]:
        values = {_attribute(f.name): getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        out = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None}
        return out | dict(self.extra)


def _attribute(name: str) -> str:
    return name.rstrip("_")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number",
             bool: "true or false", type(None): "null"}  # fmt: skip
    return names.get(type(value), type(value).__name__)


_KINDS: tuple[tuple[str, tuple[type, ...], str], ...] = (
    ("tuple", (list,), "a list"),
    ("Mapping", (dict,), "an object"),
    ("str", (str,), "a string"),
    ("float", (int, float), "a number"),
    ("int", (int,), "an integer"),
)


@cache
def _known_fields(cls: type[_Section]) -> dict[str, tuple[str, tuple[type, ...], str, bool]]:
    """Give key -> (attribute, types of JSON values, what they are called, whether null stands for an absent one)."""
    found = {}
    for f in fields(cls):
        if f.name != "extra":
            types, wanted = next((types, wanted) for start, types, wanted in _KINDS if str(f.type).startswith(start))
            found[_attribute(f.name)] = (f.name, types, wanted, "None" in str(f.type))
    return found


@dataclass(frozen=True, kw_only=True)
class ModelFacts(_Section):
    """What the bytes are: ``model`` in the metadata file.

    Attributes:
        bytes_: Size of the file.
        md5: DVC's key of the object.
        sha256: What registries and hubs publish; absent for a folder.
        parameters: Number of elements of all tensors but optimiser state.
        parameters_digest: Equal for equal names, dtypes, shapes and values, whatever the container.
        tensors_digest: BLAKE3 of the tensor table file.
    """

    section = "model"
    required = ("name", "path", "format", "bytes_", "md5")
    name: str
    path: str
    format: str
    framework: str | None = None
    bytes_: int
    md5: str
    sha256: str | None = None
    parameters: int | None = None
    n_tensors: int | None = None
    dtypes: Mapping[str, int] | None = None
    parameters_digest: str | None = None
    tensors_digest: str | None = None

    def __post_init__(self) -> None:
        if not _MD5.fullmatch(self.md5):
            raise BadMetadataError(f"{self.path}: model.md5 is {self.md5!r}, expected 32 hex digits")


@dataclass(frozen=True, kw_only=True)
class VersionFacts(_Section):
    """Where the bytes stand in history: ``version`` in the metadata file.

    Attributes:
        number: 1 + the largest number among the parents.
        parents: md5 of each version this one was made from.
        update: One of `UPDATES`.
        declared_by: ``user``, ``pipeline`` or ``measured``.
    """

    section = "version"
    required = ("number",)
    number: int
    parents: tuple[str, ...] = ()
    update: str = "initial"
    declared_by: str = "measured"


@dataclass(frozen=True, kw_only=True)
class ChangeFacts(_Section):
    """How far the weights moved from the first parent: ``change`` in the metadata file.

    Attributes:
        from_: md5 of the version compared with.
        cosine: Cosine similarity of the parameters, in [-1, 1]; None where undefined.
        relative_l2: ``|new - old| / |old|``; None where undefined.
        tensors_changed: Tensors modified, added, removed or renamed.
    """

    section = "change"
    required = ("from_", "kind")
    from_: str
    kind: str
    cosine: float | None = None
    relative_l2: float | None = None
    tensors_changed: int | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingFacts(_Section):
    """What training recorded: ``training`` in the metadata file. What is unknown is absent."""

    section = "training"
    started: str | None = None
    finished: str | None = None
    duration_s: float | None = None
    framework: str | None = None
    packages: Mapping[str, str] | None = None
    code: Mapping[str, Any] | None = None
    stage: str | None = None
    command: str | None = None
    hyperparameters: Mapping[str, Any] | None = None
    metrics: Mapping[str, Any] | None = None
    data: tuple[Mapping[str, Any], ...] | None = None

    def merged_with(self, newer: TrainingFacts) -> TrainingFacts:
        """Give these facts with what `newer` knows in their place; values by name are joined, the newer winning."""
        known = {f.name: getattr(newer, f.name) for f in fields(newer) if getattr(newer, f.name) is not None}
        for name, value in known.items():
            old = getattr(self, name)
            if isinstance(value, dict) and isinstance(old, dict):
                known[name] = old | value
        return replace(self, **known)


@dataclass(frozen=True, kw_only=True)
class ModelMetadata:
    """One version's metadata file.

    Attributes:
        pending: Set while the weights are known to have changed but were not described yet (large
            files, and files still being written): the stamp of the file seen. Never committed.
    """

    model: ModelFacts
    version: VersionFacts
    change: ChangeFacts | None = None
    training: TrainingFacts = field(default_factory=TrainingFacts)
    pending: str | None = None
    schema: str = METADATA_SCHEMA
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def md5(self) -> str:
        """The object this describes."""
        return self.model.md5

    def is_table(self, table: bytes | None) -> bool:
        """Whether a tensor table (None for no file) is the one that belongs here; opaque models need none."""
        wanted = self.model.tensors_digest
        return wanted is None or (table is not None and table_digest(table) == wanted)

    @classmethod
    def parse(cls, text: bytes, where: str) -> ModelMetadata:
        """Read a metadata file.

        Raises:
            BadMetadataError: Not JSON, not this schema, or a field of another type; `where` is named.
        """
        data = _parse_json(text, where, MAX_METADATA_BYTES)
        if not isinstance(data, dict):
            raise BadMetadataError(f"{where}: found {_kind(data)}, expected an object")
        schema = data.get("schema")
        if not isinstance(schema, str) or not schema.startswith("modelver.metadata/"):
            raise BadMetadataError(f"{where}: schema is {schema!r}, expected {METADATA_SCHEMA!r}")
        if "model" not in data or "version" not in data:
            raise BadMetadataError(f"{where}: 'model' or 'version' is missing, expected both")
        known = {"schema", "model", "version", "change", "training", "pending"}
        return cls(
            schema=schema,
            model=ModelFacts.from_dict(data["model"], where),
            version=VersionFacts.from_dict(data["version"], where),
            change=ChangeFacts.from_dict(data["change"], where) if data.get("change") else None,
            training=TrainingFacts.from_dict(data.get("training", {}), where),
            pending=data.get("pending"),
            extra={k: v for k, v in data.items() if k not in known},
        )

    def to_dict(self) -> dict[str, Any]:
        """Give the document with its keys in the order of the contract."""
        out: dict[str, Any] = {
            "schema": self.schema,
            "model": self.model.to_dict(),
            "version": self.version.to_dict(),
        }
        if self.pending is not None:
            out["pending"] = self.pending
        if self.change is not None:
            out["change"] = self.change.to_dict()
            for key in ("cosine", "relative_l2"):
                out["change"].setdefault(key, None)
        training = self.training.to_dict()
        if training:
            out["training"] = training
        return out | dict(self.extra)

    def render(self) -> bytes:
        """Give the bytes of the file: UTF-8, two-space indent, ends in a newline.

        Raises:
            BadMetadataError: The file was written by a newer program, whose schema this one cannot write.
        """
        if self.schema != METADATA_SCHEMA:
            raise BadMetadataError(
                f"{self.model.path}{METADATA_SUFFIX}: schema {self.schema!r} is newer than {METADATA_SCHEMA!r}",
                hint="pip install --upgrade dvc-modelver",
            )
        return (json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


@dataclass(frozen=True)
class TensorTable:
    """The tensor table: one row per tensor, sorted by name.

    Attributes:
        md5: The object it describes.
        k: Values per sketch.
        structure: What else makes the model, by flat names: a configuration, a graph; see `Reader`.
    """

    md5: str
    k: int
    rows: tuple[TensorRow, ...]
    sketch: str = "RSCS-1"
    structure: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: bytes, where: str) -> TensorTable:
        """Read a tensor table (JSON Lines, a header line first).

        Raises:
            BadMetadataError: A line that is not JSON or lacks a field; `where` and the line are named.
        """
        lines = text.splitlines()
        if len(text) > MAX_TABLE_BYTES or not lines:
            raise BadMetadataError(f"{where}: {len(text)} bytes, expected a tensor table of 1 to {MAX_TABLE_BYTES}")
        header = _parse_json(lines[0], f"{where}:1", MAX_METADATA_BYTES)
        if not isinstance(header, dict) or not str(header.get("schema")).startswith("modelver.tensors/"):
            raise BadMetadataError(f"{where}:1: no {TABLE_SCHEMA!r} header, expected one")
        md5, k = header.get("md5"), header.get("k", 64)
        structure = header.get("structure", {})
        if not isinstance(md5, str) or not isinstance(k, int) or not isinstance(structure, dict):
            raise BadMetadataError(f"{where}:1: header is {header!r}, expected md5, k and an object as structure")
        rows = tuple(
            TensorRow.from_dict(_parse_json(line, f"{where}:{n}", MAX_METADATA_BYTES), f"{where}:{n}")
            for n, line in enumerate(lines[1:], 2)
        )
        return cls(md5, k, rows, str(header.get("sketch", "RSCS-1")), structure)

    def render(self) -> bytes:
        """Give the bytes of the file."""
        header: dict[str, Any] = {"schema": TABLE_SCHEMA, "md5": self.md5, "sketch": self.sketch, "k": self.k}
        if self.structure:
            header["structure"] = dict(sorted(self.structure.items()))
        lines = [header, *(row.to_dict() for row in self.rows)]
        dump = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
        return "".join(dump(line) + "\n" for line in lines).encode()


def _parse_json(text: bytes, where: str, limit: int) -> Any:
    if len(text) > limit:
        raise BadMetadataError(f"{where}: {len(text)} bytes, expected at most {limit}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as err:
        path = find_model_path(where.partition(":")[0])
        mend = f"modelver refresh {word(path) if path else 'PATH'}"
        if b"<<<<<<< " in text:
            hint = f"resolve the conflict, then: {mend}"
            raise BadMetadataError(f"{where}: found conflict markers, expected JSON", hint=hint) from err
        detail = str(err).splitlines()[0]
        raise BadMetadataError(f"{where}: not JSON ({detail})", hint=mend) from err


def describe_tensors(reader: Reader, md5: str, *, progress: Callable[[int], None] | None = None) -> TensorTable:
    """Fingerprint every tensor that `reader` offers.

    Args:
        reader: An open model file.
        md5: The object whose table this becomes.
        progress: Called with the number of bytes read since the last call.
    """
    from dvc_modelver.fingerprint import choose_k, fingerprint

    k = choose_k(len(reader.specs))
    return TensorTable(md5, k, tuple(fingerprint(reader, k=k, progress=progress)), structure=dict(reader.structure))


def summarise(rows: Iterable[TensorRow]) -> dict[str, Any]:
    """Give the fields of `ModelFacts` that follow from the tensor table."""
    from dvc_modelver.fingerprint.digest import parameters_digest

    own = [row for row in rows if row.role != "optimizer"]
    return {
        "parameters": sum(row.numel for row in own),
        "n_tensors": len(own),
        "dtypes": dict(sorted(Counter(row.dtype for row in own).items())),
        "parameters_digest": parameters_digest(own),
    }


def table_digest(table: bytes) -> str:
    """Give the digest of a rendered tensor table: ``blake3:`` and 64 hex digits."""
    from blake3 import blake3

    return "blake3:" + blake3(table).hexdigest()
