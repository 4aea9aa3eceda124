from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats import protobuf
from dvc_modelver.formats.protobuf import BYTES, FIXED32, FIXED64, VARINT, Walker, decode_varints
from tests.formats.contract import CountingFile


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*found, value))


def key(number: int, wire: int) -> bytes:
    return varint(number << 3 | wire)


def block(number: int, payload: bytes) -> bytes:
    return key(number, BYTES) + varint(len(payload)) + payload


def walker(data: bytes) -> Walker:
    return Walker(io.BytesIO(data), len(data), "m")


def test_every_wire_type_is_given_with_its_place() -> None:
    data = (
        key(1, VARINT)
        + varint(300)
        + key(2, FIXED32)
        + b"\1\0\0\0"
        + key(3, FIXED64)
        + b"\2"
        + bytes(7)
        + block(4, b"abc")
    )
    found = list(walker(data).fields(0, len(data)))
    assert [(f.number, f.wire, f.value) for f in found] == [(1, 0, 300), (2, 5, 1), (3, 1, 2), (4, 2, 3)]
    assert data[found[3].start : found[3].end] == b"abc"


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_numbers_survive_either_way(numbers: list[int]) -> None:
    data = b"".join(map(varint, numbers))
    values, n_used = decode_varints(data)
    assert values is not None
    assert (values.tolist(), n_used) == (numbers, len(data))
    position = 0
    for number in numbers:
        found, position = walker(data).varint(position, len(data))
        assert found == number


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=300), st.booleans(), st.sampled_from([3, 40]))
def test_a_repeated_field_reads_the_same_packed_and_not(numbers: list[int], packed: bool, number: int) -> None:
    if packed:
        middle = len(numbers) // 2
        data = block(number, b"".join(map(varint, numbers[:middle]))) + block(
            number, b"".join(map(varint, numbers[middle:]))
        )
    else:
        data = b"".join(key(number, VARINT) + varint(n) for n in numbers)
    data = block(1, b"x") + data + block(2, b"y")
    pieces = [bytes(piece) for piece in walker(data).iter_numbers(0, len(data), number, 0)]
    assert np.frombuffer(b"".join(pieces), "<i8").tolist() == numbers
    if not packed and numbers:
        runs = [f for f in walker(data).fields(0, len(data), {number}) if f.number == number]
        assert [run.value for run in runs] == [len(numbers)]


@pytest.mark.parametrize("width", [4, 8])
def test_fixed_numbers_read_the_same_packed_and_not(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf, "_PIECE", 1000)
    values = np.arange(5000, dtype=f"<f{width}")
    wire = FIXED32 if width == 4 else FIXED64
    loose = b"".join(key(7, wire) + value.tobytes() for value in values)
    for data in (block(7, values.tobytes()), loose):
        pieces = [bytes(piece) for piece in walker(data).iter_numbers(0, len(data), 7, width)]
        assert b"".join(pieces) == values.tobytes()


def test_numbers_cut_by_the_piece_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf, "_PIECE", 13)
    numbers = [3**i for i in range(40)] * 3
    for data in (block(5, b"".join(map(varint, numbers))), b"".join(key(5, VARINT) + varint(n) for n in numbers)):
        pieces = [bytes(piece) for piece in walker(data).iter_numbers(0, len(data), 5, 0)]
        assert np.frombuffer(b"".join(pieces), "<u8").tolist() == numbers


def test_payloads_are_stepped_over() -> None:
    data = b"".join(block(9, bytes(1_000_000)) + key(1, VARINT) + varint(i) for i in range(20))
    file = CountingFile(data)
    found = [f.value for f in Walker(file, len(data), "m").fields(0, len(data)) if f.number == 1]
    assert found == list(range(20))
    assert file.n_read < 25_000


@pytest.mark.parametrize(
    "data",
    [
        b"\x08",
        b"\x08\x80",
        b"\x08" + b"\xff" * 10 + b"\x01",
        b"\x08" + b"\xff" * 9 + b"\x02",
        b"\x80" * 20,
        b"\x0a\x05abc",
        b"\x0a" + varint(2**63) + b"abc",
        b"\x0d\0\0\0",
        b"\x09" + bytes(7),
        b"\x0b\x0c",
        b"\x0c",
        b"\x0e\x00",
        b"\x0f\x00",
        b"\x00\x00",
        varint(1 << 33) + b"\0",
    ],
)
def test_a_broken_message_is_one_line(data: bytes) -> None:
    with pytest.raises(BadModelError) as caught:
        list(walker(data).fields(0, len(data)))
    assert "\n" not in str(caught.value)


def test_a_field_does_not_reach_out_of_its_message() -> None:
    data = block(1, b"\x0a\x04ab") + b"cdefghijk"
    outer = next(walker(data).fields(0, len(data)))
    with pytest.raises(BadModelError):
        list(walker(data).fields(outer.start, outer.end))


def test_numbers_beyond_64_bits_are_refused_in_packed_fields() -> None:
    for payload in (b"\xff" * 10 + b"\x01", b"\xff" * 9 + b"\x02", b"\xff" * 30, b"\x01\xff"):
        data = block(5, payload)
        with pytest.raises(BadModelError):
            list(walker(data).iter_numbers(0, len(data), 5, 0))


def test_millions_of_fields_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf, "MAX_FIELDS", 1000)
    data = b"\x08\x01" * 1001
    with pytest.raises(BadModelError):
        list(walker(data).fields(0, len(data)))
    assert len(list(walker(data).fields(0, len(data), {1}))) == 1


def test_names_are_checked() -> None:
    for payload in (b"\xff\xfe", b"x" * 10_000):
        data = block(1, payload)
        reader = walker(data)
        with pytest.raises(BadModelError):
            reader.text(next(reader.fields(0, len(data))))


def test_fixed_numbers_are_little_endian() -> None:
    data = key(1, FIXED32) + struct.pack("<f", 1.5)
    assert next(walker(data).fields(0, len(data))).value == 0x3FC00000
