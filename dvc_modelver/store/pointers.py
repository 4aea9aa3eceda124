"""DVC's own pointer files, ``.dvc`` and ``dvc.lock``: read, and changed without losing what others wrote there."""

from __future__ import annotations

import io
import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dvc_modelver.errors import BadMetadataError, word

MAX_POINTER_BYTES = 64 << 20
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")


@dataclass(frozen=True)
class Pointer:
    """One DVC output and the object that it names.

    Attributes:
        path: The output, POSIX, relative to the Git top level.
        file: The ``.dvc`` or ``dvc.lock`` file that names it.
        kind: ``"dvc"`` or ``"lock"``.
        md5: The object; ends in ``.dir`` for a folder; None for an output that was never stored.
        size: Bytes of the object, where the file says so.
        n_files: Files of a folder, likewise.
        legacy: Written by DVC before 3.0: the object lies in the older layout of cache and remote.
        stage: The stage of a ``dvc.lock`` output.
        remote: A DVC remote of the output's own.
        push: False where the output is never uploaded.
        cache: False where the output is in Git rather than in the cache.
    """

    path: str
    file: str
    kind: str
    md5: str | None
    size: int | None = None
    legacy: bool = False
    stage: str | None = None
    remote: str | None = None
    push: bool = True
    cache: bool = True
    n_files: int | None = None

    @property
    def is_folder(self) -> bool:
        """Whether the object is a folder's listing."""
        return self.md5 is not None and self.md5.endswith(".dir")


def read_pointers(text: bytes, file: str, *, dvc_yaml: bytes | None = None) -> list[Pointer]:
    """Read one pointer file.

    Args:
        text: Its bytes; from disk or from any revision.
        file: Its path relative to the Git top level.
        dvc_yaml: The dvc.yaml beside a ``dvc.lock``: working folders and flags of outputs stand there.

    Raises:
        BadMetadataError: Not YAML, conflict markers, or entries of another type than DVC writes.
    """
    data = _load(text, file)
    if posixpath.basename(file) == "dvc.lock":
        return _read_lock(data, file, _load(dvc_yaml, file) if dvc_yaml else {})
    base = posixpath.join(posixpath.dirname(file), str(data.get("wdir") or ""))
    return [p for out in _entries(data, "outs", file) if (p := _pointer(out, out, base, file, "dvc", None)) is not None]


def read_wdir(text: bytes, file: str) -> str:
    """Give the ``wdir`` of a ``.dvc`` file: the folder that its paths start from; empty for its own.

    Raises:
        BadMetadataError: The file cannot be read.
    """
    return str(_load(text, file).get("wdir") or "")


def _load(text: bytes, file: str, *, typed: bool = False) -> Mapping[str, Any]:
    """Parse a file; every scalar is a text unless `typed`.

    DVC writes YAML 1.2 and PyYAML reads 1.1, where a file called ``yes`` or ``1e5`` would not be a text.
    """
    import yaml

    fast, slow = ("CSafeLoader", yaml.SafeLoader) if typed else ("CBaseLoader", yaml.BaseLoader)

    if len(text) > MAX_POINTER_BYTES:
        raise BadMetadataError(f"{file}: {len(text)} bytes, expected at most {MAX_POINTER_BYTES}")
    if re.search(rb"^<<<<<<< ", text, re.MULTILINE):
        raise BadMetadataError(
            f"{file}: found conflict markers, expected YAML",
            hint=f"resolve the conflict in {word(file)}, then git add {word(file)}",
        )
    try:
        data = yaml.load(text, Loader=getattr(yaml, fast, slow))  # noqa: S506 - all four are safe
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as err:
        detail = " ".join(str(err).split())[:120]
        raise BadMetadataError(f"{file}: not YAML ({detail})", hint=f"git checkout HEAD -- {word(file)}") from err
    if data is None or data == "":
        return {}
    if not isinstance(data, Mapping):
        raise BadMetadataError(
            f"{file}: found {type(data).__name__}, expected a mapping", hint=f"git checkout HEAD -- {word(file)}"
        )
    return data


def _entries(data: Mapping[str, Any], key: str, file: str) -> list[Mapping[str, Any]]:
    found = data.get(key) or []
    if not isinstance(found, list) or not all(isinstance(entry, Mapping) for entry in found):
        raise BadMetadataError(
            f"{file}: {key} is {found!r:.60}, expected a list of mappings",
            hint=f"git checkout HEAD -- {word(file)}",
        )
    return found


