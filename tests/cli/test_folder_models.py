"""A sharded checkpoint is one model: tracked, compared, rolled back, pushed and fetched as a whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tests.sandbox import Sandbox, prepared

MODEL = "models/Llama é"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def weights(seed: int = 0) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    names = [f"layers.{i}.{part}.weight" for i in range(4) for part in ("up", "down")]
    return {name: rng.standard_normal((32, 48)).astype(np.float32) for name in names}


def write_folder(folder: Path, tensors: dict[str, NDArray[Any]], **config: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    weight_map: dict[str, str] = {}
    for shard, half in zip(SHARDS, halves, strict=True):
        save_file({name: tensors[name] for name in half}, folder / shard)
        weight_map |= dict.fromkeys(half, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({"hidden_size": 32, "rope": {"theta": 10000.0}} | config))
    (folder / "tokenizer.json").write_text("{}" + " " * 300_000)
    (folder / ".gitkeep").touch()


@prepared
def two(sandbox: Sandbox) -> Sandbox:
    """Two committed versions; the second has one layer of the second shard and a line of its configuration changed."""
    sandbox.run("git", "init", "-q", "--bare", str(sandbox.path.parent / "origin.git"))
    sandbox.git("remote", "add", "origin", "../origin.git")
    tensors = weights()
    write_folder(sandbox.path / MODEL, tensors)
    sandbox.modelver("add", MODEL)
    sandbox.git("commit", "-q", "-m", "one")
    tensors["layers.3.up.weight"] = tensors["layers.3.up.weight"] * np.float32(1.01)
    write_folder(sandbox.path / MODEL, tensors, hidden_size=64)
    sandbox.git("commit", "-q", "-am", "two")
    sandbox.git("push", "-q", "-u", "origin", "main")
    return sandbox


def pointer(box: Sandbox, rev: str) -> str:
    return box.git("show", f"{rev}:{MODEL}.dvc")


def test_git_sees_what_changed_in_the_folder(two: Sandbox) -> None:
    metadata = json.loads((two.path / f"{MODEL}.modelver.json").read_text())
    assert metadata["model"]["format"] == "folder"
    assert metadata["model"]["md5"].endswith(".dir")
    assert "sha256" not in metadata["model"]
    assert metadata["model"]["n_tensors"] == 8
    assert metadata["version"]["number"] == 2
    out = two.git("diff", "HEAD~1", "HEAD")
    assert "layers.3.up.weight" in out
    assert "7 tensors unchanged" in out
    assert "config.hidden_size" in out
    assert "32 → 64" in out
    assert two.git("status", "--porcelain") == ""
    assert MODEL not in two.git("ls-files", MODEL)


def test_the_pointer_is_that_of_dvc(two: Sandbox) -> None:
    ours = (two.path / f"{MODEL}.dvc").read_text()
    shutil.copytree(two.path / MODEL, two.path / "other")
    two.dvc("add", "other")
    theirs = (two.path / "other.dvc").read_text()
    assert ours.splitlines()[1:4] == theirs.splitlines()[1:4]  # md5, size, nfiles
    assert "up to date" in two.dvc("status")


def test_checkout_and_rollback_bring_the_whole_folder_back(two: Sandbox) -> None:
    extra = two.path / MODEL / "notes.txt"
    two.git("checkout", "-q", "HEAD~1")
    old = load_file(two.path / MODEL / SHARDS[1])
    assert np.array_equal(old["layers.3.up.weight"], weights()["layers.3.up.weight"])
    assert json.loads((two.path / MODEL / "config.json").read_text())["hidden_size"] == 32
    two.git("checkout", "-q", "main")
    assert json.loads((two.path / MODEL / "config.json").read_text())["hidden_size"] == 64
    extra.write_text("in no version")
    two.modelver("rollback", "Llama-e" if "Llama-e" in two.modelver("list") else "Llama")
    assert not extra.exists()
    assert json.loads((two.path / MODEL / "config.json").read_text())["hidden_size"] == 32
    two.git("commit", "-q", "-m", "back")
    assert pointer(two, "HEAD") == pointer(two, "HEAD~2")


def test_only_the_file_that_moved_is_read_again(two: Sandbox) -> None:
    script = (
        "import dvc_modelver.store.hashing as h\n"
        "from pathlib import Path\n"
        "import dvc_modelver.store.cache as c\n"
        "read = []\n"
        "real = h.hash_file\n"
        "c.hash_file = lambda path, **k: (read.append(path.name), real(path, **k))[1]\n"
        "from dvc_modelver.repository import Repository\n"
        "repo = Repository.open()\n"
        f"cache, path = repo.cache(), repo.top / {MODEL!r}\n"
        "cache.hash_path(path); read.clear()\n"
        "cache.hash_path(path); print(read)\n"
        "import os, time; os.utime(path / 'config.json', ns=(1, 1)); time.sleep(0.1)\n"
        "cache.hash_path(path); print(read)\n"
    )
    for name in os.listdir(two.path / MODEL):
        os.utime(two.path / MODEL / name, ns=(10**18, 10**18))
    assert two.run(sys.executable, "-c", "import time; time.sleep(0.1)\n" + script).stdout.split() == [
        "[]",
        "['config.json']",
    ]


def test_push_and_pull_carry_every_file(two: Sandbox) -> None:
    clone = two.path.parent / "clone"
    two.run("git", "clone", "-q", str(two.path.parent / "origin.git"), str(clone))
    (clone / ".dvc/config.local").write_text((two.path / ".dvc/config").read_text())
    box = Sandbox(clone)
    box.modelver("install")
    box.modelver("pull")
    assert sorted(os.listdir(clone / MODEL)) == sorted(os.listdir(two.path / MODEL))
    assert box.modelver("status").strip() == two.modelver("status").strip()
    shutil.rmtree(clone / ".dvc/cache")
    shutil.rmtree(clone / MODEL)
    out = json.loads(box.modelver("diff", "HEAD~1", "HEAD", "--exact", "--json"))  # read by range from the remote
    changed = [t for t in out["models"][0]["tensors"] if t["change"] != "unchanged"]
    assert [t["name"] for t in changed] == ["layers.3.up.weight"]
    assert out["models"][0]["exact"] is True
    assert abs(changed[0]["relative_l2"] - 0.01) < 1e-6


def test_a_folder_is_loaded_compared_moved_and_removed(two: Sandbox, tmp_path: Path) -> None:
    name = json.loads((two.path / f"{MODEL}.modelver.json").read_text())["model"]["name"]
    two.modelver("load", f"{name}@1", "-o", str(tmp_path / "first"))
    out = two.modelver("diff", "--exact", str(tmp_path / "first"), MODEL)
    assert "layers.3.up.weight" in out
    assert "config.hidden_size" in out
    card = two.modelver("show", MODEL)
    assert "in 8 tensors" in card
    assert "config.hidden_size" in card
    two.modelver("mv", MODEL, "models/renamed")
    assert (two.path / "models/renamed" / SHARDS[0]).is_file()
    two.git("commit", "-q", "-m", "moved")
    two.modelver("rm", "models/renamed")
    assert not (two.path / "models/renamed").exists()


def test_status_offers_a_new_folder_as_one_model(two: Sandbox) -> None:
    write_folder(two.path / "new", weights(1))
    lines = [line for line in two.modelver("status").splitlines() if "new/" in line]
    assert len(lines) == 1
    assert "modelver add new" in lines[0]


def test_a_missing_shard_is_refused_and_comes_back(two: Sandbox) -> None:
    (two.path / MODEL / SHARDS[0]).unlink()
    two.git("status")  # whoever looks first must not swallow the reason
    done = two.run("git", "commit", "-am", "broken", ok=False)
    assert done.returncode == 1
    assert f"names the shard '{SHARDS[0]}', which is not there" in done.stderr
    two.git("restore", "--staged", "--worktree", f"{MODEL}.modelver.json", f"{MODEL}.modelver.tensors", f"{MODEL}.dvc")
    two.modelver("pull", "--force", MODEL)
    assert (two.path / MODEL / SHARDS[0]).is_file()
    assert two.git("status", "--porcelain") == ""


def test_a_shard_of_a_tracked_folder_is_no_model_of_its_own(two: Sandbox) -> None:
    out = two.modelver("add", f"{MODEL}/{SHARDS[0]}", ok=False)
    assert "tracked as a whole" in out
    (two.path / f"{MODEL}.dvc").write_text("<<<<<<< ours\n")
    assert SHARDS[0] not in two.modelver("status", ok=False)


def test_hard_links_are_no_writes(two: Sandbox) -> None:
    two.dvc("config", "--local", "cache.type", "hardlink")
    name = json.loads((two.path / f"{MODEL}.modelver.json").read_text())["model"]["name"]
    for _ in range(3):
        two.git("checkout", "-q", "HEAD~1")
        two.git("checkout", "-q", "main")
        two.modelver("rollback", f"{name}@1")
        two.git("reset", "-q", "--hard")


@pytest.mark.parametrize("kind", ["hardlink", "symlink", "reflink,copy"])
def test_links_are_as_dvc_is_told(two: Sandbox, kind: str) -> None:
    two.dvc("config", "cache.type", kind)
    two.git("checkout", "-q", "HEAD~1")
    shard = two.path / MODEL / SHARDS[1]
    assert shard.is_symlink() == (kind == "symlink")
    assert (shard.stat().st_nlink > 1) == (kind == "hardlink")
    assert two.git("status", "--porcelain", "--untracked-files=no").replace("M .dvc/config", "").strip() == ""
    two.git("checkout", "-q", "main")
    assert two.git("status", "--porcelain", "--untracked-files=no").replace("M .dvc/config", "").strip() == ""


# Folders whose files are models of their own already


@pytest.mark.parametrize("committed", [False, True])
def test_a_folder_takes_over_what_was_tracked_singly_in_it(sandbox: Sandbox, committed: bool) -> None:
    folder = sandbox.path / "llama"
    write_folder(folder, weights())
    said = sandbox.run("git", "add", ".").stderr
    assert said.count("modelver add llama makes it one") == 1
    if committed:
        sandbox.git("commit", "-q", "-m", "singly")
        assert (folder / f"{SHARDS[0]}.modelver.json").exists()
    before = sorted(os.listdir(folder))
    out = sandbox.modelver("add", "llama")
    assert "llama version 1" in out
    assert not [name for name in os.listdir(folder) if "modelver" in name or name.endswith(".dvc")]
    assert set(os.listdir(folder)) <= set(before)
    assert not (folder / ".gitignore").exists()
    assert sandbox.git("ls-files", "llama") == ""
    assert "tracked no more" not in sandbox.run("git", "commit", "-q", "-m", "as one").stderr
    assert sandbox.git("status", "--porcelain") == ""
    assert [line.split()[-1] for line in sandbox.modelver("list").splitlines()[1:]] == ["llama"]
    listing = sandbox.git("ls-files").split()
    assert {"llama.dvc", "llama.modelver.json", "llama.modelver.tensors"} <= set(listing)
    assert "ok" in sandbox.modelver("check")
    assert "0 problems" in sandbox.modelver("fsck")
    assert "up to date" in sandbox.dvc("status")


def test_history_goes_back_and_forth_over_a_takeover(sandbox: Sandbox) -> None:
    folder = sandbox.path / "llama"
    write_folder(folder, weights())
    contents = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "singly")
    sandbox.modelver("add", "llama")
    sandbox.git("commit", "-q", "-m", "as one")
    for _ in range(2):
        sandbox.git("checkout", "-q", "HEAD~1")
        assert {name: (folder / name).read_bytes() for name in contents} == contents
        assert sandbox.git("status", "--porcelain") == ""
        sandbox.git("checkout", "-q", "main")
        assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == contents
        assert sandbox.git("status", "--porcelain") == ""


def test_a_folder_that_moved_on_is_in_no_danger_where_its_files_are_models(sandbox: Sandbox) -> None:
    folder, tensors = sandbox.path / "llama", weights()
    write_folder(folder, tensors)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "singly")
    sandbox.modelver("add", "llama")
    sandbox.git("commit", "-q", "-m", "as one")
    sandbox.git("status")
    tensors["layers.0.up.weight"] += 1
    write_folder(folder, tensors)
    sandbox.git("commit", "-q", "-am", "version 2")
    out = sandbox.run("git", "checkout", "HEAD~2").stderr
    assert f"conflict: llama/{SHARDS[0]}" in out  # never taken for a new version of the single file
    assert "retrained" not in sandbox.modelver("status")
    assert np.array_equal(load_file(folder / SHARDS[0])["layers.0.up.weight"], tensors["layers.0.up.weight"])
    sandbox.modelver("pull", "--force", f"llama/{SHARDS[0]}")
    assert sandbox.git("status", "--porcelain") == ""


def test_a_takeover_that_fails_leaves_all_as_it_was(sandbox: Sandbox) -> None:
    folder = sandbox.path / "llama"
    write_folder(folder, weights())
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "singly")
    before = sorted(os.listdir(folder))
    sandbox.write("llama.dvc", "no pointer\n")
    assert sandbox.exit_code("add", "llama") != 0
    assert sorted(os.listdir(folder)) == before
    (sandbox.path / "llama.dvc").unlink()
    assert sandbox.git("status", "--porcelain") == ""
    (folder / SHARDS[0]).unlink()
    out = sandbox.modelver("add", "llama", ok=False)
    assert "not on disk" in out or "is not there" in out


def test_a_folder_of_several_models_is_not_taken_over(sandbox: Sandbox) -> None:
    for name in ("a", "b"):
        sandbox.train(f"models/{name}.safetensors", 1 if name == "a" else 2)
    said = sandbox.run("git", "add", ".").stderr
    assert "makes it one" not in said
    sandbox.git("commit", "-q", "-m", "two models")
    out = sandbox.modelver("add", "models", ok=False)
    assert "is tracked already, expected a folder that is one model" in out
    assert sandbox.git("status", "--porcelain") == ""


def test_weights_of_a_folder_that_go_into_git_itself_are_named_with_the_folder(sandbox: Sandbox) -> None:
    folder = sandbox.path / "bert base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for i in (1, 2):
        (folder / f"pytorch_model-0000{i}-of-00002.bin").write_bytes(os.urandom(1_100_000))
    sandbox.git("add", ".")
    said = sandbox.run("git", "commit", "-m", "raw").stderr
    assert said.count("hint: ") == 1
    assert "hint: modelver add 'bert base' makes the folder one model" in said


def test_adding_a_folder_without_one_of_its_shards_is_refused(sandbox: Sandbox) -> None:
    write_folder(sandbox.path / "llama", weights())
    (sandbox.path / "llama" / SHARDS[1]).unlink()
    out = sandbox.modelver("add", "llama", ok=False)
    assert f"names the shard '{SHARDS[1]}', which is not there" in out
    assert sandbox.exit_code("add", "llama") == 2
    assert not (sandbox.path / "llama.dvc").exists()


def test_add_checks_all_its_paths_before_it_adds_one(sandbox: Sandbox) -> None:
    sandbox.train("a.safetensors", 1)
    sandbox.write("b.safetensors", "<html>")
    assert sandbox.exit_code("add", "a.safetensors", "b.safetensors", "nosuch.pt") == 2
    assert not (sandbox.path / "a.safetensors.dvc").exists()
    assert sandbox.git("diff", "--cached", "--name-only") == ""
    write_folder(sandbox.path / "llama", weights())
    assert "given as a whole" in sandbox.modelver("add", "llama", f"llama/{SHARDS[0]}", ok=False)


# Folders of TensorFlow


@pytest.fixture(scope="module")
def tensorflow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and a SavedModel of one network, as TensorFlow writes them, each in a folder; and its .keras file."""
    pytest.importorskip("tensorflow")
    folder = tmp_path_factory.mktemp("tensorflow")
    script = (
        "import keras, tensorflow as tf\n"
        "m = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])\n"
        "m.save('net.keras'); tf.saved_model.save(m, 'saved_model')\n"
        "tf.train.Checkpoint(net=m).save('tfckpt/ckpt')\n"
    )
    env = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "KERAS_BACKEND": "tensorflow"}
    subprocess.run([sys.executable, "-c", script], cwd=folder, env=env, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("name", ["saved_model", "tfckpt"])
def test_folders_of_tensorflow_are_added_compared_and_known(
    sandbox: Sandbox, tensorflow_folder: Path, name: str
) -> None:
    shutil.copytree(tensorflow_folder, sandbox.path, dirs_exist_ok=True)
    assert "kernel" in sandbox.modelver("diff", "net.keras", name)
    assert "kernel" in sandbox.modelver("diff", name, "net.keras", "--exact")
    assert f"{name} version 1" in sandbox.modelver("add", name)
    sandbox.git("commit", "-q", "-m", "one")
    assert "kernel" in sandbox.modelver("show", name, "--all-tensors")
    assert "kernel" in sandbox.modelver("diff", "net.keras", name)
    assert "parameters" in sandbox.modelver("show", name)
    assert "ok" in sandbox.modelver("check")
