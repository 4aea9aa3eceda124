"""Hostile files, made byte by byte: each would leave a file behind if anything ran it."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import marshal
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

CANARY = "canary-was-here"
COMMAND = f"touch {CANARY}"


def text(value: str) -> bytes:
    """Give the opcode that pushes a text."""
    data = value.encode()
    return b"\x8c" + bytes([len(data)]) + data


def call(module: str, name: str, *args: str, protocol: int = 4) -> bytes:
    """Give the opcodes of a call with texts as arguments."""
    if protocol < 4:
        found = f"c{module}\n{name}\n".encode()
        return found + b"(" + b"".join(b"V" + arg.encode() + b"\n" for arg in args) + b"tR"
    return text(module) + text(name) + b"\x93(" + b"".join(map(text, args)) + b"tR"


def pickled(*parts: bytes) -> bytes:
    """Give a whole pickle of protocol 4."""
    return b"\x80\x04" + b"".join(parts) + b"."


PAYLOAD = pickled(call("posix", "system", COMMAND))
PAYLOAD_0 = call("posix", "system", COMMAND, protocol=0) + b"."


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """Give a zip archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def torch_zip(**more: bytes) -> bytes:
    """Give an archive as ``torch.save`` lays it out, with a harmless ``data.pkl``."""
    members = {"m/data.pkl": pickled(b"}"), "m/version": b"3\n", "m/data/0": b"\0" * 16}
    return zipped(members | {name.replace("__", "/"): data for name, data in more.items()})


def renamed_locally(data: bytes, old: bytes, new: bytes) -> bytes:
    """Give an archive in which the name in front of a member's data is another one than in the directory."""
    assert len(old) == len(new)
    at = data.index(old)
    return data[:at] + new + data[at + len(old) :]


def with_flag(data: bytes, flag: int) -> bytes:
    """Give an archive whose members say they are encrypted, which PyTorch does not look at."""
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = data.find(magic)
        while start >= 0:
            data = data[: start + at] + struct.pack("<H", flag) + data[start + at + 2 :]
            start = data.find(magic, start + 4)
    return data


def joblib_array(hidden: bytes, dtype: bytes, flags: int = 0) -> bytes:
    """Give what joblib writes for an array, with `hidden` where its values should be."""
    state = b"}" + text("shape") + b"K" + bytes([len(hidden)]) + b"\x85s" + text("dtype")
    described = text("numpy") + text("dtype") + b"\x93" + dtype + b"\x89\x88\x87R"
    described += b"(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK" + bytes([flags]) + b"tb"
    made = text("joblib.numpy_pickle") + text("NumpyArrayWrapper") + b"\x93)\x81"
    return b"\x80\x04" + made + state + described + b"sb" + hidden + b"."


