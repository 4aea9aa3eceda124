"""Merges three models, files or folders, into one: plans, combines, writes, and reads back what was written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import BinaryIO, cast

from dvc_modelver.errors import BadModelError, UsageError, word
from dvc_modelver.formats import LocalFolder, Reader, claimed_format, open_reader
from dvc_modelver.merge.files import FileJob, FileSide, check_written, merge_metadata
from dvc_modelver.merge.folders import merge_folders
from dvc_modelver.merge.output import Merged, make_table, new_file, synced
from dvc_modelver.merge.result import Result
from dvc_modelver.merge.sides import Opened, Side, open_sides
from dvc_modelver.merge.threeway import Plan, plan
from dvc_modelver.store.following import FollowingHasher
from dvc_modelver.strategy import Rules

__all__ = ["Merged", "Side", "merge_models"]

Progress = Callable[[int], None]


def merge_models(
    base: Side | None, ours: Side, theirs: Side, output: Path, rules: Rules | None = None, *,
    progress: Progress = lambda _n: None, meanwhile: Callable[[Path], object] = lambda _file: None,
) -> Merged:  # fmt: skip
    """Merge three models; nothing is written where there is a conflict.

    The result has the format of ours. It is written beside `output` under another name, read back (every tensor has
    the digest that the plan says), synced and renamed.

    Args:
        base: The common ancestor; None where there is none.
        ours: The side that is merged into.
        theirs: The side that is merged.
        output: File, or folder where ours is one. A file that is there is replaced, a folder is not.
        rules: What decides where both sides changed.
        progress: Called with the number of bytes read or written since the last call.
        meanwhile: Called in another thread with the complete file, not with a folder, while it is read back.

    Returns:
        What came of it; of a folder without `Merged.hashes`.

    Raises:
        BadModelError: A file is damaged, or was written while it was read.
        UsageError: No reader knows a file's format, a folder is to be merged with a file, or the folder is there.
        EnvironmentFailed: The disk is full, or the folder cannot be written.
    """
    given = {"base": base, "ours": ours, "theirs": theirs}
    sides = {key: side for key, side in given.items() if side is not None}
    if os.path.lexists(output) and (ours.is_folder or not output.is_file()):
        wanted = "a new folder" if ours.is_folder else "a file"
        raise UsageError(f"{output}: is there already, expected {wanted}", hint=f"ls -ld {word(output)}")
    with ExitStack() as stack:
        opened = open_sides(sides, stack, progress)
        if ours.is_folder:
            return merge_folders(opened, output, rules or Rules(), progress)
        return _merge_files(opened, output, rules or Rules(), progress, meanwhile)


def _merge_files(
    opened: Mapping[str, Opened], output: Path, rules: Rules, progress: Progress, meanwhile: Callable[[Path], object]
) -> Merged:
    decided = _plan_files(opened, rules)
    if decided.conflicts:
        return Merged(decided)
    result = Result({d.name: d for d in decided.kept}, {key: one.reader for key, one in opened.items()})
    job = FileJob(result, decided.facts, {key: _file_of(opened[key]) for key in ("ours", "theirs")})
    if job.obstacles:
        return Merged(decided.with_obstacles(job.obstacles))
    fmt, claimed = opened["ours"].reader.format, claimed_format(output.name)
    if claimed not in (None, fmt) and output.suffix != Path(opened["ours"].side.name).suffix:
        raise BadModelError(
            f"{output}: has the suffix of another format ({claimed}), expected one of {fmt}: that of ours",
            hint="give the output the suffix of ours",
        )
    with new_file(output) as (file, temp), FollowingHasher(temp) as hasher:

        def told(n_bytes: int) -> None:
            progress(n_bytes)
            hasher.advance(n_bytes)

        job.write(file, told if job.is_in_order else progress)
        file.flush()
        hashes = hasher.finish()
        with (
            temp.open("rb", buffering=0) as stream,
            _open_again(stream, output, opened["ours"].side.name) as reader,
            synced([temp], lambda: meanwhile(temp)),
        ):
            expected = {spec: result.digests[spec.name] for spec in result.specs}
            check_written(reader, expected, str(output), progress, n_threads=1)  # another one is busy with md5
            table = make_table(reader, {name: d.source for name, d in result.decisions.items()}, opened)
        return Merged(decided, output, table, (*decided.notes, *result.notes), hashes.result())


def _open_again(stream: FileIO, output: Path, like: str) -> Reader:
    """Open what was written, by the name it gets; where that tells no format, by the name of ours."""
    reader = None
    try:
        for name in (str(output), like):
            reader = reader or open_reader(cast(BinaryIO, stream), name, LocalFolder(output.parent))
    except BadModelError as err:
        raise BadModelError(
            f"{err} (what was merged could not be read back, so nothing was replaced)",
            hint="merge the folders where a model is in several files, and give the output the suffix of ours",
        ) from err
    if reader is None:
        raise BadModelError(f"{output}: what was merged was not recognised, so nothing was replaced")
    return reader


def _plan_files(opened: Mapping[str, Opened], rules: Rules) -> Plan:
    base, ours, theirs = opened.get("base"), opened["ours"], opened["theirs"]
    ancestor = base.table if base else None
    if base and ancestor and base.reader.format != ours.reader.format:
        ancestor = replace(ancestor, structure={})
    same_format = ours.reader.format == theirs.reader.format
    decided = plan(ancestor, ours.table, theirs.table, rules, same_format=same_format)
    metadata = merge_metadata({key: one.reader for key, one in opened.items()}, rules)
    return replace(decided, facts=(*decided.facts, *metadata))


def _file_of(one: Opened) -> FileSide:
    assert one.file is not None
    return FileSide(one.reader, one.file, {row.name: row.digest for row in one.table.rows})
