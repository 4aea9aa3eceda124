"""Groups the tensors of a report: repeated layers become one line, ``layers.0-11.*``."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dvc_modelver.diff.changes import TensorChange

_LAYER = re.compile(r"^(?P<prefix>.*?(?:^|[._/]))(?P<index>\d+)(?P<rest>[._/].*)$")


@dataclass(frozen=True)
class Line:
    """One line of the report.

    Attributes:
        label: A tensor's name, or a pattern that stands for several.
        tensors: What it stands for, at least one.
    """

    label: str
    change: str
    tensors: tuple[TensorChange, ...]


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Give what a name is sorted by, so that ``layers.10`` comes after ``layers.9``."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def unfolded(tensors: Iterable[TensorChange]) -> list[Line]:
    """Give one line per tensor, in natural order."""
    return [Line(t.name, t.change, (t,)) for t in sorted(tensors, key=lambda t: natural_key(t.name))]


def folded(changed: Iterable[TensorChange], everything: Iterable[TensorChange]) -> list[Line]:
    """Give the lines for changed tensors, with repeated layers folded.

    ``layers.0-11.*`` stands for every tensor of these layers; where only some of a layer's tensors changed,
    each gets its own line, ``layers.0-11.attn.q.weight``.

    Args:
        changed: What is reported.
        everything: All tensors of the model, to know what a whole layer is.
    """
    whole: dict[tuple[str, int], set[str]] = defaultdict(set)
    for t in everything:
        if found := _LAYER.match(t.name):
            whole[found["prefix"], int(found["index"])].add(found["rest"])
    single: list[Line] = []
    stacks: dict[tuple[str, str], dict[int, dict[str, TensorChange]]] = defaultdict(lambda: defaultdict(dict))
    for t in changed:
        found = _LAYER.match(t.name)
        if found is None or (t.old_name is not None and not t.by_rule):
            single.append(Line(t.name, t.change, (t,)))
        else:
            stacks[found["prefix"], t.change][int(found["index"])][found["rest"]] = t
    lines = list(single)
    for (prefix, change), layers in stacks.items():
        full = [i for i, rests in sorted(layers.items()) if set(rests) == whole[prefix, i] and len(rests) > 1]
        for run in _runs(full):
            members = tuple(t for i in run for t in layers[i].values())
            lines.append(Line(f"{prefix}{_span(run)}{_any(layers[run[0]])}", change, members))
        lines += _by_rest(prefix, change, {i: rests for i, rests in layers.items() if i not in set(full)})
    return sorted(lines, key=lambda line: natural_key(line.tensors[0].name))


def _by_rest(prefix: str, change: str, layers: dict[int, dict[str, TensorChange]]) -> list[Line]:
    rests = list(dict.fromkeys(rest for found in layers.values() for rest in found))
    lines = []
    for rest in rests:
        for run in _runs(sorted(i for i, found in layers.items() if rest in found)):
            lines.append(Line(f"{prefix}{_span(run)}{rest}", change, tuple(layers[i][rest] for i in run)))
    return lines


def _any(rests: Iterable[str]) -> str:
    return next(iter(rests))[0] + "*"


def _runs(indices: Sequence[int]) -> list[list[int]]:
    """Split ascending numbers into runs without a gap."""
    runs: list[list[int]] = []
    for i in indices:
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs


def _span(run: Sequence[int]) -> str:
    return str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}"
