from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dvc_modelver.api.compare import compare_files
from dvc_modelver.errors import BadModelError
from dvc_modelver.fingerprint.digest import parameters_digest
from dvc_modelver.formats import open_reader
from dvc_modelver.formats.base import Reader
from dvc_modelver.formats.documents import JsonDocument, UbjsonDocument
from dvc_modelver.formats.xgboost import XgboostReader
from dvc_modelver.metadata import describe_tensors
from tests.formats.contract import Arrays, CountingFile, ReaderContract, values_of

xgb: Any = pytest.importorskip("xgboost")

CODES = {"F32": "<f4", "I32": "<i4", "BOOL": "?"}


def some_data(n_classes: int = 2, n_categories: int = 0) -> Any:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 4)).astype(np.float32)
    y = (x[:, 1] + 0.5 * x[:, 2] + 0.3 * rng.standard_normal(400)).astype(np.float32)
    types = ["float"] * 4
    if n_categories:
        x[:, 3] = rng.integers(0, n_categories, 400)
        y += x[:, 3] % 3
        types[3] = "c"
    x[::7, 0] = np.nan
    labels = np.digitize(y, np.quantile(y, np.linspace(0, 1, n_classes + 1)[1:-1]))
    return xgb.DMatrix(
        x, labels, feature_names=["äge", "b", "c d", "e"], feature_types=types, enable_categorical=bool(n_categories)
    )


def train(rounds: int = 3, data: Any = None, **params: Any) -> Any:
    wanted = {"max_depth": 4, "verbosity": 0, "nthread": 1, "objective": "binary:logistic", **params}
    return xgb.train(wanted, data or some_data(), rounds)


MODELS: dict[str, dict[str, Any]] = {
    "binary": {},
    "lossguide": {"grow_policy": "lossguide", "max_leaves": 9, "max_depth": 0, "tree_method": "hist"},
    "classes": {"objective": "multi:softprob", "num_class": 3, "data": some_data(3)},
    "parallel": {"num_parallel_tree": 3, "subsample": 0.5, "objective": "multi:softmax", "num_class": 3, "data": some_data(3)},
    "categories": {"data": some_data(2, 40), "max_cat_to_onehot": 1, "tree_method": "hist"},
    "onehot": {"data": some_data(2, 5), "max_cat_to_onehot": 10, "tree_method": "hist"},
    "stumps": {"gamma": 1e9},
    "dart": {"booster": "dart", "rate_drop": 0.7, "rounds": 6},
    "exact": {"tree_method": "exact", "gamma": 2.0},
}  # fmt: skip


def arrays_of_dump(model: Any) -> Arrays:
    """Give what XGBoost's own dump says, in breadth-first order."""
    names = model.feature_names or []
    found: dict[str, Any] = {}
    for number, text in enumerate(model.get_dump(dump_format="json")):
        nodes = [json.loads(text)]
        for node in nodes:
            by_id = {child["nodeid"]: child for child in node.get("children", [])}
            if by_id:
                is_set = isinstance(node["split_condition"], list)
                node["left"], node["right"] = (node["no"], node["yes"]) if is_set else (node["yes"], node["no"])
                nodes += [by_id[node["left"]], by_id[node["right"]]]
        splits, leaves = [n for n in nodes if "leaf" not in n], [n for n in nodes if "leaf" in n]
        numbers = {n["nodeid"]: i for i, n in enumerate(splits)} | {n["nodeid"]: ~i for i, n in enumerate(leaves)}
        prefix = f"trees.{number:04d}."
        children = [(numbers[n["left"]], numbers[n["right"]]) for n in splits]
        sets = [
            (i, c) for i, n in enumerate(splits) if isinstance(n["split_condition"], list) for c in n["split_condition"]
        ]
        smallest = np.float32(1e-45)  # what XGBoost stores as the threshold of a categorical split
        found |= {
            prefix + "feature": np.array([names.index(n["split"]) for n in splits], "<i4"),
            prefix + "threshold": np.array(
                [smallest if isinstance(t := n["split_condition"], list) else t for n in splits], "<f4"
            ),
            prefix + "default_left": np.array([n["missing"] == n["left"] for n in splits], "?"),
            prefix + "children": np.array(children, "<i4").reshape(-1, 2),
            prefix + "value": np.array([n["leaf"] for n in leaves], "<f4"),
        }
        if sets:
            found[prefix + "categories"] = np.array(sets, "<i4")
    return found


