"""lineage: what versions come from, what comes from them, and which were trained on some data."""

from __future__ import annotations

import json
import posixpath
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dvc_modelver.api.elsewhere import open_repository
from dvc_modelver.api.nearest import MAX_CANDIDATES, VARIANT_COSINE, VARIANT_DISTANCE, rank, side_of
from dvc_modelver.api.select import split_reference
from dvc_modelver.diff.adapters import find_layers, find_targets
from dvc_modelver.diff.changes import Side
from dvc_modelver.diff.compare import compare
from dvc_modelver.errors import NotFoundError, UsageError
from dvc_modelver.metadata import table_path
from dvc_modelver.registry.graph import Key, reversed_edges
from dvc_modelver.registry.history import Version
from dvc_modelver.registry.lineage import Ancestor, Lineage, Recorded, read_lineage
from dvc_modelver.registry.tags import read_tags
from dvc_modelver.repository import Repository
from dvc_modelver.views import View

MAX_ROWS = 20_000
"""Tensors that are compared to answer one question; what is left then is counted."""
ALIKE = 1.01
"""Of versions whose distances differ by less than this factor the oldest is taken: the others are copies of it."""
FAR_COSINE = 0.5
"""A declared parent below this is doubted where another version is above `VARIANT_COSINE`."""


@dataclass(frozen=True)
class Traced:
    """The answer of lineage.

    Attributes:
        lineage: The versions that were asked for, and their parents.
        about: The versions that the question named; for data, those trained on it themselves.
        through: Of a version that has the data from its parent only: that parent.
        unmeasured: Versions without a trusted parent that were not compared with all others.
        is_shallow: Whether the clone lacks older commits.
        like: Where no version was trained on the data: recorded data with a like path; empty for none.
    """

    lineage: Lineage
    about: tuple[Key, ...]
    through: Mapping[Key, Key] = field(default_factory=dict)
    unmeasured: int = 0
    is_shallow: bool = False
    like: str = ""

    @property
    def doubts(self) -> tuple[str, ...]:
        """What does not add up, a line for each: contradicted parents, md5s that no commit has, cycles."""
        return tuple(line for key in self.lineage.versions for line in find_doubts(self.lineage, key))


def lineage(
    reference: str | None = None,
    *,
    data: str | None = None,
    base: str | None = None,
    repo: str | None = None,
    say: Callable[[str], None] = lambda _line: None,
    folder: Path | None = None,
) -> Traced:
    """Tell where versions come from, over all models, branches and tags.

    Parents are those that the metadata declares. A version without one, or with one that it is far from, is compared
    with those before it by fingerprints; the nearest is added where it is near, and marked as measured.

    Args:
        reference: ``NAME``, ``NAME@V`` or ``NAME#STAGE``: what it comes from and what comes from it.
        data: A path or md5: the versions trained on it, and those that have their weights from such a version.
        base: ``NAME@V`` likewise: it and what comes from it.
        repo: Another repository, by URL or path.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.

    Returns:
        All versions where nothing was asked for; none where nobody recorded that data.

    Raises:
        NotFoundError: No commit has such a version.
        UsageError: More than one question, or an ambiguous version.
    """
    if sum(question is not None for question in (reference, data, base)) > 1:
        raise UsageError("lineage: a model, --data or --from, found more than one", hint="modelver lineage NAME")
    opened = open_repository(repo, folder, say)
    views: list[View] = [opened.work_tree, *([opened.at("HEAD")] if opened.head else [])]
    names = {m.path: m.name for view in reversed(views) for m in opened.models(view)}
    every = read_lineage(opened.git, opened.objects, names, read_tags(opened.git), opened.backfill)
    measuring = _Measuring(opened, every)
    every = every.with_ancestors(measuring.origins())
    about, through, chosen = _answer(opened, every, names, reference, data, base)
    if found := measuring.doubted(chosen):
        every = every.with_ancestors(found)
        about, through, chosen = _answer(opened, every, names, reference, data, base)
    is_shallow = opened.git.text("rev-parse", "--is-shallow-repository") == "true"
    like = nearest_data(every, data) if data is not None and not about else ""
    return Traced(chosen, tuple(about), through, measuring.unmeasured, is_shallow, like)


