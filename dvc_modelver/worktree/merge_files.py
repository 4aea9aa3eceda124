"""Merges the files of a model one by one: metadata, tensor table, pointers.

They stay readable whatever comes of it: in a conflict ours stands.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from dvc_modelver.errors import ModelverError, word
from dvc_modelver.git.porcelain import GitFailed
from dvc_modelver.metadata import TABLE_SUFFIX, ModelMetadata, TensorTable, find_model_path
from dvc_modelver.repository import Repository
from dvc_modelver.store.folders import is_folder_oid, merge_listings, render_listing
from dvc_modelver.store.pointers import (
    Pointer,
    read_lock_stages,
    read_pointers,
    remove_lock_stage,
    replace_lock_stage,
    set_out,
)
from dvc_modelver.strategy import Rules, Strategy
from dvc_modelver.transfer import Say
from dvc_modelver.worktree.merging import Merger, Outcome, Versions, merge_documents


@dataclass(frozen=True)
class Chosen:
    """The version that a model has after the merge.

    Attributes:
        md5: Its object.
        is_clean: Whether that is decided.
        outcome: What came of merging; None where it is one side's version.
        is_whole: Whether the user took that side's.
    """

    md5: str
    is_clean: bool
    outcome: Outcome | None = None
    is_whole: bool = False


CONFLICT = "CONFLICT (model): "
"""How a line about a model in conflict begins, as Git's own do."""

MergedOut = tuple[str, int | None, int | None, bool]
"""md5, size and number of files of an output, and whether it is decided."""


Choose = Callable[[str, Versions], Chosen]


