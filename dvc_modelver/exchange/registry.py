"""MLflow's model registry: versions written to a server, and read from one.

What a version is in MLflow: a model version of a registered model, which belongs to a run with parameters, metrics
and artifacts. Our tags begin with ``modelver.``; stages are aliases. The client is mlflow or mlflow-skinny, imported
here alone.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvc_modelver.errors import EnvironmentFailed, NotFoundError, UsageError, word
from dvc_modelver.exchange.release import Release
from dvc_modelver.formats.base import printable
from dvc_modelver.registry.evaluations import is_metric

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_TEXT = 5_000
"""Characters of a value that every MLflow server takes."""
BATCH = 100
"""Parameters, or tags, that one request may have."""
EXPERIMENT = "modelver"
_STAGES = "modelver.stages"
_ALIAS = re.compile(r"[\w-]+")
_RESERVED = re.compile(r"latest|v\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Registered:
    """One version in a registry.

    Attributes:
        name: Of the registered model.
        version: MLflow's number.
        run_id: Its run; empty where it has none.
        source: URI of its artifacts.
        metrics: The last value of each.
        is_new: Whether it was made now.
        model: What the model was called where it was exported; empty where it was not.
        unnamed: Stages that cannot be aliases in MLflow.
    """

    name: str
    version: str
    run_id: str
    source: str
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    is_new: bool = False
    model: str = ""
    unnamed: tuple[str, ...] = ()


def connect(uri: str) -> MlflowClient:
    """Give a client of a server, or of a database file.

    Raises:
        UsageError: No client library is installed, or the URI is of nothing that has a registry.
    """
    expected = "expected one like http://localhost:5000"
    if ("://" not in uri and uri != "databricks") or uri.startswith("file:"):  # MLflow would make a folder of it
        raise UsageError(f"{uri}: not a server of MLflow, {expected}")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # by default it waits for minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # what is exported is told to this server alone
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    try:
        from mlflow import MlflowClient
    except ImportError as err:
        raise UsageError("MLflow: no client is installed", hint="pip install 'dvc-modelver[mlflow]'") from err
    from mlflow.exceptions import MlflowException

    try:
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    except (MlflowException, ImportError) as err:  # the latter: a database that needs a driver
        raise UsageError(f"{uri}: not a server of MLflow ({_one_line(err)}), {expected}") from err


def register(client: MlflowClient, release: Release, weights: Path, *, knows_stages: bool = True) -> Registered:
    """Write a version to a registry, once: one with these bytes that is there is given its tags and aliases again.

    Args:
        client: The server.
        release: The version.
        weights: Its file, or folder of files.
        knows_stages: Whether stages that are not in `release` are not held: a clone without tags cannot say.

    Raises:
        EnvironmentFailed: The server refused, or does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        with redirect_stdout(sys.stderr):  # it prints links where our result goes
            return _register(client, release, weights, knows_stages=knows_stages)
    except (MlflowException, OSError) as err:
        raise _failed(err) from err


def _failed(err: Exception) -> EnvironmentFailed:
    return EnvironmentFailed(f"MLflow: {_one_line(err)}", hint="is the server up?")


def _one_line(err: Exception) -> str:
    return printable(" ".join(str(err).split()))[:300]


def _register(client: MlflowClient, release: Release, weights: Path, *, knows_stages: bool) -> Registered:
    name = registered_name(release.name)
    known = {m.name for m in client.search_registered_models(f"name = '{name}'")}
    if name not in known:
        client.create_registered_model(
            name, tags={"modelver.name": release.name}, description=_text(release.description)
        )
    versions = list(_versions(client, name))
    there = next((v for v in versions if v.tags.get("modelver.md5") == release.metadata.md5), None)
    if there is None:
        run_id = _write_run(client, release)
        client.log_artifact(run_id, str(weights), "model") if weights.is_file() else client.log_artifacts(
            run_id, str(weights), "model"
        )
        client.set_terminated(run_id)
        source = f"{client.get_run(run_id).info.artifact_uri}/model"
        made = client.create_model_version(
            name, source, run_id, tags=_tags(release), description=_text(release.subject or release.description)
        )
        number = str(made.version)
    else:
        number, run_id, source = str(there.version), str(there.run_id or ""), str(there.source or "")
        for key, value in _tags(release).items():
            client.set_model_version_tag(name, number, key, value)
        if run_id:
            _write_metrics(client, run_id, release)
    unnamed = tuple(stage for stage in release.stages if not _ALIAS.fullmatch(stage) or _RESERVED.fullmatch(stage))
    if knows_stages:
        before = {str(v.version): v.tags.get(_STAGES, "").split() for v in versions}
        _set_aliases(client, name, number, release.stages, unnamed, before)
    return Registered(name, number, run_id, source, _tags(release), is_new=there is None, unnamed=unnamed)


