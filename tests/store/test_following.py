"""Hashing a file while it is written gives what hashing it afterwards gives."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dvc_modelver.store.following import FollowingHasher
from dvc_modelver.store.hashing import BUFFER_BYTES, hash_file


@pytest.mark.parametrize("size", [0, 1, BUFFER_BYTES, 3 * BUFFER_BYTES + 7])
@pytest.mark.parametrize("told", ["each", "never"])
def test_a_file_that_is_written_piece_by_piece(tmp_path: Path, size: int, told: str) -> None:
    path, rng = tmp_path / "model", random.Random(size)
    data = rng.randbytes(size)
    with path.open("w+b", buffering=1 << 20) as file, FollowingHasher(path) as hasher:
        at = 0
        while at < size:
            n = rng.randrange(1, 2 * BUFFER_BYTES)
            file.write(data[at : at + n])  # some of it stays in the writer's buffer
            if told == "each":
                hasher.advance(len(data[at : at + n]))
            at += n
        file.flush()
        found = hasher.finish().result()
    assert found == hash_file(path)


def test_a_file_that_is_given_up_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"")
    with pytest.raises(KeyboardInterrupt), FollowingHasher(path):
        with path.open("r+b") as file:
            file.truncate(1 << 40)
        raise KeyboardInterrupt
