"""list, log, best and show on a repository with thousands of versions, beside ``gto show``.

    python -m benchmarks.registry [--versions 10000] [--commits 3000] [--tags 5000] [--models 20] [--runs 3]

The repository has metadata, tensor tables and pointers as the package writes them, tags as GTO reads them, and is
packed as a clone is. Whole programs are timed, start included: wall and processor seconds, medians, in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dvc_modelver.metadata import ChangeFacts
from tests.stream import VARIANTS, Stream, make_table, make_version, md5_of, rows

STAGES = ("dev", "staging", "prod")


def build(folder: Path, *, versions: int, commits: int, tags: int, models: int) -> None:
    """Write the repository; every tenth commit is made on a branch and merged."""
    rng, stream = random.Random(6), Stream()
    kinds = ("classifier", "ranker", "encoder", "detector")
    names = [f"{kinds[i % 4]}-{i:02}" for i in range(models)]
    paths = [f"models/{'vision' if i % 3 else 'text'}/{name}.safetensors" for i, name in enumerate(names)]
    artifacts = "".join(
        f"  {n}:\n    path: {p}\n    type: model\n    desc: model {n}\n" for n, p in zip(names, paths, strict=True)
    )
    main = stream.commit(
        {".dvc/config": b"", ".dvc/.gitignore": b"/config.local\n/tmp\n/cache\n",
         "dvc.yaml": f"artifacts:\n{artifacts}".encode()}
    )  # fmt: skip
    last: list[str] = [""] * models
    numbers, tensors = [0] * models, [dict.fromkeys(rows(), 0) for _ in range(models)]
    released, counters, n_tags = [[1, 0, 0] for _ in range(models)], [0] * models, 0
    for n in range(1, commits):
        share = (versions * n // (commits - 1)) - (versions * (n - 1) // (commits - 1))
        touched = rng.sample(range(models), min(share, models))
        files: dict[str, bytes | None] = {"train.py": f"# {n}\n".encode()}
        for i in touched:
            numbers[i] += 1
            for name in rng.sample(list(rows()), 3):
                tensors[i][name] = rng.randrange(VARIANTS)
            md5 = md5_of(f"{names[i]} {numbers[i]}")
            change = (
                ChangeFacts(
                    from_=last[i],
                    kind="fine-tune",
                    cosine=round(rng.uniform(0.9, 1), 9),
                    relative_l2=round(rng.uniform(0, 0.3), 4),
                    tensors_changed=3,
                )
                if last[i]
                else None
            )
            accuracy = 1 - 0.5 / (1 + numbers[i] / 50) + rng.gauss(0, 0.01)
            _, made = make_version(
                names[i], paths[i], numbers[i], parents=(last[i],) if last[i] else (),
                table=make_table(md5, tensors[i]), change=change, framework="pytorch", duration_s=rng.randrange(9_000),
                packages={"torch": "2.9.0", "numpy": "2.3.4", "transformers": "4.57.1"},
                hyperparameters={"lr": rng.choice([1e-4, 3e-4, 1e-3, 1e-2]), "epochs": rng.randrange(1, 40),
                                 "batch_size": 64, "optimizer": {"name": "adamw", "weight_decay": 0.01}, "seed": n},
                metrics={"val_acc": round(accuracy, 6), "val_loss": round(1 - accuracy, 6), "f1": round(accuracy, 3)},
                data=({"path": "data/train.parquet", "md5": md5_of(f"data{n // 200}"), "bytes": 123_456_789},),
            )  # fmt: skip
            files |= made
            last[i] = md5
        author = rng.choice(["Ada", "Grace", "Mary"])
        if n % 10 == 0:
            side = stream.commit(files, branch="side", parents=[main], author=author, message=f"train {n}")
            main = stream.commit(files, parents=[main, side], author=author, message="merge")
        else:
            main = stream.commit(files, parents=[main], author=author, message=f"train {len(touched)} models")
        for i in touched:
            if n_tags >= tags * n // commits:
                break
            n_tags += 1
            released[i][2 if rng.random() < 0.5 else 1] += 1
            version = "v{}.{}.{}".format(*released[i])
            record = {"schema": "modelver.tag/1", "path": paths[i], "md5": last[i], "number": numbers[i]}
            stream.tag(f"{names[i]}@{version}", main, f"{names[i]} {version}\n\n{json.dumps(record, indent=2)}\n")
            if n_tags < tags and rng.random() < 0.4:
                n_tags += 1
                counters[i] += 1
                stage = rng.choice(STAGES)
                stream.tag(f"{names[i]}#{stage}#{counters[i]}", main, f"{names[i]} {version} is {stage}\n")
    stream.load(folder)
    for command in ("git gc -q", "git config user.name bench", "git config user.email bench@example.org"):
        subprocess.run(shlex.split(command), cwd=folder, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("versions", 10_000), ("commits", 3_000), ("tags", 5_000), ("models", 20), ("runs", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--keep", type=Path, help="make the repository here, or use the one that is here")
    parser.add_argument("--only", help="commands that have this word")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modelver-bench-") as name:
        folder = args.keep or Path(name) / "repo"
        env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "GIT_CONFIG_NOSYSTEM": "1"}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        if not (folder / ".git").exists():
            start = time.perf_counter()
            build(folder, versions=args.versions, commits=args.commits, tags=args.tags, models=args.models)
            print(f"built in {time.perf_counter() - start:.0f} s")
        count = subprocess.run("git log --format= --name-only --diff-merges=off -- '*.modelver.json' | wc -l; "
                               "git rev-list --count HEAD; git tag | wc -l", shell=True, cwd=folder, check=True,
                               capture_output=True, text=True).stdout.split()  # fmt: skip
        print("{} versions, {} commits, {} tags".format(*count) + f", {args.runs} runs, {os.cpu_count()} cores")
        one = "classifier-00"
        commands = {
            "gto show": "gto show",
            "list": "modelver list",
            "log": f"modelver log {one}",
            "best": f"modelver best {one} --metric val_acc",
            "show": f"modelver show {one}",
            "show NAME@7": f"modelver show {one}@7",
            "lineage": f"modelver lineage {one}",
            "log --where": f"modelver log {one} --where 'metrics.val_acc > 0.9 and hyperparameters.lr <= 0.001'",
            "list --where": "modelver list --where 'metrics.val_acc > 0.97'",
            "git log --raw": "git log --raw --format=%H -- '*.modelver.json'",
        }
        commands = {what: line for what, line in commands.items() if not args.only or args.only in line}
        times: dict[str, list[tuple[float, float]]] = {what: [] for what in commands}
        for _ in range(args.runs + 1):  # the first one warms the page cache
            for what, line in commands.items():
                before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
                done = subprocess.run(shlex.split(line), cwd=folder, env=env, capture_output=True, check=False)
                wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
                times[what].append((wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
                if done.returncode:
                    sys.exit(f"{line}: exit {done.returncode}\n{done.stderr.decode()}")
        print(f"{'':<16}{'wall s':>8}{'CPU s':>8}")
        for what, found in times.items():
            wall, cpu = (statistics.median(column) for column in zip(*found[1:], strict=True))
            print(f"{what:<16}{wall:>8.3f}{cpu:>8.3f}")


if __name__ == "__main__":
    main()
