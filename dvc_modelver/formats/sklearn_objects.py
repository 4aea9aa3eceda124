"""Names for the arrays of a pickled estimator, as its users write them, and what else it is made of.

``coef_``; ``steps.scaler.mean_`` (a list of names and estimators goes by the names); ``coefs_.0`` (other lists by
their numbers); ``estimators_.0000.tree_.threshold`` (lists of objects by numbers that sort). A structured array gives
a tensor for each of its fields. Arrays of text and of objects, and the states of random generators, are no tensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import MAX_SCALAR_CHARS, quote
from dvc_modelver.formats.numpy_records import (
    HINT,
    Array,
    ArrayParser,
    Data,
    Encoded,
    NumpyType,
    decode,
    find_bytes,
    find_class,
    find_scalar,
)
from dvc_modelver.formats.pickles import Call, Global, Persistent, Span
from dvc_modelver.formats.sklearn_records import (
    BOOSTERS,
    GENERATORS,
    OPTIMIZERS,
    STATE_NAMES,
    TREE,
    TREE_NAMES,
    find_args,
    find_pairs,
    holds_object,
    name_members,
    split_states,
)

MAX_OBJECTS = 500_000
"""Tensors, scalars and containers; of a list of scalars, each eighth."""

MAX_NESTING = 100
MAX_NAME_CHARS = 2_000
MAX_NAMES_CHARS = 64 << 20
"""Of all names together."""

MAX_LISTED_BYTES = 64 << 10
MAX_MEMBERS = 200
"""Of a dictionary or list of scalars that is listed; a larger one (a vocabulary) is a digest."""

_SCALARS = (str, bytes, int, float, complex, Global, Span, Encoded, Persistent, type(None))
_SHORT_BYTES = 64


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A tensor: an array, or one field of a structured one.

    Attributes:
        array: What it is a view of.
        kind: Type of its elements.
        offset: Bytes from an element's start to the field.
        origin: What two names of one tensor have in common.
    """

    array: Array
    kind: NumpyType
    offset: int
    origin: object


