"""merge: what Git's merge left undecided of models, and deciding it."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dvc_modelver.errors import ModelverError, NotFoundError, UsageError
from dvc_modelver.metadata import ModelMetadata, find_model_path
from dvc_modelver.repository import Repository, is_pointer_file
from dvc_modelver.strategy import Rules, parse_strategy
from dvc_modelver.transfer import Say
from dvc_modelver.worktree.merge_files import Chosen, FileMerge, is_of_pipeline, unanimous
from dvc_modelver.worktree.merging import TAKEN, Merger, Outcome, Versions
from dvc_modelver.worktree.resolved import kept_ours
from dvc_modelver.worktree.state import locked, write_file
from dvc_modelver.worktree.sync import apply_law, write_if_changed


@dataclass(frozen=True)
class Conflict:
    """A model, or a file of one, that a merge left undecided.

    Attributes:
        path: The model, or the file where the conflict is not in weights.
        undecided: Names of its tensors and facts; empty where it can only be decided as a whole.
        lines: What there is to say, a line each.
    """

    path: str
    undecided: tuple[str, ...]
    lines: tuple[str, ...]


@dataclass(frozen=True)
class MergeState:
    """What a merge under way has decided and what it has not.

    Attributes:
        merged: Metadata of the models that were decided now.
        conflicts: What is left.
    """

    merged: tuple[ModelMetadata, ...]
    conflicts: tuple[Conflict, ...]


def merge(
    *patterns: str, take: str | None = None, again: bool = False, folder: Path | None = None,
    say: Say = lambda _line: None,
) -> MergeState:  # fmt: skip
    """List what Git's merge, rebase, cherry-pick or stash left undecided of models, or decide it.

    What is decided is put into the index and the work tree; ``git commit`` (or ``git rebase --continue``...) concludes.

    Args:
        patterns: Names of tensors and facts that `take` is for, as in a shell; all that are undecided by default.
        take: A strategy: ``ours``, ``theirs``, ``mean``, ``ties:density=0.3``...; None only lists, or tries again.
        again: Try again, by the rules of ``.modelver.toml`` and what was taken before.
        folder: Anywhere in the work tree; the current one by default.
        say: Takes lines for the user.

    Raises:
        BadMetadataError: No such strategy.
        NotFoundError: Nothing undecided matches a pattern.
        UsageError: Nothing is to be merged, or patterns without `take`.
    """
    strategy = parse_strategy(take, "--take") if take is not None else None
    if patterns and strategy is None:
        raise UsageError("merge: patterns without --take", hint=f"modelver merge --take ours {patterns[0]}")
    repo = Repository.open(folder)
    with locked(repo.layout.state_dir):
        work = _Resolution(repo, say)
        if not work.files:
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
        self.files = _unmerged(repo)
        self.merger = Merger(repo, say)
        self._note = repo.layout.state_dir / TAKEN
        self.taken: dict[str, dict[str, str]] = _read_json(self._note)
        self.outcomes: dict[str, Outcome] = {}

    def take(self, strategy: str, patterns: Iterable[str]) -> None:
        """Note a strategy for what is undecided."""
        self.run(staging=False)
        matched = set()
        for key, outcome in self.outcomes.items():
            chosen = self.taken.setdefault(key, {})
            for name in (*outcome.undecided, *(name for name in chosen if name)):
                found = [p for p in patterns if fnmatch.fnmatchcase(name, p)]
                matched.update(found)
                if found or (not patterns and name in outcome.undecided):
                    chosen[name] = strategy
            if not outcome.md5 and not outcome.undecided and not patterns:
                chosen[""] = strategy
        for pattern in patterns:
            if pattern not in matched:
                raise NotFoundError(f"{pattern}: matches nothing that is undecided", hint="modelver merge")
        write_file(self._note, json.dumps(self.taken).encode())

    def run(self, *, staging: bool) -> MergeState:
        """Merge every file again; what is decided now is staged and put into the work tree."""
        self.outcomes.clear()
        conflicts: dict[str, Conflict] = {}
        merged = []
        for path, stages in self.files.items():
            missing = [side for side, oid in zip(("ours", "theirs"), stages[1:], strict=True) if oid is None]
            if missing:
                conflicts[path] = _removed(path, missing[0])
                continue
            texts = [self.repo.objects.read_blob(oid) if oid else b"" for oid in stages]
            lines: list[str] = []
            try:
                result, is_clean = FileMerge(self.repo, path, lines.append, self.choose).merge(*texts)
            except ModelverError as err:
                result, is_clean = None, False
                lines.append(str(err))
            if not is_clean and lines:
                conflicts[path] = Conflict(path, (), tuple(lines))
            if is_clean and staging:
                text = texts[1] if result is None else result
                write_if_changed(self.repo.top / path, text)
                self.repo.git.stage_blobs({path: text})
                if path.endswith(".json"):
                    merged.append(ModelMetadata.parse(text, path))
        for key, outcome in self.outcomes.items():
            if not outcome.md5:
                conflicts[key] = Conflict(key.partition("\0")[0], outcome.undecided, outcome.conflicts)
        if staging:
            self.repo.git.run("update-index", "-q", "--refresh", codes=(0, 1))  # or git merge --abort refuses
            apply_law(self.repo, self.say, describing=False, following=True)
        return MergeState(tuple(merged), tuple(conflicts[key] for key in sorted(conflicts)))

    def choose(self, model: str, versions: Versions) -> Chosen:
        """Decide a model's version, with what was taken."""
        known = unanimous(versions)
        if known is not None:
            return known
        key = "\0".join([model, versions.base or "", versions.ours, versions.theirs])
        taken = self.taken.get(key, {})
        rules = self.repo.settings.merge_rules(model)
        whole = taken.get("")
        if whole in ("ours", "theirs"):
            return Chosen(versions.ours if whole == "ours" else versions.theirs, is_clean=True, is_whole=True)
        if whole is None and is_of_pipeline(self.repo, model) and rules == Rules():
            self.outcomes[key] = Outcome(conflicts=("made by its stage on both sides: dvc repro makes it anew",))
            return Chosen(versions.ours, is_clean=False)
        names = {name: parse_strategy(text) for name, text in taken.items() if name}
        default = parse_strategy(whole) if whole is not None else rules.default
        chosen = replace(rules, default=default, names=names)
        outcome, _ = self.merger.merge(model, versions, chosen, command="modelver merge")
        self.outcomes[key] = outcome
        return Chosen(outcome.md5, True, outcome) if outcome.md5 else Chosen(versions.ours, is_clean=False)


def _removed(path: str, side: str) -> Conflict:
    other = "theirs" if side == "ours" else "ours"
    line = f"removed by {side}, changed by {other}: git rm {path}, or git checkout --{other} {path} && git add {path}"
    return Conflict(path, (), (line,))


def _unmerged(repo: Repository) -> dict[str, tuple[str | None, str | None, str | None]]:
    """Give path -> blob ids of base, ours and theirs of the files in conflict that are a model's.

    While Git's merge is under way, files that were only added as ours has them count as well.
    """
    found = repo.git.unmerged() | kept_ours(repo)
    return {path: oids for path, oids in sorted(found.items()) if find_model_path(path) or is_pointer_file(path)}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