def npy(data: bytes, descr: str = "'|O'") -> bytes:
    """Give a file of `numpy.save`."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (1,), }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def lambda_code() -> str:
    """Give the marshalled code of a Lambda layer."""
    return base64.b64encode(marshal.dumps(compile(f"open({CANARY!r}, 'w')", "x", "eval"))).decode()


def keras_config(*layers: Mapping[str, object]) -> bytes:
    """Give the configuration of a Keras model."""
    model = {"module": "keras", "class_name": "Sequential", "config": {"name": "net", "layers": list(layers)}}
    return json.dumps(model | {"registered_name": None}).encode()


LAMBDA: dict[str, object] = {
    "module": "keras.layers",
    "class_name": "Lambda",
    "config": {"name": "evil", "function": {"class_name": "__lambda__", "config": {"code": lambda_code()}}},
    "registered_name": None,
}
LEGACY_LAMBDA: dict[str, object] = {
    "class_name": "Lambda",
    "config": {"name": "evil", "function": [lambda_code(), None, None]},
}
FUNCTION: dict[str, object] = {
    "module": "os",
    "class_name": "function",
    "config": "system",
    "registered_name": "function",
}


def keras_zip(*layers: Mapping[str, object]) -> bytes:
    return zipped({"metadata.json": b"{}", "config.json": keras_config(*layers), "model.weights.h5": b""})


def keras_h5(path: Path, *layers: Mapping[str, object]) -> None:
    import h5py  # type: ignore[import-untyped]

    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = keras_config(*layers).decode()
        file["model_weights/dense/kernel"] = np.ones((2, 2), np.float32)


def tarred(members: dict[str, bytes], link: str = "") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if link:
            info = tarfile.TarInfo("link")
            info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info)
    return file.getvalue()


def zip_with_link() -> bytes:
    info = zipfile.ZipInfo("m/link")
    info.external_attr = 0o120777 << 16
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(info, "/etc")
    return file.getvalue()


def protobuf(number: int, data: bytes) -> bytes:
    """Give a field that holds bytes."""
    length, n = b"", len(data)
    while n >= 0x80:
        length, n = length + bytes([n & 0x7F | 0x80]), n >> 7
    return bytes([number << 3 | 2]) + length + bytes([n]) + data


_LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
_NESTED = b"C" + bytes([len(PAYLOAD)]) + PAYLOAD
_MEMO = (
    text("posix") + b"\x94" + text("system") + b"\x9400" + text("x") + b"\x940h\x00h\x01\x93(" + text(COMMAND) + b"tR"
)
"""Names that only the memo brings together, with other texts between."""

_BUILT = (  # "posi" + "x", put together by a call
    text("operator") + text("add") + b"\x93" + text("posi") + text("x") + b"\x86R" + text("system")
    + b"\x93(" + text(COMMAND) + b"tR"
)  # fmt: skip

DANGEROUS: dict[str, tuple[str, bytes, str]] = {
    "a call of protocol 4": ("m.pkl", PAYLOAD, "posix.system"),
    "a call of protocol 0": ("m.pkl", PAYLOAD_0, "posix.system"),
    "a call of protocol 0 without a suffix": ("weights", PAYLOAD_0, "posix.system"),
    "a call of protocol 0 in a text": ("README.txt", PAYLOAD_0, "posix.system"),
    "a name of Python 2": ("m.pkl", b"c__builtin__\neval\n(V1\ntR.", "builtins.eval"),
    "a name of Python 2 in protocol 4": ("m.pkl", pickled(call("__builtin__", "eval", "1")), "__builtin__.eval"),
    "an old program": ("m.pkl", b"ccommands\ngetoutput\n(V1\ntR.", "subprocess.getoutput"),
    "an import alone": ("m.pkl", b"cos\nsystem\n.", "os.system"),
    "an instance": ("m.pkl", b"(V" + COMMAND.encode() + b"\niposix\nsystem\n.", "posix.system"),
    "an object": ("m.pkl", b"(cposix\nsystem\nV" + COMMAND.encode() + b"\no.", "posix.system"),
    "a new object": ("m.pkl", pickled(text("subprocess"), text("Popen"), b"\x93)\x81"), "subprocess.Popen"),
    "a name through the memo": ("m.pkl", pickled(_MEMO), "posix.system"),
    "a computed name": ("m.pkl", pickled(_BUILT), "<computed>"),
    "an attribute of an attribute": ("m.pkl", pickled(call("sklearn.base", "os.system", COMMAND)), "sklearn.base.os.system"),
    "an inner attribute": (
        "m.pkl", pickled(text("collections"), text("OrderedDict.__init__.__globals__"), b"\x93"),
        "collections.OrderedDict.__init__.__globals__",
    ),
    "an allowed class' method": ("m.pkl", pickled(call("pathlib", "Path.unlink", "x")), "pathlib.Path.unlink"),
    "an extension": ("m.pkl", pickled(call("copyreg", "add_extension", "os", "system"), b"\x82\x01"), "copyreg.add_extension"),
    "a pickle that is loaded from a pickle": ("m.pkl", pickled(text("pickle"), text("loads"), b"\x93", _NESTED, b"\x85R"), "pickle.loads"),
    "a pickle in a tensor": (
        "m.pkl", pickled(text("torch.storage"), text("_load_from_bytes"), b"\x93", _NESTED, b"\x85R"), "posix.system",
    ),
    "a pickle in a file in memory": (
        "m.pkl", pickled(text("_io"), text("BytesIO"), b"\x93)\x81", _NESTED, b"K\x00N\x87b"), "posix.system",
    ),
    "a changed function": (
        "m.pkl", pickled(text("torch._utils"), text("_rebuild_tensor_v2"), b"\x93N}", text("x"), b"K\x01s\x86b"),
        "torch._utils._rebuild_tensor_v2",
    ),
    "a second pickle": ("m.pkl", pickled(b"N") + PAYLOAD, "posix.system"),
    "a second pickle that breaks": ("m.pkl", pickled(b"N") + PAYLOAD[:-1] + b"\xff", "posix.system"),
    "an end that breaks": ("m.pkl", PAYLOAD[:-1] + b"\xff\xff", "posix.system"),
    "an end that is missing": ("m.pkl", PAYLOAD[:-1], "posix.system"),
    "a step too many": ("m.pkl", PAYLOAD[:-1] + b"0000.", "posix.system"),
    "pip": ("m.pkl", pickled(call("pip._internal.cli.main", "main", "install")), "pip._internal.cli.main.main"),
    "runstring": ("m.pkl", pickled(call("numpy.testing._private.utils", "runstring", "1")), "runstring"),
    "a hub": ("m.pkl", pickled(call("torch.hub", "load", "a/b")), "torch.hub.load"),
    "another file": ("m.pkl", pickled(call("torch", "load", "x.pt")), "torch.load"),
    "asyncio": ("m.pkl", pickled(call("asyncio.unix_events", "_UnixSubprocessTransport._start", "x")), "asyncio"),
    "attrgetter": ("m.pkl", pickled(call("operator", "attrgetter", "system")), "operator.attrgetter"),
    "methodcaller": ("m.pkl", pickled(call("_operator", "methodcaller", "system")), "_operator.methodcaller"),
    "a partial": ("m.pkl", pickled(text("functools"), text("partial"), b"\x93", text("os"), text("system"), b"\x93\x85R"), "os.system"),
    "zlib": ("m.joblib", zlib.compress(PAYLOAD), "posix.system"),
    "gzip": ("m.pkl.gz", gzip.compress(PAYLOAD), "posix.system"),
    "gzip, twice": ("m.pkl", gzip.compress(pickled(b"N")) + gzip.compress(PAYLOAD), "posix.system"),
    "bz2": ("m.joblib", bz2.compress(PAYLOAD), "posix.system"),
    "xz": ("m.joblib", lzma.compress(PAYLOAD), "posix.system"),
    "lzma": ("m.joblib", lzma.compress(PAYLOAD, lzma.FORMAT_ALONE), "posix.system"),
    "objects in an array of joblib": ("m.joblib", joblib_array(PAYLOAD, text("O8"), 63), "posix.system"),
    "an array that only joblib steps over": ("m.joblib", joblib_array(PAYLOAD[2:-1] + b".", text("u1")), "posix.system"),
    "a structured array with objects": ("m.joblib", joblib_array(PAYLOAD, text("V8"), 1), "posix.system"),
    "npy": ("m.npy", npy(PAYLOAD), "posix.system"),
    "npy of fields": ("m.npy", npy(PAYLOAD, "[('a', '<f4'), ('b', '|O')]"), "posix.system"),
    "npy of subarrays": ("m.npy", npy(PAYLOAD, "('|O', (2,))"), "posix.system"),
    "npz": ("m.npz", zipped({"a.npy": npy(PAYLOAD)}), "posix.system"),
    "compressed npz": ("m.npz", zipped({"a.npy": npy(PAYLOAD)}, zipfile.ZIP_DEFLATED), "posix.system"),
    "PyTorch's archive": ("m.pt", zipped({"m/data.pkl": PAYLOAD}), "posix.system"),
    "PyTorch's archive, deflated": ("m.pt", zipped({"m/data.pkl": PAYLOAD}, zipfile.ZIP_DEFLATED), "posix.system"),
    "an archive with bz2": ("m.pt", zipped({"m/data.pkl": PAYLOAD}, zipfile.ZIP_BZIP2), "posix.system"),
    "a member of another name": ("m.pt", torch_zip(m__data__1=PAYLOAD), "posix.system"),
    "a member of another name, protocol 0": ("m.pt", torch_zip(m__extra=PAYLOAD_0), "posix.system"),
    "a model in a model": ("m.pt", torch_zip(inner__x=zipped({"m/data.pkl": PAYLOAD})), "posix.system"),
    "another name in front of the data": (
        "m.pt", renamed_locally(zipped({"m/data.pkl": PAYLOAD}), b"m/data.pkl", b"m/dbtb.txt"), "posix.system",
    ),
    "a flag of encryption": ("m.pt", with_flag(zipped({"m/data.pkl": PAYLOAD}), 1), "posix.system"),
    "two members of one name": (
        "m.pt", zipped({"m/data.pkl": PAYLOAD, "m/dbtb.pkl": pickled(b"}")}).replace(b"dbtb.pkl", b"data.pkl"), "posix.system",
    ),
    "an archive behind a pickle": ("m.pkl", pickled(b"N") + zipped({"m/data.pkl": PAYLOAD}), "posix.system"),
    "PyTorch's old stream": ("m.pth", _LEGACY + PAYLOAD + pickle.dumps([], 2), "posix.system"),
    "PyTorch's old stream, the keys": ("m.pth", _LEGACY + pickled(b"}") + PAYLOAD, "posix.system"),
    "PyTorch's old archive": ("m.pth", tarred({"sys_info": pickled(b"}"), "pickle": PAYLOAD}), "posix.system"),
    "a member that leads out": ("m.pt", zipped({"../../.bashrc": b"x"}), "../../.bashrc"),
    "a member with an absolute name": ("m.pt", zipped({"/etc/passwd": b"x"}), "/etc/passwd"),
    "a member of Windows": ("m.pt", zipped({"..\\x": b"x"}), "..\\x"),
    "a link in an archive": ("m.pt", zip_with_link(), "m/link"),
    "a link in a tar archive": ("m.tar", tarred({}, link="/etc"), "link"),
    "a tar member that leads out": ("m.tar", tarred({"../x": b"x"}), "../x"),
    "a Lambda layer": ("m.keras", keras_zip(LAMBDA), "keras.layers.Lambda"),
    "a Lambda layer of Keras 2": ("m.keras", keras_zip(LEGACY_LAMBDA), "keras.layers.Lambda"),
    "a Lambda layer in UTF-16": (
        "m.keras", zipped({"config.json": keras_config(LAMBDA).decode().encode("utf-16")}), "keras.layers.Lambda",
    ),
    "a layer that is a pickle": ("m.keras", keras_zip({"class_name": "TorchModuleWrapper", "config": {"module": "gAQ="}}), "TorchModuleWrapper"),
    "a layer that loads a model": ("m.keras", keras_zip({"class_name": "TFSMLayer", "config": {"filepath": "/x"}}), "TFSMLayer"),
    "compressed npy": ("m.npy.gz", gzip.compress(npy(PAYLOAD)), "posix.system"),
    "a Lambda layer in JSON": ("model.json", keras_config(LAMBDA), "keras.layers.Lambda"),
    "a function from elsewhere": ("m.keras", keras_zip(FUNCTION), "os.system"),
    "a download": ("m.keras", keras_zip(FUNCTION | {"module": "keras.utils", "config": "get_file"}), "keras.utils.get_file"),
    "an npz of weights with objects": ("m.keras", zipped({"config.json": keras_config(), "model.weights.npz": zipped({"a.npy": npy(PAYLOAD)})}), "posix.system"),
    "a graph that writes files": (
        "saved_model.pb", protobuf(2, protobuf(2, protobuf(1, protobuf(1, b"n") + protobuf(2, b"WriteFile")))), "WriteFile",
    ),
    "ONNX values outside of the folder": (
        "m.onnx", b"\x08\x08" + protobuf(7, protobuf(5, protobuf(13, protobuf(1, b"location") + protobuf(2, b"../../secret")))),
        "../../secret",
    ),
    "a tag of YAML": ("c.yaml", b"a: !!python/object/apply:os.system ['x']\n", "!!python/object/apply:os.system"),
}  # fmt: skip
"""What it is: the file's name, its bytes, and (the start of) a name that must be found dangerous."""

