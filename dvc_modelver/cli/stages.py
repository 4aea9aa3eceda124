"""The commands that name versions and move them between stages; each calls one function of the API and prints it."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dvc_modelver import api
from dvc_modelver.cli import cards
from dvc_modelver.cli.output import JsonFlag, emit_json, emit_lines, render_table, say
from dvc_modelver.errors import UsageError, word

if TYPE_CHECKING:
    from dvc_modelver.api.stages import Staged, Verdict
    from dvc_modelver.api.tags import Tagged
    from dvc_modelver.registry.stages import Tenure

_MAX_REASON = 60
"""Characters of a reason in a table."""

Name = Annotated[str, typer.Argument(help="Model, by name or path.")]
Stage = Annotated[str, typer.Argument(help="Stage, like prod.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; recorded in the tag.")]
Push = Annotated[bool, typer.Option("--push", help="Push the tag as well.")]
Sign = Annotated[bool, typer.Option("--sign", help="Sign the tag, as git tag --sign does.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (tag, promote, demote, stages, rollback, check):
        app.command()(command)


# Versions


def tag(
    name: Name,
    version: Annotated[str | None, typer.Argument(help="Like v1.2.0.")] = None,
    rev: Annotated[str, typer.Argument(help="Commit to tag.")] = "HEAD",
    bump: Annotated[str | None, typer.Option(help="major, minor, patch, or auto: as the measured change says.")] = None,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask before --bump auto.")] = False,
    push: Push = False,
    sign: Sign = False,
    json: JsonFlag = False,
) -> None:
    """Give a committed version its semantic version."""
    if version is not None and bump is not None and rev == "HEAD":
        rev, version = version, None  # modelver tag NAME REV --bump LEVEL

    def confirm(proposed: Tagged) -> bool:
        since = f" since {proposed.since}" if proposed.since else ""
        say(f"{proposed.level}{since}: {proposed.reason}")
        if yes:
            return True
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            say("not a terminal, so not asked")
            return True
        return typer.confirm(f"tag {proposed.commit[:8]} as {proposed.tag}?", default=True, err=True)

    made = api.tag(name, version, rev, bump=bump, push=push, sign=sign, confirm=confirm, say=say)
    if json:
        emit_json(
            {
                "schema": "modelver.tagged/1", "tag": made.tag, "commit": made.commit, "level": made.level or None,
                "reason": made.reason or None, "since": made.since or None, "pushed": made.pushed or None,
            }
        )  # fmt: skip
        return
    why = f": {made.reason}" if made.reason else ""
    emit_lines([f"{made.tag} at {made.commit[:8]}{why}{_pushed(made.pushed)}"])
    if made.is_first and not made.declared:
        label = made.tag.partition("@")[0]
        say(f"hint: modelver add {word(made.path)} --name {label} makes it known to 'dvc artifacts get' as well")


def rollback(
    name: Name,
    version: Annotated[str | None, typer.Argument(help="Version to restore; the one before by default.")] = None,
    stage: Annotated[
        str | None, typer.Option(help="Move this stage back instead; the work tree is not touched.")
    ] = None,
    reason: Reason = "",
    push: Push = False,
    sign: Sign = False,
    json: JsonFlag = False,
) -> None:
    """Restore an earlier version's weights, pointer and metadata, staged; with --stage move that back instead."""
    if stage is not None:
        _emit_staged(api.rollback_stage(name, stage, version, reason=reason, push=push, sign=sign, say=say), json=json)
        return
    if reason or push or sign:
        raise UsageError(
            "rollback: --reason, --push and --sign are of stages",
            hint=f"modelver rollback {word(name)} --stage prod",
        )
    done = api.rollback(name, version, say=say)
    if json:
        emit_json(
            {
                "path": done.path,
                "md5": done.new.md5,
                "number": done.new.version.number,
                "differs": list(done.moved),
            }
        )
        return
    emit_lines(cards.rollback_lines(done))


# Stages


def promote(
    name: Name,
    version: Annotated[str, typer.Argument(help="Which version: v1.2.0, 3, an md5, '#staging'.")],
    stage: Stage,
    reason: Reason = "",
    force: Annotated[bool, typer.Option("--force", help="Although rules do not hold; needs --reason.")] = False,
    push: Push = False,
    sign: Sign = False,
    json: JsonFlag = False,
) -> None:
    """Put a version into a stage, if the stage's policy lets it; exit 1 and no tag where it does not."""
    from dvc_modelver.api.stages import NotPromotedError

    try:
        done = api.promote(name, version, stage, reason=reason, force=force, push=push, sign=sign, say=say)
    except NotPromotedError as err:
        emit_json(verdict_document(err.verdict)) if json else emit_lines(verdict_lines(err.verdict))
        raise
    _emit_staged(done, json=json)


def demote(
    name: Name, stage: Stage, reason: Reason = "", push: Push = False, sign: Sign = False, json: JsonFlag = False
) -> None:
    """Empty a stage: no version holds it any more."""
    _emit_staged(api.demote(name, stage, reason=reason, push=push, sign=sign, say=say), json=json)


