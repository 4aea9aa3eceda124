"""Merges three models, files or folders, into one: plans, combines, writes, and reads back what was written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dvc_modelver.formats import Folder
from dvc_modelver.merge.threeway import Plan
from dvc_modelver.metadata import TensorTable
from dvc_modelver.strategy import Rules

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Side:
    """One of the three models.

    Attributes:
        name: How errors call it; its suffix helps to tell the format, so an object of the cache has the model's path.
        place: The file, or the folder's files. A `Path` to a folder on disk is taken as `LocalFolder`.
        table: Its tensor table; None to read every tensor for its digest.
    """

    name: str
    place: Path | Folder
    table: TensorTable | None = None


@dataclass(frozen=True)
class Merged:
    """What a merge gave.

    Attributes:
        plan: What was decided, and why; its `Plan.conflicts` are all there are, those of the format included.
        output: The file or folder that was written; None where there are conflicts.
        table: The result's tensor table, with an empty md5: rows as the sides' tables have them, those of combined
            tensors made anew. None where there are conflicts.
        notes: What the user should know: `Plan.notes`, and values that are not finite.
    """

    plan: Plan
    output: Path | None = None
    table: TensorTable | None = None
    notes: tuple[str, ...] = ()


def merge_models(
    base: Side | None, ours: Side, theirs: Side, output: Path, rules: Rules | None = None, *,
    progress: Progress = lambda _n: None,
) -> Merged:  # fmt: skip
    """Merge three models; nothing is written where there is a conflict.

    The result has the format of ours. It is written beside `output` under another name, read back (every tensor has
    the digest that the plan says), synced and renamed.

    Args:
        base: The common ancestor; None where there is none.
        ours: The side that is merged into.
        theirs: The side that is merged.
        output: File, or folder where ours is one; replaced where it is there.
        rules: What decides where both sides changed.
        progress: Called with the number of bytes written since the last call.

    Raises:
        BadModelError: A file is damaged, or no reader knows it.
        RefusedError: The format cannot carry the result.
        EnvironmentFailed: The disk is full, or the folder cannot be written.
    """
    raise NotImplementedError
