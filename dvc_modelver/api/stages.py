"""promote, demote, rollback --stage, check --stage: which version is in which stage, decided by policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dvc_modelver.api.elsewhere import check_tags
from dvc_modelver.api.evidence import judge
from dvc_modelver.api.select import Selected, reference_to, select, split_reference
from dvc_modelver.api.stage_tags import Work, name_of, write_tags
from dvc_modelver.errors import ModelverError, NotFoundError, RefusedError, UsageError, word
from dvc_modelver.registry.policy import Check, PolicySource, read_policy
from dvc_modelver.registry.stages import STAGE_SCHEMA, held_before, version_of
from dvc_modelver.registry.tags import ModelTag, assigned, check_stage, read_tags, stage_holder
from dvc_modelver.repository import Repository
from dvc_modelver.worktree.unpushed import find_unpushed

Say = Callable[[str], None]


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
        along: Tags of this clone that the remote lacks and that say what these are about: the version's own.
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
    along: tuple[str, ...] = ()
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
        version: ``v1.2.0``, ``3``, an md5; ``#staging`` for what holds another stage.
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
    with Work.start(name, stage, reason, push=push, say=say, folder=folder) as work:
        chosen = select(work.repo, reference_to(work.name, version))
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
    with Work.start(name, stage, reason, push=push, say=say, folder=folder) as work:
        within = list(assigned(work.tags, stage).values())
        if not within:
            raise NotFoundError(
                f"{work.name}#{stage}: no version holds this stage", hint=f"modelver stages {work.name}"
            )
        holder = within[-1]
        subjects = {tag.commit: f"Demote {work.name} {version_of(tag, work.tags)} from {stage}" for tag in within}
        record = _record(work, "demote", holder) | {"path": holder.record.get("path"), "md5": holder.record.get("md5")}
        wanted = [(f"{work.name}#{stage}!", commit, subject) for commit, subject in subjects.items()]
        tags = write_tags(work, wanted, record, sign=sign)
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
    with Work.start(name, stage, reason, push=push, say=say, folder=folder) as work:
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


def _held_at_any_time(work: Work, stage: str, version: str) -> ModelTag:
    chosen = select(work.repo, reference_to(work.name, version))
    for tag in reversed(work.tags):
        if tag.stage == stage and tag.active:
            at = _find_at_tag(work.repo, work.name, tag)
            if tag.commit == chosen.commit or (at is not None and at.metadata.md5 == chosen.metadata.md5):
                return tag
    raise NotFoundError(
        f"{chosen.label}: never held {stage}", hint=f"modelver promote {work.name} {word(version)} {stage}"
    )


def check_stage_of(reference: str, stage: str, *, say: Say = lambda _line: None, folder: Path | None = None) -> Verdict:
    """Tell what the policy of a stage says of a version, and change nothing: what CI asks before it promotes.

    Args:
        reference: ``NAME@V``, or ``NAME`` for the version at HEAD.
        stage: The stage.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.

    Raises:
        NotFoundError: No such model or version, or the clone has no tags.
    """
    check_stage(stage)
    repo = Repository.open(folder)
    try:
        name = name_of(repo, split_reference(reference)[0])
    except NotFoundError:
        name = name_of(repo, reference)  # a path with @ or # in it
    check_tags(repo, name, say)
    chosen = select(repo, reference)
    if not chosen.commit:
        head = repo.at("HEAD")
        model = repo.find_model(head, chosen.model.name)
        if model.metadata is None:
            raise NotFoundError(f"HEAD: has no metadata of {model.path}", hint=f"modelver add {word(model.path)}")
        chosen = Selected(model, model.metadata, head.commit, model.name)
    work = Work(repo, chosen.model.name, stage, read_tags(repo.git, chosen.model.name), "", "", say)
    return _verdict(work, _at_its_tag(work, chosen), stage, stage_holder(work.tags, stage))


def _at_its_tag(work: Work, chosen: Selected) -> Selected:
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


def _verdict(work: Work, chosen: Selected, stage: str, holder: ModelTag | None) -> Verdict:
    source = read_policy(work.repo.git, work.repo.objects)
    policies = source.of(stage, work.name)
    if not policies and (near := source.near(stage, work.name)):
        work.say(f"warning: {source.ref} has no [[policy]] for {stage}, but one for {near}, which is not asked")
    held = _find_at_tag(work.repo, work.name, holder) if holder is not None else None
    checks = judge(work.repo, chosen, held, policies, source.settings, work.say)
    return Verdict(
        work.name, _called(work, chosen), stage, chosen.metadata.md5, chosen.commit, tuple(checks), source,
        len(policies),
    )  # fmt: skip


def _called(work: Work, chosen: Selected) -> str:
    for tag in work.tags:
        if tag.version and tag.commit == chosen.commit:
            return tag.version
    return str(chosen.metadata.version.number)


def _first_hint(verdict: Verdict) -> str:
    return next((check.hint for check in verdict.checks if not check.ok and check.hint), "")


def _make(
    work: Work, action: str, chosen: Selected, version: str, holder: ModelTag | None, evidence: Mapping[str, Any],
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
    tags = write_tags(work, [(f"{work.name}#{stage}", chosen.commit, subject)], record, sign=sign)
    before = version_of(holder, work.tags) if holder is not None else ""
    unpushed = {made.tag for made in find_unpushed(work.repo)} if not work.remote else ()
    along = tuple(tag.tag for tag in work.tags if tag.version and tag.commit == chosen.commit and tag.tag in unpushed)
    return Staged(
        tags, action, work.name, stage, version, chosen.commit, before, remote=work.place, pushed=bool(work.remote),
        named=version.startswith("v"), along=along, record=record,
    )  # fmt: skip


def _record(work: Work, action: str, holder: ModelTag | None) -> dict[str, Any]:
    before = None
    if holder is not None:
        before = {"tag": holder.tag, "version": version_of(holder, work.tags), "md5": holder.record.get("md5")}
    return {
        "schema": STAGE_SCHEMA, "action": action, "model": work.name, "stage": work.stage,
        "reason": work.reason or None, "before": before,
    }  # fmt: skip
