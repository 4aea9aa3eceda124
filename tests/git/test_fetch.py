"""What a checkout fetches, and what it never overwrites."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.git.test_push import BIG_FILES, MODEL, at, box, on_remote, train, write_shards
from tests.sandbox import Sandbox, md5_of, prepared

__all__ = ["box"]


@prepared
def two(box: Sandbox) -> Sandbox:
    """Two versions, the first of which only the remote has."""
    first = box.md5(MODEL)
    train(box, 2)
    box.git("push", "-q")
    box.drop(first)
    return box


@pytest.mark.parametrize(
    ("limit", "said"), [("0", "limits.fetch_max_bytes is 0"), ("100", "larger than limits.fetch_max_bytes (100 B)")]
)
def test_a_checkout_fetches_as_much_as_the_settings_say(two: Sandbox, limit: str, said: str) -> None:
    second = two.md5(MODEL)
    settings = two.path / ".modelver.toml"
    settings.write_text(settings.read_text().replace("fetch_max_bytes = 1073741824", f"fetch_max_bytes = {limit}"))
    two.git("stash", "-q")
    two.git("stash", "apply", "-q")
    done = two.run("git", "checkout", "-m", "HEAD~1")
    assert said in done.stderr
    assert f"hint: modelver pull {MODEL}" in done.stderr
    assert two.md5(MODEL) == second
    two.modelver("pull", MODEL)
    assert two.md5(MODEL) != second
    two.git("checkout", "-q", "-m", "main")
    assert two.md5(MODEL) == second


def test_a_rebase_fetches_what_it_builds_on_and_what_it_ends_with(box: Sandbox) -> None:
    own = train(box, 3, "own.safetensors")
    box.git("commit", "-q", "--allow-empty", "-m", "later")
    box.git("checkout", "-q", "-b", "theirs", "HEAD~2")
    theirs = train(box, 2)
    box.git("push", "-q", "origin", "theirs", "main")
    box.git("checkout", "-q", "main")
    for md5 in (own, theirs):
        box.drop(md5)
    (box.path / "own.safetensors").unlink()
    said = box.run("git", "rebase", "theirs").stderr
    assert said.count("modelver: fetching 1 object") == 2
    assert "still the weights of before" not in said
    assert (box.md5(MODEL), box.md5("own.safetensors")) == (theirs, own)


def test_a_rebase_that_stops_says_what_it_did_not_fetch(box: Sandbox) -> None:
    own = train(box, 3, "own.safetensors")
    box.git("push", "-q")
    box.git("checkout", "-q", "-b", "base", "HEAD~1")
    box.drop(own)
    box.git("checkout", "-q", "main", MODELVER_SKIP="1")
    said = box.run("git", "rebase", "-i", "--no-ff", "base", env={"GIT_SEQUENCE_EDITOR": "sed -i s/^pick/edit/"}).stderr
    assert "own.safetensors: still the weights of before: not fetched in the middle of a rebase" in said
    assert "modelver: fetching 1 object" in box.run("git", "rebase", "--continue").stderr
    assert box.md5("own.safetensors") == own


def test_what_the_remote_has_damaged_is_not_used(two: Sandbox, tmp_path: Path) -> None:
    second, first = two.md5(MODEL), two.git("show", f"HEAD~1:{MODEL}.dvc").split("md5: ")[1][:32]
    there = at(tmp_path / "remote", first)
    there.chmod(0o644)
    there.write_bytes(bytes(there.stat().st_size))
    done = two.run("git", "checkout", "HEAD~1")
    assert "has other bytes than its md5 says" in done.stderr
    assert two.md5(MODEL) == second
    assert not two.cached(first)


def test_weights_whose_stored_copy_is_damaged_are_stored_again_before_they_are_replaced(two: Sandbox) -> None:
    second = two.md5(MODEL)
    obj = at(two.path / ".dvc/cache", second)
    obj.chmod(0o644)
    obj.write_bytes(b"damaged")
    two.git("checkout", "-q", "HEAD~1")
    assert two.md5(MODEL) != second
    assert md5_of(obj) == second
    two.git("checkout", "-q", "main")
    assert two.md5(MODEL) == second


def test_objects_of_dvc_2_stay_in_their_layout(box: Sandbox, tmp_path: Path) -> None:
    write_shards(box.path / "models/big", 1, 2)
    box.modelver("add", "models/big")
    md5 = box.train("old.safetensors", 5)
    box.modelver("add", "old.safetensors")
    cache = box.path / ".dvc/cache"
    for name in ("old.safetensors.dvc", "models/big.dvc"):
        pointer = box.path / name
        pointer.write_text(pointer.read_text().replace("  hash: md5\n", ""))
    box.git("add", ".")
    box.git("commit", "-q", "-m", "as DVC 2 wrote it")
    files = {md5} | {md5_of(box.path / "models/big" / name) for name in BIG_FILES}
    files.add((box.path / "models/big.dvc").read_text().split("md5: ")[1][:36])
    for oid in files:
        (cache / oid[:2]).mkdir(exist_ok=True)
        at(cache, oid).rename(cache / oid[:2] / oid[2:])
    said = box.run("git", "push").stderr
    assert f"uploading {len(files)} objects" in said
    assert not files & on_remote(box)
    assert all((tmp_path / "remote" / oid[:2] / oid[2:]).is_file() for oid in files)
    assert "0 problems" in box.modelver("fsck", "--remote", "--all")
    shutil.rmtree(cache)
    shutil.rmtree(box.path / "models/big")
    (box.path / "old.safetensors").unlink()
    box.modelver("pull")
    assert box.md5("old.safetensors") == md5
    assert sorted(p.name for p in (box.path / "models/big").iterdir()) == sorted(BIG_FILES)
    assert (cache / md5[:2] / md5[2:]).is_file()
