"""The law itself: a decision from four md5s, without touching a file.

K is the md5 at which model, metadata and pointer last agreed in this work tree. M is the model's on disk, D
the one its metadata names, P the one its pointer names. Metadata moves before its pointer does only for
pipelines (``dvc.lock`` is ``dvc repro``'s to write), so D leads where it moved alone. Where both moved, apart, or a
commit has them apart, somebody without this tool wrote the pointer: the weights follow it, and D describes others.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Action(Enum):
    """What is to be done for one model."""

    NOTHING = "nothing"
    """All agree, or only DVC is concerned."""
    AGREE = "agree"
    """Somebody brought them together already: K is updated."""
    DESCRIBE = "describe"
    """Retrained: metadata (and a ``.dvc`` pointer) are rewritten from the model."""
    FOLLOW = "follow"
    """Behind: the model becomes the recorded object."""
    MISSING = "missing"
    """The model was deleted or never fetched, and nothing else moved."""
    CONFLICT = "conflict"
    """Both sides moved, to different versions: both are kept, the user decides."""


@dataclass(frozen=True)
class Decision:
    """An action and, for `Action.FOLLOW`, the md5 that the model becomes."""

    action: Action
    target: str | None = None


def decide(
    agreed: str | None, model: str | None, metadata: str | None, pointer: str | None, *, committed_apart: bool = False
) -> Decision:
    """Apply the law.

    Args:
        agreed: K; None when this work tree never saw the model.
        model: M; None when there is no file.
        metadata: D; None when there is no metadata file.
        pointer: P; None when there is no pointer, or it cannot be read.
        committed_apart: HEAD has this metadata and this pointer, of two versions: the pointer alone counts.
    """
    recorded = metadata or pointer
    if recorded is None:
        return Decision(Action.NOTHING)
    if metadata is None or pointer is None:
        return _decide_alone(agreed, model, recorded, described=metadata is not None)
    moved = {md5 for md5 in (metadata, pointer) if md5 != agreed} - ({metadata} if committed_apart else set())
    if not moved:
        if model is None:
            return Decision(Action.MISSING)
        return Decision(Action.NOTHING if model == agreed else Action.DESCRIBE)
    if model == metadata == pointer:
        return Decision(Action.AGREE)
    if model in moved:
        return Decision(Action.DESCRIBE)
    if model is None or model == agreed or (committed_apart and model == metadata):
        return Decision(Action.FOLLOW, pointer if pointer in moved else metadata)
    return Decision(Action.DESCRIBE if metadata == agreed and not committed_apart else Action.CONFLICT)


def _decide_alone(agreed: str | None, model: str | None, recorded: str, *, described: bool) -> Decision:
    """Decide where only one of metadata and pointer is there: nothing is ever described then."""
    if model == recorded:
        return Decision(Action.NOTHING if agreed == recorded or not described else Action.AGREE)
    if agreed is None or recorded == agreed:
        return Decision(Action.MISSING if model is None else Action.NOTHING)
    if model is None or model == agreed:
        return Decision(Action.FOLLOW, recorded)
    return Decision(Action.CONFLICT if described else Action.NOTHING)
