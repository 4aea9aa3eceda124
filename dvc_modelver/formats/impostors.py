"""What stands under a model's name where its weights should: a Git LFS pointer, a web page, an error text, nothing.

Standard library only: the filter and the hooks ask as well.
"""

from __future__ import annotations

from dataclasses import dataclass

START_BYTES = 512
"""Bytes of the beginning of a file that tell."""

_LFS = b"version https://git-lfs.github.com/spec/"
_PAGE = (b"<!doctype html", b"<html", b"<head", b"<body")
_XML = b"<?xml"
_AGAIN = "download it again, and look at what the server answers"


@dataclass(frozen=True)
class Impostor:
    """A file that is no weights.

    Attributes:
        what: What it is.
        hint: The command, or the step, that gives the weights.
    """

    what: str
    hint: str


def find_impostor(start: bytes, size: int) -> Impostor | None:
    """Recognise a file that only has a model's name; None for any other.

    Args:
        start: Its first `START_BYTES` bytes, or all of a shorter one.
        size: Its length in bytes.
    """
    if not size:
        return Impostor("an empty file", "write the weights again")
    if start.startswith(_LFS):
        return Impostor("a Git LFS pointer", "git lfs pull")
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(_PAGE):
        return Impostor("an HTML page", _AGAIN)
    if text.startswith(_XML):
        return Impostor("an XML document", _AGAIN)
    return None
