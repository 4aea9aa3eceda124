"""What Git's hooks call when something of ours is concerned; each returns an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dvc_modelver.drivers.say import say, say_error
from dvc_modelver.errors import ModelverError, RefusedError, environment_error, word
from dvc_modelver.git.layout import Layout
from dvc_modelver.git.porcelain import ZERO_OID
from dvc_modelver.progress import human_bytes
from dvc_modelver.repository import Repository
from dvc_modelver.worktree.state import State, locked, read_state, write_state

if TYPE_CHECKING:
    from dvc_modelver.transfer import Wanted


def main(argv: list[str]) -> int:
    """Run one hook: ``pre-commit``, ``post-checkout OLD NEW FLAG``...

    Returns:
        0, or what stops the Git command: 1 refused, 2 bad input, 3 a bug of ours, 4 the environment failed.
    """
    name, args = argv[0], argv[1:]
    try:
        _HOOKS[name](Repository.open(), args)
    except ModelverError as err:
        return _stop(name, err)
    except KeyboardInterrupt:
        return 130
    except OSError as err:
        return _stop(name, environment_error(err))
    except Exception as err:
        from dvc_modelver.report import report_bug

        say(report_bug(err, argv))
        say(f"hint: MODELVER_SKIP=1 git ... runs one command without modelver ({name} failed)")
        return 3
    return 0


def _stop(name: str, err: ModelverError) -> int:
    """Say what went wrong, and what Git, which says nothing of it, does not do now."""
    say_error(err)
    if name in _STOPPED:
        say(f"nothing was {_STOPPED[name]}")
    return err.exit_code


def _is_commit(pid: str) -> bool:
    """Whether a Git process is a commit, where the system tells (Linux); elsewhere the commit reads the file again."""
    try:
        words = Path(f"/proc/{int(pid)}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return False
    return b"commit" in words[1:8]


def _fsmonitor(repo: Repository, args: list[str]) -> None:
    """Git is about to read the work tree: retrained models show as changed metadata."""
    from dvc_modelver.worktree.sync import apply_law

    with locked(repo.layout.state_dir, wait=False) as mine:
        if mine:
            storing = bool(args) and _is_commit(args[0])
            apply_law(repo, say, describing=True, following=False, storing=storing)


def _pre_commit(repo: Repository, _args: list[str], *, merging: bool = False) -> None:
    from dvc_modelver.worktree.handover import note_commit
    from dvc_modelver.worktree.staging import Stager
    from dvc_modelver.worktree.sync import Keeper

    commit_all = Path(os.environ.get("GIT_INDEX_FILE", "")).name == "index.lock"
    with locked(repo.layout.state_dir):
        stager = Stager(Keeper(repo, say))
        staged = stager.complete(commit_all=commit_all, merging=merging)
        note_commit(repo, staged, stager.raw)


def _post_commit(repo: Repository, _args: list[str]) -> None:
    from dvc_modelver.worktree.handover import finish_commit

    finish_commit(repo, say)


def _prepare_commit_msg(repo: Repository, args: list[str]) -> None:
    from dvc_modelver.drivers.message import prepare

    prepare(repo, args)


def _follow(repo: Repository, args: list[str]) -> None:
    """The work tree may be another version's now: the models follow, from the cache or the remote."""
    from dvc_modelver.transfer import Wanted, by_reason, fetch
    from dvc_modelver.worktree.law import Action
    from dvc_modelver.worktree.sync import apply_law

    repo.share_cache()
    with locked(repo.layout.state_dir):
        expect_models(repo.layout)
        left = [s for s in apply_law(repo, say, describing=False, following=True) if s.action is Action.FOLLOW]
        if not left:
            note_followed(repo.layout)
            return
        wanted = {seen.path: Wanted(replace(seen.model.pointer, md5=seen.decision.target)) for seen in left}
        rewritten_by = args[0] if args else os.environ.get("PRE_COMMIT_REWRITE_COMMAND")
        under_way = "" if rewritten_by == "rebase" else find_under_way(repo)  # Git asks post-rewrite at its end
        if (under_way == "a rebase" and not _stops(repo)) or _was_told(repo, wanted.values(), under_way):
            return
        if under_way:
            reasons = dict.fromkeys(wanted, f"not fetched in the middle of {under_way}")
        else:
            limit = repo.settings.fetch_max_bytes
            done = fetch(repo, wanted.values(), say, max_bytes=limit)
            if done.md5s:
                apply_law(repo, say, describing=False, following=True)
            reasons = {p: done.failed[w.md5] for p, w in wanted.items() if w.md5 in done.failed}
            why = (
                f"larger than limits.fetch_max_bytes ({human_bytes(limit)})" if limit else "limits.fetch_max_bytes is 0"
            )
            reasons |= {i.path: why for i in done.skipped}
    for paths, why in by_reason(reasons):
        hint = " ".join(["modelver pull", *map(word, paths)])
        say(f"{', '.join(paths)}: still the weights of before: {why}\nhint: {hint}")


def note_followed(layout: Layout) -> None:
    """Let the next hook of the same Git command know that no model is behind, so that it need not look."""
    command = os.environ.get("MODELVER_GIT_PID", "")
    if command:
        with suppress(OSError):  # it only saves time
            (layout.state_dir / "followed").write_text(command + "\n", encoding="ascii")


