"""Gives Git what a merge of the same Git command worked out already: it asks for a model's files one by one.

The standard library only: nothing of the model is looked at again.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

METADATA, TABLE, POINTER = ".modelver.json", ".modelver.tensors", ".dvc"


def answer(argv: list[str]) -> bool:
    """Write the merged metadata, tensor table or pointer in the place of ours.

    Args:
        argv: ``%O %A %B %L %P`` of gitattributes(5), as `dvc_modelver.drivers.merge.main` takes it.

    Returns:
        Whether there was an answer; without one nothing was touched.
    """
    *files, _, path = argv
    suffix = next((suffix for suffix in (METADATA, TABLE, POINTER) if path.endswith(suffix)), "")
    command = os.environ.get("MODELVER_GIT_PID", "")
    if not suffix or not command:
        return False
    try:
        texts = [_read(file) for file in files]
        versions = [_named_md5(text, suffix) for text in texts]
        question = {"command": command, "path": path.removesuffix(suffix), "versions": versions}
        for folder, values in _outcomes():
            if any(values.get(key) != value for key, value in question.items()) or not values["outcome"]["md5"]:
                continue
            if suffix == POINTER:
                text = _merge_pointers(texts, values["outcome"])
            else:
                text = _read(os.path.join(folder, "metadata" if suffix == METADATA else "table"))
            with open(files[1], "wb") as file:
                file.write(text)
            return True
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass  # whatever is not as we wrote it is for the driver proper
    return False


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _outcomes() -> Iterator[tuple[str, dict[str, Any]]]:
    from dvc_modelver.drivers.probe import find_git_dir

    merges = os.path.join(find_git_dir(), "modelver", "merges")
    for name in os.listdir(merges):
        try:
            yield os.path.join(merges, name), json.loads(_read(os.path.join(merges, name, "outcome")))
        except OSError:
            continue


def _named_md5(text: bytes, suffix: str) -> str | None:
    """Give the md5 that a file of a model names; None for an empty file, that of a side without one."""
    if not text:
        return None
    if suffix == POINTER:
        return _facts(text)["md5"]
    found = json.loads(text.partition(b"\n")[0] if suffix == TABLE else text)
    return str((found if suffix == TABLE else found["model"])["md5"])


def _facts(pointer: bytes) -> dict[str, str]:
    """Give md5 and size of a pointer as DVC writes it, of one file.

    Raises:
        ValueError: It is any other.
    """
    pairs = [line.lstrip("- ").partition(": ") for line in pointer.decode().splitlines()]
    found = {key: value for key, _, value in pairs if key in ("md5", "size")}
    if sorted(key for key, _, _ in pairs if key in ("md5", "size", "nfiles", "path")) != ["md5", "path", "size"]:
        raise ValueError("not one file")
    return found


def _merge_pointers(texts: list[bytes], outcome: dict[str, Any]) -> bytes:
    """Give the pointer to the merged object.

    Raises:
        ValueError: The sides differ in more than md5 and size.
    """
    made = set()
    for text in filter(None, texts):
        merged = text.decode()
        for key, value in _facts(text).items():
            merged = merged.replace(f"{key}: {value}\n", f"{key}: {outcome[key]}\n")
        made.add(merged)
    if len(made) != 1:
        raise ValueError("more than the object differs")
    return made.pop().encode()
