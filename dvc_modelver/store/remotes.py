"""DVC remotes, through DVC: its file systems, its credentials, its parallel transfers. The one module that imports dvc.

Nothing here takes DVC's lock, so that a commit or push while ``dvc repro`` runs is no problem.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from dvc_modelver.errors import EnvironmentFailed, ModelverError, ObjectMissing
from dvc_modelver.store.cache import Cache
from dvc_modelver.store.dvcconfig import folder_hint, lacks_folder, read_settings

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
JOBS = 16
"""Questions to a remote at a time."""


@dataclass(frozen=True)
class PushResult:
    """What an upload did; both hold md5s."""

    sent: frozenset[str]
    failed: frozenset[str]


@dataclass
class FetchResult:
    """What a download did.

    Attributes:
        fetched: md5s that are in the cache now.
        failed: md5 -> one line why.
    """

    fetched: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)


class Remote:
    """One DVC remote of one DVC repository."""

    def __init__(self, root: Path, name: str, url: str, repo: Any) -> None:
        self.root, self.name, self._url, self._repo = root, name, url, repo
        self._cache = Cache(read_settings(root))

    @classmethod
    def open(cls, root: Path, name: str | None = None) -> Remote:
        """Open a remote by name; the default one when none is given.

        Raises:
            EnvironmentFailed: There is none of that name, or what its URL needs is not installed.
        """
        settings = read_settings(root)
        chosen = name or settings.default_remote
        if chosen is None:
            raise EnvironmentFailed("no DVC remote is configured", hint="dvc remote add -d storage URL")
        if chosen not in settings.remotes:
            raise EnvironmentFailed(f"DVC remote {chosen!r}: not configured", hint=f"dvc remote add {chosen} URL")
        url = settings.remotes[chosen]
        os.environ.setdefault("AWS_MAX_ATTEMPTS", "2")
        with _quiet(), _explained(url):
            from dvc.repo import Repo

            repo = Repo(str(root))
            remote = repo.config["remote"][chosen]
            if url.startswith("s3://"):
                remote.setdefault("connect_timeout", CONNECT_TIMEOUT_S)
                remote.setdefault("read_timeout", READ_TIMEOUT_S)
        return cls(root, chosen, url, repo)

    @property
    def url(self) -> str:
        """The URL, without a password in it."""
        return re.sub(r"(://[^/@:]+):[^/@]*@", r"\1@", self._url)

    def _odb(self, *, legacy: bool) -> Any:
        return self._repo.cloud.get_remote_odb(self.name, "push", hash_name="md5-dos2unix" if legacy else "md5")

    def sizes(self, oids: set[str], *, legacy: bool = False) -> dict[str, int]:
        """Give the bytes of those objects that the remote has; it is asked about each, no index is believed.

        Args:
            oids: The objects.
            legacy: They lie in the layout of DVC before 3.0; likewise below.

        Raises:
            EnvironmentFailed: The remote cannot be reached, or refuses.
        """
        found: dict[str, int] = {}
        asked = sorted(oids)
        if not asked:
            return found
        with _quiet(), _explained(self.url):
            odb = self._odb(legacy=legacy)
            self._check_reachable(odb)
            paths = [odb.oid_to_path(oid) for oid in asked]
            for oid, info in zip(asked, odb.fs.info(paths, batch_size=JOBS, return_exceptions=True), strict=True):
                if isinstance(info, Exception) and not isinstance(info, (FileNotFoundError, NotADirectoryError)):
                    raise info
                if not isinstance(info, Exception) and info["type"] != "directory":
                    found[oid] = int(info["size"])
        return found

    def missing(self, oids: set[str], *, legacy: bool = False) -> set[str]:
        """Give those objects that the remote does not have.

        Raises:
            EnvironmentFailed: The remote cannot be reached, or refuses.
        """
        return oids - self.sizes(oids, legacy=legacy).keys()

    def _check_reachable(self, odb: Any) -> None:
        """Let a folder or bucket that is not there, or is not ours, be an error rather than 'nothing is there'."""
        if lacks_folder(self._url):
            raise EnvironmentFailed(f"{self.url}: does not exist (not mounted?)", hint=folder_hint(self.url))
        if self._url.startswith("s3://"):
            bucket = odb.path.split("/")[0]
            odb.fs.fs.call_s3("head_bucket", Bucket=bucket) if hasattr(odb.fs.fs, "call_s3") else odb.fs.fs.ls(bucket)

    def push(self, oids: set[str], *, legacy: bool = False, broken: Set[str] = frozenset()) -> PushResult:
        """Upload these objects of the cache, in parallel; listings of folders go last.

        Nothing else is sent: which objects a listing names, and which of them the remote lacks, the caller knows.

        Args:
            oids: The objects.
            legacy: They lie in the layout of DVC before 3.0.
            broken: Those that the remote has with other bytes.

        Raises:
            EnvironmentFailed: The remote cannot be reached, or refuses.
        """
        listings = {oid for oid in oids if oid.endswith(".dir")}
        with _quiet() as said, _explained(self.url):
            failed = self._put(sorted(oids - listings), broken, legacy=legacy)
            failed |= listings if failed else self._put(sorted(listings), broken, legacy=legacy)
        arrived = self.sizes(oids - failed, legacy=legacy)
        failed |= {oid for oid in oids if arrived.get(oid) != self._cache.path_of(oid, legacy=legacy).stat().st_size}
        if failed and said:
            raise EnvironmentFailed(
                f"{self.url}: upload failed: {said[-1]}", hint="git push again: it goes on where it stopped"
            )
        return PushResult(frozenset(oids - failed), frozenset(failed))

    def _put(self, oids: list[str], broken: Set[str], *, legacy: bool) -> set[str]:
        """Upload objects in parallel; give those that failed."""
        from dvc.fs.callbacks import TqdmCallback
        from dvc_objects.fs.local import localfs

        failed: set[str] = set()
        if not oids:
            return failed
        odb = self._odb(legacy=legacy)
        for oid in oids:
            if oid in broken and odb.fs.protocol == "local":  # where files can share blocks, DVC leaves what is there
                odb.fs.remove(odb.oid_to_path(oid))

        def note(oid: str, err: BaseException) -> None:
            logging.getLogger("dvc").error("%s", oid[:8], exc_info=err)
            failed.add(oid)

        with TqdmCallback(desc=f"Pushing to {self.url}", unit="file") as progress:
            odb.add(
                [str(self._cache.path_of(oid, legacy=legacy)) for oid in oids], localfs, oids,
                check_exists=False, batch_size=odb.fs.jobs, callback=progress, on_error=note,
            )  # fmt: skip
        return failed

    def fetch(self, oids: set[str], *, legacy: bool = False) -> FetchResult:
        """Bring objects into the cache, a folder's with its files; each is hashed there before anybody may use it.

        Raises:
            EnvironmentFailed: The remote cannot be reached, or refuses.
        """
        result = FetchResult()
        self._fetch_objects(oids, legacy, result)
        listed = [oid for oid in result.fetched if oid.endswith(".dir")]
        files = {md5 for oid in listed for _, md5 in self._cache.iter_folder(oid, legacy=legacy)}
        absent = {md5 for md5 in files if not self._cache.has_alone(md5, legacy=legacy)}
        if absent:
            self._fetch_objects(absent, legacy, result)
        return result

    def _fetch_objects(self, oids: set[str], legacy: bool, result: FetchResult) -> None:
        """Fetch some objects at a time beside the cache, so that none of its names ever has bytes not hashed."""
        from dvc.fs.callbacks import TqdmCallback
        from dvc_objects.fs.generic import transfer
        from dvc_objects.fs.local import localfs

        absent = self.missing(oids, legacy=legacy)
        result.failed.update({oid: f"object {oid[:8]} is not on {self.url}\n{NOT_THERE_HINT}" for oid in absent})
        todo = sorted(oids - absent)
        if not todo:
            return
        with (
            _quiet() as said,
            _explained(self.url),
            TqdmCallback(desc=f"Fetching from {self.url}", size=len(todo), unit="file") as progress,
        ):
            odb = self._odb(legacy=legacy)
            for start in range(0, len(todo), JOBS):
                some = todo[start : start + JOBS]
                with self._cache.incoming() as folder:
                    transfer(
                        odb.fs, [odb.oid_to_path(oid) for oid in some], localfs, [str(folder / oid) for oid in some],
                        callback=progress, batch_size=odb.fs.jobs,
                        on_error=lambda _from, _to, err: said.append(_one_line(err)),
                    )  # fmt: skip
                    for oid in some:
                        if not (folder / oid).is_file():
                            why = f": {said[-1]}" if said else ""
                            result.failed[oid] = f"object {oid[:8]} could not be fetched from {self.url}{why}"
                        elif self._cache.take_in(folder / oid, oid, legacy=legacy):
                            result.fetched.add(oid)
                        else:
                            result.failed[oid] = f"object {oid[:8]} on {self.url} has other bytes than its md5 says"

    def open_object(self, oid: str, *, legacy: bool = False, block_bytes: int = 1 << 16) -> BinaryIO:
        """Open an object on the remote for reading by range; nothing is put into the cache.

        Args:
            oid: The object.
            legacy: It lies in the layout of DVC before 3.0.
            block_bytes: How much is asked for at a time: little for headers, more for the whole.

        Raises:
            ObjectMissing: The remote does not have it.
            EnvironmentFailed: The remote cannot be reached, or refuses.
        """
        with _quiet(), _explained(self.url):
            odb = self._odb(legacy=legacy)
            try:
                return cast(
                    "BinaryIO",
                    odb.fs.fs.open(odb.oid_to_path(oid), "rb", block_size=block_bytes, cache_type="readahead"),
                )
            except FileNotFoundError as err:
                self._check_reachable(odb)
                raise ObjectMissing(f"object {oid[:8]}: not on {self.url}", hint="modelver fsck --remote") from err


NOT_THERE_HINT = "hint: run modelver push where the object is, most likely where it was committed"


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """Keep DVC's log lines off the terminal and collect its errors; progress bars only on a terminal."""
    said: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR:
                detail = record.exc_info[1] if record.exc_info else None
                said.append(_one_line(detail) if detail is not None else record.getMessage().splitlines()[0])

    names = (
        "dvc",
        "dvc_data",
        "dvc_objects",
        "dvc_s3",
        "s3fs",
        "botocore",
        "aiobotocore",
        "fsspec",
        "asyncio",
    )
    loggers = [logging.getLogger(name) for name in names]
    before = [(log.handlers[:], log.propagate, log.level) for log in loggers]
    handler = Collect()
    old = os.environ.get("DVC_PROGRESS_DISABLED")
    for log in loggers:
        log.handlers, log.propagate = [handler], False
    try:
        if not sys.stderr.isatty():
            _disable_progress()
        yield said
    finally:
        for log, (handlers, propagate, level) in zip(loggers, before, strict=True):
            log.handlers, log.propagate = handlers, propagate
            log.setLevel(level)
        if old is not None:
            os.environ["DVC_PROGRESS_DISABLED"] = old


