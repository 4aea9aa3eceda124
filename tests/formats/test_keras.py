from __future__ import annotations

import importlib.util
import io
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats import open_reader
from dvc_modelver.formats.base import Reader, Scalar
from dvc_modelver.formats.hdf5 import Hdf5Reader
from dvc_modelver.formats.keras import KerasReader, matches
from tests.formats.contract import Arrays, ReaderContract, values_of

h5py: Any = pytest.importorskip("h5py")
needs_keras = pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="needs keras")

CONFIG = {"module": "keras", "class_name": "Sequential", "config": {"name": "m", "layers": []}}
METADATA = {"keras_version": "3.9.0", "date_saved": "2025-01-01@00:00:00"}


def weights(fill: Callable[[Any], object]) -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        fill(file)
    return stream.getvalue()


def archive(path: Path, members: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def members_of(data: bytes, config: object = CONFIG) -> dict[str, bytes]:
    return {
        "metadata.json": json.dumps(METADATA).encode(),
        "config.json": json.dumps(config).encode(),
        "model.weights.h5": data,
    }


class TestKeras(ReaderContract):
    suffix = ".keras"

    def write(self, path: Path, arrays: Arrays) -> None:
        archive(path, members_of(weights(lambda file: file.update(arrays))))


class TestPackedAgain(ReaderContract):
    has_extents = False
    can_merge = False
    suffix = ".keras"

    def write(self, path: Path, arrays: Arrays) -> None:
        archive(path, members_of(weights(lambda file: file.update(arrays))), zipfile.ZIP_DEFLATED)

    def test_a_listing_reads_the_header_only(self, tmp_path: Path) -> None:
        pytest.skip("an archive that was packed again is decompressed when it is opened")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keras")
    environment = {**os.environ, "KERAS_BACKEND": "torch", "KERAS_HOME": str(folder)}
    script = Path(__file__).with_name("write_keras.py")
    done = subprocess.run(
        [sys.executable, script, folder], check=False, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def is_optimizer(name: str) -> bool:
    return name.startswith("optimizer")


def expected(models: Path, model: str, rename: Callable[[str], str] = lambda name: name) -> dict[str, bytes]:
    with np.load(models / f"{model}.npz") as saved:
        return {rename(name): saved[name].tobytes() for name in saved.files if not is_optimizer(name)}


def contents(path: Path) -> tuple[dict[str, bytes], dict[str, bytes], Reader]:
    reader = open_reader(path)
    assert reader is not None
    with reader:
        found = values_of(reader, 1 << 16)
    weights = {name: data for name, data in found.items() if not is_optimizer(name)}
    return weights, {name: data for name, data in found.items() if is_optimizer(name)}, reader


def without_model(name: str) -> str:
    return name.partition("/")[2]


@needs_keras
@pytest.mark.parametrize("suffix", ["keras", "weights.h5", "h5"])
@pytest.mark.parametrize("model", ["functional", "every"])
def test_names_and_values_are_those_keras_shows(models: Path, model: str, suffix: str) -> None:
    found, _, reader = contents(models / f"{model}.{suffix}")
    assert found == expected(models, model)
    assert reader.framework == "keras"
    assert reader.format == ("keras" if suffix == "keras" else "hdf5")


@needs_keras
@pytest.mark.parametrize("suffix", ["keras", "weights.h5", "h5"])
def test_a_models_own_name_is_left_out_and_a_nested_ones_kept(models: Path, suffix: str) -> None:
    nested = {"ia/kernel": "fin/ia/kernel", "ia/bias": "fin/ia/bias"}
    assert contents(models / f"nested.{suffix}")[0] == expected(models, "nested", lambda n: nested.get(n, n))
    assert contents(models / f"narrow.{suffix}")[0] == expected(models, "narrow", without_model)
    assert contents(models / f"half.{suffix}")[0] == expected(models, "half", without_model)
    reader = contents(models / f"half.{suffix}")[2]
    assert {spec.name: spec.dtype for spec in reader.specs} == {
        "dense/kernel": "BF16", "dense/bias": "BF16", "dense_1/kernel": "F16", "dense_1/bias": "F16",
    }  # fmt: skip


@needs_keras
def test_optimiser_state_has_the_values_keras_has(models: Path) -> None:
    with np.load(models / "functional.npz") as saved:
        state = {name: saved[name].tobytes() for name in saved.files if is_optimizer(name)}
    numbered = {f"optimizer.vars/{name.split('/')[1]}": data for name, data in state.items()}
    named = {"optimizer." + name.split("/", 2)[2]: data for name, data in state.items()}
    assert "optimizer.adam/learning_rate" in named
    assert contents(models / "functional.keras")[1] == contents(models / "functional.weights.h5")[1] == numbered
    assert contents(models / "functional.h5")[1] == named
    assert {spec.role for spec in contents(models / "functional.h5")[2].specs} == {"optimizer", "parameter"}


@needs_keras
def test_a_variable_nobody_names_has_its_layer_and_number(models: Path) -> None:
    assert set(contents(models / "switched.keras")[0]) == {"layer_normalization/beta"}
    assert set(contents(models / "switched.weights.h5")[0]) == {"layer_normalization/vars/0"}
    for suffix in ("keras", "weights.h5"):
        found, _, reader = contents(models / f"int8.{suffix}")
        assert sorted(found.values()) == sorted(expected(models, "int8").values())
        assert {s.name: s.dtype for s in reader.specs}["dense/vars/0"] == "I8"
        assert len(found) == 5


@needs_keras
@pytest.mark.parametrize("suffix", ["keras", "weights.h5"])
def test_layers_of_a_subclassed_model(models: Path, suffix: str) -> None:
    found = contents(models / f"subclassed.{suffix}")[0]
    names = {"own/kernel": "own/vars/0", "own/bias": "own/vars/1", "scale": "vars/0"}
    reference = expected(models, "subclassed", without_model)
    labelled = {name: data for name, data in reference.items() if not name.startswith("own")}
    assert {names.get(name, name): data for name, data in labelled.items()}.items() <= found.items()
    assert sorted(found.values()) == sorted(reference.values())


@needs_keras
def test_structure_says_how_two_configurations_differ(models: Path) -> None:
    def changed(old: str, new: str) -> set[str]:
        a, b = contents(models / old)[2].structure, contents(models / new)[2].structure
        return {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}

    units = "config.config.layers.a.config.units"
    assert changed("narrow.h5", "wide.h5") == {units}
    assert changed("narrow.keras", "wide.keras") == {units, "config.config.layers.twice.build_config.input_shape"}
    structure = contents(models / "narrow.keras")[2].structure
    assert structure[units] == 3
    assert structure["config.config.layer_order"] == '["input_layer", "a", "twice"]'
    assert structure["config.config.layers.twice.class_name"] == "Lambda"
    assert any(key.startswith("config.config.layers.twice.config.function") for key in structure)
    assert not any("shared_object_id" in key for key in structure)
    trained = contents(models / "functional.keras")[2].structure
    assert trained["compile.loss"] == "mse"
    assert trained["compile.optimizer.class_name"] == "Adam"
    assert contents(models / "functional.h5")[2].structure["compile.optimizer_config.class_name"] == "Adam"
    assert contents(models / "functional.h5")[2].structure["backend"] == "torch"


@needs_keras
@pytest.mark.parametrize("model", ["functional", "every", "nested"])
def test_an_archive_from_before_names_were_kept_gets_them_from_its_configuration(
    models: Path, tmp_path: Path, model: str
) -> None:
    def strip(group: Any) -> None:
        for item in list(group):
            if item == "vars" and "name" in group[item].attrs:
                del group[item].attrs["name"]
                if not len(group[item]):
                    del group[item]
                    continue
            if isinstance(group[item], h5py.Group):
                strip(group[item])

    with zipfile.ZipFile(models / f"{model}.keras") as file:
        members = {name: file.read(name) for name in file.namelist()}
    stream = io.BytesIO(members["model.weights.h5"])
    with h5py.File(stream, "r+") as file:
        strip(file)
    members["model.weights.h5"] = stream.getvalue()
    found, _, _ = contents(archive(tmp_path / "old.keras", members))
    # What lies below a layer under an attribute's name (forward_layer, query_dense) is not in the configuration.
    reference = contents(models / f"{model}.keras")[0]
    differing = {name for name in found.keys() ^ reference.keys() if name in reference}
    assert {name.split("/")[0].rstrip("_0123456789") for name in differing} <= {
        "bi", "bidirectional", "time_distributed", "multi_head_attention", "grouped_query_attention", "rnn",
        "conv_lstm2d",
    }  # fmt: skip
    assert sorted(found.values()) == sorted(reference.values())

    (tmp_path / "old.weights.h5").write_bytes(members["model.weights.h5"])
    assert all("/vars/" in name for name in contents(tmp_path / "old.weights.h5")[0])


def legacy(path: Path, layers: dict[str, Arrays], root: str, **attributes: Scalar) -> Path:
    with h5py.File(path, "w") as file:
        group = file.require_group(root) if root else file
        group.attrs["layer_names"] = [layer.encode() for layer in layers]
        group.attrs["backend"] = b"tensorflow"
        for name, value in attributes.items():
            (file if name.endswith("config") else group).attrs[name] = value
        for layer, arrays in layers.items():
            made = group.create_group(layer)
            made.attrs["weight_names"] = np.array([name.encode() for name in arrays], "S")
            for name, array in arrays.items():
                made[name] = array
    return path


def test_files_of_keras_1_and_2(tmp_path: Path) -> None:
    x = np.ones((2, 2), np.float32)
    two: dict[str, Arrays] = {
        "dense": {"dense/kernel:0": x},
        "block/conv": {"block/conv/kernel:0": x},
        "fin": {"ia/kernel:0": x},
        "subby_layer": {"subby/subby_layer/w:0": x},
        "top_level_model_weights": {"scale:0": x},
        "dropout": {},
    }
    names = {"dense/kernel:0", "block/conv/kernel:0", "fin/ia/kernel:0", "subby_layer/w:0", "scale:0"}
    with Hdf5Reader(legacy(tmp_path / "w.h5", two, "", keras_version="2.15.0")) as reader:
        assert {spec.name for spec in reader.specs} == names
        assert reader.structure == {"keras_version": "2.15.0", "backend": "tensorflow"}
        assert reader.framework == "keras"
    path = legacy(
        tmp_path / "m.h5", two, "model_weights", model_config=json.dumps(CONFIG), training_config='{"loss": "mse"}'
    )
    with h5py.File(path, "a") as file:
        file["optimizer_weights/Adam/m/dense/kernel:0"] = x
    with Hdf5Reader(path) as reader:
        assert {spec.name for spec in reader.specs} == names | {"optimizer.Adam/m/dense/kernel:0"}
        assert reader.structure["compile.loss"] == "mse"
        assert reader.structure["config.class_name"] == "Sequential"
    one: dict[str, Arrays] = {"dense_1": {"dense_1_W": x, "dense_1_b": x}, "conv": {"param_0": x}}
    with Hdf5Reader(legacy(tmp_path / "k1.h5", one, "")) as reader:
        assert {spec.name for spec in reader.specs} == {"dense_1_W", "dense_1_b", "conv/param_0"}


def test_names_that_would_be_the_same_are_paths(tmp_path: Path) -> None:
    x = np.ones(2, np.float32)
    clash: dict[str, Arrays] = {"a": {"a/w": x, "m/a/w": x}, "b": {"b/w": x}}
    with Hdf5Reader(legacy(tmp_path / "w.h5", clash, "")) as reader:
        assert {spec.name for spec in reader.specs} == {"a/a/w", "a/m/a/w", "b/w"}


def test_files_beside_the_weights_are_facts(tmp_path: Path) -> None:
    members = members_of(weights(lambda file: file.update({"vars/0": np.ones(2)})))
    with KerasReader(archive(tmp_path / "m.keras", {**members, "assets/layer/vocabulary.txt": b"a b"})) as reader:
        assert reader.structure["asset.layer/vocabulary.txt"] == f"crc32:{zlib.crc32(b'a b'):08x} (3 bytes)"
        assert reader.structure["keras_version"] == "3.9.0"
        assert not any("date" in key for key in reader.structure)


def test_other_archives_are_left_to_their_readers(tmp_path: Path) -> None:
    savez: Any = np.savez
    savez(tmp_path / "a.npz", w=np.ones(2))
    assert not matches(io.BytesIO((tmp_path / "a.npz").read_bytes()))
    assert not matches(io.BytesIO(archive(tmp_path / "b.zip", {"config.json": b"{}"}).read_bytes()))
    assert not matches(io.BytesIO(b"PK\x03\x04" + bytes(100)))
    assert matches(io.BytesIO(archive(tmp_path / "c.zip", members_of(b"")).read_bytes()))


def set_directory(data: bytes, offset: int, value: bytes) -> bytes:
    at = data.rindex(b"PK\x01\x02") + offset
    return data[:at] + value + data[at + len(value) :]


GOOD = weights(lambda file: file.update({"layers/dense/vars/0": np.ones((2, 2), np.float32)}))


def deep(n: int) -> bytes:
    return b'{"a":' * n + b"1" + b"}" * n


@pytest.mark.parametrize(
    ("finding", "data"),
    [
        ("found no member model.weights.h5", {"config.json": b"{}", "model.weights.npz": b""}),
        ("found no member config.json", {"model.weights.h5": GOOD}),
        ("cannot be read", {**members_of(GOOD), "config.json": b"{"}),
        ("cannot be read", {**members_of(GOOD), "config.json": b"[]"}),
        ("cannot be read", {**members_of(GOOD), "config.json": b"\xff\xfe{"}),
        ("cannot be read", {**members_of(GOOD), "config.json": deep(100_000)}),
        ("cannot be read", {**members_of(GOOD), "metadata.json": b"3"}),
        ("expected at most", {**members_of(GOOD), "config.json": b" " * (9 << 20)}),
        ("signature", members_of(b"")),
        ("HDF5", members_of(b"\x89HDF\r\n\x1a\n" + bytes(200))),
        ("ended early", members_of(GOOD[:-8])),
    ],
)
def test_a_hostile_archive_is_one_line(tmp_path: Path, finding: str, data: dict[str, bytes]) -> None:
    assert finding in refuse(archive(tmp_path / "bad.keras", data))


@pytest.mark.parametrize(
    ("finding", "offset", "value"),
    [
        ("is stored in", 24, struct.pack("<I", 5_000_000)),
        ("expected its local header", 42, struct.pack("<I", 0)),
        ("ended early", 42, struct.pack("<I", 0x7FFFFFFF)),
        ("compressed by method 12", 10, struct.pack("<H", 12)),
    ],
)
def test_a_directory_that_lies_is_one_line(tmp_path: Path, finding: str, offset: int, value: bytes) -> None:
    path = archive(tmp_path / "bad.keras", members_of(GOOD))
    path.write_bytes(set_directory(path.read_bytes(), offset, value))
    assert finding in refuse(path)


def test_a_bomb_is_refused_before_it_is_decompressed(tmp_path: Path) -> None:
    path = archive(tmp_path / "bad.keras", members_of(bytes(1 << 20)), zipfile.ZIP_DEFLATED)
    path.write_bytes(set_directory(path.read_bytes(), 24, struct.pack("<I", 1 << 31)))
    assert "declares 2147483648 bytes" in refuse(path)


def test_damaged_compressed_weights_are_one_line(tmp_path: Path) -> None:
    data = weights(lambda file: file.update({"w": np.random.default_rng(0).standard_normal(9000)}))
    path = archive(tmp_path / "bad.keras", members_of(data), zipfile.ZIP_DEFLATED)
    good = path.read_bytes()
    for at in range(len(good) // 4, len(good) // 2, 4001):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :])
        message = refuse(path)
        assert "is damaged" in message or "checksum" in message


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "bad.keras", members_of(GOOD))
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("model.weights.h5", GOOD)
    assert "twice" in refuse(path)


def test_a_nested_configuration_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.keras", {**members_of(GOOD), "config.json": deep(300)})
    with KerasReader(path) as reader:
        assert len(reader.structure) == 2


def refuse(path: Path) -> str:
    with pytest.raises(BadModelError) as caught, KerasReader(path) as reader:
        values_of(reader)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    return str(caught.value)