class FileMerge:
    """Merges one file.

    Args:
        repo: The repository.
        path: The file, as the result is called.
        say: Takes lines for the user.
        choose: Gives the version that a model has after the merge of these three.
    """

    def __init__(self, repo: Repository, path: str, say: Say, choose: Choose) -> None:
        self.repo, self.path, self.say, self.choose = repo, path, say, choose

    def merge(self, base: bytes, ours: bytes, theirs: bytes) -> tuple[bytes | None, bool]:
        """Give the merged text (None leaves ours as it is), and whether there is no conflict."""
        model = find_model_path(self.path)
        if model is None and posixpath.basename(self.path) == "dvc.lock":
            return self._merge_lock(base, ours, theirs)
        if model is None:
            return self._merge_pointers(base, ours, theirs)
        if self.path.endswith(TABLE_SUFFIX):
            return self._merge_table(model, base, ours, theirs)
        return self._merge_metadata(model, base, ours, theirs)

    # Metadata and tensor table

    def _merge_metadata(self, model: str, base: bytes, ours: bytes, theirs: bytes) -> tuple[bytes | None, bool]:
        old = ModelMetadata.parse(base, self.path) if base else None
        mine, other = ModelMetadata.parse(ours, self.path), ModelMetadata.parse(theirs, self.path)
        chosen = self.choose(model, Versions(old.md5 if old else None, mine.md5, other.md5))
        if chosen.outcome is not None:
            return chosen.outcome.metadata, True
        if not chosen.is_clean:
            return None, False
        if mine.md5 == other.md5:
            documents = (json.loads(text or b"null") for text in (base, ours, theirs))
            merged, is_clean = merge_documents(*documents)
            found = ModelMetadata.parse(json.dumps(merged).encode(), self.path)
        else:
            found, is_clean = (mine if chosen.md5 == mine.md5 else other), True
        name = mine.model.name if old is None or mine.model.name != old.model.name else other.model.name
        return replace(found, model=replace(found.model, path=model, name=name)).render(), is_clean

    def _merge_table(self, model: str, base: bytes, ours: bytes, theirs: bytes) -> tuple[bytes | None, bool]:
        md5s = [TensorTable.parse(text, self.path).md5 if text else None for text in (base, ours, theirs)]
        chosen = self.choose(model, Versions(md5s[0], md5s[1] or "", md5s[2] or ""))
        if chosen.outcome is not None:
            return chosen.outcome.table, chosen.outcome.table is not None
        return (theirs if chosen.md5 == md5s[2] and chosen.is_clean else None), chosen.is_clean

    # Pointers

    def _merge_pointers(self, base: bytes, ours: bytes, theirs: bytes) -> tuple[bytes | None, bool]:
        """Merge a ``.dvc``: outputs as objects, all other lines as text."""
        texts = [text.decode("utf-8") for text in (base, ours, theirs)]
        found = [self._outs(text) for text in (base, ours, theirs)]
        is_clean = True
        for path, mine in found[1].items():
            old, other = (_same_out(path, found[1], side) for side in (found[0], found[2]))
            if other is None or mine.md5 is None or other.md5 is None or mine.md5 == other.md5:
                continue
            md5, size, n_files, ok = self._merge_out(path, old, mine, other)
            is_clean = is_clean and ok
            for n, out in enumerate((old, mine, other)):
                if out is not None:
                    texts[n] = set_out(texts[n], out, md5=md5, size=size, n_files=n_files)
        merged = self._merge_lines(*texts)
        if merged is None:
            self.say(f"{self.path}: changed on both sides: ours stands\nhint: {self._way_out()}")
            return None, False
        return merged.encode(), is_clean

    def _merge_lock(self, base: bytes, ours: bytes, theirs: bytes) -> tuple[bytes | None, bool]:
        """Merge a ``dvc.lock`` stage by stage; one that both sides ran anew is ours, or that of the chosen model.

        A merged model stays with the parameters and dependencies that ours was made from, so that DVC goes on
        saying of the stage what differs from them.
        """
        texts = [text.decode("utf-8") for text in (base, ours, theirs)]
        old, mine, other = (read_lock_stages(text, self.path) if text else {} for text in texts)
        outs = [self._outs(text) for text in (base, ours, theirs)]
        merged, is_clean = texts[1], True
        for stage in sorted({*old, *mine, *other}):
            entry = other.get(stage)
            if entry in (mine.get(stage), old.get(stage)):
                continue
            if mine.get(stage) == old.get(stage):
                merged = replace_lock_stage(merged, stage, texts[2]) if entry else remove_lock_stage(merged, stage)
                continue
            made = self._merge_stage(stage, merged, texts[2], outs)
            is_clean = is_clean and made is not None
            merged = merged if made is None else made
        return merged.encode(), is_clean

    def _merge_stage(self, stage: str, merged: str, theirs: str, outs: list[Mapping[str, Pointer]]) -> str | None:
        """Give the lock with a stage that both sides ran; None where nothing decides it."""
        decided = []
        for path, out in outs[1].items():
            old, other = outs[0].get(path), outs[2].get(path)
            if out.stage == stage and self.repo.is_model(self.repo.work_tree, out) and other and other.md5 and out.md5:
                chosen = self.choose(path, Versions(old.md5 if old else None, out.md5, other.md5))
                decided.append((out, other, chosen))
        if decided and all(chosen.outcome for _, _, chosen in decided):
            for out, _, chosen in decided:
                made = chosen.outcome
                assert made is not None
                merged = set_out(merged, out, md5=made.md5, size=made.size, n_files=made.n_files)
            return merged
        if decided and all(chosen.is_whole for _, _, chosen in decided):
            sides = {chosen.md5 == other.md5 for _, other, chosen in decided}
            if len(sides) == 1:
                return replace_lock_stage(merged, stage, theirs) if sides.pop() else merged
        for out, _, chosen in decided:
            if not chosen.is_clean:
                self.say(f"{CONFLICT}{out.path}: made by stage {stage!r} on both sides")
        then = ", then modelver merge --continue" if decided else ""
        self.say(f"{self.path}: stage {stage!r} was run on both sides: ours stands\nhint: {self._way_out()}{then}")
        return None

    def _way_out(self) -> str:
        if posixpath.basename(self.path) == "dvc.lock":
            return f"dvc repro, git add {word(self.path)}"
        return f"git checkout --theirs {word(self.path)} takes the other; then git add {word(self.path)}"

    def _outs(self, text: bytes) -> Mapping[str, Pointer]:
        if not text:
            return {}
        dvc_yaml = self.repo.work_tree.read(posixpath.join(posixpath.dirname(self.path), "dvc.yaml"))
        return {p.path: p for p in read_pointers(text, self.path, dvc_yaml=dvc_yaml)}

    def _merge_out(self, path: str, old: Pointer | None, mine: Pointer, other: Pointer) -> MergedOut:
        """Give md5, size, number of files and whether it is decided, of one output that differs between the sides."""
        assert mine.md5 is not None
        assert other.md5 is not None
        base = old.md5 if old is not None else None
        if self.repo.is_model(self.repo.work_tree, mine):
            chosen = self.choose(path, Versions(base, mine.md5, other.md5))
            if chosen.outcome is not None:
                return chosen.outcome.md5, chosen.outcome.size, chosen.outcome.n_files, True
            side = other if chosen.is_clean and chosen.md5 == other.md5 else mine
            return side.md5 or "", side.size, side.n_files, chosen.is_clean
        for unchanged, side in ((other, mine), (mine, other)):
            if base == unchanged.md5:
                return side.md5 or "", side.size, side.n_files, True
        if base and all(map(is_folder_oid, (base, mine.md5, other.md5))):
            return self._merge_folder(path, base, mine, other)
        self.say(f"{path}: changed on both sides: ours stands\nhint: {self._way_out()}")
        return mine.md5, mine.size, mine.n_files, False

    def _merge_folder(self, path: str, base: str, mine: Pointer, other: Pointer) -> MergedOut:
        """Merge a folder of data file by file, from the listings."""
        cache = self.repo.cache(path)
        try:
            listings = [dict(cache.iter_folder(oid)) for oid in (base, mine.md5 or "", other.md5 or "")]
        except ModelverError as err:
            self.say(f"{path}: not merged: {err}" + (f"\nhint: {err.hint}" if err.hint else ""))
            return mine.md5 or "", mine.size, mine.n_files, False
        merged, conflicts = merge_listings(*listings)
        if conflicts:
            named = ", ".join(conflicts[:3]) + (" ..." if len(conflicts) > 3 else "")
            self.say(
                f"{path}: {len(conflicts)} files changed on both sides ({named}): ours stands\nhint: {self._way_out()}"
            )
            return mine.md5 or "", mine.size, mine.n_files, False
        oid, text = render_listing(merged.items())
        cache.store_listing(oid, text)
        is_here = all(cache.has(md5) for md5 in merged.values())
        size = sum(cache.path_of(md5).stat().st_size for md5 in merged.values()) if is_here else None
        return oid, size, len(merged), True

    def _merge_lines(self, base: str, ours: str, theirs: str) -> str | None:
        """Merge three texts as Git does; None where both changed the same lines."""
        if theirs in (ours, base) or ours == base:
            return theirs if ours == base else ours
        folder = self.repo.layout.state_dir
        names = [folder / f"merge-{os.getpid()}-{side}" for side in ("base", "ours", "theirs")]
        try:
            for name, text in zip(names, (base, ours, theirs), strict=True):
                name.write_bytes(text.encode())
            old, mine, other = map(str, names)
            code, out = self.repo.git.run_for_code("merge-file", "-p", "-q", mine, old, other, codes=range(128))
            return None if code else out.decode()
        except GitFailed:
            return None
        finally:
            for name in names:
                name.unlink(missing_ok=True)


