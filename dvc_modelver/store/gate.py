"""The gate pointer: what ``git add`` of raw weights puts into the index until pre-commit replaces it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

HEADER = "modelver.gate/1"
MAX_GATE_BYTES = 1024
MAX_TEXT_BYTES = 64 << 10
"""A smaller file that is UTF-8 text is no weights: ``.pth`` path files, pointers of Git LFS, our own."""

_GATE = re.compile(
    rb"modelver\.gate/1\nmd5 (?P<md5>[0-9a-f]{32})\nsha256 (?P<sha256>[0-9a-f]{64})\nsize (?P<size>[0-9]{1,18})\n"
)


@dataclass(frozen=True)
class GatePointer:
    """Names an object of the cache.

    Attributes:
        size: Bytes of the object.
    """

    md5: str
    sha256: str
    size: int

    def render(self) -> bytes:
        """Give the bytes that stand in the index."""
        return f"{HEADER}\nmd5 {self.md5}\nsha256 {self.sha256}\nsize {self.size}\n".encode()


def find_gate(content: bytes) -> GatePointer | None:
    """Read a gate pointer; None for any other content."""
    match = _GATE.fullmatch(content) if len(content) <= MAX_GATE_BYTES else None
    return GatePointer(match["md5"].decode(), match["sha256"].decode(), int(match["size"])) if match else None


def is_raw_weights(size: int, read: Callable[[], bytes]) -> bool:
    """Whether a blob of Git is weights themselves, and neither a gate pointer nor a small text.

    Args:
        size: Its length in bytes.
        read: Gives its content.
    """
    return size > MAX_TEXT_BYTES or not is_plain_text(read(), size)


def is_plain_text(start: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that begins with `start` is a small text, and so no weights."""
    if size > MAX_TEXT_BYTES or b"\0" in start:
        return False
    try:
        start.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
