from __future__ import annotations

from pathlib import Path

import pytest

from tests.sandbox import Sandbox


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    """A repository set up by ``modelver init`` with a local remote, nothing committed but its settings."""
    box = Sandbox(tmp_path / "work")
    box.path.mkdir()
    box.modelver("init", "--remote", str(tmp_path / "remote"))
    box.git("add", ".")
    box.git("commit", "-q", "-m", "set up")
    return box
