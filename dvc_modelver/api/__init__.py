"""One function per verb of the command line, with the same words; each is imported at its first use."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dvc_modelver.api.ancestry import lineage
    from dvc_modelver.api.best import best
    from dvc_modelver.api.bisection import bisect
    from dvc_modelver.api.compare import diff
    from dvc_modelver.api.conflicts import merge
    from dvc_modelver.api.doctor import doctor
    from dvc_modelver.api.evaluations import evaluate
    from dvc_modelver.api.exchange import card, export, import_model
    from dvc_modelver.api.fsck import fsck
    from dvc_modelver.api.gc import gc
    from dvc_modelver.api.history import list_models, list_versions, log
    from dvc_modelver.api.holders import stages
    from dvc_modelver.api.index import index
    from dvc_modelver.api.inspect import check, describe_file, show, status
    from dvc_modelver.api.merges import merge_file
    from dvc_modelver.api.migrate import migrate
    from dvc_modelver.api.moves import mv, rm
    from dvc_modelver.api.nearest import similar
    from dvc_modelver.api.scan import scan
    from dvc_modelver.api.setup import init, install, uninstall
    from dvc_modelver.api.stages import check_stage_of, demote, promote, rollback_stage
    from dvc_modelver.api.tables import blame, compare_versions
    from dvc_modelver.api.tags import tag
    from dvc_modelver.api.track import add, refresh
    from dvc_modelver.api.transfer import pull, push
    from dvc_modelver.api.versions import load, rollback

__all__ = [
    "add",
    "best",
    "bisect",
    "blame",
    "card",
    "check",
    "check_stage_of",
    "compare_versions",
    "demote",
    "describe_file",
    "diff",
    "doctor",
    "evaluate",
    "export",
    "fsck",
    "gc",
    "import_model",
    "index",
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
    "promote",
    "pull",
    "push",
    "refresh",
    "rm",
    "rollback",
    "rollback_stage",
    "scan",
    "show",
    "similar",
    "stages",
    "status",
    "tag",
    "uninstall",
]

_ROOMS = {
    "ancestry": ("lineage",),
    "best": ("best",),
    "bisection": ("bisect",),
    "compare": ("diff",),
    "conflicts": ("merge",),
    "doctor": ("doctor",),
    "evaluations": ("evaluate",),
    "exchange": ("card", "export", "import_model"),
    "fsck": ("fsck",),
    "gc": ("gc",),
    "history": ("list_models", "list_versions", "log"),
    "holders": ("stages",),
    "index": ("index",),
    "inspect": ("check", "describe_file", "show", "status"),
    "merges": ("merge_file",),
    "migrate": ("migrate",),
    "moves": ("mv", "rm"),
    "nearest": ("similar",),
    "scan": ("scan",),
    "setup": ("init", "install", "uninstall"),
    "stages": ("check_stage_of", "demote", "promote", "rollback_stage"),
    "tables": ("blame", "compare_versions"),
    "tags": ("tag",),
    "track": ("add", "refresh"),
    "transfer": ("pull", "push"),
    "versions": ("load", "rollback"),
}


def __getattr__(name: str) -> Any:
    for room, verbs in _ROOMS.items():
        if name in verbs:
            return getattr(import_module(f"dvc_modelver.api.{room}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Verbs(ModuleType):
    """Keeps ``api.scan`` the verb: the import system would put the module of the same name there."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Verbs
