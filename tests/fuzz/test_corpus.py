"""What fuzzing found stays found: each input of ``tests/data/fuzz`` is read, or refused with one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.readers import TARGETS

CORPUS = Path(__file__).parents[1] / "data/fuzz"
INPUTS = sorted(path.relative_to(CORPUS).as_posix() for path in CORPUS.glob("*/*"))


@pytest.mark.parametrize("path", INPUTS)
def test_an_input_is_read_or_refused(path: str) -> None:
    TARGETS[path.split("/", maxsplit=1)[0]]((CORPUS / path).read_bytes())


@pytest.mark.parametrize("reader", TARGETS)
def test_an_intact_model_is_read_to_its_values(reader: str) -> None:
    assert TARGETS[reader]((CORPUS / reader / "intact").read_bytes()) > 0
