"""tag: semantic versions for committed ones, as annotated tags that GTO reads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from dvc_modelver.api.compare import selected_side
from dvc_modelver.api.elsewhere import check_tags
from dvc_modelver.api.select import Selected, select, split_reference, warn_of_others
from dvc_modelver.diff.changes import ModelDiff
from dvc_modelver.diff.classify import is_widened
from dvc_modelver.diff.compare import compare
from dvc_modelver.errors import NotFoundError, RefusedError, UsageError, word
from dvc_modelver.registry.sharing import TagTakenError, fetch_tags, find_remote, push_tags, take_theirs
from dvc_modelver.registry.tags import ModelTag, bumped, check_name, create_tag, read_tags, version_key, versions_of
from dvc_modelver.repository import Repository, TrackedModel
from dvc_modelver.worktree.unpushed import forget_tags, note_tag

Say = Callable[[str], None]
_INTERFACE = frozenset({"inputs", "outputs", "batch_shape", "batch_input_shape", "n_features_in_"})
"""Parts of the names of a model's structure that say what goes in and comes out."""


@dataclass(frozen=True)
class Tagged:
    """A tag that was made, or is about to be.

    Attributes:
        level: Of an automatic bump: ``major``, ``minor`` or ``patch``; empty otherwise.
        reason: The measured facts that it follows from; empty otherwise.
        since: The version tag that was compared with; empty where there was none.
        declared: Whether dvc.yaml has the model's ``artifacts:`` entry, which ``dvc artifacts get`` needs.
        is_first: Whether it is the model's first version tag.
        pushed: The remote that has it now; empty where it was not pushed.
    """

    tag: str
    commit: str
    reason: str
    declared: bool
    is_first: bool
    path: str
    level: str = ""
    since: str = ""
    pushed: str = ""


def tag(
    name: str,
    version: str | None = None,
    rev: str = "HEAD",
    *,
    bump: str | None = None,
    push: bool = False,
    sign: bool = False,
    confirm: Callable[[Tagged], bool] = lambda _proposed: True,
    say: Say = lambda _line: None,
    folder: Path | None = None,
) -> Tagged:
    """Give a committed version its semantic version, as an annotated tag that GTO reads.

    Args:
        name: The model's name or path.
        version: Like ``v1.2.0``.
        rev: The commit that has the version.
        bump: ``major``, ``minor``, ``patch``, or ``auto``: the level that follows from the measured change.
        push: Push the tag as well.
        sign: Sign it, as ``git tag --sign`` does; ``tag.gpgSign`` does the same.
        confirm: Asked before an automatic bump is made.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.

    Raises:
        UsageError: Neither or both of `version` and `bump`, or the tag is there already, or `name` names a version.
        NotFoundError: No such model, or no metadata at `rev`, or the clone has no tags.
        RefusedError: An automatic bump and nothing changed since the last version; or `confirm` said no; or somebody
            else pushed a tag of that name first.
        EnvironmentFailed: It could not be signed, or not be pushed.
    """
    if (version is None) == (bump is None):
        raise UsageError(
            "modelver tag: expected a version like v1.0.0, or --bump", hint=f"modelver tag {word(name)} --bump auto"
        )
    repo = Repository.open(folder)
    commit = repo.git.commit_of(rev)
    model = _find_tagged(repo, commit, name, version)
    check_name(model.name)
    if model.metadata is None:
        raise NotFoundError(f"{rev}: has no metadata of {model.path}", hint=f"modelver add {word(model.path)}")
    if rev == "HEAD":
        with suppress(NotFoundError):  # removed from the work tree since
            warn_of_others(repo, select(repo, model.path), say)
    remote = remote_to_push_to(repo) if push else ""
    if push:
        fetch_tags(repo.git, remote)
    check_tags(repo, model.name, say)
    tags = versions_of(read_tags(repo.git, model.name))
    latest = tags[-1] if tags else None
    level = reason = ""
    if bump == "auto":
        if latest is None:
            level, reason = "major", "the first version"
        else:
            level, reason = _measured_level(repo, latest, Selected(model, model.metadata, commit, rev))
    if bump is not None:
        version = bumped(latest.version if latest else None, level or bump)
    assert version is not None
    version_key(version)
    version = "v" + version.removeprefix("v")
    here = [t.tag for t in tags if t.commit == commit]
    if here:
        raise UsageError(
            f"{commit[:8]}: is {here[-1]} already, and GTO reads one version per commit", hint=f"git show {here[-1]}"
        )
    if latest is not None and _is_ancestor(repo, commit, latest.commit):
        say(f"warning: {commit[:8]} is older than {latest.tag} ({latest.commit[:8]}), the highest version so far")
    declared = repo.declared_name(repo.at(commit), model.path) is not None
    since = latest.tag if latest is not None and bump == "auto" else ""
    made = Tagged(f"{model.name}@{version}", commit, reason, declared, latest is None, model.path, level, since)
    if bump == "auto" and not confirm(made):
        raise RefusedError(f"{made.tag}: not made")
    record = {
        "schema": "modelver.tag/1", "path": model.path, "md5": model.metadata.md5,
        "number": model.metadata.version.number, "parameters_digest": model.metadata.model.parameters_digest,
        "level": level or None, "since": since or None, "reason": reason or None,
    }  # fmt: skip
    record = {k: v for k, v in record.items() if v is not None}
    oid = create_tag(repo.git, made.tag, commit, f"{model.name} {version}", record, sign=sign)
    note_tag(repo.layout, made.tag, oid)
    if not push:
        return made
    share(repo, remote, made.tag)
    return replace(made, pushed=remote)


