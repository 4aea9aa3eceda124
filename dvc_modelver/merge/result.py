"""The tensors of a merged model as a reader would give them: taken from a side, or combined while they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dvc_modelver.formats import Reader
from dvc_modelver.formats.base import Extent, FileReader, rechunk
from dvc_modelver.formats.folder import FolderReader
from dvc_modelver.merge.decisions import Decision, Take
from dvc_modelver.tensors import TensorSpec


class Result:
    """What a plan makes of three open models, all of it or the tensors of one file.

    Args:
        decisions: Tensors that are kept, none in conflict, by the names they get in the file.
        readers: The open models by side: ``base`` (where there is one), ``ours`` and ``theirs``.

    Attributes:
        decisions: By the tensor's name in its file.
        specs: Every tensor, sorted by that name.
        digests: By that name, what must be read back; of combined tensors once they were given.
        notes: A sentence for each combined tensor with values that are not finite.
    """

    def __init__(self, decisions: Mapping[str, Decision], readers: Mapping[str, Reader]) -> None:
        self._readers = readers
        self._specs = {side: {spec.name: spec for spec in reader.specs} for side, reader in readers.items()}
        self.decisions = dict(sorted(decisions.items()))
        self.specs = tuple(TensorSpec(name, d.dtype, d.shape) for name, d in self.decisions.items())
        self.digests = {name: d.source.digest for name, d in self.decisions.items() if d.source is not None}
        self.notes: list[str] = []

    def find_extent(self, spec: TensorSpec) -> Extent | None:
        """Give where a tensor lies in the file of the side it is taken from; None where it has to be read."""
        decision = self.decisions[spec.name]
        if decision.source is None:
            return None
        side = _side_of(decision)
        reader = self._readers[side]
        if not isinstance(reader, FileReader | FolderReader):
            return None
        return reader.find_extent(self._specs[side][decision.source.name])

    def iter_buffers(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give a tensor's values as `Reader.iter_buffers` does."""
        decision = self.decisions[spec.name]
        if decision.source is not None:
            side = _side_of(decision)
            return self._readers[side].iter_buffers(self._specs[side][decision.source.name], n_bytes)
        return rechunk(self._iter_combined(spec.name, decision), n_bytes)

    def _iter_combined(self, name: str, decision: Decision) -> Iterator[memoryview]:
        from dvc_modelver.merge.combination import Combination  # with NumPy, which most merges do without

        combination = Combination(decision, self._readers, self._specs)
        yield from combination
        self.digests[name] = combination.digest
        if combination.note and combination.note not in self.notes:
            self.notes.append(combination.note)


def _side_of(decision: Decision) -> str:
    return "theirs" if decision.take is Take.THEIRS else "ours"
