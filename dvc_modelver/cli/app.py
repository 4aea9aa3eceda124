"""The commands. Each parses its arguments, calls one function of the API, and prints what it gives."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.models import CommandInfo

from dvc_modelver import api
from dvc_modelver._version import __version__
from dvc_modelver.cli import cards, evaluations, exchange, history, lineage, objects, reports, stages
from dvc_modelver.cli.output import (
    Format,
    FormatOption,
    JsonFlag,
    OtherRepository,
    OutputFile,
    emit,
    emit_json,
    emit_lines,
    fail,
    say,
)
from dvc_modelver.errors import ModelverError, UsageError, environment_error
from dvc_modelver.report import report_bug


class _Group(TyperGroup):
    """Keeps the commands in the order they are defined, and suggests a mistyped one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        import difflib

        if args and args[0] not in self.commands:
            close = difflib.get_close_matches(args[0], self.commands, n=1)
            raise UsageError(f"{args[0]}: no such command", hint=f"modelver {close[0]}" if close else "modelver --help")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Group,
    name="modelver",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Version control for model weights, on top of Git and DVC.\n\n"
    "Work with git add, commit, push, checkout and diff as usual; these commands do the rest. "
    "Exit codes: 0 done, 1 the answer is no, 2 wrong use or bad input, 3 a bug, 4 the environment failed.",
)


def run(args: list[str]) -> int:
    """Run the command line and give the exit code."""
    try:
        with _only(args[:1]):
            result = app(args or ["--help"], standalone_mode=False, prog_name="modelver")
    except typer.Exit as err:
        return err.exit_code
    except (typer.Abort, KeyboardInterrupt):
        say("modelver: interrupted")
        return 130
    except _USAGE_ERROR as err:
        return fail(UsageError(_usage_message(err), hint=_usage_hint(err, args)))
    except ModelverError as err:
        return fail(err)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as err:
        return fail(environment_error(err))
    except Exception as err:
        say(f"modelver: {report_bug(err, args)}")
        return 3
    return result if isinstance(result, int) else 0


@contextmanager
def _only(names: list[str]) -> Iterator[None]:
    """Leave out the commands that were not asked for, where one was: to work out the options of all takes 30 ms."""
    everything = app.registered_commands
    app.registered_commands = [c for c in everything if _name_of(c) in names] or everything
    try:
        yield
    finally:
        app.registered_commands = everything


def _name_of(command: CommandInfo) -> str:
    return command.name or str(getattr(command.callback, "__name__", "")).replace("_", "-")


_USAGE_ERROR: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
"""What typer raises for wrong arguments; it brings a click of its own, which has no public name."""


def _usage_message(err: Any) -> str:
    """Give what typer says, in plain words where it names no command."""
    text, context = str(err.format_message()), getattr(err, "ctx", None)
    if context is None or not text.startswith("Got unexpected extra argument"):
        return text
    takes_some = any(param.param_type_name == "argument" for param in context.command.params)
    extra = text.partition("(")[2].partition(") (")[2].removesuffix(")")
    return f"{context.info_name}: " + ("too many arguments: " if takes_some else "takes no arguments, found ") + extra


def _usage_hint(err: Any, args: list[str]) -> str:
    context = getattr(err, "ctx", None)
    if context is not None:
        return f"{context.command_path} --help"
    known = {_name_of(command) for command in app.registered_commands}
    return f"modelver {args[0]} --help" if args and args[0] in known else "modelver --help"


def _version(value: bool) -> None:
    if value:
        emit(f"modelver {__version__}\n")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def _values(pairs: list[str] | None, option: str) -> dict[str, Any]:
    """Read ``k=v`` pairs; numbers and true/false become what they look like."""
    import json

    found: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"{option} {pair}: expected name=value", hint=f"{option} val_acc=0.93")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        found[key] = value if isinstance(value, (int, float, str, bool)) else text
        if option == "--metric" and (isinstance(found[key], (str, bool)) or found[key] != found[key]):
            raise UsageError(f"{option} {pair}: {text!r} is no number", hint=f"{option} {key}=0.93")
    return found


