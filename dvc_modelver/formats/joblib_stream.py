"""The pickles that ``joblib.dump`` writes: an array's bytes lie in the stream, right behind the record of the array.

Sources: ``joblib/numpy_pickle.py`` (``NumpyArrayWrapper``) of joblib 1.6; a wrapper without
``numpy_array_alignment_bytes`` is of joblib 1.1 or before, and has no padding.
"""

from __future__ import annotations

from typing import Any

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import quote
from dvc_modelver.formats.numpy_records import HINT, ArrayParser, NumpyType, find_class
from dvc_modelver.formats.pickle_literals import Literals
from dvc_modelver.formats.pickles import Call, Machine, Source, Span

MAX_INLINE_BYTES = 4 << 10
MAX_INLINE_TEXT_BYTES = 64 << 10

_MODULES = tuple(
    f"{package}.numpy_pickle{part}" for package in ("joblib", "sklearn.externals.joblib") for part in ("", "_compat")
)
_OLD_WRAPPERS = ("NDArrayWrapper", "ZNDArrayWrapper")


class _Literals(Literals):
    """Reads values, and leaves long texts where they are: LightGBM's models, and arrays in protocols 0 to 2."""

    def read_text(self, n_bytes: int) -> Any:
        """Give a text in UTF-8, or where it is."""
        return self.read_bytes(n_bytes) if n_bytes > MAX_INLINE_TEXT_BYTES else super().read_text(n_bytes)


class StreamMachine(Machine):
    """Walks a pickle that may have arrays beside its opcodes; long bytes and texts stay where they are.

    Args:
        source: Where the pickle begins.
        before: A machine whose limits this one shares: of an earlier pickle of the same file, or of one around it.
        has_arrays: Whether arrays may lie beside the opcodes.
    """

    def __init__(self, source: Source, before: StreamMachine | None = None, *, has_arrays: bool = True) -> None:
        super().__init__(source, on_build=self._read_beside if has_arrays else None, max_inline_bytes=MAX_INLINE_BYTES)
        self._literals = _Literals(source, self._charge, self._bad, MAX_INLINE_BYTES)
        self._parser: ArrayParser = before._parser if before else ArrayParser(source.name)
        if before is not None:
            self._left = before._left

    def _read_beside(self, call: Call) -> object:
        module, _, kind_name = find_class(call).rpartition(".")
        if module not in _MODULES:
            return call
        if kind_name in _OLD_WRAPPERS:
            raise BadModelError(
                f"{self._source.name}: keeps arrays in files beside it, as joblib before 0.10 did; expected one file",
                hint="load it with joblib.load if you trust it, and save it again",
            )
        if kind_name != "NumpyArrayWrapper":
            return call
        state = call.attributes()
        kind = self._parser.parse_type(state.get("dtype"))
        if kind is None:
            found = f"{quote(state.get('shape'))} and type {quote(state.get('dtype'))}"
            raise BadModelError(
                f"{self._source.name}: has an array of shape {found}, expected a type of NumPy", hint=HINT
            )
        return self._read_objects() if kind.has_objects else self._read_values(kind, state)

    def _read_objects(self) -> object:
        # They are a pickle of their own, of protocol 5 and without a wrapper.
        inner = StreamMachine(self._source, self, has_arrays=False)
        root = inner.load()
        self._left = inner._left
        self.globals.update(inner.globals)
        self.called.update(inner.called)
        return root

    def _read_values(self, kind: NumpyType, state: dict[str, object]) -> object:
        if state.get("numpy_array_alignment_bytes") is not None:
            self._source.skip(self._source.read_byte())
        shape = state.get("shape")
        _, n_bytes = self._parser.check_shape(kind, shape)
        span = Span(self._source.position, n_bytes)
        self._source.skip(n_bytes)
        self._charge(1_000)
        return self._parser.make(kind, shape, state.get("order") == "F", span)
