"""The commands that move weights about: push, pull, fsck. Each calls one function of the API and prints its answer."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dvc_modelver import api
from dvc_modelver.cli.output import JsonFlag, emit_json, emit_lines, say
from dvc_modelver.progress import human_bytes

if TYPE_CHECKING:
    from dvc_modelver.api.fsck import Fsck
    from dvc_modelver.api.transfer import Pulled
    from dvc_modelver.transfer import Upload


def push(
    everything: Annotated[
        bool, typer.Option("--all", help="Objects of all commits that a ref or a stash reaches.")
    ] = False,
    remote: Annotated[str | None, typer.Option(help="DVC remote; the configured one by default.")] = None,
    json: JsonFlag = False,
) -> None:
    """Upload weights to the DVC remote; git push does this by itself."""
    done = api.push(everything=everything, remote=remote, say=say)
    if json:
        emit_json({"remotes": [_upload_document(one) for one in done]})
        return
    emit_lines([_upload_line(one) for one in done] or ["nothing to upload"])


def _upload_document(one: Upload) -> dict[str, Any]:
    return {"url": one.url, "sent": list(one.sent), "present": list(one.present), "bytes": one.size}


def _upload_line(one: Upload) -> str:
    size = f" ({human_bytes(one.size)})" if one.sent else ""
    return f"{len(one.sent)} uploaded{size}, {len(one.present)} there already: {one.url}"


def pull(
    names: Annotated[list[str] | None, typer.Argument(help="Models, by name or path; all by default.")] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also where the model on disk was retrained; its bytes go to the cache."),
    ] = False,
    json: JsonFlag = False,
) -> int:
    """Give the work tree the weights that its pointers name."""
    done = api.pull(*(names or []), force=force, say=say)
    if json:
        emit_json({"restored": done.restored, "current": done.current, "kept": done.kept, "failed": done.failed})
    else:
        emit_lines(_pull_lines(done))
    for path, why in done.failed.items():
        say(f"modelver: error: {path}: {why}")
    return 4 if done.failed else 0


def _pull_lines(done: Pulled) -> list[str]:
    lines = [f"restored  {path}" for path in done.restored]
    lines += [f"kept      {path}: its weights are not in a commit (--force replaces them)" for path in done.kept]
    if done.current and not lines and not done.failed:
        lines.append(f"up to date: {_count(len(done.current), 'model')}")
    if not done.current and not lines and not done.failed:
        lines.append("no models here")
    return lines


def fsck(
    remote: Annotated[bool, typer.Option("--remote", help="Ask the DVC remotes as well.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="All commits that a ref or a stash reaches.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Hash what the remotes have; implies --remote.")] = False,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Bring back lost and damaged objects from work trees, caches, other remotes."),
    ] = False,
    json: JsonFlag = False,
) -> int:
    """Prove that recorded weights are there and are what their names say; exit 1 when not."""
    found = api.fsck(remote=remote, everything=everything, deep=deep, repair=repair, say=say)
    if json:
        mended = [asdict(one) | {"done": list(one.done)} for one in found.repaired]
        emit_json({"objects": found.objects, "problems": found.problems, "repaired": mended})
    else:
        emit_lines(_fsck_lines(found))
    return int(bool(found.problems))


def _fsck_lines(found: Fsck) -> list[str]:
    lines = [f"ok  {r.path}: object {r.md5} found in {r.found}; {', '.join(r.done)}" for r in found.repaired]
    for problem, hint in zip(found.problems, found.hints, strict=True):
        lines += [f"!!  {problem}", f"      hint: {hint}"]
    mended = f", {len(found.repaired)} mended" if found.repaired else ""
    return [*lines, f"{_count(found.objects, 'object')} checked{mended}, {_count(len(found.problems), 'problem')}"]


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + "s" * (n != 1)
