from __future__ import annotations

import gzip
import io
import pickle
import resource
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dvc_modelver.security.scan import scan_file, scan_path
from dvc_modelver.security.verdicts import Scanned, Verdict
from tests.security import samples
from tests.security.samples import CANARY, DANGEROUS, SAFE, UNKNOWN, pickled, torch_zip, zipped


@pytest.fixture(autouse=True)
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every sample that ran would leave this file in the current folder."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path(CANARY).exists()


def scanned(name: str, data: bytes, allow: frozenset[str] = frozenset()) -> Scanned:
    result = scan_file(io.BytesIO(data), name, allow)
    assert all("\n" not in f.reason + f.name + f.member for f in result.findings)
    return result


def test_the_samples_would_run(tmp_path: Path) -> None:
    pickle.loads(samples.PAYLOAD)
    assert Path(CANARY).exists()
    Path(CANARY).unlink()
    pickle.loads(samples.PAYLOAD_0)
    Path(CANARY).unlink()
    np.load(io.BytesIO(samples.npy(samples.PAYLOAD)), allow_pickle=True)
    Path(CANARY).unlink()


@pytest.mark.parametrize("what", DANGEROUS)
def test_dangerous(what: str) -> None:
    name, data, expected = DANGEROUS[what]
    found = scanned(name, data)
    assert found.verdict is Verdict.DANGEROUS, found
    assert any(expected in f.name for f in found.findings if f.verdict is Verdict.DANGEROUS), found


@pytest.mark.parametrize("what", UNKNOWN)
def test_unknown(what: str) -> None:
    name, data = UNKNOWN[what]
    found = scanned(name, data)
    assert found.verdict is Verdict.UNKNOWN, found
    assert all(f.reason for f in found.findings)


@pytest.mark.parametrize("what", SAFE)
def test_safe(what: str) -> None:
    name, data = SAFE[what]
    found = scanned(name, data)
    assert found.verdict is Verdict.SAFE, found


@pytest.mark.parametrize("what", ["a call of protocol 4", "PyTorch's archive", "npz", "gzip", "a Lambda layer"])
def test_a_dangerous_file_cut_anywhere_is_never_a_traceback(what: str) -> None:
    name, data, _ = DANGEROUS[what]
    for cut in range(len(data)):
        scanned(name, data[:cut])


def test_a_payload_counts_however_the_pickle_breaks() -> None:
    for end in (b"", b"\xff", b"R", b"0000", b"(", b"\x95\xff\xff\xff\xff\xff\xff\xff\xff", b"g99\n", b"\x80\x09"):
        assert scanned("m.pkl", samples.PAYLOAD[:-1] + end).verdict is Verdict.DANGEROUS


