"""A repository to try things in: real git, real DVC, models of a few kilobytes."""

from __future__ import annotations

import hashlib
import inspect
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests import served

Weights = dict[str, NDArray[np.float32]]


def make_weights(seed: int, layers: int = 4, width: int = 16) -> Weights:
    """Give random weights: the same seed gives the same ones."""
    rng = np.random.default_rng(seed)
    weights: Weights = {"embed.weight": rng.standard_normal((32, width), dtype=np.float32)}
    for i in range(layers):
        weights[f"layers.{i}.weight"] = rng.standard_normal((width, width), dtype=np.float32)
        weights[f"layers.{i}.bias"] = rng.standard_normal(width, dtype=np.float32)
    weights["head.weight"] = rng.standard_normal((10, width), dtype=np.float32)
    return weights


def md5_of(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@dataclass
class Sandbox:
    """A work tree with helpers; every program runs in it."""

    path: Path

    def run(
        self, *argv: str, ok: bool = True, env: dict[str, str] | None = None, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        whole = os.environ | (env or {})
        if argv[0] in ("modelver", "dvc") and not stdin and "PYTHONPATH" not in (env or {}):
            done = served.run(argv, self.path, whole)
        else:
            done = subprocess.run(
                argv, cwd=self.path, env=whole, capture_output=True, text=True, check=False, input=stdin
            )
        if ok:
            assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def git(self, *args: str, ok: bool = True, **env: str) -> str:
        done = self.run("git", *args, ok=ok, env=env)
        return done.stdout if ok else done.stdout + done.stderr

    def modelver(self, *args: str, ok: bool = True, **env: str) -> str:
        done = self.run("modelver", *args, ok=ok, env=env)
        return done.stdout if ok else done.stdout + done.stderr

    def exit_code(self, *args: str, **env: str) -> int:
        return self.run("modelver", *args, ok=False, env=env).returncode

    def dvc(self, *args: str, ok: bool = True) -> str:
        done = self.run("dvc", *args, ok=ok)
        return done.stdout if ok else done.stdout + done.stderr

    def write(self, path: str, text: str) -> None:
        target = self.path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def train(self, path: str, seed: int) -> str:
        """Write a model; give its md5."""
        target = self.path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        save_file(make_weights(seed), target)
        return md5_of(target)

    def md5(self, path: str) -> str:
        return md5_of(self.path / path)

    def metadata_md5(self, path: str) -> str:
        import json

        document = json.loads((self.path / f"{path}.modelver.json").read_text())
        return str(document["model"]["md5"])

    def cached(self, md5: str) -> bool:
        return (self.path / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).exists()

    def drop(self, md5: str) -> None:
        """Delete an object from the cache."""
        (self.path / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).unlink()


def prepared(build: Callable[[Any], Sandbox]) -> Any:
    """Make a fixture of what sets a sandbox up, from the fixture that is its argument.

    It runs once in a process; the tests after that have a copy of the folder around the sandbox, where paths are
    relative for that reason.
    """
    (base,) = inspect.signature(build).parameters
    made: list[tuple[type[Sandbox], Path]] = []

    @pytest.fixture(name=build.__name__)
    def copy(request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
        if not made:
            first = build(request.getfixturevalue(base))
            made.append((type(first), tmp_path_factory.mktemp(build.__name__) / "copy"))
            shutil.copytree(tmp_path, made[0][1], symlinks=True)
            return first
        kind, template = made[0]
        shutil.copytree(template, tmp_path, symlinks=True, dirs_exist_ok=True)
        box = kind(tmp_path / "work")
        box.git("update-index", "-q", "--refresh")
        return box

    return copy
