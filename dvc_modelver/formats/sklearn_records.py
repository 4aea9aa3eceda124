"""What scikit-learn's records mean: which class, attributes and names a pickle's calls stand for.

Sources: scikit-learn 1.9: ``sklearn/tree/_tree.pyx``, ``sklearn/neighbors/_binary_tree.pxi.tp``,
``sklearn/metrics/_dist_metrics.pyx.tp``, ``sklearn/utils/metaestimators.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from dvc_modelver.formats.numpy_records import Array, find_class
from dvc_modelver.formats.pickles import Call

BOOSTERS = {
    "lightgbm.basic.Booster": ("lightgbm", "_handle", "handle"),
    "xgboost.core.Booster": ("xgboost", "handle"),
    **{f"catboost.core.CatBoost{kind}": ("catboost", "__model") for kind in ("", "Classifier", "Regressor", "Ranker")},
}
"""Classes that keep a whole model of another format: its name, and the attributes it may be in."""

TREE = "sklearn.tree._tree.Tree"
TREE_NAMES = {"left_child": "children_left", "right_child": "children_right", "values": "value"}
"""Fields of a tree's nodes, and members of its state, as the attributes of ``Tree`` are called."""

STATE_NAMES = {
    "sklearn.neighbors.": (
        "data", "idx_array", "node_data", "node_bounds", "leaf_size", "n_levels", "n_nodes", "n_trims", "n_leaves",
        "n_splits", "n_calls", "dist_metric", "sample_weight",
    ),
    "sklearn.metrics._dist_metrics.": ("p", "vec", "mat", "func", "kwargs"),
}  # fmt: skip
"""Names for the members of a state that is a tuple, by the beginning of the class."""

GENERATORS = {
    "__randomstate_ctor": "RandomState",
    "__generator_ctor": "Generator",
    "__bit_generator_ctor": "BitGenerator",
}
OPTIMIZERS = "sklearn.neural_network._stochastic_optimizers."


def find_args(made: Call) -> tuple[object, ...]:
    """Give the arguments that an object is made of, without what only names its class."""
    if find_class(made) == made.name:
        return made.args
    return tuple(arg for arg in made.args[2:] if arg is not None and arg != ())


def split_states(made: Call) -> tuple[dict[str, object], list[object]]:
    """Give the attributes that an object's states would set, and the states of another form."""
    attributes: dict[str, object] = {}
    others: list[object] = []
    for state in made.states:
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        if all(isinstance(part, dict | None) for part in parts):
            for i, (key, value) in enumerate(pair for part in parts if isinstance(part, dict) for pair in part.items()):
                attributes[key if isinstance(key, str) else f"#{i}"] = value
        else:
            others.append(state)
    return attributes, others


def name_members(attributes: dict[str, object]) -> dict[str, object]:
    """Put names into a list of fitted estimators, where the list of those it was made of has them."""
    pairs, fitted = attributes.get("estimators"), attributes.get("estimators_")
    if not isinstance(pairs, list) or not isinstance(fitted, list):
        return attributes
    named = [pair for pair in find_pairs(pairs) or () if pair[1] != "drop"]
    if not named or len(named) != len(fitted):
        return attributes
    return {**attributes, "estimators_": {key: member for (key, _, _), member in zip(named, fitted, strict=True)}}


def find_pairs(members: Sequence[object]) -> list[tuple[str, object, object]] | None:
    """Give the names, objects and columns of a list of such; None for another list."""
    found: dict[str, tuple[str, object, object]] = {}
    for member in members:
        match member:
            case (str() as key, value, *rest) if key and len(rest) < 2 and key not in found:
                found[key] = (key, value, rest[0] if rest else None)
            case _:
                return None
    return list(found.values()) if any(isinstance(value, Call | Array) for _, value, _ in found.values()) else None


def holds_object(member: object) -> bool:
    """Whether a member of a list is an object other than NumPy's, or a list that begins with one."""
    if isinstance(member, list | tuple):
        member = next(iter(member), None)
    return isinstance(member, Call) and not member.name.startswith("numpy.")
