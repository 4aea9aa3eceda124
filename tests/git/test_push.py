"""What a push sends: every object of the pushed commits that the remote lacks, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.numpy import save_file

from tests.sandbox import Sandbox, make_weights, md5_of, prepared

MODEL = "models/net.safetensors"
BIG_FILES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json")


@prepared
def box(sandbox: Sandbox) -> Sandbox:
    """Version 1 committed and pushed to a bare repository and a local DVC remote."""
    sandbox.run("git", "init", "-q", "--bare", "../origin.git")
    sandbox.git("remote", "add", "origin", "../origin.git")
    train(sandbox, 1)
    sandbox.git("push", "-q", "-u", "origin", "main")
    return sandbox


def train(box: Sandbox, seed: int, path: str = MODEL) -> str:
    """Commit a version; give its md5."""
    md5 = box.train(path, seed)
    box.git("add", ".")
    box.git("commit", "-q", "-m", f"{path} {seed}")
    return md5


def at(folder: Path, md5: str) -> Path:
    return folder / "files/md5" / md5[:2] / md5[2:]


def on_remote(box: Sandbox, name: str = "remote") -> set[str]:
    return {p.parent.name + p.name for p in (box.path.parent / name / "files/md5").glob("??/*")}


def test_each_kind_of_push_sends_its_objects_and_no_other(box: Sandbox) -> None:
    before = on_remote(box)

    def new() -> set[str]:
        nonlocal before
        found, before = on_remote(box) - before, on_remote(box)
        return found

    box.git("checkout", "-q", "-b", "side")
    side = train(box, 2)
    box.git("checkout", "-q", "-b", "other", "main")
    other = train(box, 3)
    box.git("tag", "-a", "v3", "-m", "three")
    box.git("checkout", "-q", "--detach", "main")
    loose = train(box, 4)
    box.git("tag", "-a", "v4", "-m", "four")
    box.git("checkout", "-q", "main")
    box.git("push", "-q", "origin", "side:refs/heads/renamed")
    assert new() == {side}
    box.git("push", "-q", "origin", "v4")  # an annotated tag of a commit that no branch has
    assert new() == {loose}
    box.git("push", "-q", "origin", "--delete", "renamed")
    assert new() == set()
    said = box.run("git", "push", "origin", "side", "other", "v3").stderr  # several refs, one of them sent before
    assert new() == {other}
    assert said.count("uploading") == 1
    box.git("checkout", "-q", "other")
    amended = box.train(MODEL, 5)
    box.git("commit", "-q", "-a", "--amend", "-m", "again")
    assert box.run("git", "push", "origin", "other", ok=False).returncode != 0
    box.git("push", "-q", "--force", "origin", "other")
    assert amended in before | new()
    blob = box.run("git", "hash-object", "-w", "--stdin", stdin="a public key").stdout.strip()
    box.git("tag", "key", blob)
    box.git("push", "-q", "origin", "key")  # a tag of a file has no commits
    assert box.git("ls-remote", "origin", "refs/tags/key").split()[0] == blob


def test_a_mirror_gets_everything_at_once(box: Sandbox, tmp_path: Path) -> None:
    box.git("checkout", "-q", "-b", "side")
    side = train(box, 2)
    box.git("tag", "-a", "v2", "-m", "two")
    box.git("branch", "-q", "-D", "side", ok=False)
    shutil.rmtree(tmp_path / "remote/files")
    box.run("git", "init", "-q", "--bare", str(tmp_path / "mirror.git"))
    said = box.run("git", "push", "--mirror", str(tmp_path / "mirror.git")).stderr
    assert "uploading 2 objects" in said
    assert side in on_remote(box)


def test_a_worktree_and_a_shallow_clone_push(box: Sandbox, tmp_path: Path) -> None:
    box.git("worktree", "add", "-q", "-b", "tree", str(tmp_path / "tree"))
    tree = Sandbox(tmp_path / "tree")
    md5 = train(tree, 2)
    tree.git("push", "-q", "origin", "tree")
    assert md5 in on_remote(box)
    box.run("git", "clone", "-q", "--depth", "1", f"file://{tmp_path}/origin.git", str(tmp_path / "shallow"))
    shallow = Sandbox(tmp_path / "shallow")
    shallow.modelver("install")
    md5 = train(shallow, 3)
    said = shallow.run("git", "push", "origin", "main").stderr
    assert "uploading 1 object," in said
    assert md5 in on_remote(box)


def write_shards(folder: Path, *seeds: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"model-{i + 1:05d}-of-{len(seeds):05d}.safetensors" for i in range(len(seeds))]
    index = {}
    for i, (name, seed) in enumerate(zip(names, seeds, strict=True)):
        tensors = {f"{i}.{key}": value for key, value in make_weights(seed).items()}
        (folder / name).unlink(missing_ok=True)
        save_file(tensors, folder / name)
        index.update(dict.fromkeys(tensors, name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def test_of_a_folder_only_the_new_shard_is_sent_and_announced(box: Sandbox, tmp_path: Path) -> None:
    folder = box.path / "models/big"
    write_shards(folder, 1, 2, 3)
    box.modelver("add", "models/big")
    box.git("commit", "-q", "-m", "big")
    box.git("push", "-q")
    write_shards(folder, 1, 2, 4)
    box.modelver("add", "models/big")
    box.git("commit", "-q", "-m", "big again")
    shard = folder / "model-00003-of-00003.safetensors"
    done = json.loads(box.modelver("push", "--json"))["remotes"][0]
    listing = next(md5 for md5 in done["sent"] if md5.endswith(".dir"))
    assert set(done["sent"]) == {md5_of(shard), listing}
    assert done["bytes"] == shard.stat().st_size + at(tmp_path / "remote", listing).stat().st_size
    at(tmp_path / "remote", listing).unlink()  # as after an upload that stopped half-way
    at(tmp_path / "remote", md5_of(shard)).write_bytes(b"half")
    at(box.path / ".dvc/cache", md5_of(folder / "model-00001-of-00003.safetensors")).unlink()
    done = json.loads(box.modelver("push", "--json"))["remotes"][0]
    assert set(done["sent"]) == {md5_of(shard), listing}
    assert md5_of(at(tmp_path / "remote", md5_of(shard))) == md5_of(shard)


def test_an_object_that_is_nowhere_stops_the_push_before_anything_is_sent(box: Sandbox, tmp_path: Path) -> None:
    box.dvc("remote", "add", "second", str(tmp_path / "second"))
    (tmp_path / "second").mkdir()
    write_shards(box.path / "models/big", 1, 2)
    box.modelver("add", "models/big")
    pointer = box.path / "models/big.dvc"
    pointer.write_text(pointer.read_text() + "  remote: second\n")
    box.git("add", ".")
    box.git("commit", "-q", "-m", "big")
    other = train(box, 2)
    shard = box.path / "models/big/model-00002-of-00002.safetensors"
    md5 = md5_of(shard)
    at(box.path / ".dvc/cache", md5).unlink()
    shard.unlink()
    done = box.run("git", "push", "origin", "main", ok=False)
    assert done.returncode != 0
    assert f"models/big/{shard.name} ({md5[:8]})" in done.stderr
    assert other not in on_remote(box)
    assert on_remote(box, "second") == set()


def test_an_output_has_its_own_remote_and_push_false_stays_here(box: Sandbox, tmp_path: Path) -> None:
    box.dvc("remote", "add", "second", str(tmp_path / "second"))
    (tmp_path / "second").mkdir()
    for name, line in (("a", "  remote: second\n"), ("b", ""), ("c", "  push: false\n")):
        box.train(f"models/{name}.safetensors", 7 if name != "c" else 8)
        box.modelver("add", f"models/{name}.safetensors")
        pointer = box.path / f"models/{name}.safetensors.dvc"
        pointer.write_text(pointer.read_text() + line)
    box.git("add", ".")
    box.git("commit", "-q", "-m", "three")
    box.git("push", "-q")
    seven, eight = box.md5("models/a.safetensors"), box.md5("models/c.safetensors")
    assert on_remote(box, "second") == {seven}
    assert seven in on_remote(box)  # the same object, wanted on both
    assert eight not in on_remote(box) | on_remote(box, "second")
    box.write("dvc.yaml", "stages:\n  one:\n    cmd: echo 5 > out.csv\n    outs:\n      - out.csv\n")
    box.dvc("repro", "-q")
    box.git("add", ".")
    box.git("commit", "-q", "-m", "a pipeline")
    box.git("push", "-q")
    md5 = box.md5("out.csv")
    assert md5 in on_remote(box)
    box.write(
        "dvc.yaml",
        "stages:\n  one:\n    cmd: echo 5 > out.csv\n    outs:\n      - out.csv:\n          remote: second\n",
    )
    box.git("commit", "-q", "-am", "its remote is another one")
    box.git("push", "-q")
    assert md5 in on_remote(box, "second")


def test_a_remote_folder_that_is_gone_is_named_once_and_not_made(box: Sandbox, tmp_path: Path) -> None:
    folder = tmp_path / "remote"
    md5 = train(box, 2, "other.safetensors")
    folder.rename(tmp_path / "aside")
    gone = f"{folder}: does not exist (not mounted?)"
    done = box.run("git", "push", "origin", "main", ok=False)
    assert done.returncode != 0
    assert f"modelver: {gone}\nmodelver: hint: mount it; or, where it is to be new: mkdir -p {folder}\n" in done.stderr
    assert box.exit_code("push") == 4
    for path in (MODEL, "other.safetensors"):
        box.drop(box.md5(path))
        (box.path / path).unlink()
    assert box.run("modelver", "pull", ok=False).stderr.count(gone) == 1
    assert gone in box.modelver("status")
    assert "does not exist (not mounted?); hint: mount it" in box.modelver("doctor", ok=False)
    assert not folder.exists()
    (tmp_path / "aside").rename(folder)
    assert md5 not in on_remote(box)


def test_status_names_what_a_push_without_the_hook_left_behind(box: Sandbox) -> None:
    md5 = train(box, 2)
    box.git("push", "-q", MODELVER_SKIP="1")
    assert f"object {md5[:8]} is not on {box.path.parent / 'remote'}" in box.modelver("status")
    box.modelver("push")
    assert "nothing to do" in box.modelver("status")


def test_a_push_that_failed_goes_on_where_it_stopped(box: Sandbox, tmp_path: Path) -> None:
    first, second = train(box, 2), train(box, 3)
    blocked = tmp_path / "remote/files/md5" / second[:2]
    shutil.rmtree(blocked, ignore_errors=True)
    blocked.write_text("not a folder")
    done = box.run("git", "push", ok=False)
    assert done.returncode != 0
    assert "hint:" in done.stderr
    assert second not in on_remote(box)
    blocked.unlink()
    done = box.run("git", "push")
    assert {first, second} <= on_remote(box)