def test_a_legacy_keras_file(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    samples.keras_h5(tmp_path / "bad.h5", samples.LEGACY_LAMBDA)
    found = scan_file(tmp_path / "bad.h5")
    assert found.verdict is Verdict.DANGEROUS
    assert found.findings[0].name == "keras.layers.Lambda"
    assert found.findings[0].member == "model_config: evil"
    samples.keras_h5(tmp_path / "good.h5", {"class_name": "Dense", "config": {"name": "d"}})
    assert scan_file(tmp_path / "good.h5").verdict is Verdict.SAFE
    data = (tmp_path / "bad.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(data[: len(data) - 100])
    cut = scan_file(tmp_path / "cut.h5")
    assert {f.kind for f in cut.findings} == {"layer", "damage"}


def test_what_the_owners_allow_is_safe() -> None:
    name, data = UNKNOWN["a class of nobody's"]
    found = scanned(name, data, frozenset({"my_package.layers.Attention"}))
    assert found.verdict is Verdict.SAFE
    assert found.findings[0].reason == "allowed in .modelver.toml"
    assert scanned(name, data, frozenset({"my_package.layers", "Attention"})).verdict is Verdict.UNKNOWN


def test_the_worst_finding_comes_first_and_decides() -> None:
    data = pickled(samples.call("a", "b"), samples.call("posix", "system", "x"), samples.call("collections", "deque"))
    found = scanned("m.pkl", data)
    assert [f.verdict for f in found.findings] == [Verdict.DANGEROUS, Verdict.UNKNOWN, Verdict.SAFE]


def test_a_folder_gives_one_result_per_file(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "modeling.py").write_text("import os")
    (model / "sub/w.pkl").write_bytes(samples.PAYLOAD)
    (tmp_path / "outside.pkl").write_bytes(samples.PAYLOAD)
    (model / "link.pkl").symlink_to(tmp_path / "outside.pkl")
    found = {Path(r.path).relative_to(model).as_posix(): r.verdict for r in scan_path(model)}
    assert found == {
        "config.json": Verdict.SAFE,
        "modeling.py": Verdict.UNKNOWN,
        "sub/w.pkl": Verdict.DANGEROUS,
    }


def test_gigabytes_of_values_are_not_read(tmp_path: Path) -> None:
    size = 1 << 30
    path = tmp_path / "large.pkl"
    with path.open("wb") as file:
        head = b"\x80\x05\x8e" + size.to_bytes(8, "little")
        file.write(head)
        file.seek(len(head) + size)
        file.write(b".")

    class Counting(io.FileIO):
        n_read = 0

        def readinto(self, buffer: Any, /) -> int:
            n = super().readinto(buffer)
            Counting.n_read += n
            return n

    with Counting(path) as counted:
        assert scan_file(counted, "large.pkl").verdict is Verdict.SAFE
    assert Counting.n_read < 1_000_000


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("start", [b"\x80\xbc", b"\x80\x04", b"\x80\x02c", b"\x1f\x8b", b"PK\x03\x04", b"\x93NUMPY"])
def test_values_that_begin_like_a_pickle_are_values(start: bytes, protocol: int) -> None:
    array = np.frombuffer(start.ljust(64, b"\x01"), "<f8").copy()
    for value in (array, array[0], {"w": np.asfortranarray(array.reshape(2, 4))}, array.tobytes()):
        assert scanned("m.pkl", pickle.dumps(value, protocol)).verdict is Verdict.SAFE


def test_a_pickle_among_the_values_still_counts() -> None:
    hidden = np.frombuffer(samples.PAYLOAD.ljust(64, b"\0"), "u1").copy()
    assert scanned("m.pkl", pickle.dumps(hidden, 5)).verdict is Verdict.DANGEROUS
    code = torch_zip(m__code=b"\x7fELF")
    for inner, verdict in (
        (code, Verdict.UNKNOWN),
        (code[:-60], Verdict.SAFE),
        (zipped({"a": samples.PAYLOAD}), Verdict.DANGEROUS),
    ):
        assert scanned("m.pkl", pickle.dumps(io.BytesIO(inner))).verdict is verdict


def safetensors_file(n_header: int, values: bytes = bytes(8)) -> bytes:
    header = b'{"a":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (len(values), len(values))
    return n_header.to_bytes(8, "little") + header.ljust(n_header) + values


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "weights"])
def test_safetensors_is_safe_whatever_the_length_of_its_header(name: str) -> None:
    for n_header in (*range(0x60, 0x400), 0x8B1F + 0x10000, 0x5D):
        assert scanned(name, safetensors_file(n_header)).verdict is Verdict.SAFE, hex(n_header)


def test_what_else_a_safetensors_file_is_counts_where_it_is_dangerous() -> None:
    name = "m.safetensors"
    for inner, verdict in ((samples.PAYLOAD, Verdict.DANGEROUS), (pickled(b"}"), Verdict.SAFE)):
        archive = zipped({"m/data.pkl": inner})
        assert scanned(name, safetensors_file(0x180, archive)).verdict is verdict
    appended = safetensors_file(0x180) + b"x"
    assert scanned(name, appended).verdict is Verdict.UNKNOWN


