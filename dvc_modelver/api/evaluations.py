"""eval: a result that was measured after the commit, appended to a version by its md5."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc_modelver.api.select import check_described, select
from dvc_modelver.api.track import declared_facts
from dvc_modelver.errors import UsageError
from dvc_modelver.git.notes import committer
from dvc_modelver.metadata import ModelMetadata
from dvc_modelver.pipeline import read_metrics
from dvc_modelver.registry.evaluations import Evaluation, as_time, now, record_evaluation
from dvc_modelver.registry.notes import bring, send
from dvc_modelver.registry.sharing import find_remote
from dvc_modelver.repository import Repository

_MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")


@dataclass(frozen=True)
class Evaluated:
    """What `evaluate` recorded.

    Attributes:
        metadata: The version.
        evaluation: The result.
        is_new: False where it was there already.
        remote: Where it was pushed to; empty for nowhere.
    """

    metadata: ModelMetadata
    evaluation: Evaluation
    is_new: bool
    remote: str = ""


def evaluate(
    reference: str,
    *files: str | Path,
    metrics: Mapping[str, float] | None = None,
    data: Iterable[str | Path] = (),
    time: str | None = None,
    by: str | None = None,
    push: bool = False,
    folder: Path | None = None,
) -> Evaluated:
    """Append a result to a version, in Git notes; the commit stays as it is.

    Args:
        reference: ``NAME``, ``NAME@V`` or ``NAME#STAGE``.
        files: Metrics files as DVC has them: JSON, YAML or TOML.
        metrics: Further values by name; they win over those of files.
        data: What it was measured on: files, DVC outputs, or their md5.
        time: When, in ISO 8601; now by default.
        by: Who; as Git names the user by default.
        push: Send it to the remote at once: ``origin``, else the branch's.
        folder: Anywhere in the work tree.

    Raises:
        UsageError: No values, no such data, a time in the future, no remote to push to, Git knows no user and `by` is
            not given, or no version is named and the weights on disk are not those that are described.
        BadMetadataError: A metrics file cannot be read.
        NotFoundError: No such model or version.
        EnvironmentFailed: It could not be pushed; it is recorded here.
    """
    repo = Repository.open(folder)
    chosen = select(repo, reference)
    check_described(repo, chosen)
    metadata = chosen.metadata
    values = {name: value for file in files for name, value in read_metrics(_read, str(file)).items()}
    values |= metrics or {}
    if not values:
        raise UsageError("modelver eval: no metrics, expected --metrics FILE or --metric name=value")
    remote = find_remote(repo.git) if push else None
    if push and remote is None:
        raise UsageError("modelver eval --push: no remote to push to", hint="git remote add origin URL")
    if remote is not None:
        bring(repo.git, remote)  # what is there already is not said twice
    new = Evaluation(
        md5=metadata.md5,
        metrics=values,
        time=as_time(time) if time else now(),
        by=by or committer(repo.git).rsplit(" ", 2)[0],
        source=", ".join(repo.repo_path(file) or Path(file).name for file in files),
        data=tuple(_data_rows(repo, data)),
    )
    is_new = record_evaluation(repo.git, repo.objects, new)
    if remote is not None:
        send(repo.git, repo.objects, remote)
    return Evaluated(metadata, new, is_new, remote or "")


def _read(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        return None


def _data_rows(repo: Repository, data: Iterable[str | Path]) -> Iterable[dict[str, Any]]:
    for given in data:
        if _MD5.fullmatch(str(given)) and not Path(given).exists():
            yield {"md5": str(given)}
            continue
        for row in declared_facts(data=[given], repo=repo).data or ():
            path = str(row["path"])
            outside = Path(path).is_absolute() or path.startswith("../")
            yield dict(row) | {"path": posixpath.basename(path) if outside else path}
