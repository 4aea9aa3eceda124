from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats import open_reader
from dvc_modelver.formats import torch as reader_module
from dvc_modelver.formats.torch import TorchReader
from dvc_modelver.tensors import find_role
from tests.formats.contract import Arrays, CountingFile, ReaderContract, values_of

torch: Any = pytest.importorskip("torch")
nn: Any = torch.nn
PythonPickler: Any = pickle._Pickler

pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch announces what it will do away with, on every other call.


def to_torch(arrays: Arrays) -> dict[str, Any]:
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


class TestTorch(ReaderContract):
    suffix = ".pt"

    def write(self, path: Path, arrays: Arrays) -> None:
        torch.save(to_torch(arrays), path)


class TestLegacyTorch(ReaderContract):
    suffix = ".pth"

    def write(self, path: Path, arrays: Arrays) -> None:
        torch.save(to_torch(arrays), path, _use_new_zipfile_serialization=False)


class TestTorchScript(ReaderContract):
    suffix = ".pt"

    def arrays(self) -> Arrays:
        return {"t_" + name.replace(".", "_"): array for name, array in super().arrays().items()}

    def write(self, path: Path, arrays: Arrays) -> None:
        module = nn.Module()
        for name, tensor in to_torch(arrays).items():
            module.register_buffer(name, tensor)
        torch.jit.save(torch.jit.script(module), str(path))


BOTH = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])


def save(value: object, is_zip: bool = True) -> io.BytesIO:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=is_zip)
    return stream


def read(stream: io.BytesIO) -> TorchReader:
    reader = open_reader(stream, "m.pt")
    assert isinstance(reader, TorchReader)
    return reader


def raw(tensor: Any) -> bytes:
    whole = tensor.detach().resolve_conj().resolve_neg().contiguous()
    data: bytes = whole.reshape(-1).view(torch.uint8).numpy().tobytes() if whole.numel() else b""
    return data


def assert_reads(value: object, expected: dict[str, Any], is_zip: bool = True) -> TorchReader:
    stream = save(value, is_zip)
    reader = read(stream)
    assert [s.name for s in reader.specs] == sorted(expected)
    assert {s.name: s.shape for s in reader.specs} == {name: tuple(t.shape) for name, t in expected.items()}
    for n_bytes in (16, 7, 1 << 20):
        assert values_of(reader, n_bytes) == {name: raw(t) for name, t in expected.items()}
    return reader


DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16,
    "I8": torch.int8, "U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
    "BOOL": torch.bool, "C64": torch.complex64, "C128": torch.complex128,
}  # fmt: skip


@BOTH
def test_every_dtype_is_read(is_zip: bool) -> None:
    values = {name: (torch.arange(12).reshape(3, 4) % 3).to(dtype) for name, dtype in DTYPES.items()}
    reader = assert_reads(values, values, is_zip)
    assert {s.name: s.dtype for s in reader.specs} == {name: name for name in DTYPES}


def test_a_dtype_that_the_table_lacks_is_told_in_the_structure() -> None:
    half = torch.view_as_complex(torch.arange(6).reshape(3, 2).to(torch.float16))
    reader = read(
        save({"half": half, "four": torch.arange(6, dtype=torch.uint8).reshape(2, 3).view(torch.float4_e2m1fn_x2)})
    )
    assert [(s.name, s.dtype, s.shape) for s in reader.specs] == [("four", "F4", (2, 6)), ("half", "F16", (3, 2))]
    assert values_of(reader) == {"four": bytes(range(6)), "half": np.arange(6, dtype=np.float16).tobytes()}
    assert reader.structure["half.dtype"] == "complex32"
    assert reader.structure["four.dtype"] == "float4_e2m1fn_x2"


@BOTH
def test_views_give_their_elements_in_c_order(is_zip: bool) -> None:
    x = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
    values = {
        "t": x.permute(3, 1, 0, 2),
        "slice": x[:, 1:, ::2, 1:4],
        "row": x[1],
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "expanded": x[0, 0, 0].expand(6, 5),
        "diagonal": x[0, 0].diagonal(),
        "windows": x.reshape(-1).unfold(0, 8, 3),
        "scalar": x[1, 2, 3, 4],
        "column": x[..., :1],
        "none": x[2:],
    }
    assert_reads(values, values, is_zip)


