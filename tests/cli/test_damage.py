"""What is broken is named once, with the command that mends it, and nothing else is touched."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path

import pytest

from tests.cli.test_commands import failing
from tests.sandbox import Sandbox, prepared

MODEL = "models/net.safetensors"


@prepared
def two(sandbox: Sandbox) -> Sandbox:
    """Two committed versions, pushed to a bare repository and a local DVC remote."""
    sandbox.run("git", "init", "-q", "--bare", str(sandbox.path.parent / "origin.git"))
    sandbox.git("remote", "add", "origin", "../origin.git")
    for seed in (1, 2):
        sandbox.train(MODEL, seed)
        sandbox.git("add", ".")
        sandbox.git("commit", "-q", "-m", f"version {seed}")
    sandbox.git("push", "-q", "-u", "origin", "main")
    return sandbox


def damage(box: Sandbox, md5: str) -> Path:
    """Flip one byte of a cache object."""
    obj = box.path / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    data = bytearray(obj.read_bytes())
    data[-1] ^= 1
    obj.chmod(0o644)
    obj.write_bytes(data)
    return obj


def first_md5(box: Sandbox) -> str:
    return box.git("show", f"HEAD~1:{MODEL}.dvc").split("md5: ")[1][:32]


def test_rollback_to_a_corrupt_object_changes_nothing(two: Sandbox) -> None:
    before = two.md5(MODEL)
    damage(two, first_md5(two))
    assert "modelver fsck --all --repair" in failing(two, "rollback", "net", code=4)
    assert two.git("status", "--porcelain") == ""
    assert two.md5(MODEL) == before
    assert "found in" in two.modelver("fsck", "--all", "--repair")
    two.modelver("rollback", "net")
    assert two.md5(MODEL) == first_md5(two)


@pytest.mark.parametrize("kind", ["hardlink", "symlink", "copy"])
def test_a_corrupt_object_is_not_linked(two: Sandbox, kind: str) -> None:
    two.dvc("config", "cache.type", kind)
    before = two.md5(MODEL)
    damage(two, first_md5(two))
    out = two.git("checkout", "-q", "HEAD~1", ok=False)
    assert "other bytes" in out or "do not have the md5" in out
    assert "hint: modelver fsck --all --repair" in out
    assert two.md5(MODEL) == before
    assert "behind" in two.modelver("status")


def test_a_corrupt_object_is_not_pushed(two: Sandbox) -> None:
    md5 = two.train(MODEL, 3)
    two.git("commit", "-q", "-am", "version 3")
    damage(two, md5)
    done = two.run("git", "push", ok=False)
    assert done.returncode != 0
    assert md5 in done.stderr
    assert not (two.path.parent / "remote/files/md5" / md5[:2] / md5[2:]).exists()


def test_fsck_reads_what_was_verified_before(two: Sandbox) -> None:
    md5 = two.md5(MODEL)
    obj = two.path / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    times = obj.stat()
    damage(two, md5)
    os.utime(obj, ns=(times.st_atime_ns, times.st_mtime_ns))
    done = two.run("modelver", "fsck", ok=False)
    assert done.returncode == 1
    assert md5 in done.stdout


def test_a_broken_pointer_is_named(two: Sandbox) -> None:
    pointer = two.path / f"{MODEL}.dvc"
    for text in ("{{{", "outs: 5\n", "outs:\n- md5: nonsense\n  path: net.safetensors\n"):
        pointer.write_text(text)
        assert f"unreadable  {MODEL}.dvc" in two.modelver("status")
        assert "hidden" not in two.modelver("status")
        assert "git checkout HEAD --" in two.run("modelver", "fsck", ok=False).stdout
        assert two.exit_code("pull") == 4
        two.train(MODEL, 7)
        assert "git checkout HEAD --" in failing(two, "add", MODEL, code=2)
        assert pointer.read_text() == text


def test_broken_metadata_is_named(two: Sandbox) -> None:
    (two.path / f"{MODEL}.modelver.json").write_text("nonsense")
    assert "not JSON" in failing(two, "show", "net", code=2)
    assert f"modelver refresh {MODEL}" in two.modelver("status")
    two.modelver("refresh", MODEL)
    assert two.git("status", "--porcelain") == ""


def test_a_missing_object_is_told_once_per_command(two: Sandbox) -> None:
    two.drop(first_md5(two))
    (two.path.parent / "remote").rename(two.path.parent / "elsewhere")
    done = two.run("git", "checkout", "-q", "HEAD~1")
    assert done.stderr.count("still the weights of before") == 1
    assert two.git("checkout", "-q", "main") == ""
    done = two.run("git", "checkout", "-q", "HEAD~1")
    assert done.stderr.count("still the weights of before") == 1


def test_hints_can_be_pasted(sandbox: Sandbox) -> None:
    path = "my models/-it's é.safetensors"
    sandbox.train(path, 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    (sandbox.path / path).unlink()
    line = next(s for s in sandbox.modelver("status").splitlines() if s.startswith("missing"))
    command = line.split("; ")[1].removesuffix(")")
    sandbox.run("sh", "-ec", command)
    assert (sandbox.path / path).is_file()


def test_status_says_that_nothing_is_pushed_anywhere(sandbox: Sandbox) -> None:
    sandbox.train(MODEL, 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    sandbox.dvc("remote", "remove", "storage")
    out = sandbox.modelver("status")
    assert "no Git remote" in out
    assert "no DVC remote" in out


def test_a_shallow_clone_says_so(two: Sandbox, tmp_path: Path) -> None:
    two.run("git", "clone", "-q", "--depth", "1", f"file://{tmp_path}/origin.git", str(tmp_path / "shallow"))
    clone = Sandbox(tmp_path / "shallow")
    assert "git fetch --unshallow" in failing(clone, "rollback", "net", code=2)


def test_a_table_of_another_version_is_named(two: Sandbox) -> None:
    table = two.path / f"{MODEL}.modelver.tensors"
    table.write_text(table.read_text() + "garbage\n")
    assert f"modelver refresh {MODEL}" in two.modelver("status")
    done = two.run("modelver", "fsck", ok=False)
    assert done.returncode == 1
    assert "tensor table" in done.stdout
    two.modelver("refresh", MODEL)
    assert two.git("status", "--porcelain") == ""


def test_what_a_killed_process_left_is_removed(two: Sandbox) -> None:
    left = [
        folder / f"{platform.node()}~{pid}~1"
        for folder in (two.path / ".dvc/tmp/modelver.tmp", two.path / ".dvc/cache/modelver.tmp")
        for pid in (2**22 + 1, 1)
    ]
    for file in left:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"half")
    two.git("checkout", "-q", "HEAD~1")
    two.train(MODEL, 9)
    two.modelver("add", MODEL)
    assert [file.exists() for file in left] == [False, True, False, True]
    assert "?? " not in two.git("status", "--porcelain")


def test_a_name_that_is_not_utf8_is_refused_at_once(sandbox: Sandbox) -> None:
    name = b"latin\xe9.safetensors"
    sandbox.train("x.safetensors", 1)
    os.rename(sandbox.path / "x.safetensors", os.fsencode(sandbox.path) + b"/" + name)
    done = subprocess.run(["git", "add", "."], cwd=sandbox.path, capture_output=True, check=False)
    assert done.returncode != 0
    assert b"not UTF-8" in done.stderr
    assert sandbox.git("diff", "--cached", "--name-only") == ""
    odd, folder = os.fsdecode(name), sandbox.path / "big"
    done_too = sandbox.run("modelver", "add", odd, ok=False)
    assert (done_too.returncode, "not UTF-8" in done_too.stderr) == (2, True)
    folder.mkdir()
    (sandbox.path / odd).rename(folder / odd)
    assert sandbox.exit_code("add", "big") == 2
    (folder / odd).rename(folder / "even.safetensors")
    sandbox.modelver("add", "big")
    assert sandbox.exit_code("mv", "big", odd) == 2
    assert (folder / "even.safetensors").exists()


def test_weights_without_rights_are_an_environment_error(two: Sandbox) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (two.path / MODEL).chmod(0)
    assert two.exit_code("status") == 4


def test_weights_retrained_in_a_conflict_are_kept_by_a_reset(two: Sandbox) -> None:
    two.train(MODEL, 3)
    two.git("stash")
    two.train(MODEL, 4)
    two.git("commit", "-q", "-am", "version 4")
    committed = two.md5(MODEL)
    two.git("stash", "pop", ok=False)
    md5 = two.train(MODEL, 5)
    two.git("reset", "-q", "--hard")
    assert two.git("status", "--porcelain") == ""
    assert (two.md5(MODEL), two.metadata_md5(MODEL)) == (committed, committed)
    assert two.cached(md5)


def test_weights_written_through_a_link_get_an_object_of_their_own(two: Sandbox) -> None:
    two.dvc("config", "cache.type", "symlink")
    two.modelver("add", MODEL)
    assert (two.path / MODEL).is_symlink()
    md5 = two.train("new.safetensors", 8)
    target = (two.path / MODEL).resolve()
    target.chmod(0o644)
    target.write_bytes((two.path / "new.safetensors").read_bytes())  # what open(path, "wb") does as root
    two.git("commit", "-q", "-am", "in place")
    assert two.metadata_md5(MODEL) == md5
    assert two.cached(md5)
    done = two.run("modelver", "fsck", "--all", ok=False)
    assert done.returncode == 1
    assert "other bytes" in done.stdout


def test_load_over_a_retrained_model_keeps_its_bytes(two: Sandbox) -> None:
    md5 = two.train(MODEL, 6)
    two.modelver("load", "net@1", "-o", MODEL, "--force")
    assert two.cached(md5)
    assert two.md5(MODEL) == first_md5(two)


@pytest.mark.parametrize("path", [f"{MODEL}.dvc", f"{MODEL}.modelver.json", "models/.gitignore", "dvc.yaml"])
def test_the_repositorys_own_files_are_no_models(two: Sandbox, path: str) -> None:
    two.write("dvc.yaml", "stages: {}\n")
    failing(two, "add", path, code=2)
    assert two.git("status", "--porcelain") == "?? dvc.yaml\n"


@pytest.mark.parametrize("thing", ["folder", "fifo"])
def test_something_else_in_a_models_place(two: Sandbox, thing: str) -> None:
    file = two.path / MODEL
    file.unlink()
    file.mkdir() if thing == "folder" else os.mkfifo(file)
    assert f"missing  {MODEL}" in two.modelver("status")
    assert two.git("status", "--porcelain") == ""
    assert "bug" not in two.run("git", "checkout", "-q", "HEAD~1").stderr
    two.run("modelver", "pull", ok=False)


def test_init_makes_no_repository_inside_another(two: Sandbox, tmp_path: Path) -> None:
    (two.path / "empty").mkdir()
    Sandbox(two.path / "empty").modelver("init")
    assert not (two.path / "empty/.git").exists()
    two.run("git", "init", "-q", "--bare", str(tmp_path / "bare.git"))
    assert "bare" in failing(Sandbox(tmp_path / "bare.git"), "init", code=2)


def test_init_refuses_before_it_writes(tmp_path: Path) -> None:
    box = Sandbox(tmp_path / "work")
    box.path.mkdir()
    box.run("git", "init", "-q")
    box.dvc("init", "-q")
    box.dvc("remote", "add", "-q", "-d", "storage", str(tmp_path / "one"))
    before = sorted(p.name for p in box.path.iterdir())
    failing(box, "init", "--remote", str(tmp_path / "other"), code=2)
    assert sorted(p.name for p in box.path.iterdir()) == before
    assert "modelver" not in box.git("config", "--list")
    box.modelver("init", "--no-hooks")
    assert "filter.modelver.process" in box.git("config", "--list")


def test_adding_weights_ends_a_conflict(two: Sandbox) -> None:
    two.git("checkout", "-q", "-b", "exp", "HEAD~1")
    two.train(MODEL, 21)
    two.git("commit", "-q", "-am", "theirs")
    two.git("checkout", "-q", "main")
    assert two.git("merge", "exp", ok=False)
    md5 = two.train(MODEL, 22)
    two.modelver("add", MODEL)
    assert "U" not in two.git("status", "--porcelain")
    two.git("commit", "-q", "-m", "merged by hand")
    assert two.metadata_md5(MODEL) == md5
    assert two.cached(md5)
    assert two.git("status", "--porcelain") == ""


def test_reverting_a_removal_brings_the_weights_back(two: Sandbox) -> None:
    md5 = two.md5(MODEL)
    two.modelver("rm", "net")
    two.git("commit", "-q", "-m", "removed")
    two.git("revert", "--no-edit", "HEAD")
    assert two.md5(MODEL) == md5


@pytest.mark.parametrize("how", ["merge --abort", "checkout --ours", "revert --abort"])
def test_retraining_stays_visible_after_a_conflict(two: Sandbox, how: str) -> None:
    two.git("checkout", "-q", "-b", "exp", "HEAD~1")
    two.train(MODEL, 21)
    two.git("commit", "-q", "-am", "theirs")
    if how == "revert --abort":
        two.train(MODEL, 23)
        two.git("commit", "-q", "-am", "more")
        two.git("revert", "--no-edit", "HEAD~1", ok=False)
        two.git("revert", "--abort")
    else:
        two.git("merge", "main", ok=False)
        if how == "merge --abort":
            two.git("merge", "--abort")
        else:
            two.git("checkout", "-q", "--ours", "models")
            two.git("commit", "-q", "-am", "ours")
    md5 = two.train(MODEL, 22)
    assert f" M {MODEL}.modelver.json" in two.git("status", "--porcelain")
    two.git("commit", "-q", "-am", "retrained")
    assert two.metadata_md5(MODEL) == md5


def test_pull_keeps_a_pipelines_weights_that_were_trained_by_hand(sandbox: Sandbox) -> None:
    sandbox.write("train.py", "import shutil, sys\nshutil.copyfile(sys.argv[1], 'p.safetensors')\n")
    sandbox.train("in.safetensors", 1)
    sandbox.write("dvc.yaml", "stages:\n  train:\n    cmd: python train.py in.safetensors\n    outs: [p.safetensors]\n")
    sandbox.dvc("repro", "-q")
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    md5 = sandbox.train("p.safetensors", 5)
    assert " M p.safetensors.modelver.json" in sandbox.git("status", "--porcelain")
    assert "behind" not in sandbox.modelver("status")
    sandbox.modelver("pull")
    assert sandbox.md5("p.safetensors") == md5
    done = sandbox.run("git", "commit", "-q", "-am", "outside", ok=False)
    assert "outside dvc repro" in done.stderr
    sandbox.modelver("add", "--accept", "p.safetensors")
    sandbox.git("commit", "-q", "-m", "accepted")
    assert sandbox.git("status", "--porcelain") == ""
    assert sandbox.metadata_md5("p.safetensors") == md5


def test_results_that_git_keeps_are_not_pushed_to_dvc(sandbox: Sandbox) -> None:
    sandbox.run("git", "init", "-q", "--bare", str(sandbox.path.parent / "origin.git"))
    sandbox.git("remote", "add", "origin", "../origin.git")
    sandbox.write("train.py", "import shutil\nshutil.copyfile('in.safetensors', 'p.safetensors')\n")
    stage = "cmd: python train.py && cp in.json metrics.json\n    deps: [in.json]\n    outs: [p.safetensors]\n"
    sandbox.write("dvc.yaml", f"stages:\n  train:\n    {stage}    metrics:\n    - metrics.json: {{cache: false}}\n")
    for n in (1, 2):
        sandbox.write("in.json", f'{{"acc": 0.{n}}}')
        sandbox.train("in.safetensors", n)
        sandbox.dvc("repro", "-q")
        sandbox.git("add", ".")
        sandbox.git("commit", "-q", "-m", str(n))
    assert "metrics.json" not in sandbox.modelver("status")
    sandbox.git("push", "-q", "-u", "origin", "main")  # version 1's metrics.json is in no cache
    assert "unpushed" not in sandbox.modelver("status")


def test_parameters_of_accepted_weights_are_those_of_now(sandbox: Sandbox) -> None:
    sandbox.write("params.yaml", "lr: 0.1\nother: 1\n")
    sandbox.train("in.safetensors", 1)
    stage = "cmd: cp in.safetensors p.safetensors\n    params: [lr]\n    outs: [p.safetensors]\n"
    sandbox.write("dvc.yaml", f"stages:\n  train:\n    {stage}")
    sandbox.dvc("repro", "-q")
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    sandbox.write("params.yaml", "lr: 0.2\nother: 1\n")
    sandbox.train("p.safetensors", 2)
    sandbox.modelver("add", "--accept", "p.safetensors")
    document = json.loads((sandbox.path / "p.safetensors.modelver.json").read_text())
    assert document["training"]["hyperparameters"] == {"lr": 0.2}
    assert document["version"]["declared_by"] == "user"


def test_weights_that_go_into_git_itself_are_named(sandbox: Sandbox) -> None:
    for name in ("big.npz", "UPPER.SAFETENSORS"):
        (sandbox.path / name).write_bytes(os.urandom(1_100_000))
    sandbox.train("m.safetensors", 1)
    out = sandbox.modelver("status")
    assert "untracked  m.safetensors" in out
    assert "untracked  big.npz  (not tracked yet; modelver add big.npz)" in out
    sandbox.git("add", ".")
    assert "staged" in sandbox.modelver("status")
    said = sandbox.run("git", "commit", "-q", "-m", "raw").stderr
    assert "big.npz: 1.1 MB of weights go into Git itself" in said
    assert "UPPER.SAFETENSORS: 1.1 MB" in said
    assert "m.safetensors" not in said


def test_a_renamed_model_keeps_its_versions(two: Sandbox) -> None:
    first, second = first_md5(two), two.md5(MODEL)
    two.modelver("tag", "net", "v1.0.0", "HEAD~1")
    failing(two, "mv", "net", "weights/", code=2)
    two.modelver("mv", "net", "weights/renamed.safetensors")
    two.git("commit", "-q", "-m", "renamed")
    renamed = "weights/renamed.safetensors"
    assert [line.split()[:2] for line in two.modelver("log", "net").splitlines()[1:]] == [["2", "*"], ["1", first[:8]]]
    assert "v1.0.0" in two.modelver("log", "net")
    assert first[:8] in two.modelver("show", "net@v1.0.0")
    assert "net version 1" in two.modelver("show", "net@1")
    assert two.modelver("diff", "net@1", "net@2")
    two.modelver("load", "net@v1.0.0", "-o", "out.safetensors")
    assert two.md5("out.safetensors") == first
    two.modelver("rollback", "net", "v1.0.0")
    two.git("commit", "-q", "-m", "back")
    assert two.md5(renamed) == first
    assert two.metadata_md5(renamed) == first
    assert two.git("status", "--porcelain") == "?? out.safetensors\n"
    two.modelver("rollback", "net", "2")
    assert two.md5(renamed) == second
    assert two.modelver("check") and two.exit_code("fsck") == 0


def test_files_of_a_folder_that_dvc_tracks_are_not_hidden(sandbox: Sandbox) -> None:
    sandbox.train("data/x.safetensors", 1)
    sandbox.dvc("add", "-q", "data")
    assert "hidden" not in sandbox.modelver("status")


def test_a_linked_work_tree_shares_the_cache(two: Sandbox, tmp_path: Path) -> None:
    two.git("worktree", "add", "-q", "-b", "exp", "../linked", "HEAD~1")
    linked = Sandbox(tmp_path / "linked")
    assert linked.md5(MODEL) == first_md5(two)  # from the cache, not from the remote
    md5 = linked.train(MODEL, 31)
    linked.git("commit", "-q", "-am", "in the linked tree")
    assert two.cached(md5)
    assert linked.git("status", "--porcelain") == ""
    two.git("worktree", "remove", "../linked")
    two.git("checkout", "-q", "exp")
    assert two.md5(MODEL) == md5
    assert two.exit_code("fsck") == 0


def test_an_opaque_model_mends_metadata_that_head_has_broken(two: Sandbox) -> None:
    (two.path / f"{MODEL}.modelver.json").write_text("<<<<<<< ours\n")
    two.git("commit", "-q", "-am", "broken", MODELVER_SKIP="1")
    (two.path / MODEL).write_bytes(b"no safetensors file")
    two.modelver("add", MODEL)
    two.git("commit", "-q", "-m", "mended")
    assert json.loads((two.path / f"{MODEL}.modelver.json").read_text())["model"]["format"] == "opaque"
