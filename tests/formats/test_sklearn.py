from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dvc_modelver.errors import BadModelError, EnvironmentFailed
from dvc_modelver.formats import expansion, open_reader
from dvc_modelver.formats import sklearn as reader_module
from dvc_modelver.formats.base import Reader
from dvc_modelver.formats.sklearn import PickleReader
from tests.formats.contract import Arrays, ReaderContract, some_arrays, values_of

joblib: Any = pytest.importorskip("joblib")


def open_bytes(data: bytes, name: str = "m.pkl") -> Reader:
    reader = open_reader(io.BytesIO(data), name)
    assert reader is not None
    return reader


def read(data: bytes, name: str = "m.pkl") -> dict[str, bytes]:
    with open_bytes(data, name) as reader:
        return values_of(reader, 16)


def facts_of(value: Any, protocol: int = 4) -> dict[str, Any]:
    with open_bytes(pickle.dumps(value, protocol)) as reader:
        return dict(reader.structure)


def dump_joblib(value: Any, compress: Any = 0, protocol: int | None = None) -> bytes:
    stream = io.BytesIO()
    joblib.dump(value, stream, compress=compress, protocol=protocol)
    return stream.getvalue()


class TestPickle(ReaderContract):
    has_extents = False
    can_merge = False
    suffix = ".pkl"
    protocol = 4

    def write(self, path: Path, arrays: Arrays) -> None:
        path.write_bytes(pickle.dumps(arrays, self.protocol))


class TestPickle5(TestPickle):
    suffix = ".pickle"
    protocol = 5


class TestPickle2(TestPickle):
    protocol = 2


class TestPickle0(TestPickle):
    protocol = 0

    def test_the_content_decides_not_the_name(self, tmp_path: Path) -> None:
        path = self.file(tmp_path).rename(tmp_path / "renamed.data")
        assert open_reader(path) is None  # it has no mark

    def test_a_listing_reads_the_header_only(self, tmp_path: Path) -> None:
        with self.open(self.file(tmp_path, {"big": np.zeros(10_000)})) as reader:
            assert reader.specs[0].numel == 10_000  # values are part of the text


class TestJoblib(ReaderContract):
    has_extents = False
    can_merge = False
    suffix = ".joblib"
    compress: Any = 0

    def write(self, path: Path, arrays: Arrays) -> None:
        joblib.dump(arrays, path, compress=self.compress)


class TestZlibJoblib(TestJoblib):
    compress: Any = 3

    def test_the_content_decides_not_the_name(self, tmp_path: Path) -> None:
        path = self.file(tmp_path).rename(tmp_path / "renamed.data")
        assert open_reader(path) is None  # compressed data may be anything


class TestXzJoblib(TestZlibJoblib):
    compress = ("xz", 3)


# Arrays.

ODD_ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "fortran": np.asfortranarray(np.arange(24, dtype=np.float32).reshape(4, 6)),
    "fortran3": np.asfortranarray(np.arange(24, dtype=np.int16).reshape(2, 3, 4)),
    "transposed": np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2),
    "big": np.arange(6, dtype=">f4").reshape(2, 3),
    "big_fortran": np.asfortranarray(np.arange(6, dtype=">i8").reshape(2, 3)),
    "big_complex": (np.arange(3) + 2j).astype(">c16"),
    "complex": (np.arange(3) - 1j).astype(np.complex64),
    "sliced": np.arange(12.0)[::-2],
    "column": np.arange(12.0).reshape(3, 4)[:, 1],
    "half": np.arange(3, dtype=np.float16),
    "zero_d": np.array(7, np.uint16),
    "empty_fortran": np.zeros((3, 0, 2), order="F"),
    "repeated": np.broadcast_to(np.float64(3), (4, 5)),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("save", [pickle.dumps, lambda v, p: dump_joblib(v, 0, p)], ids=["pickle", "joblib"])
def test_any_order_of_bytes_and_axes_is_given_in_c_order(save: Callable[[Any, int], bytes], protocol: int) -> None:
    found = read(save(ODD_ARRAYS, protocol))
    for name, array in ODD_ARRAYS.items():
        assert found[name] == array.astype(array.dtype.newbyteorder("<")).tobytes(), name


