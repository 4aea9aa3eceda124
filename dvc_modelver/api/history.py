"""log, list: what history has recorded of versions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dvc_modelver.api.elsewhere import open_repository
from dvc_modelver.api.select import find_known, find_past
from dvc_modelver.errors import NotFoundError
from dvc_modelver.metadata import ModelMetadata
from dvc_modelver.pipeline import flatten
from dvc_modelver.registry.evaluations import Measured, is_metric, measured_metrics, read_evaluations
from dvc_modelver.registry.history import ModelHistory, Version, iter_histories
from dvc_modelver.registry.tags import ModelTag, read_tags, stage_holder, version_key, versions_of
from dvc_modelver.registry.where import Facts, Value, check_known, check_name, check_names, parse_where
from dvc_modelver.repository import Repository

Say = Callable[[str], None]


@dataclass(frozen=True)
class LoggedVersion:
    """One version with what tags and evaluations say of it.

    Attributes:
        is_current: Whether the work tree's metadata is its own.
        stages: Those that it holds now.
        measured: Its metrics: of training, overlaid by evaluations.
        name: The model's name today.
    """

    version: Version
    tags: tuple[str, ...]
    is_current: bool
    stages: tuple[str, ...] = ()
    measured: Mapping[str, Measured] = field(default_factory=dict)
    name: str = ""

    def metric(self, name: str) -> float | None:
        """Give a metric's value; None where it was not measured, or is no number."""
        found = self.measured.get(name)
        return found.value if found is not None and is_metric(found.value) else None

    def facts(self) -> Facts:
        """Give what ``--where`` and ``--sort`` can ask for, by name."""
        v, m = self.version, self.version.metadata
        facts: dict[str, Value | tuple[str, ...] | None] = {
            "author": v.author, "bytes": m.model.bytes_, "date": v.date or None, "format": m.model.format,
            "framework": m.model.framework or m.training.framework, "md5": m.md5, "name": self.name,
            "number": v.number, "parameters": m.model.parameters, "path": v.path, "stage": self.stages,
            "subject": v.subject, "update": m.version.update,
            "version": tuple(t.partition("@")[2] for t in self.tags if "@" in t),
        }  # fmt: skip
        if m.change is not None:
            facts |= {"kind": m.change.kind, "cosine": m.change.cosine, "relative_l2": m.change.relative_l2}
        facts |= {f"metrics.{key}": one.value for key, one in self.measured.items() if _is_value(one.value)}
        flat = flatten(m.training.hyperparameters or {})
        facts |= {f"hyperparameters.{key}": value for key, value in flat if _is_value(value)}
        return {key: value for key, value in facts.items() if value is not None}


def _is_value(value: object) -> bool:
    return isinstance(value, (bool, int, float, str))


def log(
    reference: str,
    *,
    where: str | None = None,
    sort: str | None = None,
    everywhere: bool = False,
    repo: str | None = None,
    say: Say = lambda _line: None,
    folder: Path | None = None,
) -> list[LoggedVersion]:
    """Give the versions of a model, newest first.

    Args:
        reference: Name or path; also of a model that is only in history, or on another branch.
        where: Only those that fit; see `dvc_modelver.registry.where`.
        sort: What to sort by, smallest first; largest first with ``-`` in front. Those without it come last.
        everywhere: All refs rather than HEAD's history.
        repo: Another repository, by URL or path.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.

    Raises:
        NotFoundError: No such model.
        UsageError: `where` or `sort` cannot be read.
    """
    opened = open_repository(repo, folder, say)
    return chosen(_logged(opened, reference, everywhere=everywhere, say=say), where, sort, reference)


