"""Our blocks in the committed ``.gitattributes`` and in this clone's ``info/attributes``.

A block stands at the top of its file, so that every line of the user's, which Git reads later, wins.
"""

from __future__ import annotations

from collections.abc import Iterable

BEGIN = "# dvc-modelver: begin (written by 'modelver install'; lines below the block win over it)"
END = "# dvc-modelver: end"


def render_block(gated_patterns: Iterable[str]) -> str:
    """Give the block: the diff driver of tensor tables, and filter and diff driver of model files.

    ``merge=binary`` keeps both files parsable in a conflict: ours stays in the work tree.
    """
    lines = [
        BEGIN,
        "*.modelver.tensors text eol=lf diff=modelver merge=binary linguist-generated",
        "*.modelver.json text eol=lf merge=binary",
        *(f"{_quoted(pattern)} -text diff=modelver filter=modelver" for pattern in gated_patterns),
        END,
    ]
    return "".join(line + "\n" for line in lines)


def render_clone_block() -> str:
    """Give the block of ``info/attributes``: the merge driver.

    It is not in the committed file, since Git merges as text what has a driver that it does not know: in a clone
    without this tool metadata would get conflict markers.
    """
    patterns = ("*.modelver.tensors", "*.modelver.json", "*.dvc", "dvc.lock")
    return "".join(line + "\n" for line in (BEGIN, *(f"{pattern} merge=modelver" for pattern in patterns), END))


def _quoted(pattern: str) -> str:
    if any(c in pattern for c in ' \t"\\') or pattern.startswith("#"):
        return '"' + pattern.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return pattern


def with_block(text: str, block: str) -> str:
    """Give the text of a ``.gitattributes`` with our block on top, replacing an older one."""
    return block + without_block(text)


def without_block(text: str) -> str:
    """Give the text of a ``.gitattributes`` without our block, the rest byte for byte."""
    start = text.find(BEGIN.split(" (", maxsplit=1)[0])
    stop = text.find(END + "\n", start)
    if start < 0 or stop < 0:
        return text
    return text[:start] + text[stop + len(END) + 1 :]
