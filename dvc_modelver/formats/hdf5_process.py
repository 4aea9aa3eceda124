"""Lists an HDF5 file in a forked process, which may crash, hang or ask for too much memory without harm to this one.

The HDF5 library was written for files of friends: a few flipped bits can end the process that opens them. The child
reads through this process, so that any file object will do, and answers in JSON, which is checked like a file.
"""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, BinaryIO

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import Extent, count_elements, ended_early, fill
from dvc_modelver.formats.hdf5_objects import Listing, Stored, bad, list_objects
from dvc_modelver.tensors import DTYPE_BITS

MAX_ANSWER_BYTES = 64 << 20
MAX_LISTING_BYTES = 64 << 20
MAX_MEMORY_BYTES = 256 << 20
MAX_CPU_S = 2
MAX_LARGE_CPU_S = 60
"""Processor time of a small file, and of a large one, whose objects may be many: a second more for each MiB."""
MAX_WAIT_S = 60.0

_REQUEST = struct.Struct("<cQQ")
_PAGE_BYTES = 4096


class Window:
    """The part of a file that holds HDF5.

    Attributes:
        name: How errors call the file.
        length: Its bytes.
    """

    def __init__(self, file: BinaryIO, start: int, length: int, name: str) -> None:
        self.length, self.name = length, name
        self._file, self._start = file, start

    def find_extent(self, offset: int, n_bytes: int, file: BinaryIO) -> Extent | None:
        """Give the place of some bytes in a file; None where the window is not one of that file."""
        begin = self._start + offset
        return Extent(file, begin, begin + n_bytes) if file is self._file else None

    def read_at(self, offset: int, view: memoryview) -> None:
        """Fill a buffer from an offset of the window.

        Raises:
            BadModelError: The window, or the file, ends first.
        """
        if offset < 0 or offset + len(view) > self.length:
            raise ended_early(self.name, max(0, self.length - offset), len(view))
        self._file.seek(self._start + offset)
        n_read = fill(self._file, view)
        if n_read < len(view):
            raise ended_early(self.name, n_read, len(view))


def list_contained(window: Window) -> Listing:
    """List a file as `hdf5_objects.list_objects` does, in a process of its own.

    Raises:
        BadModelError: What the child found wrong, or that it crashed, or needed too much time or memory.
    """
    import h5py  # type: ignore[import-untyped]  # noqa: F401 - once here, not once in every child
    import numpy as np  # noqa: F401

    ours, theirs = socket.socketpair()
    with warnings.catch_warnings():
        # The child runs h5py alone, and a lock that another thread holds ends with the time limit.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        _run_child(theirs, ours, window)
    theirs.close()
    try:
        with ours:
            answer = _serve(ours, window)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return _parse_answer(answer, window.name)


def _serve(ours: socket.socket, window: Window) -> bytes:
    ours.settimeout(MAX_WAIT_S)
    n_left = MAX_LISTING_BYTES
    while True:
        kind, offset, length = _REQUEST.unpack(_receive(ours, _REQUEST.size, window.name))
        if kind == b"A" and length <= MAX_ANSWER_BYTES:
            return _receive(ours, length, window.name)
        n_left -= length
        if kind != b"R" or n_left < 0:
            raise bad(window.name, f"needs more than {MAX_LISTING_BYTES} bytes read to be listed, expected fewer")
        buffer = bytearray(length)
        window.read_at(offset, memoryview(buffer))
        with _reports_crash(window.name):
            ours.sendall(buffer)


def _receive(end: socket.socket, n_bytes: int, name: str) -> bytes:
    buffer = bytearray(n_bytes)
    view = memoryview(buffer)
    with _reports_crash(name):
        while view:
            n = end.recv_into(view)
            if not n:
                raise EOFError
            view = view[n:]
    return bytes(buffer)


@contextmanager
def _reports_crash(name: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError, TimeoutError) as err:
        raise bad(name, "made the HDF5 library crash or run out of time, expected an intact file") from err


