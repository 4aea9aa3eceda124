"""Models of scikit-learn, saved in every way; each tensor is compared with the attribute that its name says."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dvc_modelver.formats import open_reader
from dvc_modelver.formats.base import Reader
from tests.formats.contract import values_of

sklearn: Any = pytest.importorskip("sklearn")
joblib: Any = pytest.importorskip("joblib")

from sklearn.cluster import KMeans  # noqa: E402
from sklearn.compose import ColumnTransformer  # noqa: E402
from sklearn.datasets import load_iris  # noqa: E402
from sklearn.decomposition import PCA, TruncatedSVD  # noqa: E402
from sklearn.ensemble import (  # noqa: E402
    BaggingRegressor,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    IsolationForest,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_extraction.text import TfidfVectorizer  # noqa: E402
from sklearn.gaussian_process import GaussianProcessRegressor  # noqa: E402
from sklearn.linear_model import LogisticRegression, SGDClassifier  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.multiclass import OneVsRestClassifier  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier  # noqa: E402
from sklearn.neural_network import MLPClassifier  # noqa: E402
from sklearn.pipeline import FeatureUnion, Pipeline  # noqa: E402
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler  # noqa: E402
from sklearn.svm import SVC  # noqa: E402

X, Y = load_iris(return_X_y=True)
LABELS = np.array(["setosa", "versicolor", "virginica"])[Y]


def make_union() -> Any:
    union = FeatureUnion([("pca", PCA(2)), ("scale", StandardScaler())])
    return Pipeline([("union", union), ("drop", "passthrough"), ("lr", LogisticRegression())]).fit(X, Y)


def make_columns() -> Any:
    columns = ColumnTransformer([("num", StandardScaler(), [0, 1]), ("minmax", MinMaxScaler(), slice(2, 4))])
    return Pipeline([("columns", columns), ("svc", SVC(probability=False))]).fit(X, Y)


def make_voting() -> Any:
    members = [("lr", LogisticRegression()), ("gone", "drop"), ("tree", RandomForestClassifier(2, random_state=0))]
    return VotingClassifier(members).fit(X, LABELS)


MODELS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "logistic": (lambda: LogisticRegression().fit(X, Y), ("classes_", "coef_", "intercept_", "n_iter_")),
    "labels": (lambda: LogisticRegression().fit(X, LABELS), ("coef_",)),
    "union": (make_union, ("steps.lr.coef_", "steps.union.transformer_list.pca.components_")),
    "columns": (make_columns, ("steps.columns.transformers_.num.mean_", "steps.svc.support_vectors_")),
    "voting": (make_voting, ("estimators_.lr.coef_", "estimators_.tree.estimators_.0001.tree_.threshold")),
    "stacking": (
        lambda: StackingClassifier([("a", SVC()), ("b", LogisticRegression())], cv=2).fit(X, Y),
        ("estimators_.a.dual_coef_", "estimators_.b.coef_", "final_estimator_.coef_"),
    ),
    "forest": (
        lambda: RandomForestClassifier(3, random_state=0).fit(X, Y),
        tuple(
            f"estimators_.0002.tree_.{name}"
            for name in (
                "children_left",
                "children_right",
                "feature",
                "impurity",
                "missing_go_to_left",
                "n_node_samples",
                "threshold",
                "value",
                "weighted_n_node_samples",
            )
        ),
    ),
    "boosting": (
        lambda: GradientBoostingClassifier(n_estimators=3, random_state=0).fit(X, Y),
        ("estimators_.0002.2.tree_.value", "init_.class_prior_"),
    ),
    "histogram": (
        lambda: HistGradientBoostingClassifier(max_iter=2, random_state=0).fit(X, Y),
        ("_predictors.0001.2.nodes.num_threshold", "_predictors.0000.0.nodes.is_leaf", "_baseline_prediction"),
    ),
    "bagging": (lambda: BaggingRegressor(n_estimators=2, random_state=0).fit(X, Y), ("estimators_.0001.tree_.value",)),
    "isolation": (
        lambda: IsolationForest(n_estimators=2, random_state=0).fit(X),
        ("estimators_.0001.tree_.threshold",),
    ),
    "mlp": (
        lambda: MLPClassifier((5, 3), max_iter=3, random_state=0).fit(X, Y),
        ("coefs_.0", "coefs_.2", "intercepts_.1", "optimizer.ms.0", "optimizer.vs.5"),
    ),
    "svc": (lambda: SVC().fit(X, Y), ("dual_coef_", "intercept_", "support_", "support_vectors_")),
    "kmeans": (lambda: KMeans(2, n_init=1, random_state=0).fit(X), ("cluster_centers_", "labels_")),
    "pca": (lambda: PCA(2).fit(X), ("components_", "explained_variance_", "mean_")),
    "svd": (lambda: TruncatedSVD(2, random_state=np.random.RandomState(0)).fit(X), ("components_",)),
    "sgd": (lambda: SGDClassifier(random_state=0).fit(X, Y), ("coef_",)),
    "neighbours": (
        lambda: KNeighborsClassifier(algorithm="kd_tree").fit(X, Y),
        ("_fit_X", "_tree.data", "_tree.node_data.radius", "_tree.node_bounds"),
    ),
    "one_hot": (lambda: OneHotEncoder().fit(X.round()), ("categories_.0", "categories_.3")),
    "words": (lambda: TfidfVectorizer().fit(["a bb cc", "bb dd"]), ("_tfidf.idf_",)),
    "search": (
        lambda: GridSearchCV(LogisticRegression(), {"C": [1.0, 2.0]}, cv=2).fit(X, Y),
        ("best_estimator_.coef_", "cv_results_.mean_test_score", "cv_results_.param_C.data"),
    ),
    "rest": (lambda: OneVsRestClassifier(LogisticRegression()).fit(X, Y), ("estimators_.0002.coef_",)),
    "process": (lambda: GaussianProcessRegressor().fit(X[:9], Y[:9]), ("L_", "X_train_", "alpha_")),
}


def dump_joblib(model: Any, compress: Any = 0) -> bytes:
    stream = io.BytesIO()
    joblib.dump(model, stream, compress=compress)
    return stream.getvalue()


SAVERS: dict[str, Callable[[Any], bytes]] = {
    **{f"pickle{p}": lambda model, p=p: pickle.dumps(model, p) for p in (0, 2, 3, 4, 5)},  # type: ignore[misc]
    "joblib": dump_joblib,
    "zlib": lambda model: dump_joblib(model, 3),
    **{kind: lambda model, kind=kind: dump_joblib(model, (kind, 3)) for kind in ("gzip", "bz2", "xz")},  # type: ignore[misc]
}


@cache
def fitted(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MODELS[name][0]()


def open_bytes(data: bytes) -> Reader:
    reader = open_reader(io.BytesIO(data), "m.pkl")
    assert reader is not None
    return reader


def look_up(value: Any, name: str) -> Any:
    """Follow a tensor's name through a live object."""
    for part in name.split("."):
        if type(value).__name__ == "_memoryviewslice":
            value = np.asarray(value)
        if isinstance(value, np.ndarray) and value.dtype.names:
            value = value[part]
        elif isinstance(value, np.ma.MaskedArray):
            value = getattr(value, part)
        elif isinstance(value, dict):
            value = value[part]
        elif isinstance(value, list | tuple | np.ndarray) and part.isdigit():
            value = value[int(part)]
        elif isinstance(value, list):
            value = next(member[1] for member in value if member[0] == part)
        elif part == "estimators_" and hasattr(value, "named_estimators_"):
            value = value.named_estimators_
        elif part == "dist_metric":
            value = dict(zip(("p", "vec", "mat"), value.__getstate__()[11].__getstate__(), strict=True))
        elif part == "optimizer":
            value = value._optimizer
        else:
            value = getattr(value, part)
    return np.asarray(value)


