"""What every reader promises; a format's tests inherit this and say how its files are written."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats import open_reader
from dvc_modelver.formats.base import FileReader, Reader
from dvc_modelver.merge.models import Merged, Side, merge_models
from dvc_modelver.strategy import Rules, parse_strategy

Arrays = dict[str, NDArray[Any]]


def some_arrays() -> Arrays:
    rng = np.random.default_rng(0)
    return {
        "b.weight": rng.standard_normal((7, 5)).astype(np.float32),
        "a.weight": rng.standard_normal((3, 2, 4)),
        "half": rng.standard_normal(9).astype(np.float16),
        "ints": np.arange(-4, 4, dtype=np.int64),
        "bytes": np.arange(6, dtype=np.uint8).reshape(2, 3),
        "flags": np.array([True, False, True]),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }


def values_of(reader: Reader, n_bytes: int = 16) -> dict[str, bytes]:
    found = {}
    for spec in reader.specs:
        pieces = [bytes(piece) for piece in reader.iter_buffers(spec, n_bytes)]
        assert all(len(piece) == n_bytes for piece in pieces[:-1])
        found[spec.name] = b"".join(pieces)
    return found


class CountingFile(io.BytesIO):
    """Counts the bytes that are read."""

    n_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.n_read += len(data)
        return data

    def readinto(self, buffer: Any, /) -> int:
        n = super().readinto(buffer)
        self.n_read += n
        return n


class ReaderContract:
    """Inherit, and say `suffix` and `write`; `arrays`, where the format has fewer dtypes; `has_extents` if not so."""

    suffix = ""
    has_extents = True
    """Whether all values lie plainly in the file, so that others can be put in their place."""
    can_merge = True
    """Whether values of both sides can be put into one file."""

    def arrays(self) -> Arrays:
        return some_arrays()

    def write(self, path: Path, arrays: Arrays) -> None:
        raise NotImplementedError

    def file(self, folder: Path, arrays: Arrays | None = None) -> Path:
        path = folder / f"model{self.suffix}"
        self.write(path, self.arrays() if arrays is None else arrays)
        return path

    def open(self, path: Path) -> Reader:
        reader = open_reader(path)
        assert reader is not None
        return reader

    def test_names_are_sorted_and_specs_right(self, tmp_path: Path) -> None:
        with self.open(self.file(tmp_path)) as reader:
            assert [s.name for s in reader.specs] == sorted(self.arrays())
            assert {s.name: s.shape for s in reader.specs} == {k: v.shape for k, v in self.arrays().items()}
            assert {s.name: s.nbytes for s in reader.specs} == {k: v.nbytes for k, v in self.arrays().items()}

    def test_values_are_the_bytes_in_c_order(self, tmp_path: Path) -> None:
        with self.open(self.file(tmp_path)) as reader:
            assert values_of(reader) == {k: v.tobytes() for k, v in self.arrays().items()}

    def test_a_buffer_size_does_not_change_the_bytes(self, tmp_path: Path) -> None:
        with self.open(self.file(tmp_path)) as reader:
            assert values_of(reader, 8) == values_of(reader, 1 << 20)

    def test_an_open_file_reads_like_a_path(self, tmp_path: Path) -> None:
        path = self.file(tmp_path)
        with path.open("rb") as file:
            reader = open_reader(file, path.name)
            assert reader is not None
            with reader:
                assert values_of(reader) == {k: v.tobytes() for k, v in self.arrays().items()}

    def test_the_content_decides_not_the_name(self, tmp_path: Path) -> None:
        path = self.file(tmp_path)
        reader = open_reader(path.rename(tmp_path / "renamed.data"))
        assert reader is not None
        reader.close()

    def test_values_lie_where_the_reader_says(self, tmp_path: Path) -> None:
        path = self.file(tmp_path)
        data = path.read_bytes()
        with self.open(path) as reader:
            values = values_of(reader)
            extents = {spec.name: reader.find_extent(spec) for spec in reader.specs if isinstance(reader, FileReader)}
        found = {name: data[place.begin : place.end] for name, place in extents.items() if place and values[name]}
        assert found == {name: values[name] for name in found}
        assert not self.has_extents or set(found) == {name for name in values if values[name]}

    def test_a_merge_has_the_values_of_both_sides(self, tmp_path: Path) -> None:
        arrays = self.arrays()
        names = [name for name in arrays if arrays[name].dtype.kind == "f" and arrays[name].size]
        first, last = names[0], names[-1]
        ours = arrays | {first: np.asarray(arrays[first] + 1, arrays[first].dtype)}
        theirs = arrays | {last: np.asarray(arrays[last] * 2, arrays[last].dtype)}
        expected = ours | {last: theirs[last] if first != last else (ours[first] + theirs[first]) / 2}
        found = self._merge(tmp_path, arrays, ours, theirs)
        if not self.can_merge:
            assert found.output is None
            assert all("cannot be replaced" in d.why or "no side's" in d.why for d in found.plan.conflicts)
            assert not (tmp_path / f"merged{self.suffix}").exists()
            return
        assert found.output is not None, [d.why for d in found.plan.conflicts]
        with self.open(found.output) as reader:
            assert values_of(reader) == {name: np.asarray(a).tobytes() for name, a in expected.items()}

    def test_a_side_that_holds_the_whole_merge_is_copied(self, tmp_path: Path) -> None:
        arrays = self.arrays()
        name = next(iter(arrays))
        theirs = arrays | {name: np.asarray(arrays[name] * 3, arrays[name].dtype)}
        found = self._merge(tmp_path, arrays, arrays, theirs)
        assert found.output is not None, [d.why for d in found.plan.conflicts]
        assert found.output.read_bytes() == (tmp_path / f"theirs{self.suffix}").read_bytes()

    def _merge(self, folder: Path, base: Arrays, ours: Arrays, theirs: Arrays) -> Merged:
        sides = []
        for name, arrays in (("base", base), ("ours", ours), ("theirs", theirs)):
            path = folder / f"{name}{self.suffix}"
            self.write(path, arrays)
            sides.append(Side(str(path), path))
        rules = Rules(parse_strategy("mean"))
        return merge_models(sides[0], sides[1], sides[2], folder / f"merged{self.suffix}", rules)

    def test_a_listing_reads_the_header_only(self, tmp_path: Path) -> None:
        path = self.file(tmp_path, {"big": np.zeros(1_000_000, np.float32)})
        file = CountingFile(path.read_bytes())
        reader = open_reader(file, path.name)
        assert reader is not None
        assert reader.specs[0].numel == 1_000_000
        assert file.n_read < 200_000

    def test_a_file_cut_anywhere_is_one_line(self, tmp_path: Path) -> None:
        data = self.file(tmp_path, {"w": np.arange(8, dtype=np.float32)}).read_bytes()
        for cut in range(1, len(data)):
            path = tmp_path / f"cut{self.suffix}"
            path.write_bytes(data[:cut])
            with pytest.raises(BadModelError) as caught, self.open(path) as reader:
                values_of(reader)
            assert "\n" not in str(caught.value)

    def test_noise_with_this_suffix_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / f"noise{self.suffix}"
        path.write_bytes(bytes(range(256)) * 100)
        with pytest.raises(BadModelError):
            open_reader(path)
