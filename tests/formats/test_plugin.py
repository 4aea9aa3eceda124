"""Another package adds a format by an entry point."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MODULE = '''
"""Reads "toy" files: a line with the name and the number of values, then float32 values."""

from dvc_modelver.formats.base import FileReader, count_elements, fill, read_exactly, measure
from dvc_modelver.errors import BadModelError
from dvc_modelver.tensors import TensorSpec

FORMAT = "toy"
SUFFIXES = (".toy",)


def matches(file):
    return measure(file) > 4 and read_exactly(file, 0, 4, "toy") == b"TOY "


def open_file(source, name, folder=None):
    return ToyReader(source, name)


class ToyReader(FileReader):
    format = FORMAT
    framework = None

    def __init__(self, source, name=""):
        super().__init__(source, name)
        line = read_exactly(self._file, 0, min(measure(self._file), 100), name).split(b"\\\\n")[0]
        tensor, count = line.decode().split()[1:]
        if measure(self._file) != len(line) + 1 + 4 * int(count):
            raise BadModelError(f"{name}: found another length than {count} values need")
        self.specs = (TensorSpec(tensor, "F32", (int(count),)),)
        self._start = len(line) + 1

    def iter_buffers(self, spec, n_bytes):
        for at in range(0, spec.nbytes, n_bytes):
            buffer = memoryview(bytearray(min(n_bytes, spec.nbytes - at)))
            self._file.seek(self._start + at)
            fill(self._file, buffer)
            yield buffer
'''

SCRIPT = """
import sys
from pathlib import Path
from dvc_modelver.api import describe_file
from dvc_modelver.formats import known_suffixes
table, kind, size = describe_file(Path(sys.argv[1]))
row = table.rows[0]
print(kind, row.name, row.shape, row.max, ".toy" in known_suffixes())
"""


def test_an_entry_point_adds_a_format(tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "toy-1.0.dist-info").mkdir(parents=True)
    (site / "toy_format.py").write_text(MODULE.replace("\\\\n", "\\n"))
    (site / "toy-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (site / "toy-1.0.dist-info/entry_points.txt").write_text("[dvc_modelver.formats]\ntoy = toy_format\n")
    model = tmp_path / "model.toy"
    model.write_bytes(b"TOY bias 3\n" + bytes.fromhex("0000803f0000004000004040"))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(Path.cwd())])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split("\n")[0] == "toy bias (3,) 3 True", done.stderr
