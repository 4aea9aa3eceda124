"""-o: what is a device, a pipe or a link stays one."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

from dvc_modelver.cli.output import emit
from dvc_modelver.worktree.state import is_special
from tests.sandbox import Sandbox


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    emit("text\n", pipe)
    reader.join(30)
    assert got == [b"text\n"]
    assert stat.S_ISFIFO(pipe.lstat().st_mode)


def test_what_is_no_file_is_known(tmp_path: Path) -> None:
    assert is_special(Path("/dev/full"))
    assert not is_special(tmp_path) and not is_special(tmp_path / "new") and not is_special(Path(__file__))


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    emit("new\n", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new\n"


def test_weights_are_not_written_over_a_pipe(sandbox: Sandbox) -> None:
    sandbox.train("net.safetensors", 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    os.mkfifo(sandbox.path / "pipe")
    for command in (["load", "net@1", "-o", "pipe", "--force"], ["merge-file", *["net.safetensors"] * 3, "-o", "pipe"]):
        assert "pipe: a device or a pipe, expected a file" in sandbox.modelver(*command, ok=False)
    assert stat.S_ISFIFO((sandbox.path / "pipe").lstat().st_mode)
    assert sandbox.modelver("card", "net", "-o", "/dev/stdout").startswith("---\n")
