"""Git's own colour settings, for a driver that prints in Git's name."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from dvc_modelver.diff.render.text import PLAIN, Palette

_COLORS = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")
_ATTRIBUTES = {"bold": 1, "dim": 2, "italic": 3, "ul": 4, "blink": 5, "reverse": 7, "strike": 9}


def ansi_of(words: str) -> str:
    """Give the ANSI sequence of a colour as git-config(1) spells it: ``bold red``, ``#ff0000``, ``203 ul``."""
    codes: list[str] = []
    ground = 38
    for word in words.lower().split():
        if word in _ATTRIBUTES:
            codes.append(str(_ATTRIBUTES[word]))
        elif word.removeprefix("bright") in _COLORS:
            base = ground - 8 + (60 if word.startswith("bright") else 0)
            codes.append(str(base + _COLORS.index(word.removeprefix("bright"))))
            ground = 48
        elif re.fullmatch(r"#[0-9a-f]{6}", word):
            codes.append(f"{ground};2;{int(word[1:3], 16)};{int(word[3:5], 16)};{int(word[5:7], 16)}")
            ground = 48
        elif word.isdigit() and int(word) < 256:
            codes.append(f"{ground};5;{word}")
            ground = 48
        elif word in ("normal", "default"):
            ground = 48
    return f"\x1b[{';'.join(codes)}m" if codes else ""


def find_palette() -> Palette:
    """Give the colours that ``git diff`` uses now; none when it uses none."""
    is_tty = sys.stdout.isatty() or os.environ.get("GIT_PAGER_IN_USE") in ("true", "1")
    if _git("config", "--get-colorbool", "color.diff", "true" if is_tty else "false").strip() != "true":
        return PLAIN
    own: dict[str, str] = {}
    for line in _git("config", "--get-regexp", r"^color\.diff\.").splitlines():
        key, _, words = line.partition(" ")
        own[key.removeprefix("color.diff.")] = ansi_of(words)
    default = Palette()
    return Palette(
        meta=own.get("meta", default.meta),
        old=own.get("old", default.old),
        new=own.get("new", default.new),
        frag=own.get("frag", default.frag),
    )


def _git(*args: str) -> str:
    try:
        done = subprocess.run(["git", *args], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except OSError:
        return ""
    return done.stdout