Metrics = Annotated[
    list[str] | None,
    typer.Option("--metric", metavar="K=V", help="A result of training to record; may be given again."),
]
Params = Annotated[
    list[str] | None,
    typer.Option("--param", metavar="K=V", help="A hyper-parameter to record; may be given again."),
]
Data = Annotated[
    list[str] | None, typer.Option("--data", metavar="PATH", help="A file or DVC output it was trained on.")
]

# Set-up


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Folder; made when it is not there.")] = Path(),
    remote: Annotated[
        str | None, typer.Option(help="Where weights go: a local path, or any URL DVC knows (s3://...).")
    ] = None,
    fsmonitor: Annotated[
        bool | None, typer.Option("--fsmonitor/--no-fsmonitor", help="Let git status see retrained models.")
    ] = None,
    hooks: Annotated[bool, typer.Option("--hooks/--no-hooks", help="Write hook files.")] = True,
    json: JsonFlag = False,
) -> None:
    """Make a folder a Git + DVC repository that looks after models."""
    steps = api.init(path, remote=remote, fsmonitor=fsmonitor, with_hooks=hooks)
    if json:
        emit_json(cards.steps_document(steps))
        return
    emit_lines(cards.steps_lines(steps))
    emit_lines(cards.advice_after_init(path))


@app.command()
def install(
    fsmonitor: Annotated[
        bool | None, typer.Option("--fsmonitor/--no-fsmonitor", help="Let git status see retrained models.")
    ] = None,
    hooks: Annotated[bool, typer.Option("--hooks/--no-hooks", help="Write hook files.")] = True,
    json: JsonFlag = False,
) -> None:
    """Register hooks, diff driver and filter in this clone."""
    steps = api.install(fsmonitor=fsmonitor, with_hooks=hooks)
    emit_json(cards.steps_document(steps)) if json else emit_lines(cards.steps_lines(steps))


@app.command()
def uninstall(json: JsonFlag = False) -> None:
    """Take hooks, diff driver and filter out of this clone again."""
    steps = api.uninstall()
    if json:
        emit_json(cards.steps_document(steps))
        return
    emit_lines(cards.steps_lines(steps, "removed") or ["nothing was installed"])
    emit_lines([".gitattributes stays: it belongs to everyone; Git shows plain text without our drivers"])


@app.command()
def doctor(json: JsonFlag = False) -> int:
    """Explain every setting, where it comes from, and what is wrong with it; exit 1 when something is."""
    findings = api.doctor()
    if json:
        emit_json(cards.doctor_document(findings))
    else:
        emit_lines(cards.doctor_lines(findings))
    return int(any(f.problem for f in findings))


# Models


