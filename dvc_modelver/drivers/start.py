"""Starts what Git calls: ``python -P start.py diff|filter|hooks|merge|textconv ARGS``.

When the package, or one that it needs, is not there any more, that is one line and not Python's own words.
"""

import os
import sys


def main(argv: list[str]) -> int:
    """Run a driver; 127, as a shell gives for a program that is not there, when it cannot be imported."""
    os.environ.pop("GIT_INTERNAL_SUPER_PREFIX", None)  # Git commands refuse to run with it
    try:
        from importlib import import_module

        return int(import_module(f"dvc_modelver.drivers.{argv[0]}").main(argv[1:]))
    except ModuleNotFoundError as err:
        sys.stderr.write(
            f"modelver: {err.name} is not installed for {sys.executable} any more "
            "(pip install dvc-modelver; modelver install)\n"
        )
        return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