def _parse_answer(answer: bytes, name: str) -> Listing:
    try:
        found = json.loads(answer)
        if "error" in found:
            raise BadModelError(str(found["error"]), hint=str(found["hint"]))
        sets = {"groups": set(found["groups"]), "layers": set(found["layers"])}
        datasets = {str(path): _parse_stored(one) for path, one in found["datasets"].items()}
        return Listing(**{**found, **sets, "datasets": datasets})
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as err:
        raise bad(name, "made the HDF5 library answer nonsense, expected an intact file") from err


def _parse_stored(one: dict[str, Any]) -> Stored:
    dtype, item_bytes = one["dtype"], int(one["item_bytes"])
    if dtype is not None and DTYPE_BITS[dtype] != 8 * item_bytes:
        raise ValueError(dtype)
    lists: dict[str, Any] = {
        "shape": tuple(map(int, one["shape"])),
        "chunk": tuple(map(int, one["chunk"])),
        "filters": tuple((int(code), int(setting)) for code, setting in one["filters"]),
        "chunks": tuple(tuple(map(int, chunk)) for chunk in one["chunks"]),
    }
    stored = Stored(**{**one, **lists, "item_bytes": item_bytes, "n_stored_bytes": int(one["n_stored_bytes"])})
    numel = count_elements(stored.shape)
    if numel is None or item_bytes < 0 or len(stored.compact) not in (0, 2 * stored.nbytes):
        raise ValueError(stored.shape)
    return stored


def _run_child(theirs: socket.socket, ours: socket.socket, window: Window) -> None:
    # Nothing of the parent may run here, not even its exit handlers.
    status = 1
    try:
        ours.close()
        _limit_child(min(MAX_LARGE_CPU_S, MAX_CPU_S + window.length // (1 << 20)))
        try:
            listing = list_objects(_Remote(theirs, window.length), window.name)
            answer: dict[str, Any] = {
                **vars(listing),
                "datasets": {path: asdict(one) for path, one in listing.datasets.items()},
                "groups": sorted(listing.groups),
                "layers": sorted(listing.layers),
            }
        except BadModelError as err:
            answer = {"error": str(err), "hint": err.hint}
        data = json.dumps(answer).encode()
        theirs.sendall(_REQUEST.pack(b"A", 0, len(data)) + data)
        status = 0
    finally:
        os._exit(status)


def _limit_child(n_cpu_s: int) -> None:
    import faulthandler
    import resource

    faulthandler.disable()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    # The C library complains on standard error before it aborts.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (n_cpu_s, n_cpu_s))
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            n_used = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = n_used + MAX_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))


class _Remote:
    """The file as the child sees it: pages that the parent reads, kept until the child ends."""

    def __init__(self, end: socket.socket, length: int) -> None:
        self._end, self._length = end, length
        self._position = 0
        self._pages: dict[int, bytes] = {}

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        # h5py takes a short read for a full one, so that what lies behind the end reads as zeros, as HDF5 has it.
        view = memoryview(buffer).cast("B")
        begin, end = self._position, self._position + len(view)
        for page in range(begin // _PAGE_BYTES, -(-end // _PAGE_BYTES)):
            data = self._page(page)
            start = page * _PAGE_BYTES
            piece = data[max(0, begin - start) : end - start]
            at = max(begin, start) - begin
            view[at : at + len(piece)] = piece
        self._position = end
        return len(view)

    def read(self, size: int = -1, /) -> bytes:
        buffer = bytearray(max(0, self._length - self._position) if size < 0 else size)
        self.readinto(buffer)
        return bytes(buffer)

    def _page(self, number: int) -> bytes:
        data = self._pages.get(number)
        if data is None:
            start = number * _PAGE_BYTES
            length = max(0, min(_PAGE_BYTES, self._length - start))
            data = b""
            if length:
                self._end.sendall(_REQUEST.pack(b"R", start, length))
                data = _receive(self._end, length, "")
            self._pages[number] = data = data.ljust(_PAGE_BYTES, b"\0")
        return data
