"""Every test runs in a home of its own: no configuration of the machine's is read or changed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.s3server import S3Server, start_s3_server
from tests.sandbox import Sandbox

# A busy machine is no failure: nothing here is judged by seconds.
settings.register_profile("modelver", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("modelver")


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name.startswith(("GIT_", "DVC_", "AWS_", "XDG_", "MODELVER_")):
            monkeypatch.delenv(name)
    (home / "gitconfig").write_text(
        "[user]\n\tname = Ada\n\temail = ada@example.org\n[init]\n\tdefaultBranch = main\n"
        "[advice]\n\tdetachedHead = false\n[commit]\n\tgpgSign = false\n"
    )
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(home / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(home / "dvc"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # or every hook compiles the package anew
    os.umask(0o022)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server with a bucket ``models``, for the tests that ask for one."""
    with start_s3_server(tmp_path_factory.mktemp("s3")) as server:
        server.make_bucket("models")
        yield server


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Where the first test leaves a copy of its fresh repository, since ``dvc init`` takes a second."""
    return [tmp_path_factory.mktemp("template") / "work"]


@pytest.fixture
def sandbox(tmp_path: Path, template: list[Path]) -> Sandbox:
    """A repository set up by ``modelver init`` with a local remote, nothing committed but its settings."""
    box = Sandbox(tmp_path / "work")
    if not template[0].exists():
        box.path.mkdir()
        box.modelver("init", "--remote", str(template[0].parent / "remote"))
        box.git("add", ".")
        box.git("commit", "-q", "-m", "set up")
        shutil.copytree(box.path, template[0], symlinks=True)
    else:
        shutil.copytree(template[0], box.path, symlinks=True)
    config = box.path / ".dvc/config"
    remote = tmp_path / "remote"
    remote.mkdir()
    config.write_text(config.read_text().replace(str(template[0].parent / "remote"), str(remote)))
    box.git("commit", "-q", "-am", "where the remote is")
    return box