def test_conjugate_and_negative_views_give_what_they_mean() -> None:
    z = torch.randn(5, 4, dtype=torch.complex64)
    values = {
        "conj": z.conj(),
        "neg": z.conj().imag,
        "turned": z.conj().mT,
        "double": torch.randn(3, dtype=torch.complex128).conj(),
        "half": z.conj().imag[1:, ::2],
    }
    assert values["neg"].is_neg()
    assert values["turned"].is_conj()
    for name, value in values.items():
        assert_reads({name: value}, {name: value})


def test_large_views_are_gathered_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from dvc_modelver.formats import strided

    monkeypatch.setattr(strided, "MAX_BLOCK_BYTES", 1000)
    monkeypatch.setattr(strided, "MAX_READ_BYTES", 300)
    monkeypatch.setattr(strided, "_MIN_READ_BYTES", 100)
    x = torch.arange(6 * 7 * 8 * 9, dtype=torch.int16).reshape(6, 7, 8, 9)
    big = torch.arange(40_000, dtype=torch.int64).reshape(200, 200)
    values = {
        "t": x.permute(3, 1, 0, 2), "r": x.permute(3, 2, 1, 0), "s": x[:, 1:, ::2, 1:4], "m": x.mT, "c": big[:, ::50],
        "bt": big.t(), "e": big[0].expand(30, 200), "d": big.diagonal(), "w": big.reshape(-1).unfold(0, 300, 250),
    }  # fmt: skip
    assert_reads(values, values)


def test_a_transposed_matrix_is_read_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    from dvc_modelver.formats import strided

    monkeypatch.setattr(strided, "MAX_BLOCK_BYTES", 2 << 20)
    monkeypatch.setattr(strided, "MAX_READ_BYTES", 1 << 20)
    stream = save({"t": torch.arange(9_000_000, dtype=torch.float32).reshape(3000, 3000).t()})
    reader = read(stream)
    spec = reader.specs[0]
    tracemalloc.start()
    first = bytes(next(reader.iter_buffers(spec, 12_000)))
    n_bytes = sum(len(piece) for piece in reader.iter_buffers(spec, 1 << 20))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert n_bytes == spec.nbytes
    assert first == np.arange(0, 9_000_000, 3000, dtype=np.float32).tobytes()


@BOTH
def test_tied_tensors_are_listed_once(is_zip: bool) -> None:
    w = torch.randn(3, 4)
    values = {"decoder.weight": w, "a.weight": w, "other": w.clone(), "part": w[1:]}
    reader = assert_reads(values, {name: values[name] for name in ("a.weight", "other", "part")}, is_zip)
    assert reader.structure["tied.decoder.weight"] == "a.weight"


def some_module() -> Any:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Sequential(nn.Conv1d(3, 2, 1), nn.LSTM(2, 2)))
    module[0].register_buffer("mask", torch.ones(3), persistent=False)
    module[0].register_parameter("nothing", None)
    module[2].plain = torch.ones(2)
    return module


@BOTH
def test_a_checkpoint_keeps_its_nesting_in_the_names(is_zip: bool) -> None:
    module = some_module()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.25)
    sum(p.sum() for p in module.parameters()).backward()
    optimizer.step()
    state = module.state_dict()
    value = {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "best": None,
        "args": SimpleNamespace(lr=0.5, path=Path("/x")),
    }
    expected = {f"model.{name}": tensor for name, tensor in state.items()}
    for i, slots in optimizer.state_dict()["state"].items():
        expected |= {f"optimizer.state.{i}.{name}": tensor for name, tensor in slots.items()}
    reader = assert_reads(value, expected, is_zip)
    assert {s.role for s in reader.specs if s.name.startswith("optimizer.")} == {"optimizer"}
    assert {s.role for s in reader.specs if s.name.startswith("model.")} == {"parameter"}
    assert reader.structure["epoch"] == 3
    assert reader.structure["args.lr"] == 0.5
    assert reader.structure["optimizer.param_groups.0.lr"] == 0.25
    assert reader.framework == "pytorch"


@pytest.mark.parametrize("key", ["optimizer_state_dict", "opt", "", "optim.g"])
def test_optimiser_state_is_told_from_parameters_whatever_its_name(key: str) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    reader = read(save({key: optimizer.state_dict(), "weight": weight} if key else optimizer.state_dict()))
    roles = {s.name: s.role for s in reader.specs}
    assert roles.pop("weight", "parameter") == "parameter"
    assert set(roles.values()) == {"optimizer"}
    assert len(roles) == 3


