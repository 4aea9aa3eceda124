"""Commits that were made with DVC alone get their metadata in notes: every question is answered as if they had it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dvc_modelver import api
from dvc_modelver.errors import NotFoundError
from dvc_modelver.git.objects import ObjectReader
from dvc_modelver.registry.backfill import read_backfill, read_backfilled_table
from dvc_modelver.registry.notes import METADATA_REF, TENSORS_REF
from tests.sandbox import Sandbox

MODEL, TREE = "models/net.safetensors", "out/tree.safetensors"
LOCK = """schema: '2.0'
stages:
  train:
    cmd: python train.py
    params:
      params.yaml:
        lr: {lr}
    deps:
    - path: data.csv
      md5: {data}
      size: 4
    outs:
    - path: out/tree.safetensors
      md5: {md5}
      size: {size}
      hash: md5
"""
YAML = (
    "stages:\n  train:\n    cmd: python train.py\n    outs: [out/tree.safetensors]\n    metrics:\n    - scores.json\n"
)


@pytest.fixture
def old(tmp_path: Path) -> Sandbox:
    """A repository of plain Git and DVC: five commits, three versions of one model, two of a pipeline's; pushed."""
    box = Sandbox(tmp_path / "old")
    box.path.mkdir()
    box.git("init", "-q")
    box.dvc("init", "-q")
    box.write(".dvc/config", f"[core]\n    remote = storage\n['remote \"storage\"']\n    url = {tmp_path}/remote\n")
    box.write(".gitignore", "/out/\n")
    box.write("models/.gitignore", "/net.safetensors\n")
    box.write("dvc.yaml", YAML)
    for n, (seed, pipeline) in enumerate([(1, 11), (2, 11), (2, 12), (3, 12), (1, 12)]):
        md5, size = trained(box, MODEL, seed)
        box.write(f"{MODEL}.dvc", f"outs:\n- md5: {md5}\n  size: {size}\n  hash: md5\n  path: net.safetensors\n")
        md5, size = trained(box, TREE, pipeline)
        box.write("dvc.lock", LOCK.format(lr=pipeline / 100, data="d" * 32, md5=md5, size=size))
        box.write("scores.json", json.dumps({"acc": pipeline / 20}))
        box.write("n.txt", str(n))
        box.git("add", ".")
        box.git("commit", "-q", "-m", f"commit {n}")
    assert box.dvc("status", "-q", f"{MODEL}.dvc") == ""
    shutil.copytree(box.path / ".dvc/cache", tmp_path / "remote")
    return box


def trained(box: Sandbox, path: str, seed: int) -> tuple[str, int]:
    """Write a model and its object; give md5 and size."""
    md5, file = box.train(path, seed), box.path / path
    target = box.path / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, target)
    return md5, file.stat().st_size


def commits(box: Sandbox) -> list[str]:
    return box.git("rev-list", "--reverse", "HEAD").split()


def logged(box: Sandbox, name: str) -> list[tuple[int, str]]:
    return [(v.version.number, v.version.commit) for v in api.log(name, folder=box.path)]


def test_old_commits_are_described_and_every_question_is_answered(old: Sandbox, tmp_path: Path) -> None:
    before = old.git("rev-parse", "HEAD"), old.git("status", "--porcelain")
    shutil.rmtree(old.path / ".dvc/cache")
    document: dict[str, Any] = json.loads(old.modelver("index", "--backfill", "HEAD", "--json"))
    assert document["schema"] == "modelver.index/1"
    numbers = [(one["path"], one["number"]) for one in document["described"]]
    assert sorted(numbers) == [
        (MODEL, 1),
        (MODEL, 2),
        (MODEL, 3),
        (TREE, 1),
        (TREE, 2),
    ]
    assert (document["known"], document["failed"]) == (1, [])  # the last has the bytes of the first
    assert (old.git("rev-parse", "HEAD"), old.git("status", "--porcelain")) == before

    first, second, third, fourth, _ = commits(old)
    assert sorted(logged(old, "net")) == sorted([(1, first), (2, second), (3, fourth)])
    assert sorted(logged(old, "tree")) == sorted([(1, first), (2, third)])
    card = api.show("net@2", folder=old.path)
    assert card.table is not None
    assert card.metadata.change is not None
    assert (card.metadata.change.kind, card.metadata.change.from_) == (
        "retrained",
        api.show("net@1", folder=old.path).metadata.md5,
    )
    training = api.show("tree@2", folder=old.path).metadata.training
    assert (training.hyperparameters, training.metrics) == ({"lr": 0.12}, {"acc": 0.6})
    assert [row["md5"] for row in training.data or ()] == ["d" * 32]
    (between,) = api.diff(second, third, folder=old.path)  # neither commit brought in both sides
    assert (between.path, between.kind) == (TREE, "retrained")
    assert between.tensors_changed == 10
    (found,) = api.diff("net@1", "net@3", folder=old.path)
    assert found.cosine is not None
    assert "net version 3" in old.modelver("show", "net@3")
    tagged = old.modelver("tag", "net", "v0.2.0", second)
    assert "net@v0.2.0" in tagged
    assert api.show("net@v0.2.0", folder=old.path).metadata.version.number == 2

    again: dict[str, Any] = json.loads(old.modelver("index", "--backfill", "HEAD", "--json"))
    assert (again["described"], again["known"]) == ([], 6)


