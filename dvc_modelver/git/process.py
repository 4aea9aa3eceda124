"""Which Git command runs us: the words of its command line, where the system tells."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

_MAX_ANCESTORS = 8


def find_command(pid: str) -> list[str] | None:
    """Give the words of the Git command that runs a hook, at or above a process; None where that cannot be told."""
    for _ in range(_MAX_ANCESTORS):
        if not pid.isdigit() or pid in ("0", "1"):
            return None
        parent, words = _process(pid)
        if words and os.path.basename(words[0]).startswith("git"):
            return words
        pid = parent
    return None


def is_amending(command: Sequence[str]) -> bool:
    """Whether the words are those of ``git commit --amend``, which may be shortened to ``--am``."""
    options = command[: command.index("--")] if "--" in command else command
    return "commit" in command and any(len(word) > 3 and "--amend".startswith(word) for word in options)


def strategy_options(command: Sequence[str]) -> list[str]:
    """Give the values of ``-X`` in the words of a ``git merge`` and its like, in their order."""
    found, words = [], iter(command)
    for word in words:
        if word == "--":
            break
        if word in ("-X", "--strategy-option"):
            found.append(next(words, ""))
        elif word.startswith("-X"):
            found.append(word[2:])
        elif word.startswith("--strategy-option="):
            found.append(word.partition("=")[2])
    return found


def _process(pid: str) -> tuple[str, list[str]]:
    """Give a process's parent and its words, from /proc or from ps; nothing where neither tells."""
    folder = Path("/proc", pid)
    try:
        words = folder.joinpath("cmdline").read_bytes().split(b"\0")[:-1]
        parent = folder.joinpath("stat").read_bytes().rpartition(b")")[2].split()[1]
        return parent.decode(), [os.fsdecode(w) for w in words]
    except OSError:
        pass
    try:
        asked = ["ps", "-o", "ppid=", "-o", "args=", "-p", pid]
        done = subprocess.run(asked, capture_output=True, text=True, errors="replace", check=False)
    except OSError:
        return "", []
    found = done.stdout.split()
    return (found[0], found[1:]) if found else ("", [])
