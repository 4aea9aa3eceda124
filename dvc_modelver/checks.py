"""What hooks refuse, asked of commits: the same rules for ``git push`` and for ``modelver check`` in CI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from dvc_modelver.errors import BadMetadataError, word
from dvc_modelver.metadata import find_model_path, metadata_path, table_path
from dvc_modelver.progress import human_bytes
from dvc_modelver.repository import Repository, is_pointer_file
from dvc_modelver.store.gate import MAX_GATE_BYTES, find_gate, is_raw_weights
from dvc_modelver.store.pointers import Pointer
from dvc_modelver.views import CommitView

_Add = Callable[[str, str, str], None]


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a commit.

    Attributes:
        line: Where, what was found, what was expected.
        hint: The command to run.
        refuses: Whether it stops a push; else it is a warning.
    """

    commit: str
    path: str
    line: str
    hint: str
    refuses: bool


def check_commits(repo: Repository, new: str, known: Sequence[str]) -> list[Problem]:
    """Check every commit of ``new --not known`` that touches models.

    Args:
        repo: The repository.
        new: The newest commit, or a tag of it.
        known: Arguments of ``git rev-list`` for what is known to be good.

    Returns:
        Problems, oldest commit first. Below the newest commit they are warnings, unless ``push.strict``.
    """
    tip = repo.git.find_commit(new)
    if tip is None:
        return []  # a tag of a file
    changed: dict[str, dict[str, None]] = {}
    for logged, change in repo.git.iter_changes("--reverse", "--diff-merges=first-parent", tip, "--not", *known):
        if _is_ours(repo, change.path):
            changed.setdefault(logged.id, {})[change.path] = None
    found: list[Problem] = []
    for commit, paths in changed.items():
        if commit != tip:
            found += _check(repo, commit, list(paths), refuses=repo.settings.strict)
    touched = dict.fromkeys(path for paths in changed.values() for path in paths)
    return found + (_check(repo, tip, list(touched), refuses=True) if touched else [])


def check_tip(repo: Repository, known: Sequence[str]) -> list[Problem]:
    """Check HEAD's files as far as commits of ``HEAD --not known`` touched them: what `check_commits` refuses.

    Args:
        repo: The repository; it has a HEAD.
        known: Arguments of ``git rev-list`` for what is known to be good.
    """
    out = repo.git.paths("log", "--format=", "--name-only", "-z", "--diff-merges=first-parent", "HEAD", "--not", *known)
    touched = sorted({path for path in out if _is_ours(repo, path)})
    return _check(repo, repo.git.commit_of("HEAD"), touched, refuses=True) if touched else []


def parents_of(repo: Repository, commit: str) -> list[str]:
    """Give the parents of a commit."""
    return repo.git.text("rev-list", "--parents", "-n", "1", commit).split()[1:]


def _is_ours(repo: Repository, path: str) -> bool:
    return is_pointer_file(path) or find_model_path(path) is not None or repo.settings.is_gated(path)


def _check(repo: Repository, commit: str, paths: list[str], *, refuses: bool) -> list[Problem]:
    view = CommitView(commit, repo.objects)
    problems: list[Problem] = []

    def add(path: str, line: str, hint: str) -> None:
        problems.append(Problem(commit, path, f"{commit[:8]}: {line}", hint, refuses))

    models: set[str] = set()
    pointers: dict[str, Pointer] = {}
    for path in paths:
        if is_pointer_file(path):
            try:
                found = repo.pointers_in(view, path)
            except BadMetadataError as err:
                add(path, str(err), err.hint or f"git checkout HEAD~1 -- {path}")
                continue
            models |= {p.path for p in found if repo.is_model(view, p)}
            if view.read(metadata_path(path.removesuffix(".dvc"))) is not None:
                models.add(path.removesuffix(".dvc"))  # the pointer may be gone
        elif (model := find_model_path(path)) is not None:
            models.add(model)
        else:
            _check_raw(repo, view, path, add)
    if models:
        pointers = {p.path: p for p in repo.pointers(view)}
    for path in sorted(models):
        _check_model(repo, view, path, pointers.get(path), add)
    return problems


def _check_raw(repo: Repository, view: CommitView, path: str, add: _Add) -> None:
    oid = repo.objects.find_blob(view.commit, path)
    if oid is None:
        return
    size = repo.objects.blob_size(oid)
    fix = f"modelver add {word(path)} && git commit --amend --no-edit"
    if size <= MAX_GATE_BYTES:
        if find_gate(repo.objects.read_blob(oid)) is not None:
            add(
                path,
                f"{path}: a gate pointer was committed, expected a .dvc pointer (pre-commit did not run)",
                fix,
            )
    elif size > repo.settings.raw_max_bytes and not _was_raw_before(repo, view.commit, path):
        limit = human_bytes(repo.settings.raw_max_bytes)
        add(path, f"{path}: raw weights of {human_bytes(size)} in Git, expected a pointer above {limit}", fix)


def _was_raw_before(repo: Repository, commit: str, path: str) -> bool:
    return any(
        (oid := repo.objects.find_blob(parent, path)) is not None
        and is_raw_weights(repo.objects.blob_size(oid), partial(repo.objects.read_blob, oid))
        for parent in parents_of(repo, commit)
    )


def _check_model(repo: Repository, view: CommitView, path: str, pointer: Pointer | None, add: _Add) -> None:
    fix = f"modelver refresh {word(path)} && git commit -m {word(f'Refresh {path}')}"
    try:
        metadata = repo.metadata(view, path)
    except BadMetadataError as err:
        add(path, str(err), fix)
        return
    if metadata is None:
        if pointer is not None and repo.is_model(view, pointer):
            add(
                path,
                f"{path}: no metadata file, expected {metadata_path(path)}",
                f"modelver add {word(path)} && git commit -m {word(f'Describe {path}')}",
            )
        return
    if metadata.pending is not None:
        add(path, f"{path}: metadata is pending, expected a description of the weights", fix)
    elif pointer is None:
        add(
            path,
            f"{path}: metadata without a pointer, expected {path}.dvc or an output of dvc.lock",
            f"modelver add {word(path)} && git commit -m {word(f'Track {path}')}",
        )
    elif pointer.md5 != metadata.md5:
        add(
            path,
            f"{path}: metadata of {metadata.md5[:8]}, pointer to {(pointer.md5 or '?')[:8]}; expected one object",
            fix,
        )
    elif not metadata.is_table(view.read(table_path(path))):
        add(path, f"{table_path(path)}: not the table that the metadata names", fix)
