"""The comparison for a terminal, 80 columns wide. Standard library only: Git waits for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dvc_modelver.diff.changes import FactChange, ModelDiff
from dvc_modelver.diff.render.cells import (
    are_numbers,
    bar_text,
    cosine_of_line,
    detail_lines,
    distance_text,
    label_text,
    plural,
    printable,
    shapes_text,
    side_labels,
    summary_lines,
    value_text,
)
from dvc_modelver.diff.render.fold import Line, folded, unfolded

MAX_LINES = 40
"""Lines of tensors in a folded report; the rest is counted."""
BAR = 8
"""Columns of the bar of a line."""
MAX_FACTS = 40
"""Lines of each kind of facts."""
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
    out = [_headline(change, palette, unicode), *summary_lines(change, unicode)]
    out += [f"  {printable(line)}" for line in change.renames]
    out += [palette.paint("old", f"  warning: {printable(line)}") for line in change.warnings]
    out += _tensor_lines(change, width, palette, unicode=unicode, all_tensors=all_tensors)
    for title, facts in (
        ("hyper-parameters", change.hyperparameters),
        ("metrics", change.metrics),
        ("data", change.data),
        ("structure", change.structure),
    ):
        out += _fact_lines(title, facts, palette, unicode)
    return "".join(line.rstrip() + "\n" for line in out)


def _headline(change: ModelDiff, palette: Palette, unicode: bool) -> str:
    arrow = "→" if unicode else "->"
    versions = f" {arrow} ".join(side_labels(change))
    return palette.paint("meta", f"{printable(change.path)}  {versions}  ") + palette.paint("frag", change.kind)


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
            out.append(f"  > {plural(renamed, 'tensor')} only renamed")
        if same:
            out.append(
                f"  = {plural(len(same), 'tensor')} unchanged"
                + (f" ({_examples(same, width - 34)})" if len(same) < 4 else "")
            )
        if state:
            moved = sum(t.is_moved for t in state)
            out.append(f"    optimizer state: {moved} of {plural(len(state), 'tensor')} changed, not counted above")
    return ["", *out] if out else out


def _examples(tensors: Sequence[object], width: int) -> str:
    text = ", ".join(printable(str(getattr(t, "name", ""))) for t in tensors)
    return _squeezed(text, max(width, 20))


def _columns(lines: Sequence[Line], width: int, palette: Palette, unicode: bool) -> list[str]:
    cells = [
        (line, label_text(line), shapes_text(line), distance_text(line, unicode), cosine_of_line(line))
        for line in lines
    ]
    shape_w = min(max(5, *(len(c[2]) for c in cells)), 24)
    l2_w, cos_w = max(7, *(len(c[3]) for c in cells)), max(6, *(len(c[4]) for c in cells))
    longest, room = max(len(c[1]) for c in cells), width - shape_w - l2_w - 8
    shows_cosine = longest <= room - cos_w - 2  # a name in full says more than a cosine next to a distance
    shows_bars = unicode and longest <= room - cos_w - 4 - BAR
    name_w = max(16, min(longest, room - (cos_w + 2 if shows_cosine else 0)))
    head = f"    {'':<{name_w}}  {'shape':<{shape_w}}  {'rel. L2':>{l2_w}}" + f"  {'cosine':>{cos_w}}" * shows_cosine
    out = [palette.paint("frag", head.rstrip())]
    for line, name, shape, l2, cosine in cells:
        sign = _SIGN[line.change]
        left = f"{_squeezed(name, name_w):<{name_w}}  {_squeezed(shape, shape_w):<{shape_w}}"
        text = f"  {sign} {left}  {l2:>{l2_w}}" + f"  {cosine:>{cos_w}}" * shows_cosine
        text += f"  {bar_text(line)}" * shows_bars
        style = {"added": "new", "removed": "old"}.get(line.change, "")
        out.append(palette.paint(style, text.rstrip()))
        out += [f"      {printable(text)}" for text in detail_lines(line)]
        first = line.tensors[0]
        if first.old_name is not None and not first.by_rule:
            out.append(f"      was {_squeezed(printable(first.old_name), width - 10)}")
    return out


def _fact_lines(title: str, facts: Iterable[FactChange], palette: Palette, unicode: bool) -> list[str]:
    rows = list(facts)
    if not rows:
        return []
    more = len(rows) - MAX_FACTS if len(rows) > MAX_FACTS + 1 else 0
    rows = rows[: len(rows) - more]
    arrow = "→" if unicode else "->"
    width = max(len(printable(f.name)) for f in rows)
    out = ["", palette.paint("frag", f"  {title}")]
    for f in rows:
        step = f"  ({f.new - f.old:+.4g})" if title == "metrics" and are_numbers(f) else ""
        text = f"    {printable(f.name):<{width}}  {value_text(f.old)} {arrow} {value_text(f.new)}{step}"
        out.append(palette.paint("new" if f.old is None else "old" if f.new is None else "", text))
    return [*out, f"    and {more} more (modelver diff --json)"] if more else out


def _squeezed(text: str, width: int) -> str:
    """Shorten a text in its middle."""
    if len(text) <= width:
        return text
    left = (width - 2) // 2
    return f"{text[:left]}..{text[len(text) - (width - 2 - left) :]}"
