"""git merge of two branches that trained different layers of one model, beside what any tool has to do for a result.

That is to copy the file and, as the result is an object of DVC, its md5; and ``dvc add``, which does both.

    python benchmarks/merge.py [--mb 400] [--runs 3]

Wall seconds, medians, runs in turns; memory is the peak of the largest process. The copy is synced, as all that we
write is, and a new file each time, as all that we write is: on a virtual machine, memory that was not used for a
while is slow at first, and a file that is written over gets the memory that it just gave up.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from run import make_model, run_timed
from safetensors.numpy import load_file, save_file

ENV = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # as installed: compiled once


def timed(command: str, folder: Path) -> tuple[float, float]:
    """Give wall seconds and peak memory in MB of a shell command."""
    return run_timed(["sh", "-ec", command], folder, ENV)[:2]


def train(model: Path, layer: str) -> None:
    weights = load_file(model)
    for name in [name for name in weights if layer in name]:
        weights[name] = weights[name] * 1.01
    save_file(weights, model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=400, help="size of the model (400)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each (3)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modelver-bench-") as name:
        folder = Path(name)
        config = folder / "gitconfig"
        config.write_text("[user]\nname = b\nemail = b@x\n[init]\ndefaultBranch = main\n")
        ENV.update(GIT_CONFIG_GLOBAL=str(config), PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        repo = folder / "repo"
        repo.mkdir()
        timed("modelver init", repo)
        make_model(repo / "m.safetensors", args.mb, 0)
        timed("git add . && git commit -qm base && git switch -qc other", repo)
        train(repo / "m.safetensors", ".0.")
        timed("git commit -qam other && git switch -q main", repo)
        train(repo / "m.safetensors", ".1.")
        timed("git commit -qam main", repo)
        commands = {
            "cp && sync": "cp m.safetensors ../copy$RUN && sync ../copy$RUN",
            "md5sum": "md5sum m.safetensors >/dev/null",
            "dvc add": "cd ../plain && rm -rf .dvc/cache *.dvc && dvc add -q m.safetensors",
            "git merge": "git merge -q other -m merge",
        }
        (folder / "plain").mkdir()
        timed("git init -q && dvc init -q && cp ../repo/m.safetensors .", folder / "plain")
        walls: dict[str, list[float]] = {what: [] for what in commands}
        peaks: dict[str, float] = dict.fromkeys(commands, 0.0)
        for run in range(args.runs):
            ENV["RUN"] = str(run)
            for what, command in commands.items():
                wall, peak = timed(command, repo)
                walls[what].append(wall)
                peaks[what] = max(peaks[what], peak)
            timed("git reset -q --hard HEAD~1 && rm -rf .git/modelver/merges", repo)
        print(f"{args.mb:.0f} MB, {args.runs} runs, {os.cpu_count()} cores")
        copying = statistics.median(walls["cp && sync"])
        print(f"{'':<16}{'wall s':>8}{'/ copy':>8}{'peak MB':>9}")
        for what, found in walls.items():
            wall = statistics.median(found)
            print(f"{what:<16}{wall:>8.3f}{wall / copying:>8.2f}{peaks[what]:>9.0f}")


if __name__ == "__main__":
    main()
