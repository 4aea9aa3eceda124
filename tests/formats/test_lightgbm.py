from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dvc_modelver.api.compare import compare_files
from dvc_modelver.errors import BadModelError
from dvc_modelver.formats import open_reader
from dvc_modelver.formats.base import Reader
from dvc_modelver.formats.lightgbm import LightgbmReader, open_text
from tests.formats.contract import Arrays, CountingFile, ReaderContract, values_of

lgb: Any = pytest.importorskip("lightgbm")

CODES = {"F64": "<f8", "I32": "<i4", "I8": "i1"}


def some_data(n_classes: int = 2, n_categories: int = 0) -> Any:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 4))
    y = x[:, 1] + 0.5 * x[:, 2] + 0.3 * rng.standard_normal(400)
    if n_categories:
        x[:, 3] = rng.integers(0, n_categories, 400)
        y += x[:, 3] % 3
    x[::7, 0] = np.nan
    x[::5, 2] = 0
    labels = np.digitize(y, np.quantile(y, np.linspace(0, 1, n_classes + 1)[1:-1]))
    names = ["äge", "b", "c", "d"]
    return lgb.Dataset(
        x, labels, feature_name=names, categorical_feature=[3] if n_categories else [], free_raw_data=False
    )


def train(rounds: int = 3, data: Any = None, **params: Any) -> Any:
    wanted = {"num_leaves": 9, "verbose": -1, "num_threads": 1, "objective": "binary", "min_data_in_leaf": 3, **params}
    return lgb.train(wanted, data or some_data(), rounds)


