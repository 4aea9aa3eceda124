"""Decides a merge tensor by tensor, from the tensor tables alone.

Standard library only, and no values: what is to be combined is named here and computed in `strategies`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from dvc_modelver.fingerprint.match import MIN_SHIFTED, match_tensors
from dvc_modelver.fingerprint.row import TensorRow
from dvc_modelver.merge.decisions import UNCHANGED, Decision, Fact, Plan, Take
from dvc_modelver.merge.facts import merge_facts
from dvc_modelver.metadata import TensorTable
from dvc_modelver.strategy import NEEDS_BASE, Rules, Strategy

__all__ = ["Decision", "Fact", "Plan", "Take", "find_obstacle", "merge_facts", "plan"]

_LORA = re.compile(r"[._]lora[._](A|B|up|down)\b")
COMBINABLE = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64", "C128"})
"""Dtypes whose stored numbers are the values, so that a mean of them means something."""


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
        same_format: Whether ours and theirs are of one format; if not, their structures have nothing in common, and
            that of ours stands. (A base of another format is to be given without structure.)
    """
    rules = rules or Rules()
    decisions = [_decide(*rows, rules) for rows in _triples(base, ours, theirs)]
    decisions, notes = _unite_optimizer(decisions, rules)
    facts: tuple[Fact, ...] = ()
    if same_format:
        side = _optimizer_side(decisions)
        facts = merge_facts(base.structure if base else None, ours.structure, theirs.structure, rules, optimizer=side)
    if any(d.take is Take.COMBINED and _LORA.search(d.name) for d in decisions):
        notes.append("factors of LoRA layers are combined one by one: the product is not that of combined products")
    ordered = sorted(_without_clashes(decisions), key=lambda d: d.name)
    return Plan(tuple(ordered), facts, rules, tuple(notes))


Triple = tuple[TensorRow | None, TensorRow | None, TensorRow | None]


def _triples(base: TensorTable | None, ours: TensorTable, theirs: TensorTable) -> list[Triple]:
    """Give the rows that are one tensor, whatever its name on each side."""
    old = base.rows if base else ()
    followed = [_follow(old, side.rows) for side in (ours, theirs)]
    found: list[Triple] = [(row, followed[0].get(row.name), followed[1].get(row.name)) for row in old]
    added: list[dict[str, TensorRow]] = []
    for side, partners in zip((ours, theirs), followed, strict=True):
        known = {row.name for row in partners.values()}
        added.append({row.name: row for row in side.rows if row.name not in known})
    names = dict.fromkeys([*added[0], *added[1]])
    return [*found, *((None, added[0].get(name), added[1].get(name)) for name in names)]


def _follow(old: Sequence[TensorRow], new: Sequence[TensorRow]) -> dict[str, TensorRow]:
    """Give what became of the tensors of the base on one side, by their names there.

    A comparison may guess; here a wrong guess would put a value into another's place. So equal values count only where
    no other tensor has them and they are no constant, similar ones only of tensors that are not small.
    """
    n_like = [Counter((row.digest, row.numel) for row in rows) for rows in (old, new)]
    found = {}
    for pair in match_tensors(old, new).pairs:
        if pair.old is None or pair.new is None:
            continue
        is_large = pair.old.numel >= MIN_SHIFTED
        if pair.how == "digest":
            key = pair.old.digest, pair.old.numel
            is_sure = n_like[0][key] == n_like[1][key] == 1 and (is_large or pair.old.min != pair.old.max)
        else:
            is_sure = pair.how != "sketch" or is_large
        if is_sure:
            found[pair.old.name] = pair.new
    return found


def _decide(base: TensorRow | None, ours: TensorRow | None, theirs: TensorRow | None, rules: Rules) -> Decision:
    name, renaming = _result_name(base, ours, theirs)
    strategy = rules.find(name)
    decided = _decide_values(name, base, ours, theirs, strategy)
    if not renaming:
        return decided
    if not _name_is_open(base, ours, theirs):
        return replace(decided, why=f"{renaming}, {decided.why}" if decided.why != UNCHANGED else renaming)
    if strategy.name in ("ours", "theirs") and ours is not None and theirs is not None:
        row, take = (ours, Take.OURS) if strategy.name == "ours" else (theirs, Take.THEIRS)
        return replace(decided, name=row.name, take=take, why=renaming, strategy=None, dtype=row.dtype, shape=row.shape)
    return replace(decided, take=Take.CONFLICT, why=renaming, strategy=None)


def _name_is_open(base: TensorRow | None, ours: TensorRow | None, theirs: TensorRow | None) -> bool:
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
