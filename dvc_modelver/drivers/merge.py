"""What ``merge.modelver.driver`` runs: one file of a model that both sides of a merge changed."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from dvc_modelver.errors import ModelverError, environment_error
from dvc_modelver.repository import Repository
from dvc_modelver.worktree.merge_files import FileMerge, choose_version
from dvc_modelver.worktree.merging import Merger
from dvc_modelver.worktree.state import locked, write_file


def say(line: str) -> None:
    """Print one line for the user, on standard error."""
    sys.stderr.write("".join(f"modelver: {part}\n" for part in line.splitlines()))


def main(argv: list[str]) -> int:
    """Merge one file; the result replaces ours.

    Args:
        argv: ``%O %A %B %L %P`` of gitattributes(5): base, ours, theirs, length of markers, path.

    Returns:
        0 merged, 1 conflict.
    """
    from dvc_modelver.report import report_bug

    base, ours, theirs, _, path = argv
    is_clean = False
    try:
        repo = Repository.open()
        with locked(repo.layout.state_dir):
            choose = partial(choose_version, Merger(repo, say), command=os.environ.get("MODELVER_GIT_PID", ""))
            texts = (Path(file).read_bytes() for file in (base, ours, theirs))
            result, is_clean = FileMerge(repo, path, say, choose).merge(*texts)
        if result is not None:
            write_file(Path(ours), result)
    except ModelverError as err:
        say(f"{path}: {err}" + (f"\nhint: {err.hint}" if err.hint else ""))
        return 1
    except OSError as err:
        say(f"{path}: {environment_error(err)}")
        return 1
    except Exception as err:
        say(report_bug(err, ["driver", "merge", *argv]))
        return 1
    return 0 if is_clean else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
