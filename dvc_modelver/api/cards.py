"""card: a model card, whose generated parts are renewed while what people wrote around them stays."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc_modelver.api.ancestry import Traced, lineage
from dvc_modelver.api.inspect import Shown, show
from dvc_modelver.diff.render.cells import cosine_text
from dvc_modelver.diff.render.markdown import code, plain
from dvc_modelver.errors import BadMetadataError, NotFoundError, UsageError, word
from dvc_modelver.formats.base import printable
from dvc_modelver.progress import human_bytes
from dvc_modelver.registry.evaluations import Measured, is_metric, measured_metrics, read_evaluations
from dvc_modelver.registry.lineage import Ancestor, Lineage, Recorded
from dvc_modelver.repository import Repository
from dvc_modelver.resources import read_template
from dvc_modelver.worktree.state import write_file

MARKERS = (b"# modelver: begin", b"# modelver: end", b"<!-- modelver: begin -->", b"<!-- modelver: end -->")
"""Lines around the generated fields of the front matter, and around the generated text."""
MAX_CARD_BYTES = 4 << 20
MAX_ROWS = 100
"""Rows of one table."""

_RELATIONS = {"adapter": "adapter", "merge": "merge", "conversion": "quantized", "copy": "quantized"}
"""What Hugging Face calls the relation to a base model; any other is a fine-tune."""


@dataclass(frozen=True)
class Card:
    """What is known of one version, for a card or an export.

    Attributes:
        shown: The version's card.
        version: Where it stands in history; None for one that is in no commit yet.
        traced: What it comes from and what comes from it.
        metrics: What was measured, by name.
    """

    shown: Shown
    version: Recorded | None
    traced: Traced | None
    metrics: Mapping[str, Measured]

    @property
    def name(self) -> str:
        """The model's name."""
        return self.shown.model.name

    @property
    def label(self) -> str:
        """The version as it is typed."""
        tags = [tag.partition("@")[2] for tag in self.version.tags] if self.version else []
        return f"{self.name}@{tags[-1] if tags else self.shown.metadata.version.number}"

    @property
    def parents(self) -> tuple[Ancestor, ...]:
        """The versions that it was made from."""
        return self.traced.lineage.ancestors[self.version.key] if self.traced and self.version else ()

    def bases(self) -> list[tuple[str, str]]:
        """Give the models that it comes from, nearest first, and how; not those that those come from."""
        structure = self.shown.table.structure if self.shown.table is not None else {}
        declared = structure.get("adapter_config.base_model_name_or_path")
        if isinstance(declared, str) and declared:
            return [(declared, "adapter")]
        found: dict[str, str] = {}
        todo, seen = ([self.version.key] if self.version else []), set()
        while todo and self.traced is not None:
            key = todo.pop(0)
            seen.add(key)
            for a in self.traced.lineage.ancestors.get(key, ()):
                if a.is_cycle or not a.is_known:
                    continue
                if a.key[0] != self.name:
                    found.setdefault(a.key[0], a.how)
                elif a.key not in seen:
                    todo.append(a.key)
        return list(found.items())


def read_card(reference: str, *, folder: Path | None = None) -> Card:
    """Gather what is known of one version.

    Raises:
        NotFoundError: No such model or version.
    """
    repo = Repository.open(folder)
    shown = show(reference, folder=folder)
    md5 = shown.metadata.md5
    try:
        traced = lineage(f"{shown.model.name}@{md5}", folder=folder)
        version = traced.lineage.versions[traced.about[0]]
    except NotFoundError:
        traced, version = None, None
    evaluations = read_evaluations(repo.objects, [md5]).get(md5, []) if repo.head else []
    return Card(shown, version, traced, measured_metrics(shown.metadata, evaluations))


def card(reference: str, output: Path | None = None, *, folder: Path | None = None) -> str:
    """Give a version's model card; into a file that is there, only the generated parts are written.

    Args:
        reference: ``NAME``, ``NAME@V`` or ``NAME#STAGE``.
        output: The file; what stands outside of the markers in it stays, byte by byte.
        folder: Anywhere in the work tree.

    Raises:
        NotFoundError: No such model or version.
        BadMetadataError: The file's markers are not as they were written.
    """
    known = read_card(reference, folder=folder)
    old = _read(output) if output is not None else None
    if old is None:
        text = render_card(known).encode()
    else:
        parts = _find_parts(old, str(output))
        text = _spliced(old, parts, render_card(known, without=_own_fields(old, parts, str(output))).encode())
    if output is not None and text != old:
        write_file(output, text)
    return text.decode("utf-8", "replace")


