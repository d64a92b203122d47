"""Initial weights have the original's distributions, tensor by tensor."""

import numpy as np
import ours
import pytest
import tiny

from util.backend import jt


def describe(model):
    arrays = {name: p.numpy().astype(np.float64) for name, p in model.state_dict().items()}
    return {name: (a.shape, [a.mean(), a.std(), a.min(), a.max()]) for name, a in arrays.items()}


@pytest.mark.parametrize("case, count", [("resnet50", 458), ("learned", 295)])
def test_initialisation(case, count, original, measured):
    """Compare mean, standard deviation and range, in units of their difference by chance.

    The unit of mean and standard deviation is the standard error of a difference, for the latter
    that of a normal distribution (a uniform one has less). n uniform numbers reach the bound b up
    to 2 b / n on average, and a difference of k times that has probability exp(-k).
    """
    theirs = original("run_model.py", "--init", case)
    jt.set_global_seed(42)
    mine = describe(tiny.build(ours.arguments(case))[0])
    assert len(mine) == count
    assert {name.removesuffix("/shape") for name in theirs if name.endswith("/shape")} == set(mine)

    deviations = {"mean": {}, "standard deviation": {}, "range": {}}
    large = {"standard deviation": [], "bound": []}
    constant = 0
    for name, (shape, (mean, std, low, high)) in mine.items():
        assert tuple(theirs[f"{name}/shape"]) == shape, name
        their_mean, their_std, their_low, their_high = theirs[f"{name}/figures"]
        if their_low == their_high:
            assert (low, high) == (their_low, their_high), name
            constant += 1
            continue
        size, half_range = np.prod(shape), (their_high - their_low) / 2
        deviations["mean"][name] = abs(mean - their_mean) / (their_std * np.sqrt(2 / size))
        deviations["standard deviation"][name] = abs(std / their_std - 1) * np.sqrt(size)
        if size > 10000:
            large["standard deviation"].append(abs(std / their_std - 1))
        # 100 normal samples go beyond 2 sigma; smaller tensors are biases.
        if half_range < 2 * their_std or size < 100:
            distance = max(abs(high - their_high), abs(low - their_low)) / half_range
            deviations["range"][name] = distance / (2 / size)
            if size > 10000:
                large["bound"].append(distance)
    assert constant > 100 and len(deviations["range"]) > 50, "too few tensors of each distribution"

    for figure, values in deviations.items():
        name = max(values, key=values.get)
        tolerance = 12 if figure == "range" else 5
        part = f"initial {figure}, in its unit of chance"
        measured(part, f"{case}, {name}", values[name], tolerance)
    for figure, values in large.items():
        measured(f"initial {figure} of tensors above 10,000, relative", case, max(values), 0.02)