class Walk:
    """Walks the objects of a file once, and collects.

    Args:
        name: How errors call the file.
        read: Gives the bytes of an array's elements in C order.
        digest: Gives the digest of bytes.

    Attributes:
        views: Tensors by name.
        facts: What else was found, by name.
        boosters: Models of other formats, by name: the format, and the bytes.
    """

    def __init__(self, name: str, read: Callable[[Array], bytes], digest: Callable[[Data], str]) -> None:
        self.views: dict[str, View] = {}
        self.facts: dict[str, object] = {}
        self.boosters: dict[str, tuple[str, Data]] = {}
        self._name = name
        self._read = read
        self._digest = digest
        self._parser = ArrayParser(name)
        self._n_objects = 0
        self._depth = 0
        self._seen: dict[int, str] = {}
        self._n_chars = 0
        self._scalars: dict[int, object] = {}
        self._digests: dict[int, tuple[object, str]] = {}
        # Containers made here: the address of one that is gone could become that of another.
        self._kept: list[object] = []

    def add(self, prefix: str, root: object) -> None:
        """Collect what an object holds; names begin with `prefix`. The object must outlive the walk.

        Raises:
            BadModelError: An array cannot be what the file says, or objects are too many or too deep.
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
        value = self._scalar(value)
        value = find_bytes(value) if isinstance(value, Call) else value
        if isinstance(value, _SCALARS):
            self._note(name, value)
            return
        arrays = self._parser.parse(value)
        if arrays is not None:
            places = {part: (_join(name, part), array) for part, array in arrays.items()}
            arrays = {
                part: a for part, (place, a) in places.items() if not self._add_array(place, a, (id(value), part))
            }
        if not arrays and (arrays is not None or self._note_simple(name, value)):
            return
        if id(value) in self._seen:
            self._note(f"tied.{name}", self._seen[id(value)])
            return
        self._seen[id(value)] = name
        if self._depth >= MAX_NESTING:
            raise self._bad(f"nests objects deeper than {MAX_NESTING} at {quote(name)}, expected less")
        self._depth += 1
        if arrays is not None:
            for part, array in arrays.items():
                self._add_members(_join(name, part), array, (id(value), part))
        elif isinstance(value, dict):
            self._visit_mapping(name, value)
        elif isinstance(value, list | tuple):
            self._visit_sequence(name, value)
        elif isinstance(value, set | frozenset):
            self._visit_sequence(name, sorted(value, key=repr))
        elif isinstance(value, Call):
            self._visit_object(name, value)
        self._depth -= 1

    def _scalar(self, value: object) -> object:
        """Give the number or text of a NumPy scalar, the same object for the same record; else the value."""
        if not isinstance(value, Call):
            return value
        if id(value) not in self._scalars:
            self._scalars[id(value)] = find_scalar(value, self._parser)
        return self._scalars[id(value)]

    def _note_simple(self, name: str, value: object) -> bool:
        """Note a value that holds neither arrays nor objects; tell whether it is one."""
        if isinstance(value, list | tuple | set | frozenset):
            if id(value) in self._digests:
                return self._note(name, self._digests[id(value)][1])
            self._count(len(value) // 8)
            items = [self._scalar(item) for item in value]
            if not all(isinstance(item, _SCALARS) for item in items):
                return False
            items = sorted(items, key=repr) if isinstance(value, set | frozenset) else items
            plain = [self._plain(item) for item in items]
            return self._note(name, plain if len(plain) <= MAX_MEMBERS else self._remember(value, _digest_rows(plain)))
        if isinstance(value, dict):
            if value and (len(value) <= MAX_MEMBERS or not all(isinstance(item, _SCALARS) for item in value.values())):
                return False
            if id(value) in self._digests:
                return self._note(name, self._digests[id(value)][1])
            self._count(len(value) // 8)
            rows = sorted(f"{self._key(key, i)!r}: {self._plain(v)!r}" for i, (key, v) in enumerate(value.items()))
            return self._note(name, self._remember(value, _digest_rows(rows)) if value else {})
        if isinstance(value, Call) and value.name.startswith("numpy.random."):
            kind = value.name.rpartition(".")[2]
            known = self._digests.get(id(value))
            digest = known[1] if known else self._remember(value, self._digest_record(value))
            return self._note(name, f"{GENERATORS.get(kind, kind)} sha256:{digest}")
        if isinstance(value, Call) and (dtype := self._parser.parse_type(value)) is not None:
            return self._note(name, f"numpy.dtype({dtype.code!r})")
        if isinstance(value, Call) and not (value.states or value.items or value.pairs):
            args = find_args(value)
            if all(isinstance(arg, _SCALARS) for arg in args):
                text = ", ".join(quote(self._plain(arg)) for arg in args[:8])
                return self._note(name, f"{find_class(value)}({text})")
            return False
        return not isinstance(value, Call) and self._note(name, quote(value))

    # Objects.

    def _visit_object(self, name: str, made: Call) -> None:
        kind = find_class(made)
        attributes, others = split_states(made)
        args = find_args(made)
        if kind.startswith(OPTIMIZERS) and name.endswith("_optimizer"):
            name = name.removesuffix("_optimizer") + "optimizer"
        self._note(_join(name, "class"), kind)
        if kind == TREE:
            self._visit_tree(name, made.args, attributes)
            return
        if kind in BOOSTERS:
            attributes = self._take_booster(name, attributes, BOOSTERS[kind])
        if attributes:
            named = name_members(attributes)
            self._kept.append(named)
            self._visit_mapping(name, named)
        names = next((found for prefix, found in STATE_NAMES.items() if kind.startswith(prefix)), ())
        for state in others:
            self._visit_sequence(name, state, names) if isinstance(state, tuple) else self._visit(name, state)
        for i, (key, value) in enumerate(made.pairs):
            self._visit(_join(name, self._key(key, i)), value)
        if made.items:
            self._visit_sequence(name, made.items)
        if args:
            self._visit_sequence(_join(name, "args"), args)

    def _visit_tree(self, name: str, args: tuple[object, ...], attributes: Mapping[str, object]) -> None:
        for key, arg in zip(("n_features", "n_classes", "n_outputs"), args, strict=False):
            arrays = self._parser.parse(arg)
            array = arrays[""] if arrays and "" in arrays else None
            is_short = array is not None and array.kind.dtype and array.nbytes <= _SHORT_BYTES
            self._visit(_join(name, key), decode(array.kind, self._read(array)) if array and is_short else arg)
        for key, value in attributes.items():
            arrays = self._parser.parse(value) if key == "nodes" else None
            if arrays and "" in arrays and arrays[""].kind.fields:
                self._add_members(name, arrays[""], (id(value), ""))
            else:
                self._visit(_join(name, TREE_NAMES.get(key, key)), value)

    def _take_booster(self, name: str, attributes: dict[str, object], place: tuple[str, ...]) -> dict[str, object]:
        for key in place[1:]:
            data = attributes.get(key)
            data = find_bytes(data)
            if isinstance(data, bytes | Span | Encoded):
                self.boosters[name] = (place[0], data)
                return {other: value for other, value in attributes.items() if other != key}
        return attributes

    # Containers.

    def _visit_mapping(self, name: str, members: Mapping[object, object] | Mapping[str, object]) -> None:
        for i, (key, member) in enumerate(members.items()):
            self._visit(_join(name, self._key(key, i)), member)

    def _key(self, key: object, i: int) -> str:
        key = self._scalar(key)
        if isinstance(key, str):
            return key
        if isinstance(key, int | float | complex | Global | None):
            return str(key)
        return quote(key) if isinstance(key, bytes | tuple) else f"#{i}"

    def _visit_sequence(
        self, name: str, members: Sequence[object], names: Sequence[str] = (), *, is_inner: bool = False
    ) -> None:
        pairs = find_pairs(members)
        if pairs is not None:
            for key, member, rest in pairs:
                self._visit(_join(name, key), member)
                if rest is not None:
                    self._visit(_join(name, f"{key}.columns"), rest)
            return
        is_ensemble = not names and not is_inner and any(map(holds_object, members))
        width = max(4, len(str(len(members) - 1))) if is_ensemble else 0
        first: dict[str, object] = {}
        for i, member in enumerate(members):
            place = _join(name, names[i] if i < len(names) else f"{i:0{width}d}")
            before = len(self.facts)
            if is_ensemble and isinstance(member, list | tuple):
                self._count(1 + len(member))
                self._visit_sequence(place, member, is_inner=True)
            else:
                self._visit(place, member)
            if is_ensemble:
                self._drop_repeated(place, before, first)

    def _drop_repeated(self, place: str, n_before: int, first: dict[str, object]) -> None:
        """Forget what a member of an ensemble has in common with the first."""
        n_new = len(self.facts) - n_before
        new = [self.facts.popitem() for _ in range(n_new)][::-1]
        for key, value in new:
            rest = key.removeprefix(place)
            same = first.get(rest, first)
            if type(same) is not type(value) or same != value:
                self.facts[key] = value
        if not first:
            first.update((key.removeprefix(place), value) for key, value in new)
            first.setdefault("", place)

    # Arrays.

    def _add_array(self, name: str, array: Array, origin: object) -> bool:
        """Add an array whose elements are one number, text or scalar each; tell whether it is one."""
        if isinstance(array.data, list):
            if not self._note_simple(name, array.data):
                return False
            if len(array.shape) > 1:
                self._note(_join(name, "shape"), list(array.shape))
        elif array.kind.fields:
            return False
        elif array.kind.dtype is not None:
            self._add_view(name, View(array, array.kind, 0, origin))
        elif array.kind.code[1] in "US" and array.nbytes <= MAX_LISTED_BYTES and array.kind.item_bytes:
            self._count(array.nbytes // 64)
            texts = [self._plain(item) for item in decode(array.kind, self._read(array))]
            self._note(name, texts if len(texts) <= MAX_MEMBERS else _digest_rows(texts))
        else:
            self._note(name, f"{array.kind.code} {list(array.shape)} sha256:{self._digest(array.data)}")
        return True

    def _add_members(self, name: str, array: Array, origin: object) -> None:
        """Add an array of objects, or of records."""
        if not isinstance(array.data, list):
            self._add_fields(name, array, array.kind, 0, origin)
            return
        items = list(array.data)
        if not array.shape:
            self._visit(name, items[0])
            return
        for axis in array.shape[:0:-1]:
            items = [items[i : i + axis] for i in range(0, len(items), axis)]
        self._kept.append(items)
        self._visit_sequence(name, items)

    def _add_fields(self, name: str, array: Array, kind: NumpyType, offset: int, origin: object) -> None:
        unlisted = False
        for field in kind.fields:
            self._count(1)
            place = _join(name, TREE_NAMES.get(field.name, field.name) if name.endswith("tree_") else field.name)
            if field.kind.fields:
                self._add_fields(place, array, field.kind, offset + field.offset, origin)
            elif field.kind.dtype is not None:
                self._add_view(place, View(array, field.kind, offset + field.offset, (origin, offset + field.offset)))
            else:
                self._note(place, f"{field.kind.code} {list(array.shape)}")
                unlisted = True
        if unlisted and isinstance(array.data, Data):
            self._note(_join(name, "array"), f"{list(array.shape)} sha256:{self._digest(array.data)}")

    def _add_view(self, name: str, view: View) -> None:
        self.views[self._free(name or "tensor", self.views)] = view

    # Facts.

    def _note(self, name: str, value: object) -> bool:
        self.facts[self._free(name or "value", self.facts)] = self._plain(value)
        return True

    def _plain(self, value: object) -> object:
        if isinstance(value, Global):
            return str(value) if len(value.name) + len(value.module) <= MAX_SCALAR_CHARS else quote(str(value))
        if isinstance(value, Persistent):
            return f"outside of the file: {quote(value.pid)}"
        if isinstance(value, Span | Encoded):
            span = value.span if isinstance(value, Encoded) else value
            return f"sha256:{self._digest(value)} ({span.n_bytes:,} bytes)"
        if not isinstance(value, str | bytes) or (isinstance(value, str) and len(value) <= MAX_SCALAR_CHARS):
            return value
        if isinstance(value, bytes) and len(value) <= _SHORT_BYTES:
            return quote(value)
        if id(value) not in self._digests:
            data = value.encode("utf-8", "backslashreplace") if isinstance(value, str) else value
            what = "characters" if isinstance(value, str) else "bytes"
            self._remember(value, f"sha256:{hashlib.sha256(data).hexdigest()[:32]} ({len(value):,} {what})")
        return self._digests[id(value)][1]

    def _remember(self, value: object, digest: str) -> str:
        # The value is kept as well, else its address may become that of another.
        self._digests[id(value)] = (value, digest)
        return digest

    def _digest_record(self, value: object) -> str:
        found = hashlib.sha256()
        todo = [value]
        while todo:
            self._count(1)
            item = self._scalar(todo.pop())
            arrays = self._parser.parse(item)
            if arrays is not None:
                for array in arrays.values():
                    found.update(f"{array.kind.code}{array.shape}".encode())
                    self._count(min(array.nbytes, MAX_LISTED_BYTES) // 256)
                    todo += array.data if isinstance(array.data, list) else [self._digest(array.data)]
            elif isinstance(item, Call):
                found.update(item.name.encode("utf-8", "backslashreplace"))
                todo += [item.args, item.states, list(item.items)]
            elif isinstance(item, dict):
                todo += [*item, *item.values()]
            elif isinstance(item, list | tuple):
                found.update(f"{len(item)}".encode())
                todo += item
            else:
                found.update(f"{self._plain(item)!r}\n".encode("utf-8", "backslashreplace"))
        return found.hexdigest()[:32]

    def _free(self, name: str, taken: Mapping[str, object]) -> str:
        self._n_chars += len(name)
        if len(name) > MAX_NAME_CHARS or self._n_chars > MAX_NAMES_CHARS:
            raise self._bad(
                f"has names of {len(name)} characters and {self._n_chars} together, "
                f"expected at most {MAX_NAME_CHARS} and {MAX_NAMES_CHARS}"
            )
        try:
            name.encode()
        except UnicodeEncodeError:
            raise self._bad(f"the name {quote(name)} is not Unicode text, expected UTF-8") from None
        if name not in taken:
            return name
        i = 2
        while f"{name}~{i}" in taken:
            self._count(1)
            i += 1
        return f"{name}~{i}"


def _digest_rows(rows: list[object] | list[str]) -> str:
    found = hashlib.sha256()
    for row in rows:
        found.update(f"{row!r}\n".encode("utf-8", "backslashreplace"))
    return f"sha256:{found.hexdigest()[:32]} ({len(rows):,} members)"


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix and name else prefix or name