def arrays_of(reader: Reader) -> Arrays:
    values = values_of(reader)
    return {s.name: np.frombuffer(values[s.name], CODES[s.dtype]).reshape(s.shape) for s in reader.specs}


def assert_same(found: Arrays, expected: Arrays) -> None:
    assert sorted(found) == sorted(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        np.testing.assert_array_equal(found[name], values, err_msg=name)


class TestUbj(ReaderContract):
    has_extents = False
    suffix = ".ubj"
    model = train(1, max_depth=1)

    def arrays(self) -> Arrays:
        return arrays_of_dump(self.model)

    def write(self, path: Path, arrays: Arrays) -> None:
        path.write_bytes(self.model.save_raw("ubj"))

    def test_a_merge_has_the_values_of_both_sides(self, tmp_path: Path) -> None:
        pytest.skip("the library makes the values: tests/merge/test_files.py merges ensembles")

    def test_a_listing_reads_the_header_only(self, tmp_path: Path) -> None:
        raw = large_tree(200_001)
        file = CountingFile(raw)
        with XgboostReader(file) as reader:
            assert {s.name: s.shape for s in reader.specs}["trees.0000.value"] == (100_001,)
            assert file.n_read < len(raw) / 20
            values_of(reader, 1 << 20)


class TestJson(TestUbj):
    suffix = ".ubj"

    def write(self, path: Path, arrays: Arrays) -> None:
        path.write_bytes(self.model.save_raw("json"))

    def test_a_listing_reads_the_header_only(self, tmp_path: Path) -> None:
        raw = bytes(self.model.save_raw("json"))
        file = CountingFile(raw)
        XgboostReader(file).close()
        assert file.n_read < len(raw) + 1_000


def ubj_text(text: str) -> bytes:
    return b"L" + struct.pack(">q", len(text)) + text.encode()


def ubj_array(key: str, code: str, values: Any) -> bytes:
    array = np.asarray(values, {"l": ">i4", "d": ">f4", "U": "u1"}[code])
    return ubj_text(key) + b"[$" + code.encode() + b"#L" + struct.pack(">q", array.size) + array.tobytes()


def ubj_tree(left: Any, right: Any, num_nodes: int | None = None, **arrays: Any) -> bytes:
    n = len(left)
    zeros = np.zeros(n)
    params = {"num_nodes": str(n if num_nodes is None else num_nodes), "num_deleted": "0", "size_leaf_vector": "1"}
    return (
        b"{" + ubj_array("left_children", "l", left) + ubj_array("right_children", "l", right)
        + ubj_array("split_indices", "l", arrays.get("split_indices", zeros))
        + ubj_array("split_conditions", "d", zeros) + ubj_array("default_left", "U", arrays.get("default_left", zeros))
        + b"".join(ubj_array(k, "l" if k[0] == "c" else "d", v) for k, v in arrays.items() if k.startswith(("categories", "leaf", "base")))
        + ubj_text("tree_param") + b"{" + b"".join(ubj_text(k) + b"S" + ubj_text(v) for k, v in params.items()) + b"}}"
    )  # fmt: skip


def ubj_model(tree: bytes) -> bytes:
    start = b"{" + ubj_text("learner") + b"{" + ubj_text("gradient_booster") + b"{" + ubj_text("model") + b"{"
    return start + ubj_text("trees") + b"[#L" + struct.pack(">q", 1) + tree + b"}}}}"


def large_tree(n_nodes: int) -> bytes:
    left = np.where(2 * np.arange(n_nodes) + 2 < n_nodes, 2 * np.arange(n_nodes) + 1, -1)
    return ubj_model(ubj_tree(left, np.where(left < 0, -1, left + 1)))


@pytest.mark.parametrize("notation", ["ubj", "json"])
@pytest.mark.parametrize("kind", MODELS)
def test_every_value_is_what_the_own_dump_says(kind: str, notation: str) -> None:
    model = train(**MODELS[kind])
    with XgboostReader(io.BytesIO(model.save_raw(notation))) as reader:
        found = dict(arrays_of(reader))
        weights = found.pop("weight_drop", None)
        assert_same(found, arrays_of_dump(model))
        facts = dict(reader.structure)
    saved = json.loads(model.save_raw("json"))["learner"]
    if kind == "dart":
        assert weights is not None
        np.testing.assert_array_equal(weights, np.float32(saved["gradient_booster"]["weight_drop"]))
        assert len(set(weights.tolist())) > 1
    assert facts["objective.name"] == saved["objective"]["name"]
    assert facts["learner_model_param.base_score"] == saved["learner_model_param"]["base_score"]
    assert facts["feature_names.0"] == "äge"
    assert facts["rounds"] == (6 if kind == "dart" else 3)
    assert "tree_info" not in facts
    assert "iteration_indptr" not in facts


def test_pruned_nodes_are_no_part_of_a_tree() -> None:
    data = some_data(2, 40)
    model = train(2, data, max_cat_to_onehot=1, tree_method="hist")
    pruned = xgb.train(
        {"process_type": "update", "updater": "prune,refresh", "gamma": 3.5, "verbosity": 0, "objective": "binary:logistic"},
        data, 2, xgb_model=model,
    )  # fmt: skip
    params = [t["tree_param"] for t in trees_of(pruned)]
    assert all(int(p["num_deleted"]) > 0 for p in params)
    with XgboostReader(io.BytesIO(pruned.save_raw("ubj"))) as reader:
        found, expected = arrays_of(reader), arrays_of_dump(pruned)
    lost = {name: found[name][found[name][:, 0] < 0] for name in found if name.endswith("categories")}
    for name in lost:  # the sets of splits that were pruned stay in the file; they are rows of split -1
        rest = found[name][len(lost[name]) :]
        np.testing.assert_array_equal(rest, expected.get(name, rest[:0]))
    assert_same({k: v for k, v in found.items() if k not in lost}, {k: v for k, v in expected.items() if k not in lost})


def trees_of(model: Any) -> Any:
    return json.loads(model.save_raw("json"))["learner"]["gradient_booster"]["model"]["trees"]


@pytest.mark.parametrize("notation", ["ubj", "json"])
def test_leaves_with_vectors_predict_what_xgboost_predicts(notation: str) -> None:
    data = some_data(3)
    params = {
        "objective": "multi:softprob",
        "num_class": 3,
        "multi_strategy": "multi_output_tree",
        "tree_method": "hist",
    }
    model = train(1, data, **params, base_score=0.0)
    with XgboostReader(io.BytesIO(model.save_raw(notation))) as reader:
        found = arrays_of(reader)
    values, children = found["trees.0000.value"], found["trees.0000.children"]
    assert values.shape == (len(children) + 1, 3)
    predicted = model.predict(data, output_margin=True)
    np.testing.assert_array_equal(np.unique(predicted, axis=0), np.unique(values, axis=0))
    assert found["trees.0000.feature"].shape == found["trees.0000.threshold"].shape == (len(children),)


@pytest.mark.parametrize("notation", ["ubj", "json"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_linear_model_is_weights_and_a_bias(n_classes: int, notation: str) -> None:
    more = {"objective": "multi:softprob", "num_class": 3, "data": some_data(3)} if n_classes == 3 else {}
    model = train(4, booster="gblinear", **more)
    with XgboostReader(io.BytesIO(model.save_raw(notation))) as reader:
        found = arrays_of(reader)
    stored = json.loads(model.save_raw("json"))["learner"]["gradient_booster"]["model"]["weights"]
    groups = n_classes if n_classes > 2 else 1
    assert {name: values.shape for name, values in found.items()} == {"weight": (4, groups), "bias": (groups,)}
    np.testing.assert_array_equal(np.concatenate([found["weight"].ravel(), found["bias"]]), np.float32(stored))
    dump = json.loads(model.get_dump(dump_format="json")[0])  # which has six digits
    np.testing.assert_allclose(found["weight"].ravel(), np.float32(dump["weight"]), rtol=1e-5)
    np.testing.assert_allclose(found["bias"], np.float32(dump["bias"]), rtol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_both_notations_have_one_digest_and_one_structure(kind: str) -> None:
    model = train(**MODELS[kind])
    model.set_attr(note="x", best_iteration="2")
    readers = [XgboostReader(io.BytesIO(model.save_raw(n))) for n in ("ubj", "json")]
    assert dict(readers[0].structure) == dict(readers[1].structure)
    assert readers[0].structure["attributes.best_iteration"] == "2"
    assert len({parameters_digest(describe_tensors(reader, "").rows) for reader in readers}) == 1


def test_a_pickled_boosters_buffer_is_read_with_its_configuration() -> None:
    model = train(2, eta=0.125)
    buffer = bytes(model.__getstate__()["handle"])
    reader = open_reader(io.BytesIO(buffer), "booster")
    assert reader is not None
    assert_same(arrays_of(reader), arrays_of_dump(model))
    config = [value for key, value in reader.structure.items() if key.startswith("config.") and key.endswith(".eta")]
    assert config == ["0.125"]


def test_categories_of_a_data_frame_are_structure() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": np.arange(100.0), "c": pandas.Categorical(list("abcde") * 20)})
    facts = []
    for names in ("abcde", "abcdf"):
        frame["c"] = pandas.Categorical(list(names) * 20)
        model = train(1, xgb.DMatrix(frame, np.arange(100) % 5 > 2, enable_categorical=True))
        both = [XgboostReader(io.BytesIO(model.save_raw(n))).structure for n in ("ubj", "json")]
        assert dict(both[0]) == dict(both[1])
        facts.append({key: value for key, value in both[0].items() if key.startswith("cats")})
    assert facts[0]
    assert facts[0] != facts[1]


def test_ten_more_rounds_are_ten_trees_added(tmp_path: Path) -> None:
    data = some_data()
    first = train(10, data)
    more = xgb.train({"max_depth": 4, "verbosity": 0, "objective": "binary:logistic"}, data, 10, xgb_model=first)
    first.save_model(tmp_path / "old.json")
    more.save_model(tmp_path / "new.ubj")
    for exact in (False, True):
        found = compare_files(tmp_path / "old.json", tmp_path / "new.ubj", exact=exact)
        changes: dict[str, set[str]] = {}
        for tensor in found.tensors:
            changes.setdefault(tensor.change, set()).add(tensor.name.rpartition(".")[0])
        assert changes == {
            "unchanged": {f"trees.{i:04d}" for i in range(10)},
            "added": {f"trees.{i:04d}" for i in range(10, 20)},
        }
        facts = {fact.name: (fact.old, fact.new) for fact in found.structure}
        assert facts == {"rounds": (10, 20), "gbtree_model_param.num_trees": ("10", "20")}


def test_refreshed_leaves_are_the_only_change(tmp_path: Path) -> None:
    data = some_data()
    old = train(3, data)
    data.set_label(1 - data.get_label())
    update = {"process_type": "update", "updater": "refresh", "verbosity": 0, "objective": "binary:logistic"}
    xgb.train(update, data, 3, xgb_model=old).save_model(tmp_path / "new.ubj")
    old.save_model(tmp_path / "old.ubj")
    found = compare_files(tmp_path / "old.ubj", tmp_path / "new.ubj", exact=True)
    assert {t.name for t in found.tensors if t.change != "unchanged"} == {f"trees.000{i}.value" for i in range(3)}
    assert found.cosine is not None


@pytest.mark.parametrize(
    "text", ["7.038531E-26", "7.0385307E-26", "16777217", "1E39", "-7.038531E-26", "1E-45", "3.5E-46"]
)
def test_a_decimal_is_rounded_to_float32_once(text: str) -> None:
    file = io.BytesIO(f"[0, {text} ,1.5]".encode())
    document = JsonDocument(file, "x")
    found = document.read_numbers(document.parse(), "f4")
    with np.errstate(over="ignore"):
        nearest = min(
            (abs(exact_distance(text, float(c))), c.tobytes()[0] & 1, i, c)
            for i, c in enumerate(np.nextafter(np.float32(text), [np.float32(-3e38), np.float32(text), np.float32(3e38)]))
        )[-1] if np.isfinite(np.float32(text)) else np.float32(np.inf)  # fmt: skip
    assert found.dtype == np.float32
    assert found.tolist() == [0.0, float(nearest), 1.5]


def exact_distance(text: str, value: float) -> Any:
    from fractions import Fraction

    return Fraction(text) - Fraction(value)


def good_json() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(train(2, max_depth=2).save_raw("json"))
    return found


def changed(path: str, value: Any) -> bytes:
    document: Any = good_json()
    *steps, last = [int(p) if p.isdigit() else p for p in path.split("/")]
    at = document["learner"]
    for step in steps:
        at = at[step]
    at[last] = value
    return json.dumps(document).encode()


TREE = "gradient_booster/model/trees/0/"
HOSTILE_JSON = {
    "empty trees": changed("gradient_booster/model/trees", []),
    "trees are numbers": changed("gradient_booster/model/trees", [1, 2]),
    "trees are text": changed("gradient_booster/model/trees", "ab"),
    "a tree is a list": changed("gradient_booster/model/trees/0", [[1]]),
    "no model": changed("gradient_booster", {}),
    "booster is text": changed("gradient_booster", "gbtree"),
    "one node less": changed(TREE + "left_children", [1, -1]),
    "negative child": changed(TREE + "left_children", [-5, 3, 5, -1, -1, -1, -1]),
    "child far out": changed(TREE + "left_children", [2**31, 3, 5, -1, -1, -1, -1]),
    "child beyond 64 bits": changed(TREE + "left_children", [2**80, 3, 5, -1, -1, -1, -1]),
    "child is the root": changed(TREE + "left_children", [0, 3, 5, -1, -1, -1, -1]),
    "shared child": changed(TREE + "left_children", [1, 5, 5, -1, -1, -1, -1]),
    "children are floats": changed(TREE + "left_children", [1.0, 3, 5, -1, -1, -1, -1]),
    "children are text": changed(TREE + "left_children", ["1"] * 7),
    "children are nested": changed(TREE + "left_children", [[1]] * 7),
    "children are null": changed(TREE + "left_children", [None] * 7),
    "feature beyond 32 bits": changed(TREE + "split_indices", [2**40] * 7),
    "num_nodes is no number": changed(TREE + "tree_param/num_nodes", "many"),
    "num_nodes is huge": changed(TREE + "tree_param/num_nodes", "9" * 15),
    "all nodes deleted": changed(TREE + "tree_param/num_deleted", "7"),
    "some nodes deleted": changed(TREE + "tree_param/num_deleted", "2"),
    "leaf vectors without values": changed(TREE + "tree_param/size_leaf_vector", "1000000"),
    "categories without nodes": changed(TREE + "categories", [1, 2]),
    "num_trees differs": changed("gradient_booster/model/gbtree_model_param/num_trees", "3"),
    "tree_info is text": changed("gradient_booster/model/tree_info", ["a"]),
    "unpaired surrogate": changed("feature_names", ["\ud800"]),
    "nested deeply": b'{"learner":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    "nested objects": b'{"learner":' + b'{"a":' * 100_000,
    "member twice": b'{"learner":{},"learner":{}}',
    "two values": json.dumps(good_json()).encode() + b"{}",
    "no comma": json.dumps(good_json()).encode().replace(b', "objective"', b' "objective"'),
    "two commas": json.dumps(good_json()).encode().replace(b', "objective"', b',, "objective"'),
    "no colon": json.dumps(good_json()).encode().replace(b'"objective":', b'"objective"'),
    "last comma": json.dumps(good_json()).encode()[:-1] + b",}",
    "a bare word": json.dumps(good_json()).encode().replace(b'"objective":', b'"objective":nul,"x":'),
    "bytes that are no UTF-8": json.dumps(good_json()).encode().replace(b'"e"', b'"\xff"'),
    "broken numbers": json.dumps(good_json()).encode().replace(b'"left_children": [1,', b'"left_children": [1 2,'),
    "long numbers": json.dumps(good_json()).encode().replace(b'"left_children": [1,', b'"left_children": [' + b"9" * 9999 + b","),
    "brackets in a string": b'{"learner":{"a":"]}',
    "many values": b'{"learner":{"a":[' + b"{}," * 600_000 + b"{}]}}",
    "learner is a list": b'{"learner":{"gradient_booster":[{}]}}',
}  # fmt: skip


def nested(start: bytes, piece: bytes, count: int) -> bytes:
    return b"{" + ubj_text("learner") + b"{" + ubj_text("a") + start + piece * count


N = struct.pack(">q", 2**62)
HOSTILE_UBJ = {
    "huge typed array": nested(b"[$d#L" + N, b"", 0),
    "huge list": nested(b"[#L" + N, b"Z", 100),
    "huge text": nested(b"SL" + N, b"", 0),
    "negative length": nested(b"SL" + struct.pack(">q", -1), b"", 0),
    "length of text": nested(b"SS", b"", 0),
    "nested deeply": nested(b"", b"[", 100_000),
    "nested objects": nested(b"", b"{" + ubj_text("a"), 100_000),
    "unknown type": nested(b"?", b"", 0),
    "typed array of objects": nested(b"[${#L" + struct.pack(">q", 1), b"", 0),
    "typed array without a count": nested(b"[$d", b"\0" * 80, 1),
    "many values": nested(b"[", b"Z", 600_000),
    "no UTF-8": nested(b"SU\x01\xff}}", b"", 0),
    "member twice": nested(b"Z" + ubj_text("a") + b"Z}}", b"", 0),
    "more bytes": ubj_model(ubj_tree([1, -1, -1], [2, -1, -1])) + b"\0",
    "a cycle": ubj_model(ubj_tree([1, 0, -1], [2, 2, -1])),
    "unreached nodes": ubj_model(ubj_tree([-1, -1, -1], [-1, -1, -1])),
    "no nodes": ubj_model(ubj_tree([], [])),
    "nodes by halves": ubj_model(ubj_tree([-1, -1], [-1, -1])),
    "more nodes than arrays": ubj_model(ubj_tree([1, -1, -1], [2, -1, -1], num_nodes=2**40 + 1)),
    "default_left is 2": ubj_model(ubj_tree([1, -1, -1], [2, -1, -1], default_left=[2, 0, 0])),
    "category node far out": ubj_model(
        ubj_tree([1, -1, -1], [2, -1, -1], categories=[1], categories_nodes=[9], categories_segments=[0], categories_sizes=[1])
    ),
    "category sizes overflow": ubj_model(
        ubj_tree([1, -1, -1], [2, -1, -1], categories=[1], categories_nodes=[0, 0], categories_segments=[0, 2**31 - 1], categories_sizes=[2**31 - 1, -(2**31) + 2])
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", [*HOSTILE_JSON, *HOSTILE_UBJ])
def test_a_hostile_file_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bad.ubj"
    path.write_bytes({**HOSTILE_JSON, **HOSTILE_UBJ}[kind])
    with pytest.raises(BadModelError) as caught, XgboostReader(path) as reader:
        values_of(reader)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith(str(path))


def test_any_flipped_byte_is_read_or_refused() -> None:
    for notation in ("ubj", "json"):
        data = bytearray(TestUbj.model.save_raw(notation))
        rng = np.random.default_rng(1)
        for at in rng.integers(0, len(data), 1_500):
            broken = data.copy()
            broken[at] ^= int(rng.integers(1, 256))
            try:
                with XgboostReader(io.BytesIO(bytes(broken)), "x") as reader:
                    values_of(reader, 1 << 16)
            except BadModelError as err:
                assert "\n" not in str(err)


def test_json_beyond_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.write(b'{"learner":{')
        file.truncate(257 << 20)
    with pytest.raises(BadModelError) as caught:
        open_reader(path)
    assert ".ubj" in caught.value.hint


def test_a_json_file_of_something_else_is_not_claimed(tmp_path: Path) -> None:
    for text in ('{"learner": 3}', '{"a": {"learner": {}}}', "[]", '{"learner_rate": {}}'):
        (tmp_path / "x.json").write_text(text)
        assert open_reader(tmp_path / "x.json") is None


def test_ubjson_values_of_every_type_are_read() -> None:
    members = {
        "i": b"i\xff", "U": b"U\xff", "I": b"I\xff\xfe", "l": b"l\0\0\0\x05", "D": b"D" + struct.pack(">d", 0.1),
        "T": b"T", "F": b"F", "Z": b"Z", "S": b"Si\x02ab", "list": b"[T[]]", "counted": b"[#U\x02i\x01i\x02",
    }  # fmt: skip
    data = b"{" + b"".join(ubj_text(key) + value for key, value in members.items()) + b"}"
    assert UbjsonDocument(io.BytesIO(data), "x").parse() == {
        "i": -1, "U": 255, "I": -2, "l": 5, "D": 0.1, "T": True, "F": False, "Z": None, "S": "ab",
        "list": [True, []], "counted": [1, 2],
    }  # fmt: skip


def test_vectors_of_leaves_in_the_table_of_all_nodes_are_read() -> None:
    tree = ubj_tree([1, -1, 3, -1, -1], [2, -1, 4, -1, -1], base_weights=np.arange(10))
    vectors = tree.replace(b"leaf_vectorSL\0\0\0\0\0\0\0\x011", b"leaf_vectorSL\0\0\0\0\0\0\0\x012")
    with XgboostReader(io.BytesIO(ubj_model(vectors))) as reader:  # as XGBoost 2.1 writes them
        assert arrays_of(reader)["trees.0000.value"].tolist() == [[2, 3], [6, 7], [8, 9]]


def test_the_limit_of_values_is_for_each_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dvc_modelver.formats.documents.MAX_VALUES", 200)
    model = train(30, max_depth=1)
    for notation in ("ubj", "json"):
        with XgboostReader(io.BytesIO(model.save_raw(notation))) as reader:
            assert_same(arrays_of(reader), arrays_of_dump(model))


def test_a_leaf_vector_shared_by_many_leaves_is_bounded() -> None:
    left = np.where(np.arange(2001) < 1000, 2 * np.arange(2001) + 1, -1)
    tree = ubj_tree(left, np.where(left < 0, 0, left + 1), leaf_weights=np.zeros(20_000))
    assert b"leaf_vectorSL\0\0\0\0\0\0\0\x011" in tree
    shared = tree.replace(b"leaf_vectorSL\0\0\0\0\0\0\0\x011", b"leaf_vectorSL\0\0\0\0\0\0\0\x0520000")
    with pytest.raises(BadModelError):
        XgboostReader(io.BytesIO(ubj_model(shared)), "x")
