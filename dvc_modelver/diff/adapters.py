"""LoRA adapters: their factors are not unique, so what is compared is the product that they apply.

A layer of an adapter adds ``scale * B A`` to a weight W, with A of shape ``[r, in]`` and B of shape ``[out, r]``. Any
invertible ``[r, r]`` matrix between the two leaves the product as it is and changes both factors. Norms and dot
products of products follow from the factors alone: ``<B1 A1, B2 A2> = tr((B1^T B2) (A2 A1^T))``, so that no
``[out, in]`` matrix is made.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, equation 3.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dvc_modelver.fingerprint.estimate import Estimate, from_norms
from dvc_modelver.fingerprint.row import TensorRow
from dvc_modelver.tensors import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dvc_modelver.formats import Reader

MAX_CELLS = 1 << 23
"""Elements of the largest factor that is held."""

_FACTOR = re.compile(r"^(?P<layer>.+?)[._]lora(?:_(?P<one>A|B|down|up)|\.(?P<two>down|up))(?:\.[^.]+)?\.weight$")
_SIDES = {"A": "a", "down": "a", "B": "b", "up": "b"}
_WRAPPER = re.compile(r"^(base_model\.model\.)")


@dataclass(frozen=True)
class Layer:
    """One layer of an adapter.

    Attributes:
        name: What the names of its factors have in common.
        a: The factor of shape ``[r, in]`` (``[r, in, height, width]`` of a convolution).
        b: The factor of shape ``[out, r]``.
        scale: What the product is multiplied with; 1 where nothing says.
        is_scale_known: Whether something did.
    """

    name: str
    a: TensorRow
    b: TensorRow
    scale: float
    is_scale_known: bool

    @property
    def rank(self) -> int:
        """Columns of B, rows of A."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape ``[out, in]`` of the product, the axes of a convolution's kernel taken together."""
        return self.b.shape[0], self.a.numel // self.rank


def is_second_factor(name: str) -> bool:
    """Whether a name is that of a layer's factor B."""
    found = _FACTOR.match(name) if "lora" in name else None
    return found is not None and _SIDES[found["one"] or found["two"]] == "b"


def find_layers(rows: Iterable[TensorRow], structure: Mapping[str, Any]) -> dict[str, Layer]:
    """Give the layers of an adapter by name; none for any other model.

    Args:
        rows: All tensors, named as PEFT, diffusers or the Kohya scripts do.
        structure: Of the model: a folder's ``adapter_config.json`` says ``lora_alpha`` and ``r``.
    """
    factors: dict[str, dict[str, TensorRow]] = {}
    alphas: dict[str, float] = {}
    for row in rows:
        if found := _FACTOR.match(row.name):
            factors.setdefault(found["layer"], {})[_SIDES[found["one"] or found["two"]]] = row
        elif row.name.endswith(".alpha") and row.numel == 1 and row.min is not None:
            alphas[row.name.removesuffix(".alpha")] = row.min
    layers = {}
    for name, sides in sorted(factors.items()):
        a, b = sides.get("a"), sides.get("b")
        if a is None or b is None or len(a.shape) < 2 or len(b.shape) < 2:
            continue
        fits = 0 < a.shape[0] == b.numel // b.shape[0] if b.shape[0] else False
        if fits and max(a.numel, b.numel) <= MAX_CELLS:
            scale = _scale(a.shape[0], alphas.get(name), structure)
            layers[name] = Layer(name, a, b, 1.0 if scale is None else scale, scale is not None)
    return layers


def _scale(rank: int, alpha: float | None, structure: Mapping[str, Any]) -> float | None:
    if alpha is not None:
        return alpha / rank
    declared = structure.get("adapter_config.lora_alpha")
    if not isinstance(declared, int | float):
        return None
    return declared / (math.sqrt(rank) if structure.get("adapter_config.use_rslora") is True else rank)


def measure_product(old: Reader, first: Layer, new: Reader, second: Layer) -> Estimate:
    """Compare what two adapters apply to one layer; their ranks may differ. Exact.

    Raises:
        ValueError: The products have other shapes.
        BadModelError: A file is damaged.
    """
    if first.shape != second.shape:
        raise ValueError(f"products of shapes {first.shape} and {second.shape} cannot be compared")
    (a1, b1), (a2, b2) = _factors(old, first), _factors(new, second)
    aa = _dot(a1, b1, a1, b1) * first.scale**2
    bb = _dot(a2, b2, a2, b2) * second.scale**2
    ab = _dot(a1, b1, a2, b2) * first.scale * second.scale
    norms = math.sqrt(max(aa, 0.0)), math.sqrt(max(bb, 0.0))
    return from_norms(*norms, math.sqrt(max(aa + bb - 2 * ab, 0.0)), ab)


def _dot(a1: NDArray[Any], b1: NDArray[Any], a2: NDArray[Any], b2: NDArray[Any]) -> float:
    return float(((b1.T @ b2) * (a1 @ a2.T)).sum())


