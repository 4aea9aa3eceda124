"""What decides where both sides of a merge changed a tensor: a strategy, for a path and a pattern of names."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from dvc_modelver.errors import BadMetadataError

SIDES = ("ours", "theirs", "conflict")
"""Strategies that choose; all others combine values."""

_SHARE, _FACTOR, _SEED = (0.0, 1.0), (-math.inf, math.inf), (0.0, 2.0**63 - 1)
_PARAMETERS: dict[str, dict[str, tuple[float, tuple[float, float]]]] = {
    "ours": {},
    "theirs": {},
    "conflict": {},
    "mean": {},
    "weighted": {"weight": (0.5, _SHARE)},
    "slerp": {"weight": (0.5, _SHARE)},
    "task-arithmetic": {"scale": (1.0, _FACTOR)},
    "ties": {"density": (0.2, _SHARE), "scale": (1.0, _FACTOR)},
    "dare": {"density": (0.5, _SHARE), "scale": (1.0, _FACTOR), "seed": (0.0, _SEED)},
}
"""Default, and smallest and largest value, of each parameter of each strategy."""

NEEDS_BASE = frozenset({"task-arithmetic", "ties", "dare"})
"""Strategies that combine changes, so that the tensor must be in the base, in the same shape."""

STRATEGIES = tuple(_PARAMETERS)


@dataclass(frozen=True)
class Strategy:
    """How a tensor is decided that both sides changed.

    Attributes:
        name: One of `STRATEGIES`.
        parameters: Every parameter the strategy has: ``weight`` (share of theirs, 0 to 1), ``density`` (share of the
            changes kept, above 0 to 1), ``scale`` (what the changes are multiplied with), ``seed``.
    """

    name: str = "conflict"
    parameters: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def combines(self) -> bool:
        """Whether it computes new values."""
        return self.name not in SIDES

    def __str__(self) -> str:
        """Give it as `parse_strategy` reads it, with the parameters that are not the default."""
        known = _PARAMETERS[self.name]
        parts = [f"{key}={value:.12g}" for key, value in self.parameters.items() if value != known[key][0]]
        return f"{self.name}:{','.join(parts)}" if parts else self.name


def parse_strategy(text: str, where: str = "strategy") -> Strategy:
    """Read ``NAME`` or ``NAME:PARAMETER=VALUE,...``, like ``ties:density=0.3,scale=0.8``.

    Args:
        text: As it stands in ``.modelver.toml`` or on the command line.
        where: How errors call it.

    Raises:
        BadMetadataError: No such strategy or parameter, or a value out of range.
    """
    name, _, rest = text.strip().partition(":")
    known = _PARAMETERS.get(name)
    if known is None:
        raise BadMetadataError(f"{where} is {text!r}, expected one of {', '.join(STRATEGIES)}")
    values = {key: default for key, (default, _) in known.items()}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        key = key.strip()
        if key not in known:
            wanted = f"{' and '.join(known)} of {name}" if known else f"no parameter of {name}"
            raise BadMetadataError(f"{where}: found {key!r}, expected {wanted}")
        values[key] = _number(value, known[key][1], f"{where}: {key}", is_open=key == "density")
        if key == "seed" and not values[key].is_integer():
            raise BadMetadataError(f"{where}: seed is {value.strip()!r}, expected a whole number")
    return Strategy(name, MappingProxyType(values))


def _number(text: str, limits: tuple[float, float], where: str, *, is_open: bool) -> float:
    low, high = limits
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isfinite(value) and low <= value <= high and not (is_open and value == low):
        return value
    if math.isinf(high):
        raise BadMetadataError(f"{where} is {text.strip()!r}, expected a finite number")
    raise BadMetadataError(f"{where} is {text.strip()!r}, expected a number {'above' if is_open else 'from'} "
                           f"{low:.0f} to {high:.12g}")  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """One strategy for some tensors of some models.

    Attributes:
        strategy: What decides.
        tensors: Pattern of names, as in a shell: ``encoder.*``.
        path: Pattern of model paths, like a line of ``.gitignore``.
    """

    strategy: Strategy
    tensors: str = "*"
    path: str = "*"


@dataclass(frozen=True)
class Rules:
    """The strategies of one model.

    Attributes:
        default: Where no rule matches.
        rules: The last one that matches a name wins, as in ``.gitattributes``.
        names: Strategies for single tensors and facts, chosen in a conflict; they win over all rules.
    """

    default: Strategy = Strategy()
    rules: tuple[Rule, ...] = ()
    names: Mapping[str, Strategy] = field(default_factory=dict)

    def find(self, name: str) -> Strategy:
        """Give what decides a tensor, or a fact of the model's structure, of this name."""
        if name in self.names:
            return self.names[name]
        found = self.find_rule(name)
        return self.default if found is None else found.strategy

    def find_rule(self, name: str) -> Rule | None:
        """Give the rule that decides a name; None where the default does."""
        return next((rule for rule in reversed(self.rules) if fnmatch.fnmatchcase(name, rule.tensors)), None)

    def with_rule(self, tensors: str, strategy: Strategy) -> Rules:
        """Give these rules with one more, which wins over all others."""
        return Rules(self.default, (*self.rules, Rule(strategy, tensors)), self.names)