@pytest.mark.parametrize("saver", SAVERS)
@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_is_the_attribute_of_its_name(name: str, saver: str) -> None:
    model = fitted(name)
    with open_bytes(SAVERS[saver](model)) as reader:
        assert (reader.format, reader.framework) == ("pickle", "scikit-learn")
        found = values_of(reader, 1 << 16)
        names = {*found, *(key.removeprefix("tied.") for key in reader.structure if key.startswith("tied."))}
        assert names >= set(MODELS[name][1])
        for spec in reader.specs:
            live = look_up(model, spec.name)
            assert (spec.shape, spec.nbytes) == (live.shape, live.nbytes), spec.name
            assert found[spec.name] == live.tobytes(), spec.name
        assert reader.structure["class"] == f"{type(model).__module__}.{type(model).__qualname__}"
        assert reader.structure["_sklearn_version"] == sklearn.__version__


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_facts_and_the_same_in_every_file(name: str) -> None:
    model = fitted(name)
    found = []
    for save in (SAVERS["pickle2"], SAVERS["pickle5"], SAVERS["joblib"], SAVERS["zlib"]):
        with open_bytes(save(model)) as reader:
            # joblib writes an array as often as it is named.
            found.append({key: fact for key, fact in reader.structure.items() if not key.startswith("tied.")})
    assert found[0] == found[1] == found[2] == found[3]
    for key, value in model.get_params(deep=False).items():
        if isinstance(value, str | int | float | None):
            assert found[0][key] == (str(value) if value != value else value)


def test_no_array_of_a_model_is_missing() -> None:
    for name, names in (
        ("logistic", ["classes_", "coef_", "intercept_", "n_iter_"]),
        ("pca", ["components_", "explained_variance_", "explained_variance_ratio_", "mean_", "singular_values_"]),
        ("kmeans", ["cluster_centers_", "labels_"]),
        ("svc", sorted(k for k, v in vars(fitted("svc")).items() if isinstance(v, np.ndarray))),
        ("mlp", sorted([
            *(f"{k}.{i}" for k in ("coefs_", "intercepts_") for i in range(3)),
            *(f"optimizer.{k}.{i}" for k in ("ms", "vs") for i in range(6)),
            "_label_binarizer.classes_", *(f"_best_{k}.{i}" for k in ("coefs", "intercepts") for i in range(3)),
        ])),
    ):  # fmt: skip
        with open_bytes(dump_joblib(fitted(name))) as reader:
            assert [s.name for s in reader.specs if s.name != "classes_"] == [n for n in names if n != "classes_"]


