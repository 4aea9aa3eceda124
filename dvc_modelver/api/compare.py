"""diff: two versions, two states of the repository, or two files."""

from __future__ import annotations

import filecmp
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from dvc_modelver.api.select import Selected, find_known, is_file_argument, is_file_name, select, split_reference
from dvc_modelver.diff.changes import ModelDiff, Side
from dvc_modelver.diff.compare import compare
from dvc_modelver.errors import BadMetadataError, ModelverError, NotFoundError, UsageError, word
from dvc_modelver.fingerprint import fingerprint
from dvc_modelver.fingerprint.row import TensorRow
from dvc_modelver.formats import LocalFolder, Reader, open_folder, open_reader
from dvc_modelver.metadata import TensorTable
from dvc_modelver.pipeline import gather_training
from dvc_modelver.progress import ProgressLine
from dvc_modelver.repository import Repository, TrackedModel
from dvc_modelver.store.cache import ObjectFolder
from dvc_modelver.store.folders import folder_bytes, is_folder_oid, iter_files, parse_listing
from dvc_modelver.store.objects import MAX_LISTING_BYTES
from dvc_modelver.store.remotes import Remote
from dvc_modelver.tensors import TensorSpec
from dvc_modelver.views import CommitView, View
from dvc_modelver.worktree.describe import OPAQUE, Contents, read_contents
from dvc_modelver.worktree.law import Action
from dvc_modelver.worktree.look import look
from dvc_modelver.worktree.state import read_state, stamp_of


def diff(
    old: str | None = None,
    new: str | None = None,
    *paths: str | Path,
    cached: bool = False,
    exact: bool = False,
    folder: Path | None = None,
) -> list[ModelDiff]:
    """Compare models.

    Args:
        old: A revision, ``A..B`` or ``A...B`` as in ``git diff``, ``NAME@V``, ``NAME#STAGE``, or a file; the index
            when not given.
        new: Likewise; the work tree when not given.
        paths: Models to compare; all that differ when not given.
        cached: Compare the index with `old` (HEAD when not given) rather than the work tree.
        exact: Measure the values rather than estimate from fingerprints; weights are read from the work tree, the
            cache, or the remote by range.
        folder: Anywhere in the work tree; the current folder by default.

    Returns:
        One comparison for each model that differs, and for each asked for by name, sorted by path.

    Raises:
        NotFoundError: No such revision, model or version.
        BadModelError: A file given cannot be read.
        ObjectMissing: Weights to be measured are nowhere.
    """
    if old is not None and new is not None and is_file_argument(old) and is_file_argument(new):
        return [compare_files(Path(old), Path(new), exact=exact)]
    try:
        repo = Repository.open(folder)
    except UsageError:
        for text, other in ((old, new), (new, old)):
            if text is not None and other is not None and is_file_argument(other) and not Path(text).exists():
                raise NotFoundError(f"{text}: no such file", hint="modelver diff OLD NEW takes two files") from None
        raise
    if old is not None and new is None and not _is_rev(repo, old) and ".." in old:
        from_base = "..." in old
        old, _, new = old.partition("..." if from_base else "..")
        old, new = old or "HEAD", new or "HEAD"
        if from_base:
            old = repo.git.text("merge-base", repo.git.commit_of(old), repo.git.commit_of(new))
    wanted = [repo.inside(p) if (repo.top / repo.inside(p)).exists() else str(p) for p in paths]
    for argument in (old, new):
        if argument is not None and not _is_loose_file(repo, argument) and _names_model(repo, argument):
            return [_compared(repo, *_version_sides(repo, old, new), exact=exact)]
    for argument in (old, new):
        if argument is not None and is_file_name(argument) and not _is_rev(repo, argument):
            raise NotFoundError(f"{argument}: no such file, model or revision", hint="modelver list")
    old_view = repo.at(old) if old is not None else (repo.at("HEAD") if cached and repo.head else repo.index())
    new_view: View = repo.at(new) if new is not None else (repo.index() if cached else repo.work_tree)
    return [_compared(repo, *sides, exact=exact) for sides in _view_sides(repo, old_view, new_view, wanted)]


