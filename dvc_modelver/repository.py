"""Finds the models of a repository: in the work tree, in the index, at a revision."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dvc_modelver.errors import BadMetadataError, NotFoundError, UsageError, word
from dvc_modelver.formats import known_suffixes
from dvc_modelver.formats.folder import holds_weights, is_model_folder
from dvc_modelver.git.layout import Layout, find_layout
from dvc_modelver.git.objects import ObjectReader
from dvc_modelver.git.porcelain import Git
from dvc_modelver.metadata import (
    MAX_METADATA_BYTES,
    METADATA_SUFFIX,
    ModelMetadata,
    TensorTable,
    metadata_path,
    table_path,
)
from dvc_modelver.pipeline import read_artifacts
from dvc_modelver.settings import SETTINGS_FILE, Settings, parse_settings, read_settings
from dvc_modelver.store.cache import Cache
from dvc_modelver.store.dvcconfig import find_dvc_root, share_cache
from dvc_modelver.store.dvcconfig import read_settings as read_dvc_settings
from dvc_modelver.store.pointers import Pointer, read_pointers
from dvc_modelver.views import CommitView, IndexView, View, WorkTreeView

if TYPE_CHECKING:
    from dvc_modelver.registry.backfill import Backfill, Backfilled

_SPEECHLESS = {"model", "pytorch_model", "adapter_model", "weights", "checkpoint"}
"""Stems that say nothing of the model: its folder's name goes in front."""


def is_pointer_file(path: str) -> bool:
    """Whether a path is one of DVC's pointer files (``*.dvc`` or ``dvc.lock``)."""
    name = posixpath.basename(path)
    return name == "dvc.lock" or (name.endswith(".dvc") and name != ".dvc")


@dataclass(frozen=True)
class TrackedModel:
    """A DVC output that is a model, in one view.

    Attributes:
        name: Its name in tags and commands.
        metadata: Its metadata in the same view; None where there is none yet.
        problem: Why the metadata could not be read; empty when it could.
    """

    name: str
    path: str
    pointer: Pointer
    metadata: ModelMetadata | None
    problem: str = ""


