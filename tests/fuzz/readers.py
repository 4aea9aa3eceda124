"""What the fuzzer and the replay of its findings ask of each reader: nothing but `BadModelError` may come out.

Each target takes bytes and gives how many tensors it listed, 0 for bytes that were refused. Where an archive or a checksum would hide the content from a mutator, bytes that are no such
file become the part inside: the pickle of a PyTorch archive, the array of an ``.npz``, the configuration of a
``.keras``, the block of a checkpoint's table.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import BinaryIO

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats import Reader, open_reader
from dvc_modelver.formats.base import Scalar
from dvc_modelver.formats.keras_names import describe_config, parse_config
from dvc_modelver.formats.saved_model import open_folder
from dvc_modelver.formats.sstable import MAGIC
from dvc_modelver.security.scan import scan_file
from dvc_modelver.tensors import is_quantised
from tests.formats.checkpoints import checkpoint, entry, sealed, table
from tests.security.samples import zipped

Target = Callable[[bytes], int]

MAX_TENSORS = 32
MAX_BUFFERS = 8
BUFFER_BYTES, SMALL_BUFFER_BYTES = 4096, 16


class MemoryFolder:
    """The files beside the one that is fuzzed."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = files

    def names(self) -> Sequence[str]:
        return sorted(self.files)

    def open(self, name: str) -> BinaryIO:
        if name not in self.files:
            raise BadModelError(f"names the file {name!r}, expected one inside this folder")
        return io.BytesIO(self.files[name])


def read(reader: Reader | None) -> int:
    """List a model, and read the first values of its first tensors, in both ways."""
    if reader is None:
        return 0
    with reader:
        check_names([spec.name for spec in reader.specs])
        check_structure(reader.structure)
        for spec in reader.specs[:MAX_TENSORS]:
            assert all(axis >= 0 for axis in spec.shape)
            n_value_bytes = 4 * spec.numel if is_quantised(spec.dtype) else spec.nbytes
            for iterate, n_bytes in ((reader.iter_buffers, spec.nbytes), (reader.iter_values, n_value_bytes)):
                whole = read_start(iterate(spec, BUFFER_BYTES), BUFFER_BYTES, n_bytes)
                assert whole.startswith(read_start(iterate(spec, SMALL_BUFFER_BYTES), SMALL_BUFFER_BYTES, n_bytes))
        return len(reader.specs)


def check_names(names: list[str]) -> None:
    assert names == sorted(set(names))
    "\n".join(names).encode()


def check_structure(structure: Mapping[str, Scalar]) -> None:
    json.dumps(dict(structure), ensure_ascii=False).encode()
    assert all(value is None or isinstance(value, str | int | float) for value in structure.values())


def read_start(pieces: Iterator[memoryview], buffer_bytes: int, expected: int) -> bytes:
    found = [bytes(piece) for piece in islice(pieces, MAX_BUFFERS)]
    assert all(len(piece) == buffer_bytes for piece in found[:-1])
    assert sum(map(len, found)) == min(expected, MAX_BUFFERS * buffer_bytes)
    return b"".join(found)


def refuses_in_one_line(target: Target) -> Target:
    def run(data: bytes) -> int:
        try:
            return target(data)
        except BadModelError as err:
            assert str(err).isprintable() and err.hint.isprintable(), repr(err)
            return 0

    return run


def read_file(name: str, data: bytes) -> int:
    # Values that ONNX and TensorFlow keep in files of their own.
    beside = MemoryFolder({"model.data-00000-of-00001": bytes(range(256)) * 16, "weights.bin": bytes(4096)})
    return read(open_reader(io.BytesIO(data), name, beside))


def read_torch(data: bytes) -> int:
    if not data.startswith(b"PK"):
        members = {f"m/data/{i}": bytes(range(256)) for i in range(3)}
        data = zipped({"m/data.pkl": data, "m/byteorder": b"little", **members})
    return read_file("model.pt", data)


def read_npz(data: bytes) -> int:
    return read_file("model.npz", data if data.startswith(b"PK") else zipped({"array.npy": data}))


def read_keras(data: bytes) -> int:
    if data.startswith(b"PK"):
        return read_file("model.keras", data)
    config = parse_config(data, "model.keras")
    check_structure(describe_config(config, config))
    return 0


def read_checkpoint(data: bytes) -> int:
    return read_file("model.index", data if data.endswith(MAGIC) else table(sealed(data)))


def read_saved_model(data: bytes) -> int:
    variables = {
        "variables/variables.index": checkpoint((b"weight", entry(shape=(4,), n_bytes=16))),
        "variables/variables.data-00000-of-00001": bytes(16),
    }
    return read(open_folder(MemoryFolder({"saved_model.pb": data, **variables}), "model"))


def scan(name: str, data: bytes) -> int:
    findings = scan_file(io.BytesIO(data), name).findings
    "".join(part for found in findings for part in (found.member, found.name, found.reason)).encode()
    return len(findings)


_UNGUARDED: dict[str, Target] = {
    "safetensors": partial(read_file, "model.safetensors"),
    "torch": read_torch,
    "torch-legacy": partial(read_file, "model.pth"),
    "torchscript": partial(read_file, "model.pt"),
    "npz": read_npz,
    "npy": partial(read_file, "model.npy"),
    "pickle": partial(read_file, "model.joblib"),
    "keras": read_keras,
    "hdf5": partial(read_file, "model.h5"),
    "onnx": partial(read_file, "model.onnx"),
    "tflite": partial(read_file, "model.tflite"),
    "gguf": partial(read_file, "model.gguf"),
    "checkpoint": read_checkpoint,
    "saved-model": read_saved_model,
    "xgboost-json": partial(read_file, "model.json"),
    "xgboost-ubj": partial(read_file, "model.ubj"),
    "lightgbm": partial(read_file, "model.lgb"),
    "catboost": partial(read_file, "model.cbm"),
    "scan": partial(scan, "model.pkl"),
}

TARGETS = {name: refuses_in_one_line(target) for name, target in _UNGUARDED.items()}
"""By name, as the folders of ``tests/data/fuzz`` are called."""
