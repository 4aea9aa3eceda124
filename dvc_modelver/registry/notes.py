"""The Git notes that the registry keeps: what was found out after a commit, without rewriting it."""

from __future__ import annotations

from collections.abc import Collection

from dvc_modelver.git.notes import tracking_ref
from dvc_modelver.git.notes_transport import add_refspec, fetch_notes, lacking, send_notes
from dvc_modelver.git.objects import ObjectReader
from dvc_modelver.git.porcelain import Git
from dvc_modelver.registry.sharing import find_remote

EVALUATIONS_REF = "refs/notes/modelver-evaluations"
"""Results by md5: each note is attached to the blob whose content is an md5, and is JSON lines."""
METADATA_REF = "refs/notes/modelver"
"""Metadata of commits that were made without it: each note is attached to a commit, and is JSON lines."""
TENSORS_REF = "refs/notes/modelver-tensors"
"""Their tensor tables: each note is attached to the blob whose content is an md5, and is JSON lines."""
NOTES_REFS = (EVALUATIONS_REF, METADATA_REF, TENSORS_REF)
PATTERN = "refs/notes/modelver*"
"""What ``git fetch`` is to bring of them."""


def send(git: Git, objects: ObjectReader, remote: str, *, besides: Collection[str] = ()) -> bool:
    """Push the notes that a remote lacks, and see to it that it is asked for its own from now on.

    Args:
        git: Runs git, where there is anything to send.
        objects: Reads the refs.
        remote: Its name, or its URL.
        besides: Refs that are left out: somebody pushes them already.

    Returns:
        Whether there was anything to send.

    Raises:
        EnvironmentFailed: The remote cannot be reached, or refuses; nothing is lost, the next push tries again.
    """
    if remote in lacking(objects, PATTERN):
        add_refspec(git, remote, PATTERN)
    refs = [ref for ref in NOTES_REFS if ref not in besides and objects.find_ref(ref) is not None]
    return bool(refs) and send_notes(git, objects, remote, refs)


def bring(git: Git, remote: str | None = None) -> None:
    """Fetch the notes of a remote, that of the registry where none is named; nothing where there is none.

    Raises:
        EnvironmentFailed: The remote cannot be reached.
    """
    remote = remote or find_remote(git)
    if remote is not None:
        fetch_notes(git, remote, [PATTERN])


def unsent(objects: ObjectReader) -> list[str]:
    """Give the notes refs that hold something no remote is known to have."""
    tips = {ref: objects.find_ref(ref) for ref in NOTES_REFS}
    return [
        ref
        for ref, tip in tips.items()
        if tip is not None
        and not any(
            (there := objects.find_ref(tracking_ref(ref, name))) and objects.is_ancestor(tip, there)
            for name in objects.remotes()
        )
    ]
