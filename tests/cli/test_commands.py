"""The commands as a user meets them: results, exit codes, one clear line when something is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from dvc_modelver.cli import main
from dvc_modelver.resources import read_schema
from tests.sandbox import Sandbox, make_weights, md5_of, prepared

MODEL = "models/net.safetensors"


@prepared
def three(sandbox: Sandbox) -> Sandbox:
    """Three committed versions of one model; version 1 is tagged v1.0.0."""
    for seed in (1, 2, 3):
        sandbox.train(MODEL, seed)
        sandbox.modelver("add", MODEL, "--metric", f"val_acc=0.{seed}", "--param", f"seed={seed}")
        sandbox.git("commit", "-q", "-m", f"version {seed}")
        if seed == 1:
            sandbox.modelver("tag", "net", "v1.0.0")
    return sandbox


def save_npz(path: Path, weights: Mapping[str, NDArray[Any]]) -> None:
    save: Any = np.savez
    save(path, **weights)


def failing(box: Sandbox, *args: str, code: int, **env: str) -> str:
    """Run a command that must fail with `code`, on one line and a hint, without a traceback."""
    done = box.run("modelver", *args, ok=False, env=env)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("modelver: ")]
    assert len(lines) == 1, done.stderr
    return done.stderr


def test_log_show_list_and_their_documents(three: Sandbox) -> None:
    out = three.modelver("log", "net")
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["3", "2", "1"]
    assert "v1.0.0" in out
    document = json.loads(three.modelver("log", "net", "--json"))
    assert [v["training"]["metrics"]["val_acc"] for v in document["versions"]] == [0.3, 0.2, 0.1]
    assert "net version 2" in three.modelver("show", "net@2")
    shown = json.loads(three.modelver("show", "net@v1.0.0", "--json"))
    assert shown["version"]["number"] == 1
    assert shown["tags"] == ["net@v1.0.0"]
    assert json.loads(three.modelver("list", "--json"))["models"][0]["versions"] == ["v1.0.0"]
    assert "embed.weight" in three.modelver("show", MODEL)


def test_metadata_and_table_follow_their_schemas(three: Sandbox) -> None:
    metadata = json.loads((three.path / f"{MODEL}.modelver.json").read_text())
    jsonschema.validate(metadata, json.loads(read_schema("metadata")))
    schema = json.loads(read_schema("tensors"))
    for line in (three.path / f"{MODEL}.modelver.tensors").read_text().splitlines():
        jsonschema.validate(json.loads(line), schema)
    assert list(metadata) == ["schema", "model", "version", "change", "training"]
    assert metadata["version"]["number"] == 3
    assert metadata["version"]["parents"] == [metadata["change"]["from"]]


def test_unknown_fields_are_kept(three: Sandbox) -> None:
    path = three.path / f"{MODEL}.modelver.json"
    document = json.loads(path.read_text())
    document["model"]["colour"] = "blue"
    document["team"] = {"x": 1}
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    before = path.read_text()
    from dvc_modelver.metadata import ModelMetadata

    assert ModelMetadata.parse(before.encode(), "x").render().decode() == before


def test_a_newer_schema_is_read_but_not_rewritten(three: Sandbox) -> None:
    path = three.path / f"{MODEL}.modelver.json"
    path.write_text(path.read_text().replace("modelver.metadata/1", "modelver.metadata/2"))
    assert "net version 3" in three.modelver("show", "net")
    three.train(MODEL, 9)
    done = three.run("modelver", "add", MODEL, ok=False)
    assert done.returncode in (0, 2)
    assert "Traceback" not in done.stderr


def test_diff_by_version_tag_revision_file_and_exit_code(three: Sandbox, tmp_path: Path) -> None:
    for args in (
        ["net@1", "net@3"],
        ["net@v1.0.0"],
        ["HEAD~2", "HEAD"],
        ["HEAD~2", "HEAD", MODEL],
        ["HEAD~2..HEAD"],
        ["HEAD~2", "--", "models"],
    ):
        assert "retrained" in three.modelver("diff", *args), args
    out = three.modelver("diff", "net@1", "net@2")
    assert "val_acc" in out
    assert "(+0.1)" in out
    document = json.loads(three.modelver("diff", "net@1", "net@3", "--json"))
    jsonschema.validate(document, json.loads(read_schema("diff")))
    assert document["models"][0]["hyperparameters"] == [{"name": "seed", "old": 1, "new": 3}]
    save_file(make_weights(1), tmp_path / "a.safetensors")
    save_file(make_weights(2), tmp_path / "b.safetensors")
    assert "retrained" in three.modelver("diff", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"))
    assert three.exit_code("diff", "HEAD~1", "HEAD") == 0
    assert three.exit_code("diff", "HEAD~1", "HEAD", "--exit-code") == 1
    assert three.exit_code("diff", "HEAD", "--exit-code") == 0
    assert three.exit_code("diff", "HEAD~1", "HEAD", "--min-similarity", "0.9") == 1
    assert three.exit_code("diff", "HEAD~1", "HEAD", "--min-similarity", "-1") == 0
    three.modelver("diff", "net@1", "net@2", "--json", "-o", "out dir.json")
    assert json.loads((three.path / "out dir.json").read_text())["schema"] == "modelver.diff/1"


def test_diff_follows_a_renamed_model(three: Sandbox) -> None:
    three.modelver("mv", MODEL, "models/other.safetensors")
    three.git("commit", "-qm", "rename")
    (found,) = json.loads(three.modelver("diff", "HEAD~1", "HEAD", "--json"))["models"]
    assert (found["kind"], found["old"]["path"], found["path"]) == ("identical", MODEL, "models/other.safetensors")
    assert f"models/other.safetensors  {MODEL} version 2" in three.modelver("diff", "HEAD~2", "HEAD")
    limited = json.loads(three.modelver("diff", "HEAD~1", "HEAD", MODEL, "--json"))["models"]
    assert [one["kind"] for one in limited] == ["removed"]


def test_diff_sees_a_retrained_model_that_is_not_described_yet(three: Sandbox) -> None:
    three.modelver("install", "--no-fsmonitor")
    three.train(MODEL, 7)
    assert "retrained" in three.modelver("diff")


def test_rollback_restores_all_three_and_goes_further_back(three: Sandbox) -> None:
    versions = [v["model"]["md5"] for v in json.loads(three.modelver("log", "net", "--json"))["versions"]]
    for expected in versions[1:]:
        three.modelver("rollback", "net")
        assert three.md5(MODEL) == expected
        assert three.metadata_md5(MODEL) == expected
        assert expected in three.git("show", f":{MODEL}.dvc")
    assert three.git("diff") == ""
    failing(three, "rollback", "net", code=2)
    three.git("commit", "-q", "-m", "back to one")
    assert three.git("show", f"HEAD:{MODEL}.modelver.json") == three.git("show", f"HEAD~3:{MODEL}.modelver.json")
    three.git("revert", "--no-edit", "HEAD")
    assert three.md5(MODEL) == versions[0]


def test_rollback_keeps_weights_that_are_in_no_version(three: Sandbox) -> None:
    md5 = three.train(MODEL, 8)
    done = three.run("modelver", "rollback", "net", "v1.0.0")
    assert f"net@{md5}" in done.stderr
    three.modelver("load", f"net@{md5}", "-o", "saved.safetensors")
    assert md5_of(three.path / "saved.safetensors") == md5


def test_rollback_without_the_object_changes_nothing(three: Sandbox) -> None:
    first = json.loads(three.modelver("show", "net@1", "--json"))["model"]["md5"]
    three.drop(first)
    before = three.md5(MODEL), three.metadata_md5(MODEL)
    assert first[:8] in failing(three, "rollback", "net", "1", code=4)
    assert (three.md5(MODEL), three.metadata_md5(MODEL)) == before
    assert three.git("status", "--porcelain") == ""


def test_tags_are_gtos(three: Sandbox) -> None:
    out = three.modelver("tag", "net", "HEAD~1", "--bump", "auto")
    assert "net@v1.1.0" in out
    three.modelver("tag", "net", "--bump", "major")
    assert "one version per commit" in failing(three, "tag", "net", "--bump", "major", code=2)
    shown = three.run("gto", "show", "net", "--json")
    assert '"v2.0.0"' in shown.stdout
    history = three.run("gto", "history", "net", "--json").stdout
    assert all(version in history for version in ("v1.0.0", "v1.1.0", "v2.0.0"))
    assert "nothing changed" in failing(three, "tag", "net", "--bump", "auto", code=1)
    failing(three, "tag", "net", "v1.0.0", code=2)
    failing(three, "tag", "net", "1.x", code=2)
    failing(three, "tag", "net", code=2)
    three.train(MODEL, 4)
    three.git("commit", "-q", "-am", "version 4")
    three.git("config", "user.name", "Ada")
    three.git("config", "user.email", "ada@example.org")
    three.run("gto", "register", "net", "--version", "v3.0.0")
    assert "v3.0.0" in three.modelver("log", "net")


def test_add_name_makes_dvc_artifacts_work(three: Sandbox, tmp_path: Path) -> None:
    three.modelver("add", MODEL, "--name", "my-net")
    three.git("commit", "-q", "-m", "named")
    three.modelver("tag", "my-net", "v1.0.0")
    three.modelver("push")
    three.dvc("artifacts", "get", ".", "my-net", "-o", str(tmp_path / "got.safetensors"))
    assert md5_of(tmp_path / "got.safetensors") == three.md5(MODEL)
    failing(three, "add", MODEL, "--name", "bad.name", code=2)


def test_npz_is_read(sandbox: Sandbox) -> None:
    save_npz(sandbox.path / "net.npz", {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2)})
    sandbox.modelver("add", "net.npz")
    sandbox.git("commit", "-q", "-m", "npz")
    shown = json.loads(sandbox.modelver("show", "net", "--json"))
    assert shown["model"]["format"] == "npz"
    assert shown["model"]["dtypes"] == {"F32": 1, "F64": 1}
    save_npz(sandbox.path / "net.npz", {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3) + 1, "b": np.ones(2)})
    assert "a.weight" in sandbox.git("diff")


def test_the_same_weights_have_one_parameters_digest(sandbox: Sandbox) -> None:
    weights = make_weights(1)
    save_file(weights, sandbox.path / "a.safetensors")
    save_file(weights, sandbox.path / "b.safetensors", metadata={"format": "pt", "note": "x"})
    save_npz(sandbox.path / "c.npz", weights)
    sandbox.modelver("add", "a.safetensors", "b.safetensors", "c.npz")
    digests = {
        json.loads((sandbox.path / f"{n}.modelver.json").read_text())["model"]["parameters_digest"]
        for n in ("a.safetensors", "b.safetensors", "c.npz")
    }
    assert len(digests) == 1


def test_mv_and_rm_take_everything_along(three: Sandbox) -> None:
    md5 = three.md5(MODEL)
    three.modelver("mv", MODEL, "final/best.safetensors")
    assert three.md5("final/best.safetensors") == md5
    assert not (three.path / MODEL).exists()
    three.git("commit", "-q", "-m", "moved")
    assert three.git("status", "--porcelain") == ""
    assert "up to date" in three.dvc("status")
    assert "no such model" in three.modelver("rm", "final/best.safetensors", "missing", ok=False)
    assert three.git("status", "--porcelain") == "", "none is removed where one cannot be"
    three.modelver("rm", "final/best.safetensors")
    three.git("commit", "-q", "-m", "removed")
    assert not (three.path / "final/best.safetensors").exists()
    assert three.cached(md5)
    assert three.git("status", "--porcelain") == ""
    for command in (
        "show",
        "card",
        "load -o back.safetensors",
        "eval --metric late=1",
        "check --stage prod",
        "diff net@2",
    ):
        assert three.modelver(*command.split(), "net@3"), command
    assert md5_of(three.path / "back.safetensors") == md5
    assert three.modelver("promote", "net", "3", "prod")
    assert "late = 1" in three.modelver("show", "net#prod")
    three.modelver("rollback", "net", "3")
    assert three.md5("final/best.safetensors") == md5
    assert three.modelver("check")
    three.git("reset", "-q", "--hard")
    three.git("revert", "--no-edit", "HEAD")
    three.modelver("pull")
    assert three.md5("final/best.safetensors") == md5


def test_refresh_rebuilds_what_was_damaged(three: Sandbox) -> None:
    path = three.path / f"{MODEL}.modelver.json"
    before = path.read_bytes()
    path.write_text("{broken")
    assert "conflict" in three.modelver("status")
    failing(three, "show", "net@99", code=2)
    three.modelver("refresh", MODEL)
    assert path.read_bytes() == before
    three.modelver("refresh", MODEL, "--metric", "test_acc=0.5")
    assert json.loads(path.read_text())["training"]["metrics"] == {"val_acc": 0.3, "test_acc": 0.5}


def test_check_says_what_a_push_would(three: Sandbox) -> None:
    assert three.exit_code("check", "HEAD~3..HEAD") == 0
    three.git("rm", "-q", "--cached", f"{MODEL}.modelver.json")
    three.run("git", "commit", "-q", "-m", "metadata lost", env={"MODELVER_SKIP": "1"})
    path = three.path / f"{MODEL}.dvc"
    path.write_text(path.read_text().replace(three.md5(MODEL), "0" * 32))
    three.run("git", "commit", "-q", "-am", "pointer broken", env={"MODELVER_SKIP": "1"})
    assert three.exit_code("check", "HEAD~2..HEAD") == 1
    assert "no metadata file" in three.run("modelver", "check", "HEAD~2..HEAD", ok=False).stdout


def test_fsck_finds_a_corrupt_and_a_lost_object(three: Sandbox) -> None:
    md5 = three.md5(MODEL)
    assert three.exit_code("fsck") == 0
    obj = three.path / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    obj.chmod(0o644)
    obj.write_bytes(b"garbage")
    out = three.run("modelver", "fsck", ok=False)
    assert out.returncode == 1
    assert "other bytes" in out.stdout
    three.git("checkout", "-q", "HEAD~1")  # replaces the weights, which are stored again before
    assert md5_of(obj) == md5
    obj.chmod(0o644)
    obj.write_bytes(b"garbage")
    done = three.run("git", "checkout", "main")
    assert "md5" in done.stderr
    assert three.md5(MODEL) != md5
    obj.unlink()
    assert three.exit_code("fsck") == 1


def test_wrong_use_is_exit_2_with_a_hint(three: Sandbox) -> None:
    for args in (
        ["frobnicate"],
        ["stauts"],
        ["show", "nett"],
        ["diff", "nope"],
        ["diff", "HEAD", "nope"],
        ["add"],
        ["add", "no/such/file.safetensors"],
        ["add", "models"],
        ["add", "/etc/hostname"],
        ["add", MODEL, "--metric", "x"],
        ["add", MODEL, "--metric", "x=abc"],
        ["add", MODEL, "--data", "nope.csv"],
        ["load", "net@1", "-o", MODEL],
        ["load", "net@77", "-o", "x"],
        ["log", "--frob"],
        ["mv", MODEL, f"{MODEL}.dvc"],
        ["rollback", "nothing"],
        ["tag", "net", "v1.0.0", "nope"],
        ["check", "nope..HEAD"],
        ["refresh", "nope"],
    ):
        said = failing(three, *args, code=2)
        assert "hint:" in said or args[-1] == "/etc/hostname" or args[0] == "mv", said
    assert "status" in failing(three, "stauts", code=2)
    assert "did you mean net" in failing(three, "show", "nett", code=2)


def test_outside_a_repository(tmp_path: Path) -> None:
    box = Sandbox(tmp_path)
    for args in (["status"], ["doctor"], ["install"], ["log", "x"], ["diff"]):
        assert "modelver init" in failing(box, *args, code=2)
    box.run("git", "init", "-q", "--bare", "bare.git")
    assert "bare repository" in failing(Sandbox(tmp_path / "bare.git"), "status", code=2)
    box.run("git", "init", "-q", "plain")
    assert "no DVC repository" in failing(Sandbox(tmp_path / "plain"), "install", code=2)
    assert "no DVC repository" in failing(Sandbox(tmp_path / "plain"), "status", code=2)


def test_no_remote_and_a_remote_that_is_gone(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.train(MODEL, 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    sandbox.modelver("push")
    md5 = sandbox.md5(MODEL)
    sandbox.drop(md5)
    (sandbox.path / MODEL).unlink()
    shutil.move(tmp_path / "remote", tmp_path / "away")
    said = sandbox.run("modelver", "pull", ok=False)
    assert said.returncode == 4
    assert "remote: does not exist (not mounted?)" in said.stderr
    sandbox.dvc("remote", "remove", "storage")
    said = sandbox.run("modelver", "pull", ok=False)
    assert said.returncode == 4
    assert "no DVC remote is configured" in said.stderr
    assert "dvc remote add" in said.stderr
    assert sandbox.exit_code("doctor") == 1


def test_detached_and_shallow(three: Sandbox, tmp_path: Path) -> None:
    three.modelver("push")
    three.git("checkout", "-q", "--detach", "HEAD~1")
    assert "net version 2" in three.modelver("show", "net")
    three.train(MODEL, 5)
    three.git("commit", "-q", "-am", "detached")
    assert "net version 3" in three.modelver("show", "net")
    three.git("checkout", "-q", "main")
    three.run("git", "clone", "-q", "--depth", "1", f"file://{three.path}", str(tmp_path / "shallow"))
    shallow = Sandbox(tmp_path / "shallow")
    shallow.modelver("install")
    shallow.modelver("pull")
    assert shallow.md5(MODEL) == three.md5(MODEL)
    assert "net version 3" in shallow.modelver("show", "net")
    assert len(shallow.modelver("log", "net").splitlines()) == 2
    failing(shallow, "rollback", "net", code=2)


def test_corrupt_pointer_and_conflict_markers(three: Sandbox) -> None:
    pointer = three.path / f"{MODEL}.dvc"
    text = pointer.read_text()
    pointer.write_text("<<<<<<< ours\n" + text)
    done = three.run("git", "commit", "-am", "broken", ok=False)
    assert done.returncode != 0
    assert "conflict markers" in done.stderr
    assert "Traceback" not in done.stderr
    pointer.write_text(text)
    metadata = three.path / f"{MODEL}.modelver.json"
    metadata.write_text("<<<<<<< ours\n" + metadata.read_text())
    done = three.run("git", "commit", "-am", "broken", ok=False)
    assert done.returncode != 0
    assert "conflict markers" in done.stderr
    three.modelver("refresh", MODEL)
    assert three.git("status", "--porcelain") == ""


def test_settings_are_checked(sandbox: Sandbox) -> None:
    (sandbox.path / ".modelver.toml").write_text("[models]\ninclud = ['*.bin']\n")
    out = sandbox.run("modelver", "doctor", ok=False)
    assert out.returncode == 1
    assert "models.includ" in out.stdout
    (sandbox.path / ".modelver.toml").write_text("[models\n")
    assert "not TOML" in failing(sandbox, "status", code=2)
    (sandbox.path / ".modelver.toml").write_text(
        '[models]\ninclude = ["weights/*.bin"]\n[training]\nmetrics = ["metrics.json"]\n'
    )
    sandbox.modelver("install")
    (sandbox.path / "weights").mkdir()
    (sandbox.path / "weights/a.bin").write_bytes(bytes(range(256)) * 300)
    sandbox.write("metrics.json", '{"val": {"acc": 0.5}, "history": [1, 2]}')
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "bin")
    document = json.loads((sandbox.path / "weights/a.bin.modelver.json").read_text())
    assert document["training"]["metrics"] == {"val.acc": 0.5}


def test_the_python_api_has_the_same_words(three: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    import dvc_modelver as modelver

    monkeypatch.chdir(three.path)
    assert [v.version.number for v in modelver.log("net")] == [3, 2, 1]
    assert modelver.diff("net@1", "net@2")[0].kind == "retrained"
    assert [s.path for s in modelver.status()] == ["."]  # there is no Git remote to push to
    modelver.rollback("net")
    assert len(load_file(three.path / MODEL)) == 10
    with pytest.raises(AttributeError):
        modelver.frobnicate  # noqa: B018


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["lgo"], "lgo: no such command\nhint: modelver log\n"),
        (["push", "nope"], "push: takes no arguments, found nope\nhint: modelver push --help\n"),
        (["show", "a", "b"], "show: too many arguments: b\nhint: modelver show --help\n"),
        (["merge", "--take"], "Option '--take' requires an argument.\nhint: modelver merge --help\n"),
    ],
)
def test_wrong_arguments_are_told_in_plain_words(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 2
    assert capsys.readouterr().err == f"modelver: error: {said}"


def test_help_names_every_command(sandbox: Sandbox) -> None:
    out = sandbox.modelver("--help")
    for command in [
        "init",
        "install",
        "uninstall",
        "doctor",
        "add",
        "refresh",
        "status",
        "check",
        "mv",
        "rm",
        "diff",
        "scan",
        "show",
        "log",
        "list",
        "tag",
        "rollback",
        "load",
        "push",
        "pull",
        "fsck",
    ]:
        assert f"  {command} " in out
        assert sandbox.exit_code(command, "--help") == 0
    assert sandbox.run("git", "modelver", "--version").stdout.startswith("modelver ")


def test_a_remote_beside_the_repository_is_written_as_a_relative_path(tmp_path: Path) -> None:
    box = Sandbox(tmp_path / "first")
    box.path.mkdir()
    box.modelver("init", "--remote", "../weights")
    assert "url = ../../weights" in (box.path / ".dvc/config").read_text()  # from the file's own folder, as DVC does
    assert "already" not in box.modelver("init", "--remote", "../weights")
    (tmp_path / "weights").rmdir()  # it was made, and nothing is in it
    (tmp_path / "deeper/weights").mkdir(parents=True)
    moved = Sandbox(tmp_path / "deeper/second")
    box.path.rename(moved.path)
    moved.modelver("install")
    moved.train("net.safetensors", 1)
    moved.git("add", ".")
    moved.git("commit", "-q", "-m", "one")
    moved.modelver("push")
    assert (tmp_path / "deeper/weights/files/md5").is_dir()
