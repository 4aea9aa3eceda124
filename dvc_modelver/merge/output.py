"""What a merge gives, and how it gets into place: beside it under another name, synced, renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

from dvc_modelver.fingerprint import fingerprint
from dvc_modelver.fingerprint.row import TensorRow
from dvc_modelver.formats import Reader
from dvc_modelver.merge.sides import Opened, SomeTensors
from dvc_modelver.merge.threeway import Plan
from dvc_modelver.metadata import TensorTable
from dvc_modelver.store.copying import disk_error, sync_folder
from dvc_modelver.store.hashing import Hashes
from dvc_modelver.store.temp import open_alone, permissions, remove
from dvc_modelver.tensors import find_role


@dataclass(frozen=True)
class Merged:
    """What a merge gave.

    Attributes:
        plan: What was decided, and why; its `Plan.conflicts` are all there are, those of the format included.
        output: The file or folder that was written; None where there are conflicts.
        table: The result's tensor table, with an empty md5: rows as the sides' tables have them, those of combined
            tensors made anew. None where there are conflicts, and where a side came without a table.
        notes: What the user should know: `Plan.notes`, and values that are not finite.
        hashes: Of the file that was written; None for a folder.
    """

    plan: Plan
    output: Path | None = None
    table: TensorTable | None = None
    notes: tuple[str, ...] = ()
    hashes: Hashes | None = None


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
def new_file(output: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """Give a new file that takes the place of `output` when all went well.

    Raises:
        EnvironmentFailed: The disk is full, or the folder cannot be written; what was there is untouched.
    """
    temp = output.with_name(f".{output.name[:100]}.modelver-tmp")  # what a killed process left is the next one's
    try:
        with os.fdopen(open_alone(temp), "w+b") as file:
            try:
                yield cast(BinaryIO, file), temp
                temp.chmod(output.stat().st_mode & 0o777 if output.exists() else permissions(0o666))
                temp.replace(output)
            except BaseException:
                temp.unlink(missing_ok=True)
                raise
        sync_folder(output.parent)
    except OSError as err:
        raise disk_error(err, output.parent, 0, f"{output.name}: cannot be written in") from err


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Give a new folder that gets the name `output` when all went well.

    Raises:
        EnvironmentFailed: The disk is full, or the folder cannot be written; nothing is left.
    """
    try:
        temp = Path(tempfile.mkdtemp(prefix=f".{output.name[:100]}.", suffix=".modelver-tmp", dir=output.parent))
        try:
            yield temp
            temp.chmod(permissions(0o777))
            temp.rename(output)
            sync_folder(output.parent)
        finally:
            remove(temp)
    except OSError as err:
        raise disk_error(err, output.parent, 0, f"{output.name}: cannot be written in") from err


@contextmanager
def synced(paths: Sequence[Path], *also: Callable[[], object]) -> Iterator[None]:
    """Have files and folders on disk at the end, while they are read; what `also` is to be done runs beside it.

    Raises:
        OSError: The disk is full.
    """
    with ThreadPoolExecutor(1 + len(also)) as pool:
        done: list[Future[object]] = [pool.submit(job) for job in (lambda: _sync(paths), *also)]
        yield
    for job in done:
        job.result()


def _sync(paths: Sequence[Path]) -> None:
    for path in paths:
        sync_folder(path)