def _read(output: Path) -> bytes | None:
    if output.is_dir():
        raise UsageError(f"{output}: a folder, expected a file", hint=f"-o {word(output / 'README.md')}")
    if not output.exists():
        return None
    if output.stat().st_size > MAX_CARD_BYTES:
        raise BadMetadataError(f"{output}: {output.stat().st_size} bytes, expected a card of at most {MAX_CARD_BYTES}")
    return output.read_bytes()


# The parts


@dataclass(frozen=True)
class _Parts:
    """Where the parts of a card are.

    Attributes:
        lines: Start and end of each of the `MARKERS`.
        top: First byte of the front matter.
        bottom: First byte of the line that closes it.
    """

    lines: tuple[tuple[int, int], ...]
    top: int
    bottom: int


_FENCE = re.compile(rb"^---[ \t]*\r?$", re.MULTILINE)


def _find_parts(text: bytes, where: str) -> _Parts:
    """Find the marked parts of a card.

    Raises:
        BadMetadataError: A marker is missing, there twice, or not where it was.
    """
    hint = "put the line back, or write the card to another file"
    lines = []
    for marker in MARKERS:
        found = [m.span() for m in re.finditer(rb"^" + re.escape(marker) + rb"[ \t]*\r?$", text, re.MULTILINE)]
        if len(found) != 1:
            raise BadMetadataError(f"{where}: found {len(found)} lines {marker.decode()!r}, expected one", hint=hint)
        lines.append(found[0])
    fences = [m.span() for m in _FENCE.finditer(text)][:2]
    if len(fences) == 2 and not text[: fences[0][0]].strip():
        order = [fences[0], *lines[:2], fences[1], *lines[2:]]
        if order == sorted(order):
            return _Parts(tuple(lines), fences[0][1], fences[1][0])
    raise BadMetadataError(
        f"{where}: the lines of modelver are out of place, expected the first two between the lines --- at the top, "
        "and the other two below",
        hint=hint,
    )


def _spliced(old: bytes, parts: _Parts, new: bytes) -> bytes:
    """Put the generated parts of a new card into an old one."""
    fresh = _find_parts(new, "templates/card.md")
    newline = b"\r\n" if old[slice(*parts.lines[0])].endswith(b"\r") else b"\n"
    out, at = [], 0
    for first in (0, 2):
        inner = new[fresh.lines[first][1] + 1 : fresh.lines[first + 1][0]].replace(b"\n", newline)
        out += [old[at : parts.lines[first][1]], b"\n", inner]
        at = parts.lines[first + 1][0]
    return b"".join([*out, old[at:]])


def _own_fields(old: bytes, parts: _Parts, where: str) -> frozenset[str]:
    """Give the fields that people wrote into the front matter: theirs count.

    Raises:
        BadMetadataError: They are not YAML.
    """
    import yaml

    text = old[parts.top : parts.lines[0][0]] + old[parts.lines[1][1] : parts.bottom]
    try:
        data = yaml.safe_load(text.decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as err:
        detail = " ".join(str(err).split())[:160]
        raise BadMetadataError(f"{where}: the fields at the top are not YAML ({detail})") from err
    if data is not None and not isinstance(data, dict):
        raise BadMetadataError(f"{where}: the fields at the top are {type(data).__name__}, expected name: value lines")
    return frozenset(map(str, data or {}))


# What it says


class _Ready(str):
    """Text that is Markdown already."""


def render_card(known: Card, *, without: frozenset[str] = frozenset()) -> str:
    """Give the whole card of a version.

    Args:
        known: What is known of it.
        without: Fields of the front matter that are left out.
    """
    import jinja2
    import yaml

    fields = {key: value for key, value in front_matter(known).items() if key not in without}
    front = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=10_000).strip() if fields else ""
    environment = jinja2.Environment(  # noqa: S701 - Markdown: every value is escaped as such on its way out
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, _Ready) else plain(str(value)),
    )
    environment.filters["code"] = lambda value: _Ready(code(str(value))) if str(value) else _Ready("")
    t = known.shown.metadata.training
    return environment.from_string(read_template("card.md")).render(
        front=_Ready(front), name=known.name, description=_Ready(_paragraphs(known.shown.description)),
        facts=list(_facts(known)), parents=list(_made_from(known)), metrics=list(_metrics(known)),
        training=list(_training(known)), hyperparameters=_rows(t.hyperparameters),
        data=[{"path": d.get("path", ""), "md5": d.get("md5", ""), "bytes": d.get("bytes", "")}
              for d in (t.data or ())[:MAX_ROWS] if isinstance(d, Mapping)],
        load=f"modelver load {word(known.label)} -o FILE",
    )  # fmt: skip


def _paragraphs(text: str) -> str:
    """Give text whose lines stay lines, and whose first characters make no list, heading or rule."""
    lines = (re.sub(r"^([-+=~:])", r"\\\1", plain(line.strip())) for line in text.splitlines())
    return "\n".join(re.sub(r"^(\d+)([.)])", r"\1\\\2", line) for line in lines)


