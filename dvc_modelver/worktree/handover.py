"""What the clean filter and the hooks leave for each other in ``.git/modelver``."""

from __future__ import annotations

import json
import os
from pathlib import Path

from dvc_modelver.repository import Repository
from dvc_modelver.store.gate import GatePointer
from dvc_modelver.worktree.state import write_file
from dvc_modelver.worktree.sync import Say


def note_gate(repo: Repository, path: str, gate: GatePointer, stamp: str) -> None:
    """Remember the file that a gate pointer was made from, for the pre-commit hook."""
    file = repo.layout.state_dir / "gate"
    notes = read_gates(repo) | {path: {"md5": gate.md5, "stamp": stamp}}
    write_file(file, json.dumps(notes).encode())


def read_gates(repo: Repository) -> dict[str, dict[str, str]]:
    """Give path -> md5 and stamp of the files that passed the filter since the last commit."""
    try:
        found = json.loads((repo.layout.state_dir / "gate").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def clear_gates(repo: Repository) -> None:
    """Forget them: the index has no gate pointers any more."""
    (repo.layout.state_dir / "gate").unlink(missing_ok=True)


def note_commit(repo: Repository, staged: list[str], raw: list[str]) -> None:
    """Remember what post-commit has to look after; most commits leave nothing.

    Args:
        repo: The repository.
        staged: What pre-commit staged. ``git commit PATH`` commits a temporary index and keeps the real one.
        raw: Raw weights that were replaced. A program that holds the index in memory commits them all the same.
    """
    index = Path(os.environ.get("GIT_INDEX_FILE", "index")).name
    partial = sorted(set(staged)) if index.startswith("next-index") else []
    if partial or raw:
        write_file(repo.layout.state_dir / "committed", json.dumps({"partial": partial, "raw": raw}).encode())


def finish_commit(repo: Repository, say: Say) -> None:
    """Bring a partial commit's paths to what was committed; name raw weights that were committed after all."""
    note = repo.layout.state_dir / "committed"
    try:
        found = json.loads(note.read_bytes())
    except (OSError, ValueError):
        return
    note.unlink()
    if found["partial"]:
        repo.git.run("reset", "-q", "HEAD", "--", *found["partial"])
    for path in found["raw"]:
        if repo.head is not None and repo.objects.find_blob(repo.head, path) is not None:
            say(
                f"{path}: the program that committed held the index in memory, so the raw weights are in HEAD\n"
                "hint: git commit --amend --no-edit puts the pointer there"
            )