def _answer(
    repo: Repository,
    every: Lineage,
    names: Mapping[str, str],
    reference: str | None,
    data: str | None,
    base: str | None,
) -> tuple[list[Key], dict[Key, Key], Lineage]:
    """Give the versions that a question names, those that have the data from a parent, and all that are shown."""
    if data is not None:
        about = _trained_on(every, _data_names(repo, data))
        through = _inherited(every, about)
        return about, through, every.only([*about, *through])
    if base is not None:
        about = _find(repo, every, names, base)
        return about, {}, every.below(about)
    if reference is not None:
        about = _find(repo, every, names, reference)
        return about, {}, every.around(about)
    return [], {}, every


def _find(repo: Repository, every: Lineage, names: Mapping[str, str], reference: str) -> list[Key]:
    name, version, stage = split_reference(reference)
    path = repo.repo_path(name) or name
    tries = [(name, version, stage), (names.get(path, path), version, stage)]
    if name != reference:  # a path with @ or # in it
        path = repo.repo_path(reference) or reference
        tries.append((names.get(path, path), "", ""))
    why = None
    for one in tries:
        try:
            return every.find(*one)
        except NotFoundError as err:
            why = why or err
    assert why is not None
    raise why


def find_doubts(lineage: Lineage, key: Key) -> Iterator[str]:
    """Give what does not add up about a version's parents, one line each."""
    ancestors = lineage.ancestors[key]
    near = next((a for a in ancestors if a.source == "measured"), None)
    for a in ancestors:
        said = lineage.label(a.key)
        if not a.is_known:
            yield f"{lineage.label(key)}: no commit has its declared parent {said}" + (
                f"; {lineage.label(near.key)} is near ({_number(near.cosine)})" if near else ""
            )
        elif a.is_cycle:
            yield f"{lineage.label(key)}: its parent {said} comes from it: a cycle"
        elif near is not None and a.source == "declared":
            yield (
                f"{lineage.label(key)}: declares the parent {said} (cosine {_number(a.cosine)}), "
                f"but {lineage.label(near.key)} is near (cosine {_number(near.cosine)})"
            )


def _number(cosine: float | None) -> str:
    from dvc_modelver.diff.render.cells import cosine_text

    return "undefined" if cosine is None else cosine_text(cosine)


