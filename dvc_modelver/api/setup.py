"""init, install, uninstall: what makes a folder a repository that looks after models."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dvc_modelver.errors import EnvironmentFailed, UsageError
from dvc_modelver.formats import known_suffixes
from dvc_modelver.git import attributes, config, hooks
from dvc_modelver.git.layout import Layout, find_layout, is_inside_repository
from dvc_modelver.git.notes_transport import add_refspec, lacking, refspec, remove_refspecs
from dvc_modelver.git.porcelain import Git
from dvc_modelver.registry.notes import PATTERN
from dvc_modelver.repository import Repository
from dvc_modelver.resources import PROBE, START, read_template
from dvc_modelver.settings import GATE_SUFFIXES, SETTINGS_FILE
from dvc_modelver.store.dvcconfig import find_dvc_root, lacks_folder
from dvc_modelver.store.dvcconfig import read_settings as read_dvc_settings
from dvc_modelver.store.temp import remove
from dvc_modelver.worktree.merging import MERGES
from dvc_modelver.worktree.state import locked, write_file
from dvc_modelver.worktree.sync import Keeper

FSMONITOR = "core.fsmonitor"


@dataclass(frozen=True)
class Step:
    """One thing that set-up did, or found done.

    Attributes:
        what: What is there now.
        where: The file, or the key of Git's configuration.
        changed: False when it was there already.
    """

    what: str
    where: str
    changed: bool = True


def guarded(module: str, fallback: str, missing: str = "false") -> str:
    """Give a shell line for Git's configuration: this interpreter, else the program on PATH, else `fallback`.

    ``-P`` keeps the current folder, which belongs to the repository, off Python's search path. `missing` is run where
    there is no program, before `fallback`.
    """
    python, start = hooks.shell_quoted(sys.executable), hooks.shell_quoted(START)
    off = "" if module == "filter" else 'if [ "${MODELVER_SKIP:-}" = 1 ]; then false; el'  # the filter passes files on
    return (
        f'f() {{ {off}if [ -x {python} ] && [ -r {start} ]; then {python} -P {start} {module} "$@"; '
        f'elif command -v modelver >/dev/null 2>&1; then modelver driver {module} "$@"; else {missing}; fi '
        f"|| {{ {fallback}; }}; }}; f"
    )


def merge_line() -> str:
    """Give the value of ``merge.modelver.driver``: without the program, ours stands and it is a conflict."""
    python, start = hooks.shell_quoted(sys.executable), hooks.shell_quoted(START)
    return (
        'f() { export MODELVER_GIT_PID=$PPID; code=127; if [ "${MODELVER_SKIP:-}" = 1 ]; then :; '
        f'elif [ -x {python} ] && [ -r {start} ]; then {python} -P {start} merge "$@"; code=$?; '
        'elif command -v modelver >/dev/null 2>&1; then modelver driver merge "$@"; code=$?; fi; '
        '[ "$code" = 127 ] || return "$code"; '
        'case "$5" in *.modelver.json|*.modelver.tensors) false ;; *) git merge-file "$2" "$1" "$3" ;; esac; '
        "}; f %O %A %B %L %P"
    )


def driver_settings() -> dict[str, str]:
    """Give the keys that ``install`` sets in this clone's configuration, but for the fsmonitor hook."""
    missing = "echo 'modelver: program not found (pip install dvc-modelver; modelver install)' >&2; false"
    return {
        "diff.modelver.command": guarded(
            "diff", 'git --no-pager diff --no-index --no-ext-diff --no-textconv -- "$2" "$5"; true'
        ),
        "diff.modelver.textconv": guarded("textconv", 'cat -- "$1"'),
        "merge.modelver.name": "models, tensor by tensor",
        "merge.modelver.driver": merge_line(),
        "merge.modelver.recursive": "binary",
        "filter.modelver.process": guarded("filter", "false", missing),
        "filter.modelver.required": "true",
    }


def fsmonitor_line() -> str:
    """Give the value of ``core.fsmonitor``: the probe, or the answer 'anything may have changed'.

    One Git process asks up to three times (and its pre-commit hook once more): the first answer stands, so
    its process id is noted.
    """
    python, probe = hooks.shell_quoted(sys.executable), hooks.shell_quoted(PROBE)
    return (
        'f() { asked=.git/modelver/asked; { read -r pid <"$asked"; } 2>/dev/null; '
        f'if [ "$pid" != "$PPID" ] && [ -x {python} ] && [ -r {probe} ]; then '
        f'{{ echo "$PPID" >"$asked"; }} 2>/dev/null; exec {python} -I -S {probe} fsmonitor; fi; '
        "printf 'modelver\\0/\\0'; }; f"
    )