def _set_aliases(
    client: MlflowClient,
    name: str,
    number: str,
    stages: Sequence[str],
    unnamed: Sequence[str],
    before: Mapping[str, Sequence[str]],
) -> None:
    """Make a version's aliases those of its stages; aliases that no export has set stay.

    Args:
        client: The server.
        name: Of the registered model.
        number: MLflow's number of the version.
        stages: Those that the version holds now.
        unnamed: Those of them that cannot be aliases.
        before: The stages that the last export wrote, for each version.
    """
    aliases = {alias: str(holder) for alias, holder in client.get_registered_model(name).aliases.items()}
    for stage in stages:
        if stage not in unnamed:
            client.set_registered_model_alias(name, stage, number)
    for stage in before.get(number, ()):
        if stage not in stages and aliases.get(stage) == number:
            client.delete_registered_model_alias(name, stage)
    for other, held in before.items():
        now = list(stages) if other == number else [stage for stage in held if stage not in stages]  # one holds a stage
        if held and not now:
            client.delete_model_version_tag(name, other, _STAGES)
        elif other != number and now != list(held):
            client.set_model_version_tag(name, other, _STAGES, " ".join(now))


def registered_name(name: str) -> str:
    """Give a model's name as MLflow takes it, without slashes."""
    return re.sub(r"[/=:]+", "-", name)


def _versions(client: MlflowClient, name: str) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", max_results=200, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _by_number(client: MlflowClient, name: str) -> list[Any]:
    return sorted(_versions(client, name), key=lambda v: int(v.version))


def _text(value: str) -> str:
    return printable(value)[:MAX_TEXT]


def _tags(release: Release) -> dict[str, str]:
    """Give what tells a version and its lineage."""
    m = release.metadata.model
    facts = {
        "md5": m.md5, "sha256": m.sha256, "number": release.number, "path": m.path, "format": m.format,
        "parameters_digest": m.parameters_digest, "tag": release.tags[-1] if release.tags else None,
        "stages": " ".join(release.stages), "commit": release.commit, "update": release.metadata.version.update,
        "code": (release.training.code or {}).get("commit"), "command": release.training.command,
        "data": as_list([{k: d.get(k) for k in ("path", "md5")} for d in release.data]),
        "parents": as_list(
            [{"version": p.label, "md5": p.md5, "how": p.how, "source": p.source} for p in release.parents]
        ),
    }  # fmt: skip
    return {f"modelver.{key}": _text(str(value)) for key, value in facts.items() if value not in (None, "")}