@pytest.mark.parametrize("n_bytes", [1, 3, 7, 8, 1000])
def test_swapped_and_gathered_values_come_in_buffers_of_any_size(n_bytes: int) -> None:
    arrays = {"b": np.arange(100, dtype=">f8"), "f": np.asfortranarray(np.arange(100, dtype=">i4").reshape(4, 25))}
    with open_bytes(pickle.dumps(arrays)) as reader:
        found = values_of(reader, n_bytes)
    assert found == {k: v.astype(v.dtype.newbyteorder("<")).tobytes() for k, v in arrays.items()}


def test_a_read_only_array_and_a_subclass_are_arrays() -> None:
    frozen = np.arange(4.0)
    frozen.flags.writeable = False
    matrix = np.arange(4.0).reshape(2, 2).view(np.matrix)
    for data in (pickle.dumps([frozen, matrix], 5), dump_joblib([frozen, matrix])):
        assert read(data) == {"0": frozen.tobytes(), "1": matrix.tobytes()}


def test_a_masked_array_is_its_data_and_its_mask() -> None:
    masked = np.ma.array([1.0, 2.0, 3.0], mask=[False, True, False])
    found = read(pickle.dumps({"m": masked}))
    assert found == {"m.data": np.arange(1.0, 4.0).tobytes(), "m.mask": b"\0\1\0"}


def test_types_of_ml_dtypes_are_known() -> None:
    ml_dtypes: Any = pytest.importorskip("ml_dtypes")
    array = np.arange(5).astype(ml_dtypes.bfloat16)
    for protocol in (2, 4, 5):
        with open_bytes(pickle.dumps({"w": array}, protocol)) as reader:
            assert reader.specs[0].dtype == "BF16"
            assert values_of(reader) == {"w": array.tobytes()}


def test_each_field_of_a_structured_array_is_a_tensor() -> None:
    kind = np.dtype([("a", "<i4"), ("b", ">f8"), ("c", [("x", "u1"), ("y", "<f4")]), ("s", "S3"), ("v", "<f4", (2,))])
    array = np.zeros((3, 2), kind)
    array["a"], array["b"], array["c"]["y"] = np.arange(6).reshape(3, 2), 2.5, 1.5
    for ordered in (array, np.asfortranarray(array)):
        data = pickle.dumps({"t": ordered})
        found = read(data)
        assert sorted(found) == ["t.a", "t.b", "t.c.x", "t.c.y"]
        assert found["t.a"] == array["a"].tobytes()
        assert found["t.b"] == array["b"].astype("<f8").tobytes()
        assert found["t.c.y"] == array["c"]["y"].tobytes()
        with open_bytes(data) as reader:
            assert reader.structure["t.s"] == "|S3 [3, 2]"
            assert str(reader.structure["t.array"]).startswith("[3, 2] sha256:")


def test_arrays_of_text_and_of_objects_are_facts() -> None:
    value = {
        "text": np.array(["setosa", "virginica"]),
        "big": np.array(["a", "bc"], ">U2"),
        "names": np.array(["x", None, 3], object),
        "grid": np.array([["a", "b"], ["c", "d"]], object),
        "date": np.array(["2020-01-01"], "M8[D]"),
        "long": np.ones(2, np.longdouble),
        "many": np.array([str(i) for i in range(50_000)]),
    }
    for data in (*(pickle.dumps(value, p) for p in range(6)), dump_joblib(value), dump_joblib(value, 3)):
        with open_bytes(data) as reader:
            assert reader.specs == ()
            facts = reader.structure
        assert facts["text"] == '["setosa", "virginica"]'
        assert facts["big"] == '["a", "bc"]'
        assert facts["names"] == '["x", null, 3]'
        assert (facts["grid"], facts["grid.shape"]) == ('["a", "b", "c", "d"]', "[2, 2]")
        assert str(facts["date"]).startswith("<M8 [1] sha256:")
        assert str(facts["long"]).startswith("<f16 [2] sha256:")
        assert str(facts["many"]).startswith("<U5 [50000] sha256:")


