"""Git is asked about the index once, until the index is written."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from dvc_modelver.errors import UsageError
from dvc_modelver.repository import Repository
from tests.sandbox import Sandbox


@pytest.fixture
def plain(tmp_path: Path) -> Sandbox:
    box = Sandbox(tmp_path)
    box.git("init", "-q")
    return box


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The subcommands that were run."""
    found: list[str] = []
    run = subprocess.run

    def noted(argv: list[str], **kwargs: Any) -> Any:
        found.append(next(word for word in argv[1:] if not word.startswith("-") and "=" not in word))
        return run(argv, **kwargs)

    monkeypatch.setattr("dvc_modelver.git.porcelain.subprocess.run", noted)
    return found


def test_questions_are_asked_again_when_the_index_moved(plain: Sandbox, runs: list[str]) -> None:
    git = Repository.open(plain.path).git
    plain.write("a.txt", "1\n")
    plain.git("add", "a.txt")
    plain.git("commit", "-q", "-m", "a")
    runs.clear()
    for _ in range(2):
        assert git.staged_changes() == []
        assert "a.txt" in git.index_entries()
    assert runs == ["diff-index", "ls-files"]
    for text in ("2\n", "3\n"):
        runs.clear()
        git.stage_blobs({"a.txt": text.encode()})
        assert [change.path for change in git.staged_changes()] == ["a.txt"]
        oid = git.index_entries()["a.txt"][1]
        assert runs == ["hash-object", "update-index", "diff-index", "ls-files"]
        assert plain.git("cat-file", "blob", oid) == text


def test_another_index_is_another_question(plain: Sandbox, runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    git = Repository.open(plain.path).git
    plain.write("a.txt", "1\n")
    plain.git("add", "a.txt")
    assert "a.txt" in git.index_entries()
    plain.git("read-tree", "--empty", GIT_INDEX_FILE=".git/other-index")
    monkeypatch.setenv("GIT_INDEX_FILE", ".git/other-index")
    assert git.index_entries() == {}
    monkeypatch.delenv("GIT_INDEX_FILE")
    assert "a.txt" in git.index_entries()


def test_before_the_first_commit_all_is_new(plain: Sandbox) -> None:
    git = Repository.open(plain.path).git
    plain.write("a.txt", "1\n")
    plain.git("add", "a.txt")
    assert {("a.txt", "A")} <= {(change.path, change.status) for change in git.staged_changes()}
    (plain.path / ".git/index").write_bytes(b"DIRC damaged")
    with pytest.raises(UsageError):
        git.staged_changes()