UNKNOWN: dict[str, tuple[str, bytes]] = {
    "a class of nobody's": ("m.pkl", pickled(call("my_package.layers", "Attention", "x"))),
    "a function in a module of classes": ("m.pkl", pickled(call("torch.nn.modules.linear", "linear", "x"))),
    "a class inside an allowed class": ("m.pkl", pickled(call("torch.nn.modules.linear", "Linear.Inner", "x"))),
    "an extension alone": ("m.pkl", pickled(b"\x82\x01")),
    "a call of what was called": ("m.pkl", pickled(call("torch.nn.modules.linear", "Linear", "x"), b")R")),
    "bytes from nowhere to a loader": ("m.pkl", pickled(call("torch.storage", "_load_from_bytes", "x"))),
    "no pickle": ("m.pkl", b"\x00\x01\x02"),
    "a broken pickle": ("m.pkl", pickled(b"}")[:-1]),
    "bytes behind a pickle": ("m.pkl", pickled(b"}") + b"\x00\x01"),
    "nothing known": ("m.bin", bytes(range(256))),
    "an array of an odd type": ("m.joblib", joblib_array(b"\0" * 8, text("f8,O"))),
    "an array of two minds": ("m.joblib", joblib_array(b"\0" * 8, text("f8"), 1)),
    "a cut archive": ("m.pt", torch_zip()[:-30]),
    "a cut gzip": ("m.pkl", gzip.compress(bytes(100_000) + PAYLOAD)[:40]),
    "a method nobody unpacks": ("m.pt", zipped({"m/data.pkl": pickled(b"}")}, zipfile.ZIP_LZMA)),
    "Python": ("modeling.py", b"import os\n"),
    "TorchScript": ("m.pt", zipped({"m/data.pkl": pickled(b"}"), "m/code/__torch__.py": b"class A: pass"})),
    "a program": ("x", b"\x7fELF" + bytes(60)),
    "code of a repository": ("config.json", b'{"auto_map": {"AutoModel": "modeling.Net"}}'),
    "a template that reaches out": ("chat_template.jinja", b"{{ ''.__class__.__mro__ }}"),
    "a template in a configuration": ("tokenizer_config.json", b'{"chat_template": "{{ x|attr(y) }}"}'),
    "a custom layer": ("m.keras", keras_zip({"module": "my.layers", "class_name": "A", "config": {}, "registered_name": "my>A"})),
    "a custom layer of Keras 2": ("m.keras", keras_zip({"class_name": "my>A", "config": {}})),
    "a function of Keras that is no layer's": ("m.keras", keras_zip(FUNCTION | {"module": "keras.applications", "config": "ResNet50"})),
    "a file of words": ("m.keras", keras_zip({"class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}})),
    "a configuration that is none": ("m.keras", zipped({"config.json": b"{" * 10})),
    "custom operators": ("m.onnx", b"\x08\x08" + protobuf(8, protobuf(1, b"evil.ops"))),
    "Python operators": ("saved_model.pb", protobuf(2, protobuf(2, protobuf(1, protobuf(2, b"PyFunc"))))),
    "a cut header": ("m.safetensors", b"\x10\0\0\0\0\0\0\0{" + b" " * 20),
    "an array with a broken header": ("m.npy", b"\x93NUMPY\x01\x00\xff\x00{}"),
}  # fmt: skip

SAFE: dict[str, tuple[str, bytes]] = {
    "plain data": ("m.pkl", pickle.dumps({"a": [1, 2.5, "x", None, (1, 2)], "b": {3}})),
    "an empty archive": ("m.pt", torch_zip()),
    "an array": ("m.npy", npy(b"\0" * 8, "'<f8'")),
    "a field called O": ("m.npy", npy(b"\0" * 8, "[('O', '<f8')]")),
    "text": ("README.md", b"# A model\n"),
    "JSON": ("vocab.json", b'{"class_name": "x", "a": [1]}'),
    "a template": ("chat_template.jinja", b"{% for m in messages %}{{ m.content }}{% endfor %}"),
    "nothing": ("empty.txt", b""),
    "a Keras model": ("m.keras", keras_zip({"module": "keras.layers", "class_name": "Dense", "config": {"units": 1}, "registered_name": None})),
    "ONNX": ("m.onnx", b"\x08\x08" + protobuf(8, protobuf(1, b"ai.onnx.ml"))),
    "a number that begins like a pickle": ("m.pt", torch_zip(m__data__1=b"\x80\x04c\0\0\0\0\0")),
    "a number that begins like gzip": ("m.pt", torch_zip(m__data__1=b"\x1f\x8b\0\0\0\0\0\0")),
}  # fmt: skip
