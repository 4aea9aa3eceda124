"""Renamed tensors: prefixes that come and go, renumbered layers, inserted ones, and what must not be paired."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from dvc_modelver.api.compare import compare_files
from dvc_modelver.diff.render.text import render_text
from dvc_modelver.fingerprint.match import match_tensors
from dvc_modelver.fingerprint.row import TensorRow
from tests.diff.test_compare import Weights, base, compared, moved


def renamed(rule: Callable[[str], str], weights: Weights) -> Weights:
    return {rule(name): w for name, w in weights.items()}


def shifted(at: int, by: int) -> Callable[[str], str]:
    """Renumber the layers from `at` on."""

    def rule(name: str) -> str:
        found = re.match(r"layers\.(\d+)(\..*)", name)
        if not found or int(found[1]) < at:
            return name
        return f"layers.{int(found[1]) + by}{found[2]}"

    return rule


@pytest.mark.parametrize("prefix", ["bert.", "module.", "model.decoder.", "student/"])
@pytest.mark.parametrize("relative", [0, 0.01, 30])
def test_a_prefix_is_recognised_whatever_the_values(tmp_path: Path, prefix: str, relative: float) -> None:
    old, new = base(), moved(base(), relative) if relative else base()
    came = compared(tmp_path, old, renamed(lambda n: prefix + n, new))
    went = compared(tmp_path, renamed(lambda n: prefix + n, old), new)
    assert came.renames == (f"prefix '{prefix}' was added ({len(old)} tensors)",)
    assert went.renames == (f"prefix '{prefix}' was removed ({len(old)} tensors)",)
    for change in (came, went):
        assert {t.change for t in change.tensors} == {"renamed"}
        assert change.kind == {0: "conversion", 0.01: "fine-tune", 30: "retrained"}[relative]
        assert "was " not in render_text(change).replace("was added", "").replace("was removed", "")


def test_a_prefix_that_became_another(tmp_path: Path) -> None:
    old = renamed(lambda n: f"bert.{n}", base())
    change = compared(tmp_path, old, renamed(lambda n: f"roberta.encoder.{n}", moved(base(), 0.01)))
    assert change.renames == (f"prefix 'bert.' became 'roberta.encoder.' ({len(old)} tensors)",)


def test_a_backbone_is_found_in_a_model_with_a_new_head(tmp_path: Path) -> None:
    new = renamed(lambda n: f"backbone.{n}", {k: w for k, w in base().items() if k != "head.weight"})
    change = compared(tmp_path, base(), new | {"classifier.weight": np.ones((3, 64), np.float32)})
    kinds = [t.change for t in change.tensors]
    assert (kinds.count("renamed"), kinds.count("added"), kinds.count("removed")) == (len(new), 1, 1)


def test_keras_numbers_are_matched_in_their_order(tmp_path: Path) -> None:
    def kernels(first: int, seed: int) -> Weights:
        rng = np.random.default_rng(seed)
        return {f"conv1d_{first + i}/kernel": rng.standard_normal((3, 4 + i), dtype=np.float32) for i in range(5)}

    change = compared(tmp_path, kernels(140, 1), kernels(476, 2))
    assert change.renames == ("renumbered conv1d_#: 140-144 became 476-480 (5 tensors)",)
    assert {t.name: t.old_name for t in change.tensors}["conv1d_478/kernel"] == "conv1d_142/kernel"
    assert change.kind == "retrained"


def test_an_inserted_layer_renumbers_the_rest(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    old = {k: w + rng.standard_normal(w.shape, dtype=np.float32) for k, w in base().items()}
    layer = {k.replace("layers.0", "layers.5"): rng.standard_normal(w.shape, dtype=np.float32)
             for k, w in old.items() if k.startswith("layers.0.")}  # fmt: skip
    change = compared(tmp_path, old, renamed(shifted(5, 1), old) | layer)
    assert change.renames == ("renumbered layers.#: 5-11 became 6-12 (21 tensors)",)
    assert sorted(t.name for t in change.tensors if t.change == "added") == sorted(layer)
    assert change.kind == "architecture"
    assert change.relative_l2 == 0


def test_a_removed_layer_renumbers_the_rest(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    old = {k: w + rng.standard_normal(w.shape, dtype=np.float32) for k, w in base().items()}
    kept = {k: w for k, w in old.items() if not k.startswith("layers.3.")}
    change = compared(tmp_path, old, renamed(shifted(4, -1), kept))
    assert change.renames == ("renumbered layers.#: 4-11 became 3-10 (24 tensors)",)
    assert sorted(t.name for t in change.tensors if t.change == "removed") == [
        f"layers.3.{part}" for part in ("attn.q.weight", "mlp.weight", "norm.weight")
    ]


def test_other_tensors_of_one_shape_are_not_paired(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    change = compared(
        tmp_path,
        {"alpha": rng.standard_normal((40, 40), dtype=np.float32)},
        {"beta": rng.standard_normal((40, 40), dtype=np.float32)},
    )
    assert sorted(t.change for t in change.tensors) == ["added", "removed"]


def test_swapped_tensors_are_followed_by_their_values(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal((20, 20), dtype=np.float32) for _ in "ab")
    change = compared(tmp_path, {"left": a, "right": b}, {"left": b, "right": a})
    assert {t.name: t.old_name for t in change.tensors} == {"left": "right", "right": "left"}
    assert change.relative_l2 == 0


def test_values_that_moved_are_followed_and_the_rest_is_said() -> None:
    def row(name: str, digest: str) -> TensorRow:
        return TensorRow(name=name, dtype="F32", shape=(10, 10), digest=digest)

    matching = match_tensors([row("a", "x:1"), row("b", "x:2")], [row("a", "x:3"), row("b", "x:1")])
    found = {(p.old.name if p.old else None, p.new.name if p.new else None) for p in matching.pairs}
    assert found == {("a", "b"), ("b", None), (None, "a")}


def torch_and_keras(square: bool = False) -> tuple[Weights, Weights]:
    """Give one network in the layouts and spellings of two frameworks."""
    rng = np.random.default_rng(0)
    width = 8 if square else 24
    old: Weights = {
        "conv.weight": rng.standard_normal((4, 3, 5, 5)),
        "conv.bias": np.zeros(4),
        "bn.weight": rng.standard_normal(4),
        "bn.bias": np.zeros(4),
        "bn.running_mean": rng.standard_normal(4),
        "bn.running_var": rng.standard_normal(4),
        "head.fc.weight": rng.standard_normal((width, 8)),
        "head.fc.bias": rng.standard_normal(width),
    }
    old = {name: w.astype(np.float32) for name, w in old.items()}
    new = {
        "conv/kernel": old["conv.weight"].transpose(2, 3, 1, 0).copy(),
        "conv/bias": old["conv.bias"],
        "bn/gamma": old["bn.weight"],
        "bn/beta": old["bn.bias"],
        "bn/moving_mean": old["bn.running_mean"],
        "bn/moving_variance": old["bn.running_var"],
        "head/fc/kernel": old["head.fc.weight"].T.copy(),
        "head/fc/bias": old["head.fc.bias"],
    }
    return old, new


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("back", [False, True])
def test_transposes_are_found_under_the_names_of_another_framework(tmp_path: Path, square: bool, back: bool) -> None:
    pair = torch_and_keras(square)
    for name, tensors in zip(("old", "new"), pair[::-1] if back else pair, strict=True):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    found = compare_files(tmp_path / "old.safetensors", tmp_path / "new.safetensors", exact=True)
    assert found.kind == "conversion"
    assert found.reason == "all 8 tensors have the same values; 8 renamed, 2 of them transposed"
    assert len(found.renames) == 1
    assert "names in another framework's spelling" in found.renames[0]
    assert ("kernel as weight" if back else "weight as kernel") in found.renames[0]
    assert found.relative_l2 == 0
    text = render_text(found, unicode=False)
    assert "0 of 8 tensors changed, 8 only renamed" in text
    assert "kernel" not in text.replace(found.renames[0], "")


def test_a_transposed_layer_that_was_trained_is_measured_in_its_own_order(tmp_path: Path) -> None:
    old, new = torch_and_keras()
    new["head/fc/kernel"] = moved({"w": new["head/fc/kernel"]}, 0.01)["w"]
    save_file(old, tmp_path / "old.safetensors")
    save_file(new, tmp_path / "new.safetensors")
    found = compare_files(tmp_path / "old.safetensors", tmp_path / "new.safetensors", exact=True)
    (kernel,) = [t for t in found.tensors if t.name == "head/fc/kernel"]
    assert kernel.old_name == "head.fc.weight"
    assert kernel.relative_l2 == pytest.approx(0.01, rel=1e-3)
    assert kernel.note == "transposed, relative L2 0.01"
    assert found.kind in ("partial", "head", "fine-tune")


def test_without_the_values_no_transpose_is_claimed(tmp_path: Path) -> None:
    found = compared(tmp_path, *torch_and_keras())
    assert found.kind == "architecture"
    assert {t.name for t in found.tensors if t.change == "added"} == {"conv/kernel", "head/fc/kernel"}
