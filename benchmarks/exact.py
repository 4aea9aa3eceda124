"""Exact comparison of two files, beside reading them, and beside diffai where it is installed.

    python benchmarks/exact.py [--mb 1400] [--runs 5]

Two float32 safetensors files of the same shapes, every value moved; a second pair in which two layers changed, with
their tensor tables at hand. Both files are in the page cache. Wall seconds, medians, runs in turns; memory is the peak
of the largest process.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from run import make_model, run_timed
from safetensors.numpy import load_file, save_file

EXACT = """
import sys, time
from pathlib import Path
import dvc_modelver.diff.weights
from dvc_modelver.api.compare import compare_files
start = time.perf_counter()
found = compare_files(Path(sys.argv[1]), Path(sys.argv[2]), exact=True)
print(time.perf_counter() - start, file=sys.stderr)
assert found.tensors_changed and found.exact
"""
SIDES = """
import sys, time
start = time.perf_counter()
from dvc_modelver import api
found = api.diff("m@1", "m@2", exact=True)
print(time.perf_counter() - start, file=sys.stderr)
assert found[0].tensors_changed and found[0].exact
"""
ENV = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # as installed: compiled once
DIFFAI = "import sys, diffai; diffai.diff_paths(sys.argv[1], sys.argv[2])"


def timed(command: list[str], folder: Path) -> tuple[float, float, str]:
    """Give wall seconds, peak memory in MB and the last line of standard error."""
    wall, peak_mb, err = run_timed(command, folder, ENV)
    return wall, peak_mb, (err.splitlines() or [""])[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=1400, help="size of each file (1400)")
    parser.add_argument("--runs", type=int, default=5, help="runs of each (5)")
    args = parser.parse_args()
    modelver = str(Path(sys.executable).parent / "modelver")
    with tempfile.TemporaryDirectory(prefix="modelver-bench-") as name:
        folder = Path(name)
        make_model(folder / "a.safetensors", args.mb, 0)
        make_model(folder / "b.safetensors", args.mb, 1, base=folder / "a.safetensors")
        pair = ["a.safetensors", "b.safetensors"]
        commands = {
            "cat a b > /dev/null": ["cat", *pair],
            "comparison alone, imports done": [sys.executable, "-P", "-c", EXACT, *pair],
            "modelver diff --exact a b": [modelver, "diff", "--exact", *pair],
        }
        if importlib.util.find_spec("diffai"):
            commands["diffai"] = [sys.executable, "-P", "-c", DIFFAI, *pair]
        walls: dict[str, list[float]] = {what: [] for what in commands}
        peaks: dict[str, float] = {}
        for _ in range(args.runs):
            for what, command in commands.items():
                wall, peak, said = timed(command, folder)
                walls[what].append(float(said) if what == "comparison alone, imports done" else wall)
                peaks[what] = max(peak, peaks.get(what, 0.0))
        sides(folder, modelver, walls, args.runs)
    size = args.mb * 2 / 1000
    print(f"{size:.1f} GB in two files, {args.runs} runs, {os.cpu_count()} cores")
    reading = statistics.median(walls["cat a b > /dev/null"])
    print(f"{'':<40}{'wall s':>8}{'/ reading':>11}{'peak MB':>9}")
    for what, found in walls.items():
        wall = statistics.median(found)
        print(f"{what:<40}{wall:>8.3f}{wall / reading:>11.2f}{peaks.get(what, float('nan')):>9.0f}")


def sides(folder: Path, modelver: str, walls: dict[str, list[float]], runs: int) -> None:
    """Time the same in a repository whose tensor tables leave two layers to be read."""
    repo = folder / "repo"
    repo.mkdir()
    env = ENV | {
        "GIT_CONFIG_GLOBAL": str(folder / "gitconfig"),
        "PATH": f"{Path(modelver).parent}:{os.environ['PATH']}",
    }
    (folder / "gitconfig").write_text("[user]\nname = b\nemail = b@x\n[init]\ndefaultBranch = main\n")

    def sh(command: str) -> None:
        subprocess.run(["sh", "-ec", command], cwd=repo, env=env, check=True, capture_output=True)

    sh("modelver init")
    os.rename(folder / "a.safetensors", repo / "m.safetensors")
    sh("git add . && git commit -qm one")
    weights = load_file(repo / "m.safetensors")
    for key in [k for k in weights if ".0." in k or ".1." in k]:
        weights[key] = weights[key] * 1.01
    save_file(weights, repo / "m.safetensors")
    del weights
    sh("git commit -qam two")
    whole, alone = "two layers changed, in a repository", "the same by api.diff, imports included"
    walls[whole], walls[alone] = [], []
    for _ in range(runs + 1):
        start = time.perf_counter()
        sh("modelver diff --exact m@1 m@2")
        walls[whole].append(time.perf_counter() - start)
        done = subprocess.run(
            [sys.executable, "-P", "-c", SIDES], cwd=repo, env=env, check=True, capture_output=True, text=True
        )
        walls[alone].append(float(done.stderr.split()[-1]))
    for what in (whole, alone):
        walls[what].pop(0)


if __name__ == "__main__":
    main()