def _same_out(path: str, ours: Mapping[str, Pointer], side: Mapping[str, Pointer]) -> Pointer | None:
    """Give the output of another side; the only one of a file is the same one, whatever its name there."""
    if len(ours) == len(side) == 1:
        return next(iter(side.values()))
    return side.get(path)


def choose_version(merger: Merger, model: str, versions: Versions, *, command: str = "", side: str = "") -> Chosen:
    """Decide which version of a model a merge has, by the rules of ``.modelver.toml``; what was computed is told.

    Args:
        merger: Merges where both sides changed the weights.
        model: The model's path.
        versions: What is merged.
        command: Process id of the Git command.
        side: ``ours`` or ``theirs`` where the user said so (``git merge -X``): it decides what rules leave open.
    """
    known = unanimous(versions)
    if known is not None:
        return known
    rules = merger.repo.settings.merge_rules(model)
    whole = Chosen(versions.theirs if side == "theirs" else versions.ours, is_clean=True, is_whole=True)
    if is_of_pipeline(merger.repo, model) and rules == Rules():
        return whole if side else Chosen(versions.ours, is_clean=False)
    if side and rules.default == Strategy():
        rules = replace(rules, default=Strategy(side))
    outcome, is_new = merger.merge(model, versions, rules, command=command)
    if is_new:
        merger.say("\n".join(told(model, outcome)))
    if outcome.md5:
        return Chosen(outcome.md5, True, outcome)
    return whole if side and not outcome.undecided else Chosen(versions.ours, is_clean=False)


def is_of_pipeline(repo: Repository, model: str) -> bool:
    """Whether a stage makes a model: what is merged is of neither run, so nothing is merged unless a rule says so."""
    if (repo.top / f"{model}.dvc").is_file():
        return False
    return any(p.path == model and p.kind == "lock" for p in repo.pointers(repo.work_tree))


def unanimous(versions: Versions) -> Chosen | None:
    """Give the version that is decided without merging: one side alone changed it, or both alike."""
    if versions.theirs in (versions.ours, versions.base):
        return Chosen(versions.ours, is_clean=True)
    return Chosen(versions.theirs, is_clean=True) if versions.base == versions.ours else None


def told(model: str, outcome: Outcome) -> list[str]:
    """Give what the user is told of a merge."""
    if outcome.md5:
        return [f"merged {model}: {outcome.summary}", *outcome.notes]
    if not outcome.undecided:
        return [f"{CONFLICT}{model}: {outcome.conflicts[0]}", *outcome.conflicts[1:]]
    count = len(outcome.conflicts)
    named = [f"  {line}" for line in outcome.conflicts[:3]] + ([f"  ... {count - 3} more"] if count > 3 else [])
    return [
        f"{CONFLICT}{model}: {count} not decided", *named,
        "hint: modelver merge lists them; modelver merge --continue --take ours|theirs|mean [MODEL|PATTERN] decides",
    ]  # fmt: skip
