"""add, refresh: what is tracked, and what is said of it."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dvc_modelver.errors import EnvironmentFailed, ModelverError, RefusedError, UsageError, word
from dvc_modelver.formats import LocalFolder
from dvc_modelver.formats.folder import MARKERS, check_shards, holds_weights
from dvc_modelver.formats.impostors import find_impostor
from dvc_modelver.metadata import ModelMetadata, TensorTable, TrainingFacts, find_model_path, metadata_path, table_path
from dvc_modelver.pipeline import gather_training
from dvc_modelver.registry.tags import check_name
from dvc_modelver.repository import Repository, TrackedModel, check_utf8, is_pointer_file
from dvc_modelver.store.folders import iter_files
from dvc_modelver.store.gate import MAX_GATE_BYTES, find_gate
from dvc_modelver.store.pointers import Pointer, set_out
from dvc_modelver.transfer import Wanted, fetch
from dvc_modelver.worktree.describe import Description
from dvc_modelver.worktree.law import Action
from dvc_modelver.worktree.safety import find_unsafe
from dvc_modelver.worktree.state import locked, write_file
from dvc_modelver.worktree.sync import Keeper, write_if_changed
from dvc_modelver.worktree.track import Tracker, ignore_file, show_again

Say = Callable[[str], None]


def declared_facts(
    metrics: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    data: Iterable[str | Path] = (),
    *,
    repo: Repository,
) -> TrainingFacts:
    """Give the facts that a user declares by hand; data files are hashed, DVC outputs taken from their pointers.

    Raises:
        UsageError: A data path is not there.
    """
    from dvc_modelver.store.hashing import hash_file

    rows: list[dict[str, Any]] = []
    pointers = {p.path: p for p in repo.pointers(repo.work_tree)} if data else {}
    for given in data:
        path = repo.repo_path(given) or str(given)
        pointer = pointers.get(path)
        if pointer is not None and pointer.md5:
            rows.append({"path": path, "md5": pointer.md5} | ({"bytes": pointer.size} if pointer.size else {}))
        elif Path(given).is_file():
            hashes = hash_file(Path(given))
            rows.append({"path": path, "md5": hashes.md5, "bytes": hashes.size})
        else:
            raise UsageError(f"--data {given}: neither a file nor a DVC output", hint=f"dvc add {word(given)}")
    return TrainingFacts(
        hyperparameters=dict(params) if params else None,
        metrics=dict(metrics) if metrics else None,
        data=tuple(rows) or None,
    )


def add(
    *paths: str | Path,
    update: bool = False,
    everything: bool = False,
    accept: bool = False,
    name: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    data: Iterable[str | Path] = (),
    say: Say = lambda _line: None,
    folder: Path | None = None,
) -> list[ModelMetadata]:
    """Track models: object into the cache, pointer, metadata and tensor table staged.

    Args:
        paths: Model files; new ones, retrained ones, or those DVC tracks already.
        update: Every tracked model that was retrained.
        everything: Every model that DVC tracks but that has no metadata; objects are fetched where needed.
        accept: Keep weights of a pipeline's output that were made outside ``dvc repro``.
        name: Name of the (one) model; written into ``artifacts:`` of dvc.yaml.
        metrics: Values to record, by name.
        params: Hyper-parameters to record, by name.
        data: Files or DVC outputs it was trained on.
        say: Takes lines for the user.
        folder: Anywhere in the work tree; the current folder by default.

    Returns:
        The metadata of each version staged, in the order of the paths.

    Raises:
        UsageError: A path is not there, is a folder, or is still being written.
        RefusedError: An output of a pipeline was changed outside it, without `accept`.
    """
    if not paths and not update and not everything:
        raise UsageError("modelver add: no path given", hint="modelver add PATH; or -u for retrained models")
    if name is not None:
        check_name(name)
        if len(paths) != 1:
            raise UsageError(f"--name {name}: {len(paths)} paths given, expected one")
    repo = Repository.open(folder)
    repo.dvc_root()
    facts = declared_facts(metrics, params, data, repo=repo)
    with locked(repo.layout.state_dir):
        adder = _Adder(repo, say, facts, accept=accept)
        wanted = [repo.trackable(p) for p in paths]
        if update:
            wanted += adder.retrained()
        if everything:
            wanted += adder.unadopted()
        adder.add_all(list(dict.fromkeys(wanted)), name)
    return adder.done


class _Adder:
    def __init__(self, repo: Repository, say: Say, facts: TrainingFacts, *, accept: bool) -> None:
        self.repo, self.say, self.facts, self.accept = repo, say, facts, accept
        self.keeper = Keeper(repo, say)
        self.tracker = Tracker(self.keeper)
        self.pointers = {p.path: p for p in repo.pointers(repo.work_tree)}
        self.done: list[ModelMetadata] = []

    def retrained(self) -> list[str]:
        found = self.keeper.look()
        for seen in found:
            if seen.action is Action.AGREE:
                self.keeper.agree(seen)
        index = self.repo.index()
        return [
            seen.path
            for seen in found
            if seen.action is Action.DESCRIBE
            or seen.is_outdated
            or seen.is_unstaged(index.read(metadata_path(seen.path)))
        ]

    def unadopted(self) -> list[str]:
        models = [m for m in self.repo.models(self.repo.work_tree) if m.metadata is None]
        missing = [Wanted(m.pointer) for m in models if not (self.repo.top / m.path).exists()]
        got = fetch(self.repo, missing, self.say)
        for line in dict.fromkeys(got.failed.values()):
            self.say(line)
        return [m.path for m in models if m.pointer.md5 not in got.failed]

    def add_all(self, paths: list[str], name: str | None) -> None:
        """Add models once all of them can be; what was added before one failed all the same is named."""
        for path in paths:
            around = next((other for other in paths if path.startswith(f"{other}/")), None)
            if around is not None:
                raise UsageError(f"{path}: part of {around}, which is given as a whole", hint=f"modelver add {around}")
            self._check(path, self.repo.top / path, self.pointers.get(path))
        try:
            for path in paths:
                self.add(path, name)
        except ModelverError:
            for made in self.done:
                self.say(f"{made.model.path}: added, before another failed")
            raise
        finally:
            self.keeper.save()

    def add(self, path: str, name: str | None) -> None:
        file, pointer = self.repo.top / path, self.pointers.get(path)
        if name is not None:
            declare_name(self.repo, path, name)
        if file.exists():
            if pointer is not None and pointer.kind == "lock":
                self._add_output(path, pointer, name)
                return
            if file.is_dir():
                made = self._add_folder(path, pointer, name)
            else:
                made = self.tracker.add(path, pointer, facts=self.facts, name=name)
            self._name_origin(path, made)
        else:
            assert pointer is not None and pointer.md5 is not None
            hashes = self.repo.cache(path).hash_object(pointer.md5, legacy=pointer.legacy)
            made = self.tracker.track(path, hashes, pointer, facts=self.facts, name=name)
        self._finish(path, made)

    def _finish(self, path: str, made: Description) -> None:
        for one in find_unsafe(self.repo, path, made.metadata.md5, self.repo.settings):
            self.say(f"{one.line(self.repo.settings)}; git commit will refuse it")
        self.done.append(made.metadata)

    def _name_origin(self, path: str, made: Description) -> None:
        if made.metadata.version.update == "initial" and made.table is not None and self.repo.head is not None:
            from dvc_modelver.api.nearest import find_origin, origin_line

            table = TensorTable.parse(made.table, table_path(path))
            origin = find_origin(self.repo, path, made.metadata, table)
            if origin is not None:
                self.say(origin_line(made.metadata, origin))

    def _check(self, path: str, file: Path, pointer: Pointer | None) -> None:
        around = next((p.path for p in self.pointers.values() if p.is_folder and path.startswith(f"{p.path}/")), None)
        if around is not None:
            raise UsageError(
                f"{path}: part of {around}, which is tracked as a whole", hint=f"modelver add {word(around)}"
            )
        if file.is_dir():
            self._check_folder(path, file)
        elif not file.exists():
            if pointer is None or pointer.md5 is None:
                raise UsageError(f"{path}: no such file", hint="modelver status")
            if not self.repo.cache(path).has(pointer.md5, legacy=pointer.legacy):
                got = fetch(self.repo, [Wanted(pointer)], self.say)
                for line in got.failed.values():
                    raise EnvironmentFailed(line.split("\n")[0], hint="modelver fsck --remote")
        else:
            _check_content(path, file)
        if is_pointer_file(path) or find_model_path(path) or posixpath.basename(path) in _NO_MODELS:
            raise UsageError(f"{path}: one of the repository's own files, expected weights", hint="modelver status")
        if path.startswith(".git/") or "/.dvc/" in f"/{path}":
            raise UsageError(f"{path}: inside the repository's own folders")

    def _check_folder(self, path: str, file: Path) -> None:
        """Refuse a folder that is no model: one of Git's, with other outputs in it, or without weights."""
        is_one = self.repo.is_model_folder(path)
        inside = sorted(
            p.path for p in self.pointers.values()
            if p.path.startswith(f"{path}/") and not (is_one and p.kind == "dvc" and not p.is_folder)
        )  # fmt: skip
        if inside:
            raise UsageError(
                f"{path}: {inside[0]} in it is tracked already, expected a folder that is one model",
                hint=f"modelver add {word(path)}/FILE; or dvc remove the outputs inside first",
            )
        if file.resolve() == self.repo.top.resolve():
            raise UsageError(
                f"{path}: the whole repository, expected models",
                hint="modelver add -u; or modelver add --all; git add .",
            )
        in_git = self.repo.git.index_entries(path)
        if in_git and not is_one:
            raise UsageError(
                f"{path}: {sorted(in_git)[0]} in it is in Git, expected a folder that DVC can take as a whole",
                hint=f"git rm -r --cached {word(path)}; modelver add {word(path)}",
            )
        if (file / ".git").exists() or file.resolve() == self.repo.top.resolve():
            raise UsageError(f"{path}: a repository of its own, expected a folder of weights")
        names = [name for name, _ in iter_files(file)]
        for name in names:
            check_utf8(f"{path}/{name}")
        if not holds_weights(names) and not any(posixpath.basename(name) in MARKERS for name in names):
            raise UsageError(
                f"{path}: a folder without weights, expected a model",
                hint=f"dvc add {word(path)}",
            )
        check_shards(LocalFolder(file), path)

    def _add_folder(self, path: str, pointer: Pointer | None, name: str | None) -> Description:
        """Track a folder as one model; it takes over what was tracked or staged singly in it."""
        single = [p for p in self.pointers.values() if p.path.startswith(f"{path}/")]
        for one in single:
            self._check_single(path, one)
        own = [f for one in single for f in (one.file, metadata_path(one.path), table_path(one.path))]
        ignored = {ignore_file(one.path) for one in single}
        before = {f: (self.repo.top / f).read_bytes() for f in (*own, *ignored) if (self.repo.top / f).is_file()}
        try:
            for f in own:
                (self.repo.top / f).unlink(missing_ok=True)
            for one in single:
                show_again(self.repo.top, one.path)
            made = self.tracker.add(path, pointer, facts=self.facts, name=name)
        except BaseException:
            for f, content in before.items():
                write_file(self.repo.top / f, content)
            raise
        self.repo.git.stage_blobs(dict.fromkeys(self.repo.git.index_entries(f"{path}/")))
        for one in single:
            self.keeper.state.rows.pop(one.path, None)
            self.pointers.pop(one.path)
        if single:
            self.say(f"{path}: one model now, with {single[0].path}{_and_more(single)} in it")
        return made

    def _check_single(self, path: str, pointer: Pointer) -> None:
        if not (self.repo.top / pointer.path).is_file():
            raise UsageError(
                f"{pointer.path}: not on disk, expected all files of {path}",
                hint=f"modelver pull {word(pointer.path)} && modelver add {word(path)}",
            )

    def _add_output(self, path: str, pointer: Pointer, name: str | None) -> None:
        hashes = self.tracker.store(path)
        outside = hashes.md5 != pointer.md5
        if outside and not self.accept:
            raise RefusedError(
                f"{path}: an output of stage {pointer.stage!r} in {pointer.file}, changed outside dvc repro",
                hint=f"dvc repro; or, to keep these weights: modelver add --accept {word(path)}",
            )
        if outside:
            disk = self.repo.top / pointer.file
            old = disk.read_text(encoding="utf-8")
            text = set_out(old, pointer, md5=hashes.md5, size=hashes.size, n_files=hashes.n_files)
            write_if_changed(disk, text.encode())
            self.repo.git.stage_blobs({pointer.file: text.encode()})
            pointer = replace(pointer, md5=hashes.md5, size=hashes.size)
        declared = "user" if outside else None
        made = self.tracker.add(path, pointer, facts=self.facts, declared_by=declared, name=name)
        self._finish(path, made)


