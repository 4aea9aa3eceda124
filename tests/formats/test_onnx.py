from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx: Any = pytest.importorskip("onnx")
reference: Any = pytest.importorskip("onnx.reference")

from dvc_modelver.errors import BadModelError  # noqa: E402
from dvc_modelver.formats import open_reader  # noqa: E402
from dvc_modelver.formats.base import LocalFolder, Reader  # noqa: E402
from dvc_modelver.formats.onnx import OnnxReader, matches  # noqa: E402
from tests.formats.contract import Arrays, CountingFile, ReaderContract, some_arrays, values_of  # noqa: E402
from tests.formats.test_protobuf import block, key, varint  # noqa: E402

helper = onnx.helper
numpy_helper = onnx.numpy_helper
T = onnx.TensorProto


def model_of(
    initializers: list[Any] = [],  # noqa: B006
    nodes: list[Any] = [],  # noqa: B006
    inputs: list[Any] = [],  # noqa: B006
    outputs: list[Any] = [],  # noqa: B006
    **more: Any,
) -> Any:
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers, **more)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], producer_name="test")


def read(model: Any, name: str = "m.onnx") -> OnnxReader:
    return OnnxReader(io.BytesIO(model.SerializeToString()), name)


def real(reader: Reader, name: str) -> Any:
    spec = next(spec for spec in reader.specs if spec.name == name)
    pieces = [bytes(piece) for piece in reader.iter_values(spec, 12)]
    assert all(len(piece) == 12 for piece in pieces[:-1])
    return np.frombuffer(b"".join(pieces), np.float32).reshape(spec.shape)


class TestOnnx(ReaderContract):
    suffix = ".onnx"

    def write(self, path: Path, arrays: Arrays) -> None:
        tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
        onnx.save(model_of(tensors), path)


class TestTypedOnnx(ReaderContract):
    """Values in ``float_data`` and its like, as converters of other frameworks write them."""

    has_extents = False
    can_merge = False
    suffix = ".onnx"

    def write(self, path: Path, arrays: Arrays) -> None:
        tensors = [
            helper.make_tensor(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, array.ravel())
            for name, array in arrays.items()
        ]
        assert not any(tensor.HasField("raw_data") for tensor in tensors)
        onnx.save(model_of(tensors), path)


NARROW = {T.INT4: np.int8, T.UINT4: np.uint8, T.INT2: np.int8, T.UINT2: np.uint8}
PACKED = {T.FLOAT4E2M1: 4} | {getattr(T, name): 6 for name in ("FLOAT6E2M3", "FLOAT6E3M2") if hasattr(T, name)}
NUMBERS = [number for name, number in T.DataType.items() if name not in ("UNDEFINED", "STRING")]


