"""Tree ensembles as tensors: every tree is a group of small arrays, so that two models compare tree by tree.

Each format of trees keeps nodes in an order of its own, often the one in which they grew. Here a tree's nodes are
numbered breadth first, the left child before the right one, and its splits and its leaves are counted apart: split 0
is the root (unless the tree is a single leaf), and leaf 0 is the leaf nearest to the root, leftmost first. Equal trees
are so equal arrays, and a split added at the bottom leaves the arrays' beginnings as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import FileReader, quote
from dvc_modelver.tensors import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_TREES = 50_000
MAX_NODES = 2_000_000
"""Nodes of one tree, which is held whole while its values are read."""
REAL = "real"
FIELDS: dict[str, tuple[str, tuple[str | int, ...]]] = {
    "feature": ("I32", ("n_splits",)),
    "kind": ("I8", ("n_splits",)),
    "threshold": (REAL, ("n_splits",)),
    "default_left": ("BOOL", ("n_splits",)),
    "decision_type": ("I8", ("n_splits",)),
    "children": ("I32", ("n_splits", 2)),
    "categories": ("I32", ("n_categories", 2)),
    "value": (REAL, ("n_leaves",)),
    "count": ("I32", ("n_leaves",)),
    "linear_const": (REAL, ("n_models",)),
    "linear_terms": ("I32", ("n_terms", 2)),
    "linear_coeff": (REAL, ("n_terms",)),
}
"""What a tree's tensors are called, ``trees.<number>.<field>``, with dtypes and axes; `REAL` is the format's own float.

- ``feature``: number of the feature that a split asks; ``threshold``: what it is compared with, as stored.
- ``kind``: what CatBoost's ``feature`` counts: 0 features of numbers, 1 estimates from texts and embeddings, 2 features
  of categories, 3 statistics of categories.
- ``default_left``: whether a missing value goes left; ``decision_type``: LightGBM's bits, which say that and more.
- ``children``: left and right child of each split; another split by its number, leaf k as ``~k`` (so leaf 0 is -1).
  A symmetric tree has none: its splits are its levels, as its format orders them.
- ``categories``: rows of split and category, sorted: the categories that a categorical split lists.
- ``value``: what each leaf adds, with a second axis where it adds a vector; ``count``: training rows that reached it.
- ``linear_const``, ``linear_terms``, ``linear_coeff``: linear models in leaves, the terms as rows of leaf and feature.

The fields of categories and of linear models are there only in trees that have them.
"""

_CODES = {"F32": "<f4", "F64": "<f8", "I32": "<i4", "I8": "i1", "BOOL": "?"}
_OPTIONAL = {"n_categories", "n_models", "n_terms"}

Arrays = Mapping[str, "NDArray[Any]"]


class Outline(NamedTuple):
    """How large one tree is, and where it lies: in the file, or among the nodes of all trees."""

    start: int
    end: int
    n_splits: int
    n_leaves: int
    n_outputs: int = 0
    """Length of each leaf's vector; 0 where a leaf has one number."""
    n_categories: int = 0
    n_models: int = 0
    n_terms: int = 0


