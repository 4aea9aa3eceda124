"""What each Git command does to models: rows that `test_commands.py` runs and docs/git.md shows.

``python -m tests.git.commands`` writes the table into the page anew.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs/git.md"
BEGIN, END = "<!-- table of commands: begin -->\n", "<!-- table of commands: end -->\n"


@dataclass(frozen=True)
class After:
    """What must be there when a row's script has run.

    Attributes:
        net: Which weights lie at ``models/net.safetensors``; None for no file.
        recorded: Which weights its metadata and pointer name, where they are not those on disk.
        aux: The same of ``models/aux.safetensors``, which no commit but the first touches.
        others: Further models: path -> weights.
        status: What ``git status --porcelain`` prints.
        says: Words that the script's last command must have said.
        kept: Weights that must be in the cache.
        folder: Where to look, relative to the work tree.
    """

    net: int | None
    recorded: int | None = None
    aux: int | None = 9
    others: dict[str, int] = field(default_factory=dict)
    status: str = ""
    says: str = ""
    kept: tuple[int, ...] = ()
    folder: str = "."


@dataclass(frozen=True)
class Row:
    """One command.

    Main has version 1 of ``net`` and ``aux`` (branch ``old``, tag ``first``), then version 2 of ``net``. From ``old``
    start ``side`` (another file) and ``rival`` (version 3 of ``net``); ``renamed`` moves main's ``net`` to
    ``new``; ``before`` has no models. ``train PATH N`` writes weights N there, as a training would.

    Attributes:
        command: As in the page.
        models: What happens to the models, for the page.
        script: Lines of sh.
        after: What must be there then.
        plain: The same without the fsmonitor hook, where it differs.
        modes: In which modes it runs: with the fsmonitor hook, without, or both.
    """

    command: str
    models: str
    script: str
    after: After
    plain: After | None = None
    modes: tuple[str, ...] = ("fsmonitor", "plain")


CHANGED = " M models/net.safetensors.dvc\n M models/net.safetensors.modelver.json\n M models/net.safetensors.modelver.tensors\n"
STAGED = CHANGED.replace(" M ", "M  ")
PICKED = "GIT_SEQUENCE_EDITOR=\"sed -i '{}'\" git rebase -q -i {}"
RETRAIN = "train models/net.safetensors 4\n"

ROWS = [
    # Another commit in the work tree
    Row("switch BRANCH", "the branch's weights", "git switch -q old", After(1)),
    Row("switch -c BRANCH", "stay", "git switch -q -c new", After(2)),
    Row("switch -", "the weights of before", "git switch -q old; git switch -q -", After(2)),
    Row(
        "switch BRANCH without models",
        "removed from disk; the cache has them",
        "git switch -q before",
        After(None, aux=None, kept=(2, 9)),
    ),
    Row(
        "switch BRANCH without a model that is a folder",
        "its files are removed, and no other that lies there",
        "train models/shards/a.safetensors 4; train models/shards/b.safetensors 5; modelver add models/shards; git commit -q -m shards\n"
        "mkdir models/shards/.hg; echo kept >models/shards/.hg/note; git switch -q old; cat models/shards/.hg/note; rm -r models/shards",
        After(1, kept=(4, 5), says="kept"),
    ),
    Row("switch and back", "there again", "git switch -q before; git switch -q main", After(2)),
    Row(
        "switch BRANCH, retrained",
        "Git refuses (without fsmonitor hook: switched, the retrained weights kept and named as a conflict)",
        RETRAIN + "git switch old || true",
        After(4, status=CHANGED, says="would be overwritten"),
        After(4, recorded=1, says="conflict: models/net.safetensors", kept=(4,)),
    ),
    Row(
        "switch BRANCH, retrained; equal on both sides",
        "the change comes along",
        "git branch same\n" + RETRAIN + "git switch -q same; git status >/dev/null",
        After(4, status=CHANGED),
        After(4, recorded=2),
    ),
    Row(
        "switch --discard-changes",
        "the branch's weights; retrained ones in the cache (without fsmonitor hook: kept, named as a conflict)",
        RETRAIN + "git status >/dev/null; git switch --discard-changes old",
        After(1, kept=(4,)),
        After(4, recorded=1, says="conflict: models/net.safetensors", kept=(4,)),
    ),
    Row(
        "switch --merge, retrained",
        "conflict in the metadata; both versions in the cache",
        RETRAIN + "modelver add -u; git switch -q --merge same 2>/dev/null || git switch -q -c same",
        After(4, status=STAGED, kept=(4,)),
    ),
    Row(
        "switch across a rename",
        "at the new path; not at the old one any more",
        "git switch -q renamed",
        After(None, others={"models/new.safetensors": 2}),
    ),
    Row("switch across a rename and back", "at the old path", "git switch -q renamed; git switch -q main", After(2)),
    Row(
        "switch across a rename, retrained",
        "Git refuses (without fsmonitor hook: retrained weights stay where they were, named)",
        RETRAIN + "git switch renamed || true",
        After(4, status=CHANGED, says="would be overwritten"),
        After(
            4,
            recorded=0,
            others={"models/new.safetensors": 2},
            status="?? models/net.safetensors\n",
            says="models/net.safetensors: retrained",
            kept=(4,),
        ),
    ),
    Row("checkout BRANCH", "the branch's weights", "git checkout -q old", After(1)),
    Row("checkout TAG", "the tag's weights (detached HEAD)", "git checkout -q first", After(1)),
    Row(
        "checkout -f",
        "as switch --discard-changes",
        RETRAIN + "git status >/dev/null; git checkout -f -q",
        After(2, kept=(4,)),
        After(4, recorded=2),
    ),
    Row(
        "checkout REV -- FOLDER of models that were not there",
        "the revision's weights, staged",
        "git checkout -q before; git checkout -q old -- models; git commit -q -m models",
        After(1),
    ),
    Row("checkout --orphan", "stay, staged", "git checkout -q --orphan fresh; git commit -q -m fresh", After(2)),
    Row(
        "checkout REV -- FOLDER",
        "the revision's weights, staged",
        "git checkout -q old -- models",
        After(1, status=STAGED),
    ),
    Row(
        "checkout REV -- METADATA",
        "that version's weights; the pointer follows",
        "git checkout -q old -- models/net.safetensors.modelver.json",
        After(
            1,
            status=" M models/net.safetensors.dvc\nM  models/net.safetensors.modelver.json\n M models/net.safetensors.modelver.tensors\n",
        ),
    ),
    Row(
        "checkout REV -- FILE.dvc",
        "that version's weights; the metadata follows",
        "git checkout -q old -- models/net.safetensors.dvc",
        After(
            1,
            status="M  models/net.safetensors.dvc\n M models/net.safetensors.modelver.json\n M models/net.safetensors.modelver.tensors\n",
        ),
    ),
    Row("restore --source REV", "the revision's weights", "git restore --source old models", After(1, status=CHANGED)),
    Row(
        "restore --source REV --staged --worktree",
        "the revision's weights, staged",
        "git restore --source old --staged --worktree models",
        After(1, status=STAGED),
    ),
    Row(
        "restore --staged",
        "stay",
        RETRAIN + "modelver add -u; git restore --staged models",
        After(4, status=CHANGED, kept=(4,)),
    ),
    Row(
        "restore FOLDER",
        "the committed weights; retrained ones in the cache",
        RETRAIN + "modelver add -u; git restore --staged --worktree models",
        After(2, kept=(4,)),
    ),
    # Merges
    Row(
        "merge, fast-forward", "the merged commit's weights", "git switch -q old; git merge -q --ff-only main", After(2)
    ),
    Row(
        "merge --no-ff",
        "the merged commit's weights",
        "git switch -q old; git merge -q --no-ff --no-edit main",
        After(2),
    ),
    Row("merge of other files", "stay", "git merge -q --no-edit side", After(2)),
    Row("merge of a changed model", "the changed weights", "git switch -q side; git merge -q --no-edit main", After(2)),
    Row(
        "merge --squash",
        "the merged weights, staged",
        "git switch -q side; git merge -q --squash main 2>/dev/null; git commit -q -m squashed",
        After(2),
    ),
    Row(
        "merge --no-commit",
        "the merged weights, staged",
        "git switch -q side; git merge -q --no-commit main; git commit -q --no-edit",
        After(2),
    ),
    Row("merge --abort", "the weights of before", "git merge -q rival >/dev/null || git merge --abort", After(2)),
    Row(
        "merge --abort of another file's conflict",
        "the weights of before",
        "echo main >side.txt; git add .; git commit -q -m clash; git switch -q side; git merge -q main >/dev/null || git merge --abort",
        After(1),
    ),
    Row(
        "merge, conflict: checkout --ours",
        "our weights",
        "git merge -q rival >/dev/null || { git checkout -q --ours models; git add models; git commit -q --no-edit; }",
        After(2, kept=(3,)),
    ),
    Row(
        "merge, conflict: checkout --theirs",
        "their weights",
        "git merge -q rival >/dev/null || { git checkout -q --theirs models; git add models; git commit -q --no-edit; }",
        After(3, kept=(2,)),
    ),
    Row(
        "merge, conflict: checkout --theirs METADATA",
        "their weights; the pointer follows",
        "git merge -q rival >/dev/null || { git checkout -q --theirs models/net.safetensors.modelver.json; "
        "git add models/net.safetensors.modelver.json; git checkout -q --theirs models; git add models; git commit -q --no-edit; }",
        After(3, kept=(2,)),
    ),
    Row(
        "merge, conflict: files edited by hand",
        "the committed weights",
        "git merge -q rival >/dev/null || { for s in dvc modelver.json modelver.tensors; do git show rival:models/net.safetensors.$s >models/net.safetensors.$s; done\n"
        "git add models; git commit -q --no-edit; }",
        After(3, kept=(2,)),
    ),
    Row(
        "merge, conflict: checkout --theirs METADATA, add -A",
        "their weights; the pointer follows",
        "git merge -q rival >/dev/null || { git checkout -q --theirs models/net.safetensors.modelver.json; git add -A; git commit -q --no-edit; }",
        After(3, kept=(2,)),
    ),
    Row(
        "merge, conflict: modelver merge --continue --take theirs",
        "their weights",
        "git merge -q rival >/dev/null || { modelver merge --continue --take theirs; git commit -q --no-edit; }",
        After(3, kept=(2,)),
    ),
    Row(
        "merge, conflict: modelver add",
        "the weights on disk",
        "git merge -q rival >/dev/null || { train models/net.safetensors 4; modelver add models/net.safetensors; git commit -q --no-edit; }",
        After(4, kept=(2, 3)),
    ),
    Row(
        "merge -X ours or theirs of a model that both changed",
        "that side's tensors where both changed one",
        "git merge -q --no-edit -X theirs rival",
        After(3, kept=(2,)),
    ),
    Row("merge -s ours", "our weights", "git merge -q --no-edit -s ours rival", After(2)),
    Row(
        "merge across a rename",
        "at the new path",
        "git switch -q side; git merge -q --no-edit renamed",
        After(None, others={"models/new.safetensors": 2}),
    ),
    Row(
        "merge, retrained",
        "Git refuses (without fsmonitor hook: merged, the retrained weights kept and named as a conflict)",
        "git switch -q old\n" + RETRAIN + "git merge --ff-only main || true",
        After(4, recorded=None, status=CHANGED, says="would be overwritten"),
        After(4, recorded=2, says="conflict: models/net.safetensors", kept=(4,)),
    ),
    # From elsewhere
    Row("pull", "the new commits' weights", "git reset -q --hard old; git pull -q", After(2)),
    Row(
        "pull, weights not in the cache",
        "fetched from the remote and verified",
        "git reset -q --hard old; rm -rf .dvc/cache; git pull -q",
        After(2),
    ),
    Row(
        "pull --rebase",
        "the new commits' weights, your commits on top",
        "git reset -q --hard side; git branch -q -u origin/main; git pull -q --rebase",
        After(2),
    ),
    Row(
        "pull --rebase of a retrained model",
        "your weights",
        "git reset -q --hard old; train models/aux.safetensors 4; modelver add -u; git commit -q -m four; git pull -q --rebase",
        After(2, aux=4),
    ),
    Row(
        "clone",
        "modelver install, modelver pull bring them",
        "git clone -q ../origin.git ../clone; cd ../clone; modelver install; modelver pull",
        After(2, folder="../clone"),
        modes=("fsmonitor",),
    ),
    Row(
        "clone --depth 1",
        "the same",
        'git clone -q --depth 1 "file://$PWD/../origin.git" ../clone; cd ../clone; modelver install; modelver pull\n'
        "train models/net.safetensors 4; git commit -q -am four; git push -q",
        After(4, folder="../clone"),
        modes=("fsmonitor",),
    ),
    Row(
        "clone --filter=blob:none",
        "the same; blobs that Git lacks are fetched when they are read",
        "git -C ../origin.git config uploadpack.allowFilter true\n"
        'git clone -q --filter=blob:none "file://$PWD/../origin.git" ../clone; cd ../clone; modelver install; modelver pull\n'
        "train models/net.safetensors 4; git commit -q -am four; modelver log net >/dev/null; git diff first >/dev/null; git push -q; git switch -q --detach first",
        After(1, folder="../clone"),
        modes=("fsmonitor",),
    ),
    # Commits rewritten
    Row("rebase", "those of the last commit", "git rebase -q side", After(2)),
    Row(
        "rebase, conflict: --abort",
        "the weights of before",
        "git rebase -q rival >/dev/null 2>&1 || git rebase --abort",
        After(2),
    ),
    Row(
        "rebase, conflict: --skip",
        "those of the commit it stands on",
        "git rebase -q rival >/dev/null 2>&1 || git rebase --skip >/dev/null 2>&1",
        After(3),
    ),
    Row(
        "rebase, conflict: checkout --theirs, --continue",
        "those of the commit that is replayed",
        "git rebase -q rival >/dev/null 2>&1 || { git checkout -q --theirs models; git add models; GIT_EDITOR=: git rebase --continue >/dev/null 2>&1; }",
        After(2, kept=(3,)),
    ),
    Row(
        "rebase --autostash, retrained",
        "the retrained weights",
        RETRAIN + "git rebase -q --autostash side",
        After(4, status=CHANGED),
        After(4, recorded=2),
    ),
    Row(
        "rebase -i, edit",
        "at the stop those of the commit; amended ones after",
        PICKED.format("1s/^pick/edit/", "old")
        + "\n"
        + RETRAIN
        + "modelver add -u; git commit -q --amend --no-edit; git rebase --continue >/dev/null 2>&1",
        After(4),
    ),
    Row("rebase -i, drop", "those of the commits that are left", PICKED.format("1s/^pick/drop/", "old"), After(1)),
    Row(
        "rebase -i, squash",
        "those of the last commit",
        RETRAIN + "modelver add -u; git commit -q -m four; GIT_EDITOR=: " + PICKED.format("2s/^pick/squash/", "old"),
        After(4),
    ),
    Row(
        "rebase -i, other order",
        "those of the last commit",
        "train models/aux.safetensors 4; modelver add -u; git commit -q -m four; " + PICKED.format("1{h;d};2G", "old"),
        After(2, aux=4),
    ),
    Row(
        "rebase -i --autosquash",
        "the fixup's weights",
        RETRAIN
        + "modelver add -u; git commit -q --fixup HEAD; GIT_SEQUENCE_EDITOR=: git rebase -q -i --autosquash old",
        After(4),
    ),
    Row(
        "rebase --exec",
        "at each step those of the commit",
        "git rebase -q --exec 'cmp models/net.safetensors ../weights/2' old 2>/dev/null",
        After(2),
    ),
    Row("cherry-pick", "the commit's weights", "git switch -q side; git cherry-pick main >/dev/null", After(2)),
    Row(
        "cherry-pick --no-commit",
        "the commit's weights, staged",
        "git switch -q side; git cherry-pick -n main",
        After(2, status=STAGED),
    ),
    Row(
        "cherry-pick, conflict: --abort",
        "the weights of before",
        "git cherry-pick rival >/dev/null 2>&1 || git cherry-pick --abort",
        After(2),
    ),
    Row("revert", "the weights of before that commit", "git revert --no-edit HEAD >/dev/null", After(1)),
    Row(
        "revert of a revert",
        "there again",
        "git revert --no-edit HEAD >/dev/null; git revert --no-edit HEAD >/dev/null",
        After(2),
    ),
    Row(
        "revert, retrained",
        "Git refuses (without fsmonitor hook: the retrained weights kept and named as a conflict)",
        RETRAIN + "git revert --no-edit HEAD || true",
        After(4, status=CHANGED, says="would be overwritten"),
        After(4, recorded=1, says="conflict: models/net.safetensors", kept=(4,)),
    ),
    Row(
        "revert of the commit that added them",
        "removed from disk; the cache has them",
        "git switch -q old; git revert --no-edit HEAD >/dev/null",
        After(None, aux=None, kept=(1, 9)),
    ),
    # The index and HEAD
    Row("reset --hard REV", "the revision's weights", "git reset -q --hard old", After(1)),
    Row(
        "reset --hard, retrained",
        "the committed weights; retrained ones in the cache (without fsmonitor hook: they stay)",
        RETRAIN + "git reset -q --hard",
        After(2, kept=(4,)),
        After(4, recorded=2),
    ),
    Row(
        "reset --hard REV, retrained",
        "the revision's weights; retrained ones in the cache (without fsmonitor hook: they stay, named as a conflict)",
        RETRAIN + "git reset -q --hard old",
        After(1, kept=(4,)),
        After(4, recorded=1, says="conflict: models/net.safetensors", kept=(4,)),
    ),
    Row("reset --mixed REV", "stay, unstaged", "git reset -q --mixed old", After(2, status=CHANGED)),
    Row("reset --soft REV", "stay, staged", "git reset -q --soft old", After(2, status=STAGED)),
    Row("reset --keep REV", "the revision's weights", "git reset -q --keep old", After(1)),
    Row("reset --merge REV", "the revision's weights", "git reset -q --merge old", After(1)),
    Row(
        "reset --hard to models that were not there",
        "there",
        "git reset -q --hard before; git reset -q --hard origin/main",
        After(2),
    ),
    Row("reset --hard ORIG_HEAD", "there again", "git reset -q --hard old; git reset -q --hard ORIG_HEAD", After(2)),
    # Stash
    Row(
        "stash",
        "the committed weights; retrained ones in the cache",
        RETRAIN + "modelver add -u; git stash -q",
        After(2, kept=(4,)),
    ),
    Row(
        "stash pop",
        "the stashed weights",
        RETRAIN + "modelver add -u; git stash -q; git stash pop -q",
        After(4, status=CHANGED),
    ),
    Row(
        "stash pop --index",
        "the stashed weights, staged",
        RETRAIN + "modelver add -u; git stash -q; git stash pop -q --index",
        After(4, status=STAGED),
    ),
    Row(
        "stash apply",
        "the stashed weights",
        RETRAIN + "modelver add -u; git stash -q; git stash apply -q",
        After(4, status=CHANGED),
    ),
    Row(
        "stash branch",
        "the stashed weights",
        RETRAIN + "modelver add -u; git stash -q; git stash branch try >/dev/null 2>&1",
        After(4, status=STAGED),
    ),
    Row(
        "stash --keep-index",
        "the staged weights",
        RETRAIN + "modelver add -u; git stash -q --keep-index",
        After(4, status=STAGED),
    ),
    Row(
        "stash without modelver add",
        "as stash (without fsmonitor hook: nothing to stash, they stay)",
        RETRAIN + "git stash -q",
        After(2, kept=(4,)),
        After(4, recorded=2),
    ),
    Row(
        "stash -u of new weights",
        "gone; the cache has them",
        "train models/fresh.safetensors 4; git stash -q -u",
        After(2, kept=(4,)),
    ),
    Row(
        "stash -u, pop",
        "there again, untracked",
        "train models/fresh.safetensors 4; git stash -q -u; git stash pop -q",
        After(2, others={"models/fresh.safetensors": 4}, status="?? models/fresh.safetensors\n"),
    ),
    Row(
        "stash of added weights, pop",
        "there again, staged",
        "train models/fresh.safetensors 4; modelver add models/fresh.safetensors; git stash -q; git stash pop -q",
        After(
            2,
            others={"models/fresh.safetensors": 4},
            status=" M models/.gitignore\nA  models/fresh.safetensors.dvc\nA  models/fresh.safetensors.modelver.json\n"
            "A  models/fresh.safetensors.modelver.tensors\n",
        ),
    ),
    # Looking for a commit
    Row(
        "bisect run",
        "at each step those of the commit",
        "for n in 5 6 7; do train models/net.safetensors $n; modelver add -u; git commit -q -m $n; done\n"
        "git bisect start main old >/dev/null\n"
        "git bisect run sh -c 'test $(md5sum <models/net.safetensors | cut -c1-32) = "
        '$(sed -n "s/.*md5: //p" models/net.safetensors.dvc) || exit 128; ! cmp -s models/net.safetensors ../weights/6\' >/dev/null\n'
        "git show -s --format=%s bisect/bad; git bisect reset >/dev/null 2>&1",
        After(7, says="6\n"),
    ),
    # More work trees
    Row(
        "worktree add",
        "the branch's weights, one cache for all",
        "git worktree add -q ../tree old",
        After(1, folder="../tree"),
    ),
    Row(
        "worktree remove",
        "what was committed there is in the cache",
        "git worktree add -q ../tree old; cd ../tree\n"
        + RETRAIN
        + "modelver add -u; git commit -q -m four; cd ../work\n"
        "git worktree remove --force ../tree; git switch -q old",
        After(4, kept=(2,)),
    ),
    Row(
        "submodule update",
        "the recorded commit's weights, where modelver install ran in the submodule",
        "git init -q ../top; cd ../top; ln -s ../remote remote\n"
        "git -c protocol.file.allow=always submodule --quiet add ../origin.git sub; cd sub; modelver install; modelver pull; cd ..\n"
        "git commit -q -m two; git -C sub checkout -q first; git commit -q -am one; cmp sub/models/net.safetensors ../weights/1\n"
        "git checkout -q HEAD~1; git submodule --quiet update",
        After(2, folder="../top/sub"),
        modes=("fsmonitor",),
    ),
    Row(
        "submodule in a repository with models",
        "the repository's own follow, the submodule's are its own",
        "ln -s ../remote remote; echo /remote >>.git/info/exclude\n"
        "git -c protocol.file.allow=always submodule --quiet add ../origin.git sub; git commit -q -m sub\n"
        "(cd sub; modelver install; modelver pull; git checkout -q first); git commit -q -am moved\n"
        "cmp sub/models/net.safetensors ../weights/1; git checkout -q --recurse-submodules HEAD~1; cmp sub/models/net.safetensors ../weights/2\n"
        "rm -rf sub; git submodule --quiet deinit --force sub; git reset -q --hard main~2",
        After(2),
        modes=("fsmonitor",),
    ),
    Row(
        "sparse-checkout set",
        "those left out are removed from disk; the cache has them",
        "git sparse-checkout set --no-cone '/*' '!/models/net.*'",
        After(None, kept=(2,)),
    ),
    Row(
        "sparse-checkout set --cone",
        "those left out are removed from disk; the cache has them",
        "git sparse-checkout set --cone .dvc docs",
        After(None, aux=None, kept=(2, 9)),
    ),
    Row(
        "sparse-checkout disable",
        "there again",
        "git sparse-checkout set --no-cone '/*' '!/models/net.*'; git sparse-checkout disable",
        After(2),
    ),
    # Commits
    Row(
        "commit -a, retrained",
        "in the commit",
        RETRAIN + "echo a >code.txt; git commit -q -am four",
        After(4, kept=(4,)),
    ),
    Row(
        "commit, retrained",
        "left out and named",
        RETRAIN + "echo a >code.txt; git add code.txt; git commit -q -m code",
        After(4, status=CHANGED, says="not in this commit: models/net.safetensors"),
        After(4, recorded=2, says="not in this commit: models/net.safetensors"),
    ),
    Row(
        "commit PATH",
        "whole in the commit",
        RETRAIN + "modelver add -u; git commit -q -m four models/net.safetensors.modelver.json",
        After(4, kept=(4,)),
    ),
    Row(
        "commit --amend",
        "in the commit",
        RETRAIN + "modelver add -u; git commit -q --amend --no-edit",
        After(4, kept=(4,)),
    ),
    Row("commit --amend of a message", "stay", "git commit -q --amend -m other", After(2)),
    Row(
        "add -p",
        "a version staged by half is completed",
        RETRAIN
        + "git status >/dev/null; yes | git add -p models/net.safetensors.modelver.json >/dev/null; git commit -q -m four",
        After(4, kept=(4,)),
        modes=("fsmonitor",),
    ),
    Row(
        "add of a new model",
        "in the cache, pointer and metadata in the commit",
        "train models/fresh.safetensors 4; git add .; git commit -q -m fresh",
        After(2, others={"models/fresh.safetensors": 4}, kept=(4,)),
    ),
    Row(
        "am",
        "the patch's weights",
        "git format-patch -q -1 -o ../patches; git switch -q side; git am -q ../patches/*",
        After(2),
    ),
    Row(
        "am --abort",
        "the weights of before",
        "git format-patch -q -1 -o ../patches; git switch -q rival; git am -q ../patches/* >/dev/null 2>&1 || git am --abort",
        After(3),
    ),
    Row(
        "apply, commit -a",
        "the patch's weights once it is committed",
        "git format-patch -q -1 -o ../patches; git switch -q side; git apply ../patches/*; git commit -q -am two",
        After(2),
    ),
    # Files
    Row(
        "mv of a folder",
        "move along",
        "git mv models weights; git commit -q -m moved",
        After(None, aux=None, others={"weights/net.safetensors": 2, "weights/aux.safetensors": 9}),
    ),
    Row(
        "mv of a model's files",
        "move along with the commit",
        "for s in dvc modelver.json modelver.tensors; do git mv models/net.safetensors.$s models/new.safetensors.$s; done; git commit -q -m moved",
        After(None, others={"models/new.safetensors": 2}),
    ),
    Row(
        "rm of a model's files",
        "stay, named; modelver rm removes them, too",
        "git rm -q models/net.safetensors.*; git commit -q -m gone",
        After(2, recorded=0, says="models/net.safetensors: tracked no more"),
    ),
    Row(
        "rm --cached of a model's files",
        "stay",
        "git rm -q --cached models/net.safetensors.*",
        After(
            2,
            status="D  models/net.safetensors.dvc\nD  models/net.safetensors.modelver.json\nD  models/net.safetensors.modelver.tensors\n?? models/net.safetensors.dvc\n?? models/net.safetensors.modelver.json\n?? models/net.safetensors.modelver.tensors\n",
        ),
    ),
    Row(
        "clean -fdx",
        "deleted with the cache, as all that is ignored: modelver pull brings what was pushed",
        "git clean -q -fdx; modelver pull",
        After(2),
    ),
    Row("clean -fd", "stay", "git clean -q -fd", After(2)),
    Row("gc, prune", "stay", "git gc -q --prune=now; git prune; git switch -q old; git switch -q main", After(2)),
]


def render_table() -> str:
    """Give the page's table, in the order of the rows."""
    lines = ["| `git` ... | the models on disk | tried with |", "|---|---|---|"]
    for row in ROWS:
        modes = "the fsmonitor hook and without" if len(row.modes) == 2 else "the fsmonitor hook"
        lines.append(f"| {row.command} | {row.models} | {modes} |")
    return "\n".join(lines) + "\n"


def page_with_table(page: str) -> str:
    """Give the page's text with the table as the rows are now."""
    head, _, rest = page.partition(BEGIN)
    return head + BEGIN + render_table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text()))
    sys.stdout.write(f"{PAGE}: {len(ROWS)} rows\n")
