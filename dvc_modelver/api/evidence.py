"""What is measured of a version before it may hold a stage: each rule of the policies, with what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dvc_modelver.api.compare import selected_side
from dvc_modelver.api.select import Selected
from dvc_modelver.api.versions import have_object
from dvc_modelver.diff.compare import compare
from dvc_modelver.errors import BadMetadataError, BadModelError, EnvironmentFailed, ModelverError, word
from dvc_modelver.pipeline import read_artifacts
from dvc_modelver.policy import Policy
from dvc_modelver.registry.evaluations import Measured, measured_metrics, read_evaluations
from dvc_modelver.registry.policy import Check, check_branches, check_cosine, check_known, check_metric, check_required
from dvc_modelver.repository import Repository
from dvc_modelver.security.scan import scan_file, scan_folder
from dvc_modelver.security.verdicts import Verdict
from dvc_modelver.settings import Settings
from dvc_modelver.store.folders import is_folder_oid
from dvc_modelver.transfer import Wanted, missing_on_remote
from dvc_modelver.views import CommitView
from dvc_modelver.worktree.agreement import find_contradictions
from dvc_modelver.worktree.law import Action
from dvc_modelver.worktree.look import look
from dvc_modelver.worktree.state import read_state

Say = Callable[[str], None]


def judge(
    repo: Repository, chosen: Selected, held: Selected | None, policies: Sequence[Policy], settings: Settings, say: Say
) -> Iterator[Check]:
    """Measure what the policies ask of a version, and judge it; that its metadata is its own is always asked.

    Args:
        repo: The repository.
        chosen: The version, at a commit.
        held: The version that holds the stage; None where none does.
        policies: Those for the stage.
        settings: The settings that the policies are from, whose ``security.allow`` counts.
        say: Takes lines for the user.
    """
    yield _check_agreement(repo, chosen)
    evaluations = read_evaluations(repo.objects, [one.metadata.md5 for one in (chosen, held) if one is not None])
    own, theirs = (
        measured_metrics(one.metadata, evaluations.get(one.metadata.md5, ())) if one is not None else None
        for one in (chosen, held)
    )
    assert own is not None
    name, md5 = chosen.model.name, chosen.metadata.md5
    label = word(chosen.label if "@" in chosen.label else f"{name}@{md5[:8]}")
    for policy in policies:
        yield from check_known(policy)
        for rule in policy.metrics:
            check = check_metric(rule, own, theirs)
            yield check if rule.name in own else replace(check, hint=f"modelver eval {label} --metrics FILE")
        if policy.min_cosine is not None or policy.max_cosine is not None:
            yield from check_cosine(policy, _cosine(repo, held, chosen), held.label if held is not None else "")
        yield from check_required(policy, _document(repo, chosen, own))
        if policy.scan:
            yield _check_scan(repo, chosen, settings, say)
        if policy.clean:
            yield _check_clean(repo)
        if policy.remote:
            yield _check_remote(repo, chosen)
        yield from check_branches(policy, repo.git, chosen.commit)


def _cosine(repo: Repository, held: Selected | None, chosen: Selected) -> float | None:
    if held is None:
        return None
    if held.metadata.md5 == chosen.metadata.md5:
        return 1.0
    return compare(selected_side(repo, held), selected_side(repo, chosen)).cosine


def _document(repo: Repository, chosen: Selected, own: Mapping[str, Measured]) -> dict[str, Any]:
    folder, _, name = chosen.model.name.rpartition("=")
    try:
        entry = read_artifacts(CommitView(chosen.commit, repo.objects).read, folder).get(name, {})
    except BadMetadataError:
        entry = {}
    metrics = {name: measured.value for name, measured in own.items()}
    return chosen.metadata.to_dict() | {"artifact": entry, "metrics": metrics}


def _check_agreement(repo: Repository, chosen: Selected) -> Check:
    """Compare the metadata with table and pointer, and with the weights' header where the cache has them."""
    view = CommitView(chosen.commit, repo.objects, repo.backfill)
    path, md5 = chosen.model.path, chosen.metadata.md5
    try:
        lines = [one.line for one in find_contradictions(repo, view, chosen.model)]
    except (BadModelError, EnvironmentFailed) as err:
        lines = [str(err)]
    is_here = repo.cache(path).has(md5, legacy=chosen.pointer.legacy)
    found = "agrees with pointer, table and weights" if is_here else "agrees with pointer and table"
    more = f" and {len(lines) - 2} more" if len(lines) > 2 else ""
    hint = f"modelver refresh {word(path)}" if lines else ""
    return Check("metadata of these weights", not lines, "; ".join(lines[:2]) + more if lines else found, hint)


def _check_scan(repo: Repository, chosen: Selected, settings: Settings, say: Say) -> Check:
    path, md5, legacy = chosen.model.path, chosen.metadata.md5, chosen.pointer.legacy
    allow = frozenset(settings.allow)
    try:
        have_object(repo, chosen.pointer, say)
        cache = repo.cache(path)
        cache.check(md5, legacy=legacy)
        if is_folder_oid(md5):
            results = list(scan_folder(cache.open_folder(md5), path, allow))
        else:
            with cache.path_of(md5, legacy=legacy).open("rb", buffering=0) as file:
                results = [scan_file(file, path, allow)]
    except EnvironmentFailed as err:
        return Check("scan", False, f"not scanned: {err}", err.hint)
    bad = [one for one in results if one.verdict is not Verdict.SAFE]
    hint = f"modelver scan {word(chosen.label)}"
    if not bad:
        return Check("scan", True, "safe")
    reasons = [f.reason for f in bad[0].findings if f.verdict is not Verdict.SAFE]
    return Check("scan", False, f"{bad[0].verdict}: {reasons[0] if reasons else bad[0].path}", hint)


def _check_clean(repo: Repository) -> Check:
    changed = repo.git.paths("diff", "--name-only", "-z", "HEAD")
    retrained = [s.path for s in look(repo, read_state(repo.layout.state_dir)) if s.action is Action.DESCRIBE]
    names = list(dict.fromkeys([*changed, *retrained]))
    if not names:
        return Check("clean", True, "nothing is changed in the work tree")
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return Check("clean", False, f"changed: {', '.join(names[:3])}{more}", "git status")


def _check_remote(repo: Repository, chosen: Selected) -> Check:
    try:
        name, missing = missing_on_remote(repo, Wanted(chosen.pointer, chosen.commit))
    except ModelverError as err:
        return Check("remote", False, f"cannot be asked: {err}", err.hint)
    if missing:
        return Check("remote", False, f"not on {name}: {', '.join(missing[:3])}", "modelver push --all")
    return Check("remote", True, f"{chosen.metadata.md5[:8]} is on {name}")
