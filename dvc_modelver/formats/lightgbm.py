"""LightGBM: the text that ``save_model`` and ``model_to_string`` write.

The header gives the length of each tree's block, so that a listing reads the ends of the blocks alone; a block is read
whole only for categorical splits and linear leaves, whose sizes stand nowhere else. Thresholds and leaf values are
float64, written so that they come back exactly. A categorical split's threshold, the number of its set in the file, is
given as 0: its categories are in the tensor ``categories``.

Source: ``GBDT::SaveModelToString`` (src/boosting/gbdt_model_text.cpp) and ``Tree::ToString`` (src/io/tree.cpp) of
LightGBM.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import Folder, flatten, measure, quote, read_exactly
from dvc_modelver.formats.trees import MAX_TREES, Arrays, Outline, TreesReader, order_nodes, sort_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = "lightgbm"
SUFFIXES = (".lgb", ".lgbm")
MAX_TEXT_BYTES = 32 << 20
"""Length of the text before the trees, and of that after them."""
MAX_TREE_BYTES = 32 << 20
"""Length of one tree's text."""
MAX_LINES = 10_000
MAX_FEATURES = 1_000_000

MAX_LEAVES = 131_072
"""Leaves of one tree, at most, in LightGBM itself."""
MAX_WORDS = 131_072
"""Words of 32 bits, other than 0, in the sets of categories of one tree."""

_START = b"tree\nversion=v"
_WINDOW_BYTES = 65_536
_BORDER_BYTES = 128
_BLOCK_START = re.compile(rb"Tree=([0-9]{1,9})\nnum_leaves=([0-9]{1,9})\nnum_cat=([0-9]{1,9})\n")
_PLAIN_END = re.compile(rb"\nis_linear=0\nshrinkage=[^\n]{1,40}\n+\Z")
_IS_CATEGORICAL = 1

_Bad = Callable[[str], BadModelError]


def matches(file: BinaryIO) -> bool:
    """Tell whether a file begins with the two lines of a LightGBM model."""
    return measure(file) > len(_START) and read_exactly(file, 0, len(_START), FORMAT) == _START


def open_file(source: Path | BinaryIO, name: str, folder: Folder | None = None) -> LightgbmReader:
    """Open a file of this format; it is whole without the files beside it."""
    return LightgbmReader(source, name)


def open_text(text: bytes, name: str) -> LightgbmReader:
    """Open a model by its text, as a pickled booster holds it.

    Raises:
        BadModelError: It is no model of LightGBM, or a damaged one.
    """
    return LightgbmReader(io.BytesIO(text), name)


