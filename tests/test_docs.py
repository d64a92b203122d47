"""README and docs: the flags are the parser's, and links lead to files.

`python -m tests.test_docs` writes the tables of docs/flags.md.
"""

import argparse
import re
from pathlib import Path

import pytest

from arguments import get_args_parser

REPO = Path(__file__).resolve().parents[1]
FLAGS = REPO / "docs" / "flags.md"
MARK = "<!-- The rest is written by `python -m tests.test_docs`. -->\n"
PAGES = [*REPO.glob("*.md"), *REPO.glob("docs/**/*.md")]


def flag_tables():
    """Return the Markdown of one table per argument group: flag, default, meaning."""
    lines = []
    for group in get_args_parser()._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if actions:
            lines += ["", f"## {group.title}", "", "flag | default | meaning", "---|---|---"]
        for action in actions:
            values = f"{{{','.join(action.choices)}}}" if action.choices else action.metavar
            flag = " ".join(filter(None, [*action.option_strings, values]))
            default = format_default(action.default)
            lines.append(f"`{flag}` | {default} | {action.help % vars(action)}")
    return "\n".join(lines) + "\n"


def format_default(value):
    if value in (None, argparse.SUPPRESS) or value is False:
        return ""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def write_flags():
    before, mark, _ = FLAGS.read_text().partition(MARK)
    FLAGS.write_text(before + mark + flag_tables())


def test_flags_page_is_the_parsers():
    _, mark, tables = FLAGS.read_text().partition(MARK)
    remedy = "docs/flags.md differs from get_args_parser(): run `python -m tests.test_docs`"
    assert mark and tables == flag_tables(), remedy


def test_flags_that_the_original_lacks_exist():
    named = re.findall(r"--\w+", FLAGS.read_text().partition(MARK)[0])
    assert named and set(named) <= set(get_args_parser()._option_string_actions)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_links_lead_to_files(page):
    links = re.findall(r"""\]\(([^)#]+)|src="([^"]+)""", page.read_text())
    paths = [path for pair in links for path in pair if path and "://" not in path]
    assert not [path for path in paths if not (page.parent / path).exists()]


def test_both_readmes_have_the_same_commands():
    english, chinese = (read_commands(REPO / name) for name in ("README.md", "README.zh-CN.md"))
    assert english and not english - chinese  # the Chinese one has mirrors, too


def read_commands(page):
    """Return the set of the lines in the page's blocks of code, without comments."""
    blocks = page.read_text().split("```")[1::2]
    lines = {line.partition("#")[0].rstrip() for block in blocks for line in block.split("\n")}
    return lines - {""}


if __name__ == "__main__":
    write_flags()
