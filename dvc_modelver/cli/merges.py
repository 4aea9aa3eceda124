"""What ``merge`` and ``merge-file`` print: lines for people, a document for programs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dvc_modelver.cli.cards import version_line
from dvc_modelver.merge.threeway import Decision, Fact

if TYPE_CHECKING:
    from dvc_modelver.api.conflicts import Conflict, MergeState
    from dvc_modelver.merge.models import Merged

_HOW_MANY = 20
"""Tensors that a person reads before asking for all."""

_COUNTED = {"ours": "from ours", "theirs": "from theirs", "same": "the same on both sides", "removed": "removed",
            "combined": "combined"}  # fmt: skip


def merge_document(done: Merged) -> dict[str, Any]:
    """Give the document of merge-file, which follows ``schemas/merge.schema.json``."""
    found = done.plan.to_dict()
    return found | {"output": str(done.output) if done.output else None, "notes": list(done.notes)}


def merge_lines(done: Merged) -> list[str]:
    """Give what was decided: conflicts alone where there are any, else what did not come from one side as it was."""
    if done.output is None:
        conflicts = done.plan.conflicts
        plural = "s" * (len(conflicts) != 1)
        return [f"{len(conflicts)} conflict{plural}, nothing was written:", *_list(conflicts)]
    counts = done.plan.counts()
    parts = [f"{counts[take]} {text}" for take, text in _COUNTED.items() if take in counts]
    told = [d for d in done.plan.tensors if ":" in d.why or "renamed" in d.why]
    lines = [f"{done.output}: {', '.join(parts) or 'no tensors'}", *_list((*told, *done.plan.facts))]
    return lines + [f"note: {note}" for note in done.notes]


def conflict_hint(done: Merged) -> str:
    """Give the options that decide the conflicts; empty where the format stands in the way of the first."""
    first = done.plan.conflicts[0]
    one = f"--tensors {shlex.quote(f'{first.name}=ours')} decides one of them"
    if isinstance(first, Decision) and "; " not in first.why:
        return f"modelver merge-file ... --strategy mean combines what both sides changed; {one}"
    return f"modelver merge-file ... {one}" if "; " not in first.why or "say ours or theirs" in first.why else ""


def _list(found: tuple[Decision | Fact, ...]) -> Iterator[str]:
    width = min(60, max((len(one.name) for one in found[:_HOW_MANY]), default=0))
    for one in found[:_HOW_MANY]:
        yield f"  {one.name:<{width}}  {one.why}"
    if len(found) > _HOW_MANY:
        yield f"  and {len(found) - _HOW_MANY} more (--json lists them)"


def state_document(found: MergeState) -> dict[str, Any]:
    """Give what a merge under way has decided, and what it has not."""
    return {
        "merged": [metadata.to_dict() for metadata in found.merged],
        "kept": list(found.kept),
        "removed": list(found.removed),
        "conflicts": [
            {
                "path": one.path, "undecided": list(one.undecided), "why": list(one.lines),
                "removed_by": one.removed_by or None,
            }
            for one in found.conflicts
        ],
    }  # fmt: skip


def state_lines(found: MergeState) -> list[str]:
    """Give the same for people, as git status would say it."""
    lines = [f"merged {version_line(metadata)}" for metadata in found.merged]
    lines += [f"kept {path}" for path in found.kept] + [f"removed {path}" for path in found.removed]
    is_decided = bool(lines)
    for one in found.conflicts:
        count = len(one.undecided)
        lines += [f"{_what(one)}: {one.path}" + (f": {count} undecided" if count else "")]
        lines += [f"  {line}" for line in one.lines[:_HOW_MANY]]
        if len(one.lines) > _HOW_MANY:
            lines.append(f"  and {len(one.lines) - _HOW_MANY} more (--json lists them)")
    if any(not one.removed_by for one in found.conflicts):
        lines.append("decide with: modelver merge --continue --take ours|theirs|mean [MODEL|PATTERN]")
    elif is_decided and not found.conflicts:
        lines.append("staged; git commit (git rebase --continue...) concludes")
    return lines or ["no model is in conflict"]


def _what(one: Conflict) -> str:
    if not one.removed_by:
        return "both modified"
    return f"removed by {one.removed_by}, changed by {'theirs' if one.removed_by == 'ours' else 'ours'}"