def _pointer(
    out: Mapping[str, Any], flags: Mapping[str, Any], base: str, file: str, kind: str, stage: str | None
) -> Pointer | None:
    path, md5 = out.get("path"), out.get("md5") or None
    if not isinstance(path, str):
        raise BadMetadataError(
            f"{file}: an output's path is {path!r:.60}, expected a text", hint=f"git checkout HEAD -- {word(file)}"
        )
    if path.startswith("/") or _URL.match(path):
        return None
    if md5 is not None and not (isinstance(md5, str) and _MD5.fullmatch(md5)):
        raise BadMetadataError(
            f"{file}: md5 of {path} is {md5!r:.60}, expected 32 hex digits",
            hint=f"git checkout HEAD -- {word(file)}",
        )
    where = posixpath.normpath(posixpath.join(base, path))
    if where.startswith("../") or where == "..":
        return None
    return Pointer(
        path=where,
        file=file,
        kind=kind,
        md5=md5,
        size=_count(out.get("size")),
        n_files=_count(out.get("nfiles")),
        legacy=out.get("hash") != "md5",
        stage=stage,
        remote=str(flags["remote"]) if flags.get("remote") else None,
        push=flags.get("push") != "false",
        cache=flags.get("cache") != "false",
    )


def _count(value: object) -> int | None:
    return int(value) if isinstance(value, str) and value.isdigit() else None


def _read_lock(data: Mapping[str, Any], file: str, dvc_yaml: Mapping[str, Any]) -> list[Pointer]:
    found = []
    for name, entry in _stages(data).items():
        if not isinstance(entry, Mapping):
            raise BadMetadataError(f"{file}: stage {name!r} is {entry!r:.60}, expected a mapping", hint="dvc repro")
        declared = _declared_stage(dvc_yaml, str(name))
        base = posixpath.join(posixpath.dirname(file), _plain(declared.get("wdir")))
        flags = _flags(declared)
        for out in _entries(entry, "outs", file):
            pointer = _pointer(out, flags.get(str(out.get("path")), {}), base, file, "lock", str(name))
            if pointer is not None:
                found.append(pointer)
    return found


