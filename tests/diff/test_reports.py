"""Markdown that can be posted whatever the model, and a page that needs no network, drawn by a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dvc_modelver.diff.changes import ModelDiff
from dvc_modelver.diff.render.html import render_html
from dvc_modelver.diff.render.markdown import MARKER, MAX_CHARACTERS, render_markdown
from tests.diff.test_compare import Weights, base, compared, moved
from tests.sandbox import Sandbox

HOSTILE = "a|b`c<script>alert(1)</script>\n# x\u2028\x1b[31m]]>"


@pytest.fixture
def fine_tune(tmp_path: Path) -> ModelDiff:
    return compared(tmp_path, base(), moved(base(), 0.01, "mlp"))


def many(n: int) -> tuple[Weights, Weights]:
    """Models of `n` small tensors whose names share nothing that could be folded."""
    names = [f"{'x' * (i % 90)}{i:05d}{HOSTILE if i % 100 == 0 else ''}" for i in range(n)]
    old = {name: np.full(2, 1 + i, np.float32) for i, name in enumerate(names)}
    return old, {name: w * np.float32(1.5) for name, w in old.items()}


def test_markdown_is_short_and_stable(fine_tune: ModelDiff) -> None:
    text = render_markdown([fine_tune])
    assert text.startswith(f"{MARKER}\n")
    assert "### `model.safetensors`: partial" in text
    assert "<details><summary>12 tensors in 1 line</summary>" in text
    assert "| modified | `layers.0-11.mlp.weight (12)` | 256x64 |" in text
    assert text == render_markdown([fine_tune])
    assert render_markdown([]).count("No model changed") == 1


def test_markdown_can_always_be_posted(tmp_path: Path) -> None:
    change = compared(tmp_path, *many(5000))
    for models in ([change], [change] * 7, [change] * 400):
        text = render_markdown(models)
        assert len(text) <= MAX_CHARACTERS
        assert text.count("<details>") == text.count("</details>")
    assert "more lines" in render_markdown([change])
    assert "longer than a comment" in render_markdown([change] * 400)


def test_names_cannot_break_out_of_markdown(tmp_path: Path) -> None:
    text = render_markdown([compared(tmp_path, {HOSTILE: np.ones(2, np.float32)}, {HOSTILE: np.zeros(2, np.float32)})])
    assert "<script" not in re.sub(r"`[^`\n]*`", "", text)  # a code span shows what it holds
    assert "\x1b" not in text
    row = next(line for line in text.splitlines() if line.startswith("| modified"))
    assert row.count("|") == 6


def test_the_page_needs_no_network_and_holds_what_the_document_says(fine_tune: ModelDiff) -> None:
    page = render_html([fine_tune])
    assert not re.search(r"""(src|href)\s*=|url\(|@import|fetch\(|XMLHttp""", page)
    assert "default-src 'none'" in page
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert [t["name"] for t in data["models"][0]["tensors"]] == [t.name for t in fine_tune.tensors]
    assert data["exact"] is False


def test_names_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    page = render_html([compared(tmp_path, {HOSTILE: np.ones(2, np.float32)}, {HOSTILE: np.zeros(2, np.float32)})])
    assert "alert(1)</script>" not in page
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert data["models"][0]["tensors"][0]["name"] == HOSTILE


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no browser here; .ci/run installs one")
@pytest.mark.parametrize("size", ["small", "large"])
def test_a_browser_draws_the_page(tmp_path: Path, fine_tune: ModelDiff, size: str) -> None:
    change = fine_tune if size == "small" else compared(tmp_path, *many(5000))
    page = tmp_path / "report.html"
    page.write_text(render_html([change]), encoding="utf-8")
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--dump-dom",
        f"--user-data-dir={tmp_path}/b",
    ]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, check=True, timeout=100)
    dom = done.stdout
    if size == "small":
        assert dom.count('class="cell"') == len(change.tensors)
        assert dom.count("<tr") == 1 + change.tensors_changed
        assert "12 of 12 shown" in dom
        assert "layers.11.mlp.weight" in dom
    else:
        assert "300 of 5000 shown" in dom
        assert "alert(1)</script>" not in dom.replace("&lt;script&gt;alert(1)&lt;/script&gt;", "")


def test_reports_from_the_command_line(sandbox: Sandbox) -> None:
    for seed in (1, 2, 3):
        sandbox.train("net.safetensors", seed)
        sandbox.modelver("add", "net.safetensors", "--metric", f"acc=0.{seed}")
        sandbox.git("commit", "-q", "-m", str(seed))
    assert "| acc | 0.2 | 0.3 | +0.1 |" in sandbox.modelver("diff", "net@2", "net@3", "--format", "markdown")
    sandbox.modelver("diff", "net@2", "net@3", "--format", "html", "-o", "diff.html")
    assert "net.safetensors" in (sandbox.path / "diff.html").read_text()
    sandbox.modelver("log", "net", "--format", "html", "-o", "log.html")
    data = json.loads((sandbox.path / "log.html").read_text().split('id="data">')[1].split("</script>")[0])
    assert data["charts"][0] == {"title": "acc", "points": [["1", 0.1], ["2", 0.2], ["3", 0.3]]}
    assert [box["label"] for box in data["graph"]["boxes"]] == ["net@1", "net@2", "net@3"]
    assert sandbox.exit_code("diff", "--open") == 2
    assert sandbox.exit_code("log", "net", "--format", "markdown") == 2
