"""A history told in a few lines: real weights, fingerprints and metadata, written by ``git fast-import``."""

from __future__ import annotations

import hashlib
import io
import subprocess
from pathlib import Path
from typing import Any

from safetensors.numpy import save

from dvc_modelver.diff.changes import Side
from dvc_modelver.diff.compare import compare
from dvc_modelver.formats.safetensors import open_file
from dvc_modelver.metadata import (
    ChangeFacts,
    ModelFacts,
    ModelMetadata,
    TensorTable,
    TrainingFacts,
    VersionFacts,
    describe_tensors,
    metadata_path,
    summarise,
    table_digest,
    table_path,
)
from tests.sandbox import Weights


class Story:
    """Versions of models, a commit for each, an hour between two."""

    def __init__(self) -> None:
        self.feed: list[bytes] = []
        self.commits = 0
        self.known: dict[str, tuple[ModelMetadata, TensorTable]] = {}
        self.hour = 0

    def tell(
        self,
        name: str,
        weights: Weights,
        parents: tuple[str, ...] = (),
        *,
        branch: str = "main",
        merges: str = "",
        change_from: str | None = None,
        again: bool = False,
        path: str = "",
        **training: Any,
    ) -> str:
        """Commit a version; give its md5.

        Args:
            parents: As the metadata declares them.
            merges: A branch that the commit merges as well.
            change_from: The version that the recorded change is from; the first parent by default.
            again: Into the same commit as the last one.
        """  # fmt: skip
        content = save(weights)
        md5, path = hashlib.md5(content).hexdigest(), path or f"{name}.safetensors"
        with open_file(io.BytesIO(content), path) as reader:
            table = describe_tensors(reader, md5)
        text = table.render()
        first = self.known.get(change_from or (parents[0] if parents else ""))
        merge = training.pop("merge", None)
        metadata = ModelMetadata(
            model=ModelFacts(name=name, path=path, format="safetensors", bytes_=len(content), md5=md5,
                             tensors_digest=table_digest(text), **summarise(table.rows)),
            version=VersionFacts(
                number=1 + max((self.known[p][0].version.number for p in parents if p in self.known), default=0),
                parents=parents, update="merge" if merge else "fine-tune" if parents else "initial",
                extra={"merge": merge} if merge else {},
            ),
            change=_change(first, table, path) if first is not None else None,
            training=TrainingFacts(**training),
        )  # fmt: skip
        self.known[md5] = (metadata, table)
        pointer = f"outs:\n- md5: {md5}\n  size: {len(content)}\n  hash: md5\n  path: {path}\n".encode()
        files = {metadata_path(path): metadata.render(), table_path(path): text, f"{path}.dvc": pointer}
        self.commit(files, f"{name} {metadata.version.number}", branch=branch, merges=merges, again=again)
        return md5

    def commit(
        self, files: dict[str, bytes], subject: str, *, branch: str = "main", merges: str = "", again: bool = False
    ) -> None:
        """Write files; a new branch starts where main is."""
        if not again:
            self.commits += 1
            who = f"Ada <ada@example.org> {1_700_000_000 + 3600 * self.commits} +0000\n".encode()
            ref = f"commit refs/heads/{branch}\nmark :{self.commits}\n".encode()
            text = subject.encode()
            self.feed.append(ref + b"author " + who + b"committer " + who + b"data %d\n%s\n" % (len(text), text))
            if branch != "main" and f"refs/heads/{branch}\n".encode() not in b"".join(self.feed[:-1]):
                self.feed.append(b"from refs/heads/main\n")
            if merges:
                self.feed.append(f"merge refs/heads/{merges}\n".encode())
        for path, content in files.items():
            self.feed.append(f"M 100644 inline {path}\n".encode() + b"data %d\n%s\n" % (len(content), content))

    def tag(self, name: str, rev: str = "main", message: str = "a tag") -> None:
        """Write an annotated tag."""
        self.feed.append(
            f"tag {name}\nfrom refs/heads/{rev}\ntagger Ada <ada@example.org> {1_700_000_000 + 3600 * self.commits} +0000\n"
            f"data {len(message)}\n{message}\n".encode()
        )  # fmt: skip

    def write(self, folder: Path) -> Path:
        """Make the repository."""
        subprocess.run(["git", "init", "-q", "-b", "main", str(folder)], check=True)
        subprocess.run(["git", "fast-import", "--quiet"], cwd=folder, input=b"".join(self.feed), check=True)
        subprocess.run(["git", "reset", "-q", "--hard", "main"], cwd=folder, check=True)
        (folder / ".dvc").mkdir(exist_ok=True)
        return folder


def _change(old: tuple[ModelMetadata, TensorTable], table: TensorTable, path: str) -> ChangeFacts:
    metadata, before = old
    found = compare(
        Side(path, "", before, metadata, metadata.md5, "safetensors"),
        Side(path, "", table, None, table.md5, "safetensors"),
    )
    return ChangeFacts(
        from_=metadata.md5,
        kind=found.kind,
        cosine=found.cosine,
        relative_l2=found.relative_l2,
        tensors_changed=found.tensors_changed,
    )
