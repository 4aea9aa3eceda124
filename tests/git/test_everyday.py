"""git add, commit, push, clone, checkout as usual, and what Git then holds."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import git as gitpython
import pytest
from safetensors.numpy import load_file, save_file

from tests.sandbox import Sandbox, make_weights, md5_of, prepared

MODEL = "models/net.safetensors"


@prepared
def pushed(sandbox: Sandbox) -> Sandbox:
    """Version 1 committed and pushed to a bare repository and a local DVC remote."""
    sandbox.run("git", "init", "-q", "--bare", "../origin.git")
    sandbox.git("remote", "add", "origin", "../origin.git")
    sandbox.train(MODEL, 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    sandbox.git("push", "-q", "-u", "origin", "main")
    return sandbox


def on_remote(box: Sandbox, md5: str) -> bool:
    return (box.path.parent / "remote/files/md5" / md5[:2] / md5[2:]).exists()


def clone(box: Sandbox, name: str = "clone") -> Sandbox:
    box.run("git", "clone", "-q", str(box.path.parent / "origin.git"), str(box.path.parent / name))
    return Sandbox(box.path.parent / name)


def test_add_and_commit_put_only_the_pointer_into_git(sandbox: Sandbox) -> None:
    md5 = sandbox.train(MODEL, 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    files = set(sandbox.git("ls-tree", "-r", "--name-only", "HEAD").split())
    assert {
        f"{MODEL}.dvc",
        f"{MODEL}.modelver.json",
        f"{MODEL}.modelver.tensors",
        "models/.gitignore",
    } <= files
    assert MODEL not in files
    assert sandbox.cached(md5)
    assert sandbox.git("status", "--porcelain") == ""
    sizes = sandbox.git("cat-file", "--batch-all-objects", "--batch-check=%(objectsize)").split()
    assert max(map(int, sizes)) < (sandbox.path / MODEL).stat().st_size
    document = json.loads((sandbox.path / f"{MODEL}.modelver.json").read_text())
    assert document["model"]["name"] == "net"
    assert document["version"] == {"number": 1, "parents": [], "update": "initial", "declared_by": "measured"}


def test_the_pointer_is_what_dvc_add_writes(sandbox: Sandbox) -> None:
    sandbox.train(MODEL, 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    ours = (sandbox.path / f"{MODEL}.dvc").read_text()
    ignored = (sandbox.path / "models/.gitignore").read_text()
    sandbox.dvc("add", "-q", MODEL)
    assert (sandbox.path / f"{MODEL}.dvc").read_text() == ours
    assert (sandbox.path / "models/.gitignore").read_text() == ignored
    assert "up to date" in sandbox.dvc("status")


def test_push_uploads_before_the_commits_go(pushed: Sandbox) -> None:
    second = pushed.train(MODEL, 2)
    pushed.modelver("add", "-u")
    pushed.git("commit", "-q", "-m", "two")
    assert not on_remote(pushed, second)
    said = pushed.run("git", "push").stderr
    assert "uploading 1 object" in said
    assert on_remote(pushed, second)


def test_push_of_another_branch_uploads_its_objects(pushed: Sandbox) -> None:
    pushed.git("checkout", "-q", "-b", "side")
    second = pushed.train(MODEL, 2)
    pushed.modelver("add", "-u")
    pushed.git("commit", "-q", "-m", "two")
    pushed.git("checkout", "-q", "main")
    pushed.git("push", "-q", "origin", "side")
    assert on_remote(pushed, second)


def test_push_refuses_when_an_object_is_nowhere(pushed: Sandbox) -> None:
    second = pushed.train(MODEL, 2)
    pushed.modelver("add", "-u")
    pushed.git("commit", "-q", "-m", "two")
    pushed.git("checkout", "-q", "HEAD~1")
    pushed.drop(second)
    done = pushed.run("git", "push", "origin", "main", ok=False)
    assert done.returncode != 0
    assert second[:8] in done.stderr
    assert "MODELVER_SKIP=1" in done.stderr
    assert pushed.git("rev-parse", "origin/main") != pushed.git("rev-parse", "main")
    pushed.run("git", "push", "origin", "main", env={"MODELVER_SKIP": "1"})


def test_push_takes_other_dvc_outputs_along(pushed: Sandbox) -> None:
    pushed.write("data/train.csv", "1,2,3\n")
    pushed.write("folder/a.txt", "a\n")
    pushed.dvc("add", "-q", "data/train.csv", "folder")
    pushed.git("add", ".")
    pushed.git("commit", "-q", "-m", "data")
    pushed.git("push", "-q")
    assert on_remote(pushed, md5_of(pushed.path / "data/train.csv"))
    assert on_remote(pushed, md5_of(pushed.path / "folder/a.txt"))
    assert not (pushed.path / "data/train.csv.modelver.json").exists()


def test_clone_install_pull_gives_the_weights(pushed: Sandbox) -> None:
    other = clone(pushed)
    other.modelver("install")
    assert other.git("status", "--porcelain") == ""
    other.modelver("pull")
    assert other.md5(MODEL) == pushed.md5(MODEL)
    assert other.git("status", "--porcelain") == ""


def test_checkout_fetches_what_the_cache_lacks(pushed: Sandbox) -> None:
    second = pushed.train(MODEL, 2)
    pushed.modelver("add", "-u")
    pushed.git("commit", "-q", "-m", "two")
    pushed.git("push", "-q")
    other = clone(pushed)
    other.modelver("install")
    other.modelver("pull")
    other.git("checkout", "-q", "HEAD~1")
    assert other.md5(MODEL) != second
    other.git("checkout", "-q", "main")
    assert other.md5(MODEL) == second


def test_pull_of_new_commits_brings_the_weights(pushed: Sandbox) -> None:
    other = clone(pushed)
    other.modelver("install")
    other.modelver("pull")
    second = pushed.train(MODEL, 2)
    pushed.modelver("add", "-u")
    pushed.git("commit", "-q", "-m", "two")
    pushed.git("push", "-q")
    other.git("pull", "-q", "--ff-only")
    assert other.md5(MODEL) == second


def test_plain_dvc_finds_everything(pushed: Sandbox) -> None:
    other = clone(pushed, "plain")
    other.dvc("pull", "-q")
    assert other.md5(MODEL) == pushed.md5(MODEL)
    assert "up to date" in other.dvc("status")
    pushed.dvc("gc", "-w", "-f", "-q")
    assert pushed.cached(pushed.md5(MODEL))


@pytest.mark.parametrize(
    "name", ["mo dèle.safetensors", 'it\'s "x".safetensors', "-dash.safetensors", "tab\there.safetensors"]
)
def test_names_of_any_kind(sandbox: Sandbox, name: str) -> None:
    path = f"wéights dir/{name}"
    first = sandbox.train(path, 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    second = sandbox.train(path, 2)
    sandbox.git("commit", "-q", "-am", "two")
    assert sandbox.cached(second)
    assert sandbox.metadata_md5(path) == second
    sandbox.git("checkout", "-q", "HEAD~1")
    assert sandbox.md5(path) == first
    assert sandbox.git("status", "--porcelain") == ""


def test_a_model_hidden_by_gitignore_is_named(sandbox: Sandbox) -> None:
    sandbox.write(".gitignore", "__pycache__/\n*.pt\nmodels/\n")
    sandbox.train(MODEL, 1)
    sandbox.write("old.pt", "x" * 100_000)
    found = sandbox.modelver("status")
    assert MODEL in found
    assert "old.pt" in found
    assert sandbox.exit_code("doctor") == 1
    sandbox.modelver("add", MODEL)
    sandbox.git("commit", "-q", "-m", "one")
    second = sandbox.train(MODEL, 2)
    sandbox.git("commit", "-q", "-am", "two")
    assert sandbox.cached(second)


def test_a_small_text_file_with_a_model_suffix_stays_in_git(sandbox: Sandbox) -> None:
    sandbox.write("env.pth", "/some/path\n")
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "text")
    assert sandbox.git("show", "HEAD:env.pth") == "/some/path\n"


def test_a_model_already_in_git_stays_there(tmp_path: Path) -> None:
    box = Sandbox(tmp_path / "work")
    box.path.mkdir()
    box.git("init", "-q")
    box.train(MODEL, 1)
    box.git("add", ".")
    box.git("commit", "-q", "-m", "raw")
    box.modelver("init", "--remote", str(tmp_path / "remote"))
    box.git("add", ".")
    box.git("commit", "-q", "-m", "set up")
    assert box.git("status", "--porcelain") == ""
    second = box.train(MODEL, 2)
    assert "head.weight" in box.git("diff", "--", MODEL)
    box.git("commit", "-q", "-am", "raw again")
    assert box.git("status", "--porcelain") == ""
    assert MODEL in box.git("ls-tree", "-r", "--name-only", "HEAD")
    box.git("checkout", "-q", "HEAD~1")
    box.git("checkout", "-q", "-")
    assert box.md5(MODEL) == second


def test_the_weights_follow_a_colleague_who_has_plain_dvc(pushed: Sandbox) -> None:
    other = clone(pushed)
    other.modelver("install")
    second = other.train(MODEL, 2)
    other.git("commit", "-q", "-am", "two, with modelver")

    def commit_with_dvc(seed: int) -> str:
        md5 = other.train(MODEL, seed)
        other.dvc("add", "-q", MODEL)
        other.git("commit", "-q", "-am", "dvc only", MODELVER_SKIP="1")
        other.dvc("push", "-q")
        other.git("push", "-q", MODELVER_SKIP="1")
        return md5

    third = commit_with_dvc(3)
    said = pushed.run("git", "pull", "-q").stderr
    assert "conflict" not in said
    assert (
        said.count(f"the pointer names {third[:8]} (moved without modelver), the metadata describes {second[:8]}") == 1
    )
    assert (pushed.md5(MODEL), pushed.metadata_md5(MODEL)) == (third, third)
    document = json.loads((pushed.path / f"{MODEL}.modelver.json").read_text())
    assert (document["version"]["number"], document["version"]["parents"]) == (3, [second])
    assert f"HEAD has {third[:8]} without its metadata" in pushed.modelver("status")

    pushed.git("restore", ".")
    (pushed.path / ".git/modelver/state").unlink()  # as in a fresh clone
    (pushed.path / MODEL).unlink()
    for _ in range(2):
        pushed.modelver("pull", "--force", MODEL)
        assert (pushed.md5(MODEL), pushed.metadata_md5(MODEL)) == (third, third)
    pushed.git("restore", ".")
    assert pushed.git("status", "--porcelain") == ""
    assert f"modelver refresh {MODEL}" in pushed.modelver("status")
    assert pushed.md5(MODEL) == third

    fourth = commit_with_dvc(4)
    assert "in no commit" not in pushed.run("git", "pull", "-q").stderr
    pushed.modelver("refresh", MODEL)
    pushed.git("commit", "-q", "-m", "describe it")
    assert (pushed.md5(MODEL), pushed.metadata_md5(MODEL)) == (fourth, fourth)
    assert "undescribed" not in pushed.modelver("status")


def test_an_opaque_model_is_versioned_all_the_same(sandbox: Sandbox) -> None:
    (sandbox.path / "net.pt").write_bytes(bytes(range(256)) * 400)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    document = json.loads((sandbox.path / "net.pt.modelver.json").read_text())
    assert document["model"]["format"] == "opaque"
    assert document["model"]["bytes"] == 102_400
    assert "tensors_digest" not in document["model"]
    assert not (sandbox.path / "net.pt.modelver.tensors").exists()


def test_a_broken_model_is_committed_with_a_warning(sandbox: Sandbox) -> None:
    (sandbox.path / "bad.safetensors").write_bytes(b"\xff" * 100_000)
    sandbox.git("add", ".")
    said = sandbox.run("git", "commit", "-m", "broken").stderr
    assert "recorded as an opaque file" in said
    assert "Traceback" not in said
    md5 = sandbox.train("bad.safetensors", 1)
    sandbox.git("commit", "-q", "-a", "-m", f"mended: {md5}")
    (sandbox.path / "bad.safetensors").write_bytes(b"\xff" * 100_000)
    os.utime(sandbox.path / "bad.safetensors", (1e9, 1e9))  # or it counts as being written
    said = sandbox.run("git", "commit", "-a", "-m", "broken again").stderr
    assert "; committed as an opaque file" in said
    assert "bad.safetensors: bad.safetensors:" not in said


def test_commit_of_one_path_leaves_the_index_clean(sandbox: Sandbox) -> None:
    sandbox.train(MODEL, 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    second = sandbox.train(MODEL, 2)
    sandbox.git("status")
    sandbox.git("commit", "-q", "-m", "two", f"{MODEL}.modelver.json")
    assert sandbox.git("status", "--porcelain") == ""
    assert f"md5: {second}" in sandbox.git("show", f"HEAD:{MODEL}.dvc")


def test_staged_metadata_and_pointer_of_two_versions_are_refused(sandbox: Sandbox) -> None:
    sandbox.train(MODEL, 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    sandbox.train(MODEL, 2)
    sandbox.modelver("add", "-u")
    sandbox.git("commit", "-q", "-m", "two")
    sandbox.train(MODEL, 3)
    sandbox.modelver("add", "-u")
    pointer = sandbox.git("show", f"HEAD~1:{MODEL}.dvc")
    sandbox.write(f"{MODEL}.dvc", pointer)
    sandbox.run("git", "-c", "core.fsmonitor=false", "add", f"{MODEL}.dvc")
    done = sandbox.run("git", "-c", "core.fsmonitor=false", "commit", "-m", "mixed", ok=False)
    assert done.returncode != 0
    assert "expected one version" in done.stderr


def test_skip_switches_everything_off(sandbox: Sandbox) -> None:
    sandbox.train(MODEL, 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    sandbox.train(MODEL, 2)
    assert sandbox.git("status", "--porcelain", MODELVER_SKIP="1") == ""


# What tutorials show


def test_the_gitpython_tutorial_runs_unchanged(tmp_path: Path) -> None:
    """init; index.add(model); index.commit; a change; checkout HEAD~1; a branch; merge; branch -d."""
    box = Sandbox(tmp_path / "work")
    box.path.mkdir()
    with gitpython.Repo.init(box.path) as repo:
        box.modelver("init")
        repo.git.add(".")
        repo.index.commit("set up")
        first = box.train(MODEL, 1)
        repo.index.add([MODEL])
        repo.index.commit("first model")
        assert MODEL not in box.git("ls-tree", "-r", "--name-only", "HEAD").split()
        assert f"{MODEL}.dvc" in box.git("ls-tree", "-r", "--name-only", "HEAD").split()
        assert box.cached(first)
        branch = repo.active_branch.name
        repo.git.checkout("-b", "experiment")
        second = box.train(MODEL, 2)
        repo.git.add(A=True)
        repo.git.commit("-m", "second model")
        assert box.metadata_md5(MODEL) == second
        repo.git.checkout("HEAD~1")
        assert box.md5(MODEL) == first
        repo.git.checkout(branch)
        repo.git.merge("experiment")
        assert box.md5(MODEL) == second
        repo.git.branch("-d", "experiment")
        assert box.git("status", "--porcelain") == ""


def test_a_program_that_keeps_the_index_in_memory_is_told(sandbox: Sandbox) -> None:
    sandbox.train(MODEL, 1)
    with gitpython.Repo(sandbox.path) as repo:
        index = repo.index
        index.add([MODEL])
        index.commit("raw after all")
    assert MODEL in sandbox.git("ls-tree", "-r", "--name-only", "HEAD").split()
    said = sandbox.run("git", "commit", "--amend", "--no-edit")
    assert "Traceback" not in said.stderr
    assert MODEL not in sandbox.git("ls-tree", "-r", "--name-only", "HEAD").split()
    assert sandbox.git("status", "--porcelain") == ""


def test_the_git_tutorial_runs_unchanged(sandbox: Sandbox) -> None:
    first = sandbox.train("model.safetensors", 1)
    sandbox.git("add", "model.safetensors")
    sandbox.git("commit", "-q", "-m", "Add model")
    sandbox.git("checkout", "-q", "-b", "new-branch")
    second = sandbox.train("model.safetensors", 2)
    sandbox.git("commit", "-q", "-am", "Update model")
    sandbox.git("checkout", "-q", "main")
    assert sandbox.md5("model.safetensors") == first
    sandbox.git("merge", "-q", "new-branch")
    sandbox.git("branch", "-q", "-d", "new-branch")
    assert sandbox.md5("model.safetensors") == second
    sandbox.git("checkout", "-q", "HEAD~1")
    assert sandbox.md5("model.safetensors") == first


# Set-up


def test_init_twice_changes_nothing(sandbox: Sandbox) -> None:
    before = {
        p: p.read_bytes() for p in sandbox.path.rglob("*") if p.is_file() and "tmp" not in p.parts and p.name != "index"
    }
    out = sandbox.modelver("init")
    assert "wrote" not in out
    after = {
        p: p.read_bytes() for p in sandbox.path.rglob("*") if p.is_file() and "tmp" not in p.parts and p.name != "index"
    }
    assert {str(p) for p in before.keys() ^ after.keys()} <= {str(sandbox.path / ".git/modelver/lock")}
    assert all(before[p] == after[p] for p in before.keys() & after.keys())


def test_init_adopts_what_dvc_tracks(tmp_path: Path) -> None:
    box = Sandbox(tmp_path / "work")
    box.path.mkdir()
    box.git("init", "-q")
    box.dvc("init", "-q")
    md5 = box.train(MODEL, 1)
    box.dvc("add", "-q", MODEL)
    box.git("add", ".")
    box.git("commit", "-q", "-m", "plain dvc")
    box.dvc("remote", "add", "-q", "-d", "store", str(tmp_path / "remote"))
    box.dvc("push", "-q")
    shutil.rmtree(box.path / ".dvc/cache")
    (box.path / MODEL).unlink()
    out = box.modelver("init")
    assert MODEL in out
    box.modelver("add", "--all")
    assert box.metadata_md5(MODEL) == md5
    assert not (box.path / MODEL).exists()
    box.git("add", ".")
    box.git("commit", "-q", "-m", "adopted")
    box.modelver("pull")
    assert box.md5(MODEL) == md5


def test_uninstalled_repository_is_ordinary(pushed: Sandbox) -> None:
    pushed.modelver("uninstall")
    second = pushed.path / MODEL
    weights = load_file(second)
    weights["head.weight"] = weights["head.weight"] * 2
    save_file(weights, second)
    assert pushed.git("status", "--porcelain") == ""
    assert '"schema":"modelver.tensors/1"' in pushed.git("log", "-p")
    pushed.dvc("add", "-q", MODEL)
    pushed.git("commit", "-q", "-am", "by hand")
    assert make_weights(1).keys() == weights.keys()


@pytest.mark.parametrize("staged", [True, False], ids=["git add", "commit -a"])
def test_an_amended_version_is_measured_against_what_it_is_made_from(sandbox: Sandbox, staged: bool) -> None:
    md5s = [sandbox.train(MODEL, 1)]
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    for seed, how in ((2, ["-m", "two"]), (3, ["--amend", "--no-edit"]), (4, ["--amend", "--no-edit"])):
        md5s.append(sandbox.train(MODEL, seed))
        if staged:
            sandbox.git("add", "-A")
            sandbox.git("status")
            sandbox.modelver("add", "-u")
        sandbox.git("commit", "-q", *([] if staged else ["-a"]), *how)
    found = json.loads((sandbox.path / f"{MODEL}.modelver.json").read_text())
    assert found["model"]["md5"] == md5s[3]
    assert (found["version"]["number"], found["version"]["parents"]) == (2, md5s[:1])
    assert found["change"]["from"] == md5s[0]
    assert sandbox.git("status", "--porcelain") == ""
    sandbox.git("commit", "-q", "--amend", "-m", "another message")
    assert json.loads(sandbox.git("show", f"HEAD:{MODEL}.modelver.json")) == found