@BOTH
def test_a_pickled_module_has_the_names_of_its_state_dict(is_zip: bool) -> None:
    module = some_module()
    reader = assert_reads(module, dict(module.state_dict()), is_zip)
    assert reader.structure["0.__class__"] == "torch.nn.modules.linear.Linear"
    assert reader.structure["0.in_features"] == 4
    assert reader.structure["unlisted.0.mask"] == "float32 [3]"
    assert reader.structure["unlisted.2.plain"] == "float32 [2]"
    assert read(save({"net": module})).specs[0].name == "net.0.bias"


def test_a_module_is_read_without_its_class(tmp_path: Path) -> None:
    class Gone(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

    Gone.__module__, Gone.__qualname__ = __name__, "Gone"
    globals()["Gone"] = Gone
    module = Gone()
    stream = save(module)
    del globals()["Gone"]
    assert values_of(read(stream)) == {name: raw(t) for name, t in module.state_dict().items()}


def test_parameters_and_subclasses_of_tensors_are_tensors() -> None:
    class Marked(torch.Tensor):  # type: ignore[misc]
        pass

    globals()["Marked"], Marked.__qualname__ = Marked, "Marked"
    x = torch.randn(3)
    noted = nn.Parameter(x.clone())
    noted.note = "kept"
    values = {
        "p": nn.Parameter(x.clone()), "noted": noted, "sub": x.clone().as_subclass(Marked),
        "buffer": nn.Buffer(x.clone()), "frozen": nn.Parameter(torch.arange(2), requires_grad=False),
    }  # fmt: skip
    assert_reads(values, values)
    del globals()["Marked"]


@BOTH
def test_lists_tuples_and_bare_tensors_have_names(is_zip: bool) -> None:
    a, b = torch.ones(2), torch.zeros(3)
    assert_reads([a, (b, {"c": a.clone()})], {"0": a, "1.0": b, "1.1.c": a}, is_zip)
    assert_reads(a, {"tensor": a}, is_zip)
    assert_reads({0: a, ("x", 1): b}, {"0": a, "('x', 1)": b}, is_zip)
    assert_reads({"a": {"b": a}, "a.b": b}, {"a.b": a, "a.b~2": b}, is_zip)
    assert_reads(a.untyped_storage(), {"tensor": a.view(torch.uint8)}, is_zip)
    assert_reads({}, {}, is_zip)
    assert_reads(7, {}, is_zip)


def test_a_lightning_checkpoint_keeps_its_prefix_and_hyper_parameters() -> None:
    state = OrderedDict({"net.weight": torch.ones(2)})
    value = {
        "epoch": 2, "global_step": 10, "pytorch-lightning_version": "2.4.0", "state_dict": state,
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}],
        "hyper_parameters": {"lr": 0.1, "layers": [1, 2], "name": "x"}, "lr_schedulers": [],
    }  # fmt: skip
    reader = assert_reads(
        value, {"state_dict.net.weight": state["net.weight"], "optimizer_states.0.state.0.step": torch.tensor(1.0)}
    )
    assert reader.specs[0].role == "optimizer"
    assert reader.structure["hyper_parameters.layers"] == "[1, 2]"
    assert reader.structure["optimizer_states.0.param_groups.0.lr"] == 0.1


@BOTH
def test_quantised_tensors_give_integers_and_real_values(is_zip: bool) -> None:
    x = torch.randn(5, 4, 3)
    scales, zeros = torch.rand(4) + 0.1, torch.tensor([0, 3, -2, 1])
    values = {
        "qint8": torch.quantize_per_tensor(x, 0.05, 3, torch.qint8),
        "quint8": torch.quantize_per_tensor(x, 0.05, 100, torch.quint8),
        "qint32": torch.quantize_per_tensor(x, 1e-5, 7, torch.qint32),
        "channels": torch.quantize_per_channel(x, scales, zeros, 1, torch.qint8),
        "floats": torch.quantize_per_channel(x, scales, torch.rand(4), 1, torch.quint8),
        "turned": torch.quantize_per_tensor(x, 0.05, 3, torch.qint8).permute(2, 0, 1),
    }  # fmt: skip
    reader = read(save(values, is_zip))
    dtypes = {s.name: s.dtype for s in reader.specs}
    assert dtypes["qint8"] == "QI8"
    assert dtypes["quint8"] == "QU8"
    assert dtypes["qint32"] == "QI32"
    assert reader.structure["qint8.scale"] == 0.05
    assert reader.structure["channels.axis"] == 1
    for spec in reader.specs:
        if spec.name in values:
            tensor = values[spec.name]
            assert b"".join(map(bytes, reader.iter_buffers(spec, 16))) == raw(tensor.int_repr())
            for n_bytes in (16, 7, 1 << 20):
                real = np.frombuffer(b"".join(map(bytes, reader.iter_values(spec, n_bytes))), np.float32)
                np.testing.assert_allclose(real, tensor.dequantize().numpy().reshape(-1), rtol=2e-6, atol=1e-6)
    assert dtypes["channels.scales"] == "F64"


