"""What a scan says: a verdict on each thing that it found, and on the file the worst of them."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass, replace
from enum import StrEnum

from dvc_modelver.formats.base import printable
from dvc_modelver.formats.pickles import Global
from dvc_modelver.security.allowed import is_allowed
from dvc_modelver.security.denied import find_danger

MAX_FINDINGS = 500
"""Of each verdict, of one file."""

MAX_NAME_CHARS = 200


ALLOWED_BY_OWNERS = "allowed in .modelver.toml"
"""The reason for what only the owners of the repository take for safe."""

COMPUTED = "<computed>"
"""The module of a name that a pickle makes while it runs."""


class Verdict(StrEnum):
    """How far something can be trusted.

    Attributes:
        SAFE: Nothing but what the tables allow; loading it runs no code of the file.
        UNKNOWN: Something that no table knows, or that could not be read to its end.
        DANGEROUS: Something that no model needs and that could take over the program that loads it.
    """

    SAFE = "safe"
    UNKNOWN = "unknown"
    DANGEROUS = "dangerous"


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Give the worst of some verdicts; `Verdict.SAFE` of none."""
    return max(verdicts, key=list(Verdict).index, default=Verdict.SAFE)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing in a file that is more than numbers.

    Attributes:
        member: Where in the file: a member of an archive, a layer of a configuration; empty for the file itself.
        name: What it is called, dotted (``posix.system``).
        kind: ``call`` and ``import`` of a pickle, ``code``, ``layer``, ``template``, ``operator``, ``path`` of a
            member that would be unpacked elsewhere, ``damage`` where the reading ended.
        verdict: On this alone.
        reason: Why, in a few words.
    """

    member: str
    name: str
    kind: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True)
class Scanned:
    """The result for one file.

    Attributes:
        path: As it was given; of a file in a folder, with the folder in front.
        verdict: The worst of its findings.
        findings: The worst first; `MAX_FINDINGS` of each verdict.
    """

    path: str
    verdict: Verdict
    findings: tuple[Finding, ...]


def judge_import(found: Global) -> tuple[Verdict, str]:
    """Give the verdict on a name that a pickle imports, and the reason."""
    if is_allowed(found.module, found.name):
        return Verdict.SAFE, "known to do no harm"
    if found.module == COMPUTED:
        return Verdict.DANGEROUS, "hides which function it imports"
    if found.module == "copyreg" and found.name.startswith("extension "):
        return Verdict.UNKNOWN, "a number that stands for a function, which the file does not name"
    danger = find_danger(found.module, found.name)
    return (Verdict.UNKNOWN, "in no table") if danger is None else (Verdict.DANGEROUS, danger)


class Findings:
    """Gathers the findings of one file.

    Args:
        allow: Names that the owners of the repository have read and allow.

    Attributes:
        n_template_chars: Length of the templates that were judged.
    """

    def __init__(self, allow: Set[str] = frozenset()) -> None:
        self._allow = allow
        self._found: dict[tuple[str, str, str], Finding] = {}
        self._n_found = dict.fromkeys(Verdict, 0)
        self.n_template_chars = 0

    def add(self, member: str, name: str, kind: str, verdict: Verdict, reason: str) -> None:
        """Note a finding; a name that the owners allow is safe."""
        if name in self._allow and verdict is not Verdict.SAFE:
            verdict, reason = Verdict.SAFE, ALLOWED_BY_OWNERS
        if self._n_found[verdict] >= MAX_FINDINGS:
            return
        name, member = (printable(text)[:MAX_NAME_CHARS] for text in (name, member))
        key = (member, name, kind)
        known = self._found.get(key)
        if known is not None:
            self._found[key] = replace(known, verdict=worst((known.verdict, verdict)))
        else:
            self._found[key] = Finding(member, name, kind, verdict, printable(reason)[:MAX_NAME_CHARS])
            self._n_found[verdict] += 1

    def another(self) -> Findings:
        """Give an empty one, with the same names allowed."""
        return Findings(self._allow)

    def has_damage(self) -> bool:
        """Whether anything could not be read to its end."""
        return any(kind == "damage" for _, _, kind in self._found)

    def add_others(self, others: Findings, *, only_dangers: bool) -> None:
        """Note all of others, or what is dangerous of them."""
        self.n_template_chars += others.n_template_chars
        for found in others.give("").findings:
            if found.verdict is Verdict.DANGEROUS or not only_dangers:
                self.add(found.member, found.name, found.kind, found.verdict, found.reason)

    def add_import(self, member: str, found: Global, kind: str) -> None:
        """Note a name that a pickle imports (``import``), or also calls (``call``)."""
        verdict, reason = judge_import(found)
        self.add(member, str(found), kind, verdict, reason)

    def give(self, path: str) -> Scanned:
        """Give the result."""
        order = list(Verdict)
        findings = sorted(self._found.values(), key=lambda f: (-order.index(f.verdict), f.member, f.name))
        return Scanned(path, worst(f.verdict for f in findings), tuple(findings))
