"""Other repositories, by URL or path, and what a clone does not have."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from dvc_modelver.errors import EnvironmentFailed, NotFoundError
from dvc_modelver.git.clones import is_url, up_to_date_clone
from dvc_modelver.git.layout import Layout, find_layout
from dvc_modelver.git.objects import ObjectReader
from dvc_modelver.git.porcelain import Git
from dvc_modelver.metadata import METADATA_SUFFIX
from dvc_modelver.registry.sharing import find_remote, remote_tags
from dvc_modelver.repository import Repository, is_pointer_file
from dvc_modelver.views import View

Say = Callable[[str], None]


class CommittedRepository(Repository):
    """A repository as its HEAD has it: what lies in its work tree, if it has one, is not looked at."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.git = Git(layout.top, is_other=True)

    @cached_property
    def objects(self) -> ObjectReader:
        """Reads blobs and trees."""
        return ObjectReader(self.layout.git_dir, is_other=True)

    @cached_property
    def work_tree(self) -> View:
        """The files of HEAD."""
        if self.head is None:
            raise NotFoundError(f"{self.top}: has no commit yet")
        view = self.at("HEAD")
        self.objects.prefetch(oid for _, oid in self.objects.iter_files(view.commit, _says_models))
        return view


def _says_models(path: str) -> bool:
    return is_pointer_file(path) or path.endswith(METADATA_SUFFIX) or posixpath.basename(path) == "dvc.yaml"


def open_repository(source: str | None, folder: Path | None, say: Say = lambda _line: None) -> Repository:
    """Open the repository that a question is about, and say what its clone does not have.

    Args:
        source: A URL, or a path; None for the repository around `folder`.
        folder: Anywhere in a work tree.
        say: Takes lines for the user.

    Raises:
        NotFoundError: There is no such folder.
        EnvironmentFailed: The URL cannot be reached.
    """
    if source is None:
        repo = Repository.open(folder)
    elif is_url(source):
        repo = CommittedRepository(find_layout(up_to_date_clone(source), is_other=True))
    else:
        path = (folder or Path.cwd()) / source
        if not path.is_dir():
            raise NotFoundError(f"{source}: no such folder, and no URL")
        repo = CommittedRepository(find_layout(path, is_other=True))
    for line in missing_parts(repo):
        say(line)
    return repo


def missing_parts(repo: Repository) -> list[str]:
    """Say what a clone was made without: older commits, tags."""
    lines = []
    if _is_shallow(repo):
        lines.append("this clone is shallow: versions before its oldest commit are not in it\n"
                     "hint: git fetch --unshallow")  # fmt: skip
    if not repo.objects.has_tags() and _may_lack_tags(repo):
        lines.append("this clone has no tags: semantic versions and stages are not known here\nhint: git fetch --tags")
    return lines


def check_tags(repo: Repository, name: str, say: Say) -> None:
    """Refuse to decide about a model where the clone was made without tags of it that the remote has.

    An ordinary clone is not checked, and asks nobody.

    Raises:
        NotFoundError: Tags are missing here.
        EnvironmentFailed: There are none here, and the remote cannot be asked.
    """
    remote = find_remote(repo.git)
    if remote is None or not _may_lack_tags(repo):
        return
    here = set(repo.git.text("for-each-ref", "--format=%(refname:strip=2)", "refs/tags").splitlines())
    fix = f"git fetch --tags {remote}"
    try:
        missing = sorted(remote_tags(repo.git, remote, f"{name}@*", f"{name}#*").keys() - here)
    except EnvironmentFailed as err:
        if not here:
            raise EnvironmentFailed(f"this clone has no tags, and {err}", hint=fix) from err
        say(f"warning: this clone may lack tags of {name}: {err}")
        return
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise NotFoundError(
            f"this clone has no {', '.join(missing[:3])}{more}, which {remote} has: versions and stages of {name} are "
            "not known here",
            hint=fix,
        )


def _is_shallow(repo: Repository) -> bool:
    return (repo.layout.common_dir / "shallow").exists()


def _may_lack_tags(repo: Repository) -> bool:
    return _is_shallow(repo) or repo.objects.fetches_no_tags()
