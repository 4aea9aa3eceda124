"""This clone's Git configuration."""

from __future__ import annotations

import os
from dataclasses import dataclass

from dvc_modelver.git.porcelain import Git


@dataclass(frozen=True)
class Setting:
    """One value of Git's configuration and the file it comes from."""

    value: str
    origin: str


def find_setting(git: Git, key: str) -> Setting | None:
    """Give the value that is in force for `key`; None when it is not set anywhere.

    ``core.fsmonitor`` is asked from the files, since we switch it off for our own calls.
    """
    scope = ("--show-origin", "-z", "--get-all", key)
    code, out = git.run_for_code("config", *scope, codes=(0, 1))
    fields = [os.fsdecode(f) for f in out.split(b"\0")[:-1]]
    pairs = [Setting(v, o.removeprefix("file:")) for o, v in zip(fields[::2], fields[1::2], strict=True)]
    pairs = [p for p in pairs if p.origin != "command line:"]
    return pairs[-1] if code == 0 and pairs else None


def set_local(git: Git, key: str, value: str) -> bool:
    """Set a key of this clone; True when that changed something."""
    if local_value(git, key) == value:
        return False
    git.run("config", "--local", "--replace-all", key, value)
    return True


def local_value(git: Git, key: str) -> str | None:
    """Give the value that this clone's own configuration has for `key`."""
    code, out = git.run_for_code("config", "--local", "-z", "--get", key, codes=(0, 1))
    return os.fsdecode(out).removesuffix("\0") if code == 0 else None


def unset_local(git: Git, key: str) -> bool:
    """Remove a key of this clone, and its section when nothing else is in it; True when it was there."""
    if local_value(git, key) is None:
        return False
    git.run("config", "--local", "--unset-all", key)
    section = key.rpartition(".")[0]
    listed = git.text("config", "--local", "--name-only", "--list").splitlines()
    if not any(name.rpartition(".")[0] == section.lower() for name in listed):
        git.run_for_code("config", "--local", "--remove-section", section, codes=(0, 1, 128))
    return True
