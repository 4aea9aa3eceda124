"""Two versions compared from their tensor tables: kinds, numbers, and the documents."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from dvc_modelver.api.compare import compare_files
from dvc_modelver.api.tags import level_of
from dvc_modelver.diff.changes import ModelDiff, Side
from dvc_modelver.diff.compare import compare
from dvc_modelver.diff.render.json import render_json
from dvc_modelver.diff.render.text import Palette, render_text
from dvc_modelver.resources import read_schema
from dvc_modelver.worktree.describe import read_contents

Weights = dict[str, NDArray[Any]]
GOLDEN = Path(__file__).parent / "golden"


def base(layers: int = 12, width: int = 64) -> Weights:
    rng = np.random.default_rng(0)
    weights: Weights = {"embed.weight": rng.standard_normal((100, width), dtype=np.float32)}
    for i in range(layers):
        weights[f"layers.{i}.attn.q.weight"] = rng.standard_normal((width, width), dtype=np.float32)
        weights[f"layers.{i}.mlp.weight"] = rng.standard_normal((4 * width, width), dtype=np.float32)
        weights[f"layers.{i}.norm.weight"] = np.ones(width, dtype=np.float32)
    weights["head.weight"] = rng.standard_normal((10, width), dtype=np.float32)
    return weights


def moved(weights: Weights, relative: float, only: str = "", seed: int = 1) -> Weights:
    """Add noise of a known relative L2 norm to the tensors whose name contains `only`."""
    rng = np.random.default_rng(seed)
    out = dict(weights)
    for name, w in weights.items():
        if only in name:
            noise = rng.standard_normal(w.shape).astype(np.float32)
            out[name] = w + noise * np.float32(relative * np.linalg.norm(w) / np.linalg.norm(noise))
    return out


def side(folder: Path, name: str, weights: Mapping[str, NDArray[Any]]) -> Side:
    path = folder / f"{name}.safetensors"
    save_file(dict(weights), path)
    found = read_contents(path, path.name)
    return Side("model.safetensors", name, found.table, None, found.hashes.md5, found.format)


def compared(folder: Path, old: Mapping[str, NDArray[Any]], new: Mapping[str, NDArray[Any]]) -> ModelDiff:
    return compare(side(folder, "old", old), side(folder, "new", new))


def cast(weights: Weights) -> Weights:
    return {k: w.astype(np.float16) for k, w in weights.items()}


def trimmed(weights: Weights) -> Weights:
    return weights | {"embed.weight": weights["embed.weight"][:98].copy()}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda w: w, "identical"),
        (lambda w: moved(w, 0.01), "fine-tune"),
        (lambda w: moved(w, 0.05, "head"), "head"),
        (lambda w: moved(w, 0.05, "layers.11."), "head"),
        (lambda w: moved(w, 0.05, "layers.3."), "partial"),
        (lambda w: {k: np.random.default_rng(9).standard_normal(v.shape).astype(np.float32) for k, v in w.items()}, "retrained"),
        (lambda w: w | {"head.weight": w["head.weight"] * np.float32(2)}, "scaled"),
        (cast, "conversion"),
        (lambda w: {f"model.{k}": v for k, v in w.items()}, "conversion"),
        (trimmed, "architecture"),
        (lambda w: w | {"extra.weight": np.ones(3, np.float32)}, "architecture"),
        (lambda w: {k: v for k, v in w.items() if k != "layers.5.mlp.weight"}, "architecture"),
    ],
)  # fmt: skip
def test_kind_of_change(tmp_path: Path, change: Any, kind: str) -> None:
    old = base()
    assert compared(tmp_path, old, change(old)).kind == kind


def test_other_file_metadata_is_metadata_only(tmp_path: Path) -> None:
    old = side(tmp_path, "old", base())
    path = tmp_path / "other.safetensors"
    save_file(base(), path, metadata={"format": "pt"})
    found = read_contents(path, path.name)
    new = Side("m", "", found.table, None, found.hashes.md5, found.format)
    change = compare(old, new)
    assert (change.kind, change.relative_l2, change.cosine) == ("metadata-only", 0.0, 1.0)


def test_the_distance_is_right_within_its_stated_error(tmp_path: Path) -> None:
    old = base()
    new = moved(old, 0.01, "layers.3.")
    change = compared(tmp_path, old, new)
    true = np.sqrt(sum(np.sum((new[k].astype(np.float64) - old[k]) ** 2) for k in old))
    true /= np.sqrt(sum(np.sum(old[k].astype(np.float64) ** 2) for k in old))
    assert change.relative_l2 is not None
    assert change.relative_l2_error is not None
    assert abs(change.relative_l2 - true) <= change.relative_l2_error
    for t in change.tensors:
        if t.change == "modified":
            assert t.relative_l2 == pytest.approx(0.01, rel=0.35)


def test_one_flipped_bit_is_a_change(tmp_path: Path) -> None:
    old = base()
    flipped = old["head.weight"].copy()
    flipped.view(np.uint32)[0, 0] ^= 1
    change = compared(tmp_path, old, old | {"head.weight": flipped})
    assert change.tensors_changed == 1
    assert "<1e-6" in render_text(change)


def test_optimizer_state_does_not_count(tmp_path: Path) -> None:
    state: Weights = {f"optimizer.exp_avg.{i}": np.full((50, 50), i + 1, np.float32) for i in range(4)}
    old = base(2)
    change = compared(
        tmp_path, old | state, moved(old, 0.01) | {k: v * 7 + np.arange(50, dtype=np.float32) for k, v in state.items()}
    )
    assert change.kind == "fine-tune"
    assert change.relative_l2 == pytest.approx(0.01, rel=0.2)
    assert change.parameters["new"] == sum(w.size for w in old.values())


def test_undefined_numbers_are_null(tmp_path: Path) -> None:
    old: Weights = {
        "zero": np.zeros(5, np.float32), "inf": np.array([1, np.inf], np.float32), "empty": np.zeros((0, 3), np.float32),
        "flag": np.array([True, False]), "scalar": np.array(3.0, np.float32), "ints": np.arange(4),
    }  # fmt: skip
    new = old | {
        "zero": np.ones(5, np.float32),
        "inf": np.array([2, np.inf], np.float32),
        "flag": np.array([True, True]),
    }
    document = json.loads(render_json([compared(tmp_path, old, new)]))
    rows = {t["name"]: t for t in document["models"][0]["tensors"]}
    assert rows["zero"]["cosine"] is None
    assert rows["zero"]["relative_l2"] is None
    assert rows["inf"]["cosine"] is None
    assert "NaN" not in render_json([compared(tmp_path, old, new)])


def test_a_diff_with_itself_is_identical_and_symmetric_kinds_agree(tmp_path: Path) -> None:
    old, new = base(3), moved(base(3), 0.02)
    there, back = compared(tmp_path, old, new), compared(tmp_path, new, old)
    assert there.cosine == pytest.approx(back.cosine, abs=1e-6)
    assert there.kind == back.kind
    assert compared(tmp_path, old, old).kind == "identical"


def test_the_document_follows_its_schema(tmp_path: Path) -> None:
    schema = json.loads(read_schema("diff"))
    jsonschema.Draft202012Validator.check_schema(schema)
    for new in (base(), moved(base(), 0.01), trimmed(base()), {}):
        document = json.loads(render_json([compared(tmp_path, base(), new)]))
        jsonschema.validate(document, schema)
    document = json.loads(render_json([compare(None, side(tmp_path, "new", base(1)))]))
    jsonschema.validate(document, schema)
    assert document["models"][0]["old"] is None


CASES: dict[str, Callable[[Weights], Weights]] = {
    "fine-tune": lambda w: moved(w, 0.01),
    "head": lambda w: moved(w, 0.05, "head"),
    "partial": lambda w: moved(moved(w, 0.05, "layers.3."), 0.002, "mlp", 2),
    "architecture": lambda w: {k.replace("layers.11", "layers.12"): v for k, v in trimmed(w).items()},
}


@pytest.mark.parametrize("name", CASES)
def test_the_report_reads_as_it_did(tmp_path: Path, name: str) -> None:
    """Golden files; to renew one on purpose, delete it and run the test twice."""
    text = render_text(compared(tmp_path, base(), CASES[name](base())))
    golden = GOLDEN / f"{name}.txt"
    if not golden.exists():
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
        pytest.fail(f"{golden.name} was not there and is written now: look at it")
    assert text == golden.read_text()
    assert max(map(len, text.splitlines())) <= 80


def test_colour_and_ascii(tmp_path: Path) -> None:
    change = compared(tmp_path, base(2), trimmed(base(2)) | {"extra": np.ones(2, np.float32)})
    assert "\x1b[32m" in render_text(change, palette=Palette())
    assert "\x1b" not in render_text(change)
    render_text(change, unicode=False).encode("ascii")


def test_a_hostile_name_cannot_steer_the_terminal(tmp_path: Path) -> None:
    change = compared(tmp_path, {"a\x1b[31m\nb": np.ones(2, np.float32)}, {"a\x1b[31m\nb": np.zeros(2, np.float32)})
    assert "\x1b" not in render_text(change)
    assert "\\x1b" in render_text(change)


def test_similarity_by_layer(tmp_path: Path) -> None:
    document = compared(tmp_path, base(3), moved(base(3), 0.02, "layers.1")).to_dict()
    groups = {g["prefix"]: g for g in document["groups"]}
    assert list(groups) == ["embed", "head", "layers.0", "layers.1", "layers.2"]
    assert groups["layers.0"] | {"prefix": ""} == {
        "prefix": "", "tensors": 3, "tensors_changed": 0, "cosine": 1.0, "relative_l2": 0.0,
    }  # fmt: skip
    assert groups["layers.1"]["tensors_changed"] == 3
    assert groups["layers.1"]["relative_l2"] == pytest.approx(0.02, rel=0.2)
    whole = np.linalg.norm(np.concatenate([w.ravel() for w in base(3).values()]))
    assert document["euclidean_distance"] == pytest.approx(document["relative_l2"] * whole, rel=1e-6)


@pytest.mark.parametrize("dtype", ["<f2", "bfloat16"])
@pytest.mark.parametrize("exact", [False, True])
def test_a_cast_of_a_model_with_zeros_is_a_conversion(tmp_path: Path, dtype: str, exact: bool) -> None:
    import ml_dtypes

    code = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    weights = base(2) | {"head.bias": np.zeros(10, np.float32)}
    for name, tensors in (("old", weights), ("new", {k: w.astype(code) for k, w in weights.items()})):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    found = compare_files(tmp_path / "old.safetensors", tmp_path / "new.safetensors", exact=exact)
    assert found.kind == "conversion", found.reason


@pytest.mark.parametrize(("narrow", "wide"), [(np.float32, np.float64), (np.float16, np.float64)])
@pytest.mark.parametrize("exact", [False, True])
def test_a_wider_dtype_with_the_same_values_is_a_conversion(
    tmp_path: Path, narrow: type, wide: type, exact: bool
) -> None:
    rng = np.random.default_rng(0)
    weights: Weights = {f"{n}.weight": rng.standard_normal((256, 256)).astype(narrow) for n in range(4)}
    save_file(weights, tmp_path / "old.safetensors")
    save_file({name: w.astype(wide) for name, w in weights.items()}, tmp_path / "new.safetensors")
    found = compare_files(tmp_path / "old.safetensors", tmp_path / "new.safetensors", exact=exact)
    assert (found.kind, found.reason.rpartition(", ")[2]) == ("conversion", "a wider dtype")
    assert level_of(found)[0] == "patch"
    back = compare_files(tmp_path / "new.safetensors", tmp_path / "old.safetensors", exact=exact)
    assert (back.kind, back.reason.rpartition(", ")[2]) == ("conversion", "within rounding")


def test_zeros_that_are_zeros_no_more_are_no_conversion(tmp_path: Path) -> None:
    weights = base(2) | {"head.bias": np.zeros(10, np.float32)}
    cast_ = {k: w.astype(np.float16) for k, w in weights.items()} | {"head.bias": np.ones(10, np.float16)}
    assert compared(tmp_path, weights, cast_).kind != "conversion"


def test_tensors_that_were_only_renamed_did_not_change(tmp_path: Path) -> None:
    old = base(3)
    found = compared(tmp_path, old, {f"bert.{name}": w for name, w in old.items()})
    text = render_text(found, unicode=False)
    assert f"0 of {len(old)} tensors changed, {len(old)} only renamed, 0 of" in text
    assert found.tensors_changed == len(old)  # the document counts them, as its schema says


def test_renamed_optimizer_state_did_not_change(tmp_path: Path) -> None:
    old = base(1) | {f"optimizer.{i}.exp_avg": np.full(100, i, np.float32) for i in range(3)}
    new = {name.replace("optimizer.", "optimizer.state."): w for name, w in old.items()}
    assert "optimizer state: 0 of 3 tensors changed" in render_text(compared(tmp_path, old, new))
