"""What ``scan`` prints: lines for people, a document for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dvc_modelver.security.verdicts import ALLOWED_BY_OWNERS, Finding, Verdict

if TYPE_CHECKING:
    from dvc_modelver.security.verdicts import Scanned

_HOW_MANY = 12
"""Findings of a file that a person reads before asking for all."""

_SAID = {
    "call": "calls {}",
    "import": "imports {}",
    "code": "holds code, {}",
    "layer": "needs {}",
    "template": "holds a template, {}",
    "operator": "needs the operators {}",
    "path": "names {}",
}


def scan_document(found: Sequence[Scanned]) -> dict[str, Any]:
    """Give the document of scan, which follows ``schemas/scan.schema.json``."""
    return {"schema": "modelver.scan/1", "files": [asdict(one) for one in found]}


def scan_lines(found: Sequence[Scanned]) -> list[str]:
    """Give one line per file, the verdict first, and under it what is not safe."""
    width = max((len(one.verdict) for one in found), default=0)
    lines = []
    for one in found:
        names = sum(finding.kind in ("call", "import") for finding in one.findings)
        known = f"  ({names} imports, all known)" if names and one.verdict is Verdict.SAFE else ""
        lines.append(f"{one.verdict:<{width}}  {one.path}{known}")
        said = [finding_line(f) for f in one.findings if f.verdict is not Verdict.SAFE or f.reason == ALLOWED_BY_OWNERS]
        lines += [f"    {line}" for line in said[:_HOW_MANY]]
        if len(said) > _HOW_MANY:
            lines.append(f"    and {len(said) - _HOW_MANY} more (--json lists them)")
    counts = Counter(one.verdict for one in found)
    if len(found) > 1:
        said = [f"{counts[verdict]} {verdict}" for verdict in reversed(Verdict) if counts[verdict]]
        lines.append(f"{len(found)} files: {', '.join(said)}")
    return lines or ["nothing to scan"]


def finding_line(finding: Finding) -> str:
    """Give a finding in one line: where, what, why."""
    where = f"{finding.member}: " if finding.member else ""
    said = _SAID.get(finding.kind, "").format(finding.name) if finding.name else ""
    return f"{where}{said}: {finding.reason}" if said else f"{where}{finding.reason}"