def test_state_of_the_optimiser_is_known_by_its_name() -> None:
    with open_bytes(pickle.dumps(fitted("mlp"))) as reader:
        roles = {spec.name: spec.role for spec in reader.specs}
    assert roles["optimizer.ms.0"] == "optimizer"
    assert roles["coefs_.0"] == "parameter"


def test_names_of_steps_stand_for_numbers() -> None:
    with open_bytes(pickle.dumps(fitted("columns"))) as reader:
        facts = reader.structure
    assert facts["steps.columns.transformers_.num.columns"] == "[0, 1]"
    assert facts["steps.columns.transformers_.minmax.columns"] == "builtins.slice(2, 4, None)"
    assert facts["steps.svc.class"] == "sklearn.svm._classes.SVC"


@pytest.mark.filterwarnings("ignore")
def test_several_models_in_one_file_keep_their_names() -> None:
    models = [make_voting() for _ in range(5)]
    found = open_bytes(pickle.dumps({str(i): model for i, model in enumerate(models)}))
    names = {spec.name for spec in found.specs}
    assert {f"{i}.estimators_.lr.coef_" for i in range(5)} <= names


def test_labels_and_vocabulary_are_facts() -> None:
    with open_bytes(pickle.dumps(fitted("labels"))) as reader:
        assert reader.structure["classes_"] == '["setosa", "versicolor", "virginica"]'
    with open_bytes(pickle.dumps(fitted("words"))) as reader:
        assert reader.structure["vocabulary_.bb"] == 0


def test_members_of_an_ensemble_say_only_what_differs() -> None:
    with open_bytes(pickle.dumps(fitted("forest"))) as reader:
        facts = reader.structure
    assert facts["estimators_.0000.criterion"] == "gini"
    assert {key.removeprefix("estimators_.0001.") for key in facts if key.startswith("estimators_.0001.")} <= {
        "random_state", "tree_.max_depth", "tree_.node_count",
    }  # fmt: skip


def test_a_file_of_a_model_cut_anywhere_is_one_line(tmp_path: Path) -> None:
    from dvc_modelver.errors import BadModelError

    for data in (pickle.dumps(StandardScaler().fit(X), 4), dump_joblib(StandardScaler().fit(X))):
        for cut in range(len(data)):
            with pytest.raises(BadModelError) as caught:
                open_bytes(data[:cut])
            assert "\n" not in str(caught.value)


BOOSTERS = {
    "lightgbm": (".lgb", "_Booster", b"tree\nversion"),
    "xgboost": (".ubj", "_Booster", b"learner"),
    "catboost": (".cbm", "", b"CBM1"),
}


def fit_booster(library: str) -> tuple[Any, Any]:
    module: Any = pytest.importorskip(library)
    if library == "lightgbm":
        model = module.LGBMClassifier(n_estimators=60, verbose=-1, n_jobs=1).fit(X, Y)
        return model, model.booster_
    if library == "xgboost":
        model = module.XGBClassifier(n_estimators=30, n_jobs=1).fit(X, Y)
        return model, model.get_booster()
    model = module.CatBoostClassifier(iterations=9, verbose=0, allow_writing_files=False, thread_count=1).fit(X, Y)
    return model, model


@pytest.mark.parametrize("library", BOOSTERS)
def test_a_booster_inside_has_the_tensors_of_its_own_format(library: str, tmp_path: Path) -> None:
    suffix, prefix, _ = BOOSTERS[library]
    model, booster = fit_booster(library)
    path = tmp_path / f"model{suffix}"
    booster.save_model(path)
    reader = open_reader(path)
    assert reader is not None
    with reader:
        plain = values_of(reader, 1 << 16)
    assert plain
    for save in (SAVERS["pickle0"], SAVERS["pickle2"], SAVERS["pickle5"], SAVERS["joblib"], SAVERS["zlib"]):
        with open_bytes(save(model)) as found:
            assert found.framework == library
            names = {f"{prefix}.{name}".lstrip("."): value for name, value in plain.items()}
            assert names.items() <= values_of(found, 1 << 16).items()


@pytest.mark.parametrize("library", BOOSTERS)
def test_a_booster_that_cannot_be_read_is_a_digest(library: str) -> None:
    _, prefix, mark = BOOSTERS[library]
    model, _ = fit_booster(library)
    data = pickle.dumps(model)
    with open_bytes(data.replace(mark, mark[::-1])) as reader:
        assert str(reader.structure[f"{prefix}.model".lstrip(".")]).startswith("sha256:")
        assert f"{prefix}.unread".lstrip(".") in reader.structure