def pack(codes: Any, bits: int) -> bytes:
    word = sum(int(code) << i * bits for i, code in enumerate(codes.ravel()))
    return word.to_bytes((codes.size * bits + 7) // 8, "little")


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("data_type", NUMBERS)
@pytest.mark.parametrize("shape", [(3, 5), (8,), (), (0, 2)])
def test_every_dtype_reads_as_onnx_reads_it(data_type: int, raw: bool, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    size = int(np.prod(shape))
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    if data_type in NARROW or data_type in PACKED or np.dtype(dtype).itemsize == 1:
        bits = {T.INT2: 2, T.UINT2: 2, T.INT4: 4, T.UINT4: 4, T.BOOL: 1}.get(data_type, PACKED.get(data_type, 8))
        values = rng.integers(0, 1 << bits, size, np.uint8).view(dtype)
    elif np.dtype(dtype).kind in "iu":
        info = np.iinfo(dtype)
        values = rng.integers(info.min, info.max, size, dtype, endpoint=True)
    else:
        values = (rng.standard_normal(size) * 100).astype(dtype)
    values = np.asarray(values).reshape(shape)
    tensor = numpy_helper.from_array(values, "w") if raw else typed(data_type, values)
    assert tensor.HasField("raw_data") == raw
    expected = numpy_helper.to_array(tensor)
    with read(model_of([tensor])) as reader:
        (spec,) = reader.specs
        found = values_of(reader)["w"]
    assert spec.shape == shape
    if data_type in NARROW:
        assert found == expected.astype(NARROW[data_type]).tobytes()
        assert reader.structure["packed.w"] == T.DataType.Name(data_type)
    elif data_type in PACKED:
        assert found == pack(expected.view(np.uint8), PACKED[data_type])
    else:
        assert found == expected.tobytes()
    assert spec.nbytes == len(found)


def typed(data_type: int, values: Any) -> Any:
    tensor = T(name="w", data_type=data_type, dims=values.shape)
    flat = values.ravel()
    field = helper.tensor_dtype_to_field(data_type)
    if data_type in NARROW or data_type == T.FLOAT4E2M1:
        bits = {T.INT2: 2, T.UINT2: 2}.get(data_type, 4)
        numbers = list(pack(flat.view(np.uint8) & ((1 << bits) - 1), bits))
    elif data_type in (T.COMPLEX64, T.COMPLEX128):
        numbers = flat.view("f4" if data_type == T.COMPLEX64 else "f8").tolist()
    elif field == "int32_data" and np.dtype(flat.dtype).kind not in "iu":
        numbers = flat.view(f"u{flat.dtype.itemsize}").tolist()
    else:
        numbers = flat.tolist()
    getattr(tensor, field).extend(numbers)
    if not numbers:
        tensor.ClearField("raw_data")
    return tensor


def test_numbers_that_are_not_packed_are_read() -> None:
    floats = np.arange(3000, dtype=np.float32)
    tensor = (
        key(1, 0) + varint(3000) + key(2, 0) + varint(T.FLOAT) + block(8, b"f")
        + b"".join(key(4, 5) + value.tobytes() for value in floats)
    )  # fmt: skip
    ints = np.arange(-5, 5, dtype=np.int8)
    other = (
        key(2, 0) + varint(T.INT8) + block(8, b"i") + block(1, varint(2) + varint(5))
        + b"".join(key(5, 0) + varint(int(value)) for value in ints)
    )  # fmt: skip
    data = key(1, 0) + varint(8) + block(7, block(5, tensor) + block(5, other)) + block(8, key(2, 0) + varint(13))
    model = onnx.load_from_string(data)
    assert numpy_helper.to_array(model.graph.initializer[0]).tobytes() == floats.tobytes()
    with OnnxReader(io.BytesIO(data), "m.onnx") as reader:
        assert values_of(reader) == {"f": floats.tobytes(), "i": ints.tobytes()}


def branch(name: str, value: float, weight: str = "w") -> Any:
    return helper.make_graph(
        [helper.make_node("Mul", ["x", weight], [f"{name}_out"])],
        name,
        [],
        [helper.make_tensor_value_info(f"{name}_out", T.FLOAT, [2])],
        [numpy_helper.from_array(np.full(2, value, np.float32), weight)],
    )


def test_initialisers_of_subgraphs_are_listed() -> None:
    node = helper.make_node("If", ["c"], ["y"], name="choose", then_branch=branch("a", 1), else_branch=branch("b", 2))
    outer = helper.make_node(
        "If", ["c"], ["z"], then_branch=helper.make_graph([node], "o", [], []), else_branch=branch("d", 3, "v")
    )
    with read(model_of(nodes=[outer])) as reader:
        found = {name: np.frombuffer(data, np.float32).tolist() for name, data in values_of(reader).items()}
        assert reader.structure["nodes.If"] == 2
        assert reader.structure["nodes.Mul"] == 3
    assert len(found) == 3
    assert found["v"] == [3, 3]
    assert {tuple(found["w"]), tuple(next(found[name] for name in found if name.endswith("/w")))} == {(1, 1), (2, 2)}
    assert all(name in ("v", "w") or name.startswith("choose.") for name in found)


def test_large_constants_are_tensors_and_small_ones_the_graph() -> None:
    def model(small: int, large: float) -> Any:
        constants = [
            helper.make_node("Constant", [], ["shape"], value=numpy_helper.from_array(np.array([small, 3]), "")),
            helper.make_node("Constant", [], ["table"], value=numpy_helper.from_array(np.full(50, float(large)), "t")),
            helper.make_node("Constant", [], ["floats"], value_floats=[float(large)] * 20),
            helper.make_node("Constant", [], ["ints"], value_ints=list(range(-9, 9))),
        ]
        return model_of(nodes=constants)

    with read(model(1, 2)) as reader, read(model(1, 4)) as large, read(model(2, 2)) as small:
        assert [(s.name, s.dtype, s.shape) for s in reader.specs] == [
            ("floats", "F32", (20,)),
            ("ints", "I64", (18,)),
            ("table", "F64", (50,)),
        ]
        assert values_of(reader)["ints"] == np.arange(-9, 9).tobytes()
        assert values_of(reader)["floats"] == np.full(20, 2, np.float32).tobytes()
        assert values_of(large)["table"] == np.full(50, 4.0).tobytes()
        assert reader.structure["graph"] == large.structure["graph"] != small.structure["graph"]


def test_weights_in_attributes_are_tensors() -> None:
    values = np.arange(30, dtype=np.float32) / 7
    node = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], name="forest", domain="ai.onnx.ml", nodes_values=values.tolist(),
        nodes_featureids=list(range(30)), nodes_modes=["BRANCH_LEQ"] * 30, n_targets=1,
    )  # fmt: skip
    with read(model_of(nodes=[node])) as reader:
        assert [s.name for s in reader.specs] == ["forest.nodes_featureids", "forest.nodes_values"]
        assert values_of(reader)["forest.nodes_values"] == values.tobytes()
        assert reader.structure["nodes.ai.onnx.ml.TreeEnsembleRegressor"] == 1


