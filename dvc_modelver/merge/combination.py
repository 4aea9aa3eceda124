"""Combines the values of one tensor of a merge while they are read: the part that needs NumPy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dvc_modelver.errors import BadModelError
from dvc_modelver.fingerprint.digest import TensorDigest
from dvc_modelver.fingerprint.row import TensorRow
from dvc_modelver.fingerprint.values import encode, make_decoder, real_bytes
from dvc_modelver.formats import Reader
from dvc_modelver.merge.decisions import Decision
from dvc_modelver.merge.strategies import Block, Job, combine
from dvc_modelver.strategy import NEEDS_BASE
from dvc_modelver.tensors import TensorSpec, value_dtype

BLOCK = 1 << 17
"""Elements of each side that are held at a time."""
WIDE = frozenset({"F64", "C128"})
"""Dtypes whose values float32 cannot hold."""

_EMPTY = np.empty(0)


class Combination:
    """The values of a tensor that are combined from the sides, given once.

    Args:
        decision: What becomes of the tensor; its strategy combines.
        readers: The open models by side.
        specs: Their tensors, by side and name.

    Attributes:
        digest: Of the values; empty until all were given.
        note: A sentence where values are not finite, else empty; likewise.
    """

    def __init__(
        self, decision: Decision, readers: Mapping[str, Reader], specs: Mapping[str, Mapping[str, TensorSpec]]
    ) -> None:
        self._decision, self._readers, self._specs = decision, readers, specs
        self.digest = self.note = ""

    def __iter__(self) -> Iterator[memoryview]:
        """Give the values as they are stored."""
        decision = self._decision
        assert decision.strategy is not None
        rows = {"base": decision.base, "ours": decision.ours, "theirs": decision.theirs}
        if decision.strategy.name not in NEEDS_BASE:
            rows.pop("base")
        counts = _Nonfinite()
        n_reals = 2 if decision.dtype.startswith("C") else 1
        job = Job(
            name=decision.name,
            numel=TensorSpec("", decision.dtype, decision.shape).numel * n_reals,
            read=lambda: self._iter_blocks(rows, counts),
            parameters=decision.strategy.parameters,
            is_wide=any(row is not None and row.dtype in WIDE for row in rows.values()),
        )
        digest, dtype = TensorDigest(), decision.dtype
        decode = make_decoder(dtype, np.empty(BLOCK, np.float32))
        for values in combine(decision.strategy.name, job):
            data = encode(values, dtype)
            counts.add_result(values, decode(memoryview(data)))
            digest.update(data)
            yield memoryview(data)
        self.digest, self.note = digest.finish(), counts.describe(decision)

    def _iter_blocks(self, rows: Mapping[str, TensorRow | None], counts: _Nonfinite) -> Iterator[Block]:
        """Start a pass: the same elements of each side, as float64."""
        counts.restart()
        sides = [side for side, row in rows.items() if row is not None]
        streams = [self._iter_reals(side, row.name) for side, row in rows.items() if row is not None]
        for parts in zip(*streams, strict=True):
            if len({part.size for part in parts}) > 1:
                raise BadModelError(f"tensor {next(iter(rows.values()))!r}: the sides ended at different lengths")
            found = dict(zip(sides, parts, strict=True))
            counts.add_inputs(found)
            yield Block(found.get("base", _EMPTY), found["ours"], found["theirs"])

    def _iter_reals(self, side: str, name: str) -> Iterator[NDArray[np.float64]]:
        spec = self._specs[side][name]
        dtype = value_dtype(spec.dtype)
        decode = make_decoder(dtype, np.empty(BLOCK, np.float32))
        for raw in self._readers[side].iter_values(spec, BLOCK * (real_bytes(dtype) or 1)):
            with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
                values = decode(raw).astype(np.float64)
            yield values


class _Nonfinite:
    """Counts values that are NaN or infinite, in the inputs of a tensor and in what came out."""

    def __init__(self) -> None:
        self._inputs: dict[str, int] = {}
        self._result = self._overflown = 0

    def restart(self) -> None:
        self._inputs = {}

    def add_inputs(self, parts: Mapping[str, NDArray[np.float64]]) -> None:
        for side, values in parts.items():
            self._inputs[side] = self._inputs.get(side, 0) + _count(values)

    def add_result(self, values: NDArray[np.float64], stored: NDArray[Any]) -> None:
        n_stored = _count(stored)
        if n_stored:
            self._result += n_stored
            self._overflown += n_stored - _count(values)

    def describe(self, decision: Decision) -> str:
        found = [f"{n:,} in {side}" for side, n in self._inputs.items() if n]
        if not found and not self._result:
            return ""
        if self._overflown:
            found.append(f"{self._overflown:,} beyond the range of {decision.dtype}")
        return f"{decision.name}: {self._result:,} values of the result are NaN or infinite ({', '.join(found)})"


def _count(values: NDArray[Any]) -> int:
    return values.size - int(np.count_nonzero(np.isfinite(values)))
