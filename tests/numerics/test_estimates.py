"""Distances from sketches against float64 references, over the cases of docs/sketch.md's error table."""

import math
from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from dvc_modelver.fingerprint.estimate import (
    ERROR_P95,
    VISIBLE_L2,
    Estimate,
    Sketch,
    combine,
    decode,
    estimate,
    identical,
)
from dvc_modelver.fingerprint.sketch import SketchAccumulator

F32 = NDArray[np.float32]
SHAPES = [(64, 48), (257, 129), (512, 512), (40_000,)]
SEEDS = range(5)


def sketch_of(values: F32, k: int = 256) -> tuple[float, Sketch]:
    accumulator = SketchAccumulator("F32", values.size)
    accumulator.update(np.ascontiguousarray(values).tobytes())
    return math.sqrt(accumulator.sum_squares), decode(accumulator.encode(k) or "")


def measure(old: F32, new: F32, k: int = 64) -> Estimate:
    return estimate(*sketch_of(old, k), *sketch_of(new, k))


def true_l2(old: F32, new: F32) -> float:
    a, b = old.astype(np.float64).ravel(), new.astype(np.float64).ravel()
    return float(np.linalg.norm(b - a) / np.linalg.norm(a))


def true_cosine(old: F32, new: F32) -> float:
    a, b = old.astype(np.float64).ravel(), new.astype(np.float64).ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


# Each takes weights [n] or [rows, columns] and a generator, and gives the changed weights, float32 of equal shape.


def add_noise(size: float) -> Callable[[F32, np.random.Generator], F32]:
    return lambda w, rng: w + np.float32(size * w.std()) * rng.standard_normal(w.shape, dtype=np.float32)


def add_low_rank(w: F32, rng: np.random.Generator) -> F32:
    m = np.atleast_2d(w)
    left, right = rng.standard_normal((m.shape[0], 4)), rng.standard_normal((4, m.shape[1]))
    return np.asarray(w + (0.02 * w.std() * left @ right).reshape(w.shape), np.float32)


