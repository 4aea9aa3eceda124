"""What the commands that ask history print: lines for people, documents for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dvc_modelver.cli.output import render_table
from dvc_modelver.pipeline import flatten
from dvc_modelver.progress import human_bytes

if TYPE_CHECKING:
    from dvc_modelver.api.best import Best
    from dvc_modelver.api.bisection import Bisected
    from dvc_modelver.api.history import ListedModel, LoggedVersion
    from dvc_modelver.api.tables import BlamedTensor, ComparedVersion
    from dvc_modelver.registry.evaluations import Measured
    from dvc_modelver.registry.history import Version

_HOW_MANY = 12
"""Tied versions that a person reads before asking for all."""


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


# log and list


def measured_document(found: Mapping[str, Measured]) -> dict[str, Any]:
    """Give metrics with where each comes from."""
    return {
        name: {
            "value": one.value, "source": one.source,
            **({"time": one.evaluation.time, "by": one.evaluation.by} if one.evaluation is not None else {}),
            **({"trained": one.trained} if one.evaluation is not None and one.trained is not None else {}),
        }
        for name, one in found.items()
    }  # fmt: skip


def _version_document(one: LoggedVersion) -> dict[str, Any]:
    v = one.version
    return {
        "name": one.name, "commit": v.commit, "date": v.date, "author": v.author, "subject": v.subject,
        "tags": list(one.tags), "stages": list(one.stages), "current": one.is_current,
        "metrics": measured_document(one.measured), **v.metadata.to_dict(),
    }  # fmt: skip


def log_document(found: Sequence[LoggedVersion]) -> dict[str, Any]:
    """Give the document of log, and of list with versions."""
    return {"schema": "modelver.log/1", "versions": [_version_document(one) for one in found]}


def log_lines(found: Sequence[LoggedVersion], *, named: bool = False, chosen: bool = False) -> list[str]:
    """Give one line per version.

    Args:
        found: The versions.
        named: Of several models: the first column is the name.
        chosen: Only versions that fit a question were wanted.
    """
    if not found:
        return ["no version fits" if chosen else "no version was committed yet"]
    rows = []
    for one in found:
        v, meta = one.version, one.version.metadata
        change = meta.change.kind if meta.change and meta.version.update != "merge" else meta.version.update
        l2 = f"{meta.change.relative_l2:.3g}" if meta.change and meta.change.relative_l2 is not None else "-"
        rows.append(
            [one.name] * named
            + [f"{v.number}{' *' if one.is_current else '  '}", meta.md5[:8], v.date[:10], change, l2,
               _metrics(one.measured), _labels(one.tags, one.stages), v.subject]
        )  # fmt: skip
    header = ["version", "md5", "date", "change", "rel. L2", "metrics", "tags", "commit"]
    return render_table(["model"] * named + header, rows, right=(named, 4 + named))


def _metrics(found: Mapping[str, Measured]) -> str:
    shown = [
        f"{name}={_number(one.value)}{'*' * (one.evaluation is not None)}" for name, one in list(found.items())[:2]
    ]
    return " ".join(shown) + (" ..." if len(found) > 2 else "")


def _labels(tags: Iterable[str], stages: Iterable[str]) -> str:
    return " ".join([*(t.partition("@")[2] for t in tags if "@" in t), *(f"#{stage}" for stage in stages)])


def list_document(found: Sequence[ListedModel]) -> dict[str, Any]:
    """Give the document of list."""
    return {
        "schema": "modelver.list/1",
        "models": [
            {"name": m.name, "path": m.path, "number": m.metadata.version.number if m.metadata else None,
             "md5": m.metadata.md5 if m.metadata else None, "bytes": m.metadata.model.bytes_ if m.metadata else None,
             "versions": list(m.versions), "here": list(m.here), "latest": m.versions[-1] if m.versions else None,
             "stages": dict(m.stages), "in_work_tree": m.is_here}
            for m in found
        ],
    }  # fmt: skip


def list_lines(found: Sequence[ListedModel]) -> list[str]:
    """Give one line per model."""
    if not found:
        return ["no models yet: modelver add PATH, or git add a file of weights"]
    rows = [
        [
            m.name,
            str(m.metadata.version.number) if m.metadata else "-",
            " ".join(m.here) or "-",
            m.versions[-1] if m.versions else "-",
            " ".join(f"{stage}={holder}" for stage, holder in m.stages.items()) or "-",
            human_bytes(m.metadata.model.bytes_) if m.metadata else "-",
            m.path + ("" if m.is_here else "  (not in the work tree)"),
        ]
        for m in found
    ]
    return render_table(["name", "version", "tagged", "latest", "stages", "size", "path"], rows, right=(1, 5))


def history_page(name: str, found: Sequence[LoggedVersion], graph: Mapping[str, Any] | None) -> str:
    """Give the page of a model's history: its lineage, and metrics and the distance to the version before over time."""
    from dvc_modelver.diff.render.html import render_page

    oldest_first = list(reversed(found))
    labels = [str(one.version.number) for one in oldest_first]
    metrics = sorted({key for one in oldest_first for key in one.measured})
    charts: list[dict[str, Any]] = [
        {"title": key, "points": [[at, one.metric(key)] for at, one in zip(labels, oldest_first, strict=True)]}
        for key in metrics
    ]
    for title, attribute in (
        ("Relative L2 to the version before", "relative_l2"),
        ("Cosine similarity to the version before", "cosine"),
    ):
        facts = [getattr(one.version.metadata.change, attribute, None) for one in oldest_first]
        charts.append({"title": title, "points": [[at, value] for at, value in zip(labels, facts, strict=True)]})
    rows = [["version", "md5", "date", "change", "tags", "commit"]]
    for one in found:
        v = one.version
        kind = v.metadata.change.kind if v.metadata.change else v.metadata.version.update
        rows.append([str(v.number), v.metadata.md5[:8], v.date[:10], kind, " ".join(one.tags), v.subject])
    return render_page(f"{name}: versions", {"graph": graph, "charts": charts, "rows": rows})


