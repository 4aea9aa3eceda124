"""Any three models, merged by way of files, against a merge of three dictionaries."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from dvc_modelver.merge.models import Side, merge_models
from dvc_modelver.strategy import Rules, parse_strategy

Choices = dict[str, tuple[int, int, int]]

SHAPES: list[tuple[int, ...]] = [(70,), (70,), (9, 9), (70,)]
"""Version 2 of a tensor has another shape."""


def value(name: str, version: int) -> NDArray[Any]:
    rng = np.random.default_rng([ord(name), version])
    return rng.standard_normal(SHAPES[version]).astype(np.float32)


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.tuples(*[st.integers(-1, 3)] * 3)),
    st.sampled_from(["npz", "safetensors"]),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.differing_executors])
def test_files_are_merged_like_dictionaries(choices: Choices, kind: str) -> None:
    expected: dict[str, int] = {}
    conflicts = set()
    for name, (base, ours, theirs) in choices.items():
        if ours == theirs or base == theirs:
            merged = ours
        elif base == ours:
            merged = theirs
        else:
            conflicts.add(name)
            merged = theirs
        if merged >= 0:
            expected[name] = merged
    with tempfile.TemporaryDirectory() as folder:
        sides = []
        for i, side in enumerate(("base", "ours", "theirs")):
            path = Path(folder, f"{side}.{kind}")
            arrays = {name: value(name, versions[i]) for name, versions in choices.items() if versions[i] >= 0}
            _save(path, arrays)
            sides.append(Side(str(path), path))
        output = Path(folder, f"merged.{kind}")
        found = merge_models(sides[0], sides[1], sides[2], output)
        assert {d.name for d in found.plan.conflicts} == conflicts
        assert output.exists() == (not conflicts)
        decided = merge_models(sides[0], sides[1], sides[2], output, Rules(parse_strategy("theirs")))
        assert decided.output == output
        merged_arrays = _load(output)
    assert {name: a.tobytes() for name, a in merged_arrays.items()} == {
        name: value(name, version).tobytes() for name, version in expected.items()
    }


def _save(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    if path.suffix == ".npz":
        anything: Any = np.savez
        anything(path, **arrays)
    else:
        save_file(arrays, path)


def _load(path: Path) -> dict[str, NDArray[Any]]:
    if path.suffix == ".npz":
        with np.load(path) as archive:
            return {name: archive[name] for name in archive.files}
    arrays: dict[str, NDArray[Any]] = load_file(path)
    return arrays
