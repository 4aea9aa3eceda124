"""lineage: where versions come from, over all models; what is declared, what is measured, what does not add up."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pydot
import pytest

import dvc_modelver as modelver
from dvc_modelver.cli.lineage import lineage_document, lineage_lines
from dvc_modelver.cli.pictures import dot, drawing, page
from dvc_modelver.errors import NotFoundError, UsageError
from dvc_modelver.resources import read_schema
from tests.registry.story import Story
from tests.sandbox import Sandbox, Weights, make_weights

DATA = {"path": "data/train", "md5": "a" * 32 + ".dir", "bytes": 7}
MORE = {"path": "data/more.csv", "md5": "b" * 32, "bytes": 9}
LOST = "f" * 32


def noisy(weights: Weights, relative: float, seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    return {k: (w + relative * w.std() * rng.standard_normal(w.shape)).astype(np.float32) for k, w in weights.items()}


def adapter(weights: Weights) -> Weights:
    """Low-rank factors for the layers of a model."""
    rng = np.random.default_rng(5)
    found = {}
    for name in (n for n in weights if n.startswith("layers.") and n.endswith(".weight")):
        base = f"base_model.model.{name.removesuffix('.weight')}"
        found[f"{base}.lora_A.weight"] = rng.standard_normal((2, 16)).astype(np.float32)
        found[f"{base}.lora_B.weight"] = rng.standard_normal((16, 2)).astype(np.float32)
    return found


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    story = Story()
    w1 = make_weights(1)
    w2 = noisy(w1, 0.1, 1)
    one = story.tell("digits", w1, data=(DATA,), code={"commit": "c0de" * 10, "dirty": True})
    story.tag("digits@v1.0.0")
    two = story.tell("digits", w2, (one,), data=(DATA, MORE))
    theirs = story.tell("digits", noisy(w2, 0.1, 2), (two,), branch="dev", data=(DATA,))
    ours = story.tell("digits", noisy(w2, 0.1, 3), (two,))
    recipe = {
        "ours": ours,
        "theirs": theirs,
        "strategy": "mean",
        "tensors": {"merged": 10},
        "combined": {"mean": ["x"]},
    }
    story.tell("digits", noisy(w2, 0.05, 4), (ours, theirs), merges="dev", merge=recipe)
    story.tag("digits#prod#1")
    tuned = story.tell("tuned", noisy(w2, 0.02, 5))
    story.tell(
        "half", {k: w.astype(np.float16).astype(np.float32) for k, w in w1.items()}, path="small/half.safetensors"
    )
    other = story.tell("other", make_weights(9))
    story.tell("liar", noisy(w1, 0.03, 6), (other,), change_from=tuned)
    story.tell("orphan", make_weights(21, layers=2), (LOST,))
    story.tell("adapter", adapter(w1))
    story.tell("retrained", make_weights(31, layers=3))
    first = story.tell("loop", make_weights(41, width=8))
    second = story.tell("loop", make_weights(42, width=8), (first,))
    metadata, _ = story.known[first]
    text = metadata.render().replace(b'"parents": []', f'"parents": ["{second}"]'.encode())
    story.commit({"loop.safetensors.modelver.json": text}, "edited by hand")
    return story.write(tmp_path_factory.mktemp("lineage"))


def read_dot(text: str) -> pydot.Dot:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pyparsing, about pydot
        graphs = pydot.graph_from_dot_data(text)
    assert graphs is not None and len(graphs) == 1
    return graphs[0]


def ask(repo: Path, reference: str | None = None, **question: Any) -> dict[str, Any]:
    document = lineage_document(modelver.lineage(reference, folder=repo, **question))
    jsonschema.validate(document, json.loads(read_schema("lineage")))
    return document


def labels(document: dict[str, Any], key: str = "versions") -> list[str]:
    return [f"{v['name']}@{v['number']}" for v in document[key]]


def one(document: dict[str, Any], name: str, number: int = 1) -> dict[str, Any]:
    return next(v for v in document["versions"] if (v["name"], v["number"]) == (name, number))


def test_a_model_is_shown_with_what_it_comes_from_and_what_comes_from_it(repo: Path) -> None:
    found = ask(repo, "digits")
    assert set(labels(found)) == {f"digits@{n}" for n in (1, 2, 3, 4)} | {"tuned@1", "half@1", "liar@2",
                                                                         "adapter@1"}  # fmt: skip
    assert labels(found)[0] == "digits@1"
    first, merged = one(found, "digits", 1), one(found, "digits", 4)
    assert (first["tags"], first["code"], first["data"]) == (
        ["digits@v1.0.0"],
        {"commit": "c0de" * 10, "dirty": True},
        [DATA],
    )
    assert (first["date"][:10], first["subject"]) == ("2023-11-14", "digits 1")
    assert merged["stages"] == ["prod"]
    assert [(p["name"], p["number"], p["how"]) for p in merged["parents"]] == [("digits", 3, "merge")] * 2
    assert all(p["cosine"] > 0.95 for p in merged["parents"])  # of the second, nothing was recorded
    assert merged["merge"]["strategy"] == "mean"
    assert {p["source"] for v in found["versions"] if v["name"] == "digits" for p in v["parents"]} == {"declared"}


def test_a_version_without_a_parent_gets_the_nearest_and_it_is_said_so(repo: Path) -> None:
    parent = one(ask(repo, "tuned"), "tuned")["parents"][0]
    assert (parent["name"], parent["number"], parent["source"]) == ("digits", 2, "measured")
    assert parent["cosine"] > 0.999
    assert abs(parent["relative_l2"] - 0.02) < parent["relative_l2_error"] + 0.003
    half = one(ask(repo, "half"), "half")["parents"][0]
    assert (half["name"], half["number"], half["source"]) == ("digits", 1, "measured")
    assert half["relative_l2"] < 1e-3
    assert one(ask(repo, "retrained"), "retrained")["parents"] == []


def test_an_adapter_is_of_the_model_that_its_layers_fit(repo: Path) -> None:
    found = one(ask(repo, "adapter"), "adapter")["parents"][0]
    assert (found["source"], found["how"], found["cosine"]) == ("measured", "adapter", None)
    assert re.fullmatch(r"its 4 layers fit it, and \d other versions", found["note"])


def test_a_declared_parent_that_the_weights_contradict_is_named_with_both_numbers(repo: Path) -> None:
    found = ask(repo, "liar")
    declared, measured = one(found, "liar", 2)["parents"]
    assert (declared["name"], declared["source"]) == ("other", "declared")
    assert abs(declared["cosine"]) < 0.2
    assert (measured["name"], measured["number"], measured["source"]) == ("digits", 1, "measured")
    assert measured["cosine"] > 0.99
    (line,) = (d for d in found["doubts"] if d.startswith("liar@2"))
    assert re.fullmatch(
        r"liar@2: declares the parent other@1 \(cosine -?0\.\d+\), but digits@1 is near \(cosine 0\.99\d+\)", line
    )


def test_unknown_parents_and_cycles_are_shown_and_harm_nothing(repo: Path) -> None:
    found = ask(repo, "orphan")
    parent = one(found, "orphan")["parents"][0]
    assert (parent["known"], parent["md5"], parent["number"]) == (False, LOST, None)
    assert found["doubts"] == ["orphan@1: no commit has its declared parent ffffffff"]
    loop = ask(repo, "loop")
    assert sorted(labels(loop)) == ["loop@1", "loop@2"]
    assert [p["cycle"] for v in loop["versions"] for p in v["parents"]] == [True, False]
    assert loop["doubts"] == ["loop@1: its parent loop@2 comes from it: a cycle"]
    every = modelver.lineage(folder=repo)
    text = "\n".join(lineage_lines(every))
    assert text.count("! ") == 3
    assert len(drawing(every)["boxes"]) == len(every.lineage.versions) + 1  # and the parent that no commit has


def test_what_comes_from_a_version(repo: Path) -> None:
    assert set(labels(ask(repo, base="digits@v1.0.0"))) >= {"digits@1", "digits@4", "half@1", "tuned@1", "liar@2"} - {
        "liar@2"
    }
    assert "other@1" not in labels(ask(repo, base="digits@1"))
    assert set(labels(ask(repo, base="digits#prod"))) <= {"digits@4", "adapter@1"}
    assert labels(ask(repo, "small/half.safetensors"), "about") == ["half@1"]
    two = one(ask(repo, "digits"), "digits", 2)["md5"]
    assert labels(ask(repo, base=f"digits@{two[:10]}"), "about") == ["digits@2"]
    assert labels(ask(repo, base=f"digits@2.{two[:6]}"), "about") == ["digits@2"]


def test_which_versions_used_some_data(repo: Path) -> None:
    for data in (
        "data/train",
        str(repo / "data/train"),
        "data/train/part/7.csv",
        "data/train.dvc",
        "a" * 12,
        DATA["md5"],
    ):
        found = ask(repo, data=str(data))
        assert set(labels(found, "about")) == {"digits@1", "digits@2", "digits@3"}, data
        inherited = {f"{v['name']}@{v['number']}": v["through"] for v in found["versions"] if v["through"]}
        assert {"tuned@1", "digits@4"} <= set(inherited)
        assert inherited["tuned@1"]["name"] == "digits"
        assert {"other@1", "orphan@1", "retrained@1"}.isdisjoint(labels(found))
    assert set(labels(ask(repo, data="data"), "about")) == {"digits@1", "digits@2", "digits@3"}
    assert labels(ask(repo, data="data/more.csv"), "about") == ["digits@2"]
    assert ask(repo, data="data/mor.csv")["versions"] == []
    assert modelver.lineage(data="data/mor.csv", folder=repo).like == "data/more.csv"


def test_wrong_questions_are_one_line(repo: Path) -> None:
    with pytest.raises(NotFoundError, match="digit: no commit has a version of such a model") as err:
        ask(repo, "digit")
    assert "did you mean digits?" in err.value.hint
    with pytest.raises(NotFoundError, match="digits@9: no commit has such a version"):
        ask(repo, "digits@9")
    with pytest.raises(UsageError, match=r"digits@3: 2 versions have this number: digits@3\.\w{6}, digits@3\.\w{6}"):
        ask(repo, "digits@3")
    with pytest.raises(UsageError, match="found more than one"):
        ask(repo, "digits", base="digits@1")


def test_the_tree_fits_a_terminal(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = lineage_lines(modelver.lineage("digits", folder=repo))
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert re.search(r"\* tuned@1  \w{8}  fine-tune of digits@2 \(measured\), cosine 0\.999\d+", text)
    assert re.search(
        r"digits@4  \w{8}  #prod\n.\s+merge of digits@3\.\w{6}, cosine 0\.\d+, and digits@3\.\w{6}, cosine", text
    )
    assert "merged by mean (tensors: 10 merged)" in text
    assert re.search(r"digits@1  \w{8}  v1\.0\.0  initial  \(\w{8} 2023-11-14\)", text)
    assert "data data/train aaaaaaaa" in text and "code c0dec0de, with uncommitted changes" in text
    assert re.search(r"data data/more\.csv bbbbbbbb\n", text)  # what its parent has is said there
    assert lines == lineage_lines(modelver.lineage("digits", folder=repo))


def test_graphviz_reads_the_graph(repo: Path) -> None:
    every = modelver.lineage(folder=repo)
    graph = read_dot(dot(every))
    names = {node.get_name().strip('"') for node in graph.get_nodes()} - {"node"}
    assert len(names) == len(every.lineage.versions) + 1
    assert len(graph.get_edges()) == sum(map(len, every.lineage.ancestors.values()))
    assert {e.get("style") for e in graph.get_edges()} == {'"solid"', '"dashed"', '"dotted"'}
    assert dot(every) == dot(modelver.lineage(folder=repo))


def test_the_page_draws_the_graph_and_needs_no_network(repo: Path) -> None:
    text = page("liar", modelver.lineage("liar", folder=repo))
    assert not re.search(r"""(src|href)\s*=|url\(|@import|fetch\(|XMLHttp""", text)
    graph = json.loads(text.split('id="data">')[1].split("</script>")[0])["graph"]
    by_label = {box["label"]: box["at"] for box in graph["boxes"]}
    assert by_label["digits@1"][1] < by_label["liar@2"][1] > by_label["other@1"][1]
    assert {line["kind"] for line in graph["lines"]} == {"measured", "doubt"}
    assert text == page("liar", modelver.lineage("liar", folder=repo))


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no browser here; .ci/run installs one")
def test_a_browser_draws_the_lineage(repo: Path, tmp_path: Path) -> None:
    found = modelver.lineage("digits", folder=repo)
    (tmp_path / "page.html").write_text(page("digits", found), encoding="utf-8")
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
               f"--user-data-dir={tmp_path}/b", (tmp_path / "page.html").as_uri()]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout
    assert dom.count("<rect") == len(found.lineage.versions)
    assert dom.count("<path") == sum(map(len, found.lineage.parents.values()))
    assert "fine-tune of digits@2 (measured)" in dom


def test_hostile_names_are_text(tmp_path: Path) -> None:
    story = Story()
    name = 'a"b\\N<script>alert(1)</script>\n-- \x1b[31m'
    first = story.tell(name, make_weights(1), path="x.safetensors", data=({"path": "d\n\x1b]0;x", "md5": 7},))
    story.tell(
        name, make_weights(2), (first, first, "--all"), path="x.safetensors", data=("text",), code={"commit": ["x"]}
    )
    story.commit({"x.safetensors.modelver.json": b"[" * 100_000, "-y.modelver.json": b'{"model": 1}'}, "broken")
    found = modelver.lineage(folder=story.write(tmp_path / "repo"))
    jsonschema.validate(lineage_document(found), json.loads(read_schema("lineage")))
    assert found.lineage.unreadable == 2
    graph = read_dot(dot(found))
    assert len(graph.get_edges()) == 2
    assert "alert(1)</script>" not in page("x", found)
    assert all(line.isprintable() for line in lineage_lines(found))


def test_many_versions_share_boxes(tmp_path: Path) -> None:
    story, md5 = Story(), ""
    for i in range(90):
        md5 = story.tell("net", {"w": np.full(3, i, np.float32)}, (md5,) if md5 else ())
        if i == 40:
            story.tag("net@v1.0.0")
    found = modelver.lineage("net@90", folder=story.write(tmp_path / "repo"))
    graph = drawing(found)
    assert [box["label"] for box in graph["boxes"]] == ["net@1", "39 versions", "net@41", "48 versions", "net@90"]
    assert [box["kind"] for box in graph["boxes"]] == ["", "run", "", "run", "about"]
    assert len(graph["lines"]) == 4


def test_a_shallow_clone_says_what_it_lacks(repo: Path, tmp_path: Path) -> None:
    subprocess.run(["git", "clone", "-q", "--depth", "1", repo.as_uri(), tmp_path / "clone"], check=True)
    (tmp_path / "clone/.dvc").mkdir(exist_ok=True)
    box = Sandbox(tmp_path / "clone")
    out = box.modelver("lineage", "digits", ok=False)
    assert "this clone is shallow" in out
    assert "digits@4: no commit has its declared parent" in out
    elsewhere = modelver.lineage("digits", repo=str(repo), folder=tmp_path / "clone")
    assert elsewhere.lineage.labels == modelver.lineage("digits", folder=repo).lineage.labels


def test_the_command(sandbox: Sandbox) -> None:
    sandbox.train("net.safetensors", 1)
    assert sandbox.modelver("lineage") == "no version was committed yet\n"
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    sandbox.train("net.safetensors", 2)
    sandbox.git("commit", "-q", "-am", "two")
    assert sandbox.modelver("lineage", "net").splitlines()[0].startswith("* net@2")
    document = json.loads(sandbox.modelver("lineage", "net", "--json"))
    assert [p["how"] for v in document["versions"] for p in v["parents"]] == ["retrained"]
    sandbox.modelver("lineage", "net", "--format", "dot", "-o", "net.dot")
    assert (sandbox.path / "net.dot").read_text().startswith("digraph lineage {")
    assert sandbox.exit_code("lineage", "net", "--open") == 2
    done = sandbox.run("modelver", "lineage", "--data", "nothing.csv", ok=False)
    assert (done.returncode, done.stdout) == (1, "no version was trained on nothing.csv, as far as is recorded\n")
    sandbox.modelver("mv", "net.safetensors", "models/net.safetensors")
    sandbox.git("commit", "-q", "-m", "moved")
    assert len(json.loads(sandbox.modelver("lineage", "models/net.safetensors", "--json"))["versions"]) == 2
