"""Merges three models, files or folders, into one: plans, combines, writes, and reads back what was written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

from dvc_modelver.fingerprint import fingerprint
from dvc_modelver.fingerprint.row import TensorRow
from dvc_modelver.formats import LocalFolder, Reader, open_reader
from dvc_modelver.merge.files import FileJob, FileSide, check_written, merge_metadata
from dvc_modelver.merge.result import Result
from dvc_modelver.merge.sides import Opened, Side, SomeTensors, open_sides
from dvc_modelver.merge.threeway import Plan, plan
from dvc_modelver.metadata import TensorTable
from dvc_modelver.store.objects import disk_error, sync_folder
from dvc_modelver.strategy import Rules
from dvc_modelver.tensors import find_role

__all__ = ["Merged", "Side", "merge_models"]

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Merged:
    """What a merge gave.

    Attributes:
        plan: What was decided, and why; its `Plan.conflicts` are all there are, those of the format included.
        output: The file or folder that was written; None where there are conflicts.
        table: The result's tensor table, with an empty md5: rows as the sides' tables have them, those of combined
            tensors made anew. None where there are conflicts, and where a side came without a table.
        notes: What the user should know: `Plan.notes`, and values that are not finite.
    """

    plan: Plan
    output: Path | None = None
    table: TensorTable | None = None
    notes: tuple[str, ...] = ()


def merge_models(
    base: Side | None, ours: Side, theirs: Side, output: Path, rules: Rules | None = None, *,
    progress: Progress = lambda _n: None,
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

    Raises:
        BadModelError: A file is damaged, or was written while it was read.
        UsageError: No reader knows a file's format, a folder is to be merged with a file, or the folder is there.
        EnvironmentFailed: The disk is full, or the folder cannot be written.
    """
    given = {"base": base, "ours": ours, "theirs": theirs}
    sides = {key: side for key, side in given.items() if side is not None}
    with ExitStack() as stack:
        opened = open_sides(sides, stack, progress)
        if ours.is_folder:
            from dvc_modelver.merge.folders import merge_folders

            return merge_folders(opened, output, rules or Rules(), progress)
        return _merge_files(opened, output, rules or Rules(), progress)


def _merge_files(opened: Mapping[str, Opened], output: Path, rules: Rules, progress: Progress) -> Merged:
    decided = _plan_files(opened, rules)
    if decided.conflicts:
        return Merged(decided)
    result = Result(decided.kept, {key: one.reader for key, one in opened.items()})
    job = FileJob(result, decided.facts, {key: _file_of(opened[key]) for key in ("ours", "theirs")})
    if job.obstacles:
        return Merged(decided.with_obstacles(job.obstacles))
    ours = opened["ours"].side
    with written(output) as (file, temp):
        job.write(file, progress)
        file.flush()
        os.fsync(file.fileno())
        with temp.open("rb", buffering=0) as stream:
            beside = LocalFolder(ours.place.parent) if isinstance(ours.place, Path) else None
            reader = open_reader(cast(BinaryIO, stream), ours.name, beside)
            assert reader is not None
            with reader:
                check_written(reader, result, str(output), progress)
                table = make_table(reader, {name: d.source for name, d in result.decisions.items()}, opened)
    return Merged(decided, output, table, (*decided.notes, *result.notes))


def _plan_files(opened: Mapping[str, Opened], rules: Rules) -> Plan:
    base = opened.get("base")
    same_format = len({one.reader.format for one in opened.values()}) == 1
    ours, theirs = opened["ours"].table, opened["theirs"].table
    decided = plan(base.table if base else None, ours, theirs, rules, same_format=same_format)
    metadata = merge_metadata({key: one.reader for key, one in opened.items()}, rules)
    return replace(decided, facts=(*decided.facts, *metadata))


def _file_of(one: Opened) -> FileSide:
    assert one.file is not None
    return FileSide(one.reader, one.file, {row.name: row.digest for row in one.table.rows})


def make_table(
    reader: Reader, sources: Mapping[str, TensorRow | None], opened: Mapping[str, Opened]
) -> TensorTable | None:
    """Give the table of a written model; None where the sides' own tables do not say enough.

    Args:
        reader: Of what was written.
        sources: The rows that tensors were taken from by the names they have now; None for combined ones.
        opened: The sides.
    """
    tables = [opened[key].side.table for key in ("ours", "theirs")]
    if tables[0] is None or tables[1] is None:
        return None
    k = tables[0].k
    rows = {name: replace(row, name=name, role=find_role(name)) for name, row in sources.items() if row is not None}
    combined = [spec for spec in reader.specs if spec.name not in rows]
    rows |= {row.name: row for row in fingerprint(SomeTensors(reader, combined), k=k)}
    return TensorTable("", k, tuple(rows[name] for name in sorted(rows)), structure=dict(reader.structure))


@contextmanager
def written(output: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """Give a new file that takes the place of `output` when all went well.

    Raises:
        EnvironmentFailed: The disk is full, or the folder cannot be written; what was there is untouched.
    """
    temp = Path()
    try:
        fd, text = tempfile.mkstemp(prefix=f".{output.name[:100]}.", suffix=".modelver-tmp", dir=output.parent)
        temp = Path(text)
        with os.fdopen(fd, "w+b") as file:
            yield cast(BinaryIO, file), temp
        temp.chmod(output.stat().st_mode & 0o777 if output.exists() else 0o666 & ~_umask())
        temp.replace(output)
        sync_folder(output.parent)
    except OSError as err:
        raise disk_error(err, output.parent, 0, f"{output.name}: cannot be written in") from err
    finally:
        if temp.name:
            temp.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
