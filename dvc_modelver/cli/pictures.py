"""The lineage as a picture: a graph for Graphviz, and the drawing in the HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dvc_modelver.cli.lineage import cosine_of, how_text, version_lines
from dvc_modelver.cli.output import printable

if TYPE_CHECKING:
    from dvc_modelver.api.ancestry import Traced
    from dvc_modelver.registry.graph import Key
    from dvc_modelver.registry.lineage import Ancestor, Lineage, Recorded

MAX_DRAWN = 300
"""Boxes of the drawing; of more versions the newest are drawn, and the table below has all."""
MAX_ROWS = 5_000
"""Rows of the table below it."""
_PLAIN = 60
"""Up to so many versions, each one has a box; of more, uneventful ones in a row share one."""


def dot(found: Traced) -> str:
    """Give the graph in Graphviz' language, edges from parent to child; dashed ones are measured."""
    every = found.lineage
    lines = ["digraph lineage {", '  rankdir="TB";', '  node [shape="box", fontname="sans-serif"];']
    for v in every.versions.values():
        names = [*v.tags, *(f"#{stage}" for stage in v.stages)]
        label = "\n".join([every.label(v.key), v.md5[:8], *([" ".join(names)] if names else [])])
        lines.append(f"  {_quoted(_id(v.key))} [label={_quoted(label)}, tooltip={_quoted(v.subject)}];")
    unknown = sorted({a.key for v in every.versions for a in every.ancestors[v] if a.key not in every.versions})
    for key in unknown:
        lines.append(f'  {_quoted(_id(key))} [label={_quoted(every.label(key))}, style="dashed"];')
    for key in every.versions:
        for a in every.ancestors[key]:
            style = {"measured": "dashed"}.get(a.source, "solid") if not a.is_cycle else "dotted"
            label = " ".join(x for x in (a.how, "" if a.cosine is None else f"{a.cosine:.4g}") if x)
            lines.append(
                f"  {_quoted(_id(a.key))} -> {_quoted(_id(key))} [label={_quoted(label)}, style={_quoted(style)}];"
            )
    return "\n".join([*lines, "}"]) + "\n"


def _id(key: Key) -> str:
    return f"{key[0]}@{key[1]}"


def _quoted(text: str) -> str:
    """Give a text as Graphviz reads it between quotes; what could steer a terminal is escaped."""
    lines = [printable(line).replace("\\", "\\\\").replace('"', '\\"') for line in text.split("\n")]
    return '"' + "\\n".join(lines) + '"'


def page(title: str, found: Traced) -> str:
    """Give the page: the drawing, what does not add up, and a table of all versions."""
    from dvc_modelver.diff.render.html import render_page

    return render_page(f"{title}: lineage", {"graph": drawing(found), "rows": _table(found)})


def _table(found: Traced) -> list[list[str]]:
    rows = [["version", "md5", "date", "made from", "tags", "data", "commit"]]
    for v in reversed(list(found.lineage.versions.values())[-MAX_ROWS:]):
        names = [*(t.partition("@")[2] for t in v.tags), *(f"#{s}" for s in v.stages)]
        data = ", ".join(f"{d.get('path')} {str(d.get('md5') or '')[:8]}" for d in v.facts.data)
        how = how_text(found.lineage, v)
        rows.append([found.lineage.label(v.key), v.md5[:8], v.date[:10], how, " ".join(names), data, v.subject])
    return rows


