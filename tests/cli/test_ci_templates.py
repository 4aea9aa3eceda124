"""The workflow templates, run as far as a script can: what they compare, and what they would post where."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import load_file, save_file

from dvc_modelver.diff.render.markdown import MARKER
from dvc_modelver.resources import find_data_folder
from tests.sandbox import Sandbox, make_weights, prepared

GH = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$*" in *--paginate*) cat "$ANSWER";; esac
for word; do case "$word" in body=@*) cp "${word#body=@}" "$CALLS.body";; esac; done
"""
CURL = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$*" in *per_page*) cat "$ANSWER";; esac
for word; do case "$word" in body@*) cp "${word#body@}" "$CALLS.body";; esac; done
"""


@prepared
def branch(sandbox: Sandbox) -> Sandbox:
    """A branch that retrains a model; main moved on in between."""
    sandbox.train("net.safetensors", 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "base")
    sandbox.git("checkout", "-q", "-b", "retrain")
    sandbox.train("net.safetensors", 2)
    sandbox.git("commit", "-q", "-am", "retrained")
    sandbox.git("checkout", "-q", "main")
    sandbox.write("other.txt", "x")
    sandbox.git("add", "other.txt")
    sandbox.git("commit", "-q", "-m", "other")
    sandbox.git("checkout", "-q", "retrain")
    return sandbox


def script(name: str) -> str:
    document: Any = yaml.safe_load((find_data_folder("templates") / "ci" / name).read_text())
    if "jobs" in document:
        (job,) = document["jobs"].values()
        return str(job["steps"][-1]["run"])
    return "\n".join(line for line in document["models"]["script"] if not line.startswith("pip "))


def run(
    box: Sandbox, text: str, answer: str, programs: dict[str, str], code: int = 0, **env: str
) -> tuple[list[str], str]:
    bin_ = box.path.parent / "bin"
    bin_.mkdir(exist_ok=True)
    for name, content in programs.items():
        (bin_ / name).write_text(content)
        (bin_ / name).chmod(0o755)
    calls = box.path.parent / "calls"
    calls.write_text("")
    (box.path.parent / "answer").write_text(answer)
    env |= {"CALLS": str(calls), "ANSWER": str(box.path.parent / "answer"), "PATH": f"{bin_}:{os.environ['PATH']}"}
    done = box.run("sh", "-c", text, ok=False, env=env)
    assert done.returncode == code, done.stdout + done.stderr
    body = Path(f"{calls}.body")
    return calls.read_text().splitlines(), body.read_text() if body.exists() else ""


def github(
    box: Sandbox, answer: str, head: str = "retrain", name: str = "github.yml", code: int = 0
) -> tuple[list[str], str]:
    event = {
        "number": 7,
        "pull_request": {
            "base": {"sha": box.git("rev-parse", "main").strip(), "ref": "main"},
            "head": {"sha": box.git("rev-parse", head).strip(), "ref": head},
        },
    }
    (box.path.parent / "event.json").write_text(json.dumps(event))
    env = {"GITHUB_EVENT_PATH": str(box.path.parent / "event.json"), "GITHUB_REPOSITORY": "team/repo"}
    return run(box, script(name), answer, {"gh": GH}, code, **env)


def test_github_posts_one_comment_and_updates_it(branch: Sandbox) -> None:
    calls, body = github(branch, "")
    assert [c.split(" -F")[0] for c in calls[1:]] == ["api --silent --method POST repos/team/repo/issues/7/comments"]
    assert body.startswith(MARKER)
    assert "### `net.safetensors`: retrained" in body
    calls, _ = github(branch, "123\n456\n")
    assert [c.split(" -F")[0] for c in calls[1:]] == ["api --silent --method PATCH repos/team/repo/issues/comments/123"]


def test_github_says_nothing_where_no_model_changed(branch: Sandbox) -> None:
    calls, _ = github(branch, "", head="main")
    assert len(calls) == 1
    _, body = github(branch, "123\n", head="main")
    assert "No model changed" in body


@pytest.mark.parametrize(("notes", "verb"), [([], "POST"), ([{"id": 5, "body": f"{MARKER}\nold"}], "PUT")])
def test_gitlab_posts_one_note_and_updates_it(branch: Sandbox, notes: list[dict[str, object]], verb: str) -> None:
    calls, body = run(
        branch, script("gitlab.yml"), json.dumps(notes), {"curl": CURL},
        CI_API_V4_URL="https://gitlab.test/api/v4", CI_PROJECT_ID="3", CI_MERGE_REQUEST_IID="9", MODELVER_TOKEN="t",
        CI_MERGE_REQUEST_DIFF_BASE_SHA=branch.git("rev-parse", "HEAD~1").strip(),
        CI_COMMIT_SHA=branch.git("rev-parse", "HEAD").strip(),
    )  # fmt: skip
    assert f"--request {verb}" in calls[1]
    assert "merge_requests/9/notes" in calls[1]
    assert "net.safetensors" in body


@prepared
def pull_request(sandbox: Sandbox) -> Sandbox:
    """A clone in which a pull request and its base both moved one tensor of a model, and another one each."""
    sandbox.run("git", "init", "-q", "--bare", "../origin.git")
    sandbox.git("remote", "add", "origin", "../origin.git")
    for branch, *names in (("main",), ("retrain", "embed.weight"), ("main", "head.weight")):
        sandbox.git("switch", "-q", "-C" if branch == "retrain" else "main", *(["retrain"] * (branch == "retrain")))
        weights = make_weights(0)
        (sandbox.path / "net.safetensors").unlink(missing_ok=True)
        save_file(weights | {name: weights[name] + 1 for name in names}, sandbox.path / "net.safetensors")
        sandbox.git("add", ".")
        sandbox.git("commit", "-q", "-a", "-m", branch)
    sandbox.git("push", "-q", "origin", "main", "retrain")
    sandbox.git("switch", "-q", "retrain")
    return sandbox


def test_github_merges_models_where_the_host_cannot(pull_request: Sandbox) -> None:
    calls, _ = github(pull_request, "", name="github-merge.yml")
    assert calls == []
    clone = Sandbox(pull_request.path.parent / "clone")
    pull_request.run("git", "clone", "-q", "-b", "retrain", "../origin.git", "../clone")
    clone.modelver("install")
    clone.modelver("pull")
    base, merged = make_weights(0), load_file(clone.path / "net.safetensors")
    assert {k for k in base if not (merged[k] == base[k]).all()} == {"embed.weight", "head.weight"}


def test_github_lists_what_the_rules_do_not_decide(pull_request: Sandbox) -> None:
    weights = make_weights(0)
    (pull_request.path / "net.safetensors").unlink()
    save_file(weights | {"head.weight": weights["head.weight"] - 1}, pull_request.path / "net.safetensors")
    pull_request.git("commit", "-q", "-am", "the same layer")
    calls, body = github(pull_request, "", name="github-merge.yml", code=1)
    assert "issues/7/comments" in calls[0]
    assert "head.weight: changed on both sides" in body
    assert pull_request.git("status", "--porcelain", "--untracked-files=no") == ""
