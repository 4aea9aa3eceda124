#!/bin/sh
# Builds the wheel, installs it into an empty environment, and uses it: hooks and templates must have travelled.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
here=$(pwd)
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$work/dist" .
"$work/venv/bin/python" -m pip install --quiet "$work"/dist/*.whl
export PATH="$work/venv/bin:$PATH" HOME="$work" GIT_CONFIG_NOSYSTEM=1 DVC_NO_ANALYTICS=1
git config --global user.name wheel && git config --global user.email wheel@example.org
mkdir "$work/repo" && cd "$work/repo"
modelver init --remote "$work/remote" >/dev/null
test -f .modelver.toml && test -x .git/hooks/pre-commit
python - <<'PY'
import json, struct
header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
open("tiny.safetensors", "wb").write(struct.pack("<Q", len(header)) + header + struct.pack("<2f", 1, 2))
PY
git add . && git commit -qm first
git cat-file -e HEAD:tiny.safetensors.dvc && git cat-file -e HEAD:tiny.safetensors.modelver.json
git modelver show tiny | grep -q 'version 1'
modelver card tiny | grep -q 'modelver: begin'
modelver lineage tiny --format html | grep -q '"graph"'
modelver doctor >/dev/null
modelver uninstall >/dev/null && test ! -e .git/hooks/pre-commit
cd "$here"
echo "wheel test: passed"
