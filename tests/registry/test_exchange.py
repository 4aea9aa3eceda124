"""export and import: a folder for the Hub, a bill of materials, and a real MLflow server."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

import dvc_modelver as modelver
from dvc_modelver.api.exchange import place_of, weights_in
from dvc_modelver.errors import UsageError
from dvc_modelver.exchange.registry import as_list, connect
from dvc_modelver.repository import Repository
from tests.registry.story import Story
from tests.registry.test_card import HOSTILE
from tests.registry.test_lineage import noisy
from tests.sandbox import Sandbox, make_weights, md5_of


@pytest.fixture
def tuned(sandbox: Sandbox) -> Sandbox:
    """A model in two versions with data, metrics and a tag, and one of another name that was tuned from it."""
    sandbox.write("data/train.csv", "1,2\n")
    save_file(make_weights(1), sandbox.path / "net.safetensors")
    sandbox.modelver("add", "net.safetensors", "--metric", "acc=0.5", "--param", "lr=0.1", "--param", "opt=adam",
                     "--data", "data/train.csv")  # fmt: skip
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "first")
    sandbox.modelver("tag", "net", "v1.0.0")
    save_file(noisy(make_weights(1), 0.1, 1), sandbox.path / "net.safetensors")
    sandbox.modelver("add", "net.safetensors", "--metric", "acc=0.75")
    sandbox.git("commit", "-q", "-m", "second")
    return sandbox


def test_a_folder_for_the_hub(tuned: Sandbox) -> None:
    tuned.modelver("export", "net@v1.0.0", "hub", "--to", "huggingface")
    hub = tuned.path / "hub"
    assert {p.name for p in hub.iterdir()} == {"net.safetensors", "README.md"}
    assert load_file(hub / "net.safetensors").keys() == make_weights(1).keys()
    assert "| `acc` | 0.5 | by training |" in (hub / "README.md").read_text()
    (hub / "LICENSE").write_text("mine")
    (hub / "README.md").write_text(
        (hub / "README.md").read_text().replace("## Limitations\n", "## Limitations\n\nmany\n")
    )
    first = (hub / "net.safetensors").read_bytes()
    assert "differs" in tuned.modelver("export", "net@2", "hub", "--to", "huggingface", ok=False)
    assert (hub / "net.safetensors").read_bytes() == first
    assert "0.5 | by training" in (hub / "README.md").read_text()
    tuned.modelver("export", "net@2", "hub", "--to", "huggingface", "--force")
    assert {p.name for p in hub.iterdir()} == {"net.safetensors", "README.md", "LICENSE"}
    assert md5_of(hub / "net.safetensors") == tuned.metadata_md5("net.safetensors")
    card = (hub / "README.md").read_text()
    assert "| `acc` | 0.75 | by training |" in card and card.endswith("## Limitations\n\nmany\n")
    (hub / "README.md").write_text("a page of my own")
    assert tuned.exit_code("export", "net@1", "hub", "--to", "huggingface", "--force") == 2
    assert (hub / "README.md").read_text() == "a page of my own"
    assert md5_of(hub / "net.safetensors") == tuned.metadata_md5("net.safetensors")
    assert tuned.exit_code("export", "net@1", "net.safetensors", "--to", "huggingface") == 2


def test_a_model_folder_keeps_its_files_and_its_own_page(sandbox: Sandbox) -> None:
    folder = sandbox.path / "llm"
    (folder / "sub").mkdir(parents=True)
    save_file(make_weights(1), folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "sub/vocab.txt").write_text("a\n")
    sandbox.modelver("add", "llm")
    sandbox.git("commit", "-q", "-m", "one")
    sandbox.modelver("export", "llm", "hub", "--to", "huggingface")
    found = {p.relative_to(sandbox.path / "hub").as_posix() for p in (sandbox.path / "hub").rglob("*") if p.is_file()}
    assert found == {"model.safetensors", "config.json", "sub/vocab.txt", "README.md"}
    (folder / "README.md").write_text("# by its authors\n")
    sandbox.modelver("add", "llm")
    sandbox.git("commit", "-q", "-m", "two")
    out = sandbox.modelver("export", "llm", "second", "--to", "huggingface", ok=False)
    assert "has a README.md of its own, which stays" in out
    assert (sandbox.path / "second/README.md").read_text() == "# by its authors\n"


def valid(text: str) -> dict[str, Any]:
    schema = pytest.importorskip("cyclonedx.schema", reason="needs cyclonedx-python-lib")
    from cyclonedx.validation.json import JsonStrictValidator

    assert JsonStrictValidator(schema.SchemaVersion.V1_6).validate_str(text) is None
    document: dict[str, Any] = json.loads(text)
    return document


def test_a_bill_of_materials_is_valid_and_stable(tuned: Sandbox) -> None:
    tuned.modelver("export", "net", "bom.json", "--to", "cyclonedx")
    text = (tuned.path / "bom.json").read_text()
    bom = valid(text)
    model = bom["metadata"]["component"]
    assert (model["type"], model["name"], model["version"]) == ("machine-learning-model", "net", "2")
    assert {h["alg"]: h["content"] for h in model["hashes"]}["MD5"] == tuned.metadata_md5("net.safetensors")
    assert [(a["name"], a["version"]) for a in model["pedigree"]["ancestors"]] == [("net", "1")]
    assert model["pedigree"]["commits"][0]["uid"] == tuned.git("rev-parse", "HEAD").strip()
    assert model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"] == [{"type": "acc", "value": "0.75"}]
    tuned.modelver("export", "net", "again.json", "--to", "cyclonedx")
    assert (tuned.path / "again.json").read_text() == text
    (tuned.path / "first.json").write_text("{}")
    refused = tuned.modelver("export", "net@1", "first.json", "--to", "cyclonedx", ok=False)
    assert "first.json: is there already, and no CycloneDX document" in refused
    assert (tuned.path / "first.json").read_text() == "{}"
    tuned.modelver("export", "net@1", "first.json", "--to", "cyclonedx", "--force")
    tuned.modelver("export", "net@1", "first.json", "--to", "cyclonedx")  # over one of its own
    assert tuned.exit_code("export", "net@1", "net.safetensors", "--to", "cyclonedx", "--force") == 2
    first = valid((tuned.path / "first.json").read_text())
    assert [(c["type"], c["name"]) for c in first["components"]] == [("data", "data/train.csv")]
    card = first["metadata"]["component"]["modelCard"]
    assert [d["ref"] for d in card["modelParameters"]["datasets"]] == [first["components"][0]["bom-ref"]]
    assert first["serialNumber"] != bom["serialNumber"]


def test_hostile_values_make_a_valid_bill(tmp_path: Path) -> None:
    pytest.importorskip("cyclonedx", reason="needs cyclonedx-python-lib")
    story = Story()
    same = {"path": HOSTILE, "md5": "a" * 32}
    story.tell("net", make_weights(1), ("f" * 32,), hyperparameters={HOSTILE: HOSTILE, "x": None}, command="\x1b[m",
               metrics={HOSTILE: 1.5, "n": 1}, data=(same, same, {"path": None}, {"md5": "b" * 32 + ".dir"}))  # fmt: skip
    repo = story.write(tmp_path / "repo")
    made = modelver.export("net", "cyclonedx", str(tmp_path / "bom.json"), folder=repo)
    bom = valid(Path(made).read_text())
    assert len(bom["components"]) == 3
    with pytest.raises(UsageError, match="expected one of huggingface, cyclonedx, mlflow"):
        modelver.export("net", "oci", "x", folder=repo)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DO_NOT_TRACK", "true")


NO_TALK = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
NO_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # nine more processes


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server with SQLite, which takes artifacts itself."""
    if importlib.util.find_spec("mlflow") is None or importlib.util.find_spec("flask") is None:
        pytest.skip("needs mlflow (make frameworks)")
    home = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{home}/mlflow.db",
               "--artifacts-destination", str(home / "artifacts"), "--host", "127.0.0.1", "--port", str(port),
               "--workers", "1"]  # fmt: skip
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=home,
            stdout=log,
            stderr=log,
            env=os.environ | NO_TALK | NO_JOBS | {"HOME": str(home)},
            start_new_session=True,
        )
        try:
            for _ in range(600):
                try:
                    asked = f"http://127.0.0.1:{port}/api/2.0/mlflow/registered-models/search"  # its database, too
                    urllib.request.urlopen(asked, timeout=30).close()
                    break
                except OSError:
                    assert process.poll() is None, (home / "log").read_text()
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # its worker as well
            process.wait(30)


