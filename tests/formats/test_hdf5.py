from __future__ import annotations

import io
import os
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats import hdf5_process, open_reader
from dvc_modelver.formats.base import Reader
from dvc_modelver.formats.hdf5 import Hdf5Reader
from tests.formats.contract import Arrays, ReaderContract, values_of

h5py: Any = pytest.importorskip("h5py")


class TestHdf5(ReaderContract):
    suffix = ".h5"

    def write(self, path: Path, arrays: Arrays) -> None:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array


class TestCompressedHdf5(ReaderContract):
    has_extents = False
    suffix = ".hdf5"

    def write(self, path: Path, arrays: Arrays) -> None:
        with h5py.File(path, "w", libver="latest") as file:
            for name, array in arrays.items():
                options: dict[str, Any] = {"compression": "gzip", "shuffle": True} if array.size > 1 else {}
                file.create_dataset(name, data=array, **options)


Fill = Callable[[Any], object]


def write(path: Path, fill: Fill, **options: Any) -> Path:
    with h5py.File(path, "w", **options) as file:
        fill(file)
    return path


def read(path: Path, fill: Fill, **options: Any) -> tuple[dict[str, bytes], Reader]:
    with Hdf5Reader(write(path, fill, **options)) as reader:
        return values_of(reader, 24), reader


def refuse(path: Path) -> str:
    with pytest.raises(BadModelError) as caught, Hdf5Reader(path) as reader:
        values_of(reader, 1 << 20)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    return str(caught.value)


MATRIX: NDArray[Any] = np.random.default_rng(1).integers(0, 9, (11, 7)).astype(np.float32)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize(
    "options",
    [
        {"chunks": (4, 3)},
        {"chunks": (11, 7)},
        {"chunks": (4, 3), "maxshape": (None, 7)},
        {"chunks": (4, 3), "maxshape": (None, None)},
        {"chunks": (16, 16), "maxshape": (None, None)},
        {"chunks": (4, 3), "compression": "gzip"},
        {"chunks": (4, 3), "compression": "gzip", "shuffle": True, "fletcher32": True},
        {"chunks": (1, 7), "compression": "lzf"},
        {"chunks": (11, 7), "compression": "lzf", "shuffle": True},
        {"chunks": (5, 5), "fletcher32": True},
    ],
)
def test_chunks_give_what_the_library_reads(tmp_path: Path, libver: str, options: dict[str, Any]) -> None:
    def fill(file: Any) -> None:
        file.create_dataset("m", data=MATRIX, **options)
        file.create_dataset("cube", data=np.arange(60.0).reshape(3, 4, 5), chunks=(2, 3, 4), compression="gzip")
        file.create_dataset("line", data=np.arange(17, dtype=">i2"), chunks=(4,))
        file.create_dataset("zeros", data=np.zeros(5000), chunks=(5000,), compression="lzf")

    found, reader = read(tmp_path / "x.h5", fill, libver=libver)
    assert found["m"] == MATRIX.tobytes()
    assert found["cube"] == np.arange(60.0).tobytes()
    assert found["line"] == np.arange(17, dtype="<i2").tobytes()
    assert found["zeros"] == bytes(40_000)
    assert {spec.name: spec.dtype for spec in reader.specs} == {
        "m": "F32",
        "cube": "F64",
        "line": "I16",
        "zeros": "F64",
    }


def test_every_number_has_its_dtype_and_bytes(tmp_path: Path) -> None:
    arrays: Arrays = {
        "be_f8": np.arange(5, dtype=">f8"), "be_f4": np.arange(5, dtype=">f4"), "f2": np.arange(5, dtype="f2"),
        "be_c8": np.array([1 + 2j, 3 - 1j], ">c8"), "c16": np.array([[1j, 2]], "c16"), "u8": np.arange(4, dtype="u8"),
        "be_u2": np.arange(4, dtype=">u2"), "i1": np.array(-3, "i1"), "b": np.array([[True], [False]]),
    }  # fmt: skip
    dtypes = {
        "be_f8": "F64", "be_f4": "F32", "f2": "F16", "be_c8": "C64", "c16": "C128", "u8": "U64", "be_u2": "U16",
        "i1": "I8", "b": "BOOL",
    }  # fmt: skip

    def fill(file: Any) -> None:
        for name, array in arrays.items():
            file[name] = array

    found, reader = read(tmp_path / "x.h5", fill)
    assert {spec.name: spec.dtype for spec in reader.specs} == dtypes
    assert found == {name: array.astype(array.dtype.newbyteorder("<")).tobytes() for name, array in arrays.items()}


