"""Collect the faults of a dataset, and print them grouped by kind."""

import re

from util.errors import InputError

# What varies between messages about the same kind of fault: quoted text, lists, words with digits.
VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\S*\d\S*|/\S*")


class Faults:
    """Collect one-line messages with file, id and fix.

    The first one stops the program, unless `skip` is set, which leaves out faulty images and
    annotations. With `find_all`, faults of whole files do not stop it either.

    Attributes: samples, files: the messages about images and annotations, and about whole files.
    """

    def __init__(self, skip=False, find_all=False):
        self.skip, self.find_all = skip or find_all, find_all
        self.samples, self.files = [], []

    def add(self, message):
        """Record a fault of an image or annotation. Raises InputError unless `skip` is set."""
        error = InputError(message)
        if not self.skip:
            raise error
        self.samples.append(str(error))

    def add_file(self, message):
        """Record a fault of a whole file. Raises InputError unless `find_all` is set."""
        error = InputError(message)
        if not self.find_all:
            raise error
        self.files.append(str(error))

    def report(self):
        """Print the number of images and annotations that are left out, and why."""
        if self.samples and not self.find_all:
            print(f"left out {len(self.samples)} bad images and annotations:")
            print_groups(self.samples, num_examples=1)


def print_groups(messages, num_examples):
    """Print the first messages of each kind, and how many more there are."""
    groups = {}
    for message in messages:
        groups.setdefault(VARIABLE.sub("…", message), []).append(message)
    for group in groups.values():
        for message in group[:num_examples]:
            print(f"  {message}")
        if len(group) > num_examples:
            print(f"  … and {len(group) - num_examples:,} of this kind")
