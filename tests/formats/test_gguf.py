from __future__ import annotations

import io
import struct
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dvc_modelver.errors import BadModelError
from dvc_modelver.fingerprint import fingerprint
from dvc_modelver.formats import open_reader
from dvc_modelver.formats.gguf import GgufReader
from dvc_modelver.tensors import BLOCKS
from tests.formats.contract import Arrays, CountingFile, ReaderContract, some_arrays, values_of

gguf: Any = pytest.importorskip("gguf")
quants: Any = pytest.importorskip("gguf.quants")
Kind: Any = gguf.GGMLQuantizationType

UINT32, FLOAT32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9


def writer_to(path: Path, **options: Any) -> Any:
    return gguf.GGUFWriter(path, "llama", **options)


def finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class TestGguf(ReaderContract):
    suffix = ".gguf"

    def arrays(self) -> Arrays:
        arrays = some_arrays()
        return {name: arrays[name] for name in arrays if name not in ("bytes", "flags")} | {
            "i8": np.arange(-3, 3, dtype=np.int8),
            "i16": np.arange(6, dtype=np.int16).reshape(2, 3),
            "i32": np.arange(6, dtype=np.int32).reshape(3, 1, 2),
        }

    def write(self, path: Path, arrays: Arrays) -> None:
        writer = writer_to(path)
        for name, array in arrays.items():
            writer.add_tensor(name, array)
        finish(writer)


