"""Stages: one tag for each change, one winner of two, and GTO and DVC see the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import jsonschema
import pytest
from gto.constants import VersionSort
from gto.registry import GitRegistry
from scmrepo.git import Git as Scm

from dvc_modelver import api
from dvc_modelver.errors import EnvironmentFailed, NotFoundError, RefusedError, UsageError
from dvc_modelver.git.porcelain import Git
from dvc_modelver.registry.stages import held_before, tenures
from dvc_modelver.registry.tags import ModelTag, read_tags, stage_holder
from dvc_modelver.resources import read_schema
from tests.registry.registry import MODEL, Registry
from tests.sandbox import md5_of


def held(box: Registry, stage: str = "prod") -> str:
    """Give the version that holds a stage, where this program and GTO agree."""
    ours = {t.stage: t.version for t in api.stages("net", folder=box.path)}
    with Scm(str(box.path)) as scm, GitRegistry.from_scm(scm) as registry:
        artifact = registry.get_state().find_artifact("net", create_new=True)
        theirs = artifact.get_vstages(versions_per_stage=1, sort=VersionSort.Timestamp)  # as gto show does
    assert {stage: holder.version[: len(ours[stage])] for stage, (holder,) in theirs.items()} == ours
    return ours.get(stage, "")


def promote(box: Registry, version: str, stage: str = "prod", **options: str | bool) -> tuple[str, ...]:
    return api.promote("net", version, stage, folder=box.path, **options).tags  # type: ignore[arg-type]


def test_each_change_is_one_tag_and_gto_agrees(registry: Registry) -> None:
    assert promote(registry, "v1.0.0", reason="the first") == ("net#prod#1",)
    assert promote(registry, "2", "staging") == ("net#staging#2",)  # one counter over all stages
    assert promote(registry, "v1.1.0") == ("net#prod#3",)
    assert held(registry) == "v1.1.0"
    before = registry.git("status", "--porcelain"), registry.md5(MODEL), registry.head()
    back = api.rollback_stage("net", "prod", reason="too slow", folder=registry.path)
    assert (back.tags, back.version, back.before) == (("net#prod#4",), "v1.0.0", "v1.1.0")
    assert held(registry) == "v1.0.0"
    assert before == (registry.git("status", "--porcelain"), registry.md5(MODEL), registry.head())
    history = registry.run("gto", "history", "net", "--json").stdout
    assert all(tag in history for tag in registry.tags("net#*"))
    record = json.loads(registry.git("tag", "-l", "--format=%(contents:body)", "net#prod#4"))
    assert record["before"]["tag"] == "net#prod#3"
    assert (record["reason"], record["back_to"], record["version"]) == ("too slow", "net#prod#1", "v1.0.0")
    with pytest.raises(UsageError, match=r"v1\.0\.0 holds this stage already"):
        promote(registry, "1")
    out = api.demote("net", "prod", folder=registry.path)
    assert out.tags == ("net#prod!#5", "net#prod!#6")  # one per version that GTO would count as holding it again
    assert held(registry) == ""
    assert held(registry, "staging") == "v1.1.0"
    with pytest.raises(NotFoundError, match="no version holds this stage"):
        api.demote("net", "prod", folder=registry.path)
    assert api.rollback_stage("net", "prod", folder=registry.path).version == "v1.0.0"  # what was there last
    for tag in registry.tags("net#*"):
        record = json.loads(registry.git("tag", "-l", "--format=%(contents:body)", tag))
        jsonschema.validate(record, json.loads(read_schema("stage")))


def test_a_rollback_goes_further_back_each_time(registry: Registry) -> None:
    for version in ("v1.0.0", "v1.1.0", "v1.2.0"):
        promote(registry, version)
    back = [api.rollback_stage("net", "prod", folder=registry.path).version for _ in range(2)]
    assert back == ["v1.1.0", "v1.0.0"]
    with pytest.raises(NotFoundError, match=r"before v1\.0\.0, which holds it now"):
        api.rollback_stage("net", "prod", folder=registry.path)
    assert api.rollback_stage("net", "prod", "v1.2.0", folder=registry.path).version == "v1.2.0"
    promote(registry, "v1.0.0", "dev")
    with pytest.raises(NotFoundError, match=r"v1\.2\.0: never held dev"):
        api.rollback_stage("net", "dev", "v1.2.0", folder=registry.path)
    assert held(registry) == "v1.2.0"


def test_a_version_without_a_name_is_promoted_and_named_later(registry: Registry) -> None:
    commit = registry.commit(4, 0.95)
    out = registry.run("modelver", "promote", "net", "4", "prod")
    assert "net#prod: 4 holds it" in out.stdout
    assert f"modelver tag net {commit[:8]} --bump auto" in out.stderr
    registry.modelver("tag", "net", commit[:8], "--bump", "auto")
    assert held(registry) == "v1.3.0"
    assert "git push origin net@v1.3.0 'net#dev#2'" in registry.run("modelver", "promote", "net", "4", "dev").stderr
    promote(registry, "#prod", "live", push=True)  # the version's own tag goes along
    assert "net@v1.3.0" in registry.on_origin()
    registry.modelver("rollback", "net", "@v1.0.0")
    assert registry.md5(MODEL) == api.show("net@1", folder=registry.path).metadata.md5
    api.rollback("net#live", folder=registry.path)
    assert registry.md5(MODEL) == api.show("net@4", folder=registry.path).metadata.md5


def test_a_version_tag_that_is_another_one_on_the_remote_is_not_sent(registry: Registry) -> None:
    bob = registry.clone("Bob")
    commit = registry.commit(4, 0.95)
    registry.git("push", "-q", "origin", "main", MODELVER_SKIP="1")
    bob.git("pull", "-q")
    api.tag("net", "v1.3.0", push=True, folder=registry.path)
    api.tag("net", "v1.3.0", commit, folder=bob.path)
    with pytest.raises(RefusedError, match=r"net@v1\.3\.0: origin has another tag of that name"):
        promote(bob, "4", push=True)
    assert bob.tags("net#*") == registry.on_origin("net#*") == []


def test_a_clone_without_tags_decides_nothing(registry: Registry) -> None:
    promote(registry, "v1.0.0", push=True)
    origin = f"file://{registry.folder / 'origin.git'}"
    registry.run("git", "clone", "-q", "--depth", "1", "--no-tags", origin, str(registry.folder / "ci"))
    box = Registry(registry.folder / "ci")
    box.git("config", "--unset", "remote.origin.tagOpt")  # as a checkout in CI leaves it
    for command in (["check", "--stage", "prod", "net"], ["promote", "net", "3", "prod"], ["demote", "net", "prod"],
                    ["tag", "net", "--bump", "auto"]):  # fmt: skip
        done = box.run("modelver", *command, ok=False)
        assert (done.returncode, done.stdout) == (2, ""), command
        assert "this clone has no net#prod#1, net@v1.0.0, net@v1.1.0 and 1 more, which origin has" in done.stderr
        assert "hint: git fetch --tags origin" in done.stderr
    assert "this clone has no tags" in box.run("modelver", "stages").stderr
    assert box.tags() == []
    box.git("remote", "set-url", "origin", "../nowhere.git")
    assert "this clone has no tags, and origin: cannot be asked" in box.modelver(
        "check", "--stage", "prod", "net", ok=False
    )
    box.git("remote", "set-url", "origin", origin)
    box.git("fetch", "-q", "--tags", "origin")
    box.modelver("check", "--stage", "prod", "net")
    assert promote(box, "v1.2.0", "prod") == ("net#prod#2",)


@pytest.fixture
def utc() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("utc")
def test_who_was_in_production_on_a_day(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, when in (
        ("v1.0.0", "2026-05-01T08:00"),
        ("v1.1.0", "2026-05-03T12:00"),
        ("v1.2.0", "2026-05-03T18:00"),
    ):
        monkeypatch.setenv("GIT_COMMITTER_DATE", f"{when}:00+00:00")
        promote(registry, version)
    monkeypatch.setenv("GIT_COMMITTER_DATE", f"{date.today() - timedelta(days=2)}T00:00:00+00:00")
    api.demote("net", "prod", folder=registry.path)

    def on(when: str) -> list[str]:
        return [t.version for t in api.stages("net", on=when, folder=registry.path)]

    assert on("2026-04-30") == []
    assert on("2026-05-01") == on("2026-05-02") == ["v1.0.0"]
    assert on("2026-05-03") == ["v1.2.0", "v1.1.0", "v1.0.0"]
    assert on("2026-05-03T12:00") == on("2026-05-03T17:59:59+00:00") == ["v1.1.0"]
    assert on("2026-05-03T18:30+02:00") == ["v1.1.0"]
    assert on("2026-05-04") == ["v1.2.0"]
    assert on("yesterday") == on("today") == []
    shown = json.loads(registry.modelver("stages", "--on", "2026-05-02", "--json"))
    assert shown["schema"] == "modelver.stages/1"
    assert [(s["model"], s["version"], s["until"][:10]) for s in shown["stages"]] == [("net", "v1.0.0", "2026-05-03")]
    for bad in ("2026-13-01", "noon", "", "2026-05-03T99:00", "9" * 10_000):
        with pytest.raises(UsageError, match="not a time"):
            on(bad)


def test_of_two_who_promote_at_once_one_wins(registry: Registry) -> None:
    bob = registry.clone("Bob")
    # Ada is faster: her promotion arrives after Bob has looked at the remote and before his own push gets there.
    hook = bob.path / ".git/hooks/pre-push"
    hook.rename(bob.path / ".git/hooks/pre-push.ours")
    ada = f"cd '{registry.path}' && env -u GIT_DIR modelver promote net v1.1.0 prod --push --reason 'Ada was here'"
    hook.write_text(f"#!/bin/sh\nmv .git/hooks/pre-push.ours .git/hooks/pre-push\n({ada}) >&2\n")
    hook.chmod(0o755)
    done = bob.run("modelver", "promote", "net", "v1.2.0", "prod", "--push", ok=False)
    assert done.returncode == 1, done.stderr
    assert "net#prod#1: Ada was first, on 20" in done.stderr
    assert "Promote net v1.1.0 to prod" in done.stderr
    assert registry.on_origin("net#*") == bob.tags("net#*") == ["net#prod#1"]
    assert held(bob) == held(registry) == "v1.1.0"
    assert "net#" not in bob.modelver("status")
    assert promote(bob, "v1.2.0", push=True) == ("net#prod#2",)
    assert registry.on_origin("net#*") == ["net#prod#1", "net#prod#2"]


def test_many_in_one_clone_each_get_a_counter(registry: Registry) -> None:
    def start(stage: str) -> subprocess.Popen[bytes]:
        program = "import sys; from dvc_modelver.cli import main; sys.exit(main())"
        command = [sys.executable, "-P", "-c", program, "promote", "net", "v1.0.0", stage, "--push"]
        return subprocess.Popen(command, cwd=registry.path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)

    running = [start(stage) for stage in ("a", "b", "c")]
    said = [p.communicate()[1].decode() for p in running]
    assert [p.returncode for p in running] == [0, 0, 0], said
    counters = [tag.split("#")[2] for tag in registry.tags("net#*")]
    assert sorted(counters) == ["1", "2", "3"]  # those of one clone wait for each other
    assert registry.on_origin("net#*") == registry.tags("net#*")


def test_a_promotion_that_was_not_pushed_and_came_too_late_is_found(registry: Registry) -> None:
    bob = registry.clone("Bob")
    promote(bob, "v1.0.0")  # here alone
    promote(registry, "v1.1.0", push=True)
    with pytest.raises(RefusedError, match="another tag of that name"):
        promote(bob, "v1.2.0", push=True)
    assert bob.tags("net#*") == ["net#prod#1"]
    assert "clobber" in bob.git("fetch", "--tags", ok=False)
    assert "refused  net#prod#1  (origin has another tag of that name" in bob.modelver("status")
    with pytest.raises(RefusedError, match="net#prod#1: origin has another tag of that name"):
        api.demote("net", "prod", folder=bob.path)
    assert "rejected" in bob.git("push", "origin", "net#prod#1", ok=False)
    assert "refused  net#prod#1  (origin has another tag of that name" in bob.modelver("status")
    bob.git("tag", "-d", "net#prod#1")
    bob.git("fetch", "-q", "--tags")
    assert held(bob) == "v1.1.0"
    assert "net#" not in bob.modelver("status")


def test_status_names_tags_that_are_only_here(registry: Registry) -> None:
    promote(registry, "v1.0.0")
    promote(registry, "v1.1.0", "staging")
    assert "unpushed  net#prod#1  (this tag is only here; git push origin 'net#prod#1')" in registry.modelver("status")

    def unpushed() -> list[str]:
        return [s.path for s in api.status(registry.path) if s.state == "unpushed"]

    registry.git("push", "-q", "origin", "net#prod#1")
    assert unpushed() == ["net#staging#2"]
    promote(registry, "v1.2.0", push=True)  # what was not pushed goes along
    assert unpushed() == []
    assert len(registry.on_origin("net#*")) == 3
    linked = registry.folder / "linked"
    registry.git("worktree", "add", "-q", str(linked))
    promote(Registry(linked), "v1.0.0", "dev")
    assert unpushed() == ["net#dev#4"]
    registry.git("tag", "-d", "net#dev#4")
    assert unpushed() == []


def test_a_push_takes_the_weights_along_or_leaves_no_tag(registry: Registry) -> None:
    registry.git("switch", "-q", "-c", "side")
    registry.commit(4, 0.95)
    md5 = registry.md5(MODEL)
    remote = registry.folder / "remote"
    os.rename(remote, registry.folder / "away")
    remote.write_text("not a folder")
    with pytest.raises(EnvironmentFailed, match="not pushed"):
        promote(registry, "4", push=True)
    assert registry.tags("net#*") == []
    remote.unlink()
    os.rename(registry.folder / "away", remote)
    registry.modelver("promote", "net", "4", "prod", "--push")
    assert (remote / "files/md5" / md5[:2] / md5[2:]).exists()
    assert registry.on_origin("net#*") == ["net#prod#1"]
    registry.git("remote", "set-url", "origin", "../nowhere.git")
    with pytest.raises(EnvironmentFailed, match="cannot be fetched from"):
        promote(registry, "v1.0.0", push=True)
    registry.git("remote", "remove", "origin")
    with pytest.raises(UsageError, match="there is no Git remote"):
        promote(registry, "v1.0.0", push=True)
    assert registry.tags("net#*") == ["net#prod#1"]


def test_tags_of_gto_are_read_and_followed(registry: Registry) -> None:
    registry.git("config", "user.name", "Ada")
    registry.git("config", "user.email", "ada@example.org")
    registry.run("gto", "assign", "net", "--version", "v1.0.0", "--stage", "prod")
    assert held(registry) == "v1.0.0"
    assert promote(registry, "v1.1.0") == ("net#prod#2",)
    assert held(registry) == "v1.1.0"  # in the same second, so dated a second later
    (made,) = [tag for tag in read_tags(Git(registry.path), "net") if tag.tag == "net#prod#2"]
    while time.time() < made.time + 1:  # GTO takes the time as it is
        time.sleep(0.05)
    registry.run("gto", "deprecate", "net", "v1.1.0", "prod")
    assert held(registry) == "v1.0.0"  # to GTO it was never taken out
    registry.run("gto", "assign", "net", "--version", "v1.2.0", "--stage", "live", "--simple", "true")
    assert held(registry, "live") == "v1.2.0"
    registry.run("gto", "deprecate", "net", "v1.2.0")
    assert "v1.2.0" not in registry.modelver("list")


def test_dvc_gets_what_a_stage_holds(registry: Registry) -> None:
    registry.record("named", name="net")
    registry.commit(4, 0.94)
    registry.commit(5, 0.95)
    for version in ("4", "5"):
        promote(registry, version)
    api.rollback_stage("net", "prod", folder=registry.path)
    got = registry.folder / "got.safetensors"
    api.push(folder=registry.path)
    registry.dvc("artifacts", "get", ".", "net", "--stage", "prod", "-o", str(got))
    assert md5_of(got) == api.show("net@4", folder=registry.path).metadata.md5


def test_history_follows_from_tags_alone() -> None:
    def tag(n: int, commit: str, *, on: bool = True, action: str = "promote") -> ModelTag:
        message = f'x\n\n{{\n"action": "{action}", "number": {commit}\n}}'
        return ModelTag(f"n#p#{n}", "n", "", "p", n, on, commit, date=str(n), time=n, message=message)

    def flow(*tags: ModelTag) -> list[tuple[str, int, int | None]]:
        return [(t.version, t.start, t.end) for t in tenures(tags)]

    one, two, three = tag(1, "1"), tag(2, "2"), tag(3, "3")
    assert flow(one, two) == [("1", 1, 2), ("2", 2, None)]
    assert flow(one, two, tag(3, "2", on=False)) == [("1", 1, 2), ("2", 2, 3), ("1", 3, None)]
    assert flow(one, tag(2, "1", on=False), tag(3, "2")) == [("1", 1, 2), ("2", 3, None)]
    assert flow(one, two, tag(3, "1", on=False)) == [("1", 1, 2), ("2", 2, None)]
    assert flow(one, tag(2, "1")) == [("1", 1, None)]
    assert stage_holder([one, two, tag(3, "1", on=False), tag(4, "2", on=False)], "p") is None

    def before(*tags: ModelTag) -> str | None:
        found = held_before(tags, "p")
        return found.commit if found is not None else None

    assert before() is before(one) is None
    assert before(one, two, three) == "2"
    assert before(one, two, three, tag(4, "2", action="rollback")) == "1"
    assert before(one, two, three, tag(4, "2", action="rollback"), tag(5, "3")) == "2"
    assert before(one, two, tag(3, "1")) == "2"  # promoted again is no rollback
    assert before(one, two, tag(3, "2", on=False), tag(4, "1", on=False)) == "2"
    assert before(one, two, tag(3, "2", on=False)) is None  # GTO gave it back to 1


def test_messages_of_others_are_no_records() -> None:
    for message in (
        "",
        "x",
        "{",
        "x\n\n{\n",
        "x\n\n{\n]",
        "x\n{\n" + "[" * 100_000,
        'a\n{\n"action": 1}\n{\n}',
        "[\n]",
    ):
        tag = ModelTag("n#p#1", "n", "", "p", 1, True, "0" * 40, message=message)
        assert tag.record == {}
        assert tenures([tag])[0].how == "assign"


def test_the_place_for_scripts_is_the_python_api(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    import dvc_modelver as modelver

    monkeypatch.chdir(registry.path)
    for _ in range(2):  # an imported module of the same name must not take its place
        assert modelver.stages() == []
    (registry.path / "sub").mkdir()
    monkeypatch.chdir(registry.path / "sub")
    assert modelver.promote(str(Path("..") / MODEL), "3", "prod").tags == ("net#prod#1",)