@app.command()
def add(
    paths: Annotated[list[Path] | None, typer.Argument(help="Model files.")] = None,
    update: Annotated[bool, typer.Option("-u", "--update", help="Every tracked model that was retrained.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every model DVC tracks that has no metadata yet.")] = False,
    accept: Annotated[
        bool, typer.Option("--accept", help="Keep weights of a pipeline made outside dvc repro.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="The model's name, written into artifacts: of dvc.yaml.")] = None,
    metric: Metrics = None,
    param: Params = None,
    data: Data = None,
    json: JsonFlag = False,
) -> None:
    """Track models: weights to the DVC cache; pointer, metadata and tensor table staged for Git."""
    metrics, params = _values(metric, "--metric"), _values(param, "--param")
    made = api.add(
        *(paths or []),
        update=update,
        everything=everything,
        accept=accept,
        name=name,
        data=data or [],
        say=say,
        metrics=metrics,
        params=params,
    )
    if json:
        emit_json({"models": [m.to_dict() for m in made]})
        return
    emit_lines([cards.version_line(m) for m in made] or ["nothing to add: no model was retrained"])


@app.command()
def refresh(
    models: Annotated[list[str], typer.Argument(help="Models, by name or path.")],
    metric: Metrics = None,
    param: Params = None,
    data: Data = None,
    json: JsonFlag = False,
) -> None:
    """Rebuild the metadata of models from their stored weights."""
    made = api.refresh(
        *models,
        metrics=_values(metric, "--metric"),
        params=_values(param, "--param"),
        data=data or [],
        say=say,
    )
    emit_json({"models": [m.to_dict() for m in made]}) if json else emit_lines(cards.version_line(m) for m in made)


@app.command()
def status(json: JsonFlag = False) -> None:
    """Show models that changed, are behind, missing, hidden or not pushed."""
    found = api.status()
    emit_json(cards.status_document(found)) if json else emit_lines(cards.status_lines(found))


@app.command()
def mv(
    old: Annotated[str, typer.Argument(help="Model, by name or path.")],
    new: Annotated[str, typer.Argument(help="New path, or a folder.")],
    json: JsonFlag = False,
) -> None:
    """Rename a model with its pointer, metadata and ignore line."""
    path = api.mv(old, new, say=say)
    emit_json({"path": path}) if json else emit_lines([f"renamed to {path}; staged, git commit keeps it"])


@app.command()
def rm(
    paths: Annotated[list[str], typer.Argument(help="Models, by name or path.")],
    cached: Annotated[bool, typer.Option("--cached", help="Leave the weights on disk, untracked.")] = False,
    json: JsonFlag = False,
) -> None:
    """Delete models with their pointer, metadata and ignore line; the weights stay in the cache."""
    gone = api.rm(*paths, cached=cached, say=say)
    end = "not tracked any more; the file stays" if cached else "removed; staged, git commit keeps it"
    emit_json({"removed": gone}) if json else emit_lines([f"{path}: {end}" for path in gone])


# Looking


@app.command()
def diff(
    old: Annotated[
        str | None, typer.Argument(help="Revision, NAME@V, NAME#STAGE or file; the index by default.")
    ] = None,
    new: Annotated[str | None, typer.Argument(help="Likewise; the work tree by default.")] = None,
    paths: Annotated[list[str] | None, typer.Argument(help="Models to compare.")] = None,
    cached: Annotated[bool, typer.Option("--cached", "--staged", help="Compare the index, not the work tree.")] = False,
    fmt: FormatOption = Format.TEXT,
    output: OutputFile = None,
    exact: Annotated[bool, typer.Option("--exact", help="Measure the values, not the fingerprints.")] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit 1 when models differ.")] = False,
    min_similarity: Annotated[
        float | None, typer.Option(help="Exit 1 when a cosine similarity is below this.", min=-1, max=1)
    ] = None,
    all_tensors: Annotated[bool, typer.Option("--all-tensors", help="One line per tensor, nothing folded.")] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open the HTML report in the browser.")] = False,
    json: JsonFlag = False,
) -> int:
    """Show which layers changed and by how much, with hyper-parameters, metrics and data."""
    old, new, chosen = reports.split_diff_arguments(old, new, paths or [])
    found = api.diff(old, new, *chosen, cached=cached, exact=exact)
    reports.emit_diff(found, Format.JSON if json else fmt, output, all_tensors=all_tensors, opening=open_)
    below = min_similarity is not None and any(reports.is_below(d, min_similarity) for d in found)
    differ = exit_code and any(not reports.is_same(d) for d in found)
    return int(below or differ)


@app.command()
def similar(
    reference: Annotated[str, typer.Argument(metavar="NAME[@V]|FILE", help="A model, a version, or any model file.")],
    limit: Annotated[int, typer.Option("-n", help="At most so many.", min=1)] = 10,
    output: OutputFile = None,
    json: JsonFlag = False,
) -> None:
    """Rank the versions of all models by their distance to one: the nearest is likely what it was made from."""
    found = api.similar(reference, limit=limit)
    emit_json(reports.similar_document(found), output) if json else emit_lines(reports.similar_lines(found), output)


@app.command()
def show(
    reference: Annotated[
        str, typer.Argument(metavar="NAME[@V]|FILE", help="A model, one of its versions, or any model file.")
    ],
    all_tensors: Annotated[bool, typer.Option("--all-tensors", help="List every tensor.")] = False,
    repo: OtherRepository = None,
    output: OutputFile = None,
    json: JsonFlag = False,
) -> None:
    """Show one version's card."""
    card = cards.find_card(reference, repo)
    if json:
        emit_json(card.document(), output)
    else:
        emit_lines(card.lines(all_tensors=all_tensors), output)


@app.command()
def scan(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH|NAME[@V]...", help="Files, folders, models or versions of them.")
    ],
    output: OutputFile = None,
    json: JsonFlag = False,
) -> int:
    """Say what model files would run when they are loaded; exit 1 when one is not safe."""
    from dvc_modelver.cli import scans

    found = api.scan(*paths)
    emit_json(scans.scan_document(found), output) if json else emit_lines(scans.scan_lines(found), output)
    return int(any(one.verdict != "safe" for one in found))


history.register(app)


@app.command()
def merge(
    patterns: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL|PATTERN|MODEL:PATTERN]...",
            help="What --take is for: a model by path or name, tensors like 'encoder.*', or both ('net:encoder.*').",
        ),
    ] = None,
    take: Annotated[
        str | None, typer.Option(metavar="S", help="Decide: ours, theirs, mean, or any other strategy.")
    ] = None,
    again: Annotated[bool, typer.Option("--continue", help="Go on with what is decided now.")] = False,
    json: JsonFlag = False,
) -> int:
    """List what Git's merge left undecided of models, or decide it; exit 1 while something is left."""
    from dvc_modelver.cli import merges

    found = api.merge(*(patterns or []), take=take, again=again, say=say)
    emit_json(merges.state_document(found)) if json else emit_lines(merges.state_lines(found))
    return int(bool(found.conflicts))