def init(
    path: str | Path = ".",
    *,
    remote: str | None = None,
    fsmonitor: bool | None = None,
    with_hooks: bool = True,
) -> list[Step]:
    """Make `path` a Git + DVC repository that looks after models; what is there already is kept.

    Args:
        path: A folder; made when it is not there. A new one becomes a repository of its own, even inside
            another, as with ``git init``; else the repository around it is used.
        remote: A local path, or any URL that DVC knows; becomes DVC's default remote.
        fsmonitor: See `install`.
        with_hooks: Likewise.

    Raises:
        UsageError: Another default remote is configured; nothing was written.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{path}: a file, expected a folder", hint="modelver init")
    steps = []
    is_new = not folder.is_dir()
    if is_new:
        folder.mkdir(parents=True)
        steps.append(Step("folder", str(folder)))
    if is_new or not is_inside_repository(folder):
        Git(folder).run("init", "--quiet")
        steps.append(Step("Git repository", str(folder / ".git")))
    layout = find_layout(folder)
    root = find_dvc_root(folder.resolve(), layout.top)
    if root is None:
        root = layout.top
        _run_dvc(root, "init", "--quiet")
        steps.append(Step("DVC repository", str(root / ".dvc")))
    if remote is not None:
        steps += _set_remote(root, remote)
    if not (layout.top / SETTINGS_FILE).exists():
        write_file(layout.top / SETTINGS_FILE, read_template("modelver.toml").encode())
        steps.append(Step("settings, all defaults", str(layout.top / SETTINGS_FILE)))
    return steps + install(layout.top, fsmonitor=fsmonitor, with_hooks=with_hooks)


def _run_dvc(folder: Path, *args: str) -> None:
    command = [sys.executable, "-P", "-m", "dvc", *args]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("ERROR: ")
        raise EnvironmentFailed(f"dvc {args[0]}: {last}", hint=f"cd {folder} && dvc {' '.join(args)}")


def _set_remote(root: Path, url: str) -> list[Step]:
    """Make a remote the default one; a local folder is made here, so that one which is gone later is missed."""
    settings = read_dvc_settings(root)
    known = {settings.remotes.get(settings.default_remote or "")}
    absolute = url if "://" in url else str(Path(url).expanduser().resolve())
    if known & {url, absolute}:
        return [Step(f"DVC remote {settings.default_remote!r} -> {url}", str(root / ".dvc/config"), changed=False)]
    if settings.default_remote:
        raise UsageError(
            f"{root / '.dvc/config'}: the default remote is {known.pop()}, not {url}",
            hint=f"dvc remote modify {settings.default_remote} url {url}",
        )
    name = "storage" if "storage" not in settings.remotes else "modelver"
    is_relative = "://" not in url and not Path(url).expanduser().is_absolute()
    place = os.path.relpath(absolute, root.resolve()) if is_relative else absolute  # a clone may lie elsewhere
    made = []
    if lacks_folder(absolute):
        Path(absolute).mkdir(parents=True)
        made.append(Step("folder", absolute))
    _run_dvc(root, "remote", "add", "--quiet", "--default", name, place)
    return [*made, Step(f"DVC remote {name!r} -> {url}", str(root / ".dvc/config"))]


def install(folder: str | Path = ".", *, fsmonitor: bool | None = None, with_hooks: bool = True) -> list[Step]:
    """Register hooks, drivers and filter in this clone, and the attributes in ``.gitattributes``.

    Args:
        folder: Anywhere in the work tree.
        fsmonitor: True and False choose; None takes the slot when nothing else has it.
        with_hooks: Whether to write hook files.

    Raises:
        UsageError: No Git or DVC repository, or hooks that are in the way of each other.
    """
    repo = Repository.open(Path(folder))
    repo.dvc_root()
    layout, git = repo.layout, repo.git
    repo.share_cache()
    steps = []
    if with_hooks:
        where = hooks.find_hooks_folder(layout).path
        written = hooks.install_hooks(layout, sys.executable)
        steps.append(Step(f"{len(hooks.HOOKS)} hooks", str(where), bool(written)))
        steps += [Step(note, str(path)) for path, note in written.items() if note]
    for key, value in driver_settings().items():
        steps.append(Step(MEANING[key], key, config.set_local(git, key, value)))
    steps.append(_set_fsmonitor(git, fsmonitor))
    steps += _fetch_notes_too(repo)
    steps.append(_write_attributes(repo))
    steps.append(_write_clone_attributes(layout))
    with locked(layout.state_dir):
        keeper = Keeper(repo, lambda _line: None)
        keeper.remember_all(keeper.look())
        keeper.save()
    return steps


MEANING = {
    "diff.modelver.command": "diff driver of git diff",
    "diff.modelver.textconv": "diff driver of git log -p and git show",
    "merge.modelver.name": "name of the merge driver",
    "merge.modelver.driver": "merge driver of metadata, tensor tables and pointers",
    "merge.modelver.recursive": "of criss-cross merges, the common ancestor is taken as it is",
    "filter.modelver.process": "filter: git add of weights stores them in the DVC cache",
    "filter.modelver.required": "git add fails rather than put weights into Git",
}


def _set_fsmonitor(git: Git, wanted: bool | None) -> Step:
    now = config.find_setting(git, FSMONITOR)
    ours = now is not None and "probe.py" in now.value
    if wanted is False:
        changed = ours and config.unset_local(git, FSMONITOR)
        return Step("no fsmonitor hook: after training, run modelver add -u", FSMONITOR, changed)
    if now is not None and not ours and now.value not in ("false", ""):
        return Step(
            f"left as it is ({now.value!r} in {now.origin}): after training, run modelver add -u",
            FSMONITOR,
            False,
        )
    config.set_local(git, "core.fsmonitorHookVersion", "2")
    return Step("git status sees retrained models", FSMONITOR, config.set_local(git, FSMONITOR, fsmonitor_line()))


def _fetch_notes_too(repo: Repository) -> list[Step]:
    """Have ``git fetch`` bring evaluations from every remote; one that is added later gets it at its first push."""
    new = lacking(repo.objects, PATTERN)
    for name in new:
        add_refspec(repo.git, name, PATTERN)
    known = [name for name, specs in repo.objects.remotes().items() if refspec(name, PATTERN) in specs]
    what = "git fetch brings evaluations"
    return [Step(what, f"remote.{name}.fetch", name in new) for name in dict.fromkeys([*known, *new])]


def _write_attributes(repo: Repository) -> Step:
    file = repo.top / ".gitattributes"
    old = file.read_bytes().decode("utf-8", "surrogateescape") if file.is_file() else ""
    new = attributes.with_block(old, attributes.render_block(gated_patterns(repo)))
    if new != old:
        write_file(file, new.encode("utf-8", "surrogateescape"))
    return Step("attributes (commit this file)", str(file), new != old)


def _write_clone_attributes(layout: Layout, block: str | None = None) -> Step:
    """Put our block into this clone's ``info/attributes``; an empty one takes it out."""
    block = attributes.render_clone_block() if block is None else block
    file = layout.common_dir / "info" / "attributes"
    old = file.read_bytes().decode("utf-8", "surrogateescape") if file.is_file() else ""
    new = attributes.with_block(old, block)
    if new != old:
        file.parent.mkdir(exist_ok=True)
        write_file(file, new.encode("utf-8", "surrogateescape"))
    if not new:
        file.unlink(missing_ok=True)
    return Step("merge driver of this clone", str(file), new != old)