def _factors(reader: Reader, layer: Layer) -> tuple[NDArray[Any], NDArray[Any]]:
    a = _whole(reader, layer.a).reshape(layer.rank, -1)
    return a, _whole(reader, layer.b).reshape(-1, layer.rank)


def _whole(reader: Reader, row: TensorRow) -> NDArray[Any]:
    import numpy as np

    from dvc_modelver.diff.blocks import iter_numbers

    return np.concatenate([x.astype(np.float64) for x in iter_numbers(reader, spec_of(row))] or [np.empty(0)])


def spec_of(row: TensorRow) -> TensorSpec:
    """Give the tensor that a row describes."""
    return TensorSpec(row.name, row.dtype, row.shape)


def describe_adapters(old: Iterable[Layer], new: Iterable[Layer], n_targets: int, merged: Merged | None) -> str:
    """Give the sentence on adapters in a comparison; empty where neither side is one.

    Args:
        old: Layers of the old side.
        new: Layers of the new side.
        n_targets: Layers of the one adapter whose weights are in the other side.
        merged: What was measured of them.
    """
    sides = list(old), list(new)
    ranks = [_ranks(side) for side in sides]
    if all(sides):
        change = ranks[0] if ranks[0] == ranks[1] else f"{ranks[0]}, now {ranks[1]}"
        return f"LoRA adapters of rank {change}"
    if not any(sides):
        return ""
    name, layers, rank = ("old", sides[0], ranks[0]) if sides[0] else ("new", sides[1], ranks[1])
    fit = f"{n_targets} of its {len(layers)} layers fit the other side"
    text = f"the {name} side is a LoRA adapter of rank {rank}, {fit}"
    if merged is None or not n_targets:
        return text
    has = "has" if merged.is_merged else "does not have"
    of_scale = "" if merged.is_scale_known else ", where nothing says the scale"
    return f"{text}, which {has} it merged in (coefficient {merged.coefficient:.3g} +- {merged.error:.1g}{of_scale})"


def _ranks(layers: list[Layer]) -> str:
    found = sorted({layer.rank for layer in layers})
    return "" if not found else str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


@dataclass(frozen=True)
class Merged:
    """How much of an adapter's products is found in the weights of another model.

    Attributes:
        layers: Layers of the adapter whose weight is in the model, of the same shape.
        coefficient: Sum of ``<W, P>`` over sum of ``|P|^2`` with P the products: near 1 in a model that the adapter
            was merged into, near 0 in another.
        error: Standard error of it, were W and P not related.
        is_scale_known: Whether the coefficient is to be 1; else any that is not 0 will do.
    """

    layers: int
    coefficient: float
    error: float
    is_scale_known: bool = True

    @property
    def is_merged(self) -> bool:
        """Whether the products are there: the coefficient is 1 rather than 0, and the error tells the two apart."""
        if not self.is_scale_known:
            return abs(self.coefficient) > max(0.1, 5 * self.error)
        return self.error < 0.2 and abs(self.coefficient - 1) < 0.25


def find_targets(layers: Mapping[str, Layer], rows: Iterable[TensorRow]) -> dict[str, TensorRow]:
    """Give the weights of a whole model that the layers of an adapter are meant for: same name, same shape."""
    known = {row.name: row for row in rows}
    found = {}
    for name, layer in layers.items():
        plain = _WRAPPER.sub("", name)
        for candidate in (f"{plain}.weight", f"{plain.partition('.')[2]}.weight", f"model.{plain}.weight"):
            row = known.get(candidate)
            if row is not None and row.shape and (row.shape[0], row.numel // row.shape[0]) == layer.shape:
                found[name] = row
                break
    return found


def measure_merged(
    adapter: Reader, layers: Mapping[str, Layer], whole: Reader, targets: Mapping[str, TensorRow]
) -> Merged:
    """Look for an adapter's products in the weights of a whole model, one block of rows at a time.

    Raises:
        BadModelError: A file is damaged.
    """
    import numpy as np

    from dvc_modelver.diff.blocks import iter_numbers

    known = all(layers[name].is_scale_known for name in targets)
    dot = square = spread = 0.0
    for name, row in targets.items():
        a, b = _factors(adapter, layers[name])
        b = b * layers[name].scale
        columns, at, rest, norm = a.shape[1], 0, np.empty(0), 0.0
        for block in iter_numbers(whole, spec_of(row)):
            rest = np.concatenate([rest, block.astype(np.float64)])
            n_rows = rest.size // columns
            weights = rest[: n_rows * columns].reshape(n_rows, columns)
            dot += float(((b[at : at + n_rows] @ a) * weights).sum())
            norm += float((weights * weights).sum())
            at, rest = at + n_rows, rest[n_rows * columns :]
        own = _dot(a, b, a, b)
        square += own
        spread += own * norm / max(row.numel, 1)
    if not square:
        return Merged(len(targets), 0.0, math.inf, known)
    return Merged(len(targets), dot / square, math.sqrt(spread) / square, known)