DAMAGED = {
    "safetensors": ("m.safetensors", safetensors_file(96)[:-1]),
    "NPY": ("m.npy", samples.npy(bytes(7), "'<f8'")),
    "NPY, longer": ("m.npy", samples.npy(bytes(9), "'<f8'")),
    "JSON": ("m.json", b'{"learner": {"a": [1, 2'),
    "an empty one": ("m.safetensors", b""),
    "an empty pickle": ("m.pt", b""),
    "a page": ("m.safetensors", b"<!DOCTYPE html><html></html>"),
    "a page, GGUF": ("m.gguf", b"<html></html>"),
    "Git LFS": ("m.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
    "Git LFS, PyTorch": ("m.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
    "an error": ("m.ckpt", b"AccessDenied"),
}
SAID = {
    "a page": "an HTML page", "a page, GGUF": "an HTML page", "Git LFS": "a Git LFS pointer",
    "Git LFS, PyTorch": "a Git LFS pointer", "an error": "a text that begins with 'AccessDenied'",
    "an empty one": "an empty file", "an empty pickle": "an empty file",
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGED)
def test_damage_is_unknown_and_says_what_the_file_is(what: str) -> None:
    found = scanned(*DAMAGED[what])
    assert found.verdict is Verdict.UNKNOWN
    assert [f.kind for f in found.findings] == ["damage"]
    assert found.findings[0].reason.startswith(SAID.get(what, ""))


def test_files_of_values_and_trees_are_known(tmp_path: Path) -> None:
    assert scanned("model.onnx.data", b"\xff" * 100).verdict is Verdict.SAFE
    assert scanned("model.onnx_data_1", b"\xff" * 100).verdict is Verdict.SAFE
    assert scanned("model.onnx.data", samples.PAYLOAD).verdict is Verdict.DANGEROUS
    assert scanned("notes.md", b"x^2 and more").verdict is Verdict.SAFE


def test_a_zip_bomb_is_unknown() -> None:
    data = zipped({"a.npy": samples.npy(bytes(400_000_000), "'<f8'")}, zipfile.ZIP_DEFLATED)
    found = scanned("m.npz", data)
    assert found.verdict is Verdict.UNKNOWN
    assert "expands to 400000128 bytes" in found.findings[0].reason


def _many_members() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for i in range(20_000):
            archive.writestr(f"m/data/{i}", b"(((")
    return file.getvalue()


EXPENSIVE = {
    "opcodes": ("m.pkl", b"\x80\x04" + b"(" * 30_000_000),
    "pickles": ("m.pkl", b"N." * 2_000_000),
    "guesses": ("m.txt", b"(" * 30_000_000),
    "names": ("m.pkl", b"".join(b"ca%d\nb\n0" % i for i in range(300_000)) + b"N."),
    "a bomb": ("m.pkl", gzip.compress(b"\x80\x04\x8e" + (2**31).to_bytes(8, "little") + bytes(400_000_000), 1)),
    "members": ("m.pt", _many_members()),
    "JSON": ("config.json", b"[" + b"[]," * 2_700_000 + b"[]]"),
    "deep JSON": ("config.json", b"[" * 8_000_000),
    "a deep header": ("m.npy", samples.npy(b"", "[" * 60_000)),
    "pickles in pickles": ("m.pkl", b""),
    "GGUF": ("m.gguf", b"GGUF\x03\0\0\0" + bytes(8) + (2**40).to_bytes(8, "little") + bytes(100)),
}


def _nest() -> bytes:
    data = samples.PAYLOAD
    for _ in range(30):
        inner = b"B" + len(data).to_bytes(4, "little") + data
        data = pickled(samples.text("torch.storage"), samples.text("_load_from_bytes"), b"\x93", inner, b"\x85R")
    return data


EXPENSIVE["pickles in pickles"] = ("m.pkl", _nest())


@pytest.mark.parametrize("what", EXPENSIVE)
def test_expensive_files_end_in_bounded_memory_and_are_not_safe(what: str, tmp_path: Path) -> None:
    name, data = EXPENSIVE[what]
    path = tmp_path / name
    path.write_bytes(data)
    program = (
        "import sys; from pathlib import Path; from dvc_modelver.security.scan import scan_file\n"
        "print(scan_file(Path(sys.argv[1])).verdict)"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (768 << 20, 768 << 20))
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))

    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, preexec_fn=limit, check=False
    )
    assert done.stderr == ""
    assert done.stdout.strip() == ("safe" if what in ("members", "guesses") else "unknown")
