"""Where the nodes of a graph are drawn: in layers, parents above children.

Source: Sugiyama, Tagawa and Toda, "Methods for Visual Understanding of Hierarchical System Structures", IEEE Trans.
SMC 11(2), 1981: layers by the longest way from a root, stand-ins where an edge passes a layer, order by the mean
position of the neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dvc_modelver.registry.graph import Key, children_first, reversed_edges

SWEEPS = 6
"""Times that the layers are put into order, downwards and upwards in turn."""
MAX_STAND_INS = 4_000
"""Edges that would need more pass straight through other layers."""
_STAND_IN = "\0"
"""Stands where a version has its model's name, which never is this."""


@dataclass(frozen=True)
class Layout:
    """A drawn graph.

    Attributes:
        places: Column (a number that need not be whole) and layer of each node, both from 0.
        bends: Places that the edge (child, parent) passes, from the parent's side.
        columns: Width of the drawing, in columns.
        layers: Its height.
    """

    places: Mapping[Key, tuple[float, int]]
    bends: Mapping[tuple[Key, Key], tuple[tuple[float, int], ...]]
    columns: float
    layers: int


def lay_out(parents: Mapping[Key, Sequence[Key]]) -> Layout:
    """Place the nodes of a graph without cycles; the same graph gives the same drawing."""
    layer_of: dict[Key, int] = {}
    order = children_first(parents, lambda key: key)
    for key in reversed(order):
        layer_of[key] = 1 + max((layer_of[p] for p in parents[key]), default=-1)
    above, passed = _with_stand_ins(parents, layer_of)
    below = reversed_edges(above)
    layers: list[list[Key]] = [[] for _ in range(1 + max(layer_of.values(), default=-1))]
    for key in [*reversed(order), *(k for k in above if k not in parents)]:
        layers[layer_of[key]].append(key)
    for sweep in range(SWEEPS):
        _order(layers if sweep % 2 == 0 else layers[::-1], above if sweep % 2 == 0 else below)
    x = {key: float(i) for layer in layers for i, key in enumerate(layer)}
    for sweep in range(SWEEPS):
        for layer in layers if sweep % 2 else layers[::-1]:
            _straighten(layer, x, above if sweep % 2 else below)
    left = min(x.values(), default=0.0)
    places = {key: (round(x[key] - left, 3), layer_of[key]) for key in x}
    bends = {edge: tuple(places[key] for key in keys) for edge, keys in passed.items()}
    width = max((column for column, _ in places.values()), default=-1.0) + 1
    return Layout({key: places[key] for key in parents}, bends, width, len(layers))


def _with_stand_ins(
    parents: Mapping[Key, Sequence[Key]], layer_of: dict[Key, int]
) -> tuple[dict[Key, list[Key]], dict[tuple[Key, Key], list[Key]]]:
    """Give the graph with a node in each layer that an edge passes, and those nodes of each edge."""
    found: dict[Key, list[Key]] = {key: [] for key in parents}
    passed: dict[tuple[Key, Key], list[Key]] = {}
    count = 0
    for child, above in parents.items():
        for parent in above:
            before = parent
            between = range(layer_of[parent] + 1, layer_of[child])
            if count + len(between) <= MAX_STAND_INS:
                for layer in between:
                    count += 1
                    stand_in = (_STAND_IN, f"{count:06d}")
                    layer_of[stand_in] = layer
                    found[stand_in] = [before]
                    passed.setdefault((child, parent), []).append(stand_in)
                    before = stand_in
            found[child].append(before)
    return found, passed


def _order(layers: Sequence[list[Key]], neighbours: Mapping[Key, Sequence[Key]]) -> None:
    at = {key: i for layer in layers for i, key in enumerate(layer)}
    for layer in layers:
        middle = {
            key: sum(at[n] for n in neighbours[key]) / len(neighbours[key]) if neighbours[key] else float(at[key])
            for key in layer
        }
        layer.sort(key=middle.__getitem__)
        at.update({key: i for i, key in enumerate(layer)})


def _straighten(layer: Sequence[Key], x: dict[Key, float], neighbours: Mapping[Key, Sequence[Key]]) -> None:
    """Move the nodes of a layer towards their neighbours, one column apart at least, in the order they have."""
    wanted = [sum(x[n] for n in neighbours[k]) / len(neighbours[k]) if neighbours[k] else x[k] for k in layer]
    blocks: list[list[float]] = []  # of nodes that touch: sum of what they want less their place in it, and how many
    for want in wanted:
        blocks.append([want, 1.0])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] + blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, n = blocks.pop()
            before, m = blocks[-1]
            blocks[-1] = [before + total - n * m, m + n]
    keys = iter(layer)
    for total, n in blocks:
        for i in range(int(n)):
            x[next(keys)] = total / n + i
