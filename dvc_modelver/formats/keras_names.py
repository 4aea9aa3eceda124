"""What Keras means by the paths in its HDF5 files: names of weights, and the configuration as flat facts.

Keras 3 numbers the variables of a layer (``layers/dense_1/vars/0``) under groups called after classes; the layer's own
name stands in an attribute since 3.6, and in the configuration before. The legacy layout has both names. Where layer
and variable are known a weight is called ``dense_1/kernel``, as `Layer.weights` shows it; where the layer alone is
known ``dense_1/vars/0``; else by its path in the file.

Sources: ``_save_container_state`` in ``keras/src/saving/saving_lib.py``, ``save_weights_to_hdf5_group`` in
``keras/src/legacy/saving/legacy_h5_format.py``, and the ``build`` of each layer in ``keras/src/layers``, all in
https://github.com/keras-team/keras.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import combinations
from typing import Any

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import Scalar, flatten, quote
from dvc_modelver.formats.hdf5_objects import Listing, Stored

MAX_CONFIG_BYTES = 8 << 20
MAX_NESTING = 50

_VARIABLE = re.compile(r"(?:^|(.*)/)vars/(\d+)")
_COUNTER = re.compile(r"_\d+$")
_WEIGHTS = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "depthwise_conv1d", "depthwise_conv2d"), "kernel bias?"),
    **dict.fromkeys(("conv1d_transpose", "conv2d_transpose", "conv3d_transpose"), "kernel bias?"),
    **dict.fromkeys(("separable_conv1d", "separable_conv2d"), "depthwise_kernel pointwise_kernel bias?"),
    **dict.fromkeys(("dense", "einsum_dense"), "kernel bias?"),
    **dict.fromkeys(("lstm_cell", "gru_cell", "simple_rnn_cell"), "kernel recurrent_kernel bias?"),
    **dict.fromkeys(("conv_lstm_cell",), "kernel recurrent_kernel bias?"),
    **dict.fromkeys(("layer_normalization", "group_normalization"), "gamma? beta?"),
    "batch_normalization": "gamma? beta? moving_mean moving_variance",
    "embedding": "embeddings",
    "p_re_lu": "alpha",
    "rms_normalization": "scale",
}
"""Variables of Keras' own layers in the order in which they are saved; those with ``?`` may be absent."""

_SWITCHES = {"bias": "use_bias", "gamma": "scale", "beta": "center"}
_MATRICES = frozenset({"kernel", "recurrent_kernel", "depthwise_kernel", "pointwise_kernel", "embeddings"})
_PARTS = frozenset({"query_dense", "key_dense", "value_dense", "output_dense"})
_RECURRENT = frozenset({"lstm", "gru", "simple_rnn"})


class Layout(Enum):
    """How the groups of a file are to be read."""

    PLAIN = "plain"
    LEGACY = "legacy"
    VARIABLES = "variables"


@dataclass(frozen=True)
class _Layer:
    name: str
    class_name: str
    config: Mapping[str, Any]


def find_layout(listing: Listing) -> Layout:
    """Tell whose layout a file has."""
    if listing.has_layer_names or listing.layers:
        return Layout.LEGACY
    if any(_VARIABLE.fullmatch(path) for path in listing.datasets):
        return Layout.VARIABLES
    return Layout.PLAIN


def parse_config(text: str | bytes, name: str) -> dict[str, Any]:
    """Read a model's configuration; nothing in it is built or imported.

    Raises:
        BadModelError: It is no JSON object, or too large.
    """
    try:
        if len(text) > MAX_CONFIG_BYTES:
            raise ValueError(f"{len(text)} bytes, at most {MAX_CONFIG_BYTES} are read")
        config = json.loads(text)
        if not isinstance(config, dict):
            raise ValueError(f"found {quote(config)}")
    except (ValueError, RecursionError) as err:
        detail = quote(str(err).split("\n", 1)[0])
        raise BadModelError(
            f"{name}: the configuration cannot be read ({detail}), expected a JSON object",
            hint="save the model again with Keras",
        ) from err
    return config