def _compared(repo: Repository, old: Side | None, new: Side | None, *, exact: bool) -> ModelDiff:
    if not exact or old is None or new is None or old.md5 == new.md5 or not (old.table and new.table):
        return compare(old, new)
    old, new = with_weights(repo, old), with_weights(repo, new)
    with ProgressLine(f"comparing {new.path}") as progress:
        return compare(old, new, exact=True, progress=progress)


def with_weights(repo: Repository, side: Side) -> Side:
    """Let a side open its weights: from the cache, the work tree or the remote, whichever has them.

    Raises:
        ObjectMissing: They are nowhere.
    """
    if side.open is not None:
        return side
    cache, file = repo.cache(side.path), repo.top / side.path
    row = read_state(repo.layout.state_dir).rows.get(side.path)
    if cache.has(side.md5):
        cache.check(side.md5)
        if is_folder_oid(side.md5):
            return replace(side, open=partial(open_folder, cache.open_folder(side.md5), side.path))
        return replace(side, open=partial(_open, cache.path_of(side.md5), side.path))
    if row is not None and row.md5 == side.md5 and row.model_stamp == stamp_of(file):
        return replace(side, open=partial(_open, file, side.path))
    if file.exists() and cache.hash_path(file).md5 == side.md5:
        return replace(side, open=partial(_open, file, side.path))
    pointer = next((p for p in repo.pointers(repo.work_tree) if p.path == side.path), None)
    remote = Remote.open(repo.dvc_root(side.path), pointer.remote if pointer is not None else None)
    if is_folder_oid(side.md5):
        with remote.open_object(side.md5) as listing:
            entries = dict(parse_listing(listing.read(MAX_LISTING_BYTES), side.md5, "modelver fsck --remote"))
        files = ObjectFolder(entries, remote.open_object)
        return replace(side, open=partial(open_folder, files, side.path), is_remote=True)
    stream = remote.open_object(side.md5)
    return replace(side, open=partial(_open, stream, side.path), is_remote=True)


def _open(source: Path | BinaryIO, name: str) -> Reader:
    reader = open_reader(source, name)
    if reader is None:
        raise UsageError(f"{name}: no reader knows its format")
    return reader


def compare_files(old: Path, new: Path, *, exact: bool = False) -> ModelDiff:
    """Compare two model files that need not be tracked.

    Raises:
        BadModelError: One of them breaks its format's rules, or no reader knows it.
    """
    if not exact:
        sides = file_side(str(old)), file_side(str(new))
        for one, other in (sides, sides[::-1]):
            if one.table is None and other.table is not None:
                raise UsageError(f"{one.path}: no reader knows its format", hint=f"modelver show {word(one.path)}")
        return compare(*sides)
    with ProgressLine(f"comparing {new}", folder_bytes(old) + folder_bytes(new)) as progress:
        found = compare(*_header_sides(old, new), exact=True, progress=progress)
    if found.tensors_changed or not _have_same_bytes(old, new):
        return found
    return replace(found, kind="identical", reason="same bytes", bytes_equal=True)


def _pattern(name: str) -> str:
    """Give a name with its numbers left open: where layers come or go, the others may have been renumbered."""
    return re.sub(r"\d+", "#", name)


def _have_same_bytes(old: Path, new: Path) -> bool:
    if not old.is_dir() or not new.is_dir():
        return old.is_dir() == new.is_dir() and filecmp.cmp(old, new, shallow=False)
    names = [name for name, _ in iter_files(old)]
    return names == [name for name, _ in iter_files(new)] and not any(
        filecmp.cmpfiles(old, new, names, shallow=False)[1:]
    )


