"""similar: the nearest version of any model, by fingerprints alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.sandbox import Sandbox, make_weights


def noisy(seed: int, relative: float, by: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(by)
    return {
        k: (w + relative * w.std() * rng.standard_normal(w.shape)).astype(np.float32)
        for k, w in make_weights(seed).items()
    }


def test_the_nearest_version_of_all_models_comes_first(sandbox: Sandbox) -> None:
    for name, seeds in {"a": (1, 2), "b": (3,)}.items():
        for seed in seeds:
            sandbox.train(f"{name}.safetensors", seed)
            sandbox.git("add", ".")
            sandbox.git("commit", "-q", "-am", f"{name} from {seed}")
    save_file(noisy(1, 0.02, 9), sandbox.path / "found.safetensors")
    sandbox.drop(sandbox.md5("a.safetensors"))
    found = json.loads(sandbox.modelver("similar", "found.safetensors", "--json"))["versions"]
    assert [(v["name"], v["number"]) for v in found[:1]] == [("a", 1)]
    assert {v["name"] for v in found} == {"a", "b"}
    assert abs(found[0]["distance"] - 0.02) < 0.01
    assert found[0]["distance"] < found[1]["distance"]
    assert found[0]["kind"] == "fine-tune"
    out = sandbox.modelver("similar", "a@1").splitlines()
    assert out[0].split()[0] == "distance"
    assert "a@1" not in "\n".join(out[1:])


def test_a_head_that_was_cut_off_counts(sandbox: Sandbox) -> None:
    sandbox.train("full.safetensors", 1)
    save_file({k: w for k, w in make_weights(1).items() if k != "head.weight"}, sandbox.path / "body.safetensors")
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "both")
    found = json.loads(sandbox.modelver("similar", "body", "--json"))["versions"]
    assert [v["name"] for v in found] == ["full"]
    assert 0.1 < found[0]["distance"] < 1
    assert found[0]["cosine"] == 1


def test_nothing_to_compare_with_is_said(sandbox: Sandbox) -> None:
    sandbox.train("only.safetensors", 1)
    assert "nothing similar: no other version" in sandbox.modelver("similar", "only.safetensors")
    assert sandbox.exit_code("similar", "nosuch") == 2


def test_a_version_is_compared_with_a_loose_file(sandbox: Sandbox) -> None:
    sandbox.train("net.safetensors", 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    loose = sandbox.path / "loose.safetensors"
    sandbox.train("loose.safetensors", 2)
    for pair in (["net@1", "loose.safetensors"], ["loose.safetensors", "net@1"], ["net@1", str(loose)]):
        for mode in ([], ["--exact"]):
            found = json.loads(sandbox.modelver("diff", *mode, "--json", *pair))["models"][0]
            assert found["kind"] == "retrained"
            assert {found["old"]["rev"], found["new"]["rev"]} == {"net@1", pair[pair[0] == "net@1"]}


def test_a_file_that_is_no_model_is_not_compared(sandbox: Sandbox) -> None:
    sandbox.train("net.safetensors", 1)
    (sandbox.path / "notes.txt").write_text("nothing")
    assert "no reader knows its format" in sandbox.modelver("diff", "net.safetensors", "notes.txt", ok=False)


def test_a_mistyped_file_outside_a_repository_is_named(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.train("net.safetensors", 1)
    (sandbox.path / "net.safetensors").rename(tmp_path / "net.safetensors")
    out = Sandbox(tmp_path).modelver("diff", "net.safetensors", "nope.safetensors", ok=False)
    assert "nope.safetensors: no such file" in out


def test_the_same_bytes_come_before_a_model_with_more_tensors(sandbox: Sandbox) -> None:
    weights = make_weights(1)
    save_file(weights, sandbox.path / "a.safetensors", {"by": "a"})
    save_file(weights | {"steps": np.zeros(8, np.float32)}, sandbox.path / "wider.safetensors")
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    save_file(weights | {"steps": np.zeros(8, np.float32)}, sandbox.path / "a.safetensors")
    sandbox.git("commit", "-q", "-am", "two")
    save_file(weights, sandbox.path / "copy.safetensors", {"by": "a"})
    found = json.loads(sandbox.modelver("similar", "copy.safetensors", "--json"))["versions"]
    assert next((v["name"], v["number"], v["kind"]) for v in found) == ("a", 1, "identical")
    assert {v["kind"] for v in found[1:]} == {"architecture"}


def test_an_unrelated_model_is_near_nothing(sandbox: Sandbox) -> None:
    sandbox.train("net.safetensors", 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    rng = np.random.default_rng(3)
    save_file({"conv.kernel": rng.standard_normal((3, 3, 5)).astype(np.float32)}, sandbox.path / "other.safetensors")
    assert sandbox.modelver("similar", "other.safetensors") == "nothing similar: no other version has a tensor of it\n"
    assert json.loads(sandbox.modelver("similar", "other.safetensors", "--json"))["versions"] == []
