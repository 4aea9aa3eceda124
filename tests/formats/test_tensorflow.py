from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
import sys
import tracemalloc
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from dvc_modelver.errors import BadModelError
from dvc_modelver.fingerprint import fingerprint
from dvc_modelver.fingerprint.digest import parameters_digest
from dvc_modelver.formats import LocalFolder, open_reader
from dvc_modelver.formats.base import Reader
from dvc_modelver.formats.saved_model import open_folder
from dvc_modelver.formats.sstable import crc32c, mask, unmask
from dvc_modelver.formats.tensorflow import CheckpointReader
from dvc_modelver.formats.tensorflow_names import name_variables
from dvc_modelver.tensors import find_role
from tests.formats.checkpoints import (
    block,
    checkpoint,
    entry,
    header,
    message,
    number,
    sealed,
    table,
    varint,
    write_checkpoint,
)
from tests.formats.contract import Arrays, CountingFile, ReaderContract, values_of

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


class TestCheckpoint(ReaderContract):
    has_extents = False
    can_merge = False
    suffix = ".index"

    def write(self, path: Path, arrays: Arrays) -> None:
        write_checkpoint(path, arrays)

    def test_a_side_that_holds_the_whole_merge_is_copied(self, tmp_path: Path) -> None:
        with pytest.raises(BadModelError, match="could not be read back"):
            super().test_a_side_that_holds_the_whole_merge_is_copied(tmp_path)
        assert not (tmp_path / "merged.index").exists()

    def test_an_open_file_reads_like_a_path(self, tmp_path: Path) -> None:
        path = self.file(tmp_path)
        with path.open("rb") as file:
            reader = open_reader(file, path.name, LocalFolder(tmp_path))
            assert reader is not None
            with reader:
                assert values_of(reader) == {k: v.tobytes() for k, v in self.arrays().items()}

    def test_the_content_decides_not_the_name(self, tmp_path: Path) -> None:
        path = self.file(tmp_path)
        with pytest.raises(BadModelError, match="its data files are called after it"):
            open_reader(path.rename(tmp_path / "renamed.data"))

    def test_a_listing_reads_the_header_only(self, tmp_path: Path) -> None:
        path = self.file(tmp_path, {"big": np.zeros(1_000_000, np.float32)})
        files: list[CountingFile] = []

        class Counted(LocalFolder):
            def open(self, name: str) -> io.BytesIO:
                files.append(CountingFile((tmp_path / name).read_bytes()))
                return files[-1]

        index = CountingFile(path.read_bytes())
        with CheckpointReader(index, path.name, Counted(tmp_path)) as reader:
            assert reader.specs[0].numel == 1_000_000
        assert index.n_read < 2 * len(index.getvalue())
        assert [file.n_read for file in files] == [0]

    def test_a_file_cut_anywhere_is_one_line(self, tmp_path: Path) -> None:
        path = self.file(tmp_path, {"w": np.arange(8, dtype=np.float32)})
        for file in sorted(tmp_path.iterdir()):
            whole = file.read_bytes()
            for cut in range(len(whole)):
                file.write_bytes(whole[:cut])
                with pytest.raises(BadModelError) as caught, self.open(path) as reader:
                    values_of(reader)
                assert "\n" not in str(caught.value)
            file.write_bytes(whole)

    def test_an_index_without_a_stem_has_data_files_without_one(self, tmp_path: Path) -> None:
        path = tmp_path / ".index"
        self.write(path, self.arrays())
        assert (tmp_path / ".data-00000-of-00001").is_file()
        with self.open(path) as reader:
            assert values_of(reader) == {k: v.tobytes() for k, v in self.arrays().items()}

    def test_data_files_are_found_in_the_folder_of_a_model(self, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        path = self.file(tmp_path / "run")
        reader = CheckpointReader(io.BytesIO(path.read_bytes()), "models/m/run/model.index", LocalFolder(tmp_path))
        with reader:
            assert len(values_of(reader)) == len(self.arrays())

    @pytest.mark.parametrize("folder", [True, False])
    def test_without_its_data_files_the_folder_is_asked_for(self, tmp_path: Path, folder: bool) -> None:
        data = self.file(tmp_path).read_bytes()
        (tmp_path / "model.data-00000-of-00001").unlink()
        beside = LocalFolder(tmp_path) if folder else None
        with pytest.raises(BadModelError, match="beside the index") as caught:
            open_reader(io.BytesIO(data), "model.index", beside)
        assert "track the folder" in caught.value.hint


def test_a_data_file_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    write_checkpoint(tmp_path / "m.index", {"w": np.ones(3, np.float32)})
    shutil.move(tmp_path / "m.index", tmp_path / "inside")
    (tmp_path / "inside" / "m.data-00000-of-00001").symlink_to(tmp_path / "m.data-00000-of-00001")
    with pytest.raises(BadModelError, match="beside the index"):
        open_reader(tmp_path / "inside" / "m.index")


def test_checksums_are_those_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert unmask(mask(0x12345678)) == 0x12345678


# What TensorFlow writes, in a process of its own


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("tensorflow") is None or find_spec("keras") is None:
        pytest.skip("needs tensorflow and keras")
    folder = tmp_path_factory.mktemp("tensorflow")
    script = Path(__file__).with_name("tensorflow_models.py")
    subprocess.run([sys.executable, str(script), str(folder)], check=True, capture_output=True)
    return folder


def said(models: Path, index: str) -> dict[str, tuple[tuple[int, ...], bytes]]:
    found = json.loads((models / "found.json").read_text())[index]
    return {key.removesuffix(VALUE): (tuple(shape), bytes.fromhex(data)) for key, (shape, data) in found.items()}


def read(reader: Reader) -> dict[str, tuple[tuple[int, ...], bytes]]:
    shapes = {spec.name: spec.shape for spec in reader.specs}
    return {name: (shapes[name], data) for name, data in values_of(reader, 24).items()}


@pytest.mark.parametrize("index", ["module.index", "untrained.index", "shards.index"])
def test_names_shapes_and_values_are_those_of_tensorflow(models: Path, index: str) -> None:
    if not (models / index).exists():
        pytest.skip("this TensorFlow writes no sharded checkpoints on one machine")
    reader = open_reader(models / index)
    assert reader is not None
    with reader:
        found = read(reader)
        assert found.pop("optimizer.save_counter", None) is None
        assert found == said(models, index)
        assert reader.framework == "tensorflow"
        assert all(spec.role == "parameter" for spec in reader.specs)
        assert str(reader.structure["_CHECKPOINTABLE_OBJECT_GRAPH"]).startswith("crc32c:")


def test_every_dtype_has_its_name(models: Path) -> None:
    with CheckpointReader(models / "module.index") as reader:
        dtypes = {spec.name.removeprefix("module/"): spec.dtype for spec in reader.specs}
        assert "module/text" in reader.structure
    assert dtypes == {
        "floats/float16": "F16", "floats/float64": "F64", "floats/bfloat16": "BF16", "floats/complex64": "C64",
        "ints/0": "I8", "ints/1": "I16", "ints/2": "I32", "ints/3": "I64", "ints/4": "U8", "ints/5": "U16",
        "ints/6": "U32", "ints/7": "U64", "flag": "BOOL", "empty": "F32", "weight": "F32",
    }  # fmt: skip


def test_variables_that_were_split_are_read_whole(models: Path) -> None:
    with CheckpointReader(models / "named.index") as reader:
        found = read(reader)
    assert {name.removeprefix("optimizer."): value for name, value in found.items()} == said(models, "named.index")
    assert {name for name in found if find_role(name) == "parameter"} == {"tall", "wide", "dense/kernel"}


def test_a_trained_model_has_the_names_of_an_untrained_one(models: Path) -> None:
    with CheckpointReader(models / "untrained.index") as reader:
        before = {spec.name: spec.shape for spec in reader.specs}
    with CheckpointReader(models / "trained-1.index") as reader:
        after = {spec.name: spec.shape for spec in reader.specs if spec.role == "parameter"}
        found = read(reader)
    assert after == before
    theirs = said(models, "trained-1.index")
    assert sorted(found.values()) == sorted(theirs.values())
    assert found["net/_functional/_operations/1/bias"] == theirs["opt/_trainable_variables/1"]
    assert found["optimizer.opt/_iterations"] == theirs["opt/_iterations"]
    assert found["optimizer.save_counter"] == theirs["save_counter"]


def test_slots_are_the_optimizer(models: Path) -> None:
    with CheckpointReader(models / "slots.index") as reader:
        roles = {spec.name: spec.role for spec in reader.specs}
    assert roles == {
        "x": "parameter",
        "optimizer.x/.OPTIMIZER_SLOT/sgd/m": "optimizer",
        "optimizer.x/.OPTIMIZER_SLOT/sgd/v": "optimizer",
        "optimizer.sgd/beta1_power": "optimizer",
        "optimizer.sgd/beta2_power": "optimizer",
    }


def test_a_saved_model_is_its_variables_and_signatures(models: Path) -> None:
    with open_folder(LocalFolder(models / "module_model"), "module_model") as reader:
        assert read(reader) == said(models, "module_model/variables/variables.index")
        facts = dict(reader.structure)
    assert facts["signatures.serving_default.inputs.x"] == "F32 [?, 2]"
    assert facts["signatures.serving_default.outputs.output_0"] == "F32 [?, 3]"
    assert facts["tags"] == '["serve"]'
    assert facts["graph.bytes"] == (models / "module_model" / "saved_model.pb").stat().st_size
    assert str(facts["graph.digest"]).startswith("sha256:")
    assert "text" in facts


def test_a_saved_keras_model_has_parameters(models: Path) -> None:
    with open_folder(LocalFolder(models / "keras_model"), "keras_model") as reader:
        parameters = [spec.name for spec in reader.specs if spec.role == "parameter"]
        assert len(parameters) == 8
        assert parameters_digest(fingerprint(reader)).startswith("params-blake3-1:")


def test_a_saved_model_without_variables_has_no_tensors(models: Path, tmp_path: Path) -> None:
    shutil.copy(models / "module_model" / "saved_model.pb", tmp_path)
    with open_folder(LocalFolder(tmp_path), "m") as reader:
        assert reader.specs == ()
        assert "graph.digest" in reader.structure


def test_any_byte_of_a_graph_may_be_wrong(models: Path) -> None:
    folder = LocalFolder(models / "keras_model")
    graph = (folder.path / "saved_model.pb").read_bytes()
    variables = {name: (folder.path / name).read_bytes() for name in folder.names()}
    n_refused = 0

    class Broken(LocalFolder):
        def open(self, name: str) -> io.BytesIO:
            return io.BytesIO(variables[name])

    for i in [*range(0, 40), *range(len(graph) - 400, len(graph), 7)]:
        variables["saved_model.pb"] = graph[:i] + bytes([graph[i] ^ 0xFF]) + graph[i + 1 :]
        try:
            open_folder(Broken(folder.path), "m").close()
        except BadModelError as err:
            assert "\n" not in str(err)
            n_refused += 1
    assert n_refused > 10


# Names


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"a" + VALUE: "a", "b": "b"}, None),
        ({"a" + VALUE: "a" + VALUE, "a": "a"}, None),
        ({"w": "w", "w/Adam": "optimizer.w/Adam", "w/Adam_1": "optimizer.w/Adam_1"}, None),
        ({"w/Adam": "w/Adam", "v/ExponentialMovingAverage": "v/ExponentialMovingAverage", "v": "v"}, None),
        ({"w": "w", "w/adam_m": "optimizer.w/adam_m", "global_step": "optimizer.global_step"}, None),
        ({"o/iter": "optimizer.o/iter", "o/learning_rate": "optimizer.o/learning_rate", "o/x": "optimizer.o/x"}, None),
        ({"o/iter": "o/iter", "o/x": "o/x"}, None),
        ({"o/_iterations": "optimizer.o/_iterations", "o/_trainable_variables/0": "net/0"}, {"o/_trainable_variables/0": "net/0"}),
        ({"o/_iterations": "optimizer.o/_iterations", "o/_trainable_variables/0": "_trainable_variables/0"}, None),
        ({"n/_trainable_variables/0": "n/_trainable_variables/0"}, None),
        ({"optimizer/_iterations": "optimizer/_iterations", "optimizer/_variables/1": "optimizer/_variables/1"}, None),
        ({"save_counter": "save_counter", "optimizer.save_counter": "optimizer.save_counter"}, None),
    ],
)  # fmt: skip
def test_names_by_keys(keys: dict[str, str], expected: dict[str, str] | None) -> None:
    assert name_variables(keys, expected or {}) == keys


