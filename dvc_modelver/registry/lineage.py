"""Where versions come from: all versions of all models with their parents, read in one walk of history."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from dvc_modelver.errors import BadMetadataError, NotFoundError, UsageError, word
from dvc_modelver.git.objects import ObjectReader
from dvc_modelver.git.porcelain import ZERO_OID, Git
from dvc_modelver.metadata import METADATA_SUFFIX, ModelMetadata, find_model_path
from dvc_modelver.registry.backfill import Backfill
from dvc_modelver.registry.graph import Key, find_cycles, reach, reversed_edges
from dvc_modelver.registry.tags import ModelTag, stage_holder

_MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")
_NUMBER = re.compile(r"(\d+)(?:\.([0-9a-f]{4,32}))?")
UNKNOWN = ""
"""Name of the model of an md5 that no commit has."""


@dataclass(frozen=True)
class Ancestor:
    """One version that another was made from.

    Attributes:
        key: The parent; its name is `UNKNOWN` where no commit has its md5.
        source: ``declared`` in the metadata, or ``measured``: no parent is declared, or another one.
        how: What the change is called: ``fine-tune``, ``conversion``, ``adapter``...; empty where nobody measured it.
        cosine: Cosine similarity of the two, in [-1, 1]; None where unknown or undefined.
        relative_l2: Distance relative to the parent; None likewise.
        error: What `relative_l2` may be off by, in 95 of 100 cases; None where it is not said.
        is_cycle: Whether this edge closes a cycle, and so is not followed.
        note: What else there is to say.
    """

    key: Key
    source: str = "declared"
    how: str = ""
    cosine: float | None = None
    relative_l2: float | None = None
    error: float | None = None
    is_cycle: bool = False
    note: str = ""

    @property
    def is_known(self) -> bool:
        """Whether a commit has this version."""
        return self.key[0] != UNKNOWN


class Facts(NamedTuple):
    """What is told of a version, from its metadata file, without checking the rest of that.

    Attributes:
        data: Path, md5 and size of what it was trained on, as far as recorded.
        code: Commit of the training code; empty where unknown.
        recipe: How it was merged; empty for a version that was not.
    """

    name: str
    md5: str
    number: int
    parents: tuple[str, ...]
    update: str
    change_from: str
    change_kind: str
    cosine: float | None
    relative_l2: float | None
    bytes_: int
    parameters: int
    n_tensors: int
    parameters_digest: str
    format: str
    data: tuple[Mapping[str, Any], ...]
    code: Mapping[str, Any]
    recipe: Mapping[str, Any]
    text: bytes


@dataclass(frozen=True)
class Recorded:
    """One version as history has it: the facts of its newest metadata, the commit that first had it.

    Attributes:
        age: Position in history, the oldest first; equal for versions of one commit.
    """

    key: Key
    facts: Facts = field(repr=False)
    path: str
    commit: str
    date: str
    subject: str
    age: int
    tags: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The model's name."""
        return self.key[0]

    @property
    def md5(self) -> str:
        """The object."""
        return self.key[1]

    @property
    def number(self) -> int:
        """The integer version."""
        return self.facts.number

    @property
    def label(self) -> str:
        """The version as it is typed."""
        return f"{self.name}@{self.number}"

    @cached_property
    def metadata(self) -> ModelMetadata | None:
        """The metadata file, parsed; None where one of its fields is of another type than the schema says."""
        try:
            return ModelMetadata.parse(self.facts.text, self.path + METADATA_SUFFIX)
        except BadMetadataError:
            return None


