"""Keras models in HDF5: the configuration is an attribute of the file, and may hold code.

Source: ``keras/src/legacy/saving/legacy_h5_format.py`` of Keras 3.15.
"""

from __future__ import annotations

import re
from typing import BinaryIO

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats.base import measure, read_exactly
from dvc_modelver.formats.hdf5 import MAX_USER_BLOCK, SIGNATURE
from dvc_modelver.security.configs import scan_json
from dvc_modelver.security.parts import Part
from dvc_modelver.security.verdicts import Findings, Verdict

MAX_SEARCHED_BYTES = 16 << 20
_CONFIGS = ("model_config", "training_config")
_LAMBDA = re.compile(rb'"class_name"\s*:\s*"(?:Lambda|__lambda__)"')


def is_hdf5(file: BinaryIO) -> bool:
    """Tell whether a file has HDF5's signature, at its start or behind a block of the user's."""
    return _find_start(file) is not None


def scan_hdf5(part: Part, findings: Findings) -> None:
    """Note the code that the configuration of a Keras model names; any other file is data.

    Raises:
        BadModelError: It is damaged, or keeps values elsewhere; the configuration is then searched for code alone.
    """
    from dvc_modelver.formats.hdf5_process import Window, list_contained

    file = part.open()
    start = _find_start(file) or 0
    try:
        texts = list_contained(Window(file, start, measure(file) - start, part.name)).texts
    except BadModelError:
        if _LAMBDA.search(part.read(MAX_SEARCHED_BYTES)):
            why = "compiled Python code, in a file that cannot be listed"
            findings.add(part.member, "keras.layers.Lambda", "layer", Verdict.DANGEROUS, why)
        raise
    for name in _CONFIGS:
        member = f"{part.member}: {name}" if part.member else name
        if name in texts and not scan_json(texts[name].encode(), member, findings):
            findings.add(member, "", "damage", Verdict.UNKNOWN, "no JSON that can be read, expected a configuration")


def _find_start(file: BinaryIO) -> int | None:
    n_bytes, offset = measure(file), 0
    while offset <= MAX_USER_BLOCK and offset + len(SIGNATURE) <= n_bytes:
        if read_exactly(file, offset, len(SIGNATURE), "") == SIGNATURE:
            return offset
        offset = offset * 2 or 512
    return None
