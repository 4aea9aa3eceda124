"""Pickles read as data: every opcode is walked, nothing is imported and nothing is called.

A pickle is a program for a small stack machine. `Machine` runs that program with the three dangerous steps taken
out: what it would import becomes a `Global` (two names), what it would call or build becomes a `Call` (function,
arguments, state), and what lies outside of the stream becomes a `Persistent`. The result is made of plain Python
containers and these three, and may be walked without fear, with two cautions: it can contain itself, and it can share
members so often that a walk which does not count its steps takes for ever.

::

    pickled = load(Source(file, "model.pkl", 0, measure(file)))
    pickled.root        # {"weights": Call(numpy._core.multiarray._reconstruct), ...}
    pickled.globals     # (Global("numpy._core.multiarray", "_reconstruct"), ...)

Sources: Lib/pickle.py and Lib/pickletools.py of CPython 3.13 (opcodes of protocols 0 to 5), PEP 307, PEP 574, PEP 3154.
"""

from __future__ import annotations

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import ended_early, quote
from dvc_modelver.formats.pickle_literals import Literals
from dvc_modelver.formats.pickle_records import Call, Global, Persistent, Span
from dvc_modelver.formats.pickle_source import Source

__all__ = ["Call", "Global", "Machine", "Persistent", "Pickled", "Source", "Span", "load"]

MAX_MEMORY_BYTES = 320 << 20
"""What the objects of one pickle may take together, as `Machine` estimates them; each opcode counts, too."""

MAX_ODD_KEYS = 1_000
"""Keys whose hash a writer can choose: huge integers, complex numbers, sets."""

_OPCODE_BYTES = 64
_MEMO_BYTES = 110
_PAIR_BYTES = 100
_MAX_KEY_PARTS = 256
_NO_KWARGS: Mapping[str, object] = {}
_STOP = ord(".")


@dataclass(frozen=True, slots=True)
class Pickled:
    """What a pickle holds.

    Attributes:
        root: The object; plain containers and `Global`, `Call`, `Persistent`, `Span`.
        globals: What it would import, in the order of first mention.
        called: Those of them that it would call.
    """

    root: object
    globals: tuple[Global, ...]
    called: frozenset[Global]


def load(
    source: Source,
    *,
    find_persistent: Callable[[object], object] = Persistent,
    on_build: Callable[[Call], object] | None = None,
    max_inline_bytes: int | None = None,
) -> Pickled:
    """Read one pickle; `source` then stands behind it. See `Machine`."""
    machine = Machine(source, find_persistent=find_persistent, on_build=on_build, max_inline_bytes=max_inline_bytes)
    root = machine.load()
    return Pickled(root, tuple(machine.globals), frozenset(machine.called))