def _disable_progress() -> None:
    """Tell DVC's progress bars that nobody watches."""
    logging.getLogger("dvc").setLevel(logging.ERROR)


def _one_line(err: BaseException) -> str:
    text = " ".join(str(err).split())
    return f"{text[:200]}" if text else type(err).__name__


_CREDENTIALS = (
    "NoCredentials", "PartialCredentials", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken",
    "TokenRefresh", "Unable to locate credentials", "ProfileNotFound", "AuthError", "CredentialRetrieval",
)  # fmt: skip
_FORBIDDEN = ("AccessDenied", "Forbidden", "403", "PermissionError")
_NETWORK = (
    "EndpointConnection", "ConnectTimeout", "ReadTimeout", "Connection", "ConnectError", "gaierror",
    "Name or service", "Temporary failure", "Cannot connect", "timed out",
)  # fmt: skip


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn whatever a file system raises into one line and one command."""
    try:
        yield
    except ModelverError:
        raise
    except KeyboardInterrupt:
        raise
    except Exception as err:
        raise _explain(err, url) from err


def _explain(err: Exception, url: str) -> EnvironmentFailed:
    chain: list[BaseException] = []
    node: BaseException | None = err
    while node is not None and node not in chain:
        chain.append(node)
        node = node.__cause__ or node.__context__
    text = " | ".join(f"{type(e).__name__}: {e}" for e in chain)
    said = _one_line(err) or type(err).__name__
    if any(
        type(e).__name__ in ("RemoteMissingDepsError", "MissingDepsError") or isinstance(e, ImportError) for e in chain
    ):
        scheme = url.split("://", maxsplit=1)[0]
        return EnvironmentFailed(
            f"{url}: what this remote needs is not installed ({said})",
            hint=f"pip install 'dvc-modelver[{scheme}]'",
        )
    if "NoSuchBucket" in text or (url.startswith("s3://") and any(isinstance(e, FileNotFoundError) for e in chain)):
        return EnvironmentFailed(f"{url}: no such bucket", hint="create the bucket, or: dvc remote modify NAME url URL")
    if any(word in text for word in _CREDENTIALS):
        return EnvironmentFailed(
            f"{url}: no valid credentials ({said})",
            hint="aws configure; or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    if any(word in text for word in _FORBIDDEN):
        return EnvironmentFailed(
            f"{url}: access refused ({said})", hint="check the credentials and the rights of this remote"
        )
    if any(word in text for word in _NETWORK):
        return EnvironmentFailed(
            f"{url}: cannot be reached ({said})",
            hint="check the network and the endpoint URL; then the same command again",
        )
    if any(isinstance(e, (NotADirectoryError, FileExistsError)) for e in chain):
        return EnvironmentFailed(f"{url}: not a folder", hint="dvc remote modify NAME url URL")
    if any(isinstance(e, OSError) and e.errno == 28 for e in chain):
        return EnvironmentFailed(f"{url}: the disk is full ({said})", hint="df -h")
    return EnvironmentFailed(f"{url}: {said}", hint="modelver doctor")
