"""Version tags: the level follows from the measured change; signed ones are checked; odd words are refused or safe."""

from __future__ import annotations

import json
import os
import pty
import sys
from itertools import pairwise

import numpy as np
import pytest
from gto.tag import parse_name
from safetensors.numpy import load_file, save_file

from dvc_modelver import api
from dvc_modelver.errors import EnvironmentFailed, ModelverError, RefusedError, UsageError
from dvc_modelver.git.porcelain import Git
from dvc_modelver.registry.tags import ModelTag, create_tag, read_tags, version_key, versions_of
from tests.registry.registry import MODEL, Registry
from tests.sandbox import Weights

# The level of --bump auto


def commit_weights(box: Registry, weights: Weights, **header: str) -> None:
    (box.path / MODEL).unlink()
    save_file(weights, box.path / MODEL, metadata=header or None)
    box.record("new weights")


def test_the_level_follows_from_the_measured_change(registry: Registry) -> None:
    box = registry

    def bump() -> tuple[str, str, str]:
        made = api.tag("net", bump="auto", folder=box.path)
        return made.tag.partition("@")[2], made.level, made.reason

    box.git("commit", "-q", "--allow-empty", "-m", "nothing")
    with pytest.raises(RefusedError, match=r"nothing changed since net@v1\.2\.0"):
        bump()
    weights: Weights = {name: np.asarray(value) for name, value in load_file(box.path / MODEL).items()}
    commit_weights(box, {name: value * np.float32(1.01) for name, value in weights.items()})
    version, level, reason = bump()
    assert (version, level) == ("v1.3.0", "minor")
    assert reason == "scaled: all 10 tensors kept their direction and changed their norm; relative L2 0.01; cosine 1"
    api.refresh("net", metrics={"test_acc": 0.5}, folder=box.path)
    box.git("commit", "-q", "-am", "measured again", MODELVER_SKIP="1")
    assert bump() == ("v1.3.1", "patch", "same weights, other metadata")
    wider = dict(load_file(box.path / MODEL)) | {"head.weight": np.ones((12, 16), np.float32)}
    commit_weights(box, wider)
    version, level, reason = bump()
    assert (version, level) == ("v2.0.0", "major")
    assert "1 of another shape" in reason
    commit_weights(box, wider, note="around them")
    version, level, reason = bump()
    assert (version, level) == ("v2.0.1", "patch")
    commit_weights(box, {name: value.astype(np.float16) for name, value in wider.items()})
    assert bump()[:2] == ("v2.1.0", "minor")  # a cast that rounds
    record = json.loads(box.git("tag", "-l", "--format=%(contents:body)", "net@v2.0.0"))
    assert (record["level"], record["since"], "another shape" in record["reason"]) == ("major", "net@v1.3.1", True)
    half = dict(load_file(box.path / MODEL))
    commit_weights(box, {name: value.astype(np.float32) for name, value in half.items()})
    assert bump()[:2] == ("v2.1.1", "patch")  # one that loses nothing
    api.mv("net", str(box.path / "models/other.safetensors"), folder=box.path)
    box.git("commit", "-q", "-m", "moved", MODELVER_SKIP="1")
    with pytest.raises(RefusedError, match=r"models/other.safetensors: nothing changed since net@v2\.1\.1"):
        bump()


def test_it_asks_on_a_terminal_and_goes_on_without_one(registry: Registry) -> None:
    registry.commit(4, 0.95)
    program = "import sys; from dvc_modelver.cli import main; sys.exit(main())"
    command = [sys.executable, "-P", "-c", program, "tag", "net", "--bump", "auto"]

    def on_terminal(answer: bytes) -> tuple[int, str]:
        pid, fd = pty.fork()
        if pid == 0:
            os.chdir(registry.path)
            os.execv(command[0], command)
        said = b""
        while b"?" not in said.rpartition(b"tag ")[2] or b"]" not in said.rpartition(b"?")[2]:
            said += os.read(fd, 1000)
        os.write(fd, answer)
        try:
            while piece := os.read(fd, 1000):
                said += piece
        except OSError:  # the terminal is gone
            pass
        os.close(fd)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said.decode()

    code, said = on_terminal(b"n\n")
    assert code == 1
    assert "minor since net@v1.2.0: retrained: same architecture, cosine " in said
    assert "net@v1.3.0: not made" in said
    assert "net@v1.3.0" not in registry.tags()
    assert on_terminal(b"y\n")[0] == 0
    assert "net@v1.3.0" in registry.tags()
    registry.commit(5, 0.95)
    done = registry.run("modelver", "tag", "net", "--bump", "auto", "--yes")
    assert "not asked" not in done.stderr
    assert "net@v1.4.0 at " in done.stdout
    registry.commit(6, 0.95)
    done = registry.run("modelver", "tag", "net", "--bump", "auto", "--json")
    assert "not a terminal, so not asked" in done.stderr
    document = json.loads(done.stdout)
    assert (document["schema"], document["tag"], document["level"]) == ("modelver.tagged/1", "net@v1.5.0", "minor")