def test_floats_numpy_lacks_and_enumerations(tmp_path: Path) -> None:
    def fill(file: Any) -> None:
        bfloat16 = h5py.h5t.IEEE_F32LE.copy()
        bfloat16.set_fields(15, 7, 8, 0, 7)
        bfloat16.set_precision(16)
        bfloat16.set_size(2)
        bfloat16.set_ebias(127)
        made = h5py.h5d.create(file.id, b"bf", bfloat16, h5py.h5s.create_simple((3,)))
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array([1.0, -2.0, 0.5], np.float32))
        colours = h5py.enum_dtype({"RED": 0, "GREEN": 7}, basetype="i4")
        file.create_dataset("colour", data=np.array([0, 7, 0], "i4"), dtype=colours)
        file.create_dataset("marked", data=np.frombuffer(b"abcd", "V2"))
        file["marked"].attrs["dtype"] = "bfloat16"
        file["long"] = np.ones(2, np.longdouble)
        file.create_dataset("raw", data=np.frombuffer(b"abcd", "V2"))

    found, reader = read(tmp_path / "x.h5", fill)
    assert {s.name: s.dtype for s in reader.specs} == {"bf": "BF16", "colour": "I32", "marked": "BF16"}
    assert found["bf"] == np.array([0x3F80, 0xC000, 0x3F00], "<u2").tobytes()
    assert found["colour"] == np.array([0, 7, 0], "<i4").tobytes()
    assert str(reader.structure["dataset.long"]).startswith("unusual numbers [2] sha256:")
    assert str(reader.structure["dataset.raw"]).startswith("raw bytes [2] sha256:")


def test_values_never_written_are_the_fill_value(tmp_path: Path) -> None:
    def fill(file: Any) -> None:
        file.create_dataset("zero", (3, 2), "f4")
        file.create_dataset("seven", (5,), ">i4", fillvalue=7)
        file.create_dataset("sparse", (10, 10), ">f4", chunks=(4, 4), fillvalue=2.5)[8:, 8:] = 1

    found, _ = read(tmp_path / "x.h5", fill)
    sparse = np.full((10, 10), 2.5, "<f4")
    sparse[8:, 8:] = 1
    assert found == {"zero": bytes(24), "seven": np.full(5, 7, "<i4").tobytes(), "sparse": sparse.tobytes()}


def test_compact_storage_and_a_user_block(tmp_path: Path) -> None:
    def fill(file: Any) -> None:
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_layout(h5py.h5d.COMPACT)
        made = h5py.h5d.create(file.id, b"c", h5py.h5t.IEEE_F32BE, h5py.h5s.create_simple((3,)), settings)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(3, dtype="<f4"))
        file["plain"] = np.arange(4)
        file.create_dataset("chunked", data=np.arange(9), chunks=(2,))

    found, _ = read(tmp_path / "x.h5", fill, userblock_size=2048)
    assert found["c"] == np.arange(3, dtype="<f4").tobytes()
    assert found["plain"] == np.arange(4).tobytes()
    assert found["chunked"] == np.arange(9).tobytes()


def test_other_names_of_a_dataset_are_ties(tmp_path: Path) -> None:
    def fill(file: Any) -> None:
        file["b/w"] = np.arange(3.0)
        file["a.w"] = file["b/w"]
        file["z"] = file["b"]
        file["b/up"] = file["/"]
        file["soft"] = h5py.SoftLink("/b/w")
        file["b/near"] = h5py.SoftLink("w")
        file["nowhere"] = h5py.SoftLink("/etc/passwd")

    found, reader = read(tmp_path / "x.h5", fill)
    assert set(found) == {"a.w"}
    assert dict(reader.structure) == {
        "tied.b/w": "a.w", "tied.soft": "a.w", "tied.b/near": "a.w", "link.b/up": "", "link.z": "b",
        "link.nowhere": "etc/passwd",
    }  # fmt: skip


