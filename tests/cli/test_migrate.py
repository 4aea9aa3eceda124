"""Weights that Git or Git LFS had become DVC's in a new commit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.git.test_push import box, on_remote, write_shards
from tests.sandbox import Sandbox, md5_of

__all__ = ["box"]
RAW = "models/raw.safetensors"
needs_lfs = pytest.mark.skipif(shutil.which("git-lfs") is None, reason="git-lfs is not installed")


@pytest.fixture
def raw(box: Sandbox) -> Sandbox:
    """A model and a folder of shards that Git itself has."""
    box.train(RAW, 11)
    write_shards(box.path / "models/big", 1, 2)
    box.write("models/notes.txt", "not weights\n")
    box.git("add", ".", MODELVER_SKIP="1")
    box.git("commit", "-q", "-m", "raw", MODELVER_SKIP="1")
    assert RAW in box.git("ls-files")
    return box


def test_files_and_folders_of_git_become_pointers(raw: Sandbox) -> None:
    md5, head = raw.md5(RAW), raw.git("rev-parse", "HEAD")
    listed = json.loads(raw.modelver("migrate", "--all", "--dry-run", "--json"))
    assert [(m["path"], m["from"]) for m in listed["models"]] == [("models/big", "git"), (RAW, "git")]
    assert listed["models"][1]["bytes"] == (raw.path / RAW).stat().st_size
    assert raw.git("status", "--porcelain") == ""
    out = raw.modelver("migrate", "--all")
    assert f"moved  {RAW}" in out
    assert raw.cached(md5)
    assert raw.md5(RAW) == md5
    raw.git("commit", "-q", "-m", "to DVC")
    assert raw.git("status", "--porcelain") == ""
    files = raw.git("ls-files").split()
    assert RAW not in files
    assert not [f for f in files if f.startswith("models/big/")]
    assert {f"{RAW}.dvc", f"{RAW}.modelver.json", "models/big.dvc", "models/notes.txt"} <= set(files)
    assert raw.git("rev-parse", "HEAD~1") == head  # history is as it was
    assert "up to date" in raw.dvc("status")
    raw.git("push", "-q")
    assert md5 in on_remote(raw)
    shard = min((raw.path / "models/big").glob("*.safetensors"))
    assert md5_of(shard) in on_remote(raw)
    raw.git("checkout", "-q", "HEAD~1")
    assert raw.git("status", "--porcelain") == ""
    assert raw.md5(RAW) == md5
    raw.git("checkout", "-q", "main")
    assert raw.md5(RAW) == md5
    assert shard.is_file()
    assert raw.git("status", "--porcelain") == ""
    assert "nothing to migrate" in raw.modelver("migrate", "--all")


def test_only_what_is_committed_is_moved(raw: Sandbox) -> None:
    changed = raw.train(RAW, 12)
    done = raw.run("modelver", "migrate", RAW, ok=False)
    assert done.returncode == 2
    assert "not as it is committed" in done.stderr
    assert raw.md5(RAW) == changed
    assert RAW in raw.git("ls-files")
    raw.git("restore", RAW)
    for args, said in (
        (["models/new.safetensors"], "not in Git"),
        (["models/notes.txt"], "expected weights"),
        ([], "no path given"),
    ):
        done = raw.run("modelver", "migrate", *args, ok=False)
        assert done.returncode == 2
        assert said in done.stderr
    raw.write("dvc.yaml", "stages:\n  one:\n    cmd: 'true'\n    outs:\n      - models/raw.safetensors:\n"
              "          cache: false\n")  # fmt: skip
    raw.dvc("commit", "-q", "-f", "one")
    raw.git("add", ".")
    raw.git("commit", "-q", "-m", "a pipeline")
    done = raw.run("modelver", "migrate", RAW, ok=False)
    assert "cache: false" in done.stderr
    assert done.returncode == 2


@pytest.fixture
def lfs(box: Sandbox, tmp_path: Path) -> Sandbox:
    """Two models and an image in Git LFS, pushed to an LFS store beside the origin."""
    box.git("lfs", "install", "--local", "--force")
    box.modelver("install")
    box.write(".gitattributes", (box.path / ".gitattributes").read_text()
              + "*.pt filter=lfs diff=lfs merge=lfs -text\n*.png filter=lfs diff=lfs merge=lfs -text\n"
              + "/models/one.safetensors filter=lfs diff=lfs merge=lfs -text\n")  # fmt: skip
    for name, seed in (("one.safetensors", 21), ("two.pt", 22)):
        box.train(f"models/{name}", seed)
    (box.path / "plot.png").write_bytes(b"\x89PNG" + bytes(100_000))
    box.git("add", ".")
    box.git("commit", "-q", "-m", "in LFS")
    box.git("config", "lfs.locksverify", "false")
    box.git("push", "-q")
    assert box.git("show", "HEAD:models/one.safetensors").startswith("version https://git-lfs")
    return box


@needs_lfs
def test_what_lfs_has_becomes_dvcs(lfs: Sandbox) -> None:
    listed = json.loads(lfs.modelver("migrate", "--all", "-n", "--json"))["models"]
    assert [(m["path"], m["from"]) for m in listed] == [("models/one.safetensors", "lfs"), ("models/two.pt", "lfs")]
    assert listed[0]["bytes"] == (lfs.path / "models/one.safetensors").stat().st_size
    out = lfs.modelver("migrate", "--all")
    assert "/models/one.safetensors filter=lfs diff=lfs merge=lfs -text: no file uses it now" in out
    assert "*.pt filter=lfs diff=lfs merge=lfs -text: no file uses it now" in out
    assert "*.png" not in out
    md5 = lfs.md5("models/two.pt")
    lfs.git("commit", "-q", "-m", "from LFS to DVC")
    assert lfs.git("status", "--porcelain") == ""
    assert {"plot.png"} == set(lfs.git("lfs", "ls-files", "-n").split())
    lfs.git("push", "-q")
    assert md5 in on_remote(lfs)
    lfs.git("checkout", "-q", "HEAD~1")
    assert lfs.md5("models/two.pt") == md5
    lfs.git("checkout", "-q", "main")
    assert lfs.md5("models/two.pt") == md5


@needs_lfs
def test_of_a_pointer_alone_the_file_is_fetched_or_asked_for(lfs: Sandbox, tmp_path: Path) -> None:
    md5 = lfs.md5("models/one.safetensors")
    lfs.run("git", "clone", "-q", str(tmp_path / "origin.git"), str(tmp_path / "clone"),
            env={"GIT_LFS_SKIP_SMUDGE": "1"})  # fmt: skip
    clone = Sandbox(tmp_path / "clone")
    clone.git("lfs", "install", "--local", "--skip-smudge")
    clone.modelver("install")
    assert (clone.path / "models/one.safetensors").stat().st_size < 200
    shutil.move(tmp_path / "origin.git/lfs", tmp_path / "lfs")
    done = clone.run("modelver", "migrate", "models/one.safetensors", ok=False)
    assert done.returncode == 4
    assert "only its LFS pointer is here" in done.stderr
    assert clone.git("status", "--porcelain") == ""
    shutil.rmtree(tmp_path / "origin.git/lfs", ignore_errors=True)  # git lfs makes it anew
    shutil.move(tmp_path / "lfs", tmp_path / "origin.git/lfs")
    clone.modelver("migrate", "models/one.safetensors")
    clone.git("commit", "-q", "-m", "to DVC")
    assert clone.md5("models/one.safetensors") == md5
    assert clone.cached(md5)
    assert clone.git("status", "--porcelain") == ""
