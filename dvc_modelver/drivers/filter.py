"""Git's long-running filter for model files: weights go to the cache, a pointer to Git.

Source: gitattributes(5), "Long Running Filter Process"; gitprotocol-common(5), "pkt-line".
"""

from __future__ import annotations

import os
import posixpath
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from dvc_modelver.drivers.say import say, say_error
from dvc_modelver.errors import ModelverError, UsageError, word
from dvc_modelver.progress import ProgressLine
from dvc_modelver.repository import Repository, is_utf8
from dvc_modelver.store.gate import (
    MAX_GATE_BYTES,
    MAX_TEXT_BYTES,
    GatePointer,
    find_gate,
    is_plain_text,
    is_raw_weights,
)
from dvc_modelver.worktree.handover import note_gate
from dvc_modelver.worktree.state import stamp_of

MAX_PACKET = 65516
FLUSH = b"0000"
PIPE_BYTES = 1 << 20


class Packets:
    """Reads and writes pkt-lines."""

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        self._source, self._sink = source, sink

    def read(self) -> bytes | None:
        """Give the next packet; None for a flush packet.

        Raises:
            EOFError: Git is done.
        """
        head = self._source.read(4)
        if len(head) < 4:
            raise EOFError
        size = int(head, 16)
        return None if size == 0 else self._source.read(size - 4)

    def read_all(self) -> Iterator[bytes]:
        """Give packets up to the next flush."""
        while (packet := self.read()) is not None:
            yield packet

    def read_fields(self) -> dict[str, str]:
        """Give ``key=value`` packets up to the next flush."""
        lines = [p.rstrip(b"\n").decode("utf-8", "surrogateescape") for p in self.read_all()]
        return dict(line.partition("=")[::2] for line in lines)

    def write_lines(self, *lines: str) -> None:
        """Write text packets and a flush."""
        for line in lines:
            self._write(line.encode() + b"\n")
        self.flush()

    def write_content(self, pieces: Iterator[bytes]) -> None:
        """Write content packets and a flush."""
        for piece in pieces:
            for i in range(0, len(piece), MAX_PACKET):
                self._write(piece[i : i + MAX_PACKET])
        self.flush()

    def flush(self) -> None:
        """Write a flush packet and hand everything to Git."""
        self._sink.write(FLUSH)
        self._sink.flush()

    def _write(self, data: bytes) -> None:
        self._sink.write(b"%04x" % (len(data) + 4) + data)


def main(_argv: list[str]) -> int:
    """Serve Git until it closes the pipe."""
    _widen(sys.stdin.fileno())
    packets = Packets(sys.stdin.buffer, sys.stdout.buffer)
    try:
        list(packets.read_all())
        packets.write_lines("git-filter-server", "version=2")
        list(packets.read_all())
        packets.write_lines("capability=clean", "capability=smudge")
        repo: Repository | None = None
        told: set[str] = set()
        while True:
            fields = packets.read_fields()
            repo = repo or Repository.open()
            _serve(repo, packets, fields)
            if fields.get("command") == "clean":
                _name_folder(repo, fields.get("pathname", ""), told)
    except EOFError:
        return 0
    except KeyboardInterrupt:
        return 130


def _widen(pipe: int) -> None:
    """Let Git write more at a time, where the system knows how (Linux): fewer switches between the two."""
    import fcntl

    with suppress(OSError):
        fcntl.fcntl(pipe, getattr(fcntl, "F_SETPIPE_SZ", 1031), PIPE_BYTES)


def _serve(repo: Repository, packets: Packets, fields: dict[str, str]) -> None:
    path = fields.get("pathname", "")
    work = clean if fields.get("command") == "clean" else smudge
    pieces = packets.read_all()
    try:
        result = _spooled(pieces) if os.environ.get("MODELVER_SKIP") == "1" else work(repo, path, pieces)
    except ModelverError as err:
        for _ in pieces:
            pass
        say_error(err, path)
        packets.write_lines("status=error")
        return
    packets.write_lines("status=success")
    packets.write_content(result)
    packets.flush()


def clean(repo: Repository, path: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Put the content into the cache and give the pointer; pass on small texts and files that Git has already.

    Raises:
        EnvironmentFailed: The disk is full.
        UsageError: The file was written while it was read.
    """
    if not is_utf8(path):
        raise UsageError("its name is not UTF-8, and a DVC pointer cannot hold it", hint="rename it, then git add")
    file = repo.top / path
    start, pieces = _peek(pieces, MAX_TEXT_BYTES + 1)
    if path.startswith(("/", "../")) or is_plain_text(start, len(start)) or _is_raw_in_git(repo, path):
        return _spooled(pieces)
    before = stamp_of(file)
    total = file.stat().st_size if file.is_file() else 0
    with ProgressLine(f"storing {path}", total) as progress:
        hashes = repo.cache(path).store_stream(pieces, progress=progress)
    if stamp_of(file) != before:
        raise UsageError(
            "still being written: its size or time moved while it was read",
            hint=f"git add {word(path)} when it is done",
        )
    gate = GatePointer(hashes.md5, hashes.sha256, hashes.size)
    note_gate(repo, path, gate, before)
    return iter([gate.render()])


def _name_folder(repo: Repository, path: str, told: set[str]) -> None:
    """Say once that the files of a folder could be one model; not where one of them is a model of its own already."""
    top = posixpath.dirname(path)
    if not top or top in told or os.environ.get("MODELVER_SKIP") == "1" or (repo.top / f"{path}.dvc").exists():
        return
    told.add(top)
    if repo.is_model_folder(top):
        say(f"{top}: looks like one model in several files; modelver add {word(top)} makes it one")


def _is_raw_in_git(repo: Repository, path: str) -> bool:
    """Whether HEAD has weights themselves at `path`: they stay in Git until they are migrated."""
    oid = repo.objects.find_blob(repo.head, path) if repo.head else None
    if oid is None:
        return False
    return is_raw_weights(repo.objects.blob_size(oid), partial(repo.objects.read_blob, oid))


def smudge(repo: Repository, path: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Give the weights for a pointer, when the cache has them; anything else as it is."""
    start, pieces = _peek(pieces, MAX_GATE_BYTES + 1)
    gate = find_gate(start)
    if gate is None:
        return _spooled(pieces)
    cache = repo.cache(path)
    if not cache.has(gate.md5):
        say(f"{path}: object {gate.md5[:8]} is not in the cache; its pointer is left in its place")
        return iter([start])
    return _iter_file(cache.path_of(gate.md5))


def _peek(pieces: Iterator[bytes], size: int) -> tuple[bytes, Iterator[bytes]]:
    start = b""
    for piece in pieces:
        start += piece
        if len(start) >= size:
            break

    def again() -> Iterator[bytes]:
        yield start
        yield from pieces

    return start, again()


def _spooled(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Read everything before the answer starts, as the protocol asks; large contents through a file."""
    with tempfile.SpooledTemporaryFile(max_size=8 << 20) as spool:
        for piece in pieces:
            spool.write(piece)
        spool.seek(0)
        while piece := spool.read(1 << 20):
            yield piece


def _iter_file(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            yield piece


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
