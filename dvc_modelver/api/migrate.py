"""migrate: weights that Git or Git LFS has become DVC's, in what is staged; history stays as it is."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dvc_modelver.errors import EnvironmentFailed, NotFoundError, ObjectCorrupt, UsageError, word
from dvc_modelver.formats import known_suffixes
from dvc_modelver.git.porcelain import ZERO_OID
from dvc_modelver.metadata import find_model_path
from dvc_modelver.repository import Repository, is_pointer_file
from dvc_modelver.store.gate import MAX_TEXT_BYTES, find_gate, is_plain_text
from dvc_modelver.worktree.state import locked, stamp_of
from dvc_modelver.worktree.sync import Keeper
from dvc_modelver.worktree.track import Tracker, new_pointer

Say = Callable[[str], None]
_LFS = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\n(?:.*\n)*?"
    rb"oid sha256:(?P<oid>[0-9a-f]{64})\nsize (?P<size>[0-9]+)\n"
)
MAX_LFS_POINTER_BYTES = 1024


@dataclass(frozen=True)
class Migrated:
    """One model that Git or Git LFS had.

    Attributes:
        path: A file, or a folder that is one model.
        source: ``git`` or ``lfs``.
        size: Its bytes.
        md5: Its object; empty in a dry run.
    """

    path: str
    source: str
    size: int
    md5: str = ""


@dataclass
class Migration:
    """What `migrate` did, or would do.

    Attributes:
        unused: Lines of ``.gitattributes`` that give files to Git LFS and match none that is there.
    """

    models: list[Migrated] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _File:
    """A file of the index that holds weights.

    Attributes:
        lfs: The sha256 that its LFS pointer names; empty for a file that Git has itself.
    """

    path: str
    size: int
    lfs: str


def migrate(
    *paths: str | Path,
    everything: bool = False,
    dry_run: bool = False,
    say: Say = lambda _line: None,
    folder: Path | None = None,
) -> Migration:
    """Bring weights from Git or Git LFS over to DVC: pointer, ignore line and metadata staged, the files untracked.

    Args:
        paths: Files, or folders, that Git has.
        everything: All that are models by their suffix or by ``.modelver.toml``.
        dry_run: Only say what would be done.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.

    Raises:
        NotFoundError: Git has no such file.
        UsageError: A file differs from what is committed, or a pipeline keeps it in Git.
        EnvironmentFailed: Only the LFS pointer is here, and ``git lfs`` cannot bring the file.
    """
    if not paths and not everything:
        raise UsageError("modelver migrate: no path given", hint="modelver migrate --all --dry-run lists what there is")
    repo = Repository.open(folder)
    repo.dvc_root()
    mover = _Mover(repo, say)
    groups = mover.find([repo.inside(p) for p in paths], everything=everything)
    if dry_run:
        return Migration([_summary(path, files) for path, files in groups.items()])
    mover.check(groups)
    done = Migration()
    with locked(repo.layout.state_dir):
        mover.keeper = Keeper(repo, say)
        for path, files in groups.items():
            done.models.append(mover.move(path, files))
        mover.keeper.save()
    if any(one.source == "lfs" for one in done.models):
        done.unused = list(_unused_patterns(repo))
    return done


def _summary(path: str, files: list[_File], md5: str = "") -> Migrated:
    return Migrated(path, "lfs" if any(f.lfs for f in files) else "git", sum(f.size for f in files), md5)


class _Mover:
    def __init__(self, repo: Repository, say: Say) -> None:
        self.repo, self.say = repo, say
        self.keeper = Keeper(repo, say)
        self.pointers = {p.path: p for p in repo.pointers(repo.work_tree)}

    # Finding

    def find(self, paths: list[str], *, everything: bool) -> dict[str, list[_File]]:
        """Give the files to move by model: a file is one, and a folder whose files say so."""
        found: dict[str, list[_File]] = {}
        for path in paths:
            files = list(self._files(self.repo.git.index_entries(path)))
            if not files:
                self._refuse_path(path)
            if files[0].path == path or self.repo.is_model_folder(path):
                found[path] = files
            else:
                models = [f for f in files if self._is_model(f.path)]
                if not models:
                    raise NotFoundError(f"{path}: no model in it that Git has", hint=f"git ls-files {word(path)}")
                found.update({f.path: [f] for f in models})
        if everything:
            for file in self._files({p: e for p, e in self.repo.git.index_entries().items() if self._is_model(p)}):
                top = posixpath.dirname(file.path)
                if top and self.repo.is_model_folder(top):
                    found.setdefault(top, list(self._files(self.repo.git.index_entries(top))))
                else:
                    found.setdefault(file.path, [file])
        return found

    def _is_model(self, path: str) -> bool:
        return self.repo.settings.is_model(path, known_suffixes())

    def _refuse_path(self, path: str) -> None:
        if self.repo.git.index_entries(path):
            raise UsageError(f"{path}: a small text, or a pointer already, expected weights", hint="modelver status")
        raise NotFoundError(f"{path}: not in Git, expected a file that it has", hint=f"modelver add {word(path)}")

    def _files(self, entries: dict[str, tuple[str, str]]) -> Iterator[_File]:
        """Give what is weights among files of the index, or lies in a folder with weights."""
        in_folder = len(entries) > 1
        for path, (mode, oid) in entries.items():
            if not mode.startswith("100") or is_pointer_file(path) or find_model_path(path) is not None:
                continue
            size = self.repo.objects.blob_size(oid)
            if size > MAX_TEXT_BYTES or oid == ZERO_OID:
                yield _File(path, size, "")
                continue
            text = self.repo.objects.read_blob(oid)
            pointer = _LFS.match(text) if size <= MAX_LFS_POINTER_BYTES else None
            if pointer is not None:
                yield _File(path, int(pointer["size"]), pointer["oid"].decode())
            elif find_gate(text) is None and (in_folder or not is_plain_text(text, size)):
                yield _File(path, size, "")

    # Refusing

    def check(self, groups: dict[str, list[_File]]) -> None:
        """Refuse what is not exactly what is committed: the commit is to move weights, not to change them."""
        for path in groups:
            pointer = self.pointers.get(path)
            if pointer is not None and not pointer.cache:
                raise UsageError(
                    f"{path}: an output with 'cache: false' in {pointer.file}, which DVC leaves to Git",
                    hint="take cache: false out of dvc.yaml, git rm --cached the file, dvc repro",
                )
            inside = next((p for p in self.pointers if p.startswith(f"{path}/")), None)
            if inside is not None:
                raise UsageError(
                    f"{path}: {inside} in it is tracked by DVC already, expected a folder that Git has",
                    hint=f"modelver migrate {word(path)}/FILE",
                )
        out = self.repo.git.run("status", "--porcelain", "-z", "--untracked-files=all", "--", *groups)
        if out:
            first = out.split(b"\0")[0].decode("utf-8", "surrogateescape")
            raise UsageError(
                f"{first[3:]}: not as it is committed (git status: {first[:2].strip()}), expected no changes",
                hint=f"git commit, or git restore --staged --worktree {word(first[3:])}; then again",
            )

    # Moving

    def move(self, path: str, files: list[_File]) -> Migrated:
        """Store a model, and stage its pointer in place of its files."""
        tracker = Tracker(self.keeper)
        for file in files:
            if file.lfs:
                self._bring(file)
        hashes = tracker.store(path)
        stamp = stamp_of(self.repo.top / path, at_ns=None)
        pointer = self.pointers.get(path)
        tracker.track(path, hashes, pointer)
        self.repo.git.stage_blobs(dict.fromkeys(self.repo.git.index_entries(path)))
        tracker.settle(path, pointer or new_pointer(path, hashes), hashes.md5, stamp)
        return _summary(path, files, hashes.md5)

    def _bring(self, file: _File) -> None:
        """Have a file of LFS in the work tree, and prove by its sha256 that it is the one."""
        disk, cache = self.repo.top / file.path, self.repo.cache(file.path)
        is_here = disk.is_file() and _LFS.match(_start(disk)) is None
        if is_here:
            hashes = cache.store_path(disk, link=False)
        else:
            stored = self._find_in_lfs(file)
            with stored.open("rb") as stream:
                hashes = cache.store_stream(iter(lambda: stream.read(1 << 20), b""))
        if hashes.sha256 != file.lfs:
            raise ObjectCorrupt(
                f"{file.path}: its bytes have the sha256 {hashes.sha256[:12]}, its LFS pointer names {file.lfs[:12]}",
                hint="git lfs fsck",
            )
        if not is_here:
            cache.materialise(hashes.md5, disk)

    def _find_in_lfs(self, file: _File) -> Path:
        oid = file.lfs
        stored = self.repo.layout.common_dir / "lfs" / "objects" / oid[:2] / oid[2:4] / oid
        if not stored.is_file():
            self.say(f"git lfs fetch: {file.path}")
            code, _ = self.repo.git.run_for_code(
                "lfs", "fetch", f"--include={file.path}", "--exclude=", codes=range(256)
            )
            if code != 0 or not stored.is_file():
                raise EnvironmentFailed(
                    f"{file.path}: only its LFS pointer is here, and git lfs fetch did not bring object {oid[:12]}",
                    hint=f"git lfs pull --include {word(file.path)}, with git-lfs installed; then again",
                )
        return stored


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_LFS_POINTER_BYTES)


def _unused_patterns(repo: Repository) -> Iterator[str]:
    """Give the lines that give files to Git LFS and match no file of the index."""
    for file in repo.git.paths("ls-files", "-z"):
        if posixpath.basename(file) != ".gitattributes":
            continue
        folder = posixpath.dirname(file)
        for line in (repo.read_small(file) or b"").decode("utf-8", "replace").splitlines():
            pattern, _, attributes = line.strip().partition(" ")
            if "filter=lfs" not in attributes.split() or pattern.startswith(("#", '"')):
                continue
            glob = pattern.lstrip("/") if "/" in pattern else f"**/{pattern}"
            matches = repo.git.run("ls-files", "-z", "--", f":(glob){posixpath.join(folder, glob)}", literal=False)
            if not matches:
                yield f"{file}: {line.strip()}"
