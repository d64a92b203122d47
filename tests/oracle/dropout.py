"""The random numbers of dropout: their rate, and whether they are independent.

    python -m tests.oracle.dropout [--steps 32] [--out docs/alignment/dropout.md]

Drawn are the masks of the dropout layers of DETR with 6 encoder and 6 decoder layers, in each step
and process of a training, with the seeds that `engine.py` takes.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy import stats

from .report import ROOT

POSITIONS = 1 << 16
LAYERS = 6 * 4 + 6 * 6
PROCESSES = 2
RATES = (0.1, 0.5)
SEED = 42
AXES = ("step", "process", "layer", "position")


def draw(rate, steps):
    """Which elements are dropped, bool [steps, PROCESSES, LAYERS, POSITIONS]."""
    from engine import seed_of_batch
    from util import ops
    from util.backend import jt

    dropout = ops.Dropout(rate)
    dropout.train()
    ones = jt.ones((POSITIONS,))
    dropped = np.empty((steps, PROCESSES, LAYERS, POSITIONS), bool)
    for step, process in np.ndindex(steps, PROCESSES):
        jt.set_seed(seed_of_batch(SEED, 0, step * PROCESSES + process))
        for layer in range(LAYERS):
            dropped[step, process, layer] = dropout(ones).numpy() == 0
    return dropped


def rates_along(dropped, rate, axis):
    """(chi-square, degrees of freedom) of the numbers dropped at each place of an axis."""
    others = tuple(i for i in range(dropped.ndim) if i != axis)
    counts = dropped.sum(others, dtype=np.int64)
    n = dropped.size // counts.size
    return ((counts - n * rate) ** 2).sum() / (n * rate * (1 - rate)), counts.size


def agreement(first, second, rate):
    """(chi-square, degrees of freedom) of the four ways in which two masks can agree or not."""
    a, b, n = np.count_nonzero(first), np.count_nonzero(second), first.size
    both = np.count_nonzero(first & second)
    found = np.array([both, a - both, b - both, n - a - b + both])
    expected = n * np.outer([rate, 1 - rate], [rate, 1 - rate]).ravel()
    return ((found - expected) ** 2 / expected).sum(), 3


def neighbours(dropped, rate, length=8):
    """(chi-square, degrees of freedom) of how many of `length` neighbours are dropped."""
    counts = dropped.reshape(-1, length).sum(1)
    found = np.bincount(counts, minlength=length + 1)
    expected = len(counts) * stats.binom.pmf(np.arange(length + 1), length, rate)
    rare = expected < 10
    if rare.any():
        found = np.append(found[~rare], found[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    return ((found - expected) ** 2 / expected).sum(), len(found) - 1


def tests_of(dropped, rate):
    """Yields (property, chi-square, degrees of freedom)."""
    for axis, name in enumerate(AXES):
        yield f"rate of each {name}", *rates_along(dropped, rate, axis)
    yield "number dropped of 8 neighbours", *neighbours(dropped, rate)
    for axis, name in enumerate(AXES):
        for shift in (1, 2, 3, 24, 64, 256, 4096):
            if shift < dropped.shape[axis]:
                first = np.moveaxis(dropped, axis, 0)[:-shift]
                second = np.moveaxis(dropped, axis, 0)[shift:]
                yield f"{name}: {shift} apart", *agreement(first, second, rate)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/alignment/dropout.md")
    options = parser.parse_args()
    lines = ["| rate | property | chi-square | degrees of freedom | p |", "| --- |" + " --- |" * 4]
    lowest = []
    for rate in RATES:
        dropped = draw(rate, options.steps)
        lines.append(f"| {rate} | mean: {dropped.mean(dtype=np.float64):.6f} | | | |")
        for name, statistic, freedom in tests_of(dropped, rate):
            p = stats.chi2.sf(statistic, freedom)
            lowest.append(p)
            lines.append(f"| {rate} | {name} | {statistic:.1f} | {freedom:,} | {p:.3f} |")
    text = f"""# The random numbers of dropout

`python -m tests.oracle.dropout` wrote this. {dropped.size:,} elements of each rate: {options.steps} steps of {PROCESSES}
processes, {LAYERS} dropout layers, {POSITIONS:,} positions. p is uniform in 0..1 for independent draws; of {len(lowest)} tests
the lowest is {min(lowest):.3f}, where {1 / (len(lowest) + 1):.3f} is to be expected.

{chr(10).join(lines)}
"""
    options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
