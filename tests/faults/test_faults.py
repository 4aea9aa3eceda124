"""Kill -9, and a full disk, at the steps of every command that changes something; then the command once more.

Every step is tried with ``FAULTS=all`` in the environment, which takes five minutes; else some of each command.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.sandbox import Sandbox, make_weights

MODEL = "models/net.safetensors"
INJECT = Path(__file__).parent / "inject"
BASE = make_weights(0)


def moved(name: str) -> dict[str, np.ndarray]:
    return BASE | {name: BASE[name] + 1}


def train(box: Sandbox, weights: dict[str, np.ndarray]) -> None:
    (box.path / "models").mkdir(exist_ok=True)
    (box.path / MODEL).unlink(missing_ok=True)
    save_file(weights, box.path / MODEL)


def ready(box: Sandbox) -> None:
    """Version 2 on main and another version 2 on the branch other, pushed to a bare repository; version 3 on disk."""
    box.run("git", "init", "-q", "--bare", "../origin.git")
    box.git("remote", "add", "origin", "../origin.git")
    train(box, BASE)
    box.git("add", ".")
    box.git("commit", "-q", "-m", "one")
    box.git("switch", "-q", "-c", "other")
    train(box, moved("head.weight"))
    box.git("commit", "-q", "-am", "theirs")
    box.git("switch", "-q", "main")
    train(box, moved("embed.weight"))
    box.git("commit", "-q", "-am", "two")
    box.git("push", "-q", "-u", "origin", "main", "other")


@dataclass(frozen=True)
class Command:
    """One row: what is prepared, what is done, and done again after a fault."""

    prepare: Callable[[Sandbox], object]
    argv: tuple[str, ...]
    again: tuple[str, ...] = ()


def retrained(box: Sandbox) -> None:
    train(box, moved("layers.1.weight"))


def committed(box: Sandbox) -> None:
    retrained(box)
    box.git("commit", "-q", "-am", "three")


def emptied(box: Sandbox) -> None:
    shutil.rmtree(box.path / ".dvc/cache")


def nothing(_box: Sandbox) -> None:
    pass


COMMANDS = {
    "add": Command(retrained, ("modelver", "add", MODEL)),
    "git add": Command(
        lambda b: save_file(moved("head.weight"), b.path / "models/new.safetensors"), ("git", "add", ".")
    ),
    "commit": Command(retrained, ("git", "commit", "-q", "-a", "-m", "three")),
    "checkout": Command(nothing, ("git", "checkout", "-q", "other")),
    "merge": Command(nothing, ("git", "merge", "-q", "other", "-m", "merged")),
    "push": Command(committed, ("git", "push", "-q")),
    "pull": Command(emptied, ("modelver", "pull")),
    "rollback": Command(retrained, ("modelver", "rollback", "net", "1")),
    "install": Command(lambda b: b.modelver("uninstall"), ("modelver", "install")),
    "uninstall": Command(nothing, ("modelver", "uninstall")),
}


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"folder": tmp_path_factory.mktemp("origin")}


@pytest.fixture
def start(sandbox: Sandbox, origin: dict[str, Path]) -> Callable[[Path], Sandbox]:
    """Give copies of one prepared repository."""
    kept = origin["folder"] / "all"
    if not kept.exists():
        ready(sandbox)
        shutil.copytree(sandbox.path.parent, kept, symlinks=True)

    def copy(where: Path) -> Sandbox:
        shutil.copytree(kept, where, symlinks=True)
        box = Sandbox(where / "work")
        box.git("config", "remote.origin.url", "../origin.git")
        box.git("update-index", "--refresh")
        return box

    return copy


def objects(box: Sandbox) -> set[str]:
    """Give the md5 of all weights that exist anywhere: on disk, in the cache, on the remote."""
    top = box.path.parent
    files = [p for p in top.rglob("*") if p.is_file() and (p.suffix == ".safetensors" or "/files/md5/" in str(p))]
    return {hashlib.md5(p.read_bytes()).hexdigest() for p in files}


def run(box: Sandbox, argv: tuple[str, ...], folder: Path, fault: str) -> int:
    path = os.pathsep.join([str(INJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {"MODELVER_FAULT": f"{folder}:{fault}", "PYTHONPATH": path}
    return box.run(*argv, ok=False, env=env).returncode


def repeat(box: Sandbox, command: Command) -> None:
    """Run the command again as a user would: what is in the way is what Git itself left there."""
    git = box.path / ".git"
    for lock in ("index.lock", "HEAD.lock", "config.lock"):
        (git / lock).unlink(missing_ok=True)
    if (git / "MERGE_HEAD").exists():
        box.git("merge", "--abort", ok=False)
        box.git("reset", "-q", "--hard")
    done = box.run(*(command.again or command.argv), ok=False)
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1), done.stderr  # 1: git commit, when the first run got through


def check(box: Sandbox, before: set[str]) -> None:
    lost = before - objects(box)
    assert not lost, f"weights lost: {lost}"
    assert box.run("git", "fsck", "--no-dangling", ok=False).returncode == 0
    fsck = box.run("modelver", "fsck", ok=False)
    assert fsck.returncode == 0, fsck.stdout + fsck.stderr
    left = [p for p in (box.path / "models").iterdir() if p.name.startswith(".") and p.name != ".gitignore"]
    assert not left
    documents = list(box.path.rglob("*.modelver.json"))
    assert documents
    for document in documents:
        model = document.with_name(document.name.removesuffix(".modelver.json"))
        assert hashlib.md5(model.read_bytes()).hexdigest() in document.read_text()


IS_ALL = os.environ.get("FAULTS") == "all"
pytestmark: list[pytest.MarkDecorator] = [pytest.mark.timeout(0)] if IS_ALL else []
FILLING = COMMANDS if IS_ALL else ("add", "commit", "merge", "push", "pull")
"""Commands that are tried with a full disk."""


def spread(n_steps: int, kind: str) -> list[int]:
    """Give a few steps, early ones and late ones."""
    return [n_steps // 2] if kind == "full" else sorted({n_steps // 4, n_steps * 3 // 4})


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "kill") for name in COMMANDS), *((name, "full") for name in FILLING)]
)
def test_nothing_is_lost_and_the_next_run_goes_on(
    name: str, kind: str, start: Callable[[Path], Sandbox], tmp_path: Path
) -> None:
    command = COMMANDS[name]
    counting = tmp_path / "count"
    box = start(counting)
    command.prepare(box)
    assert run(box, command.argv, counting, "count:0") == 0
    n_steps = len((counting / "steps").read_text().splitlines())
    assert n_steps > 2
    for n in range(n_steps) if IS_ALL else spread(n_steps, kind):
        folder = tmp_path / f"at{n}"
        box = start(folder)
        command.prepare(box)
        before = objects(box)
        run(box, command.argv, folder, f"{kind}:{n}")
        step = (folder / "steps").read_text().splitlines()[min(n, n_steps - 1) :][:1]
        try:
            repeat(box, command)
            check(box, before)
        except AssertionError as err:
            raise AssertionError(f"{name}: {kind} at step {n}: {step}: {err}") from err
        shutil.rmtree(folder)