def _header_sides(old: Path, new: Path) -> tuple[Side, Side]:
    """Give two files by their headers; what only one of them names is fingerprinted, to be found renamed.

    So are scalars, which say how the others are applied.
    """
    with _open(old, str(old)) as first, _open(new, str(new)) as second:
        names = [{spec.name for spec in reader.specs} for reader in (first, second)]
        apart = names[0] - names[1] and names[1] - names[0]
        grown = {_pattern(name) for name in names[0] ^ names[1] if _pattern(name) != name}
        sides = []
        for path, reader, others in ((old, first, names[1]), (new, second, names[0])):
            lonely = [
                spec
                for spec in reader.specs
                if spec.numel == 1 or (apart and spec.name not in others) or _pattern(spec.name) in grown
            ]
            known = {row.name: row for row in fingerprint(_Some(reader, tuple(lonely)), k=64)}
            rows = tuple(
                known.get(s.name) or TensorRow(name=s.name, dtype=s.dtype, shape=s.shape, role=s.role, digest="")
                for s in sorted(reader.specs, key=lambda s: s.name)
            )
            table = TensorTable("", 64, rows, structure=dict(reader.structure))
            sides.append(Side(str(path), str(path), table, None, "", reader.format, partial(_open, path, str(path))))
    return sides[0], sides[1]


