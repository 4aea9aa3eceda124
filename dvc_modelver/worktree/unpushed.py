"""Tags that were made in this clone and are not known to be on the remote: Git keeps no track of a remote's tags."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from dvc_modelver.errors import EnvironmentFailed
from dvc_modelver.git.layout import Layout
from dvc_modelver.registry.sharing import find_remote, remote_tags
from dvc_modelver.repository import Repository
from dvc_modelver.worktree.state import locked, write_file

FILE = "unpushed-tags"


@dataclass(frozen=True)
class MadeTag:
    """One tag of this clone.

    Attributes:
        oid: The tag object.
        sent: Whether the remote may have one of that name: a ``git push`` was about to send it, which may have been
            refused, or a fetch found one there.
        taken: Whether the remote has another one of that name.
    """

    tag: str
    oid: str
    sent: bool = False
    taken: bool = False


def note_tag(layout: Layout, tag: str, oid: str) -> None:
    """Take down a tag that was made here and not pushed."""
    with locked(layout.common_dir / "modelver"):
        _write(layout, [*(t for t in _read(layout) if t.tag != tag), MadeTag(tag, oid)])


def forget_tags(layout: Layout, tags: Iterable[str]) -> None:
    """Forget tags that were pushed, or are no more."""
    gone = set(tags)
    if (layout.common_dir / "modelver" / FILE).exists():
        with locked(layout.common_dir / "modelver"):
            _write(layout, [t for t in _read(layout) if t.tag not in gone])


def note_sent(layout: Layout, tags: Iterable[str]) -> None:
    """Take down that Git is about to push tags; whether it did is asked when somebody wants to know."""
    names = set(tags)
    if names and (layout.common_dir / "modelver" / FILE).exists():
        with locked(layout.common_dir / "modelver"):
            _write(layout, [replace(t, sent=t.sent or t.tag in names) for t in _read(layout)])


def find_unpushed(repo: Repository) -> list[MadeTag]:
    """Give the tags made here that the remote does not have; it is asked only about those that it may have.

    Those are the tags that a push was about to send, and those that the last fetch found there under the same name.
    """
    made = _read(repo.layout)
    if not made:
        return []
    refs = repo.git.text("for-each-ref", "--format=%(objectname) %(refname:strip=2)", "refs/tags").splitlines()
    here = {name: oid for oid, _, name in (line.partition(" ") for line in refs)}
    left = [t for t in made if here.get(t.tag) == t.oid]
    remote = find_remote(repo.git)
    if known := _fetched(repo.layout) & {t.tag for t in left if not t.sent}:
        note_sent(repo.layout, known)
        left = [replace(t, sent=t.sent or t.tag in known) for t in left]
    sent = [t.tag for t in left if t.sent]
    if sent and remote is not None:
        try:
            there = remote_tags(repo.git, remote, *sent)
        except EnvironmentFailed:
            return left
        left = [
            replace(t, taken=t.tag in there) if t.sent else t for t in left if not t.sent or there.get(t.tag) != t.oid
        ]
    forget_tags(repo.layout, {t.tag for t in made} - {t.tag for t in left})
    return left


def _fetched(layout: Layout) -> set[str]:
    """Give the tags of the last ``git fetch --tags``, which lists also those that it did not let replace one here."""
    try:
        text = (layout.git_dir / "FETCH_HEAD").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    return set(re.findall(r"\ttag '([^']+)' of ", text))


def _path(layout: Layout) -> Path:
    return layout.common_dir / "modelver" / FILE


def _read(layout: Layout) -> list[MadeTag]:
    try:
        lines = _path(layout).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    fields = (line.split(" ") for line in lines)
    return [MadeTag(words[1], words[0], sent="sent" in words[2:]) for words in fields if len(words) > 1]


def _write(layout: Layout, tags: Iterable[MadeTag]) -> None:
    lines = [f"{t.oid} {t.tag}{' sent' * t.sent}\n" for t in tags]
    write_file(_path(layout), "".join(lines).encode())
