#!/usr/bin/env bash
# Create the original's environment in .venv-oracle.
set -euo pipefail
cd "$(dirname "$0")/../.."
python3 -m venv .venv-oracle
.venv-oracle/bin/pip install -q -r tests/oracle/requirements.txt
# Pure Python; it pins NumPy 1 without need, and the original's PyTorch comes with NumPy 2.
.venv-oracle/bin/pip install -q --no-deps panopticapi-lite==0.2.0
.venv-oracle/bin/python -c "import detr.models, torch; print('the original runs on torch', torch.__version__)"
