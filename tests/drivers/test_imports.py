"""What Git starts at every turn imports nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dvc_modelver.resources import PROBE

HEAVY = {"numpy", "dvc", "dvc_data", "pygit2", "git", "typer", "click", "rich", "yaml", "ruamel", "blake3", "fsspec",
         "s3fs", "botocore", "aiohttp", "requests", "torch", "pydantic", "asyncio", "http", "jinja2"}  # fmt: skip


def modules_after(code: str, *args: str) -> set[str]:
    script = f"{code}\nimport sys, json; sys.stderr.write(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-P", "-c", script, *args], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}


def write_tables(folder: Path) -> tuple[Path, Path]:
    rows = [
        {"name": f"layers.{i}.weight", "dtype": "F32", "shape": [4], "digest": "blake3:" + f"{i + 1:032x}",
         "norm": 1.5, "sketch": "0:" + "AAAA" * 64}
        for i in range(3)
    ]  # fmt: skip
    paths = []
    for name in ("old", "new"):
        header = {"schema": "modelver.tensors/1", "md5": name[0] * 32, "sketch": "RSCS-1", "k": 64}
        if name == "new":
            rows[0]["digest"] = "blake3:" + "f" * 32
        path = folder / f"{name}.modelver.tensors"
        path.write_text("".join(json.dumps(line) + "\n" for line in [header, *rows]))
        paths.append(path)
    return paths[0], paths[1]


def test_the_diff_driver_is_standard_library_only(tmp_path: Path) -> None:
    old, new = write_tables(tmp_path)
    zero = "0" * 40
    code = "from dvc_modelver.drivers.diff import main; import sys; main(sys.argv[1:])"
    args = ("x.modelver.tensors", str(old), zero, "100644", str(new), zero, "100644")
    assert not modules_after(code, *args) & HEAVY


def test_textconv_is_standard_library_only(tmp_path: Path) -> None:
    old, _ = write_tables(tmp_path)
    code = "from dvc_modelver.drivers.textconv import main; import sys; main(sys.argv[1:])"
    assert not modules_after(code, str(old)) & HEAVY


def test_the_probe_needs_no_package_at_all(tmp_path: Path) -> None:
    (tmp_path / ".git/modelver").mkdir(parents=True)
    (tmp_path / ".git/modelver/state").write_text("modelver.state/1\n")
    done = subprocess.run([sys.executable, "-I", "-S", PROBE, "check"], cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    done = subprocess.run(
        [sys.executable, "-I", "-S", PROBE, "fsmonitor", "2", "x"], cwd=tmp_path, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"modelver\0/\0")


@pytest.mark.parametrize(
    "module", ["dvc_modelver", "dvc_modelver.formats", "dvc_modelver.fingerprint", "dvc_modelver.metadata"]
)
def test_light_modules_stay_light(module: str) -> None:
    assert not modules_after(f"import {module}") & HEAVY


@pytest.mark.parametrize(
    "module", ["dvc_modelver.drivers.hooks", "dvc_modelver.worktree.staging", "dvc_modelver.drivers.filter"]
)
def test_hooks_never_import_dvc_or_a_framework(module: str) -> None:
    heavy = {"dvc", "dvc_data", "torch", "s3fs", "botocore", "typer", "rich"}
    assert not modules_after(f"import {module}") & heavy


def test_the_command_line_imports_what_a_command_needs() -> None:
    loaded = modules_after("from dvc_modelver.cli import main; main(['--version'])")
    assert not loaded & {"numpy", "dvc", "pygit2", "git", "yaml", "ruamel", "blake3", "fsspec", "s3fs", "jinja2"}


def test_the_lists_of_verbs_agree() -> None:
    import dvc_modelver
    from dvc_modelver import api

    rooms = [verb for verbs in api._ROOMS.values() for verb in verbs]
    assert sorted(rooms) == sorted(api.__all__) == sorted(dvc_modelver._VERBS)


def test_a_verb_stays_a_verb_once_its_module_is_there() -> None:
    import dvc_modelver
    from dvc_modelver import api

    for _ in range(2):
        for name in api.__all__:
            assert callable(getattr(api, name)), name
            assert getattr(api, name) is getattr(dvc_modelver, name)
