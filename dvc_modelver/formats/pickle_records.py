"""What stands in a pickle's data for what the pickle would have imported, called or fetched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dvc_modelver.formats.base import printable


@dataclass(frozen=True, slots=True)
class Global:
    """Something a pickle would import; here, its name alone.

    Attributes:
        module: Dotted, as Python 3 calls it (`__builtin__` is ``builtins``).
        name: In that module; with dots where it lies inside a class. For a name that the pickle computes when it
            runs, `module` is ``"<computed>"``: nothing honest does that.
    """

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True, eq=False)
class Persistent:
    """An object kept outside of the stream, by the name the writer gave it."""

    pid: object

    def __repr__(self) -> str:
        return "Persistent()"


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes that were left where they are, because they are many.

    Attributes:
        start: Offset in the file of the `Source`.
        n_bytes: Their number.
    """

    start: int
    n_bytes: int


class Call:
    """An object that a pickle would make by calling something; nothing was called.

    Attributes:
        function: What it would call: a `Global`, or, in hostile files, anything.
        args: Positional arguments; of ``cls.__new__`` without the class.
        kwargs: Keyword arguments.
        states: What it would give to ``__setstate__`` or ``__dict__``, one after the other.
        items: What it would append or add to the object.
        pairs: What it would set in the object as ``object[key] = value``.
    """

    __slots__ = ("args", "function", "items", "kwargs", "pairs", "states")

    def __init__(self, function: object, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.states: tuple[object, ...] = ()
        self.items: list[object] | tuple[()] = ()
        self.pairs: list[tuple[object, object]] | tuple[()] = ()

    def __repr__(self) -> str:
        return f"Call({printable(self.name) or '?'})"

    @property
    def name(self) -> str:
        """Dotted name of the function; empty where it is not a plain import."""
        return str(self.function) if isinstance(self.function, Global) else ""

    def attributes(self) -> dict[str, object]:
        """Give the attributes that the object's states would set, as its ``__dict__`` would hold them."""
        found: dict[str, object] = {}
        for state in self.states:
            for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
                if isinstance(part, dict):
                    found.update((key, value) for key, value in part.items() if isinstance(key, str))
        return found
