"""Models that one side of a merge renamed or converted while both sides trained them.

Git pairs the files of a renamed model only while they look alike, which those of retrained weights do not: it reports
the old files as deleted by one side and changed by the other, and takes the new ones as that side has them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dvc_modelver.errors import BadMetadataError
from dvc_modelver.metadata import METADATA_SUFFIX, ModelMetadata, find_model_path, metadata_path, table_path
from dvc_modelver.registry.history import ModelHistory
from dvc_modelver.repository import Repository
from dvc_modelver.store.pointers import set_out
from dvc_modelver.store.temp import remove
from dvc_modelver.views import CommitView
from dvc_modelver.worktree.departed import let_go_one
from dvc_modelver.worktree.merge_files import Chosen
from dvc_modelver.worktree.merging import TAKEN, Versions
from dvc_modelver.worktree.resolved import HEADS
from dvc_modelver.worktree.sync import Keeper, write_if_changed


@dataclass(frozen=True)
class Renamed:
    """One such model.

    Attributes:
        old: Its path in the common ancestor and on the side that kept it.
        new: Its path on the other side, and in the merge.
        side: Who renamed it: ``ours`` or ``theirs``.
        versions: What is to be merged.
        kept: Metadata of the side that kept the path.
        kept_in: The commit of that side.
        renamed_in: The commit of the other one.
    """

    old: str
    new: str
    side: str
    versions: Versions
    kept: ModelMetadata
    kept_in: str
    renamed_in: str

    @property
    def key(self) -> str:
        """What the merge is noted under; see `TAKEN`."""
        return merge_key(self.new, self.versions)


def merge_key(path: str, versions: Versions) -> str:
    """Give what is noted under: the model and what is merged."""
    return "\0".join([path, versions.base or "", versions.ours, versions.theirs])


def find_renamed(repo: Repository) -> Iterator[Renamed]:
    """Give the models of a merge, cherry-pick or rebase under way that one side renamed and both sides trained.

    Those that are merged already, or were taken whole from the side that renamed them, are left out.
    """
    for renamed in _iter_renamed(repo):
        if not (_is_taken(repo, renamed) or _is_merged(repo, renamed)):
            yield renamed


def _iter_renamed(repo: Repository) -> Iterator[Renamed]:
    head = next((name for name in HEADS if (repo.layout.git_dir / name).exists()), None)
    if head is None or repo.head is None:
        return
    commits = {"ours": repo.head, "theirs": repo.git.commit_of(head)}
    staged = repo.git.index_entries()
    gone = {path: oids for path, oids in repo.git.unmerged(resolved=True).items() if path not in staged}
    for file, oids in sorted((gone | repo.git.unmerged()).items()):
        old = find_model_path(file)
        missing = [side for side, oid in zip(("ours", "theirs"), oids[1:], strict=True) if oid is None]
        if old is None or file != metadata_path(old) or oids[0] is None or len(missing) != 1:
            continue
        side = missing[0]
        other = "ours" if side == "theirs" else "theirs"
        try:
            base, kept = (
                ModelMetadata.parse(repo.objects.read_blob(oid), file) for oid in (oids[0], oids[1] or oids[2] or "")
            )
            found = _find_successor(repo, base.md5, commits[side], commits[other])
        except BadMetadataError:
            continue
        if found is not None:
            new, md5 = found
            pair = (kept.md5, md5) if side == "theirs" else (md5, kept.md5)
            yield Renamed(old, new, side, Versions(base.md5, *pair), kept, commits[other], commits[side])


def _find_successor(repo: Repository, md5: str, commit: str, other: str) -> tuple[str, str] | None:
    """Give path and md5 of the model of a commit that was version `md5` once, and that another commit does not have."""
    for file, _ in repo.objects.iter_files(commit, lambda path: path.endswith(METADATA_SUFFIX)):
        path = find_model_path(file)
        if path is None or repo.objects.find_blob(other, file) is not None:
            continue
        versions = ModelHistory(repo.git, repo.objects, path).versions(commit)
        if versions and any(version.metadata.md5 == md5 for version in versions):
            content = repo.objects.read_file(commit, file)
            return path, ModelMetadata.parse(content or b"", file).md5
    return None


def _is_taken(repo: Repository, renamed: Renamed) -> bool:
    """Whether ``modelver merge`` has concluded it with the side that renamed it, whole."""
    try:
        taken = json.loads((repo.layout.state_dir / TAKEN).read_bytes())
        return bool(taken.get(renamed.key, {}).get(""))
    except (OSError, ValueError, AttributeError):
        return False


def _is_merged(repo: Repository, renamed: Renamed) -> bool:
    """Whether the index has something else at the new path than that side alone, and nothing at the old one."""
    now = repo.metadata(repo.index(), renamed.new)
    theirs = renamed.versions.theirs if renamed.side == "theirs" else renamed.versions.ours
    return now is None or now.md5 != theirs


def conclude(repo: Repository, renamed: Renamed, chosen: Chosen) -> ModelMetadata:
    """Put what was decided at the new path, in the index and the work tree, and the old files away.

    Weights are left to whoever follows the pointer.

    Returns:
        The metadata at the new path.
    """
    there, path = CommitView(renamed.renamed_in, repo.objects), renamed.new
    pointer = next(p for p in repo.pointers(there) if p.path == path)
    text = (there.read(pointer.file) or b"").decode()
    hashes: tuple[str, int | None, int | None]
    made = chosen.outcome
    if made is not None:
        metadata, table, hashes = made.metadata, made.table, (made.md5, made.size, made.n_files)
    elif chosen.md5 == renamed.kept.md5:
        facts = replace(renamed.kept.model, path=path)
        metadata = replace(renamed.kept, model=facts).render()
        table = repo.objects.read_file(renamed.kept_in, table_path(renamed.old))
        hashes = (facts.md5, facts.bytes_, _count_files(repo, renamed))
    else:
        metadata, table = there.read(metadata_path(path)) or b"", there.read(table_path(path))
        hashes = (pointer.md5 or "", pointer.size, pointer.n_files)
    md5, size, n_files = hashes
    text = set_out(text, pointer, md5=md5, size=size, n_files=n_files)
    blobs: dict[str, bytes | None] = {
        metadata_path(path): metadata,
        table_path(path): table,
        pointer.file: text.encode(),
    }
    blobs |= dict.fromkeys((metadata_path(renamed.old), table_path(renamed.old), f"{renamed.old}.dvc"))
    known = {*repo.git.index_entries(), *repo.git.unmerged()}
    for file, content in blobs.items():
        if content is not None:
            write_if_changed(repo.top / file, content)
        else:
            remove(repo.top / file)
    repo.git.stage_blobs({file: content for file, content in blobs.items() if content is not None or file in known})
    return ModelMetadata.parse(metadata, metadata_path(path))


def let_old_go(keeper: Keeper, renamed: Renamed) -> None:
    """Remove the weights at the old path, which no file names any more; see `let_go_one`."""
    row = keeper.state.rows.get(renamed.old)
    if row is not None and (keeper.repo.top / renamed.old).exists():
        let_go_one(keeper, row)


def _count_files(repo: Repository, renamed: Renamed) -> int | None:
    view = CommitView(renamed.kept_in, repo.objects)
    return next((p.n_files for p in repo.pointers(view) if p.path == renamed.old), None)
