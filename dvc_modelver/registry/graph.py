"""Graphs of versions: which way is back, what is reached, in what order it is told, in which lane it is drawn.

Nodes are pairs of texts; `parents` gives each node's parents, first one first. Nothing recurses here, since a
history may be a chain of ten thousand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Key = tuple[str, str]
"""A node; of a version, the model's name and the md5."""


def find_cycles(parents: Mapping[Key, Sequence[Key]]) -> set[tuple[Key, Key]]:
    """Give the edges (child, parent) that close a cycle: without them the rest has none.

    Nodes are looked at in the order of `parents`, so the same graph gives the same edges.
    """
    closing: set[tuple[Key, Key]] = set()
    done: set[Key] = set()
    for start in parents:
        if start in done:
            continue
        open_ = {start}
        path: list[tuple[Key, Iterator[Key]]] = [(start, iter(parents[start]))]
        while path:
            node, rest = path[-1]
            parent = next(rest, None)
            if parent is None:
                path.pop()
                open_.discard(node)
                done.add(node)
            elif parent in open_:
                closing.add((node, parent))
            elif parent not in done and parent in parents:
                open_.add(parent)
                path.append((parent, iter(parents[parent])))
    return closing


def reach(starts: Iterable[Key], edges: Mapping[Key, Iterable[Key]]) -> set[Key]:
    """Give the nodes that edges lead to from some nodes, these included."""
    found = set(starts)
    todo = list(found)
    while todo:
        for other in edges.get(todo.pop(), ()):
            if other not in found:
                found.add(other)
                todo.append(other)
    return found


def reversed_edges(parents: Mapping[Key, Iterable[Key]]) -> dict[Key, list[Key]]:
    """Give each node's children."""
    found: dict[Key, list[Key]] = {node: [] for node in parents}
    for child, above in parents.items():
        for parent in above:
            found.setdefault(parent, []).append(child)
    return found


def children_first(parents: Mapping[Key, Sequence[Key]], age: Callable[[Key], Any]) -> list[Key]:
    """Give the nodes of a graph without cycles, children before parents, one line of descent after another.

    Args:
        parents: The graph.
        age: What nodes are sorted by where the graph leaves it open; those that are greatest come first.
    """
    waiting = dict.fromkeys(parents, 0)
    for above in parents.values():
        for parent in dict.fromkeys(above):
            if parent in waiting:
                waiting[parent] += 1
    ready = sorted((node for node, n in waiting.items() if not n), key=age)
    found = []
    while ready:
        node = ready.pop()
        found.append(node)
        for parent in dict.fromkeys(parents[node]):
            if parent in waiting:
                waiting[parent] -= 1
                if not waiting[parent]:
                    ready.append(parent)
    return found


@dataclass(frozen=True)
class Row:
    """One node as `git log --graph` would draw it.

    Attributes:
        at: What stands before the node's first line.
        beside: What stands before its further lines.
        links: Lines below it, which lead to lanes of further parents.
    """

    at: str
    beside: str
    links: tuple[str, ...]


@dataclass(frozen=True)
class _Pen:
    line: str
    dash: str
    cross: str
    opens: tuple[str, str]
    """A lane that begins below, to the left and to the right of the node."""
    closes: tuple[str, str]
    """The node's own lane ends, and leads to one to its left, to its right."""
    leaves: tuple[str, str]
    """A lane that goes on, touched from its left, from its right."""


_UNICODE = _Pen("│", "─", "┼", ("╭", "╮"), ("╯", "╰"), ("┤", "├"))
_ASCII = _Pen("|", "-", "|", ("/", "\\"), ("/", "\\"), ("|", "|"))


class Lanes:
    """Draws nodes from the newest to the oldest, each line of descent in a column."""

    def __init__(self, *, unicode: bool = True) -> None:
        self._pen = _UNICODE if unicode else _ASCII
        self._awaited: list[Key | None] = []

    def draw(self, node: Key, parents: Sequence[Key], mark: str) -> Row:
        """Give the next node's row; its children were drawn before it.

        Args:
            node: The node.
            parents: Those that will be drawn later.
            mark: One character that stands for it.
        """
        lanes = self._awaited
        column = lanes.index(node) if node in lanes else self._free(0)
        lanes[column] = node
        at = self._line({column: mark})
        wanted = list(dict.fromkeys(parents))
        new = [p for p in wanted if p not in lanes]
        known = [p for p in wanted if p in lanes and p not in new]
        lanes[column] = new[0] if new else None
        beside = self._line({} if parents else {column: " "}, through=column if parents else None)
        links = []
        for parent in known:
            to = lanes.index(parent)
            ends = lanes[column] is None and to > column  # the lane to the left goes on
            if ends:
                lanes[column], lanes[to] = parent, None
            links.append(self._link(column, to, "ends" if ends else "joins"))
        for parent in new[1:]:
            to = self._free(column + 1)
            links.append(self._link(column, to, "opens"))
            lanes[to] = parent
        while lanes and lanes[-1] is None:
            lanes.pop()
        return Row(at, beside, tuple(links))

    def _free(self, start: int) -> int:
        for i in range(start, len(self._awaited)):
            if self._awaited[i] is None:
                return i
        self._awaited.append(None)
        return len(self._awaited) - 1

    def _line(self, marks: Mapping[int, str], through: int | None = None) -> str:
        pen = self._pen
        cells = [
            marks.get(i, pen.line if lane is not None or i == through else " ") for i, lane in enumerate(self._awaited)
        ]
        return " ".join(cells).rstrip() + " "

    def _link(self, column: int, to: int, how: str) -> str:
        """Draw a line from a lane to another one, which `opens`, `joins` in, or `ends` here."""
        pen, right = self._pen, to > column
        goes_on = self._awaited[column] is not None
        at_end = {"opens": pen.opens, "joins": pen.leaves[::-1], "ends": pen.closes[::-1]}[how][right]
        cells = []
        for i, lane in enumerate(self._awaited):
            inside = min(column, to) < i < max(column, to)
            if i == column:
                cells.append(pen.leaves[right] if goes_on else pen.closes[right])
            elif i == to:
                cells.append(at_end)
            elif inside:
                cells.append(pen.dash if lane is None else pen.cross)
            else:
                cells.append(" " if lane is None else pen.line)
            cells.append(pen.dash if min(column, to) <= i < max(column, to) else " ")
        return "".join(cells).rstrip()
