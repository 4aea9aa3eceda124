from __future__ import annotations

import io
import struct

import pytest

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats import flatbuffer
from dvc_modelver.formats.flatbuffer import FlatBuffer, Table, Vector

START = 8


def packed(members: bytes, *slots: int, before: int = START) -> bytes:
    """Give a buffer of one table behind other bytes; its members begin 4 bytes into it."""
    names = struct.pack(f"<HH{len(slots)}H", 4 + 2 * len(slots), 4 + len(members), *slots)
    return b"\xee" * before + struct.pack("<I", 4 + len(names)) + names + struct.pack("<i", len(names)) + members


def root(data: bytes, end: int | None = None, page_bytes: int = 2_048) -> Table:
    return FlatBuffer(
        io.BytesIO(data), START, len(data) if end is None else end, "m", "try again", page_bytes=page_bytes
    ).root()


@pytest.mark.parametrize("page_bytes", [1, 3, 2_048])
def test_a_buffer_in_a_span_of_the_file_is_read(page_bytes: int) -> None:
    text = struct.pack("<I", 3) + "é!".encode()
    members = struct.pack("<fdiI", 0.5, -2.0, -7, 8) + b"\0" * 4 + text
    table = root(packed(members, 4, 8, 16, 20, 0), page_bytes=page_bytes)
    assert (table.real(0, "<f"), table.real(1, "<d"), table.number(2, "<i"), table.text(3)) == (0.5, -2.0, -7, "é!")
    assert table.places == (4, 8, 16, 20, 0)
    assert (table.number(4, "<i", 3), table.real(9, "<f", 1), table.text(4), table.table(4)) == (3, 1, "", None)
    assert table.vector(4, 4) == Vector(START, 0)
    assert list(table.tables(4)) == []
    assert table.texts(4, 0) == []


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"\xee" * 8, "found 8 bytes, expected 12"),
        (b"\xee" * 8 + struct.pack("<I", 0), "found an offset of 0"),
        (b"\xee" * 8 + struct.pack("<Iii", 4, 8, 0), "begins there, expected it from byte 8 on"),
        (b"\xee" * 8 + struct.pack("<IiHH", 4, -4, 2, 4), "with a list of 2"),
        (b"\xee" * 8 + struct.pack("<IiHH", 4, -4, 4, 99), "a table of 99 bytes"),
    ],
)
def test_what_leads_out_of_the_span_is_refused(data: bytes, found: str) -> None:
    with pytest.raises(BadModelError, match=f"^m: at byte .*{found}") as caught:
        root(data + b"\xee" * 64, len(data))
    assert caught.value.hint == "try again"


def test_a_field_outside_its_table_is_refused() -> None:
    table = root(packed(b"\0" * 4, 6))
    with pytest.raises(BadModelError, match="found field 0 at byte 6"):
        table.number(0, "<i")
    assert table.number(0, "<h") == 0


def test_texts_are_bounded_one_by_one_and_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flatbuffer, "MAX_TEXTS_BYTES", 25)
    table = root(packed(struct.pack("<II", 4, 10) + b"a" * 10, 4))
    with pytest.raises(BadModelError, match="a text of 10 bytes, expected at most 9"):
        table.text(0, 9)
    assert [table.text(0), table.text(0, 10)] == ["a" * 10] * 2
    with pytest.raises(BadModelError, match="more than 25 bytes of text"):
        table.text(0)


def test_what_is_read_as_a_header_is_bounded_and_values_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flatbuffer, "MAX_HEADER_BYTES", 100)
    data = packed(b"\0" * 90)
    table = root(data)
    for _ in range(5):
        assert table.buffer.read_values(START, len(data)) == data[START:]
    with pytest.raises(BadModelError, match="header of more than 100 bytes"):
        table.buffer.read(START, len(data))


def test_a_list_is_bounded_by_its_caller() -> None:
    table = root(packed(struct.pack("<II", 4, 3) + b"\0" * 12, 4))
    with pytest.raises(BadModelError, match="a list of 3 members, expected at most 2"):
        table.tables(0, 2)
