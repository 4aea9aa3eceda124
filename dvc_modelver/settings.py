"""``.modelver.toml``: what a repository's owners decided. Nothing in it can name a program to run."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from dvc_modelver.errors import BadMetadataError
from dvc_modelver.policy import Policy, parse_policies
from dvc_modelver.strategy import Rule, Rules, Strategy, parse_strategy

SETTINGS_FILE = ".modelver.toml"
GATE_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".keras", ".onnx", ".gguf", ".tflite")
"""Suffixes that only model weights have: ``git add`` turns such files into pointers without being asked."""
WEIGHT_SUFFIXES = (*GATE_SUFFIXES, ".npz", ".h5", ".hdf5", ".bin", ".pkl", ".joblib")
"""Suffixes that weights have, the last six not they alone."""
RAW_SCAN_SUFFIXES = (*WEIGHT_SUFFIXES, ".dill", ".mar", ".nemo", ".npy", ".p", ".pb", ".pickle")
"""Suffixes of files that a commit is asked about even where they go into Git themselves."""


@dataclass(frozen=True)
class Settings:
    """The settings of one repository; every field has a default.

    Attributes:
        include: Patterns of further files that are models (``weights/*.bin``), like ``.gitignore`` ones.
        exclude: Patterns of files that are never models.
        metrics: Files whose values are recorded as metrics of a new version.
        params: Files whose values are recorded as hyper-parameters of a new version.
        describe_max_bytes: Larger models are described at commit, not while Git looks at the work tree.
        fetch_max_bytes: Larger objects are not fetched by a checkout; the command to run is printed.
        raw_max_bytes: Larger raw Git blobs are refused by ``check`` and ``git push``, of files that are models by
            `GATE_SUFFIXES` or `include`; of other suffixes ``git commit`` names them.
        trailer: Write a ``Model-Change:`` trailer for each model into the message of a commit that changes it.
        strict: Refuse missing or stale metadata in every pushed commit, not only at the tip.
        refuse: Which new models a commit refuses for what they would run when they are loaded: ``dangerous`` ones,
            ``unknown`` ones too, or ``never`` any.
        allow: Names that the owners have read: a scan takes them for safe (``my_package.layers.Attention``).
        merge: What decides where both sides of a merge changed a tensor, of all models; see `merge_rules`.
        policies: What a version must satisfy before it may hold a stage.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    describe_max_bytes: int = 1 << 30
    fetch_max_bytes: int = 1 << 30
    raw_max_bytes: int = 10 << 20
    trailer: bool = False
    strict: bool = False
    refuse: str = "dangerous"
    allow: tuple[str, ...] = ()
    merge: Rules = field(default_factory=Rules)
    policies: tuple[Policy, ...] = ()
    unknown: tuple[str, ...] = field(default=())

    def is_gated(self, path: str) -> bool:
        """Whether ``git add`` of raw weights at `path` becomes a pointer."""
        return self._matches(path, (*("*" + s for s in GATE_SUFFIXES), *self.include))

    def is_model(self, path: str, reader_suffixes: Iterable[str]) -> bool:
        """Whether a DVC output at `path` counts as a model: gated, or of a format that a reader knows."""
        patterns = (*("*" + s for s in GATE_SUFFIXES), *("*" + s for s in reader_suffixes), *self.include)
        return self._matches(path, patterns)

    def is_included(self, path: str) -> bool:
        """Whether the owners named `path` a model themselves."""
        return self._matches(path, self.include)

    def merge_rules(self, path: str) -> Rules:
        """Give the strategies for merging the model at `path`."""
        return Rules(self.merge.default, tuple(rule for rule in self.merge.rules if _match(path, rule.path)))

    def _matches(self, path: str, patterns: Iterable[str]) -> bool:
        return any(_match(path, p) for p in patterns) and not any(_match(path, p) for p in self.exclude)


def _match(path: str, pattern: str) -> bool:
    """Match like a line of ``.gitignore``: without a slash against the name, else against the whole path."""
    if pattern.endswith("/"):
        return path.startswith(pattern.lstrip("/"))
    if "/" not in pattern:
        return fnmatch.fnmatchcase(PurePosixPath(path).name, pattern)
    return fnmatch.fnmatchcase(path, pattern.lstrip("/").replace("**/", "*"))


_PLACES = {
    ("models", "include"): "include",
    ("models", "exclude"): "exclude",
    ("training", "metrics"): "metrics",
    ("training", "params"): "params",
    ("limits", "describe_max_bytes"): "describe_max_bytes",
    ("limits", "fetch_max_bytes"): "fetch_max_bytes",
    ("limits", "raw_max_bytes"): "raw_max_bytes",
    ("commit", "trailer"): "trailer",
    ("push", "strict"): "strict",
    ("security", "refuse"): "refuse",
    ("security", "allow"): "allow",
}
_CHOICES = {"refuse": ("dangerous", "unknown", "never")}


def parse_settings(text: str, where: str = SETTINGS_FILE) -> Settings:
    """Read the text of a settings file.

    Raises:
        BadMetadataError: Not TOML, or a value of another type than the setting has.
    """
    import tomllib  # most repositories have no such file

    try:
        return _read(tomllib.loads(text), where)
    except tomllib.TOMLDecodeError as err:
        raise BadMetadataError(f"{where}: not TOML ({err})", hint=f"edit {SETTINGS_FILE}") from err
    except BadMetadataError as err:
        raise BadMetadataError(str(err), hint=err.hint or f"edit {SETTINGS_FILE}") from err


def _read(data: Mapping[str, Any], where: str) -> Settings:
    kinds = {f.name: str(f.type) for f in fields(Settings)}
    values: dict[str, Any] = {}
    unknown = []
    for section, content in data.items():
        if section == "policy":
            values["policies"] = parse_policies(content, f"{where}: policy")
            unknown += [f"policy.{key}" for policy in values["policies"] for key in policy.unknown]
            continue
        if not isinstance(content, Mapping):
            unknown.append(section)
            continue
        if section == "merge":
            values["merge"] = _merge_rules(content, f"{where}: merge", unknown)
            continue
        for key, value in content.items():
            name = _PLACES.get((section, key))
            if name is None:
                unknown.append(f"{section}.{key}")
            elif name in _CHOICES:
                values[name] = _chosen(value, _CHOICES[name], f"{where}: {section}.{key}")
            else:
                values[name] = _checked(value, kinds[name], f"{where}: {section}.{key}")
    return Settings(**values, unknown=tuple(unknown))


def unknown_hint(name: str) -> str:
    """Give a hint for an unknown setting: the nearest that there is."""
    import difflib

    known = [".".join(place) for place in _PLACES] + ["merge.strategy", "merge.rule", "policy"]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}? edit {SETTINGS_FILE}" if close else f"edit {SETTINGS_FILE}"


