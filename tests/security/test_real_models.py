"""What the libraries themselves write is safe, and what a hostile object in it would run is found."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dvc_modelver.security.scan import scan_file, scan_path
from dvc_modelver.security.verdicts import Verdict

IGNORE = pytest.mark.filterwarnings("ignore")
"""The libraries warn of what they will change; that is not the question here."""


class Touch:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch canary-was-here",)


def assert_safe(path: Path) -> None:
    found = scan_file(path)
    assert found.verdict is Verdict.SAFE, [f for f in found.findings if f.verdict is not Verdict.SAFE]


def names_of(path: Path) -> list[str]:
    return [f.name for f in scan_file(path).findings if f.verdict is Verdict.DANGEROUS]


def test_numpy(tmp_path: Path) -> None:
    values: dict[str, Any] = {"a": np.arange(4), "objects": np.array([{"x": 1}, None], dtype=object)}
    np.savez(tmp_path / "a.npz", **values)
    np.savez_compressed(tmp_path / "b.npz", **values)
    np.save(tmp_path / "c.npy", values["objects"], allow_pickle=True)
    np.save(tmp_path / "d.npy", np.zeros(2, dtype=[("O", "<f4"), ("b", "<i8", (2,))]))
    everything = {
        "rng": np.random.default_rng(0), "old": np.random.RandomState(0), "scalar": np.float32(1), "f": np.asfortranarray(np.eye(3)),
        "masked": np.ma.masked_array([1, 2], mask=[True, False]), "text": np.array(["a", "bc"]), "date": np.datetime64("2020-01-01"),
    }  # fmt: skip
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / f"p{protocol}.pkl").write_bytes(pickle.dumps(everything, protocol))
    for path in tmp_path.iterdir():
        assert_safe(path)
    np.save(tmp_path / "bad.npy", np.array([Touch()], dtype=object), allow_pickle=True)
    assert names_of(tmp_path / "bad.npy") == ["posix.system"]


@IGNORE
def test_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.BatchNorm1d(8), torch.nn.LSTM(8, 8))
    optimizer = torch.optim.AdamW(net.parameters())
    saved = {
        "weights": net.state_dict(),
        "whole": net,
        "checkpoint": {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()},
        "sparse": torch.eye(3).to_sparse(),
        "bfloat16": torch.ones(3, dtype=torch.bfloat16),
    }
    for name, value in saved.items():
        torch.save(value, tmp_path / f"{name}.pt")
        torch.save(value, tmp_path / f"{name}.bin", _use_new_zipfile_serialization=False)
    (tmp_path / "tensor.pkl").write_bytes(pickle.dumps(torch.ones(3)))
    for path in tmp_path.iterdir():
        assert_safe(path)
    for name, new in (("bad.pt", True), ("bad.pth", False)):
        torch.save({"w": torch.ones(2), "x": Touch()}, tmp_path / name, _use_new_zipfile_serialization=new)
        assert names_of(tmp_path / name) == ["posix.system"]
    inner = io.BytesIO()
    torch.save(Touch(), inner)
    assert scan_file(inner, "inner.pt").verdict is Verdict.DANGEROUS


@IGNORE
def test_torchscript_is_code_and_nothing_worse(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "m.pt")
    found = scan_file(tmp_path / "m.pt")
    assert found.verdict is Verdict.UNKNOWN
    assert {f.kind for f in found.findings if f.verdict is Verdict.UNKNOWN} == {"code"}


def sklearn_models() -> dict[str, Any]:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.cluster import BisectingKMeans, FeatureAgglomeration
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF
    from sklearn.linear_model import BayesianRidge, LogisticRegression, SGDClassifier
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, SplineTransformer, StandardScaler
    from sklearn.svm import SVC

    return {
        "forest": RandomForestClassifier(3), "boosting": GradientBoostingRegressor(n_estimators=2),
        "histograms": HistGradientBoostingClassifier(max_iter=2), "pipeline": make_pipeline(StandardScaler(), SVC()),
        "neighbours": KNeighborsClassifier(algorithm="kd_tree"), "process": GaussianProcessRegressor(RBF()),
        "gradient": SGDClassifier(), "calibrated": CalibratedClassifierCV(LogisticRegression()),
        "search": GridSearchCV(LogisticRegression(), {"C": [1, 2]}, scoring="accuracy", cv=2),
        "columns": ColumnTransformer([("a", StandardScaler(), [0]), ("b", OneHotEncoder(), [1])], remainder="passthrough"),
        "halves": BisectingKMeans(2), "grouped": FeatureAgglomeration(2), "splines": SplineTransformer(),
        "logarithms": FunctionTransformer(np.log1p), "ridge": BayesianRidge(),
    }  # fmt: skip


@IGNORE
def test_sklearn(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    pytest.importorskip("sklearn")
    x = np.random.default_rng(0).random((40, 3)).round(1)
    y = (x[:, 0] > 0.5).astype(int)
    for name, model in sklearn_models().items():
        model.fit(x, y)
        joblib.dump(model, tmp_path / f"{name}.joblib")
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(model))
    for compression in ("zlib", "gzip", "bz2", "xz", "lzma"):
        joblib.dump(model, tmp_path / f"{compression}.joblib", compress=(compression, 3))
    joblib.dump({"objects": np.array([{"x": 1}], dtype=object), "more": np.arange(5)}, tmp_path / "objects.joblib")
    for path in tmp_path.iterdir():
        assert_safe(path)
    for compress in (0, 3):
        joblib.dump(
            {"a": np.arange(9), "b": np.array([Touch()], dtype=object)}, tmp_path / "bad.joblib", compress=compress
        )
        assert names_of(tmp_path / "bad.joblib") == ["posix.system"]


@IGNORE
def test_trees(tmp_path: Path) -> None:
    catboost = pytest.importorskip("catboost")
    lightgbm = pytest.importorskip("lightgbm")
    x, y = np.random.default_rng(0).random((40, 3)), np.arange(40) % 2
    first = lightgbm.LGBMClassifier(n_estimators=2, verbose=-1).fit(x, y)
    first.booster_.save_model(str(tmp_path / "trees.txt"))
    second = catboost.CatBoostClassifier(iterations=2, verbose=0, allow_writing_files=False).fit(x, y)
    second.save_model(str(tmp_path / "trees.cbm"))
    for name, model in (("a", first), ("b", second)):
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(model))
    for path in tmp_path.iterdir():
        assert_safe(path)


@pytest.mark.skipif(find_spec("keras") is None or find_spec("tensorflow") is None, reason="needs keras on TensorFlow")
def test_keras(tmp_path: Path) -> None:
    # In a process of its own: TensorFlow's threads do not survive the fork that lists HDF5 files.
    script = Path(__file__).with_name("keras_models.py")
    env = os.environ | {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, str(script), str(tmp_path)], env=env, check=True, capture_output=True)
    for found in scan_path(tmp_path / "good"):
        assert found.verdict is Verdict.SAFE, found
    custom = scan_file(tmp_path / "custom.keras")
    assert (custom.verdict, custom.findings[0].name) == (Verdict.UNKNOWN, "mine>Custom")
    for name in ("lambda.keras", "lambda.h5"):
        assert names_of(tmp_path / name) == ["keras.layers.Lambda"]
