"""What ``[[policy]]`` of ``.modelver.toml`` asks of a version before it may hold a stage."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dvc_modelver.errors import BadMetadataError

_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_RULE = re.compile(
    rf"(?P<name>[^<>=!]*[^<>=!\s])\s*(?P<sign><=|>=|==|!=|<|>)\s*"
    rf"(?:(?P<value>{_NUMBER})|held(?:\s*(?P<shift>[+-])\s*(?P<by>{_NUMBER}))?)\s*"
)
_COMPARE = {
    "<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b, "!=": lambda a, b: a != b,
}  # fmt: skip
MAX_RULE_CHARS = 500


@dataclass(frozen=True)
class MetricRule:
    """A bound of a metric: ``val_acc >= 0.9``, or ``val_acc >= held - 0.01`` against the version that holds the stage.

    Attributes:
        text: As it was written.
        value: The bound; None where it is that of the holder.
        shift: What is added to the holder's value.
    """

    text: str
    name: str
    sign: str
    value: float | None
    shift: float = 0.0

    def bound(self, held: float | None) -> float | None:
        """Give the bound; None where it is the holder's and the holder has no such metric."""
        if self.value is not None:
            return self.value
        return None if held is None else held + self.shift

    def holds(self, measured: float, bound: float) -> bool:
        """Whether a value is within the bound; one that is not a number never is."""
        return not math.isnan(measured) and bool(_COMPARE[self.sign](measured, bound))


@dataclass(frozen=True)
class Policy:
    """One ``[[policy]]`` table.

    Attributes:
        stage: The stage that it is for, or a pattern.
        models: Patterns of the names of the models that it is for; all where empty.
        metrics: Bounds of metrics.
        min_cosine: Smallest cosine similarity to the version that holds the stage; likewise `max_cosine`.
        require: Dotted names of metadata that must be there: ``training.data``, ``artifact.desc``.
        scan: Whether a scan must find the model safe.
        clean: Whether the promoter's work tree must be clean.
        remote: Whether the DVC remote must have the weights.
        branches: Patterns of branches, on one of which the commit must be.
        unknown: Keys that this program does not know; such a policy lets nothing through.
    """

    stage: str
    models: tuple[str, ...] = ()
    metrics: tuple[MetricRule, ...] = ()
    min_cosine: float | None = None
    max_cosine: float | None = None
    require: tuple[str, ...] = ()
    scan: bool = False
    clean: bool = False
    remote: bool = False
    branches: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    def is_for(self, stage: str, model: str) -> bool:
        """Whether it is for a stage of a model."""
        named = not self.models or any(fnmatch.fnmatchcase(model, pattern) for pattern in self.models)
        return named and fnmatch.fnmatchcase(stage, self.stage)


def parse_metric_rule(text: str, where: str) -> MetricRule:
    """Read ``NAME >= NUMBER`` or ``NAME >= held - NUMBER``.

    Raises:
        BadMetadataError: It is neither.
    """
    match = _RULE.fullmatch(text.strip()) if len(text) <= MAX_RULE_CHARS else None
    if match is None:
        raise BadMetadataError(
            f"{where} is {text[:100]!r}, expected one like 'val_acc >= 0.9' or 'val_acc >= held - 0.01'"
        )
    shift = float(match["by"] or 0) * (-1 if match["shift"] == "-" else 1)
    value = None if match["value"] is None else float(match["value"])
    return MetricRule(text.strip(), match["name"].strip(), match["sign"], value, shift)


def parse_policies(tables: Any, where: str) -> tuple[Policy, ...]:
    """Read the ``[[policy]]`` tables.

    Args:
        tables: As the TOML parser gives them.
        where: How errors call them.

    Raises:
        BadMetadataError: They are no tables, a stage is missing, or a value has another type than it should.
    """
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise BadMetadataError(f"{where} is {tables!r:.100}, expected tables [[policy]]")
    return tuple(_policy(table, f"{where} {n}") for n, table in enumerate(tables, 1))


def _policy(table: Mapping[str, Any], where: str) -> Policy:
    if "stage" not in table:
        raise BadMetadataError(f"{where}: stage is missing, expected one like 'prod'")
    kinds = {f.name: str(f.type) for f in fields(Policy) if f.name != "unknown"}
    values: dict[str, Any] = {}
    for key in kinds.keys() & table.keys():
        values[key] = _checked(table[key], kinds[key], f"{where}: {key}")
    if "metrics" in values:
        values["metrics"] = tuple(parse_metric_rule(rule, f"{where}: metrics") for rule in values["metrics"])
    return Policy(**values, unknown=tuple(key for key in table if key not in kinds))


def _checked(value: Any, kind: str, where: str) -> Any:
    if kind.startswith("tuple"):
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise BadMetadataError(f"{where} is {value!r:.100}, expected a list of strings")
        return tuple(value)
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind.startswith("float") and isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1:
        return float(value)
    if kind == "str" and isinstance(value, str):
        return value
    wanted = {"bool": "true or false", "str": "a string"}.get(kind, "a number from -1 to 1")
    raise BadMetadataError(f"{where} is {value!r:.100}, expected {wanted}")
