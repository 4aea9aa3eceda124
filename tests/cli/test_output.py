"""-o: what is a device, a pipe or a link stays one."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from dvc_modelver.cli.output import emit
from dvc_modelver.errors import UsageError
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
    assert is_special(Path("/dev/full")) and is_special(Path("/dev/fd/1"))
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


def test_a_stream_of_the_shells_is_gone_on_with(sandbox: Sandbox) -> None:
    sandbox.train("net.safetensors", 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    sandbox.write("report.md", "before\n")
    sandbox.run(
        "sh", "-ec", "{ modelver card net -o /dev/stdout; modelver log net -o /dev/fd/1; echo after; } >>report.md"
    )
    card, log = sandbox.modelver("card", "net"), sandbox.modelver("log", "net")
    assert (sandbox.path / "report.md").read_text() == f"before\n{card}{log}after\n"
    assert sandbox.run("sh", "-ec", "modelver card net -o /dev/stdout | cat").stdout == card
    sandbox.run("sh", "-ec", "{ echo first; modelver list -o /dev/stdout; } >list.txt")
    assert (sandbox.path / "list.txt").read_text().startswith("first\n")
    assert "net" in (sandbox.path / "list.txt").read_text()


def test_a_result_replaces_nothing_that_dvc_keeps(sandbox: Sandbox) -> None:
    sandbox.train("models/net.safetensors", 1)
    sandbox.write("data/train.csv", "1,2\n")
    sandbox.dvc("add", "data")
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    sandbox.train("models/net.safetensors", 2)  # in no cache yet
    (sandbox.path / "link").symlink_to("models/net.safetensors")
    kept = {"models/net.safetensors": "tracked by DVC", "models/net.safetensors.dvc": "a pointer of DVC",
            "models/net.safetensors.modelver.json": "metadata of models/net.safetensors",
            "models/net.safetensors.modelver.tensors": "the tensor table of models/net.safetensors",
            "data/train.csv": "in data, which DVC tracks", "link": "tracked by DVC"}  # fmt: skip
    before = {path: (sandbox.path / path).read_bytes() for path in kept}
    for path, kind in kept.items():
        with pytest.raises(UsageError, match=f"{path}: {kind}, which a result would replace") as refused:
            emit("text\n", sandbox.path / path)
        assert refused.value.hint
    assert sandbox.exit_code("show", "net", "-o", "models/net.safetensors") == 2
    out = sandbox.modelver("export", "net@1", "models", "--to", "huggingface", "--force", ok=False)
    assert "models/net.safetensors: tracked by DVC" in out
    assert {path: (sandbox.path / path).read_bytes() for path in kept} == before
    (sandbox.path / "models/net.safetensors").unlink()
    with pytest.raises(UsageError, match="tracked by DVC"):
        emit("text\n", sandbox.path / "models/net.safetensors")  # weights that were not fetched belong there
    (sandbox.path / "notes.md").write_text("old")
    sandbox.modelver("show", "net", "-o", "notes.md")
    assert "net" in (sandbox.path / "notes.md").read_text()
