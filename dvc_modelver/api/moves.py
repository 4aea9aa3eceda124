"""mv, rm: a model with its pointer, metadata, tensor table and ignore line."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dvc_modelver.errors import UsageError, word
from dvc_modelver.metadata import metadata_path, table_path
from dvc_modelver.repository import Repository, TrackedModel
from dvc_modelver.store.pointers import Pointer, rename_pointer
from dvc_modelver.store.temp import remove, separate
from dvc_modelver.worktree.state import locked, write_file
from dvc_modelver.worktree.sync import Keeper, path_in_file
from dvc_modelver.worktree.track import Tracker

Say = Callable[[str], None]


def mv(old: str | Path, new: str | Path, *, say: Say = lambda _line: None, folder: Path | None = None) -> str:
    """Rename a model with its pointer, metadata, tensor table and ignore line; all is staged.

    Returns:
        The new path.

    Raises:
        UsageError: The new path is taken, or a pipeline makes the model.
    """
    repo = Repository.open(folder)
    if str(new).endswith("/") and not Path(new).is_dir():
        raise UsageError(f"{new}: no such folder", hint=f"mkdir -p {word(new)}")
    model = repo.find_model(repo.work_tree, str(old))
    if model.pointer.kind == "lock":
        raise UsageError(
            f"{model.path}: an output of stage {model.pointer.stage!r}; its path is set in dvc.yaml",
            hint="edit dvc.yaml, then dvc repro",
        )
    target = Path(new) / posixpath.basename(model.path) if Path(new).is_dir() else Path(new)
    path = repo.trackable(target)
    taken = [p for p in (path, path + ".dvc", metadata_path(path)) if (repo.top / p).exists()]
    if taken:
        raise UsageError(f"{taken[0]}: is there already", hint=f"modelver rm {word(path)}")
    with locked(repo.layout.state_dir):
        keeper = Keeper(repo, say)
        tracker = Tracker(keeper)
        row = keeper.state.rows.pop(model.path, None)
        (repo.top / path).parent.mkdir(parents=True, exist_ok=True)
        pointer = _move_pointer(repo, model, path)
        tracker.stage_ignore_line(path)
        if (repo.top / model.path).exists():
            (repo.top / model.path).rename(repo.top / path)
        _move_metadata(repo, model, path)
        tracker.unstage_ignore_line(model.path)
        if row is not None:
            for seen in keeper.look(only=[path]):
                keeper.remember(replace(seen, agreed=row.agreed))
        keeper.save()
    return pointer.path


def _move_pointer(repo: Repository, model: TrackedModel, path: str) -> Pointer:
    disk = repo.top / model.pointer.file
    old = disk.read_text(encoding="utf-8")
    file = path + ".dvc"
    text = rename_pointer(old, path_in_file(model.pointer.file, model.path, old), path_in_file(file, path, old))
    write_file(repo.top / file, text.encode())
    repo.git.stage_blobs({file: text.encode(), model.pointer.file: None})
    disk.unlink()
    return replace(model.pointer, path=path, file=file)


def _move_metadata(repo: Repository, model: TrackedModel, path: str) -> None:
    blobs: dict[str, bytes | None] = {}
    if model.metadata is not None:
        moved = replace(model.metadata, model=replace(model.metadata.model, path=path))
        blobs[metadata_path(path)] = moved.render()
        blobs[metadata_path(model.path)] = None
    table = repo.work_tree.read(table_path(model.path))
    if table is not None:
        blobs[table_path(path)], blobs[table_path(model.path)] = table, None
    for name, content in blobs.items():
        if content is not None:
            write_file(repo.top / name, content)
    repo.git.stage_blobs(blobs)
    for name, content in blobs.items():
        if content is None:
            (repo.top / name).unlink(missing_ok=True)


def rm(
    *paths: str | Path, cached: bool = False, say: Say = lambda _line: None, folder: Path | None = None
) -> list[str]:
    """Stop tracking models and delete them with their files; that is staged, the objects stay in the cache.

    Args:
        paths: The models, by name or path; where one cannot be removed, none is.
        cached: Leave the weights on disk, as untracked files.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.

    Returns:
        The paths removed.

    Raises:
        NotFoundError: No such model.
        UsageError: A pipeline makes one, or the weights to leave are not on disk.
    """
    repo = Repository.open(folder)
    with locked(repo.layout.state_dir):
        keeper = Keeper(repo, say)
        models = {model.path: model for model in (repo.find_model(repo.work_tree, str(path)) for path in paths)}
        for model in models.values():
            _check_removable(repo, model, cached=cached)
        for model in models.values():
            _remove(keeper, model, cached=cached)
    return list(models)


def _check_removable(repo: Repository, model: TrackedModel, *, cached: bool) -> None:
    if model.pointer.kind == "lock":
        raise UsageError(
            f"{model.path}: an output of stage {model.pointer.stage!r}; remove the stage instead",
            hint=f"dvc remove {model.pointer.stage}",
        )
    if cached and not (repo.top / model.path).exists():
        raise UsageError(f"{model.path}: not on disk, expected weights", hint=f"modelver rm {word(model.path)}")


def _remove(keeper: Keeper, model: TrackedModel, *, cached: bool) -> None:
    repo, file = keeper.repo, keeper.repo.top / model.path
    if cached:
        separate(file)
    elif file.exists():
        hashes = repo.cache(model.path).store_path(file, link=False)
        if hashes.md5 != model.pointer.md5:
            keeper.say(f"{model.path}: these weights were in no version; kept in the cache as {hashes.md5}")
    files = [model.pointer.file, metadata_path(model.path), table_path(model.path)]
    staged = repo.git.index_entries(*files)
    repo.git.stage_blobs({name: None for name in files if name in staged})
    for name in files if cached else [*files, model.path]:
        remove(repo.top / name)
    Tracker(keeper).unstage_ignore_line(model.path)
    keeper.state.rows.pop(model.path, None)
    keeper.save()
