"""ModelProto, GraphProto and what hangs below: the tensors of an ONNX file, and its graph as facts and one digest.

The digest covers operators, how they are connected, and their attributes, in the subgraphs of ``If``, ``Loop`` and
``Scan`` and in functions too. It leaves out the names of nodes and of values between them (numbered instead, since
exporters count them differently each time), documentation and notes, and the values of whatever is listed as tensor.

Source: https://github.com/onnx/onnx, ``onnx/onnx.proto`` and ``docs/IR.md``.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from dataclasses import dataclass, field, replace

from dvc_modelver.formats.base import quote
from dvc_modelver.formats.onnx_tensors import Stored, read_packed, read_pair, read_tensor, signed
from dvc_modelver.formats.onnx_types import read_opset, read_property, read_value
from dvc_modelver.formats.protobuf import BYTES, FIXED32, VARINT, Field, Walker, check_depth

MAX_TENSORS = 200_000
MAX_SMALL = 8
"""Constants and attributes of at most this many numbers are shapes, axes and the like: part of the graph's digest."""

MAX_INLINE_BYTES = 1 << 20
"""A longer text in an attribute (a compiled engine, say) is listed as a tensor of bytes."""

MODEL_FIELDS = {1: VARINT, 2: BYTES, 3: BYTES, 4: BYTES, 5: VARINT, 6: BYTES, 7: BYTES, 8: BYTES, 14: BYTES,
                20: BYTES, 25: BYTES, 26: BYTES}  # fmt: skip
GRAPH_FIELDS = frozenset({1, 2, 5, 10, 11, 12, 13, 14, 15, 16})
"""Numbers of the fields of ModelProto, with their wire types, and of GraphProto, all `BYTES`."""

_DOMAINS = ("", "ai.onnx")
_LISTS = frozenset({7, 8})
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Dequantised:
    """A DequantizeLinear node: the names of its inputs (empty where left out), and its attributes."""

    x: str
    scale: str
    zero_point: str
    axis: int
    block_size: int


@dataclass
class Model:
    """What an ONNX file says.

    Attributes:
        tensors: Every tensor by the name it is listed under.
        constants: Small constants by name, which are part of the digest.
        initializers: Names of initialisers that only one graph has.
        n_uses: How many inputs of nodes, and outputs of graphs, each initialiser is.
        dequantised: The nodes that give quantised initialisers their meaning.
        producer: Name of the exporter.
        facts: See `Reader.structure`.
    """

    tensors: dict[str, Stored] = field(default_factory=dict)
    constants: dict[str, Stored] = field(default_factory=dict)
    initializers: set[str] = field(default_factory=set)
    n_uses: Counter[str] = field(default_factory=Counter)
    dequantised: list[Dequantised] = field(default_factory=list)
    producer: str = ""
    facts: dict[str, object] = field(default_factory=dict)


@dataclass
class _Node:
    op: str = ""
    domain: str = ""
    overload: str = ""
    name: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    ints: dict[str, int] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.name or next(filter(None, self.outputs), self.op)


def read_model(walker: Walker, n_bytes: int) -> Model:
    """Read all of an ONNX file but the values of its tensors.

    Raises:
        BadModelError: It breaks the rules of ONNX.
    """
    return _GraphReader(walker).read_model(n_bytes)


