"""git diff, log -p and show on models, with real git."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from tests.sandbox import Sandbox, make_weights

MODEL = "models/net.safetensors"
TABLE = MODEL + ".modelver.tensors"


@pytest.fixture
def two(sandbox: Sandbox) -> Sandbox:
    """Two committed versions; the second has another first layer."""
    save(sandbox, {})
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    save(sandbox, {"layers.0.weight": 1.5})
    sandbox.git("commit", "-q", "-am", "two")
    return sandbox


def save(box: Sandbox, scaled: dict[str, float]) -> None:
    weights = make_weights(1)
    for name, factor in scaled.items():
        weights[name] = weights[name] * factor
    (box.path / "models").mkdir(exist_ok=True)
    save_file(weights, box.path / MODEL)


def test_diff_names_the_layer_without_the_weights(two: Sandbox) -> None:
    shutil.rmtree(two.path / ".dvc/cache")
    (two.path / MODEL).unlink()
    out = two.git("diff", "HEAD~1", "HEAD")
    assert f"diff --git a/{TABLE} b/{TABLE}" in out
    line = next(line for line in out.splitlines() if "layers.0.weight" in line and "~" in line)
    assert line.split()[-3:-1] == ["0.5", "1"]
    assert "9 tensors unchanged" in out
    assert '+      "number": 2' in out or '"number": 2' in out


def test_log_show_and_stat_read_well(two: Sandbox) -> None:
    for command in (
        ["log", "-p"],
        ["show"],
        ["show", "--stat"],
        ["diff", "--stat", "HEAD~1"],
        ["log", "-p", "--ext-diff"],
    ):
        done = two.run("git", *command)
        assert done.stderr == ""
        assert "fatal" not in done.stdout
    changed = [line for line in two.git("show").splitlines() if "layers.0.weight" in line]
    assert [line[0] for line in changed] == ["-", "+"]
    assert "scaled" in two.git("show", "--ext-diff")


def test_cached_and_work_tree_diffs(two: Sandbox) -> None:
    save(two, {"head.weight": 2.0})
    assert "head.weight" in two.git("diff")
    assert two.git("diff", "--cached") == ""
    two.git("add", "-u")
    assert "head.weight" in two.git("diff", "--cached")
    assert two.git("diff") == ""


def test_added_deleted_and_renamed_models(two: Sandbox) -> None:
    empty = two.git("hash-object", "-t", "tree", "/dev/null").strip()
    added = two.git("diff", empty, "HEAD", "--", TABLE)
    assert "new file mode" in added
    assert "10 tensors" in added
    assert "deleted file mode" in two.git("diff", "HEAD", empty, "--", TABLE)
    two.modelver("mv", MODEL, "models/other.safetensors")
    out = two.git("diff", "--cached", "-M")
    assert "rename" in out
    two.git("commit", "-q", "-m", "renamed")
    assert "fatal" not in two.git("log", "-p", "-M")


def test_mode_change_and_unmerged_paths(two: Sandbox) -> None:
    two.git("update-index", "--chmod=+x", TABLE)
    assert "old mode 100644" in two.git("diff", "--cached")
    two.git("reset", "-q", "--hard")
    two.git("checkout", "-q", "-b", "side", "HEAD~1")
    save(two, {"layers.0.weight": 3.0})
    two.git("commit", "-q", "-am", "side")
    done = two.git("merge", "main", ok=False)
    assert "CONFLICT" in done
    diff = two.run("git", "diff")
    assert "fatal" not in diff.stderr
    two.metadata_md5(MODEL)  # still JSON


def test_no_index_diff_of_two_files(two: Sandbox, tmp_path: Path) -> None:
    save_file(make_weights(1), tmp_path / "a.safetensors")
    save_file(make_weights(2), tmp_path / "b.safetensors")
    done = two.run(
        "git", "diff", "--no-index", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), ok=False
    )
    assert done.returncode in (0, 1)
    assert "retrained" in done.stdout


def test_a_side_with_an_id_is_read_as_that_blob(two: Sandbox) -> None:
    """The work tree holds garbage under the same path; a diff of two commits must not see it."""
    (two.path / TABLE).write_text("garbage\n")
    out = two.run("git", "-c", "core.fsmonitor=false", "diff", "HEAD~1", "HEAD", "--", TABLE).stdout
    assert "layers.0.weight" in out


def test_what_cannot_be_compared_is_shown_as_text(two: Sandbox) -> None:
    (two.path / TABLE).write_text("one\ntwo\n")
    out = two.run("git", "-c", "core.fsmonitor=false", "diff", "--", TABLE).stdout
    assert "shown as text" in out
    assert "+two" in out
    (two.path / TABLE).write_bytes(b"\0\1\2")
    done = two.run("git", "-c", "core.fsmonitor=false", "diff", "--", TABLE)
    assert "Binary files" in done.stdout


def test_the_configured_command_survives_a_missing_program(two: Sandbox) -> None:
    for key in ("command", "textconv"):
        line = two.git("config", f"diff.modelver.{key}").rstrip("\n").replace(sys.executable, "/nowhere/python")
        two.git("config", f"diff.modelver.{key}", line)
    path = "/usr/bin:/bin"
    done = two.run("git", "diff", "HEAD~1", "HEAD", env={"PATH": path})
    assert "layers.0.weight" in done.stdout
    assert "fatal" not in two.run("git", "log", "-p", env={"PATH": path}).stderr


def test_colours_follow_gits_own(two: Sandbox) -> None:
    plain = two.git("diff", "HEAD~1", "HEAD", "--", TABLE)
    assert "\x1b" not in plain
    two.git("config", "color.diff", "always")
    assert "\x1b[1m" in two.git("diff", "HEAD~1", "HEAD", "--", TABLE)
    two.git("config", "color.diff.meta", "bold yellow")
    assert "\x1b[1;33m" in two.git("diff", "HEAD~1", "HEAD", "--", TABLE)


def test_a_pager_that_quits_is_no_error(two: Sandbox) -> None:
    done = two.run("sh", "-c", "git diff HEAD~1 HEAD | head -1; git log -p | head -1")
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_a_model_committed_straight_into_git_diffs_too(sandbox: Sandbox) -> None:
    sandbox.git("config", "filter.modelver.process", "")
    sandbox.git("config", "filter.modelver.required", "false")
    save(sandbox, {})
    sandbox.run("git", "add", ".", env={"MODELVER_SKIP": "1"})
    sandbox.run("git", "commit", "-q", "-m", "raw", env={"MODELVER_SKIP": "1"})
    assert MODEL in sandbox.git("ls-files")
    save(sandbox, {"head.weight": 2.0})
    out = sandbox.git("diff")
    assert "scaled" in out
    assert "head.weight" in out


def test_stash_merges_and_difftool(two: Sandbox) -> None:
    save(two, {"head.weight": 2.0})
    two.git("stash")
    assert "head.weight" in two.git("stash", "show", "-p", "--ext-diff")
    two.git("stash", "drop", "-q")
    two.git("checkout", "-q", "-b", "exp", "HEAD~1")
    two.write("other.txt", "x")
    two.git("add", ".")
    two.git("commit", "-q", "-m", "other")
    two.git("merge", "-q", "--no-edit", "main")
    for command in (["show"], ["show", "-m", "--ext-diff"], ["log", "-p", "--cc"], ["diff", "HEAD~1", "--", TABLE]):
        done = two.run("git", *command)
        assert done.stderr == ""
    assert "layers.0.weight" in two.git("show", "-m", "--first-parent", "--ext-diff")
    # git difftool sets GIT_EXTERNAL_DIFF, over which the attribute's own driver wins
    assert "layers.0.weight" in two.git("difftool", "-y", "-x", "cmp", "HEAD~1", "HEAD", "--", TABLE)


def test_a_model_merged_on_both_sides_shows_as_a_conflict(two: Sandbox) -> None:
    two.git("checkout", "-q", "-b", "exp", "HEAD~1")
    save(two, {"layers.0.weight": 2.0})
    two.git("commit", "-q", "-am", "layer")
    two.git("merge", "main", ok=False)
    for command in (["diff"], ["diff", "--cached"], ["diff", "HEAD"], ["status"]):
        assert two.run("git", *command).returncode == 0
    assert f"diff --cc {TABLE}" in two.git("diff")
    assert f"UU {TABLE}" in two.git("status", "--porcelain")
