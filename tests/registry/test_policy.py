"""Policies: every rule is measured, one that does not hold stops the promotion, and the remote's file counts."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import pytest

from dvc_modelver import api
from dvc_modelver.api.stages import NotPromotedError, Staged, Verdict
from dvc_modelver.errors import BadMetadataError, UsageError
from dvc_modelver.policy import parse_metric_rule
from dvc_modelver.registry.evaluations import Evaluation, Measured, record_evaluation
from dvc_modelver.registry.policy import check_metric, find_field
from dvc_modelver.repository import Repository
from dvc_modelver.resources import read_template
from dvc_modelver.settings import parse_settings
from tests.registry.registry import MODEL, Registry


def promote(box: Registry, version: str, stage: str = "prod", **options: str | bool) -> Staged:
    return api.promote("net", version, stage, folder=box.path, **options)  # type: ignore[arg-type]


def refused(box: Registry, version: str, stage: str = "prod") -> Verdict:
    """Give what was refused; nothing may be left of it."""
    before = box.tags()
    with pytest.raises(NotPromotedError) as err:
        promote(box, version, stage)
    assert box.tags() == before
    assert not err.value.verdict.ok
    return err.value.verdict


def found(verdict: Verdict) -> dict[str, tuple[bool, str]]:
    return {check.rule: (check.ok, check.found) for check in verdict.checks}


def test_all_rules_are_measured_and_one_refuses(registry: Registry) -> None:
    blob = registry.policy(
        'metrics = ["val_acc >= 0.92", "val_acc >= held - 0.015", "loss < 1"]', "min_cosine = 0.5",
        'require = ["training.hyperparameters.seed", "training.data"]', "scan = true", "clean = true", "remote = true",
        'branches = ["main"]',
    )  # fmt: skip
    done = registry.run("modelver", "promote", "net", "v1.1.0", "prod", ok=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[0].startswith(
        "modelver: refused: net@v1.1.0 is not promoted to prod: 2 of 11 rules"
    )
    lines = [line.split("  ") for line in done.stdout.splitlines()]
    said = {words[1]: (words[0], words[-1].strip()) for words in lines[:-1]}
    assert said == {
        "metadata of these weights": ("ok", "agrees with pointer, table and weights"),
        "val_acc >= 0.92": ("ok", "val_acc = 0.93"),
        "val_acc >= held - 0.015": ("ok", "val_acc = 0.93; nothing holds the stage"),
        "loss < 1": ("no", "loss was not measured (there is val_acc)"),
        "min_cosine = 0.5": ("ok", "nothing holds the stage"),
        "require training.hyperparameters.seed": ("ok", "2"),
        "require training.data": ("no", "not there"),
        "scan": ("ok", "safe"),
        "clean": ("ok", "nothing is changed in the work tree"),
        "remote": ("ok", said["remote"][1]),
        "branches = main": ("ok", said["branches = main"][1]),
    }
    assert f"by 1 [[policy]] table of origin/main ({blob[:8]})" in done.stdout
    assert "hint: modelver eval net@v1.1.0 --metrics FILE" in done.stderr
    assert registry.tags("net#*") == []


def test_force_needs_a_reason_and_is_recorded(registry: Registry) -> None:
    blob = registry.policy('metrics = ["val_acc >= 0.99"]')
    for reason in ("", "  \n"):
        with pytest.raises(UsageError, match="expected a reason"):
            promote(registry, "v1.0.0", force=True, reason=reason)
    done = promote(registry, "v1.0.0", force=True, reason="the demo is today")
    assert done.forced
    record = json.loads(registry.git("tag", "-l", "--format=%(contents:body)", "net#prod#1"))
    assert record["policy"] == {"ref": "origin/main", "blob": blob}
    assert (record["forced"], record["reason"]) == (True, "the demo is today")
    assert record["checks"][1] == {"rule": "val_acc >= 0.99", "ok": False, "found": "val_acc = 0.91"}
    (now,) = json.loads(registry.modelver("stages", "--json"))["stages"]
    assert (now["forced"], now["reason"]) == (True, "the demo is today")
    registry.policy('metrics = ["val_acc >= 0.5"]')
    assert not promote(registry, "v1.1.0", force=True, reason="to be sure").forced


def test_the_remotes_policy_counts_and_no_other(registry: Registry) -> None:
    blob = registry.policy('metrics = ["val_acc >= 0.92"]')
    (registry.path / ".modelver.toml").write_text("")
    assert refused(registry, "v1.0.0").source.blob == blob
    registry.git("commit", "-q", "-am", "no policy any more", MODELVER_SKIP="1")
    assert refused(registry, "v1.0.0").source.blob == blob  # committed, not on the remote's branch
    registry.git("switch", "-q", "-c", "side")
    registry.git("push", "-q", "-u", "origin", "side", MODELVER_SKIP="1")
    assert refused(registry, "v1.0.0").source.ref == "origin/main"
    assert [check.ok for check in refused(registry, "v1.0.0").checks] == [True, False]
    assert promote(registry, "v1.0.0", "staging").verdict is not None  # for prod alone
    registry.git("update-ref", "-d", "refs/remotes/origin/main")
    with pytest.raises(UsageError, match="its default branch is not known here") as err:
        promote(registry, "v1.1.0")
    assert err.value.hint == "git fetch origin main:refs/remotes/origin/main && git remote set-head origin main"
    registry.git("update-ref", "refs/remotes/origin/trunk", "side~1")
    registry.git("symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/trunk")
    assert refused(registry, "v1.0.0").source.ref == "origin/trunk"
    # --push looks at the remote first: a policy that was pushed since counts
    registry.git("symbolic-ref", "-d", "refs/remotes/origin/HEAD")
    with pytest.raises(NotPromotedError):
        promote(registry, "v1.0.0", push=True)
    registry.git("remote", "remove", "origin")
    done = promote(registry, "v1.0.0")
    assert done.verdict is not None
    assert done.verdict.source.ref == "HEAD"


def evaluate(box: Registry, version: str, **metrics: float) -> None:
    repo = Repository.open(box.path)
    md5 = json.loads(box.git("show", f"net@{version}:{MODEL}.modelver.json"))["model"]["md5"]
    record_evaluation(repo.git, repo.objects, Evaluation(md5, metrics, "2026-05-01T10:00:00Z", "Ada"))


def test_metrics_count_as_measured_last_and_against_the_holder(registry: Registry) -> None:
    registry.policy('metrics = ["val_acc >= held - 0.005", "test_acc > 0.8"]', "max_cosine = 0.5")
    assert found(refused(registry, "v1.1.0"))["test_acc > 0.8"] == (
        False,
        "test_acc was not measured (there is val_acc)",
    )
    for version in ("v1.1.0", "v1.2.0"):
        evaluate(registry, version, test_acc=0.85)
    assert promote(registry, "v1.1.0").tags == ("net#prod#1",)
    said = found(refused(registry, "v1.2.0"))
    assert said["val_acc >= held - 0.005"] == (False, "val_acc = 0.92, held 0.93")
    assert said["test_acc > 0.8"] == (True, "test_acc = 0.85 (evaluated 2026-05-01)")
    ok, text = said["max_cosine = 0.5"]
    assert ok
    assert text.startswith("cosine ")
    assert text.endswith(" to net#prod#1")
    evaluate(registry, "v1.2.0", val_acc=0.94)
    assert promote(registry, "v1.2.0").version == "v1.2.0"
    registry.policy("min_cosine = 0.5")
    assert not found(refused(registry, "v1.0.0"))["min_cosine = 0.5"][0]  # trained anew: near 0


def test_tree_branches_and_objects(registry: Registry) -> None:
    registry.policy("clean = true", "remote = true", 'branches = ["main", "release/*"]')
    registry.git("switch", "-q", "-c", "side")
    commit = registry.commit(4, 0.95)
    md5 = registry.md5(MODEL)
    registry.train(MODEL, 5)
    said = found(refused(registry, "4"))
    assert said["clean"] == (False, f"changed: {MODEL}")  # retrained, and not described yet
    assert said["branches = main, release/*"] == (False, f"{commit[:8]} is on no branch of origin")
    assert said["remote"][1] == f"not on storage: {MODEL} ({md5[:8]})"
    registry.modelver("pull", "--force")
    registry.write("notes.txt", "untracked files do no harm")
    registry.git("push", "-q", "origin", "side:feature")
    said = found(refused(registry, "4"))
    assert (said["clean"][0], said["remote"][0]) == (True, True)
    assert said["branches = main, release/*"] == (False, f"{commit[:8]} is on feature of origin")
    registry.git("push", "-q", "origin", "side:release/4")
    assert promote(registry, "4").verdict
    os.rename(registry.folder / "remote", registry.folder / "away")
    (registry.folder / "remote").write_text("no folder")
    assert not found(refused(registry, "v1.0.0"))["remote"][0]


def test_a_dangerous_model_needs_the_owners_word(registry: Registry) -> None:
    class Reader:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.path.expanduser, ("~",)

    registry.policy("scan = true", "[security]", 'refuse = "never"')
    (registry.path / "net.pkl").write_bytes(pickle.dumps({"w": Reader()}))
    registry.modelver("add", "net.pkl", "--name", "pickled")
    registry.git("commit", "-q", "-m", "a pickle")
    with pytest.raises(NotPromotedError) as err:
        api.promote("pickled", "1", "prod", folder=registry.path)
    assert not found(err.value.verdict)["scan"][0]
    name = "posixpath.expanduser"
    registry.write(".modelver.toml", f'[security]\nallow = ["{name}"]\nrefuse = "never"\n')
    with pytest.raises(NotPromotedError):  # his own word is not the owners'
        api.promote("pickled", "1", "prod", folder=registry.path)
    registry.policy("scan = true", "[security]", 'refuse = "never"', f'allow = ["{name}"]')
    assert api.promote("pickled", "1", "prod", folder=registry.path).tags == ("pickled#prod#1",)
    md5 = registry.md5(MODEL)
    registry.drop(md5)  # fetched to be looked at
    assert found(api.check_stage_of("net@v1.2.0", "prod", folder=registry.path))["scan"] == (True, "safe")
    assert registry.cached(md5)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("parameters", 7, "parameters is 7, the tensor table has"),
        ("parameters_digest", "params-blake3-1:" + "0" * 64, "parameters_digest is params-blake3-1"),
        ("n_tensors", 9, "n_tensors is 9"),
        ("bytes", 1, "bytes is 1, the pointer has"),
        ("md5", "0" * 32, "md5 is 00000000000000000000000000000000, the pointer has"),
        ("tensors_digest", "blake3:" + "0" * 64, "tensors_digest is blake3:0000"),
        ("format", "npz", "format is npz, the object has safetensors"),
    ],
)
def test_metadata_edited_by_hand_is_found(registry: Registry, key: str, value: object, says: str) -> None:
    def edit(text: bytes) -> bytes:
        document = json.loads(text)
        document["model"][key] = value
        return (json.dumps(document, indent=2) + "\n").encode()

    rewrite(registry, f"{MODEL}.modelver.json", edit)
    ok, text = found(refused(registry, md5_at_head(registry)))["metadata of these weights"]
    assert not ok
    assert says in text


def md5_at_head(box: Registry) -> str:
    return str(json.loads(box.git("show", f"HEAD:{MODEL}.modelver.json"))["model"]["md5"])


def test_a_table_edited_with_its_digests_is_found_by_the_weights(registry: Registry) -> None:
    from dataclasses import replace

    from dvc_modelver.metadata import ModelMetadata, TensorTable, metadata_path, summarise, table_digest, table_path

    table = TensorTable.parse((registry.path / table_path(MODEL)).read_bytes(), "t")
    forged = replace(table, rows=table.rows[1:])
    metadata = ModelMetadata.parse((registry.path / metadata_path(MODEL)).read_bytes(), "m")
    facts = replace(metadata.model, **summarise(forged.rows), tensors_digest=table_digest(forged.render()))
    rewrite(registry, table_path(MODEL), lambda _old: forged.render())
    rewrite(registry, metadata_path(MODEL), lambda _old: replace(metadata, model=facts).render())
    ok, text = found(refused(registry, "3"))["metadata of these weights"]
    assert (ok, text) == (False, f"{MODEL}.modelver.tensors: tensor embed.weight is nothing, the object has F32 32x16")


def rewrite(box: Registry, path: str, edit: object) -> None:
    """Change a file of HEAD past the hooks, under the same weights."""
    file: Path = box.path / path
    file.write_bytes(edit(file.read_bytes()))  # type: ignore[operator]
    box.git("commit", "-q", "--amend", "--no-edit", path, MODELVER_SKIP="1")
    box.git("tag", "-d", "net@v1.2.0", ok=False)  # which names the commit that was


def test_ci_asks_the_same(registry: Registry) -> None:
    registry.policy('metrics = ["val_acc >= 0.92"]')
    assert registry.exit_code("check", "--stage", "prod", "net@v1.0.0") == 1
    out = registry.modelver("check", "--stage", "prod", "net")  # the version at HEAD
    assert "ok  val_acc >= 0.92            val_acc = 0.92" in out
    document = json.loads(registry.modelver("check", "--stage", "prod", "net@2", "--json"))
    assert (document["schema"], document["ok"], document["version"]) == ("modelver.verdict/1", True, "v1.1.0")
    assert registry.exit_code("check", "--stage", "prod") == 2
    other = registry.run("modelver", "check", "--stage", "PROD", f"net@{document['md5'][:6]}")
    assert "warning: origin/main has no [[policy]] for PROD, but one for prod, which is not asked" in other.stderr
    assert registry.exit_code("check") == 0
    assert registry.tags("net#*") == []


def test_a_rule_that_this_program_does_not_know_lets_nothing_through(registry: Registry) -> None:
    registry.policy('metric = ["val_acc >= 0.1"]')
    assert found(refused(registry, "v1.0.0"))["policy.metric"][0] is False
    registry.policy('metrics = ["val_acc about 0.1"]')
    with pytest.raises(BadMetadataError, match=r"origin/main:\.modelver\.toml: policy 1: metrics is 'val_acc about"):
        promote(registry, "v1.0.0")


def parse(text: str) -> object:
    return parse_settings(text).policies


@pytest.mark.parametrize(
    "text",
    [
        "policy = 3",
        "[policy.prod]\nclean = true",
        "[[policy]]\nclean = true",
        "[[policy]]\nstage = 3",
        '[[policy]]\nstage = "p"\nclean = "yes"',
        '[[policy]]\nstage = "p"\nmin_cosine = 1.5',
        '[[policy]]\nstage = "p"\nmin_cosine = true',
        '[[policy]]\nstage = "p"\nmin_cosine = nan',
        '[[policy]]\nstage = "p"\nbranches = "main"',
        '[[policy]]\nstage = "p"\nrequire = [3]',
        '[[policy]]\nstage = "p"\nmetrics = ["a >= b"]',
        '[[policy]]\nstage = "p"\nmetrics = [">= 1"]',
        '[[policy]]\nstage = "p"\nmetrics = ["a >= held * 2"]',
        '[[policy]]\nstage = "p"\nmetrics = ["a >= 1 and b >= 2"]',
        '[[policy]]\nstage = "p"\nmetrics = ["' + "a" * 1000 + ' >= 1"]',
    ],
)
def test_a_policy_that_says_nothing_clear_is_refused(text: str) -> None:
    with pytest.raises(BadMetadataError, match="expected"):
        parse(text)


def test_which_policy_is_for_whom() -> None:
    settings = parse_settings(
        '[[policy]]\nstage = "prod"\nclean = true\n[[policy]]\nstage = "prod*"\nmodels = ["vision/*", "net"]\n'
        '[[policy]]\nstage = "dev"\nfuture = 1\n'
    )
    for stage, model, expected in (
        ("prod", "net", [0, 1]), ("prod", "other", [0]), ("prod-eu", "vision/a", [1]), ("prod-eu", "other", []),
        ("dev", "other", [2]), ("Prod", "net", []),
    ):  # fmt: skip
        assert [n for n, p in enumerate(settings.policies) if p.is_for(stage, model)] == expected
    assert settings.unknown == ("policy.future",)


@pytest.mark.parametrize(
    ("rule", "own", "held", "ok"),
    [
        ("acc >= 0.9", {"acc": 0.9}, None, True),
        ("acc > 0.9", {"acc": 0.9}, None, False),
        ("loss <= -1e-3", {"loss": -0.5}, None, True),
        ("n == 3", {"n": 3}, None, True),
        ("n != 3", {"n": 3}, None, False),
        ("val.acc / top 5<.5", {"val.acc / top 5": 0.4}, None, True),
        ("acc >= 0.9", {}, None, False),
        ("acc >= 0.9", {"acc": "0.95"}, None, False),
        ("acc >= 0.9", {"acc": True}, None, False),
        ("acc >= 0.9", {"acc": float("nan")}, None, False),
        ("acc != 0.9", {"acc": float("nan")}, None, False),
        ("acc >= 0.9", {"acc": float("inf")}, None, False),
        ("acc >= held", {"acc": 0.9}, None, True),
        ("acc >= held", {"acc": 0.9}, {}, False),
        ("acc >= held", {"acc": 0.9}, {"acc": float("nan")}, False),
        ("acc >= held", {"acc": 0.9}, {"acc": 0.9}, True),
        ("acc >= held-0.01", {"acc": 0.895}, {"acc": 0.9}, True),
        ("acc >= held - 0.01", {"acc": 0.88}, {"acc": 0.9}, False),
        ("loss <= held + 1", {"loss": 3}, {"loss": 2}, True),
        ("loss <= held + 1", {"loss": 3.1}, {"loss": 2}, False),
    ],
)  # fmt: skip
def test_metric_rules(rule: str, own: Mapping[str, object], held: Mapping[str, object] | None, ok: bool) -> None:
    def measured(values: Mapping[str, object]) -> dict[str, Measured]:
        return {name: Measured(value, "training", value) for name, value in values.items()}

    result = check_metric(parse_metric_rule(rule, "x"), measured(own), None if held is None else measured(held))
    assert result.ok is ok
    assert result.rule == rule


def test_fields_are_found_whose_names_have_dots() -> None:
    document = {"training": {"metrics": {"val.acc": 0.5, "val": {"loss": 1}}, "data": []}, "a": {"b": None}}
    for name, expected in (
        ("training.metrics.val.acc", 0.5), ("training.metrics.val.loss", 1), ("training.data", []), ("a.b", None),
        ("a.b.c", None), ("training.metrics.val.acc.x", None), ("", None),
    ):  # fmt: skip
        assert find_field(document, name.split(".")) == expected


def test_the_example_of_the_template_is_a_policy() -> None:
    text = read_template("modelver.toml")
    lines = text[text.index("# [[policy]]") :].splitlines()
    (policy,) = parse_settings("\n".join(line.removeprefix("# ") for line in lines)).policies
    assert (policy.stage, policy.unknown, policy.min_cosine, len(policy.metrics)) == ("prod", (), 0.5, 2)
    assert parse_settings(text).policies == ()