@dataclass(frozen=True)
class _Some:
    """Some tensors of a reader."""

    reader: Reader
    specs: tuple[TensorSpec, ...]

    def iter_buffers(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        return self.reader.iter_buffers(spec, n_bytes)

    def iter_values(self, spec: TensorSpec, n_bytes: int) -> Iterator[memoryview]:
        return self.reader.iter_values(spec, n_bytes)


def _is_rev(repo: Repository, text: str) -> bool:
    return repo.git.find_commit(text) is not None


def _is_loose_file(repo: Repository, text: str) -> bool:
    """Whether an argument is a file, or a folder of weights, that no pointer names: it is compared as it lies there."""
    if not is_file_argument(text) or _is_rev(repo, text):
        return False
    return repo.repo_path(text) not in {p.path for p in repo.pointers(repo.work_tree)}


def _names_model(repo: Repository, text: str) -> bool:
    """Whether an argument names a model's version; a tag like ``digits@v1.0.0`` does, though Git resolves it."""
    name, version, stage = split_reference(text)
    if version or stage:
        return not _is_rev(repo, text) or any(name in (m.name, m.path) for m in repo.models(repo.work_tree))
    if _is_rev(repo, text):
        return False
    try:
        select(repo, text)
    except ModelverError:
        if Path(text).exists():
            raise UsageError(f"{text}: not a tracked model; expected a revision, a version or two files") from None
        return False
    return True


def _version_sides(repo: Repository, old: str | None, new: str | None) -> tuple[Side, Side]:
    if old is not None and _is_loose_file(repo, old):
        assert new is not None
        return file_side(old), selected_side(repo, _select_side(repo, new))
    first = _select_side(repo, old) if old is not None else None
    if first is not None and new is not None and _is_loose_file(repo, new):
        return selected_side(repo, first), file_side(new)
    second = _select_side(repo, new, like=first) if new is not None else None
    if first is None and second is not None:
        first = Selected(second.model, second.metadata, "", "")
    assert first is not None
    old_side = selected_side(repo, first)
    if second is not None:
        return old_side, selected_side(repo, second)
    model = find_known(repo, first.model.name)
    return old_side, _side_of(repo, repo.work_tree, model)


def _select_side(repo: Repository, text: str, like: Selected | None = None) -> Selected:
    """Give the version an argument names; a plain revision next to a version means that model there."""
    if like is not None and _is_rev(repo, text) and split_reference(text)[1:] == ("", ""):
        commit = repo.git.commit_of(text)
        model = repo.find_model(repo.at(commit), like.model.name)
        if model.metadata is None:
            raise NotFoundError(f"{text}: has no metadata of {model.path}")
        return Selected(model, model.metadata, commit, text)
    return select(repo, text)


def selected_side(repo: Repository, chosen: Selected) -> Side:
    """Give a version as one side of a comparison."""
    view: View = CommitView(chosen.commit, repo.objects, repo.backfill) if chosen.commit else repo.work_tree
    model = replace(chosen.model, metadata=chosen.metadata)
    return Side(
        model.path, chosen.label or view.label, _table(repo, view, model), chosen.metadata, chosen.metadata.md5,
        chosen.metadata.model.format,
    )  # fmt: skip


def _view_sides(
    repo: Repository, old: View, new: View, wanted: Sequence[str]
) -> Iterator[tuple[Side | None, Side | None]]:
    before = {m.path: m for m in repo.models(old)}
    after = {m.path: m for m in repo.models(new)}
    moved = _retrained(repo) if new is repo.work_tree else {}
    renamed = {} if wanted else _renamed(before, after)  # limited to a path there is no other one, as in git diff
    for path in _chosen(before, after, wanted):
        was, now = before.get(path), after.get(path)
        if now is None and was is not None and was.path in renamed.values():
            continue  # told under its new name
        if not wanted and path not in moved and was and now and _same(was, now):
            continue
        was = before[renamed[path]] if path in renamed else was
        old_side = _side_of(repo, old, was) if was else None
        new_side = moved[path] if path in moved else (_side_of(repo, new, now) if now else None)
        yield old_side, new_side


def _renamed(before: dict[str, TrackedModel], after: dict[str, TrackedModel]) -> dict[str, str]:
    """Give new path -> old path of models that lie elsewhere: with the same bytes, else with the same name."""
    gone = [m for path, m in before.items() if path not in after]
    found: dict[str, str] = {}
    keys: list[Callable[[TrackedModel], str | None]] = [lambda m: m.pointer.md5, lambda m: m.name]
    for key in keys:
        for path, model in after.items():
            left = [g for g in gone if g.path not in found.values() and key(g) == key(model)]
            if left and path not in before and path not in found:
                found[path] = left[0].path
    return found


def _chosen(before: dict[str, TrackedModel], after: dict[str, TrackedModel], wanted: Iterable[str]) -> list[str]:
    everything = sorted({**before, **after})
    if not wanted:
        return everything
    names = {m.name: m.path for m in (*before.values(), *after.values())}
    chosen = []
    for given in wanted:
        want = names.get(given, given)
        fits = [p for p in everything if p == want or p.startswith(want.rstrip("/") + "/") or want in ("", ".")]
        if not fits:
            raise NotFoundError(f"{want}: no such model in either", hint="modelver list")
        chosen += fits
    return list(dict.fromkeys(chosen))


def _same(was: TrackedModel, now: TrackedModel) -> bool:
    return was.pointer.md5 == now.pointer.md5 and was.metadata == now.metadata


def _side_of(repo: Repository, view: View, model: TrackedModel) -> Side:
    md5 = model.metadata.md5 if model.metadata is not None else model.pointer.md5 or ""
    fmt = model.metadata.model.format if model.metadata is not None else OPAQUE
    return Side(model.path, view.label, _table(repo, view, model), model.metadata, md5, fmt)


def _table(repo: Repository, view: View, model: TrackedModel) -> TensorTable | None:
    try:
        table = repo.table(view, model.path)
    except BadMetadataError:
        return None
    wanted = model.metadata.md5 if model.metadata is not None else model.pointer.md5
    return table if table is not None and table.md5 == wanted else None


def _retrained(repo: Repository) -> dict[str, Side]:
    """Give the sides of models that were retrained and whose metadata does not say so yet."""
    found = {}
    for seen in look(repo, read_state(repo.layout.state_dir)):
        if seen.action is not Action.DESCRIBE or seen.md5 is None:
            continue
        contents = seen.contents or read_contents(repo.top / seen.path, seen.path)
        if contents.hashes.md5 != (seen.model.metadata.md5 if seen.model.metadata else None):
            found[seen.path] = _contents_side(repo, seen.model, contents)
    return found


def _contents_side(repo: Repository, model: TrackedModel, contents: Contents) -> Side:
    metadata = model.metadata
    if metadata is not None:
        pointer = model.pointer if model.pointer.md5 == contents.hashes.md5 else None
        facts = gather_training(repo.work_tree.read, pointer, repo.settings)
        version = replace(metadata.version, number=metadata.version.number + 1)
        metadata = replace(metadata, training=facts, version=version)
    return Side(model.path, "work tree", contents.table, metadata, contents.hashes.md5, contents.format)


def file_side(given: str) -> Side:
    """Give a model file as one side of a comparison.

    Raises:
        UsageError: It breaks its format's rules.
    """
    contents = read_contents(Path(given), given, beside=LocalFolder(Path(given).parent))
    if contents.warning:
        raise UsageError(contents.warning)
    opened = partial(_open, Path(given), given)
    return Side(given, given, contents.table, None, contents.hashes.md5, contents.format, opened)
