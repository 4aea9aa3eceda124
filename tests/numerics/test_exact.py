"""Exact mode against float64 references, for every kind of value."""

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from dvc_modelver.api.compare import compare_files
from dvc_modelver.diff import exact
from dvc_modelver.diff.changes import ModelDiff
from dvc_modelver.diff.exact import Measured, measure
from dvc_modelver.diff.render.text import render_text
from dvc_modelver.formats import open_reader
from tests.sandbox import Sandbox

RNG = np.random.default_rng(5)


def measured(folder: Path, old: NDArray[Any], new: NDArray[Any]) -> Measured:
    save_file({"t": np.ascontiguousarray(old)}, folder / "a.safetensors")
    save_file({"t": np.ascontiguousarray(new)}, folder / "b.safetensors")
    first, second = open_reader(folder / "a.safetensors"), open_reader(folder / "b.safetensors")
    assert first is not None and second is not None
    with first, second:
        return measure(first, first.specs[0], second, second.specs[0])


def compared(
    folder: Path, old: dict[str, NDArray[Any]], new: dict[str, NDArray[Any]], *, exact: bool = True
) -> ModelDiff:
    save_file(old, folder / "a.safetensors")
    save_file(new, folder / "b.safetensors")
    return compare_files(folder / "a.safetensors", folder / "b.safetensors", exact=exact)


def weights(*shape: int) -> NDArray[np.float32]:
    return RNG.standard_normal(shape, dtype=np.float32) * np.float32(0.05)


DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.int32, np.int16, np.int8, np.uint8]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 7, 131_072, 300_001])
def test_numbers_are_those_of_float64(tmp_path: Path, dtype: Any, n: int) -> None:
    scale = 50 if np.dtype(dtype).kind in "iu" else 1
    old = (scale * RNG.random(n)).astype(dtype)
    new = (old.astype(np.float64) + scale * 0.1 * RNG.random(n)).astype(dtype)
    found = measured(tmp_path, old, new)
    a, b = old.astype(np.float64), new.astype(np.float64)
    assert found.estimate.relative_l2 == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-6)
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert found.estimate.cosine == pytest.approx(cosine, abs=1e-6)
    assert found.estimate.error == 0
    assert found.values_changed == np.count_nonzero(a != b)
    if found.values_changed:
        assert found.max_abs == pytest.approx(np.abs(b - a).max(), rel=1e-6)
        assert found.max_abs_at is not None
        assert abs(b - a)[found.max_abs_at] == pytest.approx(found.max_abs, rel=1e-6)


def test_a_cast_is_measured(tmp_path: Path) -> None:
    old = weights(300, 500)
    new = old.astype(ml_dtypes.bfloat16)
    truth = np.linalg.norm(new.astype(np.float64) - old) / np.linalg.norm(old.astype(np.float64))
    assert measured(tmp_path, old, new).estimate.relative_l2 == pytest.approx(truth, rel=1e-6)
    assert compared(tmp_path, {"t": old}, {"t": new}).kind == "conversion"


def test_one_flipped_bit_is_found_with_its_place(tmp_path: Path) -> None:
    old = weights(700, 900)
    new = old.copy()
    new.view(np.uint32)[650, 123] ^= 1
    found = measured(tmp_path, old, new)
    assert (found.values_changed, found.max_abs_at) == (1, 650 * 900 + 123)
    change = compared(tmp_path, {"t": old, "u": old}, {"t": new, "u": old})
    assert change.tensors_changed == 1
    assert change.tensors[0].to_dict()["max_abs_at"] == [650, 123]
    assert "at [650,123]" in render_text(change)


@pytest.mark.parametrize("other", [-0.0, 1e-45])
def test_bits_decide_whether_a_value_changed(tmp_path: Path, other: float) -> None:
    old = np.zeros(10, np.float32)
    new = old.copy()
    new[3] = other
    assert measured(tmp_path, old, new).values_changed == 1


