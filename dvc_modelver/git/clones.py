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

from dvc_modelver.errors import EnvironmentFailed, NotFoundError
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
        NotFoundError: It has no commit.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelver" / "repositories"
    base.mkdir(parents=True, exist_ok=True)
    folder = base / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.git"
    with _locked(folder.with_suffix(".lock")):
        if (folder / "HEAD").exists():
            try:
                _fetch(url, folder)
                if Git(folder, is_other=True).find_commit("HEAD"):
                    return folder
            except GitFailed as err:
                raise _unreachable(url, err) from err
            shutil.rmtree(folder)  # its main branch has another name now
        _clone(url, folder)
    return folder


def _fetch(url: str, folder: Path) -> None:
    Git(folder, is_other=True).run("fetch", "--quiet", "--prune", "--no-tags", "--filter=blob:none", "origin", *_REFS)


def _clone(url: str, folder: Path) -> None:
    work = Path(tempfile.mkdtemp(prefix="clone-", dir=folder.parent))
    try:
        git = Git(work, is_other=True)
        git.run("clone", "--quiet", "--bare", "--filter=blob:none", "--", url, "repo.git")
        _fetch(url, work / "repo.git")
        if Git(work / "repo.git", is_other=True).find_commit("HEAD") is None:
            raise NotFoundError(f"{url}: has no commit yet")
        os.rename(work / "repo.git", folder)
    except GitFailed as err:
        raise _unreachable(url, err) from err
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _unreachable(url: str, err: GitFailed) -> EnvironmentFailed:
    return EnvironmentFailed(f"{url}: {err}", hint="git ls-remote URL says whether it can be reached")


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
