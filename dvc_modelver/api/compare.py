"""diff: two versions, two states of the repository, or two files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from dvc_modelver.api.select import Selected, find_known, select, split_reference
from dvc_modelver.diff.compare import ModelDiff, Side, compare
from dvc_modelver.errors import BadMetadataError, ModelverError, NotFoundError, UsageError
from dvc_modelver.metadata import TensorTable
from dvc_modelver.pipeline import gather_training
from dvc_modelver.repository import CommitView, Repository, TrackedModel, View
from dvc_modelver.worktree.describe import OPAQUE, Contents, read_contents
from dvc_modelver.worktree.law import Action
from dvc_modelver.worktree.state import read_state
from dvc_modelver.worktree.sync import look


def diff(
    old: str | None = None,
    new: str | None = None,
    *paths: str | Path,
    cached: bool = False,
    folder: Path | None = None,
) -> list[ModelDiff]:
    """Compare models.

    Args:
        old: A revision, ``NAME@V``, ``NAME#STAGE``, or a file; the index when not given.
        new: Likewise; the work tree when not given.
        paths: Models to compare; all that differ when not given.
        cached: Compare the index with `old` (HEAD when not given) rather than the work tree.
        folder: Anywhere in the work tree; the current folder by default.

    Returns:
        One comparison for each model that differs, and for each asked for by name, sorted by path.

    Raises:
        NotFoundError: No such revision, model or version.
        BadModelError: A file given cannot be read.
    """
    if old is not None and new is not None and Path(old).is_file() and Path(new).is_file():
        return [compare(_file_side(old), _file_side(new))]
    repo = Repository.open(folder)
    if old is not None and new is None and not _is_rev(repo, old) and ".." in old:
        old, _, new = old.partition("...") if "..." in old else old.partition("..")
        old, new = old or "HEAD", new or "HEAD"
    wanted = [repo.inside(p) if (repo.top / repo.inside(p)).exists() else str(p) for p in paths]
    for argument in (old, new):
        if argument is not None and _names_model(repo, argument):
            return [_compare_versions(repo, old, new)]
    old_view = repo.at(old) if old is not None else (repo.at("HEAD") if cached and repo.head else repo.index())
    new_view: View = repo.at(new) if new is not None else (repo.index() if cached else repo.work_tree)
    return _compare_views(repo, old_view, new_view, wanted)


def _is_rev(repo: Repository, text: str) -> bool:
    return repo.git.find_commit(text) is not None


def _names_model(repo: Repository, text: str) -> bool:
    """Whether an argument names a model's version; a tag like ``digits@v1.0.0`` does, though Git resolves it."""
    name, version, stage = split_reference(text)
    if version or stage:
        return any(name in (m.name, m.path) for m in repo.models(repo.work_tree)) or not _is_rev(repo, text)
    if _is_rev(repo, text):
        return False
    try:
        select(repo, text)
    except ModelverError:
        if Path(text).exists():
            raise UsageError(f"{text}: not a tracked model; expected a revision, a version or two files") from None
        return False
    return True


def _compare_versions(repo: Repository, old: str | None, new: str | None) -> ModelDiff:
    first = _select_side(repo, old) if old is not None else None
    second = _select_side(repo, new, like=first) if new is not None else None
    if first is None and second is not None:
        first = Selected(second.model, second.metadata, "", "")
    assert first is not None
    old_side = _selected_side(repo, first)
    if second is not None:
        return compare(old_side, _selected_side(repo, second))
    model = find_known(repo, first.model.name)
    return compare(old_side, _side_of(repo, repo.work_tree, model))


def _select_side(repo: Repository, text: str, like: Selected | None = None) -> Selected:
    """Give the version an argument names; a plain revision next to a version means that model there."""
    if like is not None and _is_rev(repo, text) and split_reference(text)[1:] == ("", ""):
        commit = repo.git.commit_of(text)
        model = repo.find_model(repo.at(commit), like.model.name)
        if model.metadata is None:
            raise NotFoundError(f"{text}: has no metadata of {model.path}")
        return Selected(model, model.metadata, commit, text)
    return select(repo, text)