class Machine:
    """Walks one pickle, protocols 0 to 5, in bounded time and memory.

    Calls of `dict`-like, `set`-like and bytes-like builtins give the plain value (an ``OrderedDict`` is a dict, its
    attributes are dropped); all others give a `Call`.

    Args:
        source: Where the pickle begins.
        find_persistent: Gives the object for a persistent id.
        on_build: Asked after each state given to a `Call`; what it gives stands in the object's place, and it may
            step over bytes of `source` (joblib puts raw arrays there).
        max_inline_bytes: Longer byte strings become a `Span`; None keeps all in memory, within the limits.
        on_call: Shown the function and the arguments of each call, also of those that give a plain value.
        max_memory_bytes: What the objects may take together; `MAX_MEMORY_BYTES` by default.

    Attributes:
        globals: What the pickle would import, in the order of first mention; right even after an error, up to there.
        called: Those of them that it would call.
        altered: Those of them whose own attributes it would set; nothing honest does that.
    """

    def __init__(
        self,
        source: Source,
        *,
        find_persistent: Callable[[object], object] = Persistent,
        on_build: Callable[[Call], object] | None = None,
        max_inline_bytes: int | None = None,
        on_call: Callable[[object, tuple[Any, ...]], object] | None = None,
        max_memory_bytes: int | None = None,
    ) -> None:
        self.globals: dict[Global, None] = {}
        self.called: dict[Global, None] = {}
        self.altered: dict[Global, None] = {}
        self._source = source
        self._find_persistent = find_persistent
        self._on_build = on_build
        self._on_call = on_call
        self._max_memory_bytes = MAX_MEMORY_BYTES if max_memory_bytes is None else max_memory_bytes
        self._left = self._max_memory_bytes
        self._literals = Literals(source, self._charge, self._bad, max_inline_bytes)
        self._n_odd_keys = 0
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._protocol = 0

    @property
    def memory_left(self) -> int:
        """What of the memory that was allowed the objects did not need."""
        return max(self._left, 0)

    def load(self) -> object:
        """Walk the pickle to its end and give the object.

        Raises:
            BadModelError: It is damaged, or larger than the limits of this module.
        """
        handlers: dict[int, Callable[[], None]]
        handlers = {ord(code): getattr(self, f"_do_{name}") for code, name in _OPCODES.items()}
        handlers |= {ord(code): partial(self._push, value) for code, value in _CONSTANTS.items()}
        counted = {ord(code): (getattr(self, f"_{name}"), n_bytes) for code, (name, n_bytes) in _COUNTED.items()}
        literals = {
            ord(code): (getattr(self._literals, f"read_{name}"), n_bytes) for code, (name, n_bytes) in _LITERALS.items()
        }
        read_byte, read_uint = self._source.read_byte, self._literals.read_uint
        while True:
            code = read_byte()
            self._left -= _OPCODE_BYTES
            if self._left < 0:
                self._charge(0)
            if code in literals:
                read, n_bytes = literals[code]
                self._stack.append(read(read_uint(n_bytes)))
            elif code in counted:
                take, n_bytes = counted[code]
                take(read_uint(n_bytes))
            elif code in handlers:
                handlers[code]()
            elif code == _STOP:
                return self._pop()
            else:
                raise self._bad(f"found the byte 0x{code:02x}, expected a pickle opcode")

    def _bad(self, finding: str) -> BadModelError:
        where = f"{self._source.name}: pickle, near byte {self._source.position}"
        return BadModelError(f"{where}: {finding}", hint="fetch the file again, or save it again")

    def _charge(self, n_bytes: int) -> None:
        self._left -= n_bytes
        if self._left < 0:
            raise self._bad(f"its objects need over {self._max_memory_bytes >> 20} MiB, expected less")

    # The stack.

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack:
            raise self._bad("takes an object from an empty stack, expected one there")
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack:
            raise self._bad("changes an object on an empty stack, expected one there")
        return self._stack[-1]

    def _pop_mark(self) -> list[Any]:
        if not self._marks:
            raise self._bad("goes back to a mark, expected one set before")
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _do_mark(self) -> None:
        self._charge(60)
        self._marks.append(self._stack)
        self._stack = []

    def _do_pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _do_pop_mark(self) -> None:
        self._pop_mark()

    def _do_dup(self) -> None:
        self._push(self._top())

    # The memo.

    def _remember(self, index: int) -> None:
        if index < 0:
            raise self._bad(f"memo index is {index}, expected none below 0")
        self._charge(_MEMO_BYTES)
        self._memo[index] = self._top()

    def _recall(self, index: int) -> None:
        if index not in self._memo:
            raise self._bad(f"asks for memo entry {index}, expected one of the {len(self._memo)} made before")
        self._push(self._memo[index])

    def _do_put(self) -> None:
        self._remember(self._literals.read_long(0))

    def _do_memoize(self) -> None:
        self._remember(len(self._memo))

    def _do_get(self) -> None:
        self._recall(self._literals.read_long(0))

    # Objects without members.

    def _do_next_buffer(self) -> None:
        self._push(self._find_persistent("buffer outside of the pickle"))

    def _do_readonly_buffer(self) -> None:
        self._top()

    # Containers.

    def _do_empty_list(self) -> None:
        self._charge(60)
        self._push([])

    def _do_empty_dict(self) -> None:
        self._charge(100)
        self._push({})

    def _do_empty_set(self) -> None:
        self._charge(220)
        self._push(set())

    def _do_list(self) -> None:
        items = self._pop_mark()
        self._charge(60)
        self._push(items)

    def _do_tuple(self) -> None:
        items = self._pop_mark()
        self._charge(60 + 8 * len(items))
        self._push(tuple(items))

    def _do_tuple1(self) -> None:
        self._push((self._pop(),))

    def _do_tuple2(self) -> None:
        second = self._pop()
        self._push((self._pop(), second))

    def _do_tuple3(self) -> None:
        third, second = self._pop(), self._pop()
        self._push((self._pop(), second, third))

    def _do_dict(self) -> None:
        items = self._pop_mark()
        self._charge(100)
        self._push({})
        self._set_pairs(items)

    def _do_frozenset(self) -> None:
        items = self._pop_mark()
        self._push(frozenset(self._make_set(items)))

    def _do_append(self) -> None:
        self._extend([self._pop()])

    def _do_appends(self) -> None:
        self._extend(self._pop_mark())

    def _do_additems(self) -> None:
        items = self._pop_mark()
        if isinstance(self._top(), set):
            self._top().update(self._make_set(items))
        else:
            self._extend(items)

    def _do_setitem(self) -> None:
        value = self._pop()
        self._set_pairs([self._pop(), value])

    def _do_setitems(self) -> None:
        self._set_pairs(self._pop_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        self._charge(16 * len(items))
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Call):
            target.items = target.items or []
            target.items.extend(items)
        else:
            raise self._bad(f"appends to {quote(type(target).__name__)}, expected a list or an object")

    def _set_pairs(self, items: list[Any]) -> None:
        target = self._top()
        if len(items) % 2:
            raise self._bad(f"has {len(items)} keys and values, expected pairs")
        self._charge(_PAIR_BYTES // 2 * len(items))
        if isinstance(target, dict):
            for i in range(0, len(items), 2):
                target[self._key(items[i])] = items[i + 1]
        elif isinstance(target, Call):
            target.pairs = target.pairs or []
            target.pairs.extend(zip(items[::2], items[1::2], strict=True))
        else:
            raise self._bad(f"sets items of {quote(type(target).__name__)}, expected a dict or an object")

    def _make_set(self, items: Iterable[object]) -> set[object]:
        found = set()
        for item in items:
            self._charge(_PAIR_BYTES)
            found.add(self._key(item))
        self._charge(220)
        return found

    def _key(self, value: object) -> object:
        # Whoever writes the file chooses the keys: hashes they can foresee make a dictionary slow, and those of
        # tuples that share members take for ever.
        if isinstance(value, str | bytes | float | Global | Call | Persistent | Span | None):
            return value
        if isinstance(value, int) and -(2**60) < value < 2**60:
            return value
        if isinstance(value, tuple):
            key = _make_key(value)
            return self._refuse_key(value) if key is None else key
        if not isinstance(value, int | complex | frozenset):
            self._refuse_key(value)
        self._n_odd_keys += 1
        if self._n_odd_keys > MAX_ODD_KEYS:
            raise self._bad(f"has over {MAX_ODD_KEYS} keys like {quote(value)}, expected text or small integers")
        return value

    def _refuse_key(self, value: object) -> NoReturn:
        raise self._bad(f"has a key of type {type(value).__name__}, expected text, a number or a short tuple of such")

    # Imports and calls.

    def _do_global(self) -> None:
        module, name = (self._literals.read_name() for _ in range(2))
        self._push_global(module, name)

    def _do_stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if isinstance(name, str) and isinstance(module, str):
            self._push_global(module, name)
        else:
            self._push_global("<computed>", quote((module, name)))

    def _push_extension(self, code: int) -> None:
        self._push_global("copyreg", f"extension {code}")

    def _push_global(self, module: str, name: str) -> None:
        if len(module) + len(name) > 10_000:
            raise self._bad(f"imports a name of {len(module) + len(name)} characters, expected at most 10,000")
        if self._protocol < 3:
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        found = Global(module, name)
        self._charge(200 if found not in self.globals else 60)
        self.globals.setdefault(found)
        self._push(found)

    def _do_reduce(self) -> None:
        args = self._pop()
        self._call(self._pop(), args)

    def _do_newobj(self) -> None:
        args = self._pop()
        self._call(self._pop(), args)

    def _do_newobj_ex(self) -> None:
        kwargs, args = self._pop(), self._pop()
        self._call(self._pop(), args, kwargs)

    def _do_inst(self) -> None:
        self._do_global()
        function = self._pop()
        self._call(function, tuple(self._pop_mark()))

    def _do_obj(self) -> None:
        function, *args = self._pop_mark() or [None]
        self._call(function, tuple(args))

    def _call(self, function: object, args: object, kwargs: object = _NO_KWARGS) -> None:
        if isinstance(function, Global):
            self.called.setdefault(function)
        if not isinstance(args, tuple) or not isinstance(kwargs, Mapping):
            raise self._bad(f"calls with {quote(type(args).__name__)}, expected a tuple and named arguments")
        self._charge(160)
        if self._on_call is not None:
            self._on_call(function, args)
        if isinstance(function, Global) and not kwargs and function.module in _PLAIN_MODULES:
            plain = self._find_plain(function.name, args)
            if plain is not None:
                self._push(plain)
                return
        self._push(Call(function, args, kwargs))

    def _find_plain(self, name: str, args: tuple[Any, ...]) -> object:
        match name, args:
            case ("OrderedDict" | "dict" | "Counter", () | (dict() | list(),)):
                return self._make_dict(args[0] if args else {})
            case ("defaultdict", () | (_,)):
                return {}
            case ("set" | "frozenset", (list() | tuple() | set() | frozenset() as items,)):
                found = self._make_set(items)
                return found if name == "set" else frozenset(found)
            case ("complex", (int() | float(), int() | float())):
                try:
                    return complex(*args)
                except OverflowError:
                    return None
            case ("bytes" | "bytearray", ()):
                return b""
            case ("bytearray", (bytes() | Span(),)):
                return args[0]
            case ("encode" | "bytearray", (str(), "latin1" | "latin-1")):
                return self._encode(args[0])
        return None

    def _make_dict(self, items: dict[Any, Any] | list[Any]) -> dict[Any, Any] | None:
        pairs = list(items.items()) if isinstance(items, dict) else items
        if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            return None
        self._charge(100 + _PAIR_BYTES * len(pairs))
        return {self._key(key): value for key, value in pairs}

    def _encode(self, text: str) -> bytes | None:
        self._charge(60 + len(text))
        try:
            return text.encode("latin-1")
        except UnicodeEncodeError:
            return None

    def _do_build(self) -> None:
        state = self._pop()
        target = self._top()
        if isinstance(target, Global):
            self.altered.setdefault(target)
        if not isinstance(target, Call):
            return
        self._charge(60 + 8 * len(target.states))
        target.states = (*target.states, state)
        if self._on_build is not None:
            self._stack[-1] = self._on_build(target)

    def _do_persid(self) -> None:
        self._push(self._find_persistent(self._literals.read_name()))

    def _do_binpersid(self) -> None:
        self._charge(60)
        self._push(self._find_persistent(self._pop()))

    # The stream.

    def _check_protocol(self, protocol: int) -> None:
        if protocol > 5:
            raise self._bad(f"is a pickle of protocol {protocol}, expected 0 to 5")
        self._protocol = protocol

    def _check_frame(self, n_bytes: int) -> None:
        left = self._source.left
        if left is not None and n_bytes > left:
            raise ended_early(self._source.name, left, n_bytes)


class _Key(tuple[Any, ...]):
    """A tuple whose hash its writer cannot foresee."""

    __slots__ = ()

    def __hash__(self) -> int:
        return hash(repr(tuple(self)))


def _make_key(value: tuple[Any, ...]) -> _Key | None:
    todo: list[object] = list(value)
    for _ in range(_MAX_KEY_PARTS):
        if not todo:
            return _Key(value)
        part = todo.pop()
        if isinstance(part, tuple):
            todo.extend(part[:_MAX_KEY_PARTS])
        elif not isinstance(part, str | bytes | int | float | complex | Global | None):
            return None
    return None


_PLAIN_MODULES = frozenset({"collections", "builtins", "_codecs"})

_CONSTANTS = {"N": None, "\x88": True, "\x89": False, ")": ()}

_LITERALS = {
    "K": ("small", 1), "M": ("small", 2), "J": ("signed", 4), "\x8a": ("integer", 1), "\x8b": ("integer", 4),
    "I": ("int", 0), "L": ("long", 0), "F": ("float", 0), "G": ("binary_float", 8),
    "\x8c": ("text", 1), "X": ("text", 4), "\x8d": ("text", 8), "V": ("escaped_text", 0),
    "U": ("old_text", 1), "T": ("old_text", 4), "S": ("quoted_text", 0),
    "C": ("bytes", 1), "B": ("bytes", 4), "\x8e": ("bytes", 8), "\x96": ("bytes", 8),
}  # fmt: skip
"""Opcodes that push what follows them: what reads it, and the bytes of the number (a length, or the value) before."""

_COUNTED = {
    "q": ("remember", 1), "r": ("remember", 4), "h": ("recall", 1), "j": ("recall", 4),
    "\x82": ("push_extension", 1), "\x83": ("push_extension", 2), "\x84": ("push_extension", 4),
    "\x80": ("check_protocol", 1), "\x95": ("check_frame", 8),
}  # fmt: skip
"""Other opcodes that begin with an unsigned number: what takes it, and its bytes."""

_OPCODES = {
    "(": "mark", "0": "pop", "1": "pop_mark", "2": "dup", "p": "put", "\x94": "memoize", "g": "get",
    "]": "empty_list", "}": "empty_dict", "\x8f": "empty_set", "l": "list", "t": "tuple", "d": "dict",
    "\x85": "tuple1", "\x86": "tuple2", "\x87": "tuple3", "\x91": "frozenset",
    "a": "append", "e": "appends", "\x90": "additems", "s": "setitem", "u": "setitems",
    "c": "global", "\x93": "stack_global", "R": "reduce", "\x81": "newobj", "\x92": "newobj_ex", "i": "inst",
    "o": "obj", "b": "build", "P": "persid", "Q": "binpersid", "\x97": "next_buffer", "\x98": "readonly_buffer",
}  # fmt: skip
