"""Errors and warnings about the user's files and flags."""

import sys


class InputError(Exception):
    """A file, folder or flag cannot be used.

    The message is one line that names the file or flag and the remedy. `main.py` prints it without
    a traceback and exits with code 1. Bugs in the program raise other exceptions.
    """

    def __str__(self):
        return escape_unprintable(super().__str__())


class DataError(InputError):
    """The data of a training step cannot be loaded; all processes raise it, after the same step."""


def escape_unprintable(text):
    """Escape control characters, which names in untrusted files may contain."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_escaped(text):
    """Print a line with names from files, which may not be printable."""
    print(escape_unprintable(text))


def warn(message):
    """Print a warning, one line, on stderr."""
    print(f"warning: {message}", file=sys.stderr)
