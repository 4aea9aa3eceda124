"""prepare-commit-msg: a line per changed model, as a comment where an editor shows it, as a trailer where asked for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from dvc_modelver.diff.changes import ModelDiff, Side
from dvc_modelver.diff.compare import compare
from dvc_modelver.diff.render.cells import cosine_text, plural, printable
from dvc_modelver.errors import BadMetadataError
from dvc_modelver.git.process import find_command
from dvc_modelver.metadata import find_model_path, metadata_path
from dvc_modelver.repository import Repository
from dvc_modelver.views import View
from dvc_modelver.worktree.state import write_file

TRAILER = "Model-Change"
_AUTO_CHARS = "#;@!$%^&|:"
"""What Git chooses from where ``core.commentChar`` is ``auto``."""


def prepare(repo: Repository, args: Sequence[str]) -> None:
    """Write the lines into the message that Git is about to show or take.

    Args:
        repo: The repository.
        args: Those of the hook: the file, where its text comes from, and a commit.
    """
    file, command = Path(args[0]), find_command(os.environ.get("MODELVER_GIT_PID", ""))
    lines = list(_lines(repo, _base(repo, args, command)))
    old = file.read_bytes().decode("utf-8", "surrogateescape")
    text = old
    if repo.settings.trailer:
        text = _with_trailers(repo, text, lines)
    if os.environ.get("GIT_EDITOR") != ":" and command is not None:
        char, mode = _comment_char(repo, text), _cleanup(repo, command)
        if char is not None and mode in ("strip", "default", "scissors"):
            text = with_comments(text, lines, char, scissors_only=mode == "scissors")
    if text != old:
        write_file(file, text.encode("utf-8", "surrogateescape"))


def _base(repo: Repository, args: Sequence[str], command: Sequence[str] | None) -> str | None:
    """Give the commit that the new one is compared with: of an amended one its parent."""
    amends = list(args[1:3]) == ["commit", "HEAD"]
    if amends and command is not None and "commit" in command and "--amend" not in command:
        amends = False  # git commit -c HEAD
    return repo.git.find_commit("HEAD^") if amends else repo.head


def _lines(repo: Repository, base: str | None) -> Iterator[str]:
    """Say of each model that the commit changes what was measured."""
    new, old = repo.index(), None if base is None else repo.at(base)
    for change in repo.git.staged_changes(base):
        path = find_model_path(change.path)
        if path is None or change.path != metadata_path(path):
            continue
        try:
            sides = [None if view is None else _side(repo, view, path) for view in (old, new)]
        except BadMetadataError:
            continue
        if any(sides):
            there = next(s.metadata for s in reversed(sides) if s is not None)
            yield _say(there.model.name if there is not None else path, compare(*sides))


def _side(repo: Repository, view: View, path: str) -> Side | None:
    metadata = repo.metadata(view, path)
    if metadata is None:
        return None
    return Side(path, "", repo.table(view, path), metadata, metadata.md5, metadata.model.format)


def _say(name: str, change: ModelDiff) -> str:
    parts = [change.kind]
    if change.cosine is not None and change.kind not in ("added", "removed"):
        parts.append(f"cosine {cosine_text(change.cosine)}")
    if change.tensors:
        tensors = plural(change.tensors_total, "tensor")
        is_one_sided = change.kind in ("added", "removed")
        parts.append(tensors if is_one_sided else f"{change.tensors_changed} of {tensors}")
    return printable(f"{name}: {', '.join(parts)}")


# The message


def _with_trailers(repo: Repository, text: str, lines: Sequence[str]) -> str:
    """Give a message with a trailer per line; those of an earlier run go."""
    text = re.sub(rf"^{TRAILER}: .*\n?", "", text, flags=re.MULTILINE)
    if not lines:
        return text
    trailers = [f"--trailer={TRAILER}: {line}" for line in lines]
    options = ("--no-divider", "--where=end", "--if-exists=add", "--if-missing=add")
    out = repo.git.run("interpret-trailers", *options, *trailers, stdin=text.encode("utf-8", "surrogateescape"))
    return out.decode("utf-8", "surrogateescape")


def with_comments(text: str, lines: Sequence[str], char: str, *, scissors_only: bool = False) -> str:
    """Give a message with commented lines above Git's own comments; those of an earlier run go.

    Args:
        text: The message as Git wrote it.
        lines: What to say.
        char: What a comment starts with.
        scissors_only: Only what is below the scissors line is dropped, so write there or nowhere.
    """
    mark = f"{char} modelver: "
    rows = [row for row in text.split("\n") if not row.startswith(mark)]
    cut = next((i for i, row in enumerate(rows) if row.startswith(char) and " >8 " in row), None)
    if scissors_only:
        if cut is None:
            return text
        place = cut + 1
    else:
        place = len(rows) if cut is None else cut
        while cut is None and place and not rows[place - 1].strip():
            place -= 1
        while place and rows[place - 1].startswith(char):
            place -= 1
    comments = [mark + line for line in lines]
    if comments and place and not scissors_only and rows[place - 1].strip():
        comments.insert(0, "")
    return "\n".join([*rows[:place], *comments, *rows[place:]])


def _comment_char(repo: Repository, text: str) -> str | None:
    for key in ("core.commentString", "core.commentChar"):
        code, out = repo.git.run_for_code("config", "--get", key, codes=(0, 1))
        if code == 0:
            char = out.decode("utf-8", "replace").removesuffix("\n")
            if char != "auto":
                return char or "#"
            last = text.rstrip().rpartition("\n")[2][:1]
            return last if last and last in _AUTO_CHARS else None
    return "#"


def _cleanup(repo: Repository, command: Sequence[str]) -> str:
    """Give how Git will clean the message that an editor leaves."""
    for i, option in enumerate(command):
        if option == "--cleanup" and i + 1 < len(command):
            return command[i + 1]
        if option.startswith("--cleanup="):
            return option.partition("=")[2]
    code, out = repo.git.run_for_code("config", "--get", "commit.cleanup", codes=(0, 1))
    return out.decode().strip() if code == 0 else "default"
