"""The program's commit."""

import subprocess

import pytest

from util import version


def git(folder, *words):
    identity = ["-c", "user.name=A", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", folder, *identity, *words], check=True, capture_output=True)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(version, "ROOT", tmp_path / "program")
    (tmp_path / "program").mkdir()
    return tmp_path / "program"


def test_commit_and_changes(root):
    git(root, "init")
    (root / "main.py").write_text("1")
    git(root, "add", "main.py")
    git(root, "commit", "-m", "first")
    (root / "output").write_text("untracked files are no changes")
    commit = version.get_commit()
    assert len(commit) == 40 and set(commit) <= set("0123456789abcdef")
    (root / "main.py").write_text("2")
    assert version.get_commit() == f"{commit}, with changes"


def test_a_copy_without_git_has_no_commit(root, monkeypatch):
    git(root.parent, "init")  # a repository of the user's around it
    assert version.get_commit() == "unknown"
    git(root, "init")
    assert version.get_commit() == "unknown"  # without a commit
    monkeypatch.setenv("PATH", "")
    assert version.get_commit() == "unknown"  # Git is not installed