CATEGORICAL = {"max_cat_to_onehot": 1, "min_data_per_group": 1, "cat_smooth": 1, "cat_l2": 0.1}
MODELS: dict[str, dict[str, Any]] = {
    "binary": {},
    "classes": {"objective": "multiclass", "num_class": 3, "data": some_data(3)},
    "categories": {"data": some_data(2, 90), **CATEGORICAL},
    "onehot": {"data": some_data(2, 5), "max_cat_to_onehot": 10},
    "dart": {"boosting": "dart", "drop_rate": 0.9, "rounds": 5},
    "forest": {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
    "constant": {"min_data_in_leaf": 399},
    "zeros are missing": {"zero_as_missing": True},
    "no missing": {"use_missing": False},
    "linear": {"linear_tree": True, "objective": "regression"},
}  # fmt: skip


def arrays_of_dump(model: Any) -> Arrays:
    """Give what LightGBM's own dump says, in breadth-first order."""
    found: dict[str, Any] = {}
    for number, tree in enumerate(model.dump_model()["tree_info"]):
        nodes = [tree["tree_structure"]]
        for node in nodes:
            nodes += [node["left_child"], node["right_child"]] if "split_index" in node else []
        splits, leaves = [n for n in nodes if "split_index" in n], [n for n in nodes if "split_index" not in n]
        numbers = {id(n): i for i, n in enumerate(splits)} | {id(n): ~i for i, n in enumerate(leaves)}
        children = [(numbers[id(n["left_child"])], numbers[id(n["right_child"])]) for n in splits]
        is_set = [n["decision_type"] == "==" for n in splits]
        missing = {"None": 0, "Zero": 1, "NaN": 2}
        kinds = [
            s + 2 * n["default_left"] + 4 * missing[n["missing_type"]] for s, n in zip(is_set, splits, strict=True)
        ]
        sets = [
            (i, int(c))
            for i, (s, n) in enumerate(zip(is_set, splits, strict=True))
            if s
            for c in n["threshold"].split("||")
        ]
        prefix = f"trees.{number:04d}."
        found |= {
            prefix + "feature": np.array([n["split_feature"] for n in splits], "<i4"),
            prefix + "threshold": np.array(
                [0.0 if s else n["threshold"] for s, n in zip(is_set, splits, strict=True)], "<f8"
            ),
            prefix + "decision_type": np.array(kinds, "i1"),
            prefix + "children": np.array(children, "<i4").reshape(-1, 2),
            prefix + "value": np.array([n["leaf_value"] for n in leaves], "<f8"),
            prefix + "count": np.array([n.get("leaf_count", 0) for n in leaves], "<i4"),
        }
        if sets:
            found[prefix + "categories"] = np.array(sets, "<i4")
        if "leaf_const" in leaves[0]:
            terms = [
                (i, f, c) for i, n in enumerate(leaves)
                for f, c in sorted(zip(n["leaf_features"], n["leaf_coeff"], strict=True))
            ]  # fmt: skip
            found[prefix + "linear_const"] = np.array([n["leaf_const"] for n in leaves], "<f8")
            if terms:
                found[prefix + "linear_terms"] = np.array([t[:2] for t in terms], "<i4")
                found[prefix + "linear_coeff"] = np.array([t[2] for t in terms], "<f8")
    return found


def arrays_of(reader: Reader) -> Arrays:
    values = values_of(reader)
    return {s.name: np.frombuffer(values[s.name], CODES[s.dtype]).reshape(s.shape) for s in reader.specs}


def text_of(model: Any) -> bytes:
    text: str = model.model_to_string()
    return text.encode()


class TestLightgbm(ReaderContract):
    has_extents = False
    suffix = ".lgb"
    model = train(2, num_leaves=4)

    def arrays(self) -> Arrays:
        return arrays_of_dump(self.model)

    def write(self, path: Path, arrays: Arrays) -> None:
        self.model.save_model(path)

    def test_a_merge_has_the_values_of_both_sides(self, tmp_path: Path) -> None:
        pytest.skip("the library makes the values: tests/merge/test_files.py merges ensembles")

    def test_a_listing_reads_the_header_only(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        data = lgb.Dataset(rng.standard_normal((20_000, 2)), rng.standard_normal(20_000))
        text = text_of(train(3, data, objective="regression", num_leaves=5_000))
        file = CountingFile(text)
        with LightgbmReader(file) as reader:
            assert reader.specs[0].shape == (4_999, 2)
        assert file.n_read < len(text) / 10

    def test_a_file_cut_anywhere_is_one_line(self, tmp_path: Path) -> None:
        text = text_of(self.model)
        needed = text.index(b"end of trees") + len(b"end of trees\n")
        at_parameters = text.index(b"parameters:\n") + len(b"parameters:\n")
        for cut in (*range(1, at_parameters + 30), *range(at_parameters + 30, text.index(b"end of parameters"), 97)):
            path = tmp_path / "cut.lgb"
            path.write_bytes(text[:cut])
            if needed <= cut < at_parameters:
                continue  # LightGBM writes models without parameters, too
            with pytest.raises(BadModelError) as caught:
                open_reader(path)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", MODELS)
def test_every_value_is_what_the_own_dump_says(kind: str) -> None:
    model = train(**MODELS[kind])
    with open_text(text_of(model), "x") as reader:
        found, expected = arrays_of(reader), arrays_of_dump(model)
        facts = dict(reader.structure)
    assert sorted(found) == sorted(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert facts["trees"] == model.num_trees()
    assert facts["num_class"] == str(MODELS[kind].get("num_class", 1))
    assert facts["parameters.num_leaves"] == "9"
    assert facts["feature_names.0"] == "äge"
    assert ("average_output" in facts) == (kind == "forest")


def test_the_models_above_have_what_they_are_there_for() -> None:
    names = {kind: {name.split(".")[-1] for name in arrays_of_dump(train(**MODELS[kind]))} for kind in MODELS}
    assert "categories" in names["categories"]
    assert "categories" in names["onehot"]
    assert "linear_coeff" in names["linear"]
    assert "children" in names["constant"]


def test_a_model_without_trees_has_no_tensors() -> None:
    model = lgb.Booster({"verbose": -1}, some_data())
    with open_text(text_of(model), "x") as reader:
        assert reader.specs == ()
        assert reader.structure["trees"] == 0


def test_a_pickled_boosters_text_is_read() -> None:
    model = train(2)
    text = model.__getstate__()["_handle"].encode()
    with open_text(text, "booster") as reader:
        assert arrays_of(reader).keys() == arrays_of_dump(model).keys()


def test_ten_more_rounds_are_ten_trees_added(tmp_path: Path) -> None:
    data = some_data()
    first = train(10, data)
    first.save_model(tmp_path / "old.txt")
    more = lgb.train({"num_leaves": 9, "verbose": -1, "objective": "binary"}, data, 10, init_model=first)
    more.save_model(tmp_path / "new.txt")
    for exact in (False, True):
        found = compare_files(tmp_path / "old.txt", tmp_path / "new.txt", exact=exact)
        changes: dict[str, set[str]] = {}
        for tensor in found.tensors:
            changes.setdefault(tensor.change, set()).add(tensor.name.rpartition(".")[0])
        assert changes == {
            "unchanged": {f"trees.{i:04d}" for i in range(10)},
            "added": {f"trees.{i:04d}" for i in range(10, 20)},
        }
        facts = {fact.name: (fact.old, fact.new) for fact in found.structure}
        assert facts["trees"] == (10, 20)
        assert facts["parameters.min_data_in_leaf"] == ("3", "20")


def test_refitted_leaves_are_the_only_change(tmp_path: Path) -> None:
    model = train(3)
    model.save_model(tmp_path / "old.txt")
    data = some_data()
    model.refit(data.data, 1 - data.label).save_model(tmp_path / "new.txt")
    found = compare_files(tmp_path / "old.txt", tmp_path / "new.txt", exact=True)
    assert {t.name for t in found.tensors if t.change != "unchanged"} == {f"trees.000{i}.value" for i in range(3)}


GOOD = text_of(TestLightgbm.model)
SETS = text_of(train(1, some_data(2, 90), **CATEGORICAL))
LINEAR = text_of(train(2, objective="regression", linear_tree=True))


def edited(text: bytes, pattern: str, replacement: str) -> bytes:
    """Change the first match and keep tree_sizes right, so that the change itself is met."""
    start = text.index(b"Tree=0")
    sizes = re.search(rb"tree_sizes=([0-9 ]*)", text)
    assert sizes is not None
    length = int(sizes[1].split()[0])
    block = text[start : start + length]
    changed = re.sub(pattern.encode(), replacement.encode(), block, count=1, flags=re.MULTILINE)
    assert changed != block
    rest = b" ".join([str(len(changed)).encode(), *sizes[1].split()[1:]])
    return text[: sizes.start(1)] + rest + text[sizes.end(1) : start] + changed + text[start + length :]


def replaced(text: bytes, old: str, new: str) -> bytes:
    assert old.encode() in text
    return text.replace(old.encode(), new.encode(), 1)


HOSTILE = {
    "only a start": b"tree\nversion=v4\n",
    "no tree_sizes": re.sub(rb"tree_sizes=.*\n", b"", GOOD),
    "a size too large": re.sub(rb"tree_sizes=\d+", b"tree_sizes=99999999", GOOD),
    "a size that is no number": re.sub(rb"tree_sizes=\d+", b"tree_sizes=-1", GOOD),
    "a size with an exponent": re.sub(rb"tree_sizes=\d+", b"tree_sizes=1e9", GOOD),
    "sizes that are off by one": re.sub(rb"tree_sizes=(\d+)", lambda m: b"tree_sizes=%d" % (int(m[1]) + 1), GOOD),
    "many sizes": re.sub(rb"tree_sizes=.*\n", b"tree_sizes=" + b"1 " * 60_000 + b"\n", GOOD),
    "sizes of nothing": re.sub(rb"tree_sizes=.*\n", b"tree_sizes=\n", GOOD),
    "no end": replaced(GOOD, "end of trees", "end of forest"),
    "no end of parameters": replaced(GOOD, "end of parameters", ""),
    "no UTF-8": replaced(GOOD, "äge", "age").replace(b"age", b"\xffge", 1),
    "no UTF-8 at the end": GOOD + b"\xff",
    "trees in another order": replaced(GOOD, "Tree=0", "Tree=1"),
    "many lines": replaced(GOOD, "num_class", "a\n" * 20_000 + "num_class"),
    "many parameters": replaced(GOOD, "[boosting", "[a: b]\n" * 20_000 + "[boosting"),
    "many features": replaced(GOOD, "feature_names=", "feature_names=" + "a " * 1_100_000),
    "a long end": GOOD + b" " * (33 << 20),
    "no leaves": edited(GOOD, "^num_leaves=.*", "num_leaves=0"),
    "many leaves": edited(GOOD, "^num_leaves=.*", "num_leaves=999999999"),
    "a leaf more": edited(GOOD, "^num_leaves=.*", "num_leaves=5"),
    "a child out of reach": edited(GOOD, "^left_child=.*", "left_child=1 2 77"),
    "a leaf out of reach": edited(GOOD, "^left_child=.*", "left_child=1 2 -77"),
    "a cycle": edited(GOOD, "^left_child=.*", "left_child=0 0 0"),
    "a child beyond 64 bits": edited(GOOD, "^left_child=.*", "left_child=1 2 99999999999999999999"),
    "a child that is no number": edited(GOOD, "^left_child=.*", "left_child=1 2 x"),
    "a child that is a float": edited(GOOD, "^left_child=.*", "left_child=1 2 3.5"),
    "a threshold short": edited(GOOD, "^threshold=.*", "threshold=1 2"),
    "a threshold that is no number": edited(GOOD, "^threshold=.*", "threshold=1 2 0x10"),
    "no thresholds": edited(GOOD, "^threshold=.*\n", ""),
    "no values": edited(GOOD, "^leaf_value=.*\n", ""),
    "a feature beyond 32 bits": edited(GOOD, "^split_feature=.*", "split_feature=0 1 4294967296"),
    "a decision beyond 8 bits": edited(GOOD, "^decision_type=.*", "decision_type=2 2 256"),
    "a set that is not there": edited(GOOD, "^decision_type=.*", "decision_type=2 2 1"),
    "sets in one more tree": edited(GOOD, "^num_cat=0", "num_cat=7").replace(b"decision_type=2", b"decision_type=1", 1),
    "no bounds": edited(SETS, "^cat_boundaries=.*\n", ""),
    "bounds beyond": edited(SETS, "^cat_boundaries=.*", "cat_boundaries=0 1000000000000"),
    "bounds descend": edited(SETS, "^cat_boundaries=0 ", "cat_boundaries=0 9 3 "),
    "words of 33 bits": edited(SETS, r"^cat_threshold=\d+", "cat_threshold=4294967296"),
    "words below 0": edited(SETS, r"^cat_threshold=\d+", "cat_threshold=-1"),
    "many words": edited(SETS, "^cat_threshold=.*", "cat_threshold=" + "4294967295 " * 200_000),
    "models of other leaves": edited(LINEAR, "^leaf_const=.*", "leaf_const=1 2"),
    "terms beyond": edited(LINEAR, "^num_features=.*", "num_features=1000000000000" + " 0" * 8),
    "terms below 0": edited(LINEAR, "^num_features=.*", "num_features=-1 1" + " 0" * 7),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(HOSTILE[kind])
    with pytest.raises(BadModelError) as caught, LightgbmReader(path) as reader:
        values_of(reader)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith(str(path))


def test_any_flipped_byte_is_read_or_refused() -> None:
    rng = np.random.default_rng(1)
    for text in (GOOD, SETS, LINEAR):
        for at in rng.integers(0, text.index(b"end of trees"), 700):
            broken = bytearray(text)
            broken[at] ^= int(rng.integers(1, 256))
            try:
                with LightgbmReader(io.BytesIO(bytes(broken)), "x") as reader:
                    values_of(reader, 1 << 16)
            except BadModelError as err:
                assert "\n" not in str(err)


def test_a_text_of_something_else_is_not_claimed(tmp_path: Path) -> None:
    for text in ("tree\n", "tree\nversion=4", "trees\nversion=v4\n", ""):
        (tmp_path / "x.txt").write_text(text)
        assert open_reader(tmp_path / "x.txt") is None
