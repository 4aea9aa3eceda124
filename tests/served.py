"""Runs ``modelver`` and ``dvc`` in forks of a process that has imported them, which is half of such a command's time.

A command has the folder, the environment and the streams that it is given, and ends as a program does.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO


def run(argv: Sequence[str], cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run ``modelver ...`` or ``dvc ...`` with nothing on standard input."""
    server, replies = _server()
    assert server.stdin is not None
    with tempfile.TemporaryDirectory() as folder:
        streams = [os.devnull, os.path.join(folder, "out"), os.path.join(folder, "err")]
        request = {"argv": argv, "cwd": str(cwd), "env": dict(env), "streams": streams}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(replies.readline())
        return subprocess.CompletedProcess(argv, code, *(Path(name).read_text() for name in streams[1:]))


@functools.cache
def _server() -> tuple[subprocess.Popen[str], IO[str]]:
    ours, theirs = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, str(theirs)], stdin=subprocess.PIPE, pass_fds=[theirs], text=True
    )  # it ends with its input
    os.close(theirs)
    return process, os.fdopen(ours)


def _serve(replies: int) -> list[str]:
    """Fork for every request; give its words, in the child."""
    import dvc.cli.parser
    import dvc.repo  # noqa: F401
    import numpy as np  # noqa: F401
    import pygit2

    import dvc_modelver.cli.app  # noqa: F401

    os.set_inheritable(replies, False)
    gc.freeze()
    while line := sys.stdin.readline():
        request = json.loads(line)
        if (child := os.fork()) == 0:
            os.close(replies)
            os.environ.clear()
            os.environ.update(request["env"])
            os.chdir(request["cwd"])
            for number, name in enumerate(request["streams"]):
                opened = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND if number else os.O_RDONLY)
                os.dup2(opened, number)
                os.close(opened)
            pygit2.settings.search_path[pygit2.enums.ConfigLevel.GLOBAL] = os.environ["HOME"]
            pygit2.settings.search_path[pygit2.enums.ConfigLevel.XDG] = os.environ["XDG_CONFIG_HOME"] + "/git"
            return list(request["argv"])
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(replies, f"{code}\n".encode())
    os._exit(0)


def _run() -> int:
    if sys.argv[0] == "dvc":
        from dvc.cli import main as dvc

        return int(dvc(sys.argv[1:]))
    from dvc_modelver.cli import main

    return main()


if __name__ == "__main__":
    sys.argv = _serve(int(sys.argv[1]))
    try:
        code = _run()
    except SystemExit as err:
        code = err.code if isinstance(err.code, int) else err.code is not None
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # to take every module apart again takes longer than most commands
