"""card: what is known of a version, for readers elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

from dvc_modelver import api
from dvc_modelver.cli.output import JsonFlag, OutputFile, emit, emit_json, say


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(card)


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
