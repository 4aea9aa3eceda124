"""The commands that move weights about; each calls one function of the API and prints its answer."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dvc_modelver import api
from dvc_modelver.cli.output import JsonFlag, emit_json, emit_lines, say
from dvc_modelver.progress import human_bytes
from dvc_modelver.transfer import by_reason

if TYPE_CHECKING:
    from dvc_modelver.api.fsck import Fsck
    from dvc_modelver.api.gc import Freed
    from dvc_modelver.api.migrate import Migration
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
    for paths, why in by_reason(done.failed):
        say(f"modelver: error: {', '.join(paths)}: {why}")
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
    deep: Annotated[
        bool, typer.Option("--deep", help="Measure models anew, and hash what the remotes have, too.")
    ] = False,
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


def gc(
    force: Annotated[
        bool, typer.Option("-f", "--force", help="Take them away; without it, only what would go is shown.")
    ] = False,
    cloud_backed: Annotated[
        bool,
        typer.Option("--cloud-backed", help="Also versions that only history needs, where the remote has them now."),
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Also objects that nothing in Git names: weights never committed.")
    ] = False,
    project: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="Another repository that uses the cache; its needs stay.")
    ] = None,
    older_than: Annotated[float, typer.Option(metavar="HOURS", help="Objects that changed since stay.", min=0)] = 24.0,
    json: JsonFlag = False,
) -> None:
    """Free cached weights that no ref, tag, stash, reflog, index or work tree needs."""
    found = api.gc(
        force=force, cloud_backed=cloud_backed, everything=everything,
        projects=project or [], min_age_hours=older_than, say=say,
    )  # fmt: skip
    emit_json(_gc_document(found)) if json else emit_lines(_gc_lines(found, older_than))


def _gc_document(found: Freed) -> dict[str, Any]:
    models = [
        {"name": name or None, "path": path or None,
         "versions": [{"number": v.number or None, "md5": v.md5, "bytes": v.size} for v in versions]}
        for (name, path), versions in found.models.items()
    ]  # fmt: skip
    return {
        "done": found.done, "objects": found.objects, "bytes": found.size, "models": models,
        "unknown": {"objects": found.unknown[0], "bytes": found.unknown[1]},
        "young": {"objects": found.young[0], "bytes": found.young[1]},
    }  # fmt: skip


def _gc_lines(found: Freed, hours: float) -> list[str]:
    lines = []
    for (name, path), versions in found.models.items():
        size = human_bytes(sum(v.size for v in versions))
        numbers = ", ".join(f"{v.number} ({v.md5[:8]})" for v in versions)
        plural = "s" * (len(versions) > 1)
        lines.append(f"{name}  version{plural} {numbers}  {size}  {path}" if name else f"other outputs  {size}")
    verb = "freed" if found.done else "would free"
    lines.append(f"{verb} {human_bytes(found.size)} in {_count(found.objects, 'object')}")
    for (n, kept), why in (
        (found.unknown, "that nothing in Git names (--all takes them too)"),
        (found.young, f"younger than {hours:g} hours (--older-than HOURS)"),
    ):
        if n:
            lines.append(f"kept {human_bytes(kept)} in {_count(n, 'object')} {why}")
    return lines if found.done or not found.objects else [*lines, "hint: modelver gc --force, with the same options"]


def migrate(
    paths: Annotated[list[str] | None, typer.Argument(help="Files or folders that Git or Git LFS has.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every model that Git or Git LFS has.")] = False,
    dry_run: Annotated[bool, typer.Option("-n", "--dry-run", help="Only list them.")] = False,
    json: JsonFlag = False,
) -> None:
    """Bring weights from Git or Git LFS over to DVC: staged, ready to commit; history stays as it is."""
    done = api.migrate(*(paths or []), everything=everything, dry_run=dry_run, say=say)
    if json:
        models = [{"path": m.path, "from": m.source, "bytes": m.size, "md5": m.md5 or None} for m in done.models]
        emit_json({"dry_run": dry_run, "models": models, "unused_lfs_patterns": done.unused})
        return
    emit_lines(_migrate_lines(done, dry_run=dry_run))


def _migrate_lines(done: Migration, *, dry_run: bool) -> list[str]:
    if not done.models:
        return ["nothing to migrate: Git and Git LFS have no models here"]
    verb, sources = "would move" if dry_run else "moved", {"git": "Git", "lfs": "Git LFS"}
    lines = [f"{verb}  {m.path}  {human_bytes(m.size)} from {sources[m.source]}" for m in done.models]
    lines += [f"{line}: no file uses it now; new files that match it still go to Git LFS" for line in done.unused]
    return lines if dry_run else [*lines, "staged; git commit keeps it. Older commits keep their weights in Git."]
