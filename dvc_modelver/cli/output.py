"""How results reach the user: text, tables, one JSON document; errors as one line and a hint."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from dvc_modelver.errors import ModelverError

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
OutputFile = Annotated[Path | None, typer.Option("-o", "--output", help="Write the result to a file.", dir_okay=False)]

OtherRepository = Annotated[
    str | None, typer.Option("--repo", metavar="URL|PATH", help="Another repository, as its HEAD has it.")
]


class Format(StrEnum):
    """How a result is written."""

    TEXT = "text"
    JSON = "json"
    MARKDOWN = "markdown"
    HTML = "html"


FormatOption = Annotated[Format, typer.Option("--format", help="How the result is written.")]


def say(line: str) -> None:
    """Print a line for the user on standard error; a hint gets its own."""
    for part in line.splitlines():
        sys.stderr.write(f"{printable(part)}\n")


def fail(err: ModelverError) -> int:
    """Print an error and its hint; give the exit code."""
    prefix = "refused" if err.exit_code == 1 else "error"
    say(f"modelver: {prefix}: {err}")
    if err.hint:
        say(f"hint: {err.hint}")
    return err.exit_code


def printable(text: str) -> str:
    """Escape control characters, so that a name from a file cannot steer the terminal."""
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


def emit(text: str, output: Path | None = None) -> None:
    """Write a result to standard output or to a file.

    Raises:
        UsageError: The file is a folder, or DVC keeps it.
    """
    if output is not None:
        from dvc_modelver.worktree.destination import write_output

        write_output(output, text.encode())
        return
    sys.stdout.write(text)
    sys.stdout.flush()


def emit_json(document: object, output: Path | None = None) -> None:
    """Write one JSON document."""
    emit(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n", output)


def emit_lines(lines: Iterable[str], output: Path | None = None) -> None:
    """Write lines."""
    emit("".join(printable(line) + "\n" for line in lines), output)


def render_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Give the lines of a plain table; columns are as wide as their longest cell.

    Args:
        header: Column names.
        rows: Cells.
        right: Indices of the columns set to the right (numbers).
    """
    cells = [list(header), *[[printable(c) for c in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return [
        "  ".join(
            c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def wants_color(stream: Any = None) -> bool:
    """Whether colours are right: a terminal, and NO_COLOR is not set."""
    return bool((stream or sys.stdout).isatty()) and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
