"""Takes notes refs to remotes and brings theirs: fetched beside ours, merged by Git line by line, pushed."""

from __future__ import annotations

import os
import random
import time
import zlib
from collections.abc import Sequence

from dvc_modelver.errors import EnvironmentFailed, UsageError
from dvc_modelver.git.notes import committer, tracking_ref
from dvc_modelver.git.objects import ObjectReader
from dvc_modelver.git.porcelain import ZERO_OID, Git, GitFailed

_TRIES = 20
"""How often a push is tried anew where others push at the same time; one of them always lands."""
_CONTENTION = ("cannot lock ref", "failed to update ref", "fetch first", "non-fast-forward", "incorrect old value")
"""What git says where another process writes the same ref, here or on the remote."""


def refspec(remote: str, pattern: str) -> str:
    """Give what makes ``git fetch`` bring a remote's notes.

    Args:
        remote: Its name.
        pattern: Which refs: ``refs/notes/modelver*``.
    """
    return f"+{pattern}:{tracking_ref(pattern, remote)}"


def lacking(objects: ObjectReader, pattern: str) -> list[str]:
    """Give the remotes that are fetched from without their notes."""
    return [name for name, specs in objects.remotes().items() if specs and refspec(name, pattern) not in specs]


def add_refspec(git: Git, remote: str, pattern: str) -> None:
    """Have ``git fetch`` of a remote bring its notes from now on."""
    git.run("config", "--local", "--add", f"remote.{remote}.fetch", refspec(remote, pattern))


def remove_refspecs(git: Git, objects: ObjectReader, pattern: str) -> list[str]:
    """Take out what `add_refspec` wrote, also of a remote that was renamed since; give the remotes that had it."""
    start = refspec("", pattern).partition(":")[0] + ":"
    found = [(name, spec) for name, specs in objects.remotes().items() for spec in specs if spec.startswith(start)]
    for name, spec in found:
        git.run("config", "--local", "--fixed-value", "--unset-all", f"remote.{name}.fetch", spec, codes=(0, 5))
    return list(dict.fromkeys(name for name, _ in found))


def fetch_notes(git: Git, remote: str, refs: Sequence[str]) -> None:
    """Bring a remote's notes refs, those that it has, to where `tracking_ref` says.

    Args:
        git: Runs ``git fetch``.
        remote: Its name, or its URL where it has none.
        refs: Notes refs, or patterns of them.

    Raises:
        EnvironmentFailed: The remote cannot be reached.
    """
    name = _name_of(remote)
    options = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--no-auto-maintenance")
    # Patterns, since a ref that is named outright and not there makes git fetch fail.
    specs = [f"+{ref}*:{tracking_ref(ref, name)}*" if "*" not in ref else refspec(name, ref) for ref in refs]
    for left in reversed(range(_TRIES)):
        try:
            git.run("fetch", *options, remote, *specs, env=_ALONE)
            return
        except GitFailed as err:
            if not left or not _is_contention(err):
                raise EnvironmentFailed(f"{remote}: {err}", hint=f"git fetch {remote}") from err
        _give_way()


def _is_contention(err: GitFailed) -> bool:
    return any(words in err.stderr for words in _CONTENTION)


def _give_way() -> None:
    """Wait for a moment, each process another one."""
    time.sleep(random.uniform(0.02, 0.2))  # noqa: S311 - no secret