def chosen(versions: Sequence[LoggedVersion], where: str | None, sort: str | None, whose: str) -> list[LoggedVersion]:
    """Give the versions that fit `where`, in the order of `sort`; see `log`.

    Args:
        versions: All of them.
        where: The question; None for no choice.
        sort: The key; None for the order they come in.
        whose: Whose versions these are, for messages.

    Raises:
        UsageError: `where` or `sort` cannot be read, or asks for what no version has.
    """
    parsed = parse_where(where) if where is not None else None
    if sort is not None:
        check_name(sort.removeprefix("-"), option="--sort")
    if parsed is None and sort is None:
        return list(versions)
    pairs = [(one, one.facts()) for one in versions]
    known = {name for _, facts in pairs for name in facts}
    if sort is not None:
        check_known(sort.removeprefix("-"), known, whose, "--sort")
    if parsed is not None:
        check_names(parsed, known, whose)
        pairs = [(one, facts) for one, facts in pairs if parsed.matches(facts)]
    if sort is not None:
        name = sort.removeprefix("-")
        there = [pair for pair in pairs if pair[1].get(name, ()) != ()]
        rest = [one for one, facts in pairs if facts.get(name, ()) == ()]
        there.sort(key=lambda pair: _sort_key(name, pair[1][name]), reverse=sort.startswith("-"))
        return [*(one for one, _ in there), *rest]
    return [one for one, _ in pairs]


def _sort_key(name: str, value: Value | tuple[str, ...]) -> tuple[int, Any]:
    if isinstance(value, tuple):
        return (2, max(map(version_key, value))) if name == "version" else (3, value)
    return (0, value) if isinstance(value, (bool, int, float)) else (1, str(value))


@dataclass(frozen=True)
class _Known:
    """A model that history knows; `md5` is the work tree's, None where it is not there."""

    name: str
    path: str
    md5: str | None


def _find(repo: Repository, reference: str) -> _Known:
    """Give a model of the work tree or of HEAD, else one that any ref has in its history."""
    try:
        model = find_known(repo, reference)
    except NotFoundError:
        past = find_past(repo, reference)
        if past is None:
            raise
        return _Known(*past, None)
    current = repo.current(model)
    return _Known(model.name, model.path, current.md5 if current is not None else None)


def _logged(repo: Repository, reference: str, *, everywhere: bool, say: Say) -> list[LoggedVersion]:
    model = _find(repo, reference)
    if repo.head is None:
        return []
    history = ModelHistory(repo.git, repo.objects, model.path)
    found = history.versions("--all" if everywhere else "HEAD")
    if not found and not everywhere:
        found = history.versions("--all")  # of another branch, as its name was found there
    if lost := history.unreadable("--all" if everywhere else "HEAD"):
        say(f"{model.path}: {lost} metadata file{'s' * (lost != 1)} in history cannot be read, and are left out")
    return _joined(repo, model, found, history, read_tags(repo.git, model.name), say)


def _joined(
    repo: Repository, model: _Known, found: Sequence[Version], history: ModelHistory, tags: list[ModelTag], say: Say
) -> list[LoggedVersion]:
    """Join versions with their tags, stages and evaluations."""
    labels, stages = labels_of(history, tags)
    evaluations = read_evaluations(repo.objects, [v.metadata.md5 for v in found], skip=say)
    return [
        LoggedVersion(
            version=v, tags=tuple(labels.get(v.metadata.md5, ())), is_current=v.metadata.md5 == model.md5,
            stages=tuple(stages.get(v.metadata.md5, ())),
            measured=measured_metrics(v.metadata, evaluations.get(v.metadata.md5, ())), name=model.name,
        )
        for v in found
    ]  # fmt: skip


