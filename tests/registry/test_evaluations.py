"""Results by md5 in Git notes: appended by several at once, read from all refs, whatever else stands there."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dvc_modelver.errors import UsageError
from dvc_modelver.git.notes import append_notes, blob_id, committer
from dvc_modelver.git.objects import ObjectReader
from dvc_modelver.git.porcelain import Git
from dvc_modelver.metadata import ModelMetadata
from dvc_modelver.registry.evaluations import (
    Evaluation,
    as_time,
    measured_metrics,
    read_evaluations,
    record_evaluation,
)
from dvc_modelver.registry.notes import EVALUATIONS_REF

MD5 = "d" * 32
NOON = "2026-11-21T12:00:00Z"


@pytest.fixture
def git(tmp_path: Path) -> Git:
    subprocess.run(["git", "init", "-q", str(tmp_path / "repo")], check=True)
    return Git(tmp_path / "repo")


@pytest.fixture
def objects(git: Git) -> ObjectReader:
    return ObjectReader(git.folder / ".git")


def at(hour: int, value: float, md5: str = MD5) -> Evaluation:
    return Evaluation(md5, {"val_acc": value}, f"2026-11-21T{hour:02}:00:00Z", "Ada <ada@example.org>")


def metadata(**metrics: float) -> ModelMetadata:
    document = {
        "schema": "modelver.metadata/1",
        "model": {"name": "m", "path": "m.pt", "format": "torch", "bytes": 1, "md5": MD5},
        "version": {"number": 1},
        "training": {"metrics": metrics},
    }
    return ModelMetadata.parse(json.dumps(document).encode(), "m.pt")


def test_a_result_is_read_back_whole_and_git_lists_it(git: Git, objects: ObjectReader) -> None:
    assert read_evaluations(objects) == {}
    folder = MD5 + ".dir"
    for md5 in (MD5, folder):
        data = ({"path": "data/tést.csv", "md5": "e" * 32},)
        one = Evaluation(md5, {"loss": 0.25, "val_acc": 1}, NOON, "Zoë <z@example.org>", "metrics.json", data)
        assert record_evaluation(git, objects, one)
        assert read_evaluations(objects, [md5]) == {md5: [one]}
    assert read_evaluations(objects).keys() == {MD5, folder}
    listed = git.text("notes", "--ref=modelver-evaluations", "list").splitlines()
    ids = {git.run("hash-object", "--stdin", stdin=md5.encode()).decode().strip() for md5 in (MD5, folder)}
    assert {line.split()[1] for line in listed} == ids
    git.run("fsck", "--strict")


def test_the_newest_result_with_a_name_counts_and_both_stay_visible(git: Git, objects: ObjectReader) -> None:
    for hour, value in ((12, 0.9), (10, 0.7), (11, 0.8)):
        assert record_evaluation(git, objects, at(hour, value))
    found = read_evaluations(objects)[MD5]
    assert [one.metrics["val_acc"] for one in found] == [0.7, 0.8, 0.9]
    now = measured_metrics(metadata(val_acc=0.95, loss=0.1), found)
    assert (now["val_acc"].value, now["val_acc"].source, now["val_acc"].trained) == (0.9, "evaluation", 0.95)
    assert now["val_acc"].evaluation == found[-1]
    assert (now["loss"].value, now["loss"].source, now["loss"].evaluation) == (0.1, "training", None)
    assert measured_metrics(metadata(loss=0.1)).keys() == {"loss"}


def test_the_same_result_twice_is_one_unless_another_came_between(git: Git, objects: ObjectReader) -> None:
    assert record_evaluation(git, objects, at(10, 0.9))
    assert not record_evaluation(git, objects, at(10, 0.9))
    assert not record_evaluation(git, objects, at(11, 0.9))
    assert record_evaluation(git, objects, at(12, 0.8))
    assert record_evaluation(git, objects, at(13, 0.9))  # it counts again
    assert not record_evaluation(git, objects, at(10, 0.9))
    assert len(git.run("log", "--format=%H", EVALUATIONS_REF).split()) == 3


def test_processes_that_append_at_once_all_land(git: Git, objects: ObjectReader) -> None:
    script = (
        "import sys; from pathlib import Path; from dvc_modelver.git.objects import ObjectReader\n"
        "from dvc_modelver.git.porcelain import Git; from dvc_modelver.registry.evaluations import *\n"
        "folder, who = Path(sys.argv[1]), int(sys.argv[2]); sys.stdin.readline()\n"
        "git, objects = Git(folder), ObjectReader(folder / '.git')\n"
        "for i in range(4):\n"
        f"    one = Evaluation('{MD5}', {{'val_acc': who + i / 10}}, f'2026-11-21T1{{who}}:0{{i}}:00Z')\n"
        "    assert record_evaluation(git, objects, one)\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-P", "-c", script, str(git.folder), str(n)], stdin=subprocess.PIPE)
        for n in range(4)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
    for process in started:
        process.communicate()
        assert process.returncode == 0
    found = read_evaluations(objects)[MD5]
    assert sorted(one.metrics["val_acc"] for one in found) == [who + i / 10 for who in range(4) for i in range(4)]


def test_broken_and_hostile_lines_are_counted_and_left_out(git: Git, objects: ObjectReader) -> None:
    good, oid = at(10, 0.9).render(), blob_id(MD5.encode(), "0" * 40)
    data = json.loads(good)
    bad = [
        b"\xff\xfe", b"{", b"[" * 100_000, b"null", b"{}", good.replace(b"evaluation/1", b"evaluation/9"),
        good.replace(b"0.9", b"NaN"), good.replace(b"0.9", b"1e999"), good.replace(b"0.9", b'"high"'),
        good.replace(b"0.9", b"true"), good.replace(b'{"val_acc":0.9}', b"{}"), good.replace(NOON[:10].encode(), b"x"),
        good.replace(b"dddd", b"DDDD"), good.replace(MD5.encode(), b"c" * 32),
        json.dumps(data | {"by": "x" * 2000}).encode(), json.dumps(data | {"data": ["x"]}).encode(),
        json.dumps(data | {"metrics": {"a": 1 << 5000}}).encode(), json.dumps(data | {"by": ["x"]}).encode(),
    ]  # fmt: skip
    append_notes(git, objects, EVALUATIONS_REF, {oid: [*bad[:9], good, b"  ", *bad[9:]]}, "hostile\n", committer(git))
    reasons: list[str] = []
    assert read_evaluations(objects, skip=reasons.append) == {MD5: [at(10, 0.9)]}
    assert len(reasons) == len(bad)
    assert all(reason.isprintable() for reason in reasons)
    assert record_evaluation(git, objects, at(11, 0.8))  # and what stands there stays
    assert all(line in git.run("show", f"{EVALUATIONS_REF}:{oid[:2]}/{oid[2:]}").split(b"\n") for line in (*bad, good))


def test_trees_of_any_shape_are_read(git: Git, objects: ObjectReader) -> None:
    git.run("notes", "--ref=modelver-evaluations", "append", "-m", at(10, 0.9).render().decode(), _blob(git, MD5))
    md5s = [hashlib.md5(str(n).encode()).hexdigest() for n in range(3)]
    for depth, md5 in enumerate(md5s):
        oid = _blob(git, md5)
        path = "/".join([*(oid[2 * i : 2 * i + 2] for i in range(depth)), oid[2 * depth :]])
        line = at(11, 0.8, md5).render()
        stream = b"commit %s\ncommitter a <b> 1 +0000\ndata 0\nfrom %s^0\nM 100644 inline %s\ndata %d\n%s\n"
        ref = EVALUATIONS_REF.encode()
        extra = b"M 100644 inline %s\ndata 3\nabc\n" * 3 % (b"README", b"ab/cd/README.md", b"abc")
        git.run("fast-import", "--quiet", stdin=stream % (ref, ref, path.encode(), len(line), line) + extra)
    assert read_evaluations(objects).keys() == {MD5, *md5s} == read_evaluations(objects, [MD5, *md5s]).keys()
    for md5 in (MD5, *md5s):
        assert record_evaluation(git, objects, at(12, 0.7, md5))
    assert all(len(several) == 2 for several in read_evaluations(objects).values())
    assert len(git.text("notes", "--ref=modelver-evaluations", "list").splitlines()) == 4


def _blob(git: Git, text: str) -> str:
    return git.run("hash-object", "-w", "--stdin", stdin=text.encode()).decode().strip()


def test_a_ref_that_is_no_commit_is_no_evaluation(git: Git, objects: ObjectReader) -> None:
    git.run("update-ref", EVALUATIONS_REF, _blob(git, "x"))
    assert read_evaluations(objects) == {}


def test_who_measured_is_asked_of_git(git: Git, objects: ObjectReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    git.run("config", "user.useConfigOnly", "true")
    with pytest.raises(UsageError) as caught:
        record_evaluation(git, objects, Evaluation(MD5, {"a": 1}, NOON))
    assert "user.name" in caught.value.hint
    assert record_evaluation(git, objects, Evaluation(MD5, {"a": 1}, NOON, "CI <\n>"))
    assert git.text("log", "--format=%cn", EVALUATIONS_REF) == "CI"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("2020-11-21T13:00:00+01:00", "2020-11-21T12:00:00Z"), ("2020-11-21 12:00", "2020-11-21T12:00:00Z"),
     ("2020-11-21", "2020-11-21T00:00:00Z"),
     ("2020-11-21T13:00:00.25+01:00", "2020-11-21T12:00:00.250000Z")],
)  # fmt: skip
def test_times_are_kept_in_utc(given: str, wanted: str) -> None:
    assert as_time(given) == wanted


@pytest.mark.parametrize("given", ["", "yesterday", "2026-13-01", "0001-01-01T00:00:00+23:00"])
def test_what_is_no_time_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match="not a time"):
        as_time(given)