def test_text_and_records_are_facts_and_no_tensors(tmp_path: Path) -> None:
    def fill(last: str) -> Fill:
        def inner(file: Any) -> None:
            file["labels"] = ["cat", last]
            file["fixed"] = np.array([b"ab", b"c"])
            file["pairs"] = np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")])
            file.create_dataset("refs", (2,), dtype=h5py.ref_dtype)
            file.create_dataset("ragged", (2,), dtype=h5py.vlen_dtype("i4"))
            file.create_dataset("none", data=h5py.Empty("f4"))
            file["w"] = np.ones(2)

        return inner

    found, reader = read(tmp_path / "a.h5", fill("dog"))
    _, again = read(tmp_path / "b.h5", fill("dog"))
    _, changed = read(tmp_path / "c.h5", fill("cow"))
    assert set(found) == {"w"}
    assert reader.structure == again.structure
    assert reader.structure.keys() == changed.structure.keys()
    assert {key for key, value in reader.structure.items() if changed.structure[key] != value} == {"dataset.labels"}
    assert reader.structure["dataset.refs"] == "references [2]"
    assert reader.structure["dataset.ragged"] == "variable-length records [2]"
    assert reader.structure["dataset.none"] == "nothing []"
    assert "sha256" in str(reader.structure["dataset.pairs"])


def outside(tmp_path: Path) -> Path:
    return write(tmp_path / "outside.h5", lambda file: file.update({"w": np.arange(3.0)}))


def test_nothing_outside_the_file_is_read(tmp_path: Path) -> None:
    other = outside(tmp_path)

    def link(file: Any) -> None:
        file["ok"] = np.ones(3)
        file["far"] = h5py.ExternalLink(str(other), "/w")

    def storage(file: Any) -> None:
        file.create_dataset("far", (3,), "f8", external=[(str(other), 0, 24)])

    def virtual(file: Any) -> None:
        layout = h5py.VirtualLayout((3,), "f8")
        layout[:] = h5py.VirtualSource(str(other), "w", (3,))
        file.create_virtual_dataset("far", layout)

    assert "external link 'far'" in refuse(write(tmp_path / "l.h5", link))
    assert "external storage of 'far'" in refuse(write(tmp_path / "s.h5", storage))
    assert "virtual dataset 'far'" in refuse(write(tmp_path / "v.h5", virtual, libver="latest"))


def direct(filters: list[tuple[int, tuple[int, ...]]], chunk: int, data: bytes, mask: int = 0) -> Fill:
    def fill(file: Any) -> None:
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk((chunk,))
        for code, values in filters:
            settings.set_filter(code, h5py.h5z.FLAG_OPTIONAL, values)
        space = h5py.h5s.create_simple((chunk,))
        made = h5py.h5d.create(file.id, b"w", h5py.h5t.STD_U8LE, space, settings)
        made.write_direct_chunk((0,), data, mask)

    return fill


LZF_BOMB = b"\x00\x00" + b"\xe0\xff\x00" * 20_000


@pytest.mark.parametrize(
    ("finding", "fill"),
    [
        ("cannot hold", lambda f: f.create_dataset("w", (1 << 30, 1 << 20), "f8")),
        ("2^63", lambda f: f.create_dataset("w", (1 << 40, 1 << 22), "f8", chunks=(1, 1))),
        ("expected at most 250000", lambda f: f.create_dataset("w", (1 << 27,), "u1", chunks=(8,))),
        ("bytes of memory", lambda f: f.create_dataset("w", (4, 1 << 28), "u1", chunks=(4, 1 << 27))),
        ("cannot hold", lambda f: [f.create_dataset(f"w{i}", (1 << 25,), "f4") for i in range(10)]),
        ("more data|do not end", direct([(1, (6,))], 1000, zlib.compress(bytes(100_000)))),
        ("damaged chunk", direct([(1, (6,))], 1000, b"no zlib")),
        ("has a chunk of 500 bytes", direct([(1, (6,))], 1000, zlib.compress(bytes(500)))),
        ("more data", direct([(32000, ())], 100_000, LZF_BOMB)),
        ("not there yet", direct([(32000, ())], 1000, b"\xe0\x10\x05")),
        ("damaged chunk", direct([(32000, ())], 1000, b"\xe0")),
        ("filter 305", direct([(305, ())], 1000, bytes(10))),
        ("filter 6", lambda f: f.create_dataset("w", data=np.arange(9), chunks=(9,), scaleoffset=0)),
        ("checksum", direct([(3, ())], 1000, bytes(1000) + b"\x01\0\0\0")),
        ("expected a place", direct([], 1000, bytes(2000))),
    ],
)  # fmt: skip
def test_a_hostile_dataset_is_one_line(tmp_path: Path, finding: str, fill: Fill) -> None:
    message = refuse(write(tmp_path / "bad.h5", fill))
    assert any(part in message for part in finding.split("|")), message


