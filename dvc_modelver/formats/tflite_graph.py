"""The tables of a TFLite file: its constant tensors, and its graph as facts and one digest.

The digest covers operators with their versions, options and connections, and the dtype and shape of every tensor; of
the constants it has the names, not the values.

Source: ``tflite/schema/schema.fbs`` in https://github.com/tensorflow/tensorflow.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field

from dvc_modelver.formats.base import count_elements, quote
from dvc_modelver.formats.flatbuffer import FlatBuffer, Table
from dvc_modelver.formats.tflite_operators import CUSTOM, OPERATORS, VECTORS
from dvc_modelver.tensors import DTYPE_BITS

MAX_TENSORS = 200_000
MAX_RANK = 64
MAX_LIST = 1 << 20
MAX_METADATA_CHARS = 64

DTYPES = {
    0: "F32", 1: "F16", 2: "I32", 3: "U8", 4: "I64", 6: "BOOL", 7: "I16", 8: "C64", 9: "I8", 10: "F64", 11: "C128",
    12: "U64", 15: "U32", 16: "U16", 17: "I8", 18: "BF16", 19: "I8", 20: "U8",
}  # fmt: skip
"""The dtype of each ``TensorType``; integers of 4 and 2 bits are given one per byte."""

NARROW = {17: ("INT4", 4), 19: ("INT2", 2), 20: ("UINT4", 4)}
"""Types of which several share a byte in the file, the first in the lowest bits: name and bits."""

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor with values.

    Attributes:
        kind: The number of its type in ``TensorType``.
        shape: Axis lengths.
        start: Where its values begin in the file.
        end: Where they end.
        scale: Where the scales are (float32), and how many.
        zero_point: Where the zero points are (int64), and how many.
        axis: Along which these differ, where there are several.
    """

    kind: int
    shape: tuple[int, ...]
    start: int
    end: int
    scale: tuple[int, int] = (0, 0)
    zero_point: tuple[int, int] = (0, 0)
    axis: int = 0

    @property
    def dtype(self) -> str:
        """The dtype of its values as they are given."""
        return DTYPES[self.kind]


@dataclass
class Model:
    """What a TFLite file says.

    Attributes:
        tensors: Every constant by the name it is listed under.
        facts: See `Reader.structure`.
    """

    tensors: dict[str, Constant] = field(default_factory=dict)
    facts: dict[str, object] = field(default_factory=dict)


def read_model(buffer: FlatBuffer) -> Model:
    """Read all of a TFLite file but the values of its tensors.

    Raises:
        BadModelError: It breaks the rules of FlatBuffers or of TFLite.
    """
    return _ModelReader(buffer).read()


