"""The three models of a merge, opened, and the tensor tables that decide it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import BinaryIO, cast

from dvc_modelver.errors import BadModelError, UsageError
from dvc_modelver.fingerprint import fingerprint
from dvc_modelver.fingerprint.digest import TensorDigest
from dvc_modelver.fingerprint.row import TensorRow
from dvc_modelver.formats import Folder, LocalFolder, Reader, open_folder, open_reader
from dvc_modelver.metadata import TensorTable
from dvc_modelver.tensors import BLOCKS, TensorSpec, is_quantised

Progress = Callable[[int], None]

READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Side:
    """One of the three models.

    Attributes:
        name: How errors call it; its suffix helps to tell the format, so an object of the cache has the model's path.
        place: The file, or the folder's files. A `Path` to a folder on disk is taken as its files.
        table: Its tensor table; None to read every tensor for its digest.
    """

    name: str
    place: Path | Folder
    table: TensorTable | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of files."""
        return not isinstance(self.place, Path) or self.place.is_dir()

    @property
    def folder(self) -> Folder:
        """Its files, where it is a folder."""
        return LocalFolder(self.place) if isinstance(self.place, Path) else self.place


@dataclass(frozen=True)
class Opened:
    """A side with its reader; of a file, also the file itself.

    Attributes:
        file: Of a folder None.
    """

    side: Side
    reader: Reader
    file: BinaryIO | None
    table: TensorTable


def open_sides(sides: Mapping[str, Side], stack: ExitStack, progress: Progress) -> dict[str, Opened]:
    """Open models and see to it that each has a table.

    Args:
        sides: By ``base``, ``ours`` and ``theirs``; ``base`` may be missing.
        stack: Closes them.
        progress: Called with the number of bytes read since the last call.

    Raises:
        BadModelError: A file breaks its format's rules.
        UsageError: No reader knows its format, or a folder is to be merged with a file.
    """
    kinds = {side.is_folder for side in sides.values()}
    if len(kinds) > 1:
        odd = next(side for side in sides.values() if side.is_folder)
        raise UsageError(f"{odd.name}: is a folder, expected three files or three folders")
    found: dict[str, tuple[Side, Reader, BinaryIO | None]] = {}
    for key, side in sides.items():
        file = None
        if side.is_folder:
            reader: Reader | None = open_folder(side.folder, side.name)
        else:
            place = cast(Path, side.place)
            file = stack.enter_context(cast(BinaryIO, place.open("rb", buffering=0)))
            reader = open_reader(file, side.name, LocalFolder(place.parent))
        if reader is None:
            raise UsageError(f"{side.name}: no reader knows its format, so it has no tensors to merge")
        found[key] = (side, stack.enter_context(reader), file)
    everywhere = set.intersection(*({spec.name for spec in reader.specs} for _, reader, _ in found.values()))
    # Hashing and reading give up the interpreter's lock; every side has a file handle of its own.
    with ThreadPoolExecutor(len(found)) as pool:
        told = _one_at_a_time(progress)
        tables = {
            key: pool.submit(_read_table, reader, everywhere, told)
            for key, (side, reader, _) in found.items()
            if side.table is None
        }
    return {
        key: Opened(side, reader, file, side.table or tables[key].result())
        for key, (side, reader, file) in found.items()
    }


def _one_at_a_time(progress: Progress) -> Progress:
    lock = Lock()

    def told(n_bytes: int) -> None:
        with lock:
            progress(n_bytes)

    return told


def _read_table(reader: Reader, everywhere: Collection[str], progress: Progress) -> TensorTable:
    """Give the digests of all tensors; of those that may have been renamed the sketches as well."""
    described = [
        s for s in reader.specs if s.name not in everywhere or (is_quantised(s.dtype) and s.dtype not in BLOCKS)
    ]
    rows = {row.name: row for row in fingerprint(SomeTensors(reader, described), k=64, progress=progress)}
    for spec in reader.specs:
        if spec.name not in rows:
            digest = digest_of(reader.iter_buffers(spec, READ_BYTES), spec, progress, n_threads=1)
            rows[spec.name] = TensorRow(
                name=spec.name, dtype=spec.dtype, shape=spec.shape, role=spec.role, digest=digest
            )
    return TensorTable("", 64, tuple(rows[name] for name in sorted(rows)), structure=dict(reader.structure))


def digest_of(pieces: Iterable[memoryview], spec: TensorSpec, progress: Progress, n_threads: int = 0) -> str:
    """Give the digest of a tensor that is not quantised with a scale elsewhere.

    Raises:
        BadModelError: There are fewer bytes than its shape says.
    """
    digest, n_read = TensorDigest(n_threads), 0
    for piece in pieces:
        digest.update(piece)
        n_read += len(piece)
        progress(len(piece))
    if n_read != spec.nbytes:
        raise BadModelError(f"tensor {spec.name!r}: ended early, found {n_read} of {spec.nbytes} bytes")
    return digest.finish()


@dataclass(frozen=True)
class SomeTensors:
    """Some tensors of a reader, to be fingerprinted."""

    reader: Reader
    wanted: Iterable[TensorSpec]

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The tensors."""
        return tuple(self.wanted)

    def iter_buffers(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give their values; see `Reader`."""
        return self.reader.iter_buffers(spec, n_bytes)

    def iter_values(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give their values as real numbers; see `Reader`."""
        return self.reader.iter_values(spec, n_bytes)