# best


def best_document(found: Best) -> dict[str, Any]:
    """Give the document of best."""
    return {
        "schema": "modelver.best/1", "name": found.name, "metric": found.metric, "direction": found.direction,
        "direction_from": "name" if found.is_guessed else "option", "value": found.value,
        "with_value": found.with_value, "without_value": found.without,
        "versions": [_version_document(one) for one in found.versions],
    }  # fmt: skip


def best_lines(found: Best) -> list[str]:
    """Give the best version, or those that tie, and what was counted."""
    way = {"min": "smallest", "max": "largest"}[found.direction]
    guessed = ", as its name says (--min and --max decide)" if found.is_guessed else ""
    lines = [f"{found.metric} = {_number(found.value)}, the {way} of {_count(found.with_value, 'version')}{guessed}"]
    if len(found.versions) > 1:
        lines.append(f"{len(found.versions)} versions tie, newest first:")
    lines += [f"  {_one_line(one)}" for one in found.versions[:_HOW_MANY]]
    if len(found.versions) > _HOW_MANY:
        lines.append(f"  and {len(found.versions) - _HOW_MANY} more (--json lists them)")
    if found.without:
        have = "has" if found.without == 1 else "have"
        lines.append(f"{_count(found.without, 'version')} {have} no {found.metric}")
    return lines


def _reference(name: str, version: Version) -> str:
    return f"{name}@{version.number}"


def _one_line(one: LoggedVersion) -> str:
    v, labels = one.version, _labels(one.tags, one.stages)
    return (
        f"{_reference(one.name, v)}  {v.metadata.md5[:8]}  {v.date[:10]}  {f'{labels}  ' if labels else ''}{v.subject}"
    )


# bisect


def bisect_document(found: Bisected, limit: float | None, side: str) -> dict[str, Any]:
    """Give the document of bisect."""

    def brief(one: LoggedVersion | None) -> dict[str, Any] | None:
        if one is None:
            return None
        v = one.version
        return {"number": v.number, "md5": v.metadata.md5, "commit": v.commit, "value": one.metric(found.metric)}

    return {
        "schema": "modelver.bisect/1", "name": found.name, "metric": found.metric, side: limit,
        "bad": brief(found.bad), "good": brief(found.good), "between": [brief(one) for one in found.between],
        "good_again": brief(found.again), "bad_before": len(found.early), "versions": len(found.line),
        "without_value": [brief(one) for one in found.without],
    }  # fmt: skip


