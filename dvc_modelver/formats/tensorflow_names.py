"""What the variables of a TensorFlow checkpoint are called, and which of them belong to an optimiser.

A checkpoint of objects names each variable by the shortest path of attributes to it, which is found once, in the
order of the attributes. Keras 3 lets an optimiser refer to the weights that it trains, so that after training they are
called ``optimizer/_trainable_variables/0``, while in an untrained model they are ``layers/0/kernel``. Their other
path, past the optimiser, is in the graph of objects that lies in every such checkpoint.

Sources: ``tensorflow/python/checkpoint/trackable_view.py`` and ``save_util.py`` (paths and keys),
``tensorflow/core/protobuf/trackable_object_graph.proto``.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from dvc_modelver.formats.protobuf import BYTES, Field, Walker
from dvc_modelver.tensors import find_role

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_SLOT = "/.OPTIMIZER_SLOT/"
_TRAINED = "/_trainable_variables/"
_OPTIMIZER_ATTRIBUTES = (("_iterations",), ("iter", "learning_rate"))
_MAX_DEPTH = 64
_MAX_REFERENCES = 200_000
_MAX_PATHS_CHARS = 16 << 20
_COUNTERS = frozenset({"save_counter", "global_step", "beta1_power", "beta2_power"})
_NAMED_SLOT = re.compile(
    r"(.+)/(?:(?:Adam|AdaMax|Adadelta|Adagrad|AdagradDA|Ftrl|Momentum|RMSProp)(?:_\d+)?|adam_[mv])"
)


def names_need_graph(keys: Iterable[str]) -> bool:
    """Tell whether some variables are called after the optimiser that trains them."""
    return any(_TRAINED in key for key in keys)


def name_variables(keys: Iterable[str], paths: Mapping[str, str]) -> dict[str, str]:
    """Give each variable's name by its key.

    A name is the key without ``/.ATTRIBUTES/VARIABLE_VALUE``; weights that are called after their optimiser are
    called by their path past it. ``optimizer.`` goes in front of what belongs to an optimiser or counts steps, where
    the name does not say so itself.

    Args:
        keys: As in the index; those of `tf.train.list_variables`.
        paths: Of variables by their keys, as `read_graph` gives them.
    """
    keys = set(keys)
    short = {key: _shorten(key, keys) for key in keys}
    known = set(short.values())
    optimizers = _find_optimizers(known)
    names: dict[str, str] = {}
    taken = set(known)
    for key in sorted(keys):
        name = short[key]
        owner = next((parent for parent in _parents(name) if parent in optimizers), None)
        if owner is not None and name.startswith(owner + _TRAINED):
            wanted = paths.get(key, name.removeprefix(f"{owner}/"))
        elif find_role(name) != "optimizer" and (owner is not None or _is_state(name, known)):
            wanted = f"optimizer.{name}"
        else:
            wanted = name
        names[key] = name if wanted in taken else wanted
        taken.add(wanted)
    return names


def read_graph(walker: Walker, begin: int, end: int) -> dict[str, str]:
    """Give the shortest path to each variable that leads through no optimiser, by the variable's key.

    Args:
        walker: Over the file that has the graph, a ``TrackableObjectGraph``.
        begin: Where it begins.
        end: Where it ends.

    Raises:
        BadModelError: The graph is damaged.
    """
    nodes = _read_nodes(walker, begin, end)
    paths: dict[int, str] = {0: ""}
    todo = deque(paths)
    n_chars = 0
    while todo:
        i = todo.popleft()
        if i >= len(nodes):
            raise walker.bad(begin, f"found a reference to object {i}, expected one of {len(nodes)}")
        for local, child in nodes[i].children:
            if child not in paths and not (child < len(nodes) and nodes[child].is_optimizer):
                step = local.replace(".", "..").replace("/", ".S")
                paths[child] = f"{paths[i]}/{step}" if paths[i] else step
                n_chars += len(paths[child])
                if n_chars > _MAX_PATHS_CHARS:
                    raise walker.bad(begin, f"found paths of more than {_MAX_PATHS_CHARS} characters, expected less")
                todo.append(child)
    return {key: paths[i] for i, node in enumerate(nodes) if i in paths for key in node.keys}


class _Node(NamedTuple):
    children: list[tuple[str, int]]
    keys: list[str]
    is_optimizer: bool


def _read_nodes(walker: Walker, begin: int, end: int) -> list[_Node]:
    nodes: list[_Node] = []
    n_references = 0
    for field in walker.fields(begin, end):
        if field.number == 1 and field.wire == BYTES:
            nodes.append(_read_node(walker, field))
            n_references += len(nodes[-1].children) + len(nodes[-1].keys)
            if len(nodes) + n_references > _MAX_REFERENCES:
                raise walker.bad(begin, f"found more than {_MAX_REFERENCES} objects and references, expected fewer")
    return nodes


def _read_node(walker: Walker, node: Field) -> _Node:
    children, keys, has_slots = [], [], False
    for field in walker.fields(node.start, node.end):
        if field.wire != BYTES:
            continue
        if field.number == 1:
            child, local = 0, ""
            for part in walker.fields(field.start, field.end):
                child = part.value if part.number == 1 and part.wire != BYTES else child
                local = walker.text(part) if part.number == 2 else local
            children.append((local, child))
        elif field.number == 2:
            keys += [walker.text(part) for part in walker.fields(field.start, field.end) if part.number == 3]
        elif field.number == 3:
            has_slots = True
    attributes = {local for local, _ in children}
    return _Node(children, keys, has_slots or any(attributes.issuperset(pair) for pair in _OPTIMIZER_ATTRIBUTES))


def _shorten(key: str, keys: set[str]) -> str:
    short = key.removesuffix(_VALUE)
    return short if short not in keys else key


def _find_optimizers(names: set[str]) -> set[str]:
    found = {name.partition(_SLOT)[2].rpartition("/")[0] for name in names if _SLOT in name}
    for first, *others in _OPTIMIZER_ATTRIBUTES:
        owners = {name.removesuffix(f"/{first}") for name in names if name.endswith(f"/{first}")}
        found |= {owner for owner in owners if all(f"{owner}/{other}" in names for other in others)}
    return found - {""}


def _parents(name: str) -> Iterable[str]:
    at = name.find("/")
    for _ in range(_MAX_DEPTH):
        if at < 0:
            break
        yield name[:at]
        at = name.find("/", at + 1)


def _is_state(name: str, known: set[str]) -> bool:
    slot = _NAMED_SLOT.fullmatch(name)
    return _SLOT in name or name in _COUNTERS or (slot is not None and slot[1] in known)