def _facts(known: Card) -> Iterator[tuple[str, Any]]:
    m, v = known.shown.metadata.model, known.version
    names = [*(v.tags if v else ()), *(f"{known.name}#{stage}" for stage in (v.stages if v else ()))]
    yield "version", ", ".join([f"{known.name}@{known.shown.metadata.version.number}", *names])
    if known.shown.labels:
        yield "labels", ", ".join(known.shown.labels)
    yield "file", _Ready(f"{code(m.path)}, {plain(m.format)}, {human_bytes(m.bytes_)}")
    if m.parameters is not None:
        dtypes = ", ".join(f"{n} {dtype}" for dtype, n in (m.dtypes or {}).items())
        yield "parameters", f"{m.parameters:,} in {m.n_tensors} tensors ({dtypes})"
    for name, value in (("md5", m.md5), ("sha256", m.sha256), ("parameters digest", m.parameters_digest)):
        if value:
            yield name, _Ready(code(value))
    if v is not None:
        yield "commit", _Ready(f"{code(v.commit[:12])}, {plain(v.date[:10])}")


def _made_from(known: Card) -> Iterator[str]:
    for a in known.parents:
        every: Lineage = known.traced.lineage  # type: ignore[union-attr]
        said = [a.how or "declared"] + ([] if a.cosine is None else [f"cosine {cosine_text(a.cosine)}"])
        said += ["measured, not declared"] * (a.source == "measured") + ["no commit has it"] * (not a.is_known)
        yield f"{every.label(a.key)} ({a.key[1][:8]}): {', '.join(said)}"


def _metrics(known: Card) -> Iterator[dict[str, Any]]:
    for name, one in sorted(known.metrics.items())[:MAX_ROWS]:
        measured = "by training"
        if one.evaluation is not None:
            data = ", ".join(str(d.get("path") or str(d.get("md5", ""))[:8]) for d in one.evaluation.data)
            measured = f"{one.evaluation.time[:10]}{f' on {data}' if data else ''}"
        yield {"name": name, "value": _number(one.value), "measured": measured}


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _training(known: Card) -> Iterator[tuple[str, Any]]:
    t = known.shown.metadata.training
    for name, value in (("framework", t.framework), ("started", t.started), ("finished", t.finished)):
        if value:
            yield name, value
    if t.duration_s is not None:
        yield "duration", f"{t.duration_s:,.0f} s"
    if t.stage:
        yield "stage", _Ready(code(t.stage))
    if t.command:
        yield "command", _Ready(code(t.command))
    if t.code and t.code.get("commit"):
        dirty = ", with uncommitted changes" if t.code.get("dirty") else ""
        yield "code", _Ready(f"{code(str(t.code['commit']))}{dirty}")


def _rows(values: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    found = [(str(key), _number(value)) for key, value in sorted((values or {}).items())]
    return found[:MAX_ROWS] + [(f"and {len(found) - MAX_ROWS} more", "")] * (len(found) > MAX_ROWS)


def front_matter(known: Card) -> dict[str, Any]:
    """Give the fields at the top of the card, as Hugging Face names them."""
    t, found = known.shown.metadata.training, dict[str, Any]()
    bases = known.bases()
    if bases:
        names = [printable(name) for name, _ in bases]
        found["base_model"] = names[0] if len(names) == 1 else names
        found["base_model_relation"] = "merge" if len(names) > 1 else _RELATIONS.get(bases[0][1], "finetune")
    datasets = [printable(str(d["path"])) for d in t.data or () if isinstance(d, Mapping) and d.get("path")]
    if datasets:
        found["datasets"] = list(dict.fromkeys(datasets))
    framework = t.framework or known.shown.metadata.model.framework
    if framework:
        found["library_name"] = printable(framework)
    if known.shown.labels:
        found["tags"] = [printable(label) for label in known.shown.labels]
    results = list(_results(known))
    if results:
        found["model-index"] = [{"name": printable(known.name), "results": results}]
    return found


def _results(known: Card) -> Iterator[dict[str, Any]]:
    """Give the numbers by what they were measured on."""
    by_data: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name, one in sorted(known.metrics.items()):
        if not is_metric(one.value):
            continue
        data = one.evaluation.data if one.evaluation is not None else ()
        first = data[0] if data else {}
        named = str(first.get("path") or "") or ("training record" if one.evaluation is None else "not recorded")
        entry = {"type": printable(name), "name": printable(name), "value": one.value}
        by_data.setdefault((named, str(first.get("md5") or "")), []).append(entry)
    for (path, md5), metrics in sorted(by_data.items()):
        dataset = {"type": "dvc", "name": printable(path)} | ({"revision": md5} if md5 else {})
        yield {"task": {"type": "other"}, "dataset": dataset, "metrics": metrics}