def test_constants_of_functions_are_listed() -> None:
    body = [
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.arange(12, dtype=np.float32), "k")),
        helper.make_node("Mul", ["a", "k"], ["b"]),
    ]
    function = helper.make_function("own", "Scale", ["a"], ["b"], body, [helper.make_opsetid("", 21)])
    model = model_of(nodes=[helper.make_node("Scale", ["x"], ["y"], domain="own")])
    model.functions.append(function)
    with read(model) as reader:
        assert values_of(reader) == {"k": np.arange(12, dtype=np.float32).tobytes()}
        assert reader.structure["functions"] == 1
        assert reader.structure["nodes.own.Scale"] == reader.structure["nodes.Mul"] == 1


def test_sparse_initialisers_are_values_and_indices() -> None:
    values = numpy_helper.from_array(np.array([1.5, 2.5], np.float32), "s")
    indices = numpy_helper.from_array(np.array([[0, 1], [2, 3]]), "")
    sparse = helper.make_sparse_tensor(values, indices, [3, 4])
    with read(model_of(sparse_initializer=[sparse])) as reader:
        assert [(s.name, s.dtype, s.shape) for s in reader.specs] == [
            ("s.indices", "I64", (2, 2)),
            ("s.values", "F32", (2,)),
        ]
        assert values_of(reader)["s.indices"] == np.array([[0, 1], [2, 3]]).tobytes()
        assert reader.structure["sparse.s"] == "F32 [3, 4]"


def test_strings_are_facts_not_tensors() -> None:
    def facts(words: list[str]) -> Any:
        with read(model_of([helper.make_tensor("vocabulary", T.STRING, [2], [w.encode() for w in words])])) as reader:
            assert reader.specs == ()
            return reader.structure["strings.vocabulary"]

    assert facts(["a", "b"]).startswith("2 strings, sha256:")
    assert facts(["a", "b"]) != facts(["a", "c"])