def test_an_older_commit_may_have_a_version_and_is_warned_of(registry: Registry) -> None:
    registry.git("tag", "-d", "net@v1.1.0")
    said: list[str] = []
    api.tag("net", "v1.0.5", "net@v1.2.0~1", say=said.append, folder=registry.path)
    assert said[0].endswith(
        f"is older than net@v1.2.0 ({registry.git('rev-parse', 'net@v1.2.0^{}')[:8]}), the highest version so far"
    )
    assert [t.version for t in versions_of(read_tags(Git(registry.path), "net"))] == ["v1.0.0", "v1.0.5", "v1.2.0"]
    with pytest.raises(UsageError, match="expected the model's name alone") as caught:
        api.tag("net@v1.0.5", "v1.0.6", folder=registry.path)
    assert (
        caught.value.hint
        == f"modelver tag net v1.0.6 {registry.git('rev-parse', '--short=8', 'net@v1.0.5^{}').strip()}"
    )


def test_of_two_versions_pushed_at_once_one_wins(registry: Registry) -> None:
    bob = registry.clone("Bob")
    for box, text in ((bob, "Bob's"), (registry, "Ada's")):
        box.git("commit", "-q", "--allow-empty", "-m", text)
    registry.modelver("tag", "net", "v3.0.0", "--push")
    with pytest.raises(UsageError, match="already"):
        api.tag("net", "v3.0.0", push=True, folder=bob.path)
    bob.git("tag", "-d", "net@v3.0.0")
    bob.git("tag", "-a", "-m", "mine", "net@v3.0.0")
    with pytest.raises(
        RefusedError, match=r"origin has a tag of that name already \(Ada pushed it on .*: net v3\.0\.0"
    ):
        from dvc_modelver.api.tags import share
        from dvc_modelver.repository import Repository

        share(Repository.open(bob.path), "origin", "net@v3.0.0")
    assert bob.git("rev-parse", "net@v3.0.0") == registry.git("rev-parse", "net@v3.0.0")


# Signatures


@pytest.fixture
def signing(registry: Registry) -> Registry:
    """A registry whose user has an SSH key, known to nobody yet."""
    key = registry.folder / "key"
    registry.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ada", "-f", str(key))
    registry.git("config", "gpg.format", "ssh")
    registry.git("config", "user.signingKey", f"{key}.pub")
    return registry


def test_signed_tags_are_checked(signing: Registry) -> None:
    box = signing
    box.modelver("promote", "net", "v1.2.0", "prod", "--sign", "--reason", "signed\n-----BEGIN SSH SIGNATURE-----\nx")
    box.git("config", "tag.gpgSign", "true")
    box.git("commit", "-q", "--allow-empty", "-m", "x")
    box.modelver("tag", "net", "v2.0.0")
    box.git("config", "tag.gpgSign", "false")
    box.modelver("promote", "net", "v1.0.0", "prod")
    tags = {tag.tag: tag for tag in read_tags(Git(box.path), "net")}
    assert {name for name, tag in tags.items() if tag.signed} == {"net#prod#1", "net@v2.0.0"}
    assert tags["net#prod#1"].record["reason"] == "signed\n-----BEGIN SSH SIGNATURE-----\nx"

    def states(reference: str = "net@3") -> dict[str, str]:
        shown = api.show(reference, folder=box.path)
        return {one.tag: f"{one.state} {one.signer}".strip() for one in shown.signatures}

    assert states() == {"net#prod#1": "unknown", "net@v2.0.0": "unknown"}  # no key is known
    allowed = box.folder / "allowed"
    box.git("config", "gpg.ssh.allowedSignersFile", str(allowed))
    allowed.write_text("")
    assert set(states().values()) == {"unknown"}
    allowed.write_text(f"ada@example.org {(box.folder / 'key.pub').read_text()}")
    assert states() == {"net#prod#1": "good ada@example.org", "net@v2.0.0": "good ada@example.org"}
    forged = box.git("cat-file", "tag", "net@v2.0.0").replace("net v2.0.0", "net v9.0.0")
    oid = box.run("git", "hash-object", "-t", "tag", "-w", "--stdin", stdin=forged).stdout.strip()
    box.git("update-ref", "refs/tags/net@v2.0.0", oid)
    assert states()["net@v2.0.0"] == "bad"
    shown = box.modelver("show", "net@3")
    assert "signature    net@v2.0.0: bad" in shown
    assert "signature    net#prod#1: good ada@example.org" in shown
    document = json.loads(box.modelver("show", "net@3", "--json"))
    assert {one["tag"]: one["state"] for one in document["signatures"]} == {"net#prod#1": "good", "net@v2.0.0": "bad"}
    assert "net#prod#1" in box.run("gto", "history", "net", "--json").stdout


