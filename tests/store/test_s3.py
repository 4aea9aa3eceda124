"""The round trip over S3, and what a user is told when S3 does not do what it should."""

from __future__ import annotations

from pathlib import Path

import pytest

from dvc_modelver.formats import open_reader
from dvc_modelver.store.remotes import Remote
from tests.s3server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.sandbox import Sandbox

MODEL = "models/net.safetensors"


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)


@pytest.fixture
def team(s3: S3Server, tmp_path: Path) -> Sandbox:
    """A repository with an S3 remote and a bare Git origin, one model committed."""
    box = Sandbox(tmp_path / "work")
    box.path.mkdir()
    box.modelver("init", "--remote", f"s3://models/{tmp_path.name}")
    box.dvc("remote", "modify", "storage", "endpointurl", s3.endpoint_url)
    box.run("git", "init", "-q", "--bare", str(tmp_path / "origin.git"))
    box.git("remote", "add", "origin", str(tmp_path / "origin.git"))
    box.train(MODEL, 1)
    box.git("add", ".")
    box.git("commit", "-q", "-m", "one")
    return box


def clone(box: Sandbox) -> Sandbox:
    box.run("git", "clone", "-q", str(box.path.parent / "origin.git"), str(box.path.parent / "clone"))
    return Sandbox(box.path.parent / "clone")


@pytest.mark.usefixtures("credentials")
def test_commit_push_clone_pull(team: Sandbox) -> None:
    said = team.run("git", "push", "-u", "origin", "main").stderr
    assert "uploading 1 object" in said
    other = clone(team)
    other.modelver("install")
    other.modelver("pull")
    assert other.md5(MODEL) == team.md5(MODEL)
    assert other.git("status", "--porcelain") == ""
    plain = Sandbox(other.path.rename(other.path.parent / "plain"))
    (plain.path / MODEL).unlink()
    plain.dvc("pull", "-q")
    assert plain.md5(MODEL) == team.md5(MODEL)
    assert "0 problems" in team.modelver("fsck", "--remote")


@pytest.mark.usefixtures("credentials")
def test_a_header_is_read_by_range_without_filling_the_cache(team: Sandbox) -> None:
    team.git("push", "-q", "-u", "origin", "main")
    md5 = team.md5(MODEL)
    team.drop(md5)
    with Remote.open(team.path).open_object(md5) as stream:
        reader = open_reader(stream, "net.safetensors")
        assert reader is not None
        assert [s.name for s in reader.specs][:2] == ["embed.weight", "head.weight"]
    assert not team.cached(md5)


@pytest.mark.usefixtures("credentials")
def test_a_lost_object_is_named(team: Sandbox) -> None:
    team.git("push", "-q", "-u", "origin", "main")
    remote = Remote.open(team.path)
    md5 = team.md5(MODEL)
    assert remote.missing({md5, "0" * 32}) == {"0" * 32}
    odb = remote._repo.cloud.get_remote_odb("storage", "push")
    odb.fs.remove(odb.oid_to_path(md5))
    assert remote.missing({md5}) == {md5}
    done = team.run("modelver", "fsck", "--remote", ok=False)
    assert done.returncode == 1
    assert "is not on s3://" in done.stdout
    team.drop(md5)
    (team.path / MODEL).unlink()
    done = team.run("modelver", "pull", ok=False)
    assert done.returncode == 4
    assert md5[:8] in done.stderr


@pytest.mark.parametrize(
    ("key", "secret", "bucket", "port", "said"),
    [
        (None, None, "models", None, "credentials"),
        ("wrong", "wrong", "models", None, "credentials"),
        (ACCESS_KEY, "wrong", "models", None, "credentials"),
        (ACCESS_KEY, SECRET_KEY, "no-such-bucket", None, "no such bucket"),
        (ACCESS_KEY, SECRET_KEY, "models", 9, "cannot be reached"),
    ],
)
def test_what_is_wrong_with_s3_is_one_line_and_the_push_stops(
    team: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    key: str | None,
    secret: str | None,
    bucket: str,
    port: int | None,
    said: str,
) -> None:
    if key is not None and secret is not None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    team.dvc("remote", "modify", "storage", "url", f"s3://{bucket}/x")
    if port is not None:
        team.dvc("remote", "modify", "storage", "endpointurl", f"http://127.0.0.1:{port}")
    done = team.run("git", "push", "origin", "main", ok=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert said in done.stderr
    assert "hint:" in done.stderr
    assert team.run("git", "ls-remote", "origin").stdout == ""
    assert team.exit_code("push") == 4
