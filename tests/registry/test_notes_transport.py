"""Evaluations travel with git push and git pull, from every clone to every other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dvc_modelver.api import evaluate
from dvc_modelver.errors import UsageError
from dvc_modelver.git.objects import ObjectReader
from dvc_modelver.registry.evaluations import Evaluation, read_evaluations
from dvc_modelver.registry.notes import EVALUATIONS_REF
from tests.git.test_push import MODEL, box, train
from tests.sandbox import Sandbox

__all__ = ["box"]
TRACKED = "refs/notes-remotes/origin/modelver-evaluations"


@pytest.fixture
def other(box: Sandbox, tmp_path: Path) -> Sandbox:
    """A second clone, with the tool."""
    box.run("git", "clone", "-q", str(tmp_path / "origin.git"), str(tmp_path / "other"))
    clone = Sandbox(tmp_path / "other")
    clone.modelver("install")
    clone.modelver("pull")
    return clone


def evaluations(clone: Sandbox) -> list[Evaluation]:
    return read_evaluations(ObjectReader(clone.path / ".git"))[clone.metadata_md5(MODEL)]


def values(clone: Sandbox) -> list[float]:
    return sorted(one.metrics["acc"] for one in evaluations(clone))


def measure(clone: Sandbox, value: float, time: str | None = None) -> None:
    assert evaluate("net", metrics={"acc": value}, time=time, folder=clone.path).is_new


def refuse(origin: Path, words: str = "no notes here") -> None:
    hook = origin / "hooks/update"
    hook.write_text(f'#!/bin/sh\ncase $1 in refs/notes/*) echo "{words}" >&2; exit 1 ;; esac\n')
    hook.chmod(0o755)


def test_what_two_clones_measure_both_see(box: Sandbox, other: Sandbox, tmp_path: Path) -> None:
    measure(box, 0.5)
    measure(other, 0.6, "2020-01-01")
    box.git("push", "-q")  # there is nothing else to push
    other.git("push", "-q")
    assert values(other) == [0.5, 0.6]
    box.git("pull", "-q")
    assert values(box) == [0.5, 0.6]
    for n, clone in enumerate((box, other)):  # from one state, and without a pull between
        measure(clone, (n + 7) / 10)
        clone.git("push", "-q")
    box.modelver("pull")
    assert values(box) == values(other) == [0.5, 0.6, 0.7, 0.8]
    assert not box.git("for-each-ref", "refs/notes/merging*")
    box.run("git", "-C", str(tmp_path / "origin.git"), "config", "uploadpack.allowFilter", "true")
    box.run("git", "clone", "-q", "--filter=blob:none", f"file://{tmp_path}/origin.git", str(tmp_path / "third"))
    third = Sandbox(tmp_path / "third")
    third.modelver("install")
    third.git("fetch", "-q")
    assert values(third) == values(box)
    assert evaluations(box)[0].time.startswith("2020")  # the newest last


def test_many_that_push_at_once_all_arrive(box: Sandbox, tmp_path: Path) -> None:
    clones = [box, box]  # two in one clone
    for n in range(3):
        shutil.copytree(box.path, tmp_path / f"clone{n}", symlinks=True)
        clones.append(Sandbox(tmp_path / f"clone{n}"))
    code = "import sys; from dvc_modelver.cli import main; sys.exit(main())"
    started = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", code, "eval", "net", "--metric", f"acc=0.{n + 1}", "--push"],
            cwd=clone.path, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for n, clone in enumerate(clones)
    ]  # fmt: skip
    for process in started:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert "pushed to origin" in out
    box.git("fetch", "-q", "origin", f"{EVALUATIONS_REF}:{TRACKED}")
    assert values(box) == [0.1, 0.2, 0.3, 0.4, 0.5]


def test_a_remote_that_refuses_notes_stops_no_push(box: Sandbox, tmp_path: Path) -> None:
    refuse(tmp_path / "origin.git")
    box.modelver("eval", "net", "--metric", "acc=0.5")
    train(box, 2)
    said = box.run("git", "push").stderr
    assert [line for line in said.splitlines() if "notes stay here" in line and "hook declined" in line]
    assert said.count("warning:") == 1
    assert box.git("rev-parse", "origin/main") == box.git("rev-parse", "main")
    said = box.run("modelver", "push").stderr
    assert said.count("notes stay here") == 1
    assert "evaluations that no remote has" in box.modelver("status")
    done = box.run("modelver", "eval", "net", "--metric", "acc=0.6", "--push", ok=False)
    assert done.returncode == 4
    assert "hook declined" in done.stderr
    (tmp_path / "origin.git/hooks/update").unlink()
    box.modelver("push")
    assert "evaluations" not in box.modelver("status")
    (tmp_path / "origin.git").rename(tmp_path / "away.git")
    done = box.run("modelver", "pull")
    assert done.stderr.count("no evaluations were fetched") == 1


def test_a_push_takes_them_to_any_remote_and_starts_nothing_without_them(box: Sandbox, tmp_path: Path) -> None:
    log = tmp_path / "trace"
    train(box, 2)
    box.git("push", "-q", GIT_TRACE=str(log))
    assert "notes" not in log.read_text()
    measure(box, 0.5)
    box.git("push", "-q", GIT_TRACE=str(log))
    assert "notes" in log.read_text()
    log.unlink()
    box.git("push", "-q", GIT_TRACE=str(log))  # the remote has them
    assert "notes" not in log.read_text()
    url = str(tmp_path / "second.git")
    box.run("git", "init", "-q", "--bare", url)
    box.git("push", "-q", url, "main:main")
    sent = box.git("rev-parse", EVALUATIONS_REF)
    assert box.git("ls-remote", url, EVALUATIONS_REF).split() == [sent.strip(), EVALUATIONS_REF]
    assert not box.git("for-each-ref", "refs/notes-remotes/url*")
    measure(box, 0.7)
    box.git("push", "-q", "--mirror", url)
    assert box.git("ls-remote", url, EVALUATIONS_REF).split()[0] == box.git("rev-parse", EVALUATIONS_REF).strip()


def test_the_refspec_comes_with_the_first_push_and_goes_with_uninstall(box: Sandbox, tmp_path: Path) -> None:
    spec = "+refs/notes/modelver*:refs/notes-remotes/origin/modelver*"  # the remote was added after init
    own = box.git("config", "--get-all", "remote.origin.fetch").splitlines()
    assert own.count(spec) == 1
    box.git("remote", "add", "backup", str(tmp_path / "origin.git"))
    assert "without evaluations" in box.modelver("doctor")
    box.modelver("install")
    box.modelver("install")
    assert "without evaluations" not in box.modelver("doctor")
    assert box.git("config", "--get-all", "remote.backup.fetch").count("refs/notes/modelver") == 1
    box.git("remote", "add", "--mirror=push", "copy", str(tmp_path / "copy.git"))
    before = box.git("config", "--get-regexp", "remote.copy.*")
    box.modelver("install")
    assert box.git("config", "--get-regexp", "remote.copy.*") == before  # nothing is fetched from there
    box.git("remote", "rename", "backup", "second")
    box.modelver("install")
    box.modelver("uninstall")
    assert box.git("config", "--get-all", "remote.origin.fetch").splitlines() == [s for s in own if s != spec]
    assert "refs/notes" not in (box.path / ".git/config").read_text()


def test_shallow_clones_and_nameless_users_evaluate(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(box, 0.5)
    box.git("push", "-q")
    box.run("git", "clone", "-q", "--depth", "1", f"file://{tmp_path}/origin.git", str(tmp_path / "shallow"))
    shallow = tmp_path / "shallow"
    with monkeypatch.context() as nameless:
        nameless.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
        box.run("git", "-C", str(shallow), "config", "user.useConfigOnly", "true")
        with pytest.raises(UsageError) as caught:
            evaluate("net", metrics={"acc": 0.6}, push=True, folder=shallow)
        assert "user.name" in caught.value.hint
        evaluate("net", metrics={"acc": 0.6}, by="build 7", folder=shallow)
        assert evaluate("net", metrics={"acc": 0.7}, by="build 7", push=True, folder=shallow).remote == "origin"
    box.git("pull", "-q")
    assert values(box) == [0.5, 0.6, 0.7]
