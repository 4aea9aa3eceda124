"""A bill of materials of a version, as CycloneDX describes machine learning models (ML-BOM).

The official library writes the document; it knows no model cards yet (cyclonedx-python-lib 11.12), so that part is
added to what it wrote, and the whole is checked against the schema of CycloneDX 1.6.

Source: ECMA-424, "CycloneDX Bill of Materials Specification", sections on pedigree, data and model cards.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvc_modelver._version import __version__
from dvc_modelver.errors import BadMetadataError, UsageError
from dvc_modelver.exchange.release import Release
from dvc_modelver.formats.base import printable
from dvc_modelver.registry.evaluations import is_metric

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

_SPACE = uuid.UUID("9b6bb4a7-1f0c-5d0e-8d4e-6f3c0f5a7d11")
"""Namespace of serial numbers: they follow from the content, so that the same version gives the same document."""
MAX_VALUES = 500
MAX_BOM_BYTES = 64 << 20


def is_bom(file: Path) -> bool:
    """Whether a file is a bill of materials, of any version of CycloneDX, as JSON."""
    if file.stat().st_size > MAX_BOM_BYTES:
        return False
    try:
        document = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("bomFormat") == "CycloneDX"


def render_bom(release: Release) -> str:
    """Give the bill of materials as JSON; the same version gives the same text.

    Raises:
        UsageError: The library is not installed.
        BadMetadataError: What is known of the version breaks the schema.
    """
    try:
        from cyclonedx.model.bom import Bom
        from cyclonedx.output.json import JsonV1Dot6
        from cyclonedx.validation.json import JsonStrictValidator
    except ImportError as err:
        raise UsageError(
            "CycloneDX: its library is not installed", hint="pip install 'dvc-modelver[cyclonedx]'"
        ) from err
    bom = Bom()
    model = _model(release)
    bom.metadata.component = model
    bom.metadata.tools.components.add(_component("dvc-modelver", __version__, "application"))
    data = [_dataset(d) for d in release.data]
    for component in data:
        bom.components.add(component)
    bom.register_dependency(model, data)
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    document["metadata"].pop("timestamp", None)
    document["metadata"]["component"]["modelCard"] = _model_card(release)
    document["serialNumber"] = "urn:uuid:00000000-0000-0000-0000-000000000000"
    stable = json.dumps(document, sort_keys=True)
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(_SPACE, stable)}"
    text = json.dumps(document, indent=2, ensure_ascii=True) + "\n"
    from cyclonedx.schema import SchemaVersion

    wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if wrong is not None:
        raise BadMetadataError(f"{release.label}: breaks the schema of CycloneDX 1.6 ({_one_line(wrong)})")
    return text


def _one_line(wrong: object) -> str:
    return " ".join(str(getattr(wrong, "data", wrong)).split())[:200]


def _component(name: str, version: str | None, kind: str, **facts: Any) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    return Component(type=ComponentType(kind), name=printable(name), version=version and printable(version), **facts)


def _model(release: Release) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Commit, Pedigree

    m = release.metadata.model
    ancestors = [
        _component(p.name or "unknown", p.label.rpartition("@")[2] or p.md5, "machine-learning-model",
                   bom_ref=f"model:{p.md5}:{i}", hashes=_hashes(p.md5))
        for i, p in enumerate(release.parents)
    ]  # fmt: skip
    pedigree = Pedigree(
        ancestors=ancestors,
        commits=[Commit(uid=release.commit, message=printable(release.subject))] if release.commit else [],
        notes="; ".join(f"{p.label}: {p.how or 'declared'}, {p.source}" for p in release.parents) or None,
    )
    hashes = _hashes(m.md5)
    if m.sha256:
        hashes.append(HashType(alg=HashAlgorithm.SHA_256, content=m.sha256))
    return _component(
        release.name, release.version, "machine-learning-model",
        bom_ref=f"model:{m.md5}", hashes=hashes, description=printable(release.description) or None,
        pedigree=pedigree, properties=list(_properties(release)),
    )  # fmt: skip


def _hashes(md5: str) -> list[Any]:
    """Give an md5 as a hash; that of a folder's listing is none of a file."""
    from cyclonedx.model import HashAlgorithm, HashType

    plain = len(md5) == 32 and all(c in "0123456789abcdef" for c in md5)
    return [HashType(alg=HashAlgorithm.MD5, content=md5)] if plain else []


def _properties(release: Release) -> Iterator[Any]:
    from cyclonedx.model import Property

    m, training = release.metadata.model, release.training
    facts: list[tuple[str, Any]] = [
        ("number", release.number), ("path", m.path), ("format", m.format), ("bytes", m.bytes_), ("md5", m.md5),
        ("parameters", m.parameters), ("parameters_digest", m.parameters_digest), ("framework", m.framework),
        *(("tag", tag) for tag in release.tags), *(("stage", stage) for stage in release.stages),
        *(("label", label) for label in release.labels), ("command", training.command),
        ("code", (training.code or {}).get("commit")), ("duration_s", training.duration_s),
        *((f"hyperparameter:{k}", v) for k, v in sorted((training.hyperparameters or {}).items())[:MAX_VALUES]),
    ]  # fmt: skip
    for name, value in facts:
        if value is not None and value != "":
            yield Property(name=f"modelver:{printable(name)}", value=printable(str(value)))


def _dataset(entry: Any) -> Component:
    md5 = str(entry.get("md5") or "")
    path = str(entry.get("path") or md5 or "unnamed")
    return _component(path, md5 or None, "data", bom_ref=f"data:{md5}:{printable(path)}", hashes=_hashes(md5))


def _model_card(release: Release) -> dict[str, Any]:
    """Give the card as section ``modelCard`` of the specification has it."""
    m = release.metadata.model
    refs = [{"ref": f"data:{d.get('md5') or ''}:{printable(str(d.get('path') or d.get('md5') or 'unnamed'))}"}
            for d in release.data]  # fmt: skip
    parameters: dict[str, Any] = {"datasets": list({r["ref"]: r for r in refs}.values())} if refs else {}
    architecture = release.structure.get("config.model_type")
    if isinstance(architecture, str) and architecture:
        parameters["architectureFamily"] = printable(architecture)
    measured = []
    for name, one in sorted(release.metrics.items()):
        if is_metric(one.value):
            on = ", ".join(str(d.get("path") or d.get("md5")) for d in one.evaluation.data) if one.evaluation else ""
            slice_ = {"slice": printable(on)} if on else {}
            measured.append({"type": printable(name), "value": repr(one.value), **slice_})
    card: dict[str, Any] = {"bom-ref": f"card:{m.md5}", "modelParameters": parameters}
    return card | ({"quantitativeAnalysis": {"performanceMetrics": measured}} if measured else {})