class _GraphReader:
    def __init__(self, walker: Walker) -> None:
        self._walker = walker
        self._model = Model()
        self._digest = hashlib.sha256()
        self._n_ops: Counter[str] = Counter()
        self._numbers: dict[str, int] = {}
        self._n_same: Counter[str] = Counter()
        self._kept: set[str] = set()
        self._repeated: set[str] = set()
        self._sparse: dict[str, str] = {}
        self._strings: dict[str, str] = {}

    def read_model(self, n_bytes: int) -> Model:
        walker, texts, metadata = self._walker, {2: "", 3: "", 4: ""}, {}
        numbers: dict[int, int] = {}
        opsets: dict[str, int] = {}
        graph: Field | None = None
        later: list[Field] = []
        for item in walker.fields(0, n_bytes):
            if item.number > max(MODEL_FIELDS):
                self._hash_unknown(item)
                continue
            if MODEL_FIELDS.get(item.number) != item.wire:
                raise walker.bad(item.start, f"found field {item.number} of wire type {item.wire}, expected a model")
            if item.number in texts:
                texts[item.number] = walker.text(item)
            elif item.wire == VARINT:
                numbers[item.number] = item.value
            elif item.number == 7:
                if graph is not None:
                    raise walker.bad(item.start, "found a second graph, expected one")
                graph = item
            elif item.number == 8:
                domain, version = read_opset(walker, item)
                opsets[domain or "ai.onnx"] = version
            elif item.number == 14:
                key, value = read_property(walker, item)
                metadata[key] = value
            elif item.number in (20, 25, 26):
                later.append(item)
        if graph is None or 1 not in numbers:
            raise walker.bad(n_bytes, f"found no {'graph' if 1 in numbers else 'version'}, expected an ONNX model")
        if not opsets and numbers[1] >= 3:
            raise walker.bad(n_bytes, "found no operator set, expected at least one (is the file still being written?)")
        inputs, outputs = self._read_graph(graph.start, graph.end, "graph", 0, is_main=True)
        self._read_later(later)
        self._model.initializers -= self._repeated
        self._model.producer = texts[2]
        self._model.facts = {
            "ir_version": numbers[1],
            "producer": " ".join(filter(None, (texts[2], texts[3]))),
            **({"domain": texts[4]} if texts[4] else {}),
            **({"model_version": numbers[5]} if numbers.get(5) else {}),
            "opset": opsets,
            "graph": "sha256:" + self._digest.hexdigest()[:32],
            **({"functions": n} if (n := sum(item.number == 25 for item in later)) else {}),
            "inputs": inputs,
            "outputs": outputs,
            "nodes": dict(sorted(self._n_ops.items())),
            "metadata": metadata,
            "sparse": self._sparse,
            "strings": self._strings,
        }
        return self._model

    def _read_later(self, items: list[Field]) -> None:
        n_training = 0
        for item in items:
            if item.number == 25:
                self._read_function(item.start, item.end)
            elif item.number == 26:
                self._token("configuration")
                self._hash_range(item.start, item.end)
            else:
                for part in self._walker.fields(item.start, item.end):
                    if part.number in (1, 2) and part.wire == BYTES:
                        what = "initialization" if part.number == 1 else "algorithm"
                        self._read_graph(part.start, part.end, f"training.{n_training}.{what}", 1)
                    elif part.number in (3, 4):
                        self._token("binding", *read_pair(self._walker, part.start, part.end))
                n_training += 1

    def _read_graph(
        self, start: int, end: int, label: str, depth: int, *, is_main: bool = False
    ) -> tuple[dict[str, str], dict[str, str]]:
        walker = self._walker
        check_depth(depth, walker.where)
        nodes, tensors, sparse = array("Q"), array("Q"), array("Q")
        values: dict[int, dict[str, str]] = {11: {}, 12: {}}
        for item in walker.fields(start, end):
            if item.number > max(GRAPH_FIELDS):
                self._hash_unknown(item)
                continue
            if item.number not in GRAPH_FIELDS or item.wire != BYTES:
                raise walker.bad(item.start, f"found field {item.number} of wire type {item.wire}, expected a graph")
            if item.number in (1, 5, 15):
                {1: nodes, 5: tensors, 15: sparse}[item.number].extend((item.start, item.end))
            elif item.number in values:
                name, text = read_value(walker, item)
                values[item.number][name] = text
        self._token("graph", depth)
        own: set[str] = set()
        for i in range(0, len(tensors), 2):
            self._add_initializer(tensors[i], tensors[i + 1], label, own)
        for i in range(0, len(sparse), 2):
            name = self._add_sparse(sparse[i], sparse[i + 1], "", label)
            self._claim(name, own, sparse[i])
        inputs = {name: text for name, text in values[11].items() if name not in own}
        if is_main:
            self._kept |= inputs.keys() | values[12].keys()
        self._token("inputs", *((self._refer(name), text) for name, text in inputs.items()))
        self._token("outputs", *((self._refer(name), text) for name, text in values[12].items()))
        self._model.n_uses.update(name for name in values[12] if name in self._kept)
        for i in range(0, len(nodes), 2):
            self._read_node(nodes[i], nodes[i + 1], depth)
        return inputs, values[12]

    def _read_function(self, start: int, end: int) -> None:
        walker, texts, nodes = self._walker, {1: "", 10: "", 13: ""}, array("Q")
        self._token("function")
        for item in walker.fields(start, end):
            if item.number in texts:
                texts[item.number] = walker.text(item)
            elif item.number in (4, 5, 6):
                self._token(item.number, walker.text(item) if item.number == 6 else self._refer(walker.text(item)))
            elif item.number == 7:
                nodes.extend((item.start, item.end))
            elif item.number in (9, 11):
                self._token(item.number)
                self._hash_range(item.start, item.end)
        self._token(*texts.values())
        for i in range(0, len(nodes), 2):
            self._read_node(nodes[i], nodes[i + 1], 1, is_function=True)

    def _read_node(self, start: int, end: int, depth: int, *, is_function: bool = False) -> None:
        walker, node, attributes = self._walker, _Node(), array("Q")
        for item in walker.fields(start, end):
            number = item.number
            if number == 1:
                node.inputs.append(walker.text(item))
            elif number == 2:
                node.outputs.append(walker.text(item))
            elif number == 3:
                node.name = walker.text(item)
            elif number == 4:
                node.op = walker.text(item)
            elif number == 7:
                node.domain = walker.text(item)
            elif number == 8:
                node.overload = walker.text(item)
            elif number == 5:
                if item.wire != BYTES:
                    raise walker.bad(item.start, "found a number, expected an attribute")
                attributes.extend((item.start, item.end))
        if not node.op:
            raise walker.bad(start, "found a node without operator, expected one")
        domain = "" if node.domain in _DOMAINS else node.domain
        self._n_ops[f"{domain}.{node.op}" if domain else node.op] += 1
        self._token(
            "node",
            domain,
            node.op,
            node.overload,
            [self._refer(name) for name in node.inputs],
            [self._refer(name) for name in node.outputs],
        )
        for i in range(0, len(attributes), 2):
            self._read_attribute(attributes[i], attributes[i + 1], node, depth)
        if not is_function:
            self._model.n_uses.update(name for name in node.inputs if name in self._kept)
            if node.op == "DequantizeLinear" and len(node.inputs) >= 2:
                x, scale, zero_point, *_ = (*node.inputs, "")
                axis, block_size = node.ints.get("axis", 1), node.ints.get("block_size", 0)
                self._model.dequantised.append(Dequantised(x, scale, zero_point, axis, block_size))

    def _read_attribute(self, start: int, end: int, node: _Node, depth: int) -> None:
        walker, name = self._walker, ""
        tensors: list[Field] = []
        graphs: list[Field] = []
        lists: dict[int, list[Field]] = {7: [], 8: []}
        for item in walker.fields(start, end, _LISTS):
            number = item.number
            if number == 1:
                name = walker.text(item)
            elif number in (5, 6, 10, 11, 22, 23):
                if item.wire != BYTES:
                    raise walker.bad(item.start, "found a number, expected a tensor or a graph")
                (graphs if number in (6, 11) else tensors).append(item)
            elif number in lists:
                lists[number].append(item)
            elif number == 4 and item.wire == BYTES and item.value > MAX_INLINE_BYTES:
                self._add(Stored("", 2, (item.value,), item.start, item.end), f"{node.label}.{name}", node.label)
            elif number != 13:
                self._token(number)
                self._hash_field(item)
                if number == 3:
                    node.ints[name] = signed(item.value)
        base = node.outputs[0] if node.op == "Constant" and node.outputs else f"{node.label}.{name}"
        self._token("attribute", name)
        for i, item in enumerate(tensors):
            self._add_constant(item, f"{base}.{i}" if len(tensors) > 1 else base, node)
        for number, items in lists.items():
            self._add_list(start, end, number, items, base, node.label)
        for i, item in enumerate(graphs):
            label = f"{node.label}.{name}.{i}" if len(graphs) > 1 else f"{node.label}.{name}"
            self._read_graph(item.start, item.end, label, depth + 1)

    def _add_list(self, start: int, end: int, number: int, items: list[Field], base: str, label: str) -> None:
        count = sum(self._count(item, number) for item in items)
        if count > MAX_SMALL:
            data_type, width = (1, 4) if number == 7 else (7, 0)
            self._token(number, count)
            self._add(Stored("", data_type, (count,), start, end, number, width), base, label)
            return
        for item in items:
            self._token(number)
            self._hash_range(item.start, item.end)

    def _count(self, item: Field, number: int) -> int:
        if item.wire != BYTES:
            if item.wire != (FIXED32 if number == 7 else VARINT):
                raise self._walker.bad(item.start, f"found wire type {item.wire}, expected numbers in field {number}")
            return item.value
        if number == 7:
            return item.value // 4
        n = 0
        for at in range(item.start, item.end, _PIECE):
            n += sum(byte < 0x80 for byte in self._walker.read(at, min(at + _PIECE, item.end)))
        return n

    def _add_constant(self, item: Field, base: str, node: _Node) -> None:
        if item.number in (22, 23):
            self._add_sparse(item.start, item.end, base, node.label)
            return
        stored = read_tensor(self._walker, item.start, item.end, base)
        if stored is not None and (stored.numel > MAX_SMALL or stored.location):
            self._token("tensor", stored.dtype, stored.shape)
            self._add(stored, base, node.label)
            return
        if stored is not None and node.op == "Constant":
            self._model.constants.setdefault(base, stored)
        self._token("constant")
        for part in self._walker.fields(item.start, item.end):
            if part.number not in (8, 12, 16):
                self._token(part.number)
                self._hash_field(part)

    def _add_initializer(self, start: int, end: int, label: str, own: set[str]) -> None:
        stored = read_tensor(self._walker, start, end)
        if stored is None:
            name = next((self._walker.text(f) for f in self._walker.fields(start, end) if f.number == 8), "")
            self._claim(name, own, start)
            self._strings[name] = self._digest_strings(start, end)
            self._token("strings", self._refer(name))
            return
        self._claim(stored.name, own, start)
        if stored.name in self._model.initializers:
            self._repeated.add(stored.name)
        self._model.initializers.add(stored.name)
        self._add(stored, stored.name, label)

    def _add_sparse(self, start: int, end: int, base: str, label: str) -> str:
        """List a sparse tensor as its values and their indices, under its name."""
        parts: dict[int, Stored] = {}
        dims: list[int] = []
        for item in self._walker.fields(start, end):
            if item.number in (1, 2) and item.wire == BYTES:
                stored = read_tensor(self._walker, item.start, item.end, base)
                if stored is not None:
                    parts[item.number] = stored
            elif item.number == 3 and item.wire == VARINT:
                dims.append(item.value)
            elif item.number == 3:
                dims += read_packed(self._walker, item)
        if parts.keys() != {1, 2}:
            raise self._walker.bad(start, "found a sparse tensor without numbers as values and indices, expected both")
        name = base or parts[1].name
        self._sparse[name] = f"{parts[1].dtype} {dims}"
        self._token("sparse", self._refer(name), parts[1].dtype, dims)
        self._add(parts[1], f"{name}.values", label)
        self._add(parts[2], f"{name}.indices", label)
        return name

    def _claim(self, name: str, own: set[str], start: int) -> None:
        if not name:
            raise self._walker.bad(start, "found an initialiser without a name, expected one")
        if name in own:
            raise self._walker.bad(start, f"found the initialiser {quote(name)} twice in one graph, expected once")
        own.add(name)
        self._kept.add(name)

    def _add(self, stored: Stored, name: str, label: str) -> None:
        tensors = self._model.tensors
        if len(tensors) >= MAX_TENSORS:
            raise self._walker.bad(stored.start, f"found more than {MAX_TENSORS} tensors, expected fewer")
        if name in tensors:
            # Sibling subgraphs may use one name twice: the second is called after the node it lies in.
            name = f"{label}/{name}"
        while name in tensors:
            self._n_same[name] += 1
            name = f"{name}#{self._n_same[name] + 1}"
        tensors[name] = replace(stored, name=name)

    def _digest_strings(self, start: int, end: int) -> str:
        outer, self._digest = self._digest, hashlib.sha256()
        n = 0
        for item in self._walker.fields(start, end):
            if item.number in (1, 6):
                n += item.number == 6
                self._token(item.number)
                self._hash_field(item)
        digest, self._digest = self._digest, outer
        return f"{n} strings, sha256:{digest.hexdigest()[:32]}"

    def _refer(self, name: str) -> str | int:
        """Give a value as the digest knows it: tensors, inputs and outputs by name, others by number."""
        if not name or name in self._kept:
            return name
        return self._numbers.setdefault(name, len(self._numbers))

    def _token(self, *parts: object) -> None:
        self._digest.update(repr(parts).encode("utf-8", "backslashreplace"))

    def _hash_unknown(self, item: Field) -> None:
        # What a later version of ONNX adds is part of the graph, whatever it means.
        self._token("unknown", item.number)
        self._hash_field(item)

    def _hash_field(self, item: Field) -> None:
        self._token(item.wire, item.value)
        if item.wire == BYTES:
            self._hash_range(item.start, item.end)

    def _hash_range(self, start: int, end: int) -> None:
        for at in range(start, end, _PIECE):
            self._digest.update(self._walker.read(at, min(at + _PIECE, end)))
