"""DVC's settings, read without importing DVC.

Source: ``dvc.config`` of DVC 3: levels system, global, repo, local, later ones winning; relative paths in a file
are relative to the folder of that file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dvc_modelver.errors import BadMetadataError, word

DEFAULT_LINKS = ("reflink", "copy")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True)
class DvcSettings:
    """What is in force in one DVC repository.

    Attributes:
        root: The folder that has ``.dvc``.
        cache_dir: Where objects lie, absolute.
        cache_types: Links to try, in order: reflink, hardlink, symlink, copy.
        shared: Whether the cache is shared by a group (``cache.shared = group``).
        default_remote: Name of the remote used when none is named.
        remotes: name -> URL, for display.
    """

    root: Path
    cache_dir: Path
    cache_types: tuple[str, ...] = DEFAULT_LINKS
    shared: bool = False
    default_remote: str | None = None
    remotes: Mapping[str, str] = field(default_factory=dict)

    def at(self, cache_dir: Path) -> DvcSettings:
        """Give the same settings with another cache."""
        return replace(self, cache_dir=cache_dir)


def find_dvc_root(start: Path, stop: Path) -> Path | None:
    """Give the nearest folder at or above `start` that has a ``.dvc`` folder, looking no higher than `stop`."""
    start, stop = Path(os.path.realpath(start)), Path(os.path.realpath(stop))
    for folder in (start, *start.parents):
        if (folder / ".dvc").is_dir():
            return folder
        if folder == stop:
            return None
    return None


def config_files(root: Path) -> list[Path]:
    """Give the files that DVC reads its settings from, the last one winning."""
    import platformdirs

    system = os.environ.get("DVC_SYSTEM_CONFIG_DIR") or platformdirs.site_config_dir("dvc", "iterative")
    own = os.environ.get("DVC_GLOBAL_CONFIG_DIR") or platformdirs.user_config_dir("dvc", "iterative")
    return [
        Path(system) / "config",
        Path(own) / "config",
        root / ".dvc" / "config",
        root / ".dvc" / "config.local",
    ]


def read_settings(root: Path) -> DvcSettings:
    """Read the settings of the DVC repository at `root`.

    Raises:
        BadMetadataError: A file is not in DVC's configuration format.
    """
    from configobj import ConfigObj, ConfigObjError

    values: dict[str, Any] = {}
    remotes: dict[str, str] = {}
    for file in config_files(root):
        if not file.is_file():
            continue
        try:
            config = ConfigObj(str(file), encoding="utf-8", interpolation=False)
        except (ConfigObjError, UnicodeError, OSError) as err:
            raise BadMetadataError(f"{file}: not a DVC configuration ({err})", hint=f"edit {file}") from err
        for section, content in config.items():
            if not isinstance(content, Mapping):
                continue
            remote = re.fullmatch(r"""['"]?remote\s+"(.+)"['"]?""", section)
            if remote is not None:
                if "url" in content:
                    remotes[remote[1]] = _resolved(str(content["url"]), file)
                continue
            for key, value in content.items():
                is_path = (section, key) == ("cache", "dir")
                values[f"{section}.{key}"] = _resolved(str(value), file) if is_path else value
    links = values.get("cache.type", DEFAULT_LINKS)
    kinds = tuple(part.strip() for part in (links.split(",") if isinstance(links, str) else links))
    return DvcSettings(
        root=root,
        cache_dir=Path(values.get("cache.dir", root / ".dvc" / "cache")),
        cache_types=kinds,
        shared=values.get("cache.shared") == "group",
        default_remote=str(values["core.remote"]) if values.get("core.remote") else None,
        remotes=remotes,
    )


def _resolved(value: str, file: Path) -> str:
    if _URL.match(value):
        return value
    path = os.path.expanduser(value)
    return path if os.path.isabs(path) else os.path.normpath(file.parent / path)


def lacks_folder(url: str) -> bool:
    """Whether a remote's URL, as in `DvcSettings.remotes`, is a local path at which nothing is."""
    return "://" not in url and not os.path.exists(url)


def folder_hint(url: str) -> str:
    """Give what to do where a remote's folder is not there; a push does not make it, since it may not be mounted."""
    return f"mount it; or, where it is to be new: mkdir -p {word(url)}"


def share_cache(root: Path, main_root: Path) -> bool:
    """Let a DVC repository in a linked work tree use the cache of the main one, as ``dvc cache dir --local`` does.

    Its own cache would go with the work tree, and the weights that were committed there with it.

    Returns:
        False where a cache is configured, or has objects of its own already; nothing was written then.
    """
    own, local = root / ".dvc" / "cache", root / ".dvc" / "config.local"
    if read_settings(root).cache_dir != own or (own / "files").exists() or not (main_root / ".dvc").is_dir():
        return False
    text = local.read_text(encoding="utf-8") if local.exists() else ""
    if "[cache]" in text:
        return False
    target = read_settings(main_root).cache_dir
    with local.open("a", encoding="utf-8") as file:
        file.write(f"[cache]\n    dir = {target}\n")
    return True