def get(server: str, path: str, **query: str) -> dict[str, Any]:
    with urllib.request.urlopen(
        f"{server}/api/2.0/mlflow/{path}?{urllib.parse.urlencode(query)}", timeout=30
    ) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def tags_of(entry: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in entry["tags"]}


@pytest.mark.timeout(300)
def test_versions_go_to_mlflow_and_come_back(tuned: Sandbox, server: str, tmp_path: Path) -> None:
    tuned.git("tag", "-a", "net#prod#1", "-m", "in production", "HEAD")
    assert tuned.modelver("export", "net@v1.0.0", server, "--to", "mlflow") == "net/1\n"
    script = (
        "import sys, dvc_modelver as m\n"
        f"for v in ('2', '1', '2'):\n"
        f"    print(m.export(f'net@{{v}}', 'mlflow', {server!r}, say=print))\n"
        "    m.evaluate('net@2', metrics={'acc': 0.8, 'f1': 0.7}, time='2024-11-20')\n"
    )
    out = tuned.run(sys.executable, "-P", "-c", script).stdout
    assert [line for line in out.splitlines() if line.startswith("net/")] == ["net/2", "net/1", "net/2"]
    assert out.count("was there already") == 2

    first = get(server, "model-versions/get", name="net", version="1")["model_version"]
    second = get(server, "model-versions/get", name="net", version="2")["model_version"]
    tags = tags_of(first)
    assert (tags["modelver.tag"], tags["modelver.number"]) == ("net@v1.0.0", "1")
    assert json.loads(tags["modelver.data"])[0]["path"] == "data/train.csv"
    parent = json.loads(tags_of(second)["modelver.parents"])[0]
    assert (parent["version"], parent["md5"], parent["source"]) == ("net@1", tags["modelver.md5"], "declared")
    assert get(server, "registered-models/alias", name="net", alias="prod")["model_version"]["version"] == "2"
    run = get(server, "runs/get", run_id=first["run_id"])["run"]["data"]
    assert {p["key"]: p["value"] for p in run["params"]} == {"lr": "0.1", "opt": "adam"}
    assert {m["key"]: m["value"] for m in run["metrics"]} == {"acc": 0.5}

    later = get(server, "runs/get", run_id=second["run_id"])["run"]["data"]
    assert {m["key"]: m["value"] for m in later["metrics"]} == {
        "acc": 0.8,
        "f1": 0.7,
    }  # evaluated after the first export

    tuned.git("tag", "-a", "net#prod#2", "-m", "back", "HEAD~")
    tuned.git("tag", "-a", "net#eu/west#3", "-m", "there, too", "HEAD~")
    out = tuned.modelver("export", "net@1", server, "--to", "mlflow", ok=False)
    assert "stage eu/west: no alias" in out
    assert get(server, "registered-models/alias", name="net", alias="prod")["model_version"]["version"] == "1"
    held = {n: tags_of(get(server, "model-versions/get", name="net", version=n)["model_version"]) for n in "12"}
    assert sorted(held["1"]["modelver.stages"].split()) == ["eu/west", "prod"]
    assert "modelver.stages" not in held["2"]
    client = connect(server)
    client.set_registered_model_alias("net", "mine", "1")
    for stage in ("prod", "eu/west"):
        tuned.modelver("demote", "net", stage)
    tuned.modelver("export", "net@1", server, "--to", "mlflow")
    assert client.get_registered_model("net").aliases == {"mine": "1"}
    assert "modelver.stages" not in client.get_model_version("net", "1").tags
    client.set_registered_model_alias("net", "prod", "2")

    other = Sandbox(tmp_path / "other")
    other.path.mkdir()
    other.modelver("init")
    other.modelver("import", "mlflow", server, "net@1")
    assert md5_of(other.path / "net.safetensors") == tags["modelver.md5"]
    metadata = json.loads((other.path / "net.safetensors.modelver.json").read_text())
    assert metadata["training"]["metrics"] == {"acc": 0.5}
    assert metadata["training"]["hyperparameters"] == {"lr": 0.1, "opt": "adam"}
    assert "net.safetensors.modelver.json" in other.git("diff", "--cached", "--name-only")

    other.git("commit", "-q", "-m", "imported")
    stored = (other.path / "net.safetensors").read_bytes()
    (other.path / "net.safetensors").unlink()
    (other.path / "net.safetensors").write_bytes(b"unsaved work")
    assert "stored nowhere" in other.modelver("import", "mlflow", server, "net@prod", ok=False)
    assert (other.path / "net.safetensors").read_bytes() == b"unsaved work"
    assert "versions there: 1, 2" in other.modelver("import", "mlflow", server, "net@7", ok=False)
    (other.path / "net.safetensors").write_bytes(stored)
    assert other.modelver("import", "mlflow", server, "net@prod").startswith("net version 2")
    assert md5_of(other.path / "net.safetensors") == tags_of(second)["modelver.md5"]
    other.git("commit", "-q", "-m", "the next one")
    assert other.git("status", "--short", "-uno") == ""
    assert not list((other.path / ".git").glob(".modelver-*"))

    client.rename_registered_model("net", "vision-net")
    client.set_registered_model_tag("vision-net", "modelver.name", "vision/net")  # as it is exported
    client.create_registered_model("team.net ü")
    client.create_model_version("team.net ü", second["source"], second["run_id"])
    other.modelver("import", "mlflow", server, "vision/net@1", "-o", "ck.safetensors")
    assert "versions there of vision-net: 1, 2" in other.modelver("import", "mlflow", server, "vision=net", ok=False)
    other.modelver("import", "mlflow", server, "team.net ü", "-o", "w.safetensors")
    assert {"vision/net", "team-net-u"} < {m["name"] for m in json.loads(other.modelver("list", "--json"))["models"]}