def quantised_model(array: Any, scale: Any, zero_point: Any, **attributes: int) -> Any:
    tensors = [numpy_helper.from_array(array, "w"), numpy_helper.from_array(scale, "s")]
    names = ["w", "s"]
    if zero_point is not None:
        tensors.append(numpy_helper.from_array(zero_point, "z"))
        names.append("z")
    output = helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(scale.dtype), array.shape)
    return model_of(tensors, [helper.make_node("DequantizeLinear", names, ["y"], **attributes)], outputs=[output])


@pytest.mark.parametrize(
    ("dtype", "scale", "zero_point", "axis", "expected"),
    [
        (np.int8, np.float32(0.07), np.int8(3), {}, "QI8"),
        (np.uint8, np.float32(0.07), np.uint8(130), {}, "QU8"),
        (np.int8, np.float32(0.3), None, {}, "QI8"),
        (np.int8, np.array([0.1], np.float32), np.array([0], np.int8), {}, "QI8"),
        (np.int8, np.linspace(0.1, 1, 5, dtype=np.float32), np.arange(5, dtype=np.int8), {"axis": 1}, "QI8"),
        (np.uint8, np.linspace(0.1, 1, 4, dtype=np.float32), np.arange(4, dtype=np.uint8), {"axis": 0}, "QU8"),
        (np.int8, np.linspace(0.1, 1, 3, dtype=np.float32), np.arange(3, dtype=np.int8), {"axis": -1}, "QI8"),
        (np.int32, np.linspace(0.1, 1, 5, dtype=np.float32), np.zeros(5, np.int32), {}, "QI32"),
        (np.int16, np.float32(0.001), np.int16(0), {}, "QI16"),
        (np.int8, np.float16(0.25), np.int8(-1), {}, "QI8"),
    ],
)
def test_dequantised_values_are_those_of_onnx(
    dtype: Any, scale: Any, zero_point: Any, axis: dict[str, int], expected: str
) -> None:
    info = np.iinfo(dtype)
    array = (
        np.random.default_rng(1)
        .integers(max(info.min, -9999), min(info.max, 9999), (4, 5, 3), endpoint=True)
        .astype(dtype)
    )
    model = quantised_model(array, np.asarray(scale), None if zero_point is None else np.asarray(zero_point), **axis)
    (y,) = reference.ReferenceEvaluator(model).run(None, {})
    with read(model) as reader:
        assert {s.name: s.dtype for s in reader.specs}["w"] == expected
        assert values_of(reader)["w"] == array.tobytes()
        np.testing.assert_allclose(
            real(reader, "w"), y.astype(np.float32), rtol=1e-3 if y.dtype == np.float16 else 1e-7
        )
        assert {s.name for s in reader.specs} == {"w", "s"} | ({"z"} if zero_point is not None else set())


def test_four_bit_weights_are_dequantised() -> None:
    array = np.arange(-8, 8).reshape(4, 4).astype(helper.tensor_dtype_to_np_dtype(T.INT4))
    zero_point = np.asarray(2).astype(array.dtype)
    with read(quantised_model(array, np.float32(0.5), zero_point)) as reader:
        assert {s.name: s.dtype for s in reader.specs} == {"w": "QI8", "s": "F32", "z": "I8"}
        assert real(reader, "w").ravel().tolist() == [(q - 2) * 0.5 for q in range(-8, 8)]


def test_scales_of_constant_nodes_count() -> None:
    tensors = [numpy_helper.from_array(np.arange(4, dtype=np.int8), "w")]
    nodes = [
        helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(np.float32(0.5), "")),
        helper.make_node("DequantizeLinear", ["w", "s"], ["y"]),
    ]
    with read(model_of(tensors, nodes)) as reader:
        assert real(reader, "w").tolist() == [0, 0.5, 1, 1.5]


