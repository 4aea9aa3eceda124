"""card, export, import: versions told to other programs, and taken from them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dvc_modelver.api.ancestry import lineage
from dvc_modelver.api.elsewhere import missing_parts
from dvc_modelver.api.inspect import show
from dvc_modelver.api.select import check_described, select
from dvc_modelver.api.track import add
from dvc_modelver.api.versions import load
from dvc_modelver.errors import NotFoundError, ObjectCorrupt, UsageError, word
from dvc_modelver.exchange.card import MAX_CARD_BYTES, renew_card
from dvc_modelver.exchange.release import Parent, Release
from dvc_modelver.formats import known_suffixes
from dvc_modelver.formats.folder import is_model_folder
from dvc_modelver.metadata import ModelMetadata
from dvc_modelver.pipeline import is_finite
from dvc_modelver.registry.evaluations import measured_metrics
from dvc_modelver.registry.graph import Key
from dvc_modelver.registry.lineage import Lineage
from dvc_modelver.registry.tags import NAME
from dvc_modelver.repository import Repository, speakable
from dvc_modelver.settings import WEIGHT_SUFFIXES
from dvc_modelver.store.folders import hash_path
from dvc_modelver.worktree.destination import write_output
from dvc_modelver.worktree.state import is_special

Say = Callable[[str], None]
TARGETS = ("huggingface", "cyclonedx", "mlflow")


def read_release(reference: str, *, folder: Path | None = None) -> Release:
    """Gather what is known of one version.

    Raises:
        NotFoundError: No such model or version.
        UsageError: No version is named, and the weights on disk are not those that are described.
    """
    repo = Repository.open(folder)
    check_described(repo, select(repo, reference))
    shown = show(reference, folder=folder)
    metadata, name = shown.metadata, shown.model.name
    structure = shown.table.structure if shown.table is not None else {}
    facts: dict[str, Any] = {
        "description": shown.description, "labels": shown.labels, "structure": structure,
        "metrics": measured_metrics(metadata, shown.evaluations),
    }  # fmt: skip
    declared = structure.get("adapter_config.base_model_name_or_path")
    bases = ((declared, "adapter"),) if isinstance(declared, str) and declared else ()
    try:
        traced = lineage(f"{name}@{metadata.md5}", folder=folder)
    except NotFoundError:  # in no commit yet
        return Release(metadata, name, bases=bases, **facts)
    (key,) = traced.about
    every, v = traced.lineage, traced.lineage.versions[key]
    parents = tuple(
        Parent(every.label(a.key), a.key[0], a.key[1], a.how, a.source, a.cosine) for a in every.ancestors[key]
    )
    return Release(
        metadata, name, tags=v.tags, stages=v.stages, commit=v.commit, date=v.date, subject=v.subject,
        parents=parents, bases=bases or tuple(_bases(every, key).items()), **facts,
    )  # fmt: skip


def _bases(every: Lineage, key: Key) -> dict[str, str]:
    """Give the other models that a version comes from, nearest first, and how; not what those come from."""
    found: dict[str, str] = {}
    todo, seen = [key], {key}
    for child in todo:
        for a in every.ancestors.get(child, ()):
            if a.is_cycle or not a.is_known:
                continue
            if a.key[0] != key[0]:
                found.setdefault(a.key[0], a.how)
            elif a.key not in seen:
                seen.add(a.key)
                todo.append(a.key)
    return found


def card(reference: str, output: Path | None = None, *, folder: Path | None = None) -> str:
    """Give a version's model card; into a file that is there, only the generated parts are written.

    Args:
        reference: ``NAME``, ``NAME@V`` or ``NAME#STAGE``.
        output: The file; what stands outside of the markers in it stays, byte by byte.
        folder: Anywhere in the work tree.

    Raises:
        NotFoundError: No such model or version.
        BadMetadataError: The file's markers are not as they were written.
    """
    if output is not None and output.is_dir():
        raise UsageError(f"{output}: a folder, expected a file", hint=f"-o {word(output / 'README.md')}")
    old = None
    if output is not None and output.exists() and not is_special(output):
        with output.open("rb") as file:
            old = file.read(MAX_CARD_BYTES + 1)
    text = renew_card(old, read_release(reference, folder=folder), str(output))
    if output is not None and text != old:
        write_output(output, text)
    return text.decode("utf-8", "replace")


def export(
    reference: str,
    target: str,
    place: str,
    *,
    force: bool = False,
    say: Say = lambda _line: None,
    folder: Path | None = None,
) -> str:
    """Write a version for another program.

    Args:
        reference: ``NAME``, ``NAME@V`` or ``NAME#STAGE``.
        target: One of `TARGETS`.
        place: A folder for ``huggingface``, a file for ``cyclonedx``, the URI of a server for ``mlflow``.
        force: Replace weights, or a file that is no bill of materials; never what DVC keeps in a work tree.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.

    Returns:
        What was written, as the other program names it.

    Raises:
        UsageError: No such target, something is there already, or the target's library is not installed.
        NotFoundError: No such model or version.
        ObjectMissing: The weights are nowhere.
    """
    if target not in TARGETS:
        raise UsageError(f"--to {target}: expected one of {', '.join(TARGETS)}")
    release = read_release(reference, folder=folder)
    wanted = f"{release.name}@{release.metadata.md5}" if release.commit else reference
    if target == "cyclonedx":
        from dvc_modelver.exchange.bom import is_bom, render_bom

        bill = Path(place)
        if bill.is_file() and not force and not is_bom(bill):
            raise UsageError(
                f"{place}: is there already, and no CycloneDX document",
                hint=f"modelver export {word(reference)} {word(bill)} --to cyclonedx --force",
            )
        write_output(bill, render_bom(release).encode())
        return place
    there = Path(place)
    if target == "huggingface" and there.exists() and not there.is_dir():
        raise UsageError(
            f"{there}: a file, expected a folder", hint=f"modelver export {word(reference)} FOLDER --to huggingface"
        )
    beside = there if target == "huggingface" else None
    if beside is not None:
        beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".modelver-", dir=beside) as temp:
        name = Path(release.metadata.model.path).name
        if target == "huggingface":
            from dvc_modelver.exchange.huggingface import fill_folder

            weights = load(wanted, Path(temp) / name, say=say, folder=folder)
            fill_folder(there, release, weights, force=force, say=say)
            return place
        from dvc_modelver.exchange import registry

        client = registry.connect(place)
        weights = load(wanted, Path(temp) / name, say=say, folder=folder)
        repo = Repository.open(folder)
        for line in missing_parts(repo):
            say(line)
        made = registry.register(client, release, weights, knows_stages=repo.objects.has_tags())
        for stage in made.unnamed:
            say(f"{release.label}: stage {stage}: no alias (MLflow takes letters, digits, - and _; not latest or v1)")
        if not made.is_new:
            say(f"{release.label}: was there already; its tags, metrics and aliases are as here now")
        return f"{made.name}/{made.version}"


def import_model(
    uri: str,
    reference: str,
    output: str | Path | None = None,
    *,
    say: Say = lambda _line: None,
    folder: Path | None = None,
) -> ModelMetadata:
    """Take a version from the registry of an MLflow server: its weights, tracked and staged, never committed.

    Args:
        uri: The server.
        reference: ``NAME``, ``NAME@3`` or ``NAME@ALIAS``; the last version by default.
        output: Path of the model; where it was when it was exported, else its own file name in the current folder.
        say: Takes lines for the user.
        folder: Anywhere in the work tree.

    Returns:
        The metadata that was staged, with the run's parameters and metrics.

    Raises:
        NotFoundError: No such model or version there.
        UsageError: The version has no weights, or several files of them; or the path has unsaved work.
        ObjectCorrupt: The weights are not those that were exported.
        EnvironmentFailed: The server does not answer.
    """
    from dvc_modelver.exchange import registry

    repo = Repository.open(folder)
    name, _, version = reference.partition("@")
    client = registry.connect(uri)
    found = registry.find(client, name, version)
    with tempfile.TemporaryDirectory(prefix=".modelver-", dir=repo.layout.state_dir.parent) as temp:
        weights = weights_in(registry.download(client, found, Path(temp)), f"{name}@{found.version}")
        md5 = hash_path(weights).md5
        recorded = found.tags.get("modelver.md5", md5)
        if recorded != md5:
            raise ObjectCorrupt(f"{name}@{found.version}: the weights have md5 {md5[:8]}, expected {recorded[:8]}")
        target = (
            Path(output)
            if output is not None
            else place_of(
                repo, found.tags.get("modelver.path", ""), weights, weights.name if weights.is_file() else name
            )
        )
        if target.is_dir() and weights.is_file():
            target = target / weights.name
        inside = repo.trackable(target)
        _check_free(repo, inside, md5)
        target.parent.mkdir(parents=True, exist_ok=True)
        if weights.is_dir() and target.exists():
            raise UsageError(f"{target}: is there already", hint=f"modelver import mlflow {uri} {reference} -o PATH")
        os.replace(weights, target)
    params = {key: _value(text) for key, text in found.params.items()}
    called = _name_for(repo, inside, found.model or name)
    (made,) = add(target, name=called, metrics=found.metrics, params=params, say=say, folder=folder)
    return made


def _name_for(repo: Repository, path: str, wanted: str) -> str | None:
    """Give the name that an import declares; None where the model has one, or gets this one by itself."""
    view = repo.work_tree
    name = wanted if NAME.fullmatch(wanted) else speakable(wanted)
    if repo.metadata(view, path) is not None or repo.name_of(view, path, None) == name:
        return None
    return None if name in {m.name for m in repo.models(view)} else name


def place_of(repo: Repository, recorded: str, weights: Path, otherwise: str) -> Path:
    """Give where a model goes: the path that it was exported from, if that is one of a model in this work tree.

    The path comes from a server, so nothing hidden is written, and no other kind of file.
    """
    is_plain = not any(part.startswith(".") for part in recorded.split("/")) and recorded.endswith(weights.suffix)
    if recorded and is_plain and repo.repo_path(repo.top / recorded) == recorded:
        return repo.top / recorded
    return Path.cwd() / Path(otherwise).name


def _check_free(repo: Repository, path: str, md5: str) -> None:
    """Refuse to write over weights that nobody has stored.

    Raises:
        UsageError: The path is no model's, or its weights are not in the cache.
    """
    there = repo.top / path
    if not there.exists():
        return
    if not there.is_file():
        raise UsageError(f"{path}: a folder, expected a file", hint="-o PATH")
    now = hash_path(there).md5
    if now != md5 and not repo.cache(path).has(now):
        raise UsageError(f"{path}: is there already, and stored nowhere", hint=f"modelver add {word(path)}")


def weights_in(folder: Path, label: str) -> Path:
    """Give the weights among a version's artifacts.

    Raises:
        UsageError: There is none, or more than one file of them.
    """
    if folder.is_file():
        return folder
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.is_symlink()]
    suffixes = (*WEIGHT_SUFFIXES, *known_suffixes())
    weights = [p for p in files if p.name.lower().endswith(suffixes)]
    if is_model_folder([p.name for p in files if p.parent == folder]) and len(weights) > 1:
        return folder
    if len(weights) > 1:  # MLflow keeps samples and environments beside a model
        weights = [p for p in weights if p.name.lower().endswith(tuple(WEIGHT_SUFFIXES))] or weights
    if len(weights) != 1:
        names = ", ".join(p.relative_to(folder).as_posix() for p in (weights or files)[:5]) or "nothing"
        raise UsageError(f"{label}: found {names}, expected one file of weights")
    return weights[0]


def _value(text: str) -> Any:
    """Give a parameter as it was before MLflow made text of it: a number or a truth value where it looks like one."""
    if text in ("True", "False"):
        return text == "True"
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value) else text
