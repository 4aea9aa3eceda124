"""A registry to change: made once, copied for each test."""

from __future__ import annotations

from dvc_modelver import api
from tests.registry.registry import Registry
from tests.sandbox import Sandbox, prepared


@prepared
def registry(sandbox: Sandbox) -> Registry:
    box = Registry(sandbox.path)
    box.git("init", "-q", "--bare", str(box.folder / "origin.git"))
    box.git("remote", "add", "origin", "../origin.git")
    for seed, accuracy in ((1, 0.91), (2, 0.93), (3, 0.92)):
        box.commit(seed, accuracy)
        api.tag("net", f"v1.{seed - 1}.0", folder=box.path)
    box.git("push", "-q", "--follow-tags", "-u", "origin", "main")
    return box
