"""Fuzzes one reader: ``python -m tests.fuzz READER CORPUS [OPTION OF LIBFUZZER]...``; needs ``pip install atheris``."""

from __future__ import annotations

import pkgutil
import sys
import warnings
from importlib import import_module

import atheris


def main() -> None:
    # What is imported here counts its branches, so it comes before the targets.
    with atheris.instrument_imports(include=["dvc_modelver"]):
        for package in ("dvc_modelver.formats", "dvc_modelver.security"):
            for module in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
                import_module(module.name)
    from tests.fuzz.readers import TARGETS

    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python -m tests.fuzz READER CORPUS [OPTION]...\nREADER is one of {' '.join(TARGETS)}")
    warnings.simplefilter("error")
    name, *arguments = sys.argv[1:]
    options = ["-rss_limit_mb=512", "-timeout=5"]
    if name in ("hdf5", "keras"):
        # The child that lists HDF5 may crash, which libFuzzer's handlers would report, or use up its 2 s of processor.
        options += ["-timeout=30", *(f"-handle_{signal}=0" for signal in ("abrt", "bus", "fpe", "ill", "segv"))]
    atheris.Setup([sys.argv[0], *options, *arguments], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