def gated_patterns(repo: Repository) -> list[str]:
    """Give the patterns of files that ``git add`` turns into pointers."""
    return [*("*" + suffix for suffix in GATE_SUFFIXES), *repo.settings.include]


def uninstall(folder: str | Path = ".") -> list[Step]:
    """Take hooks, drivers and filter out of this clone; what was there before comes back.

    The committed ``.gitattributes`` stays: without the drivers Git shows plain text.
    """
    repo = Repository.open(Path(folder))
    git = repo.git
    steps = [Step(what, str(path)) for path, what in hooks.uninstall_hooks(repo.layout).items()]
    for key in driver_settings():
        if config.unset_local(git, key):
            steps.append(Step("setting", key))
    now = config.local_value(git, FSMONITOR)
    if now is not None and "probe.py" in now:
        config.unset_local(git, FSMONITOR)
        config.unset_local(git, "core.fsmonitorHookVersion")
        steps.append(Step("setting", FSMONITOR))
    for name in remove_refspecs(git, repo.objects, PATTERN):
        steps.append(Step("setting", f"remote.{name}.fetch"))
    step = _write_clone_attributes(repo.layout, "")
    steps += [step] if step.changed else []
    remove(repo.layout.state_dir / MERGES)
    for name in ("state", "gate", "committed", "lock", "objects.lock", "asked", "told"):
        (repo.layout.state_dir / name).unlink(missing_ok=True)
    with suppress(OSError):
        repo.layout.state_dir.rmdir()  # where nothing of value is left in it
    return steps


def unadopted(repo: Repository) -> list[str]:
    """Give the models that DVC tracks but that have no metadata yet."""
    return [m.path for m in repo.models(repo.work_tree) if m.metadata is None and not m.problem]


def hidden_models(repo: Repository) -> dict[str, str]:
    """Give the model files that ``.gitignore`` hides and nothing tracks: path -> the rule that hides it."""
    pointers = repo.pointers(repo.work_tree)
    tracked = {p.path for p in pointers}
    folders_of_dvc = tuple(f"{p.path}/" for p in pointers if p.is_folder)
    folders = ("site-packages/", ".venv/", "venv/", "node_modules/", ".dvc/")
    ignored = [
        path
        for path in repo.git.paths("ls-files", "-o", "-i", "--exclude-standard", "-z")
        if path not in tracked
        and not path.startswith(folders_of_dvc)
        and repo.settings.is_model(path, known_suffixes())
        and not any(f"/{folder}" in f"/{path}" for folder in folders)
        and not any((repo.top / f"{above}.dvc").is_file() for above in PurePosixPath(path).parents)
    ]
    rules = repo.git.ignored(ignored)
    return {path: rules.get(path, ".gitignore") for path in ignored}
