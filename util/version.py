"""Identify this copy of the program."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def get_commit():
    """Return the Git commit, with ", with changes" if files differ, or "unknown" without Git.

    Source: `get_sha` of the original.
    """
    if not (ROOT / ".git").exists():  # Git would look for one in the folders above
        return "unknown"
    try:
        commit, changes = (
            subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True).stdout
            for words in (
                ["rev-parse", "--verify", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no"],
            )
        )
    except OSError:  # Git is not installed
        return "unknown"
    return (commit.strip() or "unknown") + (", with changes" if changes else "")
