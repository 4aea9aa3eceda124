"""Whole stories: after each step bytes, pointer, metadata, tag and stage are what they should be."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import pytest

from dvc_modelver import api
from dvc_modelver.errors import UsageError
from tests.registry.registry import MODEL, Registry
from tests.sandbox import Sandbox, md5_of


@dataclass(frozen=True)
class State:
    """What a repository holds.

    Attributes:
        weights: md5 of the bytes on disk; likewise of what the committed pointer and metadata name.
        tags: At HEAD.
        stages: stage -> version.
    """

    weights: str
    pointer: str
    metadata: str
    number: int
    tags: tuple[str, ...]
    stages: dict[str, str]


def state_of(box: Sandbox) -> State:
    document = json.loads(box.git("show", f"HEAD:{MODEL}.modelver.json"))
    pointer = re.search(r"md5: ([0-9a-f]{32})", box.git("show", f"HEAD:{MODEL}.dvc"))
    assert pointer is not None
    stages = {t.stage: t.version for t in api.stages("net", folder=box.path)} if box.git("tag") else {}
    tags = tuple(box.git("tag", "--points-at", "HEAD").split())
    return State(box.md5(MODEL), pointer[1], document["model"]["md5"], document["version"]["number"], tags, stages)


def test_create_store_version_update_roll_back(sandbox: Sandbox) -> None:
    box, remote = sandbox, sandbox.path.parent / "remote/files/md5"
    one = box.train(MODEL, 1)  # create
    box.git("add", ".")
    box.git("commit", "-q", "-m", "first")
    assert state_of(box) == State(one, one, one, 1, (), {})
    assert box.cached(one)
    box.run("git", "init", "-q", "--bare", str(box.path.parent / "origin.git"))  # store
    box.git("remote", "add", "origin", "../origin.git")
    box.git("push", "-q", "-u", "origin", "main")
    assert md5_of(remote / one[:2] / one[2:]) == one
    box.modelver("tag", "net", "v1.0.0", "--push")  # version
    box.modelver("promote", "net", "v1.0.0", "prod", "--push")
    assert state_of(box) == State(one, one, one, 1, ("net#prod#1", "net@v1.0.0"), {"prod": "v1.0.0"})
    two = box.train(MODEL, 2)  # update
    box.git("commit", "-q", "-am", "second")
    assert state_of(box) == State(two, two, two, 2, (), {"prod": "v1.0.0"})
    box.modelver("tag", "net", "--bump", "auto", "--push")
    box.modelver("promote", "net", "v1.1.0", "prod", "--push")
    assert md5_of(remote / two[:2] / two[2:]) == two
    assert state_of(box) == State(two, two, two, 2, ("net#prod#2", "net@v1.1.0"), {"prod": "v1.1.0"})
    box.modelver("rollback", "net", "--stage", "prod", "--push")  # roll back: what runs, then what is developed
    assert state_of(box).stages == {"prod": "v1.0.0"}
    assert state_of(box).weights == two
    box.modelver("rollback", "net")
    box.git("commit", "-q", "-m", "back to the first")
    assert state_of(box) == State(one, one, one, 1, (), {"prod": "v1.0.0"})
    assert box.git("status", "--porcelain") == ""
    assert box.git("--git-dir", "../origin.git", "tag").split() == box.git("tag").split()
    box.git("push", "-q")
    assert "nothing to do" in box.modelver("status")


def test_branch_develop_merge_delete_the_branch_and_nothing_is_lost(registry: Registry) -> None:
    box, three = registry, registry.md5(MODEL)
    box.git("switch", "-q", "-c", "better")
    box.commit(4, 0.95)
    four = box.md5(MODEL)
    box.modelver("promote", "net", "4", "staging")
    box.git("switch", "-q", "main")
    assert state_of(box) == State(three, three, three, 3, ("net@v1.2.0",), {"staging": "4"})
    box.write("readme.txt", "on main")
    box.git("add", "readme.txt")
    box.git("commit", "-q", "-m", "other work")
    box.git("merge", "-q", "--no-edit", "better")
    box.git("branch", "-q", "-d", "better")
    assert state_of(box) == State(four, four, four, 4, (), {"staging": "4"})
    box.git("switch", "-q", "-c", "dropped")
    box.commit(5, 0.5)
    five = box.md5(MODEL)
    box.modelver("tag", "net", "v2.0.0-rc.1")
    box.modelver("promote", "net", "v2.0.0-rc.1", "dev")
    box.git("switch", "-q", "main")
    box.git("branch", "-q", "-D", "dropped")
    box.git("reflog", "expire", "--expire=now", "--all")
    box.git("gc", "-q", "--prune=now")
    api.gc(force=True, min_age_hours=0, folder=box.path)
    assert state_of(box) == State(four, four, four, 4, (), {"staging": "4", "dev": "v2.0.0-rc.1"})
    for reference, md5 in (
        ("net@3", three),
        ("net@4", four),
        ("net#staging", four),
        ("net@v2.0.0-rc.1", five),
        ("net#dev", five),
    ):
        assert md5_of(api.load(reference, box.path / "got.safetensors", force=True, folder=box.path)) == md5
    assert "net@v2.0.0-rc.1" in box.run("gto", "history", "net", "--json").stdout


def test_two_versions_of_one_number_are_named_and_told_apart(registry: Registry) -> None:
    box, made = registry, {}
    for seed, branch in ((4, "left"), (5, "right")):
        box.git("switch", "-q", "-c", branch, "net@v1.2.0")
        box.commit(seed, 0.9)
        made[branch] = box.md5(MODEL)
    assert api.show("net@4", folder=box.path).metadata.md5 == made["right"]  # HEAD's own history first
    box.git("merge", "-q", "left", ok=False)
    box.modelver("merge", "--continue", "--take", "ours")
    box.git("commit", "-q", "-m", "merged")
    with pytest.raises(UsageError, match="2 versions have this number") as err:
        api.promote("net", "4", "prod", folder=box.path)
    for md5 in made.values():
        name = f"net@4.{md5[:6]}"
        assert name in str(err.value)
        assert api.show(name, folder=box.path).metadata.md5 == md5
    done = api.promote("net", f"4.{made['left'][:6]}", "prod", folder=box.path)
    assert api.show("net#prod", folder=box.path).metadata.md5 == made["left"]
    assert done.record["md5"] == made["left"]