def test_undefined_is_none(tmp_path: Path) -> None:
    zero, one = np.zeros((4, 4), np.float32), np.ones((4, 4), np.float32)
    assert measured(tmp_path, zero, one).estimate.relative_l2 is None
    assert measured(tmp_path, one, zero).estimate.relative_l2 == 1
    assert measured(tmp_path, one, zero).estimate.cosine is None
    for bad in (math.nan, math.inf, -math.inf):
        broken = one.copy()
        broken[1, 2] = bad
        found = measured(tmp_path, one, broken)
        assert (found.estimate.cosine, found.estimate.relative_l2, found.nonfinite) == (None, None, 1)
        assert measured(tmp_path, broken, broken).estimate.cosine is None
        change = compared(tmp_path, {"t": one}, {"t": broken})
        assert "1 values are NaN or infinite" in change.warnings[0]
        json.dumps(change.to_dict(), allow_nan=False)
    for shape in ((), (0,), (3, 0)):
        assert measured(tmp_path, np.ones(shape, np.float32), np.ones(shape, np.float32)).values_changed == 0


def test_huge_values_do_not_overflow(tmp_path: Path) -> None:
    old = np.full(1000, 1e30, np.float32)
    new = (old * np.float32(1.5)).astype(np.float32)
    found = measured(tmp_path, old, new)
    assert found.estimate.relative_l2 == pytest.approx(0.5, rel=1e-6)
    assert found.estimate.cosine == pytest.approx(1)


def test_signs_are_counted(tmp_path: Path) -> None:
    old = np.array([1, -1, 0, 2, 3], np.float32)
    assert measured(tmp_path, old, np.array([-1, 1, 1, 2, 3], np.float32)).sign_flips == 2


@pytest.mark.parametrize("rank", [1, 4, 16, 40])
def test_a_low_rank_update_is_recognised(tmp_path: Path, rank: int) -> None:
    old = weights(512, 384)
    new = old + 0.02 * weights(512, rank) @ weights(rank, 384)
    assert measured(tmp_path, old, new.astype(np.float32)).rank == rank


def test_other_updates_have_no_rank(tmp_path: Path) -> None:
    old = weights(512, 384)
    assert measured(tmp_path, old, old + 0.01 * weights(512, 384)).rank is None
    assert measured(tmp_path, old, old.astype(np.float16).astype(np.float32)).rank is None
    assert measured(tmp_path, weights(5000), weights(5000)).rank is None


def test_transposed_and_trimmed_tensors_say_what_is_common(tmp_path: Path) -> None:
    dense, embed = weights(96, 64), weights(500, 64)
    moved = embed[:450] * np.float32(1.5)
    change = compared(
        tmp_path,
        {"dense": dense, "embed": embed, "vocab": embed},
        {"dense": np.ascontiguousarray(dense.T), "embed": embed[:450], "vocab": moved},
    )
    notes = {t.name: t.note for t in change.tensors}
    assert notes["dense"] == "transposed, relative L2 0"
    assert notes["embed"] == "50 rows removed; the other 450 are the same"
    assert notes["vocab"] == "the first 450 rows moved, relative L2 0.5"
    assert change.kind == "architecture"


def test_renamed_tensors_of_plain_files_are_matched(tmp_path: Path) -> None:
    old = {f"a.{i}": weights(40, 40) for i in range(4)}
    change = compared(tmp_path, old, {f"b.{i}": old[f"a.{i}"] for i in range(4)} | {"c": weights(3)})
    assert sorted(t.change for t in change.tensors) == ["added", *["renamed"] * 4]


def test_two_processes_give_what_one_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = {f"t{i}": weights(50 + i, 70) for i in range(9)}
    new = {k: w + np.float32(0.001) for k, w in old.items()}
    alone = compared(tmp_path, old, new).to_dict()
    monkeypatch.setattr(exact, "SPLIT_BYTES", 0)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert compared(tmp_path, old, new).to_dict() == alone


def test_identical_and_other_header(tmp_path: Path) -> None:
    w = {"t": weights(10, 10)}
    assert compared(tmp_path, w, w).kind == "identical"
    save_file(w, tmp_path / "b.safetensors", metadata={"x": "y"})
    change = compare_files(tmp_path / "a.safetensors", tmp_path / "b.safetensors", exact=True)
    assert change.kind == "metadata-only"


