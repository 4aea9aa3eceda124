"""Clones of other repositories, kept to be asked: bare, and without files, which are fetched as they are read."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dvc_modelver.errors import EnvironmentFailed
from dvc_modelver.git.porcelain import Git, GitFailed

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.+|[^/:\s-][^/:\s]*:(?!:).+")
_REFS = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*", "+refs/notes/modelver*:refs/notes/modelver*")


def is_url(text: str) -> bool:
    """Whether a text is a URL, or a ``host:path`` as ssh has it, rather than a folder."""
    return _URL.fullmatch(text) is not None and not Path(text).exists()


def up_to_date_clone(url: str) -> Path:
    """Give a bare clone of a repository as it is now, in the user's cache folder; another use only fetches what is new.

    Raises:
        EnvironmentFailed: The repository cannot be reached.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelver" / "repositories"
    base.mkdir(parents=True, exist_ok=True)
    folder = base / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.git"
    with _locked(folder.with_suffix(".lock")):
        try:
            if (folder / "HEAD").exists():
                _fetch(folder)
            else:
                _clone(url, folder)
        except GitFailed as err:
            raise EnvironmentFailed(f"{url}: {err}", hint="git ls-remote URL says whether it can be reached") from err
    return folder


def _fetch(folder: Path) -> None:
    git = Git(folder, is_other=True)
    git.run("fetch", "--quiet", "--prune", "--no-tags", "--filter=blob:none", "origin", *_REFS)
    head = re.match(r"ref: (refs/heads/\S+)\tHEAD", git.text("ls-remote", "--symref", "origin", "HEAD"))
    if head is not None:
        git.run("symbolic-ref", "HEAD", head[1])


def _clone(url: str, folder: Path) -> None:
    work = Path(tempfile.mkdtemp(prefix="clone-", dir=folder.parent))
    try:
        git = Git(work, is_other=True)
        git.run("clone", "--quiet", "--bare", "--filter=blob:none", "--", url, "repo.git")
        _fetch(work / "repo.git")
        os.rename(work / "repo.git", folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
