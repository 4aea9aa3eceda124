"""Where the policy of a stage is read from, and whether a version's recorded facts satisfy it."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dvc_modelver.errors import UsageError, word
from dvc_modelver.git.objects import ObjectReader
from dvc_modelver.git.porcelain import Git
from dvc_modelver.policy import MetricRule, Policy
from dvc_modelver.registry.evaluations import Measured, is_metric
from dvc_modelver.registry.sharing import find_default_branch, find_remote
from dvc_modelver.settings import SETTINGS_FILE, Settings, parse_settings


@dataclass(frozen=True)
class Check:
    """One rule, and what was found.

    Attributes:
        rule: The rule, as the policy has it.
        ok: Whether it holds.
        found: What was measured, in a few words.
        hint: The command to run where it does not hold; empty when there is none.
    """

    rule: str
    ok: bool
    found: str
    hint: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Give it as the tag has it."""
        return {"rule": self.rule, "ok": self.ok, "found": self.found}


@dataclass(frozen=True)
class PolicySource:
    """The settings that decide about stages.

    Attributes:
        ref: Where they were read: ``origin/main``; ``HEAD`` in a repository without a remote.
        blob: Git's id of the file; empty where there is none, and nothing is asked.
    """

    ref: str
    blob: str
    settings: Settings

    def of(self, stage: str, model: str) -> list[Policy]:
        """Give the policies for a stage of a model; all of them must be satisfied."""
        return [policy for policy in self.settings.policies if policy.is_for(stage, model)]

    def near(self, stage: str, model: str) -> str:
        """Give the stage of a policy that is spelled like this one but for case and separators; empty where none is."""
        same = _letters(stage)
        found = (p.stage for p in self.settings.policies if _letters(p.stage) == same and p.is_for(p.stage, model))
        return next(found, "")


def _letters(stage: str) -> str:
    return re.sub(r"[-_/]", "", stage).casefold()


def read_policy(git: Git, objects: ObjectReader) -> PolicySource:
    """Read the policy of the remote's default branch, whatever the work tree or the current branch says.

    Raises:
        UsageError: Which branch that is, is not known here.
        BadMetadataError: The file cannot be read.
    """
    ref = _policy_ref(git, objects)
    commit = objects.find_ref(ref) if ref != "HEAD" else objects.head()
    blob = objects.find_blob(commit, SETTINGS_FILE) if commit is not None else None
    if blob is None:
        return PolicySource(_short(git, ref), "", Settings())
    text = objects.read_blob(blob).decode("utf-8", "replace")
    where = f"{_short(git, ref)}:{SETTINGS_FILE}"
    return PolicySource(_short(git, ref), blob, parse_settings(text, where))


def _policy_ref(git: Git, objects: ObjectReader) -> str:
    remote = find_remote(git)
    if remote is None or not git.text("for-each-ref", "--count=1", f"refs/remotes/{remote}"):
        return "HEAD"  # nothing was ever pushed or fetched
    for name in ("HEAD", "main", "master"):
        if objects.find_ref(f"refs/remotes/{remote}/{name}") is not None:
            return f"refs/remotes/{remote}/{name}"
    branch = word(find_default_branch(git, remote) or "BRANCH")
    raise UsageError(
        f"{remote}: its default branch is not known here, and the policy is read from there",
        hint=f"git fetch {remote} {branch}:refs/remotes/{remote}/{branch} && git remote set-head {remote} {branch}",
    )


def _short(git: Git, ref: str) -> str:
    name = git.text("symbolic-ref", "--quiet", ref, codes=(0, 1, 128)) if ref.endswith("/HEAD") else ""
    return (name or ref).removeprefix("refs/remotes/")


