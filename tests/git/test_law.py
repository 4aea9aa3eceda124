"""The law of the work tree (DESIGN.md), each row under each command, with and without the fsmonitor hook."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from dvc_modelver.worktree.law import Action, decide
from tests.sandbox import Sandbox, prepared

MODEL = "models/net.safetensors"
META = MODEL + ".modelver.json"

K, NEW, OTHER = "a" * 32, "b" * 32, "c" * 32


@pytest.mark.parametrize(
    ("model", "metadata", "pointer", "action", "target"),
    [
        # model, metadata, pointer on disk -> what is done; K is where they last agreed
        (K, K, K, Action.NOTHING, None),
        (NEW, K, K, Action.DESCRIBE, None),
        (K, NEW, NEW, Action.FOLLOW, NEW),
        (NEW, NEW, NEW, Action.AGREE, None),
        (NEW, OTHER, OTHER, Action.CONFLICT, None),
        # the pointer moved alone: dvc add, dvc repro, or a commit made without us
        (NEW, K, NEW, Action.DESCRIBE, None),
        (K, K, NEW, Action.FOLLOW, NEW),
        (OTHER, K, NEW, Action.DESCRIBE, None),
        # the metadata moved alone: a pipeline's model trained by hand, or a checkout of one file
        (NEW, NEW, K, Action.DESCRIBE, None),
        (K, NEW, K, Action.FOLLOW, NEW),
        (OTHER, NEW, K, Action.CONFLICT, None),
        # both moved, apart: the weights are those of the pointer
        (K, NEW, OTHER, Action.FOLLOW, OTHER),
        (None, NEW, OTHER, Action.FOLLOW, OTHER),
        (NEW, NEW, OTHER, Action.DESCRIBE, None),
        # no file
        (None, K, K, Action.MISSING, None),
        (None, NEW, NEW, Action.FOLLOW, NEW),
        # only a pointer: DVC's business, but the weights follow it
        (K, None, K, Action.NOTHING, None),
        (NEW, None, K, Action.NOTHING, None),
        (K, None, NEW, Action.FOLLOW, NEW),
        # only metadata: nothing is described without a pointer
        (K, K, None, Action.NOTHING, None),
        (NEW, K, None, Action.NOTHING, None),
        (K, NEW, None, Action.FOLLOW, NEW),
    ],
)
def test_decision(
    model: str | None, metadata: str | None, pointer: str | None, action: Action, target: str | None
) -> None:
    found = decide(K, model, metadata, pointer)
    assert (found.action, found.target) == (action, target)


@pytest.mark.parametrize(
    ("model", "metadata", "pointer", "action", "target"),
    [
        # committed apart, so that the metadata is the older one, whichever of the two K is
        (K, NEW, K, Action.NOTHING, None),
        (None, NEW, K, Action.MISSING, None),
        (OTHER, NEW, K, Action.DESCRIBE, None),
        (NEW, NEW, K, Action.DESCRIBE, None),
        (K, K, NEW, Action.FOLLOW, NEW),
        (NEW, K, NEW, Action.DESCRIBE, None),
        (OTHER, K, NEW, Action.CONFLICT, None),
        (K, OTHER, NEW, Action.FOLLOW, NEW),
        (OTHER, OTHER, NEW, Action.FOLLOW, NEW),
        (NEW, OTHER, NEW, Action.DESCRIBE, None),
    ],
)
def test_decision_where_head_has_metadata_and_pointer_apart(
    model: str | None, metadata: str, pointer: str, action: Action, target: str | None
) -> None:
    found = decide(K, model, metadata, pointer, committed_apart=True)
    assert (found.action, found.target) == (action, target)


@dataclass
class History:
    """Versions 1 and 2 on main, 1 on branch ``old``; ``md5s`` of version 1, 2 and one never committed."""

    box: Sandbox
    md5s: tuple[str, str]
    fsmonitor: bool


@prepared
def two(sandbox: Sandbox) -> Sandbox:
    sandbox.train(MODEL, 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    sandbox.git("branch", "old")
    sandbox.train(MODEL, 2)
    sandbox.modelver("add", "-u")
    sandbox.git("commit", "-q", "-m", "two")
    return sandbox


@pytest.fixture(params=["fsmonitor", "plain"])
def history(two: Sandbox, request: pytest.FixtureRequest) -> History:
    if request.param == "plain":
        two.modelver("install", "--no-fsmonitor")
    first: str = json.loads(two.git("show", f"old:{MODEL}.modelver.json"))["model"]["md5"]
    return History(two, (first, two.md5(MODEL)), request.param == "fsmonitor")


def is_clean(box: Sandbox) -> bool:
    return box.git("status", "--porcelain") == ""


def assert_at(box: Sandbox, md5: str) -> None:
    """Model, metadata and pointer are one version, and Git sees no change."""
    assert box.md5(MODEL) == md5
    assert box.metadata_md5(MODEL) == md5
    assert f"md5: {md5}" in (box.path / f"{MODEL}.dvc").read_text()
    assert is_clean(box)


# Row 1: nothing moved


def test_nothing_moved_is_nothing_to_commit(history: History) -> None:
    box = history.box
    assert is_clean(box)
    assert "nothing to commit" in box.git("commit", "-am", "again", ok=False)


def test_a_touched_model_is_not_a_change(history: History) -> None:
    box = history.box
    (box.path / MODEL).touch()
    assert is_clean(box)
    assert box.git("diff") == ""


# Row 2: retrained


def test_retrained_shows_in_status_and_diff(history: History) -> None:
    box = history.box
    box.train(MODEL, 3)
    if not history.fsmonitor:
        assert is_clean(box)
        box.modelver("add", "-u")
        assert f"M  {META}" in box.git("status", "--porcelain")
        assert "layers.0" in box.git("diff", "--cached")
        return
    assert f" M {META}" in box.git("status", "--porcelain")
    assert "layers.0" in box.git("diff")


def test_retrained_goes_into_commit_all(history: History) -> None:
    box = history.box
    third = box.train(MODEL, 3)
    box.write("code.py", "print(1)\n")
    box.git("add", "code.py")
    box.git("commit", "-q", "-am", "three")
    assert_at(box, third)
    assert box.cached(third)
    files = box.git("show", "--name-only", "--format=", "HEAD").split()
    assert set(files) == {"code.py", META, f"{MODEL}.dvc", f"{MODEL}.modelver.tensors"}


def test_retrained_alone_goes_into_commit_all(history: History) -> None:
    box = history.box
    third = box.train(MODEL, 3)
    done = box.git("commit", "-am", "three", ok=False)
    if not history.fsmonitor:  # Git looked before the hook wrote: the same command again commits
        assert "nothing to commit" in done or "no changes" in done or "modified" in done
        box.git("commit", "-q", "-am", "three")
    assert_at(box, third)


def test_retrained_is_left_out_of_a_plain_commit_and_named(history: History) -> None:
    box = history.box
    box.train(MODEL, 3)
    box.write("code.py", "print(1)\n")
    box.git("add", "code.py")
    said = box.run("git", "commit", "-m", "code only").stderr
    assert f"not in this commit: {MODEL}" in said
    assert box.git("show", "--name-only", "--format=", "HEAD").split() == ["code.py"]


def test_restoring_the_metadata_brings_the_weights_back(history: History) -> None:
    box = history.box
    third = box.train(MODEL, 3)
    if not history.fsmonitor:
        box.modelver("add", "-u")
        box.git("reset", "-q")
    box.git("status")
    box.git("checkout", "--", ".")
    assert_at(box, history.md5s[1])
    assert box.cached(third)


# Row 3: behind


def test_the_model_follows_a_revert(history: History) -> None:
    box = history.box
    before = box.git("show", f"old:{META}")
    box.git("revert", "--no-edit", "HEAD")
    assert_at(box, history.md5s[0])
    assert (box.path / META).read_text() == before  # a revert of version 2 is version 1


def test_the_model_follows_a_rebase_of_two_commits(history: History) -> None:
    box = history.box
    third = box.train(MODEL, 3)
    box.modelver("add", "-u")
    box.git("commit", "-q", "-m", "three")
    box.git("checkout", "-q", "-b", "code", "old")
    box.write("code.py", "print(1)\n")
    box.git("add", ".")
    box.git("commit", "-q", "-m", "code")
    box.git("checkout", "-q", "main")
    box.git("rebase", "-q", "code")
    assert_at(box, third)
    box.git("checkout", "-q", "HEAD~1")
    assert_at(box, history.md5s[1])


def test_behind_is_never_staged_and_says_what_to_run(history: History) -> None:
    """A fetch that failed: the object is in no cache and on no remote."""
    box = history.box
    box.drop(history.md5s[0])
    said = box.run("git", "checkout", "old").stderr
    assert f"modelver pull {MODEL}" in said
    assert box.md5(MODEL) == history.md5s[1]
    assert is_clean(box)
    box.write("code.py", "print(1)\n")
    box.git("add", ".")
    box.git("commit", "-q", "-am", "code")
    assert box.git("show", "--name-only", "--format=", "HEAD").split() == ["code.py"]
    assert box.metadata_md5(MODEL) == history.md5s[0]
    assert box.exit_code("pull") == 4
    box.git("checkout", "-q", "main")
    assert_at(box, history.md5s[1])


def test_a_deleted_model_is_missing_not_a_change(history: History) -> None:
    box = history.box
    (box.path / MODEL).unlink()
    assert is_clean(box)
    assert "missing" in box.modelver("status")
    box.modelver("pull")
    assert_at(box, history.md5s[1])


# Row 4: somebody agreed already


def test_dvc_add_by_hand_is_as_good(history: History) -> None:
    box = history.box
    third = box.train(MODEL, 3)
    box.dvc("add", "-q", MODEL)
    box.git("add", f"{MODEL}.dvc")
    box.git("commit", "-q", "-m", "three, by dvc add")
    assert_at(box, third)
    assert META in box.git("show", "--name-only", "--format=", "HEAD")


# Row 5: conflict


def test_a_conflict_is_resolved_by_add_or_by_pull(history: History) -> None:
    box = history.box
    box.modelver("install", "--no-fsmonitor")
    third = box.train(MODEL, 3)
    box.git("checkout", "old", ok=False)
    assert "conflict" in box.modelver("status")
    box.modelver("pull", "--force", MODEL)
    assert_at(box, history.md5s[0])
    assert box.cached(third)


# The state is derived


def test_without_its_state_the_law_asks_head(history: History) -> None:
    box = history.box
    third = box.train(MODEL, 3)
    for name in ("state", "lock"):
        (box.path / ".git/modelver" / name).unlink()
    box.git("status")
    assert box.md5(MODEL) == third
    box.modelver("add", "-u")
    box.git("commit", "-q", "-m", "three")
    assert_at(box, third)