def test_it_goes_on_where_it_was_stopped_and_names_what_is_nowhere(old: Sandbox, tmp_path: Path) -> None:
    _, second, third, *_ = commits(old)
    text = old.git("show", f"{second}:{MODEL}.dvc")
    md5 = text.split("md5: ")[1].split()[0]
    places = [old.path / ".dvc/cache/files/md5" / md5[:2] / md5[2:], tmp_path / "remote/files/md5" / md5[:2] / md5[2:]]
    for n, file in enumerate(places):
        file.rename(tmp_path / f"kept-{n}")
    done = api.index(f"..{third}", folder=old.path)
    assert sorted((m.model.path, m.version.number) for _, m in done.described) == [(MODEL, 1), (TREE, 1), (TREE, 2)]
    result = old.run("modelver", "index", "--backfill", "HEAD", ok=False)
    assert result.returncode == 4
    assert f"error: {second[:8]} {MODEL}" in result.stderr
    assert f"the version before it, {md5[:8]}, could not be described" in result.stderr  # rather than a false number
    assert "0 versions described, 4 known already, 2 could not be" in result.stdout
    (tmp_path / "kept-1").rename(places[1])
    done = api.index("HEAD", folder=old.path)
    assert [(m.model.path, m.version.number) for _, m in done.described] == [(MODEL, 2), (MODEL, 3)]
    assert done.known == 4
    assert not done.failed


def test_notes_travel_and_the_tool_goes_on_from_them(old: Sandbox, tmp_path: Path) -> None:
    api.index("HEAD", folder=old.path)
    old.run("git", "init", "-q", "--bare", str(tmp_path / "origin.git"))
    old.git("remote", "add", "origin", str(tmp_path / "origin.git"))
    old.modelver("init")
    old.git("push", "-q", "-u", "origin", "HEAD:main", MODELVER_SKIP="1")
    old.git("push", "-q")
    old.run("git", "clone", "-q", "-b", "main", str(tmp_path / "origin.git"), str(tmp_path / "clone"))
    clone = Sandbox(tmp_path / "clone")
    clone.modelver("install")
    clone.modelver("pull")
    assert api.show("net@2", folder=clone.path).metadata.version.number == 2
    clone.modelver("add", "--all")
    assert clone.metadata_md5(MODEL) == clone.md5(MODEL)
    document = json.loads((clone.path / f"{MODEL}.modelver.json").read_text())
    assert document["version"]["number"] == 1  # the same version as the notes say
    assert clone.git("status", "--porcelain", "models").startswith("A ")
    clone.git("add", ".")
    clone.git("commit", "-q", "-m", "adopted")
    clone.train(MODEL, 4)
    clone.modelver("add", "-u")
    clone.git("commit", "-q", "-m", "from the first")
    assert [n for n, _ in logged(clone, "net")] == [2, 3, 2, 1]
    clone.modelver("rollback", "net", "3")
    document = json.loads((clone.path / f"{MODEL}.modelver.json").read_text())
    assert (document["version"]["number"], clone.md5(MODEL)) == (3, document["model"]["md5"])
    clone.git("commit", "-q", "-m", "back to the third")
    assert "0 problems" in clone.modelver("fsck")
    clone.git("rm", "-q", "dvc.yaml", "dvc.lock", f"{TREE}.modelver.json", MODELVER_SKIP="1")
    clone.git("commit", "-q", "-m", "no pipeline any more", MODELVER_SKIP="1")
    with pytest.raises(NotFoundError, match=f"{TREE}: its stage train of the pipeline is not there any more"):
        api.rollback("tree@1", folder=clone.path)