class TreesReader(FileReader):
    """What the readers of tree ensembles share; a format finds the outlines, and loads one tree when asked.

    Args:
        source: A path, or a seekable binary file object.
        name: How errors call the file.

    Attributes:
        fields: The fields that this format's trees have, of `FIELDS`.
        real: Dtype of leaf values, and of what the format says no more of.
        dtypes: Dtypes of fields that have another float.
        outlines: One for each tree.
    """

    fields: tuple[str, ...]
    real: str
    dtypes: Mapping[str, str] = MappingProxyType({})
    outlines: Sequence[Outline] = ()

    def __init__(self, source: Path | BinaryIO, name: str = "") -> None:
        super().__init__(source, name)
        self._others: Arrays = {}
        self._last: tuple[int, Arrays] = (-1, {})

    def _list(self, outlines: Sequence[Outline], others: Arrays | None = None) -> None:
        """Say what the file holds: its trees, and arrays of floats of the whole model by name."""
        self.outlines, self._others = outlines, others or {}
        width = number_width(len(outlines))
        specs = [TensorSpec(key, self.real, values.shape) for key, values in self._others.items()]
        layout = []
        for field in self.fields:
            dtype, axes = FIELDS[field]
            layout.append((field, self.dtypes.get(field, self.real) if dtype == REAL else dtype, axes))
        for number, outline in enumerate(outlines):
            prefix = f"trees.{number:0{width}d}."
            for field, dtype, axes in layout:
                if axes[0] not in _OPTIONAL or getattr(outline, str(axes[0])):
                    shape = _shape(field, axes, outline)
                    specs.append(TensorSpec(prefix + field, dtype, shape))
        self.specs = tuple(sorted(specs, key=lambda spec: spec.name))

    def _load(self, number: int) -> Arrays:
        """Read one tree: its arrays by field, of any numeric type."""
        raise NotImplementedError

    def iter_buffers(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give a tensor's values; see `Reader`. One whole tree is held at a time."""
        import numpy as np

        if spec.name in self._others:
            found = self._others[spec.name]
        else:
            _, digits, field = spec.name.split(".")
            number = int(digits)
            if self._last[0] != number:
                self._last = (number, self._load(number))
            found = self._last[1][field]
        if found.shape != spec.shape:
            raise BadModelError(
                f"{self.name}: tensor {quote(spec.name)} has the shape {found.shape}, expected {spec.shape}",
                hint="save the model again",
            )
        cast = np.ascontiguousarray(found, _CODES[spec.dtype])
        if cast.dtype.kind != "f" and not np.array_equal(cast, found):
            raise BadModelError(
                f"{self.name}: tensor {quote(spec.name)} has values that are no {spec.dtype}, expected such ones",
                hint="save the model again",
            )
        values = cast.reshape(-1).view("u1").data
        for start in range(0, len(values), n_bytes):
            yield values[start : start + n_bytes]


def number_width(n_trees: int) -> int:
    """Give the digits of a tree's number in names, so that they sort: 4, or as many as the last one needs."""
    return max(4, len(str(n_trees - 1)))


def _shape(field: str, axes: tuple[str | int, ...], outline: Outline) -> tuple[int, ...]:
    shape = tuple(axis if isinstance(axis, int) else getattr(outline, axis) for axis in axes)
    return (*shape, outline.n_outputs) if field == "value" and outline.n_outputs else shape


@dataclass(frozen=True)
class Nodes:
    """The nodes of one tree in canonical order.

    Attributes:
        splits: Stored numbers of the splits.
        leaves: Stored numbers of the leaves.
        children: The tensor ``children``.
        numbers: For each stored node its number among the splits; -1 for a leaf, and for one that is not in the tree.
    """

    splits: NDArray[Any]
    leaves: NDArray[Any]
    children: NDArray[Any]
    numbers: NDArray[Any]


def order_nodes(left: NDArray[Any], right: NDArray[Any], bad: Callable[[str], BadModelError]) -> Nodes:
    """Number the nodes of a tree breadth first from node 0.

    Args:
        left: For each node its left child, -1 for a leaf; shape ``(n_nodes,)``.
        right: Likewise; what it says of a leaf is not looked at.
        bad: Makes the error out of what was found.

    Raises:
        BadModelError: There is no node, a child does not exist, or a node is reached twice.
    """
    import numpy as np

    lefts, rights, n_nodes = left.tolist(), right.tolist(), len(left)
    if not n_nodes:
        raise bad("has no node, expected a root")
    order = [0]
    for node in order:
        if (child := lefts[node]) != -1:
            order += (child, rights[node])
            if not (0 < child < n_nodes and 0 < rights[node] < n_nodes) or len(order) > n_nodes:
                raise bad(
                    f"has a node {node} with children {child} and {rights[node]}, expected a tree of {n_nodes} nodes"
                )
    nodes = np.array(order, np.int64)
    if len(np.unique(nodes)) < len(nodes):
        raise bad("reaches a node twice, expected a tree")
    is_leaf = left[nodes] == -1
    splits, leaves = nodes[~is_leaf], nodes[is_leaf]
    labels = np.full(n_nodes, -1, np.int64)
    labels[leaves] = ~np.arange(len(leaves))
    numbers = np.full(n_nodes, -1, np.int64)
    labels[splits] = numbers[splits] = np.arange(len(splits))
    children = np.stack([labels[left[splits]], labels[right[splits]]], axis=1)
    return Nodes(splits, leaves, children, numbers)


def sort_rows(first: Sequence[int] | NDArray[Any], second: Sequence[int] | NDArray[Any]) -> NDArray[Any]:
    """Give two columns as the rows of a table, sorted."""
    import numpy as np

    rows = np.stack([np.asarray(first, np.int64), np.asarray(second, np.int64)], axis=1)
    return rows[np.lexsort((rows[:, 1], rows[:, 0]))]