def stages(
    name: Annotated[str | None, typer.Argument(help="Model, by name or path; all by default.")] = None,
    on: Annotated[
        str | None, typer.Option(metavar="WHEN", help="A day or a time: 2026-05-01, 2026-05-01T12:00, yesterday.")
    ] = None,
    history: Annotated[bool, typer.Option("--all", help="All that ever held a stage.")] = False,
    json: JsonFlag = False,
) -> None:
    """Show which versions hold stages, or held them on a day."""
    found = api.stages(name, on=on, history=history, say=say)
    emit_json(stages_document(found)) if json else emit_lines(stages_lines(found))


def check(
    what: Annotated[
        str | None,
        typer.Argument(metavar="[REV..REV]|[NAME[@V]]", help="Commits; with --stage a version. HEAD by default."),
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="Ask the policy of this stage about a version, as promote does.")
    ] = None,
    json: JsonFlag = False,
) -> int:
    """Check commits as the hooks do, or a version as promote does; exit 1 when something would be refused."""
    if stage is not None:
        if what is None:
            raise UsageError("check --stage: expected a model", hint="modelver list")
        verdict = api.check_stage_of(what, stage, say=say)
        emit_json(verdict_document(verdict)) if json else emit_lines(verdict_lines(verdict))
        return int(not verdict.ok)
    problems = api.check(what)
    if json:
        emit_json(cards.check_document(problems))
    else:
        emit_lines(cards.check_lines(problems))
    return int(any(p.refuses for p in problems))


# What they print


def _pushed(remote: str) -> str:
    return f", pushed to {remote}" if remote else ""


def _emit_staged(done: Staged, *, json: bool) -> None:
    if json:
        emit_json(
            {
                "schema": "modelver.staged/1", "tags": list(done.tags), "commit": done.commit,
                "pushed": done.remote if done.pushed else None,
                "record": {k: v for k, v in done.record.items() if v is not None},
            }
        )  # fmt: skip
        return
    lines = verdict_lines(done.verdict) if done.verdict is not None else []
    now = f"{done.version} holds it" if done.version else "nothing holds it"
    before = f", before {done.before}" if done.before else ""
    forced = ", forced" if done.forced else ""
    pushed = _pushed(done.remote if done.pushed else "")
    lines.append(f"{done.name}#{done.stage}: {now}{before}{forced}{pushed} ({', '.join(done.tags)})")
    emit_lines(lines)
    if done.remote and not done.pushed:
        say(f"hint: git push {done.remote} {' '.join(map(word, (*done.along, *done.tags)))} tells the others")
    if done.version and not done.named:
        say(f"hint: modelver tag {word(done.name)} {done.commit[:8]} --bump auto names it, also to GTO")


def verdict_document(verdict: Verdict) -> dict[str, Any]:
    """Give the document of a policy's answer."""
    return {
        "schema": "modelver.verdict/1", "ok": verdict.ok, "model": verdict.name, "version": verdict.version,
        "stage": verdict.stage, "md5": verdict.md5, "commit": verdict.commit,
        "policy": {"ref": verdict.source.ref, "blob": verdict.source.blob or None, "tables": verdict.policies},
        "checks": [check.to_dict() | {"hint": check.hint or None} for check in verdict.checks],
    }  # fmt: skip


def verdict_lines(verdict: Verdict) -> list[str]:
    """Give one line per rule with what was measured, and where the rules are from."""
    width = min(40, max((len(check.rule) for check in verdict.checks), default=0))
    lines = [f"{'ok' if c.ok else 'no'}  {c.rule:<{width}}  {c.found}" for c in verdict.checks]
    if verdict.policies:
        tables = f"{verdict.policies} [[policy]] table{'s' * (verdict.policies > 1)}"
        return [*lines, f"by {tables} of {verdict.source.ref} ({verdict.source.blob[:8]})"]
    return [*lines, f"{verdict.source.ref} has no [[policy]] for {verdict.stage} of {verdict.name}"]


def stages_document(found: list[Tenure]) -> dict[str, Any]:
    """Give the document of stages."""
    return {
        "schema": "modelver.stages/1",
        "stages": [
            {
                "model": t.tag.name, "stage": t.stage, "version": t.version, "since": t.since, "until": t.until or None,
                "commit": t.tag.commit, "tag": t.tag.tag, "by": t.tag.tagger, "how": t.how, "reason": t.reason or None,
                "forced": bool(t.tag.record.get("forced")),
            }
            for t in found
        ],
    }  # fmt: skip


def stages_lines(found: list[Tenure]) -> list[str]:
    """Give one line per time in which a version held a stage."""
    if not found:
        return ["no version held a stage then"]
    rows = [
        [
            t.tag.name, t.stage, t.version, _local(t.start), _local(t.end) if t.end is not None else "",
            t.tag.tagger, t.how + (" (forced)" if t.tag.record.get("forced") else ""),
            t.reason if len(t.reason) <= _MAX_REASON else t.reason[: _MAX_REASON - 3] + "...",
        ]
        for t in found
    ]  # fmt: skip
    return render_table(["model", "stage", "version", "since", "until", "by", "how", "reason"], rows)


def _local(seconds: int) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(sep=" ", timespec="minutes")
