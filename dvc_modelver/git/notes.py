"""Lines that are attached to objects by Git notes: read from several refs, appended, merged, never lost."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from dvc_modelver.errors import EnvironmentFailed, NotFoundError, UsageError
from dvc_modelver.git.objects import ObjectReader
from dvc_modelver.git.porcelain import Git, GitFailed

MAX_NOTE_BYTES = 16 << 20
_TRIES = 100
"""How often an append is tried anew where another process appends at the same time; one of them always lands."""


def blob_id(content: bytes, like: str) -> str:
    """Give the id that Git gives to a blob.

    Args:
        content: The blob's bytes.
        like: Any id of the repository, whose hash function is used: SHA-1, or SHA-256 with 64 digits.
    """
    header = f"blob {len(content)}\0".encode()
    return hashlib.new("sha1" if len(like) == 40 else "sha256", header + content).hexdigest()


def tracking_ref(ref: str, remote: str) -> str:
    """Give where the copy of a remote's notes ref is kept."""
    return f"refs/notes-remotes/{remote}/{ref.removeprefix('refs/notes/')}"


def notes_tips(objects: ObjectReader, ref: str) -> list[str]:
    """Give the commits of a notes ref and of its copies of remotes, each once; empty where there is none."""
    names = [ref, *(tracking_ref(ref, remote) for remote in objects.remotes())]
    tips = (objects.find_ref(name) for name in names)
    return list(dict.fromkeys(tip for tip in tips if tip is not None))


def read_notes(objects: ObjectReader, tips: Iterable[str], only: Iterable[str] | None = None) -> dict[str, list[bytes]]:
    """Give annotated id -> lines, the union of some commits of notes refs; blank lines are left out.

    Args:
        objects: The object database.
        tips: What `notes_tips` gives.
        only: Read the notes of these objects alone.
    """
    blobs: dict[str, dict[str, None]] = {}
    wanted = None if only is None else list(only)
    for tip in tips:
        if wanted is None:
            for oid, _, blob in objects.iter_notes(tip):
                blobs.setdefault(oid, {})[blob] = None
        else:
            for oid in wanted:
                blobs.setdefault(oid, {}).update((blob, None) for _, blob in objects.find_notes(tip, oid))
    objects.prefetch(blob for several in blobs.values() for blob in several)
    found = {}
    for oid, several in blobs.items():
        lines: dict[bytes, None] = {}
        for blob in several:
            lines.update(dict.fromkeys(_lines(objects, blob)))
        if lines:
            found[oid] = list(lines)
    return found


def _lines(objects: ObjectReader, blob: str) -> list[bytes]:
    try:
        content = objects.read_blob(blob, MAX_NOTE_BYTES)
    except (NotFoundError, UsageError):
        return []
    return [line for line in content.splitlines() if line.strip()]


def committer(git: Git, by: str = "") -> str:
    """Give who commits, as Git writes it: ``Name <email> seconds zone``; `by` stands in where Git knows nobody.

    Raises:
        UsageError: Git knows nobody, and `by` is empty.
    """
    try:
        return git.text("var", "GIT_COMMITTER_IDENT")
    except GitFailed as err:
        if not by:
            raise UsageError(str(err), hint="git config user.name NAME && git config user.email EMAIL") from err
    import time

    return f"{''.join(c for c in by if c.isprintable() and c not in '<>')} <> {int(time.time())} +0000"


def append_notes(
    git: Git, objects: ObjectReader, ref: str, lines: Mapping[str, Sequence[bytes]], message: str, who: str
) -> bool:
    """Append lines to the notes of objects, in one commit; those that are there already are not written again.

    The ref moves only from the commit that was read, and a process that comes too late reads anew: of two that
    append at once, both land.

    Args:
        git: Runs ``git fast-import``, which takes the ref's lock and refuses what is no fast-forward.
        objects: Reads what is there.
        ref: A notes ref; made when it is not there.
        lines: Annotated id -> lines without their newline.
        message: Of the commit.
        who: What `committer` gives.

    Returns:
        Whether there was anything new.

    Raises:
        EnvironmentFailed: Others moved the ref every time.
    """
    for _ in range(_TRIES):
        tip = objects.find_ref(ref)
        files = list(_changed_files(objects, tip, lines))
        if not any(content for _, content in files):
            return False
        try:
            git.run("fast-import", "--quiet", "--done", stdin=_stream(ref, tip, files, message, who))
        except GitFailed as err:
            if objects.find_ref(ref) == tip and "lock" not in err.stderr:
                raise EnvironmentFailed(f"{ref}: {err}", hint="git fsck") from err
            continue
        return True
    raise EnvironmentFailed(f"{ref}: moved by others {_TRIES} times while it was written", hint="try again")


def _changed_files(
    objects: ObjectReader, tip: str | None, lines: Mapping[str, Sequence[bytes]]
) -> Iterable[tuple[str, bytes | None]]:
    """Give path -> content of the notes that change; None for one that is joined with another of its object."""
    for oid, new in lines.items():
        places = objects.find_notes(tip, oid) if tip is not None else []
        old = dict.fromkeys(line for _, blob in places for line in objects.read_blob(blob).splitlines())
        joined = list(old | dict.fromkeys(new))
        if len(joined) == len(old):
            continue
        target = places[0][0] if places else f"{oid[:2]}/{oid[2:]}"
        yield from ((path, None) for path, _ in places if path != target)
        yield target, b"".join(line + b"\n" for line in joined)


def _stream(ref: str, tip: str | None, files: Iterable[tuple[str, bytes | None]], message: str, who: str) -> bytes:
    """Give the input of ``git fast-import`` (its manual, "Input Format") for one commit."""
    text = message.encode()
    head = [b"commit " + ref.encode(), b"committer " + who.encode(), b"data %d\n%s" % (len(text), text)]
    head += [b"from " + tip.encode()] if tip is not None else []
    for path, content in files:
        if content is None:
            head.append(b"D " + path.encode())
        else:
            head.append(b"M 100644 inline %s\ndata %d\n%s" % (path.encode(), len(content), content))
    return b"\n".join([*head, b"done\n"])
