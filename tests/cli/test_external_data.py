"""Values that lie beside a file are part of a version only where the folder is."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.sandbox import Sandbox

onnx = pytest.importorskip("onnx")


def write_onnx(box: Sandbox, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = onnx.numpy_helper.from_array(rng.standard_normal((64, 64)).astype(np.float32), "w")
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    value = onnx.helper.make_tensor_value_info
    shape = [1, 64]
    graph = onnx.helper.make_graph([node], "net", [value("x", 1, shape)], [value("y", 1, shape)], initializer=[weight])
    (box.path / "net").mkdir(exist_ok=True)
    onnx.save_model(
        onnx.helper.make_model(graph), str(box.path / "net/model.onnx"), save_as_external_data=True,
        location="weights.bin", size_threshold=0,
    )  # fmt: skip


def test_a_file_alone_says_to_track_the_folder(sandbox: Sandbox) -> None:
    write_onnx(sandbox, 0)
    said = sandbox.modelver("add", "net/model.onnx", ok=False)
    assert "folder" in said
    assert json.loads((sandbox.path / "net/model.onnx.modelver.json").read_text())["model"]["format"] == "opaque"


def test_the_folder_has_the_values(sandbox: Sandbox) -> None:
    write_onnx(sandbox, 0)
    sandbox.modelver("add", "net")
    sandbox.git("commit", "-q", "-m", "one")
    assert json.loads((sandbox.path / "net.modelver.json").read_text())["model"]["parameters"] == 4096
    (sandbox.path / "net/weights.bin").unlink()
    write_onnx(sandbox, 1)
    assert "w " in sandbox.git("diff", "--", "net.modelver.tensors")


def test_two_files_are_compared_with_what_lies_beside_them(sandbox: Sandbox) -> None:
    write_onnx(sandbox, 0)
    (sandbox.path / "net").rename(sandbox.path / "old")
    write_onnx(sandbox, 1)
    for mode in ([], ["--exact"]):
        out = json.loads(sandbox.modelver("diff", *mode, "--json", "old/model.onnx", "net/model.onnx"))
        assert [t["change"] for t in out["models"][0]["tensors"]] == ["modified"]
