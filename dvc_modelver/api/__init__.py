"""One function per verb of the command line, with the same words."""

from dvc_modelver.api.compare import diff
from dvc_modelver.api.inspect import check, describe_file, fsck, list_models, log, show, status
from dvc_modelver.api.nearest import similar
from dvc_modelver.api.setup import doctor, init, install, uninstall
from dvc_modelver.api.track import add, mv, refresh, rm
from dvc_modelver.api.transfer import pull, push
from dvc_modelver.api.versions import load, rollback, tag

__all__ = [
    "add", "check", "describe_file", "diff", "doctor", "fsck", "init", "install", "list_models", "load", "log",
    "mv", "pull", "push", "refresh", "rm", "rollback", "show", "similar", "status", "tag", "uninstall",
]  # fmt: skip
