"""Decides a merge tensor by tensor, from the tensor tables alone.

Standard library only, and no values: what is to be combined is named here and computed in `strategies`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from dvc_modelver.fingerprint.match import match_tensors
from dvc_modelver.fingerprint.row import TensorRow
from dvc_modelver.metadata import TensorTable
from dvc_modelver.strategy import NEEDS_BASE, Rules, Strategy
from dvc_modelver.tensors import find_role

SCHEMA = "modelver.merge/1"
UNCHANGED = "unchanged"
COMBINABLE = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64", "C128"})
"""Dtypes whose stored numbers are the values, so that a mean of them means something."""


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
        found: dict[str, Any] = {"strategy": str(self.rules.default), "tensors": self.counts()}
        return found | ({"rules": chosen} if chosen else {}) | ({"combined": combined} if combined else {})

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


def plan(
    base: TensorTable | None, ours: TensorTable, theirs: TensorTable, rules: Rules | None = None, *,
    same_format: bool = True,
) -> Plan:  # fmt: skip
    """Decide a merge.

    A tensor is followed through renames by `match_tensors`: renamed on one side and changed on the other, it gets the
    new name and the new values. What one side alone changed is taken. Where both did, the rules decide; integers,
    booleans and quantised tensors are never combined. Optimiser state is one thing: that of the side which changed it,
    and where both did ours, unless a rule says ``theirs`` or ``conflict``.

    Args:
        base: The common ancestor; None where there is none, so that every difference is one of both sides.
        ours: The side that is merged into.
        theirs: The side that is merged.
        rules: What decides where both sides changed; by default everything of the kind is a conflict.
        same_format: Whether all three are files of one format; if not, their structures have nothing in common, and
            that of ours stands.
    """
    rules = rules or Rules()
    decisions = [_decide(*rows, rules) for rows in _triples(base, ours, theirs)]
    decisions, notes = _unite_optimizer(decisions, rules)
    facts: tuple[Fact, ...] = ()
    if same_format:
        side = _optimizer_side(decisions)
        facts = merge_facts(base.structure if base else None, ours.structure, theirs.structure, rules, optimizer=side)
    ordered = sorted(_without_clashes(decisions), key=lambda d: d.name)
    return Plan(tuple(ordered), facts, rules, tuple(notes))


Triple = tuple[TensorRow | None, TensorRow | None, TensorRow | None]


def _triples(base: TensorTable | None, ours: TensorTable, theirs: TensorTable) -> list[Triple]:
    """Give the rows that are one tensor, whatever its name on each side."""
    found: list[Triple] = []
    added: list[dict[str, TensorRow]] = []
    partners: list[dict[str, TensorRow]] = []
    for side in (ours, theirs):
        pairs = match_tensors(base.rows if base else (), side.rows).pairs
        partners.append({p.old.name: p.new for p in pairs if p.old is not None and p.new is not None})
        added.append({p.new.name: p.new for p in pairs if p.old is None and p.new is not None})
    for row in base.rows if base else ():
        found.append((row, partners[0].get(row.name), partners[1].get(row.name)))
    for name in dict.fromkeys([*added[0], *added[1]]):
        found.append((None, added[0].get(name), added[1].get(name)))
    return found


def _decide(base: TensorRow | None, ours: TensorRow | None, theirs: TensorRow | None, rules: Rules) -> Decision:
    name, renaming = _result_name(base, ours, theirs)
    strategy = rules.find(name)
    decided = _decide_values(name, base, ours, theirs, strategy)
    if not renaming:
        return decided
    if not name_is_open(base, ours, theirs):
        return replace(decided, why=f"{renaming}, {decided.why}" if decided.why != UNCHANGED else renaming)
    if strategy.name in ("ours", "theirs") and ours is not None and theirs is not None:
        row, take = (ours, Take.OURS) if strategy.name == "ours" else (theirs, Take.THEIRS)
        return replace(decided, name=row.name, take=take, why=renaming, strategy=None, dtype=row.dtype, shape=row.shape)
    return replace(decided, take=Take.CONFLICT, why=renaming, strategy=None)


def name_is_open(base: TensorRow | None, ours: TensorRow | None, theirs: TensorRow | None) -> bool:
    """Whether both sides gave a tensor a new name, and not the same."""
    return (
        base is not None and ours is not None and theirs is not None
        and len({base.name, ours.name, theirs.name}) == 3
    )  # fmt: skip


def _result_name(base: TensorRow | None, ours: TensorRow | None, theirs: TensorRow | None) -> tuple[str, str]:
    """Give the name in the result, and what to say of it where the base has another."""
    if ours is None or theirs is None:
        row = ours or theirs or base
        assert row is not None
        if base is None or row.name == base.name:
            return row.name, ""
        return row.name, f"renamed by {'ours' if ours else 'theirs'} from {base.name}"
    if base is None or ours.name == theirs.name == base.name:
        return ours.name, ""
    if ours.name == theirs.name:
        return ours.name, f"renamed on both sides from {base.name}"
    if theirs.name == base.name:
        return ours.name, f"renamed by ours from {base.name}"
    if ours.name == base.name:
        return theirs.name, f"renamed by theirs from {base.name}"
    return ours.name, f"renamed on both sides from {base.name}, to {ours.name} by ours and to {theirs.name} by theirs"


def _decide_values(
    name: str, base: TensorRow | None, ours: TensorRow | None, theirs: TensorRow | None, strategy: Strategy
) -> Decision:
    def make(take: Take, why: str, combine: Strategy | None = None, dtype: str = "") -> Decision:
        row = theirs if take is Take.THEIRS else ours or theirs or base
        assert row is not None
        return Decision(name, take, why, base, ours, theirs, dtype or row.dtype, row.shape, combine)

    if _is_same(ours, theirs):
        if ours is None:
            return make(Take.REMOVED, "removed on both sides")
        if _is_same(base, ours):
            return make(Take.SAME, UNCHANGED)
        return make(Take.SAME, f"{'added' if base is None else 'changed'} on both sides alike")
    for unchanged, row, side in ((ours, theirs, Take.THEIRS), (theirs, ours, Take.OURS)):
        if _is_same(base, unchanged):
            if row is None:
                return make(Take.REMOVED, f"removed by {side}")
            return make(side, f"{'added' if base is None else _what(base, row)} by {side}")
    why = _describe_clash(base, ours, theirs)
    if strategy.name == "ours":
        return make(Take.OURS if ours else Take.REMOVED, f"{why}: ours by rule")
    if strategy.name == "theirs":
        return make(Take.THEIRS if theirs else Take.REMOVED, f"{why}: theirs by rule")
    if not strategy.combines:
        return make(Take.CONFLICT, why)
    obstacle = find_obstacle(base, ours, theirs, strategy)
    if obstacle or ours is None or theirs is None:
        return make(Take.CONFLICT, f"{why}; {obstacle}")
    return make(Take.COMBINED, f"{why}: {strategy}", strategy, _merged_dtype(base, ours, theirs))


def _is_same(a: TensorRow | None, b: TensorRow | None) -> bool:
    if a is None or b is None:
        return a is b
    return (a.digest, a.dtype, a.shape) == (b.digest, b.dtype, b.shape)


def _what(base: TensorRow, row: TensorRow) -> str:
    """Say what changed of a tensor: its shape, else its dtype, else its values."""
    if row.shape != base.shape:
        return "shape changed"
    return "dtype changed" if row.dtype != base.dtype else "changed"


def _describe_clash(base: TensorRow | None, ours: TensorRow | None, theirs: TensorRow | None) -> str:
    if base is None:
        return "added on both sides, differently"
    if ours is None or theirs is None:
        row, changed, removed = (theirs, "theirs", "ours") if ours is None else (ours, "ours", "theirs")
        assert row is not None
        return f"removed by {removed}, {_what(base, row)} by {changed}"
    first, second = _what(base, ours), _what(base, theirs)
    return f"{first} on both sides" if first == second else f"{first} by ours, {second} by theirs"


def find_obstacle(base: TensorRow | None, ours: TensorRow | None, theirs: TensorRow | None, strategy: Strategy) -> str:
    """Say why values cannot be combined; empty where they can."""
    if ours is None or theirs is None:
        return f"{strategy.name} needs both"
    rows = [row for row in (ours, theirs, base) if row is not None]
    for row in rows:
        if row.dtype not in COMBINABLE:
            return f"{row.dtype} values are not combined, say ours or theirs"
    if len({row.dtype.startswith("C") for row in rows}) > 1:
        return f"{strategy.name} needs all real or all complex"
    if ours.shape != theirs.shape:
        return f"{strategy.name} needs one shape, found {list(ours.shape)} and {list(theirs.shape)}"
    if base is None or base.shape != ours.shape:
        return f"{strategy.name} needs a base of that shape" if strategy.name in NEEDS_BASE else ""
    if len({base.dtype, ours.dtype, theirs.dtype}) == 3:
        return f"two new dtypes, {ours.dtype} and {theirs.dtype}"
    return ""


def _merged_dtype(base: TensorRow | None, ours: TensorRow, theirs: TensorRow) -> str:
    """Give the dtype of a combined tensor: the one that a side changed it to, else that of ours."""
    return theirs.dtype if base is not None and ours.dtype == base.dtype else ours.dtype


def _without_clashes(decisions: Iterable[Decision]) -> Iterable[Decision]:
    """Turn tensors that would get one name into conflicts."""
    found = list(decisions)
    names = Counter(d.name for d in found if d.take is not Take.REMOVED)
    for d in found:
        if names[d.name] > 1 and d.take not in (Take.REMOVED, Take.CONFLICT):
            yield replace(d, take=Take.CONFLICT, strategy=None, why=f"{d.why}; another tensor gets the same name")
        else:
            yield d


def _unite_optimizer(decisions: list[Decision], rules: Rules) -> tuple[list[Decision], list[str]]:
    """Take optimiser state as a whole from one side where both sides changed it."""
    changed = {side for d in decisions if d.role == "optimizer" for side in _changed_by(d)}
    if len(changed) < 2:
        return decisions, []
    found, taken = [], set()
    for d in decisions:
        if d.role != "optimizer" or (d.take is Take.SAME and d.why == UNCHANGED):
            found.append(d)
            continue
        strategy = rules.find(d.name)
        by_rule = strategy.name in ("ours", "theirs") or (strategy.name == "conflict" and rules.find_rule(d.name))
        side = strategy.name if by_rule else "ours"
        if side == "conflict":
            found.append(replace(d, take=Take.CONFLICT, strategy=None))
            continue
        row = d.theirs if side == "theirs" else d.ours
        taken.add(side)
        take = Take.REMOVED if row is None else Take(side)
        why = f"optimiser state changed on both sides: {side}{' by rule' if by_rule else ', whole'}"
        name = row.name if row is not None else d.name
        dtype, shape = (row.dtype, row.shape) if row is not None else (d.dtype, d.shape)
        found.append(replace(d, name=name, take=take, why=why, strategy=None, dtype=dtype, shape=shape))
    told = " and ".join(sorted(taken))
    note = f"optimiser state is that of {told}: it was not trained on the merged weights"
    return found, [note] if taken else []


def _changed_by(d: Decision) -> set[str]:
    sides = (("ours", d.ours), ("theirs", d.theirs))
    return {side for side, row in sides if not _is_same(d.base, row)}


def _optimizer_side(decisions: Iterable[Decision]) -> str:
    """Give the side that optimiser state comes from, where it comes from one only; empty where nothing says."""
    takes = {d.take for d in decisions if d.role == "optimizer"} & {Take.OURS, Take.THEIRS}
    return str(takes.pop()) if len(takes) == 1 else ""


_ABSENT = object()


def merge_facts(
    base: Mapping[str, Any] | None, ours: Mapping[str, Any], theirs: Mapping[str, Any], rules: Rules, *,
    prefix: str = "", optimizer: str = "",
) -> tuple[Fact, ...]:  # fmt: skip
    """Decide flat facts one by one; those that are the same everywhere are left out.

    Args:
        base: By name; None where there is no common ancestor.
        ours: Likewise.
        theirs: Likewise.
        rules: ``ours`` and ``theirs`` decide what both sides changed; facts are never combined.
        prefix: Put before every name.
        optimizer: The side that facts of optimiser state follow; empty where nothing says.
    """
    base = base or {}
    found = []
    for name in sorted({*base, *ours, *theirs}):
        x, y, z = (side.get(name, _ABSENT) for side in (base, ours, theirs))
        if _equal(x, y) and _equal(x, z):
            continue
        full = prefix + name
        strategy = rules.find(full)
        if find_role(full) == "optimizer":
            take, why = _decide_optimizer_fact(x, y, z, strategy, optimizer, by_rule=rules.find_rule(full) is not None)
        else:
            take, why = _decide_fact(x, y, z, strategy)
        found.append(Fact(full, take, why, *(None if v is _ABSENT else v for v in (x, y, z))))
    return tuple(found)


def _equal(a: object, b: object) -> bool:
    return a is b or (type(a) is type(b) and a == b)


def _decide_optimizer_fact(
    base: object, ours: object, theirs: object, strategy: Strategy, side: str, *, by_rule: bool
) -> tuple[Take, str]:
    """Decide a fact of optimiser state: as its tensors, else ours where both sides changed it."""
    take, why = _decide_fact(base, ours, theirs, strategy)
    if side and not _equal(ours, theirs):
        value = theirs if side == "theirs" else ours
        return Take.REMOVED if value is _ABSENT else Take(side), f"optimiser state is that of {side}"
    if take is Take.CONFLICT and not (by_rule and strategy.name == "conflict"):
        return Take.REMOVED if ours is _ABSENT else Take.OURS, f"{why}: optimiser state is that of ours"
    return take, why


def _decide_fact(base: object, ours: object, theirs: object, strategy: Strategy) -> tuple[Take, str]:
    def verb(value: object) -> str:
        return "removed" if value is _ABSENT else "added" if base is _ABSENT else "changed"

    def take(value: object, side: Take) -> Take:
        return Take.REMOVED if value is _ABSENT else side

    if _equal(ours, theirs):
        return take(ours, Take.SAME), f"{verb(ours)} on both sides alike"
    if _equal(base, ours):
        return take(theirs, Take.THEIRS), f"{verb(theirs)} by theirs"
    if _equal(base, theirs):
        return take(ours, Take.OURS), f"{verb(ours)} by ours"
    first, second = verb(ours), verb(theirs)
    why = f"{first} on both sides" if first == second else f"{first} by ours, {second} by theirs"
    if strategy.name == "ours":
        return take(ours, Take.OURS), f"{why}: ours by rule"
    if strategy.name == "theirs":
        return take(theirs, Take.THEIRS), f"{why}: theirs by rule"
    return Take.CONFLICT, why
