"""LoRA adapters are compared by what they apply, whatever their factors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from dvc_modelver.api.compare import compare_files
from dvc_modelver.diff.render.text import render_text

Weights = dict[str, NDArray[Any]]
LAYERS = ("layers.0.attn.q_proj", "layers.1.attn.q_proj")
PREFIX = "base_model.model."


def adapter(seed: int, rank: int = 4) -> Weights:
    rng = np.random.default_rng(seed)
    out: Weights = {}
    for layer in LAYERS:
        out[f"{PREFIX}{layer}.lora_A.weight"] = rng.standard_normal((rank, 96)).astype(np.float32) * 0.1
        out[f"{PREFIX}{layer}.lora_B.weight"] = rng.standard_normal((64, rank)).astype(np.float32) * 0.1
    return out


def turned(weights: Weights, seed: int) -> Weights:
    """The same products by other factors."""
    rng = np.random.default_rng(seed)
    out = dict(weights)
    for layer in LAYERS:
        a, b = f"{PREFIX}{layer}.lora_A.weight", f"{PREFIX}{layer}.lora_B.weight"
        mix = rng.standard_normal((weights[a].shape[0],) * 2) + 2 * np.eye(weights[a].shape[0])
        out[a] = (np.linalg.inv(mix) @ weights[a]).astype(np.float32)
        out[b] = (weights[b] @ mix).astype(np.float32)
    return out


def products(weights: Weights) -> NDArray[np.float64]:
    parts = [
        (weights[f"{PREFIX}{x}.lora_B.weight"].astype(float) @ weights[f"{PREFIX}{x}.lora_A.weight"]).ravel()
        for x in LAYERS
    ]
    return np.concatenate(parts)


def save(path: Path, weights: Weights) -> Path:
    save_file({k: np.ascontiguousarray(v) for k, v in weights.items()}, path)
    return path


def test_other_factors_of_the_same_product_are_no_change_of_the_model(tmp_path: Path) -> None:
    one = adapter(0)
    found = compare_files(
        save(tmp_path / "a.safetensors", one), save(tmp_path / "b.safetensors", turned(one, 1)), exact=True
    )
    assert found.relative_l2 is not None and found.relative_l2 < 1e-5
    assert max(t.relative_l2 or 0 for t in found.tensors) > 0.5  # the factors themselves moved far
    assert "compared by the products they apply" in found.reason
    assert "applied as B A: relative L2" in render_text(found)


def test_the_distance_is_that_of_the_products(tmp_path: Path) -> None:
    one, two = adapter(0), adapter(2)
    found = compare_files(save(tmp_path / "a.safetensors", one), save(tmp_path / "b.safetensors", two), exact=True)
    p, q = products(one), products(two)
    assert np.isclose(found.relative_l2 or 0, np.linalg.norm(q - p) / np.linalg.norm(p), rtol=1e-6)
    assert np.isclose(found.cosine or 0, p @ q / np.linalg.norm(p) / np.linalg.norm(q), atol=1e-9)
    row = next(t for t in json.loads(json.dumps(found.to_dict()))["tensors"] if t["name"].endswith("lora_B.weight"))
    assert set(row["product"]) == {"cosine", "relative_l2"}


def test_adapters_of_other_ranks_have_products_of_one_shape(tmp_path: Path) -> None:
    one, two = adapter(0), adapter(0, rank=8)
    found = compare_files(save(tmp_path / "a.safetensors", one), save(tmp_path / "b.safetensors", two), exact=True)
    p, q = products(one), products(two)
    assert np.isclose(found.relative_l2 or 0, np.linalg.norm(q - p) / np.linalg.norm(p), rtol=1e-6)
    assert "LoRA adapters of rank 4, now 8" in found.reason


def test_alpha_scales_what_is_applied(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    one: Weights = {
        "lora_unet_q.lora_down.weight": rng.standard_normal((4, 32)).astype(np.float32),
        "lora_unet_q.lora_up.weight": rng.standard_normal((16, 4)).astype(np.float32),
        "lora_unet_q.alpha": np.array(4.0, np.float32),
    }
    two = one | {"lora_unet_q.alpha": np.array(6.0, np.float32)}
    found = compare_files(save(tmp_path / "a.safetensors", one), save(tmp_path / "b.safetensors", two), exact=True)
    up = next(t for t in found.tensors if t.name.endswith("lora_up.weight"))
    assert up.applied is not None and np.isclose(up.applied.relative_l2 or 0, 0.5)


def test_a_merged_adapter_is_recognised_and_another_model_is_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    lora = adapter(5)
    base = {f"{layer}.weight": rng.standard_normal((64, 96)).astype(np.float32) * 0.02 for layer in LAYERS}
    merged = {
        f"{layer}.weight": base[f"{layer}.weight"]
        + lora[f"{PREFIX}{layer}.lora_B.weight"] @ lora[f"{PREFIX}{layer}.lora_A.weight"]
        for layer in LAYERS
    }
    adapter_file = save(tmp_path / "adapter.safetensors", lora)
    with_it = compare_files(adapter_file, save(tmp_path / "merged.safetensors", merged), exact=True)
    assert "the old side is a LoRA adapter of rank 4, 2 of its 2 layers fit the other" in with_it.reason
    assert "which has it merged in (coefficient 1" in with_it.reason or "merged in (coefficient 0.9" in with_it.reason
    without = compare_files(save(tmp_path / "base.safetensors", base), adapter_file, exact=True)
    assert "the new side is a LoRA adapter" in without.reason
    assert "which does not have it merged in" in without.reason


def test_estimates_say_what_they_do_not_know(tmp_path: Path) -> None:
    found = compare_files(save(tmp_path / "a.safetensors", adapter(0)), save(tmp_path / "b.safetensors", adapter(1)))
    assert "--exact compares the products they apply" in found.reason