def change_rows(w: F32, rng: np.random.Generator) -> F32:
    m = np.atleast_2d(w).copy()
    rows = rng.choice(m.shape[0], max(1, m.shape[0] // 50), replace=False)
    m[rows] += w.std() * rng.standard_normal((rows.size, m.shape[1])).astype(np.float32)
    return m.reshape(w.shape)


def shift_columns(w: F32, rng: np.random.Generator) -> F32:
    m = np.atleast_2d(w).copy()
    columns = rng.choice(m.shape[1], max(1, m.shape[1] // 50), replace=False)
    m[:, columns] += np.float32(0.3 * w.std())  # a constant: the case that needs offset and rotation
    return m.reshape(w.shape)


def change_few(w: F32, rng: np.random.Generator) -> F32:
    new = w.copy().ravel()
    some = rng.choice(new.size, max(1, new.size // 1000), replace=False)
    new[some] += rng.standard_normal(some.size).astype(np.float32)
    return new.reshape(w.shape)


def flip_signs(w: F32, rng: np.random.Generator) -> F32:
    return np.where(rng.random(w.shape) < 0.02, -w, w).astype(np.float32)


def permute(w: F32, rng: np.random.Generator) -> F32:
    return rng.permutation(w.ravel()).reshape(w.shape)


def quantise(w: F32, _rng: np.random.Generator) -> F32:
    scale = np.abs(w).max() / 127
    return np.asarray(np.rint(w / scale) * scale, np.float32)


def cast(dtype: type) -> Callable[[F32, np.random.Generator], F32]:
    return lambda w, _rng: np.asarray(w.astype(dtype), np.float32)


CASES = {
    "noise 1e-4": add_noise(1e-4),
    "noise 1e-2": add_noise(1e-2),
    "noise 0.5": add_noise(0.5),
    "low rank": add_low_rank,
    "rows": change_rows,
    "columns": shift_columns,
    "sparse": change_few,
    "sign flips": flip_signs,
    "permutation": permute,
    "quantisation": quantise,
    "cast to bf16": cast(ml_dtypes.bfloat16),
    "cast to f16": cast(np.float16),
}


def make_weights(shape: tuple[int, ...], seed: int) -> F32:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32) * np.float32(0.05)


def pairs(case: str) -> Iterator[tuple[F32, F32]]:
    for shape in SHAPES:
        for seed in SEEDS:
            old = make_weights(shape, seed)
            yield old, CASES[case](old, np.random.default_rng([seed, 7, *shape]))


@pytest.fixture(scope="module")
def errors() -> dict[int, dict[str, NDArray[np.float64]]]:
    """Relative errors of the estimated distance, by sketch size and case: 20 pairs each."""
    found: dict[int, dict[str, list[float]]] = {k: {case: [] for case in CASES} for k in ERROR_P95}
    for case in CASES:
        for old, new in pairs(case):
            (norm_a, a), (norm_b, b), truth = sketch_of(old), sketch_of(new), true_l2(old, new)
            for k in ERROR_P95:
                got = estimate(norm_a, a.fold(k), norm_b, b.fold(k)).relative_l2
                assert got is not None
                found[k][case].append(got / truth - 1)
    return {k: {case: np.array(values) for case, values in cases.items()} for k, cases in found.items()}


@pytest.mark.parametrize(("k", "p50"), [(16, 0.11), (32, 0.08), (64, 0.06), (128, 0.04), (256, 0.03)])
def test_errors_are_those_of_the_table(errors: dict[int, dict[str, NDArray[np.float64]]], k: int, p50: float) -> None:
    # 240 pairs: the table's percentiles, with the sampling error of as many draws
    found = np.abs(np.concatenate(list(errors[k].values())))
    assert np.percentile(found, 50) <= 1.15 * p50
    assert np.percentile(found, 95) <= 1.10 * ERROR_P95[k]


@pytest.mark.parametrize("case", CASES)
def test_no_kind_of_change_is_worse_than_the_others(
    errors: dict[int, dict[str, NDArray[np.float64]]], case: str
) -> None:
    found = errors[64][case]
    assert np.sqrt(np.mean(found**2)) < 0.14  # 1 / sqrt(2 k) is 0.088
    assert abs(found.mean()) < 0.08  # no bias: the noise of a model's tensors averages out


def test_stated_error_covers_95_of_100(errors: dict[int, dict[str, NDArray[np.float64]]]) -> None:
    inside = total = 0
    for case in CASES:
        for old, new in pairs(case):
            got, truth = measure(old, new), true_l2(old, new)
            assert got.relative_l2 is not None and got.error is not None
            inside += abs(got.relative_l2 - truth) <= got.error
            total += 1
    assert inside >= 0.94 * total


def test_noise_of_many_tensors_averages_out() -> None:
    olds = [make_weights((96, 64), seed) for seed in range(96)]
    news = [add_noise(0.02)(old, np.random.default_rng(seed)) for seed, old in enumerate(olds)]
    found = combine(measure(old, new) for old, new in zip(olds, news, strict=True))
    truth = true_l2(np.concatenate(olds), np.concatenate(news))
    assert found.relative_l2 is not None and found.error is not None
    assert found.relative_l2 == pytest.approx(truth, rel=0.02)
    assert found.error < 0.03 * truth
    assert abs(found.relative_l2 - truth) <= found.error


def test_cosine_of_unlike_tensors_is_near_zero() -> None:
    old, new = make_weights((256, 256), 1), make_weights((256, 256), 2)
    found = measure(old, new, 256)
    assert found.cosine == pytest.approx(true_cosine(old, new), abs=0.2)
    opposite = measure(old, (-old).astype(np.float32))
    assert opposite.cosine == pytest.approx(-1, abs=0.2)
    assert opposite.relative_l2 == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("factor", [0.5, 1.001, 3.0])
def test_pure_rescale_is_exact(factor: float) -> None:
    old = make_weights((200, 100), 3)
    found = measure(old, (old * np.float32(factor)).astype(np.float32), 16)
    assert found.cosine == pytest.approx(1, abs=1e-12)
    assert found.relative_l2 == pytest.approx(abs(factor - 1), rel=1e-4)


def test_one_changed_element_is_nearly_exact() -> None:
    old = make_weights((200, 100), 4)
    new = old.copy()
    new[17, 33] += 0.25
    assert measure(old, new, 16).relative_l2 == pytest.approx(true_l2(old, new), rel=0.02)


def test_change_below_24_bits_is_not_made_up() -> None:
    old = make_weights((200, 100), 5)
    new = old.copy()
    new[0, 0] = np.nextafter(new[0, 0], np.float32(1))
    found = measure(old, new)
    assert found.relative_l2 is not None and found.relative_l2 < VISIBLE_L2
    assert found.is_below_floor


def test_zero_and_unknown_norms_give_none_not_zero() -> None:
    old, zero = make_weights((50, 50), 6), np.zeros((50, 50), np.float32)
    vanished, appeared = measure(old, zero), measure(zero, old)
    assert (vanished.cosine, vanished.relative_l2) == (None, 1.0)
    assert (appeared.cosine, appeared.relative_l2) == (None, None)
    assert identical(0.0).cosine is None
    assert combine([]).relative_l2 is None


# Properties

VALUES = st.floats(-100, 100, width=32).map(lambda x: np.float32(0) if abs(x) < 1e-3 else np.float32(x))
TENSORS = arrays(np.float32, st.integers(1, 400), elements=VALUES)


@st.composite
def two_tensors(draw: st.DrawFn) -> tuple[F32, F32]:
    first = draw(TENSORS)
    return first, draw(arrays(np.float32, first.shape, elements=VALUES))


@given(two_tensors())
def test_distance_is_symmetric(two: tuple[F32, F32]) -> None:
    there, back = measure(*two), measure(two[1], two[0])
    assert there.squared_distance == pytest.approx(back.squared_distance, rel=1e-6, abs=1e-9)
    assert (there.cosine is None) == (back.cosine is None)
    if there.cosine is not None:
        assert there.cosine == pytest.approx(back.cosine, abs=1e-9)
        assert -1 <= there.cosine <= 1


@given(TENSORS, st.sampled_from(sorted(ERROR_P95)))
def test_distance_to_itself_is_zero(tensor: F32, k: int) -> None:
    assert measure(tensor, tensor.copy(), k).squared_distance == 0


@given(two_tensors())
def test_sketch_is_linear(two: tuple[F32, F32]) -> None:
    old, new = two
    delta = (new.astype(np.float64) - old.astype(np.float64)).astype(np.float32)
    (_, a), (_, b), (_, d) = sketch_of(old), sketch_of(new), sketch_of(delta)
    largest = max(map(abs, (*a.values, *b.values, *d.values)), default=0.0)
    for x, y, z in zip(a.values, b.values, d.values, strict=True):
        assert y - x == pytest.approx(z, abs=4e-7 * largest + 1e-12)


@given(TENSORS, st.sampled_from([16, 32, 64, 128]))
def test_large_sketch_folds_to_a_small_one(tensor: F32, k: int) -> None:
    folded, direct = sketch_of(tensor, 256)[1].fold(k), sketch_of(tensor, k)[1]
    largest = max(map(abs, direct.values), default=0.0)
    assert folded.values == pytest.approx(direct.values, abs=1e-5 * largest + 1e-12)


@given(two_tensors(), st.integers(0, 2**31))
def test_distances_of_three_versions_keep_the_triangle(two: tuple[F32, F32], seed: int) -> None:
    third = np.random.default_rng(seed).standard_normal(two[0].shape, dtype=np.float32)
    sketches = [sketch_of(t) for t in (*two, third)]
    # the estimate's own distance, not its clipped parts: every norm here is exact to float32
    values = [np.array(s.values) for _, s in sketches]
    ab, bc, ac = (float(np.linalg.norm(values[i] - values[j])) for i, j in ((0, 1), (1, 2), (0, 2)))
    assert ac <= ab + bc + 1e-6 * (1 + ab + bc)


@pytest.mark.parametrize("n", [5, 16_384, 1_048_576, 1_500_000, 2_097_153])
def test_sketch_does_not_depend_on_the_run(n: int) -> None:
    values = np.random.default_rng(n).standard_normal(n, dtype=np.float32)
    first = SketchAccumulator("F32", n)
    first.update(values.tobytes())
    again = SketchAccumulator("F32", n)
    step = 1 << 20
    for start in range(0, n, step):
        again.update(values[start : start + step].tobytes())
    assert first.encode(64) == again.encode(64)
    assert (first.sum, first.sum_squares) == (again.sum, again.sum_squares)
