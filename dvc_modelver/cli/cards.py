"""What each command prints: lines for people, documents for programs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dvc_modelver import api
from dvc_modelver.cli.output import render_table, say
from dvc_modelver.errors import ModelverError, NotFoundError
from dvc_modelver.formats.base import printable
from dvc_modelver.progress import human_bytes

if TYPE_CHECKING:
    from dvc_modelver.api.doctor import Finding
    from dvc_modelver.api.inspect import ModelStatus, Shown
    from dvc_modelver.api.setup import Step
    from dvc_modelver.api.versions import RolledBack
    from dvc_modelver.checks import Problem
    from dvc_modelver.fingerprint.row import TensorRow
    from dvc_modelver.metadata import ModelMetadata, TensorTable
    from dvc_modelver.registry.evaluations import Evaluation

_HOW_MANY = 12
"""Lines of a list that a person reads before asking for all."""
_TRAINER_STATE = ("callbacks.", "loops.")
"""What PyTorch Lightning keeps in a checkpoint beside weights and optimiser."""


def _short(path: str) -> str:
    """Give a path relative to the current folder where that is shorter."""
    try:
        relative = os.path.relpath(path)
    except ValueError:
        return path
    return relative if os.path.isabs(path) and not relative.startswith("..") else path


# Set-up


def steps_document(steps: Sequence[Step]) -> dict[str, Any]:
    """Give the document of init, install and uninstall."""
    return {"steps": [asdict(step) for step in steps]}


def steps_lines(steps: Sequence[Step], done: str = "wrote") -> list[str]:
    """Give one line per step: what changed, and where."""
    width = max((len(_short(s.where)) for s in steps), default=0)
    return [f"{done if s.changed else 'kept '}  {_short(s.where):<{min(width, 40)}}  {s.what}" for s in steps]


def advice_after_init(path: Path) -> list[str]:
    """Name the models that DVC tracks already, and those that .gitignore hides."""
    from dvc_modelver.api.setup import hidden_models, unadopted
    from dvc_modelver.repository import Repository

    repo = Repository.open(path)
    lines = []
    adopted = unadopted(repo)
    if adopted:
        lines += [f"DVC tracks {_count(len(adopted), 'model')} without metadata (modelver add --all describes them):"]
        lines += _some(f"    {p}" for p in adopted)
    hidden = hidden_models(repo)
    if hidden:
        lines += [f".gitignore hides {_count(len(hidden), 'model')}:"]
        lines += _some(f"    {p}  ({rule}): modelver add {p}" for p, rule in hidden.items())
    lines.append("next: git add . && git commit, then train; git add, commit and push as usual")
    return lines


def _some(lines: Iterable[str]) -> list[str]:
    rows = list(lines)
    return rows if len(rows) <= _HOW_MANY else [*rows[:_HOW_MANY], f"    and {len(rows) - _HOW_MANY} more"]


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def doctor_document(findings: Sequence[Finding]) -> dict[str, Any]:
    """Give the document of doctor."""
    return {"ok": not any(f.problem for f in findings), "findings": [asdict(f) for f in findings]}


def doctor_lines(findings: Sequence[Finding]) -> list[str]:
    """Give one line per setting, and the mend under what is wrong."""
    lines = []
    for f in findings:
        origin = f"  [{_short(f.origin)}]" if f.origin else ""
        value = f.value if len(f.value) < 120 else f.value[:117] + "..."
        lines.append(f"{'!!' if f.problem else 'ok'}  {f.name}: {value}{origin}")
        if f.problem:
            lines.append(f"      {f.problem}" + (f"; hint: {f.hint}" if f.hint else ""))
    wrong = sum(bool(f.problem) for f in findings)
    return [*lines, f"{_count(wrong, 'problem')} found" if wrong else "all is well"]


# Models


def version_line(metadata: ModelMetadata) -> str:
    """Give one line about a version: name, number, size, how it changed."""
    m, change = metadata.model, metadata.change
    tensors = f", {_count(m.n_tensors, 'tensor')}" if m.n_tensors is not None else f", {m.format}"
    moved = ""
    if change is not None:
        l2 = f", relative L2 {change.relative_l2:.3g}" if change.relative_l2 is not None else ""
        moved = f": {change.kind}{l2}"
    return f"{m.name} version {metadata.version.number}  {m.md5[:8]}  {human_bytes(m.bytes_)}{tensors}{moved}"


def status_document(found: Sequence[ModelStatus]) -> dict[str, Any]:
    """Give the document of status."""
    return {"models": [asdict(s) for s in found]}


def status_lines(found: Sequence[ModelStatus]) -> list[str]:
    """Give one line per model that needs attention."""
    if not found:
        return ["nothing to do: every model is described, and its commit is pushed"]
    width = max(len(s.state) for s in found)
    return [f"{s.state:<{width}}  {s.path}  ({s.detail}" + (f"; {s.hint})" if s.hint else ")") for s in found]


def check_document(problems: Sequence[Problem]) -> dict[str, Any]:
    """Give the document of check."""
    return {"ok": not any(p.refuses for p in problems), "problems": [asdict(p) for p in problems]}


def check_lines(problems: Sequence[Problem]) -> list[str]:
    """Give one line per problem and its mend."""
    lines = []
    for p in problems:
        lines += [f"{'refused' if p.refuses else 'warning'}: {p.line}", f"    hint: {p.hint}"]
    return lines or ["ok: nothing would be refused"]


def rollback_lines(done: RolledBack) -> list[str]:
    """Tell what a rollback restored."""
    was = f"version {done.old.version.number}" if done.old is not None else "nothing"
    lines = [
        f"{done.path}: {was} -> version {done.new.version.number} ({done.new.md5[:8]}), staged; git commit keeps it"
    ]
    if done.moved:
        lines += [
            "the pipeline's inputs differ from that version's:",
            *(f"    {line}" for line in done.moved),
        ]
    return lines


# diff


# show


class Card(Protocol):
    """What ``show`` prints."""

    def document(self) -> dict[str, Any]:
        """Give the JSON document."""

    def lines(self, *, all_tensors: bool) -> list[str]:
        """Give the lines for a person."""


def find_card(reference: str, repo: str | None = None) -> Card:
    """Give the card of a model, of one of its versions, or of any model file on disk."""
    from dvc_modelver.api.select import is_file_name

    try:
        return VersionCard(api.show(reference, repo=repo, say=say))
    except ModelverError:
        if repo is not None:
            raise
        if Path(reference).exists():
            table, fmt, size = api.describe_file(reference)
            return FileCard(reference, fmt, size, table)
        if is_file_name(reference):
            raise NotFoundError(f"{reference}: no such file or model", hint="modelver list") from None
        raise


@dataclass(frozen=True)
class FileCard:
    """A model file that no version describes."""

    path: str
    format: str
    size: int
    table: TensorTable | None

    def document(self) -> dict[str, Any]:
        """Give the JSON document."""
        rows = [row.to_dict() for row in self.table.rows] if self.table is not None else []
        structure = dict(self.table.structure) if self.table is not None else {}
        facts = {"path": self.path, "format": self.format, "bytes": self.size, "parameters": self._parameters()}
        return facts | {"structure": structure, "tensors": rows}

    def _parameters(self) -> int | None:
        return sum(row.numel for row in _own(self.table)) if self.table is not None else None

    def lines(self, *, all_tensors: bool) -> list[str]:
        """Give the lines for a person."""
        own = _own(self.table)
        count = f", {self._parameters():,} parameters in {_count(len(own), 'tensor')}" if self.table is not None else ""
        return [
            f"{self.path}  {self.format}, {human_bytes(self.size)}{count}",
            *_tensor_lines(self.table, all_tensors),
            *_structure_lines(self.table, all_tensors),
        ]


@dataclass(frozen=True)
class VersionCard:
    """One version."""

    shown: Shown

    def document(self) -> dict[str, Any]:
        """Give the JSON document: the metadata, joined with tags, commit and the ``artifacts:`` entry."""
        s = self.shown
        extra = {
            "commit": s.commit or None, "tags": [t.tag for t in s.tags],
            "signatures": [asdict(one) for one in s.signatures],
            "description": s.description or None, "labels": list(s.labels),
            "evaluations": [one.to_dict() for one in s.evaluations],
        }  # fmt: skip
        return s.metadata.to_dict() | extra

    def lines(self, *, all_tensors: bool) -> list[str]:
        """Give the lines for a person."""
        s, m, v = self.shown, self.shown.metadata.model, self.shown.metadata.version
        tags = f"  ({', '.join(t.tag for t in s.tags)})" if s.tags else ""
        lines = [f"{m.name} version {v.number}{tags}"]
        facts: list[tuple[str, str]] = [("path", m.path)]
        if s.description:
            facts.append(("description", s.description))
        if s.labels:
            facts.append(("labels", ", ".join(s.labels)))
        dtypes = ", ".join(f"{n} {dtype}" for dtype, n in (m.dtypes or {}).items())
        facts.append(("format", m.format + (f" ({m.framework})" if m.framework else "")))
        facts.append(("size", human_bytes(m.bytes_)))
        if m.parameters is not None:
            facts.append(("parameters", f"{m.parameters:,} in {_count(m.n_tensors or 0, 'tensor')} ({dtypes})"))
        facts += [("md5", m.md5), ("sha256", m.sha256 or "")]
        if s.commit:
            facts.append(("commit", s.commit[:12]))
        for one in s.signatures:
            said = " ".join(filter(None, (one.signer, f"({one.detail})" if one.detail else "")))
            facts.append(("signature", f"{one.tag}: {one.state} {said}".rstrip()))
        if s.metadata.version.update == "merge":
            facts.append(("merged from", " and ".join(md5[:8] for md5 in s.metadata.version.parents)))
        if s.metadata.change is not None:
            c = s.metadata.change
            l2 = f", relative L2 {c.relative_l2:.3g}" if c.relative_l2 is not None else ""
            cosine = f", cosine {c.cosine:.6g}" if c.cosine is not None else ""
            facts.append(("change", f"{c.kind} from {c.from_[:8]}{l2}{cosine}"))
        lines += [f"  {name:<13}{value}" for name, value in facts if value]
        lines += _training_lines(s.metadata)
        lines += evaluation_lines(s.evaluations)
        return [*lines, *_tensor_lines(s.table, all_tensors), *_structure_lines(s.table, all_tensors)]


def _own(table: TensorTable | None) -> list[TensorRow]:
    """Give the tensors of a model that are no optimiser state."""
    return [row for row in table.rows if row.role != "optimizer"] if table is not None else []


def _training_lines(metadata: ModelMetadata) -> list[str]:
    t = metadata.training
    lines = []
    for title, values in (("metrics", t.metrics), ("hyperparameters", t.hyperparameters)):
        if values:
            lines += [f"  {title}", *(f"    {k} = {_number(v)}" for k, v in values.items())]
    if t.data:
        lines += ["  data", *(f"    {d.get('path')}  {str(d.get('md5', ''))[:8]}" for d in t.data)]
    if t.stage:
        lines.append(f"  {'stage':<13}{t.stage}: {t.command or ''}")
    return lines


def evaluation_lines(found: Sequence[Evaluation]) -> list[str]:
    """Give the results that were measured after the commit, newest first, each with when, by whom and on what."""
    lines = ["  evaluations"] if found else []
    for one in reversed(found):
        values = ", ".join(f"{name} = {_number(value)}" for name, value in sorted(one.metrics.items()))
        on = ", ".join(str(row.get("path") or row["md5"][:8]) for row in one.data)
        origin = [one.time[:16].replace("T", " "), f"by {one.by}" if one.by else "", f"on {on}" if on else ""]
        lines.append(f"    {values}  ({', '.join(part for part in [*origin, one.source] if part)})")
    return lines


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _structure_lines(table: TensorTable | None, all_tensors: bool) -> list[str]:
    facts = sorted(table.structure.items()) if table is not None else []
    shown = facts if all_tensors else facts[:_HOW_MANY]
    if not shown:
        return []
    width = max(len(printable(name)) for name, _ in shown)
    lines = ["", "structure", *(f"  {printable(name):<{width}}  {printable(str(value))}" for name, value in shown)]
    if len(shown) < len(facts):
        lines.append(f"and {len(facts) - len(shown)} more lines (--all-tensors lists them)")
    return lines


def _tensor_lines(table: TensorTable | None, all_tensors: bool) -> list[str]:
    if table is None or not table.rows:
        return []
    rows = sorted(table.rows, key=lambda r: (r.role == "optimizer", r.name.startswith(_TRAINER_STATE), r.name))
    rows = rows if all_tensors else rows[:_HOW_MANY]
    cells = [
        [
            r.name,
            r.dtype,
            "x".join(map(str, r.shape)) or "scalar",
            _stat(r.norm),
            _stat(r.mean),
            _stat(r.std),
            f"{r.nonfinite:,} NaN or infinite" if r.nonfinite else "",
        ]
        for r in rows
    ]
    lines = ["", *render_table(["tensor", "dtype", "shape", "norm", "mean", "std", ""], cells, right=(3, 4, 5))]
    if len(rows) < len(table.rows):
        lines.append(f"and {len(table.rows) - len(rows)} more tensors (--all-tensors lists them)")
    return lines


def _stat(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
