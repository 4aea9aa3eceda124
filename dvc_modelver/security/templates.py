"""Jinja templates, judged by what Jinja parses: a chat template formats messages, and needs no name it has to hide.

Jinja gives a template every attribute of every object, and from any object it is three attributes to the whole of
Python, all of names with an underscore in front (``__class__``). Some loaders forbid those; a scan cannot count on it.
So a template is safe where no such name can reach the places that look names up: they stand there as they are, or as
numbers, or are taken as they are from a literal or from the messages. A name that the template puts together is not
judged: it could be any.

Parsing compiles and runs nothing. Sources: ``nodes.py``, ``runtime.py``, ``filters.py`` and ``sandbox.py`` of Jinja
3.1; ``utils/chat_template_utils.py`` of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import TypeGuard

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from dvc_modelver.formats.base import quote

MAX_CHARS = 100_000
"""Of the templates of one file together, which bounds what parsing and following them may cost to two seconds; the
longest of 72 that people use has 19,574."""

_MAX_ROUNDS = 8
"""Of following values from one variable to the next."""

_REACHES = re.compile(r"_.*[^\W_].*|(?:ag|co|cr|f|func|gi|im|tb)_[a-z]+|mro", re.DOTALL)
"""Names through which functions, frames and classes give what they are made of (``gi_frame.f_builtins``)."""

_TRICKS = frozenset({"self", "lipsum", "cycler", "joiner"})
"""What Jinja gives every template, no chat needs, and hands over the environment."""

_GIVEN = frozenset({"available_tools", "documents", "messages", "tools"})
"""What the user gives; all else outside of the template may come from the model's own configuration."""

_COUNTERS = frozenset({"depth", "depth0", "first", "index", "index0", "last", "length", "revindex", "revindex0"})
_ATTRIBUTE_AT = {"attr": 0, "groupby": 0, "join": 1, "max": 1, "min": 1, "rejectattr": 0, "selectattr": 0, "sort": 2,
                 "sum": 0, "unique": 1}  # fmt: skip
"""Filters that look a name up, and which of their arguments it is; the keyword is ``attribute`` in all of them."""

_COUNTING_FILTERS = frozenset({"abs", "count", "float", "int", "length", "round"})
_CHOOSING_FILTERS = frozenset(
    {"batch", "d", "default", "dictsort", "first", "groupby", "items", "last", "list", "max", "min", "random",
     "reject", "rejectattr", "select", "selectattr", "slice", "sort", "unique"}
)  # fmt: skip
"""Filters that give some of what they are given, as it is."""
_CHOOSING_METHODS = frozenset({"copy", "get", "items", "keys", "values"})
_COUNTING_METHODS = frozenset({"count", "find", "index", "rfind"})
_CUTTING_METHODS = frozenset(
    {"lstrip", "partition", "removeprefix", "removesuffix", "rpartition", "rsplit", "rstrip", "split", "splitlines",
     "strip"}
)  # fmt: skip
_OTHER_METHODS = frozenset(
    {"capitalize", "endswith", "format", "isdigit", "join", "lower", "replace", "startswith", "title", "upper"}
)
"""Of texts: they change nothing that is there already."""
_METHODS_TO_KEEP = frozenset(
    {"add", "append", "center", "expandtabs", "extend", "format_map", "insert", "join", "ljust", "pop", "replace",
     "rjust", "setdefault", "translate", "update", "zfill"}
)  # fmt: skip
"""A template that takes one of these without calling it there could call it by any other name."""
_NUMERIC = (nodes.Div, nodes.FloorDiv, nodes.Pow, nodes.Neg, nodes.Pos, nodes.Not, nodes.Compare, nodes.Test)
_OUTSIDE = (nodes.Extends, nodes.FromImport, nodes.Import, nodes.Include)


class _Origin(IntEnum):
    """Where a value is from: the larger, the less can be said of the name it may be."""

    COUNTED = 0
    GIVEN = 1
    """Of what the user gives, or cut out of it."""
    TAKEN = 2
    """As it stands in a literal of the template, too."""
    BUILT = 3


