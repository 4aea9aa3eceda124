"""The errors a user can meet, each with one line of what was found and one command to run next.

::

    ModelverError            exit 2: wrong use or bad input
    |-- UsageError           the arguments or the state of the repository do not allow this
    |-- BadModelError        a model file breaks its format's rules
    |-- BadMetadataError     a metadata file, tensor table, pointer or setting cannot be read
    |-- NotFoundError        no such model, version, tag or revision
    |-- ConflictError        two sides changed; both are kept, the user decides
    |-- RefusedError         exit 1: a check said "no"
    `-- EnvironmentFailed    exit 4: network, credentials, disk
        |-- ObjectMissing    an object is neither in the cache nor on the remote
        `-- ObjectCorrupt    an object's bytes do not have the md5 of its name
"""

from __future__ import annotations

import os


class ModelverError(Exception):
    """An error whose message is one line: where, what was found, what was expected.

    Attributes:
        hint: The one command or step to take next; empty when there is none.
        exit_code: What the process exits with when nothing else handles the error.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(ModelverError):
    """The arguments, or the state of the repository, do not allow what was asked."""


class BadModelError(ModelverError):
    """A model file breaks the rules of its format; nothing of it was executed."""


class BadMetadataError(ModelverError):
    """A metadata file, tensor table, pointer or setting cannot be read."""


class NotFoundError(ModelverError):
    """There is no model, version, tag or revision of that name."""


class ConflictError(ModelverError):
    """Weights and metadata both moved, to different versions; both are kept."""


class RefusedError(ModelverError):
    """A check answered "no"; the message names what it refused."""

    exit_code = 1


class EnvironmentFailed(ModelverError):  # noqa: N818 - it is the environment that failed, not a name for a bug
    """Network, credentials, permissions or disk space failed."""

    exit_code = 4


class ObjectMissing(EnvironmentFailed):
    """An object is neither in the cache nor on the remote."""


class ObjectCorrupt(EnvironmentFailed):
    """The bytes of an object do not have the md5 that names it."""


def environment_error(err: OSError) -> EnvironmentFailed:
    """Give the error for what the operating system refused: a file without rights, a read-only disk, a full one."""
    where = err.filename if isinstance(err.filename, str) else os.fsdecode(err.filename or b"")
    what = f"{where}: {err.strerror}" if where else str(err)
    return EnvironmentFailed(what, hint=f"ls -ld {word(where)}" if where else "df -h .")


def word(path: object) -> str:
    """Give a path as it is typed in a shell: quoted where it needs to be, never mistaken for an option."""
    import shlex

    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)
