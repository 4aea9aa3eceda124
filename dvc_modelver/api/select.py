"""What a user's words name: ``digits@v1.0.0``, ``digits@3``, ``digits#prod``, a revision, a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dvc_modelver.errors import BadMetadataError, NotFoundError, UsageError, word
from dvc_modelver.formats import known_suffixes
from dvc_modelver.formats.folder import holds_weights
from dvc_modelver.metadata import ModelMetadata
from dvc_modelver.registry.history import find_stage, find_version, iter_histories
from dvc_modelver.registry.tags import read_tags
from dvc_modelver.repository import Repository, TrackedModel
from dvc_modelver.settings import WEIGHT_SUFFIXES
from dvc_modelver.store.folders import iter_files
from dvc_modelver.store.pointers import Pointer
from dvc_modelver.views import CommitView, View
from dvc_modelver.worktree.law import Action
from dvc_modelver.worktree.look import see
from dvc_modelver.worktree.state import read_state
from dvc_modelver.worktree.sync import Say


@dataclass(frozen=True)
class Selected:
    """One version of one model.

    Attributes:
        commit: The commit to read its files from; empty for the work tree.
        is_current: Whether the work tree's version was meant: no version was named.
    """

    model: TrackedModel
    metadata: ModelMetadata
    commit: str
    label: str
    is_current: bool = False

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
        return _backfilled(repo, model)
    return Selected(model, model.metadata, "", model.name, is_current=True)


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


def _backfilled(repo: Repository, model: TrackedModel) -> Selected:
    """Give what was backfilled for the version that the work tree's pointer names."""
    known = repo.backfilled(model.path, model.pointer.md5)
    if known is None:
        raise NotFoundError(f"{model.path}: has no metadata yet", hint=f"modelver add {word(model.path)}")
    commit = known.commit
    if repo.head is not None:
        at_head = repo.backfill.find(repo.objects, repo.head, model.path)
        commit = repo.head if at_head is not None and at_head.metadata.md5 == known.metadata.md5 else commit
    described = replace(model, metadata=known.metadata)
    return Selected(described, known.metadata, commit, model.name, is_current=True)


def check_described(repo: Repository, chosen: Selected, *, max_bytes: int | None = None) -> None:
    """Refuse the work tree's version where the weights on disk are others, so that nothing is said of the wrong ones.

    Weights that are not on disk are no others.

    Args:
        repo: The repository.
        chosen: What `select` gave.
        max_bytes: Larger weights that nobody looked at yet are not read, and not refused.

    Raises:
        UsageError: They were retrained, or are behind, and nobody has looked since.
    """
    if not chosen.is_current:
        return
    path, metadata = chosen.model.path, chosen.metadata
    if metadata.pending is not None:
        raise UsageError(f"{path}: not described yet, so no version", hint=f"modelver add {word(path)}")
    state = read_state(repo.layout.state_dir)
    seen = see(repo, state, chosen.model, None if path in state.rows else max_bytes)
    if seen.md5 in (None, metadata.md5) or seen.md5.startswith("?"):
        return
    known = f"{chosen.model.name}@{metadata.md5[:8]}"
    way = f"modelver {'pull' if seen.action is Action.FOLLOW else 'add'} {word(path)}"
    raise UsageError(
        f"{path}: the weights on disk are {seen.md5[:8]}, its metadata describes version "
        f"{metadata.version.number} ({metadata.md5[:8]})",
        hint=f"{way} brings them together; {word(known)} names the version that is described",
    )


def warn_of_others(repo: Repository, chosen: Selected, say: Say) -> None:
    """Say it where the weights on disk are others than the version that was chosen; see `check_described`."""
    try:
        check_described(repo, chosen, max_bytes=repo.settings.describe_max_bytes)
    except UsageError as err:
        say(f"warning: {err}\nhint: {err.hint}")


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
