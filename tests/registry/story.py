"""A history told in a few lines: real weights, with their fingerprints and the change that was measured."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.numpy import save

from dvc_modelver.diff.changes import Side
from dvc_modelver.diff.compare import compare
from dvc_modelver.formats.safetensors import open_file
from dvc_modelver.metadata import ChangeFacts, ModelMetadata, TensorTable, describe_tensors, metadata_path
from tests.sandbox import Weights
from tests.stream import Stream, make_version


class Story:
    """Versions of models, a commit for each, an hour between two."""

    def __init__(self) -> None:
        self.stream = Stream()
        self.tips: dict[str, int] = {}
        self.known: dict[str, tuple[ModelMetadata, TensorTable]] = {}

    def tell(
        self,
        name: str,
        weights: Weights,
        parents: tuple[str, ...] = (),
        *,
        branch: str = "main",
        merges: str = "",
        change_from: str | None = None,
        path: str = "",
        **training: Any,
    ) -> str:
        """Commit a version; give its md5.

        Args:
            name: Of the model.
            weights: Its tensors.
            parents: As the metadata declares them.
            branch: Where to; a new one starts where main is.
            merges: A branch that the commit merges as well.
            change_from: The version that the recorded change is from; the first parent by default.
            path: Of the model, where it is not its name.
            training: What training recorded; ``merge`` is the recipe of a merge.
        """
        content = save(weights)
        md5, path = hashlib.md5(content).hexdigest(), path or f"{name}.safetensors"
        with open_file(io.BytesIO(content), path) as reader:
            table = describe_tensors(reader, md5)
        old, merge = self.known.get(change_from or (parents or ("",))[0]), training.pop("merge", None)
        number = 1 + max((self.known[p][0].version.number for p in parents if p in self.known), default=0)
        change = _change(*old, table, path) if old is not None else None
        metadata, files = make_version(name, path, number, parents=parents, table=table, change=change, **training)
        if merge:
            metadata = replace(metadata, version=replace(metadata.version, update="merge", extra={"merge": merge}))
            files[metadata_path(path)] = metadata.render()
        self.known[md5] = (metadata, table)
        self.commit(files, f"{name} {number}", branch=branch, merges=merges)
        return md5

    def commit(self, files: dict[str, bytes], subject: str, *, branch: str = "main", merges: str = "") -> None:
        """Write files; a new branch starts where main is."""
        parents = [self.tips[b] for b in (branch if branch in self.tips else "main", merges) if b in self.tips]
        self.tips[branch] = self.stream.commit(files, branch=branch, parents=parents, message=subject)

    def tag(self, name: str, message: str = "a tag") -> None:
        """Write an annotated tag where main is."""
        self.stream.tag(name, self.tips["main"], message)

    def write(self, folder: Path) -> Path:
        """Make the repository."""
        self.stream.load(folder)
        (folder / ".dvc").mkdir(exist_ok=True)
        return folder


def _change(metadata: ModelMetadata, before: TensorTable, table: TensorTable, path: str) -> ChangeFacts:
    old = Side(path, "", before, metadata, metadata.md5, "safetensors")
    found = compare(old, Side(path, "", table, None, table.md5, "safetensors"))
    return ChangeFacts(
        from_=metadata.md5,
        kind=found.kind,
        cosine=found.cosine,
        relative_l2=found.relative_l2,
        tensors_changed=found.tensors_changed,
    )
