"""promote, demote, rollback --stage, stages: which version is in which stage, decided by policy, recorded in tags."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from dvc_modelver.api.evidence import judge
from dvc_modelver.api.select import Selected, find_known, select
from dvc_modelver.api.tags import remote_to_push_to
from dvc_modelver.errors import EnvironmentFailed, ModelverError, NotFoundError, RefusedError, UsageError, word
from dvc_modelver.registry.policy import Check, PolicySource, read_policy
from dvc_modelver.registry.sharing import TagTakenError, fetch_tags, find_remote, push_tags, remote_tags, take_theirs
from dvc_modelver.registry.stages import STAGE_SCHEMA, Tenure, held_before, tenures, version_of
from dvc_modelver.registry.tags import (
    ModelTag,
    TagExistsError,
    assigned,
    check_name,
    check_stage,
    create_tag,
    next_counter,
    read_tags,
    stage_holder,
)
from dvc_modelver.repository import Repository
from dvc_modelver.worktree.state import locked
from dvc_modelver.worktree.unpushed import forget_tags, note_tag

Say = Callable[[str], None]
MAX_REASON_CHARS = 20_000
_SKEW_S = 60


class NotPromotedError(RefusedError):
    """A policy said no; `verdict` has every rule with what was measured."""

    def __init__(self, verdict: Verdict, message: str, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.verdict = verdict


@dataclass(frozen=True)
class Verdict:
    """What the policy of a stage says of a version.

    Attributes:
        version: How the version is called: its semantic version, else its number.
        checks: Every rule, in the order of the policy.
        source: Where the policy was read.
        policies: How many policies are for this stage of this model.
    """

    name: str
    version: str
    stage: str
    md5: str
    commit: str
    checks: tuple[Check, ...]
    source: PolicySource
    policies: int

    @property
    def ok(self) -> bool:
        """Whether every rule holds."""
        return all(check.ok for check in self.checks)


@dataclass(frozen=True)
class Staged:
    """A change of a stage that was made.

    Attributes:
        tags: The tags that were made: one, or for a demotion one per version that GTO counts as being in the stage.
        action: ``promote``, ``demote`` or ``rollback``.
        version: The version that holds the stage now; empty after a demotion.
        before: The version that held it before; empty where none did.
        verdict: What the policy said; None where it was not asked.
        forced: Whether a rule did not hold.
        remote: Where the tags belong; empty without a remote.
        pushed: Whether it has them now.
        named: Whether the version has a semantic version, by which GTO calls it.
    """

    tags: tuple[str, ...]
    action: str
    name: str
    stage: str
    version: str
    commit: str
    before: str
    verdict: Verdict | None = None
    forced: bool = False
    remote: str = ""
    pushed: bool = False
    named: bool = True
    record: Mapping[str, Any] = field(default_factory=dict)


def promote(
    name: str,
    version: str,
    stage: str,
    *,
    reason: str = "",
    force: bool = False,
    push: bool = False,
    sign: bool = False,
    say: Say = lambda _line: None,
    folder: Path | None = None,
) -> Staged:
    """Put a version into a stage, if the stage's policy lets it: one annotated tag that GTO reads.

    Args:
        name: The model's name or path.
        version: What may follow ``@``: ``v1.2.0``, ``3``, an md5.
        stage: Like ``prod``.
        reason: Why; recorded.
        force: Although rules do not hold; needs a reason.
        push: Push the tag too. The remote takes one tag per counter, so that of two promoters one is refused.
        sign: Sign it, as ``git tag --sign`` does; ``tag.gpgSign`` does the same.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.

    Raises:
        NotPromotedError: A rule does not hold; no tag was made.
        RefusedError: Somebody else changed a stage of this model at the same time; no tag was made.
        UsageError: The version holds the stage already, or no such stage can be.
        NotFoundError: No such model or version.
        EnvironmentFailed: The tag could not be signed or pushed; none was made.
    """
    if force and not reason.strip():
        raise UsageError("--force: expected a reason, which is recorded", hint='--force --reason "why"')
    with _Work.start(name, stage, reason, push=push, say=say, folder=folder) as work:
        chosen = select(work.repo, f"{work.name}@{version}")
        chosen = _at_its_tag(work, chosen)
        holder = stage_holder(work.tags, stage)
        if holder is not None and holder.commit == chosen.commit:
            raise UsageError(
                f"{work.name}#{stage}: {version_of(holder, work.tags)} holds this stage already, since {holder.date}",
                hint=f"modelver stages {word(work.name)}",
            )
        verdict = _verdict(work, chosen, stage, holder)
        if not verdict.ok and not force:
            failed = sum(not check.ok for check in verdict.checks)
            raise NotPromotedError(
                verdict,
                f"{work.name}@{verdict.version} is not promoted to {stage}: {failed} of {len(verdict.checks)} rules of "
                f"{verdict.source.ref} {'does' if failed == 1 else 'do'} not hold",
                hint=_first_hint(verdict)
                or f'modelver promote {word(name)} {word(version)} {word(stage)} --force --reason "why"',
            )
        evidence = {
            "policy": {"ref": verdict.source.ref, "blob": verdict.source.blob} if verdict.source.blob else None,
            "checks": [check.to_dict() for check in verdict.checks],
            "forced": True if not verdict.ok else None,
        }
        made = _make(work, "promote", chosen, verdict.version, holder, evidence, sign=sign)
        return replace(made, verdict=verdict, forced=not verdict.ok)


def demote(
    name: str,
    stage: str,
    *,
    reason: str = "",
    push: bool = False,
    sign: bool = False,
    say: Say = lambda _line: None,
    folder: Path | None = None,
) -> Staged:
    """Empty a stage: take out the version that holds it, and those that GTO would then count as holding it again.

    Args:
        name: The model's name or path.
        stage: The stage.
        reason: Why; recorded. The others as for `promote`.
        push: Push the tags too.
        sign: Sign them.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.

    Raises:
        NotFoundError: No version holds it.
        RefusedError: Somebody else changed a stage of this model at the same time; no tag was made.
        EnvironmentFailed: The tags could not be signed or pushed; none was made.
    """
    with _Work.start(name, stage, reason, push=push, say=say, folder=folder) as work:
        within = list(assigned(work.tags, stage).values())
        if not within:
            raise NotFoundError(
                f"{work.name}#{stage}: no version holds this stage", hint=f"modelver stages {work.name}"
            )
        holder = within[-1]
        subjects = [(tag, f"Demote {work.name} {version_of(tag, work.tags)} from {stage}") for tag in within]
        record = _record(work, "demote", holder) | {"path": holder.record.get("path"), "md5": holder.record.get("md5")}
        tags = _write(work, [(f"{work.name}#{stage}!", tag.commit, subject) for tag, subject in subjects], record, sign)
        before = version_of(holder, work.tags)
        return Staged(
            tags, "demote", work.name, stage, "", holder.commit, before, remote=work.place, pushed=bool(work.remote),
            record=record,
        )  # fmt: skip


def rollback_stage(
    name: str,
    stage: str,
    version: str | None = None,
    *,
    reason: str = "",
    push: bool = False,
    sign: bool = False,
    say: Say = lambda _line: None,
    folder: Path | None = None,
) -> Staged:
    """Move a stage back to the version that held it before; the work tree is not touched, no policy is asked.

    Called again it goes further back.

    Args:
        name: The model's name or path.
        stage: The stage.
        version: One that held it at any time before; the last other one when not given.
        reason: Why; recorded.
        push: Push the tag too.
        sign: Sign it.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.

    Raises:
        NotFoundError: No version held it before, or not this one.
        RefusedError: Somebody else changed a stage of this model at the same time; no tag was made.
        EnvironmentFailed: The tag could not be signed or pushed; none was made.
    """
    with _Work.start(name, stage, reason, push=push, say=say, folder=folder) as work:
        holder = stage_holder(work.tags, stage)
        if version is None:
            target = held_before(work.tags, stage)
            if target is None:
                now = f"{version_of(holder, work.tags)}, which holds it now" if holder is not None else "now"
                raise NotFoundError(
                    f"{work.name}#{stage}: no version held this stage before {now}", hint=f"modelver stages {work.name}"
                )
        else:
            target = _held_at_any_time(work, stage, version)
            if holder is not None and holder.commit == target.commit:
                raise UsageError(f"{work.name}#{stage}: {version} holds this stage already, since {holder.date}")
        chosen = _at_tag(work.repo, work.name, target)
        back_to = {"back_to": target.tag}
        return _make(work, "rollback", chosen, version_of(target, work.tags), holder, back_to, sign=sign)


def _held_at_any_time(work: _Work, stage: str, version: str) -> ModelTag:
    chosen = select(work.repo, f"{work.name}@{version}")
    for tag in reversed(work.tags):
        if tag.stage == stage and tag.active:
            at = _find_at_tag(work.repo, work.name, tag)
            if tag.commit == chosen.commit or (at is not None and at.metadata.md5 == chosen.metadata.md5):
                return tag
    raise NotFoundError(
        f"{work.name}@{version}: never held {stage}", hint=f"modelver promote {work.name} {version} {stage}"
    )


def check_stage_of(reference: str, stage: str, *, say: Say = lambda _line: None, folder: Path | None = None) -> Verdict:
    """Tell what the policy of a stage says of a version, and change nothing: what CI asks before it promotes.

    Args:
        reference: ``NAME@V``, or ``NAME`` for the version at HEAD.
        stage: The stage.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.

    Raises:
        NotFoundError: No such model or version.
    """
    check_stage(stage)
    repo = Repository.open(folder)
    chosen = select(repo, reference)
    if not chosen.commit:
        head = repo.at("HEAD")
        model = repo.find_model(head, chosen.model.name)
        if model.metadata is None:
            raise NotFoundError(f"HEAD: has no metadata of {model.path}", hint=f"modelver add {word(model.path)}")
        chosen = Selected(model, model.metadata, head.commit, model.name)
    work = _Work(repo, chosen.model.name, stage, read_tags(repo.git, chosen.model.name), "", "", say)
    return _verdict(work, _at_its_tag(work, chosen), stage, stage_holder(work.tags, stage))


def stages(
    name: str | None = None, *, on: str | None = None, history: bool = False, folder: Path | None = None
) -> list[Tenure]:
    """Tell which versions hold stages, or held them.

    Args:
        name: One model; all when not given.
        on: A time (ISO 8601), or a day (``2026-05-01``, ``yesterday``) of which every holder is given; now when not
            given. Without a zone it is local time.
        history: All that ever held one.
        folder: Anywhere in the work tree.

    Returns:
        Sorted by model and stage, the newest first.

    Raises:
        NotFoundError: No such model.
        UsageError: `on` is no time.
    """
    repo = Repository.open(folder)
    tags = read_tags(repo.git)
    if name is not None and not any(tag.name == name for tag in tags):
        name = find_known(repo, name).name
    by_name: dict[str, list[ModelTag]] = {}
    for tag in tags:
        if name is None or tag.name == name:
            by_name.setdefault(tag.name, []).append(tag)
    start, end = parse_when(on) if on is not None else (time.time(), time.time() + 1)
    found: list[Tenure] = []
    for own in by_name.values():
        held = tenures(own)
        if not history:
            held = [t for t in held if (t.overlaps(start, end) if on is not None else t.end is None)]
        found += reversed(held)
    return sorted(found, key=lambda t: (t.tag.name, t.stage))


def parse_when(text: str) -> tuple[float, float]:
    """Give start and end, in seconds since 1970, of a day or of a moment.

    Raises:
        UsageError: It is neither.
    """
    days = {"today": 0, "yesterday": 1}
    try:
        if text in days:
            day = date.today() - timedelta(days=days[text])
        elif len(text) <= 10:
            day = date.fromisoformat(text)
        else:
            moment = datetime.fromisoformat(text).astimezone().timestamp()
            return moment, moment + 1
        midnight = datetime(day.year, day.month, day.day)
        return midnight.astimezone().timestamp(), (midnight + timedelta(days=1)).astimezone().timestamp()
    except (ValueError, OverflowError) as err:
        raise UsageError(
            f"{text[:60]!r}: not a time, expected one like 2026-05-01, 2026-05-01T12:00 or yesterday"
        ) from err


@dataclass(frozen=True)
class _Work:
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
    def start(cls, name: str, stage: str, reason: str, *, push: bool, say: Say, folder: Path | None) -> Iterator[_Work]:
        """Look at what is there; others in this clone, who would build on a tag that may yet be lost, wait."""
        check_stage(stage)
        _check_reason(reason)
        repo = Repository.open(folder)
        with locked(repo.layout.common_dir / "modelver" / "stages"):
            name = _name_of(repo, name)
            remote = remote_to_push_to(repo) if push else ""
            if push:
                fetch_tags(repo.git, remote)
                _check_same(repo, remote, name)
            yield cls(repo, name, stage, read_tags(repo.git, name), reason.strip(), remote, say)


def _name_of(repo: Repository, name: str) -> str:
    """Give the name of a model by name or path; one that was removed since is known by its tags."""
    try:
        name = find_known(repo, name).name
    except NotFoundError:
        if not any(tag.stage for tag in read_tags(repo.git, name)):
            raise
    check_name(name)
    return name


def _check_reason(reason: str) -> None:
    try:
        reason.encode()
    except UnicodeEncodeError as err:
        raise UsageError("--reason: not UTF-8") from err
    if len(reason) > MAX_REASON_CHARS:
        raise UsageError(f"--reason: {len(reason)} characters, expected at most {MAX_REASON_CHARS}")


def _check_same(repo: Repository, remote: str, name: str) -> None:
    """Refuse to build on a stage tag of this clone where the remote has another one of that name."""
    mine = {tag.tag: tag for tag in read_tags(repo.git, name) if tag.stage}
    for tag, oid in remote_tags(repo.git, remote, f"{name}#*").items():
        if tag in mine and mine[tag].oid != oid:
            raise RefusedError(
                f"{tag}: {remote} has another tag of that name: a promotion that was made here and not pushed came "
                "too late",
                hint=f"git tag -d '{tag}' && git fetch --tags {remote}, then promote again",
            )


def _at_its_tag(work: _Work, chosen: Selected) -> Selected:
    """Give a version at the commit of its own version tag, where it has one, so that GTO calls it by that."""
    if any(tag.version and tag.commit == chosen.commit for tag in work.tags):
        return chosen
    for tag in work.tags:
        if tag.version:
            at = _find_at_tag(work.repo, work.name, tag)
            if at is not None and at.metadata.md5 == chosen.metadata.md5:
                return at
    return chosen


def _at_tag(repo: Repository, name: str, tag: ModelTag) -> Selected:
    """Give the version that a tag points at.

    Raises:
        NotFoundError: The commit has no metadata of the model.
    """
    view = repo.at(tag.commit)
    model = repo.find_model(view, str(tag.record.get("path") or name))
    if model.metadata is None:
        raise NotFoundError(f"{tag.tag}: {tag.commit[:8]} has no metadata of {model.path}")
    return Selected(model, model.metadata, tag.commit, tag.tag)


def _find_at_tag(repo: Repository, name: str, tag: ModelTag) -> Selected | None:
    try:
        return _at_tag(repo, name, tag)
    except ModelverError:
        return None


def _verdict(work: _Work, chosen: Selected, stage: str, holder: ModelTag | None) -> Verdict:
    source = read_policy(work.repo.git, work.repo.objects)
    policies = source.of(stage, work.name)
    held = _find_at_tag(work.repo, work.name, holder) if holder is not None else None
    checks = judge(work.repo, chosen, held, policies, source.settings, work.say)
    return Verdict(
        work.name, _called(work, chosen), stage, chosen.metadata.md5, chosen.commit, tuple(checks), source,
        len(policies),
    )  # fmt: skip


def _called(work: _Work, chosen: Selected) -> str:
    for tag in work.tags:
        if tag.version and tag.commit == chosen.commit:
            return tag.version
    return str(chosen.metadata.version.number)


def _first_hint(verdict: Verdict) -> str:
    return next((check.hint for check in verdict.checks if not check.ok and check.hint), "")


def _make(
    work: _Work, action: str, chosen: Selected, version: str, holder: ModelTag | None, evidence: Mapping[str, Any],
    *, sign: bool,
) -> Staged:  # fmt: skip
    facts = {
        "path": chosen.model.path, "md5": chosen.metadata.md5, "number": chosen.metadata.version.number,
        "version": version if version.startswith("v") else None,
    }  # fmt: skip
    record = _record(work, action, holder) | facts | dict(evidence)
    stage = work.stage
    subject = {"promote": f"Promote {work.name} {version} to {stage}",
               "rollback": f"Roll {work.name}#{stage} back to {version}"}[action]  # fmt: skip
    tags = _write(work, [(f"{work.name}#{stage}", chosen.commit, subject)], record, sign)
    before = version_of(holder, work.tags) if holder is not None else ""
    return Staged(
        tags, action, work.name, stage, version, chosen.commit, before, remote=work.place, pushed=bool(work.remote),
        named=version.startswith("v"), record=record,
    )  # fmt: skip


def _record(work: _Work, action: str, holder: ModelTag | None) -> dict[str, Any]:
    before = None
    if holder is not None:
        before = {"tag": holder.tag, "version": version_of(holder, work.tags), "md5": holder.record.get("md5")}
    return {
        "schema": STAGE_SCHEMA, "action": action, "model": work.name, "stage": work.stage,
        "reason": work.reason or None, "before": before,
    }  # fmt: skip


def _write(
    work: _Work, wanted: Sequence[tuple[str, str, str]], record: Mapping[str, Any], sign: bool
) -> tuple[str, ...]:
    """Make tags (name without counter, commit, subject), push them where they should be, or leave none behind."""
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
            there = set(remote_tags(git, work.remote, f"{work.name}#*").values())
            earlier = [tag.tag for tag in work.tags if tag.stage and tag.oid not in there]
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


def _remove(work: _Work, tags: Sequence[str]) -> None:
    for tag in tags:
        work.repo.git.run("update-ref", "-d", f"refs/tags/{tag}")
    forget_tags(work.repo.layout, tags)


def _lost(work: _Work, tag: str) -> ModelverError:
    """Give the error for a promoter who was too late: who won, when, and with what."""
    winner = next((t for t in read_tags(work.repo.git, work.name) if t.tag == tag), None)
    if winner is None:
        return EnvironmentFailed(f"{tag}: is there already, and is no tag of GTO's", hint=f"git show '{tag}'")
    said = winner.message.splitlines()[0] if winner.message else winner.tag
    return RefusedError(
        f"{tag}: {winner.tagger} was first, on {winner.date}: {said}; nothing was changed by you",
        hint=f"modelver stages {work.name}, then the same command again if it is still what you want",
    )
