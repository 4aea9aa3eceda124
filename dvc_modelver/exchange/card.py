"""The model card: Markdown with the fields that Hugging Face reads, generated parts apart from what people wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dvc_modelver.diff.render.cells import cosine_text
from dvc_modelver.diff.render.markdown import code, plain
from dvc_modelver.errors import BadMetadataError, word
from dvc_modelver.exchange.release import Release
from dvc_modelver.formats.base import printable
from dvc_modelver.progress import human_bytes
from dvc_modelver.registry.evaluations import is_metric
from dvc_modelver.resources import read_template

MARKERS = (b"# modelver: begin", b"# modelver: end", b"<!-- modelver: begin -->", b"<!-- modelver: end -->")
"""Lines around the generated fields of the front matter, and around the generated text."""
MAX_CARD_BYTES = 4 << 20
MAX_ROWS = 100
"""Rows of one table."""

_RELATIONS = {"adapter": "adapter", "merge": "merge", "conversion": "quantized", "copy": "quantized"}
"""What Hugging Face calls the relation to a base model; any other is a fine-tune."""


def renew_card(old: bytes | None, release: Release, where: str) -> bytes:
    """Give the card of a version: a new one, or an old one with new generated parts.

    Args:
        old: The card that is there; what stands outside of its markers stays, byte by byte.
        release: The version.
        where: What the old card is called in messages.

    Raises:
        BadMetadataError: The old card's markers are not as they were written.
    """
    if old is None:
        return render_card(release).encode()
    if len(old) > MAX_CARD_BYTES:
        raise BadMetadataError(f"{where}: {len(old)} bytes, expected a card of at most {MAX_CARD_BYTES}")
    parts = _find_parts(old, where)
    return _spliced(old, parts, render_card(release, without=_own_fields(old, parts, where)).encode())


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


def render_card(release: Release, *, without: frozenset[str] = frozenset()) -> str:
    """Give the whole card of a version.

    Args:
        release: The version.
        without: Fields of the front matter that are left out.
    """
    import jinja2
    import yaml

    fields = {key: value for key, value in front_matter(release).items() if key not in without}
    front = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=10_000).strip() if fields else ""
    environment = jinja2.Environment(  # noqa: S701 - Markdown: every value is escaped as such on its way out
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, _Ready) else plain(str(value)),
    )
    environment.filters["code"] = lambda value: _Ready(code(str(value))) if str(value) else _Ready("")
    t = release.training
    return environment.from_string(read_template("card.md")).render(
        front=_Ready(front), name=release.name, description=_Ready(_paragraphs(release.description)),
        facts=list(_facts(release)), parents=list(_made_from(release)), metrics=list(_metrics(release)),
        training=list(_training(release)), hyperparameters=_rows(t.hyperparameters),
        data=[{"path": d.get("path", ""), "md5": d.get("md5", ""), "bytes": d.get("bytes", "")}
              for d in release.data[:MAX_ROWS]],
        load=f"modelver load {word(release.label)} -o FILE",
    )  # fmt: skip


def _paragraphs(text: str) -> str:
    """Give text whose lines stay lines, and whose first characters make no list, heading or rule."""
    lines = (re.sub(r"^([-+=~:])", r"\\\1", plain(line.strip())) for line in text.splitlines())
    return "\n".join(re.sub(r"^(\d+)([.)])", r"\1\\\2", line) for line in lines)


def _facts(release: Release) -> Iterator[tuple[str, Any]]:
    m = release.metadata.model
    names = [*release.tags, *(f"{release.name}#{stage}" for stage in release.stages)]
    yield "version", ", ".join([f"{release.name}@{release.number}", *names])
    if release.labels:
        yield "labels", ", ".join(release.labels)
    yield "file", _Ready(f"{code(m.path)}, {plain(m.format)}, {human_bytes(m.bytes_)}")
    if m.parameters is not None:
        dtypes = ", ".join(f"{n} {dtype}" for dtype, n in (m.dtypes or {}).items())
        yield "parameters", f"{m.parameters:,} in {m.n_tensors} tensors ({dtypes})"
    for name, value in (("md5", m.md5), ("sha256", m.sha256), ("parameters digest", m.parameters_digest)):
        if value:
            yield name, _Ready(code(value))
    if release.commit:
        yield "commit", _Ready(f"{code(release.commit[:12])}, {plain(release.date[:10])}")


def _made_from(release: Release) -> Iterator[str]:
    for a in release.parents:
        said = [a.how or "declared"] + ([] if a.cosine is None else [f"cosine {cosine_text(a.cosine)}"])
        said += ["measured, not declared"] * (a.source == "measured") + ["no commit has it"] * (not a.name)
        yield f"{a.label} ({a.md5[:8]}): {', '.join(said)}"


def _metrics(release: Release) -> Iterator[dict[str, Any]]:
    for name, one in sorted(release.metrics.items())[:MAX_ROWS]:
        measured = "by training"
        if one.evaluation is not None:
            data = ", ".join(str(d.get("path") or str(d.get("md5", ""))[:8]) for d in one.evaluation.data)
            measured = f"{one.evaluation.time[:10]}{f' on {data}' if data else ''}"
        yield {"name": name, "value": _number(one.value), "measured": measured}


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _training(release: Release) -> Iterator[tuple[str, Any]]:
    t = release.training
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


def front_matter(release: Release) -> dict[str, Any]:
    """Give the fields at the top of the card, as Hugging Face names them."""
    t, found = release.training, dict[str, Any]()
    bases = release.bases
    if bases:
        names = [printable(name) for name, _ in bases]
        found["base_model"] = names[0] if len(names) == 1 else names
        found["base_model_relation"] = "merge" if len(names) > 1 else _RELATIONS.get(bases[0][1], "finetune")
    datasets = [printable(str(d["path"])) for d in release.data if d.get("path")]
    if datasets:
        found["datasets"] = list(dict.fromkeys(datasets))
    framework = t.framework or release.metadata.model.framework
    if framework:
        found["library_name"] = printable(framework)
    if release.labels:
        found["tags"] = [printable(label) for label in release.labels]
    results = list(_results(release))
    if results:
        found["model-index"] = [{"name": printable(release.name), "results": results}]
    return found


def _results(release: Release) -> Iterator[dict[str, Any]]:
    """Give the numbers by what they were measured on."""
    by_data: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name, one in sorted(release.metrics.items()):
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
