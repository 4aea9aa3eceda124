"""A history of seven checkpoints, each step of another kind, told apart by fingerprints and by values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from dvc_modelver.api.compare import compare_files
from dvc_modelver.diff.changes import ModelDiff

F32 = NDArray[np.float32]
WIDTH, VOCABULARY, LAYERS = 256, 2_560, 6
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class History:
    """Versions of a small transformer; all randomness comes from one seed."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(11)

    def normal(self, *shape: int, scale: float = 0.02) -> F32:
        return self.rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)

    def layer(self, i: int) -> dict[str, F32]:
        at = f"model.layers.{i}."
        weights = {f"{at}self_attn.{p}_proj.weight": self.normal(WIDTH, WIDTH) for p in "qkvo"}
        weights[f"{at}mlp.up_proj.weight"] = self.normal(4 * WIDTH, WIDTH)
        weights[f"{at}mlp.down_proj.weight"] = self.normal(WIDTH, 4 * WIDTH)
        weights[f"{at}input_layernorm.weight"] = 1 + self.normal(WIDTH)
        return weights

    def tuned(self, model: dict[str, F32], relative: float, *starts: str) -> dict[str, F32]:
        return {
            k: w + self.normal(*w.shape, scale=relative * float(w.std())) if not starts or k.startswith(starts) else w
            for k, w in model.items()
        }

    def sparse(self, w: F32) -> F32:
        out = w.copy()
        at = self.rng.choice(w.size, w.size // 200, replace=False)
        out.reshape(-1)[at] += self.normal(at.size, scale=0.1 * float(w.std()))
        return out

    def versions(self) -> Iterator[tuple[str, dict[str, F32]]]:
        model = {EMBED: self.normal(VOCABULARY, WIDTH), HEAD: self.normal(VOCABULARY, WIDTH)}
        model["model.norm.weight"] = 1 + self.normal(WIDTH)
        for i in range(LAYERS):
            model |= self.layer(i)
        yield "base", model
        model = self.tuned(model, 1e-3)
        yield "full fine-tune", model
        last = [f"model.layers.{i}." for i in (LAYERS - 2, LAYERS - 1)]
        model = self.tuned(model, 1e-2, *last, HEAD)
        yield "last layers and head", model
        model = {
            k: w + self.normal(WIDTH, 8) @ self.normal(8, WIDTH) if "q_proj" in k or "v_proj" in k else w
            for k, w in model.items()
        }
        yield "merged LoRA", model
        model = {k: self.sparse(w) for k, w in model.items()}
        yield "sparse update", model
        keep = np.sort(self.rng.permutation(VOCABULARY)[: VOCABULARY * 98 // 100])
        model = model | {EMBED: model[EMBED][keep], HEAD: model[HEAD][keep]}
        yield "trimmed vocabulary", model
        yield "added layer", model | self.layer(LAYERS)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("history")
    found = {}
    for name, weights in History().versions():
        found[name] = folder / f"{name}.safetensors"
        save_file(weights, found[name])
    return found


STEPS = [
    ("base", "full fine-tune", "fine-tune", "all 45 tensors moved", "all 45 tensors moved"),
    ("full fine-tune", "last layers and head", "head", "only the last layers", "only the last layers"),
    ("last layers and head", "merged LoRA", "partial", "12 of 45 tensors", "by updates of rank 8"),
    ("merged LoRA", "sparse update", "fine-tune", "all 45", "0.5 % of their values changed"),
    ("sparse update", "trimmed vocabulary", "architecture", "2 of another shape", "2 of another shape"),
    ("trimmed vocabulary", "added layer", "architecture", "7 added", "7 added"),
]


@pytest.mark.parametrize(("old", "new", "kind", "by_fingerprint", "by_value"), STEPS)
def test_each_step_is_what_it_is(
    files: dict[str, Path], old: str, new: str, kind: str, by_fingerprint: str, by_value: str
) -> None:
    estimated = compare_files(files[old], files[new])
    measured = compare_files(files[old], files[new], exact=True)
    assert (estimated.kind, measured.kind) == (kind, kind)
    assert by_fingerprint in estimated.reason
    assert by_value in measured.reason
    check_numbers(estimated, measured)
    if new == "trimmed vocabulary":
        notes = {t.name: t.note for t in measured.tensors if t.note}
        assert notes == dict.fromkeys((EMBED, HEAD), "52 rows removed; the other 2,508 are the same")


def check_numbers(estimated: ModelDiff, measured: ModelDiff) -> None:
    assert measured.relative_l2 is not None and measured.relative_l2_error == 0
    assert estimated.relative_l2 is not None and estimated.relative_l2_error is not None
    assert abs(estimated.relative_l2 - measured.relative_l2) <= estimated.relative_l2_error + 1e-9
