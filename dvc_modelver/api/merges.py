"""merge_file: three models into one, without a repository."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from dvc_modelver.errors import BadMetadataError, NotFoundError, UsageError, word
from dvc_modelver.merge.models import Merged, Side, merge_models
from dvc_modelver.progress import ProgressLine
from dvc_modelver.repository import Repository
from dvc_modelver.store.folders import folder_bytes
from dvc_modelver.strategy import Rules, parse_strategy
from dvc_modelver.worktree.destination import keep_weights
from dvc_modelver.worktree.state import is_special

__all__ = ["Merged", "merge_file"]


def merge_file(
    base: str | Path, ours: str | Path, theirs: str | Path, output: str | Path, *,
    strategy: str | None = None, tensors: Iterable[str] = (),
) -> Merged:  # fmt: skip
    """Merge three model files or folders, tensor by tensor.

    What one side alone changed is taken; where both did, `tensors`, then `strategy`, then ``[merge]`` of the
    ``.modelver.toml`` of the repository around `ours` decides, and a conflict stays where nothing does.

    Args:
        base: The common ancestor; ``/dev/null`` where there is none.
        ours: The side that is merged into; the result has its format.
        theirs: The side that is merged.
        output: Where the result goes, a file that is there is replaced (the weights of a tracked model are in the cache
            before). It is not written where there are conflicts.
        strategy: ``NAME`` or ``NAME:PARAMETER=VALUE,...`` for tensors that no rule matches.
        tensors: Rules ``PATTERN=STRATEGY``; of those that match a name the last wins.

    Raises:
        NotFoundError: There is no such file or folder.
        UsageError: A strategy that there is not, a format that no reader knows, a file and a folder.
        BadModelError: A file is damaged.
    """
    paths = {"base": Path(base), "ours": Path(ours), "theirs": Path(theirs)}
    if os.fspath(base) == os.devnull:
        del paths["base"]
    for path in paths.values():
        if not path.exists():
            raise NotFoundError(f"{path}: no such file or folder", hint=f"ls {word(path.parent)}")
    if is_special(Path(output)):
        raise UsageError(f"{output}: a device or a pipe, expected a file", hint="-o FILE")
    if not Path(output).parent.is_dir():
        raise NotFoundError(f"{Path(output).parent}: no such folder", hint=f"mkdir -p {word(Path(output).parent)}")
    tensors = tuple(tensors)  # read twice
    rules = _find_rules(paths["ours"], strategy, tensors)
    sides = {key: Side(str(path), path) for key, path in paths.items()}
    keep_weights(Path(output))
    total = sum(map(folder_bytes, paths.values())) + 2 * folder_bytes(paths["ours"])
    with ProgressLine("merging", total) as progress:
        done = merge_models(sides.get("base"), sides["ours"], sides["theirs"], Path(output), rules, progress=progress)
    names = [*(t.name for t in done.plan.tensors), *(f.name for f in done.plan.facts)]
    idle = [p for p in (given.partition("=")[0] for given in tensors) if not fnmatch.filter(names, p)]
    return replace(done, notes=(*done.notes, *(f"--tensors {pattern}: no tensor has such a name" for pattern in idle)))


def _find_rules(ours: Path, strategy: str | None, tensors: Iterable[str]) -> Rules:
    try:
        repo = Repository.open(ours.parent)
        rules = repo.settings.merge_rules(repo.repo_path(ours) or ours.name)
    except UsageError:
        rules = Rules()
    try:
        if strategy is not None:
            rules = Rules(parse_strategy(strategy), rules.rules)
        for given in tensors:
            pattern, equals, name = given.partition("=")
            if not equals or not pattern:
                raise UsageError(f"{given}: expected PATTERN=STRATEGY", hint="--tensors 'encoder.*=mean'")
            rules = rules.with_rule(pattern, parse_strategy(name, f"strategy for {pattern}"))
    except BadMetadataError as err:
        raise UsageError(str(err)) from err
    return rules
