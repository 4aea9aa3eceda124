"""What a merge decided of each tensor and fact, as values: nothing is decided here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from dvc_modelver.fingerprint.row import TensorRow
from dvc_modelver.strategy import Rules, Strategy

SCHEMA = "modelver.merge/1"
UNCHANGED = "unchanged"


class Take(StrEnum):
    """What the result has of a tensor or fact."""

    SAME = "same"
    OURS = "ours"
    THEIRS = "theirs"
    REMOVED = "removed"
    COMBINED = "combined"
    CONFLICT = "conflict"


@dataclass(frozen=True)
class Decision:
    """What becomes of one tensor.

    Attributes:
        name: Its name in the result; of a removed or conflicting one, the name it has where it is.
        take: Whose values the result has. `SAME` are those of both sides.
        why: In words: ``changed by theirs``, ``changed on both sides``...
        strategy: How values are combined; None unless `take` is `COMBINED`.
        dtype: Of the result; of a conflict, of the first side that has the tensor.
        shape: Likewise.
        base: The tensor there, under the name it has there; None where it is not.
        ours: Likewise.
        theirs: Likewise.
    """

    name: str
    take: Take
    why: str
    base: TensorRow | None
    ours: TensorRow | None
    theirs: TensorRow | None
    dtype: str
    shape: tuple[int, ...]
    strategy: Strategy | None = None

    @property
    def source(self) -> TensorRow | None:
        """The row whose values are taken as they are; None for a removed, combined or conflicting tensor."""
        if self.take is Take.THEIRS:
            return self.theirs
        return self.ours if self.take in (Take.OURS, Take.SAME) else None

    @property
    def role(self) -> str:
        """``"optimizer"`` for optimiser state, else ``"parameter"``."""
        row = self.ours or self.theirs or self.base
        return row.role if row is not None else "parameter"

    def to_dict(self) -> dict[str, Any]:
        """Give it as ``--json`` prints it."""
        found: dict[str, Any] = {"name": self.name, "take": str(self.take), "why": self.why}
        if self.strategy is not None:
            found["strategy"] = str(self.strategy)
        for side in ("base", "ours", "theirs"):
            row = getattr(self, side)
            found[side] = {"name": row.name, "dtype": row.dtype, "shape": list(row.shape)} if row else None
        return found


@dataclass(frozen=True)
class Fact:
    """What becomes of one fact of the model's structure that is not the same on all sides.

    A fact is a line of a configuration or graph, of a file's own metadata, or a file of a folder that has no tensors.

    Attributes:
        name: As in `TensorTable.structure`.
        take: `SAME`, `OURS`, `THEIRS`, `REMOVED` or `CONFLICT`.
        why: In words.
        value: In the result; None where there is none.
        base: Value there; None where there is none.
        ours: Likewise.
        theirs: Likewise.
    """

    name: str
    take: Take
    why: str
    base: Any = None
    ours: Any = None
    theirs: Any = None

    @property
    def value(self) -> Any:
        """The value in the result; None where there is none, or none yet."""
        if self.take is Take.THEIRS:
            return self.theirs
        return self.ours if self.take in (Take.OURS, Take.SAME) else None

    def to_dict(self) -> dict[str, Any]:
        """Give it as ``--json`` prints it."""
        return {"name": self.name, "take": str(self.take), "why": self.why, "base": self.base, "ours": self.ours,
                "theirs": self.theirs}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """The decisions of one merge.

    Attributes:
        tensors: Every tensor of any side, sorted by name.
        facts: Facts of the structure that differ anywhere, sorted by name.
        rules: What decided where both sides changed.
        notes: What the user should know of a merge without conflicts, a sentence each.
    """

    tensors: tuple[Decision, ...]
    facts: tuple[Fact, ...] = ()
    rules: Rules = field(default_factory=Rules)
    notes: tuple[str, ...] = ()

    @property
    def conflicts(self) -> tuple[Decision | Fact, ...]:
        """What is not decided; none in a plan that can be carried out."""
        found: tuple[Decision | Fact, ...] = (*self.tensors, *self.facts)
        return tuple(d for d in found if d.take is Take.CONFLICT)

    @property
    def kept(self) -> tuple[Decision, ...]:
        """The tensors of the result."""
        return tuple(d for d in self.tensors if d.take not in (Take.REMOVED, Take.CONFLICT))

    def with_obstacles(self, obstacles: Mapping[str, str]) -> Plan:
        """Give the same plan with a conflict for each tensor and fact that cannot be written, and why."""

        def say(one: Decision | Fact) -> str:
            return f"{one.why}; {obstacles[one.name]}"

        return replace(
            self,
            tensors=tuple(
                replace(d, take=Take.CONFLICT, strategy=None, why=say(d)) if d.name in obstacles else d
                for d in self.tensors
            ),
            facts=tuple(replace(f, take=Take.CONFLICT, why=say(f)) if f.name in obstacles else f for f in self.facts),
        )

    def counts(self) -> dict[str, int]:
        """Give the number of tensors by `Take`, without those that are none."""
        found = Counter(d.take for d in self.tensors)
        return {str(take): found[take] for take in Take if found[take]}

    def recipe(self) -> dict[str, Any]:
        """Give what has to be known to make the result again: the rules and what each strategy was used for.

        A function of the three models and the rules alone; for the metadata of the result.
        """
        combined: dict[str, list[str]] = {}
        for d in self.tensors:
            if d.strategy is not None:
                combined.setdefault(str(d.strategy), []).append(d.name)
        chosen = [{"tensors": rule.tensors, "strategy": str(rule.strategy)} for rule in self.rules.rules]
        taken: dict[str, list[str]] = {}
        for name, strategy in sorted(self.rules.names.items()):
            if not strategy.combines:
                taken.setdefault(str(strategy), []).append(name)
        found: dict[str, Any] = {"strategy": str(self.rules.default), "tensors": self.counts()}
        optional = {"rules": chosen, "combined": combined, "taken": taken}
        return found | {key: value for key, value in optional.items() if value}

    def to_dict(self) -> dict[str, Any]:
        """Give the plan as ``--json`` prints it; tensors that no side changed are only counted."""
        told = [d.to_dict() for d in self.tensors if d.why != UNCHANGED]
        return {
            "schema": SCHEMA,
            "conflicts": len(self.conflicts),
            "counts": self.counts(),
            "tensors": told,
            "facts": [f.to_dict() for f in self.facts],
            "notes": list(self.notes),
            "recipe": self.recipe(),
        }
