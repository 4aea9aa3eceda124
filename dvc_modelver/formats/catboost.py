"""CatBoost: the ``.cbm`` file, a FlatBuffer of trees and what the model keeps of categories after it.

A symmetric tree asks one split at each level, so it has no ``children``: leaf k is where split i answered bit i of k.
Splits are given by the feature and its border or category, not by CatBoost's number, which moves when a model that is
trained on gets more borders. A feature of numbers or categories goes by its column (the flat index), one that is
computed by its place in the model's own list. What follows the trees (statistics of categories, dictionaries of texts)
is one tensor of bytes, ``parts``.

Source: ``flatbuffers/*.fbs`` and ``TModelTrees::CalcBinFeatures`` of ``model.cpp`` in ``catboost/libs/model`` of
https://github.com/catboost/catboost.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import Folder, ended_early, flatten, measure, quote, read_exactly
from dvc_modelver.formats.flatbuffer import MAX_TEXTS_BYTES, FlatBuffer, Table, Vector
from dvc_modelver.formats.trees import MAX_NODES, MAX_TREES, Arrays, Nodes, Outline, TreesReader, order_nodes, sort_rows
from dvc_modelver.tensors import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = "catboost"
SUFFIXES = (".cbm",)
MAX_DEPTH = 20
"""Levels of a symmetric tree; CatBoost itself grows at most 16."""
MAX_FEATURES = 100_000
MAX_BINS = 4_000_000
"""Borders and categories of all features, which are held while the file is open."""

MAX_SPLITS = 4_000_000

_FIELDS = ("feature", "kind", "threshold", "categories", "value")
_MAX_COMBINED = 64
_MAX_STATISTICS = 20_000
_MAX_MEMBERS = 1_000
_PAGE_BYTES = 65_536
_MAX_INFO_CHARS = 4_000_000
_DIMENSION, _TREE_SPLITS, _TREE_SIZES, _CAT_FEATURES, _FLOAT_FEATURES = 0, 1, 2, 4, 5
_ONE_HOT_FEATURES, _CTR_FEATURES, _LEAF_VALUES, _STEP_NODES, _LEAF_IDS = 6, 7, 8, 10, 11
_ESTIMATED_FEATURES, _SCALE, _BIAS, _MULTI_BIAS = 13, 14, 15, 16
_MAGIC = b"CBM1"
_VERSION = "FlabuffersModel_v1"
_NUMBER, _ESTIMATE, _CATEGORY, _STATISTIC = range(4)
_NAN_TREATMENTS = ("AsIs", "AsFalse", "AsTrue")
_CTR_TYPES = ("Borders", "Buckets", "BinarizedTargetMeanValue", "FloatTargetMeanValue", "Counter", "FeatureFreq")
_HINT = "fetch the file again, or save it again with CatBoost"


def matches(file: BinaryIO) -> bool:
    """Tell whether a file begins with CatBoost's mark."""
    return measure(file) >= 8 and read_exactly(file, 0, 4, FORMAT) == _MAGIC


def open_file(source: Path | BinaryIO, name: str, folder: Folder | None = None) -> CatboostReader:
    """Open a file of this format; it is whole without the files beside it."""
    return CatboostReader(source, name)