def as_list(values: list[dict[str, Any]]) -> str:
    """Give as many objects as fit a tag, as JSON; empty for none."""
    text = json.dumps(values) if values else ""
    while len(text) > MAX_TEXT:
        values = values[: len(values) * MAX_TEXT // len(text)]
        text = json.dumps(values)
    return text


def _artifacts(client: MlflowClient) -> str | None:
    """Give where artifacts go: a server knows; beside a database file, rather than in the current folder."""
    _, is_file, database = client.tracking_uri.partition("sqlite:///")
    return (Path(database).absolute().parent / "mlruns" / EXPERIMENT).as_uri() if is_file else None


def _write_run(client: MlflowClient, release: Release) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    experiment = found.experiment_id if found is not None else client.create_experiment(EXPERIMENT, _artifacts(client))
    tags = _tags(release) | ({"mlflow.source.git.commit": release.commit} if release.commit else {})
    run_id = str(client.create_run(experiment, run_name=release.label, tags=tags).info.run_id)
    from mlflow.entities import Param

    values = sorted((release.training.hyperparameters or {}).items())
    params = [Param(_key(k), _text(str(v))) for k, v in values]
    for i in range(0, len(params), BATCH):
        client.log_batch(run_id, params=params[i : i + BATCH])
    _write_metrics(client, run_id, release)
    return run_id


def _write_metrics(client: MlflowClient, run_id: str, release: Release) -> None:
    """Write the metrics that the run has not: training's at the time of the commit, an evaluation's at its own."""
    from mlflow.entities import Metric

    there = client.get_run(run_id).data.metrics
    wanted = []
    for name, one in sorted(release.metrics.items()):
        key = _key(name)
        if not is_metric(one.value) or there.get(key) == float(one.value):
            continue
        when = one.evaluation.time if one.evaluation is not None else release.date
        wanted.append(Metric(key, float(one.value), _milliseconds(when), 1 if one.evaluation is not None else 0))
    for i in range(0, len(wanted), BATCH):
        client.log_batch(run_id, metrics=wanted[i : i + BATCH])


def _key(name: str) -> str:
    """Give a name as MLflow takes it: of its characters, at most 250, and no path that leads out."""
    plain = re.sub(r"[^\w\-. /]", "_", name).strip("/")
    return re.sub(r"\.\.+|/+\.?/+|^\./", "_", plain)[:250] or "_"


def _milliseconds(time: str) -> int:
    try:
        found = datetime.fromisoformat(time)
    except ValueError:
        return 0
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)


# Reading


def find(client: MlflowClient, name: str, version: str = "") -> Registered:
    """Give a version of a registered model by number or alias, the last one by default, with its run's facts.

    Raises:
        NotFoundError: There is none.
        EnvironmentFailed: The server does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        wanted, versions = name, _by_number(client, name)
        if not versions and registered_name(wanted) != wanted:
            name = registered_name(wanted)
            versions = _by_number(client, name)
        model = client.get_registered_model(name) if versions else None
        called = str(model.tags.get("modelver.name", "")) if model is not None else ""
        if model is not None and version and not version.isdigit():
            version = str(model.aliases.get(version, version))
        chosen = [v for v in versions if not version or str(v.version) == version]
        if not chosen or wanted not in (name, called):
            there = ", ".join(str(v.version) for v in versions[-5:]) or "none"
            is_other = wanted != name and bool(versions)
            label = f"{wanted}@{version}" if version else wanted
            raise NotFoundError(
                f"{label}: not in the registry of MLflow (versions there{f' of {name}' * is_other}: {there})",
                hint=f"modelver import mlflow {word(client.tracking_uri)} {word(name)}" if is_other else "",
            )
        last = chosen[-1]
        run = client.get_run(last.run_id) if last.run_id else None
        tags = (dict(run.data.tags) if run else {}) | dict(last.tags)
        metrics = {k: v for k, v in (run.data.metrics if run else {}).items() if is_metric(v)}
        return Registered(name, str(last.version), str(last.run_id or ""), str(last.source or ""), tags, metrics,
                          dict(run.data.params) if run else {}, model=called)  # fmt: skip
    except (MlflowException, OSError) as err:
        raise _failed(err) from err


def download(client: MlflowClient, version: Registered, folder: Path) -> Path:
    """Bring a version's artifacts into a folder; give where they are.

    Raises:
        EnvironmentFailed: They cannot be had.
    """
    from mlflow.exceptions import MlflowException

    try:
        from mlflow.artifacts import download_artifacts

        uri = client.get_model_version_download_uri(version.name, version.version)
        return Path(download_artifacts(artifact_uri=uri, dst_path=str(folder), tracking_uri=client.tracking_uri))
    except (MlflowException, OSError) as err:
        raise _failed(err) from err