class LightgbmReader(TreesReader):
    """Reads a LightGBM model's text.

    Args:
        source: A path, or a seekable binary file object.
        name: How errors call the file.

    Raises:
        BadModelError: The text is damaged, or was edited so that its trees do not lie where its header says.
    """

    format = FORMAT
    framework: str | None = "lightgbm"
    fields = (
        "feature", "threshold", "decision_type", "children", "categories",
        "value", "count", "linear_const", "linear_terms", "linear_coeff",
    )  # fmt: skip
    real = "F64"

    def __init__(self, source: Path | BinaryIO, name: str = "") -> None:
        super().__init__(source, name)
        try:
            if not matches(self._file):
                raise self._bad("does not begin with 'tree' and a version, expected the text of a LightGBM model")
            self._n_file_bytes = measure(self._file)
            header, start = self._read_header()
            ends = self._find_ends(header, start)
            self._list(self._read_outlines(start, ends))
            self.structure = flatten(self._describe(header, self._read_tail(ends[-1] if ends else start)))
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> tuple[dict[str, str], int]:
        """Give the header's members, and where the first tree begins."""
        text, at = b"", -1
        while at < 0:
            step = max(_WINDOW_BYTES, len(text))
            if len(text) == self._n_file_bytes or len(text) > MAX_TEXT_BYTES:
                raise self._bad(f"has no tree_sizes and empty line in {len(text)} bytes, expected a header with both")
            text += read_exactly(self._file, len(text), min(step, self._n_file_bytes - len(text)), self.name)
            sizes = text.find(b"\ntree_sizes=")
            at = text.find(b"\n\n", sizes + 1) if sizes >= 0 else -1
        return self._members(text[:at]), at + 2

    def _find_ends(self, header: dict[str, str], start: int) -> list[int]:
        sizes = header["tree_sizes"].split()
        if len(sizes) > MAX_TREES:
            raise self._bad(f"has {len(sizes)} trees, expected at most {MAX_TREES}")
        ends = []
        for number, size in enumerate(sizes):
            length = int(size) if re.fullmatch("[0-9]{1,12}", size) else 0
            if not 0 < length <= MAX_TREE_BYTES:
                raise self._bad(f"tree {number} has {quote(size)} bytes, expected 1 to {MAX_TREE_BYTES}")
            start += length
            if start > self._n_file_bytes:
                raise self._bad(f"ended early, found {self._n_file_bytes} of at least {start} bytes")
            ends.append(start)
        return ends

    def _read_outlines(self, start: int, ends: list[int]) -> list[Outline]:
        outlines: list[Outline] = []
        border = self._read_border(start)[1]
        for number, end in enumerate(ends):
            match = _BLOCK_START.match(border)
            if match is None or int(match[1]) != number or end - start < len(match[0]):
                raise self._bad(f"has {quote(border[:20])} at byte {start}, expected tree {number} there by tree_sizes")
            n_leaves = int(match[2])
            if not 0 < n_leaves <= MAX_LEAVES:
                raise self._bad(f"tree {number} has {n_leaves} leaves, expected 1 to {MAX_LEAVES}")
            last, border = self._read_border(end)
            outline = Outline(start, end, n_leaves - 1, n_leaves)
            if int(match[3]) or not _PLAIN_END.search(last[-(end - start) :]):
                arrays = self._arrays(number, outline)
                outline = outline._replace(
                    n_categories=len(arrays["categories"]),
                    n_models=len(arrays["linear_const"]),
                    n_terms=len(arrays["linear_coeff"]),
                )
            outlines.append(outline)
            start = end
        return outlines

    def _read_border(self, at: int) -> tuple[bytes, bytes]:
        begin = max(0, at - _BORDER_BYTES)
        text = read_exactly(self._file, begin, min(2 * _BORDER_BYTES, self._n_file_bytes - begin), self.name)
        return text[: at - begin], text[at - begin :]

    def _read_tail(self, start: int) -> str:
        n_bytes = self._n_file_bytes - start
        if n_bytes > MAX_TEXT_BYTES:
            raise self._bad(f"has {n_bytes} bytes after its trees, expected at most {MAX_TEXT_BYTES}")
        tail = self._decode(read_exactly(self._file, start, n_bytes, self.name))
        if not tail.startswith("end of trees\n"):
            raise self._bad(f"has {quote(tail[:40])} after its trees, expected 'end of trees'")
        return tail

    def _describe(self, header: dict[str, str], tail: str) -> dict[str, Any]:
        names = self._split(header.pop("feature_names", ""))
        ranges = self._split(header.pop("feature_infos", ""))
        sizes = header.pop("tree_sizes").split()
        del header["tree"]
        begin, end = tail.find("\nparameters:\n"), tail.find("\nend of parameters")
        if begin >= 0 > end:
            raise self._bad("has no 'end of parameters' after 'parameters:', expected both")
        lines = self._lines(tail[begin:end]) if begin >= 0 else []
        pairs = (line[1:-1].partition(": ") for line in lines if line.startswith("[") and line.endswith("]"))
        categories = re.search(r"^pandas_categorical:(.*)$", tail, re.MULTILINE)
        return {
            **header,
            "trees": len(sizes),
            "parameters": {key: value for key, _, value in pairs},
            "pandas_categorical": categories[1] if categories else "",
            "feature_names": names,
            "feature_infos": ranges,
        }

    def _load(self, number: int) -> Arrays:
        return self._arrays(number, self.outlines[number])

    def _arrays(self, number: int, outline: Outline) -> Arrays:
        """Read one tree's arrays, in canonical order."""
        import numpy as np

        def bad(finding: str) -> BadModelError:
            return self._bad(f"tree {number} {finding}")

        def read(key: str, length: int, kind: type[int] | type[float] = int) -> NDArray[Any]:
            return _parse(members.get(key, ""), key, length, kind, bad)

        members = self._members(
            read_exactly(self._file, outline.start, outline.end - outline.start, self.name).rstrip(b"\n")
        )
        n_splits, n_leaves = outline.n_splits, outline.n_leaves
        below = np.full(n_leaves, -1)
        left, right = (
            np.concatenate([np.where(c < 0, n_splits + ~c, c), below]) if n_splits else below
            for c in (read("left_child", n_splits), read("right_child", n_splits))
        )
        nodes = order_nodes(left, right, bad)
        splits, leaves = nodes.splits, nodes.leaves - n_splits
        if len(splits) != n_splits or (nodes.leaves < n_splits).any():
            raise bad(f"reaches {len(splits)} of its {n_splits} splits, expected all")
        kinds = read("decision_type", n_splits) if "decision_type" in members else np.zeros(n_splits, np.int64)
        thresholds = read("threshold", n_splits, float)
        is_categorical = kinds & _IS_CATEGORICAL != 0
        found = {
            "feature": read("split_feature", n_splits)[splits],
            "threshold": np.where(is_categorical, 0.0, thresholds)[splits],
            "decision_type": kinds[splits],
            "children": nodes.children,
            "categories": self._categories(members, np.flatnonzero(is_categorical), thresholds, nodes.numbers, bad),
            "value": read("leaf_value", n_leaves, float)[leaves],
            "count": read("leaf_count", n_leaves)[leaves]
            if members.get("leaf_count")
            else np.zeros(n_leaves, np.int64),
        }
        return {**found, **_read_linear(members, leaves, bad)}

    def _categories(
        self, members: dict[str, str], splits: NDArray[Any], thresholds: NDArray[Any], numbers: NDArray[Any], bad: _Bad
    ) -> NDArray[Any]:
        """Give the categories that go left: a set of bits for each categorical split, whose threshold is its number."""
        import numpy as np

        if not len(splits):
            return np.zeros((0, 2), np.int64)
        bounds = _parse(members.get("cat_boundaries", ""), "cat_boundaries", None, int, bad)
        words = _parse(members.get("cat_threshold", ""), "cat_threshold", None, int, bad)
        sets, n_sets = thresholds[splits], len(bounds) - 1
        if not (n_sets > 0 and bounds[0] == 0 and bounds[-1] == len(words) and (bounds[1:] >= bounds[:-1]).all()):
            raise bad(f"has cat_boundaries that do not fit {len(words)} words, expected ascending positions")
        if not ((sets >= 0) & (sets < n_sets)).all() or len(np.unique(sets)) < len(sets) or (words >> 32).any():
            raise bad("has categorical splits without a set of their own, expected one of 32-bit words for each")
        used = np.flatnonzero(words)
        if len(used) > MAX_WORDS:
            raise bad(f"lists categories in {len(used)} words, expected at most {MAX_WORDS}")
        owner = np.full(n_sets, -1)
        owner[sets.astype(np.int64)] = numbers[splits]
        of_word = np.searchsorted(bounds, used, side="right") - 1
        bits = np.unpackbits(words[used].astype("<u4").view("u1").reshape(-1, 4), axis=1, bitorder="little")
        word, bit = np.nonzero(bits)
        return sort_rows(owner[of_word[word]], (used[word] - bounds[of_word[word]]) * 32 + bit)

    def _members(self, text: bytes) -> dict[str, str]:
        pairs = (line.partition("=") for line in self._lines(self._decode(text)))
        return {key: value for key, _, value in pairs}

    def _lines(self, text: str) -> list[str]:
        if (n_lines := text.count("\n") + 1) > MAX_LINES:
            raise self._bad(f"has {n_lines} lines where {quote(text[:20])} begins, expected at most {MAX_LINES}")
        return text.split("\n")

    def _split(self, text: str) -> dict[str, str]:
        if (n_features := text.count(" ") + 1) > MAX_FEATURES:
            raise self._bad(f"has {n_features} features, expected at most {MAX_FEATURES}")
        return {str(i): word for i, word in enumerate(text.split(" "))}

    def _decode(self, text: bytes) -> str:
        try:
            return text.decode()
        except UnicodeDecodeError as err:
            raise self._bad(f"is no UTF-8 text ({quote(text[err.start : err.end])}), expected it") from err

    def _bad(self, finding: str) -> BadModelError:
        return BadModelError(f"{self.name}: {finding}", hint="fetch the file again, or save it again with LightGBM")


