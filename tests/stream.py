"""Histories of thousands of commits in seconds: ``git fast-import``, with metadata and tables as the package writes them."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from dvc_modelver.fingerprint import fingerprint
from dvc_modelver.fingerprint.row import TensorRow
from dvc_modelver.formats.safetensors import open_file
from dvc_modelver.metadata import (
    ChangeFacts,
    ModelFacts,
    ModelMetadata,
    TensorTable,
    TrainingFacts,
    VersionFacts,
    metadata_path,
    summarise,
    table_digest,
    table_path,
)

START = 1_700_000_000
"""Seconds since 1970 of the first commit; each next one is an hour later."""
VARIANTS = 8
"""Values that a tensor of `rows` can have."""


def md5_of(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


@cache
def rows() -> Mapping[str, tuple[TensorRow, ...]]:
    """Give tensor name -> its row in each variant, fingerprinted from real values."""
    import io

    from safetensors.numpy import save

    from tests.sandbox import make_weights

    found: dict[str, list[TensorRow]] = {}
    for seed in range(VARIANTS):
        for row in fingerprint(open_file(io.BytesIO(save(make_weights(seed))), "x.safetensors"), k=64):
            found.setdefault(row.name, []).append(row)
    return {name: tuple(variants) for name, variants in found.items()}


def make_table(md5: str, variants: Mapping[str, int], default: int = 0) -> TensorTable:
    """Give a table whose tensors have the values that `variants` says."""
    chosen = (known[variants.get(name, default) % VARIANTS] for name, known in rows().items())
    return TensorTable(md5, 64, tuple(sorted(chosen, key=lambda row: row.name)))


def make_version(
    name: str,
    path: str,
    number: int,
    *,
    parents: tuple[str, ...] = (),
    table: TensorTable | None = None,
    change: ChangeFacts | None = None,
    **training: Any,
) -> tuple[ModelMetadata, dict[str, bytes]]:
    """Give a version and its three files in Git: metadata, table, pointer."""  # fmt: skip
    md5 = table.md5 if table is not None else md5_of(f"{name}{number}")
    content = table.render() if table is not None else None
    facts = summarise(table.rows) if table is not None else {}
    size = 4 * facts.get("parameters", 0) + 1_000
    metadata = ModelMetadata(
        model=ModelFacts(
            name=name, path=path, format="safetensors", bytes_=size, md5=md5, sha256=hashlib.sha256(md5.encode()).hexdigest(),
            tensors_digest=table_digest(content) if content is not None else None, **facts,
        ),
        version=VersionFacts(number=number, parents=parents, update="fine-tune" if parents else "initial"),
        change=change,
        training=TrainingFacts(**training),
    )  # fmt: skip
    base = path.rpartition("/")[2]
    files = {
        metadata_path(path): metadata.render(),
        f"{path}.dvc": f"outs:\n- md5: {md5}\n  size: {size}\n  hash: md5\n  path: {base}\n".encode(),
    }
    return metadata, files | ({table_path(path): content} if content is not None else {})


@dataclass
class Stream:
    """What ``git fast-import`` reads."""

    parts: list[bytes] = field(default_factory=list)
    commits: int = 0

    def commit(
        self,
        files: Mapping[str, bytes | None],
        *,
        branch: str = "main",
        parents: Iterable[int] | None = None,
        author: str = "Ada",
        message: str = "",
        hours: int | None = None,
    ) -> int:
        """Add a commit on top of `branch`, or of `parents`; give its mark. None deletes a file."""  # fmt: skip
        self.commits += 1
        when = f"{START + 3600 * (self.commits if hours is None else hours)} +0000"
        mail = f"{author} <{author.lower()}@example.org> {when}"
        text = (message or f"commit {self.commits}").encode()
        head = f"commit refs/heads/{branch}\nmark :{self.commits}\nauthor {mail}\ncommitter {mail}\n"
        self.parts.append(head.encode() + b"data %d\n%s\n" % (len(text), text))
        for i, parent in enumerate(parents or ()):
            self.parts.append(b"%s :%d\n" % (b"merge" if i else b"from", parent))
        for path, content in files.items():
            if content is None:
                self.parts.append(f"D {path}\n".encode())
            else:
                self.parts.append(f"M 100644 inline {path}\n".encode() + b"data %d\n%s\n" % (len(content), content))
        return self.commits

    def tag(self, name: str, commit: int, message: str) -> None:
        text = message.encode()
        mail = f"Ada <ada@example.org> {START + 3600 * commit} +0000"
        self.parts.append(
            f"tag {name}\nfrom :{commit}\ntagger {mail}\n".encode() + b"data %d\n%s\n" % (len(text), text)
        )

    def load(self, folder: Path) -> None:
        """Write it all into the repository at `folder`, made where there is none."""
        subprocess.run(["git", "init", "-q", "-b", "main", str(folder)], check=True)
        feed = b"".join(self.parts)
        subprocess.run(["git", "fast-import", "--quiet", "--force"], cwd=folder, input=feed, check=True)
        subprocess.run(["git", "reset", "-q", "--hard", "main"], cwd=folder, check=True)
