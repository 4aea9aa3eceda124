"""Writes results where a user says, but never over what DVC or this tool keeps in a work tree."""

from __future__ import annotations

import os
from pathlib import Path

from dvc_modelver.errors import EnvironmentFailed, UsageError, word
from dvc_modelver.git.layout import find_layout
from dvc_modelver.metadata import metadata_path, table_path
from dvc_modelver.repository import Repository, is_pointer_file
from dvc_modelver.worktree.state import find_stream, is_special, write_file


def write_output(path: Path, content: bytes) -> None:
    """Write where a user said: a device or a pipe is written into, a link's target is replaced, not the link.

    ``/dev/stdout`` and its like are written to as the open streams they are: they may be files, in the middle of which
    the shell goes on.

    Raises:
        UsageError: It is a folder, or DVC or this tool keeps what is there.
        EnvironmentFailed: It cannot be written.
    """
    if is_special(path):
        stream = find_stream(path)
        try:
            with path.open("wb") if stream is None else os.fdopen(os.dup(stream), "wb") as file:
                file.write(content)
        except OSError as err:
            raise EnvironmentFailed(f"{path}: cannot be written ({err.strerror})", hint="-o FILE") from err
        return
    if path.is_dir():
        raise UsageError(f"{path}: a folder, expected a file")
    check_destination(path)
    write_file(Path(os.path.realpath(path)), content)


def keep_weights(path: Path) -> None:
    """Put the weights that a result is about to replace into the cache, where `path` is a model's own place."""
    if not path.exists():
        return
    try:
        repo = Repository(find_layout(Path(os.path.abspath(path)).parent))
    except UsageError:  # in no work tree
        return
    inside = repo.repo_path(path)
    if inside is not None and inside in {pointer.path for pointer in repo.pointers(repo.work_tree)}:
        repo.cache(inside).store_path(path, link=False)


def check_destination(path: Path) -> None:
    """Refuse a path at which weights or other data of DVC lie (or belong), or a file that describes them.

    Raises:
        UsageError: It is such a path; another repository than the current one counts as well.
    """
    for place in dict.fromkeys((os.path.abspath(path), os.path.realpath(path))):
        folder = Path(place).parent
        while not folder.is_dir():
            folder = folder.parent
        try:
            repo = Repository(find_layout(folder))
        except UsageError:  # in no work tree
            continue
        inside = repo.repo_path(place)
        kind = None if inside is None else _kept_as(repo, inside)
        if kind is not None:
            raise UsageError(
                f"{path}: {kind}, which a result would replace; expected another file",
                hint=f"name a file that is not there yet, like {word(Path(path).name + '.out')}",
            )


def _kept_as(repo: Repository, path: str) -> str | None:
    if is_pointer_file(path) and (repo.top / path).exists():
        return "a pointer of DVC"
    for pointer in repo.pointers(repo.work_tree):
        if path in (metadata_path(pointer.path), table_path(pointer.path)) and (repo.top / path).exists():
            return f"{'metadata' if path == metadata_path(pointer.path) else 'the tensor table'} of {pointer.path}"
        if path == pointer.path:
            return "tracked by DVC"
        if path.startswith(f"{pointer.path}/") and (repo.top / path).exists():
            return f"in {pointer.path}, which DVC tracks"
    return None
