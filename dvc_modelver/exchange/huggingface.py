"""A folder as the Hugging Face Hub takes it: the weights and a model card. Nothing is sent anywhere."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Callable
from pathlib import Path

from dvc_modelver.errors import UsageError, word
from dvc_modelver.exchange.card import MAX_CARD_BYTES, renew_card
from dvc_modelver.exchange.release import Release
from dvc_modelver.worktree.destination import check_destination
from dvc_modelver.worktree.state import write_file

README = "README.md"


def read_readme(folder: Path) -> bytes | None:
    """Give the card that a folder has; None where it has none."""
    if not (folder / README).exists():
        return None
    with (folder / README).open("rb") as file:
        return file.read(MAX_CARD_BYTES + 1)


def fill_folder(
    folder: Path, release: Release, weights: Path, *, force: bool = False, say: Callable[[str], None]
) -> None:
    """Move weights into a folder and write the card, last: a folder that has one is whole.

    Args:
        folder: Where to; other files in it stay.
        release: The version.
        weights: Its file, or its folder of files, on the same disk.
        force: Replace files that are there and differ.
        say: Takes lines for the user.

    Raises:
        UsageError: A file is there and differs, or DVC keeps it.
        BadMetadataError: The folder has a ``README.md`` that is no card of ours.
    """
    is_folder = weights.is_dir()
    name = Path(release.metadata.model.path).name
    files = sorted(p for p in weights.rglob("*") if p.is_file()) if is_folder else [weights]
    moves = {file: folder / (file.relative_to(weights) if is_folder else name) for file in files}
    own = next((file for file, to in moves.items() if to == folder / README), None)
    old = read_readme(folder)
    card = None if own is not None and old is None else renew_card(old, release, str(folder / README))
    if own is not None:
        if old is None:
            say(f"{release.label}: has a {README} of its own, which stays; modelver card {release.label} prints ours")
        else:
            moves.pop(own)
    for file, to in moves.items():
        if not to.exists() or (to.is_file() and filecmp.cmp(file, to, shallow=False)):
            continue
        check_destination(to)
        if not force:
            raise UsageError(
                f"{to}: is there already, and differs",
                hint=f"modelver export {word(release.label)} {word(folder)} --to huggingface --force",
            )
    for file, to in moves.items():
        to.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, to)
    if card is not None:
        write_file(folder / README, card)
