"""What ``diff.modelver.textconv`` runs: one line of text per tensor, for ``git log -p`` and ``git show``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dvc_modelver.diff.render.cells import printable
from dvc_modelver.drivers.sides import MAX_TEXT_BYTES, NotComparable, read_side
from dvc_modelver.metadata import TABLE_SCHEMA, TABLE_SUFFIX, TensorTable


def main(argv: list[str]) -> int:
    """Print a tensor table or a model file as text; always 0."""
    try:
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
        sys.stdout.write(convert(argv[0]) if argv else "")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the pager is gone
    return 0


def convert(file: str) -> str:
    """Give the text that stands for a file in a diff."""
    try:
        with Path(file).open("rb") as stream:
            start = stream.read(256)
        is_table = TABLE_SCHEMA.split("/")[0].encode() in start
        side = read_side("x" + TABLE_SUFFIX if is_table else file, file, "0")
        if side is None or side.table is None:
            return ""
        return render_table(side.table)
    except NotComparable:
        return _as_it_is(file)
    except Exception as err:
        return f"(not readable: {type(err).__name__}: {printable(str(err))})\n"


def render_table(table: TensorTable) -> str:
    """Give a header line, one line per tensor (norm, mean, std, digest, dtype, shape, name), then the structure."""
    columns = "norm, mean, std, digest, dtype, shape, name"
    lines = [f"{len(table.rows)} tensors of {table.md5}: {columns} (--ext-diff compares them)"]
    for row in table.rows:
        shape = "x".join(map(str, row.shape)) or "scalar"
        numbers = " ".join(f"{_stat(value):>10}" for value in (row.norm, row.mean, row.std))
        lines.append(
            f"{numbers}  {row.digest.removeprefix('blake3:')[:8]}  {row.dtype:<4} {shape:<12} {printable(row.name)}"
        )
    lines += [f"{printable(name)}: {printable(str(value))}" for name, value in sorted(table.structure.items())]
    return "".join(line + "\n" for line in lines)


def _stat(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _as_it_is(file: str) -> str:
    data = Path(file).read_bytes() if Path(file).stat().st_size <= MAX_TEXT_BYTES else b"\0"
    if b"\0" not in data:
        return data.decode("utf-8", "replace")
    import hashlib

    with Path(file).open("rb") as stream:
        md5 = hashlib.file_digest(stream, "md5").hexdigest()
    return f"{Path(file).stat().st_size} bytes, md5 {md5}\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
