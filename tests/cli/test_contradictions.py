"""A metadata file or tensor table that was edited by hand is found, named and mended, whatever was edited."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dvc_modelver import api
from dvc_modelver.metadata import table_digest
from dvc_modelver.repository import Repository
from dvc_modelver.worktree.agreement import find_contradictions
from tests.git.test_push import MODEL, train
from tests.sandbox import Sandbox, prepared

METADATA, TABLE = f"{MODEL}.modelver.json", f"{MODEL}.modelver.tensors"


@prepared
def box(sandbox: Sandbox) -> Sandbox:
    train(sandbox, 1)
    return sandbox


def found(box: Sandbox, *, deep: bool = False) -> list[str]:
    repo = Repository.open(box.path)
    (model,) = repo.models(repo.work_tree)
    return [f"{one.field} ({one.source})" for one in find_contradictions(repo, repo.work_tree, model, deep=deep)]


def edit_model(**values: Any) -> Callable[[dict[str, Any], list[dict[str, Any]]], None]:
    return lambda metadata, _rows: metadata["model"].update(values)


def drop(name: str) -> Callable[[dict[str, Any], list[dict[str, Any]]], None]:
    return lambda metadata, _rows: metadata["model"].pop(name)


def edit_row(**values: Any) -> Callable[[dict[str, Any], list[dict[str, Any]]], None]:
    return lambda _metadata, rows: rows[1].update(values)


EDITS: list[tuple[str, Callable[[dict[str, Any], list[dict[str, Any]]], Any], bool]] = [
    ("model.bytes (pointer)", edit_model(bytes=1), False),
    ("model.format (object)", edit_model(format="torch"), False),
    ("model.format (object)", edit_model(format="opaque"), False),
    ("model.parameters (tensor table)", edit_model(parameters=1), False),
    ("model.n_tensors (tensor table)", edit_model(n_tensors=3), False),
    ("model.dtypes (tensor table)", edit_model(dtypes={"BF16": 10}), False),
    ("model.parameters_digest (tensor table)", edit_model(parameters_digest="params-blake3-1:" + "0" * 64), False),
    ("model.tensors_digest (tensor table)", edit_model(tensors_digest="blake3:" + "0" * 64), False),
    ("model.tensors_digest (object)", drop("tensors_digest"), False),
    ("model.parameters (tensor table)", drop("parameters"), False),
    ("model.md5 (pointer)", edit_model(md5="0" * 32), False),
    ("model.tensors_digest (tensor table)", edit_row(norm=1.0), False),
    ("model.sha256 (object)", edit_model(sha256="0" * 64), True),
]
FORGED: list[tuple[str, Callable[[dict[str, Any], list[dict[str, Any]]], Any], bool]] = [
    ("tensor embed.weight (object)", edit_row(dtype="F16"), False),
    ("tensor embed.weight (object)", edit_row(shape=[16, 32]), False),
    ("tensor embed.weight (object)", lambda _metadata, rows: rows.pop(1), False),
    ("model.parameters_digest (tensor table)", edit_row(digest="blake3:" + "0" * 32), False),
    ("digest of embed.weight (object)", edit_row(digest="blake3:" + "0" * 32), True),
    ("norm of embed.weight (object)", edit_row(norm=1.0), True),
    ("sketch of embed.weight (object)", edit_row(sketch=None), True),
]
"""Those in which the table's digest was made to fit again."""


def test_each_edit_is_found(box: Sandbox) -> None:
    assert found(box, deep=True) == []
    metadata, table = (box.path / METADATA).read_text(), (box.path / TABLE).read_text()
    for n, (wanted, edit, deep) in enumerate([*EDITS, *FORGED]):
        document, rows = json.loads(metadata), [json.loads(line) for line in table.splitlines()]
        edit(document, rows)
        rows = [{key: value for key, value in row.items() if value is not None} for row in rows]
        lines = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
        text = table if rows == [json.loads(line) for line in table.splitlines()] else lines
        if n >= len(EDITS):
            document["model"]["tensors_digest"] = table_digest(text.encode())
        box.write(TABLE, text)
        box.write(METADATA, json.dumps(document))
        assert wanted in found(box, deep=deep), wanted
        assert not deep or wanted not in found(box)
    box.write(METADATA, metadata)
    (box.path / TABLE).unlink()
    assert found(box) == ["model.tensors_digest (tensor table)"]
    box.write(TABLE, "no table\n")
    assert "tensor table (file)" in found(box)
    box.write(TABLE, table)
    assert found(box, deep=True) == []


def test_fsck_names_the_edit_and_refresh_mends_it_even_when_it_was_committed(box: Sandbox) -> None:
    honest = (box.path / METADATA).read_bytes(), (box.path / TABLE).read_bytes()
    document = json.loads(honest[0])
    document["model"]["parameters"] = 7
    box.write(METADATA, json.dumps(document, indent=2) + "\n")
    done = box.run("modelver", "fsck", ok=False)
    assert done.returncode == 1
    assert f"{METADATA}: parameters is 7, the tensor table has" in done.stdout
    assert f"hint: modelver refresh {MODEL}" in done.stdout
    box.git("commit", "-q", "-am", "better numbers")
    assert api.fsck(folder=box.path).problems
    box.modelver("refresh", MODEL)
    assert ((box.path / METADATA).read_bytes(), (box.path / TABLE).read_bytes()) == honest
    box.git("commit", "-q", "-am", "the real ones")
    assert api.fsck(folder=box.path, deep=False).problems == []
    history = api.fsck(folder=box.path, everything=True).problems  # the commit stays what it is
    assert len(history) == 1
    assert "parameters is 7," in history[0]


def test_what_is_not_in_the_cache_is_compared_with_the_table_alone(box: Sandbox, tmp_path: Path) -> None:
    (box.path / MODEL).unlink()
    box.drop(box.metadata_md5(MODEL))
    assert found(box, deep=True) == []
    document = json.loads((box.path / METADATA).read_text())
    document["model"] |= {"n_tensors": 3, "sha256": "0" * 64}
    box.write(METADATA, json.dumps(document))
    assert found(box, deep=True) == ["model.n_tensors (tensor table)"]
