from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats import open_reader
from dvc_modelver.formats.npz import NpzReader
from tests.formats.contract import Arrays, ReaderContract, values_of

savez: Any = np.savez
savez_compressed: Any = np.savez_compressed


class TestNpz(ReaderContract):
    has_extents = False
    suffix = ".npz"

    def write(self, path: Path, arrays: Arrays) -> None:
        savez(path, **arrays)


class TestCompressedNpz(ReaderContract):
    has_extents = False
    suffix = ".npz"

    def write(self, path: Path, arrays: Arrays) -> None:
        savez_compressed(path, **arrays)


def test_fortran_order_and_big_endian_give_the_same_bytes(tmp_path: Path) -> None:
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    savez(tmp_path / "x.npz", c=x, f=np.asfortranarray(x), big=x.astype(">f4"), cut=x[::2, 1::2])
    with NpzReader(tmp_path / "x.npz") as reader:
        found = values_of(reader)
    assert found["c"] == found["f"] == found["big"] == x.tobytes()
    assert found["cut"] == np.ascontiguousarray(x[::2, 1::2]).tobytes()


def npz_with(tmp_path: Path, members: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> Path:
    path = tmp_path / "bad.npz"
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(118 - 10, b" ") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"


@pytest.mark.parametrize(
    "member",
    [
        b"",
        b"\x93NUMPY",
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }", b"\0" * 8),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", b"\0" * 8),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", b"\0" * 8),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 16), }"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }", b"\0" * 8),
        npy("{'descr': '<U4', 'fortran_order': False, 'shape': (2,), }", b"\0" * 32),
        npy("{'descr': [('a','<f4')], 'fortran_order': False, 'shape': (2,), }", b"\0" * 8),
        npy("__import__('os').system('touch owned')", b"\0" * 8),
        npy("{'descr': '<f4'}", b"\0" * 8),
        npy(GOOD, b"\0" * 9),
    ],
)
def test_a_hostile_member_is_one_line(tmp_path: Path, member: bytes) -> None:
    path = npz_with(tmp_path, {"w.npy": member})
    with pytest.raises(BadModelError) as caught, NpzReader(path) as reader:
        values_of(reader)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_object_arrays_are_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "o.npz", o=np.array([{"a": 1}], dtype=object))
    with pytest.raises(BadModelError):
        open_reader(tmp_path / "o.npz")


def test_a_zip_bomb_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = npz_with(tmp_path, {"w.npy": npy(GOOD, b"\0" * 200_000_000)}, zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    with pytest.raises(BadModelError), NpzReader(path) as reader:
        values_of(reader)
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


def test_any_cut_of_the_directory_is_refused() -> None:
    stream = io.BytesIO()
    savez(stream, w=np.ones(3))
    data = bytearray(stream.getvalue())
    for i in range(len(data) - 60, len(data)):
        broken = data.copy()
        broken[i] ^= 0xFF
        try:
            reader = open_reader(io.BytesIO(bytes(broken)), "x.npz")
            if reader is not None:
                values_of(reader)
        except BadModelError:
            continue


def test_what_expands_beyond_its_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = npz_with(
        tmp_path, {"w.npy": npy(GOOD.replace("(2,)", "(80_000_000,)"), bytes(320_000_000))}, zipfile.ZIP_DEFLATED
    )
    with pytest.raises(BadModelError, match="at most 100 times as many"):
        NpzReader(path)
