"""How one file gets the tensors and facts of a merge: as a copy of a side's, with new values in it, or written anew."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from dvc_modelver.errors import BadModelError
from dvc_modelver.fingerprint import fingerprint
from dvc_modelver.formats import Reader
from dvc_modelver.formats.base import quote
from dvc_modelver.formats.npz import NpzReader
from dvc_modelver.formats.safetensors import SafetensorsReader
from dvc_modelver.merge.result import Result
from dvc_modelver.merge.sides import READ_BYTES, SomeTensors, digest_of
from dvc_modelver.merge.threeway import Fact, merge_facts
from dvc_modelver.merge.write import (
    copy_file,
    find_patches,
    find_unwritable,
    is_rewritable,
    patch,
    write_npz,
    write_safetensors,
)
from dvc_modelver.strategy import Rules
from dvc_modelver.tensors import BLOCKS, TensorSpec, is_quantised

Progress = Callable[[int], None]

METADATA = "__metadata__."
"""Put before the names of facts that stand in a safetensors file's own metadata."""


@dataclass(frozen=True)
class FileSide:
    """One side's file.

    Attributes:
        reader: Open.
        file: What it reads.
        digests: Of its tensors, by the names they have in it.
    """

    reader: Reader
    file: BinaryIO
    digests: Mapping[str, str]


def merge_metadata(sides: Mapping[str, Reader], rules: Rules, prefix: str = "") -> tuple[Fact, ...]:
    """Decide what safetensors files say of themselves; nothing for other formats.

    Args:
        sides: Readers by ``base`` (where there is one), ``ours`` and ``theirs``.
        rules: As for `merge_facts`.
        prefix: Put before every name.
    """
    found: dict[str, Mapping[str, Any]] = {
        key: reader.metadata for key, reader in sides.items() if isinstance(reader, SafetensorsReader)
    }
    if not {"ours", "theirs"} <= found.keys():
        return ()
    return merge_facts(found.get("base"), found["ours"], found["theirs"], rules, prefix=prefix + METADATA)


class FileJob:
    """How one file gets what was decided.

    Args:
        result: Its tensors, by the names they have in the file.
        facts: What else differs anywhere, decided.
        sides: Files of this name by ``ours`` and ``theirs``, where there are any; the format is that of the first.
        prefix: What stands before the names of facts.

    Attributes:
        obstacles: What the format cannot carry, by the name of tensor or fact, and why; nothing is written then.
    """

    def __init__(
        self, result: Result, facts: Collection[Fact], sides: Mapping[str, FileSide], prefix: str = ""
    ) -> None:
        self.result = result
        self.obstacles: dict[str, str] = {}
        self._facts, self._sides, self._prefix = facts, sides, prefix
        self._first = next(iter(sides.values()))
        self._format = self._first.reader.format
        self._whole = next((side for side in self._candidates() if sides[side].digests == result.digests), "")
        self._template = self._whole
        if not self._whole and is_rewritable(self._format):
            why = f"a file of format {self._format} has no such dtype"
            self._obstruct(find_unwritable(self._format, result.specs), why)
        elif not self._whole:
            self._find_template()

    @property
    def is_in_order(self) -> bool:
        """Whether the file is written from its beginning to its end, each byte once."""
        return bool(self._whole) or isinstance(self._first.reader, SafetensorsReader)

    def write(self, out: BinaryIO, progress: Progress) -> None:
        """Write the file into an empty one that is open for reading, too."""
        reader = self._first.reader
        if self._whole:
            copy_file(self._sides[self._whole].file, out, progress)
        elif isinstance(reader, SafetensorsReader):
            write_safetensors(out, self.result, reader, self._metadata(reader), progress)
        elif isinstance(reader, NpzReader):
            write_npz(out, self.result, reader, progress)
        else:
            side = self._sides[self._template]
            patch(out, side.file, self.result, side.reader, side.digests, progress)

    def _metadata(self, reader: SafetensorsReader) -> dict[str, str]:
        changed = {f.name.removeprefix(self._prefix + METADATA): f.value for f in self._facts}
        kept = {key: value for key, value in reader.metadata.items() if changed.get(key, value) is not None}
        return kept | {key: value for key, value in changed.items() if value is not None}

    def _candidates(self) -> Iterator[str]:
        """Give the sides whose files have the result's tensors, by name, dtype and shape, and its facts."""
        for side, one in self._sides.items():
            same_tensors = one.reader.format == self._format and set(one.reader.specs) == set(self.result.specs)
            if same_tensors and all(has_fact(fact, side) for fact in self._facts):
                yield side

    def _find_template(self) -> None:
        """Find the side whose file gets new values, or what stands in the way."""
        stuck: list[str] = []
        for side in self._candidates():
            one = self._sides[side]
            _, cannot = find_patches(self.result, one.reader, one.digests)
            if not cannot:
                self._template = side
                return
            stuck = stuck or cannot
        if stuck:
            self._obstruct(stuck, f"its values cannot be replaced in a {self._format} file as they lie there")
            return
        mine = {spec.name: spec for spec in self._first.reader.specs}
        wanted = {spec.name: spec for spec in self.result.specs}
        moved = [name for name in {**mine, **wanted} if mine.get(name) != wanted.get(name)]
        why = f"no side's {self._format} file has all of the result, and only values can be replaced in one"
        self._obstruct(moved, why)
        self.obstacles |= {fact.name: why for fact in self._facts if not has_fact(fact, next(iter(self._sides)))}

    def _obstruct(self, names: Collection[str], why: str) -> None:
        decisions = self.result.decisions
        self.obstacles |= {decisions[name].name if name in decisions else name: why for name in names}


def has_fact(fact: Fact, side: str) -> bool:
    """Whether a side has what was decided."""
    value = fact.ours if side == "ours" else fact.theirs
    return type(value) is type(fact.value) and bool(value == fact.value)


def check_written(
    reader: Reader, expected: Mapping[TensorSpec, str], where: str, progress: Progress, n_threads: int = 0
) -> None:
    """Compare every tensor of a file or folder with what it was to be.

    Args:
        reader: Of what was written.
        expected: Digests.
        where: How errors call it.
        progress: Called with the number of bytes read since the last call.
        n_threads: As of `TensorDigest`.

    Raises:
        BadModelError: One differs: a side was written while it was read, or tensors overlap in its file.
    """
    for spec in reader.specs:
        found = ""
        if spec in expected and is_quantised(spec.dtype) and spec.dtype not in BLOCKS:
            found = next(iter(fingerprint(SomeTensors(reader, [spec]), k=16, progress=progress))).digest
        elif spec in expected:
            found = digest_of(reader.iter_buffers(spec, READ_BYTES), spec, progress, n_threads)
        if found != expected.get(spec):
            raise _differs(where, spec.name)
    missing = expected.keys() - set(reader.specs)
    if missing:
        raise _differs(where, min(spec.name for spec in missing))


def _differs(where: str, name: str) -> BadModelError:
    return BadModelError(
        f"{where}: tensor {quote(name)} is not what was to be written, so nothing was replaced",
        hint="wait until the programs that write these files are done; if it stays so, save them as safetensors",
    )