def test_exact_in_a_repository_reads_cache_work_tree_and_remote(sandbox: Sandbox) -> None:
    model = "models/net.safetensors"
    for seed in (1, 2):
        sandbox.train(model, seed)
        sandbox.git("add", ".")
        sandbox.git("commit", "-q", "-m", str(seed))
    sandbox.modelver("push", "--all")
    first = sandbox.path / "first.safetensors"
    sandbox.modelver("load", "net@1", "-o", str(first))
    a, b = load_file(first), load_file(sandbox.path / model)
    truth = math.sqrt(sum(float(np.sum((b[k].astype(np.float64) - a[k]) ** 2)) for k in a))
    truth /= math.sqrt(sum(float(np.sum(a[k].astype(np.float64) ** 2)) for k in a))

    def check() -> None:
        found = json.loads(sandbox.modelver("diff", "--exact", "--json", "net@1", "net@2"))["models"][0]
        assert found["exact"] is True
        assert found["relative_l2"] == pytest.approx(truth, rel=1e-6)
        assert found["relative_l2_error"] == 0
        assert all(t["max_abs"] is not None for t in found["tensors"] if t["change"] == "modified")

    check()
    md5 = sandbox.git("show", f"HEAD~1:{model}.dvc").split("md5: ")[1][:32]
    sandbox.drop(md5)
    check()  # from the remote
    assert not sandbox.cached(md5)
    (sandbox.path.parent / "remote").rename(sandbox.path.parent / "gone")
    assert sandbox.exit_code("diff", "--exact", "net@1", "net@2") == 4


def test_packed_values_of_another_shape_are_left_alone(tmp_path: Path) -> None:
    for name, rows in (("a", 4), ("b", 6)):
        header = json.dumps({"t": {"dtype": "F4", "shape": [rows, 8], "data_offsets": [0, rows * 4]}}).encode()
        body = len(header).to_bytes(8, "little") + header + bytes(rows * 4)
        (tmp_path / f"{name}.safetensors").write_bytes(body)
    change = compare_files(tmp_path / "a.safetensors", tmp_path / "b.safetensors", exact=True)
    assert (change.kind, change.tensors[0].note) == ("architecture", "")


@pytest.mark.parametrize("outlier", [1e2, 1e4, 1e8, 1e20, 1.3e37])
def test_the_cosine_keeps_its_digits_between_unlike_norms(tmp_path: Path, outlier: float) -> None:
    a = np.random.default_rng(0).standard_normal((300, 300)).astype(np.float32)
    b = a.copy()
    b[7, 9] = outlier
    change = compared(tmp_path, {"w": a, "x": a}, {"w": b, "x": a})
    x, y = a.astype(float).ravel(), b.astype(float).ravel()
    assert change.tensors[0].cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-6)
    x, y = np.concatenate([x, x]), np.concatenate([y, x])
    assert change.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-6)
    assert change.kind != "scaled"


@pytest.mark.parametrize("factor", [1.01, 0.5, 3.0, -1.0])
def test_a_scaled_tensor_is_called_so_in_both_modes(tmp_path: Path, factor: float) -> None:
    a = np.random.default_rng(0).standard_normal((300, 300)).astype(np.float32)
    b = a * np.float32(factor)
    for is_exact in (True, False):
        kind = compared(tmp_path, {"w": a}, {"w": b}, exact=is_exact).kind
        assert (kind == "scaled") == (factor > 0), is_exact


def test_a_square_matrix_that_was_turned_and_one_gone_dead_are_named(tmp_path: Path) -> None:
    a = np.random.default_rng(0).standard_normal((48, 48)).astype(np.float32)
    turned = compared(tmp_path, {"w": a}, {"w": np.ascontiguousarray(a.T)})
    assert turned.tensors[0].note == "transposed, relative L2 0"
    dead = compared(tmp_path, {"w": a}, {"w": np.zeros_like(a)})
    assert dead.warnings == ("w: all values are zero now",)
