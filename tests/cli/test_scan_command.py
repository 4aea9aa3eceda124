"""``modelver scan``, and the commit that refuses what it finds."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import jsonschema
import pytest

from dvc_modelver.resources import read_schema
from dvc_modelver.worktree import safety
from tests.sandbox import Sandbox
from tests.security.samples import (
    CANARY,
    LEGACY_LAMBDA,
    PAYLOAD,
    UNKNOWN,
    call,
    keras_h5,
    keras_zip,
    npy,
    pickled,
    zipped,
)

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
    told = f"modelver: {MODEL}: dangerous to load: posix.system (runs programs)"
    assert lines == [told, "modelver: nothing was committed"]
    assert f"modelver scan {MODEL}" in said
    assert 'allow = ["posix.system"] below [security] in .modelver.toml' in said
    assert sandbox.git("log", "--oneline").count("\n") == 2


def test_the_ways_through(sandbox: Sandbox) -> None:
    write_model(sandbox, MODEL, EVIL)
    sandbox.git("add", ".")
    assert commit(sandbox)[0] != 0
    settings = sandbox.path / ".modelver.toml"
    settings.write_text('[security]\nallow = ["posix.system"]\n')
    code, said = commit(sandbox)
    assert code != 0
    assert "hint: git add .modelver.toml" in said
    sandbox.git("add", ".modelver.toml")
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
    sandbox.git("commit", "-qam", "refuse again")
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
    sandbox.git("add", ".modelver.toml")
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


def hinted(said: str, start: str) -> str:
    """Give the command of the hint that begins so."""
    line = next(line for line in said.splitlines() if line.startswith(f"modelver: hint: {start}"))
    return line.removeprefix("modelver: hint: ").partition(" takes ")[0]


def test_all_that_is_refused_is_named_at_once(sandbox: Sandbox) -> None:
    both = pickled(call("posix", "system", "x"), call("builtins", "eval", "1"))
    write_model(sandbox, "a b.pt", torch_file(both))
    write_model(sandbox, MODEL, EVIL)
    write_model(sandbox, "good.pt", GOOD)
    sandbox.git("add", ".")
    code, said = commit(sandbox)
    assert code == 1
    assert said.splitlines()[:2] == [
        "modelver: a b.pt: dangerous to load: builtins.eval (runs code that the file brings along), "
        "posix.system (runs programs)",
        f"modelver: {MODEL}: dangerous to load: posix.system (runs programs)",
    ]
    assert 'allow = ["builtins.eval", "posix.system"] below [security]' in said
    command = hinted(said, "modelver rm --cached")
    assert command == f"modelver rm --cached 'a b.pt' {MODEL}"
    sandbox.run("sh", "-c", command)
    assert (sandbox.path / MODEL).read_bytes() == EVIL
    assert commit(sandbox)[0] == 0
    assert sandbox.git("show", "--name-only", "--format=", "HEAD").split() == [
        ".gitignore", "good.pt.dvc", "good.pt.modelver.json", "good.pt.modelver.tensors",
    ]  # fmt: skip
    assert sandbox.git("status", "--short", "-uall").splitlines() == ['?? "a b.pt"', f"?? {MODEL}"]
    sandbox.git("add", MODEL)
    assert commit(sandbox)[0] == 1


def test_the_names_that_are_allowed_already_stay_in_the_line(sandbox: Sandbox) -> None:
    (sandbox.path / ".modelver.toml").write_text('[security]\nallow = ["my_package.A"]\n')
    write_model(sandbox, MODEL, EVIL)
    sandbox.git("add", ".")
    said = commit(sandbox)[1]
    line = next(line for line in said.splitlines() if "allow = " in line)
    allow = line.partition("allow = ")[2].partition(" below")[0]
    assert json.loads(allow) == ["my_package.A", "posix.system"]
    (sandbox.path / ".modelver.toml").write_text(f"[security]\nallow = {allow}\n")
    sandbox.git("add", ".modelver.toml")
    assert commit(sandbox)[0] == 0


def test_a_version_that_is_refused_leaves_the_commit_by_git_restore(sandbox: Sandbox) -> None:
    write_model(sandbox, MODEL, GOOD)
    sandbox.git("add", ".")
    assert commit(sandbox)[0] == 0
    write_model(sandbox, MODEL, EVIL)
    sandbox.write("notes.md", "x")
    sandbox.git("add", "notes.md")
    sandbox.modelver("add", MODEL)
    code, said = commit(sandbox)
    assert code == 1
    sandbox.run("sh", "-c", hinted(said, "git restore --staged"))
    code, said = commit(sandbox)
    assert code == 0
    assert f"not in this commit: {MODEL} was retrained" in said
    assert sandbox.git("show", "--name-only", "--format=", "HEAD").split() == ["notes.md"]
    assert (sandbox.path / MODEL).read_bytes() == EVIL


def test_a_model_that_was_never_committed_is_not_called_retrained(sandbox: Sandbox) -> None:
    write_model(sandbox, MODEL, EVIL)
    sandbox.git("add", ".")
    assert commit(sandbox)[0] == 1
    sandbox.git("restore", "--staged", ".")
    assert "retrained" not in sandbox.modelver("status")
    sandbox.write("notes.md", "x")
    sandbox.git("add", "notes.md")
    code, said = commit(sandbox, "-a")
    assert code == 0
    assert said == ""
    assert sandbox.git("show", "--name-only", "--format=", "HEAD").split() == ["notes.md"]


def test_taking_a_model_out_leaves_a_file_of_its_own(sandbox: Sandbox) -> None:
    sandbox.dvc("config", "cache.type", "symlink")
    write_model(sandbox, MODEL, GOOD)
    sandbox.modelver("add", MODEL)
    assert (sandbox.path / MODEL).is_symlink()
    sandbox.modelver("rm", "--cached", MODEL)
    file = sandbox.path / MODEL
    assert not file.is_symlink()
    assert file.read_bytes() == GOOD
    assert sandbox.git("status", "--short", "models") == "?? models/\n"
    sandbox.modelver("add", MODEL)
    file.unlink()
    assert sandbox.exit_code("rm", "--cached", MODEL) == 2


@pytest.mark.parametrize("path", ["os.pkl", "jl.JOBLIB", "pytorch_model.bin", "w.npz", "x.pickle", "lambda.h5"])
def test_dangerous_files_that_go_into_git_itself_are_refused(sandbox: Sandbox, path: str) -> None:
    if path.endswith(".h5"):
        keras_h5(sandbox.path / path, LEGACY_LAMBDA)
    else:
        write_model(sandbox, path, zipped({"a.npy": npy(PAYLOAD)}) if path.endswith("z") else PAYLOAD)
    sandbox.git("add", ".")
    code, said = commit(sandbox)
    assert code == 1
    assert said.startswith(f"modelver: {path}: dangerous to load: ")
    sandbox.run("sh", "-c", hinted(said, "git restore --staged"))
    assert sandbox.git("status", "--short") == f"?? {path}\n"
    (sandbox.path / ".modelver.toml").write_text('[security]\nrefuse = "never"\n')
    sandbox.git("add", ".")
    assert commit(sandbox)[0] == 0


def test_of_files_in_git_itself_only_danger_counts(sandbox: Sandbox) -> None:
    (sandbox.path / ".modelver.toml").write_text('[security]\nrefuse = "unknown"\n')
    write_model(sandbox, "firmware.bin", bytes(range(256)))
    write_model(sandbox, "head.pkl", UNKNOWN["a class of nobody's"][1])
    sandbox.git("add", ".")
    assert commit(sandbox)[0] == 0
    write_model(sandbox, "large.bin", PAYLOAD + bytes(safety.MAX_RAW_SCAN_BYTES))
    sandbox.git("-c", "core.compression=0", "add", ".")
    code, said = commit(sandbox)
    assert code == 0
    assert "large.bin: not scanned, " in said


def test_add_warns(sandbox: Sandbox) -> None:
    write_model(sandbox, "os.pkl", PAYLOAD)
    done = sandbox.run("modelver", "add", "os.pkl")
    assert done.stderr.splitlines() == [
        "os.pkl: dangerous to load: posix.system (runs programs); git commit will refuse it"
    ]
    write_model(sandbox, "good.pt", GOOD)
    assert sandbox.run("modelver", "add", "good.pt").stderr == ""


def test_check_asks_of_the_models_that_are_here(sandbox: Sandbox) -> None:
    write_model(sandbox, MODEL, EVIL)
    write_model(sandbox, "os.pkl", PAYLOAD)
    sandbox.git("add", ".")
    assert commit(sandbox, MODELVER_SKIP="1")[0] == 0
    sandbox.modelver("add", MODEL)
    sandbox.git("commit", "-q", "--amend", "--no-edit", MODELVER_SKIP="1")
    done = sandbox.run("modelver", "check", ok=False)
    assert done.returncode == 1
    refused = [line for line in done.stdout.splitlines() if line.startswith("refused")]
    assert [line.split(": ", 2)[2] for line in refused] == [
        f"{MODEL}: dangerous to load: posix.system (runs programs)",
        "os.pkl: dangerous to load: posix.system (runs programs)",
    ]
    sandbox.git("rm", "-q", "--cached", "os.pkl")
    sandbox.git("commit", "-q", "--amend", "--no-edit", MODELVER_SKIP="1")
    sandbox.drop(sandbox.metadata_md5(MODEL))
    done = sandbox.run("modelver", "check")
    assert f"{MODEL}: not scanned, object {sandbox.metadata_md5(MODEL)[:8]} is not in the cache" in done.stdout
    assert f"modelver pull {MODEL}" in done.stdout


def test_check_takes_the_settings_that_are_committed(sandbox: Sandbox) -> None:
    write_model(sandbox, MODEL, EVIL)
    sandbox.modelver("add", MODEL)
    assert commit(sandbox, MODELVER_SKIP="1")[0] == 0
    (sandbox.path / ".modelver.toml").write_text('[security]\nallow = ["posix.system"]\n')
    assert sandbox.exit_code("check") == 1
    sandbox.git("commit", "-qam", "allow")
    assert sandbox.exit_code("check", "HEAD~2..HEAD") == 0


def test_a_folder_names_the_models_that_are_not_here(sandbox: Sandbox) -> None:
    write_model(sandbox, MODEL, GOOD)
    sandbox.git("add", ".")
    assert commit(sandbox)[0] == 0
    (sandbox.path / MODEL).unlink()
    done = sandbox.run("modelver", "scan", ".", ok=False)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"unknown  {MODEL}",
        f"    not on disk, so not scanned (modelver pull {MODEL})",
    ]
    sandbox.run("git", "checkout", "-q", "HEAD")
    sandbox.modelver("pull")
    assert sandbox.modelver("scan", ".") == f"safe  {MODEL}\n"
    assert sandbox.modelver("scan", "net").startswith(f"safe  {MODEL}")


def test_a_path_that_is_not_there(sandbox: Sandbox) -> None:
    said = sandbox.modelver("scan", "nowhere.pt", ok=False)
    assert said.startswith("modelver: error: nowhere.pt: no such file, folder or model")
    assert "--format" not in sandbox.modelver("scan", "--help")
