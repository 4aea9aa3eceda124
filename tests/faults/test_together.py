"""Two commands at once: nothing is lost, both end, and what they leave is whole."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

from safetensors.numpy import save_file

from tests.sandbox import Sandbox, make_weights, prepared

MODEL = "models/net.safetensors"


@prepared
def box(sandbox: Sandbox) -> Sandbox:
    """Two models, pushed, and a branch with another version of both."""
    sandbox.run("git", "init", "-q", "--bare", "../origin.git")
    sandbox.git("remote", "add", "origin", "../origin.git")
    for name, seed in (("net", 1), ("aux", 2)):
        sandbox.train(f"models/{name}.safetensors", seed)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    sandbox.git("push", "-q", "-u", "origin", "main")
    return sandbox


def together(*commands: tuple[Path, str], env: dict[str, str] | None = None) -> list[tuple[int, str]]:
    """Start all commands, then wait for all; give exit codes and what they said."""
    running = [
        subprocess.Popen(
            ["sh", "-ec", command], cwd=folder, env=os.environ | (env or {}),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for folder, command in commands
    ]  # fmt: skip
    done = [process.communicate(timeout=100)[0] for process in running]
    return [(process.returncode, said) for process, said in zip(running, done, strict=True)]


def check(box: Sandbox) -> None:
    assert box.git("status", "--porcelain") == ""
    assert box.run("git", "fsck", "--no-dangling", ok=False).returncode == 0
    done = box.run("modelver", "fsck", "--all", ok=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_pushes(box: Sandbox) -> None:
    md5s = []
    for branch, seed in (("a", 3), ("b", 4)):
        box.git("switch", "-q", "-c", branch, "main")
        md5s.append(box.train(MODEL, seed))
        box.git("commit", "-q", "-am", branch)
    done = together((box.path, "git push -q origin a"), (box.path, "git push -q origin b"))
    assert [code for code, _ in done] == [0, 0], done
    for md5 in md5s:
        assert (box.path.parent / "remote/files/md5" / md5[:2] / md5[2:]).is_file()
    check(box)


def test_a_push_beside_gc(box: Sandbox) -> None:
    md5 = box.train(MODEL, 3)
    box.git("commit", "-q", "-am", "two")
    done = together((box.path, "git push -q"), (box.path, "modelver gc --force --older-than 0 --cloud-backed"))
    assert [code for code, _ in done] == [0, 0], done
    assert (box.path.parent / "remote/files/md5" / md5[:2] / md5[2:]).is_file()
    check(box)


def test_commits_in_two_work_trees(box: Sandbox) -> None:
    box.git("worktree", "add", "-q", "../tree", "-b", "side")
    tree = Sandbox(box.path.parent / "tree")
    md5s = [box.train(MODEL, 3), tree.train(MODEL, 4)]
    done = together((box.path, "git commit -q -am here"), (tree.path, "git commit -q -am there"))
    assert [code for code, _ in done] == [0, 0], done
    for where, md5 in zip((box, tree), md5s, strict=True):
        assert where.metadata_md5(MODEL) == where.md5(MODEL) == md5
        check(where)


def test_a_model_added_twice_at_once(box: Sandbox) -> None:
    md5 = box.train(MODEL, 3)
    done = together((box.path, f"modelver add {MODEL}"), (box.path, f"modelver add {MODEL}"))
    assert any(code == 0 for code, _ in done), done
    assert all(code in (0, 2, 4) and "Traceback" not in said for code, said in done), done
    box.git("commit", "-q", "-am", "two")
    assert box.metadata_md5(MODEL) == md5
    check(box)


def test_a_commit_beside_a_pipeline(box: Sandbox) -> None:
    save_file(make_weights(5), box.path / "w5")
    box.write("train.py", "import shutil, time\ntime.sleep(3)\nshutil.copy('w5', 'made.safetensors')\n")
    box.write(
        "dvc.yaml", "stages:\n  train:\n    cmd: python train.py\n    deps: [train.py]\n    outs: [made.safetensors]\n"
    )
    box.git("add", "train.py", "dvc.yaml")
    box.git("commit", "-q", "-m", "pipeline")
    md5 = box.train(MODEL, 3)
    done = together((box.path, "dvc repro -q"), (box.path, "sleep 1.5; git commit -q -am retrained; git status -s"))
    assert [code for code, _ in done] == [0, 0], done
    assert f'"md5": "{md5}"' in box.git("show", f"HEAD:{MODEL}.modelver.json")
    (box.path / "w5").unlink()
    box.git("add", ".")
    box.git("commit", "-q", "-m", "made")
    assert box.metadata_md5("made.safetensors") == box.md5("made.safetensors")
    check(box)


def test_who_waits_says_so(box: Sandbox) -> None:
    box.train(MODEL, 5)
    with (box.path / ".git/modelver/lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = subprocess.Popen(["modelver", "add", "-u"], cwd=box.path, stderr=subprocess.PIPE, text=True)
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == "modelver: waiting for another modelver or git command in this work tree\n"
        assert waiting.poll() is None
    _, rest = waiting.communicate(timeout=100)
    assert (waiting.returncode, rest) == (0, "")
