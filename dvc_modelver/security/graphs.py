"""Formats that are data by design, and what can still be in them: custom operators, paths, files, templates.

Sources: ``onnx.proto3``; ``graph.proto``, ``meta_graph.proto`` and ``saved_metadata.proto`` of TensorFlow;
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Iterator

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import measure, quote
from dvc_modelver.formats.pickles import Source
from dvc_modelver.formats.protobuf import BYTES, Field, Walker
from dvc_modelver.security.configs import MAX_JSON_BYTES, scan_json, scan_template
from dvc_modelver.security.parts import Part
from dvc_modelver.security.verdicts import Findings, Verdict

ONNX_DOMAINS = frozenset(
    {"", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training", "com.microsoft",
     "com.microsoft.nchwc"}
)  # fmt: skip
"""Domains of operators that ONNX and its runtime define."""

FILE_OPERATORS = frozenset({"ReadFile", "WriteFile", "MatchingFiles", "ImmutableConst", "LoadLibrary"})
PYTHON_OPERATORS = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})

MAX_TEMPLATE_BYTES = 1 << 20
_MAX_KEYS = 10_000
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_MAX_STRINGS = 2_000_000


def _walk(part: Part) -> tuple[Walker, Field]:
    file = part.open()
    n_bytes = measure(file)
    return Walker(file, n_bytes, part.name), Field(0, BYTES, n_bytes, 0, n_bytes)


def _inside(walker: Walker, message: Field, *numbers: int) -> Iterator[Field]:
    """Give the fields of a message that a path of numbers leads to."""
    for field in walker.fields(message.start, message.end):
        if field.number == numbers[0] and field.wire == BYTES:
            if len(numbers) > 1:
                yield from _inside(walker, field, *numbers[1:])
            else:
                yield field


def scan_onnx(part: Part, findings: Findings) -> None:
    """Note the domains of custom operators, whose code the runtime is given, and values kept outside of the folder.

    Raises:
        BadModelError: It is damaged.
    """
    walker, model = _walk(part)
    for domain in {walker.text(field) for field in _inside(walker, model, 8, 1)} - ONNX_DOMAINS:
        findings.add(part.member, domain, "operator", Verdict.UNKNOWN, "operators whose code is not ONNX's own")
    for entry in _inside(walker, model, 7, 5, 13):
        pair = {field.number: field for field in walker.fields(entry.start, entry.end) if field.wire == BYTES}
        if 1 in pair and 2 in pair and walker.text(pair[1]) == "location":
            place = walker.text(pair[2])
            if ".." in place.replace("\\", "/").split("/") or place.startswith(("/", "\\")) or place[1:2] == ":":
                why = "values read from outside of the model's folder"
                findings.add(part.member, place, "path", Verdict.DANGEROUS, why)


def scan_saved_model(part: Part, findings: Findings) -> None:
    """Note operators of a TensorFlow graph that read or write files, or call Python.

    Raises:
        BadModelError: It is damaged.
    """
    walker, model = _walk(part)
    for graph in _inside(walker, model, 2, 2):
        for path in ((1, 2), (2, 1, 3, 2)):
            for field in _inside(walker, graph, *path):
                operator = walker.text(field)
                if operator in FILE_OPERATORS:
                    findings.add(part.member, operator, "operator", Verdict.DANGEROUS, "reads or writes any file")
                elif operator in PYTHON_OPERATORS:
                    findings.add(part.member, operator, "operator", Verdict.UNKNOWN, "calls Python of the program")


def scan_keras_metadata(part: Part, findings: Findings) -> None:
    """Note the code that the layers' configurations in a SavedModel of Keras name.

    Raises:
        BadModelError: It is damaged.
    """
    walker, metadata = _walk(part)
    for node in _inside(walker, metadata, 1):
        for field in walker.fields(node.start, node.end):
            if field.wire == BYTES and field.number > 3 and field.value <= MAX_JSON_BYTES:
                text = walker.read(field.start, field.end)
                if text.startswith(b"{"):
                    scan_json(text, part.member, findings)


def is_gguf(start: bytes) -> bool:
    """Tell by a file's first bytes whether it is a GGUF file."""
    return start.startswith(b"GGUF")


def scan_gguf(part: Part, findings: Findings) -> None:
    """Note the chat templates in the header of a GGUF file.

    Raises:
        BadModelError: The header is damaged.
    """
    source = part.source()
    version = _uint(source.read(8)[4:])
    if not 2 <= version <= 3:
        raise BadModelError(f"{part.name}: GGUF of version {version}, expected 2 or 3")
    source.skip(8)
    n_keys = _uint(source.read(8))
    if n_keys > _MAX_KEYS:
        raise BadModelError(f"{part.name}: announces {n_keys} keys, expected at most {_MAX_KEYS}")
    for _ in range(n_keys):
        key = source.read(_length(source, 1 << 16))
        kind = _uint(source.read(4))
        if kind == _STRING and key.startswith(b"tokenizer.chat_template"):
            text = source.read(_length(source, MAX_TEMPLATE_BYTES)).decode("utf-8", "replace")
            scan_template(text, part.member, findings)
        else:
            _skip_value(source, kind)


def _skip_value(source: Source, kind: int) -> None:
    if kind == _STRING:
        source.skip(_uint(source.read(8)))
    elif kind == _ARRAY:
        inner, count = _uint(source.read(4)), _uint(source.read(8))
        if inner == _STRING:
            if count > _MAX_STRINGS:
                raise BadModelError(f"{source.name}: announces {count} strings, expected at most {_MAX_STRINGS}")
            for _ in range(count):
                source.skip(_uint(source.read(8)))
        else:
            source.skip(count * _size(source, inner))
    else:
        source.skip(_size(source, kind))


def _size(source: Source, kind: int) -> int:
    if kind not in _SIZES:
        raise BadModelError(f"{source.name}: found the type {kind} of a value, expected 0 to 12")
    return _SIZES[kind]


def _length(source: Source, most: int) -> int:
    length = _uint(source.read(8))
    if length > most:
        raise BadModelError(f"{source.name}: found a text of {quote(length)} bytes, expected at most {most}")
    return length


def _uint(data: bytes) -> int:
    return int.from_bytes(data, "little")
