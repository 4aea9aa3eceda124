"""The comparison for a terminal, 80 columns wide. Standard library only: Git waits for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dvc_modelver.diff.compare import FactChange, ModelDiff, Side, TensorChange, unravel
from dvc_modelver.diff.render.fold import Line, folded, unfolded
from dvc_modelver.fingerprint.estimate import PRINTED_L2, combine

MAX_LINES = 40
"""Lines of tensors in a folded report; the rest is counted."""
NEGLIGIBLE_ERROR = 1e-3
"""A relative error below this is not printed: a rescale, or one changed element, is exact."""
_SIGN = {"modified": "~", "added": "+", "removed": "-", "renamed": ">", "unchanged": "="}


@dataclass(frozen=True)
class Palette:
    """ANSI sequences, as Git's own configuration has them; empty ones print no colour."""

    meta: str = "\x1b[1m"
    old: str = "\x1b[31m"
    new: str = "\x1b[32m"
    frag: str = "\x1b[36m"
    reset: str = "\x1b[m"

    def paint(self, style: str, text: str) -> str:
        """Give `text` in one of the styles; as it is where that style is empty."""
        code = {"meta": self.meta, "old": self.old, "new": self.new, "frag": self.frag}.get(style, "")
        return f"{code}{text}{self.reset}" if code else text


PLAIN = Palette("", "", "", "", "")


def render_text(
    change: ModelDiff,
    *,
    width: int = 80,
    palette: Palette = PLAIN,
    unicode: bool = True,
    all_tensors: bool = False,
) -> str:
    """Give the report of one model, with a final newline.

    Args:
        change: What was measured.
        width: Columns.
        palette: Colours.
        unicode: Whether ``±`` and ``→`` can be printed.
        all_tensors: One line per tensor, nothing folded or left out.
    """
    out = [_headline(change, palette, unicode), *_summary(change, unicode)]
    out += [f"  {printable(line)}" for line in change.renames]
    out += [palette.paint("old", f"  warning: {printable(line)}") for line in change.warnings]
    out += _tensor_lines(change, width, palette, unicode=unicode, all_tensors=all_tensors)
    for title, facts in (
        ("hyper-parameters", change.hyperparameters),
        ("metrics", change.metrics),
        ("data", change.data),
    ):
        out += _fact_lines(title, facts, palette, unicode)
    return "".join(line.rstrip() + "\n" for line in out)


def _headline(change: ModelDiff, palette: Palette, unicode: bool) -> str:
    arrow = "→" if unicode else "->"
    sides = [_side(s) for s in (change.old, change.new) if s is not None]
    versions = f" {arrow} ".join(dict.fromkeys(sides)) if len(sides) == 2 else (sides[0] if sides else "")
    return palette.paint("meta", f"{printable(change.path)}  {versions}  ") + palette.paint("frag", change.kind)


def _side(side: Side) -> str:
    number = f"version {side.metadata.version.number} " if side.metadata is not None else ""
    return f"{number}{side.md5[:8]}" if side.md5 else number.strip() or side.rev


def _summary(change: ModelDiff, unicode: bool) -> list[str]:
    if change.kind in ("added", "removed"):
        count = change.parameters["new" if change.kind == "added" else "old"]
        return [f"  {_plural(change.tensors_total, 'tensor')}, {_count(count)} parameters"] if change.tensors else []
    lines = [f"  {change.reason}"]
    if change.kind == "identical" or not change.tensors:
        return lines
    numbers = []
    if change.relative_l2 is not None:
        differs = any(t.is_moved for t in change.tensors if t.is_parameter and _same_size(t))
        numbers.append(f"relative L2 {_l2(change.relative_l2, differs=differs)}{_error(change, unicode)}")
    if change.cosine is not None:
        numbers.append(f"cosine {_cosine(change.cosine)}")
    counts = f"{change.tensors_changed} of {_plural(change.tensors_total, 'tensor')} changed"
    old, new = change.parameters["old"], change.parameters["new"]
    if old != new:
        arrow = "→" if unicode else "->"
        counts += f", {_count(old)} {arrow} {_count(new)} parameters"
    else:
        counts += f", {_count(change.parameters['changed'])} of {_count(new)} parameters in them"
    unmatched = any(t.change in ("added", "removed") or not _same_size(t) for t in change.tensors if t.is_parameter)
    whose = "of the tensors on both sides: " if unmatched else ""
    return [*lines, *(["  " + whose + ", ".join(numbers)] if numbers else []), "  " + counts]


