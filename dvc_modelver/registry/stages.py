"""Which version held a stage when, from stage tags alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from dvc_modelver.registry.tags import ModelTag, assign, assigned

STAGE_SCHEMA = "modelver.stage/1"


@dataclass(frozen=True)
class Tenure:
    """A time in which one version held a stage.

    Attributes:
        tag: The tag that assigned it.
        version: Its semantic version, else its number, else its commit's first digits.
        since: ISO 8601, of the tag that made it the holder.
        until: Likewise of the tag that ended it; empty while it holds.
        start: `since` in seconds since 1970.
        end: Likewise; None while it holds.
        how: ``promote`` or ``rollback``; ``assign`` for a tag of another program, and for a version that holds the
            stage again because the one assigned after it was taken out.
    """

    tag: ModelTag
    version: str
    since: str
    until: str
    start: int
    end: int | None
    how: str

    @property
    def stage(self) -> str:
        """The stage."""
        return self.tag.stage

    @property
    def reason(self) -> str:
        """What the promoter said; empty when nothing."""
        return str(self.tag.record.get("reason") or "")

    def overlaps(self, start: float, end: float) -> bool:
        """Whether it held at any time from `start` to before `end`, in seconds since 1970."""
        return self.start < end and (self.end is None or self.end > start)


def tenures(tags: Sequence[ModelTag]) -> list[Tenure]:
    """Give who held the stages of one model when, oldest first.

    Args:
        tags: All tags of one model, in the order that `read_tags` gives.
    """
    names = {tag.commit: tag.version for tag in tags if tag.version}
    found: list[Tenure] = []
    for stage in sorted({tag.stage for tag in tags if tag.stage}):
        within: dict[str, ModelTag] = {}
        last: Tenure | None = None
        for event in tags:
            if event.stage != stage:
                continue
            assign(within, event)
            holder = next(reversed(within.values()), None)
            if last is not None and holder is not None and last.tag.commit == holder.commit:
                continue
            if last is not None:
                found.append(replace(last, until=event.date, end=event.time))
            last = None
            if holder is not None:
                how = str(holder.record.get("action") or "assign") if holder is event else "assign"
                version = names.get(holder.commit) or version_of(holder, ())
                last = Tenure(holder, version, event.date, "", event.time, None, how)
        if last is not None:
            found.append(last)
    return sorted(found, key=lambda t: (t.start, t.tag.counter))


def version_of(tag: ModelTag, tags: Iterable[ModelTag]) -> str:
    """Give how the version that a stage tag points at is called: by its own tag, its number, or its commit."""
    for other in tags:
        if other.version and other.commit == tag.commit:
            return other.version
    number = tag.record.get("number")
    return str(number) if isinstance(number, int) else tag.commit[:8]


def held_before(tags: Sequence[ModelTag], stage: str) -> ModelTag | None:
    """Give the tag of the version to which a rollback of a stage goes; None where there is none.

    A rollback takes the current holder off the pile of those that were assigned, so that the next one goes further
    back. Where the stage is empty it is the version that was in it last.

    Args:
        tags: Of one model, in the order that `read_tags` gives.
        stage: The stage.
    """
    pile: list[ModelTag] = []
    for tag in tags:
        if tag.stage != stage or not tag.active:
            continue
        if tag.record.get("action") == "rollback" and any(t.commit == tag.commit for t in pile):
            while pile[-1].commit != tag.commit:
                pile.pop()
        elif not pile or pile[-1].commit != tag.commit:
            pile.append(tag)
    holder = next(reversed(assigned(tags, stage).values()), None)
    if holder is None:
        return pile[-1] if pile else None
    while pile and pile[-1].commit != holder.commit:
        pile.pop()
    return pile[-2] if len(pile) > 1 else None
