"""The command line: argument parsing and printing only."""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:
    """Run ``modelver`` and give its exit code.

    What Git calls through this program (``hook``, ``driver``) does not wait for the command line's libraries.
    """
    args = sys.argv[1:] if argv is None else argv
    if args[:1] == ["hook"]:
        from dvc_modelver.drivers.hooks import main as hook

        return hook(args[1:])
    if args[:1] == ["driver"] and len(args) > 1:
        from importlib import import_module

        if args[1] in ("diff", "textconv", "filter", "merge"):
            return int(import_module(f"dvc_modelver.drivers.{args[1]}").main(args[2:]))
    from dvc_modelver.cli.app import run

    return run(args)