def blocks_of(dtype: str, shape: tuple[int, ...]) -> Any:
    rng = np.random.default_rng(1)
    try:
        return quants.quantize(rng.standard_normal(shape).astype(np.float32), Kind[dtype])
    except NotImplementedError:
        n_elements, n_bytes = BLOCKS[dtype]
        return rng.integers(0, 256, (*shape[:-1], shape[-1] // n_elements * n_bytes), np.uint8)


@pytest.mark.parametrize("dtype", sorted(BLOCKS.keys() - {"Q1_0"}))
def test_quantised_values_are_those_of_gguf(tmp_path: Path, dtype: str) -> None:
    shape = (3, 5, 512)
    blocks = blocks_of(dtype, shape)
    writer = writer_to(tmp_path / "q.gguf")
    writer.add_tensor("w", blocks, raw_dtype=Kind[dtype])
    finish(writer)
    with np.errstate(all="ignore"):
        expected = quants.dequantize(blocks, Kind[dtype]).astype(np.float32)
    with GgufReader(tmp_path / "q.gguf") as reader:
        [spec] = reader.specs
        assert (spec.dtype, spec.shape, spec.nbytes) == (dtype, shape, blocks.nbytes)
        assert b"".join(map(bytes, reader.iter_buffers(spec, 1000))) == blocks.tobytes()
        for n_bytes in (24, 1000, 1 << 12, 1 << 22):
            pieces = [bytes(piece) for piece in reader.iter_values(spec, n_bytes)]
            assert all(len(piece) == n_bytes for piece in pieces[:-1])
            assert b"".join(pieces) == expected.tobytes()
        [row] = fingerprint(reader)
        assert row.sketch


def test_one_bit_blocks_are_a_scale_and_signs(tmp_path: Path) -> None:
    block = np.frombuffer(np.float16(0.5).tobytes() + b"\x05" + b"\0" * 15, np.uint8)
    writer = writer_to(tmp_path / "q.gguf")
    writer.add_tensor("w", np.stack([block, block]), raw_dtype=Kind.Q1_0)
    finish(writer)
    with GgufReader(tmp_path / "q.gguf") as reader:
        [piece] = [bytes(piece) for piece in reader.iter_values(reader.specs[0], 1 << 20)]
    expected = np.full((2, 128), -0.5, np.float32)
    expected[:, [0, 2]] = 0.5
    assert piece == expected.tobytes()


def test_blocks_have_the_sizes_that_gguf_gives_them() -> None:
    sizes = {kind.name: size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    assert {name: sizes[name] for name in BLOCKS} == BLOCKS


def test_bfloat16_is_stored_as_it_is(tmp_path: Path) -> None:
    stored = quants.quantize(np.linspace(-2, 2, 64, dtype=np.float32).reshape(4, 16), Kind.BF16)
    writer = writer_to(tmp_path / "b.gguf")
    writer.add_tensor("w", stored, raw_dtype=Kind.BF16)
    finish(writer)
    with GgufReader(tmp_path / "b.gguf") as reader:
        assert [(s.dtype, s.shape) for s in reader.specs] == [("BF16", (4, 16))]
        assert values_of(reader)["w"] == stored.tobytes()
        assert b"".join(map(bytes, reader.iter_values(reader.specs[0], 10))) == stored.tobytes()


def test_tensors_are_found_where_gguf_finds_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    writer = writer_to(tmp_path / "m.gguf")
    writer.add_custom_alignment(128)
    for i in range(5):
        writer.add_tensor(f"blk.{i}.ffn.weight", rng.standard_normal((i + 1, 7)).astype(np.float32))
    finish(writer)
    theirs = gguf.GGUFReader(tmp_path / "m.gguf")
    with GgufReader(tmp_path / "m.gguf") as reader:
        assert values_of(reader) == {tensor.name: tensor.data.tobytes() for tensor in theirs.tensors}
        assert {s.name: s.shape[::-1] for s in reader.specs} == {t.name: tuple(t.shape) for t in theirs.tensors}


def test_keys_and_values_are_the_structure(tmp_path: Path) -> None:
    writer = writer_to(tmp_path / "k.gguf")
    writer.add_name("tiny")
    writer.add_block_count(32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e6)
    writer.add_float64("x.float64", 0.1)
    writer.add_int64("x.negative", -(2**40))
    writer.add_add_bos_token(True)
    writer.add_rope_dimension_sections([16, 24, 24, 0])
    writer.add_languages(["en", "fr"])
    writer.add_chat_template("{% for m in messages %}" * 20)
    writer.add_string("x.long", "x" * 100_000)
    writer.add_token_list([f"t{i}" for i in range(1000)])
    writer.add_token_scores([0.5] * 1000)
    writer.add_tensor("w", np.zeros(3, np.float32))
    finish(writer)
    with GgufReader(tmp_path / "k.gguf") as reader:
        found = dict(reader.structure)
    digests = {k: found.pop(k) for k in list(found) if str(found[k]).startswith("sha256:")}
    assert found == {
        "general.architecture": "llama",
        "general.name": "tiny",
        "general.languages": '["en", "fr"]',
        "llama.block_count": 32,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 1e6,
        "llama.rope.dimension_sections": "[16, 24, 24, 0]",
        "tokenizer.ggml.add_bos_token": True,
        "x.float64": 0.1,
        "x.negative": -(2**40),
    }
    assert digests.keys() == {"tokenizer.chat_template", "tokenizer.ggml.tokens", "tokenizer.ggml.scores", "x.long"}


def vocabulary(path: Path, last: str) -> Path:
    writer = writer_to(path)
    writer.add_token_list([f"▁token{i}" for i in range(256_000)] + [last])
    writer.add_token_merges([f"▁to ken{i}" for i in range(300_000)])
    writer.add_tensor("w", np.zeros(1 << 20, np.float32))
    finish(writer)
    return path


def test_a_large_vocabulary_is_compared_in_bounded_memory(tmp_path: Path) -> None:
    path = vocabulary(tmp_path / "a.gguf", "x")
    file = CountingFile(path.read_bytes())
    header = len(file.getvalue()) - (1 << 22)
    tracemalloc.start()
    with GgufReader(file) as reader:
        mine = reader.structure["tokenizer.ggml.tokens"]
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
    assert file.n_read < header + 300_000 < 20_000_000
    with GgufReader(vocabulary(tmp_path / "b.gguf", "y")) as reader:
        assert reader.structure["tokenizer.ggml.tokens"] != mine
    assert str(mine).endswith("(256,001 values)")


@pytest.mark.parametrize("dtype", ["Q4_0", "Q6_K", "IQ1_M", "IQ3_S"])
def test_dequantising_needs_bounded_memory(tmp_path: Path, dtype: str) -> None:
    writer = writer_to(tmp_path / "q.gguf")
    writer.add_tensor(
        "w", np.zeros((64, (1 << 16) // BLOCKS[dtype][0] * BLOCKS[dtype][1]), np.uint8), raw_dtype=Kind[dtype]
    )
    finish(writer)
    with GgufReader(tmp_path / "q.gguf") as reader:
        next(reader.iter_values(reader.specs[0], 1 << 22))
        tracemalloc.start()
        assert sum(map(len, reader.iter_values(reader.specs[0], 1 << 22))) == 64 << 18
        assert tracemalloc.get_traced_memory()[1] < 32_000_000
        tracemalloc.stop()


def test_without_package_gguf_a_file_is_listed_and_its_blocks_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = writer_to(tmp_path / "q.gguf")
    writer.add_tensor("w", np.zeros((2, 18), np.uint8), raw_dtype=Kind.Q4_0)
    finish(writer)
    monkeypatch.setitem(sys.modules, "gguf.quants", None)
    with GgufReader(tmp_path / "q.gguf") as reader:
        assert len(values_of(reader)["w"]) == 36
        with pytest.raises(BadModelError, match="gguf"):
            next(reader.iter_values(reader.specs[0], 64))


def test_big_endian_is_refused_by_name(tmp_path: Path) -> None:
    writer = writer_to(tmp_path / "big.gguf", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("w", np.zeros(3, np.float32))
    finish(writer)
    with pytest.raises(BadModelError, match="big-endian"):
        open_reader(tmp_path / "big.gguf")


def text(value: str | bytes) -> bytes:
    stored = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(stored)) + stored


def entry(name: str | bytes = "w", shape: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def made(
    keys: tuple[bytes, ...] = (),
    entries: tuple[bytes, ...] = (entry(),),
    values: bytes = b"\0" * 32,
    *,
    version: int = 3,
    n_tensors: int | None = None,
    n_keys: int | None = None,
) -> bytes:
    counts = (len(entries) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys)
    header = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(entries)
    return header + b"\0" * (-len(header) % 32) + values


def array(kind: int, count: int, items: bytes = b"", key: str = "a") -> bytes:
    return text(key) + struct.pack("<IIQ", ARRAY, kind, count) + items


def test_what_the_hostile_files_are_made_from_is_read() -> None:
    with GgufReader(io.BytesIO(made(keys=(array(STRING, 1, text("x")),)))) as reader:
        assert values_of(reader) == {"w": b"\0" * 32}


def test_version_2_is_read() -> None:
    with GgufReader(io.BytesIO(made(version=2))) as reader:
        assert values_of(reader) == {"w": b"\0" * 32}


HOSTILE = {
    "version 1": made(version=1),
    "version 4": made(version=4),
    "2^60 tensors": made(n_tensors=2**60),
    "2^60 keys": made(n_keys=2**60),
    "more tensors than bytes": made(n_tensors=100_000),
    "more keys than bytes": made(n_keys=10_000),
    "key of 2^63 bytes": made(keys=(struct.pack("<Q", 2**63),)),
    "key of 100,000 bytes": made(keys=(text("k" * 100_000) + struct.pack("<IB", BOOL, 1),)),
    "key that is not UTF-8": made(keys=(text(b"\xff") + struct.pack("<I?", BOOL, True),)),
    "key twice": made(keys=(text("k") + struct.pack("<I?", BOOL, True),) * 2),
    "value of type 13": made(keys=(text("k") + struct.pack("<I", 13),)),
    "string of 2^64 - 1 bytes": made(keys=(text("k") + struct.pack("<IQ", STRING, 2**64 - 1),)),
    "string beyond the file": made(keys=(text("k") + struct.pack("<IQ", STRING, 1 << 20),)),
    "array of 2^60 strings": made(keys=(array(STRING, 2**60),)),
    "array of 2^60 bytes": made(keys=(array(0, 2**60),)),
    "array of 2^61 doubles": made(keys=(array(12, 2**61),)),
    "array of a long string": made(keys=(array(STRING, 100, (text("x") * 98) + struct.pack("<Q", 2**62) * 20),)),
    "array of arrays": made(keys=(array(ARRAY, 1, struct.pack("<IQ", 0, 0)),)),
    "array of type 99": made(keys=(array(99, 0),)),
    "alignment 0": made(keys=(text("general.alignment") + struct.pack("<II", UINT32, 0),)),
    "alignment 24": made(keys=(text("general.alignment") + struct.pack("<II", UINT32, 24),)),
    "alignment 2^31": made(keys=(text("general.alignment") + struct.pack("<II", UINT32, 2**31),)),
    "alignment true": made(keys=(text("general.alignment") + struct.pack("<I?", BOOL, True),)),
    "alignment in an array": made(keys=(array(UINT32, 1, struct.pack("<I", 32), "general.alignment"),)),
    "tensor of 2^31 axes": made(entries=(text("w") + struct.pack("<I", 2**31),)),
    "axes of 2^63": made(entries=(entry(shape=(2**63,)),)),
    "a product of 2^64": made(entries=(entry(shape=(2**32, 2**32)),)),
    "a product of 2^64 and 0": made(entries=(entry(shape=(0, 2**32, 2**32, 2**32)),)),
    "tensor of type 4": made(entries=(entry(kind=4),)),
    "tensor of type Q8_K": made(entries=(entry(shape=(256,), kind=15),)),
    "tensor of type 2^31": made(entries=(entry(kind=2**31),)),
    "rows of half a block": made(entries=(entry(shape=(16, 2), kind=2),)),
    "scalar of blocks": made(entries=(entry(shape=(), kind=2),)),
    "offset of 2^63": made(entries=(entry(offset=2**63),)),
    "offset beyond the file": made(entries=(entry(offset=32),)),
    "offset not aligned": made(entries=(entry(shape=(1,), offset=4),)),
    "values beyond the file": made(entries=(entry(shape=(9,)),)),
    "two tensors in one place": made(entries=(entry(), entry("v"))),
    "two tensors that overlap": made(entries=(entry(shape=(16,)), entry("v", offset=32)), values=b"\0" * 64),
    "tensor twice": made(entries=(entry(), entry(offset=32)), values=b"\0" * 64),
    "name that is not UTF-8": made(entries=(entry(b"\xc3\x28"),)),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_header_is_one_line(data: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(BadModelError) as caught, GgufReader(io.BytesIO(data), "m.gguf"):
        pass
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    assert str(caught.value).startswith("m.gguf: ")
    assert str(caught.value).isprintable()
    assert caught.value.hint


def test_a_header_that_ends_anywhere_is_one_line() -> None:
    keys = (
        text("n") + struct.pack("<If", FLOAT32, 0.5),
        text("s") + struct.pack("<I", STRING) + text("value"),
        array(STRING, 70, text("token") * 70, "tokens"),
        array(UINT32, 70, b"\1\0\0\0" * 70, "types"),
    )
    data = made(keys=keys)
    for cut in range(len(data)):
        with pytest.raises(BadModelError), GgufReader(io.BytesIO(data[:cut])):
            pass


def test_any_byte_of_the_header_may_be_wrong() -> None:
    data = bytearray(made(keys=(array(STRING, 2, text("x") * 2), text("f") + struct.pack("<If", FLOAT32, 1e-5))))
    n_refused = 0
    for i in range(len(data) - 32):
        for flipped in (0x01, 0x80, 0xFF):
            broken = data.copy()
            broken[i] ^= flipped
            try:
                with GgufReader(io.BytesIO(bytes(broken))) as reader:
                    values_of(reader)
            except BadModelError:
                n_refused += 1
    assert n_refused > 100
