"""What a DVC pipeline and training's own files say of how a model was made."""

from __future__ import annotations

import json
import math
import posixpath
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from dvc_modelver.errors import BadMetadataError
from dvc_modelver.metadata import TrainingFacts
from dvc_modelver.settings import Settings
from dvc_modelver.store.pointers import Pointer, read_lock_stage

ReadFile = Callable[[str], bytes | None]
"""Gives the bytes of a path of one work tree or revision; None where there is no such file."""

CODE_SUFFIXES = (
    ".py",
    ".ipynb",
    ".sh",
    ".r",
    ".jl",
    ".c",
    ".cc",
    ".cpp",
    ".cu",
    ".yaml",
    ".yml",
    ".toml",
    ".cfg",
)
MAX_VALUES = 500


def gather_training(
    read: ReadFile, pointer: Pointer | None, settings: Settings, *, is_outside: bool = False
) -> TrainingFacts:
    """Collect hyper-parameters, metrics and data of the model that `pointer` names.

    A stage's lock entry is the source where a pipeline made the model; the files that ``.modelver.toml``
    names are read besides, and win where both know a value. A model that was made outside its stage
    (`is_outside`) has the parameters that stand in the parameter files now.

    Raises:
        BadMetadataError: A named file cannot be parsed.
    """
    stage = TrainingFacts()
    if pointer is not None and pointer.kind == "lock":
        stage = _stage_facts(read, pointer, is_outside=is_outside)
    metrics = dict(stage.metrics or {}) | _read_all(read, settings.metrics)
    params = dict(stage.hyperparameters or {}) | _read_all(read, settings.params)
    return TrainingFacts(
        stage=stage.stage,
        command=stage.command,
        hyperparameters=params or None,
        metrics={k: v for k, v in metrics.items() if _is_number(v)} or None,
        data=stage.data,
    )


def _stage_facts(read: ReadFile, pointer: Pointer, *, is_outside: bool) -> TrainingFacts:
    text = read(pointer.file)
    if text is None or pointer.stage is None:
        return TrainingFacts()
    stage = read_lock_stage(text, pointer.stage)
    params: dict[str, Any] = {}
    for file, values in stage.params.items():
        now = dict(flatten(_read_values(read, file))) if is_outside else {}
        for name, value in flatten(values):
            params[f"{file}:{name}" if name in params else name] = now.get(name, value)
    data = [
        {
            "path": dep.path,
            **({"md5": dep.md5} if dep.md5 else {}),
            **({"bytes": dep.size} if dep.size else {}),
        }
        for dep in stage.deps
        if not dep.path.lower().endswith(CODE_SUFFIXES)
    ]
    command = stage.cmd if isinstance(stage.cmd, str) else " && ".join(stage.cmd)
    return TrainingFacts(
        stage=pointer.stage,
        command=command,
        hyperparameters=params or None,
        metrics=_read_all(read, _metric_files(read, pointer)) or None,
        data=tuple(data) or None,
    )


def _metric_files(read: ReadFile, pointer: Pointer) -> list[str]:
    """Give the metric files that dvc.yaml declares for the pointer's stage, relative to the work tree."""
    folder = posixpath.dirname(pointer.file)
    stages = _read_yaml(read, posixpath.join(folder, "dvc.yaml")).get("stages")
    stage = stages.get((pointer.stage or "").partition("@")[0]) if isinstance(stages, Mapping) else None
    if not isinstance(stage, Mapping):
        return []
    stage = stage.get("do", stage)
    metrics, wdir = stage.get("metrics") or [], str(stage.get("wdir") or "")
    names = [next(iter(m)) if isinstance(m, Mapping) and m else m for m in metrics]
    return [posixpath.normpath(posixpath.join(folder, wdir, n)) for n in names if isinstance(n, str) and "$" not in n]


def read_artifacts(read: ReadFile, folder: str) -> dict[str, dict[str, Any]]:
    """Give the ``artifacts:`` of the dvc.yaml in `folder`: name -> entry; empty when there are none."""
    found = _read_yaml(read, posixpath.join(folder, "dvc.yaml")).get("artifacts")
    if not isinstance(found, Mapping):
        return {}
    return {str(name): dict(entry) for name, entry in found.items() if isinstance(entry, Mapping)}


def _read_yaml(read: ReadFile, path: str) -> Mapping[str, Any]:
    text = read(path)
    return {} if text is None else _parse_yaml(text, path)


@lru_cache(maxsize=8)
def _parse_yaml(text: bytes, path: str) -> Mapping[str, Any]:
    """Parse a file; the names of all models may stand in one dvc.yaml, which is asked for each of them."""
    import yaml

    try:
        data = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe loaders
    except (yaml.YAMLError, RecursionError) as err:
        detail = " ".join(str(err).split())[:160]
        raise BadMetadataError(f"{path}: not YAML ({detail})") from err
    return data if isinstance(data, Mapping) else {}


def _read_all(read: ReadFile, paths: list[str] | tuple[str, ...]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for path in paths:
        for name, value in flatten(_read_values(read, path)):
            if len(values) >= MAX_VALUES:
                break
            values[name] = value
    return values


def _read_values(read: ReadFile, path: str) -> Mapping[str, Any]:
    if path.endswith((".yaml", ".yml")):
        return _read_yaml(read, path)
    text = read(path)
    if text is None:
        return {}
    try:
        data = tomllib.loads(text.decode()) if path.endswith(".toml") else json.loads(text)
    except (ValueError, RecursionError) as err:
        kind = "TOML" if path.endswith(".toml") else "JSON"
        raise BadMetadataError(f"{path}: not {kind} ({str(err).splitlines()[0]})") from err
    if isinstance(data, Mapping) and isinstance(data.get("log_history"), list) and data["log_history"]:
        return {**data, **data["log_history"][-1]}  # trainer_state.json: the last entry has the final metrics
    return data if isinstance(data, Mapping) else {}


def read_metrics(read: ReadFile, path: str) -> dict[str, float]:
    """Give the metrics of a DVC metrics file (JSON, YAML or TOML) by dotted names; what is no number is left out.

    Raises:
        BadMetadataError: It is not there, cannot be parsed, has no number, or one that is not finite.
    """
    if read(path) is None:
        raise BadMetadataError(f"{path}: no such file, expected metrics as JSON, YAML or TOML")
    values = _read_values(read, path)
    for name, value in _leaves(values):
        if isinstance(value, float) and not math.isfinite(value):
            raise BadMetadataError(f"{path}: {name} is {value}, expected a finite number")
    found = {name: value for name, value in flatten(values) if _is_number(value)}
    if not found or len(found) > MAX_VALUES:
        raise BadMetadataError(f"{path}: {len(found)} numbers, expected metrics by name, at most {MAX_VALUES}")
    return found


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Give dotted names and their scalars; short lists of scalars are values, other lists are left out."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, name + ".")
        elif (isinstance(value, (str, int, float, bool)) and is_finite(value)) or (
            isinstance(value, list) and len(value) <= 16 and all(isinstance(v, (str, int, float, bool)) for v in value)
        ):
            yield name, value


def is_finite(value: object) -> bool:
    """Whether a value can stand in JSON: any text, and numbers that are neither NaN nor infinite."""
    return not isinstance(value, float) or math.isfinite(value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
