from __future__ import annotations

import io
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dvc_modelver.errors import BadModelError
from dvc_modelver.fingerprint import fingerprint
from dvc_modelver.fingerprint.digest import parameters_digest
from dvc_modelver.formats import open_reader
from dvc_modelver.formats.npy import NpyReader
from dvc_modelver.formats.npz import NpzReader
from tests.formats.contract import Arrays, ReaderContract, some_arrays, values_of

savez: Any = np.savez


class TestNpy(ReaderContract):
    suffix = ".npy"

    def arrays(self) -> Arrays:
        return {"arr_0": some_arrays()["a.weight"]}

    def write(self, path: Path, arrays: Arrays) -> None:
        [array] = arrays.values()
        np.save(path, array)


@pytest.mark.parametrize("name", sorted(some_arrays()))
def test_every_dtype_and_shape_is_read(tmp_path: Path, name: str) -> None:
    array = some_arrays()[name]
    np.save(tmp_path / "x.npy", array)
    with NpyReader(tmp_path / "x.npy") as reader:
        assert (reader.specs[0].shape, values_of(reader)) == (array.shape, {"arr_0": array.tobytes()})


@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">f8", ">i2", ">c8", ">c16", "|u1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_byte_order_and_fortran_order_do_not_change_the_values(tmp_path: Path, dtype: str, order: str) -> None:
    array = np.arange(24).reshape(4, 3, 2).astype(dtype)
    np.save(tmp_path / "x.npy", np.asarray(array, order="F" if order == "F" else "C"))
    expected = array.astype(np.dtype(dtype).newbyteorder("<")).tobytes()
    with NpyReader(tmp_path / "x.npy") as reader:
        for n_bytes in (1, 7, 16, 1 << 20):
            assert values_of(reader, n_bytes) == {"arr_0": expected}


def test_an_array_has_one_digest_in_npy_and_npz(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(tmp_path / "x.npy", array)
    savez(tmp_path / "x.npz", array)
    with NpyReader(tmp_path / "x.npy") as one, NpzReader(tmp_path / "x.npz") as other:
        assert parameters_digest(fingerprint(one)) == parameters_digest(fingerprint(other))


def npy(header: str, data: bytes = b"", version: int = 1, length: int | None = None) -> bytes:
    stored = header.encode()
    count = len(stored) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", count) + stored + data


def header(descr: str = "'<f4'", order: str = "False", shape: str = "(2,)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


@pytest.mark.parametrize("version", [1, 2, 3])
def test_what_the_hostile_files_are_made_from_is_read(version: int) -> None:
    with NpyReader(io.BytesIO(npy(header(), b"\0" * 8, version))) as reader:
        assert values_of(reader) == {"arr_0": b"\0" * 8}


HOSTILE = {
    "version 4": npy(header(), b"\0" * 8, 4),
    "a header of 4 GB": npy(header(), b"\0" * 8, 2, 2**32 - 1),
    "a header beyond the file": npy(header(), b"", 1, 5000),
    "objects": npy(header("'|O'"), b"\0" * 16),
    "strings": npy(header("'<U1'"), b"\0" * 8),
    "bfloat16 without its type": npy(header("'|V2'"), b"\0" * 4),
    "records": npy(header("[('a', '<f4')]"), b"\0" * 8),
    "half the values": npy(header(), b"\0" * 4),
    "a second array": npy(header(), b"\0" * 8) * 2,
    "a product of 2^66": npy(header(shape="(2**62, 16)")),
    "a product beyond": npy(header(shape="(4611686018427387904, 16)")),
    "a negative axis": npy(header(shape="(-2,)"), b"\0" * 8),
    "an axis of true": npy(header(shape="(True, 2)"), b"\0" * 8),
    "4 EB in Fortran order": npy(header(order="True", shape="(1000000000, 1000000000)")),
    "code": npy("__import__('os').system('touch owned')", b"\0" * 8),
    "deep nesting": npy("(" * 9000, b"\0" * 8),
    "no UTF-8": b"\x93NUMPY\1\0\2\0\xff\xfe",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_header_is_one_line(data: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(BadModelError) as caught:
        open_reader(io.BytesIO(data), "x.npy")
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert str(caught.value).startswith("x.npy: ")
    assert str(caught.value).isprintable()
    assert caught.value.hint
