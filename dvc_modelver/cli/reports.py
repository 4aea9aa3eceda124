"""Comparisons and histories in every format: text, JSON, Markdown, HTML."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvc_modelver.cli.output import Format, emit, render_table, say, wants_color
from dvc_modelver.errors import UsageError

if TYPE_CHECKING:
    from dvc_modelver.api.nearest import Ranked
    from dvc_modelver.diff.changes import ModelDiff


def split_diff_arguments(
    old: str | None, new: str | None, paths: Sequence[str]
) -> tuple[str | None, str | None, list[str]]:
    """Tell revisions from paths, as git diff does: after ``--``, and where an argument is a tracked file."""
    rest = list(paths)
    if "--" in sys.argv:
        after = sys.argv[sys.argv.index("--") + 1 :]
        before = [a for a in (old, new, *rest) if a is not None]
        before = before[: len(before) - len(after)] if after else before
        return (before[0] if before else None), (before[1] if len(before) > 1 else None), after
    if new is None and old is not None and _is_path(old):
        return None, None, [old]
    is_version = old is not None and ("#" in old or ("@" in old and "@{" not in old))
    if new is not None and old is not None and not is_version and _is_path(new) and not _is_path(old):
        return old, None, [new, *rest]
    return old, new, rest


def _is_path(text: str) -> bool:
    """Whether an argument is a path of the work tree and no revision."""
    if not Path(text).exists():
        return False
    done = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{text}^{{commit}}"],
        capture_output=True, check=False,
    )  # fmt: skip
    return done.returncode != 0


def diff_document(found: Sequence[ModelDiff]) -> str:
    """Give the JSON document of diff (schema ``modelver.diff/1``)."""
    from dvc_modelver.diff.render.json import render_json

    return render_json(found)


def diff_text(found: Sequence[ModelDiff], *, all_tensors: bool, color: bool) -> str:
    """Give the report of diff for the terminal at hand."""
    from dvc_modelver.diff.render.text import PLAIN, Palette, render_text

    width = min(shutil.get_terminal_size((80, 24)).columns, 100)
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    palette = Palette() if color and wants_color() else PLAIN
    parts = [render_text(d, width=width, palette=palette, unicode=unicode, all_tensors=all_tensors) for d in found]
    return "\n".join(parts)


def emit_diff(
    found: Sequence[ModelDiff], fmt: Format, output: Path | None, *, all_tensors: bool, opening: bool
) -> None:
    """Write the report of diff in a format; an HTML report that is to be opened goes into a file of its own."""
    if opening and fmt is not Format.HTML:
        raise UsageError("--open: only an HTML report is opened", hint="modelver diff --format html --open")
    if fmt is Format.TEXT:
        emit(diff_text(found, all_tensors=all_tensors, color=output is None), output)
    elif fmt is Format.JSON:
        emit(diff_document(found), output)
    elif fmt is Format.MARKDOWN:
        from dvc_modelver.diff.render.markdown import render_markdown

        emit(render_markdown(found), output)
    else:
        from dvc_modelver.diff.render.html import render_html

        emit_page(render_html(found), output, opening=opening)


def emit_page(page: str, output: Path | None, *, opening: bool) -> None:
    """Write a page; where it is to be opened and no file was named, into one in the temporary folder."""
    import webbrowser

    if opening and output is None:
        output = Path(tempfile.mkdtemp(prefix="modelver-")) / "report.html"
    emit(page, output)
    if opening and output is not None:
        say(f"opening {output}")
        webbrowser.open(output.resolve().as_uri())


def is_same(change: ModelDiff) -> bool:
    """Whether two sides have the same bytes and facts."""
    return change.kind == "identical" and not (change.hyperparameters or change.metrics or change.data)


def is_below(change: ModelDiff, limit: float) -> bool:
    """Whether a model is less similar than `limit`; an undefined similarity counts as below."""
    if change.kind == "identical" or change.bytes_equal:
        return False
    return change.cosine is None or change.cosine < limit


def similar_document(found: Sequence[Ranked]) -> dict[str, Any]:
    """Give the document of similar."""
    return {
        "versions": [
            {"name": r.name, "number": r.number, "md5": r.md5, "commit": r.commit, "distance": r.distance,
             "distance_error": r.error, "cosine": r.change.cosine, "kind": r.change.kind}
            for r in found
        ]
    }  # fmt: skip


def similar_lines(found: Sequence[Ranked]) -> list[str]:
    """Give one line per version, the nearest first."""
    from dvc_modelver.diff.render.cells import cosine_text, l2_text

    if not found:
        return ["nothing similar: no other version has a tensor of it"]
    rows = [
        [
            "-" if r.distance is None else l2_text(r.distance, differs=not r.change.bytes_equal),
            "-" if r.change.cosine is None else cosine_text(r.change.cosine),
            f"{r.name}@{r.number}",
            r.md5[:8],
            r.change.kind,
            r.subject,
        ]
        for r in found
    ]
    return render_table(["distance", "cosine", "version", "md5", "to it", "commit"], rows, right=(0, 1))
