"""Every test runs in a home of its own: no configuration of the machine's is read or changed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.s3server import S3Server, start_s3_server
from tests.sandbox import Sandbox, prepared

# A busy machine is no failure: nothing here is judged by seconds.
settings.register_profile("modelver", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("modelver")


LONG = ("store/test_s3", "registry/test_", "git/test_commands", "git/test_push", "git/test_merge", "faults/", "cli/test_gc",
        "cli/test_fsck", "cli/test_damage", "cli/test_folder_models", "formats/test_keras", "security/test_real_models")  # fmt: skip
"""Modules of few long tests; they begin, so that no worker is left with one in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest modules first (with ``--no-loadscope-reorder``)."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in LONG))


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
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # the tests already run side by side
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


@prepared
def sandbox(tmp_path: Path) -> Sandbox:
    """A repository set up by ``modelver init`` with a local remote, nothing committed but its settings."""
    box = Sandbox(tmp_path / "work")
    remote = tmp_path / "remote"
    box.path.mkdir()
    box.modelver("init", "--remote", str(remote))
    box.git("add", ".")
    box.git("commit", "-q", "-m", "set up")
    config = box.path / ".dvc/config"
    config.write_text(config.read_text().replace(str(remote), "../../remote"))
    box.git("commit", "-q", "-am", "where the remote is")
    return box