def _and_more(pointers: list[Pointer]) -> str:
    return f" and {len(pointers) - 1} more" if len(pointers) > 1 else ""


def _check_content(path: str, file: Path) -> None:
    """Refuse a file that only has a model's name."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(MAX_GATE_BYTES)
    found = find_impostor(start, size)
    if found is not None:
        raise UsageError(f"{path}: {found.what}, expected weights", hint=found.hint)
    gate = find_gate(start) if size <= MAX_GATE_BYTES else None
    if gate is not None:
        raise UsageError(
            f"{path}: the gate pointer to object {gate.md5[:8]}, expected weights: it was committed without the hooks",
            hint=f"ask whoever committed it to run: modelver add {word(path)} && git commit --amend --no-edit",
        )


_NO_MODELS = {".gitignore", ".gitattributes", ".dvcignore", "dvc.yaml", ".modelver.toml"}


def declare_name(repo: Repository, path: str, name: str) -> None:
    """Write the model's ``artifacts:`` entry into the dvc.yaml at the top, and stage it; an older name goes."""
    import io

    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes = True
    file = repo.top / "dvc.yaml"
    document = (yaml.load(file.read_text(encoding="utf-8")) if file.exists() else None) or {}
    artifacts = document.setdefault("artifacts", {})
    for old in [
        n for n, entry in artifacts.items() if isinstance(entry, dict) and entry.get("path") == path and n != name
    ]:
        artifacts[name] = artifacts.pop(old)
    entry = artifacts.setdefault(name, {})
    if entry.get("path") not in (None, path):
        raise UsageError(f"dvc.yaml: artifact {name!r} is {entry['path']}, not {path}", hint="choose another --name")
    entry["path"] = path
    entry.setdefault("type", "model")
    text = io.StringIO()
    yaml.dump(document, text)
    write_file(file, text.getvalue().encode())
    repo.git.stage_blobs({"dvc.yaml": text.getvalue().encode()})


