"""Strategies against their definitions, written down once more without blocks, digits or streams."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dvc_modelver.fingerprint.values import encode, make_decoder
from dvc_modelver.merge.strategies import Block, Job, combine, find_thresholds
from dvc_modelver.strategy import STRATEGIES, parse_strategy

Values = NDArray[np.float64]
COMBINING = [name for name in STRATEGIES if name not in ("ours", "theirs", "conflict")]


def job(sides: tuple[Values, Values, Values], parameters: Any, n: int = 37, *, name: str = "w") -> Job:
    def read() -> Iterator[Block]:
        for at in range(0, sides[1].size, n):
            yield Block(*(side[at : at + n].copy() for side in sides))

    return Job(name, sides[1].size, read, parameters, is_wide=False)


def combined(text: str, *sides: Values, n: int = 37, name: str = "w") -> Values:
    strategy = parse_strategy(text)
    base, ours, theirs = (np.asarray(side, np.float64) for side in sides)
    pieces = [
        piece.copy() for piece in combine(strategy.name, job((base, ours, theirs), strategy.parameters, n, name=name))
    ]
    return np.concatenate(pieces)


def three(numel: int = 1000, seed: int = 0) -> tuple[Values, Values, Values]:
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(numel).astype(np.float32)
    ours = base + rng.standard_normal(numel).astype(np.float32) * np.float32(0.1)
    theirs = base + rng.standard_normal(numel).astype(np.float32) * np.float32(0.2)
    return base.astype(np.float64), ours.astype(np.float64), theirs.astype(np.float64)


def test_mean() -> None:
    base, ours, theirs = three()
    assert np.array_equal(combined("mean", base, ours, theirs), (ours + theirs) / 2)


def test_weighted_gives_theirs_its_share() -> None:
    base, ours, theirs = three()
    assert np.allclose(combined("weighted:weight=0.25", base, ours, theirs), 0.75 * ours + 0.25 * theirs, rtol=1e-15)
    assert np.array_equal(combined("weighted:weight=0", base, ours, theirs), ours)
    assert np.array_equal(combined("weighted:weight=1", base, ours, theirs), theirs)


def test_slerp_goes_along_the_arc() -> None:
    half = combined("slerp", np.zeros(2), np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    assert np.allclose(half, math.sqrt(0.5), rtol=1e-15)
    third = combined("slerp:weight=0.3333333333333333", np.zeros(2), np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    assert np.allclose(third, [math.cos(math.pi / 6), math.sin(math.pi / 6)], rtol=1e-12)


def test_slerp_keeps_the_length_of_vectors_of_one_length() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 500))
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    for weight in (0.1, 0.5, 0.9):
        assert math.isclose(float(np.linalg.norm(combined(f"slerp:weight={weight}", x, x, y))), 1.0, rel_tol=1e-12)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [([1.0, 2.0], [2.0, 4.0]), ([1.0, 2.0], [-1.0, -2.0]), ([0.0, 0.0], [1.0, 2.0]), ([0.0, 0.0], [0.0, 0.0])],
)
def test_slerp_of_parallel_opposite_and_zero_vectors_is_weighted(ours: list[float], theirs: list[float]) -> None:
    sides = np.zeros(2), np.array(ours), np.array(theirs)
    assert np.allclose(combined("slerp:weight=0.25", *sides), combined("weighted:weight=0.25", *sides), atol=1e-12)


def test_task_arithmetic_adds_both_changes() -> None:
    base, ours, theirs = three()
    expected = base + 0.5 * ((ours - base) + (theirs - base))
    assert np.allclose(combined("task-arithmetic:scale=0.5", base, ours, theirs), expected, rtol=1e-14)


def test_a_value_that_one_side_alone_changed_comes_out_bit_by_bit() -> None:
    base, ours, theirs = three()
    ours[::2], theirs[1::2] = base[::2], base[1::2]
    merged = combined("task-arithmetic", base, ours, theirs)
    expected = np.where(ours != base, ours, theirs).astype(np.float32)
    assert np.array_equal(merged.astype(np.float32), expected)


def _ties(base: Values, ours: Values, theirs: Values, density: float, scale: float) -> Values:
    changes = []
    for side in (ours, theirs):
        change = side - base
        magnitudes = np.abs(change).astype(np.float32)
        limit = np.sort(magnitudes)[::-1][max(1, math.ceil(density * change.size)) - 1]
        changes.append([c if m >= limit else 0.0 for c, m in zip(change, magnitudes, strict=True)])
    out = []
    for b, x, y in zip(base, *changes, strict=True):
        sign = np.sign(x + y)
        agreeing = [c for c in (x, y) if c != 0 and np.sign(c) == sign]
        out.append(b + scale * (sum(agreeing) / len(agreeing) if agreeing else 0.0))
    return np.array(out)


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 1.0])
def test_ties_is_algorithm_1(density: float) -> None:
    base, ours, theirs = three(257)
    expected = _ties(base, ours, theirs, density, 0.7)
    assert np.array_equal(combined(f"ties:density={density},scale=0.7", base, ours, theirs), expected)


def test_ties_leaves_out_the_smaller_of_two_opposite_changes() -> None:
    merged = combined("ties:density=1", np.zeros(3), np.array([3.0, 1.0, 2.0]), np.array([-1.0, -4.0, 4.0]))
    assert merged.tolist() == [3.0, -4.0, 3.0]


@given(
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=60),
    st.integers(1, 60),
    st.booleans(),
)
def test_the_threshold_is_the_exact_order_statistic(values: list[float], rank: int, is_wide: bool) -> None:
    array = np.array(values)
    rank = min(rank, array.size)
    kind = np.float64 if is_wide else np.float32
    found = find_thresholds(job((np.zeros_like(array), array, -array), {}, 7), rank, kind)
    expected = float(np.sort(np.abs(array))[::-1][rank - 1])
    assert found == (expected, expected)


def test_dare_keeps_its_share_and_scales_it_up() -> None:
    base, ours, theirs = np.zeros(100_000), np.ones(100_000), np.zeros(100_000)
    merged = combined("dare:density=0.3", base, ours, theirs)
    kept = merged != 0
    assert np.allclose(merged[kept], 1 / 0.3)
    # Standard deviation of the share of 100,000 draws: 0.0015.
    assert abs(kept.mean() - 0.3) < 0.01


def test_dare_keeps_the_changes_on_average() -> None:
    base, ours, theirs = three(200_000)
    merged = combined("dare:density=0.5", base, ours, theirs)
    expected = base + (ours - base) + (theirs - base)
    assert abs(float((merged - expected).mean())) < 0.005


def test_dare_draws_for_each_side_alone() -> None:
    n = 100_000
    first = combined("dare:density=0.5", np.zeros(n), np.ones(n), np.zeros(n)) != 0
    second = combined("dare:density=0.5", np.zeros(n), np.zeros(n), np.ones(n)) != 0
    assert abs(float((first & second).mean()) - 0.25) < 0.01


def test_dare_is_a_function_of_seed_and_name_alone() -> None:
    sides = three(5000)
    merged = combined("dare:seed=1", *sides)
    assert np.array_equal(merged, combined("dare:seed=1", *sides, n=1))
    assert np.array_equal(merged, combined("dare:seed=1", *sides, n=4999))
    assert not np.array_equal(merged, combined("dare:seed=2", *sides))
    assert not np.array_equal(merged, combined("dare:seed=1", *sides, name="v"))


def test_dare_draws_the_same_on_every_machine() -> None:
    merged = combined("dare:seed=7,density=0.5", np.zeros(24), np.ones(24), np.zeros(24), name="encoder.weight")
    assert "".join(str(int(v != 0)) for v in merged) == "000011111000001000011110"


@pytest.mark.parametrize("text", COMBINING)
def test_equal_sides_stay_as_they_are(text: str) -> None:
    base, ours, _ = three()
    if text in ("task-arithmetic", "dare"):
        ours = base
    density = ":density=1" if text == "ties" else ""
    merged = combined(text + density, base, ours, ours)
    assert np.array_equal(merged.astype(np.float32), ours.astype(np.float32))


@pytest.mark.parametrize("text", COMBINING)
def test_blocks_make_no_difference(text: str) -> None:
    sides = three(321)
    whole = combined(text, *sides, n=321)
    for n in (1, 7, 320):
        assert np.allclose(combined(text, *sides, n=n), whole, rtol=1e-13)


@pytest.mark.parametrize("text", COMBINING)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_stays_where_it_is(text: str, bad: float) -> None:
    base, ours, theirs = three(100)
    ours[10] = bad
    finite = np.isfinite(combined(text, base, ours, theirs))
    assert finite[:10].all()
    assert finite[11:].all()


# Rounding

_NEAREST = ["F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"]


def _decoded(dtype: str, codes: NDArray[Any]) -> Values:
    decode = make_decoder(dtype, np.empty(codes.size, np.float32))
    with np.errstate(invalid="ignore"):  # of signalling NaN
        return np.array(decode(memoryview(codes.tobytes())), np.float64)


@pytest.mark.parametrize("dtype", _NEAREST)
def test_numbers_are_rounded_once_to_the_nearest_with_ties_to_even(dtype: str) -> None:
    kind: type[Any] = np.uint16 if "16" in dtype else np.uint8
    codes = np.arange(1 << (15 if "16" in dtype else 7), dtype=kind)
    exact = _decoded(dtype, codes)
    codes, exact = codes[np.isfinite(exact)], exact[np.isfinite(exact)]
    assert np.all(np.diff(exact) > 0)
    middle = (exact[1:] + exact[:-1]) / 2
    even = np.where(codes[:-1] % 2 == 0, codes[:-1], codes[1:])
    for values, expected in (
        (exact, codes),
        (middle, even),
        (np.nextafter(middle, np.inf), codes[1:]),
        (np.nextafter(middle, 0), codes[:-1]),
        (exact[1:] - (exact[1:] - exact[:-1]) * 1e-9, codes[1:]),
    ):
        found = np.frombuffer(encode(values, dtype), kind)
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["F32", "F64", "F16", "BF16", "F8_E5M2", "C64"])
def test_what_is_not_finite_is_stored_as_it_is(dtype: str) -> None:
    found = _decoded(dtype, np.frombuffer(encode(np.array([np.inf, -np.inf, np.nan, -0.0]), dtype), np.uint8))
    assert found[0] == np.inf
    assert found[1] == -np.inf
    assert math.isnan(found[2])
    assert math.copysign(1, found[3]) == -1
