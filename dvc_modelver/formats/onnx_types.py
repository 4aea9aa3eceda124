"""ValueInfoProto, TypeProto and the small messages of ONNX, as text.

Source: https://github.com/onnx/onnx, ``onnx/onnx.proto``.
"""

from __future__ import annotations

from dvc_modelver.formats.onnx_tensors import DTYPES, STRING, signed
from dvc_modelver.formats.protobuf import BYTES, VARINT, Field, Walker, check_depth

_KINDS = {4: "sequence", 9: "optional"}


def read_value(walker: Walker, value: Field) -> tuple[str, str]:
    """Give the name and type of an input or output: ``("x", "F32 [batch, 3, 224, 224]")``."""
    name, text = "", ""
    for item in walker.fields(value.start, value.end):
        if item.number == 1:
            name = walker.text(item)
        elif item.number == 2 and item.wire == BYTES:
            text = _read_type(walker, item, 0)
    return name, text


def read_opset(walker: Walker, opset: Field) -> tuple[str, int]:
    """Give the domain (empty for ONNX's own) and version of an operator set."""
    domain, version = "", 0
    for item in walker.fields(opset.start, opset.end):
        if item.number == 1:
            domain = walker.text(item)
        elif item.number == 2 and item.wire == VARINT:
            version = item.value
    return domain, version


def read_property(walker: Walker, entry: Field) -> tuple[str, str]:
    """Give key and value of a property; the value may be long."""
    key, value = "", ""
    for item in walker.fields(entry.start, entry.end):
        if item.number == 1:
            key = walker.text(item)
        elif item.number == 2 and item.wire == BYTES:
            value = walker.read(item.start, item.end).decode("utf-8", "backslashreplace")
    return key, value


def _read_type(walker: Walker, kind: Field, depth: int) -> str:
    check_depth(depth, walker.where)
    for item in walker.fields(kind.start, kind.end):
        if item.wire != BYTES or item.number == 6:
            continue
        dtype, shape, inner = "?", "[...]", ""
        for part in walker.fields(item.start, item.end):
            if part.number == 1 and part.wire == VARINT:
                dtype = "STRING" if part.value == STRING else DTYPES.get(part.value, "?")
            elif part.wire == BYTES and item.number in (1, 8) and part.number == 2:
                shape = _read_shape(walker, part)
            elif part.wire == BYTES and item.number in (4, 5, 9):
                inner = _read_type(walker, part, depth + 1)
        if item.number in (1, 8):
            return f"{'sparse ' if item.number == 8 else ''}{dtype} {shape}"
        return f"map({dtype}, {inner})" if item.number == 5 else f"{_KINDS.get(item.number, 'opaque')}({inner})"
    return "?"


def _read_shape(walker: Walker, shape: Field) -> str:
    axes = []
    for item in walker.fields(shape.start, shape.end):
        if item.number != 1 or item.wire != BYTES:
            continue
        axis = "?"
        for part in walker.fields(item.start, item.end):
            if part.number == 1 and part.wire == VARINT:
                axis = str(signed(part.value))
            elif part.number == 2:
                axis = walker.text(part)
        axes.append(axis)
    return f"[{', '.join(axes)}]"