def _checked(value: Any, kind: str, where: str) -> Any:
    if kind.startswith("tuple"):
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise BadMetadataError(f"{where} is {value!r}, expected a list of strings")
        return tuple(value)
    if kind == "bool":
        if not isinstance(value, bool):
            raise BadMetadataError(f"{where} is {value!r}, expected true or false")
        return value
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadMetadataError(f"{where} is {value!r}, expected a number of bytes")
    return value


def _merge_rules(content: Mapping[str, Any], where: str, unknown: list[str]) -> Rules:
    unknown += [f"merge.{key}" for key in content if key not in ("strategy", "rule")]
    default = _strategy(content["strategy"], f"{where}.strategy") if "strategy" in content else Strategy()
    tables = content.get("rule", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise BadMetadataError(f"{where}.rule is {tables!r}, expected tables [[merge.rule]]")
    rules = []
    for n, table in enumerate(tables, 1):
        at = f"{where}.rule {n}"
        unknown += [f"merge.rule.{key}" for key in table if key not in ("path", "tensors", "strategy")]
        patterns = {key: table.get(key, "*") for key in ("path", "tensors")}
        for key, pattern in patterns.items():
            if not isinstance(pattern, str):
                raise BadMetadataError(f"{at}: {key} is {pattern!r}, expected a pattern")
        if "strategy" not in table:
            found = [key for key in table if key not in patterns]
            raise BadMetadataError(f"{at}: strategy is missing" + (f", found {', '.join(found)}" if found else ""))
        rules.append(Rule(_strategy(table["strategy"], f"{at}: strategy"), **patterns))
    return Rules(default, tuple(rules))


def _strategy(value: Any, where: str) -> Strategy:
    if not isinstance(value, str):
        raise BadMetadataError(f"{where} is {value!r}, expected a string")
    return parse_strategy(value, where)


def _chosen(value: Any, choices: tuple[str, ...], where: str) -> str:
    if value not in choices:
        raise BadMetadataError(f"{where} is {value!r}, expected one of {', '.join(choices)}")
    return str(value)


def read_settings(top: Path) -> Settings:
    """Read a work tree's ``.modelver.toml``; the defaults where there is none."""
    try:
        return parse_settings((top / SETTINGS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Settings()
    except (UnicodeDecodeError, OSError) as err:
        raise BadMetadataError(f"{SETTINGS_FILE}: cannot be read ({err})") from err
