"""One network saved by the real libraries in every container is one set of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dvc_modelver.api.compare import compare_files
from dvc_modelver.formats import open_reader
from dvc_modelver.metadata import describe_tensors, summarise

torch: Any = pytest.importorskip("torch")
onnx: Any = pytest.importorskip("onnx")
h5py: Any = pytest.importorskip("h5py")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from safetensors.torch import save_file

    top = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(12, 32), torch.nn.ReLU(), torch.nn.Linear(32, 5))
    state = net.state_dict()
    arrays = {name: value.numpy() for name, value in state.items()}
    torch.save(state, top / "net.pt")
    save_file(state, top / "net.safetensors")
    np.savez(top / "net.npz", **arrays)
    with h5py.File(top / "net.h5", "w") as file:
        for name, value in arrays.items():
            file[name] = value
    made = [onnx.numpy_helper.from_array(value, name) for name, value in arrays.items()]
    value = onnx.helper.make_tensor_value_info
    nodes = [
        onnx.helper.make_node("Gemm", ["x", "0.weight", "0.bias"], ["h"], transB=1),
        onnx.helper.make_node("Relu", ["h"], ["r"]),
        onnx.helper.make_node("Gemm", ["r", "2.weight", "2.bias"], ["y"], transB=1),
    ]
    graph = onnx.helper.make_graph(nodes, "net", [value("x", 1, [1, 12])], [value("y", 1, [1, 5])], made)
    onnx.save(onnx.helper.make_model(graph), top / "net.onnx")
    return {path.suffix: path for path in sorted(top.iterdir())}


def digest(path: Path) -> str:
    reader = open_reader(path)
    assert reader is not None
    with reader:
        return str(summarise(describe_tensors(reader, "").rows)["parameters_digest"])


def test_the_parameters_digest_is_that_of_the_weights(saved: dict[str, Path]) -> None:
    found = {suffix: digest(path) for suffix, path in saved.items()}
    assert set(found) == {".pt", ".safetensors", ".npz", ".h5", ".onnx"}
    assert len(set(found.values())) == 1, found


@pytest.mark.parametrize("exact", [False, True])
def test_every_pair_is_a_conversion_without_loss(saved: dict[str, Path], exact: bool) -> None:
    for old in saved.values():
        for new in saved.values():
            if old != new:
                change = compare_files(old, new, exact=exact)
                assert (change.kind, change.cosine, change.relative_l2) == ("conversion", 1.0, 0.0), (old, new)


def test_lpips_weights_are_compared_as_torch_has_them() -> None:
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        weights = Path(str(distribution("lpips").locate_file("lpips/weights")))
    except PackageNotFoundError:
        pytest.skip("lpips is not installed (make frameworks)")
    old, new = weights / "v0.0/alex.pth", weights / "v0.1/alex.pth"
    change = compare_files(old, new, exact=True)
    a, b = (torch.load(path, map_location="cpu") for path in (old, new))
    assert len(change.tensors) == len(a) == 5
    for t in change.tensors:
        x, y = a[t.name].double().flatten(), b[t.name].double().flatten()
        wanted = torch.nn.functional.cosine_similarity(x, y, dim=0).item()
        assert t.cosine == pytest.approx(wanted, abs=1e-6)
        assert t.relative_l2 == pytest.approx(((y - x).norm() / x.norm()).item(), rel=1e-6)