class _Measuring:
    """Compares versions by their tensor tables, up to `MAX_ROWS` tensors in all."""

    def __init__(self, repo: Repository, every: Lineage) -> None:
        self._repo, self._every = repo, every
        self._left = MAX_ROWS
        self._sides: dict[Key, Side | None] = {}
        self._by_model: dict[str, list[Recorded]] = {}
        for version in sorted(every.versions.values(), key=_age):
            self._by_model.setdefault(version.name, []).append(version)
        self._is_over = False
        self.unmeasured = 0

    def origins(self) -> dict[Key, tuple[Ancestor, ...]]:
        """Give parents of the versions that have none which a commit has, where one is near."""
        found = {}
        for key, ancestors in self._every.ancestors.items():
            if not any(a.is_known for a in ancestors) and (near := self._find_near(self._every.versions[key])):
                found[key] = (*ancestors, near)
        return found

    def doubted(self, shown: Lineage) -> dict[Key, tuple[Ancestor, ...]]:
        """Give the parents of the versions that are far from the declared ones and near to another.

        Those that are shown are looked at first, the newest first; then the others, which may come from these.
        """
        found = {}
        others = [v for key, v in self._every.versions.items() if key not in shown.versions]
        for version in [*reversed(list(shown.versions.values())), *reversed(others)]:
            key, is_shown = version.key, version.key in shown.versions
            ancestors = self._every.ancestors[key]
            declared = [a for a in ancestors if a.source == "declared" and a.is_known and not a.is_cycle]
            if not declared or len(declared) < len(ancestors):
                continue
            measured = [self._measured(version, a) if is_shown or not a.how else a for a in declared]
            closest = max((a.cosine for a in measured if a.cosine is not None), default=None)
            is_far = version.facts.update != "merge" and (closest is None or closest < FAR_COSINE)
            near = self._find_near(version, {a.key for a in declared}) if is_far else None
            if near is not None or measured != declared:
                found[key] = (*measured, *([near] if near else []))
        return found

    def _measured(self, version: Recorded, declared: Ancestor) -> Ancestor:
        """Give a declared parent with its numbers; the metadata has them of the first one only."""
        if declared.cosine is not None or declared.how not in ("", "merge"):
            return declared
        parent = self._every.versions[declared.key]
        found = self._compare(parent, version)
        return replace(found, source="declared", how=declared.how or found.how) if found else declared

    def _find_near(self, version: Recorded, but: Iterable[Key] = ()) -> Ancestor | None:
        self._is_over = False
        rivals = [v for v in self._earlier(version) if v.key not in set(but)]
        same = _same_values(version, rivals)
        if same is not None:
            return same
        alike = [v for v in rivals if _is_like(v, version)]
        self._prefetch([version, *alike])
        near = [found for v in alike if (found := self._compare(v, version))]
        near = [a for a in near if (a.cosine or 0) >= VARIANT_COSINE and a.relative_l2 is not None]
        near = [a for a in near if a.relative_l2 is not None and a.relative_l2 <= VARIANT_DISTANCE]
        best = min((a.relative_l2 for a in near if a.relative_l2 is not None), default=0.0)
        nearest = [a for a in near if (a.relative_l2 or 0.0) <= best * ALIKE]
        found = nearest[-1] if nearest else self._base_of_adapter(version, rivals)
        self.unmeasured += self._is_over
        return found

    def _earlier(self, version: Recorded) -> list[Recorded]:
        """Give the last versions of each model that were there before one, the newest first."""
        before = []
        for own in self._by_model.values():
            end = bisect_left(own, _age(version), key=_age)
            before += own[max(0, end - MAX_CANDIDATES) : end]
        return sorted(before, key=_age, reverse=True)

    def _prefetch(self, versions: Iterable[Recorded]) -> None:
        """Have a clone without blobs fetch tensor tables all at once."""
        objects = self._repo.objects
        new = (v for v in versions if v.key not in self._sides)
        objects.prefetch(oid for v in new if (oid := objects.find_blob(v.commit, table_path(v.path))))

    def _compare(self, parent: Recorded, child: Recorded) -> Ancestor | None:
        cost = parent.facts.n_tensors + child.facts.n_tensors
        if cost > self._left:
            self._is_over = True
            return None
        old, new = self._side(parent), self._side(child)
        if old is None or new is None:
            return None
        self._left -= cost
        change = compare(old, new)
        found = rank(parent.name, _version(parent), change)
        return Ancestor(parent.key, "measured", change.kind, change.cosine, found.distance, found.error)

    def _side(self, version: Recorded) -> Side | None:
        if version.key not in self._sides:
            side = side_of(self._repo, _version(version)) if version.metadata is not None else None
            self._sides[version.key] = side if side is not None and side.table is not None else None
        return self._sides[version.key]

    def _base_of_adapter(self, version: Recorded, rivals: Iterable[Recorded]) -> Ancestor | None:
        """Give a version that all layers of an adapter fit; its values say nothing of which one it was.

        Of the model that the adapter's configuration names, else of the one with most such versions, the newest.
        """
        if not 0 < version.facts.n_tensors <= self._left:
            return None
        side = self._side(version)
        layers = find_layers(side.table.rows, side.table.structure) if side is not None and side.table else {}
        if not layers or side is None or side.table is None:
            return None
        wanted = str(side.table.structure.get("adapter_config.base_model_name_or_path") or "")
        fits = []
        for rival in rivals:
            if rival.facts.n_tensors > self._left:
                self._is_over = True
                break
            base = self._side(rival)
            self._left -= rival.facts.n_tensors
            if base is not None and base.table and len(find_targets(layers, base.table.rows)) == len(layers):
                fits.append(rival)
        named = [v for v in fits if wanted and wanted in (v.name, v.path, posixpath.basename(v.path))]
        if not fits:
            return None
        models = Counter(v.name for v in named or fits)
        best = max(named or fits, key=lambda v: (models[v.name], _age(v)))
        others = f", and {len(fits) - 1} other versions" if len(fits) > 2 else ", and another" if len(fits) > 1 else ""
        return Ancestor(best.key, "measured", "adapter", note=f"its {len(layers)} layers fit it{others}")