def test_objects_in_an_array_are_walked() -> None:
    inner = np.empty((2, 2), object)
    inner[:] = [[np.arange(2), {"w": np.arange(3)}], [None, "x"]]
    for data in (pickle.dumps(inner), dump_joblib(inner)):
        assert sorted(read(data)) == ["0.0", "0.1.w"]


def test_numpy_scalars_and_types_are_values() -> None:
    value = {
        "f": np.float32(0.5), "i": np.int64(-3), "b": np.bool_(True), "s": np.str_("ab"), "c": np.complex128(1 + 2j),
        "t": np.dtype("f4"), "k": np.float64, np.int64(7): "key", "h": np.float16(1.5), "big": np.array([2], ">i4")[0],
    }  # fmt: skip
    for protocol in range(6):
        facts = facts_of(value, protocol)
        assert {k: facts[k] for k in "fibsh"} == {"f": 0.5, "i": -3, "b": True, "s": "ab", "h": 1.5}
        assert (facts["c"], facts["t"], facts["7"], facts["big"]) == ("(1+2j)", "numpy.dtype('<f4')", "key", 2)
        assert facts["k"] == "numpy.float64"


@pytest.mark.parametrize("make", [np.random.RandomState, np.random.default_rng, np.random.MT19937])
def test_a_random_state_is_a_digest(make: Callable[[int], Any]) -> None:
    one, two = make(0), make(1)
    found = {str(facts_of({"rng": one}, p)["rng"]) for p in (2, 3, 4, 5)}
    with open_bytes(dump_joblib({"rng": one})) as reader:
        assert reader.specs == ()
        found.add(str(reader.structure["rng"]))
    assert len(found) == 1
    assert "sha256:" in found.pop()
    assert facts_of({"rng": one}) != facts_of({"rng": two})


def test_an_array_of_two_names_is_listed_once() -> None:
    w = np.arange(3.0)
    with open_bytes(pickle.dumps({"z": w, "a": {"w": w}})) as reader:
        assert [spec.name for spec in reader.specs] == ["a.w"]
        assert reader.structure["tied.z"] == "a.w"


def test_equal_small_arrays_are_two_tensors() -> None:
    for protocol in range(6):
        assert sorted(read(pickle.dumps({"a": np.array([True]), "b": np.array([True])}, protocol))) == ["a", "b"]


def test_a_bare_array_and_pickles_in_a_row_have_names() -> None:
    w = np.arange(3.0)
    assert read(pickle.dumps(w)) == {"tensor": w.tobytes()}
    assert read(pickle.dumps(w) + pickle.dumps({"b": w})) == {"0": w.tobytes(), "1.b": w.tobytes()}


def test_a_file_of_arrays_alone_has_no_facts() -> None:
    with open_bytes(pickle.dumps({"w": np.arange(2)})) as reader:
        assert dict(reader.structure) == {}


def test_a_pickle_without_arrays_opens() -> None:
    with open_bytes(pickle.dumps({"lr": 0.1, "layers": [1, 2], "nested": {"on": True}})) as reader:
        assert reader.specs == ()
        assert dict(reader.structure) == {"lr": 0.1, "layers": "[1, 2]", "nested.on": True}


def test_long_bytes_and_texts_are_digests() -> None:
    for n_bytes in (1_000, 100_000):
        facts = facts_of({"b": bytes(n_bytes), "t": "x" * n_bytes})
        assert str(facts["b"]).startswith("sha256:") and str(facts["t"]).startswith("sha256:")
        assert facts != facts_of({"b": bytes(n_bytes - 1) + b"\1", "t": "x" * n_bytes})
        assert facts != facts_of({"b": bytes(n_bytes), "t": "x" * (n_bytes - 1) + "y"})


def test_a_vocabulary_is_a_digest_in_any_order() -> None:
    words = {f"w{i}": i for i in range(500)}
    facts = facts_of({"v": words})
    assert list(facts) == ["v"]
    assert facts == facts_of({"v": dict(reversed(words.items()))})
    assert facts != facts_of({"v": {**words, "w3": 4}})


def test_large_arrays_of_old_protocols_are_decoded() -> None:
    array = np.random.default_rng(0).standard_normal(40_000).reshape(200, 200)
    for protocol in (1, 2):
        found = read(pickle.dumps({"c": array, "f": np.asfortranarray(array)}, protocol))
        assert found == {"c": array.tobytes(), "f": array.tobytes()}


