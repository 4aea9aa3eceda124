"""Side by side on one machine, in one run: modelver, plain DVC, and Git LFS where it is installed.

    python benchmarks/run.py [--mb 400] [--runs 3] [--out FILE]

Each tool gets the same history of one model (v1, and v2 with every weight moved by about 0.1 %), a fresh
home directory, a warm page cache, a disk at rest and the same link type (copies). Times are wall clock and
processor seconds of the whole process tree, memory is the peak of its largest process (sampled); runs of the
tools alternate in turns, medians and the ratio to plain DVC are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from safetensors.numpy import save_file

MODEL = "model.safetensors"


def make_model(path: Path, mb: float, seed: int, base: Path | None = None) -> None:
    """Write a transformer-shaped float32 model of about `mb` megabytes, or `base` moved by 0.1 %."""
    rng = np.random.default_rng(seed)
    if base is not None:
        from safetensors.numpy import load_file

        weights = load_file(base)
        moved = {
            k: w + rng.standard_normal(w.shape, dtype=np.float32) * np.float32(1e-3 * w.std())
            for k, w in weights.items()
        }
        save_file(moved, path)
        return
    width = max(64, round((mb * 1e6 / 4 / 184) ** 0.5 / 64) * 64)
    layers = max(2, round((mb * 1e6 / 4 / width**2 - 40) / 12))

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)

    weights = {
        "model.embed_tokens.weight": normal(20 * width, width),
        "lm_head.weight": normal(20 * width, width),
    }
    for i in range(layers):
        at = f"model.layers.{i}."
        weights |= {f"{at}self_attn.{p}_proj.weight": normal(width, width) for p in "qkvo"}
        weights[at + "mlp.up_proj.weight"] = normal(4 * width, width)
        weights[at + "mlp.down_proj.weight"] = normal(width, 4 * width)
        weights[at + "input_layernorm.weight"] = 1 + normal(width)
    save_file(weights, path)


@dataclass
class Tool:
    """How one tool does each step; commands for a POSIX shell, run in the repository."""

    name: str
    setup: str
    commit_first: str
    commit_again: str
    commit_other: str = "git commit -q -m other"
    diff: str = "git --no-pager diff HEAD~1 HEAD"
    checkout: str = "git checkout -q {rev}"
    push: str = "git push -q origin HEAD:refs/heads/main"


GIT = "git init -q -b main . && git init -q --bare {remote}.git && git remote add origin {remote}.git"
INIT = " && git add . && git commit -q -m init"
DVC = GIT + " && dvc init -q && dvc config core.analytics false && dvc remote add -q -d store {remote}" + INIT
LFS = GIT + f" && git lfs install --local > /dev/null && git lfs track {MODEL} > /dev/null" + INIT
TOOLS = [
    Tool(
        "modelver",
        GIT + " && modelver init --remote {remote} > /dev/null" + INIT,
        f"git add {MODEL} && git commit -q -m one",
        "git commit -q -am two",
    ),
    Tool(
        "dvc",
        DVC,
        f"dvc add -q {MODEL} && git add {MODEL}.dvc .gitignore && git commit -q -m one",
        f"dvc add -q {MODEL} && git commit -q -am two",
        checkout="git checkout -q {rev} && dvc checkout -q",
        push="dvc push -q && git push -q origin HEAD:refs/heads/main",
    ),
    Tool("git-lfs", LFS, f"git add {MODEL} && git commit -q -m one", "git commit -q -am two"),
]


@dataclass
class Measured:
    """One step, over the runs."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)


class Peak(threading.Thread):
    """Samples the largest resident process below a process."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root, self.mb, self._stop_now = psutil.Process(pid), 0.0, threading.Event()

    def run(self) -> None:
        while not self._stop_now.wait(0.05):
            try:
                for process in [self._root, *self._root.children(recursive=True)]:
                    self.mb = max(self.mb, process.memory_info().rss / 1e6)
            except psutil.Error:
                continue

    def stop(self) -> None:
        self._stop_now.set()
        self.join()


def run_timed(command: list[str], folder: Path, env: dict[str, str]) -> tuple[float, float, str]:
    """Give wall seconds, peak memory in MB and what a command wrote on standard error; end where it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = Peak(process.pid)
    peak.start()
    _, err = process.communicate()
    wall = time.perf_counter() - start
    peak.stop()
    if process.returncode:
        sys.exit(f"{command}: exit {process.returncode}\n{err.decode()}")
    return wall, peak.mb, err.decode()


