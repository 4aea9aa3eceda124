"""Pickles: what they import and call, in one stream or several behind each other, with joblib's arrays between.

A stream is read as the program that made it reads it. Where that means to step over bytes (joblib does not unpickle
the arrays that stand in its pickles), the stream is read a second time as `pickle` alone would, since nobody knows
which of the two will load it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import count_elements, quote
from dvc_modelver.formats.pickles import Call, Global, Machine, Persistent, Source, Span
from dvc_modelver.formats.torch_container import LEGACY_MAGIC
from dvc_modelver.security.parts import Budget, Part, bytes_part, window_part
from dvc_modelver.security.verdicts import COMPUTED, Findings, Verdict, judge_import

MAX_PICKLES = 10_000
MAX_INLINE_BYTES = 1 << 12
MAX_UNPACKED_INLINE_BYTES = 1 << 20
"""Of a byte string that is kept; a longer one is looked up in the file, which a compressed file does not allow."""

MAX_INNER = 1_000
GUESS_BYTES = 1 << 13
"""What a guess costs at least: archives may have as many members as they like."""

LEGACY_PICKLES = 5
"""Magic number, protocol, machine, the object, keys of the storages: then PyTorch's old stream has raw bytes."""

LOADERS = frozenset({"torch.storage._load_from_bytes"})
"""Allowed functions that load the bytes they are given; the scan goes on in those."""

_FILES = frozenset({"_io.BytesIO", "io.BytesIO"})
_WRAPPERS = frozenset(
    {"joblib.numpy_pickle.NumpyArrayWrapper", "sklearn.externals.joblib.numpy_pickle.NumpyArrayWrapper"}
)
_NUMBERS = re.compile(r"([fiubcmMSUV])(\d{1,9})")
_OBJECTS = re.compile(r"O\d?|object")
_HAS_OBJECTS = 1
_NAMELESS = "bytes"
_STARTS = (b"\x80", b"PK\x03\x04", b"\x1f\x8b", b"\x93NUMPY")

Follow = Callable[[Part, bool], object]


class PickleScan:
    """Scans the pickles of one part.

    Args:
        part: The bytes.
        findings: Take what is found.
        budget: Pays for the walk.
        follow: Called with the bytes that a pickle hands to something that loads them, and whether it surely does.

    Attributes:
        is_legacy: It is PyTorch's old stream: behind its pickles lie raw values.
    """

    def __init__(self, part: Part, findings: Findings, budget: Budget, follow: Follow) -> None:
        self._part, self._findings, self._budget, self._follow = part, findings, budget, follow
        is_packed = part.n_bytes is None
        self._max_inline_bytes = MAX_UNPACKED_INLINE_BYTES if is_packed else MAX_INLINE_BYTES
        self._inner: list[tuple[bytes | Span, bool]] = []
        self._remarks: dict[tuple[str, str], None] = {}
        self._running: list[tuple[Machine, int]] = []
        self._skipped = False
        self.is_legacy = False

    def scan(self) -> None:
        """Scan a part that is known to be pickles: what cannot be read is noted."""
        try:
            self._scan_stream(self._part.source())
        except BadModelError as err:
            self._note("damage", str(err).removeprefix(f"{self._part.name}: "))
        self._follow_inner()
        if self._skipped:
            self.guess(is_likely=True)

    def guess(self, *, is_likely: bool = False) -> None:
        """Scan a part that may be no pickle at all: damage means that it is none, and only danger counts.

        Args:
            is_likely: It begins like one, so that the search may take longer.
        """
        left = (self._budget.memory if is_likely else self._budget.guesses) - GUESS_BYTES
        machine = Machine(
            self._part.source(),
            find_persistent=_find_persistent,
            on_call=self._on_call,
            max_inline_bytes=self._max_inline_bytes,
            max_memory_bytes=left,
        )
        try:
            machine.load()
            is_whole = not self._skipped
        except BadModelError:
            is_whole = False
        if is_likely:
            self._budget.memory = machine.memory_left
        else:
            self._budget.guesses = machine.memory_left
        if is_whole or any(_is_named_danger(found) for found in machine.globals):
            self._judge(machine)
            self._follow_inner()

    def _scan_stream(self, source: Source) -> None:
        for n in range(MAX_PICKLES):
            begin = source.position
            try:
                root = self._load(source)
            except BadModelError as err:
                if n == 0:
                    raise
                raise BadModelError(f"what begins at byte {begin}, behind {n} pickles, cannot be read ({err})") from err
            self.is_legacy = self.is_legacy or (n == 0 and root == LEGACY_MAGIC)
            if (self.is_legacy and n + 1 == LEGACY_PICKLES) or source.at_end():
                return
        raise BadModelError(f"over {MAX_PICKLES} pickles behind each other, expected fewer")

    def _load(self, source: Source, *, is_array: bool = False) -> object:
        allowance = self._budget.memory - sum(given - machine.memory_left for machine, given in self._running)
        machine = Machine(
            source,
            find_persistent=_find_persistent,
            on_call=self._on_call,
            on_build=None if is_array else lambda call: self._on_build(call, source),
            max_inline_bytes=self._max_inline_bytes,
            max_memory_bytes=allowance,
        )
        self._running.append((machine, allowance))
        try:
            return machine.load()
        finally:
            self._running.pop()
            self._budget.memory -= allowance - machine.memory_left
            self._judge(machine)

    def _judge(self, machine: Machine) -> None:
        for found in machine.globals:
            self._findings.add_import(self._part.member, found, "call" if found in machine.called else "import")
        for found in machine.altered:
            why = "changes a function or class of the program that loads it"
            self._findings.add(self._part.member, str(found), "call", Verdict.DANGEROUS, why)
        for name, why in self._remarks:
            self._findings.add(self._part.member, name, "call", Verdict.UNKNOWN, why)

    def _note(self, kind: str, reason: str) -> None:
        self._findings.add(self._part.member, "", kind, Verdict.UNKNOWN, reason)

    # Calls

    def _on_call(self, function: object, args: tuple[Any, ...]) -> None:
        is_loader = isinstance(function, Global) and str(function) in LOADERS
        if not isinstance(function, Global):
            self._remarks[COMPUTED, "calls what another call gives"] = None
        if is_loader and not all(isinstance(arg, bytes | Span) for arg in args):
            self._remarks[str(function), "loads bytes that are not in the file"] = None
        for arg in args[:4]:
            self._keep(arg, is_loader)

    def _keep(self, data: object, is_loader: bool) -> None:
        if isinstance(data, Span) or (isinstance(data, bytes) and (is_loader or data.startswith(_STARTS))):
            self._inner.append((data, is_loader))

    def _follow_inner(self) -> None:
        inner, self._inner = self._inner, []
        if sum(is_loader for _, is_loader in inner) > MAX_INNER:
            self._note("damage", f"hands over {MAX_INNER} byte strings to loaders, expected fewer")
        member = f"{self._part.member}: bytes" if self._part.member else "bytes"
        depth = self._part.depth + 1
        for data, is_loader in inner[:MAX_INNER]:
            # The values of an array may begin like anything by chance: without a suffix, only what holds counts.
            name = self._part.name if is_loader else _NAMELESS
            if isinstance(data, bytes):
                self._follow(bytes_part(data, member, name, depth), is_loader)
            elif self._part.n_bytes is not None:
                file = self._part.open()
                part = window_part(file, member, name, data.start, data.n_bytes, depth)
                if is_loader or part.read(8).startswith(_STARTS):
                    self._follow(part, is_loader)
            elif is_loader:
                self._note("damage", f"hands {data.n_bytes} compressed bytes to a loader, expected fewer")

    # Arrays of joblib

    def _on_build(self, call: Call, source: Source) -> object:
        if call.name in _FILES:
            for state in call.states:
                self._keep(state[0] if isinstance(state, tuple) and state else None, False)
        if call.name not in _WRAPPERS:
            return call
        self._skipped = True
        n_bytes = _measure_array(call)
        if n_bytes is None:
            return self._load(source, is_array=True)
        if call.attributes().get("numpy_array_alignment_bytes") is not None:
            source.skip(source.read_byte())
        source.skip(n_bytes)
        return call


