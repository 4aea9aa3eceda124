"""Versions and stages as annotated Git tags, in GTO's grammar.

Source: GTO 1.10, "Git tags format" (``name@v1.2.3``, ``name#stage#N``, ``name#stage!#N``, ``name@deprecated``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from dvc_modelver.errors import NotFoundError, UsageError
from dvc_modelver.git.porcelain import Git, GitFailed

NAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9\-/_]*[a-zA-Z0-9])?(=[a-zA-Z0-9]([a-zA-Z0-9\-/_]*[a-zA-Z0-9])?)?")
_SEMVER = re.compile(r"v?(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")
_TAG = re.compile(r"(?P<name>.+?)(@v(?P<version>\d.*)|#(?P<stage>[^#!]+?)(?P<off>!)?#(?P<counter>\d+))")
LEVELS = ("major", "minor", "patch")


@dataclass(frozen=True)
class ModelTag:
    """One annotated tag of a model.

    Attributes:
        tag: The whole tag name.
        version: Semantic version with its ``v``; empty for a stage tag.
        stage: Stage name; empty for a version tag.
        counter: The stage tag's counter, one per model over all stages; 0 for a version tag.
        active: False for a tag that takes a model out of a stage.
        commit: The commit that it points at.
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


def version_key(version: str) -> tuple[int, int, int, bool, str]:
    """Give what a semantic version is sorted by; a pre-release comes before its release.

    Raises:
        UsageError: It is no semantic version.
    """
    match = _SEMVER.fullmatch(version)
    if match is None:
        raise UsageError(f"{version}: not a semantic version, expected one like v1.2.0")
    return int(match[1]), int(match[2]), int(match[3]), match[4] is None, match[4] or ""


def check_name(name: str) -> None:
    """Refuse a name that GTO would not read.

    Raises:
        UsageError: It has other characters than letters, digits, ``-``, ``_`` and ``/``.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r}: not a model name that GTO reads, expected letters, digits, - _ and / (no dot)",
            hint="modelver add PATH --name NAME",
        )


def read_tags(git: Git, name: str | None = None) -> list[ModelTag]:
    """Give the annotated tags of one model, or of all, in the order of their creation."""
    fields = ("%(refname:strip=2)", "%(objecttype)", "%(*objectname)", "%(taggername)", "%(taggerdate:iso-strict)",
              "%(contents)")  # fmt: skip
    out = git.run("for-each-ref", "--sort=creatordate", f"--format={'%00'.join(fields)}%00%00", "refs/tags")
    found = []
    for record in out.decode("utf-8", "replace").split("\0\0\n"):
        parts = record.split("\0")
        if len(parts) < 6 or parts[1] != "tag":
            continue
        match = _TAG.fullmatch(parts[0])
        if match is None or (name is not None and match["name"] != name):
            continue
        if match["version"] and not _SEMVER.fullmatch(match["version"]):
            continue
        found.append(
            ModelTag(
                tag=parts[0], name=match["name"], version="v" + match["version"] if match["version"] else "",
                stage=match["stage"] or "", counter=int(match["counter"] or 0), active=not match["off"],
                commit=parts[2], tagger=parts[3], date=parts[4], message=parts[5].strip(),
            )
        )  # fmt: skip
    return found


def versions_of(tags: Iterable[ModelTag]) -> list[ModelTag]:
    """Give the version tags among `tags`, lowest version first."""
    return sorted((t for t in tags if t.version), key=lambda t: version_key(t.version))


def stage_holder(tags: Iterable[ModelTag], stage: str) -> ModelTag | None:
    """Give the tag by which a model holds a stage now; None where it does not."""
    last = max((t for t in tags if t.stage == stage), key=lambda t: t.counter, default=None)
    return last if last is not None and last.active else None


def bumped(latest: str | None, level: str) -> str:
    """Give the next version above `latest` at a level; ``v1.0.0`` is the first.

    Raises:
        UsageError: No such level.
    """
    if level not in LEVELS:
        raise UsageError(f"--bump {level}: expected one of {', '.join(LEVELS)} or auto")
    if latest is None:
        return "v1.0.0"
    major, minor, patch, *_ = version_key(latest)
    parts = {"major": (major + 1, 0, 0), "minor": (major, minor + 1, 0), "patch": (major, minor, patch + 1)}
    return "v" + ".".join(map(str, parts[level]))


def create_tag(git: Git, tag: str, commit: str, subject: str, record: dict[str, object], *, sign: bool) -> None:
    """Write one annotated tag: a subject line, then a JSON record.

    Raises:
        UsageError: The tag is there already, or Git could not sign.
    """
    message = f"{subject}\n\n{json.dumps(record, indent=2, ensure_ascii=False)}\n"
    options = ["--sign"] if sign else ["--annotate"]
    try:
        git.run(
            "tag",
            *options,
            "--cleanup=verbatim",
            "--file=-",
            "--end-of-options",
            tag,
            commit,
            stdin=message.encode(),
        )
    except GitFailed as err:
        if "already exists" in err.stderr:
            raise UsageError(f"{tag}: this tag is there already", hint=f"git show {tag}") from err
        raise


def find_version_tag(tags: Iterable[ModelTag], name: str, version: str) -> ModelTag:
    """Give the tag of ``name@version``; the ``v`` may be left out.

    Raises:
        NotFoundError: There is none.
    """
    wanted = "v" + version.removeprefix("v")
    for tag in tags:
        if tag.name == name and tag.version == wanted:
            return tag
    raise NotFoundError(f"{name}@{wanted}: no such version", hint=f"modelver log {name}")
