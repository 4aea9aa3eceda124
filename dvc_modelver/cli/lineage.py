"""lineage: the command, and what it prints as text and as a document."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dvc_modelver import api
from dvc_modelver.cli.output import JsonFlag, OtherRepository, OutputFile, emit, emit_json, emit_lines, printable, say
from dvc_modelver.errors import UsageError

if TYPE_CHECKING:
    from dvc_modelver.api.ancestry import Traced
    from dvc_modelver.registry.graph import Key
    from dvc_modelver.registry.lineage import Ancestor, Lineage, Recorded

SCHEMA = "modelver.lineage/1"
_MAX_DATA = 4
"""Data of a version that a person reads in the tree; the document has all."""


class LineageFormat(StrEnum):
    """How a lineage is written."""

    TEXT = "text"
    JSON = "json"
    DOT = "dot"
    HTML = "html"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(lineage)


def lineage(
    reference: Annotated[
        str | None, typer.Argument(metavar="[NAME[@V]]", help="A model or a version; all models by default.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="PATH|MD5", help="The versions that were trained on this.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--from", metavar="NAME@V", help="The versions that come from this one.")
    ] = None,
    repo: OtherRepository = None,
    fmt: Annotated[LineageFormat, typer.Option("--format", help="How the result is written.")] = LineageFormat.TEXT,
    open_: Annotated[bool, typer.Option("--open", help="Open the HTML page in the browser.")] = False,
    output: OutputFile = None,
    json: JsonFlag = False,
) -> int:
    """Show what versions come from and what comes from them; with --data, exit 1 when none was trained on it."""
    if open_ and (json or fmt is not LineageFormat.HTML):
        raise UsageError("--open: only an HTML page is opened", hint="modelver lineage --format html --open")
    found = api.lineage(reference, data=data, base=base, repo=repo, say=say)
    if json or fmt is LineageFormat.JSON:
        emit_json(lineage_document(found), output)
    elif fmt is LineageFormat.DOT:
        from dvc_modelver.cli import pictures

        emit(pictures.dot(found), output)
    elif fmt is LineageFormat.HTML:
        from dvc_modelver.cli import pictures, reports

        title = reference or (f"data {data}" if data else f"from {base}" if base else "all models")
        reports.emit_page(pictures.page(title, found), output, opening=open_)
    else:
        emit_lines(lineage_lines(found) if data is None or found.about else [_nobody(found, data)], output)
    for line in remarks(found):
        say(line)
    return int(data is not None and not found.about)


def _nobody(found: Traced, data: str) -> str:
    meant = f"; did you mean {found.like}?" if found.like else ""
    return f"no version was trained on {data}, as far as is recorded{meant}"


def remarks(found: Traced) -> Iterator[str]:
    """Give what the answer may lack."""
    if found.unmeasured:
        n = found.unmeasured
        yield f"{n} version{'s' * (n != 1)} without a parent: not compared with all others, they are too many"
    if found.lineage.unreadable:
        yield f"{found.lineage.unreadable} metadata files of history could not be read (git log -- '*.modelver.json')"


# Document


def lineage_document(found: Traced) -> dict[str, Any]:
    """Give the document of lineage, which follows ``schemas/lineage.schema.json``."""
    every = found.lineage
    return {
        "schema": SCHEMA,
        "about": [_reference(every, key) for key in found.about],
        "versions": [_version(found, v) for v in every.versions.values()],
        "doubts": list(found.doubts),
        "unmeasured": found.unmeasured,
        "shallow": found.is_shallow,
    }


def _reference(every: Lineage, key: Key) -> dict[str, Any]:
    version = every.versions.get(key)
    return {"name": key[0] or None, "number": version.number if version else None, "md5": key[1]}


def _version(found: Traced, v: Recorded) -> dict[str, Any]:
    through = found.through.get(v.key)
    return {
        "name": v.name, "number": v.number, "md5": v.md5, "path": v.path, "format": v.facts.format,
        "update": v.facts.update, "commit": v.commit, "date": v.date, "subject": v.subject,
        "tags": list(v.tags), "stages": list(v.stages),
        "parents": [_ancestor(found.lineage, a) for a in found.lineage.ancestors[v.key]],
        "data": list(v.facts.data), "code": v.facts.code or None, "merge": v.facts.recipe or None,
        "through": _reference(found.lineage, through) if through else None,
    }  # fmt: skip


def _ancestor(every: Lineage, a: Ancestor) -> dict[str, Any]:
    label = every.labels.get(a.key)
    return {
        "name": a.key[0] or None, "md5": a.key[1],
        "number": int(label.rpartition("@")[2].partition(".")[0]) if label else None,
        "source": a.source, "how": a.how or None, "cosine": a.cosine, "relative_l2": a.relative_l2,
        "relative_l2_error": a.error, "known": a.is_known, "cycle": a.is_cycle, "note": a.note or None,
    }  # fmt: skip


# Text


def lineage_lines(found: Traced) -> list[str]:
    """Give the tree for a person, as `git log --graph` draws one, the newest version first."""
    from dvc_modelver.registry.graph import Lanes, children_first

    every = found.lineage
    if not every.versions:
        return ["no version was committed yet"]
    width = min(shutil.get_terminal_size((80, 24)).columns, 100)
    lanes = Lanes(unicode=(sys.stdout.encoding or "").lower().replace("-", "") == "utf8")
    lines = []
    parents = every.parents
    for key in children_first(parents, lambda k: (every.versions[k].age, k)):
        row = lanes.draw(key, parents[key], "*")
        head, *rest = version_lines(found, every.versions[key])
        room = max(30, width - len(row.at))
        text = _filled(printable(head).split("  "), room)
        for line in rest:
            text += [f"  {part}" for part in _filled([printable(line)], room - 2)]
        lines += [row.at + text[0], *(f"{row.beside}{line}".rstrip() for line in text[1:]), *row.links]
    return [*lines, *_doubt_lines(found, width)]


def _filled(parts: list[str], width: int) -> list[str]:
    """Put parts into lines, two spaces between them; a part is broken only where it is longer than a line."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f"  {part}"
        else:
            indent = "  " if lines else ""
            lines += (
                [indent + part]
                if len(indent + part) <= width
                else textwrap.wrap(part, width, initial_indent=indent, subsequent_indent="  ", break_on_hyphens=False)
            )
    return lines