def describe_config(config: Mapping[str, Any] | None, compiled: Mapping[str, Any] | None) -> dict[str, Scalar]:
    """Give a configuration as flat facts: ``config.layers.<layer>...`` and ``compile...``.

    Layers are keyed by their names, so that one more does not rename those behind it; ``layer_order`` has their order.

    Args:
        config: The model's configuration.
        compiled: What the model was compiled with; where None, what `config` says of it.
    """
    if config is None:
        return {}
    found = {}
    rest = dict(config)
    own = rest.pop("compile_config", None)
    for prefix, part in (("config", rest), ("compile", own if compiled is None else compiled)):
        if part is not None:
            found.update(flatten(_tidy(part, 0), prefix))
    return found


def name_weights(
    datasets: Mapping[str, Stored], listing: Listing, layout: Layout, config: Mapping[str, Any] | None
) -> dict[str, str]:
    """Give every dataset its name, one for each.

    Two that would be called the same keep their paths in the file.

    Args:
        datasets: By path; those that are tensors.
        listing: All objects of the file.
        layout: Whose layout it is.
        config: The model's configuration, where the file has it.
    """
    if layout is Layout.LEGACY:
        names = {path: _legacy_name(path, listing) for path in datasets}
    elif layout is Layout.VARIABLES:
        names = _name_variables(datasets, listing, config)
    else:
        names = {path: path for path in datasets}
    while len(set(names.values())) < len(names):
        count = Counter(names.values())
        names = {path: path if count[name] > 1 else name for path, name in names.items()}
    return names


def _legacy_name(path: str, listing: Listing) -> str:
    if path.startswith("optimizer_weights/"):
        return "optimizer." + path.removeprefix("optimizer_weights/")
    above = path
    while above and above not in listing.layers:
        above = above.rpartition("/")[0]
    if not above:
        return path
    layer, weight = above.removeprefix("model_weights/"), path[len(above) + 1 :]
    if layer == "top_level_model_weights":
        return weight
    for candidate in (weight, weight.partition("/")[2]):
        # Weights of a model that was called before its first save start with the model's name.
        if candidate.startswith(layer + "/"):
            return candidate
    if "/" not in weight and weight.startswith(layer + "_"):
        # Keras 1: dense_1_W
        return weight
    return f"{layer}/{weight}"


def _name_variables(
    datasets: Mapping[str, Stored], listing: Listing, config: Mapping[str, Any] | None
) -> dict[str, str]:
    members: dict[str, dict[str, Stored]] = {}
    names = {path: path for path in datasets}
    for path, one in datasets.items():
        found = _VARIABLE.fullmatch(path)
        if found and found[1]:
            members.setdefault(found[1], {})[found[2]] = one
    placed = {
        path: layer
        for path, layer in (_iter_layers(config, "") if config else ())
        if listing.names.get(path, layer.name) == layer.name
    }
    known = _unique_layers(config) if config else {}
    for group, variables in members.items():
        steps, labels = group.split("/"), None
        if steps[0] == "optimizer":
            prefix = "optimizer." + "/".join((*steps[1:], "vars"))
        elif placed or listing.names:
            prefix = "/".join(_iter_chain(steps, listing, placed))
            layer = placed.get(group) or known.get(listing.names.get(group, ""))
            labels = _label(layer, _guess_class(group, listing), variables)
            prefix += "" if labels else "/vars"
        else:
            continue
        for number, one in variables.items():
            names[one.path] = f"{prefix}/{labels[int(number)] if labels else number}"
    return names


def _iter_chain(steps: list[str], listing: Listing, placed: Mapping[str, _Layer]) -> Iterator[str]:
    for i, step in enumerate(steps):
        path = "/".join(steps[: i + 1])
        layer = placed.get(path)
        if path in listing.names:
            yield listing.names[path]
        elif layer is not None:
            yield layer.name
        elif f"{path}/vars" in listing.groups or (step != "layers" and not listing.names):
            yield step


def _guess_class(group: str, listing: Listing) -> str:
    # A group is called after its class inside a list of layers, and after an attribute elsewhere; layers that
    # nobody named are called after their class too.
    above, _, step = group.rpartition("/")
    if step.lstrip("_") in _PARTS:
        return "einsum_dense"
    is_member = above != "" and f"{above}/vars" not in listing.groups
    return _COUNTER.sub("", step if is_member else listing.names.get(group, step))


