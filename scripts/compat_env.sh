#!/usr/bin/env bash
# Make the environment of the oldest versions we allow (.venv-compat), for `make test-compat`: every `name>=X` of
# pyproject.toml becomes `name==X`. Extra arguments replace single pins: compat_env.sh transformer_lens==4.3.0
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=.venv-compat
[ -x "$VENV/bin/python" ] || "$(scripts/find_python.sh)" -m venv "$VENV"
"$VENV/bin/python" - "$@" >"$VENV/oldest.txt" <<'PYTHON'
import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
replaced = {re.split(r"[=<>!~]", pin)[0].lower().replace("-", "_"): pin for pin in sys.argv[1:]}
for requirement in project["dependencies"]:
    floor = re.match(r"([\w-]+)(\[\w+\])?>=([\w.]+)", requirement)
    if floor is None:
        sys.exit(f"pyproject.toml: {requirement!r} states no oldest version (name>=X)")
    name, extra, oldest = floor.groups()
    print(replaced.pop(name.lower().replace("-", "_"), f"{name}{extra or ''}=={oldest}"))
print(*replaced.values(), sep="\n")
PYTHON
echo "installing the oldest versions we allow into $VENV (torch is large: some minutes)"
# What only the tests need is not ours to hold back; but the newest pyarrow, which comes with transformer_lens, wants
# NumPy 2 and does not say so to pip.
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -r "$VENV/oldest.txt" \
    pytest hypothesis beartype psutil scikit-image datasets 'pyarrow<20'
touch "$VENV/.installed"
