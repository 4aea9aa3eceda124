"""Graphs of versions: cycles, order, lanes and layers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from dvc_modelver.registry.graph import Key, Lanes, children_first, find_cycles, reach, reversed_edges
from dvc_modelver.registry.layout import lay_out

Graph = dict[Key, list[Key]]


def graph(**parents: str) -> Graph:
    """Give a graph of one-letter nodes: ``graph(a="", b="a", m="ba")``."""
    return {("m", node): [("m", p) for p in above] for node, above in parents.items()}


@st.composite
def histories(draw: st.DrawFn) -> Graph:
    n = draw(st.integers(1, 25))
    return {
        ("m", str(i)): [("m", str(p)) for p in draw(st.lists(st.integers(0, i - 1), max_size=3, unique=True))]
        if i
        else []
        for i in range(n)
    }


def drawn(parents: Graph, *, unicode: bool = True) -> list[str]:
    lanes = Lanes(unicode=unicode)
    lines = []
    for key in children_first(parents, lambda k: k):
        row = lanes.draw(key, parents[key], "*")
        lines += [row.at + key[1], *row.links]
    return lines


def test_a_cycle_is_closed_by_one_edge() -> None:
    assert find_cycles(graph(a="c", b="a", c="b", d="c")) == {(("m", "b"), ("m", "a"))}
    assert find_cycles(graph(a="a")) == {(("m", "a"), ("m", "a"))}
    assert find_cycles(graph(a="", b="a", c="a", d="bc")) == set()


def test_a_chain_of_ten_thousand_is_no_recursion() -> None:
    chain: Graph = {("m", f"{i:05}"): [("m", f"{i - 1:05}")] if i else [] for i in range(10_000)}
    assert find_cycles(chain) == set()
    assert children_first(chain, lambda k: k) == sorted(chain, reverse=True)
    assert len(reach([("m", "00000")], reversed_edges(chain))) == 10_000
    assert lay_out(chain).layers == 10_000


def test_lanes_are_drawn_as_git_log_draws_them() -> None:
    assert drawn(graph(a="", b="a", c="b")) == ["* c", "* b", "* a"]
    assert drawn(graph(a="", b="a", c="a", m="bc")) == ["* m", "├─╮", "│ * c", "* │ b", "├─╯", "* a"]
    assert drawn(graph(a="", b="a", c="b", d="ab", e="dc")) == [
        "* e", "├─╮", "│ * c", "* │ d", "├─┤", "│ * b", "├─╯", "* a",
    ]  # fmt: skip
    assert drawn(graph(a="", b="a", c="a", m="bc"), unicode=False) == ["* m", "|-\\", "| * c", "* | b", "|-/", "* a"]


@settings(max_examples=40)
@given(histories())
def test_children_come_before_their_parents(parents: Graph) -> None:
    order = children_first(parents, lambda k: int(k[1]))
    at = {key: i for i, key in enumerate(order)}
    assert sorted(order) == sorted(parents)
    assert all(at[child] < at[parent] for child, above in parents.items() for parent in above)


@settings(max_examples=40)
@given(histories(), st.booleans())
def test_each_version_has_one_mark_and_lines_lead_somewhere(parents: Graph, unicode: bool) -> None:
    lanes = Lanes(unicode=unicode)
    for key in children_first(parents, lambda k: int(k[1])):
        row = lanes.draw(key, parents[key], "*")
        assert row.at.count("*") == 1
        assert all(len(link.strip()) >= 3 for link in row.links)
        if not unicode:
            assert "".join([row.at, row.beside, *row.links]).isascii()
    assert not any(lanes._awaited)


@settings(max_examples=40)
@given(histories())
def test_parents_are_drawn_above_and_boxes_do_not_overlap(parents: Graph) -> None:
    layout = lay_out(parents)
    assert layout == lay_out(parents)
    for child, above in parents.items():
        assert all(layout.places[parent][1] < layout.places[child][1] for parent in above)
    for layer in range(layout.layers):
        columns = sorted(x for x, y in layout.places.values() if y == layer)
        assert all(b - a > 0.99 for a, b in pairwise(columns))
    assert min(x for x, _ in layout.places.values()) >= 0
    assert max(x for x, _ in layout.places.values()) <= layout.columns
