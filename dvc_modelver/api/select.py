"""What a user's words name: ``digits@v1.0.0``, ``digits@3``, ``digits#prod``, a revision, a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dvc_modelver.errors import BadMetadataError, NotFoundError, word
from dvc_modelver.formats import known_suffixes
from dvc_modelver.formats.folder import holds_weights
from dvc_modelver.metadata import ModelMetadata
from dvc_modelver.registry.history import find_stage, find_version, iter_histories
from dvc_modelver.registry.tags import read_tags
from dvc_modelver.repository import CommitView, Repository, TrackedModel, View
from dvc_modelver.settings import WEIGHT_SUFFIXES
from dvc_modelver.store.folders import iter_files
from dvc_modelver.store.pointers import Pointer


@dataclass(frozen=True)
class Selected:
    """One version of one model.

    Attributes:
        commit: The commit to read its files from; empty for the work tree.
    """

    model: TrackedModel
    metadata: ModelMetadata
    commit: str
    label: str

    @property
    def pointer(self) -> Pointer:
        """What names its object."""
        return self.model.pointer


def split_reference(text: str) -> tuple[str, str, str]:
    """Split ``name@version`` and ``name#stage``: (name, version, stage), absent ones empty."""
    if "@" in text and not text.startswith("@") and "@{" not in text:
        name, _, version = text.rpartition("@")
        return name, version, ""
    if "#" in text:
        name, _, stage = text.partition("#")
        return name, "", stage.partition("#")[0]
    return text, "", ""


def reference_to(name: str, version: str) -> str:
    """Give the reference of a version that was named after its model: ``3``, ``@3``, ``NAME@3``, ``#prod``."""
    rest = version.removeprefix(name) if version.startswith((f"{name}@", f"{name}#")) else version
    return f"{name}{'' if rest.startswith(('@', '#')) else '@'}{rest}"


def find_known(repo: Repository, name: str) -> TrackedModel:
    """Give a model by name or path: in the work tree, else at HEAD, where it may have been removed since.

    Raises:
        NotFoundError: There is none.
    """
    try:
        return repo.find_model(repo.work_tree, name)
    except NotFoundError:
        if repo.head is None:
            raise
        try:
            return repo.find_model(repo.at("HEAD"), name)
        except NotFoundError:
            pass
        raise


def find_past(repo: Repository, name: str) -> tuple[str, str] | None:
    """Give name and path of a model that any ref has in its history, by either; None where none has."""
    for path, versions in iter_histories(repo.git, repo.objects, "--all") if repo.head is not None else ():
        known = versions[0].metadata.model.name
        if name in (known, path):
            return known, path
    return None


def select(repo: Repository, reference: str) -> Selected:
    """Give the version that ``NAME``, ``NAME@V`` or ``NAME#STAGE`` names; the latter two also of a removed model.

    Raises:
        NotFoundError: No such model, version or stage.
        UsageError: The version number is ambiguous.
    """
    name, version, stage = split_reference(reference)
    try:
        model = find_known(repo, name)
    except NotFoundError:
        try:
            model = find_known(repo, reference)  # a path with @ or # in it
            version = stage = ""
        except NotFoundError:
            past = find_past(repo, name) if version or stage else None
            if past is None:
                raise
            return _at_version(repo, *past, version, stage)
    if version or stage:
        return _at_version(repo, model.name, model.path, version, stage)
    if model.problem:
        raise BadMetadataError(model.problem, hint=f"modelver refresh {word(model.path)}")
    if model.metadata is None:
        raise NotFoundError(f"{model.path}: has no metadata yet", hint=f"modelver add {word(model.path)}")
    return Selected(model, model.metadata, "", model.name)


def _at_version(repo: Repository, name: str, path: str, version: str, stage: str) -> Selected:
    tags = read_tags(repo.git, name)
    if stage:
        found, commit = find_stage(repo.git, repo.objects, path, name, stage, tags)
        label = f"{name}#{stage}"
    else:
        found, commit = find_version(repo.git, repo.objects, path, name, version, tags)
        label = f"{name}@{version}"
    at = TrackedModel(name, found.path, _pointer_at(repo, commit, found.path), found.metadata)
    return Selected(at, found.metadata, commit, label)


def _pointer_at(repo: Repository, commit: str, path: str) -> Pointer:
    view: View = CommitView(commit, repo.objects, repo.backfill)
    try:
        beside = repo.pointers_in(view, f"{path}.dvc")
    except BadMetadataError:
        beside = []
    fits = [p for p in beside if p.path == path] or [p for p in repo.pointers(view) if p.path == path]
    if fits:
        return fits[0]
    raise NotFoundError(f"{commit[:8]}: has metadata of {path} but no pointer", hint=f"git show --stat {commit[:8]}")


def is_file_argument(text: str) -> bool:
    """Whether an argument of ``diff`` names a file, or a folder of weights, on disk rather than a revision."""
    path = Path(text)
    return path.is_file() or (path.is_dir() and holds_weights(name for name, _ in iter_files(path)))


def is_file_name(text: str) -> bool:
    """Whether what names nothing is meant as a file: by its suffix."""
    return text.lower().endswith((*WEIGHT_SUFFIXES, *known_suffixes()))
