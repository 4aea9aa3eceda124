"""A registry to change: made once, copied for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dvc_modelver import api
from tests.registry.registry import Registry
from tests.sandbox import Sandbox


@pytest.fixture(scope="session")
def registry_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test leaves a copy of its registry."""
    return tmp_path_factory.mktemp("registry") / "all"


@pytest.fixture
def registry(request: pytest.FixtureRequest, registry_template: Path, tmp_path: Path) -> Registry:
    if registry_template.exists():
        shutil.copytree(registry_template, tmp_path, symlinks=True, dirs_exist_ok=True)
        return Registry(tmp_path / "work")
    sandbox: Sandbox = request.getfixturevalue("sandbox")
    box = Registry(sandbox.path)
    box.git("init", "-q", "--bare", str(box.folder / "origin.git"))
    box.git("remote", "add", "origin", "../origin.git")
    for seed, accuracy in ((1, 0.91), (2, 0.93), (3, 0.92)):
        box.commit(seed, accuracy)
        api.tag("net", f"v1.{seed - 1}.0", folder=box.path)
    box.git("push", "-q", "--follow-tags", "-u", "origin", "main")
    shutil.copytree(box.folder, registry_template, symlinks=True)
    return box
