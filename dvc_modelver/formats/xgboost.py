"""XGBoost: the JSON or UBJSON document that ``save_model`` writes.

Thresholds and leaf values are float32, as XGBoost has them; what a model needs to predict becomes tensors (splits,
leaves, categories, ``weight_drop`` of dart, ``weight`` and ``bias`` of gblinear), while gains and covers are left out.

Source: https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html, ``doc/model.schema`` and
``src/tree/io_utils.h`` of XGBoost.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import Folder, flatten, measure, quote, read_exactly
from dvc_modelver.formats.documents import MAX_NUMBERS, Document, JsonDocument, Numbers, UbjsonDocument
from dvc_modelver.formats.trees import MAX_NODES, MAX_TREES, Arrays, Outline, TreesReader, order_nodes, sort_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = "xgboost"
SUFFIXES = (".ubj",)

_JSON_START = re.compile(rb'\s*\{\s*(?:"Config"\s*:\s*\{\s*)?"learner"\s*:\s*\{')
_UBJ_STARTS = (b"{L\0\0\0\0\0\0\0\x07learner{", b"{L\0\0\0\0\0\0\0\x06Config{L\0\0\0\0\0\0\0\x07learner{")
_NODE_ARRAYS = ("left_children", "right_children", "split_indices", "split_conditions", "default_left")
_MAX_INLINE = 1_000

MAX_CLASSES = 1 << 31
"""XGBoost numbers classes with 32 bits."""


def matches(file: BinaryIO) -> bool:
    """Tell whether a file begins as the document of a model does, or as that of a model with its configuration."""
    start = read_exactly(file, 0, min(measure(file), 256), FORMAT)
    return start.startswith(_UBJ_STARTS) or _JSON_START.match(start) is not None


def open_file(source: Path | BinaryIO, name: str, folder: Folder | None = None) -> XgboostReader:
    """Open a file of this format; it is whole without the files beside it."""
    return XgboostReader(source, name)


class XgboostReader(TreesReader):
    """Reads a model of XGBoost; of UBJSON, opening it skips the arrays, JSON is read once from end to end.

    What ``pickle`` keeps of a booster (its ``handle``) is read as well: a model beside its configuration.

    Args:
        source: A path, or a seekable binary file object.
        name: How errors call the file.

    Raises:
        BadModelError: The document is damaged, or its trees are not what its parameters say.
    """

    format = FORMAT
    framework: str | None = "xgboost"
    fields = ("feature", "threshold", "default_left", "children", "categories", "value")
    real = "F32"

    def __init__(self, source: Path | BinaryIO, name: str = "") -> None:
        super().__init__(source, name)
        try:
            self._read_document()
        except BaseException:
            self.close()
            raise

    def _read_document(self) -> None:
        is_ubj = read_exactly(self._file, 0, min(measure(self._file), 2), self.name) == b"{L"
        self._n_trees = 0
        self._document: Document = (UbjsonDocument if is_ubj else JsonDocument)(
            self._file, self.name, "trees", self._outline
        )
        root = _members(self._document.parse())
        model = _members(root.get("Model", root))
        learner = _members(model.get("learner"))
        booster = _members(learner.get("gradient_booster"))
        trees = _members(booster.get("gbtree", booster))
        content = _members(trees.get("model"))
        if not content:
            raise self._bad("has no learner.gradient_booster.model, expected a model of XGBoost")
        params = _members(learner.get("learner_model_param"))
        others = {}
        if "weights" in content:
            others.update(self._linear(content["weights"], params))
        if "weight_drop" in booster:
            others["weight_drop"] = self._document.read_numbers(booster["weight_drop"], "f4")
        outlines = content.get("trees", [])
        outlines = [] if isinstance(outlines, Numbers) and not outlines.n_items else outlines
        if not isinstance(outlines, list) or not all(isinstance(tree, Outline) for tree in outlines):
            raise self._bad(f"has trees {quote(outlines)}, expected a list of trees")
        n_trees = _members(content.get("gbtree_model_param")).get("num_trees")
        if n_trees is not None and n_trees != str(len(outlines)):
            raise self._bad(f"has {len(outlines)} trees, expected {quote(n_trees)} by num_trees")
        self._list(outlines, others)
        self.structure = flatten(self._describe(root, model, learner, booster, content))

    def _linear(self, weights: object, params: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        values = self._document.read_numbers(weights, "f4")
        n_groups = max(1, *(_count(params.get(key, "0")) for key in ("num_class", "num_target")))
        n_features = _count(params.get("num_feature"))
        if values.size != (n_features + 1) * n_groups:
            raise self._bad(f"has {values.size} weights, expected {n_groups} for {n_features} features and a bias")
        table = values.reshape(n_features + 1, n_groups)
        return {"weight": table[:-1], "bias": table[-1]}

    def _describe(
        self,
        root: Mapping[str, Any],
        model: Mapping[str, Any],
        learner: Mapping[str, Any],
        booster: Mapping[str, Any],
        content: Mapping[str, Any],
    ) -> dict[str, Any]:
        rest = {k: v for k, v in content.items() if k not in ("trees", "weights", "tree_info", "iteration_indptr")}
        facts = {
            "booster": booster.get("name"),
            "objective": learner.get("objective"),
            "learner_model_param": learner.get("learner_model_param"),
            "attributes": learner.get("attributes"),
            **rest,
            **self._describe_order(content),
            "version": model.get("version"),
            "config": _members(root.get("Config")).get("learner"),
            "feature_types": self._enumerate(learner.get("feature_types")),
            "feature_names": self._enumerate(learner.get("feature_names")),
        }
        return {key: found for key, value in facts.items() if (found := self._plain(value)) not in (None, [], {}, "")}

    def _describe_order(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Give the number of rounds; which class and round each tree is of, only where their order is not the usual."""
        import numpy as np

        found: dict[str, Any] = {}
        parallel = max(1, _count(_members(content.get("gbtree_model_param")).get("num_parallel_tree", "1")))
        classes = self._document.read_numbers(content.get("tree_info", []), "i8")
        n_classes = int(classes.max(initial=0)) + 1
        if n_classes > MAX_CLASSES:
            raise self._bad(f"has a tree of class {n_classes - 1} in tree_info, expected at most {MAX_CLASSES} classes")
        if not np.array_equal(classes, np.arange(len(classes)) // parallel % n_classes):
            found["tree_info"] = classes.tolist()
        ends = self._document.read_numbers(content.get("iteration_indptr", []), "i8")
        if len(ends):
            found["rounds"] = len(ends) - 1
            if not np.array_equal(ends, np.arange(len(ends)) * n_classes * parallel):
                found["iteration_indptr"] = ends.tolist()
        return found

    def _enumerate(self, names: object) -> dict[str, Any]:
        return {str(i): name for i, name in enumerate(names)} if isinstance(names, list) else {}

    def _plain(self, value: object) -> object:
        """Replace arrays that still lie in the file by their values, or by a digest of many; leave out empty ones."""
        if isinstance(value, Mapping):
            found = {key: self._plain(item) for key, item in value.items()}
            return {key: item for key, item in found.items() if item not in ([], {})}
        if isinstance(value, Numbers):
            if value.n_items > _MAX_INLINE:
                values = self._document.read_numbers(value, "f8")
                return f"sha256:{hashlib.sha256(values.astype('<f8').tobytes()).hexdigest()[:32]} ({value.n_items:,})"
            values = self._document.read_numbers(value, "f8")
            return [int(item) if item.is_integer() else item for item in values.tolist()]
        return [self._plain(item) for item in value] if isinstance(value, list) else value

    def _outline(self, tree: dict[str, Any], start: int, end: int) -> Outline:
        self._n_trees += 1
        if self._n_trees > MAX_TREES:
            raise self._bad(f"has more than {MAX_TREES} trees, expected at most so many")
        params = _members(tree.get("tree_param"))
        n_nodes = _count(params.get("num_nodes"))
        for key in _NODE_ARRAYS:
            if (found := _length(tree.get(key))) != n_nodes:
                raise self._bad(f"tree {self._n_trees - 1} has {found} {key}, expected {n_nodes} by num_nodes")
        n_there = n_nodes - _count(params.get("num_deleted", "0"))
        if n_there < 1 or n_there % 2 == 0:
            raise self._bad(f"tree {self._n_trees - 1} has {n_there} nodes, expected a root and pairs of children")
        n_leaves, n_categories = n_there // 2 + 1, _length(tree.get("categories", []))
        if n_categories < 0:
            raise self._bad(f"tree {self._n_trees - 1} has categories {quote(tree['categories'])}, expected a list")
        n_outputs = _count(params.get("size_leaf_vector", "1"))
        if max(n_nodes, n_categories) > MAX_NODES or n_leaves * n_outputs > MAX_NUMBERS:
            raise self._bad(
                f"tree {self._n_trees - 1} has {n_nodes} nodes, {n_categories} categories and leaves of {n_outputs} "
                f"numbers, expected at most {MAX_NODES} nodes or categories, and {MAX_NUMBERS} numbers"
            )
        return Outline(start, end, n_leaves - 1, n_leaves, n_outputs if n_outputs > 1 else 0, n_categories)

    def _load(self, number: int) -> Arrays:
        def read(key: str, dtype: str) -> NDArray[Any]:
            return self._document.read_numbers(tree.get(key, []), dtype)

        def bad(finding: str) -> BadModelError:
            return self._bad(f"tree {number} {finding}")

        outline = self.outlines[number]
        tree = _members(self._document.parse(outline.start, outline.end))
        left, right = read("left_children", "i8"), read("right_children", "i8")
        if len(left) != len(right) or any(_length(tree.get(key)) != len(left) for key in _NODE_ARRAYS):
            raise bad("changed while it was read, expected the arrays that were there before")
        nodes = order_nodes(left, right, bad)
        conditions = read("split_conditions", "f4")
        value = conditions[nodes.leaves]
        if outline.n_outputs:
            value = self._vectors(tree, outline, right[nodes.leaves], nodes.leaves, bad)
        return {
            "feature": read("split_indices", "i8")[nodes.splits],
            "threshold": conditions[nodes.splits],
            "default_left": read("default_left", "i8")[nodes.splits],
            "children": nodes.children,
            "categories": self._categories(tree, nodes.numbers, bad),
            "value": value,
        }

    def _vectors(self, tree: Mapping[str, Any], outline: Outline, rows: Any, leaves: Any, bad: Any) -> NDArray[Any]:
        """Give the vectors of leaves: in a table of their own, or (XGBoost 2) in that of all nodes."""
        key, at = ("leaf_weights", rows) if "leaf_weights" in tree else ("base_weights", leaves)
        values = self._document.read_numbers(tree.get(key, []), "f4")
        if values.size % outline.n_outputs or at.min() < 0 or at.max() >= values.size // outline.n_outputs:
            raise bad(f"has {values.size} {key}, expected {outline.n_outputs} for each leaf")
        vectors: NDArray[Any] = values.reshape(-1, outline.n_outputs)[at]
        return vectors

    def _categories(self, tree: Mapping[str, Any], numbers: NDArray[Any], bad: Any) -> NDArray[Any]:
        import numpy as np

        nodes, begins, sizes, categories = (
            self._document.read_numbers(tree.get(key, []), "i8")
            for key in ("categories_nodes", "categories_segments", "categories_sizes", "categories")
        )
        begin = np.cumsum(sizes) - sizes
        # Each size is looked at alone first: the sum of large ones wraps round, and np.repeat would believe it.
        if not (len(nodes) == len(sizes) and ((sizes >= 0) & (sizes <= len(categories))).all()
                and np.array_equal(begin, begins) and sizes.sum() == len(categories)
                and ((nodes >= 0) & (nodes < len(numbers))).all()):  # fmt: skip
            raise bad("has categories that do not fit its nodes, expected a segment for each categorical split")
        return sort_rows(np.repeat(numbers[nodes], sizes), categories)

    def _bad(self, finding: str) -> BadModelError:
        return BadModelError(f"{self.name}: {finding}", hint="fetch the file again, or save it again with XGBoost")


def _members(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _length(value: object) -> int:
    if isinstance(value, Numbers):
        return value.n_items
    return len(value) if isinstance(value, list) else -1


def _count(text: object) -> int:
    """Give a number that XGBoost keeps as text; -1, which fits nothing, for anything else."""
    return int(text) if isinstance(text, str) and re.fullmatch(r"[0-9]{1,15}", text) else -1
