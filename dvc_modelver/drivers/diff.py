"""What ``diff.modelver.command`` runs: one comparison for ``git diff``, printed in Git's place.

It never fails: where two sides cannot be compared it prints a plain text diff, and one line that says why.
"""

from __future__ import annotations

import os
import shutil
import sys

from dvc_modelver.diff.compare import compare
from dvc_modelver.diff.render.cells import printable
from dvc_modelver.diff.render.text import PLAIN, Palette, render_text
from dvc_modelver.drivers.gitcolor import find_palette
from dvc_modelver.drivers.sides import ABSENT, NotComparable, read_side, read_text


def main(argv: list[str]) -> int:
    """Print a comparison; always 0.

    Args:
        argv: ``path old-file old-hex old-mode new-file new-hex new-mode [new-path info]``, or only ``path`` for a
            file in conflict (git(1), ``GIT_EXTERNAL_DIFF``).
    """
    try:
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
        sys.stdout.write(report(argv))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the pager is gone
    return 0


def report(argv: list[str]) -> str:
    """Give what is printed for one file."""
    palette = PLAIN
    try:
        palette = find_palette()
        if len(argv) < 7:
            return f"* Unmerged path {printable(argv[0])}\n" if argv else ""
        return _report(argv, palette)
    except Exception as err:
        return f"modelver: {printable(argv[0])}: not compared ({type(err).__name__}: {printable(str(err))})\n"


def _report(argv: list[str], palette: Palette) -> str:
    path, old_file, old_oid, old_mode, new_file, new_oid, new_mode = argv[:7]
    new_path = argv[7] if len(argv) > 7 else path
    head = _header(path, new_path, argv, palette)
    if old_mode != new_mode and old_oid == new_oid and old_oid.strip("0"):
        return head
    try:
        change = compare(read_side(path, old_file, old_oid), read_side(new_path, new_file, new_oid))
    except NotComparable as err:
        return head + f"modelver: shown as text: {printable(str(err))}\n" + _text_diff(argv, palette)
    width = min(shutil.get_terminal_size((80, 24)).columns, 100)
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    return head + render_text(change, width=width, palette=palette, unicode=unicode)


def _header(path: str, new_path: str, argv: list[str], palette: Palette) -> str:
    """Give the lines that Git itself prints above a change, since it leaves them to an external driver."""
    _, old_file, old_oid, old_mode, new_file, new_oid, new_mode = argv[:7]
    lines = [f"diff --git a/{path} b/{new_path}"]
    if old_file == ABSENT:
        lines.append(f"new file mode {new_mode}")
    elif new_file == ABSENT:
        lines.append(f"deleted file mode {old_mode}")
    elif old_mode != new_mode:
        lines += [f"old mode {old_mode}", f"new mode {new_mode}"]
    lines += [line for line in (argv[8].splitlines() if len(argv) > 8 else []) if not line.startswith("index ")]
    if old_oid.strip("0.") and new_oid.strip("0."):
        lines.append(f"index {old_oid[:7]}..{new_oid[:7]}")
    return "".join(palette.paint("meta", printable(line)) + "\n" for line in lines)


def _text_diff(argv: list[str], palette: Palette) -> str:
    import difflib

    path, old_file, old_oid, _, new_file, new_oid, _ = argv[:7]
    old, new = read_text(old_file, old_oid), read_text(new_file, new_oid)
    if old is None or new is None:
        return f"Binary files a/{path} and b/{path} differ\n"
    out = []
    for line in difflib.unified_diff(old, new, f"a/{path}", f"b/{path}", lineterm=""):
        style = {"+": "new", "-": "old", "@": "frag"}.get(line[:1], "")
        out.append(palette.paint("meta" if line.startswith(("+++", "---")) else style, line) + "\n")
    return "".join(out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
