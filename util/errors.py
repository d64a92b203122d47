"""The one exception that stands for a fault of the user's files or flags."""


class InputError(Exception):
    """A file, folder or flag that cannot be used.

    The message is one line that names the file (or flag) and the remedy; `main.py` prints it
    without a traceback and exits with code 1. Faults of the program itself keep their own
    exceptions and tracebacks.
    """

    def __str__(self):
        return printable(super().__str__())


def printable(text):
    """The text without what moves a terminal's cursor, which names from a hostile file may hold."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
