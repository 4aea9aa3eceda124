"""git merge, rebase, cherry-pick and stash of models that both sides changed, tensor by tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dvc_modelver.resources import read_schema
from tests.sandbox import Sandbox, Weights, make_weights, prepared

MODEL = "models/net.safetensors"


def put(box: Sandbox, weights: Weights, path: str = MODEL) -> None:
    (box.path / path).parent.mkdir(exist_ok=True)
    (box.path / path).unlink(missing_ok=True)
    save_file(weights, box.path / path)


def moved(weights: Weights, seed: int, *names: str) -> Weights:
    rng = np.random.default_rng(seed)
    return {k: v + rng.standard_normal(v.shape, dtype=np.float32) if k in names else v for k, v in weights.items()}


def on_disk(box: Sandbox, path: str = MODEL) -> Weights:
    found: Weights = load_file(box.path / path)
    return found


def is_same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def metadata(box: Sandbox, path: str = MODEL) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((box.path / f"{path}.modelver.json").read_text())
    return found


BASE = make_weights(0)
OURS = moved(BASE, 1, "layers.0.weight", "layers.0.bias")
THEIRS = moved(BASE, 2, "layers.2.weight", "head.weight")
JOINED = OURS | {k: THEIRS[k] for k in ("layers.2.weight", "head.weight")}
CLASH = moved(THEIRS, 3, "layers.0.weight")


def fork(box: Sandbox, theirs: Weights = THEIRS, ours: Weights = OURS, base: Weights = BASE) -> Sandbox:
    """Commit `base`, `theirs` on the branch ``other``, `ours` on ``main``."""
    for branch, weights in (("main", base), ("other", theirs), ("main", ours)):
        box.git("switch", "-q", "-C" if branch == "other" else "main", *(["other"] if branch == "other" else []))
        put(box, weights)
        box.git("add", ".")
        box.git("commit", "-q", "-a", "-m", f"{branch} trained")
    return box


@prepared
def forked(sandbox: Sandbox) -> Sandbox:
    return fork(sandbox)


@prepared
def clashing(sandbox: Sandbox) -> Sandbox:
    return fork(sandbox, CLASH)


def check_schema(box: Sandbox, path: str = MODEL) -> None:
    jsonschema.validate(metadata(box, path), json.loads(read_schema("metadata")))


def check_whole(box: Sandbox, path: str = MODEL) -> None:
    """Weights, metadata and pointer are one version, committed, and what DVC and fsck say of it is good."""
    assert box.git("status", "--porcelain") == ""
    md5 = box.md5(path)
    assert box.metadata_md5(path) == md5
    assert md5 in (box.path / f"{path}.dvc").read_text()
    assert box.cached(md5)
    assert "0 problems" in box.modelver("fsck")
    assert "up to date" in box.dvc("status")


def test_a_merge_of_different_layers_asks_nothing(forked: Sandbox) -> None:
    ours, theirs = forked.md5(MODEL), forked.git("show", "other:" + MODEL + ".dvc").split("md5: ")[1][:32]
    forked.git("merge", "-q", "other", "-m", "merge")
    assert is_same(on_disk(forked), JOINED)
    check_whole(forked)
    version = metadata(forked)["version"]
    assert (version["number"], version["update"], version["parents"]) == (3, "merge", [ours, theirs])
    assert version["merge"]["tensors"] == {"same": 6, "ours": 2, "theirs": 2}
    assert "metrics" not in metadata(forked).get("training", {})
    check_schema(forked)
    assert f"merged from  {ours[:8]} and {theirs[:8]}" in forked.modelver("show", "net")
    forked.modelver("load", "net@3", "-o", "copy.safetensors")
    assert is_same(on_disk(forked, "copy.safetensors"), JOINED)


def rebase(box: Sandbox) -> None:
    box.git("rebase", "-q", "other")


def cherry_pick(box: Sandbox) -> None:
    box.git("cherry-pick", "other")


def stash_pop(box: Sandbox) -> None:
    box.git("reset", "-q", "--hard", "HEAD~1")
    put(box, OURS)
    box.git("stash", "-q")
    box.git("merge", "-q", "other")
    box.git("stash", "pop", "-q")
    box.git("commit", "-q", "-a", "-m", "popped")


@pytest.mark.parametrize("how", [rebase, cherry_pick, stash_pop])
def test_other_ways_to_bring_two_trainings_together(forked: Sandbox, how: Callable[[Sandbox], None]) -> None:
    how(forked)
    assert is_same(on_disk(forked), JOINED)
    check_whole(forked)


def test_a_conflict_is_listed_and_decided_tensor_by_tensor(clashing: Sandbox) -> None:
    ours = clashing.md5(MODEL)
    said = clashing.git("merge", "other", ok=False)
    assert "CONFLICT (model): models/net.safetensors: 1 not decided" in said
    assert "layers.0.weight: changed on both sides" in said
    assert clashing.metadata_md5(MODEL) == ours == clashing.md5(MODEL)
    assert "<<<<<<<" not in (clashing.path / f"{MODEL}.dvc").read_text()
    assert clashing.exit_code("merge") == 1
    document = json.loads(clashing.modelver("merge", "--json", ok=False))
    assert document["conflicts"][0]["undecided"] == ["layers.0.weight"]
    assert clashing.exit_code("merge", "--take", "mean", "no.such*") == 2
    assert clashing.exit_code("merge", "--take", "median") == 2
    out = clashing.modelver("merge", "--continue", "--take", "mean", "layers.0.*")
    assert "merged net version 3" in out
    clashing.git("commit", "-q", "-m", "merged")
    found = on_disk(clashing)
    mean = (OURS["layers.0.weight"].astype(np.float64) + CLASH["layers.0.weight"]) / 2
    assert np.array_equal(found["layers.0.weight"], mean.astype(np.float32))
    assert is_same({k: v for k, v in found.items() if k != "layers.0.weight"},
                   {k: v for k, v in JOINED.items() if k != "layers.0.weight"})  # fmt: skip
    check_whole(clashing)
    assert metadata(clashing)["version"]["update"] == "merge"
    assert clashing.exit_code("merge") == 0
    assert clashing.exit_code("merge", "--take", "ours") == 2


def test_conflicts_are_decided_in_several_steps(sandbox: Sandbox) -> None:
    names = ("layers.0.weight", "layers.1.weight", "layers.2.weight")
    ours, theirs = moved(BASE, 1, *names), moved(BASE, 2, *names)
    box = fork(sandbox, theirs, ours)
    box.git("merge", "other", ok=False)
    assert box.exit_code("merge", "--take", "theirs", "layers.1.*") == 1
    assert "2 undecided" in box.modelver("merge", ok=False)
    assert box.exit_code("merge", "--take", "ours") == 0
    box.git("commit", "-q", "-m", "merged")
    assert is_same(on_disk(box), ours | {"layers.1.weight": theirs["layers.1.weight"]})
    taken = metadata(box)["version"]["merge"]["taken"]
    assert taken == {"ours": ["layers.0.weight", "layers.2.weight"], "theirs": ["layers.1.weight"]}
    check_schema(box)
    check_whole(box)


def test_another_merge_begins_without_what_was_taken(sandbox: Sandbox) -> None:
    names = ("layers.0.weight", "layers.1.weight")
    ours, theirs = moved(BASE, 1, *names), moved(BASE, 2, *names)
    box = fork(sandbox, theirs, ours)
    box.git("merge", "other", ok=False)
    box.modelver("merge", "--take", "theirs", "layers.0.*", ok=False)
    assert "1 undecided" in box.modelver("merge", ok=False)
    box.git("merge", "--abort")
    box.git("merge", "other", ok=False)
    assert "2 undecided" in box.modelver("merge", ok=False)
    box.modelver("merge", "--take", "theirs", "layers.0.*", ok=False)
    box.modelver("merge", "--take", "ours", "layers.0.*", ok=False)  # on second thoughts
    box.modelver("merge", "--take", "ours")
    assert is_same(on_disk(box), ours)


def test_adding_ours_by_reflex_is_told_and_can_be_mended(clashing: Sandbox) -> None:
    clashing.git("merge", "other", ok=False)
    assert "conflict" in clashing.modelver("status")
    clashing.git("add", ".")
    assert "modelver merge" in clashing.modelver("status")
    assert "layers.0.weight: changed on both sides" in clashing.modelver("merge", ok=False)
    said = clashing.run("git", "commit", "-m", "merged").stderr
    assert "keeps ours whole" in said
    clashing.git("reset", "-q", "--hard", "HEAD~1")
    clashing.git("merge", "other", ok=False)
    clashing.git("add", ".")
    clashing.modelver("merge", "--take", "theirs")
    assert "keeps ours whole" not in clashing.run("git", "commit", "-m", "merged").stderr
    assert is_same(on_disk(clashing), JOINED | {"layers.0.weight": CLASH["layers.0.weight"]})
    check_whole(clashing)


def test_weights_of_no_commit_that_a_merge_replaces_are_named(clashing: Sandbox) -> None:
    put(clashing, moved(BASE, 9, "head.weight"))
    mine = clashing.md5(MODEL)
    clashing.git("merge", "other", ok=False)
    said = clashing.run("git", "merge", "--abort").stderr
    assert is_same(on_disk(clashing), OURS)
    assert f"modelver load net@{mine} -o FILE" in said
    clashing.modelver("load", f"net@{mine}", "-o", "mine.safetensors")
    assert clashing.md5("mine.safetensors") == mine


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_the_option_of_git_merge_decides(clashing: Sandbox, side: str) -> None:
    clashing.git("merge", "-q", "-X", side, "other", "-m", "merge")
    wanted = OURS if side == "ours" else CLASH
    assert is_same(on_disk(clashing), JOINED | {"layers.0.weight": wanted["layers.0.weight"]})
    check_whole(clashing)


def test_an_aborted_merge_leaves_everything_as_it_was(clashing: Sandbox) -> None:
    clashing.git("merge", "other", ok=False)
    clashing.modelver("merge", "--take", "theirs")
    assert not is_same(on_disk(clashing), OURS)
    clashing.git("merge", "--abort")
    assert is_same(on_disk(clashing), OURS)
    check_whole(clashing)


def test_a_rule_that_leaves_a_side_out_is_told(sandbox: Sandbox) -> None:
    (sandbox.path / ".modelver.toml").write_text('[merge]\nstrategy = "ours"\n')
    fork(sandbox, CLASH)
    done = sandbox.run("git", "merge", "-q", "other", "-m", "merge")
    assert "2 from ours, 2 from theirs, 1 of them changed on both sides, decided by rule" in done.stderr


def test_rules_decide_by_themselves(sandbox: Sandbox) -> None:
    settings = sandbox.path / ".modelver.toml"
    settings.write_text(
        settings.read_text() + '\n[[merge.rule]]\ntensors = "layers.*"\nstrategy = "weighted:weight=0.25"\n'
    )
    box = fork(sandbox, CLASH)
    box.git("merge", "-q", "other", "-m", "merge")
    wanted = 0.75 * OURS["layers.0.weight"].astype(np.float64) + 0.25 * CLASH["layers.0.weight"]
    assert np.array_equal(on_disk(box)["layers.0.weight"], wanted.astype(np.float32))
    assert metadata(box)["version"]["merge"]["combined"] == {"weighted:weight=0.25": ["layers.0.weight"]}
    check_whole(box)


def test_a_model_that_ours_renamed_and_theirs_retrained(sandbox: Sandbox) -> None:
    box = fork(sandbox, THEIRS, BASE | {"head.weight": BASE["head.weight"] + 1})
    box.git("reset", "-q", "--hard", "HEAD~1")
    box.modelver("mv", MODEL, "models/better.safetensors")
    box.git("commit", "-q", "-m", "renamed")
    box.git("merge", "-q", "other", "-m", "merge")
    assert is_same(on_disk(box, "models/better.safetensors"), THEIRS)
    assert metadata(box, "models/better.safetensors")["model"]["path"] == "models/better.safetensors"
    check_whole(box, "models/better.safetensors")


NEW = "models/big.safetensors"
MIXED = "layers.0.weight"


def renamed_and_trained(box: Sandbox, theirs: Weights, strategy: str) -> None:
    """On the branch other the model has another name and other weights than on main, where it was trained, too."""
    put(box, BASE)
    (box.path / ".modelver.toml").write_text(f'[merge]\nstrategy = "{strategy}"\n')
    box.git("add", ".")
    box.git("commit", "-q", "-m", "base")
    box.git("switch", "-q", "-c", "other")
    box.modelver("mv", MODEL, NEW)
    box.git("commit", "-q", "-m", "renamed")
    put(box, theirs, NEW)
    box.git("commit", "-q", "-a", "-m", "theirs")
    box.git("switch", "-q", "main")
    put(box, OURS)
    box.git("commit", "-q", "-a", "-m", "ours")


@pytest.mark.parametrize("into", ["main", "other"])
@pytest.mark.parametrize("theirs", [THEIRS, moved(BASE, 2, *BASE)], ids=["paired", "nothing alike"])
def test_a_model_that_one_side_renamed_and_both_trained_is_merged_at_its_new_name(
    sandbox: Sandbox, into: str, theirs: Weights
) -> None:
    renamed_and_trained(sandbox, theirs, "mean")
    sandbox.git("switch", "-q", into)
    md5s = {sandbox.git("show", f"{rev}.dvc").split("md5: ")[1][:32] for rev in (f"main:{MODEL}", f"other:{NEW}")}
    assert "CONFLICT (modify/delete)" in sandbox.git("merge", {"main": "other", "other": "main"}[into], ok=False)
    gone = [path for path in sandbox.git("diff", "--name-only", "--diff-filter=U").split() if MODEL in path]
    sandbox.git("rm", "-q", *gone)
    sandbox.git("commit", "--no-edit")
    joined = JOINED if theirs is THEIRS else None
    found = on_disk(sandbox, NEW)
    for name, value in BASE.items():
        wanted = (
            joined[name] if joined else (OURS[name] + theirs[name]) / 2 if name in changed_in(OURS) else theirs[name]
        )
        np.testing.assert_allclose(found[name], wanted, rtol=1e-6, atol=1e-7, err_msg=name)
        assert not np.array_equal(wanted, value) or joined
    assert set(metadata(sandbox, NEW)["version"]["parents"]) == md5s
    assert not (sandbox.path / MODEL).exists()
    check_whole(sandbox, NEW)


def changed_in(weights: Weights) -> set[str]:
    return {name for name, value in weights.items() if not np.array_equal(value, BASE[name])}


def test_a_renamed_model_in_conflict_is_never_committed_as_one_side(sandbox: Sandbox) -> None:
    renamed_and_trained(sandbox, CLASH, "conflict")
    sandbox.git("merge", "other", ok=False)
    gone = [path for path in sandbox.git("diff", "--name-only", "--diff-filter=U").split() if MODEL in path]
    sandbox.git("rm", "-q", *gone)
    sandbox.git("add", "-u")
    said = sandbox.git("commit", "--no-edit", ok=False)
    assert f"{NEW}: {MODEL} was renamed by theirs, and both sides trained it" in said
    assert "nothing was committed" in said
    assert f"{NEW}: 1 undecided" in sandbox.modelver("merge", ok=False)
    sandbox.modelver("merge", "--take", "mean", "net:*")
    sandbox.git("commit", "--no-edit")
    mean = ((OURS[MIXED].astype(np.float64) + CLASH[MIXED]) / 2).astype(np.float32)
    assert is_same(on_disk(sandbox, NEW), JOINED | {MIXED: mean})
    check_whole(sandbox, NEW)


def test_a_renamed_model_is_listed_at_its_new_name_and_merged(sandbox: Sandbox) -> None:
    renamed_and_trained(sandbox, THEIRS, "conflict")
    sandbox.git("merge", "other", ok=False)
    listed = sandbox.modelver("merge", ok=False)
    assert f"{NEW}\n  was {MODEL}, which theirs renamed: modelver merge --continue merges it" in listed
    assert "removed by" not in listed
    sandbox.modelver("merge", "--continue")
    sandbox.git("commit", "--no-edit")
    assert is_same(on_disk(sandbox, NEW), JOINED)
    assert not (sandbox.path / MODEL).exists()
    check_whole(sandbox, NEW)


def test_a_criss_cross_merge(forked: Sandbox) -> None:
    box = forked
    box.git("branch", "third", "main")
    box.git("merge", "-q", "other", "-m", "into main")
    box.git("switch", "-q", "other")
    box.git("merge", "-q", "third", "-m", "into other")
    assert box.md5(MODEL) == box.git("show", f"main:{MODEL}.dvc").split("md5: ")[1][:32]
    one = moved(JOINED, 5, "layers.3.bias")
    put(box, one)
    box.git("commit", "-q", "-am", "on other")
    box.git("switch", "-q", "main")
    two = moved(JOINED, 6, "embed.weight")
    put(box, two)
    box.git("commit", "-q", "-am", "on main")
    box.git("merge", "-q", "other", "-m", "criss-cross")
    assert is_same(on_disk(box), two | {"layers.3.bias": one["layers.3.bias"]})
    check_whole(box)


def test_facts_recorded_on_both_sides_of_the_same_weights(sandbox: Sandbox) -> None:
    put(sandbox, BASE)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "base")
    for branch, args in (("other", ["--param", "lr=0.1"]), ("main", ["--metric", "val_acc=0.9"])):
        sandbox.git("switch", "-q", *(["-c"] if branch == "other" else []), branch)
        sandbox.modelver("refresh", "net", *args)
        sandbox.git("commit", "-q", "-am", branch)
    sandbox.git("merge", "-q", "other", "-m", "merge")
    training = metadata(sandbox)["training"]
    assert (training["metrics"], training["hyperparameters"]) == ({"val_acc": 0.9}, {"lr": 0.1})
    check_whole(sandbox)


def test_weights_that_only_the_remote_has_are_fetched_for_a_merge(forked: Sandbox) -> None:
    forked.run("git", "init", "-q", "--bare", str(forked.path.parent / "origin.git"))
    forked.git("push", "-q", str(forked.path.parent / "origin.git"), "main", "other")
    shutil.rmtree(forked.path / ".dvc/cache")
    forked.git("merge", "-q", "other", "-m", "merge")
    assert is_same(on_disk(forked), JOINED)


def test_weights_that_are_nowhere_make_a_conflict_that_says_so(forked: Sandbox) -> None:
    theirs = forked.git("show", f"other:{MODEL}.dvc").split("md5: ")[1][:32]
    forked.drop(theirs)
    said = forked.git("merge", "other", ok=False)
    assert f"object {theirs[:8]}" in said
    assert is_same(on_disk(forked), OURS)
    assert "<<<<<<<" not in (forked.path / f"{MODEL}.dvc").read_text()
    out = forked.modelver("merge", ok=False)
    assert theirs[:8] in out
    assert "Traceback" not in out


def test_a_format_that_cannot_be_merged_is_taken_whole(sandbox: Sandbox) -> None:
    for branch, text in (("main", "base"), ("other", "theirs"), ("main", "ours")):
        sandbox.git("switch", "-q", *(["-c", "other"] if branch == "other" else ["main"]))
        sandbox.write("models/m.weights", text * 1000)
        sandbox.modelver("add", "models/m.weights")
        sandbox.git("commit", "-q", "-a", "-m", text)
    said = sandbox.git("merge", "other", ok=False)
    assert "CONFLICT (model): models/m.weights" in said
    sandbox.modelver("merge", "--take", "theirs")
    sandbox.git("commit", "-q", "-m", "merged")
    assert (sandbox.path / "models/m.weights").read_text() == "theirs" * 1000
    check_whole(sandbox, "models/m.weights")


def remove_ours(box: Sandbox) -> None:
    """Merge ``other``, which retrained the model, into a branch that removed it."""
    box.modelver("rm", MODEL)
    box.git("commit", "-q", "-m", "removed")
    box.git("merge", "other", ok=False)


def test_a_model_that_one_side_removed_is_one_conflict_and_can_be_kept(forked: Sandbox) -> None:
    remove_ours(forked)
    document = json.loads(forked.modelver("merge", "--json", ok=False))
    assert [(one["path"], one["removed_by"]) for one in document["conflicts"]] == [(MODEL, "ours")]
    assert forked.exit_code("merge", "--take", "mean") == 2
    out = forked.modelver("merge", ok=False)
    assert f"removed by ours, changed by theirs: {MODEL}" in out
    assert f"keep it: modelver merge --take theirs {MODEL}" in out
    assert f"kept {MODEL}" in forked.modelver("merge", "--take", "theirs", "net")
    forked.git("commit", "-q", "-m", "merged")
    assert is_same(on_disk(forked), THEIRS)
    check_whole(forked)


def test_a_model_that_one_side_removed_is_removed_with_its_weights(forked: Sandbox) -> None:
    remove_ours(forked)
    assert is_same(on_disk(forked), THEIRS)
    assert f"removed {MODEL}" in forked.modelver("merge", "--take", "ours")
    forked.git("commit", "-q", "-m", "merged")
    assert forked.git("status", "--porcelain") == ""
    assert not (forked.path / MODEL).parent.exists()


def test_a_model_that_theirs_removed_and_that_is_added_by_hand_is_ignored_again(forked: Sandbox) -> None:
    forked.git("switch", "-q", "other")
    forked.modelver("rm", MODEL)
    forked.git("commit", "-q", "-m", "removed")
    forked.git("switch", "-q", "main")
    forked.git("merge", "other", ok=False)
    forked.git("add", ".")
    assert forked.exit_code("merge") == 0
    assert "keeps ours whole" not in forked.run("git", "commit", "-m", "merged").stderr
    assert is_same(on_disk(forked), OURS)
    check_whole(forked)


def test_a_model_that_one_side_measured_and_the_other_removed(sandbox: Sandbox) -> None:
    """Of its files only the metadata is in conflict; the others come from the commit that has them."""
    put(sandbox, BASE)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "base")
    sandbox.git("switch", "-q", "-c", "other")
    sandbox.modelver("refresh", "net", "--metric", "val_acc=0.9")
    sandbox.git("commit", "-q", "-am", "measured")
    sandbox.git("switch", "-q", "main")
    remove_ours(sandbox)
    sandbox.modelver("merge", "--take", "theirs")
    sandbox.git("commit", "-q", "-m", "merged")
    assert metadata(sandbox)["training"]["metrics"] == {"val_acc": 0.9}
    check_whole(sandbox)


def test_one_of_several_models_is_decided_by_its_name(sandbox: Sandbox) -> None:
    paths = {name: f"models/{name}.safetensors" for name in ("n1", "n2", "n3")}
    names = ("layers.0.weight", "layers.1.weight")
    ours, theirs = moved(BASE, 1, *names), moved(BASE, 2, *names)
    for branch, weights in (("main", BASE), ("other", theirs), ("main", ours)):
        sandbox.git("switch", "-q", *(["-c", "other"] if branch == "other" else ["main"]))
        for path in paths.values():
            put(sandbox, weights, path)
        sandbox.git("add", ".")
        sandbox.git("commit", "-q", "-am", branch)
    sandbox.git("merge", "other", ok=False)
    said = sandbox.modelver("merge", "--take", "theirs", paths["n1"], "n2:layers.0.*", ok=False)
    assert "n2.safetensors: 1 undecided" in said
    assert "n3.safetensors: 2 undecided" in said
    assert is_same(on_disk(sandbox, paths["n1"]), theirs)
    sandbox.modelver("merge", "--take", "ours")
    assert is_same(on_disk(sandbox, paths["n2"]), ours | {names[0]: theirs[names[0]]})
    assert is_same(on_disk(sandbox, paths["n3"]), ours)


@prepared
def pipeline(sandbox: Sandbox) -> Sandbox:
    """A stage that both sides ran anew, with other parameters; the parameters themselves are merged."""
    for n, weights in enumerate((BASE, THEIRS, OURS)):
        save_file(weights, sandbox.path / f"w{n}")
    sandbox.write(
        "train.py",
        "import json, shutil\nshutil.copy(f'w{json.load(open(\"params.json\"))[\"seed\"]}', 'm.safetensors')\n",
    )
    sandbox.write(".gitignore", "/w0\n/w1\n/w2\n")
    sandbox.write(".gitattributes", (sandbox.path / ".gitattributes").read_text() + "params.json merge=union\n")
    stage = "cmd: python train.py\n    deps: [train.py]\n    params:\n    - params.json:\n      - seed\n    outs: [m.safetensors]\n"
    other = "stages:\n  {}:\n    cmd: cp train.py {}.txt\n    outs: [{}.txt]\n  train:\n    " + stage
    for branch, seed in (("main", 0), ("other", 1), ("main", 2)):
        sandbox.git("switch", "-q", *(["-c", "other"] if branch == "other" else ["main"]))
        sandbox.write("params.json", json.dumps({"seed": seed}))
        if seed != 1:
            sandbox.write("dvc.yaml", other.format("x", "x", "x") if seed else "stages:\n  train:\n    " + stage)
        sandbox.dvc("repro", "-q")
        sandbox.git("add", ".")
        sandbox.git("commit", "-q", "-a", "-m", f"seed {seed}")
    return sandbox


def test_a_pipelines_model_that_both_sides_made_is_a_conflict(pipeline: Sandbox) -> None:
    said = pipeline.git("merge", "other", ok=False)
    assert "CONFLICT (model): m.safetensors: made by stage 'train' on both sides" in said
    assert "stage 'train' was run on both sides: ours stands" in said
    lock = (pipeline.path / "dvc.lock").read_text()
    ours = pipeline.md5("m.safetensors")
    assert "<<<<<<<" not in lock
    assert ours in lock
    assert "x.txt" in lock
    assert pipeline.metadata_md5("m.safetensors") == ours
    listed = pipeline.modelver("merge", ok=False)
    assert "\n  hint: dvc repro, git add dvc.lock, then modelver merge --continue\n" in listed
    pipeline.modelver("merge", "--take", "theirs")
    assert is_same(on_disk(pipeline, "m.safetensors"), THEIRS)
    assert pipeline.md5("m.safetensors") in (pipeline.path / "dvc.lock").read_text()


def test_a_pipelines_model_that_was_made_anew_concludes_the_merge(pipeline: Sandbox) -> None:
    save_file(JOINED, pipeline.path / "w3")
    pipeline.git("merge", "other", ok=False)
    pipeline.write("params.json", json.dumps({"seed": 3}))
    pipeline.dvc("repro", "-q")
    assert pipeline.exit_code("merge", "--continue") == 1
    pipeline.git("add", "dvc.lock", "params.json")
    assert pipeline.exit_code("merge") == 1
    assert "merged m version" in pipeline.modelver("merge", "--continue")
    pipeline.git("commit", "-q", "-m", "merged")
    assert is_same(on_disk(pipeline, "m.safetensors"), JOINED)
    assert pipeline.metadata_md5("m.safetensors") == pipeline.md5("m.safetensors")
    assert pipeline.git("status", "--porcelain") == "?? w3\n"
    assert "up to date" in pipeline.dvc("status")


def test_a_pipelines_model_is_merged_where_a_strategy_is_chosen(pipeline: Sandbox) -> None:
    pipeline.git("merge", "other", ok=False)
    pipeline.modelver("merge", "--take", "mean")
    assert is_same(on_disk(pipeline, "m.safetensors"), JOINED)
    assert pipeline.md5("m.safetensors") in (pipeline.path / "dvc.lock").read_text()
    pipeline.git("commit", "-q", "-m", "merged")
    assert pipeline.git("status", "--porcelain") == ""


def test_a_folder_of_data_is_merged_file_by_file(sandbox: Sandbox) -> None:
    for branch, files in (("main", {"a": "0", "b": "0"}), ("other", {"b": "1", "c": "1"}), ("main", {"a": "2"})):
        sandbox.git("switch", "-q", *(["-c", "other"] if branch == "other" else ["main"]))
        if (sandbox.path / "data.dvc").exists():
            sandbox.dvc("checkout", "-q")
        for name, text in files.items():
            sandbox.write(f"data/{name}", text)
        sandbox.dvc("add", "-q", "data")
        sandbox.git("add", ".")
        sandbox.git("commit", "-q", "-m", branch)
    sandbox.git("merge", "-q", "other", "-m", "merge")
    sandbox.dvc("checkout", "-q")
    found = {p.name: p.read_text() for p in (sandbox.path / "data").iterdir()}
    assert found == {"a": "2", "b": "1", "c": "1"}
    assert "up to date" in sandbox.dvc("status")


def test_a_clone_without_the_tool_gets_no_markers(forked: Sandbox, tmp_path: Path) -> None:
    forked.run("git", "clone", "-q", str(forked.path), str(tmp_path / "plain"))
    plain = Sandbox(tmp_path / "plain")
    plain.git("merge", "origin/other", ok=False)
    assert metadata(plain)["schema"] == "modelver.metadata/1"


def test_uninstall_takes_the_driver_out(forked: Sandbox) -> None:
    own = forked.path / ".git/info/attributes"
    own.write_text(own.read_text() + "*.txt diff\n")
    forked.modelver("uninstall")
    assert own.read_text() == "*.txt diff\n"
    assert forked.git("config", "--get-regexp", "merge", ok=False) == ""
