"""Our hooks beside those of others: each still runs, with its input and exit code, and uninstall gives it back."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from dvc_modelver.git.hooks import HOOKS, install_hooks, uninstall_hooks
from dvc_modelver.git.layout import find_layout
from dvc_modelver.resources import START
from tests.sandbox import Sandbox

MODEL = "models/net.safetensors"
PROJECT = Path(__file__).resolve().parents[2]
SH = '#!/bin/sh\nprintf "%s:%s:" {name} "$*" >>"$LOG"\ncase {name} in pre-push|post-rewrite) tr "\\n" " " >>"$LOG" ;; esac\necho >>"$LOG"\n'
PYTHON = f"""#!{sys.executable}
import os, sys
given = sys.stdin.read().replace("\\n", " ") if "{{name}}" in ("pre-push", "post-rewrite") else ""
with open(os.environ["LOG"], "a") as log:
    log.write("{{name}}:" + " ".join(sys.argv[1:]) + ":" + given + "\\n")
"""
LIVELY = ("pre-commit", "commit-msg", "prepare-commit-msg", "post-commit", "post-checkout", "post-merge",
          "post-rewrite", "pre-merge-commit", "pre-push", "pre-rebase", "post-applypatch")  # fmt: skip


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """A Git + DVC repository without anything of ours, whose clock stands still."""
    monkeypatch.setenv("GIT_AUTHOR_DATE", "2024-01-01T00:00:00Z")
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2024-01-01T00:00:00Z")
    box = Sandbox(tmp_path / "work")
    box.path.mkdir()
    box.run("git", "init", "-q", "--bare", "../origin.git")
    box.git("init", "-q")
    (box.path / ".dvc").mkdir()
    box.write(".dvc/config", "")
    box.write(".dvc/.gitignore", "/config.local\n/tmp\n/cache\n")
    box.git("remote", "add", "origin", "../origin.git")
    return box


def write_hooks(folder: Path, text: str, names: tuple[str, ...] = LIVELY) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(text.format(name=name))
        (folder / name).chmod(0o755)


def state_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Give the content and mode of every file in a folder."""
    return {
        str(p.relative_to(folder)): (p.read_bytes(), stat.S_IMODE(p.stat().st_mode))
        for p in folder.rglob("*")
        if p.is_file()
    }


def live(box: Sandbox, log: Path) -> list[str]:
    """Use Git for a while; give what the user's hooks wrote."""
    log.unlink(missing_ok=True)
    script = """
        set -e
        echo 1 >a; git add .; git commit -q -m one; git push -q -u origin HEAD
        git switch -q -c side; echo 2 >b; git add .; git commit -q -m two
        git switch -q -; echo 3 >c; git add .; git commit -q -m three; git merge -q --no-edit side
        git commit -q --amend -m merged; git switch -q side; git rebase -q main; echo 4 >d; git add .
        git commit -q -m four; git format-patch -q -1 -o ../patches; git reset -q --hard HEAD~1; git am -q ../patches/*
        git push -q origin HEAD:main; git checkout -q main
    """
    box.run("sh", "-c", script, env={"LOG": str(log), "GIT_EDITOR": ":"})
    return log.read_text().splitlines()


@pytest.mark.parametrize("text", [SH, PYTHON], ids=["sh", "python"])
@pytest.mark.parametrize("folder", [".git/hooks", ".husky"])
def test_hooks_of_the_user_run_as_without_us(plain: Sandbox, tmp_path: Path, text: str, folder: str) -> None:
    write_hooks(plain.path / folder, text)
    if folder == ".husky":
        plain.git("config", "core.hooksPath", folder)
    shutil.copytree(plain.path, tmp_path / "other/work")
    plain.run("git", "init", "-q", "--bare", "../other/origin.git")
    wanted = live(Sandbox(tmp_path / "other/work"), tmp_path / "log")
    assert len({line.partition(":")[0] for line in wanted}) == len(LIVELY)
    before, config = state_of(plain.path / folder), (plain.path / ".git/config").read_bytes()
    plain.modelver("install", "--no-fsmonitor")
    (plain.path / ".gitattributes").unlink()
    shutil.rmtree(tmp_path / "patches", ignore_errors=True)
    found = live(plain, tmp_path / "log")
    assert [line.split(":")[0] for line in found] == [line.split(":")[0] for line in wanted]
    assert found == wanted
    plain.modelver("uninstall")
    assert state_of(plain.path / folder) == before
    lines = set((plain.path / ".git/config").read_bytes().splitlines())
    assert set(config.splitlines()) <= lines
    assert b"modelver" not in b"".join(lines)