def test_a_tag_that_cannot_be_signed_is_not_made(signing: Registry) -> None:
    (signing.folder / "key").unlink()
    (signing.folder / "key.pub").unlink()
    before = signing.tags()
    for act in (
        lambda: api.promote("net", "v1.0.0", "prod", sign=True, folder=signing.path),
        lambda: api.tag("net", "v3.0.0", "HEAD", sign=True, folder=signing.path),
    ):
        signing.git("commit", "-q", "--allow-empty", "-m", "x")
        with pytest.raises(EnvironmentFailed, match="could not sign"):
            act()
    assert signing.tags() == before


# Words

HOSTILE = (
    "", " ", "-", "--help", "-d", "a b", "a;touch pwned", "$(touch pwned)", "`touch pwned`", "a|b", "a&b", "a'b", 'a"b', "a\nb",
    "a\tb", "a\\b", "../up", "a..b", "a.lock", "a~1", "a^", "a:b", "a?b", "a*", "a[b", "@{0}", "a@{", "ü", "模型", "a\u202eb",
    "a#b", "a!", "/a", "a/", "a//b", "a" * 10_000, "é" * 10_000, "\udcff",
)  # fmt: skip


@pytest.mark.parametrize("word", HOSTILE, ids=lambda w: ascii(w)[:24])
def test_odd_names_stages_and_reasons_are_refused_or_safe(registry_once: Registry, word: str) -> None:
    box = registry_once
    for act in (
        lambda: api.promote("net", "v1.0.0", word, folder=box.path),
        lambda: api.promote(word, "v1.0.0", "prod", folder=box.path),
        lambda: api.promote("net", word, "prod", folder=box.path),
        lambda: api.demote("net", word, folder=box.path),
        lambda: api.demote(word, "prod", folder=box.path),
        lambda: api.rollback_stage("net", word, folder=box.path),
        lambda: api.check_stage_of(f"net@{word}" if word else "net@x", "prod", folder=box.path),
        lambda: api.check_stage_of("net", word, folder=box.path),
        lambda: api.tag("net", word, folder=box.path),
        lambda: api.tag("net", f"v2.0.0{word or '?'}", folder=box.path),
        lambda: api.tag("net", bump=word, folder=box.path),
        lambda: api.tag(word, "v2.0.0", folder=box.path),
    ):
        before = box.git("for-each-ref")
        try:
            act()
        except ModelverError as err:
            assert err.exit_code in (1, 2)
            assert before == box.git("for-each-ref")
        else:
            box.run("gto", "show", "net")  # was taken, so everybody must read it
    assert not list(box.folder.rglob("pwned"))


@pytest.fixture(scope="module")
def kept() -> list[Registry]:
    return []


@pytest.fixture
def registry_once(kept: list[Registry], request: pytest.FixtureRequest) -> Registry:
    """One registry for all of these words, since almost none of them changes anything."""
    if not kept:
        kept.append(request.getfixturevalue("registry"))
    return kept[0]


REASONS = (
    "-m", "--force", "$(touch pwned)", "a\nb\n\n{\n}\n", "# no comment", "ü模型\u202e", "x" * 10_000, "\x1b[31m",
    "-----BEGIN PGP SIGNATURE-----\n\nx\n-----END PGP SIGNATURE-----",
)  # fmt: skip


def test_a_reason_comes_back_as_it_was_given(registry: Registry) -> None:
    for n, reason in enumerate(REASONS):
        api.promote("net", ("v1.0.0", "v1.1.0")[n % 2], "prod", reason=reason, folder=registry.path)
    tags = [tag for tag in read_tags(Git(registry.path), "net") if tag.stage]
    assert [tag.record["reason"] for tag in tags] == [reason.strip() for reason in REASONS]
    assert not any(tag.signed for tag in tags)
    history = registry.run("gto", "history", "net", "--json").stdout
    assert all(f'"{tag.tag}"' in history for tag in tags)
    registry.modelver("promote", "net", "v1.2.0", "prod", "--reason", "--force")
    shown = registry.modelver("stages", "net", "--all")
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == 2 + len(REASONS)