def _stages(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give the stages of a lock file, of schema 2.0 or of the flat one before it."""
    stages = data.get("stages") if "schema" in data else data
    return stages if isinstance(stages, Mapping) else {}


def _declared_stage(dvc_yaml: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    stages = dvc_yaml.get("stages")
    entry = stages.get(name, stages.get(name.partition("@")[0])) if isinstance(stages, Mapping) else None
    if not isinstance(entry, Mapping):
        return {}
    inner = entry.get("do", entry)
    return inner if isinstance(inner, Mapping) else {}


def _plain(value: object) -> str:
    """Give a working folder; one with a template in it cannot be known here."""
    return value if isinstance(value, str) and "${" not in value else ""


def _flags(declared: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Give output path -> its flags (cache, push, remote) from a stage of dvc.yaml."""
    found = {}
    for kind in ("outs", "metrics", "plots"):
        for entry in declared.get(kind) or []:
            if isinstance(entry, Mapping):
                found.update({str(path): flags for path, flags in entry.items() if isinstance(flags, Mapping)})
    return found


# dvc.lock


@dataclass(frozen=True)
class Dependency:
    """One dependency of a stage."""

    path: str
    md5: str | None
    size: int | None


@dataclass(frozen=True)
class LockStage:
    """One stage's entry of a ``dvc.lock``: what it ran, from what.

    Attributes:
        params: file -> name -> value.
    """

    cmd: str | list[str] = ""
    deps: tuple[Dependency, ...] = ()
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def _dependency(entry: Mapping[str, Any]) -> Dependency:
    return Dependency(str(entry.get("path")), entry.get("md5") or None, _count(entry.get("size")))


def read_lock_stage(text: bytes, stage: str, file: str = "dvc.lock") -> LockStage:
    """Read one stage's entry; an empty one where there is none.

    Raises:
        BadMetadataError: The file cannot be read.
    """
    entry = _stages(_load(text, file)).get(stage)
    if not isinstance(entry, Mapping):
        return LockStage()
    deps = tuple(_dependency(d) for d in _entries(entry, "deps", file))
    params = _stages(_load(text, file, typed=True)).get(stage, {}).get("params")
    return LockStage(
        cmd=entry.get("cmd") or "",
        deps=deps,
        params={str(k): v for k, v in params.items() if isinstance(v, Mapping)} if isinstance(params, Mapping) else {},
    )


# Changing a file, keeping comments and everything else in it


def _edited(text: str, file: str, edit: Callable[[Any], None]) -> str:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    try:
        data = yaml.load(text) or {}
    except (YAMLError, UnicodeDecodeError) as err:
        raise BadMetadataError(f"{file}: not YAML ({' '.join(str(err).split())[:120]})") from err
    edit(data)
    out = io.StringIO()
    yaml.dump(data, out)
    return out.getvalue()


def write_pointer(existing: str | None, *, path_in_file: str, md5: str, size: int, n_files: int | None = None) -> str:
    """Give the text of a ``.dvc`` file, as ``dvc add`` writes it.

    Args:
        existing: The file's text before; its other keys, outputs and comments are kept.
        path_in_file: The output as the file spells it.
        md5: The object.
        size: Its bytes.
        n_files: Files of a folder; None for a file.
    """

    def edit(data: Any) -> None:
        outs = data.setdefault("outs", [])
        for out in outs:
            if posixpath.normpath(str(out.get("path"))) == posixpath.normpath(path_in_file):
                _set_out(out, md5, size, n_files)
                return
        count = {} if n_files is None else {"nfiles": n_files}
        outs.append({"md5": md5, "size": size, **count, "hash": "md5", "path": path_in_file})

    return _edited(existing or "", path_in_file, edit)


def _set_out(out: Any, md5: str, size: int | None, n_files: int | None) -> None:
    out["md5"] = md5
    if size is None:
        out.pop("size", None)
    else:
        out["size"] = size
    out["hash"] = "md5"
    out.pop("nfiles", None)
    if n_files is not None:
        out.insert(list(out).index("md5" if size is None else "size") + 1, "nfiles", n_files)


def rename_pointer(existing: str, old_path: str, new_path: str) -> str:
    """Give the text of a ``.dvc`` file with one output's path changed."""

    def edit(data: Any) -> None:
        for out in data.get("outs", []):
            if posixpath.normpath(str(out.get("path"))) == posixpath.normpath(old_path):
                out["path"] = new_path

    return _edited(existing, new_path, edit)


def set_out(text: str, pointer: Pointer, *, md5: str, size: int | None, n_files: int | None = None) -> str:
    """Give the text of a ``.dvc`` or ``dvc.lock`` with the object of one of its outputs changed.

    Args:
        text: The file.
        pointer: The output, as it was read from this text.
        md5: The object.
        size: Its bytes; None where they are not known.
        n_files: Files of a folder; None for a file.
    """

    def edit(data: Any) -> None:
        if pointer.kind == "lock":
            data = (data["stages"] if "schema" in data else data)[pointer.stage]
        for out in data.get("outs", []):
            if out.get("md5") == pointer.md5 and posixpath.basename(out["path"]) == posixpath.basename(pointer.path):
                _set_out(out, md5, size, n_files)

    return _edited(text, pointer.file, edit)


def read_lock_stages(text: str, file: str) -> Mapping[str, Any]:
    """Give the entries of a ``dvc.lock`` by stage, to be compared.

    Raises:
        BadMetadataError: The file cannot be read.
    """
    return _stages(_load(text.encode(), file))


def remove_lock_stage(text: str, stage: str) -> str:
    """Give the text of a ``dvc.lock`` without a stage's entry."""

    def edit(data: Any) -> None:
        (data["stages"] if "schema" in data else data).pop(stage, None)

    return _edited(text, "dvc.lock", edit)


def replace_lock_stage(text: str, stage: str, other: str) -> str:
    """Give the text of a ``dvc.lock`` with one stage's whole entry taken from another version of the file.

    Raises:
        BadMetadataError: The other version has no such stage.
    """
    from ruamel.yaml import YAML

    source: Any = YAML().load(other) or {}
    stages: Any = (source.get("stages") if "schema" in source else source) or {}
    if stage not in stages:
        raise BadMetadataError(f"dvc.lock: the version asked for has no stage {stage!r}", hint="modelver log NAME")

    def edit(data: Any) -> None:
        (data["stages"] if "schema" in data else data)[stage] = stages[stage]

    return _edited(text, "dvc.lock", edit)
