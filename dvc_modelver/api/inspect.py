"""status, check, show: questions that change nothing."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dvc_modelver.api.elsewhere import open_repository
from dvc_modelver.api.select import select, warn_of_others
from dvc_modelver.api.setup import hidden_models
from dvc_modelver.checks import Problem, check_commits, check_tip, parents_of
from dvc_modelver.errors import NotFoundError, UsageError, word
from dvc_modelver.formats import LocalFolder, known_suffixes
from dvc_modelver.metadata import ModelMetadata, TensorTable, find_model_path, metadata_path, table_path
from dvc_modelver.pipeline import read_artifacts
from dvc_modelver.registry.evaluations import Evaluation, read_evaluations
from dvc_modelver.registry.history import ModelHistory
from dvc_modelver.registry.notes import EVALUATIONS_REF, unsent
from dvc_modelver.registry.sharing import find_remote
from dvc_modelver.registry.signatures import Signature, verify_tag
from dvc_modelver.registry.tags import ModelTag, read_tags
from dvc_modelver.repository import Repository, TrackedModel
from dvc_modelver.store.cache import Cache
from dvc_modelver.store.dvcconfig import folder_hint, lacks_folder
from dvc_modelver.store.dvcconfig import read_settings as read_dvc_settings
from dvc_modelver.store.gate import MAX_GATE_BYTES, find_gate
from dvc_modelver.transfer import objects_of_commits
from dvc_modelver.views import CommitView
from dvc_modelver.worktree.describe import read_contents
from dvc_modelver.worktree.law import Action
from dvc_modelver.worktree.look import Seen, committed_pointer, look
from dvc_modelver.worktree.resolved import kept_ours
from dvc_modelver.worktree.safety import check_models
from dvc_modelver.worktree.state import read_state
from dvc_modelver.worktree.unpushed import find_unpushed

Say = Callable[[str], None]


@dataclass(frozen=True)
class ModelStatus:
    """One model that is not simply committed and pushed, or what keeps all of them from being so.

    Attributes:
        path: The model, or the pointer file that cannot be read, or a tag; ``.`` for the whole repository.
        state: ``retrained``, ``staged``, ``behind``, ``missing``, ``conflict``, ``unreadable``, ``undescribed``,
            ``untracked``, ``hidden``, ``skipped`` (committed without the hooks), ``refused`` (``git push`` would) or
            ``unpushed``.
        detail: What was found, in a few words.
        hint: The command to run next.
    """

    path: str
    state: str
    detail: str
    hint: str = ""


def status(folder: Path | None = None) -> list[ModelStatus]:
    """Tell which models changed, are behind, missing, untracked or not pushed, sorted by path."""
    repo = Repository.open(folder)
    repo.dvc_root()
    index = repo.index()
    unmerged = {path for file in repo.git.unmerged() | kept_ours(repo) if (path := find_model_path(file)) is not None}
    found = []
    for seen in look(repo, read_state(repo.layout.state_dir)):
        line = _status_of(repo, seen, index.read(metadata_path(seen.path)), unmerged)
        if line is not None:
            found.append(line)
    unreadable = repo.unreadable(repo.work_tree)
    for file, err in unreadable.items():
        found.append(ModelStatus(file, "unreadable", str(err).removeprefix(f"{file}: "), err.hint))
    for path, rule in hidden_models(repo).items():
        if f"{path}.dvc" not in unreadable:
            found.append(ModelStatus(path, "hidden", f"ignored by {rule}", f"modelver add {word(path)}"))
    found += [*_untracked(repo), *_gated(repo), *_unpushed(repo)]
    known = {s.path for s in found}
    return sorted([*found, *(s for s in _refused(repo) if s.path not in known)], key=lambda s: (s.path, s.state))


def _untracked(repo: Repository) -> Iterator[ModelStatus]:
    folders: set[str] = set()
    for path in repo.git.paths("ls-files", "-o", "--exclude-standard", "-z"):
        if repo.settings.is_model(path, known_suffixes()):
            top = posixpath.dirname(path)
            if top and repo.is_model_folder(top):
                if top not in folders:
                    folders.add(top)
                    yield ModelStatus(f"{top}/", "untracked", "one model, not tracked yet", f"modelver add {word(top)}")
                continue
            hint = "git add" if repo.settings.is_gated(path) else "modelver add"
            yield ModelStatus(path, "untracked", "not tracked yet", f"{hint} {word(path)}")


def _gated(repo: Repository) -> Iterator[ModelStatus]:
    """Give the gate pointers of the index: pre-commit will replace those staged, and was skipped for the others."""
    staged = {change.path for change in repo.git.staged_changes()}
    for path, (mode, oid) in repo.index().entries.items():
        if (
            not repo.settings.is_gated(path)
            or not mode.startswith("100")
            or repo.objects.blob_size(oid) > MAX_GATE_BYTES
        ):
            continue
        if find_gate(repo.objects.read_blob(oid)) is None:
            continue
        if path in staged:
            yield ModelStatus(path, "staged", "added, its weights are in the cache", "git commit")
        else:
            yield ModelStatus(
                path,
                "skipped",
                "committed without the hooks",
                f"modelver add {word(path)} && git commit --amend --no-edit",
            )


def _refused(repo: Repository) -> Iterator[ModelStatus]:
    """Give what ``git push`` would refuse of the commits that no remote has; without a remote, of HEAD."""
    if repo.head is None:
        return
    known = ["--remotes"] if repo.git.text("remote") else parents_of(repo, repo.head)
    for problem in check_tip(repo, known):
        yield ModelStatus(problem.path, "refused", f"git push would refuse {problem.line}", problem.hint)


def _unpushed(repo: Repository) -> Iterator[ModelStatus]:
    if repo.head is None or not repo.models(repo.at("HEAD")):
        return
    if read_dvc_settings(repo.dvc_root()).default_remote is None:
        yield ModelStatus(".", "unpushed", "no DVC remote: the weights are only here", "modelver init --remote URL")
    if not repo.git.text("remote"):
        yield ModelStatus(".", "unpushed", "no Git remote: the commits are only here", "git remote add origin URL")
        return
    new = {(item.path, item.md5) for item in objects_of_commits(repo, "HEAD", ["--remotes"])}
    for path, md5 in sorted(new):
        yield ModelStatus(path, "unpushed", f"object {md5[:8]} is in commits not pushed", "git push")
    yield from _unsent(repo, new)
    for ref in unsent(repo.objects):
        what = "evaluations" if ref == EVALUATIONS_REF else "backfilled metadata"
        yield ModelStatus(ref, "unpushed", f"{what} that no remote has", "git push")
    remote = find_remote(repo.git)
    for made in find_unpushed(repo):
        if made.taken:
            fix = f"git tag -d {word(made.tag)} && git fetch --tags {remote}"
            yield ModelStatus(made.tag, "refused", f"{remote} has another tag of that name", fix)
        else:
            yield ModelStatus(made.tag, "unpushed", "this tag is only here", f"git push {remote} {word(made.tag)}")


def _unsent(repo: Repository, new: set[tuple[str, str]]) -> Iterator[ModelStatus]:
    """Give what HEAD needs of remotes that are local folders and is not there; others would have to be asked."""
    absent = set()
    known = cache(read_dvc_settings)
    for pointer in repo.pointers(repo.at("HEAD")):
        settings = known(repo.dvc_root(pointer.file))
        url = settings.remotes.get(pointer.remote or settings.default_remote or "", "://")
        if "://" in url or not (pointer.md5 and pointer.cache and pointer.push) or (pointer.path, pointer.md5) in new:
            continue
        if lacks_folder(url):
            absent.add(url)
        elif not Cache(settings.at(Path(url))).has_alone(pointer.md5, legacy=pointer.legacy):
            what = f"object {pointer.md5[:8]} is not on {url}, though its commit was pushed"
            yield ModelStatus(pointer.path, "unpushed", what, "modelver push")
    for url in sorted(absent):
        yield ModelStatus(".", "unpushed", f"{url}: does not exist (not mounted?)", folder_hint(url))


def _status_of(repo: Repository, seen: Seen, staged: bytes | None, unmerged: set[str]) -> ModelStatus | None:
    path, model = seen.path, seen.model
    if model.metadata is None and not model.problem:
        return ModelStatus(path, "undescribed", "tracked by DVC, no metadata", "modelver add --all")
    if model.problem:
        return ModelStatus(path, "conflict", model.problem, f"modelver refresh {word(path)}")
    if path in unmerged:
        return ModelStatus(path, "conflict", "changed on both sides of a merge", "modelver merge")
    assert model.metadata is not None
    if seen.unfinished:
        return ModelStatus(path, "retrained", "still being written", f"modelver add {word(path)} when that is done")
    if seen.is_outdated and seen.is_committed:
        return ModelStatus(path, "undescribed", seen.disagreement, f"modelver refresh {word(path)}")
    match seen.action:
        case Action.DESCRIBE:
            return ModelStatus(path, "retrained", f"not described yet, {_was(seen)}", "modelver add -u")
        case Action.FOLLOW:
            target = (seen.decision.target or "")[:8]
            return ModelStatus(path, "behind", f"the recorded object is {target}", f"modelver pull {word(path)}")
        case Action.MISSING:
            return ModelStatus(path, "missing", "no file on disk", f"modelver pull {word(path)}")
        case Action.CONFLICT:
            return ModelStatus(
                path,
                "conflict",
                "weights and metadata both moved",
                f"modelver add {word(path)}; or modelver pull --force {word(path)}",
            )
        case _:
            pass
    if not model.metadata.is_table(repo.work_tree.read(table_path(model.path))):
        return ModelStatus(path, "conflict", "the tensor table is not the metadata's", f"modelver refresh {word(path)}")
    if staged is None:
        return ModelStatus(path, "untracked", "described, not staged", f"modelver add {word(path)}")
    if model.metadata.md5.encode() not in staged:
        if committed_pointer(repo, model.pointer) == model.metadata.md5:
            was = f"HEAD has {_was(seen).removeprefix('now ')} without its metadata, which is not staged"
            return ModelStatus(path, "undescribed", was, "git commit -a")
        return ModelStatus(path, "retrained", f"{_was(seen)}, not staged", "git commit -a")
    head = repo.metadata(CommitView(repo.head, repo.objects), path) if repo.head is not None else None
    if head is None or head.md5 != model.metadata.md5:
        return ModelStatus(path, "staged", f"version {model.metadata.version.number}", "git commit")
    return None


def _was(seen: Seen) -> str:
    md5 = (seen.md5 or "").lstrip("?")[:8]
    return f"now {md5}"


def check(range_: str | None = None, *, folder: Path | None = None) -> list[Problem]:
    """Tell what the hooks would have refused; of dangerous models, where their objects are in the cache.

    Args:
        range_: ``OLD..NEW``, or one revision to check alone; HEAD by default.
        folder: Anywhere in the work tree.

    Raises:
        NotFoundError: No such revision.
    """
    repo = Repository.open(folder)
    old, dots, new = (range_ or "HEAD").partition("..")
    new = new.lstrip(".") if dots else old
    tip = repo.git.commit_of(new or "HEAD")
    known = [repo.git.commit_of(old or "HEAD")] if dots else parents_of(repo, tip)
    return [*check_commits(repo, tip, known), *check_models(repo, tip, known)]


@dataclass(frozen=True)
class Shown:
    """One version's card.

    Attributes:
        evaluations: Results that were measured after the commit, oldest first.
        labels: From ``artifacts:`` of dvc.yaml; likewise `description`.
        tags: Tags of this version.
        signatures: What Git says of those that are signed.
    """

    model: TrackedModel
    metadata: ModelMetadata
    table: TensorTable | None
    commit: str
    tags: tuple[ModelTag, ...]
    description: str = ""
    labels: tuple[str, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    signatures: tuple[Signature, ...] = ()


def show(
    reference: str, *, repo: str | None = None, say: Say = lambda _line: None, folder: Path | None = None
) -> Shown:
    """Give one version's card: of a model's current version, of ``NAME@V`` or of ``NAME#STAGE``.

    Where the weights on disk are others than the current version's, that is said.

    Args:
        reference: Which version.
        repo: Another repository, by URL or path.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.

    Raises:
        NotFoundError: No such model or version.
    """
    opened = open_repository(repo, folder, say)
    chosen = select(opened, reference)
    warn_of_others(opened, chosen, say)
    view = opened.at(chosen.commit) if chosen.commit else opened.work_tree
    entry = read_artifacts(opened.work_tree.read, "").get(chosen.model.name, {})
    history = ModelHistory(opened.git, opened.objects, chosen.model.path)
    tags = [tag for tag in read_tags(opened.git, chosen.model.name) if _is_of(history, tag, chosen.metadata.md5)]
    labels = entry.get("labels")
    return Shown(
        model=chosen.model,
        metadata=chosen.metadata,
        table=opened.table(view, chosen.model.path),
        commit=chosen.commit or (_commit_of(history, chosen.metadata.md5) if opened.head else ""),
        tags=tuple(tags),
        description=str(entry.get("desc") or ""),
        labels=tuple(map(str, labels)) if isinstance(labels, list) else (),
        evaluations=tuple(read_evaluations(opened.objects, [chosen.metadata.md5]).get(chosen.metadata.md5, ())),
        signatures=tuple(verify_tag(opened.git, tag.tag) for tag in tags if tag.signed),
    )


def _commit_of(history: ModelHistory, md5: str) -> str:
    """Give the commit that brought a version: of HEAD's history, else of any other; empty before it is committed."""
    pools = (history.versions(rev) for rev in ("HEAD", "--all"))
    return next((v.commit for pool in pools for v in pool if v.metadata.md5 == md5), "")


def _is_of(history: ModelHistory, tag: ModelTag, md5: str) -> bool:
    try:
        return history.at(tag.commit, tag.tag).metadata.md5 == md5
    except NotFoundError:
        return False


def describe_file(path: str | Path) -> tuple[TensorTable | None, str, int]:
    """Give the tensor table, format and size in bytes of a model file that need not be tracked.

    Raises:
        BadModelError: It breaks its format's rules.
    """
    contents = read_contents(Path(path), str(path), beside=LocalFolder(Path(path).parent))
    if contents.warning:
        raise UsageError(contents.warning)
    return contents.table, contents.format, contents.hashes.size
