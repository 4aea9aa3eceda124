from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from dvc_modelver.formats.base import flatten, rechunk


@pytest.mark.parametrize("n_bytes", [1, 2, 3, 5, 7, 16, 99, 100])
@pytest.mark.parametrize("lengths", [[], [0], [99], [5, 0, 5], [1] * 20, [3, 16, 2, 50, 1, 7], [7, 7, 7], [50, 4]])
def test_pieces_of_any_length_become_buffers_of_one_length(n_bytes: int, lengths: list[int]) -> None:
    data = bytes(range(sum(lengths)))
    shared = bytearray(99)

    def pieces() -> Iterator[memoryview]:
        # As readers do, the same memory is given again and again.
        at = 0
        for length in lengths:
            shared[:length] = data[at : at + length]
            at += length
            yield memoryview(shared)[:length]

    found = [bytes(buffer) for buffer in rechunk(pieces(), n_bytes)]
    assert found == [data[at : at + n_bytes] for at in range(0, len(data), n_bytes)]


def test_pieces_may_have_items_and_axes() -> None:
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    found = b"".join(map(bytes, rechunk(iter([values.data, np.zeros((0, 3)).data]), 5)))
    assert found == values.tobytes()


def test_a_piece_that_is_a_buffer_is_not_copied() -> None:
    piece = bytearray(12)
    first, second = rechunk(iter([memoryview(piece)]), 6)
    assert first.obj is second.obj is piece


def test_an_empty_configuration_is_no_fact() -> None:
    assert flatten({}) == {}
    assert flatten({"a": {}}, "config") == {"config.a": "{}"}
