"""The vectors of docs/sketch.md: a sketch in somebody's Git history must stay comparable for ever."""

import base64
import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray

from dvc_modelver.fingerprint.sketch import (
    SketchAccumulator,
    lane_permutation,
    segment_parameters,
    sign_table,
)

VECTORS = [
    (1, "76ef7a7af4ec3d11", -0.5, 0.25, "0:AAAAAAAAAADAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", 0, "62ce074de84a000e"),
    (5, "35869dbb4876fbea", -0.3196602463722229, 0.4597567373421043, "-1:AAAAAAAAeTeeAAAAGiIHAAAAAAAAAAAAAAAAAAAADZFDAAAAbaZaAAAAAAAAAAAA", 0, "38144c8542ada541"),
    (1000, "4fa2c4ec55e68d7e", -0.023637354373931885, 83.35037010268238, "3:lnn4a0skUrQyrsz4AITjv1MDB9gNcZUc6GLuKaQy6VjkalzopiIzFN3iI178KDxC", 2, "62525cf87fe39df4"),
    (16384, "47f750cdf50b19b6", -1.403656005859375, 1365.4052433962108, "4:r+p/Dq5aLgQ1jQJaaHVSqfz/bhlCP0YtQKWoYuHRDHTjKk6XQUSz0Hy9Tcn6txRz", 4, "0c399cb18e76f8d8"),
    (20000, "c46cc0b8c29e8b52", -0.9861655831336975, 1666.7987138485385, "5:tItEkGUzXfvy3ItV1BwVzcYFv2IgIiQGf7LiSWv4l/L8oy/ObYvGoA/cDEv4FwYy", 4, "c7f96ead76ac7c7f"),
    (1048577, "bb9ad10a6c15e7d2", -0.7282792329788208, 87381.50512033701, "7:mwvCgT1EUOJAkhwdB5U/98/bwAkRIzo3NT3A37Dn7Dsa9j70H60u1KdhmleDI3E5", 7, "514d5c903065f17d"),
    (3000001, "cf43dd822f197118", -0.9522863030433655, 250000.23280525208, "8:lQHDqa1kXczTpzYFmOu2gDTUe0Xr+4ZMUKDQGoeusIUtYKzqA/HuECV453aWLVP8", 8, "c267f8cce70d6ff8"),
]  # fmt: skip


def make_vector(n: int) -> NDArray[np.float32]:
    scrambled = (np.arange(n, dtype=np.uint64) * np.uint64(2654435761)) & np.uint64(0xFFFFFFFF)
    return ((scrambled >> np.uint64(8)).astype(np.float64) / 2**24 - 0.5).astype(np.float32)


def short_sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def test_sign_table_is_the_one_of_the_specification() -> None:
    minus = (sign_table() < 0).astype(np.uint8)
    assert "".join("+-"[bit] for bit in minus[:32]) == "-++-+++----+---------++---+--+-+"
    assert minus.size == 81920
    assert short_sha256(minus.tobytes()) == "f8701c718d7c1a6d"


def test_lane_permutation_is_the_one_of_the_specification() -> None:
    assert lane_permutation()[:8].tolist() == [12381, 10743, 4599, 907, 11006, 8350, 6064, 10148]
    assert short_sha256(lane_permutation().astype("<u4").tobytes()) == "a223baefcb2e2822"


def test_segment_parameters_are_those_of_the_specification() -> None:
    first = [(52655, 15133, 1), (26100, 8633, 0), (17743, 9, 0), (33260, 12876, 1)]
    assert segment_parameters(0, 4) == first
    assert segment_parameters(1000, 1) == [(10721, 595, 0)]


@pytest.mark.parametrize(("n", "y256", "total", "squares", "k16", "exponent", "k64"), VECTORS)
def test_sketch_of_the_specification(
    n: int, y256: str, total: float, squares: float, k16: str, exponent: int, k64: str
) -> None:
    accumulator = SketchAccumulator("F32", n)
    accumulator.update(make_vector(n).tobytes())
    assert short_sha256(accumulator.fold(256).astype("<f8").tobytes()) == y256
    assert accumulator.sum == total
    assert accumulator.sum_squares == squares
    assert accumulator.encode(16) == k16
    found_exponent, _, packed = (accumulator.encode(64) or "").partition(":")
    assert int(found_exponent) == exponent
    assert short_sha256(base64.b64decode(packed)) == k64