def bisect_lines(found: Bisected, limit: float | None, side: str) -> list[str]:
    """Tell where the metric became bad, and what is not known."""
    metric, bad, good = found.metric, found.bad, found.good
    have = len(found.line) - len(found.without)
    if bad is None:
        lines = [f"no version of {found.name} has {metric} {side} {_number(limit)}, of {_count(have, 'version')}"]
        if found.early:
            first = _reference(found.name, _after(found))
            lines = [f"{metric} is not {side} {_number(limit)} from {first} on, of {_count(have, 'version')}"]
    else:
        lines = [f"{metric} is {side} {_number(limit)} from {_value(bad, metric)}", f"  {_one_line(bad)}"]
        if good is not None:
            lines.append(f"the last good one before it: {_value(good, metric)}")
        else:
            lines.append("no good version is before it")
        if found.between:
            first = f"after {_reference(good.name, good.version)} and " if good is not None else ""
            lines.append(
                f"{_numbers(found.between)} between {'them' if good else 'the start and it'} "
                f"{'has' if len(found.between) == 1 else 'have'} no value: "
                f"the answer lies {first}up to {_reference(bad.name, bad.version)}"
            )
        if found.early:
            lines.append(f"{side} it as well, before the first good one: {_numbers(found.early)}")
        if found.again is not None:
            lines.append(f"good again with {_value(found.again, metric)}")
    if found.without:
        lines.append(f"{len(found.without)} of {_count(len(found.line), 'version')} without {metric}: "
                     f"{_numbers(found.without)}")  # fmt: skip
    return lines


def _after(found: Bisected) -> Version:
    """Give the first good version."""
    rest = found.line[found.line.index(found.early[-1]) + 1 :]
    return next(one.version for one in rest if one.metric(found.metric) is not None)


def _value(one: LoggedVersion, metric: str) -> str:
    return f"{_reference(one.name, one.version)} ({_number(one.metric(metric))})"


def _numbers(versions: Sequence[LoggedVersion]) -> str:
    """Give the numbers of versions, runs of them as one: ``2, 5-9``."""
    runs: list[list[int]] = []
    for number in sorted(one.version.number for one in versions):
        if runs and number <= runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    said = [str(run[0]) if run[0] == run[-1] else f"{run[0]}-{run[-1]}" for run in runs]
    return ", ".join(said[:_HOW_MANY]) + (", ..." if len(said) > _HOW_MANY else "")


# compare


def compare_document(found: Sequence[ComparedVersion]) -> dict[str, Any]:
    """Give the document of compare."""
    return {
        "schema": "modelver.compare/1",
        "versions": [
            {"label": one.label, "commit": one.commit or None, "tags": list(one.tags), "stages": list(one.stages),
             "metrics": measured_document(one.measured), "to_first": _similarity(one), **one.metadata.to_dict()}
            for one in found
        ],
    }  # fmt: skip


def _similarity(one: ComparedVersion) -> dict[str, Any] | None:
    change = one.change
    if change is None:
        return None
    return {"kind": change.kind, "cosine": change.cosine, "relative_l2": change.relative_l2,
            "relative_l2_error": change.relative_l2_error, "tensors_changed": change.tensors_changed}  # fmt: skip


