"""Looks at what became of the conflicts of a merge under way."""

from __future__ import annotations

from dvc_modelver.metadata import find_model_path, metadata_path
from dvc_modelver.repository import Repository

HEADS = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REBASE_HEAD")
"""Files of Git's folder that name the commit which is merged."""


def kept_ours(repo: Repository) -> dict[str, tuple[str | None, str | None, str | None]]:
    """Give the files of a merge under way that both sides changed and that were added as ours has them.

    Returns:
        path -> blob ids of base, ours and theirs.
    """
    if not any((repo.layout.git_dir / name).exists() for name in ("MERGE_HEAD", "CHERRY_PICK_HEAD", "rebase-merge")):
        return {}
    staged = repo.git.index_entries()
    return {
        path: oids
        for path, oids in repo.git.unmerged(resolved=True).items()
        if None not in oids[1:] and oids[1] != oids[2] and staged.get(path, ("", ""))[1] == oids[1]
    }


def kept_against_removal(repo: Repository) -> list[str]:
    """Give the models of a merge under way that one side removed, and whose metadata was added as the other has it."""
    if not any((repo.layout.git_dir / name).exists() for name in HEADS):
        return []
    found = repo.git.unmerged(resolved=True)
    models = {path: find_model_path(path) for path, oids in found.items() if oids[0] and None in oids[1:]}
    staged = repo.git.index_entries() if models else {}
    return sorted(m for path, m in models.items() if m and path == metadata_path(m) and path in staged)
