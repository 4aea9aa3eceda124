"""Fingerprints: digest, statistics and sketch of every tensor, from its values; opens no file.

Importing this package loads the standard library only, because the diff driver does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from dvc_modelver.errors import BadModelError
from dvc_modelver.fingerprint.row import TensorRow, round_statistic
from dvc_modelver.tensors import BLOCKS, TensorSpec, is_quantised, value_dtype

if TYPE_CHECKING:
    from dvc_modelver.fingerprint.sketch import Workspace

__all__ = ["TensorRow", "TensorSource", "choose_k", "fingerprint"]


class TensorSource(Protocol):
    """What fingerprinting needs of a reader."""

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """Every tensor, sorted by name."""
        ...

    def iter_buffers(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give the stored values, little-endian in C order, in buffers of `n_bytes` but for the last."""
        ...

    def iter_values(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give the values as real numbers: those that a quantised tensor stands for."""
        ...


def choose_k(n_tensors: int) -> int:
    """Give the sketch size that keeps a table of `n_tensors` rows small: 64, 32 or 16 values."""
    if n_tensors <= 2_000:
        return 64
    return 32 if n_tensors <= 8_000 else 16


def fingerprint(
    reader: TensorSource, *, k: int | None = None, progress: Callable[[int], None] | None = None
) -> Iterator[TensorRow]:
    """Read every tensor once and describe it, in memory that does not depend on the file's size.

    Args:
        reader: An open model file.
        k: Values per sketch, 16 to 256; by default what `choose_k` gives.
        progress: Called with the number of bytes read since the last call.

    Yields:
        One row per tensor, sorted by name.

    Raises:
        BadModelError: The file is damaged, or ends before its tensors do (somebody is writing it).
    """
    from dvc_modelver.fingerprint.sketch import Workspace

    k = choose_k(len(reader.specs)) if k is None else k
    workspace = Workspace()
    for spec in sorted(reader.specs, key=lambda spec: spec.name):
        yield _describe(reader, spec, k, workspace, progress)


def _describe(
    reader: TensorSource,
    spec: TensorSpec,
    k: int,
    workspace: Workspace,
    progress: Callable[[int], None] | None,
) -> TensorRow:
    from dvc_modelver.fingerprint.digest import TensorDigest
    from dvc_modelver.fingerprint.sketch import CHUNK, SketchAccumulator
    from dvc_modelver.fingerprint.values import real_bytes

    digest = TensorDigest()
    packed = is_quantised(spec.dtype)
    dtype = value_dtype(spec.dtype)
    size = real_bytes(dtype)
    sketch = SketchAccumulator(dtype, spec.numel, workspace) if size else None
    n_read = 0
    for buffer in reader.iter_buffers(spec, CHUNK * (size or 1)):
        digest.update(buffer)
        if sketch and not packed:
            sketch.update(buffer)
        n_read += len(buffer)
        if progress:
            progress(len(buffer))
    if n_read != spec.nbytes:
        raise BadModelError(f"tensor {spec.name!r}: ended early, found {n_read} of {spec.nbytes} bytes")
    if sketch is None:
        return TensorRow(name=spec.name, dtype=spec.dtype, shape=spec.shape, role=spec.role, digest=digest.finish())
    if packed:
        for buffer in reader.iter_values(spec, CHUNK * (size or 1)):
            sketch.update(buffer)
            if spec.dtype not in BLOCKS:
                digest.update(buffer)  # the same integers by another scale are other values
    facts = sketch.finish()
    return TensorRow(
        name=spec.name,
        dtype=spec.dtype,
        shape=spec.shape,
        role=spec.role,
        digest=digest.finish(),
        norm=round_statistic(facts.norm),
        mean=round_statistic(facts.mean),
        std=round_statistic(facts.std),
        min=round_statistic(facts.min),
        max=round_statistic(facts.max),
        zeros=facts.zeros,
        nonfinite=facts.nonfinite,
        sketch=sketch.encode(k),
    )
