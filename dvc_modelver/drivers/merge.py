"""What ``merge.modelver.driver`` runs: one file of a model that both sides of a merge changed."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from dvc_modelver.drivers.say import say, say_error
from dvc_modelver.errors import ModelverError, environment_error
from dvc_modelver.git.process import find_command, strategy_options
from dvc_modelver.repository import Repository
from dvc_modelver.worktree.merge_files import FileMerge, choose_version
from dvc_modelver.worktree.merging import TAKEN, Merger
from dvc_modelver.worktree.state import locked, write_file


def main(argv: list[str]) -> int:
    """Merge one file; the result replaces ours.

    Args:
        argv: ``%O %A %B %L %P`` of gitattributes(5): base, ours, theirs, length of markers, path.

    Returns:
        0 merged, 1 conflict.
    """
    base, ours, theirs, _, path = argv
    is_clean = False
    try:
        repo = Repository.open()
        with locked(repo.layout.state_dir):
            pid = os.environ.get("MODELVER_GIT_PID", "")
            (repo.layout.state_dir / TAKEN).unlink(missing_ok=True)
            choose = partial(choose_version, Merger(repo, say), command=pid, side=find_side(pid))
            texts = (Path(file).read_bytes() for file in (base, ours, theirs))
            result, is_clean = FileMerge(repo, path, say, choose).merge(*texts)
        if result is not None:
            write_file(Path(ours), result)
    except ModelverError as err:
        say_error(err, path)
        return 1
    except OSError as err:
        say_error(environment_error(err), path)
        return 1
    except Exception as err:
        from dvc_modelver.report import report_bug

        say(report_bug(err, ["driver", "merge", *argv]))
        return 1
    return 0 if is_clean else 1


def find_side(pid: str) -> str:
    """Give the side that ``-X`` of the Git command chooses; empty where it chooses none, or that cannot be told."""
    chosen = [value for value in strategy_options(find_command(pid) or []) if value in ("ours", "theirs")]
    return chosen[-1] if chosen else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