def timed(command: str, folder: Path, env: dict[str, str], into: Measured | None) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall, peak_mb, _ = run_timed(["sh", "-ec", command], folder, env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if into is not None:
        into.wall_s.append(wall)
        into.cpu_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        into.peak_mb.append(peak_mb)


STEPS = ["commit first", "commit again", "commit other", "diff", "checkout", "push"]
OTHER = "date +%N > other.txt && git add other.txt"
BARE = "commit other, no hooks"
NO_WEIGHTS = "diff, weights gone"


def run_once(tool: Tool, versions: list[Path], scratch: Path, results: dict[str, Measured]) -> None:
    repo, remote, home = scratch / "repo", scratch / "remote", scratch / "home"
    repo.mkdir(parents=True)
    home.mkdir()
    (home / ".gitconfig").write_text(
        "[user]\nname = b\nemail = b@x\n[advice]\ndetachedHead = false\n[core]\npager = cat\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") and k != "PYTHONDONTWRITEBYTECODE"}
    env |= {
        "HOME": str(home),
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(home / "dvc"),
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"

    def step(name: str | None, command: str, times: int = 1, before: str = "") -> None:
        for _ in range(times):
            if before:
                timed(before, repo, env, None)
            timed(
                command.format(remote=remote, rev="HEAD~1"),
                repo,
                env,
                results.setdefault(name, Measured()) if name else None,
            )

    def put(version: Path) -> None:
        shutil.copy2(version, repo / MODEL)
        for copy in (scratch / "warm1", scratch / "warm2"):  # memory that a virtual machine has to fetch first
            shutil.copy2(version, copy)
        for copy in (scratch / "warm1", scratch / "warm2"):
            copy.unlink()
        os.sync()

    step(None, tool.setup)
    put(versions[0])
    step("commit first", tool.commit_first)
    step("push", tool.push)
    put(versions[1])
    step("commit again", tool.commit_again)
    step("diff", tool.diff, times=5)
    step("commit other", tool.commit_other, times=5, before=OTHER)
    if tool.name == "modelver":
        # the same commit without any of our hooks, to see what they cost
        off = "git -c core.hooksPath=/dev/null -c core.fsmonitor=false "
        step(BARE, tool.commit_other.replace("git ", off), times=5, before=OTHER)
    step(None, "git branch tip")
    step("checkout", tool.checkout.replace("{rev}", "HEAD~6" if tool.name != "modelver" else "HEAD~11"))
    step("checkout", tool.checkout.replace("{rev}", "tip"))
    if tool.name == "modelver":
        shutil.rmtree(repo / ".dvc/cache")
        (repo / MODEL).unlink()
        step(NO_WEIGHTS, "git --no-pager diff HEAD~11 HEAD", times=5)


def table(results: dict[str, dict[str, Measured]]) -> str:
    rows = [f"{'step':<24}{'tool':<10}{'wall s':>9}{'cpu s':>9}{'peak MB':>9}{'wall / dvc':>12}"]
    for name in [*STEPS, BARE, NO_WEIGHTS]:
        for tool, steps in results.items():
            if name not in steps:
                continue
            m = steps[name]
            wall = statistics.median(m.wall_s)
            dvc = results.get("dvc", {}).get(name)
            ratio = f"{wall / statistics.median(dvc.wall_s):.2f}" if dvc else "-"
            rows.append(
                f"{name:<24}{tool:<10}{wall:>9.3f}{statistics.median(m.cpu_s):>9.3f}{max(m.peak_mb):>9.0f}{ratio:>12}"
            )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=400, help="size of the model (400)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each tool (3)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON as well")
    args = parser.parse_args()

    tools = [t for t in TOOLS if t.name != "git-lfs" or shutil.which("git-lfs")]
    results: dict[str, dict[str, Measured]] = {t.name: {} for t in tools}
    with tempfile.TemporaryDirectory(prefix="modelver-bench-") as folder:
        scratch = Path(folder)
        versions = [scratch / "v1.safetensors", scratch / "v2.safetensors"]
        make_model(versions[0], args.mb, 0)
        make_model(versions[1], args.mb, 1, base=versions[0])
        size = versions[0].stat().st_size / 1e6
        print(f"model: {size:.0f} MB; runs: {args.runs}; {', '.join(t.name for t in tools)}; {os.cpu_count()} cores")
        for i in range(args.runs):
            for tool in tools[i % len(tools) :] + tools[: i % len(tools)]:
                run_once(tool, versions, scratch / f"{tool.name}-{i}", results[tool.name])
                shutil.rmtree(scratch / f"{tool.name}-{i}", ignore_errors=True)
    print(table(results))
    ours = results["modelver"]
    extra: Callable[[str], float] = lambda n: 1000 * statistics.median(ours[n].wall_s)  # noqa: E731
    print(f"\na commit without models costs {extra('commit other') - extra(BARE):.0f} ms more than without our hooks")
    if args.out:
        args.out.write_text(
            json.dumps({t: {s: vars(m) for s, m in steps.items()} for t, steps in results.items()}, indent=1)
        )


if __name__ == "__main__":
    main()