def _same_size(t: TensorChange) -> bool:
    return t.old is not None and t.new is not None and t.old.numel == t.new.numel


def _error(change: ModelDiff, unicode: bool) -> str:
    if not change.relative_l2_error or change.relative_l2 is None or change.relative_l2 < PRINTED_L2:
        return ""
    if change.relative_l2_error < NEGLIGIBLE_ERROR * change.relative_l2:
        return ""
    return f" {'±' if unicode else '+-'} {change.relative_l2_error:.1g}"


def _tensor_lines(change: ModelDiff, width: int, palette: Palette, *, unicode: bool, all_tensors: bool) -> list[str]:
    if change.kind in ("added", "removed", "identical") and not all_tensors:
        return []
    own = [t for t in change.tensors if t.is_parameter]
    changed = [t for t in own if t.change != "unchanged" and (t.is_moved or not t.by_rule)]
    renamed = sum(t.by_rule and not t.is_moved for t in own)
    same = [t for t in own if t.change == "unchanged"]
    state = [t for t in change.tensors if not t.is_parameter]
    lines = unfolded(change.tensors) if all_tensors else folded(changed, change.tensors)
    shown = lines if all_tensors else lines[:MAX_LINES]
    out = _columns(shown, width, palette, unicode) if shown else []
    if len(lines) > len(shown):
        out.append(f"    and {len(lines) - len(shown)} more lines (modelver diff --all-tensors)")
    if not all_tensors:
        if renamed:
            out.append(f"  > {_plural(renamed, 'tensor')} only renamed")
        if same:
            out.append(
                f"  = {_plural(len(same), 'tensor')} unchanged"
                + (f" ({_examples(same, width - 34)})" if len(same) < 4 else "")
            )
        if state:
            moved = sum(t.change != "unchanged" for t in state)
            out.append(f"    optimizer state: {moved} of {_plural(len(state), 'tensor')} changed, not counted above")
    return ["", *out] if out else out


def _examples(tensors: Sequence[object], width: int) -> str:
    text = ", ".join(printable(str(getattr(t, "name", ""))) for t in tensors)
    return _squeezed(text, max(width, 20))


def _columns(lines: Sequence[Line], width: int, palette: Palette, unicode: bool) -> list[str]:
    cells = [(line, printable(line.label) + (f" ({len(line.tensors)})" if len(line.tensors) > 1 else ""), _shapes(line),
              _distance(line, unicode), _cosines(line)) for line in lines]  # fmt: skip
    shape_w = min(max(5, *(len(c[2]) for c in cells)), 24)
    l2_w, cos_w = max(7, *(len(c[3]) for c in cells)), max(6, *(len(c[4]) for c in cells))
    longest, room = max(len(c[1]) for c in cells), width - shape_w - l2_w - 8
    shows_cosine = longest <= room - cos_w - 2  # a name in full says more than a cosine next to a distance
    name_w = max(16, min(longest, room - (cos_w + 2 if shows_cosine else 0)))
    head = f"    {'':<{name_w}}  {'shape':<{shape_w}}  {'rel. L2':>{l2_w}}" + f"  {'cosine':>{cos_w}}" * shows_cosine
    out = [palette.paint("frag", head.rstrip())]
    for line, name, shape, l2, cosine in cells:
        sign = _SIGN[line.change]
        left = f"{_squeezed(name, name_w):<{name_w}}  {_squeezed(shape, shape_w):<{shape_w}}"
        text = f"  {sign} {left}  {l2:>{l2_w}}" + f"  {cosine:>{cos_w}}" * shows_cosine
        style = {"added": "new", "removed": "old"}.get(line.change, "")
        out.append(palette.paint(style, text.rstrip()))
        out += [f"      {printable(text)}" for text in _details(line)]
        first = line.tensors[0]
        if first.old_name is not None and not first.by_rule:
            out.append(f"      was {_squeezed(printable(first.old_name), width - 10)}")
    return out


