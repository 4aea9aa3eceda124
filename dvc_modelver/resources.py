"""Where the files that travel with the package are found, in a checkout and in a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
PROBE = str(_PACKAGE / "drivers" / "probe.py")
"""The script that hooks run first: standard library only."""
START = str(_PACKAGE / "drivers" / "start.py")
"""The script that runs the rest."""


def find_data_folder(name: str) -> Path:
    """Give the folder ``git-hooks`` or ``templates``.

    In a wheel they lie under ``dvc_modelver/_data``; in a checkout, at the top level.

    Raises:
        FileNotFoundError: The installation is incomplete.
    """
    for base in (_PACKAGE / "_data", _PACKAGE.parent):
        if (base / name).is_dir():
            return base / name
    raise FileNotFoundError(f"{name}: not found beside {_PACKAGE}; the installation is incomplete")


def read_template(name: str) -> str:
    """Give the text of ``templates/<name>``."""
    return (find_data_folder("templates") / name).read_text(encoding="utf-8")


def read_schema(name: str) -> str:
    """Give the text of the JSON Schema ``dvc_modelver/schemas/<name>.schema.json``."""
    return (_PACKAGE / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8")