class Repository:
    """One work tree of a Git repository with DVC in it.

    Attributes:
        layout: Where its parts lie.
        git: Runs git at its top.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.git = Git(layout.top, index=layout.git_dir / "index")
        self._caches: dict[Path, Cache] = {}

    @classmethod
    def open(cls, folder: Path | None = None) -> Repository:
        """Open the repository around a folder (the current one by default).

        Raises:
            UsageError: There is none, or it has no work tree.
        """
        return cls(find_layout(folder or Path.cwd()))

    @property
    def top(self) -> Path:
        """Top folder of the work tree."""
        return self.layout.top

    @cached_property
    def objects(self) -> ObjectReader:
        """Reads blobs and trees."""
        return ObjectReader(self.layout.git_dir)

    @cached_property
    def settings(self) -> Settings:
        """What ``.modelver.toml`` says."""
        return read_settings(self.top)

    def settings_in(self, view: View) -> Settings:
        """What ``.modelver.toml`` says in a view: what was not staged or committed decides nothing for others.

        Raises:
            BadMetadataError: It cannot be read.
        """
        content = view.read(SETTINGS_FILE)
        return Settings() if content is None else parse_settings(content.decode("utf-8", "replace"))

    @cached_property
    def head(self) -> str | None:
        """The commit of HEAD; None before the first one."""
        return self.objects.head()

    # Views

    @cached_property
    def work_tree(self) -> View:
        """The files on disk."""
        return WorkTreeView(self.top, self.git)

    def index(self) -> IndexView:
        """The files that are staged now."""
        return IndexView(self.git, self.objects)

    def at(self, rev: str) -> CommitView:
        """The files of a revision, and what was backfilled for it.

        Raises:
            NotFoundError: `rev` names no commit.
        """
        return CommitView(self.git.commit_of(rev), self.objects, self.backfill)

    @property
    def backfill(self) -> Backfill:
        """What notes say of commits that were made without metadata."""
        from dvc_modelver.registry.backfill import read_backfill

        return read_backfill(self.objects)

    # DVC

    def dvc_root(self, path: str = "") -> Path:
        """Give the DVC repository that a path belongs to.

        Raises:
            UsageError: There is no ``.dvc`` folder at or above it.
        """
        start = self.top / posixpath.dirname(path)
        while not start.is_dir():
            start = start.parent
        found = find_dvc_root(start, self.top)
        if found is None:
            raise UsageError(f"{start}: no DVC repository here", hint="modelver init")
        return found

    def cache(self, path: str = "") -> Cache:
        """Give the DVC cache that a path's objects lie in."""
        root = self.dvc_root(path)
        if root not in self._caches:
            self._caches[root] = Cache(read_dvc_settings(root))
        return self._caches[root]

    def share_cache(self) -> bool:
        """In a linked work tree, use the main work tree's cache from now on; True when that was arranged now."""
        top, main = self.top.resolve(), self.layout.common_dir.parent
        root = find_dvc_root(top, top)
        if self.layout.git_dir.resolve() == self.layout.common_dir or root is None or main == top:
            return False
        done = share_cache(root, main / root.relative_to(top))
        self._caches.clear()
        return done

    # Models

    def pointers(self, view: View) -> list[Pointer]:
        """Give every pointer of a view; a file that cannot be read is skipped here (`check` names it)."""
        found = []
        for file in view.paths(is_pointer_file):
            try:
                found += self.pointers_in(view, file)
            except BadMetadataError:
                continue
        return found

    def unreadable(self, view: View) -> dict[str, BadMetadataError]:
        """Give the pointer files of a view that cannot be read, and why."""
        found = {}
        for file in view.paths(is_pointer_file):
            try:
                self.pointers_in(view, file)
            except BadMetadataError as err:
                found[file] = err
        return found

    def pointers_in(self, view: View, file: str) -> list[Pointer]:
        """Give the pointers of one ``.dvc`` or ``dvc.lock`` file.

        Raises:
            BadMetadataError: The file cannot be read.
        """
        text = view.read(file)
        if text is None:
            return []
        yaml_path = posixpath.join(posixpath.dirname(file), "dvc.yaml")
        dvc_yaml = view.read(yaml_path) if posixpath.basename(file) == "dvc.lock" else None
        return read_pointers(text, file, dvc_yaml=dvc_yaml)

    def is_model(self, view: View, pointer: Pointer) -> bool:
        """Whether a DVC output is a model: it has metadata, or a format that a reader knows; what Git keeps is none.

        A folder without metadata is one where its files say so, or where ``.modelver.toml`` does.
        """
        if pointer.md5 is None or not pointer.cache:
            return False
        if pointer.is_folder:
            return view.read(metadata_path(pointer.path)) is not None or self.is_model_folder(pointer.path)
        return view.read(metadata_path(pointer.path)) is not None or self.settings.is_model(
            pointer.path, known_suffixes()
        )

    def is_model_folder(self, path: str) -> bool:
        """Whether a folder of the work tree holds the files of one model."""
        if self.settings.is_included(path):
            return True
        try:
            names = os.listdir(self.top / path)
        except OSError:
            return False
        return is_model_folder(names) and holds_weights(names)

    def models(self, view: View) -> list[TrackedModel]:
        """Give the models of a view, sorted by path."""
        found = [self._tracked(view, p) for p in self.pointers(view) if self.is_model(view, p)]
        return sorted(found, key=lambda m: m.path)

    def _tracked(self, view: View, pointer: Pointer) -> TrackedModel:
        try:
            metadata = self.metadata(view, pointer.path)
        except BadMetadataError as err:
            return TrackedModel(self.name_of(view, pointer.path, None), pointer.path, pointer, None, str(err))
        return TrackedModel(self.name_of(view, pointer.path, metadata), pointer.path, pointer, metadata)

    def metadata(self, view: View, path: str) -> ModelMetadata | None:
        """Give the metadata of the model at `path` in a view; None where there is none.

        Raises:
            BadMetadataError: It cannot be read.
        """
        text = view.read(metadata_path(path))
        return None if text is None else ModelMetadata.parse(text, metadata_path(path))

    def backfilled(self, path: str, md5: str | None) -> Backfilled | None:
        """Give what was backfilled for an object of the model at `path`; None where nothing was."""
        return self.backfill.by_object.get(path, {}).get(md5 or "")

    def current(self, model: TrackedModel) -> ModelMetadata | None:
        """Give the metadata of the version that a model of the work tree is: its file's, else what was backfilled."""
        if model.metadata is not None or model.problem:
            return model.metadata
        found = self.backfilled(model.path, model.pointer.md5)
        return None if found is None else found.metadata

    def table(self, view: View, path: str) -> TensorTable | None:
        """Give the tensor table of the model at `path` in a view; None where there is none.

        Raises:
            BadMetadataError: It cannot be read.
        """
        text = view.read(table_path(path))
        return None if text is None else TensorTable.parse(text, table_path(path))

    def find_model(self, view: View, name_or_path: str) -> TrackedModel:
        """Give the model of a name, or of a path relative to the current folder.

        Raises:
            NotFoundError: There is none; the hint names the nearest.
            UsageError: Two models have that name.
        """
        models = self.models(view)
        named = [m for m in models if m.name == name_or_path]
        if len(named) > 1:
            paths = ", ".join(m.path for m in named)
            raise UsageError(
                f"{name_or_path}: names {len(named)} models ({paths}), expected one",
                hint=f"modelver show {word(named[0].path)}",
            )
        if not named:
            path = self.repo_path(name_or_path)
            path = path.removesuffix(METADATA_SUFFIX).removesuffix(".dvc") if path else name_or_path
            named = [m for m in models if m.path in (path, name_or_path)]
        if not named:
            where = f"commit {view.label}" if isinstance(view, CommitView) else f"the {view.label}"
            raise NotFoundError(f"{name_or_path}: no such model in {where}", hint=_nearest(name_or_path, models))
        return named[0]

    def name_of(self, view: View, path: str, metadata: ModelMetadata | None) -> str:
        """Give a model's name: its ``artifacts:`` entry of dvc.yaml, else the recorded one, else a new one."""
        declared = self.declared_name(view, path)
        if declared:
            return declared
        return metadata.model.name if metadata is not None else self.new_name(view, path)

    def declared_name(self, view: View, path: str) -> str | None:
        """Give the name that the ``artifacts:`` section of a dvc.yaml above `path` gives to it."""
        folder = posixpath.dirname(path)
        while True:
            try:
                artifacts = read_artifacts(view.read, folder)
            except BadMetadataError:
                artifacts = {}
            for name, entry in artifacts.items():
                target = str(entry.get("path", ""))
                if posixpath.normpath(posixpath.join(folder, target)) == path:
                    return f"{folder}={name}" if folder else name
            if not folder:
                return None
            folder = posixpath.dirname(folder)

    def new_name(self, view: View, path: str) -> str:
        """Choose a name: the stem, with its folder in front when the stem is taken or says nothing."""
        stem, folder = (
            speakable(posixpath.basename(path).split(".")[0]),
            posixpath.basename(posixpath.dirname(path)),
        )
        taken = set()
        for other in view.paths(lambda p: p.endswith(METADATA_SUFFIX) and p != metadata_path(path)):
            try:
                text = view.read(other)
                taken.add(ModelMetadata.parse(text, other).model.name if text else "")
            except BadMetadataError:
                continue
        if stem.lower() not in _SPEECHLESS and stem not in taken:
            return stem
        base = speakable(f"{folder}-{stem}") if folder else stem
        name, n = base, 2
        while name in taken:
            name, n = f"{base}-{n}", n + 1
        return name

    # Paths

    def repo_path(self, given: str | Path) -> str | None:
        """Give a path as Git names it, relative to the top; None for one outside the work tree."""
        absolute = Path(os.path.abspath(given))
        for top in (self.top, Path(os.path.realpath(self.top))):
            for candidate in (absolute, Path(os.path.realpath(absolute.parent)) / absolute.name):
                if candidate.is_relative_to(top):
                    return candidate.relative_to(top).as_posix()
        return None

    def inside(self, given: str | Path) -> str:
        """Give a path as Git names it.

        Raises:
            UsageError: It lies outside the work tree.
        """
        found = self.repo_path(given)
        if found is None:
            raise UsageError(f"{given}: outside the work tree {self.top}")
        return found

    def trackable(self, given: str | Path) -> str:
        """Give the path of a file that is to be tracked.

        Raises:
            UsageError: It lies outside the work tree, or no DVC pointer can hold its name.
        """
        found = self.inside(given)
        check_utf8(found)
        return found

    def read_small(self, path: str) -> bytes | None:
        """Give a small file of the work tree; None where there is none."""
        target = self.top / path
        if not target.is_file() or target.stat().st_size > MAX_METADATA_BYTES:
            return None
        return target.read_bytes()


def is_utf8(path: str) -> bool:
    """Whether the bytes of a path are UTF-8; Python keeps others as surrogates."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace") == path


def check_utf8(path: str) -> None:
    """Refuse a path that DVC cannot write down.

    Raises:
        UsageError: It is not UTF-8.
    """
    if not is_utf8(path):
        raise UsageError(f"{path}: its name is not UTF-8, and a DVC pointer cannot hold it", hint="rename the file")


def speakable(text: str) -> str:
    """Replace what GTO does not allow in a name by ``-``; letters lose their accents."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return re.sub(r"[^a-zA-Z0-9_-]+", "-", plain).strip("-_") or "model"


def _nearest(wanted: str, models: Iterable[TrackedModel]) -> str:
    import difflib

    names = [m.name for m in models]
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.4)
    if close:
        return f"did you mean {close[0]}? modelver list names all"
    return "modelver list names all models; modelver add PATH makes one" if names else "modelver add PATH makes one"
