"""Version control for model weights on top of Git and DVC.

``import dvc_modelver as modelver`` gives one function per verb of the command line: ``modelver.add(...)``,
``modelver.diff(...)``, ``modelver.rollback(...)``. They are imported at first use, since Git starts parts of
this package at every turn.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dvc_modelver._version import __version__ as __version__

if TYPE_CHECKING:
    from dvc_modelver.api import add as add
    from dvc_modelver.api import best as best
    from dvc_modelver.api import bisect as bisect
    from dvc_modelver.api import blame as blame
    from dvc_modelver.api import card as card
    from dvc_modelver.api import check as check
    from dvc_modelver.api import check_stage_of as check_stage_of
    from dvc_modelver.api import compare_versions as compare_versions
    from dvc_modelver.api import demote as demote
    from dvc_modelver.api import describe_file as describe_file
    from dvc_modelver.api import diff as diff
    from dvc_modelver.api import doctor as doctor
    from dvc_modelver.api import evaluate as evaluate
    from dvc_modelver.api import export as export
    from dvc_modelver.api import fsck as fsck
    from dvc_modelver.api import gc as gc
    from dvc_modelver.api import import_model as import_model
    from dvc_modelver.api import index as index
    from dvc_modelver.api import init as init
    from dvc_modelver.api import install as install
    from dvc_modelver.api import lineage as lineage
    from dvc_modelver.api import list_models as list_models
    from dvc_modelver.api import list_versions as list_versions
    from dvc_modelver.api import load as load
    from dvc_modelver.api import log as log
    from dvc_modelver.api import merge as merge
    from dvc_modelver.api import merge_file as merge_file
    from dvc_modelver.api import migrate as migrate
    from dvc_modelver.api import mv as mv
    from dvc_modelver.api import promote as promote
    from dvc_modelver.api import pull as pull
    from dvc_modelver.api import push as push
    from dvc_modelver.api import refresh as refresh
    from dvc_modelver.api import rm as rm
    from dvc_modelver.api import rollback as rollback
    from dvc_modelver.api import rollback_stage as rollback_stage
    from dvc_modelver.api import scan as scan
    from dvc_modelver.api import show as show
    from dvc_modelver.api import similar as similar
    from dvc_modelver.api import stages as stages
    from dvc_modelver.api import status as status
    from dvc_modelver.api import tag as tag
    from dvc_modelver.api import uninstall as uninstall


_VERBS = frozenset(
    [
        "add",
        "best",
        "bisect",
        "blame",
        "card",
        "check",
        "compare_versions",
        "check_stage_of",
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
)


def __getattr__(name: str) -> Any:
    if name not in _VERBS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("dvc_modelver.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_VERBS])


class _Package(ModuleType):
    """Keeps ``modelver.diff`` the verb: the import system would put the package of the same name there."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _VERBS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
