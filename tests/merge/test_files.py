"""Merging files of every format, read back by the libraries that own them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from dvc_modelver.errors import BadModelError, UsageError
from dvc_modelver.formats import open_reader
from dvc_modelver.formats.safetensors import SafetensorsReader
from dvc_modelver.merge.models import Merged, Side, merge_models
from dvc_modelver.merge.threeway import Take
from dvc_modelver.metadata import TensorTable, describe_tensors
from dvc_modelver.strategy import Rules, parse_strategy
from tests.formats.contract import some_arrays

Arrays = Mapping[str, NDArray[Any]]


def merge(paths: Sequence[Path | None], strategy: str = "conflict", *rules: tuple[str, str]) -> Merged:
    chosen = Rules(parse_strategy(strategy))
    for pattern, text in rules:
        chosen = chosen.with_rule(pattern, parse_strategy(text))
    base, ours, theirs = (Side(str(path), path) if path else None for path in paths)
    assert ours is not None and theirs is not None
    output = Path(ours.name).with_name(f"merged{Path(ours.name).suffix}")
    return merge_models(base, ours, theirs, output, chosen)


def saved(folder: Path, name: str, arrays: Arrays, metadata: dict[str, str] | None = None) -> Path:
    path = folder / f"{name}.safetensors"
    save_file(dict(arrays), path, metadata)
    return path


def three(folder: Path, base: Arrays, ours: Arrays, theirs: Arrays) -> tuple[Path, Path, Path]:
    return saved(folder, "base", base), saved(folder, "ours", ours), saved(folder, "theirs", theirs)


def done(found: Merged) -> Path:
    assert found.output is not None, [f"{d.name}: {d.why}" for d in found.plan.conflicts]
    return found.output


def conflicts(found: Merged) -> dict[str, str]:
    assert found.output is None
    return {d.name: d.why for d in found.plan.conflicts}


def model(seed: int = 0, layers: int = 4, width: int = 32) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return {f"layers.{i}.weight": rng.standard_normal((width, width)).astype(np.float32) for i in range(layers)}


# safetensors


def test_disjoint_layers_give_the_file_that_has_both(tmp_path: Path) -> None:
    base = some_arrays() | model()
    ours = base | {"layers.0.weight": base["layers.0.weight"] + 1}
    theirs = base | {"layers.3.weight": base["layers.3.weight"] * 2, "flags": ~base["flags"]}
    path = done(merge(three(tmp_path, base, ours, theirs)))
    expected = saved(tmp_path, "expected", theirs | {"layers.0.weight": ours["layers.0.weight"]})
    assert path.read_bytes() == expected.read_bytes()


def test_added_removed_and_reshaped_tensors_are_written_as_the_library_writes_them(tmp_path: Path) -> None:
    base = some_arrays() | model()
    ours = {**base, "new": np.arange(5.0), "b.weight": base["b.weight"][:3].copy()}
    theirs = {**base, "other": np.arange(6, dtype=np.int16), "half": base["half"].astype(np.float32)}
    del ours["flags"], theirs["layers.2.weight"]
    found = merge(three(tmp_path, base, ours, theirs))
    merged = {**ours, "other": theirs["other"], "half": theirs["half"]}
    del merged["layers.2.weight"]
    assert done(found).read_bytes() == saved(tmp_path, "expected", merged).read_bytes()
    assert found.plan.counts() == {"same": 8, "ours": 2, "theirs": 2, "removed": 2}


def test_all_dtypes_come_in_the_order_of_the_library(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    names = "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int64 int32 int16 int8 uint8 bool uint16 uint32 uint64 complex64"
    tensors = {
        f"{chr(97 + i)}.{kind}": torch.zeros(3, 2).to(getattr(torch, kind)) for i, kind in enumerate(names.split())
    }
    half = dict(list(tensors.items())[::2])
    rest = {name: tensor for name, tensor in tensors.items() if name not in half}
    shared = {"zz": torch.ones(4)}
    for name, some in (
        ("base", shared),
        ("ours", half | shared),
        ("theirs", rest | shared),
        ("expected", tensors | shared),
    ):
        save_torch(some, tmp_path / f"{name}.safetensors")
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "ours", "theirs", "expected")]
    assert done(merge(paths[:3])).read_bytes() == paths[3].read_bytes()


def test_names_in_any_script_survive(tmp_path: Path) -> None:
    base = {"größe": np.zeros(3), 'quote"\\': np.ones(2)}
    found = merge(three(tmp_path, base, base | {"mine": np.ones(1)}, base | {"層": np.ones(1)}))
    assert set(load_file(done(found))) == {*base, "mine", "層"}


def test_metadata_of_the_file_is_merged_key_by_key(tmp_path: Path) -> None:
    arrays = model()
    base = saved(tmp_path, "base", arrays, {"format": "pt", "epoch": "1", "old": "x"})
    ours = saved(tmp_path, "ours", arrays, {"format": "pt", "epoch": "2", "old": "x"})
    theirs = saved(tmp_path, "theirs", arrays, {"format": "pt", "epoch": "1", "by": "Ada"})
    with SafetensorsReader(done(merge([base, ours, theirs]))) as reader:
        assert reader.metadata == {"format": "pt", "epoch": "2", "by": "Ada"}
    theirs = saved(tmp_path, "theirs", arrays, {"format": "pt", "epoch": "3", "old": "x"})
    assert conflicts(merge([base, ours, theirs])) == {"__metadata__.epoch": "changed on both sides"}
    assert (
        done(merge([base, ours, theirs], "conflict", ("__metadata__.*", "theirs"))).read_bytes() == theirs.read_bytes()
    )


def test_a_conflict_leaves_what_was_there(tmp_path: Path) -> None:
    base = model()
    paths = three(tmp_path, base, {k: v + 1 for k, v in base.items()}, {k: v + 2 for k, v in base.items()})
    output = tmp_path / "merged.safetensors"
    output.write_bytes(b"before")
    assert set(conflicts(merge(paths))) == set(base)
    assert output.read_bytes() == b"before"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["merged.safetensors", *(p.name for p in paths)])


def test_the_result_may_take_the_place_of_ours(tmp_path: Path) -> None:
    base = model()
    ours = base | {"layers.0.weight": base["layers.0.weight"] + 1}
    theirs = base | {"layers.1.weight": base["layers.1.weight"] + 1}
    paths = three(tmp_path, base, ours, theirs)
    paths[1].chmod(0o640)
    sides = [Side(str(path), path) for path in paths]
    found = merge_models(sides[0], sides[1], sides[2], paths[1])
    assert np.array_equal(load_file(done(found))["layers.1.weight"], theirs["layers.1.weight"])
    assert paths[1].stat().st_mode & 0o777 == 0o640


def test_a_side_that_is_written_meanwhile_is_noticed(tmp_path: Path) -> None:
    base = model()
    ours = base | {"layers.0.weight": base["layers.0.weight"] + 1}
    theirs = base | {"layers.1.weight": base["layers.1.weight"] + 1}
    paths = three(tmp_path, base, ours, theirs)
    tables = [table_of(path) for path in paths]
    with paths[2].open("r+b") as file:
        file.seek(-4 * 32 * 32 * 3, os.SEEK_END)
        file.write(b"\1" * 4096)
    sides = [Side(str(path), path, table) for path, table in zip(paths, tables, strict=True)]
    with pytest.raises(BadModelError, match=r"layers.1.weight.* is not what was to be written"):
        merge_models(sides[0], sides[1], sides[2], tmp_path / "merged.safetensors")
    assert not (tmp_path / "merged.safetensors").exists()
    assert len(list(tmp_path.iterdir())) == 3


def test_an_interrupted_merge_leaves_what_was_there(tmp_path: Path) -> None:
    base = model()
    ours = base | {"layers.0.weight": base["layers.0.weight"] + 1}
    theirs = base | {"layers.1.weight": base["layers.1.weight"] + 1}
    base_path, ours_path, theirs_path = three(tmp_path, base, ours, theirs)
    before = ours_path.read_bytes()
    left = sum(path.stat().st_size for path in (base_path, ours_path, theirs_path))

    def stop(n_bytes: int) -> None:
        nonlocal left
        left -= n_bytes
        if left < 0:  # the sides were read: it is being written
            raise KeyboardInterrupt

    sides = [Side(str(path), path) for path in (base_path, ours_path, theirs_path)]
    with pytest.raises(KeyboardInterrupt):
        merge_models(sides[0], sides[1], sides[2], ours_path, progress=stop)
    assert ours_path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


def table_of(path: Path) -> TensorTable:
    reader = open_reader(path)
    assert reader is not None
    with reader:
        return describe_tensors(reader, "0" * 32)


@pytest.mark.parametrize("strategy", ["mean", "ties", "slerp"])
def test_tables_of_the_sides_give_the_table_of_the_result(tmp_path: Path, strategy: str) -> None:
    base = model()
    ours = base | {"layers.0.weight": base["layers.0.weight"] + 1, "layers.1.weight": base["layers.1.weight"] * 2}
    theirs = {k.replace("layers.3", "layers.4"): v for k, v in base.items()} | {
        "layers.1.weight": base["layers.1.weight"] * 3
    }
    paths = three(tmp_path, base, ours, theirs)
    sides = [Side(path.name, path, table_of(path)) for path in paths]
    found = merge_models(sides[0], sides[1], sides[2], tmp_path / "merged.safetensors", Rules(parse_strategy(strategy)))
    assert found.table is not None
    assert found.table.rows == table_of(done(found)).rows
    assert merge(paths, strategy).table is None


def test_a_rename_on_one_side_and_a_change_on_the_other_meet(tmp_path: Path) -> None:
    base = model()
    ours = base | {"layers.2.weight": base["layers.2.weight"] + 1}
    theirs = {f"model.{name}": values for name, values in base.items()}
    merged = load_file(done(merge(three(tmp_path, base, ours, theirs))))
    assert set(merged) == set(theirs)
    assert np.array_equal(merged["model.layers.2.weight"], ours["layers.2.weight"])


def test_an_inserted_layer_and_a_change_of_one_behind_it_meet(tmp_path: Path) -> None:
    base = model()
    ours = base | {"layers.3.weight": base["layers.3.weight"] * 2}
    new = np.random.default_rng(9).standard_normal((32, 32)).astype(np.float32)
    theirs = {"layers.0.weight": new} | {f"layers.{i + 1}.weight": base[f"layers.{i}.weight"] for i in range(4)}
    merged = load_file(done(merge(three(tmp_path, base, ours, theirs))))
    assert np.array_equal(merged["layers.4.weight"], ours["layers.3.weight"])
    assert all(np.array_equal(merged[k], theirs[k]) for k in theirs if k != "layers.4.weight")


# Values


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_a_mean_is_rounded_to_the_dtype(tmp_path: Path, kind: Any) -> None:
    rng = np.random.default_rng(3)
    dtype = {"float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}[kind.__name__]
    sides = [rng.standard_normal(300).astype(kind) for _ in range(3)]
    for name, values in zip(("base", "ours", "theirs"), sides, strict=True):
        write_raw(tmp_path / f"{name}.safetensors", dtype, values)
    path = done(merge([tmp_path / f"{name}.safetensors" for name in ("base", "ours", "theirs")], "mean"))
    exact = (sides[1].astype(np.float32) + sides[2].astype(np.float32)) / 2
    assert path.read_bytes()[-300 * sides[0].itemsize :] == exact.astype(kind).tobytes()


def write_raw(path: Path, dtype: str, values: NDArray[Any]) -> None:
    text = f'{{"w":{{"dtype":"{dtype}","shape":[{values.size}],"data_offsets":[0,{values.nbytes}]}}}}'.encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + values.tobytes())


def test_float64_is_combined_in_float64(tmp_path: Path) -> None:
    ours, theirs = {"w": np.array([1.0 + 1e-15, 2.0])}, {"w": np.array([1.0 + 3e-15, 2.0])}
    merged = load_file(done(merge(three(tmp_path, {"w": np.zeros(2)}, ours, theirs), "mean")))["w"]
    assert merged[0] == (ours["w"][0] + theirs["w"][0]) / 2 != 1.0


def test_tensors_larger_than_a_block_are_combined_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    base, ours, theirs = ({"w": rng.standard_normal(400_001).astype(np.float32)} for _ in range(3))
    paths = three(tmp_path, base, ours, theirs)
    exact = {key: side["w"].astype(np.float64) for key, side in (("b", base), ("o", ours), ("t", theirs))}
    merged = load_file(done(merge(paths, "task-arithmetic:scale=0.5")))["w"]
    expected = exact["b"] + 0.5 * ((exact["o"] - exact["b"]) + (exact["t"] - exact["b"]))
    assert np.array_equal(merged, expected.astype(np.float32))
    first = done(merge(paths, "dare:seed=3")).read_bytes()
    assert done(merge(paths, "dare:seed=3")).read_bytes() == first
    assert done(merge(paths, "dare:seed=4")).read_bytes() != first


def test_complex_values_are_combined_by_part(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.npz" for name in ("base", "ours", "theirs")]
    values = [np.array([1 + 2j, 3j], np.complex64) * (i + 1) for i in range(3)]
    for path, value in zip(paths, values, strict=True):
        np.savez(path, w=value)
    with np.load(done(merge(paths, "mean"))) as merged:
        assert np.array_equal(merged["w"], (values[1] + values[2]) / 2)


def test_values_that_are_not_finite_are_told(tmp_path: Path) -> None:
    base, ours, theirs = ({"w": np.full(10, v, np.float32), "v": np.full(4, v, np.float32)} for v in (1.0, 2.0, 3.0))
    ours["w"][3], theirs["w"][4], theirs["w"][5] = np.nan, np.inf, -np.inf
    found = merge(three(tmp_path, base, ours, theirs), "mean")
    assert found.notes == ("w: 3 values of the result are NaN or infinite (1 in ours, 2 in theirs)",)
    assert np.flatnonzero(~np.isfinite(load_file(done(found))["w"])).tolist() == [3, 4, 5]


def test_values_beyond_the_range_of_the_dtype_are_told(tmp_path: Path) -> None:
    base, ours, theirs = ({"w": np.full(10, v, np.float16)} for v in (0, 60_000, 50_000))
    found = merge(three(tmp_path, base, ours, theirs), "task-arithmetic")
    assert found.notes == ("w: 10 values of the result are NaN or infinite (10 beyond the range of F16)",)


def test_integers_are_never_averaged(tmp_path: Path) -> None:
    base, ours, theirs = ({"n": np.array([v]), "w": np.full(3, v, np.float32)} for v in (1, 5, 9))
    paths = three(tmp_path, base, ours, theirs)
    assert conflicts(merge(paths, "mean")) == {
        "n": "changed on both sides; I64 values are not combined, say ours or theirs"
    }
    merged = load_file(done(merge(paths, "mean", ("n", "theirs"))))
    assert (merged["n"][0], merged["w"][0]) == (9, 7.0)


# PyTorch


def torch_three(folder: Path, change: Callable[[Any, str], None], **options: Any) -> tuple[Path, Path, Path]:
    torch: Any = pytest.importorskip("torch")
    paths = []
    for side in ("base", "ours", "theirs"):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
        change(net, side)
        paths.append(folder / f"{side}.pt")
        torch.save(net.state_dict(), paths[-1], **options)
    return paths[0], paths[1], paths[2]


def _train_apart(net: Any, side: str) -> None:
    if side != "base":
        net[0 if side == "ours" else 2].weight.data += 1


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "stream"])
def test_torch_loads_the_result_without_unpickling_anything_else(tmp_path: Path, is_zip: bool) -> None:
    torch: Any = pytest.importorskip("torch")
    paths = torch_three(tmp_path, _train_apart, _use_new_zipfile_serialization=is_zip)
    path = done(merge(paths))
    merged, ours, theirs = (torch.load(p, weights_only=True) for p in (path, paths[1], paths[2]))
    assert list(merged) == list(ours)
    assert torch.equal(merged["0.weight"], ours["0.weight"])
    assert torch.equal(merged["2.weight"], theirs["2.weight"])
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None


def test_a_tensor_that_theirs_added_to_a_torch_file_comes_with_it(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")

    def change(net: Any, side: str) -> None:
        if side == "ours":
            net[0].weight.data += 1
        if side == "theirs":
            net.append(torch.nn.Linear(2, 2))

    paths = torch_three(tmp_path, change)
    merged = torch.load(done(merge(paths)), weights_only=True)
    assert torch.equal(merged["0.weight"], torch.load(paths[1], weights_only=True)["0.weight"])
    assert torch.equal(merged["3.weight"], torch.load(paths[2], weights_only=True)["3.weight"])


def test_tensors_that_both_sides_added_to_a_torch_file_are_refused(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    paths = [tmp_path / f"{name}.pt" for name in ("base", "ours", "theirs")]
    shared = {"w": torch.zeros(3)}
    for path, more in zip(paths, ({}, {"a": torch.ones(1)}, {"b": torch.ones(2)}), strict=True):
        torch.save(shared | more, path)
    assert conflicts(merge(paths)) == {
        "b": "added by theirs; no side's pytorch file has all of the result, and only values can be replaced in one"
    }


def test_views_that_share_memory_are_not_torn_apart(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    paths = [tmp_path / f"{name}.pt" for name in ("base", "ours", "theirs")]
    for path, (low, other) in zip(paths, ((0, 0), (0, 5), (7, 0)), strict=True):
        whole = torch.arange(10.0)
        whole[:2] += low
        torch.save({"whole": whole, "part": whole[:4], "other": torch.ones(3) * other}, path)
    found = merge(paths)
    merged = torch.load(done(found), weights_only=True)
    assert merged["part"].tolist() == merged["whole"][:4].tolist() == [7.0, 8.0, 2.0, 3.0]


def test_tied_tensors_that_are_combined_stay_tied(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    paths = [tmp_path / f"{name}.pt" for name in ("base", "ours", "theirs")]
    for path, value in zip(paths, (1.0, 2.0, 4.0), strict=True):
        weight = torch.full((3,), value)
        torch.save({"embed": weight, "head": weight}, path)
    merged = torch.load(done(merge(paths, "mean")), weights_only=True)
    assert merged["embed"].tolist() == merged["head"].tolist() == [3.0] * 3
    assert merged["embed"].data_ptr() == merged["head"].data_ptr()


def test_overlapping_views_that_are_to_differ_are_noticed(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    paths = [tmp_path / f"{name}.pt" for name in ("base", "ours", "theirs")]
    for path, value in zip(paths, (1.0, 2.0, 4.0), strict=True):
        whole = torch.full((10,), value)
        torch.save({"part": whole[:4], "whole": whole}, path)
    with pytest.raises(BadModelError, match="is not what was to be written"):
        merge(paths, "mean", ("part", "ours"))
    assert len(list(tmp_path.iterdir())) == 3


def test_a_checkpoint_keeps_the_optimiser_of_ours(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    paths = [tmp_path / f"{name}.pt" for name in ("base", "ours", "theirs")]
    for path, seed in zip(paths, (0, 1, 2), strict=True):
        torch.manual_seed(seed)
        net = torch.nn.Linear(4, 2)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1 * (seed + 1))
        net(torch.randn(1, 4)).sum().backward()
        optimizer.step()
        torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, path)
    found = merge(paths, "mean")
    merged, ours, theirs = (torch.load(p, weights_only=True) for p in (done(found), *paths[1:]))
    assert torch.equal(merged["optimizer"]["state"][0]["exp_avg"], ours["optimizer"]["state"][0]["exp_avg"])
    assert merged["optimizer"]["param_groups"] == ours["optimizer"]["param_groups"]
    expected = (ours["model"]["weight"] + theirs["model"]["weight"]) / 2
    assert torch.allclose(merged["model"]["weight"], expected, atol=1e-7)
    assert found.notes == ("optimiser state is that of ours: it was not trained on the merged weights",)


def test_a_fact_that_both_sides_changed_is_a_conflict_until_a_rule_decides(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    paths = [tmp_path / f"{name}.pt" for name in ("base", "ours", "theirs")]
    for path, epoch in zip(paths, (1, 2, 3), strict=True):
        torch.save({"model": {"w": torch.full((3,), float(epoch))}, "epoch": epoch}, path)
    assert conflicts(merge(paths, "mean")) == {"epoch": "changed on both sides"}
    merged = torch.load(done(merge(paths, "mean", ("epoch", "theirs"))), weights_only=True)
    assert (merged["epoch"], merged["model"]["w"].tolist()) == (3, [2.5] * 3)


# NPZ, HDF5, GGUF, ONNX


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_archives_are_written_as_numpy_writes_them(tmp_path: Path, save: Any) -> None:
    base = some_arrays()
    ours = {**base, "new": np.arange(3), "b.weight": base["b.weight"] + 1}
    theirs = {**base, "half": base["half"] * 2}
    del theirs["ints"]
    merged = {**ours, "half": theirs["half"]}
    del merged["ints"]
    paths = [tmp_path / f"{name}.npz" for name in ("base", "ours", "theirs", "expected")]
    for path, arrays in zip(paths, (base, ours, theirs, merged), strict=True):
        save(path, **arrays)
    path = done(merge(paths[:3]))
    assert path.read_bytes() == paths[3].read_bytes()
    with np.load(path) as found:
        assert found.files == list(merged)


def test_hdf5_files_keep_everything_else(tmp_path: Path) -> None:
    import h5py  # type: ignore[import-untyped]

    paths = [tmp_path / f"{name}.h5" for name in ("base", "ours", "theirs")]
    for path, (a, b) in zip(paths, ((0, 0), (1, 0), (0, 2)), strict=True):
        with h5py.File(path, "w") as file:
            file.attrs["note"] = "kept"
            file["g/a"] = np.full((3, 4), a, np.float32)
            file["g/b"] = np.full(5, b, np.float64)
            file["g"].attrs["units"] = "m"
    with h5py.File(done(merge(paths))) as file:
        assert file["g/a"][()].tolist() == [[1.0] * 4] * 3
        assert file["g/b"][()].tolist() == [2.0] * 5
        assert (file.attrs["note"], file["g"].attrs["units"]) == ("kept", "m")


def test_compressed_values_that_differ_from_both_files_are_refused(tmp_path: Path) -> None:
    import h5py

    paths = [tmp_path / f"{name}.h5" for name in ("base", "ours", "theirs")]
    for path, value in zip(paths, (1, 2, 3), strict=True):
        with h5py.File(path, "w") as file:
            file.create_dataset("w", data=np.full(100, value, np.float32), compression="gzip")
    why = "changed on both sides: mean; its values cannot be replaced in a hdf5 file as they lie there"
    assert conflicts(merge(paths, "mean")) == {"w": why}


def test_the_members_of_a_keras_archive_are_sound(tmp_path: Path) -> None:
    from tests.formats.test_keras import TestKeras

    paths = [tmp_path / f"{name}.keras" for name in ("base", "ours", "theirs")]
    for path, (a, b) in zip(paths, ((0, 0), (1, 0), (0, 2)), strict=True):
        TestKeras().write(path, {"a": np.full(9, a, np.float32), "b": np.full(9, b, np.float32)})
    with zipfile.ZipFile(done(merge(paths))) as archive:
        assert archive.testzip() is None


def test_gguf_keeps_quantised_tensors_as_they_are(tmp_path: Path) -> None:
    gguf: Any = pytest.importorskip("gguf")
    rng = np.random.default_rng(0)
    blocks = [
        gguf.quants.quantize(rng.standard_normal((4, 64)).astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
        for _ in range(3)
    ]
    paths = [tmp_path / f"{name}.gguf" for name in ("base", "ours", "theirs")]

    def write(which: tuple[int, int, int], norms: tuple[float, float, float]) -> None:
        for path, i, norm in zip(paths, which, norms, strict=True):
            writer = gguf.GGUFWriter(path, "llama")
            writer.add_tensor("q", blocks[i], raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor("norm", np.full(8, norm, np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()

    write((0, 1, 0), (1.0, 2.0, 4.0))
    merged = {t.name: t for t in gguf.GGUFReader(done(merge(paths, "mean"))).tensors}
    assert np.array_equal(merged["q"].data, blocks[1])
    assert merged["norm"].data.tolist() == [3.0] * 8
    write((0, 1, 2), (1.0, 1.0, 1.0))
    assert conflicts(merge(paths, "mean")) == {
        "q": "changed on both sides; Q8_0 values are not combined, say ours or theirs"
    }


def test_onnx_checks_the_result(tmp_path: Path) -> None:
    onnx: Any = pytest.importorskip("onnx")
    from tests.formats.test_onnx import model_of, numpy_helper

    paths = [tmp_path / f"{name}.onnx" for name in ("base", "ours", "theirs")]
    for path, (a, b) in zip(paths, ((0, 0), (1, 0), (0, 2)), strict=True):
        onnx.save(
            model_of([numpy_helper.from_array(np.full((2, 2), v, np.float32), n) for n, v in (("a", a), ("b", b))]),
            path,
        )
    merged = onnx.load(done(merge(paths)))
    onnx.checker.check_model(merged)
    assert [float(numpy_helper.to_array(t).max()) for t in merged.graph.initializer] == [1.0, 2.0]


def test_a_graph_that_both_sides_changed_is_a_conflict(tmp_path: Path) -> None:
    onnx: Any = pytest.importorskip("onnx")
    from tests.formats.test_onnx import helper, model_of, numpy_helper

    paths = [tmp_path / f"{name}.onnx" for name in ("base", "ours", "theirs")]
    for path, op in zip(paths, ("Relu", "Tanh", "Sigmoid"), strict=True):
        weight = numpy_helper.from_array(np.ones(2, np.float32), "w")
        onnx.save(model_of([weight], [helper.make_node(op, ["w"], ["y"])]), path)
    found = merge(paths)
    assert found.output is None
    assert all(fact.why == "changed on both sides" for fact in found.plan.conflicts)


def test_ensembles_of_trees_are_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    pytest.importorskip("xgboost")
    from tests.formats.test_xgboost import train

    paths = [tmp_path / f"{name}.ubj" for name in ("base", "ours", "theirs")]
    for path, depth in zip(paths, (2, 2, 3), strict=True):
        path.write_bytes(train(3, max_depth=depth).save_raw("ubj"))
    assert done(merge(paths)).read_bytes() == paths[2].read_bytes()
    paths[1].write_bytes(train(4, max_depth=4).save_raw("ubj"))
    assert conflicts(merge(paths, "mean"))


# Several formats


def test_a_conversion_by_one_side_gives_its_values_to_the_format_of_the_other(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    base, ours = tmp_path / "base.pt", tmp_path / "ours.pt"
    arrays = model()
    tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
    torch.save(tensors, base)
    torch.save(tensors | {"layers.0.weight": tensors["layers.0.weight"] + 1}, ours)
    theirs = saved(tmp_path, "theirs", arrays | {"layers.3.weight": arrays["layers.3.weight"] * 2})
    merged = torch.load(done(merge([base, ours, theirs])), weights_only=True)
    assert np.array_equal(merged["layers.0.weight"].numpy(), arrays["layers.0.weight"] + 1)
    assert np.array_equal(merged["layers.3.weight"].numpy(), arrays["layers.3.weight"] * 2)
    back = done(merge([base, theirs, ours]))
    assert {k: v.tobytes() for k, v in load_file(back).items()} == {k: v.numpy().tobytes() for k, v in merged.items()}


def test_a_dtype_that_the_format_lacks_is_a_conflict(tmp_path: Path) -> None:
    base, ours = tmp_path / "base.npz", tmp_path / "ours.npz"
    for path in (base, ours):
        np.savez(path, w=np.ones(4, np.float32))
    write_raw(tmp_path / "theirs.safetensors", "BF16", np.ones(4, ml_dtypes.bfloat16))
    assert conflicts(merge([base, ours, tmp_path / "theirs.safetensors"])) == {
        "w": "dtype changed by theirs; a file of format npz has no such dtype"
    }


# What is refused


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    good = saved(tmp_path, "good", model())
    odd = tmp_path / "notes.txt"
    odd.write_text("hello")
    with pytest.raises(UsageError, match=r"notes.txt: no reader knows its format"):
        merge([good, good, odd])
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:-10])
    with pytest.raises(BadModelError, match=r"cut.safetensors: ended early"):
        merge([good, good, tmp_path / "cut.safetensors"])
    with pytest.raises(UsageError, match="is a folder, expected three files or three folders"):
        merge([good, good, tmp_path])


def test_an_output_of_another_suffix_is_refused(tmp_path: Path) -> None:
    side = Side("m", saved(tmp_path, "good", model()))
    with pytest.raises(BadModelError, match="suffix of another format"):
        merge_models(side, side, side, tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_an_output_without_a_suffix_is_read_back_as_ours(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.pkl" for name in ("base", "ours", "theirs")]
    for path, value in zip(paths, (1, 1, 2), strict=True):  # a pickle of protocol 0 is known by its suffix alone
        path.write_bytes(pickle.dumps({"w": np.full(3, value)}, 0))
    sides = [Side(path.name, path) for path in paths]
    assert done(merge_models(sides[0], sides[1], sides[2], tmp_path / "object")).read_bytes() == paths[2].read_bytes()


def test_only_a_file_is_replaced(tmp_path: Path) -> None:
    side = Side("m", saved(tmp_path, "good", model()))
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(UsageError, match="is there already, expected a file"):
            merge_models(side, side, side, place)


def test_facts_of_two_files_converted_alike_are_still_compared(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    base = saved(tmp_path, "base", {"w": np.ones(3, np.float32)})
    paths = [tmp_path / f"{name}.pt" for name in ("ours", "theirs")]
    for path, epoch in zip(paths, (1, 2), strict=True):
        torch.save({"w": torch.ones(3), "epoch": epoch}, path)
    assert conflicts(merge([base, *paths])) == {"epoch": "added on both sides"}


# Memory


@pytest.mark.parametrize("strategy", ["conflict", "ties", "slerp", "dare"])
def test_memory_does_not_grow_with_the_model(tmp_path: Path, strategy: str) -> None:
    """Three models of 40 MB, one of their tensors 16 MB, need at most 40 MB more than three of some kilobytes."""
    peaks = []
    for folder, width in ((tmp_path / "small", 32), (tmp_path / "large", 2048)):
        folder.mkdir()
        rng = np.random.default_rng(0)
        base = {f"layers.{i}": rng.standard_normal((width, width // 4 + 1)).astype(np.float32) for i in range(6)}
        base["embed"] = rng.standard_normal((width, width)).astype(np.float32)
        ours = base | {"layers.0": base["layers.0"] * 2}
        theirs = base | {"layers.5": base["layers.5"] * 2}
        if strategy != "conflict":
            ours, theirs = ours | {"embed": base["embed"] * 2}, theirs | {"embed": base["embed"] * 3}
        paths = three(folder, base, ours, theirs)
        command = [*map(str, paths), "-o", str(folder / "merged.safetensors"), "--strategy", strategy]
        peaks.append(_peak_bytes(command))
        if strategy == "conflict":
            expected = saved(folder, "expected", theirs | {"layers.0": ours["layers.0"]})
            assert (folder / "merged.safetensors").read_bytes() == expected.read_bytes()
    assert peaks[1] - peaks[0] < 40e6
    assert peaks[1] < 500e6


def _peak_bytes(arguments: list[str]) -> int:
    # ru_maxrss counts the process that was forked, too.
    code = "import sys; from dvc_modelver.cli import main; assert main(sys.argv[1:]) == 0; "
    code += "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
    text = subprocess.run(
        [sys.executable, "-P", "-c", code, "merge-file", *arguments], check=True, capture_output=True, text=True
    ).stdout
    return int(text.splitlines()[-1]) * 1024


def test_every_take_is_told(tmp_path: Path) -> None:
    base = model()
    ours = base | {"layers.0.weight": base["layers.0.weight"] + 1, "layers.2.weight": base["layers.2.weight"] + 1}
    theirs = base | {"layers.1.weight": base["layers.1.weight"] + 1, "layers.2.weight": base["layers.2.weight"] + 2}
    takes = [d.take for d in merge(three(tmp_path, base, ours, theirs), "mean").plan.tensors]
    assert takes == [Take.OURS, Take.THEIRS, Take.COMBINED, Take.SAME]
