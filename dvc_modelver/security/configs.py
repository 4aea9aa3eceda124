"""Configurations that name code: Keras models, Hugging Face's ``auto_map``, chat templates, YAML with Python tags.

Keras builds a model from JSON: each object is a module and a class in it, or a function, or (a ``Lambda`` layer) the
marshalled code of one. ``safe_mode`` of Keras refuses some of it; what is listed here does not depend on it.

Sources: ``keras/src/saving/serialization_lib.py`` and ``keras/src/legacy/saving/serialization.py`` of Keras 3.15;
``transformers/dynamic_module_utils.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Set
from typing import Any

from dvc_modelver.formats.base import quote
from dvc_modelver.security.denied import find_danger
from dvc_modelver.security.verdicts import Findings, Verdict

MAX_JSON_BYTES = 8 << 20
MAX_VISITED = 1_000_000

_KERAS = re.compile(
    r"(?:tensorflow\.python\.keras|tensorflow\.keras|tf_keras|keras)(?:\.src|\.api|\._tf_keras\.keras)?"
)
_KERAS_CLASSES = frozenset(
    {"activations", "backend", "constraints", "dtype_policies", "engine", "feature_column", "initializers", "layers",
     "losses", "metrics", "mixed_precision", "models", "ops", "optimizer_v2", "optimizers", "premade_models",
     "quantizers", "random", "regularizers"}
)  # fmt: skip
"""Where Keras keeps classes that compute; `utils`, `saving` and `applications`, which fetch and load files, are not
among them."""

_KERAS_FUNCTIONS = frozenset({"activations", "constraints", "initializers", "losses", "metrics", "ops", "regularizers"})
_LOADING_LAYERS = frozenset({"TFSMLayer", "TorchModuleWrapper"})
"""Layers of Keras whose configuration is a file to load, or a pickle."""

_PLAIN = frozenset(
    {"__bytes__", "__ellipsis__", "__keras_tensor__", "__numpy__", "__slice__", "__tensor__", "__tuple__"}
)
_OPERATIONS = re.compile(r"(?:math|nn|linalg|image|keras|__operators__|strings|sparse|signal|random)\..*|[a-z_0-9]+")
_YAML_TAG = re.compile(rb"!!?python/[a-z/]+:?[\w.]*|tag:yaml\.org,2002:python/[a-z/]+:?[\w.]*")


def scan_json(data: bytes, member: str, findings: Findings) -> bool:
    """Note the code that a JSON document names; False where it is none.

    Args:
        data: At most `MAX_JSON_BYTES`.
        member: Where it lies.
        findings: Take what is found.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return False
    scan_config(document, member, findings)
    return True


def scan_config(document: object, member: str, findings: Findings) -> None:
    """Note the code that a parsed configuration names."""
    todo: list[tuple[object, str]] = [(document, member)]
    for _ in range(MAX_VISITED):
        if not todo:
            return
        item, where = todo.pop()
        if isinstance(item, dict):
            where = _label(item, member) or where
            _scan_object(item, where, findings)
        values = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        todo.extend((value, where) for value in values if isinstance(value, dict | list))
    findings.add(member, "", "damage", Verdict.UNKNOWN, f"over {MAX_VISITED} values, expected a configuration")


def _label(item: dict[str, Any], member: str) -> str:
    """Give where an object of a configuration is found: the layer's name; empty where it has none."""
    config = item.get("config")
    name = config.get("name") if isinstance(config, dict) and "class_name" in item else None
    return (f"{member}: {name}" if member else name) if isinstance(name, str) else ""


def _scan_object(item: dict[str, Any], where: str, findings: Findings) -> None:
    if "class_name" in item and not {"config", "module", "registered_name", "spec_name"}.isdisjoint(item):
        _scan_keras(item, where, findings)
    if isinstance(item.get("auto_map"), Mapping):
        for kind, target in item["auto_map"].items():
            why = f"its own Python code for {quote(kind)}, which trust_remote_code runs"
            for name in target if isinstance(target, list) else [target]:
                if name is not None:
                    findings.add(where, str(name), "code", Verdict.UNKNOWN, why)
    for template in _iter_templates(item.get("chat_template")):
        scan_template(template, where, findings)


def _iter_templates(value: object) -> Iterator[str]:
    """Give the templates of a configuration: one, named ones, or a list of objects with a name and a template."""
    entries = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, list) else [value]
    for entry in entries:
        for text in entry.values() if isinstance(entry, Mapping) else [entry]:
            if isinstance(text, str):
                yield text