def _version(v: Recorded) -> Version:
    assert v.metadata is not None
    return Version(v.metadata, v.path, v.commit, v.date, "", v.subject)


def _age(v: Recorded) -> tuple[int, float, Key]:
    """Give what versions are ordered by: of one commit's, the one with more bytes for a parameter is the original."""
    return v.age, -v.facts.bytes_ / max(1, v.facts.parameters), v.key


def _same_values(version: Recorded, earlier: Sequence[Recorded]) -> Ancestor | None:
    """Give the newest earlier version with the same bytes, or the same parameters: their digests say so."""
    digest = version.facts.parameters_digest if version.facts.parameters else ""
    bytes_equal = (Ancestor(v.key, "measured", "copy", 1.0, 0.0, 0.0) for v in earlier if v.md5 == version.md5)
    values_equal = (
        Ancestor(v.key, "measured", "conversion", 1.0, 0.0, 0.0)
        for v in earlier
        if digest and v.facts.parameters_digest == digest
    )
    return next(bytes_equal, None) or next(values_equal, None)


def _is_like(a: Recorded, b: Recorded) -> bool:
    """Whether two versions have about as many parameters: a cheap question before a comparison."""
    sizes = sorted((a.facts.parameters, b.facts.parameters))
    return sizes[0] > 0 and sizes[1] <= 1.5 * sizes[0]


def _data_names(repo: Repository, data: str) -> set[str]:
    """Give what data is called in metadata: as it was typed, and as a path from the top of the repository."""
    typed = data.removesuffix(".dvc").rstrip("/")
    return {name for name in (typed, posixpath.normpath(typed), repo.repo_path(typed)) if name}


def _trained_on(every: Lineage, names: set[str]) -> list[Key]:
    """Give the versions with such data; a file in a recorded folder counts, and a folder with a recorded file."""
    # Only metadata that has the text is parsed; of a path, its first part will do.
    parts = {json.dumps(name.split("/")[0], ensure_ascii=False)[1:-1].encode() for name in names}
    found = []
    for key, version in every.versions.items():
        if any(part in version.facts.text for part in parts):
            found += [key] * any(is_data(entry, names) for entry in version.facts.data)
    return found


def nearest_data(every: Lineage, data: str) -> str:
    """Give the recorded data whose path is most like what was asked for; empty where none is."""
    import difflib

    known = {str(d.get("path")) for v in every.versions.values() for d in v.facts.data if d.get("path")}
    return next(iter(difflib.get_close_matches(data, sorted(known), n=1, cutoff=0.6)), "")


def is_data(entry: Mapping[str, Any], names: Iterable[str]) -> bool:
    """Whether an entry of a version's data is what one of some paths or md5s names."""
    path, md5 = str(entry.get("path") or ""), str(entry.get("md5") or "")
    for name in names:
        if re.fullmatch(r"[0-9a-f]{6,32}(\.dir)?", name) and md5.startswith(name):
            return True
        if path and (path == name or path.startswith(f"{name}/") or name.startswith(f"{path}/")):
            return True
    return False


def _inherited(every: Lineage, trained: Iterable[Key]) -> dict[Key, Key]:
    """Give the versions whose weights come from some, and from which parent; retrained ones do not count."""
    children = reversed_edges(every.parents)
    found: dict[Key, Key] = {}
    seen = set(trained)
    todo = list(seen)
    while todo:
        parent = todo.pop()
        for child in children.get(parent, ()):
            edge = next(a for a in every.ancestors[child] if a.key == parent)
            comes = edge.how in ("merge", "conversion", "copy") or (edge.cosine or 0) >= FAR_COSINE
            if child not in seen and comes:
                seen.add(child)
                found[child] = parent
                todo.append(child)
    return found