def compare_lines(found: Sequence[ComparedVersion]) -> list[str]:
    """Give a table with a column per version; hyper-parameters and data that all share are counted, not listed."""
    from dvc_modelver.diff.render.cells import cosine_text, l2_text

    rows = [
        ["md5", *(one.metadata.md5[:8] for one in found)],
        *_row("tags", [_labels(one.tags, one.stages) for one in found]),
        ["size", *(human_bytes(one.metadata.model.bytes_) for one in found)],
        *_row("parameters", [_thousands(one.metadata.model.parameters) for one in found]),
    ]
    changes = [one.change for one in found]
    rows.append(["kind", "-", *(c.kind for c in changes if c is not None)])
    rows.append(["cosine", "-", *("-" if c.cosine is None else cosine_text(c.cosine) for c in changes if c)])
    rows.append(
        ["relative L2", "-", *("-" if c.relative_l2 is None else l2_text(c.relative_l2, differs=not c.bytes_equal)
                               for c in changes if c)]
    )  # fmt: skip
    facts: list[tuple[str, list[dict[str, Any]]]] = [
        ("metrics", [{name: m.value for name, m in one.measured.items()} for one in found]),
        ("hyperparameters", [dict(flatten(one.metadata.training.hyperparameters or {})) for one in found]),
        ("data", [_data(one) for one in found]),
    ]
    notes = []
    for title, columns in facts:
        names = list(dict.fromkeys(name for column in columns for name in column))
        moved = [name for name in names if title == "metrics" or len({repr(c.get(name)) for c in columns}) > 1]
        rows += [[title, *[""] * len(found)]] if moved else []
        rows += [[f"  {name}", *(_number(c[name]) if name in c else "-" for c in columns)] for name in moved]
        if len(moved) < len(names):
            notes.append(f"the same in all: {len(names) - len(moved)} of {title}")
    lines = render_table(["", *(one.label for one in found)], rows, right=tuple(range(1, len(found) + 1)))
    return [*lines, *notes]


def _row(title: str, cells: list[str]) -> Iterator[list[str]]:
    if any(cells):
        yield [title, *(cell or "-" for cell in cells)]


def _thousands(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _data(one: ComparedVersion) -> dict[str, Any]:
    return {str(d.get("path")): str(d.get("md5") or "")[:8] for d in one.metadata.training.data or ()}


# blame


def blame_document(found: Sequence[BlamedTensor]) -> dict[str, Any]:
    """Give the document of blame."""
    return {
        "schema": "modelver.blame/1",
        "tensors": [
            {"name": one.name, "number": one.version.number, "md5": one.version.metadata.md5,
             "commit": one.version.commit or None, "date": one.version.date or None, "name_then": one.then,
             "or_before": one.is_oldest, "digest": one.row.digest, "role": one.row.role}
            for one in found
        ],
    }  # fmt: skip


def blame_lines(found: Sequence[BlamedTensor], *, all_tensors: bool) -> list[str]:
    """Give one line per version and group of tensors, newest version first; per tensor where all are wanted."""
    from dvc_modelver.api.tables import versions_blamed

    total = sum(one.row.numel for one in found) or 1
    rows = []
    groups = [(version, own) for version, own in versions_blamed(found)]
    if all_tensors:
        groups = [(one.version, [one]) for one in found]
    for version, own in groups:
        head = [str(version.number) + ("-" if own[0].is_oldest else " "), version.date[:10]]
        for at, (label, members) in enumerate(_folded(own, found, all_tensors)):
            n = sum(one.row.numel for one in members)
            was = f"  (was {members[0].then})" if len(members) == 1 and members[0].then != members[0].name else ""
            subject = version.subject if at == 0 else ""
            rows.append([*(head if at == 0 or all_tensors else ["", ""]), f"{100 * n / total:.1f} %", str(len(members)),
                         f"{label}{was}", subject])  # fmt: skip
    lines = render_table(["version", "date", "parameters", "tensors", "tensor", "commit"], rows, right=(0, 2, 3))
    if any(one.is_oldest for one in found):
        lines.append("-: in that version or an older one, whose parent is not in this clone")
    return lines


def _folded(
    own: Sequence[BlamedTensor], everything: Sequence[BlamedTensor], all_tensors: bool
) -> list[tuple[str, list[BlamedTensor]]]:
    if all_tensors:
        return [(one.name, [one]) for one in own]
    from dvc_modelver.diff.changes import TensorChange
    from dvc_modelver.diff.render.fold import folded

    def as_change(one: BlamedTensor) -> TensorChange:
        renamed = one.then if one.then != one.name else None
        return TensorChange(one.name, renamed, "modified", None, one.row)

    by_name = {one.name: one for one in own}
    lines = folded(map(as_change, own), map(as_change, everything))
    return [(line.label, [by_name[t.name] for t in line.tensors]) for line in lines]