def _find_tagged(repo: Repository, commit: str, name: str, version: str | None) -> TrackedModel:
    """Give the model of a name; where a version was named with it, say how that one is tagged."""
    try:
        return repo.find_model(repo.at(commit), name)
    except NotFoundError:
        if not any(split_reference(name)[1:]):
            raise
        meant = select(repo, name)
        what = f"{version} {meant.commit[:8]}" if version is not None else f"{meant.commit[:8]} --bump auto"
        raise UsageError(
            f"{name}: expected the model's name alone, and the commit of an older version after it",
            hint=f"modelver tag {word(meant.model.name)} {what}",
        ) from None


def remote_to_push_to(repo: Repository) -> str:
    """Give the Git remote that has the registry.

    Raises:
        UsageError: There is none.
    """
    remote = find_remote(repo.git)
    if remote is None:
        raise UsageError("--push: there is no Git remote", hint="git remote add origin URL")
    return remote


def share(repo: Repository, remote: str, *tags: str) -> None:
    """Push tags that were made just now.

    Raises:
        RefusedError: Somebody else's tag of one of the names is there; those here are gone, theirs is in its place.
        EnvironmentFailed: They could not be pushed, and are still here.
    """
    try:
        push_tags(repo.git, remote, tags)
    except TagTakenError as err:
        for one in tags:
            repo.git.run("update-ref", "-d", f"refs/tags/{one}")
        forget_tags(repo.layout, tags)
        take_theirs(repo.git, remote, err.tag)
        winner = next((t for t in read_tags(repo.git) if t.tag == err.tag), None)
        who = f"{winner.tagger} pushed it on {winner.date}: {winner.message.splitlines()[0]}" if winner else "not ours"
        raise RefusedError(f"{err.tag}: {remote} has a tag of that name already ({who})", hint="modelver list") from err
    forget_tags(repo.layout, tags)


def _is_ancestor(repo: Repository, old: str, new: str) -> bool:
    return old != new and repo.git.run_for_code("merge-base", "--is-ancestor", old, new, codes=(0, 1, 128))[0] == 0


def _measured_level(repo: Repository, last: ModelTag, new: Selected) -> tuple[str, str]:
    """Give the level of an automatic bump and the measured facts that it follows from."""
    try:
        old = select(repo, last.tag)
    except NotFoundError as err:
        raise UsageError(
            f"{last.tag}: cannot be compared with: {err}", hint=f"modelver tag {last.name} --bump minor"
        ) from err
    if old.metadata.md5 != new.metadata.md5:
        return level_of(compare(selected_side(repo, old), selected_side(repo, new)))
    if old.metadata.training == new.metadata.training:
        raise RefusedError(f"{new.model.path}: nothing changed since {last.tag}", hint="git status")
    return "patch", "same weights, other metadata"


def level_of(change: ModelDiff) -> tuple[str, str]:
    """Give the level of a version that follows from a measured change, and the facts.

    Returns:
        ``major`` where inputs, outputs or tensors no longer fit; ``minor`` where values or the configuration changed;
        ``patch`` where the same values lie in another container, or among other metadata.
    """
    facts = [f"{change.kind}: {change.reason}"]
    if change.relative_l2 is not None and change.relative_l2 > 0:
        facts.append(f"relative L2 {change.relative_l2:.3g}")
    if change.cosine is not None and change.relative_l2:
        facts.append(f"cosine {change.cosine:.6g}")
    same_format = change.old is not None and change.new is not None and change.old.format == change.new.format
    structure = [f.name for f in change.structure] if same_format else []
    faces = [name for name in structure if _INTERFACE & set(name.split("."))]
    if faces:
        facts.append(f"inputs or outputs changed: {', '.join(faces[:3])}")
    reason = "; ".join(facts)
    if change.kind in ("architecture", "added") or faces:
        return "major", reason
    moved = [t for t in change.tensors if t.is_parameter and t.is_moved and t.measured.squared_distance != 0]
    is_same = all(is_widened(t) for t in moved)
    if change.kind in ("metadata-only", "conversion") and is_same:
        if not structure:
            return "patch", reason
        return "minor", f"{reason}; configuration changed: {', '.join(structure[:3])}"
    return "minor", reason
