from __future__ import annotations

import importlib.util
import io
import os
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

flatbuffers: Any = pytest.importorskip("flatbuffers")

from dvc_modelver.errors import BadModelError  # noqa: E402
from dvc_modelver.formats import open_reader  # noqa: E402
from dvc_modelver.formats.base import Reader  # noqa: E402
from dvc_modelver.formats.tflite import TfliteReader, matches  # noqa: E402
from tests.formats.contract import Arrays, CountingFile, ReaderContract, some_arrays, values_of  # noqa: E402


def load_schema() -> Any:
    """Give TensorFlow's own writer of these files, without the seconds that importing TensorFlow takes."""
    tensorflow = importlib.util.find_spec("tensorflow")
    if tensorflow is None or tensorflow.origin is None:
        pytest.skip("TensorFlow is not installed", allow_module_level=True)
    path = Path(tensorflow.origin).parent / "lite/python/schema_py_generated.py"
    found = importlib.util.spec_from_file_location("tflite_schema", path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


schema = load_schema()
KIND = schema.TensorType
KINDS = {
    "float32": KIND.FLOAT32, "float16": KIND.FLOAT16, "float64": KIND.FLOAT64, "int64": KIND.INT64, "int32": KIND.INT32,
    "int16": KIND.INT16, "int8": KIND.INT8, "uint8": KIND.UINT8, "uint16": KIND.UINT16, "uint32": KIND.UINT32,
    "uint64": KIND.UINT64, "bool": KIND.BOOL, "complex64": KIND.COMPLEX64, "complex128": KIND.COMPLEX128,
}  # fmt: skip


class Writer:
    """Builds a model with TensorFlow's classes."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.description = "a test"
        self.model.buffers = [schema.BufferT()]
        self.model.operatorCodes = []
        self.model.subgraphs = []
        self.add_graph()

    def add_graph(self) -> None:
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.inputs, self.graph.outputs, self.graph.operators = [], [], [], []
        self.model.subgraphs.append(self.graph)

    def add_buffer(self, data: bytes) -> int:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(data, np.uint8)
        self.model.buffers.append(buffer)
        return len(self.model.buffers) - 1

    def add(self, name: str, shape: tuple[int, ...], kind: int, data: bytes = b"", buffer: int = 0, **more: Any) -> Any:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name, list(shape), kind
        tensor.buffer = self.add_buffer(data) if data else buffer
        for attribute, value in more.items():
            setattr(tensor, attribute, value)
        self.graph.tensors.append(tensor)
        return tensor

    def add_operator(self, code: int, inputs: list[int], outputs: list[int], **more: Any) -> Any:
        numbers = [known.builtinCode for known in self.model.operatorCodes]
        if code not in numbers:
            known = schema.OperatorCodeT()
            known.builtinCode, known.deprecatedBuiltinCode, known.version = code, min(code, 127), 1
            self.model.operatorCodes.append(known)
            numbers.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = numbers.index(code), inputs, outputs
        for attribute, value in more.items():
            setattr(operator, attribute, value)
        self.graph.operators.append(operator)
        return operator

    def pack(self) -> bytes:
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def read(self) -> TfliteReader:
        return TfliteReader(io.BytesIO(self.pack()), "m.tflite")


def quantised(scale: list[float], zero_point: list[int], axis: int = 0) -> Any:
    found = schema.QuantizationParametersT()
    found.scale, found.zeroPoint, found.quantizedDimension = scale, zero_point, axis
    return found


def real(reader: Reader, name: str) -> Any:
    spec = next(spec for spec in reader.specs if spec.name == name)
    pieces = [bytes(piece) for piece in reader.iter_values(spec, 12)]
    assert all(len(piece) == 12 for piece in pieces[:-1])
    return np.frombuffer(b"".join(pieces), np.float32).reshape(spec.shape)


class TestTflite(ReaderContract):
    suffix = ".tflite"

    def arrays(self) -> Arrays:
        # A tensor without a byte is, in TFLite, one that is computed.
        return {name: array for name, array in some_arrays().items() if array.size}

    def write(self, path: Path, arrays: Arrays) -> None:
        writer = Writer()
        for name, array in arrays.items():
            writer.add(name, array.shape, KINDS[array.dtype.name], array.tobytes())
        path.write_bytes(writer.pack())


class TestTfliteWithValuesBehind(TestTflite):
    """The layout of models beyond 2 GB: buffers name a place behind the flatbuffer."""

    def write(self, path: Path, arrays: Arrays) -> None:
        writer = Writer()
        for name, array in arrays.items():
            writer.add(name, array.shape, KINDS[array.dtype.name], b"\0")
            buffer = writer.model.buffers[-1]
            buffer.data, buffer.offset, buffer.size = None, 1, 1
        places = []
        at = len(writer.pack())
        for array in arrays.values():
            places.append((at, array.nbytes))
            at += array.nbytes
        for buffer, (offset, size) in zip(writer.model.buffers[1:], places, strict=True):
            buffer.offset, buffer.size = offset, size
        path.write_bytes(writer.pack() + b"".join(array.tobytes() for array in arrays.values()))


@pytest.mark.parametrize("name", KINDS)
def test_every_dtype_reads(name: str) -> None:
    array = np.frombuffer(bytes(i % 2 for i in range(64)), name)
    writer = Writer()
    writer.add("w", array.shape, KINDS[name], array.tobytes())
    with writer.read() as reader:
        assert values_of(reader) == {"w": array.tobytes()}
        assert reader.specs[0].nbytes == array.nbytes


@pytest.mark.parametrize(
    ("kind", "bits", "dtype", "numbers"),
    [
        (KIND.INT4, 4, "I8", [-8, 7, -1, 0, 3]),
        (KIND.UINT4, 4, "U8", [0, 15, 8, 7, 1]),
        (KIND.INT2, 2, "I8", [-2, 1, 0, -1, 1]),
    ],
)
def test_narrow_integers_are_given_one_per_byte(kind: int, bits: int, dtype: str, numbers: list[int]) -> None:
    word = sum((number & (1 << bits) - 1) << i * bits for i, number in enumerate(numbers))
    writer = Writer()
    writer.add("w", (5,), kind, word.to_bytes((5 * bits + 7) // 8, "little"))
    writer.add("q", (5,), kind, word.to_bytes((5 * bits + 7) // 8, "little"), quantization=quantised([0.5], [1]))
    with writer.read() as reader:
        assert {s.name: s.dtype for s in reader.specs} == {"w": dtype, "q": f"Q{dtype}"}
        assert values_of(reader)["w"] == np.array(numbers).astype(np.int8).tobytes()
        assert real(reader, "q").tolist() == [(number - 1) / 2 for number in numbers]
        assert str(reader.structure["packed.w"]).endswith(f"INT{bits}")


@pytest.mark.parametrize(
    ("dtype", "scale", "zero_point", "axis"),
    [
        ("int8", [0.07], [3], 0),
        ("uint8", [0.07], [130], 0),
        ("int16", [0.07], [], 0),
        ("int32", [0.1, 0.2, 0.3], [0, 0, 0], 0),
        ("int8", [0.1, 0.2, 0.3, 0.4], [1, 2, 3, 4], 1),
        ("int8", [0.1, 0.2], [0], 2),
    ],
)
def test_scales_give_real_values(dtype: str, scale: list[float], zero_point: list[int], axis: int) -> None:
    array = np.random.default_rng(0).integers(0, 127, (3, 4, 2)).astype(dtype)
    writer = Writer()
    writer.add("w", array.shape, KINDS[dtype], array.tobytes(), quantization=quantised(scale, zero_point, axis))
    shape = [1, 1, 1]
    if len(scale) > 1:
        shape[axis] = len(scale)
    zero = np.resize(zero_point or [0], len(scale)).reshape(shape)
    expected = (array.astype(np.float64) - zero) * np.array(scale, np.float32).astype(np.float64).reshape(shape)
    with writer.read() as reader:
        assert reader.specs[0].dtype == {"int8": "QI8", "uint8": "QU8", "int16": "QI16", "int32": "QI32"}[dtype]
        assert values_of(reader)["w"] == array.tobytes()
        assert real(reader, "w").tobytes() == expected.astype(np.float32).tobytes()


def test_scales_that_fit_no_axis_leave_integers() -> None:
    writer = Writer()
    for name, parameters in {
        "count": quantised([0.1, 0.2, 0.3], [0, 0, 0], 0),
        "axis": quantised([0.1, 0.2], [0, 0], 7),
        "negative": quantised([0.1, 0.2], [0, 0], -1),
        "zeros": quantised([0.1, 0.2], [0, 0, 0], 0),
        "none": quantised([], []),
    }.items():
        writer.add(name, (2, 2), KIND.INT8, bytes(4), quantization=parameters)
    with writer.read() as reader:
        assert {s.dtype for s in reader.specs} == {"I8"}


def test_a_scale_without_bounds_gives_infinity() -> None:
    writer = Writer()
    writer.add("w", (2,), KIND.INT8, b"\x7f\0", quantization=quantised([3e38], [0]))
    with writer.read() as reader:
        assert real(reader, "w").tolist() == [np.inf, 0]


def test_a_name_that_comes_twice_gets_a_number() -> None:
    writer = Writer()
    for i in range(3):
        writer.add("w", (1,), KIND.UINT8, bytes([i + 1]))
    writer.add("", (1,), KIND.UINT8, b"\7")
    with writer.read() as reader:
        assert values_of(reader) == {"w": b"\1", "w#2": b"\2", "w#3": b"\3", "subgraph0.tensor3": b"\7"}


def test_one_tensor_of_two_subgraphs_is_listed_once_and_a_shared_buffer_twice() -> None:
    writer = Writer()
    writer.add("w", (2,), KIND.UINT8, b"\1\2")
    writer.add("other", (2,), KIND.UINT8, buffer=1)
    writer.add_graph()
    writer.add("w", (2,), KIND.UINT8, buffer=1)
    with writer.read() as reader:
        assert values_of(reader) == {"w": b"\1\2", "other": b"\1\2"}
        assert reader.structure["subgraphs"] == 2


def test_strings_are_facts_and_sparse_tensors_their_values() -> None:
    writer = Writer()
    writer.add("words", (1,), KIND.STRING, b"\1\0\0\0\x0c\0\0\0\x0d\0\0\0a")
    sparsity = schema.SparsityParametersT()
    sparsity.traversalOrder = [0, 1]
    writer.add("s", (100, 100), KIND.FLOAT32, bytes(12), sparsity=sparsity)
    with writer.read() as reader:
        assert [(s.name, s.shape) for s in reader.specs] == [("s", (3,))]
        assert reader.structure["sparse.s"] == "F32 [100, 100]"
        assert str(reader.structure["other.words"]).startswith("13 bytes, sha256:")


def small_net(**change: Any) -> Writer:
    writer = Writer()
    writer.add("x", (1, 2), KIND.FLOAT32, shapeSignature=[-1, 2])
    writer.add("w", (3, 2), KIND.FLOAT32, np.full(6, change.get("value", 1), np.float32).tobytes())
    writer.add("b", (3,), KIND.FLOAT32, bytes(12))
    writer.add("h", (1, 3), KIND.FLOAT32)
    writer.add("y", (3, 1), KIND.FLOAT32)
    dense = schema.FullyConnectedOptionsT()
    dense.fusedActivationFunction = change.get("activation", 0)
    reshape = schema.ReshapeOptionsT()
    reshape.newShape = change.get("shape", [3, 1])
    writer.add_operator(9, change.get("inputs", [0, 1, 2]), [3], builtinOptionsType=8, builtinOptions=dense)
    writer.add_operator(22, [3], [4], builtinOptionsType=17, builtinOptions=reshape)
    writer.graph.inputs, writer.graph.outputs = [0], [4]
    return writer


def test_the_graph_is_facts_and_a_digest() -> None:
    with small_net().read() as reader:
        found = dict(reader.structure)
        assert reader.framework == "tensorflow"
    assert str(found.pop("graph")).startswith("sha256:")
    assert found == {
        "version": 3,
        "description": "a test",
        "inputs.x": "F32 [?, 2]",
        "outputs.y": "F32 [3, 1]",
        "operators.FULLY_CONNECTED": 1,
        "operators.RESHAPE": 1,
    }


@pytest.mark.parametrize("change", [{"activation": 1}, {"shape": [1, 3]}, {"inputs": [0, 1, -1]}])
def test_a_change_of_the_graph_shows(change: dict[str, Any]) -> None:
    with small_net().read() as old, small_net(**change).read() as new:
        assert old.structure["graph"] != new.structure["graph"]


def test_other_values_are_no_change_of_the_graph() -> None:
    with small_net().read() as old, small_net(value=2).read() as new:
        assert old.structure == new.structure


def test_custom_operators_have_their_own_name() -> None:
    writer = small_net()
    operator = writer.add_operator(32, [0], [3], customOptions=[1, 2, 3])
    writer.model.operatorCodes[-1].customCode = "MyOp"
    with writer.read() as reader:
        assert reader.structure["operators.MyOp"] == 1
        first = reader.structure["graph"]
    operator.customOptions = [1, 2, 4]
    with writer.read() as reader:
        assert reader.structure["graph"] != first


def test_files_appended_to_a_model_do_no_harm() -> None:
    data = small_net().pack()
    with TfliteReader(io.BytesIO(data + b"PK\x03\x04 labels"), "m") as reader:
        assert len(reader.specs) == 2


def hostile_writers() -> dict[str, Writer]:
    found = {
        name: small_net() for name in ("short", "long", "negative", "rank", "buffer", "huge", "input", "opcode", "name")
    }
    tensors = {name: writer.graph.tensors[1] for name, writer in found.items()}
    tensors["short"].shape = [3, 3]
    tensors["long"].shape = [1]
    tensors["negative"].shape = [-3, -2]
    tensors["rank"].shape = [1] * 100
    tensors["buffer"].buffer = 99
    tensors["huge"].shape = [2**31 - 1] * 4
    found["input"].graph.inputs = [77]
    found["opcode"].graph.operators[0].opcodeIndex = 9
    tensors["name"].name = b"\xff\xfe"
    found["graph"] = Writer()
    found["graph"].model.subgraphs = []
    for name, (offset, size) in {"far": (1 << 40, 24), "wide": (100, 1 << 63), "most": (2**64 - 1, 2**64 - 1)}.items():
        found[name] = small_net()
        buffer = found[name].model.buffers[1]
        buffer.data, buffer.offset, buffer.size = None, offset, size
    return found


@pytest.mark.parametrize("name", hostile_writers())
def test_a_hostile_model_is_one_line(name: str) -> None:
    data = hostile_writers()[name].pack()
    with pytest.raises(BadModelError) as caught, TfliteReader(io.BytesIO(data), "m") as reader:
        values_of(reader)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x08\0\0\0TFL3",
        b"\0\0\0\0TFL3" + bytes(40),
        b"\x08\0\0\0TFL4" + bytes(40),
        b"\xff\xff\xff\xffTFL3" + bytes(40),
        b"\x08\0\0\0TFL3" + struct.pack("<i", -(2**31)) + bytes(40),
        b"\x08\0\0\0TFL3" + struct.pack("<i", 2**31 - 1) + bytes(40),
        b"\x08\0\0\0TFL3" + struct.pack("<iHH", -4, 3, 4) + bytes(40),
        b"\x08\0\0\0TFL3" + struct.pack("<iHH", -4, 65534, 4) + bytes(40),
        b"\x08\0\0\0TFL3" + struct.pack("<iHH", -4, 4, 65535) + bytes(40),
    ],
)
def test_a_broken_flatbuffer_is_one_line(data: bytes) -> None:
    with pytest.raises(BadModelError) as caught:
        open_reader(io.BytesIO(data), "m.tflite")
    assert str(caught.value).isprintable()


def test_many_offsets_to_one_table_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from dvc_modelver.formats import flatbuffer

    monkeypatch.setattr(flatbuffer, "MAX_TABLES", 100)
    writer = small_net()
    for i in range(100):
        writer.add(f"t{i}", (), KIND.FLOAT32)
    with pytest.raises(BadModelError):
        writer.read()


def test_a_flipped_byte_never_escapes_as_another_error() -> None:
    writer = small_net()
    writer.add("q", (2, 2), KIND.INT8, bytes(4), quantization=quantised([0.5, 1], [0, 1], 1))
    data = writer.pack()
    for i in range(len(data)):
        for flip in (0xFF, 0x01, 0x80):
            broken = bytearray(data)
            broken[i] ^= flip
            try:
                with TfliteReader(io.BytesIO(broken), "m") as reader:
                    values_of(reader)
                    for spec in reader.specs:
                        list(reader.iter_values(spec, 16))
            except BadModelError as err:
                assert str(err).isprintable()


def test_listing_a_gigabyte_reads_little(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    writer = Writer()
    for i in range(500):
        writer.add(f"w{i}", (1 << 19,), KIND.FLOAT32, b"\0")
        buffer = writer.model.buffers[-1]
        buffer.data, buffer.offset, buffer.size = None, (i + 1) << 21, 1 << 21
    with path.open("wb") as file:
        file.write(writer.pack())
        file.truncate(501 << 21)
    with path.open("rb") as start:
        head = start.read(1 << 20)
    real_length = path.stat().st_size
    assert real_length > 1_000_000_000

    class Sparse(CountingFile):
        def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
            return real_length if whence == os.SEEK_END else super().seek(offset, whence)

    sparse = Sparse(head)
    with TfliteReader(sparse, "m") as reader:
        assert len(reader.specs) == 500
        assert sparse.n_read < 2_000_000


def test_text_that_begins_alike_is_not_taken() -> None:
    assert not matches(io.BytesIO(b"xxxxTFL"))
    assert not matches(io.BytesIO(b"xxxxTFL2xxxx"))


@pytest.fixture(scope="module")
def tf() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        tensorflow = pytest.importorskip("tensorflow")
        yield tensorflow


def convert(tf: Any, mode: str) -> bytes:
    class Net(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            rng = np.random.default_rng(0)
            self.kernel = tf.Variable(rng.standard_normal((3, 3, 1, 6)).astype(np.float32))
            self.dense = tf.Variable(rng.standard_normal((6 * 36, 40)).astype(np.float32))
            self.bias = tf.Variable(rng.standard_normal(40).astype(np.float32))

        @tf.function(input_signature=[tf.TensorSpec([1, 8, 8, 1], tf.float32, name="image")])  # type: ignore[untyped-decorator]
        def __call__(self, image: Any) -> Any:
            hidden = tf.nn.relu(tf.nn.conv2d(image, self.kernel, 1, "VALID"))
            return tf.matmul(tf.reshape(hidden, [1, 216]), self.dense) + self.bias

    net = Net()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([net.__call__.get_concrete_function()], net)
    if mode != "float":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if mode == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if mode in ("int8", "int16"):
        rng = np.random.default_rng(1)
        samples = [[rng.standard_normal((1, 8, 8, 1)).astype(np.float32)] for _ in range(8)]
        converter.representative_dataset = lambda: samples
        int8 = tf.lite.OpsSet.TFLITE_BUILTINS_INT8
        int16 = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        converter.target_spec.supported_ops = [int8 if mode == "int8" else int16]
    return bytes(converter.convert())


@pytest.mark.parametrize("mode", ["float", "float16", "dynamic", "int8", "int16"])
def test_converted_models_read_as_the_interpreter_reads_them(tf: Any, mode: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = convert(tf, mode)
        interpreter = tf.lite.Interpreter(model_content=data)
        interpreter.allocate_tensors()
        details = {detail["name"]: detail for detail in interpreter.get_tensor_details()}
    with TfliteReader(io.BytesIO(data), "m.tflite") as reader:
        values = values_of(reader)
        assert {"float": "F32", "float16": "F16"}.get(mode, "QI8") in {spec.dtype for spec in reader.specs}
        for spec in reader.specs:
            detail = details[spec.name]
            array = interpreter.get_tensor(detail["index"])
            assert spec.shape == array.shape
            assert values[spec.name] == array.tobytes()
            parameters = detail["quantization_parameters"]
            if spec.dtype.startswith("Q"):
                shape = [1] * array.ndim
                if len(parameters["scales"]) > 1:
                    shape[parameters["quantized_dimension"]] = -1
                expected = (array.astype(np.float64) - parameters["zero_points"].reshape(shape)) * parameters[
                    "scales"
                ].reshape(shape).astype(np.float64)
                assert real(reader, spec.name).tobytes() == expected.astype(np.float32).tobytes()
        assert reader.structure["operators.CONV_2D"] == 1
        assert "F32 [1, 8, 8, 1]" in reader.structure.values()
        assert reader.structure["metadata.min_runtime_version"]