def test_integers_that_mean_something_else_too_stay_plain() -> None:
    array = np.ones((4, 4), np.int8)
    used_twice = quantised_model(array, np.float32(0.5), None)
    used_twice.graph.node.append(helper.make_node("Cast", ["w"], ["other"], to=T.FLOAT))
    given_out = quantised_model(array, np.float32(0.5), None)
    given_out.graph.output.append(helper.make_tensor_value_info("w", T.INT8, [4, 4]))
    blocked = quantised_model(array, np.ones((2, 4), np.float32), None, axis=0, block_size=2)
    misfit = quantised_model(array, np.ones(3, np.float32), None)
    computed = quantised_model(array, np.float32(0.5), None)
    computed.graph.node[0].input[1] = "elsewhere"
    for model in (used_twice, given_out, blocked, misfit, computed):
        with read(model) as reader:
            assert {s.name: s.dtype for s in reader.specs}["w"] == "I8"


def small_net(**change: Any) -> Any:
    nodes = [
        helper.make_node(
            "Gemm",
            ["x", "a"],
            [change.get("hidden", "h")],
            name=change.get("name", "n1"),
            alpha=change.get("alpha", 1.0),
        ),
        helper.make_node("Gemm", [change.get("hidden", "h"), change.get("second", "b")], ["y"]),
    ]
    tensors = [numpy_helper.from_array(np.ones((3, 3), np.float32) * i, name) for i, name in enumerate("ab")]
    x = helper.make_tensor_value_info("x", T.FLOAT, ["batch", 3])
    y = helper.make_tensor_value_info("y", T.FLOAT, ["batch", 3])
    model = model_of(tensors, nodes, [x], [y])
    helper.set_model_props(model, {"author": "me"})
    model.graph.node[0].doc_string = change.get("doc", "")
    return model


def test_the_graph_is_facts_and_a_digest() -> None:
    with read(small_net()) as reader:
        found = dict(reader.structure)
        assert reader.framework is None
    assert str(found.pop("graph")).startswith("sha256:")
    assert found == {
        "ir_version": small_net().ir_version,
        "producer": "test",
        "opset.ai.onnx": 21,
        "inputs.x": "F32 [batch, 3]",
        "outputs.y": "F32 [batch, 3]",
        "nodes.Gemm": 2,
        "metadata.author": "me",
    }


@pytest.mark.parametrize("change", [{"alpha": 2.0}, {"second": "a"}])
def test_a_change_of_the_graph_shows(change: dict[str, Any]) -> None:
    with read(small_net()) as old, read(small_net(**change)) as new:
        assert old.structure["graph"] != new.structure["graph"]


@pytest.mark.parametrize("change", [{"hidden": "h77"}, {"name": "other"}, {"doc": "at line 3"}])
def test_names_of_nodes_and_notes_are_no_change(change: dict[str, Any]) -> None:
    with read(small_net()) as old, read(small_net(**change)) as new:
        assert old.structure == new.structure


def test_fields_of_a_later_onnx_are_part_of_the_graph() -> None:
    def graph(more: bytes, inner: bytes) -> Any:
        data = key(1, 0) + varint(99) + block(7, block(2, b"g") + inner) + OPSET + more
        reader = open_reader(io.BytesIO(data), "m.onnx")
        assert reader is not None
        return reader.structure["graph"]

    assert len({graph(b"", b""), graph(block(60, b"new"), b""), graph(b"", key(61, 0) + b"\1")}) == 3


def test_types_of_inputs_are_readable() -> None:
    inputs = [
        helper.make_tensor_sequence_value_info("s", T.INT64, None),
        helper.make_value_info("o", helper.make_optional_type_proto(helper.make_tensor_type_proto(T.FLOAT, [2]))),
        helper.make_value_info("m", helper.make_map_type_proto(T.INT64, helper.make_tensor_type_proto(T.STRING, []))),
        helper.make_sparse_tensor_value_info("p", T.DOUBLE, [None, 4]),
    ]
    with read(model_of(inputs=inputs)) as reader:
        assert [reader.structure[f"inputs.{name}"] for name in "somp"] == [
            "sequence(I64 [...])",
            "optional(F32 [2])",
            "map(I64, STRING [])",
            "sparse F64 [?, 4]",
        ]


