"""doctor: what is set up, and what is wrong with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dvc_modelver.api.setup import FSMONITOR, MEANING, driver_settings, fsmonitor_line, hidden_models, unadopted
from dvc_modelver.errors import ModelverError
from dvc_modelver.git import config, hooks
from dvc_modelver.git.layout import Layout, find_layout
from dvc_modelver.git.notes_transport import lacking
from dvc_modelver.registry.notes import PATTERN
from dvc_modelver.repository import Repository
from dvc_modelver.settings import SETTINGS_FILE, unknown_hint
from dvc_modelver.store.dvcconfig import folder_hint, lacks_folder
from dvc_modelver.store.dvcconfig import read_settings as read_dvc_settings


@dataclass(frozen=True)
class Finding:
    """One line of ``doctor``.

    Attributes:
        name: The setting.
        value: What is in force.
        origin: The file or rule that says so.
        problem: What is wrong; empty when nothing is.
        hint: The command that mends it.
    """

    name: str
    value: str
    origin: str = ""
    problem: str = ""
    hint: str = ""


def doctor(folder: str | Path = ".") -> list[Finding]:
    """Explain every setting of this clone: its value, where it comes from, and what is wrong with it."""
    layout = find_layout(Path(folder))
    repo = Repository(layout)
    found: list[Finding] = [
        Finding("git", repo.git.text("version").removeprefix("git version "), "PATH"),
        Finding("python", sys.executable, "this program"),
    ]
    parts = (_check_hooks, _check_drivers, _check_remotes, _check_attributes, _check_dvc, _check_settings)
    for part in (*parts, _check_models):
        found += _guarded_check(part, repo)
    return found


def _guarded_check(part: Callable[[Repository], list[Finding]], repo: Repository) -> list[Finding]:
    try:
        return part(repo)
    except ModelverError as err:
        return [Finding(part.__name__.removeprefix("_check_"), "", "", str(err), err.hint)]


def _check_hooks(repo: Repository) -> list[Finding]:
    found = []
    layout: Layout = repo.layout
    path = config.find_setting(repo.git, "core.hooksPath")
    if path is not None:
        found.append(Finding("core.hooksPath", path.value, path.origin))
    for name, file, fresh, chains in hooks.iter_installed(layout, sys.executable):
        if fresh is None:
            found.append(Finding(name, "not installed", str(file), "our hook is not there", "modelver install"))
        elif not fresh:
            found.append(
                Finding(name, "of another version or interpreter", str(file), "out of date", "modelver install")
            )
        elif not os.access(file, os.X_OK):
            found.append(Finding(name, "not executable", str(file), "Git will not run it", "modelver install"))
        else:
            found.append(Finding(name, "installed" + (" (runs yours first)" if chains else ""), str(file)))
    return found


def _check_drivers(repo: Repository) -> list[Finding]:
    found = []
    for key, wanted in driver_settings().items():
        now = config.find_setting(repo.git, key)
        if now is None:
            found.append(Finding(key, "not set", "", "the driver is not registered", "modelver install"))
        elif now.value != wanted:
            found.append(Finding(key, now.value, now.origin, "of another version or interpreter", "modelver install"))
        else:
            found.append(Finding(key, MEANING[key], now.origin))
    now = config.find_setting(repo.git, FSMONITOR)
    if now is not None and now.value == fsmonitor_line():
        found.append(Finding(FSMONITOR, "git status sees retrained models", now.origin))
    elif now is not None and "probe.py" in now.value:
        found.append(Finding(FSMONITOR, now.value, now.origin, "of another version or interpreter", "modelver install"))
    else:
        value = "off" if now is None else now.value
        origin = "" if now is None else now.origin
        found.append(Finding(FSMONITOR, f"{value}: after training, run modelver add -u", origin))
    return found


def _check_remotes(repo: Repository) -> list[Finding]:
    without, origin = lacking(repo.objects, PATTERN), str(repo.layout.common_dir / "config")
    brings, later = "git fetch brings evaluations", "without evaluations until the first git push or modelver install"
    return [
        Finding(f"remote.{name}.fetch", later if name in without else brings, origin)
        for name, specs in repo.objects.remotes().items()
        if specs
    ]


def _check_attributes(repo: Repository) -> list[Finding]:
    samples = {
        "x.modelver.tensors": {"diff": "modelver", "merge": "modelver"},
        "x.safetensors.dvc": {"merge": "modelver"},
        "x.safetensors": {"diff": "modelver", "filter": "modelver"},
    }
    found = []
    for path, wanted in samples.items():
        now = repo.git.attributes([path], *wanted).get(path, {})
        for name, value in wanted.items():
            label = f"{path.replace('x', '*', 1)} {name}"
            file = ".git/info/attributes" if name == "merge" else ".gitattributes"
            if now.get(name) == value:
                found.append(Finding(label, value, file))
            elif now.get(name) == "lfs":
                found.append(Finding(label, "lfs", file))
            else:
                problem = f"is {now.get(name)}, expected {value}"
                found.append(Finding(label, now.get(name, ""), file, problem, "modelver install"))
    return found


def _check_dvc(repo: Repository) -> list[Finding]:
    root = repo.dvc_root()
    settings = read_dvc_settings(root)
    origin = str(root / ".dvc/config")
    found = [
        Finding("DVC repository", str(root), ".dvc"),
        Finding("DVC cache", str(settings.cache_dir), origin),
        Finding("DVC cache.type", ",".join(settings.cache_types), origin),
    ]
    name = settings.default_remote
    if name is None:
        found.append(
            Finding(
                "DVC remote",
                "none",
                origin,
                "git push has nowhere to put weights",
                "dvc remote add -d storage URL",
            )
        )
    elif name not in settings.remotes:
        found.append(
            Finding(
                "DVC remote",
                name,
                origin,
                "the default remote is not configured",
                f"dvc remote add {name} URL",
            )
        )
    else:
        url = settings.remotes[name]
        problem, hint = "", ""
        if lacks_folder(url):
            problem, hint = "does not exist (not mounted?)", folder_hint(url)
        elif "://" not in url and not os.path.isdir(url):
            problem, hint = "not a folder", f"dvc remote modify {name} url URL"
        found.append(Finding("DVC remote", f"{name} -> {url}", origin, problem, hint))
    return found


def _check_settings(repo: Repository) -> list[Finding]:
    settings, file = repo.settings, str(repo.top / SETTINGS_FILE)
    found = [
        Finding(
            SETTINGS_FILE,
            f"unknown setting {name}",
            file,
            "a mistyped name does nothing",
            unknown_hint(name),
        )
        for name in settings.unknown
    ]
    limits = f"describe {settings.describe_max_bytes}, fetch {settings.fetch_max_bytes} bytes"
    return found or [Finding(SETTINGS_FILE, limits, file if Path(file).exists() else "defaults")]


def _check_models(repo: Repository) -> list[Finding]:
    found = [Finding(path, "tracked by DVC", "", "no metadata", "modelver add --all") for path in unadopted(repo)]
    found += [
        Finding(path, "hidden", rule, "ignored by Git and not tracked", f"modelver add {path}")
        for path, rule in hidden_models(repo).items()
    ]
    return found
