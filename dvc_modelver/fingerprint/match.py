"""Pairs the tensors of two versions: by name, by a common rule for names, by equal digest, then by sketch."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dvc_modelver.fingerprint.estimate import RENAME_COSINE, Sketch, decode, estimate
from dvc_modelver.fingerprint.row import TensorRow

MAX_COMPARISONS = 20_000
"""Sketches are compared pair by pair at most so often; of more tensors of one size, only equal digests are found."""
MAX_PREFIX_PARTS = 4
MAX_RULES = 4
MIN_SHIFTED = 64
"""A tensor with fewer elements may well have the values of another by chance: counters, constants."""

_NUMBER = re.compile(r"\d+")
_BREAK = re.compile(r"[./]")
_SPELLINGS = {
    "kernel": "weight", "gamma": "weight", "beta": "bias", "moving_mean": "running_mean",
    "moving_variance": "running_var",
}  # fmt: skip
"""What Keras calls the tensors of a layer, and PyTorch."""


@dataclass(frozen=True)
class Pair:
    """Two tensors that correspond, or one that has no counterpart.

    Attributes:
        how: ``name``, ``rule``, ``digest`` or ``sketch``; empty for one side alone.
    """

    old: TensorRow | None
    new: TensorRow | None
    how: str = ""


@dataclass(frozen=True)
class Matching:
    """All tensors of both sides, paired.

    Attributes:
        rules: What renamed tensors have in common, one line each.
    """

    pairs: tuple[Pair, ...]
    rules: tuple[str, ...] = ()


def match_tensors(old: Sequence[TensorRow], new: Sequence[TensorRow], *, across: bool = False) -> Matching:
    """Pair the tensors of two tables.

    A name that is on both sides is a pair, unless the values moved to another name as they were (a layer was
    inserted, and those after it were renumbered). The rest is paired by a prefix that came, went or changed on many
    names at once; by equal digest and number of elements; by being each other's best match by sketch; and by the order
    of their numbers, where as many layers of the same shapes have others.

    Args:
        old: Tensors of the old side.
        new: Tensors of the new side.
        across: Pair names that two frameworks spell differently (``fc.weight``, ``fc/kernel``), of the same shape or
            of transposed ones: for a caller that measures the values, and so sees whether they were transposed.
    """
    by_name = {row.name: row for row in old}
    named = [Pair(by_name[row.name], row, "name") for row in new if row.name in by_name]
    pairs = _without_shifted(named)
    kept = {id(pair) for pair in pairs}
    names = {pair.new.name for pair in pairs if pair.new is not None}
    left = [row for row in old if row.name not in names]
    right = [row for row in new if row.name not in names]
    rules: list[str] = []
    for step in (_by_prefix, *([_by_spelling] if across else []), _by_digest, _by_sketch, _by_number):
        if not left or not right:
            break
        found, said = step(left, right)
        pairs += found
        rules += said
        gone, come = {id(p.old) for p in found}, {id(p.new) for p in found}
        left = [row for row in left if id(row) not in gone]
        right = [row for row in right if id(row) not in come]
    alone = {row.name for row in left} & {row.name for row in right}  # of pairs that were parted to no avail
    pairs += [pair for pair in named if id(pair) not in kept and pair.new and pair.new.name in alone]
    rest = [Pair(row, None) for row in left if row.name not in alone]
    rest += [Pair(None, row) for row in right if row.name not in alone]
    return Matching((*pairs, *rest), (*rules, *_renumbered(pairs)))


def _without_shifted(named: list[Pair]) -> list[Pair]:
    """Leave out the pairs whose old values stand under another name now, or whose new ones stood there."""
    moved = [(p, p.old, p.new) for p in named if p.old and p.new and p.old.digest != p.new.digest]
    large = [(p, a, b) for p, a, b in moved if a.digest and b.digest and min(a.numel, b.numel) >= MIN_SHIFTED]
    before = Counter((a.digest, a.numel) for _, a, _ in large)
    after = Counter((b.digest, b.numel) for _, _, b in large)
    shifted = {
        id(p) for p, a, b in large
        if after[a.digest, a.numel] == before[a.digest, a.numel] == 1
        or before[b.digest, b.numel] == after[b.digest, b.numel] == 1
    }  # fmt: skip
    return [p for p in named if id(p) not in shifted]


def _by_prefix(left: Sequence[TensorRow], right: Sequence[TensorRow]) -> tuple[list[Pair], list[str]]:
    found: list[Pair] = []
    rules: list[str] = []
    for _ in range(MAX_RULES):
        gone, come = {id(p.old) for p in found}, {id(p.new) for p in found}
        olds = [row for row in left if id(row) not in gone]
        news = [row for row in right if id(row) not in come]
        votes: Counter[tuple[str, str]] = Counter()
        ends: dict[str, list[tuple[str, TensorRow]]] = defaultdict(list)
        for row in news:
            for prefix, rest in _splits(row.name):
                ends[rest].append((prefix, row))
        for row in olds:
            for prefix, rest in _splits(row.name):
                for other, same_end in ends.get(rest, ())[:4]:
                    # Which number became which is for the values to say.
                    is_word = other != prefix and _NUMBER.sub("#", other) != _NUMBER.sub("#", prefix)
                    votes[prefix, other] += is_word and row.shape == same_end.shape
        best = max(votes.items(), key=lambda item: (item[1], -len(item[0][0]) - len(item[0][1])), default=None)
        if best is None or best[1] < max(2, min(len(olds), len(news)) // 4):
            break
        before, after = best[0]
        there = {row.name: row for row in news}
        step = [
            Pair(row, there[after + row.name[len(before) :]], "rule")
            for row in olds
            if row.name.startswith(before) and after + row.name[len(before) :] in there
        ]
        found += step
        rules.append(_prefix_rule(before, after, len(step)))
    return found, rules


def _splits(name: str) -> list[tuple[str, str]]:
    """Give (prefix, rest) of a name, the empty prefix first; a prefix ends in a separator."""
    cuts = [0, *(m.end() for m in _BREAK.finditer(name))][: MAX_PREFIX_PARTS + 1]
    return [(name[:cut], name[cut:]) for cut in cuts]


def _prefix_rule(before: str, after: str, n: int) -> str:
    if not before:
        what = f"prefix {after!r} was added"
    elif not after:
        what = f"prefix {before!r} was removed"
    else:
        what = f"prefix {before!r} became {after!r}"
    return f"{what} ({n} tensor{'s' * (n != 1)})"


def _by_spelling(left: Sequence[TensorRow], right: Sequence[TensorRow]) -> tuple[list[Pair], list[str]]:
    sides = [defaultdict[tuple[str, ...], list[TensorRow]](list), defaultdict[tuple[str, ...], list[TensorRow]](list)]
    for side, rows in zip(sides, (left, right), strict=True):
        for row in rows:
            side[_spelled(row.name)].append(row)
    found = []
    for name, olds in sides[0].items():
        news = sides[1].get(name, [])
        if len(olds) == len(news) == 1:
            a, b = olds[0], news[0]
            if a.shape == b.shape or find_axes(a.shape, b.shape) is not None:
                found.append(Pair(a, b, "rule"))
    if not found:
        return [], []
    ends = {(_BREAK.split(p.old.name)[-1], _BREAK.split(p.new.name)[-1]) for p in found if p.old and p.new}
    said = ", ".join(f"{a} as {b}" for a, b in sorted(ends) if a != b) or "other separators"
    return found, [f"names in another framework's spelling: {said} ({len(found)} tensor{'s' * (len(found) != 1)})"]


def _spelled(name: str) -> tuple[str, ...]:
    """Give the parts of a name, the last one as PyTorch calls it."""
    *folders, last = _BREAK.split(name)
    return *folders, _SPELLINGS.get(last, last)


def find_axes(old: Sequence[int], new: Sequence[int]) -> tuple[int, ...] | None:
    """Give the axes of `new` in the order of `old`, for the layouts of two frameworks; None where they do not fit.

    A matrix is transposed; a convolution's kernel is ``[out, in, *space]`` in PyTorch, ``[*space, in, out]`` in Keras.
    """
    n = len(old)
    orders = [(1, 0)] if n == 2 else [(n - 1, n - 2, *range(n - 2)), (*range(2, n), 1, 0)] if n > 2 else []
    fits = (order for order in orders if len(new) == n and tuple(new[i] for i in order) == tuple(old))
    return next(fits, None)


def _by_digest(left: Iterable[TensorRow], right: Iterable[TensorRow]) -> tuple[list[Pair], list[str]]:
    waiting: dict[tuple[str, int], list[TensorRow]] = defaultdict(list)
    for row in left:
        waiting[row.digest, row.numel].append(row)
    found = []
    for row in right:
        same = waiting.get((row.digest, row.numel))
        if same and row.numel and row.digest:
            found.append(Pair(same.pop(0), row, "digest"))
    return found, []


def _by_sketch(left: Iterable[TensorRow], right: Iterable[TensorRow]) -> tuple[list[Pair], list[str]]:
    groups: dict[tuple[int, str], tuple[list[TensorRow], list[TensorRow]]] = defaultdict(lambda: ([], []))
    for side, rows in enumerate((left, right)):
        for row in rows:
            if row.sketch is not None and row.norm:
                groups[row.numel, row.role][side].append(row)
    found = []
    budget = MAX_COMPARISONS
    for olds, news in sorted(groups.values(), key=lambda group: len(group[0]) * len(group[1])):
        budget -= len(olds) * len(news)
        if olds and news and budget >= 0:
            found += _best_pairs(olds, news)
    return found, []


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


def _by_number(left: Iterable[TensorRow], right: Iterable[TensorRow]) -> tuple[list[Pair], list[str]]:
    groups: dict[tuple[str, tuple[int, ...]], tuple[list[TensorRow], list[TensorRow]]] = defaultdict(lambda: ([], []))
    for side, rows in enumerate((left, right)):
        for row in rows:
            if _NUMBER.search(row.name):
                groups[_NUMBER.sub("#", row.name), row.shape][side].append(row)
    found = []
    for olds, news in groups.values():
        if len(olds) == len(news):
            pairs = zip(sorted(olds, key=_numbers), sorted(news, key=_numbers), strict=True)
            found += [Pair(a, b, "rule") for a, b in pairs]
    return found, []


def _numbers(row: TensorRow) -> list[int]:
    return [int(n) for n in _NUMBER.findall(row.name)]


def is_explained(pair: Pair) -> bool:
    """Whether a renamed tensor's new name follows from a rule that is said once for all."""
    if pair.old is None or pair.new is None or pair.old.name == pair.new.name:
        return False
    return pair.how == "rule" or _NUMBER.sub("#", pair.old.name) == _NUMBER.sub("#", pair.new.name)


def _renumbered(pairs: Iterable[Pair]) -> list[str]:
    """Say which renamed tensors differ in one number alone, a line for each name with that number left open."""
    steps: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for pair in pairs:
        if pair.old is None or pair.new is None or pair.old.name == pair.new.name:
            continue
        a, b = re.split(r"(\d+)", pair.old.name), re.split(r"(\d+)", pair.new.name)
        differ = [i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
        if len(a) == len(b) and len(differ) == 1 and differ[0] % 2:
            steps["".join(a[: differ[0]]) + "#"].append((int(a[differ[0]]), int(b[differ[0]])))
    return [f"renumbered {label}: {_moves(found)}" for label, found in steps.items()]


def _moves(found: list[tuple[int, int]]) -> str:
    steps = sorted(set(found))
    count = f"({len(found)} tensor{'s' * (len(found) != 1)})"
    first, last = steps[0], steps[-1]
    if len(steps) > 1 and len({b - a for a, b in steps}) == 1:
        return f"{first[0]}-{last[0]} became {first[1]}-{last[1]} {count}"
    shown = ", ".join(f"{a} became {b}" for a, b in steps[:3])
    return f"{shown}{', ...' if len(steps) > 3 else ''} {count}"
