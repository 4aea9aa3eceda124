from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.sandbox import Sandbox


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Where the first test leaves a copy of its fresh repository, since ``dvc init`` takes a second."""
    return [tmp_path_factory.mktemp("template") / "work"]


@pytest.fixture
def sandbox(tmp_path: Path, template: list[Path]) -> Sandbox:
    """A repository set up by ``modelver init`` with a local remote, nothing committed but its settings."""
    box = Sandbox(tmp_path / "work")
    if not template[0].exists():
        box.path.mkdir()
        box.modelver("init", "--remote", "/the/remote")
        box.git("add", ".")
        box.git("commit", "-q", "-m", "set up")
        shutil.copytree(box.path, template[0], symlinks=True)
    else:
        shutil.copytree(template[0], box.path, symlinks=True)
    config = box.path / ".dvc/config"
    config.write_text(config.read_text().replace("/the/remote", str(tmp_path / "remote")))
    box.git("commit", "-q", "-am", "where the remote is")
    return box
