"""Ensembles of trees: training anew grows other trees, so the shapes of their arrays say nothing of architecture.

Two ensembles are of one architecture where they are of the same kind, for as many features and classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dvc_modelver.diff.classify import UNCHANGED_SHARE, Classified

if TYPE_CHECKING:
    from dvc_modelver.diff.changes import TensorChange

_TREE = re.compile(r"^(?P<tree>(?:.*[.])?(?:trees[.]\d+|_predictors[.]\d+[.]\d+|tree_))[.]")
_BINS = re.compile(r"(^|[.])_bin_mapper[.]")
"""Borders of histograms that trees are grown from."""
_KIND = re.compile(
    r"(^|[.])(class|classes_|n_features_in_|n_classes_|n_outputs_|booster|boosting|objective|objective[.]name|"
    r"num_class|num_feature|num_target|max_feature_idx|num_tree_per_iteration|is_symmetric|class_names|"
    r"loss_function[.]type|feature_names[.]\d+)$"
)
"""Facts of a structure that say what kind of ensemble it is: of scikit-learn, XGBoost, LightGBM, CatBoost."""


def is_of_tree(name: str) -> bool:
    """Whether a tensor is part of a decision tree."""
    return _TREE.match(name) is not None


def classify_trees(
    tensors: Sequence[TensorChange], old: Mapping[str, Any], new: Mapping[str, Any]
) -> Classified | None:
    """Name the kind of change of a tree ensemble; None for other models, and where more than the trees changed.

    Args:
        tensors: All tensors of both sides.
        old: Structure of the old side.
        new: Structure of the new side.
    """
    trees: dict[str, list[TensorChange]] = {}
    for t in tensors:
        if found := _TREE.match(t.name):
            trees.setdefault(found["tree"], []).append(t)
    owners = tuple({owner for tree in trees if (owner := tree.removesuffix("tree_")) and owner != tree})
    others = [
        t for t in tensors if not t.name.startswith(owners) and not is_of_tree(t.name) and not _BINS.search(t.name)
    ]
    changed = {name for name, members in trees.items() if any(t.is_moved for t in members)}
    grown = any(_is_reshaped(t) for members in trees.values() for t in members)
    if not changed or any(map(_is_reshaped, others)) or _kind_of(old) != _kind_of(new):
        return None
    if all(t.change == "added" for name in changed for t in trees[name]):
        kept = len(trees) - len(changed)
        return Classified("fine-tune", f"the {kept:,} trees of before are as they were, {len(changed):,} were added")
    if not grown and not any(t.is_moved for t in _splits(trees)):
        return None  # the same trees with other values in their leaves
    what = f"{len(changed):,} of {len(trees):,} trees differ; the same kind of ensemble, features and classes"
    return Classified("partial" if 1 - len(changed) / len(trees) > UNCHANGED_SHARE else "retrained", what)


def _is_reshaped(t: TensorChange) -> bool:
    return t.old is None or t.new is None or t.old.shape != t.new.shape


def _splits(trees: Mapping[str, Sequence[TensorChange]]) -> list[TensorChange]:
    found = [t for members in trees.values() for t in members]
    return [t for t in found if re.search(r"(feature|feature_idx|threshold|num_threshold)$", t.name)]


def _kind_of(structure: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if "feature_names." in key else value for key, value in structure.items() if _KIND.search(key)}
