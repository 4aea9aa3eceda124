from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from dvc_modelver.errors import EnvironmentFailed, ObjectCorrupt, ObjectMissing, UsageError
from dvc_modelver.store.cache import Cache
from dvc_modelver.store.dvcconfig import DvcSettings
from dvc_modelver.store.hashing import hash_file

DATA = bytes(range(256)) * 50_000


def cache(tmp_path: Path, *types: str) -> Cache:
    return Cache(DvcSettings(tmp_path, tmp_path / "cache", types or ("reflink", "copy")))


def store(c: Cache, tmp_path: Path, data: bytes = DATA) -> tuple[str, Path]:
    file = tmp_path / "model.bin"
    file.write_bytes(data)
    return c.store_file(file, link=True).md5, file


def leftovers(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache/modelver.tmp").iterdir()) + list(tmp_path.glob(".*modelver*"))


def test_hashes_are_those_of_hashlib(tmp_path: Path) -> None:
    file = tmp_path / "x"
    for data in (b"", b"x", DATA):
        file.write_bytes(data)
        found = hash_file(file)
        assert (found.md5, found.sha256, found.size) == (
            hashlib.md5(data).hexdigest(),
            hashlib.sha256(data).hexdigest(),
            len(data),
        )


def test_an_object_lies_where_dvc_puts_it_and_is_read_only(tmp_path: Path) -> None:
    c = cache(tmp_path)
    md5, _ = store(c, tmp_path)
    path = tmp_path / "cache/files/md5" / md5[:2] / md5[2:]
    assert path.read_bytes() == DATA
    assert path.stat().st_mode & 0o777 == 0o444
    assert leftovers(tmp_path) == []


def test_a_known_file_is_copied_without_hashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    c = cache(tmp_path)
    file = tmp_path / "m"
    file.write_bytes(DATA)
    known = hash_file(file)
    monkeypatch.setattr("dvc_modelver.store.objects.consume", lambda *_a, **_k: pytest.fail("hashed again"))
    assert c.store_file(file, link=False, known=known) == known
    assert c.path_of(known.md5).read_bytes() == DATA


@pytest.mark.parametrize("kind", ["copy", "hardlink", "symlink"])
def test_materialise_links_as_dvc_says(tmp_path: Path, kind: str) -> None:
    c = cache(tmp_path, kind)
    md5, file = store(c, tmp_path)
    assert file.read_bytes() == DATA
    assert file.is_symlink() == (kind == "symlink")
    assert (file.stat().st_ino == c.path_of(md5).stat().st_ino) == (kind != "copy")
    other = tmp_path / "old"
    other.write_bytes(b"old")
    c.materialise(md5, other)
    assert other.read_bytes() == DATA
    if kind == "copy":
        assert other.stat().st_mode & 0o777 == 0o644
    assert leftovers(tmp_path) == []


def test_a_corrupt_object_is_never_put_into_place(tmp_path: Path) -> None:
    c = cache(tmp_path, "copy")
    md5, file = store(c, tmp_path)
    obj = c.path_of(md5)
    obj.chmod(0o644)
    obj.write_bytes(DATA[:-1] + b"x")
    file.write_bytes(b"precious")
    with pytest.raises(ObjectCorrupt, match=md5):
        c.materialise(md5, file)
    assert file.read_bytes() == b"precious"
    assert not c.verify(md5)
    assert leftovers(tmp_path) == []


def test_a_missing_object_is_said(tmp_path: Path) -> None:
    with pytest.raises(ObjectMissing, match="not in the cache"):
        cache(tmp_path).materialise("0" * 32, tmp_path / "x")


def test_objects_are_synced_before_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(fd: int) -> None:
        calls.append("fsync")
        fsync(fd)

    def noted_replace(self: Path, target: Path) -> Path:
        calls.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    store(cache(tmp_path, "copy"), tmp_path)
    assert calls[:3] == ["fsync", "rename", "fsync"]  # what follows is the note that it was verified


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "growing"
    file.write_bytes(DATA * 4)
    c = cache(tmp_path)

    def grow(_n: int) -> None:
        with file.open("ab") as out:
            out.write(b"more")

    with pytest.raises(UsageError, match="still being written"):
        c.store_file(file, link=False, progress=grow)
    assert not list((tmp_path / "cache").rglob("??/*"))
    assert leftovers(tmp_path) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """A file-size limit stands for the full disk: the write fails half way."""
    file = tmp_path / "big"
    file.write_bytes(DATA)
    script = f"""
        import resource, signal
        from pathlib import Path
        from dvc_modelver.errors import EnvironmentFailed
        from dvc_modelver.store.dvcconfig import DvcSettings
        from dvc_modelver.store.cache import Cache
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        c = Cache(DvcSettings(Path({str(tmp_path)!r}), Path({str(tmp_path / "cache")!r}), ("copy",)))
        for put in (lambda: c.store_file(Path({str(file)!r}), link=False), lambda: c.store_stream([bytes(3_000_000)])):
            try:
                put()
            except EnvironmentFailed as err:
                print(err, "|", err.hint)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert done.stdout.count("the disk is full") == 2
    assert "df -h" in done.stdout
    assert leftovers(tmp_path) == []
    assert file.read_bytes() == DATA


def test_two_writers_of_one_object_agree(tmp_path: Path) -> None:
    c = cache(tmp_path)
    threads = [threading.Thread(target=lambda: c.store_stream([DATA[:1000], DATA[1000:]])) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    md5 = hashlib.md5(DATA).hexdigest()
    assert c.verify(md5)
    assert leftovers(tmp_path) == []


def test_an_unreadable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the cache should be")
    with pytest.raises(EnvironmentFailed, match="cannot be stored in"):
        cache(tmp_path).store_stream([b"x"])


def test_a_folder_listing_is_read_and_checked(tmp_path: Path) -> None:
    c = cache(tmp_path)
    text = b'[{"md5": "%s", "relpath": "a/b.txt"}]' % (b"a" * 32)
    oid = hashlib.md5(text).hexdigest() + ".dir"
    c.path_of(oid).parent.mkdir(parents=True)
    c.path_of(oid).write_bytes(text)
    assert list(c.iter_folder(oid)) == [("a/b.txt", "a" * 32)]
    assert c.verify(oid)


def make_object(c: Cache, tmp_path: Path, pid: int | None) -> str:
    """Make an object as a merge does, with a copy for the work tree beside it."""
    (tmp_path / ".dvc").mkdir(exist_ok=True)
    with c.new_path("model.bin") as made, c.copied_ahead(pid) as ahead:
        made.write_bytes(DATA)
        ahead.copy(made)
        md5 = c.adopt(made).md5
        ahead.keep(md5)
    return md5


def copies(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / ".dvc").rglob("*ahead*") if path.is_file()]


def test_a_copy_made_ahead_is_moved_into_place_once(tmp_path: Path) -> None:
    c = cache(tmp_path, "copy")
    md5 = make_object(c, tmp_path, os.getpid())
    inode = copies(tmp_path)[0].stat().st_ino
    for target in (tmp_path / "first", tmp_path / "second"):
        c.materialise(md5, target)
        assert target.read_bytes() == DATA
        assert target.stat().st_mode & 0o777 == 0o644
        assert (target.stat().st_ino == inode) == (target.name == "first")
    assert copies(tmp_path) == []


@pytest.mark.parametrize("kind", ["hardlink", "symlink", "copy"])
def test_no_copy_is_made_ahead_where_none_is_wanted(tmp_path: Path, kind: str) -> None:
    c = cache(tmp_path, kind)
    make_object(c, tmp_path, None if kind == "copy" else os.getpid())
    assert copies(tmp_path) == []


def test_a_copy_made_ahead_never_takes_the_last_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    c = cache(tmp_path, "copy")
    usage = SimpleNamespace(free=2 * len(DATA) - 1)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)
    make_object(c, tmp_path, os.getpid())
    assert copies(tmp_path) == []
    usage.free += 1
    make_object(c, tmp_path, os.getpid())
    assert len(copies(tmp_path)) == 1


def test_a_copy_ahead_that_fails_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    c = cache(tmp_path, "copy")
    monkeypatch.setattr(os, "copy_file_range", full)
    md5 = make_object(c, tmp_path, os.getpid())
    assert c.has(md5)
    assert copies(tmp_path) == []
