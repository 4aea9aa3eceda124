"""Three versions of one model that is called net, tagged and pushed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dvc_modelver import api
from tests.sandbox import Sandbox

MODEL = "models/net.safetensors"


class Registry(Sandbox):
    """Versions 1 to 3, tagged v1.0.0 to v1.2.0, beside a bare ``origin.git`` and the DVC remote ``remote``."""

    @property
    def folder(self) -> Path:
        return self.path.parent

    def commit(self, seed: int, accuracy: float) -> str:
        """Commit a version; give its commit."""
        self.train(MODEL, seed)
        return self.record(f"version {seed}", metrics={"val_acc": accuracy}, params={"seed": seed})

    def record(self, message: str, **facts: Any) -> str:
        """Commit the model as it lies there, in this process and past the hooks, which takes a quarter of the time."""
        api.add(self.path / MODEL, folder=self.path, **facts)
        self.git("commit", "-q", "-m", message, MODELVER_SKIP="1")
        return self.head()

    def head(self) -> str:
        return self.git("rev-parse", "HEAD").strip()

    def policy(self, *lines: str) -> str:
        """Push a policy for prod; give the blob of the file."""
        self.write(".modelver.toml", "\n".join(["[[policy]]", 'stage = "prod"', *lines]) + "\n")
        self.git("commit", "-q", "-m", "policy", ".modelver.toml", MODELVER_SKIP="1")
        self.git("push", "-q", "origin", "HEAD:main", MODELVER_SKIP="1")
        return self.git("rev-parse", "HEAD:.modelver.toml").strip()

    def tags(self, pattern: str = "*") -> list[str]:
        return self.git("tag", "--list", pattern).split()

    def on_origin(self, pattern: str = "*") -> list[str]:
        return self.git("--git-dir", str(self.folder / "origin.git"), "tag", "--list", pattern).split()

    def clone(self, name: str) -> Registry:
        """Clone origin beside this one, set up for somebody of that name."""
        self.run(
            "git", "clone", "-q", "-c", f"user.name={name}", str(self.folder / "origin.git"), str(self.folder / name)
        )
        other = Registry(self.folder / name)
        other.modelver("install")
        return other
