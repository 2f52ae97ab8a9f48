#!/usr/bin/env bash
# Make the environment of the other libraries (.venv-peers), for `make test-peers` and the benchmarks.
# They need older packages than nb_sae (sae-lens: transformer-lens < 4), so they never share one with it: tests exchange
# files. The versions are the ones that tests/fixtures/peers was written with.
# torch is the release that .venv has, so that a benchmark compares libraries and not builds.
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=.venv-peers
[ -x "$VENV/bin/python" ] || "$(scripts/find_python.sh)" -m venv "$VENV"
PIP=("$VENV/bin/python" -m pip install --quiet --disable-pip-version-check)
TORCH=torch
if [ -x .venv/bin/python ]; then
    TORCH="torch==$(.venv/bin/python -c 'from importlib.metadata import version; print(version("torch"))')"
fi
echo "installing sae-lens, eai-sparsify, overcomplete and dictionary-learning into $VENV (torch is large: some minutes)"
"${PIP[@]}" "$TORCH" 'sae-lens==6.54.12' 'transformer-lens<4' 'eai-sparsify==1.3.3' 'overcomplete==0.3.0' \
    'matplotlib<3.11' # overcomplete draws with matplotlib.cm.get_cmap
# dictionary-learning asks for plotting and embedding packages that only its interpretation module imports and that
# hold numpy back; what its dictionaries, buffers and trainers import is named here instead.
"${PIP[@]}" 'nnsight>=0.3,<0.4' zstandard pandas wandb psutil
"${PIP[@]}" --no-deps 'dictionary-learning==0.1.0'
# ViT-Prisma's release on PyPI (0.1.4) has no autoencoders; its format is tested against the layout alone.
SPARSIFY_DISABLE_TRITON=1 "$VENV/bin/python" - <<'PYTHON'
from importlib import import_module
from importlib.metadata import version

for package, module in {
    "torch": "torch",
    "sae-lens": "sae_lens",
    "eai-sparsify": "sparsify",
    "dictionary-learning": "dictionary_learning",
    "overcomplete": "overcomplete",
}.items():
    import_module(module)
    print(f"{package} {version(package)}")
PYTHON
touch "$VENV/.installed"
