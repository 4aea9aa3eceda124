"""Hooks skipped, files damaged and put back, pages saved as weights: each is named, with a hint that works."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from dvc_modelver.errors import BadMetadataError
from dvc_modelver.settings import parse_settings
from tests.sandbox import Sandbox, prepared

MODEL = "models/net.safetensors"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1234\n"


def hint(out: str) -> str:
    """Give the first command that a hint names."""
    return out.split("hint: ")[1].split("\n", maxsplit=1)[0]


def follow(box: Sandbox, command: str) -> None:
    """Run a hint as a person would."""
    program = "import sys; from dvc_modelver.cli import main; sys.exit(main())"
    for part in command.split(" && "):
        if part.startswith("modelver "):
            box.run("sh", "-c", f'python -P -c "{program}" {part.removeprefix("modelver ")}')
        else:
            box.run("sh", "-c", part)


def test_a_file_that_is_being_written_is_neither_described_nor_committed(sandbox: Sandbox) -> None:
    whole = sandbox.train(MODEL, 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    model = sandbox.path / MODEL
    content = model.read_bytes()
    model.unlink()
    model.write_bytes(content[:1000])
    ahead = time.time() + 3600  # as if it were written at each of the commands
    os.utime(model, (ahead, ahead))
    stashed = sandbox.run("git", "stash")
    assert "No local changes" in stashed.stdout
    assert stashed.stderr.count("still being written") == 1
    assert "opaque" not in stashed.stderr
    assert sandbox.metadata_md5(MODEL) == whole
    assert "still being written" in sandbox.modelver("status")
    assert f"{MODEL}: still being written: ended early" in sandbox.git("commit", "-am", "two", ok=False)
    assert sandbox.git("rev-list", "--count", "HEAD").strip() == "3"
    sandbox.git("stash")  # now with the metadata that the commit marked
    model.write_bytes(content)
    sandbox.git("stash", "pop")
    assert sandbox.git("status", "--porcelain") == ""
    model.write_bytes(content[:1000])
    os.utime(model, (1e9, 1e9))  # whoever wrote it is gone
    sandbox.git("status")
    assert sandbox.metadata_md5(MODEL) == sandbox.md5(MODEL) != whole


@prepared
def half(sandbox: Sandbox) -> Sandbox:
    """A committed model that was truncated, added so, and put back as it was."""
    sandbox.train(MODEL, 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    good = sandbox.path / MODEL
    shutil.copy(good, sandbox.path.parent / "good")
    good.unlink()
    good.write_bytes((sandbox.path.parent / "good").read_bytes()[:1000])
    sandbox.modelver("add", MODEL)
    assert not (sandbox.path / f"{MODEL}.modelver.tensors").exists()
    good.unlink()
    shutil.copy(sandbox.path.parent / "good", good)
    return sandbox


@pytest.mark.parametrize("flags", [["-a"], []])
def test_a_file_put_back_keeps_its_table(half: Sandbox, flags: list[str]) -> None:
    before = half.git("rev-parse", "HEAD")
    if not flags:
        half.git("add", ".")
    out = half.git("commit", *flags, "-m", "two", ok=False)
    if half.git("rev-parse", "HEAD") == before and "nothing to commit" not in out.split("modelver")[0]:
        assert "nothing to commit: the models are those of HEAD again" in out
        follow(half, hint(out))
    assert half.git("rev-parse", "HEAD") == before
    assert half.git("status", "--porcelain") == ""
    assert f"{MODEL}.modelver.tensors" in half.git("ls-files")
    assert "ok" in half.modelver("check")
    assert "0 problems" in half.modelver("fsck")


def test_the_table_of_a_model_put_back_is_in_the_same_commit_as_other_changes(half: Sandbox) -> None:
    half.write("notes.txt", "x")
    half.git("add", "notes.txt")
    half.git("commit", "-q", "-am", "two")
    assert half.git("show", "--format=", "--name-only", "HEAD").split() == ["notes.txt"]
    assert half.git("status", "--porcelain") == ""


@pytest.mark.parametrize("suffix", [".modelver.tensors", ".dvc", ".modelver.json"])
def test_check_names_a_model_that_lost_one_of_its_files(sandbox: Sandbox, suffix: str) -> None:
    sandbox.train(MODEL, 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    assert "ok" in sandbox.modelver("check")
    sandbox.git("rm", "-q", "--cached", f"{MODEL}{suffix}")
    sandbox.git("commit", "-q", "-m", "lost", MODELVER_SKIP="1")
    assert sandbox.exit_code("check") == 1
    out = sandbox.modelver("check", ok=False)
    assert MODEL in out
    follow(sandbox, hint(out))
    assert "ok" in sandbox.modelver("check")
    assert "0 problems" in sandbox.modelver("fsck")
    assert sandbox.git("status", "--porcelain") == ""


def test_removing_a_model_is_nothing_that_check_minds(sandbox: Sandbox) -> None:
    sandbox.train(MODEL, 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    sandbox.modelver("rm", MODEL)
    sandbox.git("commit", "-q", "-m", "gone")
    assert "ok" in sandbox.modelver("check")


def test_the_hint_after_a_skipped_hook_works(sandbox: Sandbox) -> None:
    md5 = sandbox.train(MODEL, 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one", MODELVER_SKIP="1")
    assert "modelver.gate/1" in sandbox.git("show", f"HEAD:{MODEL}")
    status = sandbox.modelver("status")
    assert "skipped" in status
    assert MODEL in status
    assert sandbox.exit_code("check") == 1
    follow(sandbox, hint(sandbox.modelver("check", ok=False)))
    assert "ok" in sandbox.modelver("check")
    assert "skipped" not in sandbox.modelver("status")
    assert sandbox.metadata_md5(MODEL) == md5
    assert MODEL not in sandbox.git("ls-files").split()
    assert sandbox.git("status", "--porcelain") == ""
    assert sandbox.git("rev-list", "--count", "HEAD").strip() == "3"


def test_the_hint_for_raw_weights_works(sandbox: Sandbox) -> None:
    (sandbox.path / ".modelver.toml").write_text("[limits]\nraw_max_bytes = 1000\n")
    sandbox.train(MODEL, 1)
    sandbox.git("add", ".", MODELVER_SKIP="1")
    sandbox.git("commit", "-q", "-m", "one", MODELVER_SKIP="1")
    assert "refused" in sandbox.modelver("status")
    assert "raw weights" in sandbox.modelver("check", ok=False)
    follow(sandbox, hint(sandbox.modelver("check", ok=False)))
    assert "ok" in sandbox.modelver("check")
    assert "refused" not in sandbox.modelver("status")
    assert MODEL not in sandbox.git("ls-files").split()


def test_a_gate_pointer_on_disk_is_never_taken_for_weights(sandbox: Sandbox) -> None:
    md5 = sandbox.train(MODEL, 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one", MODELVER_SKIP="1")
    (sandbox.path / MODEL).unlink()
    (sandbox.path / MODEL).write_text(sandbox.git("show", f"HEAD:{MODEL}"))
    out = sandbox.modelver("add", MODEL, ok=False)
    assert "gate pointer" in out
    assert md5[:8] in out


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (LFS, "a Git LFS pointer"),
        ("\n<!DOCTYPE html>\n<html>403</html>", "an HTML page"),
        ('<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML document"),
        ("", "an empty file"),
        ("404: Not Found", "a text of 14 B"),
    ],
)
def test_what_only_has_a_models_name_is_named_once_and_lets_weights_follow(
    sandbox: Sandbox, text: str, what: str
) -> None:
    sandbox.write(MODEL, text)
    sandbox.git("add", ".")
    out = sandbox.git("commit", "-m", "one", ok=False)
    assert out.count(f"{MODEL}: {what}") == 1
    assert sandbox.git("show", f"HEAD:{MODEL}") == text
    assert sandbox.git("status", "--porcelain") == ""
    md5 = sandbox.train(MODEL, 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "two")
    assert MODEL not in sandbox.git("ls-files").split()
    assert sandbox.metadata_md5(MODEL) == md5
    assert sandbox.cached(md5)
    assert "ok" in sandbox.modelver("check")
    assert sandbox.git("status", "--porcelain") == ""


def test_real_weights_after_a_text_are_taken_in_by_commit_a(sandbox: Sandbox) -> None:
    sandbox.write(MODEL, LFS)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    md5 = sandbox.train(MODEL, 1)
    sandbox.git("commit", "-q", "-am", "two")
    assert sandbox.metadata_md5(MODEL) == md5
    assert MODEL not in sandbox.git("ls-files").split()


def test_path_files_of_python_and_files_of_git_lfs_are_not_named(sandbox: Sandbox) -> None:
    sandbox.write("env/extra.pth", "/opt/lib\n")
    sandbox.write("lfs/.gitattributes", "*.pt filter=other\n")
    sandbox.git("config", "filter.other.clean", "cat")
    sandbox.write("lfs/net.pt", LFS)
    sandbox.git("add", ".")
    out = sandbox.run("git", "commit", "-m", "one")
    assert "not weights" not in out.stderr


@pytest.mark.parametrize(
    "name", ["net.safetensors", "net.pt", "net.onnx", "net.gguf", "net.keras", "net.h5", "net.npz"]
)
def test_add_show_and_diff_say_what_the_file_is(sandbox: Sandbox, name: str) -> None:
    sandbox.write(name, LFS)
    for verb in (["add", name], ["show", name], ["diff", name, name]):
        out = sandbox.modelver(*verb, ok=False)
        assert "a Git LFS pointer, expected weights" in out, verb
        assert "git lfs pull" in out, verb
    sandbox.write(name, "<html><body>Sign in</body></html>")
    assert "an HTML page, expected weights" in sandbox.modelver("show", name, ok=False)
    Path(sandbox.path / name).write_bytes(b"")
    assert "an empty file, expected weights" in sandbox.modelver("show", name, ok=False)


def test_settings_that_cannot_be_read_stop_a_commit_that_has_models(sandbox: Sandbox) -> None:
    settings = sandbox.path / ".modelver.toml"
    settings.write_text("[security\nrefuse = 1\n")
    sandbox.train(MODEL, 1)
    said = sandbox.git("add", ".", ok=False) + sandbox.git("commit", "-m", "one", ok=False)
    assert ".modelver.toml: not TOML" in said
    assert "hint: edit .modelver.toml" in said
    assert "modelver: nothing was committed\n" in said
    for text, problem in (
        ('[limits]\nfetch_max_bytes = "lots"\n', "limits.fetch_max_bytes is 'lots', expected a number of bytes"),
        ('[[merge.rule]]\nstrategie = "mean"\n', "merge.rule 1: strategy is missing, found strategie"),
    ):
        with pytest.raises(BadMetadataError, match=problem) as refused:
            parse_settings(text)
        assert refused.value.hint == "edit .modelver.toml"
    settings.write_text('[security]\nrefused = "never"\n[zebra]\nx = 1\n')
    sandbox.git("add", ".")
    said = sandbox.git("commit", "-m", "one", ok=False)
    assert "unknown setting security.refused does nothing\nmodelver: hint: did you mean security.refuse?" in said
    assert "unknown setting zebra.x does nothing\nmodelver: hint: edit .modelver.toml" in said
    assert sandbox.git("log", "-1", "--format=%s").strip() == "one"
