"""Tags on the remote, whose one tag of a name is what decides between two who promote at once."""

from __future__ import annotations

from collections.abc import Sequence

from dvc_modelver.errors import EnvironmentFailed
from dvc_modelver.git.porcelain import Git, GitFailed


class TagTakenError(Exception):
    """The remote has another tag of that name; `tag` is its name."""

    def __init__(self, tag: str) -> None:
        super().__init__(tag)
        self.tag = tag


def find_remote(git: Git) -> str | None:
    """Give the remote that has the registry: ``origin``, else that of the current branch, else the first one."""
    names = git.text("remote").split("\n")
    branch = git.text("config", f"branch.{git.text('branch', '--show-current')}.remote", codes=(0, 1))
    return next((name for name in ("origin", branch) if name and name in names), names[0] or None)


def find_default_branch(git: Git, remote: str) -> str:
    """Ask a remote which branch its HEAD is; empty where it has none or cannot be asked."""
    lines = git.run_for_code("ls-remote", "--symref", remote, "HEAD", codes=(0, 1, 128))[1].decode().splitlines()
    heads = (line.removesuffix("\tHEAD") for line in lines if line.endswith("\tHEAD"))
    return next((head.removeprefix("ref: refs/heads/") for head in heads if head.startswith("ref: ")), "")


def fetch_tags(git: Git, remote: str) -> None:
    """Fetch a remote's branches and tags; tags that are here under the same name stay as they are.

    Raises:
        EnvironmentFailed: It cannot be reached.
    """
    try:
        git.run("fetch", "--quiet", "--tags", remote, codes=(0, 1))
    except GitFailed as err:
        raise EnvironmentFailed(f"{remote}: cannot be fetched from ({said_by(err)})", hint="git fetch") from err


def remote_tags(git: Git, remote: str, *patterns: str) -> dict[str, str]:
    """Give tag -> object id of a remote's tags that match any of some patterns.

    Raises:
        EnvironmentFailed: It cannot be reached.
    """
    try:
        lines = git.text("ls-remote", "--refs", remote, *(f"refs/tags/{p}" for p in patterns)).splitlines()
    except GitFailed as err:
        raise EnvironmentFailed(f"{remote}: cannot be asked for tags ({said_by(err)})", hint="git ls-remote") from err
    pairs = (line.split("\t", 1) for line in lines)
    return {ref.removeprefix("refs/tags/"): oid for oid, ref in pairs if ref.startswith("refs/tags/")}


def push_tags(git: Git, remote: str, tags: Sequence[str]) -> None:
    """Push new tags, all or none; the pre-push hook sends the weights of their commits first.

    Raises:
        TagTakenError: The remote has another tag of one of the names.
        EnvironmentFailed: They could not be pushed.
    """
    atomic = ["--atomic"] * (len(tags) > 1)
    refs = [f"refs/tags/{tag}" for tag in tags]
    try:
        git.run(
            "push", "--quiet", *atomic, remote, *refs, env={"MODELVER_SKIP": ""}, literal=False
        )  # hooks use patterns
    except GitFailed as err:
        there = remote_tags(git, remote, *tags)
        mine = {tag: git.text("rev-parse", "--verify", f"refs/tags/{tag}") for tag in tags}
        for tag in tags:
            if there.get(tag, mine[tag]) != mine[tag]:
                raise TagTakenError(tag) from err
        if there.keys() >= set(tags):
            return  # it arrived, though git was not told so
        raise EnvironmentFailed(f"{remote}: {', '.join(tags)} not pushed ({said_by(err)})", hint="git push") from err


def take_theirs(git: Git, remote: str, tag: str) -> None:
    """Replace a tag of this clone by the remote's of the same name."""
    git.run("fetch", "--quiet", "--no-tags", remote, f"+refs/tags/{tag}:refs/tags/{tag}")


def said_by(err: GitFailed) -> str:
    """Give the line of Git's, or of its hooks', that says why."""
    lines = [line.strip() for line in err.stderr.splitlines() if line.strip()]
    telling = ("modelver: ", "remote: error", "fatal: ", "! [")
    found = next((line for start in telling for line in lines if line.startswith(start)), lines[-1] if lines else "")
    return found.removeprefix("modelver: ").removeprefix("fatal: ") or f"exit code {err.code}"