def check_metric(rule: MetricRule, own: Mapping[str, Measured], held: Mapping[str, Measured] | None) -> Check:
    """Judge one metric rule.

    Args:
        rule: The rule.
        own: The version's metrics.
        held: Those of the version that holds the stage; None where nothing does, which a rule against it lets pass.
    """
    mine = own.get(rule.name)
    if mine is None:
        near = ", ".join(sorted(own)[:5]) or "no metric"
        return Check(rule.text, False, f"{rule.name} was not measured (there is {near})")
    if not is_metric(mine.value):
        return Check(rule.text, False, f"{rule.name} is {mine.value!r:.60}, no finite number")
    said = f"{rule.name} = {mine.value:.9g}{_source(mine)}"
    theirs = None
    if rule.value is None:
        if held is None:
            return Check(rule.text, True, f"{said}; nothing holds the stage")
        other = held.get(rule.name)
        if other is None or not is_metric(other.value):
            return Check(rule.text, False, f"{said}; the version that holds the stage has no {rule.name}")
        theirs, said = float(other.value), f"{said}, held {other.value:.9g}"
    bound = rule.bound(theirs)
    assert bound is not None
    return Check(rule.text, rule.holds(float(mine.value), bound), said)


def _source(measured: Measured) -> str:
    return f" (evaluated {measured.evaluation.time[:10]})" if measured.evaluation is not None else ""


def check_cosine(policy: Policy, cosine: float | None, held: str) -> Iterator[Check]:
    """Judge the bounds of the similarity to the version that holds the stage.

    Args:
        policy: The policy.
        cosine: What was measured; None where it is undefined.
        held: How that version is called; empty where nothing holds the stage, which lets every bound pass.
    """
    for key, bound in (("min_cosine", policy.min_cosine), ("max_cosine", policy.max_cosine)):
        if bound is None:
            continue
        rule = f"{key} = {bound:.9g}"
        if not held:
            yield Check(rule, True, "nothing holds the stage")
        elif cosine is None:
            yield Check(rule, False, f"the cosine to {held} is not defined")
        else:
            ok = cosine >= bound if key == "min_cosine" else cosine <= bound
            yield Check(rule, ok, f"cosine {cosine:.6g} to {held}")


def check_required(policy: Policy, document: Mapping[str, Any]) -> Iterator[Check]:
    """Judge whether what must be recorded is: neither absent nor empty.

    Args:
        policy: The policy.
        document: The metadata, with ``artifact`` (the entry of dvc.yaml) and ``metrics`` (as measured).
    """
    for name in policy.require:
        value = find_field(document, name.split("."))
        is_there = value is not None and value not in ("", [], {}, ())
        text = value if isinstance(value, str) else "there" if isinstance(value, (list, dict, tuple)) else str(value)
        yield Check(f"require {name}", is_there, text[:60] if is_there else "not there")


def find_field(value: Any, parts: list[str]) -> Any:
    """Give what a dotted name names in a document, whose own keys may have dots; None where there is nothing."""
    if not parts:
        return value
    if isinstance(value, Mapping):
        for n in range(len(parts), 0, -1):
            if (key := ".".join(parts[:n])) in value and (found := find_field(value[key], parts[n:])) is not None:
                return found
    return None


def check_branches(policy: Policy, git: Git, commit: str) -> Iterator[Check]:
    """Judge whether a commit is on one of the branches that the policy allows: the remote's, where there is one."""
    if not policy.branches:
        return
    remote = find_remote(git)
    below = f"refs/remotes/{remote}/" if remote is not None else "refs/heads/"
    refs = git.text("for-each-ref", "--contains", commit, "--format=%(refname)", below).splitlines()
    names = [ref.removeprefix(below) for ref in refs if not ref.endswith("/HEAD")]
    fits = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in policy.branches)]
    on = f"on {', '.join((fits or names)[:3])}" if names else "on no branch"
    place = f" of {remote}" if remote is not None else ""
    rule = f"branches = {', '.join(policy.branches)}"
    yield Check(rule, bool(fits), f"{commit[:8]} is {on}{place}", "" if fits else "git push")


def check_known(policy: Policy) -> Iterator[Check]:
    """Let a policy that this program understands in part hold nothing back silently."""
    for key in policy.unknown:
        yield Check(
            f"policy.{key}", False, "this program does not know this rule", "pip install --upgrade dvc-modelver"
        )