class _ModelReader:
    def __init__(self, buffer: FlatBuffer) -> None:
        self._buffer = buffer
        self._model = Model()
        self._digest = hashlib.sha256()
        self._places: list[tuple[int, int]] = []
        self._operators: list[tuple[str, int]] = []
        self._n_operators: Counter[str] = Counter()
        self._n_same: Counter[str] = Counter()
        self._sparse: dict[str, str] = {}
        self._other: dict[str, str] = {}

    def read(self) -> Model:
        root = self._buffer.root()
        if root.vector(9, 4)[1]:
            raise self._buffer.bad(root.at, "found tensors in files of another kind, expected all values in this one")
        self._places = [self._find_data(table) for table in root.tables(4)]
        self._operators = [_read_operator_code(table) for table in root.tables(1)]
        facts: dict[str, object] = {"version": root.number(0, "<I"), "description": root.text(3)}
        subgraphs = []
        for i, subgraph in enumerate(root.tables(2)):
            subgraphs.append(self._read_subgraph(subgraph, i))
        if not subgraphs:
            raise self._buffer.bad(root.at, "found no graph, expected at least one")
        signatures = {}
        for i, signature in enumerate(root.tables(7)):
            key = signature.text(2) or str(i)
            signatures[key] = {name: self._read_map(signature, slot) for slot, name in ((0, "inputs"), (1, "outputs"))}
        metadata = {table.text(0): self._read_metadata(table) for table in root.tables(6)}
        self._model.facts = {
            **facts,
            "graph": "sha256:" + self._digest.hexdigest()[:32],
            **({"subgraphs": len(subgraphs)} if len(subgraphs) > 1 else {}),
            **subgraphs[0],
            "operators": dict(sorted(self._n_operators.items())),
            "signatures": signatures,
            "sparse": self._sparse,
            "other": self._other,
            "metadata": metadata,
        }
        return self._model

    def _find_data(self, table: Table) -> tuple[int, int]:
        start, count = table.vector(0, 1)
        offset, size = table.number(1, "<Q"), table.number(2, "<Q")
        # An offset of 1 stands for one that the converter never filled in.
        if offset > 1:
            start, count = offset, size
        if start + count > self._buffer.end:
            raise self._buffer.bad(
                table.at,
                f"ended early, found {self._buffer.end} bytes, expected {start + count} by a tensor's values",
            )
        return start, start + count

    def _read_subgraph(self, subgraph: Table, index: int) -> dict[str, dict[str, str]]:
        self._token("subgraph", index)
        values = [self._read_tensor(table, index, i) for i, table in enumerate(subgraph.tables(0))]
        ends: dict[str, dict[str, str]] = {}
        for slot, name in ((1, "inputs"), (2, "outputs")):
            numbers = subgraph.numbers(slot, "i", MAX_LIST)
            self._token(name, numbers)
            ends[name] = dict(self._pick(values, number, subgraph) for number in numbers)
        for operator in subgraph.tables(3):
            self._read_operator(operator)
        return ends

    def _pick(self, values: list[tuple[str, str]], number: int, subgraph: Table) -> tuple[str, str]:
        if not 0 <= number < len(values):
            raise self._buffer.bad(subgraph.at, f"found tensor {number}, expected one of {len(values)}")
        return values[number]

    def _read_tensor(self, table: Table, subgraph: int, index: int) -> tuple[str, str]:
        """List a tensor if it has values; give its name, and its dtype and shape as text."""
        kind, number = table.number(1, "<b"), table.number(2, "<I")
        shape, signature = table.numbers(0, "i", MAX_RANK), table.numbers(7, "i", MAX_RANK)
        name = table.text(3) or f"subgraph{subgraph}.tensor{index}"
        if number and number >= len(self._places):
            raise self._buffer.bad(table.at, f"found buffer {number}, expected one of {len(self._places)}")
        start, end = self._places[number] if number < len(self._places) else (0, 0)
        self._token("tensor", kind, shape, signature, table.number(5, "<?"))
        axes = ", ".join("?" if axis < 0 else str(axis) for axis in signature or shape)
        text = f"{DTYPES.get(kind, 'STRING' if kind == 5 else '?')} [{axes}]"
        if start == end:
            return name, text
        if kind not in DTYPES:
            self._other[name] = f"{end - start} bytes, {self._digest_of(start, end)}"
            self._token("constant", name)
            return name, text
        sparsity = table.table(6)
        if sparsity is not None:
            self._sparse[name] = text
            bits = DTYPE_BITS[DTYPES[kind]]
            shape = ((end - start) * 8 // bits,)
            self._token("sparsity", sparsity.numbers(0, "i", MAX_RANK))
        constant = Constant(kind, shape, start, end, *self._read_quantisation(table))
        self._check_size(constant, name, table)
        self._token("constant", self._add(constant, name))
        return name, text

    def _read_quantisation(self, table: Table) -> tuple[tuple[int, int], tuple[int, int], int]:
        found = table.table(4)
        if found is None:
            return (0, 0), (0, 0), 0
        axis = found.number(6, "<i")
        if found.number(4, "<B"):
            # Custom and blockwise quantisation: the integers stay as they are.
            self._token("quantisation", found.number(4, "<B"))
            return (0, 0), (0, 0), 0
        return found.vector(2, 4), found.vector(3, 8), axis

    def _check_size(self, constant: Constant, name: str, table: Table) -> None:
        bits = NARROW[constant.kind][1] if constant.kind in NARROW else DTYPE_BITS[constant.dtype]
        numel = count_elements((*constant.shape, 16))
        if numel is None:
            raise self._buffer.bad(
                table.at, f"tensor {quote(name)} has shape {quote(constant.shape)}, expected a product below 2^59"
            )
        n_bytes, expected = constant.end - constant.start, (numel // 16 * bits + 7) // 8
        if n_bytes != expected:
            raise self._buffer.bad(
                table.at,
                f"tensor {quote(name)} holds {n_bytes} bytes, expected {expected} "
                f"for {constant.dtype} {quote(constant.shape)}",
            )

    def _add(self, constant: Constant, name: str) -> str:
        tensors = self._model.tensors
        base = name
        while name in tensors and tensors[name] != constant:
            # The same name in several subgraphs, or twice in one.
            self._n_same[base] += 1
            name = f"{base}#{self._n_same[base] + 1}"
        if len(tensors) >= MAX_TENSORS:
            raise self._buffer.bad(constant.start, f"found more than {MAX_TENSORS} tensors, expected fewer")
        tensors[name] = constant
        return name

    def _read_operator(self, table: Table) -> None:
        index = table.number(0, "<I")
        if index >= len(self._operators):
            raise self._buffer.bad(table.at, f"found operator {index}, expected one of {len(self._operators)}")
        name, version = self._operators[index]
        self._n_operators[name] += 1
        self._token("operator", name, version, table.numbers(1, "i", MAX_LIST), table.numbers(2, "i", MAX_LIST))
        for union, (kind_slot, slot) in ((1, (3, 4)), (2, (11, 12))):
            options = table.table(slot)
            if options is not None:
                self._token("options", union, kind := table.number(kind_slot, "<B"))
                self._hash_options(options, VECTORS.get((union, kind), {}))
        start, count = table.vector(5, 1)
        if offset := table.number(9, "<Q"):
            start, count = offset, table.number(10, "<Q")
        if count:
            self._token("custom", count, self._digest_of(start, start + count))

    def _hash_options(self, options: Table, vectors: dict[int, int]) -> None:
        # Without the schema of all options, a field reaches to the next one, and its padding is zero.
        places = sorted({place for place in options.places if place} | {options.n_bytes})
        for slot, place in enumerate(options.places):
            if not place:
                continue
            if slot in vectors:
                start, count = options.vector(slot, vectors[slot])
                self._token(slot, count, self._digest_of(start, start + count * vectors[slot]))
                continue
            at = options.place(slot, 1)
            stop = min(next(end for end in places if end > place), place + 8)
            value = self._buffer.read(at, at + stop - place).rstrip(b"\0")
            if value:
                self._token(slot, value)

    def _read_map(self, signature: Table, slot: int) -> list[str]:
        return sorted(entry.text(0) for entry in signature.tables(slot))

    def _read_metadata(self, table: Table) -> str:
        number = table.number(1, "<I")
        if number >= len(self._places):
            raise self._buffer.bad(table.at, f"found buffer {number}, expected one of {len(self._places)}")
        start, end = self._places[number]
        if end - start <= MAX_METADATA_CHARS:
            text = self._buffer.read(start, end).rstrip(b"\0")
            if text.isascii() and text.decode().isprintable():
                return text.decode()
        return f"{end - start} bytes, {self._digest_of(start, end)}"

    def _digest_of(self, start: int, end: int) -> str:
        digest = hashlib.sha256()
        for at in range(start, end, _PIECE):
            digest.update(self._buffer.read(at, min(at + _PIECE, end)))
        return f"sha256:{digest.hexdigest()[:32]}"

    def _token(self, *parts: object) -> None:
        self._digest.update(repr(parts).encode("utf-8", "backslashreplace"))


def _read_operator_code(table: Table) -> tuple[str, int]:
    # Files from before 2.4 have the number in a signed byte only.
    number = max(table.number(0, "<b"), table.number(3, "<i"))
    if number == CUSTOM:
        return table.text(1) or "CUSTOM", table.number(2, "<i", 1)
    return OPERATORS[number] if 0 <= number < len(OPERATORS) else f"OPERATOR_{number}", table.number(2, "<i", 1)
