"""The comparison as one JSON document, schema ``modelver.diff/1``."""

from __future__ import annotations

import json
from collections.abc import Iterable

from dvc_modelver.diff.changes import SCHEMA, ModelDiff


def render_json(models: Iterable[ModelDiff]) -> str:
    """Give the document, with a final newline."""
    document = {"schema": SCHEMA, "models": [model.to_dict() for model in models]}
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
