from __future__ import annotations

import io
import json
import struct
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from dvc_modelver.api.compare import compare_files
from dvc_modelver.errors import BadModelError
from dvc_modelver.formats import open_reader
from dvc_modelver.formats.base import Reader
from dvc_modelver.formats.catboost import CatboostReader
from tests.formats.contract import Arrays, CountingFile, ReaderContract, values_of

cb: Any = pytest.importorskip("catboost")

CODES = {"F32": "<f4", "F64": "<f8", "I32": "<i4", "I8": "i1", "U8": "u1"}
KINDS = {"FloatFeature": 0, "OneHotFeature": 2, "OnlineCtr": 3}


@cache
def some_pool(n_classes: int = 2, *, has_categories: bool = False) -> Any:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 3))
    y = x[:, 1] + 0.5 * x[:, 2] + 0.3 * rng.standard_normal(300)
    x[::9, 0] = np.nan
    columns = [*x.T.tolist()]
    if has_categories:
        many, two = rng.integers(0, 30, 300), rng.integers(0, 2, 300)
        y += (many % 3) + two
        columns[1:1] = [many.astype(str).tolist(), two.astype(str).tolist()]
    labels = np.digitize(y, np.quantile(y, np.linspace(0, 1, n_classes + 1)[1:-1]))
    rows = [list(row) for row in zip(*columns, strict=True)]
    names = ["äge", "b", "c", "d", "e"][: len(columns)]
    return cb.Pool(rows, labels, cat_features=[1, 2] if has_categories else [], feature_names=names)


def train(rounds: int = 3, pool: Any = None, init_model: Any = None, **params: Any) -> Any:
    wanted = {"depth": 3, "loss_function": "Logloss", "random_seed": 0, "thread_count": 1, "learning_rate": 0.3}
    model = cb.CatBoost({**wanted, **params, "iterations": rounds, "allow_writing_files": False})
    return model.fit(pool or some_pool(), verbose=False, init_model=init_model)


MODELS: dict[str, dict[str, Any]] = {
    "symmetric": {},
    "classes": {"loss_function": "MultiClass", "pool": some_pool(3)},
    "categories": {"pool": some_pool(has_categories=True), "max_ctr_complexity": 2, "rounds": 8},
    "depthwise": {"grow_policy": "Depthwise", "depth": 5},
    "lossguide": {"grow_policy": "Lossguide", "depth": 6, "max_leaves": 9},
    "lossguide classes": {"grow_policy": "Lossguide", "loss_function": "MultiClass", "pool": some_pool(3)},
    "depthwise categories": {"grow_policy": "Depthwise", "pool": some_pool(has_categories=True), "one_hot_max_size": 50},
    "with a bias": {"loss_function": "RMSE", "boost_from_average": True},
    "without splits": {"loss_function": "RMSE", "grow_policy": "Lossguide", "min_data_in_leaf": 400},
}  # fmt: skip


def saved(model: Any, kind: str, pool: Any = None) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder, "model")
        model.save_model(str(path), format=kind, pool=pool)
        return path.read_bytes()


def arrays_of_export(exported: dict[str, Any]) -> Arrays:
    """Give what CatBoost's own JSON export says."""
    info = exported["features_info"]
    columns = {
        "FloatFeature": {f["feature_index"]: f["flat_feature_index"] for f in info["float_features"]},
        "OneHotFeature": {f["feature_index"]: f["flat_feature_index"] for f in info.get("categorical_features", [])},
    }
    ctr_of_bin: dict[int, int] = {}
    first = sum(len(f["borders"] or []) for f in info["float_features"])
    first += sum(len(f.get("values", [])) for f in info.get("categorical_features", []))
    for i, ctr in enumerate(info.get("ctrs", [])):
        ctr_of_bin |= {first + k: i for k in range(len(ctr["borders"]))}
        first += len(ctr["borders"])
    scale, bias = exported["scale_and_bias"]
    assert scale == 1
    found: dict[str, Any] = {"bias": np.array(bias, "<f8")}
    for number, tree in enumerate(exported["oblivious_trees" if "oblivious_trees" in exported else "trees"]):
        splits, values, children = flattened(tree)
        prefix = f"trees.{number:04d}."
        kinds = [s["split_type"] for s in splits]
        feature = [
            ctr_of_bin[s["split_index"]] if s["split_type"] == "OnlineCtr"
            else columns[s["split_type"]][s["float_feature_index" if "border" in s else "cat_feature_index"]]
            for s in splits
        ]  # fmt: skip
        found |= {
            prefix + "feature": np.array(feature, "<i4"),
            prefix + "kind": np.array([KINDS[kind] for kind in kinds], "i1"),
            prefix + "threshold": np.array([s.get("border", 0.0) for s in splits], "<f4"),
            prefix + "value": np.array(values, "<f8"),
        }
        if children is not None:
            found[prefix + "children"] = np.array(children, "<i4").reshape(-1, 2)
        if "OneHotFeature" in kinds:
            found[prefix + "categories"] = np.array(
                [(i, s["value"]) for i, s in enumerate(splits) if "value" in s], "<i4"
            )
    return found


