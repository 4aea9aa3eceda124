#!/bin/sh
# The main job on an embedded local remote: train, commit, push, retrain, diff, tag, roll back, clone, pull.
# Run it with 'make demo'; everything happens in .demo/, which is made anew.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
demo=$(dirname "$here")/.demo
rm -rf "$demo" && mkdir -p "$demo/home"
export HOME="$demo/home" XDG_CONFIG_HOME="$demo/home/.config" GIT_CONFIG_NOSYSTEM=1 GIT_PAGER=cat
export DVC_NO_ANALYTICS=1 DVC_SITE_CACHE_DIR="$demo/home/dvc" PYTHONDONTWRITEBYTECODE=1 COLUMNS=80
export GIT_ADVICE=0
unset GIT_DIR GIT_INDEX_FILE GIT_WORK_TREE 2>/dev/null || true
git config --global user.name "Ada" && git config --global user.email ada@example.org
git config --global init.defaultBranch main && git config --global advice.detachedHead false

say() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
run() { printf '\033[1m$ %s\033[0m\n' "$*"; eval "$*"; }

cd "$demo"
git init -q --bare origin.git

say "A Git + DVC repository that looks after models; weights go to a folder that plays the remote"
run "modelver init project --remote $demo/remote"
cd project
cp "$here"/digits/* .
git remote add origin ../origin.git

say "A pipeline trains a network on scikit-learn's digits"
run "dvc repro --quiet"
run "git add . && git commit -q -m 'first model'"
run "git push -q -u origin main"
run "git show --stat --format=%s HEAD -- models"
run "modelver tag digits v1.0.0"

say "Retrain with other hyper-parameters"
run "sed -i.bak -e 's/epochs: 3/epochs: 20/' -e 's/lr: 0.05/lr: 0.1/' params.yaml && rm params.yaml.bak"
run "dvc repro --quiet"
run "git status --short"
run "git diff -- models"
run "modelver diff"
run "git commit -q -am 'more epochs, higher learning rate'"
run "modelver tag digits --bump auto"
run "modelver log digits"

say "Only the output layer changes: the weights are written by hand, outside the pipeline"
cat > "$demo/head.py" <<'PY'
import numpy as np
from safetensors.numpy import load_file, save_file

tensors = load_file("models/digits.safetensors")
noise = np.random.default_rng(1).standard_normal(tensors["head.weight"].shape, dtype=np.float32)
tensors["head.weight"] += 0.01 * tensors["head.weight"].std() * noise
save_file(tensors, "models/digits.safetensors")
PY
run "python $demo/head.py"
run "git diff -- models/digits.safetensors.modelver.tensors"
run "modelver add --accept models/digits.safetensors && git commit -q -m 'noise on the head'"
run "git push -q --follow-tags"

say "Roll back: weights, pointer and metadata together, staged"
sha256sum models/digits.safetensors > "$demo/before"
run "modelver rollback digits v1.0.0"
run "git checkout digits@v1.0.0 -- params.yaml metrics.json"
run "git commit -q -m 'back to v1.0.0' && git push -q"
run "modelver show digits"

say "A colleague clones and pulls"
cd "$demo"
run "git clone -q origin.git colleague && cd colleague"
run "modelver install && modelver pull"
run "sha256sum models/digits.safetensors ../project/models/digits.safetensors"
cmp models/digits.safetensors ../project/models/digits.safetensors
run "modelver load digits@v1.1.0 -o v1.1.0.safetensors"

say "Plain DVC, without this tool, finds everything"
cd "$demo" && git clone -q origin.git plain && cd plain
run "dvc pull --quiet && dvc status"
printf '\nThe demo is in %s. Look around: git log -p, git show, modelver list.\n' "$demo"
