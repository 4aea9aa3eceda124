"""Versions and stages as annotated Git tags, in GTO's grammar.

Source: GTO 1.10, ``gto/constants.py`` (``name@v1.2.3``, ``name#stage#N``, ``name#stage!#N``, ``name@v1.2.3!#N``).
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dvc_modelver.errors import EnvironmentFailed, NotFoundError, UsageError, word
from dvc_modelver.git.porcelain import Git, GitFailed

_WORD = r"[a-zA-Z0-9](?:[a-zA-Z0-9\-/_]*[a-zA-Z0-9])?"
_FULL = rf"(?:[a-zA-Z0-9\-_./]+=)?{_WORD}"
_PART = r"(?:0|[1-9][0-9]{0,17})"
_PRE = rf"(?:{_PART}|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)"
_VERSION = (
    rf"(?P<major>{_PART})\.(?P<minor>{_PART})\.(?P<patch>{_PART})"
    rf"(?:-(?P<pre>{_PRE}(?:\.{_PRE})*))?(?:\+[0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*)?"
)
_SEMVER = re.compile(f"v?{_VERSION}")
_TAG = re.compile(
    rf"(?P<name>{_FULL})(?:#(?P<stage>{_WORD})|@(?P<version>v{_VERSION}))(?P<off>!)?(?:#(?P<counter>[0-9]{{1,18}}))?"
)
NAME = re.compile(_FULL)
STAGE = re.compile(_WORD)
LEVELS = ("major", "minor", "patch")


@dataclass(frozen=True)
class ModelTag:
    """One annotated tag of a model.

    Attributes:
        tag: The whole tag name.
        version: Semantic version with its ``v``; empty for a stage tag.
        stage: Stage name; empty for a version tag.
        counter: The stage tag's counter, one per model over all stages; 0 for a tag without one.
        active: False for a tag that takes a version out of a stage.
        commit: The commit that it points at.
        date: ISO 8601; `time` is the same in seconds since 1970.
        message: What it says, a signature apart.
        signed: Whether it has a signature, good or not.
        oid: The tag object.
    """

    tag: str
    name: str
    version: str
    stage: str
    counter: int
    active: bool
    commit: str
    tagger: str = ""
    date: str = ""
    message: str = ""
    time: int = 0
    signed: bool = False
    oid: str = ""

    @property
    def record(self) -> Mapping[str, Any]:
        """The JSON record that this program wrote into the message; empty where there is none that can be read."""
        at = f"\n{self.message}".find("\n{\n")
        try:
            found = json.loads(self.message[at:]) if at >= 0 else {}
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}


def version_key(version: str) -> tuple[int, int, int, bool, tuple[tuple[bool, int, str], ...]]:
    """Give what a semantic version is sorted by; a pre-release comes before its release.

    Raises:
        UsageError: It is no semantic version.

    Source: Semantic Versioning 2.0.0, section 11.
    """
    match = _SEMVER.fullmatch(version)
    if match is None:
        raise UsageError(f"{version[:100]!r}: not a semantic version, expected one like v1.2.0")
    parts = match["pre"].split(".") if match["pre"] else []
    pre = tuple((False, int(p), "") if p.isdecimal() else (True, 0, p) for p in parts)
    return int(match["major"]), int(match["minor"]), int(match["patch"]), not pre, pre


def check_name(name: str) -> None:
    """Refuse a name that GTO would not read.

    Raises:
        UsageError: It has other characters than letters, digits, ``-``, ``_`` and ``/``.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name[:100]!r}: not a model name that GTO reads, expected letters, digits, - _ and / (no dot)",
            hint="modelver add PATH --name NAME",
        )


def check_stage(stage: str) -> None:
    """Refuse a stage that GTO would not read.

    Raises:
        UsageError: It has other characters than letters, digits, ``-``, ``_`` and ``/``, or ends in one of those.
    """
    if not STAGE.fullmatch(stage) or len(stage) > 100:
        raise UsageError(
            f"{stage[:100]!r}: not a stage that GTO reads, expected letters, digits, - _ and /, like prod",
            hint="modelver stages",
        )


_FIELDS = (
    "%(refname:strip=2)", "%(objecttype)", "%(*objecttype)", "%(*objectname)", "%(objectname)", "%(taggername)",
    "%(taggerdate:iso-strict)", "%(taggerdate:unix)", "%(contents:signature)", "%(contents)",
)  # fmt: skip


def read_tags(git: Git, name: str | None = None) -> list[ModelTag]:
    """Give the annotated tags of one model, or of all, in the order of their time, then of their counter.

    Versions that ``gto deprecate`` took back are left out, as GTO does.
    """
    if name is not None and not NAME.fullmatch(name):
        return []
    ends = ["@*", "#*", "#*/**"]  # a stage may have a slash, which * does not match
    refs = ["refs/tags"] if name is None else [f"refs/tags/{name}{end}" for end in ends]
    out = git.run("for-each-ref", f"--format={'%00'.join(_FIELDS)}%00%00", *refs)
    found: list[ModelTag] = []
    for record in out.decode("utf-8", "replace").split("\0\0\n"):
        parts = record.split("\0")
        if len(parts) != len(_FIELDS) or parts[1:3] != ["tag", "commit"]:
            continue
        match = _TAG.fullmatch(parts[0])
        if match is None or (name is not None and match["name"] != name):
            continue
        found.append(
            ModelTag(
                tag=parts[0], name=match["name"], version=match["version"] or "", stage=match["stage"] or "",
                counter=int(match["counter"] or 0), active=not match["off"], commit=parts[3], oid=parts[4],
                tagger=parts[5], date=parts[6], time=int(parts[7] or 0), signed=bool(parts[8]),
                message=parts[9].removesuffix(parts[8]).strip(),
            )
        )  # fmt: skip
    found.sort(key=lambda t: (t.time, t.counter))
    last = {(t.name, t.version): t for t in found if t.version}
    return [t for t in found if not t.version or (t.active and last[t.name, t.version].active)]


