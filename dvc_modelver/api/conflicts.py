"""merge: what Git's merge left undecided of models, and deciding it."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dvc_modelver.api.removals import Removal, find_removals, settle_removals
from dvc_modelver.errors import BadMetadataError, ModelverError, NotFoundError, UsageError, word
from dvc_modelver.metadata import ModelMetadata, find_model_path
from dvc_modelver.repository import Repository, is_pointer_file
from dvc_modelver.strategy import Rules, parse_strategy
from dvc_modelver.transfer import Say
from dvc_modelver.worktree.describe import describe, read_contents
from dvc_modelver.worktree.merge_files import CONFLICT, Chosen, FileMerge, is_of_pipeline, unanimous
from dvc_modelver.worktree.merging import TAKEN, Merger, Outcome, Versions
from dvc_modelver.worktree.renames import Renamed, conclude, find_renamed, let_old_go, merge_key
from dvc_modelver.worktree.resolved import kept_ours
from dvc_modelver.worktree.state import locked, write_file
from dvc_modelver.worktree.sync import Keeper, apply_law, write_if_changed

MADE_TWICE = (
    "made by its stage on both sides: dvc repro, git add its dvc.lock, then modelver merge --continue takes the new one"
)


@dataclass(frozen=True)
class Conflict:
    """A model, or a file of one, that a merge left undecided.

    Attributes:
        path: The model, or the file where the conflict is not in weights.
        undecided: Names of its tensors and facts; empty where it can only be decided as a whole.
        lines: What there is to say, a line each.
        removed_by: ``ours`` or ``theirs``, which removed what the other changed; empty where both changed it.
    """

    path: str
    undecided: tuple[str, ...]
    lines: tuple[str, ...]
    removed_by: str = ""


@dataclass(frozen=True)
class MergeState:
    """What a merge under way has decided and what it has not.

    Attributes:
        merged: Metadata of the models that were decided now.
        conflicts: What is left.
        kept: Models that one side had removed, and that stay.
        removed: Models that are removed, though the other side had changed them.
    """

    merged: tuple[ModelMetadata, ...]
    conflicts: tuple[Conflict, ...]
    kept: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


def merge(
    *patterns: str, take: str | None = None, again: bool = False, folder: Path | None = None,
    say: Say = lambda _line: None,
) -> MergeState:  # fmt: skip
    """List what Git's merge, rebase, cherry-pick or stash left undecided of models, or decide it.

    What is decided is put into the index and the work tree; ``git commit`` (or ``git rebase --continue``...) concludes.

    Args:
        patterns: What `take` is for: a model in conflict by path or name, names of tensors and facts as in a shell, or
            both (``net:encoder.*``); all that is undecided by default.
        take: A strategy: ``ours``, ``theirs``, ``mean``, ``ties:density=0.3``...; None only lists, or tries again.
        again: Try again, by the rules of ``.modelver.toml`` and what was taken before.
        folder: Anywhere in the work tree; the current one by default.
        say: Takes lines for the user.

    Raises:
        BadMetadataError: No such strategy.
        NotFoundError: Nothing undecided matches a pattern.
        UsageError: Nothing is to be merged, patterns without `take`, or a strategy that combines for a model that one
            side removed.
    """
    strategy = parse_strategy(take, "--take") if take is not None else None
    if patterns and strategy is None:
        raise UsageError("merge: patterns without --take", hint=f"modelver merge --take ours {patterns[0]}")
    repo = Repository.open(folder)
    with locked(repo.layout.state_dir):
        work = _Resolution(repo, say)
        if work.is_empty:
            if strategy is not None or again:
                raise UsageError("merge: no model is in conflict", hint="git status")
            return MergeState((), ())
        if strategy is not None:
            work.take(str(strategy), patterns)
        return work.run(staging=strategy is not None or again)


class _Resolution:
    """The files of models that the index has unmerged, and what was taken for them."""

    def __init__(self, repo: Repository, say: Say) -> None:
        self.repo, self.say = repo, say
        self.unmerged = repo.git.unmerged()
        found = self.unmerged | kept_ours(repo)  # added as ours has them: as long as the merge is under way
        files = {path: oids for path, oids in sorted(found.items()) if find_model_path(path) or is_pointer_file(path)}
        self.renamed = list(find_renamed(repo))
        removals = find_removals(repo, files)
        of_removals = {file for removal in removals.values() for file in removal.blobs}
        self.files = {path: oids for path, oids in files.items() if path not in of_removals}
        renamed = {one.old for one in self.renamed}
        self.removals = {path: removal for path, removal in removals.items() if path not in renamed}
        self.merger = Merger(repo, say)
        self._note = repo.layout.state_dir / TAKEN
        self.taken: dict[str, dict[str, str]] = _read_json(self._note)
        self.sides: dict[str, str] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.staging = False

    @property
    def is_empty(self) -> bool:
        """Whether no model is in conflict."""
        return not (self.files or self.removals or self.renamed)

    def take(self, strategy: str, patterns: Sequence[str]) -> None:
        """Note a strategy for what is undecided."""
        self.run(staging=False)
        scopes = self._scopes(patterns)
        matched = self._take_removals(strategy, scopes, is_named=bool(patterns))
        for key, outcome in self.outcomes.items():
            chosen = self.taken.setdefault(key, {})
            mine = scopes.get(_model(key), {})
            whole = [p for p, names in mine.items() if names is None]
            matched.update(whole)
            is_whole = bool(whole) or not patterns
            for name in (*outcome.undecided, *(name for name in chosen if name)):
                found = [p for p, names in mine.items() if names is not None and fnmatch.fnmatchcase(name, names)]
                matched.update(found)
                if found or (is_whole and name in outcome.undecided):
                    chosen[name] = strategy
            if not outcome.md5 and not outcome.undecided and is_whole:
                chosen[""] = strategy
        for pattern in patterns:
            if pattern not in matched:
                raise NotFoundError(
                    f"{pattern}: matches nothing that is undecided; expected a model in conflict, tensors of one "
                    "('encoder.*'), or both ('net:encoder.*')",
                    hint="modelver merge",
                )
        write_file(self._note, json.dumps(self.taken).encode())

    def _take_removals(
        self, strategy: str, scopes: Mapping[str, Mapping[str, str | None]], *, is_named: bool
    ) -> set[str]:
        """Note the side for models that one side removed, which no other strategy can decide; give what named them."""
        matched = set()
        for path, removal in self.removals.items():
            named = [pattern for pattern, names in scopes.get(path, {}).items() if names is None]
            matched.update(named)
            if strategy in ("ours", "theirs") and (named or not is_named):
                self.sides[path] = strategy
            elif named or not (is_named or self.outcomes):
                raise UsageError(
                    f"{path}: removed by {removal.side}: --take {strategy} cannot decide it, expected ours or theirs",
                    hint=f"modelver merge --take {removal.other} {word(path)}",
                )
        return matched

    def _scopes(self, patterns: Iterable[str]) -> dict[str, dict[str, str | None]]:
        """Give model -> the patterns that concern it -> names of its tensors; None is the whole model.

        A path or a name before a colon limits a pattern to one model. Others are of the tensors of all models.
        """
        models = {path: self._names(path) for path in (*self.removals, *map(_model, self.outcomes))}
        found: dict[str, dict[str, str | None]] = {path: {} for path in models}
        for pattern in patterns:
            path = self.repo.repo_path(pattern)
            mine: dict[str, str | None] = {}
            for model, names in models.items():
                if pattern in names or path == model:
                    mine[model] = None
                for name in names:
                    if pattern.startswith(f"{name}:") and model not in mine:
                        mine[model] = pattern.removeprefix(f"{name}:")
            for model, tensors in (mine or dict.fromkeys(models, pattern)).items():
                found[model][pattern] = tensors
        return found

    def _names(self, model: str) -> set[str]:
        try:
            metadata = self.repo.metadata(self.repo.work_tree, model)
        except BadMetadataError:
            metadata = None
        return {model, self.repo.name_of(self.repo.work_tree, model, metadata)}

    def run(self, *, staging: bool) -> MergeState:
        """Merge every file again; what is decided now is staged and put into the work tree."""
        self.outcomes.clear()
        self.staging = staging
        conflicts: dict[str, Conflict] = {}
        merged = []
        for path, stages in self.files.items():
            missing = [side for side, oid in zip(("ours", "theirs"), stages[1:], strict=True) if oid is None]
            if missing:
                conflicts[path] = _removed_file(path, missing[0])
                continue
            texts = [self.repo.objects.read_blob(oid) if oid else b"" for oid in stages]
            lines: list[str] = []
            try:
                result, is_clean = FileMerge(self.repo, path, lines.append, self.choose).merge(*texts)
            except ModelverError as err:
                result, is_clean = None, False
                lines.append(str(err))
            if not is_clean and lines and path in self.unmerged:
                told = [line for text in lines for line in text.splitlines()]
                conflicts[path] = Conflict(path, (), tuple(line for line in told if not line.startswith(CONFLICT)))
            if is_clean and staging:
                text = texts[1] if result is None else result
                write_if_changed(self.repo.top / path, text)
                self.repo.git.stage_blobs({path: text})
                if path.endswith(".json"):
                    merged.append(ModelMetadata.parse(text, path))
        for renamed in self.renamed:
            conflicts |= self._run_renamed(renamed, merged)
        for key, outcome in self.outcomes.items():
            if not outcome.md5:
                conflicts[key] = Conflict(_model(key), outcome.undecided, outcome.conflicts)
        for path, removal in self.removals.items():
            if path not in self.sides or not staging:
                conflicts[path] = _removed_model(removal)
        if staging:
            settled = [(self.removals[path], side) for path, side in self.sides.items()]
            settle_removals(self.repo, settled, self.unmerged, self.say)
            self.repo.git.run("update-index", "-q", "--refresh", codes=(0, 1))  # or git merge --abort refuses
            apply_law(self.repo, self.say, describing=False, following=True)
        kept = tuple(path for path, side in self.sides.items() if staging and side != self.removals[path].side)
        removed = tuple(path for path in self.sides if staging and path not in kept)
        return MergeState(tuple(merged), tuple(conflicts[key] for key in sorted(conflicts)), kept, removed)

    def _run_renamed(self, renamed: Renamed, merged: list[ModelMetadata]) -> dict[str, Conflict]:
        """Merge a model that one side renamed at its new path; Git left its old files in conflict."""
        chosen = self.choose(renamed.new, renamed.versions)
        if not chosen.is_clean:
            return {}  # its tensors are listed
        if not self.staging:
            line = f"was {renamed.old}, which {renamed.side} renamed: modelver merge --continue merges it"
            return {renamed.key: Conflict(renamed.new, (), (line,))}
        made = conclude(self.repo, renamed, chosen)
        merged.append(made)
        keeper = Keeper(self.repo, self.say)
        let_old_go(keeper, renamed)
        keeper.save()
        if made.md5 == getattr(renamed.versions, renamed.side):
            self.taken.setdefault(renamed.key, {})[""] = renamed.side
            write_file(self._note, json.dumps(self.taken).encode())
        return {}

    def choose(self, model: str, versions: Versions) -> Chosen:
        """Decide a model's version, with what was taken."""
        known = unanimous(versions)
        if known is not None:
            return known
        key = merge_key(model, versions)
        taken = self.taken.get(key, {})
        rules = self.repo.settings.merge_rules(model)
        whole = taken.get("")
        if whole in ("ours", "theirs"):
            return Chosen(versions.ours if whole == "ours" else versions.theirs, is_clean=True, is_whole=True)
        if whole is None and is_of_pipeline(self.repo, model) and rules == Rules():
            made = self._reproduced(model, versions) if self.staging else None
            if made is None:
                self.outcomes[key] = Outcome(conflicts=(MADE_TWICE,))
            return made or Chosen(versions.ours, is_clean=False)
        names = {name: parse_strategy(text) for name, text in taken.items() if name}
        default = parse_strategy(whole) if whole is not None else rules.default
        chosen = replace(rules, default=default, names=names)
        outcome, _ = self.merger.merge(model, versions, chosen, command="modelver merge")
        self.outcomes[key] = outcome
        return Chosen(outcome.md5, True, outcome) if outcome.md5 else Chosen(versions.ours, is_clean=False)

    def _reproduced(self, model: str, versions: Versions) -> Chosen | None:
        """Give the version that ``dvc repro`` made of a pipeline's model; None before its ``dvc.lock`` was added."""
        seen = next(iter(Keeper(self.repo, self.say).look(only=[model])), None)
        if seen is None or seen.md5 is None or seen.md5 != seen.model.pointer.md5:
            return None
        if seen.model.pointer.file in self.unmerged:
            return None
        if seen.md5 in (versions.ours, versions.theirs):
            return Chosen(seen.md5, is_clean=True)
        hashes = self.repo.cache(model).store_path(self.repo.top / model, link=False)
        contents = read_contents(self.repo.top / model, model, hashes)
        made = describe(self.repo, model, contents, view=self.repo.work_tree, pointer=seen.model.pointer)
        outcome = Outcome(hashes.md5, hashes.size, hashes.n_files, metadata=made.metadata.render(), table=made.table)
        return Chosen(hashes.md5, True, outcome)


def _model(key: str) -> str:
    return key.partition("\0")[0]


def _removed_model(removal: Removal) -> Conflict:
    ways = (("keep", removal.other), ("remove", removal.side))
    lines = tuple(f"to {verb} it: modelver merge --take {side} {word(removal.path)}" for verb, side in ways)
    return Conflict(removal.path, (), lines, removal.side)


def _removed_file(path: str, side: str) -> Conflict:
    other, file = "theirs" if side == "ours" else "ours", word(path)
    return Conflict(path, (), (f"git rm {file}, or git checkout --{other} {file} && git add {file}",), side)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
