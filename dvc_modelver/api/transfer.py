"""push and pull: objects to the remote, and the work tree to what is recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from dvc_modelver.errors import BadMetadataError, EnvironmentFailed, word
from dvc_modelver.registry.notes import bring, send
from dvc_modelver.registry.sharing import find_remote
from dvc_modelver.repository import Repository
from dvc_modelver.transfer import Upload, Wanted, all_tips, fetch, objects_of_commits, upload
from dvc_modelver.worktree.law import Action
from dvc_modelver.worktree.look import Seen
from dvc_modelver.worktree.state import locked
from dvc_modelver.worktree.sync import Keeper

Say = Callable[[str], None]


def push(
    *,
    everything: bool = False,
    remote: str | None = None,
    say: Say = lambda _line: None,
    folder: Path | None = None,
) -> list[Upload]:
    """Upload the objects of HEAD and of commits that no Git remote has; `git push` does this by itself.

    Evaluations go to the Git remote.

    Args:
        everything: The objects of all commits that a ref or a stash reaches.
        remote: Name of the DVC remote; the configured one by default.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.

    Raises:
        ObjectMissing: An object is neither here nor on the remote.
        EnvironmentFailed: The remote cannot be reached or written.
    """
    repo = Repository.open(folder)
    repo.dvc_root()
    if repo.head is None:
        return []
    if everything:
        found = objects_of_commits(repo, all_tips(repo), [])
    else:
        found = objects_of_commits(repo, "HEAD", ["--remotes"])
    wanted = {item.key: item for item in found}
    for pointer in repo.pointers(repo.at("HEAD")):
        if pointer.md5 and pointer.cache and pointer.push:
            item = Wanted(pointer)
            wanted.setdefault(item.key, item)
    done = upload(repo, wanted.values(), say, remote_name=remote)
    if (name := find_remote(repo.git)) is not None:
        _warned(lambda: send(repo.git, repo.objects, name), "evaluations and other notes stay here", say)
    return done


def _warned(act: Callable[[], object], what: str, say: Say) -> None:
    try:
        act()
    except EnvironmentFailed as err:
        say(f"warning: {what}: {err}" + (f"\nhint: {err.hint}" if err.hint else ""))


@dataclass
class Pulled:
    """What a pull did.

    Attributes:
        restored: Paths whose weights were put into place.
        current: Paths that had the recorded weights already.
        kept: Paths with weights of their own (retrained, or in conflict); left alone.
        failed: path -> why.
    """

    restored: list[str] = field(default_factory=list)
    current: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def pull(*names: str, force: bool = False, say: Say = lambda _line: None, folder: Path | None = None) -> Pulled:
    """Give the work tree the weights that its pointers name, from cache or remote, verified by md5.

    Evaluations are fetched from the Git remote.

    Args:
        names: Models, by name or path; all by default.
        force: Also where the model on disk has weights of its own; those go into the cache first.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.

    Raises:
        NotFoundError: No such model.
    """
    repo = Repository.open(folder)
    repo.dvc_root()
    _warned(lambda: bring(repo.git), "no evaluations were fetched", say)
    only = [repo.find_model(repo.work_tree, name).path for name in names] or None
    done = Pulled(failed={} if only else {f: _one_line(f, err) for f, err in repo.unreadable(repo.work_tree).items()})
    with locked(repo.layout.state_dir):
        keeper = Keeper(repo, say)
        todo: list[tuple[Seen, str]] = []
        for seen in keeper.look(only=only):
            target = _target(seen, force=force)
            if target is not None:
                todo.append((seen, target))
            elif seen.action in (Action.DESCRIBE, Action.CONFLICT) and not (seen.is_outdated and seen.is_committed):
                done.kept.append(seen.path)
            else:
                done.current.append(seen.path)
                if seen.is_outdated and seen.is_committed:
                    say(f"{seen.path}: {seen.disagreement}\nhint: modelver refresh {word(seen.path)}")
                if seen.action is Action.AGREE:
                    keeper.agree(seen)
        got = fetch(
            repo,
            [Wanted(replace(seen.model.pointer, md5=md5, size=_size(seen, md5))) for seen, md5 in todo],
            say,
        )
        for seen, target in todo:
            if target in got.failed:
                done.failed[seen.path] = got.failed[target]
            elif keeper.follow(seen, target):
                keeper.bring_together(seen, target)
                done.restored.append(seen.path)
        keeper.save()
    return done


def _one_line(file: str, err: BadMetadataError) -> str:
    line = str(err).removeprefix(f"{file}: ")
    return f"{line}\nhint: {err.hint}" if err.hint else line


def _target(seen: Seen, *, force: bool) -> str | None:
    """Give the md5 that a model should become; None when it is to be left alone."""
    recorded = seen.model.pointer.md5 or (seen.model.metadata.md5 if seen.model.metadata is not None else None)
    if seen.decision.target is not None:
        return seen.decision.target
    if seen.md5 is None or (force and seen.md5 != recorded):
        return recorded
    return None


def _size(seen: Seen, md5: str) -> int | None:
    return seen.model.pointer.size if seen.model.pointer.md5 == md5 else None