def versions_of(tags: Iterable[ModelTag]) -> list[ModelTag]:
    """Give the version tags among `tags`, lowest version first."""
    return sorted((t for t in tags if t.version), key=lambda t: version_key(t.version))


def stage_holder(tags: Iterable[ModelTag], stage: str) -> ModelTag | None:
    """Give the tag by which a model holds a stage now; None where it does not.

    As GTO has it: each commit is in the stage from its assignment until it is taken out itself, and of those that are
    in it the one assigned last holds it.

    Args:
        tags: Of one model, in the order that `read_tags` gives.
        stage: The stage.
    """
    return next(reversed(assigned(tags, stage).values()), None)


def assigned(tags: Iterable[ModelTag], stage: str) -> dict[str, ModelTag]:
    """Give commit -> tag of all that GTO counts as being in a stage, the last assigned, which holds it, last."""
    found: dict[str, ModelTag] = {}
    for tag in tags:
        if tag.stage == stage:
            assign(found, tag)
    return found


def assign(within: dict[str, ModelTag], tag: ModelTag) -> None:
    """Let a stage tag change who is in its stage; see `assigned`."""
    within.pop(tag.commit, None)
    if tag.active:
        within[tag.commit] = tag


def bumped(latest: str | None, level: str) -> str:
    """Give the next version above `latest` at a level; ``v1.0.0`` is the first.

    Raises:
        UsageError: No such level.
    """
    if level not in LEVELS:
        raise UsageError(f"--bump {level[:100]}: expected one of {', '.join(LEVELS)} or auto")
    if latest is None:
        return "v1.0.0"
    major, minor, patch, *_ = version_key(latest)
    parts = {"major": (major + 1, 0, 0), "minor": (major, minor + 1, 0), "patch": (major, minor, patch + 1)}
    return "v" + ".".join(map(str, parts[level]))


def next_counter(git: Git, name: str) -> int:
    """Give the counter of a model's next stage tag: above those of all its tags, lightweight ones included."""
    names = git.text("for-each-ref", "--format=%(refname:strip=2)", "refs/tags").splitlines()
    matches = (_TAG.fullmatch(one) for one in names)
    return 1 + max((int(m["counter"] or 0) for m in matches if m is not None and m["name"] == name), default=0)


class TagExistsError(UsageError):
    """There is a tag of that name already."""


def create_tag(
    git: Git, tag: str, commit: str, subject: str, record: Mapping[str, object], *, sign: bool, after: int = 0
) -> str:
    """Write one annotated tag: a subject line, then a JSON record; signed where ``tag.gpgSign`` says so.

    Args:
        git: Runs git.
        tag: Its name.
        commit: What it points at.
        subject: One line.
        record: What the JSON says.
        sign: Sign it whatever the configuration says.
        after: A time in seconds since 1970 that it must lie after, since GTO orders tags by their seconds.

    Returns:
        The id of the tag object.

    Raises:
        TagExistsError: The tag is there already.
        EnvironmentFailed: Git could not sign it.
    """
    message = f"{subject}\n\n{json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)}\n"
    date = {"GIT_COMMITTER_DATE": f"@{after + 1} +0000"} if time.time() < after + 1 else {}
    options = ["--sign"] if sign else []
    try:
        git.run(
            "tag", *options, "--cleanup=verbatim", "--file=-", "--end-of-options", tag, commit,
            stdin=message.encode(), env={} if "GIT_COMMITTER_DATE" in os.environ else date,
        )  # fmt: skip
    except GitFailed as err:
        if "already exists" in err.stderr:
            raise TagExistsError(f"{tag}: this tag is there already", hint=f"git show {word(tag)}") from err
        if "unable to sign" in err.stderr:
            raise _unsigned(tag, err.stderr.strip().splitlines()[0].removeprefix("error: ")) from err
        raise
    form = "--format=%(objectname)%00%(contents:signature)"
    oid, _, signature = git.text("for-each-ref", form, f"refs/tags/{tag}").partition("\0")
    sign = sign or git.text("config", "--type=bool", "tag.gpgSign", codes=(0, 1)) == "true"
    if sign and not signature.strip():  # Git 2.39 says nothing when an SSH key is not there
        git.run("update-ref", "-d", f"refs/tags/{tag}", oid)
        raise _unsigned(tag, "there was no signature")
    return oid


def _unsigned(tag: str, why: str) -> EnvironmentFailed:
    hint = "git config user.signingKey KEY; for an SSH key also git config gpg.format ssh"
    return EnvironmentFailed(f"{tag}: git could not sign it ({why})", hint=hint)


def find_version_tag(tags: Sequence[ModelTag], name: str, version: str) -> ModelTag:
    """Give the tag of ``name@version``; the ``v`` may be left out.

    Raises:
        NotFoundError: There is none.
    """
    wanted = "v" + version.removeprefix("v")
    for tag in tags:
        if tag.name == name and tag.version == wanted:
            return tag
    is_stage = any(tag.name == name and tag.stage == version for tag in tags)
    hint = f"modelver show {word(f'{name}#{version}')}" if is_stage else f"modelver log {name}"
    raise NotFoundError(f"{name}@{version[:100]}: no such version", hint=hint)
