"""Decides what a model has besides tensors, fact by fact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dvc_modelver.merge.decisions import Fact, Take
from dvc_modelver.strategy import Rules, Strategy
from dvc_modelver.tensors import find_role

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
