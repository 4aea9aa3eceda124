"""What hooks and drivers say to the user."""

from __future__ import annotations

import sys

from dvc_modelver.errors import ModelverError


def say(line: str) -> None:
    """Print lines for the user, on standard error."""
    sys.stderr.write("".join(f"modelver: {part}\n" for part in line.splitlines()))


def say_error(err: ModelverError, where: str = "") -> None:
    """Print an error and its hint."""
    say(f"{where}: {err}" if where else str(err))
    if err.hint:
        say(f"hint: {err.hint}")
