"""Keeps models out of commits that would run code when somebody loads them."""

from __future__ import annotations

from collections.abc import Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING

from dvc_modelver.errors import EnvironmentFailed, RefusedError, word
from dvc_modelver.repository import Repository
from dvc_modelver.store.folders import is_folder_oid
from dvc_modelver.worktree.describe import find_version

if TYPE_CHECKING:
    from dvc_modelver.security.verdicts import Scanned


def check_safe(repo: Repository, path: str, md5: str) -> None:
    """Scan an object, of which pickles and headers are read and no more; see ``security.refuse``.

    A version that HEAD's history has is no news, and an object that is not in the cache was not made here.

    Args:
        repo: The repository.
        path: The model.
        md5: Its object.

    Raises:
        RefusedError: It is dangerous, or not known to be safe where the settings want that.
    """
    from dvc_modelver.security.verdicts import Verdict

    refused = {Verdict.DANGEROUS} | ({Verdict.UNKNOWN} if repo.settings.refuse == "unknown" else set())
    for scanned in _iter_scanned(repo, path, md5, frozenset(repo.settings.allow)):
        if scanned.verdict not in refused:
            continue
        if find_version(repo, path, md5) is not None:
            return
        worst = scanned.findings[0]
        what = f"{worst.name} ({worst.reason})" if worst.name else worst.reason
        raise RefusedError(
            f"{scanned.path}: {scanned.verdict} to load: {what}",
            hint=f"modelver scan {word(path)} says more; security.allow and security.refuse in .modelver.toml, or "
            "MODELVER_SKIP=1 git commit, let it through",
        )


def _iter_scanned(repo: Repository, path: str, md5: str, allow: Set[str]) -> Iterator[Scanned]:
    from dvc_modelver.security.scan import scan_file, scan_folder

    cache = repo.cache(path)
    if not cache.has(md5):
        return
    if is_folder_oid(md5):
        yield from scan_folder(cache.open_folder(md5), path, allow)
        return
    file: Path = cache.path_of(md5)
    try:
        with file.open("rb", buffering=0) as opened:
            yield scan_file(opened, path, allow)
    except OSError as err:
        raise EnvironmentFailed(f"{path}: object {md5[:8]} cannot be read ({err.strerror})") from err
