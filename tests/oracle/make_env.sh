#!/usr/bin/env bash
# Makes the original's environment in .venv-oracle, in one command: tests/oracle/make_env.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
python3 -m venv .venv-oracle
.venv-oracle/bin/pip install -q -r tests/oracle/requirements.txt
.venv-oracle/bin/python -c "import detr.models, torch; print('the original runs on torch', torch.__version__)"
