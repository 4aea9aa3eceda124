"""Starts what Git calls: ``python -P start.py diff|filter|hooks|merge|textconv ARGS``.

When the package, or one that it needs, is not there any more, that is one line and not Python's own words.
"""

import gc
import os
import sys


def main(argv: list[str]) -> int:
    """Run a driver; 127, as a shell gives for a program that is not there, when it cannot be imported."""
    os.environ.pop("GIT_INTERNAL_SUPER_PREFIX", None)  # Git commands refuse to run with it
    # Nothing here multiplies matrices, and starting threads for it is half of the CPU time of importing NumPy
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from importlib import import_module

        if argv[0] == "merge":
            from dvc_modelver.drivers.answered import answer

            if answer(argv[1:]):
                return 0
        gc.disable()  # what is imported stays
        driver = import_module(f"dvc_modelver.drivers.{argv[0]}")
        gc.enable()
        return int(driver.main(argv[1:]))
    except ModuleNotFoundError as err:
        sys.stderr.write(
            f"modelver: {err.name} is not installed for {sys.executable} any more "
            "(pip install dvc-modelver; modelver install)\n"
        )
        return 127


if __name__ == "__main__":
    code = main(sys.argv[1:])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # nobody reads it any more
        code = code or 1
    os._exit(code)  # taking the interpreter apart, module by module, takes as long as a question to Git
