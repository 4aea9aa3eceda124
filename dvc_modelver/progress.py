"""A progress line on standard error: after one second, and only on a terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self


def human_bytes(n: float) -> str:
    """Give a size with a decimal unit, like ``406 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n) < 1000 or unit == "GB":
            return f"{n:.0f} {unit}" if unit == "B" or abs(n) >= 100 else f"{n:.1f} {unit}"
        n /= 1000
    raise AssertionError


class ProgressLine:
    """Counts bytes and shows them as ``what  45 %  183 MB of 406 MB``.

    Args:
        what: What is being done, in a few words.
        total: Bytes expected; 0 when not known.
    """

    def __init__(self, what: str, total: int = 0) -> None:
        self._what, self._total = what, total
        self._done, self._shown = 0, False
        self._next = time.monotonic() + 1.0
        self._active = sys.stderr.isatty()

    def __call__(self, n_bytes: int) -> None:
        """Count `n_bytes` more."""
        self._done += n_bytes
        if not self._active or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + 0.1
        self._shown = True
        of = f"{100 * self._done // self._total:3d} %  " if self._total else ""
        total = f" of {human_bytes(self._total)}" if self._total else ""
        sys.stderr.write(f"\r{self._what}  {of}{human_bytes(self._done)}{total}\x1b[K")
        sys.stderr.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Clear the line."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