def _label(layer: _Layer | None, guessed: str, variables: Mapping[str, Stored]) -> tuple[str, ...] | None:
    pattern = _WEIGHTS.get(layer.class_name if layer else guessed)
    count = len(variables)
    if pattern is None or set(variables) != {str(i) for i in range(count)}:
        return None
    words = pattern.split()
    optional = [word for word in words if word.endswith("?")]
    absences = list(combinations(optional, len(words) - count)) if len(words) >= count else []
    if len(absences) > 1 and layer is not None:
        absences = [
            absent for absent in absences if not any(layer.config.get(_SWITCHES[word[:-1]], True) for word in absent)
        ]
    if len(absences) != 1:
        return None
    labels = tuple(word.rstrip("?") for word in words if word not in absences[0])
    for number, word in enumerate(labels):
        one = variables[str(number)]
        # Quantised layers have scales in between, so only floats are what the table says.
        if (one.dtype or "")[0] not in "FB" or len(one.shape) < (2 if word in _MATRICES else 1):
            return None
    return labels


def _iter_layers(config: Mapping[str, Any], prefix: str, depth: int = 0) -> Iterator[tuple[str, _Layer]]:
    inner = config.get("config")
    layers = inner.get("layers") if isinstance(inner, Mapping) else None
    if not isinstance(layers, list) or depth > MAX_NESTING:
        return
    used: Counter[str] = Counter()
    for entry in layers:
        if not isinstance(entry, Mapping) or str(entry.get("module")).startswith("keras.src.ops"):
            continue
        layer = _read_layer(entry)
        own = _snake_case(str(entry.get("class_name", "")))
        path = f"{prefix}layers/{own}" + (f"_{used[own]}" if used[own] else "")
        used[own] += 1
        if layer is None:
            continue
        yield path, layer
        if layer.class_name in _RECURRENT:
            cell = f"{layer.class_name}_cell"
            yield f"{path}/cell", _Layer(cell, cell, layer.config)
        yield from _iter_layers(entry, f"{path}/", depth + 1)


def _unique_layers(config: Mapping[str, Any]) -> dict[str, _Layer]:
    found: dict[str, _Layer | None] = {}
    todo: list[object] = [config]
    while todo:
        item = todo.pop()
        if isinstance(item, Mapping):
            layer = _read_layer(item)
            if layer is not None:
                found[layer.name] = None if layer.name in found else layer
            todo.extend(item.values())
        elif isinstance(item, list):
            todo.extend(item)
    return {name: layer for name, layer in found.items() if layer is not None}


def _read_layer(entry: Mapping[str, Any]) -> _Layer | None:
    config, name = entry.get("config"), None
    if isinstance(config, Mapping):
        name = config.get("name")
    if not isinstance(config, Mapping) or not isinstance(name, str) or not name or "/" in name:
        return None
    module = str(entry.get("module"))
    is_own = module in ("keras", "tf_keras") or module.startswith(("keras.", "tf_keras."))
    return _Layer(name, _snake_case(str(entry.get("class_name"))) if is_own else "", config)


def _snake_case(name: str) -> str:
    name = re.sub(r"\W+", "", name.rpartition(">")[2])
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _tidy(value: Any, depth: int) -> Any:
    if isinstance(value, Mapping) and depth < MAX_NESTING:
        # The one is an address in the memory of the process that saved, the other says "nothing registered".
        noise = {"shared_object_id"} | ({"registered_name"} if value.get("registered_name") is None else set())
        tidy = {key: _tidy(member, depth + 1) for key, member in value.items() if key not in noise}
        layers = value.get("layers")
        keyed = _by_name(layers) if isinstance(layers, list) else None
        if keyed:
            tidy["layers"] = {name: _tidy(layer, depth + 1) for name, layer in keyed.items()}
            tidy["layer_order"] = list(keyed)
        return tidy
    if isinstance(value, list) and depth < MAX_NESTING:
        return [_tidy(member, depth + 1) for member in value]
    return value


def _by_name(layers: list[Any]) -> dict[str, Any] | None:
    keyed: dict[str, Any] = {}
    for layer in layers:
        config = layer.get("config") if isinstance(layer, Mapping) else None
        name = config.get("name") if isinstance(config, Mapping) else None
        if not isinstance(name, str) or name in keyed:
            return None
        keyed[name] = layer
    return keyed
