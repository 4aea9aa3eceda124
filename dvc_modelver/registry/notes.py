"""The Git notes that the registry keeps: what was found out after a commit, without rewriting it."""

EVALUATIONS_REF = "refs/notes/modelver-evaluations"
"""Results by md5: each note is attached to the blob whose content is an md5, and is JSON lines."""
METADATA_REF = "refs/notes/modelver"
"""Metadata of commits that were made without it: each note is attached to a commit, and is JSON lines."""
NOTES_REFS = (EVALUATIONS_REF, METADATA_REF)
