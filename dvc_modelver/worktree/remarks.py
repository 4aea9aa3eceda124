"""Says what a commit leaves out, and what it takes in that is not what it looks like; nothing is changed."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from functools import partial

from dvc_modelver.errors import word
from dvc_modelver.formats.impostors import START_BYTES, find_impostor
from dvc_modelver.git.porcelain import Change
from dvc_modelver.metadata import find_model_path, metadata_path
from dvc_modelver.progress import human_bytes
from dvc_modelver.repository import Repository
from dvc_modelver.settings import GATE_SUFFIXES, SETTINGS_FILE, WEIGHT_SUFFIXES, unknown_hint
from dvc_modelver.store.gate import find_gate, is_raw_weights
from dvc_modelver.views import IndexView
from dvc_modelver.worktree.departed import is_shared
from dvc_modelver.worktree.law import Action
from dvc_modelver.worktree.look import Seen
from dvc_modelver.worktree.resolved import kept_ours
from dvc_modelver.worktree.sync import Say

MAX_QUIET_BYTES = 1_000_000
"""A larger file of weights that is committed to Git itself is named."""


class Remarks:
    """What the user is told of one commit.

    Args:
        repo: The repository.
        say: Takes lines for the user.
    """

    def __init__(self, repo: Repository, say: Say) -> None:
        self.repo, self.say = repo, say

    def name_raw(self, changes: Iterable[Change]) -> None:
        """Name weights that go into Git itself: of a suffix that other files have too, or in Git already.

        And what only has the name of weights, where no other filter (Git LFS) looks after it.
        """
        named = [c for c in changes if c.path.lower().endswith(WEIGHT_SUFFIXES) and c.new_mode.startswith("100")]
        attributes = self.repo.git.attributes([c.path for c in named], "filter")
        folders: set[str] = set()
        for change in named:
            size = self.repo.objects.blob_size(change.new_oid)
            is_ours = attributes.get(change.path, {}).get("filter") in ("modelver", "unspecified")
            if is_ours and not is_raw_weights(size, partial(self.repo.objects.read_blob, change.new_oid)):
                self._name_text(change.path, self.repo.objects.read_blob(change.new_oid))
            elif size > MAX_QUIET_BYTES:
                folder = posixpath.dirname(change.path)
                if folder in folders:
                    continue  # one hint for all of them
                into_dvc = f"modelver add {word(change.path)} puts them into DVC"
                if folder and self.repo.is_model_folder(folder):
                    folders.add(folder)
                    into_dvc = f"modelver add {word(folder)} makes the folder one model, in DVC"
                self.say(f"{change.path}: {human_bytes(size)} of weights go into Git itself\nhint: {into_dvc}")

    def _name_text(self, path: str, content: bytes) -> None:
        """Say what goes into Git under a model's name; path files of Python packages have one, old pickles are text."""
        impostor = find_impostor(content[:START_BYTES], len(content))
        if impostor is not None:
            self.say(f"{path}: {impostor.what}, not weights; it goes into Git as it is\nhint: {impostor.hint}")
        elif path.lower().endswith(GATE_SUFFIXES) and not path.endswith(".pth") and find_gate(content) is None:
            self.say(f"{path}: a text of {human_bytes(len(content))}, not weights; it goes into Git as it is")

    def name_unknown_settings(self, changes: Iterable[Change], view: IndexView) -> None:
        """Name settings that this commit brings and that do nothing."""
        if any(change.path == SETTINGS_FILE and change.status != "D" for change in changes):
            for name in self.repo.settings_in(view).unknown:
                self.say(f"{SETTINGS_FILE}: unknown setting {name} does nothing\nhint: {unknown_hint(name)}")

    def name_untracked(self) -> None:
        """Name weights whose pointer and metadata this commit removes, and that stay on disk (``git rm``)."""
        view = self.repo.index()
        for change in self.repo.git.staged_changes():
            path = find_model_path(change.path)
            if change.status != "D" or path is None or change.path != metadata_path(path):
                continue
            tracked = [p.path for p in self.repo.pointers(view)]
            if (self.repo.top / path).exists() and path not in tracked and not is_shared(path, tracked):
                self.say(f"{path}: tracked no more, and still on disk\nhint: rm {word(path)}")

    def name_kept_ours(self) -> None:
        """Name models whose conflict was resolved by adding ours as it was: nothing of theirs is in the merge."""
        for path in kept_ours(self.repo):
            model = find_model_path(path)
            if model is not None and path == metadata_path(model):
                from dvc_modelver.worktree.merge_files import is_of_pipeline  # and all that merges with it

                what = f"warning: {model}: this commit keeps ours whole, nothing that theirs changed is in it"
                hint = "to merge them: git reset --hard HEAD~1, git merge again, then modelver merge --take ..."
                if is_of_pipeline(self.repo, model):
                    hint = "dvc repro makes it anew, where what it is made from was merged"
                self.say(f"{what}\nhint: {hint}")

    def name_left_out(self, found: Iterable[Seen]) -> None:
        """Name models that were retrained and that are not in the commit, or not as they are now."""
        view = self.repo.index()
        for seen in found:
            if metadata_path(seen.path) not in view.entries:
                continue  # untracked, which Git does not name either
            retrained = seen.action is Action.DESCRIBE and seen.model.metadata is not None
            if retrained or seen.is_unstaged(view.read(metadata_path(seen.path))):
                self.say(f"not in this commit: {seen.path} was retrained (git commit -a takes it in)")
