"""Measures what changed between two versions, from their tensor tables; decides everything that is printed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dvc_modelver.diff.adapters import describe_adapters, find_layers, find_targets
from dvc_modelver.diff.changes import FactChange, ModelDiff, Side, TensorChange
from dvc_modelver.diff.classify import Classified, classify
from dvc_modelver.diff.trees import classify_trees, is_of_tree
from dvc_modelver.fingerprint.estimate import UNDEFINED, Estimate, combine, estimate_rows
from dvc_modelver.fingerprint.match import Pair, is_explained, match_tensors
from dvc_modelver.metadata import ModelMetadata
from dvc_modelver.tensors import is_float


def compare(
    old: Side | None, new: Side | None, *, exact: bool = False, progress: Callable[[int], None] = lambda _n: None
) -> ModelDiff:
    """Compare two versions; a side that is None does not exist (the model was added or removed).

    "Did it change?" is answered by digests alone; the numbers are estimates from norms and sketches, or are measured
    on the values of the tensors whose digests differ.

    Args:
        old: The old version.
        new: The new version.
        exact: Measure the values; both sides must be able to `open` them.
        progress: Called with the number of bytes read since the last call.

    Raises:
        ValueError: Both sides are None.
        BadModelError: A file is damaged.
    """
    there = new or old
    if there is None:
        raise ValueError("two absent sides have nothing to compare")
    old_rows = old.table.rows if old is not None and old.table is not None else ()
    new_rows = new.table.rows if new is not None and new.table is not None else ()
    exact = exact and all(side is not None and side.open is not None for side in (old, new))
    matching = match_tensors(old_rows, new_rows, across=exact)
    changes = [_measure(p) for p in matching.pairs]
    if exact and old is not None and new is not None:
        from dvc_modelver.diff.weights import measure_weights

        changes = measure_weights(changes, old, new, progress)
    tensors = tuple(sorted(changes, key=lambda t: t.name))
    bytes_equal = old is not None and new is not None and bool(old.md5) and old.md5 == new.md5
    whole = combine(_counted(tensors)) if old is not None and new is not None else UNDEFINED
    facts = _facts(old.metadata if old else None, new.metadata if new else None)
    kind = _kind(old, new, tensors, whole, bytes_equal=bytes_equal)
    adapters = _adapter_note(old, new, exact=exact) if old is not None and new is not None and not bytes_equal else ""
    return ModelDiff(
        path=there.path,
        old=old,
        new=new,
        kind=kind.kind,
        reason=f"{kind.reason}; {adapters}" if adapters else kind.reason,
        cosine=whole.cosine,
        relative_l2=whole.relative_l2,
        relative_l2_error=whole.error,
        distance=None if whole.squared_distance is None else math.sqrt(whole.squared_distance),
        bytes_equal=bytes_equal,
        parameters=_parameters(tensors),
        tensors=tensors,
        hyperparameters=facts["hyperparameters"],
        metrics=facts["metrics"],
        data=facts["data"],
        structure=_structure(old, new),
        warnings=tuple(_warnings(tensors)),
        renames=matching.rules,
        exact=exact,
    )


def _kind(old: Side | None, new: Side | None, tensors: tuple[TensorChange, ...], whole: Estimate, *,
          bytes_equal: bool) -> Classified:  # fmt: skip
    if old is None or new is None:
        return Classified("added" if old is None else "removed", "only on one side")
    if bytes_equal:
        return Classified("identical", "same bytes")
    if old.table is None or new.table is None:
        opaque = [name for name, side in (("old", old), ("new", new)) if side.table is None]
        which = f"the {opaque[0]} side is" if len(opaque) == 1 else "both sides are"
        return Classified("unknown", f"bytes differ; {which} opaque: no reader could list the tensors")
    ensemble = classify_trees(tensors, old.table.structure, new.table.structure)
    return ensemble or classify(tensors, whole.cosine, same_container=old.format == new.format)


def _adapter_note(old: Side, new: Side, *, exact: bool) -> str:
    if old.table is None or new.table is None:
        return ""
    first, second = (find_layers(side.table.rows, side.table.structure) for side in (old, new) if side.table)
    if not first and not second:
        return ""
    if first and second:
        how = "compared by the products they apply" if exact else "--exact compares the products they apply"
        return f"{describe_adapters(first.values(), second.values(), 0, None)}, {how}"
    targets = find_targets(first or second, (new if first else old).table.rows)  # type: ignore[union-attr]
    merged = None
    if exact and targets:
        from dvc_modelver.diff.weights import find_merged

        merged = find_merged(old, new)
    return describe_adapters(first.values(), second.values(), len(targets), merged)


def _measure(pair: Pair) -> TensorChange:
    old, new = pair.old, pair.new
    if old is None or new is None:
        row = old or new
        assert row is not None
        return TensorChange(row.name, None, "added" if old is None else "removed", old, new)
    same = bool(old.digest) and old.digest == new.digest and old.dtype == new.dtype
    change = "unchanged" if same and old.shape == new.shape else "modified"
    if pair.how != "name":
        change = "renamed"
    old_name = old.name if old.name != new.name else None
    return TensorChange(new.name, old_name, change, old, new, estimate_rows(old, new), same, by_rule=is_explained(pair))


def _warnings(tensors: Sequence[TensorChange]) -> Iterator[str]:
    for t in tensors:
        old, new = t.old, t.new
        if new is None or not t.is_moved:
            continue
        before = old.nonfinite or 0 if old is not None else 0
        bad = max(new.nonfinite or 0, t.exact.nonfinite if t.exact else 0)
        if bad > before:
            yield f"{t.name}: {bad:,} values are NaN or infinite{f', {before:,} were' if before else ''}"
        dead = new.zeros == new.numel or (t.exact is not None and t.measured.norm_b == 0.0)
        if is_of_tree(t.name):
            continue  # feature 0, and what goes nowhere
        if new.numel > 1 and dead and old is not None and old.zeros != old.numel:
            yield f"{t.name}: all values are zero now"


def _is_comparable(t: TensorChange) -> bool:
    """Whether a tensor counts in the model's distance: a floating-point parameter with values on both sides."""
    return (
        t.is_parameter and t.old is not None and t.new is not None and t.old.numel == t.new.numel > 0
        and is_float(t.old.dtype) and is_float(t.new.dtype)
    )  # fmt: skip