@pytest.mark.timeout(300)
def test_a_server_that_does_not_answer_is_one_line(sandbox: Sandbox) -> None:
    if importlib.util.find_spec("mlflow") is None:
        pytest.skip("needs mlflow (make frameworks)")
    sandbox.train("net.safetensors", 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
    env = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    done = sandbox.run(sys.executable, "-P", "-c", "import sys; from dvc_modelver.cli import main; sys.exit(main())",
                       "export", "net", uri, "--to", "mlflow", ok=False, env=env)  # fmt: skip
    assert done.returncode == 4
    assert "modelver: error: MLflow: " in done.stderr
    assert "Traceback" not in done.stderr
    for nothing in ("foo", "file:///tmp/foo", "ftp://host", ""):
        with pytest.raises(UsageError, match="not a server of MLflow"):
            connect(nothing)


def test_a_database_file_has_the_weights_beside_it(sandbox: Sandbox, tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy", reason="needs mlflow (make frameworks)")
    if importlib.util.find_spec("mlflow") is None:
        pytest.skip("needs mlflow (make frameworks)")
    sandbox.train("net.safetensors", 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    before = sandbox.git("status", "--porcelain", "--ignored")
    sandbox.modelver("export", "net", f"sqlite:///{tmp_path}/mlflow.db", "--to", "mlflow")
    assert sandbox.git("status", "--porcelain", "--ignored") == before
    (weights,) = (tmp_path / "mlruns").rglob("net.safetensors")
    assert md5_of(weights) == sandbox.metadata_md5("net.safetensors")


def test_a_server_does_not_choose_where_a_file_goes(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sandbox.path)
    repo, weights = Repository.open(sandbox.path), Path("downloaded/net.safetensors")
    for path in (
        "",
        "../x.safetensors",
        "/tmp/x.safetensors",
        ".git/x.safetensors",
        "a/.github/x.safetensors",
        "train.py",
    ):
        assert place_of(repo, path, weights, "net.safetensors") == sandbox.path / "net.safetensors", path
    assert place_of(repo, "models/x.safetensors", weights, "") == sandbox.path / "models/x.safetensors"


def test_what_is_no_model_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text("flavors: {}")
    (tmp_path / "data").mkdir()
    with pytest.raises(UsageError, match="net@1: found MLmodel, expected one file of weights"):
        weights_in(tmp_path, "net@1")
    (tmp_path / "data/model.pth").write_bytes(b"x")
    assert weights_in(tmp_path, "net@1") == tmp_path / "data/model.pth"
    (tmp_path / "data/other.pth").write_bytes(b"x")
    assert weights_in(tmp_path, "net@1") == tmp_path  # MLflow's own folder is one model
    (tmp_path / "MLmodel").rename(tmp_path / "conda.yaml")
    with pytest.raises(UsageError, match=r"found data/model.pth, data/other.pth, expected one file"):
        weights_in(tmp_path, "net@1")


def test_a_tag_holds_as_much_as_fits() -> None:
    assert as_list([]) == ""
    many = [{"path": f"data/{i}.csv", "md5": "a" * 32} for i in range(500)]
    text = as_list(many)
    assert len(text) <= 5000
    assert json.loads(text) == many[: len(json.loads(text))]
    assert len(json.loads(text)) > 50
    assert as_list([{"path": "x" * 6000}]) == "[]"
