"""One version with all that is known of it, as it is told to others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dvc_modelver.metadata import ModelMetadata, TrainingFacts
from dvc_modelver.registry.evaluations import Measured


@dataclass(frozen=True)
class Parent:
    """A version that another was made from.

    Attributes:
        label: As it is typed: ``digits@3``; the first digits of an md5 that no commit has.
        name: Of the model; empty where no commit has it.
        how: What the change is called; empty where nobody measured it.
        source: ``declared`` or ``measured``.
        cosine: Cosine similarity, in [-1, 1]; None where unknown.
    """

    label: str
    name: str
    md5: str
    how: str
    source: str
    cosine: float | None


@dataclass(frozen=True)
class Release:
    """One version.

    Attributes:
        name: The model's name.
        tags: Its version tags, whole: ``digits@v1.0.0``.
        stages: Those that it holds now.
        commit: The first commit that has it, and `date` and `subject` of that; empty where none has.
        description: From ``artifacts:`` of dvc.yaml; likewise `labels`.
        structure: What the tensor table says of the model besides tensors.
        metrics: What was measured, by name.
        bases: Other models that it comes from, nearest first, and how.
    """

    metadata: ModelMetadata
    name: str
    tags: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    commit: str = ""
    date: str = ""
    subject: str = ""
    description: str = ""
    labels: tuple[str, ...] = ()
    structure: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Measured] = field(default_factory=dict)
    parents: tuple[Parent, ...] = ()
    bases: tuple[tuple[str, str], ...] = ()

    @property
    def number(self) -> int:
        """The integer version."""
        return self.metadata.version.number

    @property
    def version(self) -> str:
        """Its last semantic version, else its number."""
        return self.tags[-1].partition("@")[2] if self.tags else str(self.number)

    @property
    def label(self) -> str:
        """The version as it is typed."""
        return f"{self.name}@{self.version}"

    @property
    def training(self) -> TrainingFacts:
        """What training recorded."""
        return self.metadata.training

    @property
    def data(self) -> list[Mapping[str, Any]]:
        """Path, md5 and size of what it was trained on, as far as recorded."""
        return [d for d in self.training.data or () if isinstance(d, Mapping)]
