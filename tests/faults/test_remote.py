"""A remote that fails after some requests: what was there is whole, and the next run goes on."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from dvc_modelver.store.remotes import Remote
from tests.s3server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.sandbox import Sandbox, md5_of

NAMES = ("a", "b", "c")


class Gateway(ThreadingHTTPServer):
    """Passes requests on to a server, as many as it is told to.

    Attributes:
        seen: Requests since the last `let`.
        left: Requests that are still answered; the others are refused, as with credentials that ran out.
        cutting: Give only half of a file, and hang up.
    """

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = urlsplit(target).netloc
        self._lock = threading.Lock()
        self.let(None)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def let(self, n: int | None, *, cutting: bool = False) -> None:
        self.seen, self.left, self.cutting = 0, n, cutting

    def takes(self) -> bool:
        with self._lock:
            self.seen += 1
            return self.left is None or self.seen <= self.left

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that hung up


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gateway

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.server.takes():
            self._answer(403, {}, b"<Error><Code>ExpiredToken</Code><Message>the token has expired</Message></Error>")
            return
        with closing(http.client.HTTPConnection(self.server.target, timeout=60)) as upstream:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():  # the host, too: it is signed
                upstream.putheader(name, value)
            upstream.endheaders(body)
            response = upstream.getresponse()
            data = response.read()
        kept = {k: v for k, v in response.getheaders() if k.lower() not in ("transfer-encoding", "connection")}
        if self.server.cutting and self.command == "GET" and "files/md5" in self.path.partition("?")[0]:
            self.close_connection = True
            self._answer(response.status, kept | {"Content-Length": str(len(data))}, data[: len(data) // 2])
            return
        self._answer(response.status, kept, data)

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response_only(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


for _method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
    setattr(_Handler, f"do_{_method}", _Handler._pass)


@pytest.fixture
def gateway(s3: S3Server) -> Iterator[Gateway]:
    with Gateway(s3.endpoint_url) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def box(gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """Three models, committed and not pushed."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    box = Sandbox(tmp_path / "work")
    box.path.mkdir()
    box.modelver("init", "--remote", f"s3://models/{tmp_path.name}")
    box.dvc("remote", "modify", "storage", "endpointurl", gateway.url)
    box.run("git", "init", "-q", "--bare", str(tmp_path / "origin.git"))
    box.git("remote", "add", "origin", str(tmp_path / "origin.git"))
    for seed, name in enumerate(NAMES):
        box.train(f"{name}.safetensors", seed)
    box.git("add", ".")
    box.git("commit", "-q", "-m", "three")
    return box


def test_a_push_goes_on_where_the_remote_failed(box: Sandbox, gateway: Gateway) -> None:
    wanted = {box.md5(f"{name}.safetensors"): (box.path / f"{name}.safetensors").stat().st_size for name in NAMES}
    sent = 0
    for n in (0, 2, 4):  # of those few that ask what is there, and of those that send
        gateway.let(n)
        done = box.run("git", "push", "-q", "origin", "main", ok=False)
        assert done.returncode != 0, f"after {n} requests"
        assert "Traceback" not in done.stderr
        assert "hint:" in done.stderr
        assert box.run("git", "ls-remote", "origin").stdout == ""
        gateway.let(None)
        there = Remote.open(box.path).sizes(set(wanted))
        assert all(wanted[md5] == size for md5, size in there.items())
        assert len(there) >= sent  # nothing that was sent is lost
        sent = len(there)
    box.git("push", "-q", "origin", "main")
    assert Remote.open(box.path).sizes(set(wanted)) == wanted
    assert box.exit_code("fsck", "--remote", "--all") == 0


def test_a_pull_goes_on_where_the_remote_failed(box: Sandbox, gateway: Gateway) -> None:
    box.git("push", "-q", "origin", "main")
    wanted = {name: box.md5(f"{name}.safetensors") for name in NAMES}
    for name, md5 in wanted.items():
        box.drop(md5)
        (box.path / f"{name}.safetensors").unlink()
    gateway.let(None)
    for n, cutting in ((0, False), (2, False), (None, True)):
        gateway.let(n, cutting=cutting)
        done = box.run("modelver", "pull", ok=False, env={"AWS_MAX_ATTEMPTS": "1"})
        assert done.returncode == 4, done.stderr
        assert "Traceback" not in done.stderr
        for name, md5 in wanted.items():
            file, place = box.path / f"{name}.safetensors", box.path / f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}"
            assert not place.exists() or md5_of(place) == md5
            assert not file.exists() or md5_of(file) == md5
    gateway.let(None)
    box.modelver("pull")
    assert {name: box.md5(f"{name}.safetensors") for name in NAMES} == wanted
    assert box.exit_code("fsck") == 0