def _parse(text: str, key: str, length: int | None, kind: type[int] | type[float], bad: _Bad) -> NDArray[Any]:
    """Read a line of numbers."""
    import numpy as np

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            values = np.fromstring(text.strip() or "0", np.int64 if kind is int else np.float64, sep=" ")
    except (ValueError, DeprecationWarning) as err:
        raise bad(f"has {key}={quote(text)}, expected numbers") from err
    values = values[: len(values) if text.strip() else 0]
    if length is not None and len(values) != length:
        raise bad(f"has {len(values)} numbers in {key}, expected {length}")
    return values


def _read_linear(members: dict[str, str], leaves: NDArray[Any], bad: _Bad) -> Arrays:
    """Give the linear models in leaves, in canonical order; empty arrays where there are none."""
    import numpy as np

    if members.get("is_linear", "0") != "1":
        return {"linear_const": np.zeros(0), "linear_terms": np.zeros((0, 2), np.int64), "linear_coeff": np.zeros(0)}
    n_terms = _parse(members.get("num_features", ""), "num_features", len(leaves), int, bad)
    features = _parse(members.get("leaf_features", ""), "leaf_features", None, int, bad)
    coefficients = _parse(members.get("leaf_coeff", ""), "leaf_coeff", len(features), float, bad)
    if (n_terms < 0).any() or (n_terms > len(features)).any() or n_terms.sum() != len(features):
        raise bad(f"has {len(features)} leaf_features, expected as many as num_features says")
    owners = np.repeat(np.argsort(leaves), n_terms)
    order = np.lexsort((features, owners))
    return {
        "linear_const": _parse(members.get("leaf_const", ""), "leaf_const", len(leaves), float, bad)[leaves],
        "linear_terms": np.stack([owners, features], axis=1)[order],
        "linear_coeff": coefficients[order],
    }
