"""A bug of ours: the traceback goes into a file, one line to the user."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from pathlib import Path

from dvc_modelver._version import __version__


def report_bug(err: Exception, argv: list[str]) -> str:
    """Write a traceback to a log file and give the line that names it."""
    folder = Path(os.environ.get("GIT_DIR", ".git")) / "modelver"
    text = f"dvc-modelver {__version__}, Python {sys.version}\narguments: {argv}\n{traceback.format_exc()}"
    try:
        folder.mkdir(parents=True, exist_ok=True) if folder.parent.is_dir() else None
        where = str(folder) if folder.is_dir() else None
        fd, name = tempfile.mkstemp(prefix="bug-", suffix=".log", dir=where, text=True)
        with os.fdopen(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        name = "(no log could be written)"
    return f"a bug of modelver's own ({type(err).__name__}: {err}); traceback in {name}"
