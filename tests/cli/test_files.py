"""Files that nobody tracks yet: what show, diff and add say of them, and what they are called."""

from __future__ import annotations

import gzip
import json
import lzma
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.cli.test_commands import failing
from tests.sandbox import Sandbox, make_weights


def test_content_comes_before_the_name(sandbox: Sandbox) -> None:
    save_file(make_weights(1), sandbox.path / "net.safetensors")
    shutil.copy(sandbox.path / "net.safetensors", sandbox.path / "net.pt")
    np.savez(sandbox.path / "arrays.npz", **make_weights(1))  # type: ignore[arg-type]
    shutil.copy(sandbox.path / "arrays.npz", sandbox.path / "arrays.keras")
    assert "net.pt  safetensors, " in sandbox.modelver("show", "net.pt")
    assert "arrays.keras  npz, " in sandbox.modelver("show", "arrays.keras")
    assert "identical" in sandbox.modelver("diff", "net.safetensors", "net.pt")
    said = sandbox.modelver("add", "net.pt", ok=False)
    assert "10 tensors" in said
    assert "opaque" not in said


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_compressed_joblib_files_are_read(sandbox: Sandbox, suffix: str) -> None:
    joblib = pytest.importorskip("joblib")
    joblib.dump({"coef": np.arange(6.0)}, sandbox.path / "pipe.joblib")
    data = (sandbox.path / "pipe.joblib").read_bytes()
    packed = gzip.compress(data) if suffix == ".gz" else lzma.compress(data)
    (sandbox.path / f"pipe.joblib{suffix}").write_bytes(packed)
    assert "coef" in sandbox.modelver("show", f"pipe.joblib{suffix}")
    said = sandbox.modelver("diff", "pipe.joblib", f"pipe.joblib{suffix}")
    assert "all 1 tensors have the same bytes; the file differs around them" in said
    joblib.dump({"coef": np.arange(6.0)}, sandbox.path / f"own.joblib{suffix}")
    assert "coef" in sandbox.modelver("show", f"own.joblib{suffix}")


def test_an_untracked_file_has_its_number_of_parameters(sandbox: Sandbox) -> None:
    tensors = {"net.weight": np.ones((4, 3), np.float32), "optimizer.0.exp_avg": np.ones(12, np.float32)}
    save_file(tensors, sandbox.path / "net.safetensors")
    assert "12 parameters in 1 tensor\n" in sandbox.modelver("show", "net.safetensors")
    assert json.loads(sandbox.modelver("show", "net.safetensors", "--json"))["parameters"] == 12


def test_weights_come_before_what_a_trainer_keeps(sandbox: Sandbox) -> None:
    tensors = {f"callbacks.c{i}": np.ones(1, np.float32) for i in range(9)}
    tensors |= {f"optimizer_states.0.state.{i}.exp_avg": np.ones(4, np.float32) for i in range(9)}
    save_file(tensors | {"state_dict.fc.weight": np.ones((2, 2), np.float32)}, sandbox.path / "net.safetensors")
    lines = sandbox.modelver("show", "net.safetensors").splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("tensor "))
    assert lines[first + 1].startswith("state_dict.fc.weight")
    assert lines[first + 2].startswith("callbacks.c0")
    assert "optimizer_states" in lines[first + 11]


def test_a_mistyped_file_is_called_one(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> None:
    sandbox.train("net.safetensors", 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    assert "nosuch.pt: no such file or model" in failing(sandbox, "show", "nosuch.pt", code=2)
    for pair in (("nosuch.pt", "net.safetensors"), ("net.safetensors", "nosuch.pt")):
        out = failing(sandbox, "diff", *pair, code=2)
        assert "nosuch.pt: no such" in out
        assert "revision\nhint: git log" not in out
    outside = Sandbox(tmp_path_factory.mktemp("outside"))
    out = failing(outside, "show", "/x/nosuch.pt", code=2)
    assert "/x/nosuch.pt: no such file or model" in out
    assert "modelver init" not in out


def test_help_offers_no_option_that_is_not_there(sandbox: Sandbox) -> None:
    for verb in ("show", "similar", "scan", "status"):
        assert "--format" not in sandbox.modelver(verb, "--help"), verb


@pytest.mark.parametrize(
    ("path", "name"),
    [("été modèle.safetensors", "ete-modele"), ("Größe_Å.pt", "Gro-e_A"), ("téléchargé 🚀.pt", "telecharge")],
)
def test_a_name_keeps_its_letters_without_their_accents(sandbox: Sandbox, path: str, name: str) -> None:
    save_file(make_weights(1), sandbox.path / path)
    assert f"{name} version 1" in sandbox.modelver("add", path)


def test_a_model_that_shares_some_tensors_is_no_variant(sandbox: Sandbox) -> None:
    weights = make_weights(1, layers=6, width=32)
    save_file(weights, sandbox.path / "bert.safetensors")
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    rng = np.random.default_rng(9)
    shared = {k: weights[k] for k in ("layers.0.bias", "layers.1.bias", "layers.2.bias", "layers.3.bias")}
    shapes = [w.shape for k, w in weights.items() if k not in shared]
    other = {f"other{i}": 0.01 * rng.standard_normal(shape).astype(np.float32) for i, shape in enumerate(shapes)}
    save_file(other | shared, sandbox.path / "b.pt")
    assert "variant" not in sandbox.modelver("add", "b.pt", ok=False)


def test_a_fact_that_is_none_is_one_that_is_not_there(tmp_path: Path) -> None:
    from dvc_modelver.diff.changes import Side
    from dvc_modelver.diff.compare import compare
    from dvc_modelver.metadata import TensorTable

    sides = [
        Side("m", "", TensorTable(md5, 64, (), structure=structure), None, md5, "torch")
        for md5, structure in (("a" * 32, {"lr": 0.1}), ("b" * 32, {"lr": 0.2, "weight_decay": None}))
    ]
    assert [f.name for f in compare(*sides).structure] == ["lr"]
