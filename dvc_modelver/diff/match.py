"""Pairs the tensors of two versions: by name, then by equal digest, then by sketch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dvc_modelver.fingerprint.estimate import RENAME_COSINE, Sketch, decode, estimate
from dvc_modelver.fingerprint.row import TensorRow

MAX_CANDIDATES = 2_000
"""Tensors of one size that are compared pair by pair; of more, only equal digests are found."""


@dataclass(frozen=True)
class Pair:
    """Two tensors that correspond, or one that has no counterpart.

    Attributes:
        how: ``name``, ``digest`` or ``sketch``; empty for one side alone.
    """

    old: TensorRow | None
    new: TensorRow | None
    how: str = ""


def match_tensors(old: Sequence[TensorRow], new: Sequence[TensorRow]) -> list[Pair]:
    """Pair the tensors of two tables.

    A name that is on both sides is a pair whatever its values; the rest is paired by equal digest and number
    of elements, in the order of names, and then by being each other's best match by sketch.
    """
    by_name = {row.name: row for row in old}
    pairs = [Pair(by_name[row.name], row, "name") for row in new if row.name in by_name]
    names = {pair.new.name for pair in pairs if pair.new is not None}
    left = [row for row in old if row.name not in names]
    right = [row for row in new if row.name not in names]
    for step in (_by_digest, _by_sketch):
        found = step(left, right)
        pairs += found
        gone, come = {id(p.old) for p in found}, {id(p.new) for p in found}
        left = [row for row in left if id(row) not in gone]
        right = [row for row in right if id(row) not in come]
    return pairs + [Pair(row, None) for row in left] + [Pair(None, row) for row in right]


def _by_digest(left: Iterable[TensorRow], right: Iterable[TensorRow]) -> list[Pair]:
    waiting: dict[tuple[str, int], list[TensorRow]] = defaultdict(list)
    for row in left:
        waiting[row.digest, row.numel].append(row)
    found = []
    for row in right:
        same = waiting.get((row.digest, row.numel))
        if same and row.numel and row.digest:
            found.append(Pair(same.pop(0), row, "digest"))
    return found


def _by_sketch(left: Iterable[TensorRow], right: Iterable[TensorRow]) -> list[Pair]:
    groups: dict[tuple[int, str], tuple[list[TensorRow], list[TensorRow]]] = defaultdict(lambda: ([], []))
    for side, rows in enumerate((left, right)):
        for row in rows:
            if row.sketch is not None and row.norm:
                groups[row.numel, row.role][side].append(row)
    found = []
    for olds, news in groups.values():
        if olds and news and len(olds) * len(news) <= MAX_CANDIDATES**2:
            found += _best_pairs(olds, news)
    return found


def _best_pairs(olds: list[TensorRow], news: list[TensorRow]) -> list[Pair]:
    a = [(row, decode(row.sketch or "")) for row in olds]
    b = [(row, decode(row.sketch or "")) for row in news]
    scores = [[_score(x, y) for y in b] for x in a]
    found = []
    for i, (row, sketch) in enumerate(a):
        j = max(range(len(b)), key=scores[i].__getitem__)
        limit = RENAME_COSINE[min(sketch.k, b[j][1].k)]
        if scores[i][j] > limit and all(row_scores[j] <= scores[i][j] for row_scores in scores):
            found.append(Pair(row, b[j][0], "sketch"))
    return found


def _score(x: tuple[TensorRow, Sketch], y: tuple[TensorRow, Sketch]) -> float:
    found = estimate(x[0].norm, x[1], y[0].norm, y[1]).cosine
    return -2.0 if found is None else found