# Hostile files

ONE = (b"w", entry(1, (2,), 0, 8))


def shaped(*tiles: tuple[tuple[int, int], ...] | None, shape: tuple[int, ...] = (2, 3)) -> bytes:
    return entry(1, shape, 0, 0, slices=[tile or (None,) * len(shape) for tile in tiles])


def slice_key(*numbers: int) -> bytes:
    return b"\0w\0\1\1\2" + bytes(0x80 ^ (n & 0xFF) for n in numbers)


LEFT = (slice_key(0, 2, 0, 1), entry(1, (2, 1), 0, 8))
RIGHT = (slice_key(0, 2, 1, 2), entry(1, (2, 2), 8, 16))
TILES = (((0, 2), (0, 1)), ((0, 2), (1, 2)))


def test_what_the_hostile_files_are_made_from_is_read() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    stored = values[:, :1].tobytes() + values[:, 1:].tobytes()
    assert opened(checkpoint(LEFT, RIGHT, (b"w", shaped(*TILES))), stored) == {"w": values.tobytes()}
    assert opened(checkpoint(ONE), stored) == {"w": stored[:8]}


class Memory(LocalFolder):
    def __init__(self, data: bytes) -> None:
        super().__init__(Path("memory"))
        self.data = data

    def names(self) -> list[str]:
        return ["m.data-00000-of-00001"]

    def open(self, name: str) -> io.BytesIO:
        if name not in self.names():
            raise BadModelError("no such file")
        return io.BytesIO(self.data)


