"""gc takes away what nothing needs, and never anything else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dvc_modelver import api
from tests.git.test_push import MODEL, at, box, train, write_shards
from tests.sandbox import Sandbox, md5_of

__all__ = ["box"]
BIG = "models/big"


def gc(box: Sandbox, *args: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(box.modelver("gc", "--json", "--older-than", "0", *args))
    return document


def cached(box: Sandbox) -> set[str]:
    return {p.parent.name + p.name for p in (box.path / ".dvc/cache/files/md5").glob("??/*")}


def forget_reflogs(box: Sandbox) -> None:
    heads = box.git("for-each-ref", "--format=%(refname)", "refs/heads", "refs/remotes").split()
    box.git("reflog", "expire", "--expire=all", "HEAD", *heads)  # not --all: older stashes are a reflog
    (box.path / ".git/ORIG_HEAD").unlink(missing_ok=True)


def test_whatever_names_an_object_keeps_it(box: Sandbox, tmp_path: Path) -> None:
    named: dict[str, str] = {"main": box.md5(MODEL)}
    named["older commit"] = train(box, 2)
    train(box, 3)
    box.git("checkout", "-q", "-b", "side")
    named["tag"] = train(box, 4)
    box.git("tag", "-a", "v4", "-m", "four")
    box.git("reset", "-q", "--hard", "HEAD~1")
    for seed in (5, 6):
        named[f"stash {seed}"] = box.train(MODEL, seed)
        box.modelver("add", "-u")
        box.git("stash", "-q")
    named["autostash"] = box.train(MODEL, 11)
    box.modelver("add", "-u")
    stashed = box.git("stash", "create")
    box.git("reset", "-q", "--hard")
    box.git("worktree", "add", "-q", "--detach", str(tmp_path / "tree"))
    tree = Sandbox(tmp_path / "tree")
    named["detached work tree"] = train(tree, 7)
    named["index of a work tree"] = tree.train(MODEL, 8)
    tree.modelver("add", "-u")
    forget_reflogs(box)
    named["reflog"] = train(box, 10, "other.safetensors")
    box.git("reset", "-q", "--hard", "HEAD~1")
    named["gate pointer in the index"] = box.train("new.safetensors", 9)
    box.git("add", "new.safetensors")
    write_shards(box.path / BIG, 1, 2)
    box.modelver("add", BIG)
    named["shard"] = md5_of(min((box.path / BIG).glob("*.safetensors")))
    box.write("data.csv", "1,2\n")
    box.dvc("add", "-q", "data.csv")
    named["pointer that is only a file"] = box.md5("data.csv")
    (box.path / ".git/MERGE_AUTOSTASH").write_text(stashed)  # as during a merge --autostash that met a conflict
    assert set(named.values()) <= cached(box)
    before = cached(box)
    gc(box, "--force")
    missing = [what for what, md5 in named.items() if md5 not in cached(box)]
    assert missing == []
    assert cached(box) == before
    (box.path / ".git/worktrees/tree/locked").write_text("")
    shutil.rmtree(tmp_path / "tree")
    assert "what it needs is not known" in box.modelver("gc", ok=False)


def test_lost_versions_go_and_are_named(box: Sandbox) -> None:
    write_shards(box.path / BIG, 1, 2)
    box.modelver("add", BIG)
    box.git("commit", "-q", "-m", "big")
    kept = cached(box)
    lost = train(box, 2)
    write_shards(box.path / BIG, 1, 3)
    box.modelver("add", BIG)
    box.git("commit", "-q", "-m", "big again")
    box.git("reset", "-q", "--hard", "HEAD~2")
    strange = at(box.path / ".dvc/cache", "0" * 32)
    strange.parent.mkdir()
    strange.write_bytes(b"never in Git")
    assert gc(box)["objects"] == 0  # the reflog has them still
    forget_reflogs(box)
    before = cached(box)
    young = json.loads(box.modelver("gc", "--json", "--force"))
    assert (young["objects"], young["young"]["objects"] > 0) == (0, True)
    plan = gc(box)
    assert cached(box) == before
    assert plan["done"] is False
    versions = {m["path"]: [v["number"] for v in m["versions"]] for m in plan["models"]}
    assert versions == {MODEL: [2], BIG: [2]}
    text = box.modelver("gc", "--older-than", "0")
    assert "net  version" in text
    assert "modelver gc --force" in text
    done = gc(box, "--force")
    assert done == plan | {"done": True}
    gone = before - cached(box)
    assert lost in gone
    assert len(gone) == done["objects"]
    assert kept <= cached(box)
    assert "0" * 32 in cached(box)
    assert done["unknown"]["objects"] >= 1
    everything = gc(box, "--force", "--all")
    assert everything["objects"] == done["unknown"]["objects"]
    assert cached(box) == kept
    assert box.exit_code("fsck", "--all") == 0


def test_cloud_backed_frees_history_that_the_remote_has_now(box: Sandbox, tmp_path: Path) -> None:
    first = box.md5(MODEL)
    second = train(box, 2)
    write_shards(box.path / BIG, 1, 2)
    box.modelver("add", BIG)
    box.git("commit", "-q", "-m", "big")
    old = cached(box)
    write_shards(box.path / BIG, 1, 3)
    box.modelver("add", BIG)
    box.git("commit", "-q", "-m", "big again")
    third = train(box, 3)
    pointer = box.path / "secret.safetensors.dvc"
    secret = train(box, 8, "secret.safetensors")
    pointer.write_text(pointer.read_text() + "  push: false\n")
    box.git("commit", "-q", "-am", "stays here", GIT_COMMITTER_DATE="2000-01-01T00:00:00")  # found after the other
    train(box, 9, "secret.safetensors")
    box.git("push", "-q")
    unpushed = train(box, 4)
    train(box, 5)
    at(tmp_path / "remote", second).chmod(0o644)
    at(tmp_path / "remote", second).write_bytes(b"half")
    assert gc(box)["objects"] == 0
    done = gc(box, "--cloud-backed", "--force")
    shared = md5_of(min((box.path / BIG).glob("*.safetensors")))
    now = cached(box)
    assert not {first, third} & now
    assert {second, unpushed, secret, shared, box.md5(MODEL)} <= now
    assert len(old - now) == 3  # version 1, and of the old folder the listing and a shard
    assert {m["path"] for m in done["models"]} == {MODEL, BIG}
    box.git("checkout", "-q", "HEAD~5", "--", "models")  # and what is gone comes back
    box.modelver("pull")
    assert box.exit_code("fsck") == 0


def test_a_cache_outside_is_others_too(box: Sandbox, tmp_path: Path) -> None:
    box.dvc("cache", "dir", str(tmp_path / "shared"))
    box.git("commit", "-q", "-am", "a shared cache")
    shutil.move(box.path / ".dvc/cache", tmp_path / "shared")
    lost = train(box, 2)
    other = Sandbox(tmp_path / "other")
    shutil.copytree(box.path, other.path, symlinks=True)
    both = train(box, 3)
    box.git("reset", "-q", "--hard", "HEAD~2")
    forget_reflogs(box)
    done = box.run("modelver", "gc", "--force", "--older-than", "0", ok=False)
    assert done.returncode == 1
    assert "which others may use" in done.stderr
    plan = gc(box, "--force", "--project", "../other")
    assert plan["objects"] == 1
    assert not at(tmp_path / "shared", both).exists()
    assert at(tmp_path / "shared", lost).exists()
    assert gc(box, "--force", "--project", ".")["objects"] == 1
    assert not at(tmp_path / "shared", lost).exists()


def test_gc_waits_for_a_push(box: Sandbox) -> None:
    lost = train(box, 2)
    box.git("reset", "-q", "--hard", "HEAD~1")
    forget_reflogs(box)
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys\nfrom pathlib import Path\nfrom dvc_modelver.store.lock import held\n"
         "with held(Path('.git/modelver'), print, alone=False):\n  print('held', flush=True); sys.stdin.read()"],
        cwd=box.path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    said: list[str] = []

    def release(line: str) -> None:
        said.append(line)
        assert box.cached(lost)
        assert holder.stdin is not None
        holder.stdin.close()

    found = api.gc(force=True, min_age_hours=0, folder=box.path, say=release)
    holder.wait()
    holder.stdout.close()
    assert said == ["waiting for another modelver: one sends objects, the other frees them"]
    assert found.objects == 1
    assert not box.cached(lost)


def test_left_over_temporary_files_go(box: Sandbox) -> None:
    folder = box.path / ".dvc/cache/modelver.tmp"
    folder.mkdir(exist_ok=True)
    (folder / "elsewhere~1~2").write_bytes(b"left")
    os.utime(folder / "elsewhere~1~2", (time.time() - 2 * 86400,) * 2)
    (folder / "elsewhere~1~3").write_bytes(b"being written")
    gc(box, "--force")
    assert [p.name for p in folder.iterdir()] == ["elsewhere~1~3"]


def test_versions_with_one_number_are_told_apart(box: Sandbox) -> None:
    one = train(box, 2)
    box.git("reset", "-q", "--hard", "HEAD~1")
    other = train(box, 3)
    box.git("reset", "-q", "--hard", "HEAD~1")
    forget_reflogs(box)
    found = gc(box)["models"]
    assert [{v["md5"] for v in model["versions"]} for model in found] == [{one, other}]
    assert {v["number"] for v in found[0]["versions"]} == {2}
