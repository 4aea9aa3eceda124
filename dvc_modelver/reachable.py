"""Which objects a repository still needs: what its history, indexes, work trees and own notes name.

Read generously: every md5 that stands in a pointer counts, whatever it is there, and whether or not the file can be
parsed; of metadata its own object, and every md5 where it cannot be read. What is missed here, ``gc`` may delete.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dvc_modelver.errors import UsageError
from dvc_modelver.git.porcelain import Git
from dvc_modelver.metadata import METADATA_SUFFIX
from dvc_modelver.repository import Repository, is_pointer_file
from dvc_modelver.settings import GATE_SUFFIXES
from dvc_modelver.store.gate import MAX_GATE_BYTES, find_gate
from dvc_modelver.views import CommitView

MAX_NAMING_BYTES = 1 << 20
"""A larger blob is not looked into for objects that nothing needs."""
_MD5 = re.compile(rb"(?<![0-9a-f])[0-9a-f]{32}(?:\.dir)?(?![0-9a-f])")
_POINTER = re.compile(rb"^outs:|^stages:|\"modelver\.metadata/|^modelver\.gate/", re.M)
_HEADS = (
    "MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "REBASE_HEAD", "ORIG_HEAD", "FETCH_HEAD", "MERGE_AUTOSTASH",
    "rebase-merge/autostash", "rebase-apply/autostash", "rebase-merge/orig-head", "rebase-apply/orig-head",
)  # fmt: skip
"""Files of a Git folder that begin their lines with a commit which no ref or reflog may have."""


@dataclass(frozen=True)
class Named:
    """What a metadata file says of an object.

    Attributes:
        number: The integer version.
        md5: The object itself; of files in a folder, its listing.
    """

    name: str
    path: str
    number: int
    md5: str = ""


@dataclass(frozen=True)
class Needs:
    """The objects that one repository needs.

    Attributes:
        by_work_trees: Those that an index, a HEAD, a file or our notes of some work tree names.
        by_history: Those that any commit names which a ref, a stash or a reflog reaches.
        blobs: Ids of the blobs that name them.
    """

    by_work_trees: frozenset[str]
    by_history: frozenset[str]
    blobs: frozenset[str]


def is_naming_file(path: str) -> bool:
    """Whether a path is that of a pointer or metadata file."""
    return is_pointer_file(path) or path.endswith(METADATA_SUFFIX)


def work_trees(repo: Repository) -> list[Repository]:
    """Give the repository as each of its work trees sees it.

    Raises:
        UsageError: One of them is not there: what it needs cannot be known.
    """
    found = []
    for top in repo.git.worktrees():
        if not top.is_dir():
            raise UsageError(
                f"{top}: a work tree of this repository that is not there, so what it needs is not known",
                hint="git worktree prune; or mount it",
            )
        try:
            found.append(Repository.open(top))
        except UsageError:
            continue  # the bare repository that the work trees belong to
    return found


def read_needs(repo: Repository) -> Needs:
    """Give what a repository needs, all its work trees included.

    Raises:
        UsageError: A work tree is not there.
    """
    trees, blobs = work_trees(repo), set()
    by_trees: set[str] = set()
    for tree in trees:
        for oid, md5s in _of_index(tree):
            blobs.add(oid)
            by_trees |= md5s
        by_trees |= _of_disk(tree) | _of_head(tree)
    by_history: set[str] = set()
    for oid, md5s in _of_commits(repo, trees):
        blobs.add(oid)
        by_history |= md5s
    return Needs(frozenset(by_trees), frozenset(by_history), frozenset(blobs))


def find_md5s(text: bytes) -> set[str]:
    """Give the md5s, also those of folders, of the objects that a pointer or metadata file stands for."""
    named = _model_of(text)
    return {named[0]} if named is not None else {found.decode() for found in _MD5.findall(text)}


def _model_of(text: bytes) -> tuple[str, Named] | None:
    """Give the object of a metadata file and what it says of it; None for any other text."""
    try:
        document = json.loads(text) if text.startswith(b"{") else {}
        model = document["model"]
        md5 = str(model["md5"])
        if _MD5.fullmatch(md5.encode()) is None:
            return None
        return md5, Named(str(model["name"]), str(model["path"]), int(document["version"]["number"]), md5)
    except (ValueError, KeyError, TypeError):
        return None


def _of_index(tree: Repository) -> Iterator[tuple[str, set[str]]]:
    for line in tree.git.run("ls-files", "-s", "-z").split(b"\0"):
        head, _, path = line.partition(b"\t")
        if line:
            oid = head.decode().split(" ")[1]
            yield oid, _of_blob(tree, oid, os.fsdecode(path))


def _of_disk(tree: Repository) -> set[str]:
    found: set[str] = set()
    for path in tree.work_tree.paths(is_naming_file):
        found |= find_md5s(tree.work_tree.read(path) or b"")
    for note in tree.layout.state_dir.rglob("*"):
        if note.is_file() and note.stat().st_size <= MAX_NAMING_BYTES:
            found |= find_md5s(_read(note))  # state, gate pointers, a merge under way
    return found


def _of_head(tree: Repository) -> set[str]:
    if tree.head is None:
        return set()
    view = CommitView(tree.head, tree.objects)
    return {md5 for path in view.paths(is_naming_file) for md5 in find_md5s(view.read(path) or b"")}


def _of_commits(repo: Repository, trees: Iterable[Repository]) -> Iterator[tuple[str, set[str]]]:
    heads = set()
    for tree in trees:
        for name in _HEADS:
            heads |= {word.decode() for word in re.findall(rb"^[0-9a-f]{40}", _read(tree.layout.git_dir / name), re.M)}
    tips = [commit for head in sorted(heads) if (commit := repo.git.find_commit(head)) is not None]
    if not tips and not repo.git.text("rev-list", "-n", "1", "--all", "--reflog"):
        return  # no commit yet
    patterns = [f"*{suffix}" for suffix in GATE_SUFFIXES] + [f"*{p.rpartition('/')[2]}" for p in repo.settings.include]
    seen: set[str] = set()
    for _, change in repo.git.iter_changes(
        "-m", "--full-history", "--all", "--reflog", *tips,
        "--", "*.dvc", "*dvc.lock", f"*{METADATA_SUFFIX}", *(f":(icase){p}" for p in patterns),
    ):  # fmt: skip
        if change.status != "D" and change.new_oid not in seen:
            seen.add(change.new_oid)
            yield change.new_oid, _of_blob(repo, change.new_oid, change.path)


def _of_blob(repo: Repository, oid: str, path: str) -> set[str]:
    if is_naming_file(path):
        return find_md5s(repo.objects.read_blob(oid))
    if 0 < repo.objects.blob_size(oid) <= MAX_GATE_BYTES:
        gate = find_gate(repo.objects.read_blob(oid))
        return {gate.md5} if gate is not None else set()
    return set()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def read_named(repo: Repository) -> tuple[set[str], dict[str, Named]]:
    """Give every md5 in a pointer or metadata file that Git still has, even if no commit reaches it.

    Returns:
        The md5s, and what metadata says of those that are models.
    """
    found: set[str] = set()
    models: dict[str, Named] = {}
    for oid in _small_blobs(repo.git):
        text = repo.objects.read_blob(oid)
        if not _POINTER.search(text):
            continue
        found |= find_md5s(text)
        model = _model_of(text)
        if model is not None:
            models.setdefault(*model)
    return found, models


def _small_blobs(git: Git) -> Iterator[str]:
    out = git.run("cat-file", "--batch-all-objects", "--batch-check=%(objectname) %(objecttype) %(objectsize)")
    for line in out.decode().splitlines():
        oid, kind, size = line.split(" ")
        if kind == "blob" and 32 < int(size) <= MAX_NAMING_BYTES:
            yield oid
