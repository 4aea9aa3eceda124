"""``modelver merge-file``: what it prints, what it exits with, where its rules come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import dvc_modelver as modelver
from dvc_modelver.errors import NotFoundError, UsageError
from dvc_modelver.resources import read_schema
from tests.sandbox import Sandbox

Arrays = dict[str, NDArray[Any]]


@pytest.fixture
def box(tmp_path: Path) -> Sandbox:
    """Three models in a folder that is no repository: ``encoder`` changed on both sides, one layer on each."""
    base: Arrays = {name: np.ones((4, 4), np.float32) for name in ("encoder.weight", "head.weight", "tail.weight")}
    base["steps"] = np.array([1])
    ours = base | {"encoder.weight": base["encoder.weight"] * 2, "head.weight": base["head.weight"] * 2}
    theirs = base | {"encoder.weight": base["encoder.weight"] * 4, "tail.weight": base["tail.weight"] * 4}
    box = Sandbox(tmp_path / "plain")
    box.path.mkdir()
    for name, arrays in (("base", base), ("ours", ours), ("theirs", theirs)):
        save_file(arrays, box.path / f"{name}.safetensors")
    return box


FILES = ("base.safetensors", "ours.safetensors", "theirs.safetensors", "-o", "out.safetensors")


def test_a_conflict_is_listed_and_nothing_is_written(box: Sandbox) -> None:
    done = box.run("modelver", "merge-file", *FILES, ok=False)
    assert done.returncode == 1
    assert done.stdout == "1 conflict, nothing was written:\n  encoder.weight  changed on both sides\n"
    assert done.stderr == (
        "hint: modelver merge-file ... --strategy mean combines what both sides changed; "
        "--tensors encoder.weight=ours decides one of them\n"
    )
    assert not (box.path / "out.safetensors").exists()


def test_a_strategy_decides_it(box: Sandbox) -> None:
    text = box.modelver("merge-file", *FILES, "--strategy", "weighted:weight=0.25")
    assert text == (
        "out.safetensors: 1 from ours, 1 from theirs, 1 the same on both sides, 1 combined\n"
        "  encoder.weight  changed on both sides: weighted:weight=0.25\n"
    )
    merged = load_file(box.path / "out.safetensors")
    assert {name: float(merged[name].max()) for name in merged} == {
        "encoder.weight": 2.5, "head.weight": 2.0, "tail.weight": 4.0, "steps": 1.0,
    }  # fmt: skip


def test_patterns_decide_some_tensors_the_last_one_first(box: Sandbox) -> None:
    rules = ["--tensors", "enc*=theirs", "--tensors", "encoder.weight=ours", "--tensors", "none*=theirs"]
    text = box.modelver("merge-file", *FILES, "--strategy", "mean", *rules)
    assert text.splitlines()[-1] == "note: --tensors none*: no tensor has such a name"
    assert float(load_file(box.path / "out.safetensors")["encoder.weight"].max()) == 2.0


@pytest.mark.parametrize("options", [(), ("--strategy", "ties:density=0.5")])
def test_the_document_follows_its_schema(box: Sandbox, options: tuple[str, ...]) -> None:
    done = box.run("modelver", "merge-file", *FILES, *options, "--json", ok=False)
    document = json.loads(done.stdout)
    jsonschema.validate(document, json.loads(read_schema("merge")))
    assert done.returncode == (0 if options else 1)
    assert document["output"] == ("out.safetensors" if options else None)
    assert document["conflicts"] == (0 if options else 1)
    assert {t["name"]: t["take"] for t in document["tensors"]} == {
        "encoder.weight": "combined" if options else "conflict", "head.weight": "ours", "tail.weight": "theirs",
    }  # fmt: skip


def test_without_a_base_all_differences_are_of_both_sides(box: Sandbox) -> None:
    done = box.run("modelver", "merge-file", "/dev/null", *FILES[1:], ok=False)
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == "3 conflicts, nothing was written:"
    assert "added on both sides, differently" in done.stdout


def test_settings_of_the_repository_around_ours_count(box: Sandbox) -> None:
    box.git("init", "-q")
    (box.path / ".modelver.toml").write_text(
        '[merge]\nstrategy = "theirs"\n[[merge.rule]]\npath = "ours.*"\ntensors = "encoder.*"\nstrategy = "mean"\n'
    )
    box.modelver("merge-file", *FILES)
    assert float(load_file(box.path / "out.safetensors")["encoder.weight"].max()) == 3.0
    box.modelver("merge-file", *FILES, "--tensors", "encoder.*=ours")
    assert float(load_file(box.path / "out.safetensors")["encoder.weight"].max()) == 2.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*FILES, "--strategy", "median"), "strategy is 'median', expected one of ours, theirs, conflict, mean"),
        ((*FILES, "--tensors", "mean"), "mean: expected PATTERN=STRATEGY"),
        ((*FILES, "--tensors", "a=ties:density=2"), "strategy for a: density is '2', expected a number above 0 to 1"),
        (("nowhere.pt", *FILES[1:]), "nowhere.pt: no such file or folder"),
        ((*FILES[:4], "no/such/out.safetensors"), "no/such: no such folder"),
        ((*FILES[:2], "notes.txt", *FILES[3:]), "notes.txt: no reader knows its format"),
        (FILES[:3], "Missing option '-o'"),
    ],
)
def test_wrong_use_and_bad_input_exit_2(box: Sandbox, arguments: tuple[str, ...], said: str) -> None:
    (box.path / "notes.txt").write_text("hello")
    done = box.run("modelver", "merge-file", *arguments, ok=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"modelver: error: {said}")
    assert len([line for line in done.stderr.splitlines() if not line.startswith("hint:")]) == 1


def test_the_python_api_has_the_same_verb(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(box.path)
    done = modelver.merge_file(*FILES[:3], "out.safetensors", strategy="mean")
    assert done.output == Path("out.safetensors")
    assert done.plan.counts() == {"same": 1, "ours": 1, "theirs": 1, "combined": 1}
    with pytest.raises(UsageError):
        modelver.merge_file(*FILES[:3], "out.safetensors", strategy="nothing")
    with pytest.raises(NotFoundError):
        modelver.merge_file("missing", *FILES[1:3], "out.safetensors")


def test_many_tensors_are_counted(box: Sandbox) -> None:
    for i, name in enumerate(("base", "ours", "theirs")):
        save_file({f"layers.{n:02}": np.full(3, i, np.float32) for n in range(30)}, box.path / f"{name}.safetensors")
    done = box.run("modelver", "merge-file", *FILES, ok=False)
    lines = done.stdout.splitlines()
    assert lines[0] == "30 conflicts, nothing was written:"
    assert lines[-1] == "  and 10 more (--json lists them)"
    assert len(lines) == 22


def test_names_in_a_file_cannot_steer_the_terminal(box: Sandbox) -> None:
    for i, name in enumerate(("base", "ours", "theirs")):
        save_file({"\x1b[31mred": np.full(3, i, np.float32)}, box.path / f"{name}.safetensors")
    done = box.run("modelver", "merge-file", *FILES, ok=False)
    assert "\x1b" not in done.stdout + done.stderr


def test_weights_of_a_tracked_model_are_in_the_cache_before_they_are_replaced(sandbox: Sandbox) -> None:
    model = "models/net.safetensors"
    first = sandbox.train(model, 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    shutil.copy(sandbox.path / model, sandbox.path.parent / "base")
    sandbox.train("../theirs", 2)
    retrained = sandbox.train(model, 3)
    assert not sandbox.cached(retrained)
    sandbox.modelver("merge-file", "../base", "../base", "../theirs", "-o", model)
    assert sandbox.md5(model) not in (first, retrained)
    assert sandbox.cached(retrained)
    assert f"{model}.modelver.json" in sandbox.git("status", "--short")