def refresh(
    *paths: str | Path,
    metrics: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    data: Iterable[str | Path] = (),
    say: Say = lambda _line: None,
    folder: Path | None = None,
) -> list[ModelMetadata]:
    """Rebuild metadata and tensor table from the object that the pointer names, and stage them.

    What training recorded before stays, unless it is given again or the pipeline's files say otherwise.

    Raises:
        NotFoundError: No such model.
        ObjectMissing: Its object is neither in the cache nor on the remote.
    """
    repo = Repository.open(folder)
    facts = declared_facts(metrics, params, data, repo=repo)
    done = []
    with locked(repo.layout.state_dir):
        keeper = Keeper(repo, say)
        tracker = Tracker(keeper)
        for given in paths:
            model = repo.find_model(repo.work_tree, str(given))
            done.append(_refresh(repo, tracker, model, facts, say))
        for seen in keeper.look(only=[m.model.path for m in done]):
            if seen.action is Action.AGREE:
                keeper.agree(seen)
            elif seen.action is Action.NOTHING:
                keeper.remember(seen)
        keeper.save()
    return done


def _refresh(repo: Repository, tracker: Tracker, model: TrackedModel, facts: TrainingFacts, say: Say) -> ModelMetadata:
    pointer, md5 = model.pointer, model.pointer.md5 or ""
    cache = repo.cache(model.path)
    if not cache.has(md5, legacy=pointer.legacy):
        got = fetch(repo, [Wanted(pointer)], say)
        for line in got.failed.values():
            raise EnvironmentFailed(
                line.split("\n")[0], hint=f"modelver add {word(model.path)} describes the file on disk"
            )
    old = model.metadata.training if model.metadata is not None and model.metadata.md5 == md5 else TrainingFacts()
    gathered = gather_training(repo.work_tree.read, pointer, repo.settings)
    hashes = cache.hash_object(md5, legacy=pointer.legacy)
    made = tracker.track(
        model.path, hashes, pointer, facts=old.merged_with(gathered).merged_with(facts), name=model.name, anew=True
    )
    return made.metadata