def labels_of(history: ModelHistory, tags: Iterable[ModelTag]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Give md5 -> tags, and md5 -> stages that it holds now; tags of commits without the model are left out.

    Args:
        history: Of the model.
        tags: All of the model, in the order that `read_tags` gives.
    """
    own = list(tags)
    labels: dict[str, list[str]] = {}
    stages: dict[str, list[str]] = {}
    md5s: dict[str, str] = {}
    for tag in own:
        try:
            md5s[tag.tag] = history.at(tag.commit, tag.tag).metadata.md5
        except NotFoundError:
            continue
        labels.setdefault(md5s[tag.tag], []).append(tag.tag)
    for stage in sorted({tag.stage for tag in own if tag.stage}):
        holder = stage_holder(own, stage)
        if holder is not None and holder.tag in md5s:
            stages.setdefault(md5s[holder.tag], []).append(stage)
    return labels, stages


@dataclass(frozen=True)
class ListedModel:
    """One line of ``list``.

    Attributes:
        metadata: That of the work tree; of the newest version for a model that is not there.
        versions: All its semantic versions, lowest first.
        here: Those of the version that `metadata` is of.
        stages: Stage -> the version that holds it, as one names it: ``v1.2.0``, or its number.
        is_here: Whether the work tree has it.
    """

    name: str
    path: str
    metadata: ModelMetadata | None
    versions: tuple[str, ...]
    here: tuple[str, ...]
    stages: Mapping[str, str]
    is_here: bool = True


def list_models(
    *,
    everywhere: bool = False,
    repo: str | None = None,
    say: Say = lambda _line: None,
    folder: Path | None = None,
) -> list[ListedModel]:
    """Give all models of the work tree with their tagged versions and who holds their stages.

    Args:
        everywhere: Also models that only other refs or older commits have.
        repo: Another repository, by URL or path.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.
    """
    opened = open_repository(repo, folder, say)
    tags = _tags_by_name(opened)
    found = [
        _listed(opened, m.path, m.name, opened.current(m), tags.get(m.name, []))
        for m in opened.models(opened.work_tree)
    ]
    here = {one.path for one in found}
    for path, versions in iter_histories(opened.git, opened.objects, "--all") if everywhere and opened.head else ():
        if path not in here:
            newest = versions[0].metadata
            name = newest.model.name
            found.append(replace(_listed(opened, path, name, newest, tags.get(name, [])), is_here=False))
    return found


def list_versions(
    *,
    where: str | None = None,
    sort: str | None = None,
    everywhere: bool = False,
    repo: str | None = None,
    say: Say = lambda _line: None,
    folder: Path | None = None,
) -> list[LoggedVersion]:
    """Give the versions of all models, those of one model together and newest first.

    Args:
        where: Only those that fit; see `log`.
        sort: What to sort by, over all models; see `log`.
        everywhere: All refs rather than HEAD's history.
        repo: Another repository, by URL or path.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.

    Raises:
        UsageError: `where` or `sort` cannot be read.
    """
    opened = open_repository(repo, folder, say)
    if opened.head is None:
        return chosen([], where, sort, "any model")
    tags = _tags_by_name(opened)
    models = {m.path: m for m in opened.models(opened.work_tree)}
    found = []
    for path, versions in iter_histories(opened.git, opened.objects, "--all" if everywhere else "HEAD"):
        model = models.get(path)
        name = model.name if model is not None else versions[0].metadata.model.name
        current = opened.current(model) if model is not None else None
        md5 = current.md5 if current is not None else None
        history = ModelHistory(opened.git, opened.objects, path)
        found += _joined(opened, _Known(name, path, md5), versions, history, tags.get(name, []), say)
    return chosen(found, where, sort, "any model")


def _tags_by_name(repo: Repository) -> dict[str, list[ModelTag]]:
    found: dict[str, list[ModelTag]] = {}
    for tag in read_tags(repo.git):
        found.setdefault(tag.name, []).append(tag)
    return found


def _listed(
    repo: Repository, path: str, name: str, metadata: ModelMetadata | None, tags: list[ModelTag]
) -> ListedModel:
    history = ModelHistory(repo.git, repo.objects, path)
    versions = versions_of(tags)
    md5 = metadata.md5 if metadata is not None else ""
    here = tuple(tag.version for tag in versions if md5 and _is_of(history, tag, md5))
    holders = {}
    for stage in sorted({tag.stage for tag in tags if tag.stage}):
        holder = stage_holder(tags, stage)
        if holder is not None:
            holders[stage] = _label(history, holder, versions)
    return ListedModel(name, path, metadata, tuple(tag.version for tag in versions), here, holders)


def _is_of(history: ModelHistory, tag: ModelTag, md5: str) -> bool:
    """Whether a tag's commit has these bytes; where its message names others, the commit is not read."""
    if '"md5": "' in tag.message and md5 not in tag.message:
        return False
    try:
        return history.at(tag.commit, tag.tag).metadata.md5 == md5
    except NotFoundError:
        return False


def _label(history: ModelHistory, holder: ModelTag, versions: Iterable[ModelTag]) -> str:
    for tag in versions:
        if tag.commit == holder.commit:
            return tag.version
    try:
        return str(history.at(holder.commit, holder.tag).number)
    except NotFoundError:
        return holder.commit[:8]