def _find_persistent(pid: object) -> object:
    match pid:
        case ("module", Global() as kind, *_):  # PyTorch's old stream: a class, with its source for a warning
            return kind
    return Persistent(pid)


def _is_named_danger(found: Global) -> bool:
    # Random bytes compute names, too; they do not spell those of dangerous functions.
    return found.module != COMPUTED and judge_import(found)[0] is Verdict.DANGEROUS


def _measure_array(wrapper: Call) -> int | None:
    """Give the bytes of an array that joblib wrote behind its description; None for one of objects, a pickle.

    Source: ``NumpyArrayWrapper.read_array`` of joblib 1.6, and ``arraydescr_setstate`` of NumPy for the flag.
    """
    facts = wrapper.attributes()
    shape, dtype = facts.get("shape"), facts.get("dtype")
    numel = None
    if isinstance(shape, tuple) and all(type(axis) is int for axis in shape):
        numel = count_elements(shape)
    if numel is None or not isinstance(dtype, Call) or dtype.name != "numpy.dtype" or not dtype.args:
        raise BadModelError(f"an array of shape {quote(shape)} and type {quote(dtype)}, expected one of numbers")
    code = str(dtype.args[0])
    match dtype.states:
        case ():
            n_item, flags = -1, 0
        case ((_, _, _, _, _, int() as n_item, _, int() as flags, *_),):
            pass
        case _:
            raise BadModelError(f"an array of the type {quote(dtype.states)}, expected eight facts")
    has_objects = bool(flags & _HAS_OBJECTS)
    if _OBJECTS.fullmatch(code):
        return None
    numbers = _NUMBERS.fullmatch(code)
    if numbers is None:
        raise BadModelError(f"an array of the type {quote(code)}, expected numbers, text or objects")
    kind, n_bytes = numbers[1], int(numbers[2]) * (4 if numbers[1] == "U" else 1)
    if has_objects:
        if kind == "V":
            return None
        raise BadModelError(f"an array of the type {quote(code)} with objects, expected one or the other")
    if n_item not in (-1, n_bytes):
        raise BadModelError(f"an array of the type {quote(code)} with {n_item} bytes, expected {n_bytes}")
    return numel * n_bytes


def looks_pickled(start: bytes) -> bool:
    """Tell by its first bytes whether something is a pickle of protocol 2 or later."""
    return len(start) > 1 and start[0] == 0x80 and start[1] <= 5


def may_be_pickled(start: bytes) -> bool:
    """Tell by its first byte whether something may be a pickle: they have no signature before protocol 2."""
    return start[:1] in _OPENERS


_OPENERS = frozenset(
    bytes([code]) for code in b"\x80(]})\x82\x83\x84\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x95\x96\x97BCFGIJKLMNPSTUVXc"
)
"""Opcodes that a pickle may begin with."""
