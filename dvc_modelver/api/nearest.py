"""similar: which version, of any model, is nearest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dvc_modelver.api.compare import file_side, selected_side
from dvc_modelver.api.select import select
from dvc_modelver.diff.changes import ModelDiff, Side, TensorChange
from dvc_modelver.diff.compare import compare
from dvc_modelver.diff.render.cells import cosine_text
from dvc_modelver.errors import BadMetadataError, UsageError
from dvc_modelver.fingerprint.estimate import Estimate, combine, one_sided
from dvc_modelver.metadata import ModelMetadata, TensorTable, table_path
from dvc_modelver.registry.history import Version, iter_versions
from dvc_modelver.repository import Repository
from dvc_modelver.tensors import is_float
from dvc_modelver.views import CommitView, View


@dataclass(frozen=True)
class Ranked:
    """One version and how far the model asked about is from it.

    Attributes:
        distance: Relative L2 of all parameters, where a tensor that only one side has counts with its whole norm;
            None where it is undefined.
        error: What `distance` may be off by, in 95 of 100 cases.
        change: The comparison, from this version to the model asked about.
        commit: A commit that has the version.
    """

    name: str
    number: int
    md5: str
    distance: float | None
    error: float | None
    change: ModelDiff
    commit: str
    subject: str


def similar(reference: str, *, limit: int | None = None, folder: Path | None = None) -> list[Ranked]:
    """Rank all versions of all models by their distance to a model; the nearest is likely what it was made from.

    Args:
        reference: ``NAME``, ``NAME@V``, ``NAME#STAGE``, or a model file that need not be tracked.
        limit: At most so many.
        folder: Anywhere in the work tree.

    Returns:
        The nearest first, those with its bytes before all; the version asked about itself is left out, and so are those
        that have no tensor of it: none of the same name, and none of like values.

    Raises:
        NotFoundError: No such model or version.
        UsageError: No reader knows the model's format.
    """
    repo = Repository.open(folder)
    wanted, itself = _wanted(repo, reference)
    if wanted.table is None:
        raise UsageError(f"{reference}: opaque, so nothing is known of its tensors", hint="modelver show " + reference)
    found = []
    for name, version in _all_versions(repo):
        if (name, version.metadata.md5) == itself:
            continue
        side = side_of(repo, version)
        if side.table is not None:
            found.append(rank(name, version, compare(side, wanted)))
    related = [r for r in found if any(t.old and t.new and t.is_parameter for t in r.change.tensors)]
    related.sort(key=_order)
    return related[:limit]


def _order(r: Ranked) -> tuple[bool, bool, float, bool, int]:
    is_wider = r.change.kind == "architecture"  # at distance 0 as well: tensors of zeros, or of integers
    return not r.change.bytes_equal, r.distance is None, r.distance or 0.0, is_wider, -r.number


MAX_CANDIDATES = 50
VARIANT_COSINE = 0.95
"""Below this a model is another one: 4-bit blocks keep 0.99, fine-tuning seldom goes below 0.95."""


VARIANT_DISTANCE = 0.5
"""Above this too little of the two is the same, however alike: tensors that only one has count with all their norm."""


def find_origin(repo: Repository, path: str, metadata: ModelMetadata, table: TensorTable | None) -> Ranked | None:
    """Give the version of another model that a new model has its values from: quantised, converted or copied.

    Args:
        repo: The repository.
        path: The new model.
        metadata: Its metadata.
        table: Its tensor table; None for an opaque one.

    Returns:
        The nearest of the last `MAX_CANDIDATES` versions of each model, None where none is near.
    """
    if table is None:
        return None
    wanted = Side(path, "", table, metadata, metadata.md5, metadata.model.format)
    seen: Counter[str] = Counter()
    found = []
    for name, version in _all_versions(repo):
        seen[name] += 1
        if name == metadata.model.name or seen[name] > MAX_CANDIDATES:
            continue
        side = side_of(repo, version)
        if side.table is not None and _may_be_related(side.table, table):
            found.append(rank(name, version, compare(side, wanted)))
    near = [r for r in found if (r.change.cosine or 0) >= VARIANT_COSINE]
    near = [r for r in near if r.distance is not None and r.distance <= VARIANT_DISTANCE]
    return min(near, key=lambda r: (r.distance or 0.0, -r.number), default=None)


def _may_be_related(a: TensorTable, b: TensorTable) -> bool:
    """Whether two models have about as many parameters: a cheap question before a comparison."""
    sizes = sorted(sum(row.numel for row in table.rows if row.role != "optimizer") for table in (a, b))
    return sizes[0] > 0 and sizes[1] <= 1.5 * sizes[0]


def origin_line(metadata: ModelMetadata, origin: Ranked) -> str:
    """Say what a new model is a variant of, and what was measured."""
    kind = ", ".join([metadata.model.format, *sorted(metadata.model.dtypes or {})])
    return (
        f"{metadata.model.path}: a variant of {origin.name}@{origin.number} by its values (cosine "
        f"{cosine_text(origin.change.cosine or 0)}, relative L2 {origin.distance or 0:.2g}; {kind})"
    )


def _wanted(repo: Repository, reference: str) -> tuple[Side, tuple[str, str]]:
    inside = repo.repo_path(reference)
    tracked = {m.path for m in repo.models(repo.work_tree)}
    if Path(reference).exists() and inside not in tracked:
        return file_side(reference), ("", "")
    chosen = select(repo, reference)
    return selected_side(repo, chosen), (chosen.model.name, chosen.metadata.md5)


def _all_versions(repo: Repository) -> Iterator[tuple[str, Version]]:
    views: list[View] = [repo.work_tree, *([repo.at("HEAD")] if repo.head else [])]
    models = {m.path: m.name for view in views for m in repo.models(view)}
    seen = set()
    for path, name in models.items():
        for version in iter_versions(repo.git, repo.objects, path, "--all") if repo.head else ():
            if (name, version.metadata.md5) not in seen:
                seen.add((name, version.metadata.md5))
                yield name, version


def side_of(repo: Repository, version: Version) -> Side:
    """Give a version as a side of a comparison; without a table where history has none that is its own."""
    text = CommitView(version.commit, repo.objects, repo.backfill).read(table_path(version.path))
    try:
        table = TensorTable.parse(text, table_path(version.path)) if text else None
    except BadMetadataError:
        table = None
    if table is not None and table.md5 != version.metadata.md5:
        table = None
    meta = version.metadata
    return Side(version.path, version.commit[:8], table, meta, meta.md5, meta.model.format)


def rank(name: str, version: Version, change: ModelDiff) -> Ranked:
    """Give how far a version is from the new side of a comparison with it."""
    whole = combine(_counted(t) for t in change.tensors if t.is_parameter and is_float(t.row.dtype))
    return Ranked(
        name=name,
        number=version.number,
        md5=version.metadata.md5,
        distance=whole.relative_l2,
        error=whole.error,
        change=change,
        commit=version.commit,
        subject=version.subject,
    )


def _counted(t: TensorChange) -> Estimate:
    """Give what a tensor adds to the distance of two models: one without a counterpart adds all of its norm."""
    if t.old is None or t.new is None:
        return one_sided(t.row.norm, is_new=t.old is None)
    if t.old.numel == t.new.numel:
        return t.measured
    return combine([one_sided(t.old.norm, is_new=False), one_sided(t.new.norm, is_new=True)])