def test_a_deep_or_crowded_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dvc_modelver.formats.hdf5_objects.MAX_OBJECTS", 50)
    assert "more than 50 objects" in refuse(
        write(tmp_path / "many.h5", lambda f: [f.create_group(str(i)) for i in range(60)])
    )
    monkeypatch.undo()
    assert "100 levels" in refuse(write(tmp_path / "deep.h5", lambda f: f.create_group("g/" * 120)))


def test_memory_is_bounded_by_a_band_of_chunks(tmp_path: Path) -> None:
    import tracemalloc

    path = write(
        tmp_path / "big.h5",
        lambda f: f.create_dataset("w", data=np.zeros((4096, 4096), "f4"), chunks=(64, 512), compression="gzip"),
    )
    with Hdf5Reader(path) as reader:
        tracemalloc.start()
        n_bytes = sum(len(piece) for piece in reader.iter_buffers(reader.specs[0], 1 << 20))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert n_bytes == 4096 * 4096 * 4
    assert peak < 8_000_000


def test_a_crash_of_the_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = outside(tmp_path)
    monkeypatch.setattr(hdf5_process, "list_objects", lambda _file, _name: os.abort())
    assert "crash" in refuse(path)
    monkeypatch.setattr(hdf5_process, "list_objects", lambda _file, _name: bytearray(1 << 40))
    assert "crash" in refuse(path)


def test_a_library_that_does_not_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = outside(tmp_path)

    def spin(_file: Any, _name: str) -> None:
        while True:
            pass

    def read_for_ever(file: Any, _name: str) -> None:
        while True:
            file._pages.clear()
            file.seek(0)
            file.read(4096)

    monkeypatch.setattr(hdf5_process, "MAX_CPU_S", 1)
    monkeypatch.setattr(hdf5_process, "list_objects", spin)
    assert "run out of time" in refuse(path)
    monkeypatch.setattr(hdf5_process, "MAX_LISTING_BYTES", 1 << 20)
    monkeypatch.setattr(hdf5_process, "list_objects", read_for_ever)
    assert "bytes read to be listed" in refuse(path)


def test_an_answer_that_is_nonsense_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = outside(tmp_path)
    for answer in (b"[]", b"{", b'{"groups": 1}', b'{"datasets": {"w": {}}, "groups": [], "layers": []}', b"[" * 9999):
        monkeypatch.setattr(hdf5_process, "_serve", lambda _end, _window, answer=answer: answer)
        assert "nonsense" in refuse(path)


def test_what_the_file_object_raises_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    class Failing(io.BytesIO):
        n_calls = 0

        def readinto(self, buffer: Any, /) -> int:
            self.n_calls += 1
            if self.n_calls > 2:
                raise ConnectionError("the network is down")
            return super().readinto(buffer)

    with pytest.raises(ConnectionError):
        Hdf5Reader(Failing(outside(tmp_path).read_bytes()), "x.h5")


def test_flipped_bytes_never_leave_the_error_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5_process, "MAX_CPU_S", 1)

    def fill(file: Any) -> None:
        for i in range(12):
            file[f"group/w{i}"] = np.arange(3.0)
        file["text"] = ["a", "b"]
        file.create_dataset("c", data=MATRIX, chunks=(3, 3), compression="gzip")

    n_refused = 0
    for libver in ("earliest", "latest"):
        data = write(tmp_path / f"{libver}.h5", fill, libver=libver).read_bytes()
        rng = random.Random(3)
        for _ in range(60):
            broken = bytearray(data)
            for _ in range(rng.choice([1, 4])):
                at = rng.randrange(len(broken) - 8)
                broken[at : at + 8] = rng.choice([b"\xff" * 8, bytes(8), rng.randbytes(8)])
            try:
                with Hdf5Reader(io.BytesIO(bytes(broken)), "x.h5") as reader:
                    values_of(reader, 1 << 16)
            except BadModelError as err:
                assert "\n" not in str(err)
                n_refused += 1
    assert n_refused > 10


def children() -> list[str]:
    """Give the processes this one has started, ended or not; a server of other tests may be among them."""
    return sorted(pid for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split())


def test_no_process_and_no_file_is_left_open(tmp_path: Path) -> None:
    path = outside(tmp_path)
    Hdf5Reader(path).close()
    before = sorted(os.listdir("/proc/self/fd")), children()
    Hdf5Reader(path).close()
    assert (sorted(os.listdir("/proc/self/fd")), children()) == before


def test_a_signature_far_behind_the_start_is_no_match(tmp_path: Path) -> None:
    data = outside(tmp_path).read_bytes()
    assert open_reader(io.BytesIO(b"#" * 700 + data), "x.data") is None