def _doubt_lines(found: Traced, width: int) -> list[str]:
    lines: list[str] = []
    for line in found.doubts:
        lines += textwrap.wrap(printable(f"! {line}"), width, subsequent_indent="  ", break_on_hyphens=False)
    return ["", *lines] if lines else []


def version_lines(found: Traced, v: Recorded) -> Iterator[str]:
    """Give a version in a line, then what else is known of it."""
    names = [tag.partition("@")[2] for tag in v.tags] + [f"#{stage}" for stage in v.stages]
    parts = [
        found.lineage.label(v.key),
        v.md5[:8],
        *names,
        how_text(found.lineage, v),
        f"({v.commit[:8]} {v.date[:10]})",
    ]
    yield "  ".join(part for part in parts if part)
    if v.key in found.through:
        yield f"has the data from {found.lineage.label(found.through[v.key])}"
    if v.facts.recipe:
        yield f"merged by {_recipe(v.facts.recipe)}"
    if new_data := _new_data(found.lineage, v):
        yield (
            "data "
            + ", ".join(_datum(d) for d in new_data[:_MAX_DATA])
            + (f", and {len(new_data) - _MAX_DATA} more" if len(new_data) > _MAX_DATA else "")
        )
    code = v.facts.code
    if code.get("commit"):
        yield f"code {str(code['commit'])[:8]}{', with uncommitted changes' if code.get('dirty') else ''}"


def how_text(every: Lineage, v: Recorded) -> str:
    """Give in a few words what a version was made from, and how near it is to that."""
    said: list[str] = []
    ancestors = every.ancestors[v.key]
    for a in ancestors:
        how = a.how if a.how and not (said and a.how == ancestors[0].how) else ""
        is_plain = a.key[0] == v.name and len(ancestors) == 1 and not a.is_cycle
        words = [how, "" if is_plain else f"{'of' if how else 'and' if said else 'from'} {every.label(a.key)}"]
        words.append(
            "(measured)" if a.source == "measured" else "(unknown)" if not a.is_known else "(cycle)" * a.is_cycle
        )
        said.append(" ".join(word for word in words if word))
        said += [part for part in (cosine_of(a), a.note) if part]
    return ", ".join(part for part in said if part) or v.facts.update


def cosine_of(a: Ancestor) -> str:
    """Give the similarity of a version to a parent in words; empty where there is nothing to say."""
    from dvc_modelver.diff.render.cells import cosine_text

    return "" if a.cosine is None or a.how in ("copy", "identical") else f"cosine {cosine_text(a.cosine)}"


def _recipe(recipe: Mapping[str, Any]) -> str:
    combined = recipe.get("combined")
    names = list(combined) if isinstance(combined, Mapping) and combined else [str(recipe.get("strategy", ""))]
    counts = recipe.get("tensors")
    said = ", ".join(f"{n} {take}" for take, n in counts.items()) if isinstance(counts, Mapping) else ""
    return " and ".join(names) + (f" (tensors: {said})" if said else "")


def _new_data(every: Lineage, v: Recorded) -> list[Mapping[str, Any]]:
    """Give the data of a version that its first parent has not: the rest is said there."""
    first = next((every.versions[a.key] for a in every.ancestors[v.key] if a.key in every.versions), None)
    before = [(d.get("path"), d.get("md5")) for d in first.facts.data] if first is not None else []
    return [d for d in v.facts.data if (d.get("path"), d.get("md5")) not in before]


def _datum(entry: Mapping[str, Any]) -> str:
    return f"{entry.get('path')} {str(entry.get('md5') or '')[:8]}".rstrip()
