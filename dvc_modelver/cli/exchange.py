"""card, export, import: versions told to other programs, and taken from them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dvc_modelver import api
from dvc_modelver.cli import cards
from dvc_modelver.cli.output import JsonFlag, OutputFile, emit, emit_json, emit_lines, say


class Target(StrEnum):
    """Who a version is told to."""

    HUGGINGFACE = "huggingface"
    CYCLONEDX = "cyclonedx"
    MLFLOW = "mlflow"


class Origin(StrEnum):
    """Who a version is taken from."""

    MLFLOW = "mlflow"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (card, export):
        app.command()(command)
    app.command("import")(import_)


def card(
    reference: Annotated[str, typer.Argument(metavar="NAME[@V]", help="A model or one of its versions.")],
    output: OutputFile = None,
    json: JsonFlag = False,
) -> None:
    """Write a model card for Hugging Face; in a file that is there, only the marked parts are written."""
    text = api.card(reference, output)
    if json:
        emit_json({"path": str(output) if output else None, "card": text})
    elif output is None:
        emit(text)
    else:
        say(f"wrote {output}")


def export(
    reference: Annotated[str, typer.Argument(metavar="NAME[@V]", help="A model or one of its versions.")],
    place: Annotated[str, typer.Argument(metavar="FOLDER|FILE|URI", help="Where to.")],
    to: Annotated[Target, typer.Option("--to", help="A folder for the Hub, a bill of materials, a registry.")],
    force: Annotated[bool, typer.Option("--force", help="Replace weights or a file that are there.")] = False,
    json: JsonFlag = False,
) -> None:
    """Write a version for another program: weights and card, a bill of materials, or an entry of a registry."""
    made = api.export(reference, to.value, place, force=force, say=say)
    emit_json({"target": to.value, "place": place, "made": made}) if json else emit_lines([made])


def import_(
    origin: Annotated[Origin, typer.Argument(metavar="mlflow", help="Only MLflow's registry.")],
    uri: Annotated[str, typer.Argument(metavar="URI", help="The server, like http://localhost:5000.")],
    reference: Annotated[str, typer.Argument(metavar="NAME[@V]", help="Registered model, and number or alias.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Path of the model; where it was exported from by default.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Take a version from another program's registry: tracked, described and staged, ready to commit."""
    made = api.import_model(uri, reference, output, say=say)
    emit_json(made.to_dict()) if json else emit_lines([cards.version_line(made)])