@dataclass(frozen=True)
class Lineage:
    """All versions, and who comes from whom.

    Attributes:
        versions: The oldest first.
        ancestors: Of each version.
        labels: What is typed for each version that a commit has, shown or not.
        unreadable: Metadata files of history that could not be read.
    """

    versions: Mapping[Key, Recorded]
    ancestors: Mapping[Key, tuple[Ancestor, ...]]
    labels: Mapping[Key, str]
    unreadable: int = 0

    @cached_property
    def parents(self) -> dict[Key, list[Key]]:
        """The graph that is drawn: known parents, without what closes a cycle."""
        return {
            key: [a.key for a in self.ancestors[key] if a.is_known and not a.is_cycle and a.key in self.versions]
            for key in self.versions
        }

    def label(self, key: Key) -> str:
        """Give a version as it is typed; the first digits of an md5 that no commit has."""
        return self.labels.get(key) or key[1][:8]

    def around(self, starts: Iterable[Key]) -> Lineage:
        """Give what some versions come from, and what comes from them."""
        given = list(starts)
        return self.only(reach(given, self.parents) | reach(given, reversed_edges(self.parents)))

    def below(self, starts: Iterable[Key]) -> Lineage:
        """Give some versions and what comes from them."""
        return self.only(reach(starts, reversed_edges(self.parents)))

    def only(self, keys: Iterable[Key]) -> Lineage:
        """Give some of the versions, with all that is known of their parents."""
        wanted = set(keys)
        chosen = {key: v for key, v in self.versions.items() if key in wanted}
        return replace(self, versions=chosen, ancestors={key: self.ancestors[key] for key in chosen})

    def with_ancestors(self, found: Mapping[Key, tuple[Ancestor, ...]]) -> Lineage:
        """Give the lineage with other ancestors of some versions; edges that close a cycle are marked."""
        return replace(self, ancestors=_without_cycles({**self.ancestors, **found}))

    def find(self, name: str, version: str = "", stage: str = "") -> list[Key]:
        """Give the versions that ``NAME``, ``NAME@V`` or ``NAME#STAGE`` names; a path is as good as a name.

        Raises:
            NotFoundError: No commit has such a version.
            UsageError: More than one version has that number; the message lists them.
        """
        own = [v for v in self.versions.values() if v.name == name] or [
            v for v in self.versions.values() if v.path == name
        ]
        if not own:
            raise NotFoundError(f"{name}: no commit has a version of such a model", hint=_nearest(name, self.versions))
        name = own[0].name
        if stage:
            own = [v for v in own if stage in v.stages]
        elif version:
            own = [v for v in own if _is_named(v, version)]
        if not own:
            wanted = f"{name}#{stage}" if stage else f"{name}@{version}"
            raise NotFoundError(f"{wanted}: no commit has such a version", hint=f"modelver log {word(name)} --all")
        if version and len(own) > 1:
            names = ", ".join(f"{v.label}.{v.md5[:6]}" for v in own)
            raise UsageError(
                f"{name}@{version}: {len(own)} versions have this number: {names}",
                hint=f"modelver log {word(name)} --all",
            )
        return [v.key for v in own]


def _is_named(version: Recorded, wanted: str) -> bool:
    number = _NUMBER.fullmatch(wanted)
    if number is not None and len(wanted) < 32:
        return version.number == int(number[1]) and version.md5.startswith(number[2] or "")
    if re.fullmatch(r"[0-9a-f]{8,32}(\.dir)?", wanted):
        return version.md5.startswith(wanted)
    return f"{version.name}@v{wanted.removeprefix('v')}" in version.tags


