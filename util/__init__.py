"""Utilities shared by models, datasets and main.py."""

import sys

if not (3, 10) <= sys.version_info < (3, 13):  # before any import that another Python may lack
    sys.exit(
        f"error: this is Python {sys.version.split()[0]} ({sys.executable}), and the program needs "
        "3.10, 3.11 or 3.12; make an environment with one of these"
    )