def flattened(tree: dict[str, Any]) -> tuple[list[Any], Any, Any]:
    """Give splits, leaf values and children of an exported tree, breadth first."""
    if "leaf_values" in tree:
        n_leaves = len(tree["leaf_weights"])
        values = np.array(tree["leaf_values"])
        return tree["splits"] or [], values if len(values) == n_leaves else values.reshape(n_leaves, -1), None
    nodes = [tree]
    for node in nodes:
        nodes += [node["left"], node["right"]] if "split" in node else []
    splits, leaves = [n for n in nodes if "split" in n], [n for n in nodes if "split" not in n]
    numbers = {id(n): i for i, n in enumerate(splits)} | {id(n): ~i for i, n in enumerate(leaves)}
    children = [(numbers[id(n["left"])], numbers[id(n["right"])]) for n in splits]
    return [n["split"] for n in splits], [n["value"] for n in leaves], children


def arrays_of(reader: Reader) -> Arrays:
    values = values_of(reader)
    return {s.name: np.frombuffer(values[s.name], CODES[s.dtype]).reshape(s.shape) for s in reader.specs}


class TestCatboost(ReaderContract):
    has_extents = False
    suffix = ".cbm"
    model = train(2, depth=2)

    def arrays(self) -> Arrays:
        return arrays_of_export(json.loads(saved(self.model, "json")))

    def write(self, path: Path, arrays: Arrays) -> None:
        path.write_bytes(saved(self.model, "cbm"))

    def test_a_merge_has_the_values_of_both_sides(self, tmp_path: Path) -> None:
        pytest.skip("the library makes the values: tests/merge/test_files.py merges ensembles")

    def test_a_listing_reads_the_header_only(self, tmp_path: Path) -> None:
        pool = cb.Pool(np.random.default_rng(0).standard_normal((2_000, 5)), np.arange(2_000) % 2)
        data = saved(train(10, pool, depth=14), "cbm")
        file = CountingFile(data)
        with CatboostReader(file) as reader:
            assert {s.name: s.shape for s in reader.specs}["trees.0003.value"] == (1 << 14,)
        assert file.n_read < len(data) / 10

    def test_a_file_cut_anywhere_is_one_line(self, tmp_path: Path) -> None:
        for cut in (*range(1, 64), *range(64, len(GOOD), 29)):
            with pytest.raises(BadModelError) as caught:
                open_reader(io.BytesIO(GOOD[:cut]), "cut.cbm")
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", MODELS)
def test_every_value_is_what_the_own_export_says(kind: str) -> None:
    model = train(**MODELS[kind])
    data = saved(model, "cbm")
    exported = json.loads(saved(model, "json", MODELS[kind].get("pool")))
    with CatboostReader(io.BytesIO(data)) as reader:
        found, expected = arrays_of(reader), arrays_of_export(exported)
        facts = dict(reader.structure)
    parts = found.pop("parts", None)
    assert (parts is not None) == ("ctrs.0.type" in facts) == ("ctrs" in exported["features_info"])
    if parts is not None:
        assert data.endswith(parts.tobytes())
        assert len(data) == 8 + struct.unpack_from("<I", data, 4)[0] + len(parts)
    assert sorted(found) == sorted(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert facts["trees"] == model.tree_count_
    assert facts["params.boosting_options.learning_rate"] == pytest.approx(0.3)
    assert facts["feature_names.0"] == "äge"
    assert facts["missing.0"] == "AsFalse"
    assert kind != "without splits" or found["trees.0000.feature"].size == 0


def test_the_models_above_have_what_they_are_there_for() -> None:
    found = {}
    for kind in ("categories", "depthwise categories", "lossguide", "classes"):
        with CatboostReader(io.BytesIO(saved(train(**MODELS[kind]), "cbm"))) as reader:
            found[kind] = arrays_of(reader), dict(reader.structure)
    kinds = np.concatenate([v for k, v in found["categories"][0].items() if k.endswith("kind")])
    assert {0, 3} <= set(kinds.tolist())
    assert any(k.endswith("categories") for k in found["depthwise categories"][0])
    assert any(
        k.endswith("float_splits") or "," in str(v) for k, v in found["categories"][1].items() if k.startswith("ctrs")
    )
    assert "trees.0000.children" in found["lossguide"][0]
    assert found["classes"][0]["trees.0000.value"].shape[1:] == (3,)


def test_a_tree_says_what_catboost_predicts() -> None:
    model = train(1, loss_function="RMSE", boost_from_average=False)
    with CatboostReader(io.BytesIO(saved(model, "cbm"))) as reader:
        found = arrays_of(reader)
    x = np.random.default_rng(1).standard_normal((50, 3)).astype(np.float32)
    answers = x[:, found["trees.0000.feature"]] > found["trees.0000.threshold"]
    leaves = (answers << np.arange(answers.shape[1])).sum(axis=1)
    np.testing.assert_array_equal(model.predict(x), found["trees.0000.value"][leaves] + found["bias"])


def test_texts_are_read_as_estimates() -> None:
    rng = np.random.default_rng(0)
    words = np.array(["red", "green", "blue", "dog", "cat"])
    rows = [[" ".join(rng.choice(words, 4))] for _ in range(100)]
    pool = cb.Pool(rows, [int("dog" in row[0]) for row in rows], text_features=[0])
    data = saved(train(3, pool), "cbm")
    with CatboostReader(io.BytesIO(data)) as reader:
        found = arrays_of(reader)
    assert found["trees.0000.kind"].tolist() == [1] * len(found["trees.0000.kind"])
    assert len(found["trees.0000.kind"])
    assert data.endswith(found["parts"].tobytes())


def test_more_rounds_are_trees_added(tmp_path: Path) -> None:
    first = train(10)
    train(10, init_model=first).save_model(str(tmp_path / "new.cbm"))
    first.save_model(str(tmp_path / "old.cbm"))
    for exact in (False, True):
        found = compare_files(tmp_path / "old.cbm", tmp_path / "new.cbm", exact=exact)
        changes: dict[str, set[str]] = {}
        for tensor in found.tensors:
            changes.setdefault(tensor.change, set()).add(tensor.name.rpartition(".")[0])
        assert changes == {
            "unchanged": {"", *(f"trees.{i:04d}" for i in range(10))},
            "added": {f"trees.{i:04d}" for i in range(10, 20)},
        }
        assert ("trees", 10, 20) in {(fact.name, fact.old, fact.new) for fact in found.structure}


GOOD = saved(TestCatboost.model, "cbm")
HOSTILE = {
    "only a mark": b"CBM1",
    "a length only": b"CBM1\0\0\0\0",
    "too long": GOOD[:4] + b"\xff\xff\xff\xff" + GOOD[8:],
    "one byte more": GOOD + b"\0",
    "one byte less": GOOD[:4] + struct.pack("<I", len(GOOD) - 9) + GOOD[8:-1],
    "root out of reach": GOOD[:8] + b"\xff\xff\xff\x7f" + GOOD[12:],
    "root is the root": GOOD[:8] + b"\0\0\0\0" + GOOD[12:],
    "another version": GOOD.replace(b"FlabuffersModel_v1", b"FlabuffersModel_v9"),
    "no version": GOOD.replace(b"FlabuffersModel_v1", b"\xff" * 18),
    "all ones": GOOD[:8] + b"\xff" * 4096,
    "all zeros": b"CBM1" + struct.pack("<I", 4096) + b"\0" * 4096,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bad.cbm"
    path.write_bytes(HOSTILE[kind])
    with pytest.raises(BadModelError) as caught, CatboostReader(path) as reader:
        values_of(reader)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith(str(path))


def with_one_shared_feature(n_features: int, n_borders: int = 0, n_name_bytes: int = 0) -> bytes:
    """Give a model whose list of features names one feature again and again, which FlatBuffers allow."""
    data = bytearray(b"CBM1" + b"\0" * 8)

    def add(raw: bytes) -> int:
        at = len(data)
        data.extend(raw)
        return at

    def table(*slots: int) -> int:
        names = add(struct.pack(f"<HH{len(slots)}H", 4 + 2 * len(slots), 24, *slots))
        return add(struct.pack("<i5i", len(data) - names, 1, 0, 0, 0, 0))

    def link(at: int, target: int) -> None:
        struct.pack_into("<I", data, at, target - at)

    core = table(4, 8)
    link(8, core)
    link(core + 4, add(struct.pack("<I", 18) + b"FlabuffersModel_v1"))
    trees = table(4, 0, 0, 0, 0, 8)
    link(core + 8, trees)
    link(trees + 8, add(struct.pack("<I", n_features)))
    items = add(b"\0" * (4 * n_features))
    feature = table(0, 0, 4, 8, 12)
    link(feature + 8, add(struct.pack("<I", n_borders) + b"\0" * (4 * n_borders)))
    link(feature + 12, add(struct.pack("<I", n_name_bytes) + b"a" * n_name_bytes))
    for i in range(n_features):
        link(items + 4 * i, feature)
    struct.pack_into("<I", data, 4, len(data) - 8)
    return bytes(data)


def test_a_shared_feature_is_read_within_bounds() -> None:
    with CatboostReader(io.BytesIO(with_one_shared_feature(100, 9, 5))) as reader:
        assert [spec.name for spec in reader.specs] == ["bias"]
        assert reader.structure["feature_names.1"] == "aaaaa"
    for hostile in ((50_000, 0, 1 << 20), (50_000, 1 << 20, 0), (150_000, 0, 0)):
        with pytest.raises(BadModelError):
            CatboostReader(io.BytesIO(with_one_shared_feature(*hostile)), "x")


def int_vectors(data: bytes, values: list[int]) -> int:
    """Find where a vector of these numbers lies, by its length and items."""
    raw = struct.pack(f"<{len(values) + 1}i", len(values), *values)
    assert data.count(raw) == 1
    return data.index(raw)


@pytest.mark.parametrize("sizes", [[2, 3], [-1, 5], [2, 2**30], [31, 31], [1, 2]])
def test_trees_of_other_sizes_are_refused(sizes: list[int]) -> None:
    pool, n_trees = some_pool(), 2
    data = saved(train(n_trees, pool, depth=2), "cbm")
    at = int_vectors(data, [2, 2])
    with pytest.raises(BadModelError):
        CatboostReader(io.BytesIO(data[: at + 4] + struct.pack("<2i", *sizes) + data[at + 12 :]))


@pytest.mark.parametrize("kind", ["symmetric", "categories", "lossguide", "classes"])
def test_any_flipped_byte_is_read_or_refused(kind: str) -> None:
    data = saved(train(**MODELS[kind]), "cbm")
    rng = np.random.default_rng(1)
    for at in rng.integers(0, len(data), 1_000):
        broken = bytearray(data)
        broken[at] ^= int(rng.integers(1, 256))
        try:
            with CatboostReader(io.BytesIO(bytes(broken)), "x") as reader:
                values_of(reader, 1 << 16)
        except BadModelError as err:
            assert "\n" not in str(err)


def test_another_file_is_not_claimed(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"CBM2" + GOOD[4:])
    assert open_reader(tmp_path / "x.bin") is None
