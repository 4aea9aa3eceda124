"""What the renderers print of a number, a tensor or a whole model: the words are the same in all of them.

Standard library only: Git waits for the text.
"""

from __future__ import annotations

import math

from dvc_modelver.diff.adapters import is_second_factor
from dvc_modelver.diff.changes import FactChange, ModelDiff, Side, TensorChange, unravel
from dvc_modelver.diff.render.fold import Line
from dvc_modelver.fingerprint.estimate import PRINTED_L2, combine

NEGLIGIBLE_ERROR = 1e-3
"""A relative error below this is not printed: a rescale, or one changed element, is exact."""


def side_label(side: Side) -> str:
    """Name one side: its version number and the first 8 digits of its md5."""
    number = f"version {side.metadata.version.number} " if side.metadata is not None else ""
    return f"{number}{side.md5[:8]}" if side.md5 else number.strip() or side.rev


def side_labels(change: ModelDiff) -> list[str]:
    """Name the sides there are, each once, and the path of the old one where it is another."""
    old, new = change.old, change.new
    labels = list(dict.fromkeys(side_label(side) for side in (old, new) if side is not None))
    if old is not None and new is not None and old.path != new.path:
        return [f"{printable(old.path)} {side_label(old)}", side_label(new)]
    return labels


def summary_lines(change: ModelDiff, unicode: bool) -> list[str]:
    """Give what is said of the whole model: the reason of its kind, distances, counts; each line is indented by two."""
    if change.kind in ("added", "removed"):
        count = change.parameters["new" if change.kind == "added" else "old"]
        return [f"  {plural(change.tensors_total, 'tensor')}, {count_text(count)} parameters"] if change.tensors else []
    lines = [f"  {change.reason}"]
    if change.kind == "identical" or not change.tensors:
        return lines
    own = [t for t in change.tensors if t.is_parameter]
    numbers = []
    if change.relative_l2 is not None:
        differs = any(t.is_moved for t in own if has_same_size(t))
        numbers.append(f"relative L2 {l2_text(change.relative_l2, differs=differs)}{error_text(change, unicode)}")
    if change.cosine is not None:
        numbers.append(f"cosine {cosine_text(change.cosine)}")
    if change.distance is not None:
        numbers.append(f"L2 distance {change.distance:.3g}")
    renamed = sum(t.change == "renamed" and not t.is_moved for t in own)
    counts = f"{sum(t.is_moved for t in own):,} of {plural(len(own), 'tensor')} changed"
    counts += f", {renamed:,} only renamed" if renamed else ""
    old, new = change.parameters["old"], change.parameters["new"]
    if old != new:
        arrow = "→" if unicode else "->"
        counts += f", {count_text(old)} {arrow} {count_text(new)} parameters"
    else:
        counts += f", {count_text(change.parameters['changed'])} of {count_text(new)} parameters in them"
    unmatched = any(t.change in ("added", "removed") or not has_same_size(t) for t in own)
    whose = "of the tensors on both sides: " if unmatched else ""
    return [*lines, *(["  " + whose + ", ".join(numbers)] if numbers else []), "  " + counts]


def has_same_size(t: TensorChange) -> bool:
    """Whether a tensor has as many elements on both sides."""
    return t.old is not None and t.new is not None and t.old.numel == t.new.numel


def error_text(change: ModelDiff, unicode: bool) -> str:
    """Give the error of the distance of a model, with its sign; empty where it is negligible."""
    if not change.relative_l2_error or change.relative_l2 is None or change.relative_l2 < PRINTED_L2:
        return ""
    if change.relative_l2_error < NEGLIGIBLE_ERROR * change.relative_l2:
        return ""
    return f" {'±' if unicode else '+-'} {change.relative_l2_error:.1g}"


