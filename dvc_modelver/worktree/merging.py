"""Merges two versions of a model for Git: the object goes into the cache, metadata and tensor table follow from it.

Git asks for metadata, tensor table and pointer one by one. What came of a merge is kept under the versions, the path
and the rules in ``.git/modelver/merges``, so that whichever file comes first has it computed, and all get the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvc_modelver.errors import ModelverError, ObjectMissing, word
from dvc_modelver.formats import Folder
from dvc_modelver.metadata import (
    ModelFacts,
    ModelMetadata,
    TensorTable,
    TrainingFacts,
    VersionFacts,
    summarise,
    table_digest,
    table_path,
)
from dvc_modelver.progress import ProgressLine
from dvc_modelver.repository import Repository
from dvc_modelver.store.cache import Cache
from dvc_modelver.store.folders import is_folder_oid
from dvc_modelver.store.hashing import Hashes
from dvc_modelver.store.pointers import Pointer
from dvc_modelver.store.temp import remove
from dvc_modelver.strategy import Rules
from dvc_modelver.transfer import Say, Wanted, fetch
from dvc_modelver.worktree.describe import Contents, KnownVersion, describe_change, find_anywhere, read_contents
from dvc_modelver.worktree.state import write_file

if TYPE_CHECKING:  # values are read and written only by the first of a model's files
    from dvc_modelver.merge.models import Merged, Side

MERGES = "merges"
TAKEN = f"{MERGES}/taken"
"""What was taken by hand in the merge under way; the next one begins without it."""
KEPT_S = 7 * 24 * 3600
"""Age at which what came of a merge is forgotten; it can be computed again."""


@dataclass(frozen=True)
class Versions:
    """The three versions of a merge, by md5.

    Attributes:
        base: None where both sides added the model.
    """

    base: str | None
    ours: str
    theirs: str


@dataclass(frozen=True)
class Outcome:
    """What came of a merge.

    Attributes:
        md5: The merged object, in the cache; empty where there is none.
        size: Its bytes.
        n_files: Files of a folder; None for a file.
        undecided: Names of the tensors and facts that are not decided.
        conflicts: The same, a line each; why there is no merge, where it could not be tried.
        summary: What was done, in one line.
        notes: What the user should know besides.
        metadata: The metadata file.
        table: The tensor table.
    """

    md5: str = ""
    size: int = 0
    n_files: int | None = None
    undecided: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    summary: str = ""
    notes: tuple[str, ...] = ()
    metadata: bytes = b""
    table: bytes | None = None


class Merger:
    """Merges the versions of one repository's models.

    Args:
        repo: The repository.
        say: Takes lines for the user.
    """

    def __init__(self, repo: Repository, say: Say) -> None:
        self.repo, self.say = repo, say
        self._folder = repo.layout.state_dir / MERGES

    def merge(self, path: str, versions: Versions, rules: Rules, *, command: str = "") -> tuple[Outcome, bool]:
        """Give what comes of a merge, computed once.

        Args:
            path: The model.
            versions: What is merged.
            rules: What decides where both sides changed.
            command: The process id of the Git command that asks: a failure stands until it ends.

        Returns:
            The outcome, and whether it was computed now.
        """
        key = hashlib.sha256(repr((path, versions, rules)).encode()).hexdigest()[:32]
        known = self._read(key, path, command)
        if known is not None:
            return known, False
        try:
            made = self._compute(path, versions, rules, command)
        except ModelverError as err:
            made = Outcome(conflicts=(f"{err}", *((f"hint: {err.hint}",) if err.hint else ())))
        self._write(key, path, versions, made, command)
        return made, True

    # Kept outcomes

    def _read(self, key: str, path: str, command: str) -> Outcome | None:
        folder = self._folder / key
        try:
            values = json.loads((folder / "outcome").read_bytes())
            parts: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values["outcome"].items()}
            made = Outcome(**parts)
            if not made.md5:
                return made if command and values["command"] == command else None
            table = folder / "table"
            made = replace(
                made, metadata=(folder / "metadata").read_bytes(), table=table.read_bytes() if table.is_file() else None
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        return made if self.repo.cache(path).has(made.md5) else None

    def _write(self, key: str, path: str, versions: Versions, made: Outcome, command: str) -> None:
        folder = self._folder / key
        folder.mkdir(parents=True, exist_ok=True)
        for old in self._folder.iterdir():
            if time.time() - old.stat().st_mtime > KEPT_S:
                remove(old)
        if made.md5:
            write_file(folder / "metadata", made.metadata)
            if made.table is not None:
                write_file(folder / "table", made.table)
        values = {name: value for name, value in asdict(made).items() if name not in ("metadata", "table")}
        question = {"command": command, "path": path, "versions": list(asdict(versions).values())}
        write_file(folder / "outcome", json.dumps(question | {"outcome": values}).encode())

    # Merging

    def _compute(self, path: str, versions: Versions, rules: Rules, command: str) -> Outcome:
        from dvc_modelver.merge.models import merge_models

        found = find_anywhere(self.repo, {md5 for md5 in asdict(versions).values() if md5}, _other_heads())
        cache = self.repo.cache(path)
        self._bring(path, versions, found)
        sides = {
            role: _side(cache, path, md5, found.get(md5)) if md5 is not None else None
            for role, md5 in asdict(versions).items()
        }
        ours, theirs = sides["ours"], sides["theirs"]
        assert ours is not None
        assert theirs is not None
        with (
            cache.new_path(path) as target,
            cache.copied_ahead(int(command) if command.isdigit() else None) as ahead,
            ProgressLine(f"merging {path}") as progress,
        ):
            merged = merge_models(
                sides["base"], ours, theirs, target, rules, progress=progress, meanwhile=ahead.copy
            )  # fmt: skip
            if merged.output is None:
                left = merged.plan.conflicts
                return Outcome(
                    undecided=tuple(c.name for c in left), conflicts=tuple(f"{c.name}: {c.why}" for c in left)
                )
            hashes = cache.adopt(target, merged.hashes)
            ahead.keep(hashes.md5)
        return self._describe(path, versions, found, merged, hashes)

    def _bring(self, path: str, versions: Versions, found: dict[str, KnownVersion]) -> None:
        """Make sure of the objects of all versions.

        Raises:
            ObjectMissing: One is nowhere.
        """
        cache = self.repo.cache(path)
        wanted = [md5 for md5 in asdict(versions).values() if md5 and not cache.has(md5)]
        if not wanted:
            return
        here = next((p for p in self.repo.pointers(self.repo.work_tree) if p.path == path), None)
        model = here or Pointer(path, path + ".dvc", "dvc", None)
        sizes = {md5: known.metadata.model.bytes_ for md5, known in found.items()}
        pointers = [replace(model, md5=md5, size=sizes.get(md5), legacy=False) for md5 in wanted]
        done = fetch(self.repo, map(Wanted, pointers), self.say, max_bytes=self.repo.settings.fetch_max_bytes)
        lost = [md5 for md5 in wanted if not cache.has(md5)]
        if lost:
            why = "larger than limits.fetch_max_bytes" if done.skipped else "not in the cache"
            failed = done.failed.get(lost[0], f"object {lost[0][:8]}: {why}")
            raise ObjectMissing(
                failed.splitlines()[0],
                hint=f"dvc fetch --all-branches {word(model.file)}; modelver merge --continue",
            )

    def _describe(
        self, path: str, versions: Versions, found: dict[str, KnownVersion], merged: Merged, hashes: Hashes
    ) -> Outcome:
        made = Outcome(
            hashes.md5, hashes.size, hashes.n_files, summary=_summary(merged), notes=merged.notes
        )  # fmt: skip
        known = found.get(hashes.md5)
        if known is not None:
            return replace(made, metadata=known.metadata.render(), table=known.table)
        if merged.table is not None:
            table = replace(merged.table, md5=hashes.md5)
        else:
            cache = self.repo.cache(path)
            place = cache.open_folder(hashes.md5) if is_folder_oid(hashes.md5) else cache.path_of(hashes.md5)
            contents = read_contents(place, path, hashes)
            assert contents.table is not None  # it was read back by its reader
            table = contents.table
        text = table.render()
        parents = [found[md5] for md5 in (versions.ours, versions.theirs) if md5 in found]
        first = parents[0].metadata.model if parents else None
        model = ModelFacts(
            name=first.name if first else self.repo.new_name(self.repo.work_tree, path),
            path=path,
            format=first.format if first else "opaque",
            framework=first.framework if first else None,
            bytes_=hashes.size,
            md5=hashes.md5,
            sha256=hashes.sha256 or None,
            tensors_digest=table_digest(text),
            extra=first.extra if first else {},
            **summarise(table.rows),
        )
        recipe = {key: value for key, value in asdict(versions).items() if value} | merged.plan.recipe()
        version = VersionFacts(
            number=1 + max((p.metadata.version.number for p in parents), default=0),
            parents=(versions.ours, versions.theirs),
            update="merge",
            extra={"merge": recipe},
        )
        contents = Contents(hashes, model.format, model.framework, table)
        change = describe_change(path, contents, parents[0]) if parents else None
        training = common_training(*(p.metadata.training for p in parents))
        metadata = ModelMetadata(model=model, version=version, change=change, training=training)
        return replace(made, metadata=metadata.render(), table=text)


def _other_heads() -> list[str]:
    """Give the commits that ``git merge`` says it merges: a branch fetched from a URL is under no ref."""
    return [name.removeprefix("GITHEAD_") for name in os.environ if name.startswith("GITHEAD_")]


def _side(cache: Cache, path: str, md5: str, known: KnownVersion | None) -> Side:
    from dvc_modelver.merge.models import Side

    place: Path | Folder = cache.path_of(md5)
    if is_folder_oid(md5):
        place = cache.open_folder(md5)
    cache.check(md5)
    table = None
    if known is not None and known.table is not None:
        table = TensorTable.parse(known.table, table_path(path))
    return Side(known.metadata.model.path if known is not None else path, place, table)


def _summary(merged: Merged) -> str:
    words = {"ours": "from ours", "theirs": "from theirs", "removed": "removed", "combined": "combined"}
    counts = merged.plan.counts()
    parts = [f"{counts[take]} {said}" for take, said in words.items() if counts.get(take)]
    by_rule = sum(d.why.endswith(" by rule") for d in merged.plan.tensors)
    if by_rule:
        parts.append(f"{by_rule} of them changed on both sides, decided by rule")
    return f"{sum(counts.values())} tensors: " + (", ".join(parts) or "all the same")


def common_training(*facts: TrainingFacts) -> TrainingFacts:
    """Give what is known of the training of merged weights: what both sides share, and the data of both.

    Metrics are not: nobody measured these weights.
    """
    if not facts:
        return TrainingFacts()
    shared: dict[str, Any] = {
        key: value
        for key, value in (facts[0].hyperparameters or {}).items()
        if all((other.hyperparameters or {}).get(key) == value for other in facts)
    }
    data = {json.dumps(entry, sort_keys=True): entry for one in facts for entry in one.data or ()}
    frameworks = {one.framework for one in facts}
    return TrainingFacts(
        framework=frameworks.pop() if len(frameworks) == 1 else None,
        hyperparameters=shared or None,
        data=tuple(data.values()) or None,
    )


def merge_documents(base: Any, ours: Any, theirs: Any) -> tuple[Any, bool]:
    """Merge two JSON documents key by key, as metadata of the same weights.

    Args:
        base: None where there is none.
        ours: Our document, or a part of it.
        theirs: Theirs.

    Returns:
        The result, ours where both changed one value; and whether nothing was changed on both sides.
    """
    if theirs in (ours, base):
        return ours, True
    if ours == base:
        return theirs, True
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        return ours, False
    base = base if isinstance(base, dict) else {}
    merged, clean = {}, True
    for key in [*ours, *(k for k in theirs if k not in ours)]:
        value, ok = merge_documents(base.get(key), ours.get(key), theirs.get(key))
        clean = clean and ok
        if value is not None:
            merged[key] = value
    return merged, clean
