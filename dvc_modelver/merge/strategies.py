"""Combines the values of one tensor, a function for each strategy; all of them stream through blocks of float64.

A value that one side alone changed comes out as that side has it: in float64, ``base + (ours - base)`` is ours for
every float32 and shorter value unless the two differ by more than 29 binary orders of magnitude.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

DIGIT_BITS = 16
"""Bits of a magnitude that one pass over a tensor decides; its histogram has 2^16 counts."""


class Block(NamedTuple):
    """The same elements of the three sides, each of shape ``[n]``; base is empty where a strategy needs none."""

    base: Values
    ours: Values
    theirs: Values


Read = Callable[[], Iterator[Block]]
"""Starts another pass over a tensor; a block is valid until the next is asked for."""


class Job(NamedTuple):
    """One tensor to be combined.

    Attributes:
        name: Of the tensor; seeds what is random.
        numel: Number of reals, twice the elements of a complex tensor.
        read: Gives its blocks.
        parameters: Of the strategy, all of them.
        is_wide: Whether float32 cannot hold the values of all sides.
    """

    name: str
    numel: int
    read: Read
    parameters: Mapping[str, float]
    is_wide: bool


def combine(strategy: str, job: Job) -> Iterator[Values]:
    """Give the combined values of a tensor, block by block.

    Args:
        strategy: ``mean``, ``weighted``, ``slerp``, ``task-arithmetic``, ``ties`` or ``dare``.
        job: The tensor.
    """
    pieces = _STRATEGIES[strategy](job)
    while True:
        with np.errstate(invalid="ignore", over="ignore"):
            piece = next(pieces, None)
        if piece is None:
            return
        yield piece


def mean(job: Job) -> Iterator[Values]:
    """``(ours + theirs) / 2``, element by element.

    Source: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without
    increasing inference time", ICML 2022, section 2, the uniform soup.
    """
    for _, ours, theirs in job.read():
        yield 0.5 * ours + 0.5 * theirs


def weighted(job: Job) -> Iterator[Values]:
    """``(1 - w) ours + w theirs`` with w the parameter ``weight``.

    Source: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, section 3, weight-space ensembling.
    """
    weight = job.parameters["weight"]
    for _, ours, theirs in job.read():
        yield (1 - weight) * ours + weight * theirs


def slerp(job: Job) -> Iterator[Values]:
    """``sin((1 - t) a) / sin(a) ours + sin(t a) / sin(a) theirs``: a is the angle between the two as vectors.

    t is the parameter ``weight``. The angle is that of the tensors scaled to length 1, the sum is over the tensors as
    they are. Where they point the same or the opposite way, or one is 0, it is `weighted`. Two passes: dot product and
    norms, over finite elements, then the sum.

    Source: Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985, section 3.3.
    """
    dot = xx = yy = 0.0
    for _, ours, theirs in job.read():
        is_finite = np.isfinite(ours) & np.isfinite(theirs)
        x, y = np.where(is_finite, ours, 0.0), np.where(is_finite, theirs, 0.0)
        dot, xx, yy = dot + float(x @ y), xx + float(x @ x), yy + float(y @ y)
    first, second = _slerp_weights(dot, math.sqrt(xx), math.sqrt(yy), job.parameters["weight"])
    for _, ours, theirs in job.read():
        yield first * ours + second * theirs


def _slerp_weights(dot: float, norm_a: float, norm_b: float, weight: float) -> tuple[float, float]:
    product = norm_a * norm_b
    angle = math.acos(max(-1.0, min(1.0, dot / product))) if product and math.isfinite(dot / product) else 0.0
    if math.sin(angle) < 1e-6:
        return 1 - weight, weight
    return math.sin((1 - weight) * angle) / math.sin(angle), math.sin(weight * angle) / math.sin(angle)


def task_arithmetic(job: Job) -> Iterator[Values]:
    """``base + s ((ours - base) + (theirs - base))`` with s the parameter ``scale``.

    Source: Ilharco et al., "Editing models with task arithmetic", ICLR 2023, section 2 (task vectors) and 4 (addition).
    """
    scale = job.parameters["scale"]
    for base, ours, theirs in job.read():
        yield base + scale * ((ours - base) + (theirs - base))


def ties(job: Job) -> Iterator[Values]:
    """Trim both changes, elect a sign per element, add the mean of the changes that agree with it.

    Of each side's ``ours - base`` the share ``density`` with the largest magnitudes is kept (ties in magnitude, too);
    the sign of an element is that of the sum of both; those with the other sign, and zeros, do not count in the mean;
    the result is ``base + scale * mean``. The threshold is the exact order statistic, found digit by digit in
    histograms: two passes over the tensor (four for float64), then one that combines.

    Source: Yadav et al., "TIES-Merging: resolving interference when merging models", NeurIPS 2023, algorithm 1; the
    share is kept per tensor here, since tensors that only one side changed are not combined at all.
    """
    kind = np.float64 if job.is_wide else np.float32
    limits = find_thresholds(job, max(1, math.ceil(job.parameters["density"] * job.numel)), kind)
    scale = job.parameters["scale"]
    for base, ours, theirs in job.read():
        changes = (ours - base, theirs - base)
        kept = [np.where(_magnitude(c, kind) >= limit, c, 0.0) for c, limit in zip(changes, limits, strict=True)]
        elected = np.sign(kept[0] + kept[1])
        agreeing = [np.where(np.sign(c) == elected, c, 0.0) for c in kept]
        counts = np.count_nonzero(agreeing, axis=0)
        yield base + scale * ((agreeing[0] + agreeing[1]) / np.maximum(counts, 1))


def find_thresholds(job: Job, n_kept: int, kind: type[Any]) -> tuple[float, float]:
    """Give the `n_kept`-th largest ``|ours - base|`` and ``|theirs - base|``, as numbers of type `kind`, exactly.

    The bits of magnitudes are ordered as they are, so that a radix select finds it: memory does not depend on the
    tensor's size. What is not a number counts as 0.

    Source: Knuth, "The Art of Computer Programming", volume 3, section 5.2.5 (radix sorting), applied to selection.
    """
    n_bits = np.dtype(kind).itemsize * 8
    prefixes, ranks = [0, 0], [n_kept, n_kept]
    for shift in range(n_bits - DIGIT_BITS, -1, -DIGIT_BITS):
        counts = [np.zeros(1 << DIGIT_BITS, np.int64) for _ in range(2)]
        for base, ours, theirs in job.read():
            for side, values in enumerate((ours, theirs)):
                bits = np.nan_to_num(_magnitude(values - base, kind), nan=0.0, posinf=np.inf).view(f"u{n_bits // 8}")
                digits = bits >> bits.dtype.type(shift)
                if shift + DIGIT_BITS < n_bits:
                    digits = digits[digits >> digits.dtype.type(DIGIT_BITS) == prefixes[side]]
                    digits = digits & digits.dtype.type((1 << DIGIT_BITS) - 1)
                counts[side] += np.bincount(digits.astype(np.int64), minlength=1 << DIGIT_BITS)
        for side in range(2):
            from_top = np.cumsum(counts[side][::-1])
            place = int(np.searchsorted(from_top, ranks[side]))
            ranks[side] -= int(from_top[place - 1]) if place else 0
            prefixes[side] = prefixes[side] << DIGIT_BITS | ((1 << DIGIT_BITS) - 1 - place)
    found = [float(np.array(prefix, f"u{n_bits // 8}").view(kind)) for prefix in prefixes]
    return found[0], found[1]


def _magnitude(values: Values, kind: type[Any]) -> NDArray[Any]:
    return np.abs(values).astype(kind)


def dare(job: Job) -> Iterator[Values]:
    """Drop elements of both changes at random, scale up the rest, add both to the base.

    ``base + s (m1 (ours - base) + m2 (theirs - base)) / density``: m1 and m2 are 1 with probability ``density``, else
    0. They follow from the parameter ``seed`` and the tensor's name alone: 32 bits for each side of the raw output of
    the counter-based generator Philox, which is the same on every machine.

    Source: Yu et al., "Language models are super Mario: absorbing abilities from homologous models as a free lunch",
    ICML 2024, equation 1 (drop and rescale) and section 3.3 (merging by task arithmetic); Salmon et al., "Parallel
    random numbers: as easy as 1, 2, 3", SC 2011.
    """
    density, scale = job.parameters["density"], job.parameters["scale"]
    key = hashlib.blake2b(f"{int(job.parameters['seed'])}\0{job.name}".encode(), digest_size=16).digest()
    generator = np.random.Philox(key=int.from_bytes(key, "little"))
    limit = round(density * 2**32)
    for base, ours, theirs in job.read():
        raw = generator.random_raw(ours.size)
        first = np.where((raw & np.uint64(0xFFFFFFFF)) < limit, ours - base, 0.0)
        second = np.where((raw >> np.uint64(32)) < limit, theirs - base, 0.0)
        yield base + scale / density * (first + second)


_STRATEGIES: dict[str, Callable[[Job], Iterator[Values]]] = {
    "mean": mean,
    "weighted": weighted,
    "slerp": slerp,
    "task-arithmetic": task_arithmetic,
    "ties": ties,
    "dare": dare,
}
