"""``.git/modelver/state``: what this work tree last saw of each model.

A derived file: without it, K is what HEAD's metadata says. Its lines are read by `drivers.probe` too, with
nothing but ``str.split``.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dvc_modelver.errors import EnvironmentFailed
from dvc_modelver.store.folders import stamp_folder
from dvc_modelver.store.hashing import RACY_NS
from dvc_modelver.store.lock import wait_for
from dvc_modelver.store.temp import open_alone, permissions

HEADER = "modelver.state/1"
ABSENT = "-"
UNSETTLED = "?"
"""Stands for a stamp that cannot be trusted; it equals no stamp, so the file is looked at again."""


@dataclass(frozen=True)
class Row:
    """What was last seen of one model.

    Attributes:
        agreed: K, the md5 at which model, metadata and pointer last agreed; empty for never.
        md5: md5 of the model at `model_stamp`; empty when there was no file.
        model_stamp: Size, times and inode of the model file; likewise the other two.
        pointer_path: The ``.dvc`` or ``dvc.lock`` file.
    """

    path: str
    agreed: str
    md5: str
    model_stamp: str
    metadata_stamp: str
    pointer_stamp: str
    pointer_path: str


def stamp_of(path: Path, *, at_ns: int | None = None) -> str:
    """Give size, modification and change time (ns) and inode of a file; `ABSENT` where there is no regular one.

    Of a folder, what `stamp_folder` gives.

    Args:
        path: The file; a link is followed.
        at_ns: When the file was read: a file modified just before is `UNSETTLED`.
    """
    try:
        st = path.stat()
    except OSError:
        return ABSENT
    if stat.S_ISDIR(st.st_mode):
        return _stamp_of_folder(path, at_ns)
    if not stat.S_ISREG(st.st_mode):
        return ABSENT
    if at_ns is not None and at_ns - max(st.st_mtime_ns, st.st_ctime_ns) < RACY_NS:
        return UNSETTLED
    return f"{st.st_size}:{st.st_mtime_ns}:{st.st_ctime_ns}:{st.st_ino}"


def _stamp_of_folder(path: Path, at_ns: int | None) -> str:
    found = stamp_folder(path)
    _, modified, changed, _ = map(int, found.split(":"))
    return UNSETTLED if at_ns is not None and at_ns - max(modified, changed) < RACY_NS else found


@dataclass
class State:
    """The rows of one work tree, by model path."""

    rows: dict[str, Row] = field(default_factory=dict)
    known: bool = False


def read_state(folder: Path) -> State:
    """Read the state file; an absent or broken one is an empty state that is not `known`."""
    try:
        lines = (folder / "state").read_bytes().decode("utf-8", "surrogateescape").split("\n")
    except OSError:
        return State()
    if lines[0] != HEADER:
        return State()
    rows = {}
    for line in lines[1:]:
        fields = line.split("\t")
        if len(fields) != 7:
            continue
        agreed, md5, model, metadata, pointer, pointer_path, path = fields
        row = Row(_decoded(path), agreed, md5, model, metadata, pointer, _decoded(pointer_path))
        rows[row.path] = row
    return State(rows, known=True)


def write_state(folder: Path, state: State) -> None:
    """Replace the state file."""
    lines = [HEADER]
    for row in sorted(state.rows.values(), key=lambda r: r.path):
        stamps = (row.agreed, row.md5, row.model_stamp, row.metadata_stamp, row.pointer_stamp)
        lines.append("\t".join([*stamps, _encoded(row.pointer_path), _encoded(row.path)]))
    write_file(folder / "state", ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))


def _encoded(path: str) -> str:
    return path.replace("%", "%25").replace("\n", "%0A").replace("\t", "%09")


def _decoded(text: str) -> str:
    return text.replace("%09", "\t").replace("%0A", "\n").replace("%25", "%")


def write_file(path: Path, content: bytes) -> None:
    """Replace a file: a temporary one beside it, fsync, rename. Its permissions stay.

    Raises:
        EnvironmentFailed: The disk is full or the folder cannot be written; the old file is untouched.
    """
    temp = path.with_name(f".{path.name[:100]}.modelver-tmp")  # what a killed process left is the next one's
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = path.stat().st_mode & 0o777 if path.exists() else permissions(0o666)
        with os.fdopen(open_alone(temp), "wb") as file:
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                temp.chmod(mode)
                temp.replace(path)
            except OSError:
                temp.unlink(missing_ok=True)
                raise
    except OSError as err:
        raise EnvironmentFailed(f"{path}: cannot be written ({err.strerror})", hint="df -h; ls -ld the folder") from err


def is_special(path: Path) -> bool:
    """Whether a path is a device, pipe, socket or open stream: a file renamed over it would take its place for all."""
    return (path.exists() and not path.is_file() and not path.is_dir()) or find_stream(path) is not None


def find_stream(path: Path) -> int | None:
    """Give the file descriptor that ``/dev/stdout``, ``/dev/stderr`` or ``/dev/fd/N`` stands for; else None."""
    named = re.fullmatch(r"/dev/(?:(stdout)|(stderr)|fd/(\d{1,4}))", str(path))
    return None if named is None else int(named[3]) if named[3] else named.lastindex


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold this work tree's lock; gives False when `wait` is off and another process has it.

    One that waits says so on standard error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        if wait:
            wait_for(file, fcntl.LOCK_EX, _announce)
        else:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
        yield True


def _announce() -> None:
    sys.stderr.write("modelver: waiting for another modelver or git command in this work tree\n")
    sys.stderr.flush()
