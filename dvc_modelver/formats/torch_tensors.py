"""Tensors of a PyTorch pickle: from the calls that would rebuild them to what they are views of.

Source: the ``_rebuild_*`` functions of ``torch/_utils.py`` and ``torch/_tensor.py`` of PyTorch 2.13; for arrays,
``numpy/_core/src/multiarray/methods.c`` (``array_reduce``) of NumPy 2.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import MAX_ELEMENTS, count_elements, quote
from dvc_modelver.formats.pickles import Call, Global, Span
from dvc_modelver.formats.torch_container import HINT, Storage
from dvc_modelver.formats.torch_dtypes import ALIASES, TORCH_DTYPES, TorchDtype

_MAX_WRAPPERS = 8
_MAX_AXES = 32
_ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_NUMPY_DTYPES = {
    "b1": "bool", "i1": "int8", "i2": "int16", "i4": "int32", "i8": "int64", "u1": "uint8", "u2": "uint16",
    "u4": "uint32", "u8": "uint64", "f2": "float16", "f4": "float32", "f8": "float64", "c8": "complex64",
    "c16": "complex128",
}  # fmt: skip
_STRUCT_CODES = {
    "bool": "?", "int8": "b", "int16": "h", "int32": "i", "int64": "q", "uint8": "B", "uint16": "H", "uint32": "I",
    "uint64": "Q", "float16": "e", "float32": "f", "float64": "d",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class View:
    """A tensor: elements of a storage, at an offset and with strides.

    Attributes:
        dtype: PyTorch's name of the type.
        storage: What it is a view of.
        offset: Elements before the first one.
        shape: Axis lengths, outermost first.
        strides: Elements from one index to the next, per axis; 0 where the axis has one index.
        is_big_endian: Byte order, where it is not that of the file.
        is_conj: Complex conjugates are meant.
        is_neg: Negatives are meant.
        quantiser: How stored integers stand for real numbers.
    """

    dtype: str
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    is_big_endian: bool | None = None
    is_conj: bool = False
    is_neg: bool = False
    quantiser: Quantiser | None = None

    @property
    def kind(self) -> TorchDtype:
        """The type of its elements."""
        return TORCH_DTYPES[self.dtype]

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements lie side by side in C order."""
        return self.strides == c_strides(self.shape)


@dataclass(frozen=True, slots=True)
class Quantiser:
    """The real number of a stored integer: ``(integer - zero point) * scale``.

    Attributes:
        scale: One for all, or one for each index of `axis`.
        zero_point: As `scale`.
        axis: None where there is one of each.
    """

    scale: float | View | tuple[float, ...]
    zero_point: float | View | tuple[float, ...]
    axis: int | None = None


@dataclass(frozen=True, slots=True)
class Several:
    """A tensor that is kept as others: a sparse or a nested one.

    Attributes:
        layout: ``"sparse_coo"``, ``"sparse_csr"``, ``"nested"``...
        parts: By the names that PyTorch's methods have (``indices``, ``values``).
        shape: Of the whole; empty where the parts say it.
    """

    layout: str
    parts: dict[str, object]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Absent:
    """A tensor without values in the file.

    Attributes:
        why: ``"meta"``, or what PyTorch calls what would make it.
        what: Its type and shape.
    """

    why: str
    what: str


Parsed = View | Several | Absent


