"""Keeps models out of commits that would run code when somebody loads them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from dvc_modelver.checks import Problem, parents_of
from dvc_modelver.errors import BadMetadataError, EnvironmentFailed, RefusedError, word
from dvc_modelver.git.porcelain import Change
from dvc_modelver.metadata import find_model_path, metadata_path, table_path
from dvc_modelver.progress import human_bytes
from dvc_modelver.repository import Repository
from dvc_modelver.settings import RAW_SCAN_SUFFIXES, SETTINGS_FILE, Settings
from dvc_modelver.store.folders import is_folder_oid
from dvc_modelver.views import CommitView
from dvc_modelver.worktree.describe import find_version

if TYPE_CHECKING:
    from dvc_modelver.security.verdicts import Scanned, Verdict

MAX_RAW_SCAN_BYTES = 100 << 20
"""Of a file in Git itself; services that host repositories take no larger ones."""

_IN_MEMORY_BYTES = 8 << 20
_MAX_SAID = 20


@dataclass(frozen=True)
class Unsafe:
    """A file that the settings keep out of commits.

    Attributes:
        path: The model, or the file that is in Git itself.
        scanned: What was found in it; of a folder, in one of its files.
    """

    path: str
    scanned: Scanned

    def line(self, settings: Settings) -> str:
        """Say in one line what it is and what it would run."""
        found = [f for f in self.scanned.findings if f.verdict in _refused_verdicts(settings)]
        reasons = list(dict.fromkeys(f"{f.name} ({f.reason})" if f.name else f.reason for f in found))
        more = f" and {len(reasons) - _MAX_SAID} more" if len(reasons) > _MAX_SAID else ""
        return f"{self.scanned.path}: {self.scanned.verdict} to load: {', '.join(reasons[:_MAX_SAID])}{more}"


def find_unsafe(repo: Repository, path: str, md5: str, settings: Settings) -> list[Unsafe]:
    """Scan an object, of which pickles and headers are read and no more; see ``security.refuse``.

    A version that HEAD's history has is no news, and an object that is not in the cache was not made here.

    Args:
        repo: The repository.
        path: The model.
        md5: Its object.
        settings: What the owners allow.
    """
    found = list(_iter_unsafe(repo, path, md5, settings))
    return [] if found and find_version(repo, path, md5) is not None else found


def find_unsafe_raw(repo: Repository, changes: Iterable[Change], settings: Settings) -> tuple[list[Unsafe], list[str]]:
    """Scan files that go into Git itself and have a suffix that weights have.

    Of files that nobody asked this program to look after, only danger counts.

    Returns:
        The dangerous ones, and a line for each that is too large to look at.
    """
    candidates = [change for change in changes if is_raw_candidate(change)]
    if not candidates or settings.refuse == "never":
        return [], []
    from dvc_modelver.security.scan import scan_file
    from dvc_modelver.security.verdicts import Verdict

    found, left = [], []
    for change in candidates:
        size = repo.objects.blob_size(change.new_oid)
        if size > MAX_RAW_SCAN_BYTES:
            left.append(f"{change.path}: not scanned, {human_bytes(size)} in Git itself")
            continue
        with _open_blob(repo, change.new_oid) as file:
            scanned = scan_file(file, change.path, frozenset(settings.allow))
        if scanned.verdict is Verdict.DANGEROUS:
            found.append(Unsafe(change.path, scanned))
    return found, left


def is_raw_candidate(change: Change) -> bool:
    """Whether a change brings a file into Git itself that weights could be."""
    is_new = change.status != "D" and change.new_oid != change.old_oid
    return is_new and change.new_mode.startswith("100") and change.path.lower().endswith(RAW_SCAN_SUFFIXES)


def refusal(repo: Repository, unsafe: Sequence[Unsafe], settings: Settings) -> RefusedError:
    """Give the error that names all that is refused, how to take it out of the commit, and how to let it through."""
    paths = list(dict.fromkeys(one.path for one in unsafe))
    details = f"modelver scan {' '.join(map(word, paths))} says more"
    hints = [*_ways_out(repo, paths), details, *_ways_in(repo, unsafe, settings)]
    lines = dict.fromkeys(one.line(settings) for one in unsafe)
    return RefusedError("\n".join(lines), hint="\nhint: ".join(hints))


def _ways_out(repo: Repository, paths: Sequence[str]) -> Iterator[str]:
    view = repo.index()
    pointers = {p.path: p for p in repo.pointers(view)}
    new, files = [], []
    for path in paths:
        pointer = pointers.get(path)
        is_new = repo.head is None or repo.objects.find_blob(repo.head, metadata_path(path)) is None
        if pointer is None:
            files.append(path)
        elif pointer.kind == "dvc" and is_new:
            new.append(path)
        else:
            files += [f for f in (pointer.file, metadata_path(path), table_path(path)) if f in view.entries]
    if new:
        yield f"modelver rm --cached {' '.join(map(word, new))} takes {_it(new)} out of the commit and keeps the files"
    if files:
        command = "git restore --staged" if repo.head is not None else "git rm --cached"
        yield f"{command} {' '.join(map(word, files))} takes {_it(files)} out of the commit and keeps the files"


def _it(paths: Sequence[str]) -> str:
    return "it" if len(paths) == 1 else "them"


def _ways_in(repo: Repository, unsafe: Sequence[Unsafe], settings: Settings) -> Iterator[str]:
    refused = _refused_verdicts(settings)
    names = {f.name for one in unsafe for f in one.scanned.findings if f.verdict in refused}
    try:
        on_disk = repo.settings
    except BadMetadataError:
        on_disk = settings
    if names <= {*on_disk.allow} or (on_disk.refuse, settings.refuse) == ("never", "dangerous"):
        yield f"git add {SETTINGS_FILE}: what it allows counts once it is staged"
    elif "" not in names and len(names) <= _MAX_SAID:
        allowed = json.dumps([*settings.allow, *sorted(names)], ensure_ascii=False)
        yield f"or, once you have read them: allow = {allowed} below [security] in {SETTINGS_FILE}, and stage that file"
    yield "or by MODELVER_SKIP=1 git commit"


def check_models(repo: Repository, new: str, known: Sequence[str]) -> list[Problem]:
    """Ask of every commit of ``new --not known`` what a commit asks of its models, where their objects are here.

    Args:
        repo: The repository.
        new: The newest commit; its settings count.
        known: Arguments of ``git rev-list`` for what is known to be good.

    Returns:
        Problems, oldest commit first; below the newest one, and where an object could not be looked at, they are
        warnings.
    """
    tip = repo.git.commit_of(new)
    settings = repo.settings_in(CommitView(tip, repo.objects))
    if settings.refuse == "never":
        return []
    touched: dict[str, Change] = {}
    left: set[str] = set()
    problems: list[Problem] = []
    for commit in repo.git.text("rev-list", "--reverse", tip, "--not", *known).split():
        base = parents_of(repo, commit)[:1] or [repo.git.text("hash-object", "-t", "tree", "/dev/null")]
        changes = repo.git.tree_changes(base[0], commit)
        touched |= {change.path: change for change in changes}
        if commit != tip:
            problems += _check_commit(repo, commit, changes, settings, left, refuses=settings.strict)
    return [*problems, *_check_commit(repo, tip, touched.values(), settings, left, refuses=True)]


def _check_commit(
    repo: Repository, commit: str, changes: Iterable[Change], settings: Settings, left: set[str], *, refuses: bool
) -> Iterator[Problem]:
    view, changes = CommitView(commit, repo.objects), [change for change in changes if change.status != "D"]
    paths = {path for change in changes if (path := find_model_path(change.path)) is not None}
    for path in sorted(paths):
        try:
            metadata = repo.metadata(view, path)
        except BadMetadataError:
            continue  # named elsewhere
        if metadata is None:
            continue
        if metadata.md5 not in left and not repo.cache(path).has(metadata.md5):
            left.add(metadata.md5)
            line = f"{commit[:8]}: {path}: not scanned, object {metadata.md5[:8]} is not in the cache"
            yield Problem(commit, path, line, f"modelver pull {word(path)}", refuses=False)
        for one in _iter_unsafe(repo, path, metadata.md5, settings):
            yield _problem(commit, one, settings, refuses=refuses)
    found, too_large = find_unsafe_raw(repo, changes, settings)
    for one in found:
        yield _problem(commit, one, settings, refuses=refuses)
    for line in too_large:
        yield Problem(commit, line.partition(":")[0], f"{commit[:8]}: {line}", "", refuses=False)


def _problem(commit: str, one: Unsafe, settings: Settings, *, refuses: bool) -> Problem:
    hint = f"security.allow in {SETTINGS_FILE} lets it through; or take {word(one.path)} out of the commits"
    return Problem(commit, one.path, f"{commit[:8]}: {one.line(settings)}", hint, refuses)


def _refused_verdicts(settings: Settings) -> set[Verdict]:
    from dvc_modelver.security.verdicts import Verdict

    return {Verdict.DANGEROUS} | ({Verdict.UNKNOWN} if settings.refuse == "unknown" else set())


def _iter_unsafe(repo: Repository, path: str, md5: str, settings: Settings) -> Iterator[Unsafe]:
    if settings.refuse == "never":
        return
    refused = _refused_verdicts(settings)
    for scanned in _iter_scanned(repo, path, md5, settings):
        if scanned.verdict in refused:
            yield Unsafe(path, scanned)


def _iter_scanned(repo: Repository, path: str, md5: str, settings: Settings) -> Iterator[Scanned]:
    from dvc_modelver.security.scan import scan_file, scan_folder

    cache, allow = repo.cache(path), frozenset(settings.allow)
    if not cache.has(md5):
        return
    if is_folder_oid(md5):
        yield from scan_folder(cache.open_folder(md5), path, allow)
        return
    file: Path = cache.path_of(md5)
    try:
        with file.open("rb", buffering=0) as opened:
            yield scan_file(opened, path, allow)
    except OSError as err:
        raise EnvironmentFailed(f"{path}: object {md5[:8]} cannot be read ({err.strerror})") from err


def _open_blob(repo: Repository, oid: str) -> BinaryIO:
    """Give a blob as a file that can be sought in; the caller closes it."""
    import tempfile

    file = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115 - the caller closes it
    for piece in repo.git.iter_blob(oid):
        file.write(piece)
    file.seek(0)
    return cast(BinaryIO, file)