_Value = nodes.Node | _Origin | str | None
"""What a name is bound to; a text means what another one is bound to."""


class _Generation(Extension):
    """``{% generation %}``, by which training marks what the model says."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=lineno)


_ENVIRONMENT = Environment(  # noqa: S701 - it only parses
    extensions=[_Generation, "jinja2.ext.do", "jinja2.ext.loopcontrols"]
)


def find_trick(text: str) -> str | None:
    """Say what in a template may reach beyond formatting; None where nothing does.

    Args:
        text: The template, of at most `MAX_CHARS`.
    """
    try:
        template = _ENVIRONMENT.parse(text)
        return next(_Template(template).iter_tricks(), None)
    except TemplateError as err:
        return f"that Jinja cannot parse ({quote(err.message or '')})"
    except ValueError:
        return "with a number that Jinja cannot parse"
    except RecursionError:
        return "nested too deeply to be judged"


class _Template:
    """One template: which names are bound where, and to what."""

    def __init__(self, template: nodes.Template) -> None:
        self._nodes = list(_iter_nodes([template]))
        self._calls = [node for node in self._nodes if isinstance(node, nodes.Call)]
        self._macros = {node.name for node in self._nodes if isinstance(node, nodes.Macro)}
        self._bound: dict[str, list[_Value]] = {}
        self._inside: set[int] = set()  # uses of names that are surely bound in the template
        self._origins: dict[str, _Origin] = {}
        self._is_poisoned = False
        self._bind_arguments()
        self._walk(template.body, set())
        self._follow()

    def iter_tricks(self) -> Iterator[str]:
        """Give what the template does that no chat template has to."""
        for node in self._nodes:
            name = self._find_name(node)
            if name is not None:
                yield f"with {quote(name)}, which a chat does not need"
            elif self._is_computed(node):
                yield "that looks up a name it computes"

    # What stands there

    def _find_name(self, node: nodes.Node) -> str | None:
        match node:
            case nodes.Getattr(attr=name) | nodes.NSRef(attr=name) if _REACHES.fullmatch(name):
                return str(name)
            case nodes.Name(name=name, ctx="load") if id(node) not in self._inside:
                return str(name) if name in _TRICKS or _REACHES.fullmatch(name) else None
            case nodes.Const(value=str() as text):
                return text if any(map(_REACHES.fullmatch, text.split("."))) else None
            case nodes.Block(name=name) if _REACHES.fullmatch(name):
                return str(name)
        return type(node).__name__.lower() if isinstance(node, _OUTSIDE) else None

    def _is_computed(self, node: nodes.Node) -> bool:
        match node:
            case nodes.Getitem(arg=key):
                return not self._is_plain_key(key)
            case nodes.Filter(name=name):
                return self._is_computed_filter(str(name), node.args, node)
            case nodes.Call(node=nodes.Getattr(node=owner, attr="format" | "format_map")):
                return not (isinstance(owner, nodes.Const) and "_" not in str(owner.value))
        return False

    def _is_plain_key(self, key: nodes.Node) -> bool:
        if isinstance(key, nodes.Slice | nodes.Sub):
            return True  # no text comes of either
        return self._origin(key) is not _Origin.BUILT

    def _is_computed_filter(self, name: str, args: list[nodes.Expr], node: nodes.Filter) -> bool:
        by_name = {str(pair.key): pair.value for pair in node.kwargs}
        if name in ("map", "select", "reject") and args:  # by the name of a filter, or of a test, which is harmless
            if name != "map":
                return False
            inner = args[0].value if isinstance(args[0], nodes.Const) else None
            return not isinstance(inner, str) or self._is_computed_filter(inner, args[1:], node)
        if name not in _ATTRIBUTE_AT and name != "map":
            return False
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            return True
        at = _ATTRIBUTE_AT.get(name)
        looked_up = [by_name[key] for key in ("attribute", "name") if key in by_name]
        looked_up += args[at : at + 1] if at is not None else []
        return not all(isinstance(value, nodes.Const) for value in looked_up)

    # Scopes

    def _walk(self, statements: Iterable[nodes.Node], bound: set[str]) -> None:
        """Note what each name is bound to, and which uses of one may mean a name from outside of the template.

        Args:
            statements: In their order.
            bound: Names that are surely bound here; those bound by these statements are added.
        """
        for statement in statements:
            match statement:
                case nodes.For():
                    self._use([statement.iter], bound)
                    inside = {*bound, *self._bind(statement.target, statement.iter), "loop"}
                    if statement.recursive:
                        self._bind(statement.target, _Origin.BUILT)
                    self._use([statement.test], inside)
                    self._walk(statement.body, inside)
                    self._walk(statement.else_, set(bound))
                case nodes.If():
                    self._walk_if(statement, bound)
                case nodes.Macro() | nodes.CallBlock():
                    self._walk_macro(statement, bound)
                case nodes.With():
                    self._use(statement.values, bound)
                    pairs = zip(statement.targets, statement.values, strict=True)
                    inside = {name for target, value in pairs for name in self._bind(target, value)}
                    self._walk(statement.body, bound | inside)
                case nodes.Assign():
                    self._use([statement.node, *_iter_owners(statement.target)], bound)
                    bound |= self._bind(statement.target, statement.node)
                case nodes.AssignBlock():
                    self._use([statement.filter, *_iter_owners(statement.target)], bound)
                    self._walk(statement.body, set(bound))
                    bound |= self._bind(statement.target, _Origin.BUILT)
                case nodes.FilterBlock():
                    self._use([statement.filter], bound)
                    self._walk(statement.body, set(bound))
                case nodes.Block():
                    self._walk(statement.body, set())  # may be called from anywhere
                case nodes.Scope():
                    self._walk(statement.body, set(bound))
                case _:
                    self._use([statement], bound)

    def _walk_if(self, statement: nodes.If, bound: set[str]) -> None:
        ends = []
        for branch in (statement, *statement.elif_):
            self._use([branch.test], bound)
            inside = set(bound)
            self._walk(branch.body, inside)
            ends.append(inside)
        inside = set(bound)
        self._walk(statement.else_, inside)
        bound |= set.intersection(inside, *ends)

    def _walk_macro(self, macro: nodes.Macro | nodes.CallBlock, bound: set[str]) -> None:
        self._use(macro.defaults, bound)
        given: str | _Origin = _Origin.BUILT
        if isinstance(macro, nodes.CallBlock):
            self._use([macro.call], bound)
        else:
            bound.add(macro.name)
            self._bound.setdefault(macro.name, []).append(_Origin.BUILT)
            given = f"{macro.name}()"
        inside = bound - {"caller", "kwargs", "varargs"}
        for parameter in macro.args:
            inside |= self._bind(parameter, given)
        for parameter, value in zip(reversed(macro.args), reversed(macro.defaults), strict=False):
            self._bind(parameter, value)
        self._walk(macro.body, inside)

    def _bind_arguments(self) -> None:
        """Note what macros are given: the arguments of their calls; anything where a macro is not only called."""
        called = set()
        for call in self._calls:
            if isinstance(call.node, nodes.Name):
                called.add(id(call.node))
                self._bound.setdefault(f"{call.node.name}()", []).extend(_iter_arguments(call))
        for node in self._nodes:
            if isinstance(node, nodes.Name) and node.ctx == "load" and id(node) not in called:
                self._bound[f"{node.name}()"] = [_Origin.BUILT]

    def _use(self, expressions: Iterable[nodes.Node | None], bound: set[str]) -> None:
        for node in _iter_nodes([expression for expression in expressions if expression is not None]):
            if isinstance(node, nodes.Name) and node.name in bound:
                self._inside.add(id(node))

    def _bind(self, target: nodes.Node, value: _Value) -> set[str]:
        names = set()
        for node in _iter_nodes([target]):
            if isinstance(node, nodes.Name):
                names.add(node.name)
                self._bound.setdefault(node.name, []).append(value)
            elif isinstance(node, nodes.NSRef):
                self._bound.setdefault(f".{node.attr}", []).append(value)
        for pair in value.kwargs if _is_namespace(value) else ():
            self._bound.setdefault(f".{pair.key}", []).append(pair.value)
        return names

    # Origins of values

    def _follow(self) -> None:
        """Find the origin of every variable, until no more is found."""
        changers = [call for call in self._calls if self._may_change(call)]
        keeps = self._keeps_methods()
        for _ in range(_MAX_ROUNDS):
            found = {name: self._worst(values) for name, values in self._bound.items()}
            given = (value for call in changers for value in _iter_arguments(call))
            is_poisoned = keeps or self._worst(given) is _Origin.BUILT
            if found == self._origins and is_poisoned == self._is_poisoned:
                return
            self._origins, self._is_poisoned = found, is_poisoned
        self._is_poisoned = True

    def _may_change(self, call: nodes.Call) -> bool:
        """Whether a call may put its arguments into its object: ``append``, ``update``..."""
        if isinstance(call.node, nodes.Name):
            name = call.node.name
            return name == "loop" or self._bound.get(name, [_Origin.BUILT]) != [_Origin.BUILT]
        known = _CUTTING_METHODS | _CHOOSING_METHODS | _COUNTING_METHODS | _OTHER_METHODS
        return not (isinstance(call.node, nodes.Getattr) and call.node.attr in known)

    def _keeps_methods(self) -> bool:
        called = {id(call.node) for call in self._calls}
        for node in self._nodes:
            match node:
                case nodes.Getattr(attr=name) if id(node) not in called and name in _METHODS_TO_KEEP:
                    return True
                case nodes.Const(value=str() as name) if not _METHODS_TO_KEEP.isdisjoint(name.split(".")):
                    return True
        return False

    def _origin(self, value: _Value) -> _Origin:
        """Say where a value is from; of a container, where what it holds is from."""
        if value is None:
            return _Origin.COUNTED
        if isinstance(value, _Origin):
            return value
        origin = self._origins.get(value, _Origin.COUNTED) if isinstance(value, str) else self._find_origin(value)
        return _Origin.BUILT if origin is not _Origin.COUNTED and self._is_poisoned else origin

    def _worst(self, values: Iterable[_Value]) -> _Origin:
        return max(map(self._origin, values), default=_Origin.COUNTED)

    def _find_origin(self, value: nodes.Node) -> _Origin:
        match value:
            case nodes.Const():
                return _Origin.TAKEN if isinstance(value.value, str) else _Origin.COUNTED
            case nodes.Name():
                return self._origin_of_name(value)
            case nodes.Getattr():
                return self._origin_of_attribute(value)
            case nodes.Getitem(arg=nodes.Slice()):
                return _cut(self._origin(value.node))
            case nodes.Getitem():
                return self._origin(value.node)
            case nodes.Filter():
                return self._origin_of_filter(value)
            case nodes.Call():
                return self._origin_of_call(value)
            case nodes.Mod():
                return _Origin.COUNTED if self._origin(value.left) is _Origin.COUNTED else _Origin.BUILT
            case nodes.Sub():
                return min(self._origin(value.left), self._origin(value.right))  # sets, or numbers
            case nodes.Add() | nodes.Mul() | nodes.Concat():
                parts = value.nodes if isinstance(value, nodes.Concat) else [value.left, value.right]
                is_list = any(isinstance(part, nodes.List | nodes.Tuple) for part in parts)
                origin = self._worst(parts)
                return origin if is_list or origin is _Origin.COUNTED else _Origin.BUILT
            case nodes.And() | nodes.Or():
                return self._worst([value.left, value.right])
            case nodes.CondExpr():
                return self._worst([value.expr1, value.expr2])
            case nodes.List() | nodes.Tuple():
                return self._worst(value.items)
            case nodes.Dict():
                return self._worst(part for pair in value.items for part in (pair.key, pair.value))
        return _Origin.COUNTED if isinstance(value, _NUMERIC) else _Origin.BUILT

    def _origin_of_name(self, value: nodes.Name) -> _Origin:
        bound = self._origins.get(value.name, _Origin.COUNTED)
        if id(value) in self._inside:
            return bound if value.name in self._bound else _Origin.BUILT
        return max(bound, _Origin.GIVEN if value.name in _GIVEN else _Origin.BUILT)

    def _origin_of_attribute(self, value: nodes.Getattr) -> _Origin:
        owner = value.node
        if isinstance(owner, nodes.Name) and id(owner) in self._inside:
            if owner.name == "loop" and "loop" not in self._bound:
                return _Origin.COUNTED if value.attr in _COUNTERS else _Origin.BUILT
            if "namespace" not in self._bound and all(map(_is_namespace, self._bound.get(owner.name, [None]))):
                return self._origins.get(f".{value.attr}", _Origin.COUNTED)
        return self._origin(owner)

    def _origin_of_filter(self, value: nodes.Filter) -> _Origin:
        if value.name in _COUNTING_FILTERS:
            return self._worst([*value.args, *(pair.value for pair in value.kwargs)])  # int has a default
        if value.name == "trim" and not value.args:
            return _cut(self._origin(value.node))
        by_name = [pair.value for pair in value.kwargs]
        if value.name in _CHOOSING_FILTERS and value.node is not None and not value.dyn_args and not value.dyn_kwargs:
            return self._worst([value.node, *value.args, *by_name])
        if value.name == "map" and not value.args:
            return self._worst([value.node, *by_name])
        return _Origin.BUILT

    def _origin_of_call(self, value: nodes.Call) -> _Origin:
        if value.dyn_args is not None or value.dyn_kwargs is not None:
            return _Origin.BUILT
        match value.node:
            case nodes.Name(name="range") if "range" not in self._bound:
                return _Origin.COUNTED
            case nodes.Name(name="dict") if "dict" not in self._bound:
                return self._worst(_iter_arguments(value))
            case nodes.Getattr(node=owner, attr=method) if method in _CUTTING_METHODS:
                return _cut(self._origin(owner))
            case nodes.Getattr(attr=method) if method in _COUNTING_METHODS and not self._is_poisoned:
                return _Origin.COUNTED
            case nodes.Getattr(node=owner, attr=method) if method in _CHOOSING_METHODS:
                return self._worst([owner, *_iter_arguments(value)])
        return _Origin.BUILT


def _iter_nodes(roots: list[nodes.Node]) -> Iterator[nodes.Node]:
    """Give nodes and all below them; deep trees, too."""
    todo = list(reversed(roots))
    while todo:
        node = todo.pop()
        yield node
        todo.extend(node.iter_child_nodes())


def _iter_owners(target: nodes.Node) -> Iterator[nodes.Node]:
    """Give the names of namespaces that an assignment changes."""
    for node in _iter_nodes([target]):
        if isinstance(node, nodes.NSRef):
            yield nodes.Name(node.name, "load")


def _iter_arguments(call: nodes.Call) -> Iterator[_Value]:
    yield from call.args
    yield from (pair.value for pair in call.kwargs)
    if call.dyn_args is not None or call.dyn_kwargs is not None:
        yield _Origin.BUILT


def _is_namespace(value: _Value) -> TypeGuard[nodes.Call]:
    if not isinstance(value, nodes.Call) or value.args or value.dyn_args is not None or value.dyn_kwargs is not None:
        return False
    return isinstance(value.node, nodes.Name) and value.node.name == "namespace"


def _cut(origin: _Origin) -> _Origin:
    """Give the origin of a piece: one of a literal may be what the literal hides."""
    return origin if origin <= _Origin.GIVEN else _Origin.BUILT
