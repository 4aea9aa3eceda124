from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats import open_reader
from dvc_modelver.formats.safetensors import SafetensorsReader
from dvc_modelver.tensors import DTYPE_BITS, is_quantised
from tests.formats.contract import Arrays, ReaderContract


class TestSafetensors(ReaderContract):
    suffix = ".safetensors"

    def write(self, path: Path, arrays: Arrays) -> None:
        save_file(arrays, path)


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, stop: int, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "data",
    [
        raw({}, length=2**63),
        raw({}, length=2**40),
        raw({"a": entry(0, 8)}, b"\0" * 7),
        raw({"a": entry(0, 8)}, b"\0" * 9),
        raw({"a": entry(0, 8), "b": entry(4, 12)}, b"\0" * 12),
        raw({"a": entry(0, 8), "b": entry(9, 17)}, b"\0" * 17),
        raw({"a": entry(8, 0)}, b"\0" * 8),
        raw({"a": entry(-8, 0)}, b"\0" * 8),
        raw({"a": entry(0, 8, (2**62, 2**62))}, b"\0" * 8),
        raw({"a": entry(0, 8, (-2,))}, b"\0" * 8),
        raw({"a": entry(0, 8, (2.0,))}, b"\0" * 8),
        raw({"a": entry(0, 8, (True, 2))}, b"\0" * 8),
        raw({"a": entry(0, 8, "2")}, b"\0" * 8),
        raw({"a": entry(0, 8, dtype="F33")}, b"\0" * 8),
        raw({"a": entry(0, 8, dtype=["F32"])}, b"\0" * 8),
        raw({"a": 3}),
        raw([1, 2]),
        raw(b"[" * 100_000),
        raw(b'{"a": ' * 100_000),
        raw(
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            b"\0" * 8,
        ),
        raw(b"\xff\xfe{}"),
        raw({"__metadata__": {"a": 1}}),
        raw(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,' + b"9" * 5000 + b"]}}"),
    ],
)
def test_a_hostile_file_is_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(BadModelError) as caught:
        SafetensorsReader(path)
    assert str(caught.value).startswith(str(path)) or "bad.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_name_with_control_characters_is_escaped_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(raw({"a\x1b[2J\n": entry(0, 4)}, b"\0" * 4))
    with pytest.raises(BadModelError) as caught:
        SafetensorsReader(path)
    assert str(caught.value).isprintable()


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    import io

    try:
        reader = open_reader(io.BytesIO(data), "x.safetensors")
    except BadModelError:
        return
    assert reader is None or reader.specs is not None


def test_every_dtype_is_listed(tmp_path: Path) -> None:
    header, position = {}, 0
    dtypes = [dtype for dtype in DTYPE_BITS if not is_quantised(dtype)]
    for dtype in dtypes:
        n_bytes = 16 * DTYPE_BITS[dtype] // 8
        header[dtype] = entry(position, position + n_bytes, (16,), dtype)
        position += n_bytes
    path = tmp_path / "all.safetensors"
    path.write_bytes(raw(header, bytes(position)))
    with SafetensorsReader(path) as reader:
        assert {s.dtype for s in reader.specs} == set(dtypes)


def test_the_framework_is_what_the_file_says(tmp_path: Path) -> None:
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "a.safetensors", metadata={"format": "pt"})
    with SafetensorsReader(tmp_path / "a.safetensors") as reader:
        assert reader.framework == "pytorch"
