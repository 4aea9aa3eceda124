"""The comparison for a comment on a pull request: short, with the layers folded away, never too long to be posted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dvc_modelver.diff.changes import FactChange, ModelDiff
from dvc_modelver.diff.render.cells import (
    are_numbers,
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
from dvc_modelver.diff.render.fold import Line, folded

MARKER = "<!-- modelver diff -->"
"""First line of the comment: whoever posts it finds the one to update by it."""
MAX_CHARACTERS = 60_000
"""GitHub takes 65,536 characters in a comment."""
MAX_FACTS = 60
MAX_MODELS = 50

_CUT = "\nThe report is longer than a comment may be: `modelver diff` shows all of it.\n"


def render_markdown(models: Sequence[ModelDiff]) -> str:
    """Give the document, at most `MAX_CHARACTERS` long, with a final newline."""
    if not models:
        return f"{MARKER}\n### Models\n\nNo model changed.\n"
    parts = [f"{MARKER}\n"]
    left = MAX_CHARACTERS - len(parts[0]) - len(_CUT)
    for i, model in enumerate(models):
        share = left // min(len(models) - i, MAX_MODELS)
        text = _model(model, share)
        if i >= MAX_MODELS or len(text) > left:
            parts.append(_CUT)
            break
        parts.append(text)
        left -= len(text)
    return "\n".join(parts).rstrip("\n") + "\n"


def _model(change: ModelDiff, limit: int) -> str:
    sides = " → ".join(side_labels(change))
    head = [f"### {code(change.path[-200:])}: {change.kind}", "", f"{plain(sides)}", ""]
    said = [*(line.strip() for line in summary_lines(change, unicode=True)), *change.renames]
    head += [f"- {plain(line[:400])}" for line in said]
    head += [f"- :warning: {plain(line[:400])}" for line in change.warnings[:10]]
    for title, facts in (
        ("Metric", change.metrics),
        ("Hyper-parameter", change.hyperparameters),
        ("Data", change.data),
        ("Structure", change.structure),
    ):
        head += _facts(title, facts)
    text = "\n".join(head) + "\n"
    if len(text) > limit:
        return f"### {code(change.path[-200:])}: {change.kind}\n"
    return text + _layers(change, limit - len(text))


def _facts(title: str, facts: Sequence[FactChange]) -> list[str]:
    if not facts:
        return []
    rows = ["", f"| {title} | old | new | |", "|---|---:|---:|---:|"]
    for f in facts[:MAX_FACTS]:
        step = f"{f.new - f.old:+.4g}" if title == "Metric" and are_numbers(f) else ""
        rows.append(f"| {_cell(f.name)} | {_cell(value_text(f.old))} | {_cell(value_text(f.new))} | {step} |")
    if len(facts) > MAX_FACTS:
        rows.append(f"| and {len(facts) - MAX_FACTS} more | | | |")
    return rows


def _layers(change: ModelDiff, limit: int) -> str:
    own = [t for t in change.tensors if t.is_parameter]
    changed = [t for t in own if t.change != "unchanged" and (t.is_moved or not t.by_rule)]
    if change.kind in ("added", "removed", "identical") or not changed:
        return ""
    lines = folded(changed, change.tensors)
    head = (
        f"\n<details><summary>{plural(len(changed), 'tensor')} in {plural(len(lines), 'line')}</summary>\n\n"
        "| | tensor | shape | relative L2 | cosine |\n|---|---|---|---:|---:|\n"
    )
    foot = "\n</details>\n"
    rows, left = [], limit - len(head) - len(foot) - 40
    for n, row in enumerate(_rows(lines)):
        if len(row) > left:
            rows.append(f"| | and {len(lines) - n} more lines | | | |\n")
            break
        rows.append(row)
        left -= len(row)
    return head + "".join(rows) + foot if left >= 0 else ""


def _rows(lines: Iterable[Line]) -> Iterable[str]:
    for line in lines:
        note = "".join(f"<br>{plain(text)}" for text in detail_lines(line))
        first = line.tensors[0]
        was = f"<br>was {code(first.old_name)}" if first.old_name is not None and not first.by_rule else ""
        yield (
            f"| {line.change} | {code(label_text(line))}{was}{note} | {_cell(shapes_text(line))} "
            f"| {distance_text(line, unicode=True)} | {cosine_of_line(line)} |\n"
        )


def plain(text: str) -> str:
    """Escape what Markdown and HTML would take for more than text."""
    text = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|#@!" else c for c in text)


def _cell(text: str) -> str:
    return plain(text[:200])


def code(text: str) -> str:
    """Give a name as code; a code span takes no escapes, so what would end it or the cell is replaced."""
    return "`" + printable(text[:200]).replace("`", "'").replace("|", "¦") + "`"