def test_a_reason_too_long_or_in_no_encoding_is_refused(registry_once: Registry) -> None:
    for reason in ("x" * 30_000, "\udcff"):
        with pytest.raises(UsageError, match="--reason: "):
            api.promote("net", "v1.2.0", "prod", reason=reason, folder=registry_once.path)


def test_tags_of_anybody_break_nothing(registry: Registry) -> None:
    git = Git(registry.path)
    blob = registry.run("git", "hash-object", "-w", "--stdin", stdin="x").stdout.strip()
    registry.git("tag", "-a", "-m", "a blob", "net@v7.0.0", blob)
    registry.git("tag", "-a", "-m", "a tree", "net#prod#5", "HEAD^{tree}")
    registry.git("tag", "net@v8.0.0")  # no annotated one
    registry.git("tag", "net#prod#9")
    for name in (
        "net@v1",
        "net@1.0.0",
        "net@v1.0.0.0",
        "net@v01.0.0",
        "net#prod#x",
        "net#prod.x#1",
        "@v1.0.0",
        f"net@v{'9' * 120}.0.0",
    ):
        registry.git("tag", "-a", "-m", "x", name)
    registry.git("tag", "-a", "-m", "{\n" + "[" * 50_000, "net#dev#3", "net@v1.0.0^{}")
    assert [t.tag for t in read_tags(git, "net") if t.tag not in ("net@v1.0.0", "net@v1.1.0", "net@v1.2.0")] == [
        "net#dev#3"
    ]
    assert api.promote("net", "v1.1.0", "prod", folder=registry.path).tags == ("net#prod#10",)  # no counter twice
    assert "dev" in registry.modelver("stages")


@pytest.mark.parametrize(
    "name",
    ["net@v1.2.3", "net@v1.2.3!", "net@v1.2.3!#4", "net@v1.2.3-rc.1+b.5", "net@v1.2.3-01", "net@v01.2.3", "net@1.2.3", "net#prod",
     "net#prod#1", "net#prod!#2", "net#prod!", "net#a/b-c_d#1", "net#a/#1", "net##1", "net#prod#", "net#prod#x", "a/b=net@v1.0.0",
     "a.b/c=net#prod#12", "a b=net@v1.0.0", "=net@v1.0.0", "n.t@v1.0.0", "-n@v1.0.0", "n-@v1.0.0", "net", "net@", "net@latest",
     "NET_1/x#S#0", "net#prod#1#2", "net@v1.0.0#prod", "nét@v1.0.0", "net#pröd#1"],
)  # fmt: skip
def test_the_grammar_is_gtos(name: str) -> None:
    from dvc_modelver.registry.tags import _TAG

    theirs, ours = parse_name(name, raise_on_fail=False), _TAG.fullmatch(name)
    assert bool(ours) == bool(theirs)
    if ours is not None:
        assert ours["name"].replace("=", ":") == theirs["name"]
        assert (ours["version"], ours["stage"]) == (theirs.get("version"), theirs.get("stage"))
        assert int(ours["counter"] or 0) == theirs.get("counter", 0)
        assert bool(ours["off"]) == (theirs["action"].value in ("deregister", "unassign"))


def test_versions_are_in_the_order_of_semver() -> None:
    order = ["v1.0.0-alpha", "v1.0.0-alpha.1", "v1.0.0-alpha.beta", "v1.0.0-beta", "v1.0.0-beta.2", "v1.0.0-beta.11",
             "v1.0.0-rc.1", "v1.0.0", "v1.0.1-0", "v1.0.1", "v1.2.0", "v1.10.0", "v2.0.0"]  # fmt: skip
    keys = [version_key(version) for version in order]
    assert all(lower < higher for lower, higher in pairwise(keys))


def test_stage_tags_of_one_second_have_an_order(registry: Registry) -> None:
    git = Git(registry.path)
    create_tag(git, "net#prod#1", "HEAD", "later", {}, sign=False, after=4_000_000_000)
    (tag,) = [t for t in read_tags(git, "net") if t.stage]
    assert isinstance(tag, ModelTag)
    assert tag.time == 4_000_000_001
    done = registry.run("modelver", "promote", "net", "v1.0.0", "prod")
    assert "lies in the future" in done.stderr
    held = api.stages("net", on="2096-10-03", folder=registry.path)
    assert [t.version for t in held] == ["v1.0.0"]
