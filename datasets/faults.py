"""Collect the faults of a dataset, and print them grouped by kind."""

import re

from util.errors import InputError, print_escaped

# What varies between messages about the same kind of fault: quoted text, lists, words with digits.
VARIABLE = re.compile(r"'[^']*'|\[[^\]]*\]|\S*\d\S*")


class Faults:
    """Collect what is wrong with a dataset.

    The first fault stops the program, unless `skip` is set, which leaves out faulty images and
    annotations. With `find_all`, faults of whole files do not stop it either.

    Attributes:
        samples: list of (place, message) about images and annotations.
        files: list of messages about whole files.
    """

    def __init__(self, skip=False, find_all=False):
        self.skip, self.find_all = skip or find_all, find_all
        self.samples, self.files = [], []

    def add(self, place, message):
        """Record a fault of an image or annotation. Raises InputError unless `skip` is set.

        place: file, and id if it has one; message: what is wrong, and the remedy.
        """
        if not self.skip:
            raise InputError(f"{place}: {message}")
        self.samples.append((place, message))

    def add_file(self, message):
        """Record a fault of a whole file. Raises InputError unless `find_all` is set."""
        if not self.find_all:
            raise InputError(message)
        self.files.append(message)

    def report(self):
        """Print the number of images and annotations that are left out, and why."""
        if self.samples and not self.find_all:
            print(f"left out {len(self.samples)} bad images and annotations:")
            self.print_samples(num_examples=1)

    def print_samples(self, num_examples):
        """Print the first samples with each kind of fault, and how many more there are."""
        groups = {}
        for place, message in self.samples:
            groups.setdefault(VARIABLE.sub("…", message), []).append(f"{place}: {message}")
        for group in groups.values():
            for message in group[:num_examples]:
                print_escaped(f"  {message}")
            if len(group) > num_examples:
                print(f"  … and {len(group) - num_examples:,} more")
