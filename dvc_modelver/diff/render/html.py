"""The comparison, or a history, as one page that needs no network: the data as JSON, drawn by the page's own script."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from dvc_modelver._version import __version__
from dvc_modelver.diff.changes import ModelDiff, TensorChange
from dvc_modelver.diff.render.cells import shape_text, side_labels, summary_lines
from dvc_modelver.fingerprint.row import TensorRow
from dvc_modelver.resources import read_template


def render_html(models: Sequence[ModelDiff]) -> str:
    """Give the page that compares some models."""
    title = models[0].path if len(models) == 1 else f"{len(models)} models"
    document = {"exact": all(m.exact for m in models), "models": [_model(m) for m in models]}
    return render_page(f"{title}: what changed", document)


def render_page(title: str, document: Mapping[str, Any]) -> str:
    """Put a document of models, charts or rows into the page.

    Args:
        title: Shown as text, whatever it holds.
        document: ``models``, ``charts`` (``title`` and ``points`` of label and number) and ``rows`` of a table.
    """
    data = json.dumps({"program": __version__, **document}, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # "<" could end the script element it stands in
    page = read_template("report.html").replace("@TITLE@", html.escape(title))
    return page.replace("@DATA@", data.replace("<", "\\u003c").replace("\u2028", "\\u2028"))


def _model(change: ModelDiff) -> dict[str, Any]:
    return {
        "path": change.path,
        "kind": change.kind,
        "exact": change.exact,
        "sides": " → ".join(side_labels(change)),
        "said": [*(line.strip() for line in summary_lines(change, unicode=True)), *change.renames],
        "warnings": list(change.warnings),
        "metrics": [f.to_dict() for f in change.metrics],
        "structure": [f.to_dict() for f in change.structure],
        "hyperparameters": [f.to_dict() for f in change.hyperparameters],
        "data": [f.to_dict() for f in change.data],
        "tensors": [_tensor(t) for t in change.tensors],
    }


def _tensor(t: TensorChange) -> dict[str, Any]:
    full = t.to_dict()
    dtypes = dict.fromkeys(row.dtype for row in (t.old, t.new) if row is not None)
    known = {
        "name": t.name,
        "old_name": t.old_name,
        "change": t.change,
        "role": t.row.role if t.row.role != "parameter" else None,
        "shape": shape_text(t.old.shape if t.old else None, t.new.shape if t.new else None),
        "numel": t.row.numel,
        "dtype": " → ".join(dtypes),
        "l2": full["relative_l2"],
        "cosine": full["cosine"],
        "max_abs": full["max_abs"],
        "values_changed": full.get("values_changed"),
        "note": t.note or None,
        "old": _statistics(t.old) if t.old is not None and not t.bytes_equal else None,
        "new": _statistics(t.new),
    }
    return {key: value for key, value in known.items() if value is not None}


def _statistics(row: TensorRow | None) -> dict[str, float | None] | None:
    if row is None:
        return None
    return {"norm": row.norm, "mean": row.mean, "std": row.std, "min": row.min, "max": row.max}
