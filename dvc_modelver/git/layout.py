"""Where the parts of a repository lie; found without starting git, because every hook asks first."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dvc_modelver.errors import UsageError, word
from dvc_modelver.git.porcelain import Git


@dataclass(frozen=True)
class Layout:
    """Where a repository's parts lie.

    Attributes:
        top: Top folder of this work tree.
        git_dir: This work tree's own Git folder (``.git``, or ``.git/worktrees/<name>``).
        common_dir: The Git folder that all work trees share.
    """

    top: Path
    git_dir: Path
    common_dir: Path

    @property
    def state_dir(self) -> Path:
        """Our own state of this work tree; may be deleted at any time."""
        return self.git_dir / "modelver"

    @cached_property
    def hooks_dir(self) -> Path:
        """Where Git looks for hooks, ``core.hooksPath`` included."""
        return (self.top / Git(self.top).text("rev-parse", "--git-path", "hooks")).resolve()


def find_layout(folder: Path, *, is_other: bool = False) -> Layout:
    """Find the repository around `folder`, or the one that ``GIT_DIR`` names.

    Args:
        folder: Anywhere in the work tree.
        is_other: Another repository than the one that is worked in: ``GIT_DIR`` is not meant, and it may be bare; its
            Git folder stands for the top then.

    Raises:
        UsageError: `folder` is in no Git repository, or in a bare one, or inside the Git folder.
    """
    import pygit2

    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    try:
        flags = pygit2.enums.RepositoryOpenFlag
        repo = pygit2.Repository(str(folder), flags.DEFAULT if is_other else flags.FROM_ENV)
    except pygit2.GitError as err:
        if "not owned by" in str(err):
            raise UsageError(
                f"{folder}: Git refuses a repository that another user owns",
                hint=f"git config --global --add safe.directory {word(folder)}",
            ) from err
        raise UsageError(f"{folder}: not in a Git repository", hint="modelver init") from err
    git_dir = Path(repo.path)
    if repo.is_bare and is_other:
        return Layout(git_dir, git_dir, git_dir.resolve())
    if repo.is_bare or repo.workdir is None:
        raise UsageError(
            f"{git_dir}: a bare repository has no work tree, expected one",
            hint="git clone it, then run modelver there",
        )
    if folder.resolve().is_relative_to(git_dir.resolve()) and not is_other:
        raise UsageError(f"{folder}: inside the Git folder, expected a work tree", hint="cd to the work tree")
    try:
        common_dir = git_dir / (git_dir / "commondir").read_text().strip()
    except OSError:
        common_dir = git_dir
    named = None if is_other else os.environ.get("GIT_WORK_TREE")
    # Git counts a relative one from the current folder (`git stash pop` gives "."), libgit2 from the Git folder
    top = Path(named).resolve() if named and not Path(named).is_absolute() else Path(repo.workdir)
    return Layout(top, git_dir, common_dir.resolve())


def is_inside_repository(folder: Path) -> bool:
    """Whether a folder lies in a Git repository of any kind."""
    import pygit2

    return bool(pygit2.discover_repository(str(folder)))