def opened(index: bytes, data: bytes) -> dict[str, bytes]:
    with CheckpointReader(io.BytesIO(index), "m.index", Memory(data)) as reader:
        return values_of(reader)


HOSTILE = {
    "no magic": checkpoint(ONE)[:-1] + b"\0",
    "footer only": checkpoint(ONE)[-48:],
    "a footer of unfinished numbers": checkpoint(ONE)[:-48] + b"\xff" * 40 + checkpoint(ONE)[-8:],
    "an index of 2^60 bytes": checkpoint(ONE)[:-48] + (b"\0\0\0" + varint(2**60)).ljust(40, b"\0") + checkpoint(ONE)[-8:],
    "an index beyond the file": checkpoint(ONE)[:-48] + (b"\0\0" + varint(2**40) + b"\x08").ljust(40, b"\0") + checkpoint(ONE)[-8:],
    "snappy": table(block([(b"", header()), ONE], kind=1)),
    "a block of type 7": table(block([(b"", header()), ONE], kind=7)),
    "a wrong checksum": b"\0\0\7" + checkpoint(ONE)[3:],
    "one block named twice": table(
        block([(b"", header())]), index=block([(b"a", varint(0) + varint(17)), (b"b", varint(0) + varint(17))])
    ),
    "a block of 2^40 bytes": table(block([(b"", header())]), index=block([(b"a", varint(0) + varint(2**40))])),
    "a handle without a length": table(block([(b"", header())]), index=block([(b"a", varint(0))])),
    "2^32 - 1 restarts": table(sealed(b"\0\0\0" + b"\xff" * 4)),
    "an entry beyond its block": table(sealed(b"\0\x7f\x7fabc" + bytes(4) + b"\1\0\0\0")),
    "a key that repeats what is not there": table(sealed(b"\5\0\0" + bytes(4) + b"\1\0\0\0")),
    "a value of 2^62 bytes": table(sealed(b"\0\0" + varint(2**62) + bytes(4) + b"\1\0\0\0")),
    "keys out of order": checkpoint((b"x", entry()), (b"w", entry(offset=4))),
    "a key twice": table(block([(b"", header()), ONE]), block([ONE])),
    "a key of 100,000 bytes": checkpoint((b"w" * 100_000, entry())),
    "a key that is not UTF-8": checkpoint((b"\xc3\x28", entry())),
    "no header": table(block([ONE])),
    "nothing": table(block([])),
    "no data files": checkpoint(ONE, first=message(3, b"")),
    "2^40 data files": checkpoint(ONE, first=header(2**40)),
    "big-endian": checkpoint(ONE, first=header(1, 1)),
    "a damaged message": checkpoint((b"w", b"\xff\xff")),
    "a shape beyond its message": checkpoint((b"w", b"\x12\x7f")),
    "dtype 0": checkpoint((b"w", entry(0))),
    "4-bit integers": checkpoint((b"w", entry(29))),
    "dtype 2^60": checkpoint((b"w", entry(2**60))),
    "data file 1 of 1": checkpoint((b"w", entry(shard=1))),
    "an axis of -1": checkpoint((b"w", entry(shape=(2**64 - 1,)))),
    "a product of 2^64": checkpoint((b"w", entry(shape=(2**32, 2**32)))),
    "300 axes": checkpoint((b"w", entry(shape=(1,) * 300))),
    "bytes for another shape": checkpoint((b"w", entry(shape=(3,), n_bytes=8))),
    "an offset of 2^63": checkpoint((b"w", entry(offset=2**63))),
    "an offset beyond the file": checkpoint((b"w", entry(offset=22))),
    "variables that overlap": checkpoint((b"v", entry()), (b"w", entry(offset=2))),
    "a string beyond the file": checkpoint((b"w", entry(7, n_bytes=2**40))),
    "a slice of nothing": checkpoint(LEFT),
    "a slice that is missing": checkpoint(LEFT, (b"w", shaped(*TILES))),
    "a slice twice": checkpoint(LEFT, RIGHT, (b"w", shaped(*TILES, TILES[0]))),
    "slices that leave a gap": checkpoint(LEFT, (b"w", shaped(TILES[0]))),
    "a slice outside": checkpoint(LEFT, RIGHT, (b"w", shaped(*TILES, shape=(2, 2)))),
    "slices of 3 axes": checkpoint(LEFT, RIGHT, (b"w", shaped(*TILES, shape=(2, 3, 1)))),
    "slices of a scalar": checkpoint((b"w", entry(slices=[()]))),
    "slices that overlap": checkpoint(
        (slice_key(0, 1, 0, 3), entry(1, (1, 3), 0, 12)),
        (slice_key(0, 2, 0, 1), entry(1, (2, 1), 12, 8)),
        (slice_key(1, 1, 0, 1), entry(1, (1, 1), 20, 4)),
        (b"w", shaped(((0, 1), (0, 3)), ((0, 2), (0, 1)), ((1, 1), (0, 1)))),
    ),
    "strings in slices": checkpoint((slice_key(-0, -1), entry(7)), (b"w", entry(7, (2,), slices=[(None,)]))),
    "an object graph that is none": checkpoint(
        (b"_CHECKPOINTABLE_OBJECT_GRAPH", entry(7, (), 0, 20)), (b"o/_trainable_variables/0", entry(offset=20))
    ),
}  # fmt: skip