def test_texts_of_python_2_are_bytes() -> None:
    array = np.arange(3, dtype="<i8")
    data = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x03\x85"
        b"cnumpy\ndtype\nU\x02i8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x18"
        + array.tobytes() + b"tb."
    )  # fmt: skip
    assert read(data) == {"tensor": array.tobytes()}


def test_joblib_without_padding_is_read() -> None:
    # What joblib 1.1 and before wrote.
    class Unpadded(joblib.numpy_pickle.NumpyPickler):  # type: ignore[misc]
        def _create_array_wrapper(self, array: Any) -> Any:
            wrapper = super()._create_array_wrapper(array)
            del wrapper.numpy_array_alignment_bytes
            return wrapper

    stream = io.BytesIO()
    arrays = {"a": np.arange(3.0), "b": np.asfortranarray(np.arange(6.0).reshape(2, 3))}
    Unpadded(stream).dump(arrays)
    assert read(stream.getvalue()) == {name: array.tobytes() for name, array in arrays.items()}


def test_files_of_old_versions_of_joblib_are_read() -> None:
    folder = Path(joblib.__file__).parent / "test" / "data"
    paths = [*folder.glob("joblib_0.10*"), *folder.glob("joblib_0.11*")]
    if not paths:
        pytest.skip("this joblib came without its test data")
    for path in paths:
        with open_bytes(path.read_bytes(), "m.joblib") as reader:
            assert values_of(reader) == {
                "0": np.arange(5, dtype="<i8").tobytes(),
                "1": np.arange(5, dtype="<f8").tobytes(),
                "4": np.arange(3, dtype="<i8").tobytes(),
            }, path.name
            assert reader.structure["5"] == "C'est l'\xe9t\xe9 !"
            assert {k: reader.structure[k] for k in ("2.0", "2.1", "2.2.a")} == {"2.0": 1, "2.1": "abc", "2.2.a": 1}
    for path in folder.glob("joblib_0.9*.gz"):
        with pytest.raises(BadModelError, match="before 0"):
            open_bytes(path.read_bytes(), "m.joblib")


# Containers.


@pytest.mark.parametrize("method", ["zlib", "gzip", "bz2", "xz", "lzma"])
def test_every_compression_of_joblib_is_read(method: str, tmp_path: Path) -> None:
    arrays = some_arrays()
    path = tmp_path / "m.joblib"
    joblib.dump(arrays, path, compress=(method, 3))
    with PickleReader(path) as reader:
        assert values_of(reader) == {name: array.tobytes() for name, array in arrays.items()}


def test_lz4_without_its_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lz4", None)
    monkeypatch.setitem(__import__("sys").modules, "lz4.frame", None)
    with pytest.raises(BadModelError, match="needs the package lz4"):
        open_bytes(b"\x04\x22\x4d\x18" + b"\0" * 20)


def test_lz4_is_read() -> None:
    pytest.importorskip("lz4")
    arrays = some_arrays()
    assert read(dump_joblib(arrays, ("lz4", 3))) == {name: array.tobytes() for name, array in arrays.items()}


def test_what_is_expanded_goes_to_disk_beyond_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expansion, "MAX_IN_MEMORY_BYTES", 1000)
    array = np.random.default_rng(0).standard_normal(10_000)
    assert read(dump_joblib({"w": array}, 1)) == {"w": array.tobytes()}


def test_a_full_disk_is_the_fault_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(expansion, "MAX_IN_MEMORY_BYTES", 1000)
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(EnvironmentFailed, match="No space left"):
        open_bytes(dump_joblib({"w": np.arange(1000)}, 1))


