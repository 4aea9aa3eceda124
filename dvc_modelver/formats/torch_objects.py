"""Names for the tensors of a PyTorch file, as its users know them, and what else the file says.

A ``state_dict`` keeps its keys; nesting is joined with dots (``model.fc.weight``, ``optimizer.state.0.exp_avg``). A
whole module that was pickled gives the names of its ``state_dict()``.

Source: ``torch/nn/modules/module.py`` (``_save_to_state_dict``), ``torch/optim/optimizer.py`` (``state_dict``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import quote
from dvc_modelver.formats.pickles import Call, Global, Span
from dvc_modelver.formats.torch_container import HINT, Storage, demangle
from dvc_modelver.formats.torch_dtypes import RESEMBLING
from dvc_modelver.formats.torch_tensors import (
    Absent,
    Parsed,
    Several,
    TensorParser,
    View,
    find_numpy_scalar,
    find_subclass,
    unwrap,
)
from dvc_modelver.tensors import find_role

MAX_OBJECTS = 250_000
"""Tensors, scalars and containers; of a list of scalars each sixteenth; a long name counts as several."""

MAX_NESTING = 100
MAX_NAME_CHARS = 2_000

_SCALARS = (str, bytes, int, float, complex, Global, Span, type(None))


class Walk:
    """Walks the objects of a file once, and collects.

    Args:
        name: How errors call the file.

    Attributes:
        views: Tensors by name.
        facts: What else was found, by name: scalars, classes, tensors without values.
    """

    def __init__(self, name: str) -> None:
        self.views: dict[str, View] = {}
        self.facts: dict[str, object] = {}
        self._name = name
        self._parser = TensorParser(name)
        self._n_objects = 0
        self._open: set[int] = set()

    def add(self, prefix: str, root: object) -> None:
        """Collect what an object holds; names begin with `prefix`.

        Raises:
            BadModelError: A tensor cannot be what the file says, or objects are too many or too deep.
        """
        self._visit(prefix, root)

    def _bad(self, finding: str) -> BadModelError:
        return BadModelError(f"{self._name}: {finding}", hint=HINT)

    def _count(self, n_objects: int) -> None:
        self._n_objects += n_objects
        if self._n_objects > MAX_OBJECTS:
            raise self._bad(f"holds over {MAX_OBJECTS} objects, expected fewer")

    def _visit(self, name: str, value: object) -> None:
        self._count(1)
        if isinstance(value, _SCALARS):
            self._note(name, _describe_scalar(value))
            return
        parsed = self._parser.parse(value)
        if parsed is not None:
            self._add_tensor(name, parsed)
            return
        if id(value) in self._open:
            return
        if len(self._open) >= MAX_NESTING:
            raise self._bad(f"nests objects deeper than {MAX_NESTING} at {quote(name)}, expected less")
        self._open.add(id(value))
        try:
            self._visit_members(name, value)
        finally:
            self._open.discard(id(value))

    def _visit_members(self, name: str, value: object) -> None:
        if isinstance(value, dict):
            self._visit_mapping(name, value)
        elif isinstance(value, list | tuple | set | frozenset):
            self._visit_sequence(name, value)
        elif isinstance(value, Call):
            self._visit_object(name, value)
        else:
            self._note(name, quote(value))

    def _visit_mapping(self, name: str, members: Mapping[object, object] | Mapping[str, object]) -> None:
        if "state" in members and "param_groups" in members and find_role(_join(name, "state.0")) != "optimizer":
            name = _join("optimizer", name)
        if not members:
            self._note(name, {})
        for key, member in _named(members):
            self._visit(_join(name, key), member)

    def _visit_sequence(self, name: str, members: list[object] | tuple[object, ...] | Iterable[object]) -> None:
        items = list(members)
        if all(isinstance(item, _SCALARS) for item in items):
            self._count(len(items) // 16)
            self._note(name, [_describe_scalar(item) for item in items])
            return
        for i, item in enumerate(items):
            self._visit(_join(name, str(i)), item)

    def _visit_object(self, name: str, made: Call) -> None:
        inner, subclass = unwrap(made), find_subclass(made)
        if inner is not made:
            self._visit(name, inner)
            return
        if subclass is not None:
            # A tensor whose values are other tensors', its attributes.
            self._note(_join(name, "__class__"), subclass[1])
            self._visit(name, subclass[2])
            return
        number = find_numpy_scalar(made)
        if number is not None:
            self._note(name, number)
            return
        attributes = made.attributes()
        parameters, modules = attributes.get("_parameters"), attributes.get("_modules")
        if isinstance(parameters, dict) and isinstance(modules, dict):
            self._visit_module(name, made, attributes)
            return
        if not (attributes or made.states or made.items or made.pairs) and all(
            isinstance(arg, _SCALARS) for arg in made.args
        ):
            self._note(name, f"{made.name}({', '.join(quote(arg) for arg in made.args[:4])})")
            return
        self._note(_join(name, "__class__"), _class_of(made))
        if made.name.startswith("__torch__."):
            # Each module of a TorchScript archive says these again.
            attributes = {k: v for k, v in attributes.items() if k not in ("training", "_is_full_backward_hook")}
        if attributes:
            self._visit_mapping(name, attributes)
        for state in made.states if not attributes else ():
            self._visit(name, state)
        if made.pairs:
            self._visit_mapping(name, dict(_hashable(made.pairs)))
        if made.items:
            self._visit_sequence(name, made.items)
        elif not made.states and not made.pairs:
            self._visit_sequence(name, made.args)

    def _visit_module(self, name: str, module: Call, attributes: Mapping[str, object]) -> None:
        self._note(_join(name, "__class__"), _class_of(module))
        hidden = attributes.get("_non_persistent_buffers_set")
        hidden = hidden if isinstance(hidden, set | frozenset) else ()
        for kind in ("_parameters", "_buffers", "_modules"):
            members = attributes.get(kind)
            for key, member in _named(members if isinstance(members, dict) else {}):
                if member is None:
                    continue
                if kind == "_buffers" and key in hidden:
                    self._note_unlisted(_join(name, key), member)
                else:
                    self._visit(_join(name, key), member)
        for key, member in _named(attributes):
            if not key.startswith("_") and isinstance(member, _SCALARS) and (key != "training" or not name):
                self._visit(_join(name, key), member)
            elif isinstance(member, Call | Storage):
                self._note_unlisted(_join(name, key), member)

    def _note_unlisted(self, name: str, value: object) -> None:
        # In the file, but not among what `state_dict()` gives.
        parsed = self._parser.parse(value)
        if isinstance(parsed, View):
            self._note(f"unlisted.{name}", f"{parsed.dtype} {list(parsed.shape)}")

    def _note(self, name: str, value: object) -> None:
        self.facts[self._free(name or "value", self.facts)] = value

    def _add_tensor(self, name: str, parsed: Parsed) -> None:
        if isinstance(parsed, View):
            name = self._free(name or "tensor", self.views)
            self.views[name] = parsed
            self._describe(name, parsed)
        elif isinstance(parsed, Several):
            self._note(_join(name, "layout"), parsed.layout)
            self._note(_join(name, "shape"), list(parsed.shape))
            for key, part in parsed.parts.items():
                found = self._parser.parse(part)
                if not isinstance(found, View):
                    raise self._bad(f"has a tensor {quote(name)} of layout {parsed.layout} without {key}, expected it")
                self._add_tensor(_join(name, key), found)
        elif isinstance(parsed, Absent):
            self._note(f"{parsed.why}.{name}", parsed.what)

    def _describe(self, name: str, view: View) -> None:
        if view.dtype in RESEMBLING:
            self._note(f"{name}.dtype", view.dtype)
        quantiser = view.quantiser
        if quantiser is None:
            return
        if quantiser.axis is not None:
            self._note(f"{name}.axis", quantiser.axis)
        for key, value in (("scale", quantiser.scale), ("zero_point", quantiser.zero_point)):
            if isinstance(value, View):
                self._add_tensor(f"{name}.{key}s", value)
            else:
                self._note(f"{name}.{key}", value)

    def _free(self, name: str, taken: Mapping[str, object]) -> str:
        if len(name) > MAX_NAME_CHARS:
            raise self._bad(f"has a name of {len(name)} characters, expected at most {MAX_NAME_CHARS}")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise self._bad(f"the name {quote(name)} is not Unicode text, expected UTF-8") from None
        self._count(len(name) // 100)
        if name not in taken:
            return name
        self._count(1)
        i = 2
        while f"{name}~{i}" in taken:
            self._count(1)
            i += 1
        return f"{name}~{i}"


def _describe_scalar(value: object) -> object:
    match value:
        case bytes():
            return f"{len(value)} bytes, sha256:{hashlib.sha256(value).hexdigest()[:32]}"
        case Span():
            return f"{value.n_bytes} bytes"
        case Global():
            return str(value)
    return value


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix and name else prefix or name


def _named(members: Mapping[object, object] | Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for i, (key, member) in enumerate(members.items()):
        if isinstance(key, str):
            yield key, member
        elif isinstance(key, int | float | None):
            yield str(key), member
        else:
            yield quote(key) if isinstance(key, bytes | tuple) else f"#{i}", member


def _hashable(pairs: Iterable[tuple[object, object]]) -> Iterator[tuple[object, object]]:
    for i, (key, member) in enumerate(pairs):
        yield key if isinstance(key, str | int) else f"#{i}", member


def _class_of(made: Call) -> str:
    # `copyreg._reconstructor(cls, object, None)` is how protocols 0 and 1 say `cls`.
    if made.name == "copyreg._reconstructor" and made.args and isinstance(made.args[0], Global):
        return str(made.args[0])
    return demangle(made.name) or "?"