def _details(line: Line) -> list[str]:
    """Say what the values tell besides: how many changed, signs, the rank of the update, the largest step and where."""
    notes = list(dict.fromkeys(t.note for t in line.tensors if t.note))
    exact = [(t, t.exact) for t in line.tensors if t.exact is not None and t.exact.values_changed]
    if not exact:
        return notes
    numel = sum(t.row.numel for t, _ in exact)
    changed = sum(e.values_changed for _, e in exact)
    facts = [f"{_share(changed, numel)} of the values changed"]
    t, largest = max(exact, key=lambda pair: pair[1].max_abs or 0)
    if largest.max_abs is not None and largest.max_abs_at is not None:
        where = ",".join(map(str, unravel(largest.max_abs_at, t.row.shape)))
        facts.append(
            f"by up to {largest.max_abs:.3g} at [{where}]" if len(exact) == 1 else f"by up to {largest.max_abs:.3g}"
        )
    flips = sum(e.sign_flips for _, e in exact)
    if flips:
        facts.append(f"{_share(flips, numel)} changed sign")
    ranks = sorted({e.rank for _, e in exact if e.rank is not None})
    if ranks and all(e.rank is not None for _, e in exact):
        facts.append(f"update of rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else ""))
    return [*notes, "; ".join(facts)]


def _share(part: int, whole: int) -> str:
    if part == whole:
        return "all"
    if part < 100 or part / whole < 1e-4:
        return f"{part:,}"
    return f"{min(100 * part / whole, 99.9):.3g} %"


def _shapes(line: Line) -> str:
    found = list(
        dict.fromkeys(_shape(t.old.shape if t.old else None, t.new.shape if t.new else None) for t in line.tensors)
    )
    dtypes = {(t.old.dtype, t.new.dtype) for t in line.tensors if t.old and t.new and t.old.dtype != t.new.dtype}
    cast = f" {'>'.join(dtypes.pop())}" if len(dtypes) == 1 else ""
    return (found[0] if len(found) == 1 else f"{len(found)} shapes") + cast


def _shape(old: tuple[int, ...] | None, new: tuple[int, ...] | None) -> str:
    def one(shape: tuple[int, ...]) -> str:
        return "x".join(map(str, shape)) or "scalar"

    if old is None or new is None or old == new:
        return one(new if new is not None else old or ())
    return f"{one(old)}>{one(new)}"


def _distance(line: Line, unicode: bool) -> str:
    """Print the distance of all tensors of a line as one vector, with its error."""
    found = combine(t.measured for t in line.tensors)
    if found.relative_l2 is None:
        return "-" if line.change in ("modified", "renamed") else ""
    text = _l2(found.relative_l2, differs=any(t.is_moved for t in line.tensors))
    if not found.error or found.error < NEGLIGIBLE_ERROR * found.relative_l2 or found.relative_l2 < PRINTED_L2:
        return text
    return f"{text} {'±' if unicode else '+-'} {found.error:.1g}"


def _cosines(line: Line) -> str:
    found = combine(t.measured for t in line.tensors).cosine
    if found is None:
        return "-" if line.change in ("modified", "renamed") else ""
    return _cosine(found)


def _fact_lines(title: str, facts: Iterable[FactChange], palette: Palette, unicode: bool) -> list[str]:
    rows = list(facts)
    if not rows:
        return []
    arrow = "→" if unicode else "->"
    width = max(len(printable(f.name)) for f in rows)
    out = ["", palette.paint("frag", f"  {title}")]
    for f in rows:
        step = f"  ({f.new - f.old:+.4g})" if title == "metrics" and _are_numbers(f) else ""
        text = f"    {printable(f.name):<{width}}  {_value(f.old)} {arrow} {_value(f.new)}{step}"
        out.append(palette.paint("new" if f.old is None else "old" if f.new is None else "", text))
    return out


def _are_numbers(f: FactChange) -> bool:
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (f.old, f.new))


def _value(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = printable(str(value))
    return text[:8] if len(text) == 32 and all(c in "0123456789abcdef" for c in text) else text


def _l2(value: float, *, differs: bool) -> str:
    """Print a distance; where bytes differ by less than a sketch shows, say so rather than 0."""
    if value < PRINTED_L2:
        return "<1e-6" if differs or value else "0"
    return f"{value:.3g}"


def _cosine(value: float) -> str:
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


def _count(n: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6)):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:,}"


def _plural(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _squeezed(text: str, width: int) -> str:
    """Shorten a text in its middle."""
    if len(text) <= width:
        return text
    left = (width - 2) // 2
    return f"{text[:left]}..{text[len(text) - (width - 2 - left) :]}"


def printable(text: str) -> str:
    """Escape control characters, so that a name from a file cannot steer the terminal."""
    return (
        text
        if text.isprintable()
        else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    )