def detail_lines(line: Line) -> list[str]:
    """Say what the values tell besides: how many changed, signs, the rank of the update, the largest step and where."""
    notes = list(dict.fromkeys(t.note for t in line.tensors if t.note))
    products = [t.applied for t in line.tensors if t.applied is not None and is_second_factor(t.name)]
    if products:
        whole = combine(products)
        if whole.relative_l2 is not None and whole.cosine is not None:
            distance = l2_text(whole.relative_l2, differs=False)
            notes.append(f"applied as B A: relative L2 {distance}, cosine {cosine_text(whole.cosine)}")
    exact = [(t, t.exact) for t in line.tensors if t.exact is not None and t.exact.values_changed]
    if not exact:
        return notes
    numel = sum(t.row.numel for t, _ in exact)
    changed = sum(e.values_changed for _, e in exact)
    facts = [f"{share_text(changed, numel)} of the values changed"]
    t, largest = max(exact, key=lambda pair: pair[1].max_abs or 0)
    if largest.max_abs is not None and largest.max_abs_at is not None:
        where = ",".join(map(str, unravel(largest.max_abs_at, t.row.shape)))
        facts.append(
            f"by up to {largest.max_abs:.3g} at [{where}]" if len(exact) == 1 else f"by up to {largest.max_abs:.3g}"
        )
    flips = sum(e.sign_flips for _, e in exact)
    if flips:
        facts.append(f"{share_text(flips, numel)} changed sign")
    ranks = sorted({e.rank for _, e in exact if e.rank is not None})
    if ranks and all(e.rank is not None for _, e in exact):
        facts.append(f"update of rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else ""))
    return [*notes, "; ".join(facts)]


def share_text(part: int, whole: int) -> str:
    """Give a part of a whole in per cent, or as a count where that is tiny."""
    if part == whole:
        return "all"
    if part < 100 or part / whole < 1e-4:
        return f"{part:,}"
    return f"{min(100 * part / whole, 99.9):.3g} %"


def label_text(line: Line) -> str:
    """Give the name or pattern of a line, and how many tensors it stands for."""
    return printable(line.label) + (f" ({len(line.tensors)})" if len(line.tensors) > 1 else "")


def shapes_text(line: Line) -> str:
    """Give the shapes of a line, and the cast where all of them were cast alike."""
    found = list(
        dict.fromkeys(shape_text(t.old.shape if t.old else None, t.new.shape if t.new else None) for t in line.tensors)
    )
    dtypes = {(t.old.dtype, t.new.dtype) for t in line.tensors if t.old and t.new and t.old.dtype != t.new.dtype}
    cast = f" {'>'.join(dtypes.pop())}" if len(dtypes) == 1 else ""
    return (found[0] if len(found) == 1 else f"{len(found)} shapes") + cast


def shape_text(old: tuple[int, ...] | None, new: tuple[int, ...] | None) -> str:
    """Give a shape, or both where it changed."""

    def one(shape: tuple[int, ...]) -> str:
        return "x".join(map(str, shape)) or "scalar"

    if old is None or new is None or old == new:
        return one(new if new is not None else old or ())
    return f"{one(old)}>{one(new)}"


def distance_text(line: Line, unicode: bool) -> str:
    """Print the distance of all tensors of a line as one vector, with its error."""
    found = combine(t.measured for t in line.tensors)
    if found.relative_l2 is None:
        return "-" if line.change in ("modified", "renamed") else ""
    text = l2_text(found.relative_l2, differs=any(t.is_moved for t in line.tensors))
    if not found.error or found.error < NEGLIGIBLE_ERROR * found.relative_l2 or found.relative_l2 < PRINTED_L2:
        return text
    return f"{text} {'±' if unicode else '+-'} {found.error:.1g}"


def bar_text(line: Line) -> str:
    """Draw the distance of a line: two columns for each power of ten from 1e-4, all eight from 1 on."""
    distance = combine(t.measured for t in line.tensors).relative_l2
    if not distance:
        return ""
    eighths = round(8 * min(max(2 * (math.log10(distance) + 4), 0.125), 8))
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def cosine_of_line(line: Line) -> str:
    """Give the cosine similarity of all tensors of a line as one vector."""
    found = combine(t.measured for t in line.tensors).cosine
    if found is None:
        return "-" if line.change in ("modified", "renamed") else ""
    return cosine_text(found)


def are_numbers(f: FactChange) -> bool:
    """Whether both sides of a fact are numbers."""
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (f.old, f.new))


def value_text(value: object) -> str:
    """Give one side of a fact; of an md5, its first 8 digits."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = printable(str(value))
    return text[:8] if len(text) == 32 and all(c in "0123456789abcdef" for c in text) else text


def l2_text(value: float, *, differs: bool) -> str:
    """Print a distance; where bytes differ by less than a sketch shows, say so rather than 0."""
    if value < PRINTED_L2:
        return "<1e-6" if differs or value else "0"
    return f"{value:.3g}"


def cosine_text(value: float) -> str:
    """Print the digits that matter: 0.9999876 near 1, 0.031 near 0."""
    away = 1 - value
    if away <= 0:
        return "1"
    if away < 1e-9:
        return "1-1e-9" if away > 1e-12 else "1"
    digits = 3
    while away < 10 ** (1 - digits) and digits < 10:
        digits += 1
    return f"{value:.{digits}f}"


def count_text(n: int) -> str:
    """Give a count, shortened above a million."""
    for unit, size in (("B", 10**9), ("M", 10**6)):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:,}"


def plural(n: int, noun: str) -> str:
    """Give a count with its noun."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def printable(text: str) -> str:
    """Escape control characters, so that a name from a file cannot steer the terminal."""
    return (
        text
        if text.isprintable()
        else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    )
