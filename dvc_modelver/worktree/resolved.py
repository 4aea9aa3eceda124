"""Looks at what became of the conflicts of a merge under way."""

from __future__ import annotations

from dvc_modelver.repository import Repository

HEADS = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REBASE_HEAD")
"""Files of Git's folder that name the commit which is merged."""


def kept_ours(repo: Repository) -> dict[str, tuple[str | None, str | None, str | None]]:
    """Give the files of a merge under way that were in conflict and were added as ours has them.

    Returns:
        path -> blob ids of base, ours and theirs.
    """
    if not any((repo.layout.git_dir / name).exists() for name in ("MERGE_HEAD", "CHERRY_PICK_HEAD", "rebase-merge")):
        return {}
    staged = repo.git.index_entries()
    return {
        path: oids
        for path, oids in repo.git.unmerged(resolved=True).items()
        if oids[1] is not None and oids[1] != oids[2] and staged.get(path, ("", ""))[1] == oids[1]
    }