def send_notes(git: Git, objects: ObjectReader, remote: str, refs: Sequence[str]) -> bool:
    """Push notes refs, after merging what the remote has got meanwhile.

    Args:
        git: Runs ``git push`` and ``git fetch``.
        objects: Reads the refs.
        remote: Its name, or its URL where it has none.
        refs: Notes refs; those that are not here are left out.

    Returns:
        Whether there was anything to send.

    Raises:
        EnvironmentFailed: The remote cannot be reached, or refuses.
    """
    name = _name_of(remote)
    sent = False
    try:
        for _ in range(_TRIES):
            tracked = [objects.find_ref(tracking_ref(ref, name)) for ref in refs]
            todo = [ref for ref in refs if _is_ahead(objects, ref, tracking_ref(ref, name))]
            if not todo:
                return sent
            sent = True
            try:
                options = ("--quiet", "--no-verify", "--no-follow-tags", "--no-recurse-submodules")
                git.run("push", *options, remote, *(f"{ref}:{ref}" for ref in todo), env=_ALONE)
                return True
            except GitFailed as err:
                failed = EnvironmentFailed(f"{remote}: {_refusal(err)}", hint=f"git push {remote} {' '.join(todo)}")
                is_contention = _is_contention(err)
            fetch_notes(git, remote, todo)
            for ref in todo:
                merge_notes(git, objects, ref, tracking_ref(ref, name))
            if is_contention:
                _give_way()
            elif tracked == [objects.find_ref(tracking_ref(ref, name)) for ref in refs]:
                raise failed  # nobody was faster: it is the remote that does not want them
        raise failed
    finally:
        if name != remote:
            for ref in refs:
                git.run_for_code("update-ref", "-d", tracking_ref(ref, name), codes=(0, 1, 128))


_ALONE = {"GIT_TERMINAL_PROMPT": "0"}
"""Nobody is asked for a password a second time: a helper knows it, or the notes stay here and it is said."""


def _name_of(remote: str) -> str:
    """Give a remote's name; of a URL one that is a part of a ref's name."""
    is_name = remote and not remote.startswith("-") and not any(c in remote for c in "/:\\~^*?[ ")
    return remote if is_name else f"url-{zlib.crc32(os.fsencode(remote)):08x}"


def _is_ahead(objects: ObjectReader, ref: str, tracking: str) -> bool:
    ours, theirs = objects.find_ref(ref), objects.find_ref(tracking)
    return ours is not None and (theirs is None or not objects.is_ancestor(ours, theirs))


def _refusal(err: GitFailed) -> str:
    """Give the line of git's words that says why."""
    lines = [line.strip() for line in err.stderr.splitlines()]
    told = [line for line in lines if line.startswith(("! [", "remote: error", "fatal:"))]
    return " ".join((told or [str(err)])[-1].split())


def merge_notes(git: Git, objects: ObjectReader, ref: str, other: str) -> None:
    """Merge another notes ref into one: every line of both, sorted, as ``git notes merge -s cat_sort_uniq`` does.

    It is merged under another name and takes the ref's place only where that has not moved meanwhile.

    Raises:
        EnvironmentFailed: Others moved the ref every time.
    """
    for _ in range(_TRIES):
        ours, theirs = objects.find_ref(ref), objects.find_ref(other)
        if theirs is None or (ours is not None and objects.is_ancestor(theirs, ours)):
            return
        if ours is None or objects.is_ancestor(ours, theirs):
            merged = theirs
        else:
            merged = _merged(git, objects, ours, theirs, ref)
        message = f"merge {other}"
        if git.run_for_code("update-ref", "-m", message, ref, merged, ours or ZERO_OID, codes=(0, 1, 128))[0] == 0:
            return
    raise EnvironmentFailed(f"{ref}: moved by others {_TRIES} times while it was merged", hint="try again")


def _merged(git: Git, objects: ObjectReader, ours: str, theirs: str, ref: str) -> str:
    temp = f"refs/notes/merging-{os.getpid()}-{ref.rpartition('/')[2]}"
    git.run("update-ref", temp, ours)
    try:
        git.run("notes", f"--ref={temp}", "merge", "--quiet", "-s", "cat_sort_uniq", theirs, env=_identity(git))
        return objects.find_ref(temp) or ours
    finally:
        git.run("update-ref", "-d", temp)


def _identity(git: Git) -> dict[str, str]:
    """Give a name for the commit of a merge where Git knows none, as on a build server."""
    try:
        committer(git)
    except UsageError:
        return {f"GIT_{who}_{what}": "modelver" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return {}
