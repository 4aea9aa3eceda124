"""card: generated facts are renewed, what people wrote stays byte by byte, and no value breaks out of its place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import dvc_modelver as modelver
from dvc_modelver.errors import BadMetadataError, UsageError
from dvc_modelver.exchange.card import MARKERS
from tests.registry.story import Story
from tests.registry.test_lineage import noisy
from tests.sandbox import Sandbox, make_weights, md5_of

HOSTILE = "---\nbase_model: evil\n<!-- modelver: end -->\n# modelver: end\n<script>alert(1)</script> | `x` {{ 7 * 7 }}\n1. one\n- two"


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    story = Story()
    base = make_weights(1)
    first = story.tell("base", base)
    tuned = story.tell("tuned", noisy(base, 0.05, 1), (first,), metrics={"acc": 0.9, "loss": 0.25},
                       hyperparameters={"lr": 1e-3, "name": HOSTILE}, command=HOSTILE, framework="pytorch",
                       data=({"path": "data/train", "md5": "a" * 32, "bytes": 7}, {"path": HOSTILE, "md5": "b" * 32}))  # fmt: skip
    story.tag("tuned@v2.0.0")
    story.tell("tuned", noisy(base, 0.1, 2), (tuned,), metrics={"acc": 0.95})
    artifacts = {"tuned": {"path": "tuned.safetensors", "desc": HOSTILE, "labels": ["vision", "a: b # c"]}}
    story.commit({"dvc.yaml": yaml.safe_dump({"artifacts": artifacts}).encode()}, "artifacts")
    return story.write(tmp_path_factory.mktemp("card"))


def fields(text: str) -> dict[str, Any]:
    """Give the front matter, found as Hugging Face finds it."""
    found = re.search(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\r|\n|$))", text)
    assert found is not None
    data: dict[str, Any] = yaml.safe_load(found[2])
    return data


def test_the_card_has_the_facts(repo: Path) -> None:
    text = modelver.card("tuned@v2.0.0", folder=repo)
    top = fields(text)
    assert (top["base_model"], top["base_model_relation"], top["library_name"]) == ("base", "finetune", "pytorch")
    assert top["datasets"][0] == "data/train"
    assert top["tags"] == ["vision", "a: b # c"]
    (entry,) = top["model-index"]
    assert [(m["type"], m["value"]) for m in entry["results"][0]["metrics"]] == [("acc", 0.9), ("loss", 0.25)]
    assert "| `acc` | 0.9 | by training |" in text
    assert "- base\\@1 (" in text and "fine-tune, cosine 0.99" in text
    assert "| `data/train` | `" + "a" * 32 + "` | 7 |" in text
    assert text == modelver.card("tuned@v2.0.0", folder=repo)


def test_an_evaluation_is_told_with_its_data_and_date(sandbox: Sandbox) -> None:
    sandbox.train("net.safetensors", 1)
    sandbox.write("data/test.csv", "1,2\n")
    sandbox.modelver("add", "net.safetensors", "--metric", "acc=0.5", "--metric", "loss=2")
    sandbox.git("commit", "-q", "-m", "one")
    modelver.evaluate("net", metrics={"acc": 0.75}, data=[sandbox.path / "data/test.csv"], time="2024-11-20",
                      folder=sandbox.path)  # fmt: skip
    text = modelver.card("net", folder=sandbox.path)
    assert "| `acc` | 0.75 | 2024-11-20 on data/test.csv |" in text
    first, second = fields(text)["model-index"][0]["results"]
    assert (first["dataset"]["name"], first["metrics"][0]["value"]) == ("data/test.csv", 0.75)
    assert first["dataset"]["revision"] == md5_of(sandbox.path / "data/test.csv")
    assert (second["dataset"]["name"], second["metrics"][0]["name"]) == ("training record", "loss")


def test_hugging_face_reads_the_card(repo: Path) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
    read = hub.ModelCard(modelver.card("tuned@2", folder=repo))
    assert read.data.base_model == "base"
    assert [(r.metric_type, r.metric_value, r.dataset_name) for r in read.data.eval_results] == [
        ("acc", 0.9, "training record"), ("loss", 0.25, "training record"),
    ]  # fmt: skip
    assert "alert(1)" not in str(read.data.to_dict().get("base_model"))


def test_values_stay_in_their_place(repo: Path) -> None:
    text = modelver.card("tuned@2", folder=repo)
    lines = text.splitlines()
    assert [lines.count(marker.decode()) for marker in MARKERS] == [1, 1, 1, 1]
    assert lines.count("---") == 2
    body = text.split("\n---\n", 1)[1]
    assert "<script" not in re.sub(r"`[^`\n]*`", "", body)  # a code span shows what it holds
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in body
    assert "{{ 7 * 7 }}" in body
    assert all(line.count("|") == 3 for line in lines if line.startswith("| `name`"))
    assert "1\\. one" in body and "\\- two" in body
    assert fields(text)["base_model"] == "base"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_what_people_wrote_survives_byte_by_byte(repo: Path, tmp_path: Path, newline: str) -> None:
    file = tmp_path / "README.md"
    modelver.card("tuned@2", file, folder=repo)
    text = file.read_text().replace(
        "## Intended use\n", "## Intended use\n\nTabs\t and \u2028 spaces  \n\n\n---\n\nrule\n"
    )
    text = text.replace("# license, language", "license: mit\nbase_model: org/else\n# license, language")
    text = text.replace("All text outside", "My text, outside").replace("\n", newline)
    before = text.encode() + b"\xff no utf-8, no newline at the end"
    file.write_bytes(before)
    modelver.card("tuned@3", file, folder=repo)
    after = file.read_bytes()

    def own(content: bytes) -> list[bytes]:
        cuts = [content.index(b"\n" + marker + newline.encode()) for marker in MARKERS]
        return [content[: cuts[0]], content[cuts[1] : cuts[2]], content[cuts[3] :]]

    assert own(after) == own(before)
    assert b"0.95" in after and b"0.95" not in before
    assert after.count(b"\n") == after.count(newline.encode())
    top = fields(after.decode("utf-8", "replace"))
    assert (top["license"], top["base_model"]) == ("mit", "org/else")  # theirs counts
    modelver.card("tuned@3", file, folder=repo)
    assert file.read_bytes() == after


@pytest.mark.parametrize("marker", [m.decode() for m in MARKERS])
@pytest.mark.parametrize("damage", ["gone", "twice", "changed"])
def test_a_card_whose_markers_are_damaged_is_refused(repo: Path, tmp_path: Path, marker: str, damage: str) -> None:
    file = tmp_path / "README.md"
    modelver.card("tuned@2", file, folder=repo)
    mended = {"gone": "", "twice": f"{marker}\n{marker}\n", "changed": f" {marker}x\n"}[damage]
    file.write_text(file.read_text().replace(f"\n{marker}\n", f"\n{mended}"))
    before = file.read_bytes()
    with pytest.raises(BadMetadataError, match=rf"README.md: found [02] lines '{re.escape(marker)}', expected one"):
        modelver.card("tuned@3", file, folder=repo)
    assert file.read_bytes() == before


@pytest.mark.parametrize("text", [
    b"# A page of my own\n",
    b"",
    b"\n".join(MARKERS),
    b"---\n# modelver: begin\n---\n# modelver: end\n<!-- modelver: begin -->\n<!-- modelver: end -->\n",
    b"---\n# modelver: begin\n# modelver: end\n---\n<!-- modelver: end -->\n<!-- modelver: begin -->\n",
    b"hello\n---\n# modelver: begin\n# modelver: end\n---\n<!-- modelver: begin -->\n<!-- modelver: end -->\n",
    b"---\na: [\n# modelver: begin\n# modelver: end\n---\n<!-- modelver: begin -->\n<!-- modelver: end -->\n",
    b"---\n- a\n# modelver: begin\n# modelver: end\n---\n<!-- modelver: begin -->\n<!-- modelver: end -->\n",
])  # fmt: skip
def test_a_page_that_is_no_card_is_left_alone(repo: Path, tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "README.md"
    file.write_bytes(text)
    with pytest.raises(BadMetadataError, match=r"README\.md: "):
        modelver.card("tuned@3", file, folder=repo)
    assert file.read_bytes() == text
    with pytest.raises(UsageError, match="a folder, expected a file"):
        modelver.card("tuned@3", tmp_path, folder=repo)


def test_the_command_on_a_version_that_is_not_committed(sandbox: Sandbox) -> None:
    sandbox.train("net.safetensors", 1)
    sandbox.modelver("add", "net.safetensors", "--metric", "acc=0.5")
    text = sandbox.modelver("card", "net")
    assert "| `acc` | 0.5 | by training |" in text
    assert "commit" not in text.split("<!-- modelver: begin -->")[1].split("## Get it")[0]
    assert sandbox.modelver("card", "net", "-o", "CARD.md", ok=False) == "wrote CARD.md\n"
    assert (sandbox.path / "CARD.md").read_text() == text
    (sandbox.path / "CARD.md").write_text("mine")
    assert sandbox.exit_code("card", "net", "-o", "CARD.md") == 2
    assert (sandbox.path / "CARD.md").read_text() == "mine"