def test_a_quantised_module_is_read() -> None:
    module = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 3)), dtype=torch.qint8)
    reader = read(save(module.state_dict()))
    weight = module[0].weight()
    (name,) = (s.name for s in reader.specs if s.dtype == "QI8")
    assert name == "0._packed_params._packed_params.0"
    assert values_of(reader)[name] == raw(weight.int_repr())


@BOTH
def test_sparse_tensors_are_their_parts(is_zip: bool) -> None:
    x = torch.tensor([[0, 2.0, 0], [3, 0, 4], [0, 0, 0]])
    coo, csr, csc = x.to_sparse(), x.to_sparse_csr(), x.to_sparse_csc()
    reader = assert_reads(
        {"coo": coo, "csr": csr, "csc": csc},
        {
            "coo.indices": coo.indices(), "coo.values": coo.values(), "csr.crow_indices": csr.crow_indices(),
            "csr.col_indices": csr.col_indices(), "csr.values": csr.values(), "csc.ccol_indices": csc.ccol_indices(),
            "csc.row_indices": csc.row_indices(), "csc.values": csc.values(),
        },
        is_zip,
    )  # fmt: skip
    assert reader.structure["csr.layout"] == "sparse_csr"
    assert reader.structure["coo.shape"] == "[3, 3]"


def test_nested_and_meta_tensors_are_told() -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.zeros(3)])
    reader = read(save({"n": nested, "m": torch.empty(2, 3, device="meta")}))
    assert values_of(reader)["n.values"] == raw(torch.tensor([1.0, 1, 0, 0, 0]))
    assert reader.structure["meta.m"] == "float32 [2, 3]"


