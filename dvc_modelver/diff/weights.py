"""Replaces estimates by what the values of the tensors say, for those whose digests differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from dvc_modelver.diff import adapters, blocks, exact, reshaped
from dvc_modelver.diff.changes import Side, TensorChange
from dvc_modelver.fingerprint.estimate import Estimate
from dvc_modelver.formats import Reader
from dvc_modelver.tensors import TensorSpec

Progress = Callable[[int], None]


def measure_weights(changes: Sequence[TensorChange], old: Side, new: Side, progress: Progress) -> list[TensorChange]:
    """Measure pairs of tensors on their values; both sides can be opened.

    Args:
        changes: Pairs as their rows have them.
        old: The old version.
        new: The new version.
        progress: Called with the number of bytes read since the last call.

    Raises:
        BadModelError: A file is damaged.
    """
    assert old.open is not None and new.open is not None
    found = list(changes)
    todo = [
        (i, (adapters.spec_of(t.old), adapters.spec_of(t.new)))
        for i, t in enumerate(found)
        if t.old and t.new and not t.bytes_equal
    ]
    alike = [(i, specs) for i, specs in todo if blocks.is_measurable(*specs)]
    shared = not (old.is_remote or new.is_remote)
    measured = exact.measure_pairs([s for _, s in alike], old.open, new.open, shared=shared, progress=progress)
    for (i, _), values in zip(alike, measured, strict=True):
        found[i] = _with_values(found[i], values)
    square = [(i, s) for i, s in alike if _may_be_transposed(found[i], s)]
    if square:
        with old.open() as first, new.open() as second:
            for i, (a, b) in square:
                turned = reshaped.measure_transposed(first, a, second, b)
                found[i] = _with_transpose(found[i], turned, 0.5)
    unlike = [(i, s) for i, s in todo if s[0].shape != s[1].shape and all(map(blocks.has_numbers, s))]
    if unlike:
        with old.open() as first, new.open() as second:
            for i, (a, b) in unlike:
                turned = reshaped.measure_transposed(first, a, second, b)
                found[i] = _with_transpose(found[i], turned, 1)
                if not found[i].note:
                    found[i] = replace(found[i], note=_rows_note(first, a, second, b))
    return _with_products(found, old, new)


def _with_values(t: TensorChange, values: exact.Measured) -> TensorChange:
    assert t.old is not None and t.new is not None
    same = values.is_same and t.old.dtype == t.new.dtype
    change = "unchanged" if same and t.change == "modified" and t.old.shape == t.new.shape else t.change
    return replace(t, measured=values.estimate, exact=values, bytes_equal=same, change=change)


def _with_products(changes: list[TensorChange], old: Side, new: Side) -> list[TensorChange]:
    """Let the factors of an adapter's layers say what their products do."""
    assert old.open is not None and new.open is not None
    first, second = _layers(old), _layers(new)
    common = [name for name in first.keys() & second.keys() if first[name].shape == second[name].shape]
    if not common:
        return changes
    applied: dict[str, Estimate] = {}
    with old.open() as before, new.open() as after:
        for name in common:
            found = adapters.measure_product(before, first[name], after, second[name])
            # One object for both factors: the model's distance counts it once.
            applied |= dict.fromkeys((second[name].a.name, second[name].b.name), found)
    return [replace(t, applied=applied.get(t.name)) if t.old and t.new else t for t in changes]


def _layers(side: Side) -> dict[str, adapters.Layer]:
    return adapters.find_layers(side.table.rows, side.table.structure) if side.table is not None else {}


def find_merged(old: Side, new: Side) -> adapters.Merged | None:
    """Measure how much of an adapter's products is in the other side's weights; None where no side is one.

    Raises:
        BadModelError: A file is damaged.
    """
    for adapter, whole in ((old, new), (new, old)):
        layers = _layers(adapter)
        targets = adapters.find_targets(layers, whole.table.rows) if layers and whole.table is not None else {}
        if targets and adapter.open is not None and whole.open is not None:
            with adapter.open() as first, whole.open() as second:
                return adapters.measure_merged(first, layers, second, targets)
    return None


def _may_be_transposed(t: TensorChange, specs: tuple[TensorSpec, TensorSpec]) -> bool:
    """Whether a square matrix has so little in common with the old one that it may have been turned."""
    shape = specs[0].shape
    return len(shape) == 2 and shape[0] == shape[1] > 1 and t.cosine is not None and t.cosine < 0.5


def _with_transpose(t: TensorChange, turned: exact.Measured | None, limit: float) -> TensorChange:
    """Note that a tensor was transposed, where its relative L2 so is below `limit`.

    Under another framework's name that is the same tensor, and what changed is measured in its order.
    """
    l2 = turned.estimate.relative_l2 if turned is not None else None
    if turned is None or l2 is None or l2 >= limit:
        return t
    t = replace(t, note=f"transposed, relative L2 {l2:.3g}")
    if not t.by_rule:
        return t
    values = replace(turned, max_abs_at=None)  # a place in the old order
    return replace(t, measured=turned.estimate, exact=values, is_transposed=True)


def _rows_note(old: Reader, a: TensorSpec, new: Reader, b: TensorSpec) -> str:
    """Say which rows a tensor of another length has in common with the old one."""
    rows = reshaped.measure_rows(old, a, new, b) if a.numel != b.numel else None
    if rows is None:
        return ""
    shared = reshaped.match_rows(old, a, new, b)
    if shared is not None and shared.same > min(a.shape[0], b.shape[0]) // 2:
        parts = [f"{n:,} rows {word}" for n, word in ((shared.removed, "removed"), (shared.added, "added")) if n]
        return f"{', '.join(parts)}; the other {shared.same:,} are the same"
    common = f"the first {min(a.shape[0], b.shape[0]):,} rows"
    if rows.is_same:
        return f"{common} are the same"
    l2 = rows.estimate.relative_l2
    return f"{common} moved, relative L2 {l2:.3g}" if l2 is not None else ""
