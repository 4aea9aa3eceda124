"""``git commit --amend`` replaces HEAD, so a new version is made from what HEAD was made from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from dvc_modelver.git.porcelain import Change
from dvc_modelver.metadata import ModelMetadata, TensorTable, find_model_path, metadata_path, table_path
from dvc_modelver.repository import Repository
from dvc_modelver.store.hashing import Hashes
from dvc_modelver.views import IndexView
from dvc_modelver.worktree.describe import Contents, KnownVersion, describe_as, version_at


def measured_again(repo: Repository, view: IndexView, changes: Iterable[Change]) -> Iterator[tuple[str, ModelMetadata]]:
    """Give path and metadata of the staged versions that are made from the version that is amended away.

    They get the parents, number and change that they would have had without it.
    """
    if repo.head is None:
        return
    parents = repo.git.text("rev-parse", f"{repo.head}^@").split()
    for change in changes:
        path = find_model_path(change.path)
        if path is None or change.path != metadata_path(path) or change.status == "D":
            continue
        staged, replaced = repo.metadata(view, path), version_at(repo, repo.head, path)
        before = [version for commit in parents if (version := version_at(repo, commit, path)) is not None]
        if (
            staged is None
            or staged.pending is not None
            or replaced is None
            or staged.version.parents != (replaced.metadata.md5,)
            or replaced.metadata.md5 in {version.metadata.md5 for version in before}
        ):
            continue
        yield path, _made_from(repo, view, staged, before)


def _made_from(repo: Repository, view: IndexView, staged: ModelMetadata, parents: list[KnownVersion]) -> ModelMetadata:
    path, facts = staged.model.path, staged.model
    text = view.read(table_path(path))
    table = TensorTable.parse(text, table_path(path)) if text is not None else None
    hashes = Hashes(facts.md5, facts.sha256 or "", facts.bytes_)
    contents = Contents(hashes, facts.format, facts.framework, table)
    made = describe_as(repo, path, contents, parents, view=view, pointer=None, name=facts.name).metadata
    version = replace(made.version, declared_by=staged.version.declared_by)
    return replace(staged, version=version, change=made.change)
