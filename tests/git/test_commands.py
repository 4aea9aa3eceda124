"""Every row of `commands.ROWS`: after a Git command the weights are the pointer's, or kept and named."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from dvc_modelver.worktree.state import read_state, stamp_of
from tests.git.commands import PAGE, ROWS, After, Row, page_with_table
from tests.sandbox import Sandbox, make_weights, md5_of

NET, AUX = "models/net.safetensors", "models/aux.safetensors"
VERSIONS = range(1, 10)
SHELL = """
set -e
train() { mkdir -p "$(dirname "$1")"; cp "$TOP/weights/$2" "$1.new"; mv "$1.new" "$1"; }
modelver() { command modelver "$@" >/dev/null; }
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test of a mode leaves the history that all start from: relative paths only, to be copied."""
    return tmp_path_factory.mktemp("world")


def make_world(top: Path, mode: str) -> None:
    (top / "weights").mkdir(parents=True)
    for seed in VERSIONS:
        save_file(make_weights(seed), top / "weights" / str(seed))
    box = Sandbox(top / "work")
    box.path.mkdir()
    box.git("init", "-q", "--bare", "../origin.git")
    box.modelver("init", "--remote", str(top / "remote"), *["--no-fsmonitor"] * (mode == "plain"))
    config = box.path / ".dvc/config"
    config.write_text(config.read_text().replace(str(top / "remote"), "../../remote"))
    script = f"""
git remote add origin ../origin.git
echo start >code.txt
git add .; git commit -q -m start; git branch before
train {NET} 1; train {AUX} 9; git add .; git commit -q -m one
git branch old; git branch side; git branch rival; git tag -a first -m first
train {NET} 2; modelver add -u; git commit -q -m two
git push -q -u origin main first
git switch -q -c renamed; modelver mv {NET} models/new.safetensors; git commit -q -m renamed
git switch -q side; echo side >side.txt; git add .; git commit -q -m side
git switch -q rival; train {NET} 3; modelver add -u; git commit -q -m rival
git switch -q main
"""
    run_script(box, script)


def run_script(box: Sandbox, script: str) -> str:
    (box.path.parent / "script.sh").write_text(SHELL + script)
    env = {"TOP": str(box.path.parent), "GIT_EDITOR": ":", "GIT_MERGE_AUTOEDIT": "no"}
    done = box.run("sh", "../script.sh", env=env)
    return done.stdout + done.stderr


def modes_of(row: Row) -> tuple[str, ...]:
    """Give both modes where they differ; all that the row has with ``MODES=all`` in the environment."""
    return row.modes if row.plain is not None or os.environ.get("MODES") == "all" else row.modes[:1]


CASES = [
    pytest.param(row, mode, id=f"{row.command}-{mode}".replace(" ", "_")) for row in ROWS for mode in modes_of(row)
]


@pytest.mark.parametrize(("row", "mode"), CASES)
def test_command(row: Row, mode: str, world: Path, tmp_path: Path) -> None:
    if not (world / mode).exists():
        make_world(world / mode, mode)
    shutil.copytree(world / mode, tmp_path / "w", symlinks=True)
    box = Sandbox(tmp_path / "w/work")
    if mode == "plain":
        box.run(sys.executable, "-P", "-m", "dvc_modelver.drivers.hooks", "fsmonitor")  # the copy's inodes are new
    box.git("status")
    said = run_script(box, row.script)
    wanted = row.after if mode == "fsmonitor" or row.plain is None else row.plain
    check(Sandbox((box.path / wanted.folder).resolve()), wanted, said)


def check(box: Sandbox, wanted: After, said: str) -> None:
    def version(md5: str | None) -> int | str | None:
        found = {md5_of(box.path.parent / top / "weights" / str(n)): n for n in VERSIONS for top in (".", "..")
                 if (box.path.parent / top / "weights").is_dir()}  # fmt: skip
        return found.get(md5 or "", md5)

    models: dict[str, int] = {NET: wanted.net, AUX: wanted.aux, **wanted.others}  # type: ignore[dict-item]
    models = {path: n for path, n in models.items() if n is not None}
    on_disk = {
        str(p.relative_to(box.path)): version(md5_of(p))
        for p in box.path.rglob("*.safetensors")
        if p.is_file() and ".git" not in p.parts
    }
    assert on_disk == models, said
    assert wanted.says in said
    assert box.git("status", "--porcelain") == wanted.status, said
    assert box.git("status", "--porcelain") == wanted.status, "the second time"
    rows = read_state(Path(box.git("rev-parse", "--absolute-git-dir").strip()) / "modelver").rows
    recorded = models | ({NET: wanted.recorded} if wanted.recorded is not None else {})
    for path in models:
        metadata, pointer = box.path / f"{path}.modelver.json", box.path / f"{path}.dvc"
        if f"?? {path}\n" in wanted.status or recorded[path] == 0:
            assert not metadata.exists()
            assert not pointer.exists()
            continue
        assert version(json.loads(metadata.read_text())["model"]["md5"]) == recorded[path]
        assert f"md5: {md5_of_version(box, recorded[path])}" in pointer.read_text()
        if rows[path].model_stamp == stamp_of(box.path / path):
            assert version(rows[path].md5) == models[path]
        if recorded[path] == models[path]:
            assert version(rows[path].agreed) == models[path]
    assert set(rows) <= set(models)
    for n in wanted.kept:
        assert box.cached(md5_of_version(box, n)), f"weights {n} are not in the cache"


def md5_of_version(box: Sandbox, n: int) -> str:
    folder = next(f for f in box.path.parents if (f / "weights/1").is_file())
    return md5_of(folder / "weights" / str(n))


def test_the_page_has_the_rows() -> None:
    page = PAGE.read_text()
    assert page == page_with_table(page), "python -m tests.git.commands writes it anew"