@BOTH
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_is_read(is_zip: bool, protocol: int) -> None:
    stream = io.BytesIO()
    w = torch.arange(6.0)
    torch.save({"w": w}, stream, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    assert values_of(read(stream)) == {"w": raw(w)}


@BOTH
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_and_numbers_of_numpy_are_read(is_zip: bool, protocol: int) -> None:
    c = np.arange(6, dtype=np.float32).reshape(2, 3)
    value = {
        "c": c,
        "f": np.asfortranarray(c),
        "big": c.astype(">f4"),
        "long": np.arange(200_000),
        "number": np.float32(1.5),
        "text": np.array(["a"]),
    }
    stream = io.BytesIO()
    torch.save(value, stream, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    reader = read(stream)
    assert values_of(reader, 70) == {
        "c": c.tobytes(),
        "f": c.tobytes(),
        "big": c.tobytes(),
        "long": np.arange(200_000).tobytes(),
    }
    assert reader.structure["number"] == 1.5


def test_an_accelerator_s_tensor_kept_as_an_array_is_read() -> None:
    class Device:
        def __init__(self, dtype: Any) -> None:
            self.dtype = dtype

        def __reduce__(self) -> Any:
            return torch._utils._rebuild_device_tensor_from_numpy, (np.arange(3.0), self.dtype, "xla:0", True)

    reader = read(save({"x": Device(torch.float64), "y": Device(torch.bfloat16)}))
    assert values_of(reader) == {"x": np.arange(3.0).tobytes()}
    assert reader.structure["converted when loaded.y"] == "float64 to bfloat16 [3]"


def test_a_file_of_a_gpu_is_read_without_one() -> None:
    stream = save({"w": torch.arange(4.0)})
    data = stream.getvalue().replace(b"X\x03\x00\x00\x00cpu", b"X\x03\x00\x00\x00xpu")
    assert values_of(read(io.BytesIO(data))) == {"w": raw(torch.arange(4.0))}


def test_big_endian_files_are_read_like_torch_reads_them() -> None:
    names = ("F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "I16", "U8", "BOOL", "C64", "C128")
    values = {name: (torch.arange(12).reshape(3, 4) % 3).to(DTYPES[name]) for name in names}
    values["turned"] = torch.arange(12.0).reshape(3, 4).t()
    with zipfile.ZipFile(save(values)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    order = next(name for name in members if name.endswith("/byteorder"))
    members[order] = b"big"
    stream = zip_of(members)
    expected = torch.load(io.BytesIO(stream.getvalue()))
    assert not torch.equal(expected["F32"], values["F32"])
    for n_bytes in (16, 7):
        assert values_of(read(stream), n_bytes) == {name: raw(tensor) for name, tensor in expected.items()}


def zip_of(members: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> io.BytesIO:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream


@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_lists_its_data_and_runs_nothing(how: str) -> None:
    class Net(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
            self.table = [torch.ones(2), torch.zeros(1)]
            self.scale = 0.5

        def forward(self, x):  # type: ignore[no-untyped-def]
            return self.body(x) * self.scale + torch.tensor([1.0, 2.0, 3.0]) + self.table[1]

    net = Net().eval()
    made = torch.jit.trace(net, torch.ones(2, 3)) if how == "trace" else torch.jit.script(net)
    stream = io.BytesIO()
    torch.jit.save(made, stream)
    reader = read(stream)
    found = values_of(reader)
    assert {name: raw(t) for name, t in made.state_dict().items()}.items() <= found.items()
    assert reader.structure["torch.container"] == "TorchScript archive"
    assert str(reader.structure["__class__"]).endswith("Net")
    assert any(key.startswith("torchscript.__torch__/") for key in reader.structure)
    if how == "script":
        assert found["table.0"] == raw(torch.ones(2))
        assert reader.structure["scale"] == 0.5
    else:
        assert raw(torch.tensor([1.0, 2.0, 3.0])) in [found[name] for name in found if name.startswith("constants.")]


def test_torchscript_s_code_is_told_by_what_it_does() -> None:
    def code_of(archive: io.BytesIO) -> dict[str, object]:
        return {key: value for key, value in read(archive).structure.items() if key.startswith("torchscript.")}

    stream, again = io.BytesIO(), io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 3)), stream)
    torch.jit.save(torch.jit.script(nn.Linear(2, 3)), again)  # PyTorch gives the class another name
    with zipfile.ZipFile(stream) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    (path,) = (name for name in members if name.endswith(".py"))
    lines = members[path].splitlines(keepends=True)
    constants = [line for line in lines if b"Final[" in line]
    assert len(constants) == 2
    other = [line for line in lines if line not in constants]
    turned = b"".join([*other[:5], *reversed(constants), *other[5:]])
    assert turned != members[path]
    assert code_of(stream) == code_of(again) != {}
    assert code_of(zip_of(members | {path: turned})) == code_of(stream)
    assert code_of(zip_of(members | {path: turned.replace(b"= 3", b"= 4")})) != code_of(stream)


def test_a_quantised_torchscript_module_is_read() -> None:
    module = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 3)), dtype=torch.qint8)
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(module), stream)
    reader = read(stream)
    (name,) = (s.name for s in reader.specs if s.dtype == "QI8")
    assert values_of(reader)[name] == raw(module[0].weight().int_repr())


def test_both_containers_give_the_same_bytes() -> None:
    module = some_module()
    assert values_of(read(save(module.state_dict()))) == values_of(read(save(module.state_dict(), False)))


