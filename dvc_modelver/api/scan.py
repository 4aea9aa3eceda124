"""scan: what model files would run when they are loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Set
from dataclasses import replace
from pathlib import Path

from dvc_modelver.api.select import select, split_reference
from dvc_modelver.errors import NotFoundError, ObjectMissing, UsageError, word
from dvc_modelver.metadata import find_model_path
from dvc_modelver.repository import Repository, is_pointer_file
from dvc_modelver.security.scan import scan_file, scan_folder, scan_path
from dvc_modelver.security.verdicts import Finding, Scanned, Verdict
from dvc_modelver.store.folders import is_folder_oid

__all__ = ["Scanned", "scan"]


def scan(*references: str, folder: Path | None = None) -> list[Scanned]:
    """Say what model files would import, call and run when a framework loads them; nothing of them is run.

    Names that ``security.allow`` of the repository's ``.modelver.toml`` lists are taken for safe.

    Args:
        references: Files, folders, or models and versions: ``NAME``, ``NAME@V``, ``NAME#STAGE``.
        folder: Anywhere in the work tree.

    Returns:
        One result per file; of a folder, one for each file in it, and for each model that is tracked there and not on
        disk. Files of this program's own are left out where they are safe.

    Raises:
        NotFoundError: There is no such file, model or version.
        ObjectMissing: The version's object is not in the cache.
    """
    repo = _find_repository(folder)
    allow = frozenset(repo.settings.allow) if repo is not None else frozenset()
    return [result for reference in references for result in _iter_results(repo, reference, allow)]


def _find_repository(folder: Path | None) -> Repository | None:
    try:
        return Repository.open(folder)
    except UsageError:
        return None


def _iter_results(repo: Repository | None, reference: str, allow: Set[str]) -> Iterator[Scanned]:
    path = Path(reference)
    if path.is_file():
        yield from scan_path(path, allow)
    elif path.is_dir():
        for result in scan_path(path, allow):
            if result.verdict is not Verdict.SAFE or not (is_pointer_file(result.path) or find_model_path(result.path)):
                yield result
        if repo is not None:
            yield from _iter_missing(repo, path)
    elif path.exists():
        raise UsageError(f"{reference}: neither a file nor a folder")
    elif repo is None:
        raise NotFoundError(f"{reference}: no such file or folder", hint=f"ls {word(path.parent)}")
    else:
        yield from _iter_version(repo, reference, allow)


def _iter_missing(repo: Repository, folder: Path) -> Iterator[Scanned]:
    """Give the models that belong into a folder and are not there: nothing is known of them."""
    around = folder.resolve()
    for model in repo.models(repo.work_tree):
        file = repo.top / model.path
        if not file.exists() and file.resolve().is_relative_to(around):
            why = f"not on disk, so not scanned (modelver pull {word(model.path)})"
            yield Scanned(_shown(file), Verdict.UNKNOWN, (Finding("", "", "damage", Verdict.UNKNOWN, why),))


def _shown(file: Path) -> str:
    """Give a path as it is typed here."""
    return os.path.relpath(file)


def _iter_version(repo: Repository, reference: str, allow: Set[str]) -> Iterator[Scanned]:
    is_version = split_reference(reference)[1:] != ("", "")
    try:
        chosen = select(repo, reference)
    except NotFoundError as err:
        if is_version:
            raise
        raise NotFoundError(f"{reference}: no such file, folder or model", hint=err.hint) from err
    there, md5 = chosen.model.path, chosen.metadata.md5
    on_disk = repo.top / there
    if not is_version and on_disk.exists():
        yield from scan_path(Path(_shown(on_disk)), allow)
        return
    cache, legacy = repo.cache(there), chosen.pointer.legacy
    if not cache.has(md5, legacy=legacy):
        raise ObjectMissing(
            f"{reference}: object {md5[:8]} is not in the cache",
            hint=f"modelver load {word(reference)} -o FILE, then modelver scan FILE",
        )
    if is_folder_oid(md5):
        yield from scan_folder(cache.open_folder(md5), reference, allow)
    else:
        with cache.path_of(md5, legacy=legacy).open("rb", buffering=0) as file:
            yield replace(scan_file(file, there, allow), path=reference)
