from __future__ import annotations

from pathlib import Path

import pytest

from dvc_modelver.errors import BadMetadataError
from dvc_modelver.store.pointers import (
    Pointer,
    read_lock_stage,
    read_pointers,
    rename_pointer,
    replace_lock_stage,
    set_out,
    write_pointer,
)
from tests.sandbox import Sandbox

A, B = "a" * 32, "b" * 32


def test_a_new_pointer_is_what_dvc_add_writes(sandbox: Sandbox) -> None:
    for name in ("plain.bin", "sp ace é.bin", "quo'te.bin", "-dash.bin", "# hash.bin", "1e5", "yes"):
        (sandbox.path / name).write_bytes(name.encode())
        sandbox.dvc("add", "-q", "--", name)
        written = (sandbox.path / f"{name}.dvc").read_text()
        pointer = read_pointers(written.encode(), f"{name}.dvc")[0]
        assert write_pointer(None, path_in_file=name, md5=str(pointer.md5), size=pointer.size or 0) == written
        assert pointer.path == name


def test_rewriting_keeps_what_others_wrote() -> None:
    old = f"# mine\nmeta:\n  owner: me\nouts:\n- md5: {A}   # first\n  size: 1\n  hash: md5\n  path: x.bin\n  desc: hello\n- md5: {A}\n  path: y.bin\n"
    new = write_pointer(old, path_in_file="x.bin", md5=B, size=2)
    assert "# mine" in new
    assert "owner: me" in new
    assert "desc: hello" in new
    assert [p.md5 for p in read_pointers(new.encode(), "x.dvc")] == [B, A]
    assert "path: z.bin" in rename_pointer(new, "x.bin", "z.bin")


def test_paths_are_relative_to_the_file_and_its_working_folder() -> None:
    text = f"wdir: ../data\nouts:\n- md5: {A}\n  path: x.bin\n- md5: {A}\n  path: s3://b/x\n- md5: {A}\n  path: ../../../out\n".encode()
    assert [p.path for p in read_pointers(text, "sub/x.dvc")] == ["data/x.bin"]


LOCK = f"""schema: '2.0'
stages:
  train@a:
    cmd: python train.py
    deps:
    - path: data.csv
      hash: md5
      md5: {A}
      size: 3
    params:
      params.yaml:
        lr: 0.1
    outs:
    - path: model.safetensors
      hash: md5
      md5: {A}
      size: 5
    - path: metrics.json
      hash: md5
      md5: {B}
      size: 7
"""


def test_a_lock_file_with_flags_from_dvc_yaml() -> None:
    dvc_yaml = b"stages:\n  train:\n    foreach: [a]\n    do:\n      wdir: sub\n      outs:\n      - model.safetensors: {push: false, remote: other}\n      metrics:\n      - metrics.json: {cache: false}\n"
    model, metrics = read_pointers(LOCK.encode(), "dvc.lock", dvc_yaml=dvc_yaml)
    assert model == Pointer("sub/model.safetensors", "dvc.lock", "lock", A, 5, False, "train@a", "other", False, True)
    assert metrics.cache is False
    stage = read_lock_stage(LOCK.encode(), "train@a")
    assert (stage.cmd, stage.deps[0].path, stage.params) == (
        "python train.py",
        "data.csv",
        {"params.yaml": {"lr": 0.1}},
    )


def test_changing_one_output_or_stage_of_a_lock_keeps_the_rest() -> None:
    pointer = read_pointers(LOCK.encode(), "dvc.lock")[0]
    changed = set_out(LOCK, pointer, md5=B, size=9)
    assert changed == LOCK.replace(f"md5: {A}\n      size: 5", f"md5: {B}\n      size: 9")
    assert replace_lock_stage(changed, "train@a", LOCK) == LOCK
    with pytest.raises(BadMetadataError, match="no stage"):
        replace_lock_stage(changed, "nope", LOCK)


def test_entries_of_older_dvc_are_legacy() -> None:
    assert read_pointers(f"outs:\n- md5: {A}.dir\n  path: x\n".encode(), "x.dvc")[0] == Pointer(
        "x", "x.dvc", "dvc", f"{A}.dir", legacy=True
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"outs: [", "not YAML"),
        (b"- a\n", "expected a mapping"),
        (b"outs: 3\n", "expected a list"),
        (b"outs:\n- md5: zz\n  path: x\n", "expected 32 hex digits"),
        (b"outs:\n- path: [3]\n", "expected a text"),
        (b"<<<<<<< ours\nouts:\n=======\n>>>>>>> theirs\n", "conflict markers"),
        (b"\xff\xfe\x00", "not YAML"),
        (b"a: &a [*a]\nouts: *a\n", "not YAML"),
    ],
)
def test_a_bad_pointer_is_one_clear_line(text: bytes, found: str) -> None:
    with pytest.raises(BadMetadataError, match=found) as caught:
        read_pointers(text, "m/x.dvc")
    assert str(caught.value).startswith("m/x.dvc: ")
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_the_settings_are_dvcs_own(sandbox: Sandbox, tmp_path: Path) -> None:
    from dvc_modelver.store.dvcconfig import read_settings

    script = "from dvc.repo import Repo; r=Repo(); print(r.cache.local.path); print(r.config['core'].get('remote')); print(r.cache.local.cache_types)"
    for args in (
        [],
        ["cache", "dir", "../shared-cache"],
        ["config", "--local", "cache.dir", str(tmp_path / "local-cache")],
        ["config", "cache.type", "hardlink,symlink"],
        ["remote", "add", "-d", "-f", "--local", "other", "../x"],
        ["config", "--global", "cache.type", "symlink"],
    ):
        if args:
            sandbox.dvc(*args)
        said = sandbox.run("python", "-c", script).stdout.splitlines()
        ours = read_settings(sandbox.path)
        assert str(ours.cache_dir) + "/files/md5" == said[0]
        assert str(ours.default_remote) == said[1]
        assert str(list(ours.cache_types)) == said[2]
