"""The commands for what is found out after a commit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dvc_modelver import api
from dvc_modelver.cli.cards import version_line
from dvc_modelver.cli.output import JsonFlag, emit_json, emit_lines, say
from dvc_modelver.errors import UsageError

if TYPE_CHECKING:
    from dvc_modelver.api.evaluations import Evaluated
    from dvc_modelver.api.index import Indexed


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command("eval")(eval_)
    app.command()(index)


def eval_(
    reference: Annotated[str, typer.Argument(metavar="NAME[@V]", help="A version; the work tree's by default.")],
    metrics: Annotated[
        list[Path] | None, typer.Option("--metrics", metavar="FILE", help="Metrics as JSON, YAML or TOML.")
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", metavar="K=V", help="One value; may be given again.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", metavar="PATH|MD5", help="What it was measured on.")
    ] = None,
    time: Annotated[str | None, typer.Option(help="When it was measured; now by default.")] = None,
    by: Annotated[str | None, typer.Option(help="Who measured; the Git user by default.")] = None,
    push: Annotated[bool, typer.Option("--push", help="Send it to the Git remote at once.")] = False,
    json: JsonFlag = False,
) -> None:
    """Append a result to a version after its commit; git push and git pull take it along."""
    done = api.evaluate(
        reference, *(metrics or []), metrics=_numbers(metric or []), data=data or [], time=time, by=by, push=push
    )
    emit_json(evaluated_document(done)) if json else emit_lines(_evaluated_lines(done))


def index(
    backfill: Annotated[
        str,
        typer.Option(metavar="REV..", help="Describe the models of commits after REV; of all up to it without dots."),
    ],
    json: JsonFlag = False,
) -> int:
    """Give commits from before the tool their metadata, kept in Git notes; no commit changes."""
    done = api.index(backfill, say=say)
    if json:
        described = [
            {"commit": commit, "path": m.model.path, "md5": m.md5, "number": m.version.number}
            for commit, m in done.described
        ]
        failed = [{"where": where, "why": why} for where, why in done.failed.items()]
        emit_json({"schema": "modelver.index/1", "described": described, "known": done.known, "failed": failed})
    else:
        emit_lines([*(f"{commit[:8]}  {version_line(m)}" for commit, m in done.described), _index_line(done)])
    for where, why in done.failed.items():
        say(f"modelver: error: {where}: {why}")
    return 4 if done.failed else 0


def _index_line(done: Indexed) -> str:
    n, failed = len(done.described), f", {len(done.failed)} could not be" if done.failed else ""
    return f"{n} version{'s' * (n != 1)} described, {done.known} known already{failed}"


def _numbers(pairs: list[str]) -> dict[str, float]:
    import math

    found: dict[str, float] = {}
    for pair in pairs:
        name, _, text = pair.rpartition("=")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not name or not math.isfinite(value):
            raise UsageError(f"--metric {pair}: expected name=number", hint="--metric val_acc=0.93")
        found[name] = int(value) if value.is_integer() and text.strip("+-").isdigit() else value
    return found


def evaluated_document(done: Evaluated) -> dict[str, Any]:
    """Give the document of eval: the line that is kept, and what became of it."""
    model, version = done.metadata.model, done.metadata.version
    place = {"name": model.name, "number": version.number, "new": done.is_new, "pushed_to": done.remote or None}
    return done.evaluation.to_dict() | place


def _evaluated_lines(done: Evaluated) -> list[str]:
    one, number = done.evaluation, done.metadata.version.number
    values = ", ".join(f"{name} = {value:.6g}" for name, value in sorted(one.metrics.items()))
    line = f"{done.metadata.model.name} version {number} ({one.md5[:8]}): {values}"
    if not done.is_new:
        return [f"{line}: recorded already"]
    if done.remote:
        return [f"{line}; pushed to {done.remote}"]
    say("hint: git push sends it along")
    return [line]
