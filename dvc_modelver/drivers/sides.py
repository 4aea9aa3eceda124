"""Reads what Git hands to a diff driver: tensor tables, and model files themselves."""

from __future__ import annotations

import subprocess
from pathlib import Path

from dvc_modelver.diff.changes import Side
from dvc_modelver.errors import BadMetadataError, ModelverError
from dvc_modelver.metadata import MAX_TABLE_BYTES, TABLE_SUFFIX, TensorTable

ABSENT = "/dev/null"
MAX_TEXT_BYTES = 4 << 20


class NotComparable(ModelverError):  # noqa: N818 - not an error of the user's: the driver falls back to text
    """One side is neither a tensor table nor a model that a reader knows."""


def read_bytes(file: str, oid: str, limit: int) -> bytes | None:
    """Give the bytes of one side; None when that side does not exist.

    A side with a real id is read as that blob, never from the path that Git names: the work tree may hold
    something else by now. Only an id of zeros means the file on disk.

    Raises:
        NotComparable: It is larger than `limit`, or cannot be read.
    """
    if file == ABSENT:
        return None
    if oid.strip("0") and oid != ".":
        done = subprocess.run(
            ["git", "cat-file", "blob", oid], capture_output=True, check=False, stdin=subprocess.DEVNULL
        )
        if done.returncode == 0:
            return done.stdout
    try:
        if Path(file).stat().st_size > limit:
            raise NotComparable(f"{file}: larger than {limit} bytes")
        return Path(file).read_bytes()
    except OSError as err:
        raise NotComparable(f"{file}: cannot be read ({err.strerror})") from err


def read_side(path: str, file: str, oid: str) -> Side | None:
    """Give one side of a comparison; None when it does not exist.

    Raises:
        NotComparable: It is neither a tensor table nor a model.
    """
    if file == ABSENT:
        return None
    if not path.endswith(TABLE_SUFFIX):
        return _model_side(path, file)
    text = read_bytes(file, oid, MAX_TABLE_BYTES)
    try:
        table = TensorTable.parse(text or b"", path)
    except BadMetadataError as err:
        raise NotComparable(str(err)) from err
    return Side(path.removesuffix(TABLE_SUFFIX), "", table, None, table.md5, "")


def _model_side(path: str, file: str) -> Side:
    """Describe a model file that Git itself holds; Git has put its content into `file`."""
    import hashlib

    from dvc_modelver.formats import open_reader
    from dvc_modelver.metadata import describe_tensors

    try:
        with Path(file).open("rb") as stream:
            md5 = hashlib.file_digest(stream, "md5").hexdigest()
        reader = open_reader(Path(file), path)
        if reader is None:
            raise NotComparable(f"{path}: no reader knows this format")
        with reader:
            return Side(path, "", describe_tensors(reader, md5), None, md5, reader.format)
    except (ModelverError, OSError) as err:
        raise NotComparable(str(err)) from err


def read_text(file: str, oid: str) -> list[str] | None:
    """Give one side as lines of text; None when it is too large or no text."""
    try:
        data = read_bytes(file, oid, MAX_TEXT_BYTES)
    except NotComparable:
        return None
    if data is None:
        return []
    if len(data) > MAX_TEXT_BYTES or b"\0" in data:
        return None
    return data.decode("utf-8", "replace").splitlines()