@app.command("merge-file")
def merge_file(
    base: Annotated[Path, typer.Argument(help="Common ancestor; /dev/null where there is none.")],
    ours: Annotated[Path, typer.Argument(help="File or folder that is merged into; the result has its format.")],
    theirs: Annotated[Path, typer.Argument(help="File or folder that is merged.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the result goes.")],
    strategy: Annotated[
        str | None,
        typer.Option(metavar="S", help="What decides tensors that both sides changed, like ties:density=0.3."),
    ] = None,
    tensors: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN=S", help="The same for some tensors; may be given again.")
    ] = None,
    json: JsonFlag = False,
) -> int:
    """Merge three models tensor by tensor; exit 1 and no output where both sides changed one and nothing decides."""
    from dvc_modelver.cli import merges

    done = api.merge_file(base, ours, theirs, output, strategy=strategy, tensors=tensors or [])
    emit_json(merges.merge_document(done)) if json else emit_lines(merges.merge_lines(done))
    if done.output is None and not json and (hint := merges.conflict_hint(done)):
        say(f"hint: {hint}")
    return int(done.output is None)


# Versions


stages.register(app)


@app.command()
def load(
    reference: Annotated[str, typer.Argument(metavar="NAME@V", help="Which version.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File, or a folder.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    json: JsonFlag = False,
) -> None:
    """Write one version's weights to a file, from cache or remote, verified."""
    path = str(api.load(reference, output, force=force, say=say))
    emit_json({"path": path}) if json else emit_lines([path])


evaluations.register(app)
lineage.register(app)
exchange.register(app)

# Objects


for command in (objects.push, objects.pull, objects.fsck, objects.gc, objects.migrate):
    app.command()(command)
