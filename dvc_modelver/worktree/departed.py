"""Weights whose pointer and metadata Git took away: another branch, a rename, a sparse checkout."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dvc_modelver.errors import word
from dvc_modelver.metadata import metadata_path
from dvc_modelver.store.folders import iter_files
from dvc_modelver.worktree.state import ABSENT, Row, stamp_of

if TYPE_CHECKING:
    from dvc_modelver.worktree.look import Seen
    from dvc_modelver.worktree.sync import Keeper


def let_go(keeper: Keeper, found: Iterable[Seen]) -> None:
    """Remove the weights that were in step with the files that Git took away; the cache has them.

    Retrained ones stay where they are, are put into the cache as well, and are named. So do weights whose files went
    in any other way (``rm``, ``dvc remove``): the index has those files still, or an earlier look found them gone.
    Files that another model has now are that one's: a folder took them over, or is a folder of several models here.

    Args:
        keeper: Holds the work tree's state.
        found: The models that the work tree has; all others are looked at here.
    """
    paths = {seen.path for seen in found}
    gone = [row for path, row in keeper.state.rows.items() if path not in paths and not is_shared(path, paths)]
    rows = [row for row in gone if _went_just_now(keeper, row)]
    if not rows:
        return
    unreadable = keeper.repo.unreadable(keeper.repo.work_tree)
    tracked = _tracked(keeper, rows)
    for row in rows:
        in_git = any(path.startswith(f"{row.path}/") for path in tracked)  # Git has the folder's files itself here
        own = {row.path, metadata_path(row.path), _own_file(row)}
        if row.pointer_path not in unreadable and not in_git and not tracked & own:
            let_go_one(keeper, row)


def is_shared(path: str, others: Iterable[str]) -> bool:
    """Whether one of the other models lies inside a model's folder, or is a folder around it."""
    return any(other.startswith(f"{path}/") or path.startswith(f"{other}/") for other in others)


def _went_just_now(keeper: Keeper, row: Row) -> bool:
    """Whether metadata and pointer were there at the last look; the model file is there still."""
    top = keeper.repo.top
    were = {row.metadata_stamp, row.pointer_stamp} - {ABSENT}
    file = _own_file(row)
    return (
        bool(were)
        and stamp_of(top / row.path) != ABSENT
        and stamp_of(top / metadata_path(row.path)) == ABSENT
        and (file is None or stamp_of(top / file) == ABSENT)
    )


def _own_file(row: Row) -> str | None:
    """Give the ``.dvc`` file of a model; None for one of a pipeline, whose ``dvc.lock`` holds others too."""
    return row.pointer_path if row.pointer_path.endswith(".dvc") else None


def _tracked(keeper: Keeper, rows: Iterable[Row]) -> set[str]:
    """Give which of the models' files the index has, those left out of a sparse checkout not counted."""
    files = {f for row in rows for f in (row.path, metadata_path(row.path), _own_file(row)) if f is not None}
    entries = keeper.repo.git.paths("ls-files", "-t", "-z", "--", *sorted(files))
    return {entry[2:] for entry in entries if not entry.startswith("S ")}


def let_go_one(keeper: Keeper, row: Row) -> None:
    """Remove weights that no file names any more, if they are in step; else store and name them."""
    file, cache = keeper.repo.top / row.path, keeper.repo.cache(row.path)
    md5 = row.md5 if stamp_of(file) == row.model_stamp else cache.hash_path(file).md5
    if not md5 or not cache.has(md5):
        md5 = cache.store_path(file, link=False).md5
    if md5 == row.agreed:
        _remove(file)
        del keeper.state.rows[row.path]
        _remove_empty_folders(file.parent, keeper.repo.top)
        return
    keeper.state.rows[row.path] = replace(row, md5=md5, model_stamp=stamp_of(file))
    keeper.say(
        f"{row.path}: retrained, and no pointer names it here: the weights stay\n"
        f"hint: modelver add {word(row.path)} keeps them as a model; the cache has them as {md5[:8]}"
    )


def _remove(path: Path) -> None:
    """Remove a file; of a folder, what is in the cache: the files that its listing has, and no other."""
    if not path.is_dir():
        path.unlink()
        return
    for name, _ in iter_files(path):
        (path / name).unlink()
    for folder, _, _ in os.walk(path, topdown=False):
        with suppress(OSError):
            Path(folder).rmdir()


def _remove_empty_folders(folder: Path, top: Path) -> None:
    """Remove folders that nothing is left in, as Git does when it removes a file."""
    with suppress(OSError):
        while folder != top:
            folder.rmdir()
            folder = folder.parent