def _selected_side(repo: Repository, chosen: Selected) -> Side:
    view: View = CommitView(chosen.commit, repo.objects) if chosen.commit else repo.work_tree
    model = replace(chosen.model, metadata=chosen.metadata)
    return Side(
        model.path, chosen.label or view.label, _table(repo, view, model), chosen.metadata, chosen.metadata.md5,
        chosen.metadata.model.format,
    )  # fmt: skip


def _compare_views(repo: Repository, old: View, new: View, wanted: Sequence[str]) -> list[ModelDiff]:
    before = {m.path: m for m in repo.models(old)}
    after = {m.path: m for m in repo.models(new)}
    moved = _retrained(repo) if new is repo.work_tree else {}
    chosen = _chosen(before, after, wanted)
    found = []
    for path in chosen:
        was, now = before.get(path), after.get(path)
        if not wanted and path not in moved and was and now and _same(was, now):
            continue
        old_side = _side_of(repo, old, was) if was else None
        new_side = moved[path] if path in moved else (_side_of(repo, new, now) if now else None)
        found.append(compare(old_side, new_side))
    return found


def _chosen(before: dict[str, TrackedModel], after: dict[str, TrackedModel], wanted: Iterable[str]) -> list[str]:
    everything = sorted({**before, **after})
    if not wanted:
        return everything
    names = {m.name: m.path for m in (*before.values(), *after.values())}
    chosen = []
    for word in wanted:
        want = names.get(word, word)
        fits = [p for p in everything if p == want or p.startswith(want.rstrip("/") + "/") or want in ("", ".")]
        if not fits:
            raise NotFoundError(f"{want}: no such model in either", hint="modelver list")
        chosen += fits
    return list(dict.fromkeys(chosen))


def _same(was: TrackedModel, now: TrackedModel) -> bool:
    return was.pointer.md5 == now.pointer.md5 and was.metadata == now.metadata


def _side_of(repo: Repository, view: View, model: TrackedModel) -> Side:
    md5 = model.metadata.md5 if model.metadata is not None else model.pointer.md5 or ""
    fmt = model.metadata.model.format if model.metadata is not None else OPAQUE
    return Side(model.path, view.label, _table(repo, view, model), model.metadata, md5, fmt)


def _table(repo: Repository, view: View, model: TrackedModel) -> TensorTable | None:
    try:
        table = repo.table(view, model.path)
    except BadMetadataError:
        return None
    wanted = model.metadata.md5 if model.metadata is not None else model.pointer.md5
    return table if table is not None and table.md5 == wanted else None


def _retrained(repo: Repository) -> dict[str, Side]:
    """Give the sides of models that were retrained and whose metadata does not say so yet."""
    found = {}
    for seen in look(repo, read_state(repo.layout.state_dir)):
        if seen.action is not Action.DESCRIBE or seen.md5 is None:
            continue
        contents = seen.contents or read_contents(repo.top / seen.path, seen.path)
        if contents.hashes.md5 != (seen.model.metadata.md5 if seen.model.metadata else None):
            found[seen.path] = _contents_side(repo, seen.model, contents)
    return found


def _contents_side(repo: Repository, model: TrackedModel, contents: Contents) -> Side:
    metadata = model.metadata
    if metadata is not None:
        pointer = model.pointer if model.pointer.md5 == contents.hashes.md5 else None
        facts = gather_training(repo.work_tree.read, pointer, repo.settings)
        version = replace(metadata.version, number=metadata.version.number + 1)
        metadata = replace(metadata, training=facts, version=version)
    return Side(model.path, "work tree", contents.table, metadata, contents.hashes.md5, contents.format)


def _file_side(given: str) -> Side:
    contents = read_contents(Path(given), given)
    if contents.warning:
        raise UsageError(contents.warning)
    return Side(given, given, contents.table, None, contents.hashes.md5, contents.format)