def scan_template(text: str, member: str, findings: Findings) -> None:
    """Note a chat template: Jinja text, which not all programs run in a sandbox; unknown where it reaches for more."""
    from dvc_modelver.security.templates import MAX_CHARS, find_trick

    findings.n_template_chars += len(text)
    if findings.n_template_chars > MAX_CHARS:
        trick: str | None = f"of over {MAX_CHARS} characters, expected fewer"
    else:
        trick = find_trick(text)
    if trick is None:
        findings.add(member, "chat_template", "template", Verdict.SAFE, "Jinja text that only formats")
    else:
        findings.add(member, "chat_template", "template", Verdict.UNKNOWN, f"Jinja text {trick}")


def scan_yaml(data: bytes, member: str, findings: Findings) -> None:
    """Note the tags by which YAML makes Python objects, where its loader is not a safe one."""
    for tag in sorted(set(_YAML_TAG.findall(data)))[:100]:
        text = tag.decode("utf-8", "backslashreplace")
        kind, _, target = text.partition("python/")[2].partition(":")
        runs = kind.startswith(("object/apply", "object/new", "module"))
        danger = find_danger(*target.rpartition(".")[::2]) if target else None
        verdict = Verdict.DANGEROUS if runs or danger else Verdict.UNKNOWN
        findings.add(member, text, "code", verdict, danger or "a tag that makes Python objects")


# Keras


def _scan_keras(item: dict[str, Any], where: str, findings: Findings) -> None:
    config = item.get("config")
    inner = config if isinstance(config, Mapping) else {}
    kind, module = str(item["class_name"]), str(item.get("module") or "")
    if kind == "__lambda__":
        _note_code(where, findings)
    elif kind == "Lambda":
        _scan_lambda(inner, where, findings)
    elif kind in _LOADING_LAYERS:
        findings.add(where, kind, "layer", Verdict.DANGEROUS, "loads another model, or a pickle")
    elif kind == "function":
        name = config if isinstance(config, str) else str(inner.get("name") or item.get("registered_name") or "")
        _judge(module, name, where, findings, packages=_KERAS_FUNCTIONS)
    elif kind == "__typespec__":
        _judge(module, str(item.get("spec_name")), where, findings)
    elif kind.endswith("OpLambda"):
        operation = str(inner.get("function", ""))
        if not _OPERATIONS.fullmatch(operation):
            findings.add(where, operation, "layer", Verdict.UNKNOWN, "an operation of TensorFlow's that is in no table")
    elif kind not in _PLAIN:
        if isinstance(inner.get("vocabulary"), str):
            findings.add(where, inner["vocabulary"], "layer", Verdict.UNKNOWN, "a file that is read when it is loaded")
        _judge(module, kind, where, findings, registered=str(item.get("registered_name") or ""))


def _scan_lambda(config: Mapping[str, Any], where: str, findings: Findings) -> None:
    for key in ("function", "output_shape", "mask"):
        value, kind = config.get(key), config.get(f"{key}_type")
        if kind == "lambda" or (isinstance(value, list) and value and isinstance(value[0], str)):
            _note_code(where, findings)
        elif isinstance(value, str) and (kind == "function" or key == "function"):
            module = config.get("module" if key == "function" else f"{key}_module")
            _judge(str(module or "__main__"), value, where, findings)


def _note_code(where: str, findings: Findings) -> None:
    why = "compiled Python code, run when the model is loaded or used"
    findings.add(where, "keras.layers.Lambda", "layer", Verdict.DANGEROUS, why)


def _judge(
    module: str,
    name: str,
    where: str,
    findings: Findings,
    *,
    registered: str = "",
    packages: Set[str] = _KERAS_CLASSES,
) -> None:
    full = f"{module}.{name}" if module else name
    danger = find_danger(module, name) if module else None
    if danger is not None:
        findings.add(where, full, "layer", Verdict.DANGEROUS, danger)
    elif ">" in name or ">" in registered:
        custom = registered or name
        findings.add(where, custom, "layer", Verdict.UNKNOWN, "a custom object, whose code the loading program brings")
    elif module and not _is_keras(module, name, packages):
        findings.add(where, full, "layer", Verdict.UNKNOWN, "imported from outside of Keras")


def _is_keras(module: str, name: str, packages: Set[str]) -> bool:
    match = _KERAS.match(module)
    if match is None or "." in name:
        return False
    rest = module[match.end() :]
    return (not rest and packages is _KERAS_CLASSES) or (rest[:1] == "." and rest.split(".")[1] in packages)