def c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Give the strides of a tensor whose elements lie side by side in C order; 0 for an axis with one index."""
    strides, step = [], 1
    for axis in reversed(shape):
        strides.append(step if axis != 1 else 0)
        step *= axis
    return tuple(reversed(strides))


class TensorParser:
    """Tells tensors among the records of a pickle.

    Args:
        name: How errors call the file.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def parse(self, value: object) -> Parsed | None:
        """Give the tensor that a record stands for; None for a record of something else.

        Raises:
            BadModelError: It stands for a tensor that cannot be.
        """
        for _ in range(_MAX_WRAPPERS):
            if isinstance(value, Storage):
                item_bytes = TORCH_DTYPES[value.dtype or "uint8"].item_bytes
                return self._make_view(value, 0, (value.n_bytes // item_bytes,), (1,), value.dtype or "uint8")
            if not isinstance(value, Call):
                return None
            subclass = find_subclass(value)
            inner = subclass[0] if subclass else unwrap(value)
            if inner is value:
                break
            value = inner
        return self._parse_call(value) if isinstance(value, Call) else None

    def _parse_call(self, call: Call) -> Parsed | None:
        match call.name.rpartition("."), call.args:
            case ("torch._utils", _, "_rebuild_tensor" | "_rebuild_tensor_v2"), (storage, offset, size, strides, *more):
                return self._parse_strided(storage, offset, size, strides, None, more[2:3])
            case ("torch._utils", _, "_rebuild_tensor_v3"), (storage, offset, size, strides, _, _, dtype, *more):
                return self._parse_strided(storage, offset, size, strides, dtype, more[:1])
            case ("torch._utils", _, "_rebuild_qtensor"), (storage, offset, size, strides, quantiser, *_):
                return self._parse_quantised(storage, offset, size, strides, quantiser)
            case ("torch._utils", _, "_rebuild_sparse_tensor" | "_rebuild_sparse_csr_tensor"), (
                layout,
                tuple() as data,
            ):
                return self._parse_sparse(_layout_of(layout), data)
            case ("torch._utils", _, "_rebuild_nested_tensor"), (_, _, _, _):
                names = ("values", "sizes", "strides", "storage_offsets")
                return Several("nested", dict(zip(names, call.args, strict=True)), ())
            case ("torch._utils", _, "_rebuild_meta_tensor_no_storage"), (dtype, size, *_):
                return Absent("meta", f"{_dtype_of(dtype) or quote(dtype)} {list(self._shape(size))}")
            case ("torch._utils", _, "_rebuild_device_tensor_from_numpy" | "_rebuild_xla_tensor"), (data, dtype, *_):
                return self._parse_converted(data, dtype)
            case ("torch", _, kind), () if kind.endswith("Tensor") and call.states:
                match call.states[-1]:
                    case (Storage() as storage, offset, size, strides):  # before PyTorch 0.2
                        return self._parse_strided(storage, offset, size, strides, None, [])
            case ("torch.sparse", _, _), (indices, values, size):  # before PyTorch 1.0
                return self._parse_sparse("sparse_coo", (indices, values, size))
            case ("torch._utils", _, rebuild), _ if rebuild.startswith("_rebuild_") and "wrapper" not in rebuild:
                raise self._bad(f"has a tensor made by {quote(rebuild)} of {len(call.args)} arguments, expected others")
        if call.name in _ARRAYS or call.name.endswith("numeric._frombuffer"):
            return self._parse_array(call)
        return None

    def _bad(self, finding: str) -> BadModelError:
        return BadModelError(f"{self._name}: {finding}", hint=HINT)

    def _parse_strided(
        self, storage: object, offset: object, size: object, strides: object, dtype: object, metadata: list[object]
    ) -> View:
        found = _dtype_of(dtype) if dtype is not None else storage.dtype if isinstance(storage, Storage) else None
        if not isinstance(storage, Storage) or found is None:
            raise self._bad(f"has a tensor of type {quote(dtype)} over {quote(storage)}, expected a known type")
        view = self._make_view(storage, offset, self._shape(size), self._shape(strides), found)
        match metadata:
            case [dict() as bits]:
                is_conj, is_neg = bits.get("conj") is True, bits.get("neg") is True
                return replace(view, is_conj=is_conj and view.kind.is_complex, is_neg=is_neg)
        return view

    def _make_view(
        self, storage: Storage, offset: object, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str
    ) -> View:
        numel = count_elements(shape)
        if type(offset) is not int or offset < 0 or numel is None or len(strides) != len(shape):
            raise self._bad(
                f"has a tensor of shape {quote(shape)}, strides {quote(strides)} and offset {quote(offset)}, "
                "expected none negative and a product below 2^63"
            )
        item_bytes = TORCH_DTYPES[dtype].item_bytes
        if numel == 0:
            return View(dtype, storage, 0, shape, c_strides(shape))
        last = offset + sum((axis - 1) * stride for axis, stride in zip(shape, strides, strict=True))
        if (last + 1) * item_bytes > storage.n_bytes or numel * item_bytes * 2 > MAX_ELEMENTS:
            raise self._bad(
                f"has a tensor of shape {quote(shape)} that ends at byte {(last + 1) * item_bytes} of its storage, "
                f"expected at most {storage.n_bytes}"
            )
        strides = tuple(0 if axis == 1 else stride for axis, stride in zip(shape, strides, strict=True))
        return View(dtype, storage, offset, shape, strides)

    def _shape(self, value: object) -> tuple[int, ...]:
        match value:
            case Call(args=(inner,)) if value.name == "torch.Size":
                value = inner
        axes = tuple(value[: _MAX_AXES + 1]) if isinstance(value, list | tuple) else (None,)
        if len(axes) <= _MAX_AXES and all(type(axis) is int and 0 <= axis <= MAX_ELEMENTS for axis in axes):
            return axes
        raise self._bad(f"has a tensor of shape or strides {quote(value)}, expected a tuple of small integers")

    def _parse_quantised(
        self, storage: object, offset: object, size: object, strides: object, quantiser: object
    ) -> View:
        if isinstance(storage, Storage) and storage.dtype in ("quint4x2", "quint2x4"):
            # Several numbers in a byte: shape and strides count numbers, so the bytes are given as they lie.
            return self._make_view(storage, 0, (storage.n_bytes,), (1,), storage.dtype)
        view = self._parse_strided(storage, offset, size, strides, None, [])
        match quantiser:
            case (Global(), int() | float() as scale, int() | float() as zero_point):
                return replace(view, quantiser=Quantiser(self._parse_real(scale), self._parse_real(zero_point)))
            case (Global(), scales, zero_points, int() as axis) if 0 <= axis < len(view.shape):
                n_channels = view.shape[axis]
                return replace(
                    view,
                    quantiser=Quantiser(
                        self._parse_channels(scales, n_channels), self._parse_channels(zero_points, n_channels), axis
                    ),
                )
        raise self._bad(f"has a quantised tensor of scheme {quote(quantiser)}, expected a scale and a zero point")

    def _parse_real(self, value: float) -> float:
        try:
            return float(value)
        except OverflowError as err:
            raise self._bad(f"has the quantiser {quote(value)}, expected a number of 64 bits") from err

    def _parse_channels(self, value: object, n_channels: int) -> View | tuple[float, ...]:
        if isinstance(value, list) and len(value) == n_channels and all(isinstance(v, int | float) for v in value):
            try:
                return tuple(map(float, value))
            except OverflowError:
                pass
        view = self.parse(value)
        if not isinstance(view, View) or view.shape != (n_channels,) or view.kind.dtype not in ("F64", "F32", "I64"):
            raise self._bad(f"has quantisers {quote(value)}, expected {n_channels} of them")
        return view

    def _parse_sparse(self, layout: str, data: tuple[object, ...]) -> Several:
        match layout, data:
            case "sparse_coo", (indices, values, size, *_):
                return Several(layout, {"indices": indices, "values": values}, self._shape(size))
            case "sparse_csr" | "sparse_bsr", (rows, columns, values, size):
                parts = {"crow_indices": rows, "col_indices": columns, "values": values}
                return Several(layout, parts, self._shape(size))
            case "sparse_csc" | "sparse_bsc", (columns, rows, values, size):
                parts = {"ccol_indices": columns, "row_indices": rows, "values": values}
                return Several(layout, parts, self._shape(size))
        raise self._bad(
            f"has a sparse tensor of layout {quote(layout)} with {len(data)} parts, expected another number"
        )

    def _parse_converted(self, data: object, dtype: object) -> Parsed | None:
        array, wanted = self.parse(data), _dtype_of(dtype)
        if isinstance(array, View) and array.dtype != wanted:
            return Absent("converted when loaded", f"{array.dtype} to {wanted} {list(array.shape)}")
        return array

    def _parse_array(self, call: Call) -> View | None:
        match call.states[-1:], call.args:
            case ((_, shape, dtype, is_fortran, str() | bytes() | Span() as data),), _:
                is_fortran = bool(is_fortran)
            case _, (str() | bytes() | Span() as data, dtype, shape, str() as order):
                is_fortran = order == "F"
            case _:
                return None
        found = find_numpy_dtype(dtype)
        if found is None:
            return None
        data = data.encode() if isinstance(data, str) else data
        n_bytes = data.n_bytes if isinstance(data, Span) else len(data)
        axes = self._shape(shape)
        strides = c_strides(axes[::-1])[::-1] if is_fortran else c_strides(axes)
        storage = Storage(f"array {id(data)}", found[0], n_bytes, data=data)
        return replace(self._make_view(storage, 0, axes, strides, found[0]), is_big_endian=found[1])


def find_numpy_dtype(value: object) -> tuple[str, bool] | None:
    """Give PyTorch's name of a pickled NumPy dtype, and whether it is big-endian; None for other types."""
    match value:
        case Call(args=(str() as code, *_), states=((_, str() as order, *_), *_)) if value.name == "numpy.dtype":
            return (_NUMPY_DTYPES[code], order == ">") if code in _NUMPY_DTYPES else None
    return None


def find_numpy_scalar(call: Call) -> int | float | bool | None:
    """Give the number of a pickled NumPy scalar; None for other records."""
    match call.args:
        case (dtype, str() | bytes() as data) if call.name in _SCALARS:
            found = find_numpy_dtype(dtype)
            data = data.encode() if isinstance(data, str) else data
            if found and found[0] in _STRUCT_CODES and len(data) == TORCH_DTYPES[found[0]].item_bytes:
                code = (">" if found[1] else "<") + _STRUCT_CODES[found[0]]
                number: int | float | bool = struct.unpack(code, data)[0]
                return number
    return None


def unwrap(call: Call) -> object:
    """Give what a record merely passes on: the tensor of a parameter, the value behind a type tag; else itself."""
    match call.name, call.args:
        case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", (data, *_):
            return data
        case "torch._utils._rebuild_device_tensor_from_cpu_tensor", (data, *_):
            return data
        case "torch.nn.parameter.Parameter" | "torch.autograd.variable.Variable", (Call() as data, *_):
            return data
        case name, (value, *_) if name.startswith("torch.jit._pickle."):
            return value
    return call


def find_subclass(call: Call) -> tuple[Call, str, object] | None:
    """Give what would make a tensor of a subclass: the call for a plain one, the class, its attributes."""
    match call.name, call.args:
        case (
            "torch._tensor._rebuild_from_type_v2"
            | "torch._tensor._rebuild_from_type"
            | "torch.tensor._rebuild_from_type",
            (function, kind, tuple() as args, state),
        ):
            return Call(function, args, {}), str(kind) if isinstance(kind, Global) else quote(kind), state
    return None


def _dtype_of(value: object) -> str | None:
    if not isinstance(value, Global) or value.module != "torch":
        return None
    name = ALIASES.get(value.name, value.name)
    return name if name in TORCH_DTYPES else None


def _layout_of(value: object) -> str:
    match value:
        case Call(args=(str() as name,)):
            return name.removeprefix("torch.")
        case Global():
            return value.name
        case str():
            return value.removeprefix("torch.")
    return quote(value)