def test_a_failing_hook_of_the_user_stops_the_command(plain: Sandbox) -> None:
    write_hooks(
        plain.path / ".git/hooks",
        "#!/bin/sh\necho no: {name} >&2\nexit 7\n",
        ("pre-commit", "pre-push", "post-checkout"),
    )
    plain.modelver("install")
    plain.write("a", "1\n")
    plain.git("add", ".")
    done = plain.run("git", "commit", "-q", "-m", "one", ok=False)
    assert (done.returncode, "no: pre-commit" in done.stderr) == (1, True)
    plain.git("commit", "-q", "--no-verify", "-m", "one")
    assert plain.run("git", "push", "-q", "origin", "HEAD", ok=False).returncode == 1
    assert plain.run("git", "checkout", "-q", "-b", "side", ok=False).returncode == 1  # as without us


def test_models_follow_though_a_hook_of_the_user_fails(sandbox: Sandbox) -> None:
    first = sandbox.train(MODEL, 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    sandbox.train(MODEL, 2)
    sandbox.git("commit", "-q", "-am", "two")
    write_hooks(sandbox.path / ".git/hooks", "#!/bin/sh\nexit 3\n", ("post-checkout.before-modelver",))
    assert sandbox.run("git", "checkout", "-q", "HEAD~1", ok=False).returncode == 1
    assert sandbox.md5(MODEL) == first


# Lines in our files


def test_lines_of_the_user_in_our_hooks_stay_and_run(plain: Sandbox, tmp_path: Path) -> None:
    plain.modelver("install")
    folder = plain.path / ".git/hooks"
    for name in ("post-commit", "pre-push"):
        text = (folder / name).read_text()
        above = text.replace("#!/bin/sh\n", f'#!/bin/sh\necho above {name} >>"$LOG"\n')
        below = f'echo below {name} >>"$LOG"\n' + ('cat >>"$LOG"\n' if name == "pre-push" else "")
        (folder / name).write_text(above + below)
    plain.modelver("install")
    plain.write("a", "1\n")
    plain.git("add", ".")
    plain.git("commit", "-q", "-m", "one", LOG=str(tmp_path / "log"))
    plain.git("push", "-q", "origin", "HEAD:main", LOG=str(tmp_path / "log"))
    head = plain.git("rev-parse", "HEAD").strip()
    assert (tmp_path / "log").read_text().splitlines() == [
        "above post-commit", "below post-commit", "above pre-push", "below pre-push",
        f"HEAD {head} refs/heads/main {'0' * 40}",
    ]  # fmt: skip
    plain.modelver("uninstall")
    left = {p.name: p.read_text() for p in folder.iterdir() if not p.name.endswith(".sample")}
    assert left == {
        "post-commit": '#!/bin/sh\necho above post-commit >>"$LOG"\necho below post-commit >>"$LOG"\n',
        "pre-push": '#!/bin/sh\necho above pre-push >>"$LOG"\necho below pre-push >>"$LOG"\ncat >>"$LOG"\n',
    }


def test_lines_added_beside_an_older_hook_of_the_user_keep_both(plain: Sandbox, tmp_path: Path) -> None:
    folder = plain.path / ".git/hooks"
    write_hooks(folder, PYTHON, ("post-commit",))
    first = (folder / "post-commit").read_bytes()
    plain.modelver("install")
    with (folder / "post-commit").open("a") as file:
        file.write('echo added >>"$LOG"\n')
    plain.modelver("uninstall")
    plain.write("a", "1\n")
    plain.git("add", ".")
    plain.git("commit", "-q", "-m", "one", LOG=str(tmp_path / "log"))
    assert (tmp_path / "log").read_text() == "post-commit::\nadded\n"
    assert first in {p.read_bytes() for p in folder.iterdir()}


def test_a_change_inside_our_block_is_set_aside(plain: Sandbox) -> None:
    plain.modelver("install")
    hook = plain.path / ".git/hooks/post-merge"
    edited = hook.read_text().replace("modelver_run_kept", "echo mine; modelver_run_kept")
    hook.write_text(edited)
    assert "post-merge.edited-1" in plain.modelver("install")
    assert hook.with_name("post-merge.edited-1").read_text() == edited
    assert "echo mine" not in hook.read_text()


@pytest.mark.parametrize("name", ["pre-commit", "post-commit"])
def test_an_older_version_of_ours_is_replaced(plain: Sandbox, name: str) -> None:
    """What the first version wrote, with the user's own hook kept and a line added below."""
    folder = plain.path / ".git/hooks"
    write_hooks(folder, SH, (f"{name}.before-modelver",))
    kept = (folder / f"{name}.before-modelver").read_bytes()
    (folder / name).write_text((PROJECT / "tests/data/hooks-1" / name).read_text() + "echo added\n")
    (folder / name).chmod(0o755)
    plain.modelver("install")
    text = (folder / name).read_text()
    assert "/opt/old" not in text
    assert text.endswith("# dvc-modelver hook: end\necho added\n")
    (folder / name).write_text(text.removesuffix("echo added\n"))
    plain.modelver("uninstall")
    assert (folder / name).read_bytes() == kept


# Twice, from two work trees, killed between


def test_installing_again_and_from_another_work_tree_changes_nothing(plain: Sandbox, tmp_path: Path) -> None:
    write_hooks(plain.path / ".git/hooks", SH, ("pre-commit",))
    plain.modelver("install")
    plain.git("add", ".")
    plain.git("commit", "-q", "-m", "one", LOG=os.devnull)
    before = state_of(plain.path / ".git/hooks")
    plain.git("worktree", "add", "-q", "../tree", LOG=os.devnull)
    Sandbox(tmp_path / "tree").modelver("install")
    plain.modelver("install")
    assert state_of(plain.path / ".git/hooks") == before
    assert Sandbox(tmp_path / "tree").exit_code("doctor") == plain.exit_code("doctor")


@pytest.mark.parametrize("verb", [install_hooks, uninstall_hooks], ids=["install", "uninstall"])
def test_a_kill_between_two_files_loses_no_hook(
    plain: Sandbox, verb: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every rename and link is a place to be killed at; one repeat of the command puts it right."""
    folder = plain.path / ".git/hooks"
    shutil.rmtree(folder)
    write_hooks(folder, SH)
    first = state_of(folder)
    arguments = (find_layout(plain.path), sys.executable)[: 2 if verb is install_hooks else 1]
    steps = 0
    while True:
        shutil.rmtree(folder)
        write_hooks(folder, SH)
        if verb is uninstall_hooks:
            install_hooks(find_layout(plain.path), sys.executable)
        with monkeypatch.context() as patch:
            done = kill_at(patch, steps)
            with suppress(KeyboardInterrupt):
                verb(*arguments)
        contents = [text for text, _ in state_of(folder).values()]
        assert all(text in contents for text, _ in first.values()), f"a hook was lost at step {steps}"
        verb(*arguments)
        install_hooks(find_layout(plain.path), sys.executable)
        uninstall_hooks(find_layout(plain.path))
        left = {name: found for name, found in state_of(folder).items() if not name.startswith(".")}
        assert left == {name: first[name] for name in LIVELY}
        if not done():
            return
        steps += 1


def kill_at(patch: pytest.MonkeyPatch, step: int) -> Callable[[], bool]:
    """Raise at the rename or link of a number; give whether it came to that."""
    count = -1

    def guarded(work: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count == step:
                raise KeyboardInterrupt
            return work(*args, **options)

        return run

    patch.setattr(Path, "replace", guarded(Path.replace))
    patch.setattr(os, "link", guarded(os.link))
    return lambda: count >= step


# Other tools


def test_dvc_install_before_us(plain: Sandbox) -> None:
    plain.dvc("install")
    folder = plain.path / ".git/hooks"
    before = state_of(folder)
    plain.modelver("install")
    plain.write("a", "1\n")
    plain.git("add", ".")
    said = plain.run("git", "commit", "-m", "one", env={"GIT_TRACE": "1"})
    assert "There are no data or pipelines tracked" in said.stdout + said.stderr  # dvc status, by its pre-commit hook
    plain.dvc("remote", "add", "-q", "-d", "store", "../remote")
    plain.write("data.csv", "1\n")
    plain.dvc("add", "-q", "data.csv")
    plain.git("add", ".")
    plain.git("commit", "-q", "-m", "data")
    (plain.path.parent / "remote").mkdir(exist_ok=True)
    said = plain.run("git", "push", "origin", "HEAD")
    assert "1 file pushed" in said.stdout + said.stderr  # dvc push, by its pre-push hook
    plain.modelver("uninstall")
    assert state_of(folder) == before


def test_dvc_install_after_us_touches_nothing(plain: Sandbox) -> None:
    plain.modelver("install")
    before = state_of(plain.path / ".git/hooks")
    assert "already exists" in plain.dvc("install", ok=False)
    assert state_of(plain.path / ".git/hooks") == before


CONFIG = """
repos:
- repo: local
  hooks:
  - {id: note, name: note, language: system, entry: sh -c 'echo framework >>"$LOG"', always_run: true, pass_filenames: false}
"""


def pre_commit(box: Sandbox, *args: str, ok: bool = True) -> str:
    return box.run(
        sys.executable, "-m", "pre_commit", *args, ok=ok, env={"PRE_COMMIT_HOME": str(box.path.parent / "pc")}
    ).stdout


def commit_model(box: Sandbox, seed: int, log: Path) -> list[str]:
    """Commit a retrained model; give what the framework and the user's own hook wrote."""
    log.unlink(missing_ok=True)
    md5 = box.train(MODEL, seed)
    box.git("add", ".")
    box.git("commit", "-q", "-am", str(seed), LOG=str(log), PRE_COMMIT_HOME=str(box.path.parent / "pc"))
    assert f"md5: {md5}" in box.git("show", f"HEAD:{MODEL}.dvc")
    assert MODEL not in box.git("ls-tree", "-r", "--name-only", "HEAD").split()
    return log.read_text().splitlines()


def leave_out(box: Sandbox, seed: int) -> None:
    """Commit another file; the framework puts aside the metadata of the model, which was retrained."""
    md5 = box.train(MODEL, seed)
    box.write("notes.txt", str(seed))
    box.git("add", "notes.txt")
    box.git("commit", "-q", "-m", "not the model", LOG=os.devnull, PRE_COMMIT_HOME=str(box.path.parent / "pc"))
    assert box.git("show", "--name-only", "--format=").split() == ["notes.txt"]
    assert box.md5(MODEL) == box.metadata_md5(MODEL) == md5


def test_a_hook_that_another_tool_wrote_over_is_named(sandbox: Sandbox, tmp_path: Path) -> None:
    folder, log = sandbox.path / ".git/hooks", tmp_path / "log"

    def commit(seed: int, path: str = MODEL) -> str:
        sandbox.train(path, seed)
        sandbox.git("add", ".")
        return sandbox.run("git", "commit", "-q", "-am", str(seed), env={"LOG": str(log)}).stderr

    assert "of modelver is gone" not in commit(1)
    write_hooks(folder, SH, ("pre-commit",))  # as lefthook does when its own file has changed
    sandbox.write("notes.txt", "1")
    sandbox.git("add", "notes.txt")
    assert (
        "of modelver is gone" not in sandbox.run("git", "commit", "-q", "-m", "no model", env={"LOG": str(log)}).stderr
    )
    said = commit(2)
    assert said.count("of modelver is gone") == 1
    assert "the pre-commit hook of modelver is gone (modelver install" in said
    assert "pre-commit hook of modelver is gone" in commit(1, "models/new.safetensors")
    sandbox.git("reset", "-q", "--hard", "HEAD~1")
    (folder / "pre-push").unlink()
    assert commit(3).count("of modelver is gone") == 2
    sandbox.modelver("install")
    log.unlink()
    assert "of modelver is gone" not in commit(4)
    assert log.read_text() == "pre-commit::\n"


@pytest.fixture
def framework(plain: Sandbox) -> Sandbox:
    pytest.importorskip("pre_commit")
    plain.write(".pre-commit-config.yaml", CONFIG)
    plain.git("add", ".")
    plain.git("commit", "-q", "-m", "start")
    return plain


def test_pre_commit_before_us(framework: Sandbox, tmp_path: Path) -> None:
    folder, log = framework.path / ".git/hooks", tmp_path / "log"
    write_hooks(folder, SH, ("pre-commit",))
    pre_commit(framework, "install")
    before = state_of(folder)
    framework.modelver("install")
    assert commit_model(framework, 1, log) == ["pre-commit::", "framework"]
    leave_out(framework, 2)
    framework.modelver("uninstall")
    assert state_of(folder) == before


def test_pre_commit_after_us(framework: Sandbox, tmp_path: Path) -> None:
    folder, log = framework.path / ".git/hooks", tmp_path / "log"
    write_hooks(folder, SH, ("pre-commit",))
    first = (folder / "pre-commit").read_bytes()
    framework.modelver("install")
    pre_commit(framework, "install")
    assert commit_model(framework, 1, log) == ["pre-commit::", "framework"]
    leave_out(framework, 3)
    framework.modelver("install")
    assert "pre-commit" in framework.modelver("doctor", ok=False)
    assert commit_model(framework, 2, log) == ["pre-commit::", "framework"]
    framework.modelver("uninstall")
    assert (folder / "pre-commit.legacy").read_bytes() == first
    assert not [p for p in folder.iterdir() if "modelver" in p.name or b"modelver" in p.read_bytes()]
    pre_commit(framework, "uninstall")
    assert (folder / "pre-commit").read_bytes() == first


def test_pre_commit_before_and_again_after_us_runs_once(framework: Sandbox, tmp_path: Path) -> None:
    folder, log = framework.path / ".git/hooks", tmp_path / "log"
    pre_commit(framework, "install")
    before = state_of(folder)
    framework.modelver("install")
    pre_commit(framework, "install")
    assert commit_model(framework, 1, log) == ["framework"]
    framework.modelver("install")
    assert commit_model(framework, 2, log) == ["framework"]
    framework.modelver("uninstall")
    assert state_of(folder) == before


def test_a_hook_that_replaced_ours_is_left_and_the_older_one_named(plain: Sandbox) -> None:
    folder = plain.path / ".git/hooks"
    write_hooks(folder, SH, ("pre-push",))
    plain.modelver("install")
    (folder / "pre-push").write_text("#!/bin/sh\nexit 0\n")
    said = plain.modelver("install", ok=False)
    assert "expected one of them" in said
    assert "pre-push.before-modelver" in plain.modelver("uninstall")
    assert (folder / "pre-push").read_text() == "#!/bin/sh\nexit 0\n"
    assert (folder / "pre-push.before-modelver").read_text() == SH.format(name="pre-push")


def test_the_hooks_for_pre_commit_are_the_same_checks(framework: Sandbox, tmp_path: Path) -> None:
    """What .pre-commit-hooks.yaml offers, run by the framework itself, with the package that is installed here."""
    offered = yaml.safe_load((PROJECT / ".pre-commit-hooks.yaml").read_text())
    local = [{**hook, "language": "system"} for hook in offered]
    framework.write(".pre-commit-config.yaml", yaml.safe_dump({"repos": [{"repo": "local", "hooks": local}]}))
    framework.dvc("remote", "add", "-q", "-d", "store", "../remote")
    (tmp_path / "remote").mkdir()
    framework.modelver("install", "--no-hooks")
    stages = {stage for hook in offered for stage in hook["stages"]}
    pre_commit(framework, "install", *(f"--hook-type={stage}" for stage in sorted(stages)))
    home = str(tmp_path / "pc")
    md5s = []
    for seed in (1, 2):
        md5s.append(framework.train(MODEL, seed))
        framework.git("add", ".")
        framework.git("commit", "-q", "-am", str(seed), PRE_COMMIT_HOME=home)
        assert f"md5: {md5s[-1]}" in framework.git("show", f"HEAD:{MODEL}.dvc")
    framework.git("push", "-q", "origin", "HEAD:main", PRE_COMMIT_HOME=home)
    assert all((tmp_path / "remote/files/md5" / md5[:2] / md5[2:]).exists() for md5 in md5s)
    framework.git("checkout", "-q", "HEAD~1", PRE_COMMIT_HOME=home)
    assert framework.md5(MODEL) == md5s[0]


needs_lfs = pytest.mark.skipif(shutil.which("git-lfs") is None, reason="git-lfs is not installed")


@needs_lfs
@pytest.mark.parametrize("first", ["lfs", "modelver"])
def test_git_lfs_beside_us(plain: Sandbox, tmp_path: Path, first: str) -> None:
    folder = plain.path / ".git/hooks"
    plain.git("lfs", "install", "--local")
    before = state_of(folder)
    if first == "modelver":
        for name in ("pre-push", "post-checkout", "post-commit", "post-merge"):
            (folder / name).unlink()
        plain.modelver("install")
        assert "Hook already exists" in plain.git("lfs", "install", "--local", ok=False)
        plain.git("lfs", "update", "--force")  # what git-lfs says to run: its hooks replace ours
    plain.modelver("install")
    plain.git("lfs", "track", "*.bin")
    plain.write("big.bin", "x" * 1000)
    plain.train(MODEL, 1)
    plain.dvc("remote", "add", "-q", "-d", "store", "../remote")
    (tmp_path / "remote").mkdir()
    plain.git("add", ".")
    plain.git("commit", "-q", "-m", "both")
    plain.git("push", "-q", "origin", "HEAD:main")
    assert list((tmp_path / "origin.git/lfs/objects").rglob("*")), "git-lfs pushed nothing"
    assert len([p for p in (tmp_path / "remote/files/md5").rglob("*") if p.is_file()]) == 1
    plain.modelver("uninstall")
    assert state_of(folder) == before


# core.hooksPath


def test_hooks_of_a_folder_in_the_work_tree_run_with_ours(plain: Sandbox, tmp_path: Path) -> None:
    write_hooks(plain.path / ".husky", SH)
    write_hooks(plain.path / ".husky", "#!/bin/sh\ntouch ../{name}\n", ("reference-transaction",))
    plain.git("config", "core.hooksPath", ".husky")
    plain.modelver("install")
    assert not plain.git("status", "--porcelain", ".husky").replace("?? .husky/\n", "")
    log = tmp_path / "log"
    found = commit_model(plain, 1, log)
    assert [line.partition(":")[0] for line in found] == [
        "pre-commit",
        "prepare-commit-msg",
        "commit-msg",
        "post-commit",
    ]
    assert (tmp_path / "reference-transaction").exists()
    plain.git("worktree", "add", "-q", "../tree", LOG=str(log))
    tree = Sandbox(tmp_path / "tree")
    assert tree.md5(MODEL) == plain.md5(MODEL)
    assert commit_model(tree, 2, log)[0].startswith("pre-commit:")
    plain.git("config", "core.hooksPath", ".husky")  # as "npm run prepare" does
    assert "not installed" in plain.modelver("doctor", ok=False)
    plain.modelver("install")
    assert commit_model(plain, 3, log)
    plain.modelver("uninstall")
    assert plain.git("config", "core.hooksPath").strip() == ".husky"
    assert not (plain.path / ".git/modelver-hooks").exists()


def test_a_global_hooks_folder_is_in_force_again_after_uninstall(plain: Sandbox, tmp_path: Path) -> None:
    write_hooks(Path.home() / "hooks", SH)
    plain.git("config", "--global", "core.hooksPath", "~/hooks")
    plain.modelver("install")
    assert commit_model(plain, 1, tmp_path / "log")
    plain.modelver("uninstall")
    assert plain.run("git", "config", "--local", "core.hooksPath", ok=False).returncode == 1
    assert plain.git("config", "core.hooksPath").strip() == "~/hooks"


# Switched off, and what is started


def started(box: Sandbox, *command: str, **env: str) -> list[str]:
    """Run a command in a clone whose hooks and drivers start Python through a program that notes it."""
    log = box.path.parent / "starts"
    log.unlink(missing_ok=True)
    box.run(*command, ok=False, env=env)
    return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def noted(sandbox: Sandbox) -> Sandbox:
    program = sandbox.path.parent / "python"
    program.write_text(f'#!/bin/sh\necho "$*" >>"{sandbox.path.parent}/starts"\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    sandbox.train(MODEL, 1)
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    install_hooks(find_layout(sandbox.path), str(program))
    config = sandbox.path / ".git/config"
    config.write_text(config.read_text().replace(sys.executable, str(program)))
    return sandbox


def test_no_hook_or_driver_starts_the_program_when_nothing_concerns_us(noted: Sandbox) -> None:
    noted.write("code.py", "1\n")
    noted.git("add", "code.py")
    noted.git("status")
    for command in (["commit", "-q", "-m", "code"], ["status"], ["switch", "-q", "-c", "side"], ["switch", "-q", "-"], ["diff"],
                    ["commit", "-q", "--amend", "-m", "again"], ["stash"], ["reset", "-q", "--hard"]):  # fmt: skip
        lines = started(noted, "git", *command)
        assert not [line for line in lines if "start.py" in line], command
        assert len(lines) <= 3, (command, lines)


def test_the_program_starts_once_for_a_switch_and_once_a_step_of_a_merge(noted: Sandbox) -> None:
    """What one hook of a Git command did, the next one does not look for again."""

    def steps(*command: str) -> list[str]:
        return [line.partition("start.py ")[2] for line in started(noted, *command) if "start.py" in line]

    noted.git("switch", "-q", "-c", "side")
    noted.train(MODEL, 2)
    noted.git("commit", "-q", "-am", "two")
    two = noted.md5(MODEL)
    assert steps("git", "switch", "-q", "main") == ["hooks post-index-change 1 0"]
    assert noted.md5(MODEL) != two
    assert steps("git", "merge", "-q", "side") == ["hooks post-index-change 1 0"]
    assert noted.md5(MODEL) == two
    noted.git("reset", "-q", "--hard", "HEAD~1")
    noted.write("code.py", "1\n")
    noted.git("add", "code.py")
    noted.git("commit", "-q", "-m", "code")
    assert steps("git", "merge", "-q", "side", "-m", "merge") == [
        "hooks post-index-change 1 0",
        "hooks pre-merge-commit",
    ]
    assert noted.md5(MODEL) == two
    assert noted.git("status", "--short") == ""


def test_git_status_starts_one_process_for_a_hundred_models(noted: Sandbox) -> None:
    state = noted.path / ".git/modelver/state"
    header, row = state.read_text().splitlines()
    for i in range(100):
        for suffix in ("", ".dvc", ".modelver.json"):
            shutil.copy2(noted.path / f"{MODEL}{suffix}", noted.path / f"models/{i}.safetensors{suffix}")
    rows = [header, row]
    for i in range(100):
        path = f"models/{i}.safetensors"
        stamps = [_stamp(noted.path / f"{path}{suffix}") for suffix in ("", ".modelver.json", ".dvc")]
        rows.append("\t".join([*row.split("\t")[:2], *stamps, f"{path}.dvc", path]))
    state.write_text("\n".join(rows) + "\n")
    lines = started(noted, "git", "status")
    assert len(lines) == 1
    assert "probe.py fsmonitor" in lines[0]


def _stamp(path: Path) -> str:
    st = path.stat()
    return f"{st.st_size}:{st.st_mtime_ns}:{st.st_ctime_ns}:{st.st_ino}"


@pytest.mark.parametrize("name", HOOKS)
def test_skip_switches_each_hook_off(noted: Sandbox, name: str) -> None:
    """Run as Git would, where the model was retrained, another version is recorded, and new metadata is staged."""
    second = noted.train(MODEL, 2)
    noted.git("commit", "-q", "-am", "two")
    noted.git("reset", "-q", "--soft", "HEAD~1", MODELVER_SKIP="1")
    noted.train(MODEL, 3)
    (noted.path / ".git/modelver/committed").write_text('{"partial": [], "raw": []}')
    (noted.path / "message").write_text("text\n")
    arguments = {
        "prepare-commit-msg": ["message"], "post-checkout": ["HEAD", "HEAD", "1"], "post-index-change": ["1", "0"],
        "post-rewrite": ["rebase"], "pre-push": ["origin", "url"],
    }.get(name, [])  # fmt: skip
    hook = [".git/hooks/" + name, *arguments]
    assert started(noted, *hook, MODELVER_SKIP="1") == []
    assert noted.cached(second)
    noted.run(*hook, ok=False)
    assert (noted.path.parent / "starts").exists(), "without the variable it does something"


def test_skip_switches_each_driver_off(noted: Sandbox) -> None:
    weights = noted.path / "other.safetensors"
    shutil.copy(noted.path / MODEL, weights)
    noted.git("add", weights.name, MODELVER_SKIP="1")
    assert int(noted.git("cat-file", "-s", f":{weights.name}")) == weights.stat().st_size  # the filter: raw weights
    noted.git("rm", "-q", "--cached", weights.name, MODELVER_SKIP="1")
    noted.train(MODEL, 2)
    noted.modelver("add", "-u")
    noted.git("commit", "-q", "-m", "two")
    for command in (["diff", "HEAD~1"], ["log", "-p", "-1"], ["status"]):
        assert [line for line in started(noted, "git", *command) if "start.py" in line] or command == ["status"]
        lines = started(noted, "git", *command, MODELVER_SKIP="1")
        assert not [line for line in lines if "start.py" in line]
        plain = noted.git(*command, MODELVER_SKIP="1")
        assert '"schema":"modelver.tensors/1"' in plain or command == ["status"]


def test_skip_switches_the_merge_driver_off(noted: Sandbox) -> None:
    for branch, seed in (("side", 2), ("main", 3)):
        noted.git("switch", "-q", *(["-c", "side"] if branch == "side" else ["main"]))
        noted.train(MODEL, seed)
        noted.modelver("add", "-u")
        noted.git("commit", "-q", "-m", branch)
    lines = started(noted, "git", "merge", "side", MODELVER_SKIP="1")
    assert not [line for line in lines if "start.py" in line]
    assert "<<<<<<<" in (noted.path / f"{MODEL}.dvc").read_text()
    assert noted.metadata_md5(MODEL) == noted.md5(MODEL)
    noted.git("merge", "--abort")
    assert [line for line in started(noted, "git", "merge", "side") if "start.py merge" in line]


def test_a_package_that_is_gone_is_one_line(sandbox: Sandbox, tmp_path: Path) -> None:
    """The program's files are there, and an interpreter, which does not know the package any more."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    python = str(tmp_path / "bare/bin/python")
    config = sandbox.path / ".git/config"
    config.write_text(config.read_text().replace(sys.executable, python))
    install_hooks(find_layout(sandbox.path), python)
    sandbox.train(MODEL, 1)
    said = sandbox.git("add", ".", ok=False)
    ours = [line for line in said.splitlines() if "modelver: " in line]
    assert ours == [
        f"modelver: dvc_modelver is not installed for {python} any more (pip install dvc-modelver; modelver install)"
    ]
    assert "Traceback" not in said
    assert "ModuleNotFoundError" not in said
    sandbox.write("code.py", "1\n")
    sandbox.git("add", "code.py")
    sandbox.git("commit", "-q", "-m", "code")
    assert Path(START).exists()


def test_a_hook_that_pre_commit_moved_and_left_is_missed_and_brought_back(sandbox: Sandbox) -> None:
    folder = sandbox.path / ".git/hooks"
    ours = (folder / "pre-push").read_bytes()
    (folder / "pre-push").rename(folder / "pre-push.legacy")  # as by a pre-commit install that was interrupted
    done = sandbox.run("modelver", "doctor", ok=False)
    assert done.returncode == 1
    assert "pre-push" in done.stdout.partition("!!")[2].splitlines()[0]
    assert "pre-push.legacy, which nothing ran" in sandbox.modelver("install")
    assert (folder / "pre-push").read_bytes() == ours
    assert not (folder / "pre-push.legacy").exists()
    assert sandbox.exit_code("doctor") == 0
    (folder / "pre-push").rename(folder / "pre-push.legacy")
    sandbox.modelver("uninstall")
    assert not list(folder.glob("pre-push*y"))
