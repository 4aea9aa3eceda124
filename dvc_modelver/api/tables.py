"""compare, blame: questions to the tensor tables of versions, without their weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dvc_modelver.api.compare import selected_side
from dvc_modelver.api.elsewhere import open_repository
from dvc_modelver.api.history import labels_of
from dvc_modelver.api.select import Selected, select, split_reference, warn_of_others
from dvc_modelver.diff.changes import ModelDiff, Side
from dvc_modelver.diff.compare import compare
from dvc_modelver.errors import BadMetadataError, UsageError, word
from dvc_modelver.fingerprint.row import TensorRow
from dvc_modelver.metadata import ModelMetadata, TensorTable, table_path
from dvc_modelver.registry.evaluations import Measured, measured_metrics, read_evaluations
from dvc_modelver.registry.history import ModelHistory, Version
from dvc_modelver.registry.tags import read_tags
from dvc_modelver.repository import Repository
from dvc_modelver.views import CommitView, View

Say = Callable[[str], None]
_BARE = re.compile(r"@.+|#.+|\d+(\.[0-9a-f]{4,32})?|v\d+\.\d+\.\d+\S*")


@dataclass(frozen=True)
class ComparedVersion:
    """One column of ``compare``.

    Attributes:
        label: ``digits@3``, or as it was asked for.
        stages: Those that it holds now.
        change: The comparison from the first version to it; None for the first itself.
    """

    label: str
    metadata: ModelMetadata
    commit: str
    tags: tuple[str, ...]
    stages: tuple[str, ...]
    measured: Mapping[str, Measured]
    change: ModelDiff | None


def compare_versions(
    *references: str, repo: str | None = None, say: Say = lambda _line: None, folder: Path | None = None
) -> list[ComparedVersion]:
    """Put versions side by side: metrics, hyper-parameters, data, and similarity to the first, estimated from tables.

    Args:
        references: ``NAME``, ``NAME@V`` or ``NAME#STAGE``, two or more; after the first, the name may be left out.
        repo: Another repository, by URL or path.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.

    Raises:
        UsageError: Fewer than two.
        NotFoundError: No such model or version.
    """
    if len(references) < 2:
        raise UsageError("modelver compare: expected two versions or more", hint="modelver compare NAME@1 NAME@2")
    opened = open_repository(repo, folder, say)
    picked = [select(opened, references[0])]
    for text in references[1:]:
        is_bare = _BARE.fullmatch(text) is not None
        name = picked[0].model.name
        picked.append(select(opened, f"{name}{'' if text[0] in '@#' else '@'}{text}" if is_bare else text))
    for one in picked:
        warn_of_others(opened, one, say)
    labels = {path: _labels(opened, path, name) for path, name in {(p.model.path, p.model.name) for p in picked}}
    evaluations = read_evaluations(opened.objects, [p.metadata.md5 for p in picked], skip=say)
    first = selected_side(opened, picked[0])
    found = []
    for at, one in enumerate(picked):
        tags, stages = labels[one.model.path]
        md5 = one.metadata.md5
        found.append(
            ComparedVersion(
                label=one.label if one.commit else f"{one.model.name}@{one.metadata.version.number}",
                metadata=one.metadata, commit=one.commit, tags=tuple(tags.get(md5, ())),
                stages=tuple(stages.get(md5, ())),
                measured=measured_metrics(one.metadata, evaluations.get(md5, ())),
                change=_change(opened, first, one) if at else None,
            )
        )  # fmt: skip
    return found


def _labels(repo: Repository, path: str, name: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    return labels_of(ModelHistory(repo.git, repo.objects, path), read_tags(repo.git, name))


def _change(repo: Repository, first: Side, other: Selected) -> ModelDiff:
    return compare(first, selected_side(repo, other))


@dataclass(frozen=True)
class BlamedTensor:
    """One tensor and the version that last changed it.

    Attributes:
        version: Its commit is empty where it was not committed yet.
        name: In the version that was asked about.
        then: Its name in the version that changed it.
        is_oldest: Whether that version's parent is not in this clone, so that an older one may have it as well.
    """

    name: str
    then: str
    row: TensorRow
    version: Version
    is_oldest: bool = False


def blame(reference: str, *, say: Say = lambda _line: None, folder: Path | None = None) -> list[BlamedTensor]:
    """Say of each tensor of a model which version last changed it, by digests along the recorded parents.

    A tensor whose values were in a parent, under the same name or another, is followed there; in a merge, to the
    parent that has them.

    Args:
        reference: ``NAME``, ``NAME@V`` or ``NAME#STAGE``.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.

    Returns:
        The tensors in the order of the table.

    Raises:
        NotFoundError: No such model or version.
        UsageError: An opaque model: nothing is known of its tensors.
    """
    repo = open_repository(None, folder, say)
    wanted = select(repo, reference)
    versions = {v.metadata.md5: v for v in ModelHistory(repo.git, repo.objects, wanted.model.path).versions("--all")}
    path, md5 = wanted.model.path, wanted.metadata.md5
    start = versions.setdefault(md5, Version(wanted.metadata, path, "", "", "", "not committed yet"))
    trace = _Trace(repo, versions)
    table = trace.table(start)
    if table is None:
        raise UsageError(f"{reference}: has no tensor table, so nothing is known of its tensors",
                         hint=f"modelver show {word(split_reference(reference)[0])}")  # fmt: skip
    return trace.run(start, table)


class _Trace:
    """Follows tensors back through versions."""

    def __init__(self, repo: Repository, versions: Mapping[str, Version]) -> None:
        self.repo, self.versions = repo, versions
        self.tables: dict[str, TensorTable | None] = {}

    def table(self, version: Version) -> TensorTable | None:
        """Give a version's table; None for an opaque one, and one whose table cannot be read."""
        md5 = version.metadata.md5
        if md5 not in self.tables:
            view: View = self.repo.work_tree
            if version.commit:
                view = CommitView(version.commit, self.repo.objects, self.repo.backfill)
            text = view.read(table_path(version.path))
            try:
                table = TensorTable.parse(text, table_path(version.path)) if text is not None else None
            except BadMetadataError:
                table = None
            self.tables[md5] = table if table is not None and table.md5 == md5 else None
        return self.tables[md5]

    def run(self, start: Version, table: TensorTable) -> list[BlamedTensor]:
        """Give the answer for all tensors of a version."""
        done: dict[str, BlamedTensor] = {}
        waiting = {start.metadata.md5: {row.name: row.name for row in table.rows}}  # md5 -> name today -> name there
        while waiting:
            md5 = max(waiting, key=lambda md5: (self.versions[md5].number, md5))  # children come before parents
            names, version = waiting.pop(md5), self.versions[md5]
            rows = {row.name: row for row in (self.table(version) or table).rows}
            parents = [self.versions[p] for p in version.metadata.version.parents if p in self.versions]
            for parent in parents:
                if parent.number < version.number and self.table(parent) is not None:
                    passed = _passed_on(names, rows, self.table(parent))
                    waiting.setdefault(parent.metadata.md5, {}).update(passed)
                    names = {name: there for name, there in names.items() if name not in passed}
                    if not waiting[parent.metadata.md5]:
                        del waiting[parent.metadata.md5]
            is_oldest = len(parents) < len(version.metadata.version.parents)
            for name, there in names.items():
                done[name] = BlamedTensor(name, there, rows[there], version, is_oldest)
            self.tables.pop(md5)
        return [done[row.name] for row in table.rows]


def _passed_on(names: Mapping[str, str], rows: Mapping[str, TensorRow], parent: TensorTable | None) -> dict[str, str]:
    """Give name today -> name in the parent, of tensors that the parent has with the same values."""
    there = {row.name: row for row in parent.rows} if parent is not None else {}
    passed = {}
    by_values: dict[tuple[str, str], list[str]] = {}
    for row in there.values():
        if row.name not in rows or rows[row.name].digest != row.digest:
            by_values.setdefault((row.digest, row.dtype), []).append(row.name)
    for name, now in names.items():
        row = rows[now]
        if now in there and (there[now].digest, there[now].dtype) == (row.digest, row.dtype):
            passed[name] = now
        elif len(same := by_values.get((row.digest, row.dtype), [])) == 1:
            passed[name] = same[0]
    return passed


def versions_blamed(found: Sequence[BlamedTensor]) -> list[tuple[Version, list[BlamedTensor]]]:
    """Group the answer of `blame` by version, newest first."""
    groups: dict[str, tuple[Version, list[BlamedTensor]]] = {}
    for one in found:
        groups.setdefault(one.version.metadata.md5, (one.version, []))[1].append(one)
    return sorted(groups.values(), key=lambda group: -group[0].number)
