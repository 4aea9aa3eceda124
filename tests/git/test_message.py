"""The commit message: one line per changed model, as a comment in an editor, as a trailer on request."""

from __future__ import annotations

import pytest

from dvc_modelver.drivers.message import with_comments
from tests.sandbox import Sandbox, prepared

MODEL = "models/net.safetensors"
SHOWN = 'cp "$1" "$SHOWN"; sed -i \'1s/^$/subject/\' "$1"'


@prepared
def two(sandbox: Sandbox) -> Sandbox:
    """Version 1 committed, version 2 staged."""
    sandbox.train(MODEL, 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    sandbox.train(MODEL, 2)
    sandbox.modelver("add", "-u")
    return sandbox


def edited(box: Sandbox, *args: str) -> str:
    """Run a command whose editor writes a subject into an empty first line; give what the editor was shown."""
    shown = box.path.parent / "shown"
    shown.unlink(missing_ok=True)
    editor = box.path.parent / "editor"
    editor.write_text(f"#!/bin/sh\n{SHOWN}\n")
    editor.chmod(0o755)
    box.git(*args, GIT_EDITOR=str(editor), SHOWN=str(shown))
    return shown.read_text() if shown.exists() else ""


def message(box: Sandbox) -> str:
    return box.git("log", "-1", "--format=%B").strip()


def ours(text: str, char: str = "#") -> list[str]:
    return [line for line in text.splitlines() if line.startswith(f"{char} modelver: ")]


LINE = "net: retrained, cosine "


def test_the_editor_shows_a_comment_that_the_message_never_has(two: Sandbox) -> None:
    shown = edited(two, "commit")
    [line] = ours(shown)
    assert line.startswith(f"# modelver: {LINE}")
    assert line.endswith("10 of 10 tensors")
    assert shown.index(line) < shown.index("# Please enter")
    assert message(two) == "subject"


@pytest.mark.parametrize("options", [("-v",), ("--cleanup=strip",), ("-c", "HEAD"), ("-t", "../template")])
def test_the_comment_with_other_options(two: Sandbox, options: tuple[str, ...]) -> None:
    (two.path.parent / "template").write_text("\n\nbody\n")
    shown = edited(two, "commit", *options)
    assert len(ours(shown)) == 1
    assert "modelver" not in message(two)


def test_no_editor_no_comment(two: Sandbox) -> None:
    two.git("commit", "-q", "-m", "two", "--cleanup=verbatim")
    assert message(two) == "two"


@pytest.mark.parametrize("mode", ["verbatim", "whitespace"])
@pytest.mark.parametrize("how", ["option", "option apart", "setting"])
def test_no_comment_where_it_would_stay(two: Sandbox, mode: str, how: str) -> None:
    options = {"option": [f"--cleanup={mode}"], "option apart": ["--cleanup", mode], "setting": []}[how]
    if how == "setting":
        two.git("config", "commit.cleanup", mode)
    assert not ours(edited(two, "commit", *options))
    assert not ours(message(two))


def test_below_the_scissors_where_those_alone_are_cut(two: Sandbox) -> None:
    shown = edited(two, "commit", "--cleanup=scissors")
    [line] = ours(shown)
    assert shown.index(">8") < shown.index(line)
    assert "modelver" not in message(two)


@pytest.mark.parametrize(("setting", "char"), [(";", ";"), ("auto", "#")])
def test_another_comment_character(two: Sandbox, setting: str, char: str) -> None:
    two.git("config", "core.commentChar", setting)
    assert len(ours(edited(two, "commit"), char)) == 1
    assert message(two) == "subject"


def test_a_merge_names_what_it_brings(sandbox: Sandbox) -> None:
    sandbox.git("switch", "-q", "-c", "side")
    sandbox.train(MODEL, 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    sandbox.git("switch", "-q", "-")
    assert ours(edited(sandbox, "merge", "--no-ff", "--edit", "side")) == ["# modelver: net: added, 10 tensors"]
    assert message(sandbox) == "Merge branch 'side'"


def test_amending_compares_with_the_parent_and_says_it_once(two: Sandbox) -> None:
    edited(two, "commit")
    third = two.train(MODEL, 3)
    two.modelver("add", "-u")
    assert len(ours(edited(two, "commit", "--amend"))) == 1
    assert len(ours(edited(two, "commit", "--amend"))) == 1
    assert two.metadata_md5(MODEL) == third


def test_a_commit_without_models_has_no_line(two: Sandbox) -> None:
    two.git("commit", "-q", "-m", "two")
    two.write("code.py", "1\n")
    two.git("add", ".")
    assert not ours(edited(two, "commit"))


def test_a_removed_model_is_named(two: Sandbox) -> None:
    two.git("commit", "-q", "-m", "two")
    two.modelver("rm", MODEL)
    assert ours(edited(two, "commit")) == ["# modelver: net: removed, 10 tensors"]


# Trailers


@pytest.fixture
def trailing(two: Sandbox) -> Sandbox:
    settings = two.path / ".modelver.toml"
    settings.write_text(settings.read_text().replace("trailer = false", "trailer = true"))
    return two


def trailers(box: Sandbox) -> list[str]:
    return box.git("log", "-1", "--format=%(trailers:key=Model-Change,valueonly)").split("\n")[:-2]


def test_a_trailer_on_request(trailing: Sandbox) -> None:
    trailing.git("commit", "-q", "-m", "two", "-m", "Signed-off-by: Ada <ada@example.org>")
    assert [t.startswith(LINE) for t in trailers(trailing)] == [True]
    assert message(trailing).endswith("\nSigned-off-by: Ada <ada@example.org>\nModel-Change: " + trailers(trailing)[0])


def test_amending_renews_the_trailer(trailing: Sandbox) -> None:
    trailing.git("commit", "-q", "-m", "two")
    [before] = trailers(trailing)
    trailing.git("commit", "-q", "--amend", "--no-edit")
    assert trailers(trailing) == [before]
    trailing.train(MODEL, 3)
    trailing.modelver("add", "-u")
    trailing.git("commit", "-q", "--amend", "--no-edit")
    [after] = trailers(trailing)
    assert after.startswith(LINE)
    assert after != before
    trailing.git("restore", "--staged", "--source", "HEAD~1", "models")
    trailing.git("commit", "-q", "--amend", "--no-edit", "--allow-empty")
    assert trailers(trailing) == []
    assert message(trailing) == "two"


def test_each_model_has_a_trailer(trailing: Sandbox) -> None:
    trailing.train("models/other.safetensors", 4)
    trailing.git("add", ".")
    trailing.git("commit", "-q", "-m", "two")
    assert [t.partition(":")[0] for t in trailers(trailing)] == ["net", "other"]


def test_a_rebase_keeps_one_trailer(trailing: Sandbox) -> None:
    trailing.git("commit", "-q", "-am", "two")
    [before] = trailers(trailing)
    trailing.git("switch", "-q", "-c", "side", "HEAD~1")
    trailing.write("code.py", "1\n")
    trailing.git("add", "code.py")
    trailing.git("commit", "-q", "-m", "code")
    trailing.git("rebase", "-q", "side", "main")
    assert trailers(trailing) == [before]


def test_comments_are_placed_above_those_of_git() -> None:
    text = "\n# Please enter\n# On branch main\n"
    once = with_comments(text, ["a: added"], "#")
    assert once == "\n# modelver: a: added\n# Please enter\n# On branch main\n"
    assert with_comments(once, ["a: added"], "#") == once
    assert with_comments("subject\n\nbody\n", ["a: added"], "#") == "subject\n\nbody\n\n# modelver: a: added\n"


def test_bytes_that_are_no_utf8_stay(trailing: Sandbox) -> None:
    (trailing.path.parent / "message").write_bytes(b"caf\xe9\n")
    trailing.git("-c", "i18n.commitEncoding=latin-1", "commit", "-q", "-F", "../message")
    assert message(trailing).startswith("café\n\nModel-Change: net: retrained")