def test_initialisers_that_are_inputs_too_are_listed_once() -> None:
    model = small_net()
    model.graph.input.append(helper.make_tensor_value_info("a", T.FLOAT, [3, 3]))
    with read(model) as reader:
        assert [s.name for s in reader.specs] == ["a", "b"]
        assert "inputs.a" not in reader.structure


def external(path: Path, **options: Any) -> Any:
    tensors = [numpy_helper.from_array(np.asarray(a), name) for name, a in some_arrays().items()]
    onnx.save_model(model_of(tensors), path, save_as_external_data=True, size_threshold=0, **options)


@pytest.mark.parametrize(
    "options", [{"location": "w.bin"}, {"location": "sub/w.bin"}, {"all_tensors_to_one_file": False}]
)
def test_values_in_other_files_are_read(tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "sub").mkdir()
    path = tmp_path / "m.onnx"
    external(path, **options)
    expected = {name: array.tobytes() for name, array in some_arrays().items()}
    with OnnxReader(path) as reader:
        assert values_of(reader) == expected
        files = {name: size for name, size in reader.structure.items() if name.startswith("external.")}
    if "location" in options:
        assert files == {f"external.{options['location']}": (tmp_path / options["location"]).stat().st_size}
    with path.open("rb") as file:
        found = open_reader(file, "m.onnx", LocalFolder(tmp_path))
        assert found is not None
        assert values_of(found) == expected


def test_a_model_without_its_folder_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    external(path, location="w.bin")
    with pytest.raises(BadModelError) as caught:
        OnnxReader(io.BytesIO(path.read_bytes()), "m.onnx")
    assert "track the folder" in caught.value.hint


def external_tensor(name: str = "w", **entries: str) -> Any:
    tensor = T(name=name, data_type=T.FLOAT, dims=[2], data_location=T.EXTERNAL)
    for entry, value in entries.items():
        tensor.external_data.add(key=entry, value=value)
    return tensor


def test_values_at_one_place_are_tied(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(np.arange(6, dtype=np.float32).tobytes())
    tensors = [external_tensor(n, location="w.bin", offset=o) for n, o in (("c", "0"), ("a", "0"), ("b", "8"))]
    onnx.save(model_of(tensors), tmp_path / "m.onnx")
    with OnnxReader(tmp_path / "m.onnx") as reader:
        assert [s.name for s in reader.specs] == ["a", "b"]
        assert reader.structure["tied.c"] == "a"


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "../secret.bin"},
        {"location": "sub/../../secret.bin"},
        {"location": "/etc/passwd"},
        {"location": "link.bin"},
        {"location": "missing.bin"},
        {"location": ""},
        {"location": "."},
        {"location": "sub"},
        {"location": "w.bin\0"},
        {"location": "a/" * 3000},
        {"location": "n" * 300},
        {"location": "..\\secret.bin"},
        {},
        {"location": "w.bin", "offset": "-1"},
        {"location": "w.bin", "offset": "1e3"},
        {"location": "w.bin", "offset": "9" * 5000},
        {"location": "w.bin", "offset": "20"},
        {"location": "w.bin", "length": "4"},
        {"location": "w.bin", "length": "800"},
        {"location": "w.bin", "offset": "9223372036854775807"},
    ],
)
def test_a_hostile_place_of_values_is_one_line(tmp_path: Path, entries: dict[str, str]) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.bin").write_bytes(bytes(8))
    (folder / "w.bin").write_bytes(bytes(20))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    onnx.save(model_of([external_tensor(**entries)]), folder / "m.onnx")
    with pytest.raises(BadModelError) as caught, OnnxReader(folder / "m.onnx") as reader:
        values_of(reader)
    assert str(caught.value).isprintable()


def test_a_file_of_values_that_shrinks_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(8))
    onnx.save(model_of([external_tensor(location="w.bin")]), tmp_path / "m.onnx")
    with OnnxReader(tmp_path / "m.onnx") as reader:
        (tmp_path / "w.bin").write_bytes(bytes(4))
        with pytest.raises(BadModelError):
            values_of(reader)