def _counted(tensors: Sequence[TensorChange]) -> Iterator[Estimate]:
    """Give what the model's distance is made of: each tensor, and of an adapter's layer its product, once."""
    products: dict[int, Estimate] = {}
    for t in tensors:
        if t.applied is not None:
            products[id(t.applied)] = t.applied
        elif _is_comparable(t):
            yield t.measured
    yield from products.values()


def _parameters(tensors: tuple[TensorChange, ...]) -> dict[str, int]:
    own = [t for t in tensors if t.is_parameter]
    return {
        "old": sum(t.old.numel for t in own if t.old is not None),
        "new": sum(t.new.numel for t in own if t.new is not None),
        "changed": sum(t.new.numel for t in own if t.new is not None and t.is_moved),
    }


def _facts(old: ModelMetadata | None, new: ModelMetadata | None) -> dict[str, tuple[FactChange, ...]]:
    a, b = (old.training if old else None), (new.training if new else None)
    pairs: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
        "hyperparameters": (
            (a.hyperparameters if a else None) or {},
            (b.hyperparameters if b else None) or {},
        ),
        "metrics": ((a.metrics if a else None) or {}, (b.metrics if b else None) or {}),
        "data": (
            {str(d.get("path")): d.get("md5") for d in (a.data if a else None) or ()},
            {str(d.get("path")): d.get("md5") for d in (b.data if b else None) or ()},
        ),
    }
    return {kind: _changed(x, y) for kind, (x, y) in pairs.items()}


def _structure(old: Side | None, new: Side | None) -> tuple[FactChange, ...]:
    """Compare the structures of two files that both have one; another container's has nothing in common with it."""
    a, b = (side.table.structure if side is not None and side.table is not None else {} for side in (old, new))
    return _changed(a, b) if a and b else ()


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[FactChange, ...]:
    names = dict.fromkeys([*old, *new])
    # A key that is not there and one that is None say the same.
    return tuple(FactChange(n, old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n))
