"""What a merge worked out for one file of a model is given for the others, as the driver proper would."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dvc_modelver.drivers import answered, merge
from tests.drivers.test_imports import HEAVY, modules_after
from tests.git.test_merge import CLASH, MODEL, fork
from tests.sandbox import Sandbox

SUFFIXES = (".dvc", ".modelver.json", ".modelver.tensors")


def arguments(box: Sandbox, suffix: str, folder: Path) -> list[str]:
    """Give what Git gives a merge driver."""
    folder.mkdir(exist_ok=True)
    files = []
    for side, rev in (("base", "main~1"), ("ours", "main"), ("theirs", "other")):
        file = folder / f"{side}{suffix}"
        file.write_text(box.git("show", f"{rev}:{MODEL}{suffix}"))
        files.append(str(file))
    return [*files, "7", MODEL + suffix]


@pytest.fixture
def asked(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """A repository in which Git command 77 has merged the pointer."""
    fork(sandbox)
    monkeypatch.chdir(sandbox.path)
    monkeypatch.setenv("MODELVER_GIT_PID", "77")
    argv = arguments(sandbox, ".dvc", sandbox.path.parent / "first")
    assert not answered.answer(argv)
    assert merge.main(argv) == 0
    return sandbox


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_answer_is_that_of_the_driver(asked: Sandbox, tmp_path: Path, suffix: str) -> None:
    given, made = (arguments(asked, suffix, tmp_path / name) for name in ("given", "made"))
    assert answered.answer(given)
    assert merge.main(made) == 0
    assert Path(given[1]).read_bytes() == Path(made[1]).read_bytes() != Path(made[2]).read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_only_the_same_question_is_answered(
    asked: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    argv = arguments(asked, suffix, tmp_path / "files")
    *files, length, path = argv
    assert not answered.answer([*files, length, f"other/{path}"])
    assert not answered.answer([files[0], files[2], files[1], length, path])
    assert not answered.answer([files[0], files[1], files[1], length, path])
    monkeypatch.setenv("MODELVER_GIT_PID", "78")
    assert not answered.answer(argv)
    monkeypatch.delenv("MODELVER_GIT_PID")
    assert not answered.answer(argv)
    monkeypatch.setenv("MODELVER_GIT_PID", "77")
    Path(files[2]).write_text("<<<<<<<\n")
    assert not answered.answer(argv)
    shutil.rmtree(asked.path / ".git/modelver/merges")
    assert not answered.answer(arguments(asked, suffix, tmp_path / "files"))


def test_a_pointer_with_more_of_its_own_goes_to_the_driver(asked: Sandbox, tmp_path: Path) -> None:
    argv = arguments(asked, ".dvc", tmp_path / "files")
    text = Path(argv[1]).read_text()
    for changed in (
        text + "desc: mine\n",
        text + "- md5: " + "0" * 32 + "\n",
        text.replace("size", "nfiles: 2\n  size"),
    ):
        Path(argv[1]).write_text(changed)
        assert not answered.answer(argv)
        assert Path(argv[1]).read_text() == changed


def test_a_conflict_has_no_answer(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork(sandbox, CLASH)
    monkeypatch.chdir(sandbox.path)
    monkeypatch.setenv("MODELVER_GIT_PID", "77")
    assert merge.main(arguments(sandbox, ".dvc", tmp_path / "files")) == 1
    outcome = next((sandbox.path / ".git/modelver/merges").glob("*/outcome"))
    assert json.loads(outcome.read_text())["command"] == "77"
    for suffix in SUFFIXES:
        assert not answered.answer(arguments(sandbox, suffix, tmp_path / "files"))


def test_it_needs_the_standard_library_only(asked: Sandbox, tmp_path: Path) -> None:
    code = "import sys; from dvc_modelver.drivers.answered import answer; assert answer(sys.argv[1:])"
    assert not modules_after(code, *arguments(asked, ".dvc", tmp_path / "files")) & HEAVY
