"""fsck: every object of every ref is proven to be there; --repair finds lost ones wherever they still are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dvc_modelver import api
from tests.git.test_push import MODEL, at, box, on_remote, train, write_shards
from tests.sandbox import Sandbox, md5_of, prepared

__all__ = ["box"]
BIG = "models/big"


def check(box: Sandbox, *args: str) -> dict[str, Any]:
    done = box.run("modelver", "fsck", "--json", *args, ok=False)
    document: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == int(bool(document["problems"])), done.stderr
    return document


@prepared
def both(box: Sandbox) -> Sandbox:
    """A file and a folder, committed and pushed."""
    write_shards(box.path / BIG, 1, 2)
    box.modelver("add", BIG)
    box.git("commit", "-q", "-m", "big")
    box.git("push", "-q")
    return box


def files_of(box: Sandbox) -> list[Path]:
    return [box.path / MODEL, *(box.path / BIG).iterdir()]


def test_files_and_folders_get_the_same_answers(both: Sandbox, tmp_path: Path) -> None:
    assert check(both, "--remote", "--deep", "--all") == {"objects": 5, "problems": [], "repaired": []}
    cache, remote = both.path / ".dvc/cache", tmp_path / "remote"
    shutil.move(cache, tmp_path / "aside")
    assert check(both, "--remote")["problems"] == []  # all of it is on the remote
    shutil.rmtree(remote / "files")
    problems = check(both)["problems"]
    assert [("alone" in p, p.split(":")[0]) for p in problems] == [(True, BIG), (True, MODEL)]
    shutil.rmtree(both.path / BIG)
    (both.path / MODEL).unlink()
    problems = check(both)["problems"]
    assert [("neither" in p, p.split(":")[0]) for p in problems] == [(True, BIG), (True, MODEL)]
    shutil.move(tmp_path / "aside", cache)
    problems = check(both, "--remote")["problems"]
    assert [(f"not on {remote}" in p, p.split(":")[0]) for p in problems] == [(True, BIG), (True, MODEL)]
    assert "4 objects" in problems[0]


def test_every_ref_is_looked_at(both: Sandbox) -> None:
    both.git("checkout", "-q", "-b", "side")
    side = train(both, 5)
    tagged = train(both, 6)
    both.git("tag", "-a", "only", "-m", "a tag")
    both.git("reset", "-q", "--hard", "HEAD~1")
    stashed = []
    for seed in (7, 8):
        stashed.append(both.train(MODEL, seed))
        both.modelver("add", "-u")
        both.git("stash", "-q")
    both.git("checkout", "-q", "main")
    assert check(both, "--remote")["problems"] == []
    problems = " ".join(check(both, "--remote", "--all")["problems"])
    for md5 in (side, tagged, *stashed):
        assert f"{md5} is not on" in problems
    both.modelver("push", "--all")
    assert check(both, "--remote", "--all")["problems"] == []


def in_other_worktree(box: Sandbox, tmp: Path) -> str:
    box.git("worktree", "add", "-q", str(tmp / "tree"))
    shutil.rmtree(tmp / "tree/models")
    shutil.move(box.path / "models", tmp / "tree/models")
    box.git("checkout", "-q", "--", "models")
    return str(tmp / "tree")


def in_old_cache(box: Sandbox, tmp: Path) -> str:
    for file in files_of(box):
        old = box.path / ".dvc/cache" / md5_of(file)[:2] / md5_of(file)[2:]
        old.parent.mkdir(exist_ok=True)
        shutil.copy(file, old)
    return str(box.path / ".dvc/cache")


def on_other_remote(box: Sandbox, tmp: Path) -> str:
    shutil.copytree(tmp / "kept", tmp / "backup")
    box.dvc("remote", "add", "backup", str(tmp / "backup"))
    return str(tmp / "backup")


def in_work_tree(box: Sandbox, tmp: Path) -> str:
    return str(box.path)


@pytest.mark.parametrize("place", [in_work_tree, in_other_worktree, in_old_cache, on_other_remote])
def test_lost_objects_are_found(both: Sandbox, tmp_path: Path, place: Callable[[Sandbox, Path], str]) -> None:
    cache, remote = both.path / ".dvc/cache", tmp_path / "remote"
    shutil.copytree(remote, tmp_path / "kept")
    files = {file.relative_to(both.path): md5_of(file) for file in files_of(both)}
    where = place(both, tmp_path)
    for md5 in files.values():
        at(cache, md5).unlink(missing_ok=True)
        at(remote, md5).unlink(missing_ok=True)
    if place is not in_work_tree:
        for path in files:
            (both.path / path).unlink(missing_ok=True)
    done = check(both, "--remote", "--repair")
    assert done["problems"] == []
    assert {r["md5"] for r in done["repaired"]} == set(files.values())
    for one in done["repaired"]:
        assert where in one["found"]
        assert one["done"] == ["put into the cache", f"uploaded to {remote}"]
    for md5 in files.values():
        assert md5_of(at(cache, md5)) == md5
        assert md5_of(at(remote, md5)) == md5
    assert check(both, "--remote", "--deep")["problems"] == []


def test_what_is_found_is_believed_only_by_its_md5(both: Sandbox, tmp_path: Path) -> None:
    md5 = both.md5(MODEL)
    for folder in (both.path / ".dvc/cache", tmp_path / "remote"):
        at(folder, md5).unlink()
    data = bytearray((both.path / MODEL).read_bytes())
    data[-1] ^= 1
    (both.path / MODEL).write_bytes(data)
    done = api.fsck(remote=True, everything=True, repair=True, folder=both.path)
    assert [md5 in problem for problem in done.problems] == [True]
    assert "neither in the cache nor on the remote" in done.problems[0]
    assert done.hints == ["ask whoever committed it to run: modelver push"]  # never the command that was run
    assert not at(both.path / ".dvc/cache", md5).exists()
    assert not at(tmp_path / "remote", md5).exists()


def test_a_damaged_remote_object_is_replaced(both: Sandbox, tmp_path: Path) -> None:
    shard = min((both.path / BIG).glob("*.safetensors"))
    there = {md5: at(tmp_path / "remote", md5) for md5 in (both.md5(MODEL), md5_of(shard))}
    size = there[both.md5(MODEL)].stat().st_size
    there[both.md5(MODEL)].chmod(0o644)
    there[both.md5(MODEL)].write_bytes(bytes(size))  # of the same size: only reading it tells
    there[md5_of(shard)].chmod(0o644)
    there[md5_of(shard)].write_bytes(b"short")
    problems = check(both, "--remote")["problems"]
    assert [p.split(":")[0] for p in problems] == [f"{BIG}/{shard.name}"]
    assert "with other bytes" in problems[0]
    assert len(check(both, "--deep")["problems"]) == 2
    done = check(both, "--deep", "--repair")
    assert done["problems"] == []
    assert {r["md5"] for r in done["repaired"]} == set(there)
    assert all(md5_of(path) == md5 for md5, path in there.items())
    at(both.path / ".dvc/cache", both.md5(MODEL)).unlink()
    there[both.md5(MODEL)].write_bytes(bytes(size))
    (both.path / MODEL).unlink()
    assert "on the remote" not in check(both)["problems"]
    assert f"{tmp_path / 'remote'} with other bytes" in check(both, "--deep", "--repair")["problems"][0]


@pytest.mark.parametrize("kind", ["hardlink", "symlink"])
def test_weights_written_through_a_link_are_kept_and_the_version_comes_back(
    box: Sandbox, tmp_path: Path, kind: str
) -> None:
    box.dvc("config", "cache.type", kind)
    box.git("commit", "-q", "-am", kind)
    second = train(box, 2)
    model = box.path / MODEL
    assert model.is_symlink() == (kind == "symlink")
    at(tmp_path / "backup", second).parent.mkdir(parents=True)
    shutil.copy(model, at(tmp_path / "backup", second))
    model.chmod(0o644)
    with model.open("r+b") as file:  # as root, or after chmod: in place, so that the object changes too
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    third = md5_of(model)
    assert md5_of(at(box.path / ".dvc/cache", second)) == third  # the harm is done
    done = box.run("git", "push", ok=False)
    assert done.returncode != 0
    assert f"do not have the md5 {second}" in done.stderr
    assert second not in on_remote(box)
    box.dvc("remote", "add", "backup", str(tmp_path / "backup"))
    mended = check(box, "--repair")
    assert [r["md5"] for r in mended["repaired"]] == [second]
    assert md5_of(at(box.path / ".dvc/cache", second)) == second
    assert md5_of(at(box.path / ".dvc/cache", third)) == third  # what was written there is kept
    box.git("push", "-q")
    assert second in on_remote(box)


def test_a_remote_out_of_reach_is_no_answer(both: Sandbox) -> None:
    at(both.path / ".dvc/cache", both.md5(MODEL)).unlink()
    both.dvc("remote", "modify", "storage", "url", "s3://bucket/x")
    both.dvc("remote", "modify", "storage", "endpointurl", "http://127.0.0.1:9")
    done = both.run("modelver", "fsck", ok=False, env={"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"})
    assert done.returncode == 4
    assert "cannot be reached" in done.stderr


def test_fsck_is_a_function_too(both: Sandbox) -> None:
    found = api.fsck(remote=True, folder=both.path)
    assert (found.objects, found.problems, found.hints, found.repaired) == (5, [], [], [])


def test_a_partial_clone_is_checked_to_the_end(both: Sandbox, tmp_path: Path) -> None:
    train(both, 3)
    both.git("push", "-q")
    both.git("config", "-f", str(tmp_path / "origin.git/config"), "uploadpack.allowFilter", "true")
    both.run("git", "clone", "-q", "--filter=blob:none", f"file://{tmp_path}/origin.git", str(tmp_path / "part"))
    part = Sandbox(tmp_path / "part")
    assert "?" in part.git("rev-list", "--objects", "--all", "--missing=print")
    part.modelver("install")
    assert check(part, "--remote", "--all")["objects"] == check(both, "--remote", "--all")["objects"] == 6
