#!/usr/bin/env bash
# Makes the original's environment in .venv-oracle, in one command: tests/oracle/make_env.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
python3 -m venv .venv-oracle
.venv-oracle/bin/pip install -q -r tests/oracle/requirements.txt
# Pure Python; its demand for NumPy 1 is not meant: the original's PyTorch comes with NumPy 2.
.venv-oracle/bin/pip install -q --no-deps panopticapi-lite==0.2.0
.venv-oracle/bin/python -c "import detr.models, torch; print('the original runs on torch', torch.__version__)"