@pytest.mark.parametrize("compress", [zlib.compress, gzip.compress, bz2.compress, lzma.compress])
def test_a_bomb_is_refused_in_bounded_memory(
    compress: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tracemalloc

    monkeypatch.setattr(expansion, "MIN_LIMIT_BYTES", 16 << 20)
    bomb = compress(pickle.dumps(np.zeros(8 << 20)))
    tracemalloc.start()
    with pytest.raises(BadModelError, match="expands to over"):
        open_bytes(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60_000_000


@pytest.mark.parametrize("method", ["zlib", "gzip", "bz2", "xz", "lzma"])
def test_damaged_compression_is_one_line(method: str) -> None:
    good = dump_joblib({"w": np.random.default_rng(0).standard_normal(200)}, (method, 3))
    for at in range(0, len(good), 7):
        broken = bytearray(good)
        broken[at] ^= 0x55
        for data in (bytes(broken), good[:at] or b"x", good + b"tail"):
            try:
                read(data)
            except BadModelError as err:
                assert "\n" not in str(err)


def test_a_window_of_lzma_is_bounded() -> None:
    header = b"\x5d" + struct.pack("<IQ", 0xFFFF0000, 0xFFFFFFFFFFFFFFFF)
    with pytest.raises(BadModelError, match="lzma"):
        open_bytes(header + b"\0" * 100)


def test_the_streams_of_torch_are_not_ours(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    path = tmp_path / "m.data"
    torch.save({"w": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    with path.open("rb") as file:
        assert not reader_module.matches(file)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x80", b"\x80\x04", b"\x80\x04\x95\xff\xff\0\0\0\0\0\0N.", b"\x80\x02\0\0\0\0\0\0{.", b"\x80\x06N.", b"N."],
)
def test_what_only_resembles_a_pickle_is_not_claimed(data: bytes) -> None:
    assert open_reader(io.BytesIO(data), "m.data") is None


# Hostile files.


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_run(tmp_path: Path, protocol: int) -> None:
    owned = tmp_path / "owned"
    objects = np.array([Harm(owned)], object)
    for data in (pickle.dumps([Harm(owned)], protocol), dump_joblib({"o": objects, "h": Harm(owned)}, 0, protocol)):
        with open_bytes(data) as reader:
            assert any("system" in str(fact) for fact in reader.structure.values())
        assert not owned.exists()


def array_pickle(shape: bytes, code: bytes = b"f8", data: bytes = b"C\x08" + bytes(8), state: bytes = b"NNN") -> bytes:
    return (
        b"\x80\x03cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01" + shape
        + b"cnumpy\ndtype\nX" + struct.pack("<I", len(code)) + code
        + b"K\x00K\x01\x87R(K\x03X\x01\x00\x00\x00<" + state + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + data + b"tb."
    )  # fmt: skip


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


FIELD = b"cnumpy\ndtype\nX\x02\0\0\0f8K\x00K\x01\x87R"


def test_the_table_of_hostile_arrays_begins_with_a_good_one() -> None:
    assert read(array_pickle(b"K\x01\x85")) == {"tensor": bytes(8)}
    assert read(
        array_pickle(b"K\x01\x85", b"V8", state=b"N" + text("a") + b"\x85}" + text("a") + FIELD + b"K\0\x86s")
    ) == {"a": bytes(8)}


@pytest.mark.parametrize(
    "data",
    [
        array_pickle(b"K\x02\x85"),
        array_pickle(b"J\xff\xff\xff\xff\x85"),
        array_pickle(b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85"),
        array_pickle(b"(" + b"\x8a\x08\0\0\0\0\0\0\0\x40" * 8 + b"t"),
        array_pickle(b"(" + b"K\x01" * 65 + b"t"),
        array_pickle(b"N"),
        array_pickle(b"X\x01\0\0\0a\x85"),
        array_pickle(b"G" + bytes(8) + b"\x85"),
        array_pickle(b"K\x01\x85", data=b"N"),
        array_pickle(b"K\x01\x85", data=b"\x97"),
        array_pickle(b"K\x01\x85", data=b"]"),
        array_pickle(b"K\x01\x85", b"O8"),
        array_pickle(b"K\x02\x85", b"O8", b"]Na"),
        array_pickle(b"K\x01\x85", b"U9999999999"),
        array_pickle(b"K\x01\x85", b"V8", state=b"NK\x01}"),
        array_pickle(b"K\x01\x85", b"V8", state=b"N" + text("a") + b"\x85}"),
        array_pickle(b"K\x01\x85", b"V8", state=b"N" + text("a") + b"\x85}" + text("a") + FIELD + b"K\x01\x86s"),
        array_pickle(
            b"K\x01\x85", b"V8", state=b"N" + text("a") + b"\x85}" + text("a") + FIELD + b"J\xff\xff\xff\xff\x86s"
        ),
        array_pickle(b"K\x01\x85", b"V8", state=b"N" + text("a") + b"\x85}" + text("a") + b"NN\x86s"),
        array_pickle(b"K\x01\x85", b"V8", state=b"N(" + text("a") * 2000 + b"t}"),
        b"\x80\x03]" + b"]" * 500 + b"a" * 500 + b".",
        b"\x80\x03" + b"}X\xff\xff\xff\x7f",
        b"\x80\x03}X\x02\0\0\0\xed\xa0K\x01s.",
        b"\x80\x03}X\x03\0\0\0\xed\xa0\x80" + array_pickle(b"K\x01\x85")[2:-1] + b"s.",
        b"\x80\x04\x95" + b"\xff" * 8 + b".",
        b"\x80\x03.",
        b"\x80\x03cos\nsystem\nX\x02\0\0\0ls\x85R",
        b"\x80\x03cjoblib.numpy_pickle\nNDArrayWrapper\n)\x81}b.",
        b"\x80\x03cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81}b.",
        dump_joblib(np.arange(3)).replace(b"\x8c\x05dtype\x94\x93", b"\x8c\x05dty\np\x94\x93"),
        b"ZF0x10                " + zlib.compress(b"x"),
    ],
)
def test_a_hostile_pickle_is_one_line(data: bytes) -> None:
    with pytest.raises(BadModelError) as caught:
        read(data)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_an_array_beside_the_opcodes_that_is_not_there_is_one_line() -> None:
    good = dump_joblib(np.arange(4.0))
    shape = b"K\x04\x85"
    assert good.count(shape) == 1
    for bad in (b"K\x05\x85", b"J\xff\xff\xff\x7f\x85", b"\x8a\x08\0\0\0\0\0\0\0\x7f\x85", b"J\xff\xff\xff\xff\x85"):
        with pytest.raises(BadModelError):
            read(good.replace(shape, bad))


def test_shared_members_do_not_multiply() -> None:
    value: Any = [np.arange(2)]
    for _ in range(60):
        value = [value, value]
    with open_bytes(pickle.dumps(value)) as reader:
        assert len(reader.specs) == 1


def test_an_object_that_contains_itself_ends() -> None:
    value: Any = {"w": np.arange(2)}
    value["self"] = value
    assert list(read(pickle.dumps(value))) == ["w"]
    array = np.empty(2, object)
    array[:] = [array, np.arange(2)]
    for data in (pickle.dumps(array), dump_joblib(array)):
        assert list(read(data)) == ["1"]


def test_records_that_claim_one_array_again_and_again_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "MAX_REPEATED_BYTES", 0)
    data = bytes(4096)
    one = array_pickle(b"M\x00\x02\x85", data=b"h\x00")[2:-1]
    many = b"\x80\x03B" + struct.pack("<I", len(data)) + data + b"q\x000](" + one * 40 + b"e."
    with pytest.raises(BadModelError, match="again and again"):
        read(many)


def test_boosters_of_one_text_are_refused() -> None:
    one = b"clightgbm.basic\nBooster\n)\x81}" + text("_handle") + b"h\x00sb"
    handle = text("x" * 4096) + b"q\x000"
    assert list(read(b"\x80\x03" + handle + one + b".")) == []
    with pytest.raises(BadModelError, match="again and again"):
        read(b"\x80\x03" + handle + b"](" + one * 40 + b"e.")


def test_any_changed_byte_is_read_or_is_one_line() -> None:
    value = {
        "w": np.arange(3.0),
        "t": np.zeros(2, [("a", "f4"), ("b", "i2")]),
        "s": np.array(["a"]),
        "n": np.float32(1),
    }
    for good in (pickle.dumps(value, 4), dump_joblib(value)):
        for at in range(len(good)):
            for flip in (0x01, 0x80, 0xFF):
                broken = bytearray(good)
                broken[at] ^= flip
                try:
                    read(bytes(broken))
                except BadModelError as err:
                    assert "\n" not in str(err)
