"""A folder's listing is DVC's own, and a hostile one leads nowhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dvc_modelver.drivers import probe
from dvc_modelver.errors import BadMetadataError, UsageError
from dvc_modelver.store.cache import Cache
from dvc_modelver.store.dvcconfig import DvcSettings
from dvc_modelver.store.folders import hash_path, iter_files, parse_listing, stamp_folder

NAMES = ("a.bin", "a/b.bin", "a-b.bin", "é/ü x.bin", ".hidden", "empty")


def folder(top: Path) -> Path:
    for i, name in enumerate(NAMES):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(bytes(i))
    return top


def test_the_oid_is_the_one_dvc_gives(tmp_path: Path) -> None:
    top = folder(tmp_path / "data")
    (tmp_path / ".dvc").mkdir()
    script = "from dvc.repo import Repo; r = Repo.init('.', no_scm=True, force=True); print(r.add('data')[0].outs[0].hash_info.value)"
    out = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert hash_path(top).md5 == out.stdout.split()[-1]


def test_the_probe_gives_the_same_stamp(tmp_path: Path) -> None:
    top = folder(tmp_path / "data")
    assert probe.stamp(str(top)) == stamp_folder(top)
    (top / "a/b.bin").write_bytes(b"more")
    assert probe.stamp(str(top)) == stamp_folder(top)


@pytest.mark.parametrize("change", ["write", "add", "remove", "rename", "same size and time"])
def test_every_change_moves_the_stamp(tmp_path: Path, change: str) -> None:
    top = folder(tmp_path / "data")
    before, status = stamp_folder(top), (top / "a-b.bin").stat()
    if change == "write":
        (top / "empty").write_bytes(b"x")
    elif change == "add":
        (top / "a/new").touch()
    elif change == "remove":
        (top / "empty").unlink()
    elif change == "rename":
        (top / "empty").rename(top / "full")
    else:
        (top / "new").write_bytes(b"\1\1")
        (top / "new").rename(top / "a-b.bin")
        os.utime(top / "a-b.bin", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert stamp_folder(top) != before


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", ".git/hooks/pre-commit", "a\0b"])
def test_a_listing_cannot_lead_out(name: str) -> None:
    text = json.dumps([{"md5": "0" * 32, "relpath": name}]).encode()
    with pytest.raises(BadMetadataError, match="expected a path inside"):
        parse_listing(text, "listing", "hint")


def test_a_folder_goes_into_the_cache_and_comes_out_again(tmp_path: Path) -> None:
    top = folder(tmp_path / "data")
    cache = Cache(DvcSettings(tmp_path, tmp_path / "cache", ("copy",)))
    found = cache.store_path(top, link=False)
    assert cache.has(found.md5)
    assert found.n_files == len(NAMES)
    (top / "extra").write_bytes(b"goes away")
    (top / "a.bin").unlink()
    cache.materialise(found.md5, top)
    assert sorted(name for name, _ in iter_files(top)) == sorted(NAMES)
    assert hash_path(top).md5 == found.md5
    cache.path_of(dict(cache.iter_folder(found.md5))["a/b.bin"]).unlink()
    assert not cache.has(found.md5)


def test_a_folder_that_is_written_while_it_is_read_is_refused(tmp_path: Path) -> None:
    top = folder(tmp_path / "data")
    from dvc_modelver.store.folders import hash_folder

    def write(file: Path, _status: os.stat_result) -> str:
        file.write_bytes(b"other")
        return "0" * 32

    with pytest.raises(UsageError, match="still being written"):
        hash_folder(top, write)
