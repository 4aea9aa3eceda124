"""``modelver scan``, and the commit that refuses what it finds."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import jsonschema
import pytest

from dvc_modelver.resources import read_schema
from tests.sandbox import Sandbox
from tests.security.samples import CANARY, PAYLOAD, UNKNOWN, keras_zip, pickled, zipped

MODEL = "models/net.pt"


def write_model(box: Sandbox, path: str, data: bytes) -> None:
    target = box.path / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.write_bytes(data)


def torch_file(pickle_: bytes, n: int = 0) -> bytes:
    return zipped({"net/data.pkl": pickle_, "net/version": b"3\n", "net/extra": bytes([n]) * 200})


EVIL = torch_file(PAYLOAD)
GOOD = torch_file(pickle.dumps({}, 2))
ODD = torch_file(UNKNOWN["a class of nobody's"][1])


@pytest.fixture(autouse=True)
def canary(sandbox: Sandbox) -> None:
    assert not list(sandbox.path.rglob(CANARY))


def commit(box: Sandbox, *args: str, **env: str) -> tuple[int, str]:
    done = box.run("git", "commit", "-q", "-m", "model", *args, ok=False, env=env)
    assert "Traceback" not in done.stderr
    assert not list(box.path.rglob(CANARY))
    return done.returncode, done.stderr


def test_text_document_and_exit_codes(sandbox: Sandbox) -> None:
    write_model(sandbox, "a/evil.pt", EVIL)
    write_model(sandbox, "a/good.pt", GOOD)
    write_model(sandbox, "a/odd.pt", ODD)
    done = sandbox.run("modelver", "scan", "a", ok=False)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "dangerous  a/evil.pt",
        "    net/data.pkl: calls posix.system: runs programs",
        "safe       a/good.pt",
        "unknown    a/odd.pt",
        "    net/data.pkl: calls my_package.layers.Attention: in no table",
        "3 files: 1 dangerous, 1 unknown, 1 safe",
    ]
    assert sandbox.exit_code("scan", "a/good.pt") == 0
    assert sandbox.exit_code("scan", "a/odd.pt") == 1
    missing = sandbox.run("modelver", "scan", "nowhere.pt", ok=False)
    assert missing.returncode == 2
    assert missing.stderr.startswith("modelver: error: nowhere.pt")
    document = json.loads(sandbox.modelver("scan", "a/evil.pt", "a/good.pt", "--json", ok=False))
    schema = json.loads(read_schema("scan"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema)
    assert [file["verdict"] for file in document["files"]] == ["dangerous", "safe"]


def test_outside_of_a_repository(sandbox: Sandbox, tmp_path: Path) -> None:
    outside = Sandbox(tmp_path / "outside")
    outside.path.mkdir()
    write_model(outside, "m.keras", keras_zip({"class_name": "Lambda", "config": {"function": ["4wEA", None, None]}}))
    assert outside.exit_code("scan", "m.keras") == 1
    assert outside.exit_code("scan", "nothing") == 2


def test_a_commit_refuses_a_dangerous_model(sandbox: Sandbox) -> None:
    write_model(sandbox, MODEL, EVIL)
    sandbox.git("add", ".")
    code, said = commit(sandbox)
    assert code != 0
    lines = [line for line in said.splitlines() if not line.startswith("modelver: hint")]
    assert lines == [f"modelver: {MODEL}: dangerous to load: posix.system (runs programs)"]
    assert f"modelver scan {MODEL}" in said
    assert "security.allow" in said
    assert sandbox.git("log", "--oneline").count("\n") == 2


def test_the_ways_through(sandbox: Sandbox) -> None:
    write_model(sandbox, MODEL, EVIL)
    sandbox.git("add", ".")
    assert commit(sandbox)[0] != 0
    settings = sandbox.path / ".modelver.toml"
    settings.write_text('[security]\nallow = ["posix.system"]\n')
    assert commit(sandbox)[0] == 0
    assert "allowed in .modelver.toml" in sandbox.modelver("scan", MODEL)
    assert sandbox.exit_code("scan", "net@1") == 0

    settings.write_text("")
    assert "posix.system" in sandbox.modelver("scan", "net@1", ok=False)
    write_model(sandbox, MODEL, torch_file(PAYLOAD, 1))
    assert commit(sandbox, "-a")[0] != 0
    settings.write_text('[security]\nrefuse = "never"\n')
    assert commit(sandbox, "-a")[0] == 0

    settings.write_text("")
    write_model(sandbox, MODEL, torch_file(PAYLOAD, 2))
    sandbox.git("add", ".")
    assert commit(sandbox)[0] != 0
    assert commit(sandbox, MODELVER_SKIP="1")[0] == 0


def test_only_new_objects_are_scanned(sandbox: Sandbox) -> None:
    write_model(sandbox, MODEL, EVIL)
    sandbox.modelver("add", MODEL)
    assert commit(sandbox)[0] != 0
    assert commit(sandbox, MODELVER_SKIP="1")[0] == 0
    write_model(sandbox, MODEL, GOOD)
    assert commit(sandbox, "-a")[0] == 0
    sandbox.modelver("rollback", "net")
    assert commit(sandbox)[0] == 0
    sandbox.modelver("refresh", "net", "--metric", "acc=0.5")
    assert commit(sandbox, "-a")[0] == 0


def test_unknown_models_are_refused_where_that_is_asked(sandbox: Sandbox) -> None:
    write_model(sandbox, MODEL, ODD)
    sandbox.modelver("add", MODEL)
    assert commit(sandbox)[0] == 0
    (sandbox.path / ".modelver.toml").write_text('[security]\nrefuse = "unknown"\n')
    write_model(sandbox, "models/other.pt", torch_file(UNKNOWN["a class of nobody's"][1], 3))
    sandbox.git("add", ".")
    code, said = commit(sandbox)
    assert code != 0
    assert "models/other.pt: unknown to load: my_package.layers.Attention (in no table)" in said


def test_a_folder_is_scanned_file_by_file(sandbox: Sandbox) -> None:
    sandbox.train("models/llm/model.safetensors", 1)
    write_model(sandbox, "models/llm/config.json", b"{}")
    write_model(sandbox, "models/llm/optimizer.pt", EVIL)
    sandbox.modelver("add", "models/llm")
    code, said = commit(sandbox)
    assert code != 0
    assert "models/llm/optimizer.pt: dangerous to load: posix.system" in said
    write_model(sandbox, "models/llm/optimizer.pt", GOOD)
    sandbox.modelver("add", "models/llm")
    assert commit(sandbox)[0] == 0
    out = sandbox.modelver("scan", "llm@1")
    assert [line.split()[0] for line in out.splitlines()[:3]] == ["safe"] * 3


def test_git_status_does_not_scan(sandbox: Sandbox) -> None:
    write_model(sandbox, MODEL, GOOD)
    sandbox.git("add", ".")
    assert commit(sandbox)[0] == 0
    write_model(sandbox, MODEL, EVIL)
    said = sandbox.run("git", "status", "--short").stderr
    assert "dangerous" not in said
    assert commit(sandbox, "-a")[0] != 0


def test_a_version_whose_object_is_gone(sandbox: Sandbox) -> None:
    write_model(sandbox, MODEL, GOOD)
    sandbox.git("add", ".")
    assert commit(sandbox)[0] == 0
    sandbox.drop(sandbox.metadata_md5(MODEL))
    done = sandbox.run("modelver", "scan", "net@1", ok=False)
    assert done.returncode == 4
    assert "is not in the cache" in done.stderr


def test_settings_are_checked(sandbox: Sandbox) -> None:
    (sandbox.path / ".modelver.toml").write_text('[security]\nrefuse = "maybe"\n')
    done = sandbox.run("modelver", "scan", ".modelver.toml", ok=False)
    assert done.returncode == 2
    assert "expected one of dangerous, unknown, never" in done.stderr


def test_names_from_a_file_cannot_steer_the_terminal(sandbox: Sandbox) -> None:
    evil = zipfile.ZipInfo("../\x1b[2J\n\u202e.pkl")
    file = sandbox.path / "m.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(evil, pickled(b"N"))
    out = sandbox.run("modelver", "scan", "m.pt", ok=False).stdout
    assert "\x1b" not in out
    assert len(out.splitlines()) == 2