class CatboostReader(TreesReader):
    """Reads a ``.cbm`` file; opening it leaves the leaves unread.

    Args:
        source: A path, or a seekable binary file object.
        name: How errors call the file.

    Raises:
        BadModelError: The file is damaged, or its trees do not fit its features.
    """

    format = FORMAT
    framework: str | None = "catboost"
    real = "F64"
    dtypes = MappingProxyType({"threshold": "F32"})

    def __init__(self, source: Path | BinaryIO, name: str = "") -> None:
        super().__init__(source, name)
        try:
            self._read_core()
        except BaseException:
            self.close()
            raise

    def _read_core(self) -> None:
        n_bytes = measure(self._file)
        start = read_exactly(self._file, 0, min(8, n_bytes), self.name)
        if len(start) < 8 or start[:4] != _MAGIC:
            raise self._bad(f"begins with {quote(start[:4])}, expected {quote(_MAGIC)}")
        self._core_end = 8 + int.from_bytes(start[4:], "little")
        if self._core_end > n_bytes:
            raise ended_early(self.name, n_bytes, self._core_end)
        self._flat = FlatBuffer(self._file, 8, self._core_end, self.name, _HINT, page_bytes=_PAGE_BYTES)
        core = self._flat.root()
        if (version := core.text(0)) != _VERSION:
            raise self._bad(f"is of the version {quote(version)}, expected {_VERSION}")
        trees, parts = core.table(1), core.texts(3, _MAX_MEMBERS)
        if trees is None or bool(parts) != (n_bytes > self._core_end):
            raise self._bad(f"has {n_bytes - self._core_end} bytes after its trees, expected {len(parts)} parts there")
        features = self._read_features(trees)
        outlines = self._read_outlines(trees)
        self._list(outlines, {"bias": self._read_bias(trees)})
        if parts:
            part = TensorSpec("parts", "U8", (n_bytes - self._core_end,))
            self.specs = tuple(sorted((*self.specs, part), key=lambda spec: spec.name))
        facts = {
            "trees": len(outlines),
            "is_symmetric": self._is_symmetric,
            "scale": float(trees.real(_SCALE, "<d", 1)),
            "parts": ", ".join(parts),
            **self._read_info(core),
            **features,
        }
        self.structure = flatten({key: value for key, value in facts.items() if value not in ({}, "")})

    def iter_buffers(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give a tensor's values; see `Reader`."""
        if spec.name != "parts":
            yield from super().iter_buffers(spec, n_bytes)
        else:
            yield from self._iter_span(self._core_end, self._core_end + spec.numel, n_bytes, "tensor 'parts'")

    def _array(self, place: Vector, code: str, begin: int = 0, count: int | None = None) -> NDArray[Any]:
        import numpy as np

        count = place.n_items - begin if count is None else count
        if begin < 0 or count < 0 or begin + count > place.n_items:
            raise self._bad(f"needs items {begin} to {begin + count} of a list of {place.n_items}, expected them there")
        n_bytes = np.dtype(code).itemsize
        start = place.start + begin * n_bytes
        return np.frombuffer(self._flat.read_values(start, start + count * n_bytes), code)

    def _read_features(self, trees: Table) -> dict[str, Any]:
        """Number the borders and categories of all features as CatBoost does, and describe the features."""
        import numpy as np

        numbers, estimates, sets, statistics, categories = (
            list(trees.tables(slot, MAX_FEATURES))
            for slot in (_FLOAT_FEATURES, _ESTIMATED_FEATURES, _ONE_HOT_FEATURES, _CTR_FEATURES, _CAT_FEATURES)
        )
        if len(statistics) > _MAX_STATISTICS:
            raise self._bad(f"has {len(statistics)} statistics of categories, expected at most {_MAX_STATISTICS}")
        if (n_features := sum(map(len, (numbers, estimates, sets, statistics, categories)))) > MAX_FEATURES:
            raise self._bad(f"has {n_features} features, expected at most {MAX_FEATURES}")
        columns = {at.number(0, "<i", -1): at.number(1, "<i", -1) for at in categories}
        bins = [
            *((_NUMBER, at.number(2, "<i", -1), at.vector(3, 4)) for at in numbers),
            *((_ESTIMATE, i, at.vector(3, 4)) for i, at in enumerate(estimates)),
            *((_CATEGORY, columns.get(at.number(0, "<i", -1), -1), at.vector(1, 4)) for at in sets),
            *((_STATISTIC, i, at.vector(1, 4)) for i, at in enumerate(statistics)),
        ]
        counts = [place.n_items for _, _, place in bins]
        if sum(counts) > MAX_BINS:
            raise self._bad(f"has {sum(counts)} borders and categories, expected at most {MAX_BINS}")
        values = np.concatenate([np.zeros(0, "<i4"), *(self._array(place, "<i4") for _, _, place in bins)])
        self._kinds = np.repeat(np.array([kind for kind, _, _ in bins], "i1"), counts)
        self._columns = np.repeat(np.array([column for _, column, _ in bins], "i4"), counts)
        self._hashes = values
        self._borders = np.where(self._kinds == _CATEGORY, np.float32(0), values.view("<f4"))
        names = {at.number(2, "<i", -1): at.text(4, MAX_TEXTS_BYTES) for at in numbers}
        names |= {at.number(1, "<i", -1): at.text(2, MAX_TEXTS_BYTES) for at in categories}
        return {
            "missing": {
                str(at.number(2, "<i", -1)): _name(_NAN_TREATMENTS, at.number(5, "<b"))
                for at in numbers
                if at.number(0, "<?")
            },
            "ctrs": {str(i): self._describe_statistic(at.table(0)) for i, at in enumerate(statistics)},
            "feature_names": {str(column): names[column] for column in sorted(names)},
        }

    def _describe_statistic(self, ctr: Table | None) -> dict[str, Any]:
        base = ctr.table(0) if ctr else None
        combination = base.table(0) if base else None
        if ctr is None or base is None or combination is None:
            raise self._bad("has a statistic of no features, expected a combination")
        found: dict[str, Any] = {"type": _name(_CTR_TYPES, base.number(1, "<b"))}
        members = (("categories", 4, "<i4"), ("float_splits", 8, "<i4,<f4"), ("one_hot_splits", 8, "<i4,<i4"))
        for slot, (key, item_bytes, code) in enumerate(members):
            place = combination.vector(slot, item_bytes)
            if place.n_items > _MAX_COMBINED:
                raise self._bad(f"has a statistic of {place.n_items} features, expected at most {_MAX_COMBINED}")
            if place.n_items:
                found[key] = str(self._array(place, code).tolist())
        return found | {
            "target_border": ctr.number(1, "<i"),
            "prior": [ctr.real(2, "<f"), ctr.real(3, "<f", 1)],
            "shift": ctr.real(4, "<f"),
            "scale": ctr.real(5, "<f", 1),
        }

    def _read_bias(self, trees: Table) -> NDArray[Any]:
        import numpy as np

        bias = self._array(trees.vector(_MULTI_BIAS, 8), "<f8")
        if len(bias) not in (0, self._n_outputs):
            raise self._bad(f"has {len(bias)} biases, expected {self._n_outputs}")
        return bias if len(bias) else np.full(self._n_outputs, trees.real(_BIAS, "<d"))

    def _read_info(self, core: Table) -> dict[str, Any]:
        """Give the parameters of training; times, identifiers and paths differ from one run to the next."""
        pairs = {at.text(0, MAX_TEXTS_BYTES): at for at in core.tables(2, _MAX_MEMBERS)}
        found: dict[str, Any] = {}
        for key in ("params", "class_params"):
            text = pairs[key].text(1, MAX_TEXTS_BYTES) if key in pairs else "{}"
            try:
                found[key] = json.loads(text) if len(text) <= _MAX_INFO_CHARS else text
            except (ValueError, RecursionError):
                found[key] = text
        return found

    def _read_outlines(self, trees: Table) -> list[Outline]:
        import numpy as np

        self._n_outputs = trees.number(_DIMENSION, "<i")
        sizes, splits = trees.vector(_TREE_SIZES, 4), trees.vector(_TREE_SPLITS, 4)
        self._leaves = trees.vector(_LEAF_VALUES, 8)
        if not 0 < self._n_outputs <= MAX_FEATURES or sizes.n_items > MAX_TREES or splits.n_items > MAX_SPLITS:
            raise self._bad(
                f"has {sizes.n_items} trees with {splits.n_items} splits and {self._n_outputs} outputs, "
                f"expected at most {MAX_TREES}, {MAX_SPLITS} and {MAX_FEATURES}"
            )
        self._read_nodes(trees, splits)
        n_nodes = self._array(sizes, "<i4").astype(np.int64)
        most = MAX_DEPTH if self._is_symmetric else MAX_NODES
        if (n_nodes < 0).any() or (n_nodes > most).any() or n_nodes.sum() != splits.n_items:
            raise self._bad(f"has {splits.n_items} splits, expected trees of at most {most} that add up to them")
        ends = np.cumsum(n_nodes)
        n_splits, n_categories = (
            np.diff(np.concatenate([[0], np.cumsum(marks)])[np.concatenate([[0], ends])])
            for marks in (self._is_split, self._is_split & (self._kinds[self._bins] == _CATEGORY))
        )
        n_leaves = 1 << n_nodes if self._is_symmetric else n_splits + 1
        if int(n_leaves.sum()) * self._n_outputs != self._leaves.n_items:
            raise self._bad(f"has {self._leaves.n_items} leaf values, expected {int(n_leaves.sum())} leaves")
        n_outputs = self._n_outputs if self._n_outputs > 1 else 0
        table = np.stack(
            [ends - n_nodes, ends, n_splits, n_leaves, np.full(len(ends), n_outputs), n_categories], axis=1
        )
        self._first_leaves = np.cumsum(n_leaves) - n_leaves
        return [Outline(*row) for row in table.tolist()]

    def _read_nodes(self, trees: Table, splits: Vector) -> None:
        """Read what each split asks; of trees that are not symmetric, also where their nodes lead."""
        import numpy as np

        steps = trees.vector(_STEP_NODES, 4)
        leaf_ids = trees.vector(_LEAF_IDS, 4)
        self._is_symmetric = not steps.n_items
        self.fields = _FIELDS if self._is_symmetric else (*_FIELDS, "children")
        if not self._is_symmetric and not steps.n_items == leaf_ids.n_items == splits.n_items:
            raise self._bad(f"has {steps.n_items} nodes and {splits.n_items} splits, expected one for each")
        self._bins = self._array(splits, "<i4")
        self._steps = self._array(Vector(steps.start, 2 * steps.n_items), "<u2").reshape(-1, 2).astype(np.int64)
        self._leaf_ids = self._array(leaf_ids, "<u4").astype(np.int64)
        self._is_split = np.ones(splits.n_items, bool) if self._is_symmetric else self._steps.any(axis=1)
        asked = self._bins[self._is_split]
        if ((asked < 0) | (asked >= len(self._kinds))).any():
            raise self._bad(f"has splits beyond the {len(self._kinds)} borders and categories of its features")
        self._bins = np.where(self._is_split, self._bins, 0)
        if not len(self._kinds):  # every tree is a leaf
            self._kinds, self._columns, self._hashes = (np.zeros(1, "i4") for _ in range(3))
            self._borders = np.zeros(1, "f4")

    def _load(self, number: int) -> Arrays:
        import numpy as np

        outline = self.outlines[number]
        first, width = int(self._first_leaves[number]), self._n_outputs
        values = self._array(self._leaves, "<f8", first * width, outline.n_leaves * width).reshape(-1, width)
        bins = self._bins[outline.start : outline.end]
        children = np.zeros((0, 2), np.int64)
        if not self._is_symmetric:
            nodes, leaves = self._order(number, outline, first)
            bins, children, values = bins[nodes.splits], nodes.children, values[leaves]
        (categorical,) = np.nonzero(self._kinds[bins] == _CATEGORY)
        return {
            "feature": self._columns[bins],
            "kind": self._kinds[bins],
            "threshold": self._borders[bins],
            "categories": sort_rows(categorical, self._hashes[bins[categorical]]),
            "children": children,
            "value": values if outline.n_outputs else values[:, 0],
        }

    def _order(self, number: int, outline: Outline, first: int) -> tuple[Nodes, NDArray[Any]]:
        """Give a tree's nodes in canonical order, and which of its leaves each of them is.

        A step of 0 ends at the node itself, whose value is a leaf then, be it a split on its other side or not.
        """
        import numpy as np

        def bad(finding: str) -> BadModelError:
            return self._bad(f"tree {number} {finding}")

        steps = self._steps[outline.start : outline.end]
        own = np.arange(len(steps))
        (half,) = np.nonzero((steps == 0).sum(axis=1) == 1)
        ends_here = np.full(len(steps), -1)
        ends_here[half] = len(steps) + np.arange(len(half))
        below = np.full(len(half), -1)
        left, right = (
            np.concatenate([np.where(step, own + step, ends_here), below]) for step in (steps[:, 0], steps[:, 1])
        )
        nodes = order_nodes(left, right, bad)
        if len(nodes.splits) != outline.n_splits:
            raise bad(f"reaches {len(nodes.splits)} of its {outline.n_splits} splits, expected all")
        ids = self._leaf_ids[outline.start : outline.end][np.concatenate([own, half])[nodes.leaves]]
        leaves = ids // self._n_outputs - first
        if (ids % self._n_outputs).any() or not np.array_equal(np.sort(leaves), np.arange(outline.n_leaves)):
            raise bad("has leaves without a value of their own, expected one for each")
        return nodes, leaves

    def _bad(self, finding: str) -> BadModelError:
        return BadModelError(f"{self.name}: {finding}", hint=_HINT)


def _name(names: tuple[str, ...], number: int) -> str:
    return names[number] if 0 <= number < len(names) else str(number)
