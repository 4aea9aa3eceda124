"""list, log, best, compare, blame, bisect: questions to a history, here and in other clones of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dvc_modelver.metadata import ChangeFacts
from dvc_modelver.registry.history import iter_histories, iter_versions
from dvc_modelver.repository import Repository
from tests.sandbox import Sandbox
from tests.stream import Stream, make_table, make_version, md5_of

DIGITS, WORDS = "models/digits.safetensors", "words.safetensors"
OLD_PATH = "old/digits.safetensors"
ACCURACY = {1: 0.8, 2: 0.91, 3: 0.95, 4: None, 5: None, 6: 0.85, 7: 0.95, 8: 0.7}
"""Of the versions of digits; those of a branch have the numbers 3.b and 4.b."""
CHANGED = {1: {}, 2: {"head.weight": 1}, 3: {"layers.0.weight": 1}, 4: {"layers.0.bias": 1}, 5: {}, 6: {"head.weight": 2},
           7: {"layers.1.weight": 1, "layers.2.weight": 1}, 8: {"embed.weight": 3}}  # fmt: skip


def build(folder: Path) -> None:
    """Eight versions of digits (renamed with the third, three authors), two of words, a branch with another 4 and 5."""
    stream, tensors = Stream(), dict[str, int]()
    stream.commit({".dvc/config": b"", ".dvc/.gitignore": b"/cache\n/tmp\n"}, message="set up")

    def files(number: int, path: str, branch: str = "", **training: Any) -> dict[str, bytes | None]:
        tensors.update(CHANGED[number])
        parent = md5_of(f"digits {number - 1}") if number > 1 else ""
        change = ChangeFacts(from_=parent, kind="fine-tune", cosine=1 - number / 100, relative_l2=number / 10)
        value = ACCURACY[number]
        return dict(
            make_version(
                "digits", path, number, parents=(parent,) if parent else (), change=change if parent else None,
                table=make_table(md5_of(f"digits {number}{branch}"), tensors),
                metrics={"loss": round(1 / number, 3), **({} if value is None else {"val_acc": value})},
                hyperparameters={"lr": 10**-number, "optimizer": {"name": "sgd" if number < 5 else "adamw"}, "seed": 1},
                data=({"path": "data.csv", "md5": md5_of(f"data {number // 4}"), "bytes": 5},), **training,
            )[1]
        )  # fmt: skip

    mark = {n: stream.commit(files(n, OLD_PATH), author="Ada", message=f"train {n}") for n in (1, 2)}
    gone = dict.fromkeys((f"{OLD_PATH}.modelver.json", f"{OLD_PATH}.modelver.tensors", f"{OLD_PATH}.dvc"))
    mark[3] = stream.commit(gone | files(3, DIGITS), author="Ada", message="train 3, elsewhere")
    fork = mark[3]
    for n in (4, 5, 6):
        words = make_version("words", WORDS, n - 3, metrics={"val_acc": n / 10})[1] if n < 6 else {}
        mark[n] = stream.commit(files(n, DIGITS) | words, author="Grace", message=f"train {n}")
    for n in (7, 8):
        mark[n] = stream.commit(files(n, DIGITS), author="Grace", message=f"train {n}")
    stream.tag("digits@v1.0.0", mark[2], "digits v1.0.0\n")
    stream.tag("digits@v1.9.0", mark[6], "digits v1.9.0\n")
    record = json.dumps({"md5": md5_of("digits 7")}, indent=2)
    stream.tag("digits@v1.10.0", mark[7], f"digits v1.10.0\n\n{record}\n")
    stream.tag("digits#prod#1", mark[2], "digits v1.0.0 is prod\n")
    stream.tag("digits#prod#2", mark[6], "digits v1.9.0 is prod\n")
    stream.tag("digits#dev#3", mark[8], "digits 8 is dev\n")
    tensors.clear()
    stream.commit(files(4, DIGITS, " b"), branch="side", parents=[fork], author="Mary", message="another 4")
    stream.load(folder)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("history") / "repo"
    build(folder)
    return folder


@pytest.fixture
def box(built: Path) -> Sandbox:
    """The repository itself: tests that change it copy it."""
    return Sandbox(built)


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Sandbox:
    shutil.copytree(built, tmp_path / "copy", symlinks=True)
    return Sandbox(tmp_path / "copy")


def numbers(out: str) -> list[str]:
    return [line.split()[0] for line in out.splitlines()[1:]]


def ask(box: Sandbox, *args: str) -> dict[str, Any]:
    found = json.loads(box.modelver(*args, "--json"))
    assert found["schema"] == f"modelver.{'log' if '--versions' in args else args[0]}/1"
    return dict(found)


def refused(box: Sandbox, *args: str, code: int = 2) -> str:
    done = box.run("modelver", *args, ok=False)
    assert (done.returncode, done.stdout) == (code, ""), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


# log


def test_log_follows_a_renamed_model_and_names_stages(box: Sandbox) -> None:
    out = box.modelver("log", "digits")
    assert numbers(out) == ["8", "7", "6", "5", "4", "3", "2", "1"]
    assert box.modelver("log", DIGITS) == out
    assert "v1.9.0 #prod" in out.splitlines()[3]
    assert "#prod" not in out.splitlines()[7]
    found = ask(box, "log", "digits")["versions"]
    assert [v["stages"] for v in found if v["stages"]] == [["dev"], ["prod"]]
    assert found[0]["metrics"]["val_acc"] == {"value": 0.7, "source": "training"}
    assert found[-1]["model"]["path"] == OLD_PATH


def test_log_of_all_branches_has_both_versions_of_a_number(box: Sandbox) -> None:
    assert sorted(numbers(box.modelver("log", "digits", "--all"))) == ["1", "2", "3", "4", "4", "5", "6", "7", "8"]
    out = refused(box, "show", "digits@4.f")  # a number and too few digits are no version
    assert "digits@4.f" in out
    assert "another 4" not in box.modelver("log", "digits")
    assert [v["subject"] for v in ask(box, "log", "digits", "--all", "--where", "author = 'Mary'")["versions"]] == [
        "another 4"
    ]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("metrics.val_acc > 0.9 and hyperparameters.lr <= 0.01", "7 3 2"),
        ("stage = 'prod' or stage = 'dev'", "8 6"),
        ("version >= 'v1.9.0'", "7 6"),
        ("hyperparameters.optimizer.name = 'adamw' and not metrics.val_acc > 0", "5"),
        ("author ~ 'grace' and number <= 5", "5 4"),
        ("date < 2023-11-15T01:00 and date >= 2023-11-15", "1"),
        ("path ~ 'old/'", "2 1"),
        ("update = 'initial' or relative_l2 > 0.75", "8 1"),
        ("subject ~ 'elsewhere'", "3"),
    ],
)
def test_log_where(box: Sandbox, where: str, expected: str) -> None:
    assert " ".join(numbers(box.modelver("log", "digits", "--where", where))) == expected


def test_log_sorts_and_puts_what_has_no_value_last(box: Sandbox) -> None:
    def order(key: str) -> str:
        return " ".join(numbers(box.modelver("log", "digits", "--sort", key)))

    assert order("metrics.val_acc") == "8 1 6 2 7 3 5 4"
    assert order("-metrics.val_acc") == "7 3 2 6 1 8 5 4"
    assert order("-version").startswith("7 6 2")
    assert order("number").startswith("1 2 3")
    assert numbers(box.modelver("log", "digits", "--sort", "-metrics.val_acc", "-n", "1")) == ["7"]


def test_log_says_what_is_wrong_with_a_question(box: Sandbox) -> None:
    assert "column 1: metrics.val_ac" in (out := refused(box, "log", "digits", "--where", "metrics.val_ac > 0"))
    assert "hint: did you mean metrics.val_acc?" in out
    assert "column 9" in refused(box, "log", "digits", "--where", "stage = prod")
    assert "--sort: stag" in refused(box, "log", "digits", "--sort", "stag")
    assert "did you mean metrics.val_acc?" in refused(box, "log", "digits", "--sort", "-metrics.val_accc")
    assert box.modelver("log", "digits", "--where", "number > 99") == "no version fits\n"


def test_evaluations_count_as_metrics(copy: Sandbox) -> None:
    copy.git("config", "user.name", "Eva")
    copy.git("config", "user.email", "eva@example.org")
    from dvc_modelver.registry.evaluations import Evaluation, record_evaluation

    repo = Repository.open(copy.path)
    one = Evaluation(md5_of("digits 5"), {"val_acc": 0.99}, "2026-11-21T10:00:00Z", by="Eva <eva@example.org>")
    assert record_evaluation(repo.git, repo.objects, one)
    assert "val_acc=0.99*" in copy.modelver("log", "digits").splitlines()[4]
    found = ask(copy, "log", "digits", "--where", "metrics.val_acc = 0.99")["versions"][0]["metrics"]["val_acc"]
    assert found["source"] == "evaluation" and found["by"].startswith("Eva")
    assert "digits@5" in copy.modelver("best", "digits", "--metric", "val_acc")


# list


def test_list_says_who_holds_the_stages(box: Sandbox) -> None:
    out = box.modelver("list").splitlines()
    assert len(out) == 3
    assert "dev=8 prod=v1.9.0" in out[1] and "v1.10.0" in out[1]
    digits, words = ask(box, "list")["models"]
    assert digits["versions"] == ["v1.0.0", "v1.9.0", "v1.10.0"]
    assert (digits["latest"], digits["here"], digits["stages"]) == ("v1.10.0", [], {"dev": "8", "prod": "v1.9.0"})
    assert (words["number"], words["stages"]) == (2, {})


def test_list_asks_the_versions_of_all_models(box: Sandbox) -> None:
    assert len(ask(box, "list", "--versions")["versions"]) == 10
    out = box.modelver("list", "--where", "metrics.val_acc < 0.85", "--sort", "metrics.val_acc")
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [
        ["words", "1"], ["words", "2"], ["digits", "8"], ["digits", "1"],
    ]  # fmt: skip
    assert len(ask(box, "list", "--versions", "--all")["versions"]) == 11


def test_damaged_metadata_in_history_is_left_out_and_said(copy: Sandbox) -> None:
    path = copy.path / f"{WORDS}.modelver.json"
    good = path.read_text()
    for text in ("<<<<<<< ours\n", good):
        path.write_text(text)
        copy.git("commit", "-q", "-am", "oops", "--no-verify")
    done = copy.run("modelver", "log", "words")
    assert numbers(done.stdout) == ["2", "1"]
    assert "1 metadata file in history cannot be read" in done.stderr


def test_list_and_log_find_what_was_removed(copy: Sandbox) -> None:
    copy.git("rm", "-q", "words.safetensors.*")
    copy.git("commit", "-q", "-m", "no words", "--no-verify")
    assert "words" not in copy.modelver("list")
    assert "words.safetensors  (not in the work tree)" in copy.modelver("list", "--all")
    assert numbers(copy.modelver("log", "words")) == ["2", "1"]
    assert "no such model" in refused(copy, "log", "word")


# best


def test_best_takes_the_direction_from_the_name_and_says_so(box: Sandbox) -> None:
    out = box.modelver("best", "digits", "--metric", "val_acc")
    assert "val_acc = 0.95, the largest of 6 versions, as its name says" in out
    assert "2 versions tie" in out
    assert [line.split()[0] for line in out.splitlines() if line.startswith("  ")] == ["digits@7", "digits@3"]
    assert "2 versions have no val_acc" in out
    found = ask(box, "best", "digits", "--metric", "metrics.loss")
    assert (found["direction"], found["direction_from"], found["value"]) == ("min", "name", 0.125)
    found = ask(box, "best", "digits", "--metric", "val_acc", "--min")
    assert (found["direction_from"], [v["version"]["number"] for v in found["versions"]]) == ("option", [8])
    found = ask(box, "best", "digits", "--metric", "val_acc", "--where", "stage = 'prod'")
    assert [v["version"]["number"] for v in found["versions"]] == [6]


def test_best_refuses_to_guess(copy: Sandbox) -> None:
    assert "did you mean val_acc?" in refused(copy, "best", "digits", "--metric", "acc")
    assert "--min and --max" in refused(copy, "best", "digits", "--metric", "val_acc", "--min", "--max")
    path = copy.path / f"{WORDS}.modelver.json"
    path.write_text(path.read_text().replace("val_acc", "zig"))
    copy.git("commit", "-q", "-am", "zig", "--no-verify")
    assert "expected --min or --max" in refused(copy, "best", "words", "--metric", "zig")
    assert "zig = 0.5" in copy.modelver("best", "words", "--metric", "zig", "--max")


# compare


def test_compare_puts_versions_side_by_side(box: Sandbox) -> None:
    out = box.modelver("compare", "digits@2", "3", "#prod", "digits")
    head, *lines = out.splitlines()
    assert head.split() == ["digits@2", "digits@3", "digits#prod", "digits@8"]
    cells = {line.split()[0]: line.split()[1:] for line in lines if line.split()}
    assert cells["val_acc"] == ["0.91", "0.95", "0.85", "0.7"]
    assert cells["optimizer.name"] == ["sgd", "sgd", "adamw", "adamw"]
    assert cells["data.csv"][0] == cells["data.csv"][1] != cells["data.csv"][2]
    assert cells["kind"][:2] == ["-", "partial"]
    assert "the same in all: 1 of hyperparameters" in out
    found = ask(box, "compare", "digits@2", "3")["versions"]
    assert found[0]["to_first"] is None
    assert found[1]["to_first"]["tensors_changed"] == 1
    assert 0 < found[1]["to_first"]["cosine"] < 1
    assert "two versions or more" in refused(box, "compare", "digits@2")
    assert "digits@v77" in refused(box, "compare", "digits@2", "v77.0.0")


def test_compare_takes_other_models(box: Sandbox) -> None:
    assert box.modelver("compare", "digits@2", "words@1").splitlines()[0].split() == ["digits@2", "words@1"]


# blame


def test_blame_names_the_version_of_each_tensor(box: Sandbox) -> None:
    found = {t["name"]: t["number"] for t in ask(box, "blame", "digits")["tensors"]}
    assert found == {
        "embed.weight": 8, "head.weight": 6, "layers.0.weight": 3, "layers.0.bias": 4, "layers.1.weight": 7,
        "layers.2.weight": 7, "layers.1.bias": 1, "layers.2.bias": 1, "layers.3.weight": 1, "layers.3.bias": 1,
    }  # fmt: skip
    out = box.modelver("blame", "digits")
    assert "layers.1-2.weight" in out and "layers.3.*" in out
    assert len(box.modelver("blame", "digits", "--all-tensors").splitlines()) == 11
    assert {t["number"] for t in ask(box, "blame", "digits@2")["tensors"]} == {1, 2}
    assert "no tensor table" in refused(box, "blame", "words")


def test_blame_of_a_retrained_model_says_what_is_not_committed(copy: Sandbox) -> None:
    table = make_table(md5_of("digits 9"), {"embed.weight": 3, "layers.3.bias": 5})
    for path, content in make_version("digits", DIGITS, 9, table=table, parents=(md5_of("digits 8"),))[1].items():
        (copy.path / path).write_bytes(content)
    found = {t["name"]: (t["number"], t["commit"] is None) for t in ask(copy, "blame", "digits")["tensors"]}
    assert found["layers.3.bias"] == (9, True)
    assert found["embed.weight"] == (8, False)
    assert "not committed yet" in copy.modelver("blame", "digits")


def test_blame_follows_renamed_tensors_and_both_sides_of_a_merge(tmp_path: Path) -> None:
    from dataclasses import replace

    from dvc_modelver.metadata import TensorTable

    stream, path = Stream(), "m.safetensors"

    def version(name: str, number: int, table: TensorTable, *parents: str) -> dict[str, bytes | None]:
        return dict(make_version("m", path, number, table=table, parents=tuple(map(md5_of, parents)))[1])

    base = make_table(md5_of("base"), {})
    ours = make_table(md5_of("ours"), {"head.weight": 1})
    theirs = make_table(md5_of("theirs"), {"embed.weight": 1})
    merged = make_table(md5_of("merged"), {"head.weight": 1, "embed.weight": 1})
    renamed = TensorTable(
        md5_of("renamed"),
        64,
        tuple(sorted((replace(r, name=f"net.{r.name}") for r in merged.rows), key=lambda r: r.name)),
    )
    set_up: dict[str, bytes | None] = {".dvc/config": b"", ".dvc/.gitignore": b"/cache\n"}
    first = stream.commit(set_up | version("base", 1, base))
    left = stream.commit(version("ours", 2, ours, "base"), parents=[first])
    right = stream.commit(version("theirs", 2, theirs, "base"), branch="side", parents=[first])
    both = stream.commit(version("merged", 3, merged, "ours", "theirs"), parents=[left, right])
    stream.commit(version("renamed", 4, renamed, "merged"), parents=[both])
    stream.load(tmp_path / "repo")
    box = Sandbox(tmp_path / "repo")
    found = {t["name"]: (t["number"], t["name_then"], t["md5"]) for t in ask(box, "blame", "m")["tensors"]}
    assert found["net.head.weight"] == (2, "head.weight", md5_of("ours"))
    assert found["net.embed.weight"] == (2, "embed.weight", md5_of("theirs"))
    assert found["net.layers.0.bias"] == (1, "layers.0.bias", md5_of("base"))
    assert "(was head.weight)" in box.modelver("blame", "m", "--all-tensors")


# bisect


def test_bisect_names_the_first_bad_version_and_what_is_not_known(box: Sandbox) -> None:
    out = box.modelver("bisect", "digits", "--metric", "val_acc", "--below", "0.9")
    assert "val_acc is below 0.9 from digits@6 (0.85)" in out
    assert "the last good one before it: digits@3 (0.95)" in out
    assert "4-5 between them have no value: the answer lies after digits@3 and up to digits@6" in out
    assert "good again with digits@7" in out
    assert "before the first good one: 1" in out
    assert "2 of 8 versions without val_acc: 4-5" in out
    found = ask(box, "bisect", "digits", "--metric", "val_acc", "--below", "0.75")
    assert (found["bad"]["number"], found["good"]["number"], found["between"]) == (8, 7, [])
    found = ask(box, "bisect", "digits", "--metric", "loss", "--above", "0.1")
    assert (found["bad"]["number"], found["good"]) == (1, None)


def test_bisect_says_no_with_exit_1(box: Sandbox) -> None:
    done = box.run("modelver", "bisect", "digits", "--metric", "val_acc", "--below", "0.1", ok=False)
    assert (done.returncode, done.stdout) == (
        1,
        "no version of digits has val_acc below 0.1, of 6 versions\n2 of 8 versions without val_acc: 4-5\n",
    )
    done = box.run("modelver", "bisect", "digits", "--metric", "loss", "--above", "0.6", ok=False)
    assert (done.returncode, done.stdout) == (1, "loss is not above 0.6 from digits@2 on, of 8 versions\n")
    refused(box, "bisect", "digits", "--metric", "val_acc")
    refused(box, "bisect", "digits", "--metric", "val_acc", "--below", "1", "--above", "2")


# other repositories, and clones that lack something


def test_other_repositories_by_path_and_url(box: Sandbox, sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.git("clone", "-q", "--bare", str(box.path), str(tmp_path / "bare.git"))
    want = box.modelver("log", "digits")
    for source in (str(box.path), str(tmp_path / "bare.git"), f"file://{tmp_path}/bare.git", f"file://{box.path}"):
        assert sandbox.modelver("log", "digits", "--repo", source) == want
        assert len(sandbox.modelver("list", "--repo", source).splitlines()) == 3
        assert "digits version 6" in sandbox.modelver("show", "digits#prod", "--repo", source)
        assert "digits@7" in sandbox.modelver("best", "digits", "--metric", "val_acc", "--repo", source)
        assert "partial" in sandbox.modelver("compare", "digits@2", "3", "--repo", source)
    assert "no such folder" in refused(sandbox, "list", "--repo", "nowhere")
    assert "git ls-remote" in refused(sandbox, "list", "--repo", f"file://{tmp_path}/nowhere", code=4)
    assert "not in a Git repository" in refused(sandbox, "list", "--repo", str(tmp_path))


def test_another_repository_is_meant_inside_a_hook_as_well(box: Sandbox, sandbox: Sandbox) -> None:
    hook = {"GIT_DIR": str(sandbox.path / ".git"), "GIT_INDEX_FILE": str(sandbox.path / ".git/index")}
    want = box.modelver("log", "digits")
    for source in (str(box.path), f"file://{box.path}"):
        assert sandbox.run("modelver", "log", "digits", "--repo", source, env=hook).stdout == want


def test_another_repository_is_read_as_committed(copy: Sandbox, sandbox: Sandbox) -> None:
    (copy.path / f"{DIGITS}.modelver.json").write_text("{")
    assert "digits version 8" in sandbox.modelver("show", "digits", "--repo", str(copy.path))


def test_a_url_is_fetched_again_and_blobs_as_they_are_needed(copy: Sandbox, sandbox: Sandbox) -> None:
    copy.git("config", "uploadpack.allowFilter", "true")
    copy.git("config", "uploadpack.allowAnySHA1InWant", "true")
    url = f"file://{copy.path}"
    assert len(numbers(sandbox.modelver("log", "digits", "--repo", url))) == 8
    copy.git("reset", "-q", "--hard", "HEAD~1")  # as after a force push
    copy.git("tag", "-d", "digits@v1.10.0")
    out = sandbox.modelver("log", "digits", "--repo", url)
    assert len(numbers(out)) == 7 and "v1.10.0" not in out
    copy.git("switch", "-q", "-c", "trunk", "HEAD~1")  # the main branch has another name now
    assert len(numbers(sandbox.modelver("log", "digits", "--repo", url))) == 6
    copy.git("branch", "-q", "-D", "main")
    assert len(numbers(sandbox.modelver("log", "digits", "--repo", url))) == 6
    empty = sandbox.path.parent / "empty"
    sandbox.git("init", "-q", "--bare", str(empty))
    assert "has no commit yet" in refused(sandbox, "list", "--repo", f"file://{empty}")


def test_a_shallow_clone_answers_with_what_it_has(box: Sandbox, tmp_path: Path) -> None:
    box.run("git", "clone", "-q", "--depth", "1", f"file://{box.path}", str(tmp_path / "shallow"))
    shallow = Sandbox(tmp_path / "shallow")
    done = shallow.run("modelver", "log", "digits")
    assert numbers(done.stdout) == ["8"]
    assert "shallow" in done.stderr and "git fetch --unshallow" in done.stderr
    assert {t["or_before"] for t in ask(shallow, "blame", "digits")["tensors"]} == {True}
    for args in (["list"], ["best", "digits", "--metric", "val_acc"], ["show", "digits"]):
        assert "shallow" in shallow.run("modelver", *args).stderr


def test_a_clone_without_tags_says_so(box: Sandbox, tmp_path: Path) -> None:
    box.run("git", "clone", "-q", "--no-tags", f"file://{box.path}", str(tmp_path / "tagless"))
    tagless = Sandbox(tmp_path / "tagless")
    done = tagless.run("modelver", "list")
    assert "prod" not in done.stdout
    assert "no tags" in done.stderr and "git fetch --tags" in done.stderr
    assert len(numbers(tagless.modelver("log", "digits"))) == 8
    assert box.run("modelver", "list").stderr == ""


def test_a_partial_clone_fetches_what_is_asked_for_at_once(copy: Sandbox, tmp_path: Path) -> None:
    copy.git("config", "uploadpack.allowFilter", "true")
    copy.git("config", "uploadpack.allowAnySHA1InWant", "true")
    copy.run("git", "clone", "-q", "--filter=blob:none", f"file://{copy.path}", str(tmp_path / "partial"))
    partial = Sandbox(tmp_path / "partial")
    trace = tmp_path / "trace"
    assert len(numbers(partial.modelver("log", "digits", GIT_TRACE=str(trace)))) == 8
    assert "fetch origin" in trace.read_text()
    assert "built-in: git cat-file" not in trace.read_text()  # which would fetch one blob at a time


# whatever Git does to history


def test_history_is_right_after_rebase_force_push_and_gc(copy: Sandbox, tmp_path: Path) -> None:
    copy.git("config", "user.name", "Ada")
    copy.git("config", "user.email", "ada@example.org")
    before = ask(copy, "log", "digits")["versions"]
    copy.git("rebase", "-q", "--force-rebase", "--root")
    copy.git("commit", "-q", "--amend", "-m", "another subject", "--no-verify")
    after = ask(copy, "log", "digits")["versions"]
    assert [v["model"]["md5"] for v in after] == [v["model"]["md5"] for v in before]
    assert after[0]["subject"] == "another subject" and after[0]["commit"] == copy.git("rev-parse", "HEAD").strip()
    assert not {v["commit"] for v in after} & {v["commit"] for v in before}
    assert [v["tags"] for v in after] == [v["tags"] for v in before]  # tags are of the old commits, by md5 of the new
    copy.git("reset", "-q", "--hard", "HEAD~2")
    copy.git("reflog", "expire", "--expire=now", "--all")
    copy.git("gc", "-q", "--prune=now")
    assert numbers(copy.modelver("log", "digits")) == ["6", "5", "4", "3", "2", "1"]
    assert copy.modelver("list", "--versions").count("digits") == 6
    copy.git("clone", "-q", "--bare", str(copy.path), str(tmp_path / "hub.git"))
    copy.git("clone", "-q", str(tmp_path / "hub.git"), str(tmp_path / "other"))
    other = Sandbox(tmp_path / "other")
    assert numbers(other.modelver("log", "digits"))[0] == "6"
    copy.git("reset", "-q", "--hard", "HEAD~1")
    copy.git("push", "-q", "--force", str(tmp_path / "hub.git"), "main", MODELVER_SKIP="1")
    other.git("fetch", "-q")
    other.git("reset", "-q", "--hard", "origin/main")
    assert numbers(other.modelver("log", "digits"))[0] == "5"
    assert ask(other, "blame", "digits")["tensors"]


def test_one_walk_gives_what_the_walks_of_each_model_give(box: Sandbox) -> None:
    repo = Repository.open(box.path)
    for rev in ("HEAD", "--all"):
        found = dict(iter_histories(repo.git, repo.objects, rev))
        assert sorted(found) == [DIGITS, WORDS]
        for path, versions in found.items():
            assert versions == list(iter_versions(repo.git, repo.objects, path, rev))


def test_names_from_outside_are_printed_safely(tmp_path: Path) -> None:
    stream = Stream()
    _, files = make_version(
        "m", "m.safetensors", 1, metrics={"a\x1b[31m\n;rm -rf": 0.5}, hyperparameters={"x" * 10_000: "y"}
    )
    stream.commit({".dvc/config": b"", **files}, author="$(touch pwned)", message="sub\x02ject \x1b[2J")
    stream.load(tmp_path / "repo")
    box = Sandbox(tmp_path / "repo")
    for args in (
        ["log", "m"],
        ["list", "--versions"],
        ["compare", "m@1", "m"],
        ["show", "m"],
        ["best", "m", "--metric", "a\x1b[31m\n;rm -rf", "--max"],
    ):
        assert "\x1b" not in box.modelver(*args)
    assert not (box.path / "pwned").exists()
    assert "did you mean" not in refused(box, "log", "m", "--where", "hyperparameters." + "x" * 3_000 + " = 'y'")
