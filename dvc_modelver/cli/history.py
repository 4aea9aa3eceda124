"""list, log, best, compare, blame, bisect: the commands that ask history."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from dvc_modelver import api
from dvc_modelver.cli.output import JsonFlag, OtherRepository, OutputFile, emit_json, emit_lines, say
from dvc_modelver.errors import NotFoundError, UsageError


class LogFormat(StrEnum):
    """How a log is written."""

    TEXT = "text"
    JSON = "json"
    HTML = "html"


Model = Annotated[str, typer.Argument(metavar="NAME", help="Model, by name or path.")]
Everywhere = Annotated[bool, typer.Option("--all", help="Versions of all branches and tags.")]
WhereOption = Annotated[
    str | None,
    typer.Option("--where", metavar="EXPR", help="Only versions like \"metrics.val_acc > 0.9 and stage = 'prod'\"."),
]
SortOption = Annotated[
    str | None, typer.Option("--sort", metavar="KEY", help="Sort by metrics.NAME, date...; -KEY: largest first.")
]
Metric = Annotated[str, typer.Option("--metric", metavar="M", help="Its name, like val_acc.")]


def list_(
    versions: Annotated[bool, typer.Option("--versions", help="A line for each version of each model.")] = False,
    where: WhereOption = None,
    sort: SortOption = None,
    everywhere: Annotated[bool, typer.Option("--all", help="Models of all branches, and removed ones.")] = False,
    repo: OtherRepository = None,
    output: OutputFile = None,
    json: JsonFlag = False,
) -> None:
    """List all models: versions, stages and who holds them; with --versions, --where or --sort, their versions."""
    from dvc_modelver.cli import histories

    if versions or where is not None or sort is not None:
        logged = api.list_versions(where=where, sort=sort, everywhere=everywhere, repo=repo, say=say)
        if json:
            emit_json(histories.log_document(logged), output)
        else:
            emit_lines(histories.log_lines(logged, named=True, chosen=where is not None), output)
        return
    found = api.list_models(everywhere=everywhere, repo=repo, say=say)
    emit_json(histories.list_document(found), output) if json else emit_lines(histories.list_lines(found), output)


def log(
    name: Model,
    where: WhereOption = None,
    sort: SortOption = None,
    everywhere: Everywhere = False,
    limit: Annotated[int | None, typer.Option("-n", help="At most so many, newest first.", min=1)] = None,
    repo: OtherRepository = None,
    fmt: Annotated[LogFormat, typer.Option("--format", help="How the result is written.")] = LogFormat.TEXT,
    open_: Annotated[bool, typer.Option("--open", help="Open the HTML page in the browser.")] = False,
    output: OutputFile = None,
    json: JsonFlag = False,
) -> None:
    """List the versions of a model, newest first; as HTML, with charts of metrics and similarity."""
    from dvc_modelver.cli import histories, reports

    found = api.log(name, where=where, sort=sort, everywhere=everywhere, repo=repo, say=say)[:limit]
    if json or fmt is LogFormat.JSON:
        emit_json(histories.log_document(found), output)
    elif fmt is LogFormat.HTML or open_:
        reports.emit_page(histories.history_page(name, found, _drawing(name, repo)), output, opening=open_)
    else:
        emit_lines(histories.log_lines(found, chosen=where is not None), output)


def _drawing(name: str, repo: str | None) -> dict[str, Any] | None:
    """Give the drawing of what the model comes from; None while none of its versions is committed."""
    from dvc_modelver.cli import pictures

    try:
        return pictures.drawing(api.lineage(name, repo=repo))
    except NotFoundError:
        return None


def best(
    name: Model,
    metric: Metric,
    smallest: Annotated[bool, typer.Option("--min", help="Less is better.")] = False,
    largest: Annotated[bool, typer.Option("--max", help="More is better.")] = False,
    where: WhereOption = None,
    everywhere: Everywhere = False,
    repo: OtherRepository = None,
    output: OutputFile = None,
    json: JsonFlag = False,
) -> None:
    """Give the version with the best value of a metric; which way is better follows from a well-known name."""
    from dvc_modelver.cli import histories

    if smallest and largest:
        raise UsageError("modelver best: --min and --max, expected one of them", hint="modelver best --help")
    direction = "min" if smallest else "max" if largest else None
    found = api.best(name, metric, direction=direction, where=where, everywhere=everywhere, repo=repo, say=say)
    emit_json(histories.best_document(found), output) if json else emit_lines(histories.best_lines(found), output)


def compare(
    versions: Annotated[
        list[str], typer.Argument(metavar="NAME@V1 V2...", help="Versions; after the first, V alone means its model.")
    ],
    repo: OtherRepository = None,
    output: OutputFile = None,
    json: JsonFlag = False,
) -> None:
    """Put versions side by side: metrics, hyper-parameters, data, similarity to the first."""
    from dvc_modelver.cli import histories

    found = api.compare_versions(*versions, repo=repo, say=say)
    emit_json(histories.compare_document(found), output) if json else emit_lines(histories.compare_lines(found), output)


def blame(
    reference: Annotated[str, typer.Argument(metavar="NAME[@V]", help="A model, or one of its versions.")],
    all_tensors: Annotated[bool, typer.Option("--all-tensors", help="One line per tensor, nothing folded.")] = False,
    output: OutputFile = None,
    json: JsonFlag = False,
) -> None:
    """Say which version last changed each tensor."""
    from dvc_modelver.cli import histories

    found = api.blame(reference, say=say)
    if json:
        emit_json(histories.blame_document(found), output)
    else:
        emit_lines(histories.blame_lines(found, all_tensors=all_tensors), output)


def bisect(
    name: Model,
    metric: Metric,
    below: Annotated[float | None, typer.Option(metavar="X", help="Values below X are bad.")] = None,
    above: Annotated[float | None, typer.Option(metavar="X", help="Values above X are bad.")] = None,
    output: OutputFile = None,
    json: JsonFlag = False,
) -> int:
    """Find the version with which a metric became bad, by recorded values; exit 1 when none is bad."""
    from dvc_modelver.cli import histories

    found = api.bisect(name, metric, below=below, above=above, say=say)
    limit = (below, "below") if below is not None else (above, "above")
    if json:
        emit_json(histories.bisect_document(found, *limit), output)
    else:
        emit_lines(histories.bisect_lines(found, *limit), output)
    return int(found.bad is None)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("list")(list_)
    for command in (log, best, compare, blame, bisect):
        app.command()(command)