def test_lines_that_are_not_ours_are_left_out(old: Sandbox) -> None:
    first = commits(old)[0]
    api.index(first, folder=old.path)
    text = old.git("notes", "--ref=modelver", "show", first)
    (line,) = [one for one in text.splitlines() if MODEL in one]
    tables = old.git("notes", "--ref=modelver-tensors", "list").split()
    lies = [
        "no json", "[]", line.replace("backfill/1", "backfill/9"), line.replace(MODEL, "other.pt", 1),
        json.dumps(json.loads(line) | {"metadata": "{}"}), json.dumps(json.loads(line) | {"pointer": ["x"]}),
    ]  # fmt: skip
    old.git("notes", "--ref=modelver", "append", "-m", "\n".join(lies), first)
    old.git(
        "notes",
        "--ref=modelver-tensors",
        "append",
        "-m",
        '{"schema":"modelver.backfill-table/1","table":"x"}',
        tables[1],
    )
    objects = ObjectReader(old.path / ".git")
    found = read_backfill(objects)
    assert {one.path for one in found.by_commit[first]} == {MODEL, TREE}
    assert all(read_backfilled_table(objects, one.metadata) for one in found.by_commit[first])
    assert found.find(objects, first, "other.pt") is None
    assert old.git("for-each-ref", "--format=%(refname)", "refs/notes").split() == [METADATA_REF, TENSORS_REF]


def test_lineage_knows_where_it_comes_from(old: Sandbox) -> None:
    api.index("HEAD", folder=old.path)
    old.git("tag", "-a", "net@v1.0.0", "-m", "second", commits(old)[1])
    found = api.lineage("net", folder=old.path).lineage
    versions = list(found.versions.values())
    assert [(v.label, v.subject, v.tags) for v in versions] == [
        ("net@1", "commit 0", ()), ("net@2", "commit 1", ("net@v1.0.0",)), ("net@3", "commit 3", ()),
    ]  # fmt: skip
    assert [[a.key for a in found.ancestors[v.key]] for v in versions] == [[], [versions[0].key], [versions[1].key]]
    assert {v.name for v in api.lineage(data="data.csv", folder=old.path).lineage.versions.values()} == {"tree"}


def test_history_answers_as_if_the_commits_had_metadata(old: Sandbox) -> None:
    assert "no version was committed yet" in old.modelver("log", "net")
    api.index("HEAD", folder=old.path)
    first, second, _, fourth, _ = commits(old)
    found = json.loads(old.modelver("log", "net", "--json"))["versions"]
    assert [(v["version"]["number"], v["commit"]) for v in found] == [(3, fourth), (2, second), (1, first)]
    assert [(v["version"]["number"], v["subject"]) for v in json.loads(old.modelver("log", TREE, "--json"))["versions"]] == [
        (2, "commit 2"), (1, "commit 0"),
    ]  # fmt: skip
    assert "net version 2" in old.modelver("show", "net@2")
    assert old.modelver("best", TREE, "--metric", "acc").splitlines()[1].split()[0] == "tree@2"
    assert len(json.loads(old.modelver("list", "--versions", "--json"))["versions"]) == 5
    assert "retrained" in old.modelver("compare", "net@1", "net@3")
    assert {t["number"] for t in json.loads(old.modelver("blame", "net@3", "--json"))["tensors"]} == {3}
    (listed,) = [m for m in api.list_models(folder=old.path) if m.name == "net"]
    assert listed.metadata is not None
    assert [v.is_current for v in api.log("net", folder=old.path)] == [False, False, True]
    for args in (("show", "net"), ("eval", "net", "--metric", "acc=1")):
        assert "net version 1" in old.modelver(*args)
    assert "| `acc` | 1 |" in old.modelver("card", "net")
    assert {t["number"] for t in json.loads(old.modelver("blame", "net", "--json"))["tensors"]} == {1}
    # once the tool is there for good, the commits stay those that brought the weights
    old.modelver("init")
    old.modelver("add", "--all")
    old.git("add", ".")
    old.git("commit", "-q", "-m", "with metadata")
    found = json.loads(old.modelver("log", "net", "--json"))["versions"]
    assert [(v["version"]["number"], v["subject"]) for v in found] == [
        (3, "commit 3"), (2, "commit 1"), (1, "commit 0"),
    ]  # fmt: skip
    old.git("tag", "-a", "-m", "as gto does", "net@v1.0.0", second)
    found = json.loads(old.modelver("log", "net", "--json"))["versions"]
    assert [v["tags"] for v in found] == [[], ["net@v1.0.0"], []]


def test_rollback_goes_back_from_what_the_notes_say(old: Sandbox) -> None:
    old.git("reset", "-q", "--hard", "HEAD~1")  # version 3
    old.train(MODEL, 3)
    api.index("HEAD", folder=old.path)
    old.modelver("init")
    said: list[str] = []
    done = api.rollback("net", say=said.append, folder=old.path)
    assert (done.old and done.old.version.number, done.new.version.number, said) == (3, 2, [])
    old.git("reset", "-q", "--hard")
    assert api.rollback("net", "1", say=said.append, folder=old.path).new.version.number == 1
    assert said == []
    reset = old.run("git", "reset", "-q", "--hard")
    assert "no commit" not in reset.stderr
