"""Changing a stage: looking at what is there, writing tags, pushing them, and leaving none behind that lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc_modelver.api.elsewhere import check_tags
from dvc_modelver.api.select import find_known, find_past
from dvc_modelver.api.tags import remote_to_push_to
from dvc_modelver.errors import EnvironmentFailed, ModelverError, NotFoundError, RefusedError, UsageError, word
from dvc_modelver.registry.sharing import TagTakenError, fetch_tags, find_remote, push_tags, remote_tags, take_theirs
from dvc_modelver.registry.tags import (
    ModelTag,
    TagExistsError,
    check_name,
    check_stage,
    create_tag,
    next_counter,
    read_tags,
)
from dvc_modelver.repository import Repository
from dvc_modelver.worktree.state import locked
from dvc_modelver.worktree.unpushed import find_unpushed, forget_tags, note_tag

Say = Callable[[str], None]
MAX_REASON_CHARS = 20_000
_SKEW_S = 60


@dataclass(frozen=True)
class Work:
    """What a change of a stage starts from.

    Attributes:
        name: The model's.
        stage: The stage.
        tags: All tags of the model.
        remote: Where the tags go; empty where they stay here.
    """

    repo: Repository
    name: str
    stage: str
    tags: list[ModelTag]
    reason: str
    remote: str
    say: Say

    @property
    def place(self) -> str:
        """The remote that has the registry; empty without one."""
        return self.remote or find_remote(self.repo.git) or ""

    @classmethod
    @contextmanager
    def start(cls, name: str, stage: str, reason: str, *, push: bool, say: Say, folder: Path | None) -> Iterator[Work]:
        """Look at what is there; others in this clone, who would build on a tag that may yet be lost, wait."""
        check_stage(stage)
        _check_reason(reason)
        repo = Repository.open(folder)
        with locked(repo.layout.common_dir / "modelver" / "stages"):
            name = name_of(repo, name)
            check_name(name)
            remote = remote_to_push_to(repo) if push else ""
            if push:
                fetch_tags(repo.git, remote)
            check_tags(repo, name, say)
            tags = read_tags(repo.git, name)
            _check_same(repo, remote, name, tags)
            yield cls(repo, name, stage, tags, reason.strip(), remote, say)


def name_of(repo: Repository, name: str) -> str:
    """Give the name of a model by name or path; one that was removed since is known by its tags, or by history.

    Raises:
        NotFoundError: No such model.
    """
    try:
        return find_known(repo, name).name
    except NotFoundError:
        if any(tag.stage for tag in read_tags(repo.git, name)):
            return name
        past = find_past(repo, name)
        if past is None:
            raise
        return past[0]


def _check_reason(reason: str) -> None:
    try:
        reason.encode()
    except UnicodeEncodeError as err:
        raise UsageError("--reason: not UTF-8") from err
    if len(reason) > MAX_REASON_CHARS:
        raise UsageError(f"--reason: {len(reason)} characters, expected at most {MAX_REASON_CHARS}")


def _check_same(repo: Repository, remote: str, name: str, tags: Sequence[ModelTag]) -> None:
    """Refuse to build on a stage tag of this clone where the remote has another one of that name.

    Without a push that is known only of tags that Git was refused; see `find_unpushed`.
    """
    mine = {tag.tag: tag.oid for tag in tags if tag.stage}
    if remote:
        there = remote_tags(repo.git, remote, f"{name}#*")
        other = [tag for tag, oid in there.items() if mine.get(tag, oid) != oid]
    else:
        other = [made.tag for made in find_unpushed(repo) if made.taken and made.tag in mine]
    if other:
        raise _came_too_late(other[0], remote or find_remote(repo.git) or "")


def _came_too_late(tag: str, remote: str) -> RefusedError:
    return RefusedError(
        f"{tag}: {remote} has another tag of that name: the one that was made here and not pushed came too late",
        hint=f"git tag -d {word(tag)} && git fetch --tags {remote}",
    )


def write_tags(
    work: Work, wanted: Sequence[tuple[str, str, str]], record: Mapping[str, Any], *, sign: bool
) -> tuple[str, ...]:
    """Make tags, push them where they should be, or leave none behind.

    Args:
        work: What was looked at.
        wanted: Of each tag the name without its counter, the commit, and the subject line.
        record: What the JSON of all of them says.
        sign: Sign them.

    Raises:
        RefusedError: Somebody else's tag of one of the names was first.
        EnvironmentFailed: They could not be signed or pushed.
    """
    git, layout = work.repo.git, work.repo.layout
    facts = {key: value for key, value in record.items() if value is not None}
    after = max((tag.time for tag in work.tags if tag.stage), default=0)
    if after > time.time() + _SKEW_S:
        work.say(f"warning: the last stage tag of {work.name} lies in the future; this one is dated one second later")
    counter, made = next_counter(git, work.name), []
    try:
        for n, (start, commit, subject) in enumerate(wanted):
            tag = f"{start}#{counter + n}"
            oid = create_tag(git, tag, commit, subject, facts, sign=sign, after=after + n)
            made.append(tag)
            note_tag(layout, tag, oid)
        if work.remote:
            there = remote_tags(git, work.remote, f"{work.name}#*", f"{work.name}@*")
            commits = {commit for _, commit, _ in wanted}
            related = [tag for tag in work.tags if tag.stage or tag.commit in commits]
            earlier = [tag.tag for tag in related if there.get(tag.tag) != tag.oid]
            if taken := [tag for tag in earlier if tag in there]:
                raise _came_too_late(taken[0], work.remote)
            push_tags(git, work.remote, [*earlier, *made])
            forget_tags(layout, [*earlier, *made])
    except TagExistsError as err:
        _remove(work, made)
        raise _lost(work, tag) from err
    except TagTakenError as err:
        _remove(work, made)
        take_theirs(git, work.remote, err.tag)
        raise _lost(work, err.tag) from err
    except ModelverError:
        _remove(work, made)
        raise
    return tuple(made)


def _remove(work: Work, tags: Sequence[str]) -> None:
    for tag in tags:
        work.repo.git.run("update-ref", "-d", f"refs/tags/{tag}")
    forget_tags(work.repo.layout, tags)


def _lost(work: Work, tag: str) -> ModelverError:
    """Give the error for a promoter who was too late: who won, when, and with what."""
    winner = next((t for t in read_tags(work.repo.git, work.name) if t.tag == tag), None)
    if winner is None:
        return EnvironmentFailed(f"{tag}: is there already, and is no tag of GTO's", hint=f"git show {word(tag)}")
    said = winner.message.splitlines()[0] if winner.message else winner.tag
    return RefusedError(
        f"{tag}: {winner.tagger} was first, on {winner.date}: {said}; nothing was changed by you",
        hint=f"modelver stages {work.name}",
    )