def tensor_of(*parts: bytes) -> bytes:
    return block(5, block(8, b"w") + b"".join(parts))


FLOAT = key(2, 0) + varint(1)
RAW8 = block(9, bytes(8))
OPSET = block(8, key(2, 0) + varint(21))


def deep_graph(depth: int) -> bytes:
    graph = b""
    for _ in range(depth):
        graph = block(1, block(4, b"If") + block(5, block(1, b"then_branch") + block(6, graph)))
    return graph


def deep_type(depth: int) -> bytes:
    kind = block(1, key(1, 0) + varint(1))
    for _ in range(depth):
        kind = block(4, block(1, kind))
    return block(11, block(1, b"x") + block(2, kind))


@pytest.mark.parametrize(
    "graph",
    [
        tensor_of(FLOAT, key(1, 0) + varint(3), RAW8),
        tensor_of(FLOAT, key(1, 0) + varint(-2), RAW8),
        tensor_of(FLOAT, block(1, varint(2**62) + varint(16))),
        tensor_of(FLOAT, block(1, b"\1" * 100), block(9, bytes(4))),
        tensor_of(key(2, 0) + varint(99), key(1, 0) + varint(2), RAW8),
        tensor_of(key(1, 0) + varint(2), RAW8),
        tensor_of(FLOAT, key(1, 0) + varint(2)),
        tensor_of(FLOAT, key(1, 0) + varint(2), block(4, bytes(12))),
        tensor_of(FLOAT, key(1, 0) + varint(1), block(4, bytes(5))),
        tensor_of(FLOAT, key(1, 0) + varint(2), key(4, 0) + varint(1)),
        tensor_of(key(2, 0) + varint(6), key(1, 0) + varint(2), block(5, b"\1\2\3")),
        tensor_of(key(2, 0) + varint(6), key(1, 0) + varint(2), block(5, b"\1\x82")),
        tensor_of(key(2, 0) + varint(6), key(1, 0) + varint(2), block(5, b"\xff" * 15)),
        tensor_of(FLOAT, block(3, b"")),
        tensor_of(FLOAT, key(8, 0) + b"\1"),
        tensor_of(FLOAT, key(9, 0) + b"\1"),
        tensor_of(FLOAT, key(1, 0) + varint(2), RAW8) * 2,
        block(5, FLOAT + key(1, 0) + varint(2) + RAW8),
        block(5, block(8, b"\xff") + FLOAT + key(1, 0) + varint(2) + RAW8),
        block(5, block(8, b"w" * 9000) + FLOAT + key(1, 0) + varint(2) + RAW8),
        block(1, b""),
        block(1, block(4, b"X") + key(5, 0) + b"\1"),
        block(1, block(4, b"X") + block(5, block(1, b"a") + key(5, 0) + b"\1")),
        block(1, block(4, b"X") + block(5, block(1, b"a") + key(7, 1) + bytes(8))),
        block(1, block(4, b"X") + block(5, block(1, b"a") + key(8, 5) + bytes(4))),
        block(15, block(3, b"\2")),
        key(3, 0) + b"\1",
        key(1, 0) + b"\1",
        block(9, b""),
        deep_graph(40),
        deep_graph(2000),
        deep_type(40),
        deep_type(2000),
    ],
)
def test_a_hostile_graph_is_one_line(graph: bytes) -> None:
    data = key(1, 0) + varint(8) + block(7, graph) + OPSET
    with pytest.raises(BadModelError) as caught, OnnxReader(io.BytesIO(data), "m.onnx") as reader:
        values_of(reader)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x08\x08",
        block(7, b"") + OPSET,
        key(1, 0) + varint(8) + OPSET,
        key(1, 0) + varint(8) + block(7, b""),
        key(1, 0) + varint(8) + block(7, b"") * 2 + OPSET,
        key(1, 0) + varint(8) + block(7, b"") + block(9, b"") + OPSET,
        key(1, 0) + varint(8) + block(7, b"") + key(2, 0) + b"\1" + OPSET,
        key(1, 0) + varint(8) + block(7, b"") + OPSET + b"\x0a\x7f",
    ],
)
def test_a_file_that_is_no_model_is_one_line(data: bytes) -> None:
    with pytest.raises(BadModelError) as caught:
        open_reader(io.BytesIO(data), "m.onnx")
    assert str(caught.value).isprintable()