@pytest.mark.parametrize("index", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_index_is_one_line(index: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(BadModelError) as caught:
        opened(index, b"\x10" * 24)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    assert str(caught.value).startswith("m.index")
    assert str(caught.value).isprintable()
    assert caught.value.hint


def graph(*nodes: bytes) -> bytes:
    return b"".join(message(1, node) for node in nodes)


def child(i: int, name: bytes) -> bytes:
    return message(1, number(1, i) + message(2, name))


def with_graph(stored: bytes) -> dict[str, bytes]:
    data = varint(len(stored)) + b"\0" * 4 + stored
    return opened(
        checkpoint(
            (b"_CHECKPOINTABLE_OBJECT_GRAPH", entry(7, (), 4, len(data))),
            (b"o/_iterations", entry(offset=4 + len(data))),
            (b"o/_trainable_variables/0", entry()),
        ),
        b"\0" * 4 + data + b"\0" * 4,
    )


def attribute(key: bytes) -> bytes:
    return message(2, message(3, key))


def test_paths_go_past_optimizers_and_round_no_circle() -> None:
    root = child(1, b"o") + child(2, b"a.b/c") + child(0, b"self")
    optimizer = child(3, b"v") + child(4, b"_iterations")
    layer = child(3, b"kernel") + child(0, b"root")
    kernel = attribute(b"o/_trainable_variables/0")
    assert with_graph(graph(root, optimizer, layer, kernel, b"")).keys() == {
        "a..b.Sc/kernel",
        "optimizer.o/_iterations",
    }


@pytest.mark.parametrize(
    "stored",
    [
        graph(child(2**31, b"x")),
        graph(child(2**64 - 1, b"x")),
        graph(child(0, b"\xff")),
        graph(*[child(i + 1, b"x" * 8000) for i in range(3000)]),
        b"\x0a\x7f",
        b"\xff" * 30,
    ],
)
def test_a_hostile_object_graph_is_one_line(stored: bytes) -> None:
    with pytest.raises(BadModelError) as caught:
        with_graph(stored)
    assert str(caught.value).isprintable()


def test_any_byte_of_an_entry_may_be_wrong() -> None:
    good = entry(1, (2,), 0, 8)
    n_refused = 0
    for i in range(len(good)):
        for flipped in (0x01, 0x80, 0xFF):
            broken = good[:i] + bytes([good[i] ^ flipped]) + good[i + 1 :]
            try:
                opened(checkpoint((b"w", broken)), b"\0" * 8)
            except BadModelError:
                n_refused += 1
    assert n_refused > 10


def test_a_flipped_bit_of_the_index_is_noticed() -> None:
    good = checkpoint(ONE)
    n_first = len(block([(b"", header()), ONE]))
    unused = range(n_first, n_first + len(block([])))
    for i in range(len(good) - 48):
        if i in unused:
            continue
        with pytest.raises(BadModelError):
            opened(good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :], struct.pack("<2f", 1, 2))
