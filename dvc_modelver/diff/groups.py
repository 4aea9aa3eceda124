"""Similarity by layer: the tensors of one block of the model as one vector."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dvc_modelver.fingerprint.estimate import Estimate, combine
from dvc_modelver.tensors import is_float

if TYPE_CHECKING:
    from dvc_modelver.diff.changes import TensorChange

_NUMBERED = re.compile(r"^.*?(?:^|[._/])\d+(?=[._/]|$)")
_FIRST = re.compile(r"^[^./]+")


@dataclass(frozen=True)
class Group:
    """The parameters of one layer.

    Attributes:
        prefix: What their names start with: up to the first number (``model.layers.3``), else the first part.
        tensors: How many there are on either side.
        changed: How many of them changed, came or went.
        measured: Of those that both sides have, as one vector.
    """

    prefix: str
    tensors: int
    changed: int
    measured: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Give the group as ``modelver diff --json`` prints it."""
        return {
            "prefix": self.prefix,
            "tensors": self.tensors,
            "tensors_changed": self.changed,
            "cosine": self.measured.cosine,
            "relative_l2": self.measured.relative_l2,
        }


def group_tensors(tensors: Iterable[TensorChange]) -> list[Group]:
    """Group the parameters of a model by layer, in the order of the names; optimiser state is left out."""
    found: dict[str, list[TensorChange]] = {}
    for t in tensors:
        if t.is_parameter:
            found.setdefault(prefix_of(t.name), []).append(t)
    return [
        Group(
            prefix,
            len(members),
            sum(t.change != "unchanged" for t in members),
            combine(t.measured for t in members if t.old and t.new and is_float(t.old.dtype) and is_float(t.new.dtype)),
        )
        for prefix, members in found.items()
    ]


def prefix_of(name: str) -> str:
    """Give the layer that a tensor belongs to, by its name."""
    match = _NUMBERED.match(name) or _FIRST.match(name)
    return match[0] if match else name
