"""Whatever name a real unpickler would import, the scan has seen, or has said that it could not read on."""

from __future__ import annotations

import contextlib
import io
import pickle
import random
from collections.abc import Iterator
from typing import Any

from dvc_modelver.formats.pickles import Global
from dvc_modelver.security.scan import scan_file
from dvc_modelver.security.verdicts import Verdict, judge_import
from tests.security.samples import DANGEROUS, SAFE, UNKNOWN

OPCODES = b"(.0122FIJKLMNPQRSTUVX]abcdeghijlopqrstu}\x80\x81\x82\x85\x86\x87\x88\x8c\x8f\x90\x91\x92\x93\x94\x95)"


class Inert:
    """Stands for every class and function: takes anything, does nothing."""

    def __new__(cls, *_args: object, **_kwargs: object) -> Any:
        return super().__new__(cls)

    def __call__(self, *_args: object) -> Inert:
        return self

    def __setitem__(self, key: object, value: object) -> None: ...

    def __hash__(self) -> int:
        return 1

    def append(self, item: object) -> None: ...

    def extend(self, items: object) -> None: ...

    def add(self, item: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def make_recorder(base: Any) -> Any:
    class Recorder(base):  # type: ignore[misc]
        def __init__(self, data: bytes) -> None:
            super().__init__(io.BytesIO(data))
            self.found: list[Global] = []

        def find_class(self, module: str, name: str) -> Any:
            # The old names are mapped before this is asked only where the real one does the import.
            self.found.append(Global(module, name))
            return Inert

        def persistent_load(self, _pid: object) -> Any:
            raise pickle.UnpicklingError("no persistent ids")

    return Recorder


def imports_of(recorder: Any, data: bytes) -> list[Global]:
    reader = recorder(data)
    with contextlib.suppress(Exception):  # where it stops is not the question
        reader.load()
    return list(reader.found)


def seeds() -> list[bytes]:
    found = [data for table in (UNKNOWN, SAFE) for name, data in table.values() if name == "m.pkl"]
    return found + [data for name, data, _ in DANGEROUS.values() if name == "m.pkl" and data[:1] in b"\x80c("]


def mutants(n: int, seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    known = seeds()
    for _ in range(n):
        data = bytearray(rng.choice(known))
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(data) + 1)
            match rng.randrange(5):
                case 0:
                    data[at : at + 1] = bytes([rng.choice(OPCODES)])
                case 1:
                    data[at:at] = bytes([rng.choice(OPCODES)])
                case 2:
                    del data[at : at + rng.randrange(1, 4)]
                case 3:
                    other = rng.choice(known)
                    begin = rng.randrange(len(other))
                    data[at:at] = other[begin : begin + rng.randrange(1, 30)]
                case _:
                    data[at : at + 1] = bytes([rng.randrange(256)])
        yield bytes(data)


def check(recorder: Any, data: bytes) -> bool:
    """Compare one pickle; give whether it imports anything."""
    imports = imports_of(recorder, data)
    found = scan_file(io.BytesIO(data), "m.pkl")
    if found.verdict is Verdict.SAFE:
        assert all(judge_import(name)[0] is Verdict.SAFE for name in imports), data
    if any(judge_import(name)[0] is Verdict.DANGEROUS for name in imports):
        # A name at the very end of a file, without its newline, is imported and cannot be called any more.
        assert found.verdict is Verdict.DANGEROUS or found.findings[0].kind == "damage", data
    return bool(imports)


def test_the_samples() -> None:
    recorder = make_recorder(pickle.Unpickler)
    assert sum(check(recorder, data) for data in seeds()) > 20


def test_no_name_escapes() -> None:
    # Python's own unpickler in Python: the one in C takes gigabytes for one large number of a memo entry.
    recorder = make_recorder(pickle._Unpickler)
    assert sum(check(recorder, data) for data in mutants(6_000, 7)) > 1_000
