"""The one place that runs git."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dvc_modelver.errors import EnvironmentFailed, NotFoundError, UsageError

ZERO_OID = "0" * 40
_ENV = {"LC_ALL": "C", "LANGUAGE": "C", "GIT_OPTIONAL_LOCKS": "0", "MODELVER_SKIP": "1"}
_LOCAL = frozenset(
    f"GIT_{name}" for name in ("ALTERNATE_OBJECT_DIRECTORIES", "COMMON_DIR", "DIR", "INDEX_FILE", "OBJECT_DIRECTORY",
                               "PREFIX", "SHALLOW_FILE", "WORK_TREE")
)  # fmt: skip
"""What Git tells its hooks of their repository. Source: ``git rev-parse --local-env-vars``."""
_CHANGING = frozenset({"fetch", "init", "notes", "push", "tag"})
"""Commands that GitPython runs: those that change a repository for good or talk to another one."""


class GitFailed(UsageError):  # noqa: N818 - what happened, not a name for a bug
    """git exited with an error; the message is its last words, `stderr` all of them."""

    def __init__(self, args: Sequence[str], code: int, stderr: str) -> None:
        last = [line for line in stderr.strip().splitlines() if line.strip()] or [f"exit code {code}"]
        super().__init__(f"git {args[0]}: {re.sub(r'^(fatal|error): ', '', last[0])}")
        self.code = code
        self.stderr = stderr


class Logged(NamedTuple):
    """A commit as ``git log`` has it.

    Attributes:
        date: Of the author, ISO 8601.
    """

    id: str
    date: str
    author: str
    subject: str


@dataclass(frozen=True)
class Change:
    """One path that differs between two trees, or between a tree and the index.

    Attributes:
        status: ``A``, ``M``, ``D``, ``T`` or ``U``.
        old_oid: Blob id before; `ZERO_OID` when absent or not known.
        new_oid: Blob id after; `ZERO_OID` when absent or not known.
    """

    path: str
    status: str
    old_mode: str
    new_mode: str
    old_oid: str
    new_oid: str


class Git:
    """Runs git in one folder, without our own fsmonitor hook, and gives its output as bytes.

    The variables that Git sets for its hooks (``GIT_DIR``, ``GIT_INDEX_FILE``...) are passed on, so that a
    hook works on the index of the command that called it. Hooks of ours that such a call sets off do nothing.
    With `is_other` the folder is of another repository, for which those variables are not meant.

    Args:
        folder: Where git runs.
        is_other: See above.
        index: The file of the index; where it is given, a question about the index is asked once until that file is
            written. HEAD must not move meanwhile.
    """

    def __init__(self, folder: Path, *, is_other: bool = False, index: Path | None = None) -> None:
        self.folder = folder
        self._dropped = _LOCAL if is_other else frozenset[str]()
        self._index = index
        self._answers: dict[tuple[str, ...], tuple[object, bytes]] = {}

    def run(
        self,
        *args: str,
        stdin: bytes | None = None,
        env: dict[str, str] | None = None,
        codes: Sequence[int] = (0,),
        literal: bool = True,
    ) -> bytes:
        """Run ``git <args>`` and give its standard output.

        Args:
            args: The subcommand and its arguments.
            stdin: What git reads from standard input.
            env: Variables added for this one call.
            codes: Exit codes that are no error.
            literal: Take paths as they are; else as patterns.

        Raises:
            GitFailed: Any other exit code.
            EnvironmentFailed: There is no git program.
        """
        return self.run_for_code(*args, stdin=stdin, env=env, codes=codes, literal=literal)[1]

    def run_for_code(
        self,
        *args: str,
        stdin: bytes | None = None,
        env: dict[str, str] | None = None,
        codes: Sequence[int] = (0,),
        literal: bool = True,
    ) -> tuple[int, bytes]:
        """Run ``git <args>`` like `run` and give its exit code as well."""
        code, out, err = self.run_for_all(*args, stdin=stdin, env=env, literal=literal)
        if code not in codes:
            raise GitFailed(args, code, err)
        return code, out

    def run_for_all(
        self, *args: str, stdin: bytes | None = None, env: dict[str, str] | None = None, literal: bool = True
    ) -> tuple[int, bytes, str]:
        """Run ``git <args>`` like `run` and give its exit code, whichever, and what it wrote on both streams."""
        command = ["git", "-c", "core.fsmonitor=false", "-c", "core.quotepath=false"]
        command += [*["--literal-pathspecs"] * literal, *args]
        try:
            if args[0] in _CHANGING and not self._dropped:
                return self._execute(command, stdin or b"", _ENV | (env or {}))
            done = subprocess.run(
                command, cwd=self.folder, env=self._environment() | (env or {}), input=stdin or b"",
                capture_output=True, check=False,
            )  # fmt: skip
        except FileNotFoundError as err:
            if self.folder.is_dir():
                raise EnvironmentFailed("git: program not found", hint="install Git 2.36 or newer") from err
            raise
        return done.returncode, done.stdout, done.stderr.decode("utf-8", "replace")

    def _execute(self, command: list[str], stdin: bytes, env: dict[str, str]) -> tuple[int, bytes, str]:
        """Run a command with GitPython, whose import takes as long as most questions do."""
        import tempfile

        import git

        with tempfile.TemporaryFile() as feed:
            feed.write(stdin)
            feed.seek(0)
            try:
                code, out, err = git.Git(str(self.folder)).execute(
                    command, istream=feed, with_extended_output=True, with_exceptions=False, stdout_as_string=False,
                    strip_newline_in_stdout=False, env=env,
                )  # fmt: skip
            except git.GitCommandNotFound as missing:
                raise FileNotFoundError("git") from missing
        return code, _bytes(out), _bytes(err).decode("utf-8", "replace")

    def _environment(self) -> dict[str, str]:
        return {key: value for key, value in os.environ.items() if key not in self._dropped} | _ENV

    def _ask_index(self, *args: str) -> bytes:
        """Run ``git <args>``, or give what it said when the index was the same file."""
        if self._index is None or self._dropped:
            return self.run(*args)
        try:
            st = (self.folder / os.environ.get("GIT_INDEX_FILE", self._index)).stat()
        except OSError:
            return self.run(*args)
        stamp = (st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns)
        known = self._answers.get(args)
        if known is None or known[0] != stamp:
            self._answers[args] = known = (stamp, self.run(*args))
        return known[1]

    def text(self, *args: str, codes: Sequence[int] = (0,)) -> str:
        """Run ``git <args>`` and give its output as text without the final newline."""
        return os.fsdecode(self.run(*args, codes=codes)).removesuffix("\n")

    def paths(self, *args: str) -> list[str]:
        """Run ``git <args>`` whose output is a list of paths ended by NUL."""
        return [os.fsdecode(p) for p in self.run(*args).split(b"\0") if p]

    def find_commit(self, rev: str) -> str | None:
        """Give the full id of the commit that `rev` names; None where there is none."""
        code, out = self.run_for_code(
            "rev-parse", "--verify", "--quiet", "--end-of-options", f"{rev}^{{commit}}", codes=(0, 1, 128)
        )
        return out.decode().strip() if code == 0 else None

    def commit_of(self, rev: str) -> str:
        """Give the full id of the commit that `rev` names.

        Raises:
            NotFoundError: `rev` names no commit.
        """
        found = self.find_commit(rev)
        if found is None:
            raise NotFoundError(f"{rev}: no such revision", hint="git log --oneline --decorate")
        return found

    def staged_changes(self, base: str | None = "HEAD") -> list[Change]:
        """Give what the index changes against a commit; against nothing where that is None, or not there yet."""
        if base is None or (base != "HEAD" and not self.find_commit(base)):
            base = self._empty_tree()
        question = ("diff-index", "--cached", "--raw", "-z", "--no-abbrev", "--no-renames")
        try:
            out = self._ask_index(*question, base)
        except GitFailed:
            if base != "HEAD" or self.find_commit(base):
                raise
            out = self._ask_index(*question, self._empty_tree())
        return list(_iter_raw(out))

    def _empty_tree(self) -> str:
        return self.text("hash-object", "-t", "tree", os.devnull)

    def tree_changes(self, old: str, new: str) -> list[Change]:
        """Give what differs between two commits."""
        return list(_iter_raw(self.run("diff-tree", "-r", "--raw", "-z", "--no-abbrev", "--no-renames", old, new)))

    def iter_changes(self, *args: str, literal: bool = False) -> Iterator[tuple[Logged, Change]]:
        """Give (commit, change) of everything that commits changed, newest first, in one process.

        Args:
            args: Arguments of ``git log``: revisions, how to show merges, and paths, which may be patterns.
            literal: Paths are no patterns.
        """
        out = self.run(
            "log", "-z", "--format=%x01%H%x02%aI%x02%an%x02%s", "--no-show-signature", "--raw", "--no-abbrev",
            "--no-renames", "--root", *args, literal=literal,
        )  # fmt: skip
        parts, commit = iter(out.split(b"\0")), Logged("", "", "", "")
        for part in parts:
            text = part.strip()
            if text.startswith(b"\x01"):
                commit = Logged(*text[1:].decode("utf-8", "replace").split("\x02", 3))
            elif text.startswith(b":"):
                yield commit, _change(text, next(parts))

    def worktrees(self) -> list[Path]:
        """Give the top folders of all work trees, the main one first; some may be gone, or be bare."""
        fields = self.run("worktree", "list", "--porcelain", "-z").split(b"\0")
        return [
            Path(os.fsdecode(field.removeprefix(b"worktree "))) for field in fields if field.startswith(b"worktree ")
        ]

    def iter_blob(self, oid: str) -> Iterator[bytes]:
        """Give a blob's bytes in pieces of at most 1 MiB, whatever its size."""
        command = ["git", "cat-file", "blob", oid]
        with subprocess.Popen(command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            while piece := process.stdout.read(1 << 20):
                yield piece

    def index_entries(self, *paths: str) -> dict[str, tuple[str, str]]:
        """Give path -> (mode, blob id) of the index; stages of a conflict are left out."""
        entries = {}
        for line in self._ask_index("ls-files", "-s", "-z", "--", *paths).split(b"\0"):
            if line:
                head, _, path = line.partition(b"\t")
                mode, oid, stage = head.decode().split(" ")
                if stage == "0":
                    entries[os.fsdecode(path)] = (mode, oid)
        return entries

    def unmerged(self, *, resolved: bool = False) -> dict[str, tuple[str | None, str | None, str | None]]:
        """Give path -> blob ids of base, ours and theirs of the files in conflict, None where a side has none.

        Args:
            resolved: Those that were in conflict and have been added since, as far as the index remembers.
        """
        found: dict[str, list[str | None]] = {}
        for line in self.run("ls-files", "--resolve-undo" if resolved else "-u", "-z").split(b"\0"):
            if line:
                head, _, name = line.partition(b"\t")
                _, oid, stage = head.decode().split(" ")
                found.setdefault(os.fsdecode(name), [None, None, None])[int(stage) - 1] = oid
        return {path: (oids[0], oids[1], oids[2]) for path, oids in sorted(found.items())}

    def staged_version(self, path: str, stage: int) -> bytes | None:
        """Give one side of a path in conflict: 1 is the base, 2 ours, 3 theirs; None where it has none."""
        code, out = self.run_for_code("cat-file", "blob", f":{stage}:{path}", codes=(0, 128))
        return out if code == 0 else None

    def stage_blobs(self, blobs: dict[str, bytes | None]) -> None:
        """Put texts into the index under their paths, bypassing filters; None removes the path."""
        lines = []
        for path, content in blobs.items():
            if content is None:
                lines.append(b"0 " + ZERO_OID.encode() + b"\t" + os.fsencode(path))
                continue
            oid = self.run("hash-object", "-w", "--stdin", stdin=content).strip()
            lines.append(b"100644 " + oid + b"\t" + os.fsencode(path))
        if lines:
            self.run("update-index", "-z", "--index-info", stdin=b"\0".join(lines) + b"\0")

    def attributes(self, paths: Sequence[str], *names: str) -> dict[str, dict[str, str]]:
        """Give path -> attribute -> value, as ``git check-attr`` says."""
        if not paths:
            return {}
        feed = b"\0".join(os.fsencode(p) for p in paths) + b"\0"
        fields = self.run("check-attr", "-z", "--stdin", *names, stdin=feed).split(b"\0")
        found: dict[str, dict[str, str]] = {}
        for i in range(0, len(fields) - 2, 3):
            found.setdefault(os.fsdecode(fields[i]), {})[fields[i + 1].decode()] = fields[i + 2].decode()
        return found

    def ignored(self, paths: Sequence[str]) -> dict[str, str]:
        """Give path -> ``file:line: pattern`` of the rule that hides it, for those that are ignored."""
        if not paths:
            return {}
        feed = b"\0".join(os.fsencode(p) for p in paths) + b"\0"
        out = self.run("check-ignore", "-z", "-v", "--no-index", "--stdin", stdin=feed, codes=(0, 1), literal=False)
        fields = [os.fsdecode(f) for f in out.split(b"\0")]
        return {
            fields[i + 3]: f"{fields[i]}:{fields[i + 1]}: {fields[i + 2]}"
            for i in range(0, len(fields) - 3, 4)
            if not fields[i + 2].startswith("!")
        }


def _iter_raw(out: bytes) -> Iterator[Change]:
    fields = out.split(b"\0")
    for i in range(0, len(fields) - 1, 2):
        yield _change(fields[i], fields[i + 1])


def _change(entry: bytes, path: bytes) -> Change:
    old_mode, new_mode, old_oid, new_oid, status = entry.decode().lstrip(":").split(" ")
    return Change(os.fsdecode(path), status[0], old_mode, new_mode, old_oid, new_oid)


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else os.fsencode(value)


def interpreter() -> str:
    """Give the path of the Python that runs now, as hooks call it later."""
    return sys.executable