def test_an_archive_packed_again_is_read_while_its_storages_are_stored() -> None:
    value = {"w": torch.arange(100.0)}
    with zipfile.ZipFile(save(value)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    assert values_of(read(zip_of(members))) == {"w": raw(value["w"])}
    with pytest.raises(BadModelError, match="compressed"):
        read(zip_of(members, zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.ckpt", "model.pth.tar", "model"])
def test_other_names_are_read_where_the_content_is_pytorch_s(name: str) -> None:
    value = {"w": torch.ones(2)}
    for is_zip in (True, False):
        reader = open_reader(save(value, is_zip), name)
        assert reader is not None
        assert reader.format == "pytorch"
    noise = io.BytesIO(bytes(range(256)))
    assert open_reader(noise, name) is None
    assert open_reader(zip_of({"a/data.txt": b"1"}), name) is None


def test_a_tar_of_the_first_releases_is_refused_in_words() -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(BadModelError, match=r"0\.1\.10"):
        open_reader(stream, "model.tar")


def test_tensors_of_the_first_releases_are_read() -> None:
    class Old:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor, (torch.arange(6.0).storage(), 1, (2, 2), (2, 1))

    stream = save({"w": Old()}, False)
    assert values_of(read(stream)) == {"w": raw(torch.tensor([[1.0, 2], [3, 4]]))}


def test_a_storage_view_of_an_old_stream_is_read() -> None:
    data = stream_of([("storage", Of("torch", "FloatStorage"), "7", "cpu", 6, ("8", 2, 3))], [("7", np.arange(6.0))])
    assert values_of(read(data)) == {"tensor": np.array([3.0], np.float32).tobytes()}


def lpips_files() -> list[Path]:
    try:
        from importlib.metadata import files

        found = [Path(str(file.locate())) for file in files("lpips") or [] if file.suffix == ".pth"]
    except ModuleNotFoundError:
        found = []
    return sorted(found)


@pytest.mark.skipif(not lpips_files(), reason="package lpips, with its legacy files, is not installed")
def test_published_legacy_files_are_read_like_torch_reads_them() -> None:
    assert len(lpips_files()) == 6
    for path in lpips_files():
        expected = torch.load(path, map_location="cpu")
        with TorchReader(path) as reader:
            assert values_of(reader, 4096) == {name: raw(tensor) for name, tensor in expected.items()}


def test_a_listing_of_many_tensors_reads_little() -> None:
    stream = save({f"layer.{i}.weight": torch.zeros(1000) for i in range(500)})
    for is_zip in (True, False):
        file = CountingFile(save({f"l.{i}.weight": torch.zeros(10_000) for i in range(200)}, is_zip).getvalue())
        reader = open_reader(file, "m.pt")
        assert reader is not None
        assert len(reader.specs) == 200
        assert file.n_read < 400_000
    assert len(read(stream).specs) == 500


# Hostile files.


class Of:
    """Pickled as the global of its name."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Made:
    """Pickled as a call."""

    def __init__(self, function: Of, *args: Any) -> None:
        self.function, self.args = function, args


class Stored:
    """Pickled as a persistent id."""

    def __init__(self, pid: object) -> None:
        self.pid = pid


class Writer(PythonPickler):  # type: ignore[misc]
    """Writes globals by name, without importing them."""

    def persistent_id(self, obj: Any) -> Any:
        return obj.pid if isinstance(obj, Stored) else None

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Of):
            self.write(b"c" + obj.module.encode() + b"\n" + obj.name.encode() + b"\n")
        elif isinstance(obj, Made):
            self.save(obj.function)
            self.save(obj.args)
            self.write(b"R")
        else:
            super().save(obj, save_persistent_id)


def pickled(value: object) -> bytes:
    stream = io.BytesIO()
    Writer(stream, 2).dump(value)
    return stream.getvalue()


FLOAT = ("storage", Of("torch", "FloatStorage"), "0", "cpu", 6)
V2 = Of("torch._utils", "_rebuild_tensor_v2")
V3 = Of("torch._utils", "_rebuild_tensor_v3")
QUANTISED = Of("torch._utils", "_rebuild_qtensor")


def tensor_of(*args: object, pid: object = FLOAT, function: Of = V2) -> Made:
    return Made(function, Stored(pid), *args, False, {})


def archive_of(value: object, members: dict[str, bytes] | None = None) -> io.BytesIO:
    base = {
        "a/data.pkl": value if isinstance(value, bytes) else pickled(value),
        "a/data/0": np.arange(6, dtype=np.float32).tobytes(),
    }
    return zip_of(base | (members or {}))


def stream_of(pids: list[tuple[Any, ...]], storages: list[tuple[str, Any]], offset: int = 1) -> io.BytesIO:
    (pid,) = pids
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2), pickle.dumps({"little_endian": True}, 2)]
    parts += [pickled(tensor_of(offset, (1,), (1,), pid=pid)), pickle.dumps([key for key, _ in storages], 2)]
    for _, array in storages:
        parts += [struct.pack("<q", array.size), array.astype(np.float32).tobytes()]
    return io.BytesIO(b"".join(parts))


def test_the_hostile_writer_writes_what_torch_reads() -> None:
    assert values_of(read(archive_of({"w": tensor_of(1, (2, 2), (2, 1))}))) == {
        "w": np.array([1, 2, 3, 4], np.float32).tobytes()
    }
    assert values_of(read(stream_of([(*FLOAT, None)], [("0", np.arange(6.0))]))) == {"tensor": struct.pack("<f", 1)}


HOSTILE: dict[str, Callable[[], io.BytesIO]] = {
    "beyond the storage": lambda: archive_of(tensor_of(0, (7,), (1,))),
    "offset beyond": lambda: archive_of(tensor_of(6, (1,), (1,))),
    "strides beyond": lambda: archive_of(tensor_of(0, (2, 2), (5, 1))),
    "huge stride": lambda: archive_of(tensor_of(0, (2,), (2**62,))),
    "larger stride": lambda: archive_of(tensor_of(0, (2,), (2**80,))),
    "negative stride": lambda: archive_of(tensor_of(5, (6,), (-1,))),
    "negative offset": lambda: archive_of(tensor_of(-1, (6,), (1,))),
    "negative size": lambda: archive_of(tensor_of(0, (-1, -6), (1, 1))),
    "overflowing size": lambda: archive_of(tensor_of(0, (2**32, 2**32), (0, 0))),
    "repeated without end": lambda: archive_of(tensor_of(0, (2**40,), (0,))),
    "repeated by many": lambda: archive_of([tensor_of(0, (2**20 + i,), (0,)) for i in range(1000)]),
    "sizes of text": lambda: archive_of(tensor_of(0, ("6",), (1,))),
    "no sizes": lambda: archive_of(tensor_of(0, None, (1,))),
    "other number of strides": lambda: archive_of(tensor_of(0, (6,), (1, 1))),
    "many axes": lambda: archive_of(tensor_of(0, (1,) * 1000, (1,) * 1000)),
    "bool offset": lambda: archive_of(tensor_of(True, (1,), (1,))),
    "few arguments": lambda: archive_of(Made(V2, Stored(FLOAT))),
    "no storage": lambda: archive_of(Made(V2, None, 0, (1,), (1,), False, {})),
    "unknown dtype": lambda: archive_of(Made(V3, Stored(FLOAT), 0, (1,), (1,), False, {}, Of("torch", "float99"))),
    "dtype of a stranger": lambda: archive_of(Made(V3, Stored(FLOAT), 0, (1,), (1,), False, {}, Of("os", "int8"))),
    "unknown rebuild": lambda: archive_of(Made(Of("torch._utils", "_rebuild_everything"), 1)),
    "wider dtype": lambda: archive_of(Made(V3, Stored(FLOAT), 0, (6,), (1,), False, {}, Of("torch", "int64"))),
    "storage not there": lambda: archive_of(tensor_of(0, (1,), (1,), pid=(*FLOAT[:2], "9", "cpu", 6))),
    "storage above": lambda: archive_of(tensor_of(0, (1,), (1,), pid=(*FLOAT[:2], "../data.pkl", "cpu", 6))),
    "storage too short": lambda: archive_of(tensor_of(0, (1,), (1,), pid=(*FLOAT[:4], 7))),
    "storage of negative size": lambda: archive_of(tensor_of(0, (0,), (1,), pid=(*FLOAT[:4], -1))),
    "storage of huge size": lambda: archive_of(tensor_of(0, (1,), (1,), pid=(*FLOAT[:4], 2**62))),
    "storage of another type": lambda: archive_of(tensor_of(0, (1,), (1,), pid=("storage", Of("os", "system"), "0", "cpu", 6))),
    "persistent id of another kind": lambda: archive_of(Stored("x")),
    "persistent id that nests": lambda: archive_of(Stored(("storage", [[[[]]]], {}, 1))),
    "view in an archive": lambda: archive_of(tensor_of(0, (1,), (1,), pid=(*FLOAT, ("1", 5, 2)))),
    "quantised without scheme": lambda: archive_of(Made(QUANTISED, Stored(FLOAT), 0, (6,), (1,), None, False, {})),
    "quantised, axis beyond": lambda: archive_of(Made(QUANTISED, Stored(FLOAT), 0, (6,), (1,), (Of("torch", "x"), [1.0] * 6, [0] * 6, 1), False, {})),
    "quantised, few scales": lambda: archive_of(Made(QUANTISED, Stored(FLOAT), 0, (6,), (1,), (Of("torch", "x"), [1.0] * 5, [0] * 6, 0), False, {})),
    "sparse without parts": lambda: archive_of(Made(Of("torch._utils", "_rebuild_sparse_tensor"), Of("torch", "sparse_coo"), ())),
    "sparse of numbers": lambda: archive_of(Made(Of("torch._utils", "_rebuild_sparse_tensor"), Of("torch", "sparse_coo"), (1, 2, (3,)))),
    "a name that is no text": lambda: archive_of({"\ud800": tensor_of(0, (1,), (1,))}),
    "a name without end": lambda: archive_of({"x" * 10_000: tensor_of(0, (1,), (1,))}),
    "nested deeper than anything": lambda: archive_of(b"]" * 100_000 + b"N" + b"a" * 100_000 + b"."),
    "shared without end": lambda: archive_of(b"](NNeq\x00" + b"](h\x00h\x00eq\x00" * 60 + b"."),
    "no pickle": lambda: archive_of(b"hello"),
    "empty pickle": lambda: archive_of(b""),
    "only data": lambda: zip_of({"a/data/0": b"1234"}),
    "no folder": lambda: zip_of({"data.pkl": b"N."}),
    "byte order": lambda: archive_of({}, {"a/byteorder": b"middle"}),
    "long byte order": lambda: archive_of({}, {"a/byteorder": b"little" * 1000}),
    "nothing": io.BytesIO,
    "legacy, other protocol": lambda: io.BytesIO(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1002, 2) + pickle.dumps({}, 2) * 3),
    "legacy, keys of nothing": lambda: stream_of([(*FLOAT, None)], [("1", np.arange(6.0))]),
    "legacy, too many keys": lambda: stream_of([(*FLOAT, None)], [("0", np.arange(6.0)), ("1", np.arange(6.0))]),
    "legacy, key twice": lambda: stream_of([(*FLOAT, None)], [("0", np.arange(6.0)), ("0", np.arange(6.0))]),
    "legacy, other size": lambda: stream_of([(*FLOAT, None)], [("0", np.arange(7.0))]),
    "legacy, too short": lambda: stream_of([(*FLOAT[:4], 2**40, None)], [("0", np.arange(6.0))]),
    "legacy, view beyond": lambda: stream_of([(*FLOAT, ("1", 5, 2))], [("0", np.arange(6.0))]),
    "legacy, view of text": lambda: stream_of([(*FLOAT, ("1", "a", None))], [("0", np.arange(6.0))]),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_one_line(kind: str) -> None:
    stream = HOSTILE[kind]()
    with pytest.raises(BadModelError) as caught:
        reader = open_reader(stream, "m.pt")
        assert reader is not None
        values_of(reader, 1 << 20)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith("m.pt")
    assert caught.value.hint


def test_a_call_in_the_file_is_not_made(tmp_path: Path) -> None:
    owned = tmp_path / "owned"
    reader = read(archive_of({"w": tensor_of(0, (1,), (1,)), "x": Made(Of("os", "system"), f"touch {owned}")}))
    assert [s.name for s in reader.specs] == ["w"]
    assert str(reader.structure["x"]).startswith("os.system('touch")
    assert not owned.exists()


def test_bytes_are_told_by_their_digest() -> None:
    reader = read(archive_of({"raw": b"ab", "many": [b"\xff" * 999, 1], "kind": Of("torch", "float32")}))
    assert reader.structure["raw"] == "2 bytes, sha256:fb8e20fc2e4c3f248c60c39bd652f3c1"
    assert "999 bytes" in str(reader.structure["many"])
    assert reader.structure["kind"] == "torch.float32"


def test_a_cycle_of_objects_ends() -> None:
    ring: dict[str, Any] = {"w": tensor_of(0, (1,), (1,))}
    ring["again"] = [ring]
    assert [s.name for s in read(archive_of(ring)).specs] == ["w"]


def test_any_byte_of_the_archive_changed_is_read_or_refused() -> None:
    value = {"w": torch.arange(3.0), "b": torch.ones(2, 2).t(), "n": 1}
    for is_zip in (True, False):
        data = save(value, is_zip).getvalue()
        for i in range(len(data)):
            if is_zip and data[max(0, i - 8) : i + 8] in (b"Z" * 16, b"\0" * 16):
                continue
            broken = bytearray(data)
            broken[i] ^= 0xFF
            try:
                reader = open_reader(io.BytesIO(bytes(broken)), "m.pt")
                if reader is not None:
                    values_of(reader)
            except BadModelError as err:
                assert "\n" not in str(err)


def test_roles_follow_names() -> None:
    assert find_role("optimizer.state.0.exp_avg") == "optimizer"
    assert reader_module.SUFFIXES == (".pt", ".pth")
