"""Temporary files with fixed names: one writer at a time, and a failed one locks nobody out."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dvc_modelver.errors import EnvironmentFailed
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
