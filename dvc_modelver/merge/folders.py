"""Merges folders: tensors by name over all files of a folder, any other file as a whole.

A tensor lies in the file that the side which moved it put it into. The index of shards is written anew where neither
side's is right.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

from dvc_modelver.formats import Folder, LocalFolder, open_folder
from dvc_modelver.formats.folder import INDEX_SUFFIX, MAX_INDEX_BYTES, FolderReader, Part, name_prefix
from dvc_modelver.merge.files import FileJob, FileSide, check_written, has_fact, merge_metadata
from dvc_modelver.merge.output import Merged, make_table, new_folder, synced
from dvc_modelver.merge.result import Result
from dvc_modelver.merge.sides import Opened, Side
from dvc_modelver.merge.threeway import Decision, Fact, Plan, Take, merge_facts, plan
from dvc_modelver.merge.write import copy_file
from dvc_modelver.store.cache import ObjectFolder
from dvc_modelver.store.folders import iter_files
from dvc_modelver.strategy import Rules
from dvc_modelver.tensors import TensorSpec

Progress = Callable[[int], None]

HASH_BYTES = 4 << 20


@dataclass
class _Contents:
    """The files of one side.

    Attributes:
        folder: Opens them.
        parts: Files with tensors, by path.
        places: Of each tensor of the folder, its file and its name there.
        others: Digest of every other file, by path.
    """

    folder: Folder
    parts: dict[str, Part]
    places: dict[str, tuple[str, str]]
    others: dict[str, str]


def merge_folders(opened: Mapping[str, Opened], output: Path, rules: Rules, progress: Progress) -> Merged:
    """Merge open folders; see `models.merge_models`."""
    contents = {key: _list_files(one.side, one.reader, progress) for key, one in opened.items()}
    base = opened.get("base")
    decided = plan(base.table if base else None, opened["ours"].table, opened["theirs"].table, rules, same_format=False)
    files = {key: one.others for key, one in contents.items()}
    others = merge_facts(files.get("base"), files["ours"], files["theirs"], rules)
    indices = {path for one in contents.values() for path in one.others if path.endswith(INDEX_SUFFIX)}
    others = tuple(_without_conflict(fact) if fact.name in indices else fact for fact in others)
    placed = _place(decided, contents)
    facts = {path: _file_facts(path, contents, rules) for path in placed}
    decided = replace(
        decided, facts=tuple(sorted((*others, *(f for fs in facts.values() for f in fs)), key=lambda f: f.name))
    )
    decided = decided.with_obstacles(_find_unplaced(decided, placed))
    if decided.conflicts:
        return Merged(decided)
    readers = {key: one.reader for key, one in opened.items()}
    jobs = {}
    for path, decisions in placed.items():
        sides = {key: _file_side(contents[key].parts[path], opened[key]) for key in ("ours", "theirs")
                 if path in contents[key].parts}  # fmt: skip
        jobs[path] = FileJob(Result(decisions, readers), facts[path], sides, _fact_prefix(path))
        decided = decided.with_obstacles(jobs[path].obstacles)
    if decided.conflicts:
        return Merged(decided)
    kept = _choose_others(others, contents)
    return _write(decided, opened, contents, jobs, kept, indices, output, progress)


def _without_conflict(fact: Fact) -> Fact:
    # An index of shards follows from where the tensors are.
    return replace(fact, take=Take.OURS) if fact.take is Take.CONFLICT and fact.ours is not None else fact


def _list_files(side: Side, reader: object, progress: Progress) -> _Contents:
    folder = side.folder
    if isinstance(side.place, Path):
        names = [name for name, _ in iter_files(side.place)]
    else:
        names = sorted(folder.entries) if isinstance(folder, ObjectFolder) else list(folder.names())
    parts = {part.file_name: part for part in reader.parts if part.names} if isinstance(reader, FolderReader) else {}
    places = {full: (path, own) for path, part in parts.items() for own, full in part.names.items()}
    others = {name: _digest(folder, name, progress) for name in names if name not in parts}
    return _Contents(folder, parts, places, others)


def _digest(folder: Folder, name: str, progress: Progress) -> str:
    digest, n_bytes = hashlib.sha256(), 0
    with folder.open(name) as file:
        while piece := file.read(HASH_BYTES):
            digest.update(piece)
            n_bytes += len(piece)
            progress(len(piece))
    return f"sha256:{digest.hexdigest()[:32]} ({n_bytes:,} bytes)"


def _place(decided: Plan, contents: Mapping[str, _Contents]) -> dict[str, dict[str, Decision]]:
    """Give the tensors of each file of the result, by the names they get there."""
    placed: dict[str, dict[str, Decision]] = {}
    for d in decided.kept:
        rows = {"base": d.base, "ours": d.ours, "theirs": d.theirs}
        found = {
            key: contents[key].places[row.name] for key, row in rows.items()
            if row is not None and key in contents and row.name in contents[key].places
        }  # fmt: skip
        side = "ours" if "ours" in found else "theirs"
        if len(found) == 3 and found["ours"][0] == found["base"][0]:
            side = "theirs"
        row = rows[side]
        if side not in found or row is None:
            continue
        path, own = found[side]
        placed.setdefault(path, {})[own if row.name == d.name else d.name.removeprefix(name_prefix(path))] = d
    return placed


def _find_unplaced(decided: Plan, placed: Mapping[str, Mapping[str, Decision]]) -> dict[str, str]:
    """Give the tensors of files that are only taken as a whole, unless all of them are those of one side."""
    done = {d.name for decisions in placed.values() for d in decisions.values()}
    left = [d for d in decided.kept if d.name not in done]
    for side in ("ours", "theirs"):
        if all(_is_of(d, side) for d in left) and all(has_fact(fact, side) for fact in decided.facts):
            return {}
    return {d.name: "its file can only be taken as a whole" for d in left if not _is_of(d, "ours")}


def _is_of(decision: Decision, side: str) -> bool:
    row, source = decision.theirs if side == "theirs" else decision.ours, decision.source
    return source is not None and row is not None and (row.name, row.digest) == (decision.name, source.digest)


def _fact_prefix(path: str) -> str:
    return f"{path}: "


def _file_facts(path: str, contents: Mapping[str, _Contents], rules: Rules) -> tuple[Fact, ...]:
    """Decide what else files of this name say; nothing where a side has none, or one of another format."""
    readers = {key: one.parts[path].reader for key, one in contents.items() if path in one.parts}
    if not {"ours", "theirs"} <= readers.keys() or readers["ours"].format != readers["theirs"].format:
        return ()
    prefix = _fact_prefix(path)
    is_alike = "base" in readers and readers["base"].format == readers["ours"].format
    base = readers["base"].structure if is_alike else None
    structure = merge_facts(base, readers["ours"].structure, readers["theirs"].structure, rules, prefix=prefix)
    return (*structure, *merge_metadata(readers, rules, prefix))


def _file_side(part: Part, one: Opened) -> FileSide:
    digests = {row.name: row.digest for row in one.table.rows}
    return FileSide(part.reader, part.file, {own: digests[full] for own, full in part.names.items()})


def _choose_others(facts: tuple[Fact, ...], contents: Mapping[str, _Contents]) -> dict[str, str]:
    """Give the side that each file without tensors is taken from."""
    changed = {fact.name: fact for fact in facts}
    kept = {}
    for path in sorted({*contents["ours"].others, *contents["theirs"].others}):
        take = changed[path].take if path in changed else Take.SAME
        if take is not Take.REMOVED:
            kept[path] = "theirs" if take is Take.THEIRS else "ours"
    return kept


def _write(
    decided: Plan, opened: Mapping[str, Opened], contents: Mapping[str, _Contents], jobs: Mapping[str, FileJob],
    kept: Mapping[str, str], indices: set[str], output: Path, progress: Progress,
) -> Merged:  # fmt: skip
    clashing = {fact.name for fact in decided.facts if fact.name in indices and " both sides" in fact.why}
    with new_folder(output) as temp:
        for path, job in jobs.items():
            with _open_new(temp, path) as out:
                job.write(out, progress)
        for path, side in kept.items():
            with _open_new(temp, path) as out, contents[side].folder.open(path) as source:
                text = _mend_index(path, source.read(), jobs, path in clashing) if path in indices else None
                if text is None:
                    copy_file(source, out, progress)
                else:
                    out.write(text)
        with open_folder(LocalFolder(temp), str(output)) as reader, synced([temp, *temp.rglob("*")]):
            check_written(reader, _expected(decided, jobs), str(output), progress)
            table = make_table(reader, {d.name: d.source for d in decided.kept}, opened)
    notes = [note for job in jobs.values() for note in job.result.notes]
    return Merged(decided, output, table, (*decided.notes, *notes))


def _expected(decided: Plan, jobs: Mapping[str, FileJob]) -> dict[TensorSpec, str]:
    found = {d.name: d.source.digest for d in decided.kept if d.source is not None}
    for job in jobs.values():
        found |= {d.name: job.result.digests[own] for own, d in job.result.decisions.items()}
    return {TensorSpec(d.name, d.dtype, d.shape): found[d.name] for d in decided.kept}


def _open_new(top: Path, path: str) -> BinaryIO:
    place = top / path
    place.parent.mkdir(parents=True, exist_ok=True)
    return cast(BinaryIO, place.open("w+b"))


def _mend_index(path: str, text: bytes, jobs: Mapping[str, FileJob], is_clashing: bool) -> bytes | None:
    """Give an index of shards that names the files tensors are in; None where the one given does.

    Source: ``huggingface_hub``, ``serialization/_base.py`` and ``_torch.py``: ``weight_map`` and ``total_size``.
    """
    if len(text) > MAX_INDEX_BYTES:
        return None
    index = json.loads(text)
    folder = posixpath.dirname(path)
    suffix = posixpath.splitext(path.removesuffix(INDEX_SUFFIX))[1]
    weight_map: dict[str, str] = {}
    total = 0
    for file_name, job in jobs.items():
        if posixpath.dirname(file_name) == folder and file_name.endswith(suffix):
            weight_map |= dict.fromkeys(job.result.decisions, posixpath.basename(file_name))
            total += sum(spec.nbytes for spec in job.result.specs)
    if index.get("weight_map") == weight_map and not is_clashing:
        return None
    metadata = index.get("metadata")
    index["metadata"] = {**(metadata if isinstance(metadata, dict) else {}), "total_size": total}
    index["weight_map"] = weight_map
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
