"""Tree ensembles that were trained anew: other trees, and so other shapes, but no other architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dvc_modelver.api.compare import compare_files
from dvc_modelver.diff.render.text import render_text
from tests.sandbox import Sandbox


def data(seed: int, n_features: int = 6) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(300, n_features))
    return x, (x[:, 0] + x[:, 1] * x[:, 2] > 0).astype(int)


def forest(path: Path, seed: int, n_features: int = 6, n_trees: int = 10) -> Path:
    joblib = pytest.importorskip("joblib")
    ensemble = pytest.importorskip("sklearn.ensemble")
    model = ensemble.RandomForestClassifier(n_trees, random_state=seed, n_jobs=1)
    joblib.dump(model.fit(*data(seed, n_features)), path)
    return path


def boosted(path: Path, seed: int, n_trees: int = 10, before: Path | None = None) -> Path:
    lightgbm = pytest.importorskip("lightgbm")
    params = {"objective": "binary", "verbose": -1, "seed": seed, "num_threads": 1}
    given = lightgbm.Dataset(*data(seed), params={"verbose": -1})
    booster = lightgbm.train(params, given, n_trees, init_model=str(before) if before else None)
    booster.save_model(path)
    return path


def test_a_forest_that_was_trained_anew_is_retrained(tmp_path: Path) -> None:
    old = forest(tmp_path / "a.joblib", 0)
    found = compare_files(old, forest(tmp_path / "b.joblib", 1))
    assert found.kind == "retrained"
    assert found.reason == "10 of 10 trees differ; the same kind of ensemble, features and classes"
    assert compare_files(old, forest(tmp_path / "c.joblib", 1, n_trees=12)).kind == "retrained"


def test_another_number_of_features_is_another_architecture(tmp_path: Path) -> None:
    found = compare_files(forest(tmp_path / "a.joblib", 0), forest(tmp_path / "b.joblib", 0, n_features=5))
    assert found.kind == "architecture"


def test_another_kind_of_ensemble_is_another_architecture(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    ensemble = pytest.importorskip("sklearn.ensemble")
    joblib.dump(ensemble.ExtraTreesClassifier(10, random_state=0).fit(*data(0)), tmp_path / "b.joblib")
    assert compare_files(forest(tmp_path / "a.joblib", 0), tmp_path / "b.joblib").kind == "architecture"


def test_boosting_that_went_on_keeps_its_trees(tmp_path: Path) -> None:
    old = boosted(tmp_path / "a.txt", 0)
    longer = compare_files(old, boosted(tmp_path / "b.txt", 0, 3, before=old))
    assert longer.kind == "fine-tune"
    assert longer.reason == "the 10 trees of before are as they were, 3 were added"
    anew = compare_files(old, boosted(tmp_path / "c.txt", 1, 11))
    assert anew.kind == "retrained"
    assert not anew.warnings
    assert "zero" not in render_text(anew)


@pytest.mark.parametrize("suffix", [".ubj", ".json"])
def test_xgboost_trained_anew_is_retrained(tmp_path: Path, suffix: str) -> None:
    xgboost = pytest.importorskip("xgboost")
    for seed in (0, 1):
        model = xgboost.XGBClassifier(n_estimators=10, random_state=seed, n_jobs=1)
        model.fit(*data(seed)).save_model(tmp_path / f"{seed}{suffix}")
    found = compare_files(tmp_path / f"0{suffix}", tmp_path / f"1{suffix}")
    assert found.kind == "retrained"


def test_a_retrained_forest_is_a_minor_version(sandbox: Sandbox) -> None:
    sandbox.write(".modelver.toml", '[models]\ninclude = ["*.joblib"]\n')
    for seed in (0, 1):
        forest(sandbox.path / "forest.joblib", seed)
        sandbox.modelver("add", "forest.joblib")
        sandbox.git("add", ".")
        sandbox.git("commit", "-q", "-m", str(seed))
        assert f"v1.{seed}.0" in sandbox.modelver("tag", "forest", "--bump", "auto")
    metadata = json.loads((sandbox.path / "forest.joblib.modelver.json").read_text())
    assert metadata["change"]["kind"] == "retrained"
    assert metadata["version"]["update"] == "batch"