def expect_models(layout: Layout) -> None:
    """In a linked work tree that was made just now, let models without a file count as behind, not as deleted."""
    if layout.git_dir != layout.common_dir and not read_state(layout.state_dir).known:
        write_state(layout.state_dir, State())


def _was_told(repo: Repository, wanted: Iterable[Wanted], under_way: str) -> bool:
    """Whether another hook of the same Git command tried for these objects already; it is, from now on."""
    from dvc_modelver.worktree.state import write_file

    command = os.environ.get("MODELVER_GIT_PID", "")
    text = " ".join([command, under_way, *sorted(w.md5 for w in wanted)]).encode()
    note = repo.layout.state_dir / "told"
    if command and note.is_file() and note.read_bytes() == text:
        return True
    write_file(note, text)
    return False


def find_under_way(repo: Repository) -> str:
    """Give what is under way, in which versions come and go that nobody waits for; empty where nothing is.

    A rebase that only checked out what it builds on is not yet: most of those weights will be needed at its end.
    """
    names = {
        "rebase-merge/msgnum": "a rebase",
        "rebase-apply/applying": "git am",
        "rebase-apply": "a rebase",
        "BISECT_LOG": "a bisect",
    }
    return next((what for name, what in names.items() if (repo.layout.git_dir / name).exists()), "")


def _stops(repo: Repository) -> bool:
    """Whether a rebase hands over to its user at this step; else it goes on, and fetches what is needed at its end."""
    try:
        done = (repo.layout.git_dir / "rebase-merge/done").read_text(encoding="utf-8", errors="replace")
    except OSError:
        done = ""
    step = done.rstrip("\n").rpartition("\n")[2].split(" ")[0]
    return step in ("edit", "e", "break", "b", "exec", "x") or bool(repo.git.unmerged())


def pushed_refs(repo: Repository) -> list[str]:
    """Give Git's lines ``LOCAL OID REMOTE OID``; from its environment where pre-commit (the framework) runs us."""
    lines = sys.stdin.read().splitlines()
    env = os.environ
    local, remote = env.get("PRE_COMMIT_LOCAL_BRANCH"), env.get("PRE_COMMIT_REMOTE_BRANCH")
    if lines or not local or not remote:
        return lines
    new = env.get("PRE_COMMIT_TO_REF") or repo.git.commit_of(local)  # the first push names no commits
    return [f"{local} {new} {remote} {env.get('PRE_COMMIT_FROM_REF') or ZERO_OID}"]


def _pre_push(repo: Repository, args: list[str]) -> None:
    from dvc_modelver.checks import check_commits
    from dvc_modelver.transfer import known_refs, objects_of_commits, upload
    from dvc_modelver.worktree.unpushed import note_sent

    remote = args[0] if args else os.environ.get("PRE_COMMIT_REMOTE_NAME", "origin")
    wanted: dict[tuple[object, ...], Wanted] = {}
    refs = pushed_refs(repo)
    for line in refs:
        fields = line.split(" ")
        if len(fields) != 4 or fields[1] == ZERO_OID:
            continue  # a deleted ref
        if repo.git.find_commit(fields[1]) is None:
            continue  # a tag of a file
        known = known_refs(remote, fields[3] if repo.git.find_commit(fields[3]) else ZERO_OID)
        problems = check_commits(repo, fields[1], known)
        for problem in problems:
            if not problem.refuses:
                say(f"warning: {problem.line}")
        refused = [p for p in problems if p.refuses]
        if refused:
            raise RefusedError("\n".join(p.line for p in refused), hint=refused[0].hint)
        wanted |= {w.key: w for w in objects_of_commits(repo, fields[1], known)}
    if wanted:
        upload(repo, wanted.values(), say)
    note_sent(repo.layout, (line.split(" ")[0].removeprefix("refs/tags/") for line in refs))
    _send_notes(repo, remote, {line.split(" ")[2] for line in refs if line.count(" ") == 3})


def _send_notes(repo: Repository, remote: str, pushed: set[str]) -> None:
    """Evaluations travel along; a remote that does not take them is no reason to stop a push."""
    from dvc_modelver.registry.notes import send

    try:
        send(repo.git, repo.objects, remote, besides=pushed)
    except ModelverError as err:
        say(f"warning: evaluations and other notes stay here: {err}" + (f"\nhint: {err.hint}" if err.hint else ""))


_STOPPED = {"pre-commit": "committed", "pre-merge-commit": "committed", "pre-push": "pushed"}
"""Hooks whose exit code stops the Git command."""
_HOOKS: dict[str, Callable[[Repository, list[str]], None]] = {
    "fsmonitor": _fsmonitor,
    "pre-commit": _pre_commit,
    "pre-merge-commit": partial(_pre_commit, merging=True),
    "prepare-commit-msg": _prepare_commit_msg,
    "post-commit": _post_commit,
    "post-checkout": _follow,
    "post-merge": _follow,
    "post-rewrite": _follow,
    "post-applypatch": _follow,
    "post-index-change": _follow,
    "pre-push": _pre_push,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
