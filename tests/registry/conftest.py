"""A registry to change: made once per module, copied for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.sandbox import Sandbox

MODEL = "models/net.safetensors"


class Registry(Sandbox):
    """Three versions of one model, tagged v1.0.0 to v1.2.0 and pushed, beside a bare ``origin.git`` and ``remote``."""

    @property
    def folder(self) -> Path:
        return self.path.parent

    def commit(self, seed: int, accuracy: float) -> str:
        """Commit a version; give its commit."""
        self.train(MODEL, seed)
        self.modelver("add", MODEL, "--metric", f"val_acc={accuracy}", "--param", f"seed={seed}")
        self.git("commit", "-q", "-m", f"version {seed}")
        return self.git("rev-parse", "HEAD").strip()

    def policy(self, *lines: str) -> None:
        """Push a policy for prod."""
        self.write(".modelver.toml", "\n".join(["[[policy]]", 'stage = "prod"', *lines]) + "\n")
        self.git("add", ".modelver.toml")
        self.git("commit", "-q", "-m", "policy")
        self.git("push", "-q", "origin", "main")

    def tags(self, pattern: str = "*") -> list[str]:
        return self.git("tag", "--list", pattern).split()

    def clone(self, name: str, *args: str) -> Registry:
        """Clone origin beside this one, set up and with the weights."""
        self.run("git", "clone", "-q", *args, str(self.folder / "origin.git"), str(self.folder / name))
        other = Registry(self.folder / name)
        other.git("config", "user.name", name)
        other.modelver("install")
        return other


@pytest.fixture(scope="session")
def registry_template(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Where the first test leaves a copy of its registry."""
    return [tmp_path_factory.mktemp("registry") / "all"]


@pytest.fixture
def registry(request: pytest.FixtureRequest, registry_template: list[Path], tmp_path: Path) -> Registry:
    made = registry_template[0]
    if not made.exists():
        box = Registry(request.getfixturevalue("sandbox").path)
        box.git("init", "-q", "--bare", str(box.folder / "origin.git"))
        box.git("remote", "add", "origin", "../origin.git")
        for seed, accuracy in ((1, 0.91), (2, 0.93), (3, 0.92)):
            box.commit(seed, accuracy)
            box.modelver("tag", "net", f"v1.{seed - 1}.0")
        box.git("push", "-q", "--follow-tags", "-u", "origin", "main")
        shutil.copytree(box.folder, made, symlinks=True)
        return box
    shutil.copytree(made, tmp_path, symlinks=True, dirs_exist_ok=True)
    box = Registry(tmp_path / "work")
    config = box.path / ".dvc/config"
    lines = [
        f"    url = {tmp_path / 'remote'}" if "url = " in line else line for line in config.read_text().splitlines()
    ]
    config.write_text("\n".join(lines) + "\n")
    box.git("commit", "-q", "-am", "where the remote is")
    box.git("push", "-q", "origin", "main")
    return box