def test_other_files_are_not_taken_for_onnx() -> None:
    core_ml = key(1, 0) + varint(5) + block(2, block(1, b"x")) + block(500, b"layers")
    saved_model = key(1, 0) + varint(1) + block(2, block(2, block(1, b"node")))
    text = b"\x08\x09 a text that begins with a tab\n" * 9
    for data in (core_ml, saved_model, text, b"\x08", b"\x08\x08\x3a\x00", b"\x08\x08\x3a\x02\x18\x01", bytes(100)):
        assert not matches(io.BytesIO(data))


def test_a_flipped_byte_never_escapes_as_another_error() -> None:
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("a", 1), else_branch=branch("b", 2))
    model = quantised_model(np.ones((2, 2), np.int8), np.float32(1), np.int8(0))
    model.graph.node.append(node)
    model.graph.initializer.append(helper.make_tensor("t", T.INT64, [3], [1, 2, 300]))
    data = model.SerializeToString()
    for i in range(len(data)):
        for flip in (0xFF, 0x01, 0x80):
            broken = bytearray(data)
            broken[i] ^= flip
            try:
                with OnnxReader(io.BytesIO(broken), "m.onnx") as reader:
                    values_of(reader)
                    for spec in reader.specs:
                        list(reader.iter_values(spec, 16))
            except BadModelError as err:
                assert str(err).isprintable()


def test_listing_a_gigabyte_reads_little(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    n_bytes = 1 << 20
    graph_length = 0
    tensors = []
    for i in range(1024):
        fields = key(1, 0) + varint(n_bytes // 4) + FLOAT + block(8, f"w{i:04}".encode()) + key(9, 2) + varint(n_bytes)
        start = key(5, 2) + varint(len(fields) + n_bytes) + fields
        tensors.append(start)
        graph_length += len(start) + n_bytes
    with path.open("wb") as file:
        file.write(key(1, 0) + varint(8) + key(7, 2) + varint(graph_length))
        for start in tensors:
            file.write(start)
            file.seek(n_bytes, os.SEEK_CUR)
        file.write(OPSET)
    assert path.stat().st_size > 1 << 30

    class Counting(io.FileIO):
        n_read = 0

        def readinto(self, buffer: Any, /) -> int:
            n = super().readinto(buffer)
            self.n_read += n or 0
            return n or 0

    with Counting(path) as raw:
        reader = open_reader(raw, "m.onnx")
        assert reader is not None
        assert len(reader.specs) == 1024
        assert raw.n_read < 2_000_000


def test_an_engine_in_an_attribute_is_a_tensor_of_bytes() -> None:
    node = helper.make_node(
        "EPContext", ["x"], ["y"], name="engine", domain="com.microsoft", ep_cache_context=b"\7" * 2_000_000
    )
    data = model_of(nodes=[node]).SerializeToString()
    file = CountingFile(data)
    with OnnxReader(file, "m.onnx") as reader:
        assert file.n_read < 5_000
        assert [(s.name, s.dtype, s.shape) for s in reader.specs] == [("engine.ep_cache_context", "U8", (2_000_000,))]


def test_pytorch_exports_keep_the_names_of_the_state_dict(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2)).eval()
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (torch.zeros(1, 4),), str(path), dynamo=False, dynamic_axes={"input": {0: "n"}}, input_names=["input"]
        )
    with OnnxReader(path) as reader:
        assert reader.framework == "pytorch"
        assert values_of(reader) == {name: w.numpy().tobytes() for name, w in net.state_dict().items()}
        assert reader.structure["inputs.input"] == "F32 [n, 4]"
        assert reader.structure["nodes.Gemm"] == 2
