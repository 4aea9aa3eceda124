"""Scans model files: finds what is in them by content, then by name, and says what of it is code.

::

    scan_file(Path("model.pt"))   # Scanned("model.pt", Verdict.DANGEROUS, (Finding("archive/data.pkl", ...), ...))

A file is never loaded, unpacked to disk or run. A verdict is safe only where all of a file was understood; each limit,
damage or unknown format makes it unknown. Whatever a file is, it is also tried as a pickle and as a zip archive, since
one file can be several things to several programs; where one reading holds to the last byte and another one does not,
only danger counts of the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Set
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats import safetensors
from dvc_modelver.formats.base import Folder, LocalFolder, measure, quote
from dvc_modelver.formats.impostors import START_BYTES, find_impostor
from dvc_modelver.security.archives import has_end_of_zip, is_tar, iter_tar, iter_zip
from dvc_modelver.security.configs import MAX_JSON_BYTES, scan_json, scan_template, scan_yaml
from dvc_modelver.security.npy import is_npy, iter_npy
from dvc_modelver.security.parts import Budget, Decompress, Part, Unpacked, Window, find_compression
from dvc_modelver.security.pickle_scan import PickleScan, looks_pickled, may_be_pickled
from dvc_modelver.security.verdicts import Findings, Scanned, Verdict

MAX_DEPTH = 5
"""Of archives, compressed streams and pickles in each other."""

MAX_TEXT_BYTES = 1 << 20
"""Of a text, as far as it is looked at; a configuration in JSON is read up to `MAX_JSON_BYTES`."""

PICKLE_SUFFIXES = frozenset({".pkl", ".pickle", ".joblib", ".pt", ".pth", ".ckpt", ".debug_pkl", ".p", ".dill"})
CODE_SUFFIXES = frozenset(
    {".bat", ".cu", ".dll", ".dylib", ".exe", ".ipynb", ".js", ".lua", ".ps1", ".py", ".pyc", ".pyd", ".pyx", ".sh",
     ".so", ".wasm"}
)  # fmt: skip
TEMPLATE_SUFFIXES = frozenset({".j2", ".jinja", ".jinja2"})
CONFIG_NAMES = frozenset({"config.json", "model.json", "tokenizer_config.json"})

YAML_SUFFIXES = frozenset({".yaml", ".yml"})

_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_NATIVE_CODE = (b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe", b"\0asm")
_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8")
_BINARY_SUFFIXES = frozenset(
    {".cbm", ".gguf", ".h5", ".hdf5", ".keras", ".npy", ".npz", ".onnx", ".safetensors", ".tflite", ".ubj"}
)
"""Of files that cannot be text."""

_VALUES = re.compile(r".*\.data-\d{5}-of-\d{5}|fingerprint\.pb|.*\.onnx[._]data(?:_\d+)?")
"""Files that TensorFlow and ONNX keep values in, as they are: they have no signature."""

_HEAD_BYTES = 1 << 10
_CONTROL = frozenset(range(32)) - frozenset(b"\t\n\f\r\x1b")


def scan_file(source: Path | BinaryIO, name: str = "", allow: Set[str] = frozenset()) -> Scanned:
    """Say what a file would import, call and run when its framework loads it.

    Args:
        source: A path, or a seekable binary file object, which stays open.
        name: How the result calls it; the path where there is one.
        allow: Names that the owners of the repository have read and allow.

    Raises:
        OSError: It cannot be read.
    """
    name = name or str(source)
    if isinstance(source, Path):
        with source.open("rb", buffering=0) as file:
            return scan_file(cast(BinaryIO, file), name, allow)
    findings = Findings(allow)
    n_bytes = measure(source)
    scan = _FileScan(findings, Budget(n_bytes))
    scan.scan_file(Part("", name, lambda: cast(BinaryIO, Window(source, 0, n_bytes)), n_bytes))
    return findings.give(name)


def scan_folder(folder: Folder, name: str, allow: Set[str] = frozenset()) -> Iterator[Scanned]:
    """Scan every file of a folder.

    Args:
        folder: The files.
        name: Put before their names; ``.`` is not.
        allow: As for `scan_file`.
    """
    for path in folder.names():
        with folder.open(path) as file:
            yield scan_file(file, path if name == "." else f"{name}/{path}", allow)


def scan_path(path: Path, allow: Set[str] = frozenset()) -> Iterator[Scanned]:
    """Scan a file, or every file of a folder; links that lead out of it, and hidden files, are not followed.

    Args:
        path: What is on disk.
        allow: As for `scan_file`.
    """
    if path.is_dir():
        yield from scan_folder(LocalFolder(path), str(path).rstrip("/"), allow)
    else:
        yield scan_file(path, allow=allow)


class _FileScan:
    """Scans one file and what lies in it."""

    def __init__(self, findings: Findings, budget: Budget) -> None:
        self._findings, self._budget = findings, budget

    def scan_file(self, part: Part) -> None:
        """Scan a file, and the archive that may be hung on to it: Python finds one by a file's end."""
        self.scan_part(part)
        if not part.read(4).startswith(_ZIP) and has_end_of_zip(part.open()):
            self._scan_zip(part)

    def scan_part(self, part: Part) -> None:
        """Scan a file or a member of one."""
        if part.depth > MAX_DEPTH:
            self._damage(part, f"over {MAX_DEPTH} archives or pickles in each other, expected fewer")
            return
        try:
            self._scan_kind(part, part.read(_HEAD_BYTES))
        except BadModelError as err:
            # Raw values, which have no suffix, may begin like anything by chance.
            if part.suffix or not part.depth:
                self._damage(part, str(err).removeprefix(f"{part.name}: "))

    def _scan_kind(self, part: Part, head: bytes) -> None:
        if part.n_bytes is not None and safetensors.matches(part.open()) and _opens_as_safetensors(part):
            self._try(lambda scan: scan._scan_as_others(part, head))
        else:
            self._scan_as_others(part, head)

    def _try(self, read: Callable[[_FileScan], object]) -> None:
        """Read something in one more way, by chance perhaps: where it does not hold to the end, only danger counts."""
        found = self._findings.another()
        try:
            read(_FileScan(found, self._budget))
            holds = not found.has_damage()
        except BadModelError:
            holds = False
        self._findings.add_others(found, only_dangers=not holds)

    def _scan_as_others(self, part: Part, head: bytes) -> None:
        if part.suffix in CODE_SUFFIXES or head.startswith(_NATIVE_CODE):
            name = PurePosixPath(part.name).name
            self._findings.add(part.member, name, "code", Verdict.UNKNOWN, "which is not judged")
        elif head.startswith(_ZIP):
            self._scan_zip(part)
            return
        elif is_tar(head):
            self._scan_tar(part)
        elif (make := find_compression(head)) is not None and not _is_text(head):
            self._scan_compressed(part, make)
            return
        elif is_npy(head):
            for inner, is_pickled in iter_npy(part, head):
                self._scan_pickles(inner, is_known=is_pickled)
            return
        elif part.suffix in PICKLE_SUFFIXES or (looks_pickled(head) and not part.depth):
            self._scan_pickles(part, is_known=True)
            return
        else:
            try:
                if not self._scan_data(part, head) and not part.depth:
                    self._damage(part, "no reader knows this format")
            finally:
                if may_be_pickled(head):
                    self._scan_pickles(part, is_known=False)
                if make is not None:
                    self._try(lambda scan: scan._scan_compressed(part, make))

    def _scan_data(self, part: Part, head: bytes) -> bool:
        """Scan formats that are data by design; False for none of them."""
        if part.depth and not part.suffix:
            return True  # the values of a tensor, in archives of PyTorch
        name = PurePosixPath(part.name).name
        if not part.depth and part.suffix in _BINARY_SUFFIXES and _is_text(head):
            self._damage(part, f"{_name_text(part, head)}, expected weights")
            return True
        if not head or head.startswith(_PICTURES) or _VALUES.fullmatch(name):
            return True
        return (part.n_bytes is not None and self._scan_format(part, head, name)) or self._scan_text(part, head)

    def _scan_format(self, part: Part, head: bytes, name: str) -> bool:
        if safetensors.matches(part.open()):
            safetensors.SafetensorsReader(part.open(), part.name)
            return True
        from dvc_modelver.formats import catboost, gguf, tensorflow, tflite, xgboost
        from dvc_modelver.security.graphs import (
            is_gguf,
            scan_gguf,
            scan_keras_metadata,
            scan_onnx,
            scan_saved_model,
        )
        from dvc_modelver.security.hdf5 import is_hdf5, scan_hdf5

        if is_gguf(head):
            scan_gguf(part, self._findings)
            gguf.open_file(part.open(), part.name)
        elif is_hdf5(part.open()):
            if not part.depth:  # in an archive, the configuration lies beside the weights
                scan_hdf5(part, self._findings)
        elif name == "saved_model.pb":
            scan_saved_model(part, self._findings)
        elif name == "keras_metadata.pb":
            scan_keras_metadata(part, self._findings)
        elif part.suffix == ".onnx":
            scan_onnx(part, self._findings)
        elif tflite.matches(part.open()):
            tflite.open_file(part.open(), part.name)
        elif catboost.matches(part.open()):
            catboost.open_file(part.open(), part.name)
        elif xgboost.matches(part.open()) and not _is_text(head):
            xgboost.open_file(part.open(), part.name)
        else:
            return tensorflow.matches(part.open())
        return True

    def _scan_text(self, part: Part, head: bytes) -> bool:
        if part.suffix == ".json":  # in any encoding: the parser finds out
            self._scan_json(part)
            return True
        if not _is_text(head):
            return False
        if part.suffix in TEMPLATE_SUFFIXES:
            scan_template(part.read(MAX_TEXT_BYTES).decode("utf-8", "replace"), part.member, self._findings)
        elif head.lstrip()[:1] in (b"{", b"["):
            self._scan_json(part)
        elif part.suffix in YAML_SUFFIXES:
            scan_yaml(part.read(MAX_TEXT_BYTES), part.member, self._findings)
        return True

    def _scan_json(self, part: Part) -> None:
        data = part.read(MAX_JSON_BYTES + 1)
        is_large = len(data) > MAX_JSON_BYTES
        is_whole = not is_large and scan_json(data, part.member, self._findings)
        is_configuration = PurePosixPath(part.name).name in CONFIG_NAMES
        if not is_whole and (is_configuration or (part.suffix == ".json" and not is_large)):
            self._damage(part, f"no JSON text of at most {MAX_JSON_BYTES} bytes, expected a whole one")

    # What other things lie in

    def _scan_pickles(self, part: Part, *, is_known: bool) -> None:
        scan = PickleScan(part, self._findings, self._budget, self._follow)
        head = part.read(_HEAD_BYTES)
        if not is_known:
            scan.guess(is_likely=looks_pickled(head))
        elif not part.depth and _is_text(head) and not may_be_pickled(head):
            self._damage(part, f"{_name_text(part, head)}, expected weights")
        else:
            scan.scan()
            if scan.is_legacy and part.n_bytes is not None:
                from dvc_modelver.formats import torch

                torch.open_file(part.open(), part.name)  # raises where raw values behind the pickles are missing

    def _follow(self, part: Part, is_loader: bool) -> None:
        if is_loader:
            self.scan_part(part)
            return
        self._try(lambda scan: scan.scan_part(part))

    def _scan_zip(self, part: Part) -> None:
        if part.n_bytes is None:
            self._damage(part, "an archive compressed in another one, expected to find it as it is")
            return
        for inner in iter_zip(part, self._findings, self._budget):
            self.scan_part(inner)

    def _scan_tar(self, part: Part) -> None:
        if part.n_bytes is None:
            self._damage(part, "a compressed archive: unpack it and scan the folder")
            return
        for inner in iter_tar(part, self._findings):
            self.scan_part(inner)

    def _scan_compressed(self, part: Part, make: Decompress) -> None:
        name = part.name if part.suffix in PICKLE_SUFFIXES else str(PurePosixPath(part.name).with_suffix(""))
        inner = Part(
            part.member,
            name,
            lambda: cast(BinaryIO, Unpacked(part.open(), make, self._budget, part.name)),
            None,
            part.depth + 1,
        )
        head = inner.read(_HEAD_BYTES)
        if not head:
            raise BadModelError(f"{part.name}: cannot be decompressed")
        if part.depth or _is_text(head) or is_tar(head) or is_npy(head) or head.startswith(_ZIP):
            self.scan_part(inner)
        else:
            self._scan_pickles(inner, is_known=True)

    def _damage(self, part: Part, reason: str) -> None:
        self._findings.add(part.member, "", "damage", Verdict.UNKNOWN, reason)


def _opens_as_safetensors(part: Part) -> bool:
    try:
        safetensors.SafetensorsReader(part.open(), part.name)
    except BadModelError:
        return False
    return True


def _name_text(part: Part, head: bytes) -> str:
    impostor = find_impostor(head[:START_BYTES], len(head))
    return (
        impostor.what
        if impostor is not None
        else f"a text that begins with {quote(head[:20].decode('utf-8', 'replace'))}"
    )


def _is_text(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as err:
        if err.start < len(head) - 3 or len(head) < _HEAD_BYTES:
            return False
    return _CONTROL.isdisjoint(head)
