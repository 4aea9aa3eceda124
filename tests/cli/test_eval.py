"""modelver eval: what is recorded of a result, from files and by hand, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from dvc_modelver import api
from dvc_modelver.cli.app import run
from dvc_modelver.resources import read_schema
from tests.git.test_push import MODEL, train
from tests.sandbox import Sandbox, md5_of, prepared


@prepared
def box(sandbox: Sandbox) -> Sandbox:
    train(sandbox, 1)
    return sandbox


def record(box: Sandbox, *args: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(box.modelver("eval", *args, "--json"))
    return found


METRICS_FILES = {
    "m.json": '{"val": {"acc": 0.9, "n": 10}, "note": "x"}',
    "m.yaml": "val:\n  acc: 0.9\n  n: 10\nnote: x\n",
    "m.toml": 'note = "x"\n[val]\nacc = 0.9\nn = 10\n',
    "trainer_state.json": '{"log_history": [{"val.acc": 0.1}, {"val.acc": 0.9, "val.n": 10}]}',
}


def test_metrics_files_of_dvc_are_read(box: Sandbox) -> None:
    for n, (name, text) in enumerate(METRICS_FILES.items()):
        box.write(f"out/{name}", text)
        file = box.path / "out" / name
        one = api.evaluate("net@1", file, metrics={"extra": n}, folder=box.path).evaluation
        assert one.metrics == {"extra": n, "val.acc": 0.9, "val.n": 10}
        assert (one.source, one.by, one.md5) == (f"out/{name}", "Ada <ada@example.org>", box.md5(MODEL))
    document = record(box, "net@1", "--metrics", "out/m.json", "--metric", "extra=1e-3", "--metric", "n=7")
    assert document["schema"] == "modelver.evaluation/1"
    assert document["metrics"] == {"extra": 0.001, "n": 7, "val.acc": 0.9, "val.n": 10}
    assert (document["new"], document["time"][:2], document["number"], document["name"]) == (True, "20", 1, "net")


def test_a_result_says_what_it_was_measured_on_when_and_by_whom(box: Sandbox, tmp_path: Path) -> None:
    box.write("data/test.csv", "1,2\n")
    box.dvc("add", "-q", "data/test.csv")
    (tmp_path / "outside.csv").write_text("3\n")
    given = ["--data", "data/test.csv", "--data", str(tmp_path / "outside.csv"), "--data", "c" * 32]
    one = record(box, "net", "--metric", "acc=0.9", *given, "--time", "2026-01-02T03:04:05+01:00", "--by", "build 7")
    assert one["data"] == [
        {"path": "data/test.csv", "md5": md5_of(box.path / "data/test.csv"), "bytes": 4},
        {"path": "outside.csv", "md5": md5_of(tmp_path / "outside.csv"), "bytes": 2},
        {"md5": "c" * 32},
    ]
    assert (one["time"], one["by"]) == ("2026-01-02T02:04:05Z", "build 7")
    shown = box.modelver("show", "net")
    assert "acc = 0.9  (2026-01-02 02:04, by build 7, on data/test.csv, outside.csv, cccccccc)" in shown
    assert str(tmp_path) not in shown
    (line,) = box.git("notes", "--ref=modelver-evaluations", "list").split()[:1]
    jsonschema.validate(json.loads(box.git("cat-file", "blob", line)), json.loads(read_schema("evaluation")))


def test_results_belong_to_the_version_whatever_becomes_of_the_commit(box: Sandbox) -> None:
    assert record(box, "net", "--metric", "acc=0.5")["new"]
    assert not record(box, "net", "--metric", "acc=0.5")["new"]
    assert "recorded already" in box.modelver("eval", "net@1", "--metric", "acc=0.5")
    first = box.md5(MODEL)
    train(box, 2)
    record(box, "net", "--metric", "acc=0.7")
    record(box, f"net@1.{first[:6]}", "--metric", "loss=2")
    assert box.git("status", "--porcelain") == ""  # nothing of it is in the work tree
    card = json.loads(box.modelver("show", "net@1", "--json"))
    assert [one["metrics"] for one in card["evaluations"]] == [{"acc": 0.5}, {"loss": 2}]
    assert "acc = 0.7" in box.modelver("show", "net")
    box.git("commit", "-q", "--amend", "-m", "other words")
    box.git("reflog", "expire", "--expire=now", "--all")
    box.git("gc", "-q", "--prune=now")
    assert "acc = 0.7" in box.modelver("show", "net")


def test_the_newest_of_two_results_of_one_second_counts(box: Sandbox) -> None:
    for value in (0.9, 0.1, 0.5):
        assert api.evaluate("net", metrics={"acc": value}, folder=box.path).is_new
    (line,) = api.log("net", folder=box.path)
    assert line.measured["acc"].value == 0.5


def test_weights_that_nobody_described_are_not_taken_for_the_version_before(box: Sandbox, tmp_path: Path) -> None:
    first, second = box.md5(MODEL), box.train(MODEL, 2)
    asked = (
        ("eval", "net", "--metric", "acc=1"), ("card", "net"), ("export", "net", str(tmp_path / "out"), "--to", "huggingface"),
    )  # fmt: skip
    for args in asked:
        said = box.modelver(*args, ok=False)
        found = f"the weights on disk are {second[:8]}, its metadata describes version 1 ({first[:8]})"
        assert said.startswith(f"modelver: error: {MODEL}: {found}"), said
        assert f"modelver add {MODEL}" in said
    assert not (tmp_path / "out").exists()
    for command in (
        ["show", "net"],
        ["load", "net", "-o", str(tmp_path)],
        ["compare", "net", "net@1"],
        ["tag", "net", "v1.0.0"],
    ):
        assert f"warning: {MODEL}: the weights on disk are {second[:8]}" in box.modelver(*command, ok=False), command
    assert record(box, f"net@{first[:8]}", "--metric", "acc=0.1")["md5"] == first
    box.git("status")
    assert record(box, "net", "--metric", "acc=0.2")["md5"] == second
    box.git("commit", "-q", "-a", "-m", "second")
    box.train(MODEL, 1)  # and the other way round
    assert box.exit_code("eval", "net", "--metric", "acc=0.3") == 2
    (box.path / MODEL).unlink()
    assert record(box, "net", "--metric", "acc=0.4")["md5"] == second


REFUSED: list[tuple[list[str], str]] = [
    (["net"], "no metrics"),
    (["net@9", "--metric", "a=1"], "no such version"),
    (["nett", "--metric", "a=1"], "no such model"),
    (["net", "--metric", "a=high"], "expected name=number"),
    (["net", "--metric", "a=nan"], "expected name=number"),
    (["net", "--metric", "=1"], "expected name=number"),
    (["net", "--metric", "a=1", "--time", "noon"], "not a time"),
    (["net", "--metric", "a=1", "--time", "2999-01-01"], "in the future"),
    (["net", "--metric", "a=1", "--data", "none.csv"], "neither a file nor a DVC output"),
    (["net", "--metric", "a=1", "--push"], "no remote"),
    (["net", "--metrics", "none.json"], "no such file"),
    (["net", "--metrics", "nan.json"], "val.acc is nan"),
    (["net", "--metrics", "words.json"], "0 numbers"),
    (["net", "--metrics", "m.csv"], "not JSON"),
    (["net", "--metrics", "list.json"], "0 numbers"),
    (["net", "--metric", f"{'a' * 2000}=1"], "finite numbers"),
    (["net", "--metric", "a=1", "--by", "x" * 2000], "at most 1000"),
]


def test_what_is_no_result_is_refused_in_one_line(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    box.write("nan.json", '{"val": {"acc": NaN}, "loss": 1}')
    box.write("words.json", '{"model": "net"}')
    box.write("list.json", "[1, 2]")
    box.write("m.csv", "acc,loss\n1,2\n")
    monkeypatch.chdir(box.path)
    for args, words in REFUSED:
        code = run(["eval", *args])
        out, err = capsys.readouterr()
        assert (code, out) == (2, ""), args
        assert words in err.splitlines()[0], err
        assert len(err.splitlines()) <= 2
    assert box.git("for-each-ref", "refs/notes") == ""