def _nearest(name: str, versions: Iterable[Key]) -> str:
    import difflib

    close = difflib.get_close_matches(name, sorted({key[0] for key in versions}), n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "modelver list"


def read_lineage(
    git: Git, objects: ObjectReader, names: Mapping[str, str], tags: Sequence[ModelTag], backfill: Backfill
) -> Lineage:
    """Read the versions of all models from every branch and tag, with their declared parents.

    Args:
        git: Runs ``git log``.
        objects: Reads the metadata files.
        names: path -> name of the models that are there now; earlier metadata may have other names for them.
        tags: All tags of models.
        backfill: Versions of commits that were made without metadata.
    """
    versions, oids, unreadable = _read_versions(git, objects, names, backfill)
    by_md5: dict[str, list[Key]] = {}
    for key in versions:
        by_md5.setdefault(key[1], []).append(key)
    tagged = _tagged(objects, versions, tags, oids, backfill)
    for key, (found, stages) in tagged.items():
        versions[key] = replace(versions[key], tags=tuple(found), stages=tuple(stages))
    ancestors = {}
    for key, version in versions.items():
        ancestors[key] = tuple(_declared(version, md5, by_md5) for md5 in dict.fromkeys(version.facts.parents))
    return Lineage(versions, _without_cycles(ancestors), _labels(versions), unreadable)


class _Commit(NamedTuple):
    """A commit that changed metadata, or brought in what was backfilled.

    Attributes:
        age: Its position, the newest of all -1.
        files: Blob and model of each metadata file that it changed.
    """

    id: str
    date: str
    subject: str
    age: int
    files: list[tuple[str, str]]


def _read_commits(git: Git, objects: ObjectReader, backfill: Backfill) -> list[_Commit]:
    """Give the commits of all refs, the newest first."""
    changes = git.iter_changes(
        "--date-order", "--diff-merges=first-parent", "--exclude=refs/notes*", "--all",
        *(["HEAD"] if objects.head() else []), "--", f"*{METADATA_SUFFIX}",
        *(f":(literal){pointer}" for pointer in _pointers(backfill)),
    )  # fmt: skip
    found: list[_Commit] = []
    for commit, change in changes:
        if not found or found[-1].id != commit.id:
            found.append(_Commit(commit.id, commit.date, commit.subject, -1 - len(found), []))
        if change.path.endswith(METADATA_SUFFIX) and change.new_oid != ZERO_OID:
            found[-1].files.append((change.new_oid, find_model_path(change.path) or change.path))
    return found


def _read_versions(
    git: Git, objects: ObjectReader, names: Mapping[str, str], backfill: Backfill
) -> tuple[dict[Key, Recorded], dict[str, str], int]:
    commits = _read_commits(git, objects, backfill)
    objects.prefetch(oid for commit in commits for oid, _ in commit.files)
    found: dict[Key, Recorded] = {}
    aliases: dict[str, str] = {}
    oids: dict[str, str] = {}
    parsed: dict[str, Facts | None] = {}
    for commit in commits:
        for one in backfill.by_commit.get(commit.id, ()):
            _add(found, _facts(one.metadata.render()), one.path, commit, names, aliases)
        for oid, path in commit.files:
            if oid not in parsed:
                parsed[oid] = _read(objects, oid)
            facts = parsed[oid]
            if facts is not None:
                oids[oid] = facts.md5
            _add(found, facts, path, commit, names, aliases)
    ordered = dict(sorted(found.items(), key=lambda item: (item[1].age, item[0])))
    return ordered, oids, sum(facts is None for facts in parsed.values())


def _pointers(backfill: Backfill) -> list[str]:
    """Give the pointer files whose commits brought in what was backfilled."""
    return sorted({one.pointer for several in backfill.by_commit.values() for one in several})


def _add(
    found: dict[Key, Recorded],
    facts: Facts | None,
    path: str,
    commit: _Commit,
    names: Mapping[str, str],
    aliases: dict[str, str],
) -> None:
    """Add a version of an older commit: facts are those of its newest metadata, the commit the first that had it."""
    if facts is None:
        return
    if path in names:
        aliases.setdefault(facts.name, names[path])
    key = (names.get(path) or aliases.get(facts.name, facts.name), facts.md5)
    newer = found.pop(key, None)
    found[key] = Recorded(key, newer.facts if newer is not None else facts, path, *commit[:4])


def _read(objects: ObjectReader, oid: str) -> Facts | None:
    """Give what the graph needs of a metadata file; None for one that is not whole, or not described yet."""
    try:
        return _facts(objects.read_blob(oid))
    except (NotFoundError, UsageError):
        return None


def _facts(text: bytes) -> Facts | None:
    try:
        data = json.loads(text)
        model, version, change = data["model"], data["version"], data.get("change") or {}
        training = data.get("training") or {}
        name, md5, number, parents = model["name"], model["md5"], version["number"], version.get("parents", [])
        facts = Facts(
            name, md5, number, tuple(p for p in parents if isinstance(p, str)), str(version.get("update", "")),
            str(change.get("from", "")), str(change.get("kind", "")), _number(change.get("cosine")),
            _number(change.get("relative_l2")), int(_number(model.get("bytes")) or 0),
            int(_number(model.get("parameters")) or 0),
            int(_number(model.get("n_tensors")) or 0), str(model.get("parameters_digest") or ""),
            str(model.get("format", "")), tuple(d for d in training.get("data") or () if isinstance(d, dict)),
            _mapping(training.get("code")), _mapping(version.get("merge")), text,
        )  # fmt: skip
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    if data.get("pending") is not None or not isinstance(name, str) or not name or not isinstance(number, int):
        return None
    return facts if isinstance(md5, str) and _MD5.fullmatch(md5) else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _labels(versions: Mapping[Key, Recorded]) -> dict[Key, str]:
    """Give what is typed for each version: with the first digits of the md5 where two have the number."""
    counts = Counter(v.label for v in versions.values())
    return {key: v.label if counts[v.label] == 1 else f"{v.label}.{v.md5[:6]}" for key, v in versions.items()}


def _number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None  # type: ignore[arg-type]


def _tagged(
    objects: ObjectReader,
    versions: Mapping[Key, Recorded],
    tags: Sequence[ModelTag],
    oids: Mapping[str, str],
    backfill: Backfill,
) -> dict[Key, tuple[list[str], list[str]]]:
    """Give the tags and stages of each version that has some."""
    paths: dict[str, dict[str, None]] = {}
    for version in versions.values():
        paths.setdefault(version.name, {})[version.path] = None
    found: dict[Key, list[str]] = {}
    own: dict[str, list[ModelTag]] = {}
    at: dict[str, Key] = {}
    for tag in tags:
        own.setdefault(tag.name, []).append(tag)
        for path in reversed(paths.get(tag.name, {})):
            key = (tag.name, _md5_at(objects, tag.commit, path, oids, backfill))
            if key in versions:
                at[tag.tag] = key
                if tag.version:
                    found.setdefault(key, []).append(tag.tag)
                break
    stages: dict[Key, list[str]] = {}
    for tags_of_one in own.values():
        for stage in sorted({t.stage for t in tags_of_one if t.stage}):
            holder = stage_holder(tags_of_one, stage)
            if holder is not None and holder.tag in at:
                stages.setdefault(at[holder.tag], []).append(stage)
    return {key: (found.get(key, []), stages.get(key, [])) for key in found.keys() | stages.keys()}


def _md5_at(objects: ObjectReader, commit: str, path: str, oids: Mapping[str, str], backfill: Backfill) -> str:
    """Give what a commit has of a model; empty where it has nothing."""
    try:
        oid = objects.find_blob(commit, path + METADATA_SUFFIX)
        known = backfill.find(objects, commit, path) if oid is None and path in backfill.by_object else None
    except (KeyError, ValueError):
        return ""  # a tag of something else than a commit, or one that a shallow clone lacks
    return known.metadata.md5 if known is not None else oids.get(oid or "", "")


def _declared(version: Recorded, md5: str, by_md5: Mapping[str, list[Key]]) -> Ancestor:
    """Give a parent that the metadata names, with what it recorded of the change from it."""
    own = (version.name, md5)
    known = by_md5.get(md5, [])
    key = own if own in known else known[0] if known else (UNKNOWN, md5)
    facts = version.facts
    how = "merge" if facts.update == "merge" else facts.change_kind
    if facts.change_from != md5:
        return Ancestor(key, how="merge" if how == "merge" else "")
    return Ancestor(key, how=how, cosine=facts.cosine, relative_l2=facts.relative_l2)


def _without_cycles(ancestors: Mapping[Key, tuple[Ancestor, ...]]) -> dict[Key, tuple[Ancestor, ...]]:
    newest_first = reversed(list(ancestors.items()))  # so that what says it comes from a later version is doubted
    closing = find_cycles({key: [a.key for a in found if a.is_known] for key, found in newest_first})
    marked = dict(ancestors)
    for child, _ in closing:
        marked[child] = tuple(replace(a, is_cycle=(child, a.key) in closing) for a in ancestors[child])
    return marked