def drawing(found: Traced) -> dict[str, Any]:
    """Give boxes, lines and remarks as the page draws them; the newest versions are below."""
    from dvc_modelver.registry.layout import lay_out

    every = found.lineage
    runs = _runs(found)
    box_of = {key: run[-1] for run in runs for key in run}
    shown = {run[-1]: run for run in sorted(runs, key=lambda r: every.versions[r[-1]].age)[-MAX_DRAWN:]}
    graph: dict[Key, list[Key]] = {}
    edges: dict[tuple[Key, Key], Ancestor] = {}
    for key, run in shown.items():
        graph[key] = []
        for a in every.ancestors[run[0]]:
            parent = box_of.get(a.key, a.key)
            if a.is_cycle or (a.is_known and parent not in shown):
                continue
            graph.setdefault(parent, [])
            if parent not in graph[key]:
                graph[key].append(parent)
            edges[key, parent] = a
    layout = lay_out(graph)
    doubted = {key for key in every.versions if any(a.source == "measured" for a in every.ancestors[key])}
    lines = []
    for (child, parent), a in edges.items():
        points = [layout.places[parent], *layout.bends.get((child, parent), ()), layout.places[child]]
        is_doubted = a.source == "declared" and shown[child][0] in doubted
        kind = "doubt" if is_doubted else a.source
        tip = f"{every.label(a.key)} to {every.label(shown[child][0])}: {a.how or 'declared'}"
        lines.append(
            {"at": points, "kind": kind, "tip": tip + ("" if a.cosine is None else f", cosine {a.cosine:.4g}")}
        )
    notes = list(found.doubts)
    if len(runs) > len(shown):
        notes.append(f"{len(runs) - len(shown)} older ones are not drawn")
    return {
        "columns": layout.columns,
        "layers": layout.layers,
        "boxes": [{"at": layout.places[key], **_box(found, key, shown.get(key, [key]))} for key in graph],
        "lines": lines,
        "notes": notes,
    }


def _box(found: Traced, key: Key, run: Sequence[Key]) -> dict[str, Any]:
    every = found.lineage
    v = every.versions.get(key)
    if v is None:
        return {"label": every.label(key), "below": "no commit has it", "kind": "unknown", "tip": key[1]}
    if len(run) > 1:
        first = every.versions[run[0]]
        return {"label": f"{len(run)} versions", "below": f"{first.label} to {v.number}", "kind": "run",
                "tip": f"{first.label} to {v.label}"}  # fmt: skip
    names = [*(t.partition("@")[2] for t in v.tags), *(f"#{s}" for s in v.stages)]
    kind = "stage" if v.stages else "about" if found.about == (key,) else ""
    return {"label": every.label(key), "below": " ".join(names) or _short_how(every, v), "kind": kind,
            "tip": "\n".join(version_lines(found, v))}  # fmt: skip


def _short_how(every: Lineage, v: Recorded) -> str:
    first = next(iter(every.ancestors[v.key]), None)
    if first is None:
        return v.facts.update
    return " ".join(x for x in (first.how, cosine_of(first).removeprefix("cosine ")) if x)


def _runs(found: Traced) -> list[list[Key]]:
    """Give the versions, the oldest first; of many, those in a row that nothing sets apart are taken together."""
    every = found.lineage
    parents = every.parents
    children: dict[Key, int] = dict.fromkeys(parents, 0)
    for above in parents.values():
        for parent in above:
            children[parent] += 1
    runs: dict[Key, list[Key]] = {}
    for key in _parents_first(every):
        above = parents[key]
        only = above[0] if len(above) == 1 and len(every.ancestors[key]) == 1 else None
        is_plain = len(parents) > _PLAIN and not _is_special(found, key)
        joins = is_plain and only is not None and only[0] == key[0] and children[only] == 1 and only in runs
        if joins and only is not None and not _is_special(found, only):
            runs[key] = [*runs.pop(only), key]
            continue
        runs[key] = [key]
    return list(runs.values())


def _parents_first(every: Lineage) -> Iterable[Key]:
    from dvc_modelver.registry.graph import children_first

    return reversed(children_first(every.parents, lambda k: (every.versions[k].age, k)))


def _is_special(found: Traced, key: Key) -> bool:
    v = found.lineage.versions[key]
    is_asked = key in found.about and len(found.about) == 1
    return bool(v.tags or v.stages or is_asked or len(found.lineage.ancestors[key]) != 1)
