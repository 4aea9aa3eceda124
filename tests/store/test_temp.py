"""Temporary files with fixed names: one writer at a time, and a failed one locks nobody out."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from dvc_modelver.errors import EnvironmentFailed
from dvc_modelver.store.temp import TempFolder
from dvc_modelver.worktree.state import write_file


def test_a_write_that_failed_can_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "state"
    file.write_bytes(b"old")

    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("ftruncate", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(EnvironmentFailed, match="No space left"):
                write_file(file, b"new")
        assert file.read_bytes() == b"old"
        write_file(file, b"old")  # it does not wait for itself
    assert os.listdir(tmp_path) == ["state"]


def test_what_is_handed_over_is_taken_once_and_lives_as_long_as_the_process(tmp_path: Path) -> None:
    folder = TempFolder(tmp_path)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as command:
        for name in ("one", "two"):
            with folder.new_file() as made:
                made.write_text(name)
                folder.hand_over(made, name, command.pid)
        folder.sweep()
        assert folder.take_over("one", tmp_path / "taken")
        assert (tmp_path / "taken").read_text() == "one"
        assert not folder.take_over("one", tmp_path / "again")
    folder.sweep()
    assert not folder.take_over("two", tmp_path / "late")
    assert os.listdir(tmp_path) == ["taken"]
