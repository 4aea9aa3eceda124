"""PyTorch: what ``torch.save`` and ``torch.jit.save`` write; nothing is unpickled and no code of the file is run.

Four steps: `torch_container` finds the pickle and the storages, `pickles` turns the pickle into inert records,
`torch_tensors` tells which records are tensors, `torch_objects` gives them their names. Here their values are read.

``.pt`` and ``.pth`` claim this format. ``.bin``, ``.ckpt`` and ``.tar`` are also names of other things (raw weights,
TensorFlow and MindSpore checkpoints, archives): such files are PyTorch's where their content says so.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import (
    Extent,
    FileReader,
    Folder,
    ended_early,
    fill,
    flatten,
    measure,
    quote,
    read_exactly,
    rechunk,
)
from dvc_modelver.formats.pickles import Span
from dvc_modelver.formats.quantised import read_reals
from dvc_modelver.formats.strided import iter_blocks
from dvc_modelver.formats.torch_container import (
    HINT,
    Storage,
    find_prefix,
    is_ancient,
    is_legacy,
    is_zip,
    open_container,
)
from dvc_modelver.formats.torch_objects import Walk
from dvc_modelver.formats.torch_tensors import Quantiser, View
from dvc_modelver.formats.zip_directory import read_directory
from dvc_modelver.tensors import TensorSpec, is_float, is_quantised

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT = "pytorch"
SUFFIXES = (".pt", ".pth")

MAX_REPEATED_BYTES = 1 << 30
"""What all tensors may have together, beyond four times the file: views may repeat elements without end."""

MAX_CHANNELS = 1 << 22

_INTEGERS = {"QI8": "i1", "QU8": "u1", "QI32": "<i4"}
_REALS = {"F64": "<f8", "F32": "<f4", "I64": "<i8"}


def matches(file: BinaryIO) -> bool:
    """Tell whether a file is an archive with a ``data.pkl``, or begins as an older file of ``torch.save`` does."""
    start = read_exactly(file, 0, min(measure(file), 512), FORMAT)
    if not is_zip(start):
        return is_legacy(start) or is_ancient(start)
    first = start[30 : 30 + int.from_bytes(start[26:28], "little")]
    if first.endswith(b"/data.pkl") and first.count(b"/") == 1:
        return True
    try:
        return find_prefix(read_directory(file, FORMAT)) is not None
    except BadModelError:
        return False


def open_file(source: Path | BinaryIO, name: str, folder: Folder | None = None) -> TorchReader:
    """Open a file of this format; it is whole without the files beside it."""
    return TorchReader(source, name)


class TorchReader(FileReader):
    """Reads a PyTorch file; opening it reads the directory and the pickle only.

    A tensor whose elements do not lie in C order is gathered in blocks, see `strided`.

    Args:
        source: A path, or a seekable binary file object.
        name: How errors call the file.

    Raises:
        BadModelError: It is no such file, it is damaged, a tensor reaches outside of its storage, or the limits of
            this format's modules are passed.
    """

    format = FORMAT
    framework: str | None = "pytorch"

    def __init__(self, source: Path | BinaryIO, name: str = "") -> None:
        super().__init__(source, name)
        try:
            self._container = open_container(self._file, self.name)
            walk = Walk(self.name)
            for prefix, root in self._container.roots.items():
                walk.add(prefix, root)
            self._container.roots.clear()
            self._views, ties = _find_ties(walk.views)
            self.specs = tuple(_make_spec(name, view) for name, view in self._views.items())
            self._check_size()
            self.structure: Mapping[str, Any] = flatten({**self._container.facts, **walk.facts, **ties})
        except BaseException:
            self.close()
            raise

    def iter_buffers(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give a tensor's values as they are stored; see `Reader`."""
        view = self._views[spec.name]
        if not spec.nbytes:
            return
        item_bytes, is_plain = view.kind.item_bytes, not self._is_changed(view)
        if view.is_contiguous and (is_plain or n_bytes % item_bytes == 0):
            yield from self._iter_run(spec, view, n_bytes)
        elif view.is_contiguous:
            yield from rechunk(self._iter_run(spec, view, -(-n_bytes // item_bytes) * item_bytes), n_bytes)
        else:
            yield from rechunk(self._iter_gathered(spec, view), n_bytes)

    def iter_values(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        """Give a tensor's values as real numbers; see `Reader`."""
        quantiser = self._views[spec.name].quantiser
        if not is_quantised(spec.dtype):
            yield from self.iter_buffers(spec, n_bytes)
        elif n_bytes % 4 == 0:
            yield from self._iter_real(spec, quantiser, n_bytes // 4)
        else:
            yield from rechunk(self._iter_real(spec, quantiser, 1 << 18), n_bytes)

    def find_extent(self, spec: TensorSpec) -> Extent | None:
        """Give where a tensor's values lie; see `FileReader`."""
        view = self._views[spec.name]
        if not view.is_contiguous or self._is_changed(view) or is_quantised(spec.dtype):
            return None
        file, base = self._find_storage(view.storage)
        begin = base + view.offset * view.kind.item_bytes
        return Extent(file, begin, begin + spec.nbytes) if file is self._file else None

    def _check_size(self) -> None:
        n_bytes = sum(spec.nbytes for spec in self.specs)
        limit = 4 * measure(self._file) + MAX_REPEATED_BYTES
        if n_bytes > limit:
            raise BadModelError(
                f"{self.name}: its tensors repeat their elements, found {n_bytes} bytes of them, "
                f"expected at most {limit} in a file of this size",
                hint="save it again with tensors that are contiguous",
            )

    def _is_changed(self, view: View) -> bool:
        return view.is_conj or view.is_neg or (self._is_big_endian(view) and view.kind.part_bytes > 1)

    def _is_big_endian(self, view: View) -> bool:
        return self._container.is_big_endian if view.is_big_endian is None else view.is_big_endian

    def _find_storage(self, storage: Storage) -> tuple[BinaryIO, int]:
        match storage.data:
            case None:
                return self._file, self._container.locate(storage)
            case Span(start, _):
                return self._file, start
            case data:
                return io.BytesIO(data), 0

    def _iter_run(self, spec: TensorSpec, view: View, n_bytes: int) -> Iterator[memoryview]:
        file, base = self._find_storage(view.storage)
        begin = base + view.offset * view.kind.item_bytes
        for piece in self._iter_span(begin, begin + spec.nbytes, n_bytes, f"tensor {quote(spec.name)}", file):
            if self._is_changed(view):
                self._change(piece, view)
            yield piece

    def _iter_gathered(self, spec: TensorSpec, view: View) -> Iterator[memoryview]:
        file, base = self._find_storage(view.storage)
        where = f"{self.name}: tensor {quote(spec.name)}"

        def read(position: int, n_bytes: int) -> bytearray:
            buffer = bytearray(n_bytes)
            file.seek(base + position)
            n_read = fill(file, memoryview(buffer))
            if n_read < n_bytes:
                raise ended_early(where, n_read, n_bytes)
            return buffer

        for block in iter_blocks(read, view.offset, view.shape, view.strides, view.kind.item_bytes):
            if self._is_changed(view):
                self._change(block, view)
            yield block

    def _change(self, piece: memoryview, view: View) -> None:
        import numpy as np

        kind = view.kind
        parts = np.frombuffer(piece, f"<u{kind.part_bytes}")
        if self._is_big_endian(view):
            parts.byteswap(inplace=True)
        sign = parts.dtype.type(1 << (8 * kind.part_bytes - 1))
        if view.is_conj:
            parts[1::2] ^= sign
        if view.is_neg and is_float(kind.dtype):
            parts ^= sign
        elif view.is_neg:
            np.negative(parts, out=parts)

    def _iter_real(self, spec: TensorSpec, quantiser: Quantiser | None, n_items: int) -> Iterator[memoryview]:
        import numpy as np

        scale, zero_point = self._read_quantiser(quantiser)
        inner = spec.shape[quantiser.axis + 1 :] if quantiser and quantiser.axis is not None else ()
        n_inner = TensorSpec("", "U8", inner).numel
        position = 0
        item_bytes = np.dtype(_INTEGERS[spec.dtype]).itemsize
        for piece in self.iter_buffers(spec, n_items * item_bytes):
            integers = np.frombuffer(piece, _INTEGERS[spec.dtype])
            channel = np.arange(position, position + integers.size) // n_inner % scale.size if scale.size > 1 else 0
            with np.errstate(all="ignore"):
                real = ((integers - zero_point[channel]) * scale[channel]).astype("<f4")
            position += integers.size
            yield real.data.cast("B")

    def _read_quantiser(self, quantiser: Quantiser | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        import numpy as np

        if quantiser is None:
            return np.ones(1), np.zeros(1)
        return self._read_numbers(quantiser.scale), self._read_numbers(quantiser.zero_point)

    def _read_numbers(self, value: float | View | tuple[float, ...]) -> NDArray[np.float64]:
        import numpy as np

        if not isinstance(value, View):
            return np.atleast_1d(np.asarray(value, np.float64))
        spec = _make_spec("quantiser", value)
        if spec.numel > MAX_CHANNELS:
            raise BadModelError(
                f"{self.name}: has {spec.numel} quantisers of one tensor, expected at most {MAX_CHANNELS}", hint=HINT
            )
        pieces = self._iter_gathered(spec, value) if spec.numel else iter(())
        return read_reals(b"".join(pieces), _REALS[spec.dtype])


def _make_spec(name: str, view: View) -> TensorSpec:
    shape = view.shape
    if view.kind.tail > 1:
        # Two 4-bit numbers in an element lie along the last axis; the two parts of a complex one are an axis.
        is_packed = view.kind.dtype == "F4" and shape
        shape = (*shape[:-1], shape[-1] * 2) if is_packed else (*shape, 2)
    return TensorSpec(name, view.kind.dtype, shape)


def _find_ties(views: Mapping[str, View]) -> tuple[dict[str, View], dict[str, str]]:
    """Give each tensor once, sorted by name, and by every other name of one its first."""
    kept: dict[str, View] = {}
    ties: dict[str, str] = {}
    first: dict[View, str] = {}
    for name in sorted(views):
        view = views[name]
        same = replace(view, storage=replace(view.storage, data=None))
        if 0 not in view.shape and same in first:
            ties[f"tied.{name}"] = first[same]
        else:
            kept[name] = view
            first.setdefault(same, name)
    return kept, ties
