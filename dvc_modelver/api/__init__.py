"""One function per verb of the command line, with the same words; each is imported at its first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dvc_modelver.api.ancestry import lineage
    from dvc_modelver.api.cards import card
    from dvc_modelver.api.compare import diff
    from dvc_modelver.api.conflicts import merge
    from dvc_modelver.api.fsck import fsck
    from dvc_modelver.api.gc import gc
    from dvc_modelver.api.history import best, bisect, list_models, list_versions, log
    from dvc_modelver.api.inspect import check, describe_file, show, status
    from dvc_modelver.api.merges import merge_file
    from dvc_modelver.api.migrate import migrate
    from dvc_modelver.api.nearest import similar
    from dvc_modelver.api.scan import scan
    from dvc_modelver.api.setup import doctor, init, install, uninstall
    from dvc_modelver.api.tables import blame, compare_versions
    from dvc_modelver.api.track import add, mv, refresh, rm
    from dvc_modelver.api.transfer import pull, push
    from dvc_modelver.api.versions import load, rollback, tag

__all__ = [
    "add",
    "best",
    "bisect",
    "blame",
    "card",
    "check",
    "compare_versions",
    "describe_file",
    "diff",
    "doctor",
    "fsck",
    "gc",
    "init",
    "install",
    "lineage",
    "list_models",
    "list_versions",
    "load",
    "log",
    "merge",
    "merge_file",
    "migrate",
    "mv",
    "pull",
    "push",
    "refresh",
    "rm",
    "rollback",
    "scan",
    "show",
    "similar",
    "status",
    "tag",
    "uninstall",
]

_ROOMS = {
    "ancestry": ("lineage",),
    "cards": ("card",),
    "compare": ("diff",),
    "conflicts": ("merge",),
    "fsck": ("fsck",),
    "gc": ("gc",),
    "history": ("best", "bisect", "list_models", "list_versions", "log"),
    "inspect": ("check", "describe_file", "show", "status"),
    "merges": ("merge_file",),
    "migrate": ("migrate",),
    "nearest": ("similar",),
    "scan": ("scan",),
    "setup": ("doctor", "init", "install", "uninstall"),
    "tables": ("blame", "compare_versions"),
    "track": ("add", "mv", "refresh", "rm"),
    "transfer": ("pull", "push"),
    "versions": ("load", "rollback", "tag"),
}


def __getattr__(name: str) -> Any:
    for room, verbs in _ROOMS.items():
        if name in verbs:
            return getattr(import_module(f"dvc_modelver.api.{room}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
