"""What the words of a Git command say."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dvc_modelver.git.process import find_command, is_amending, strategy_options


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("git merge -X theirs side", ["theirs"]),
        ("git merge -Xours -s ort side", ["ours"]),
        ("git merge -X patience theirs", ["patience"]),  # a branch of that name
        ("git rebase --strategy-option=theirs -X ours main", ["theirs", "ours"]),
        ("git cherry-pick --strategy-option theirs abc", ["theirs"]),
        ("git checkout -- -Xours", []),
        ("git merge -X", [""]),
    ],
)
def test_strategy_options(words: str, expected: list[str]) -> None:
    assert strategy_options(words.split()) == expected


def test_the_command_above_a_process_is_found() -> None:
    asks = f"import os, sys; sys.path[:] = {sys.path!r}; from dvc_modelver.git.process import is_amending, find_command as f; print(f(str(os.getpid())))"
    shell = ["git", "-c", f"alias.who=!{sys.executable} -c '{asks.replace(chr(39), chr(34))}'", "who"]
    done = subprocess.run(shell, capture_output=True, text=True, check=True, env=os.environ | {"LC_ALL": "C"})
    assert "'who'" in done.stdout
    assert find_command("1") is None
    assert find_command("not a number") is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("git commit --amend", True),
        ("git -c x=y commit -a --am --no-edit", True),
        ("git commit -am x", False),
        ("git commit --all", False),
        ("git commit -- --amend", False),
        ("git merge --amend", False),
    ],
)
def test_a_commit_that_amends_is_told(words: str, expected: bool) -> None:
    assert is_amending(words.split()) == expected
