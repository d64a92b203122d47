"""The stored results of the original, and how close ours have to be."""

from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "model.npz"


def of_case(golden, case):
    return {
        name[len(case) + 1 :]: value
        for name, value in golden.items()
        if name.startswith(case + "/")
    }


def check_case(expected, found):
    """The tolerances of DESIGN.md."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        if name.startswith("match/") or name in ("labels", "grad_names"):
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        elif name.startswith("loss/"):
            np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    tolerances = {
        "logits": 1e-4 * np.abs(expected["logits"]).max(),
        "boxes": 1e-5,
        "scores": 1e-4,
        "pixels": 0.05,
    }
    for name, tolerance in tolerances.items():
        np.testing.assert_allclose(
            found[name], expected[name], rtol=0, atol=tolerance, err_msg=name
        )
    check_gradients(expected["grad_names"], expected["grads"], found["grads"])


def check_gradients(names, expected, found):
    """Norm and dot product of each parameter's gradient, over the norm: the best of three batches.

    oracle/test_model.py says why. Gradients that should be zero consist of rounding errors and need
    only be small beside the whole.
    """
    norms, differences = expected[..., 0], np.abs(found - expected).max(-1)
    small = 1e-6 * np.sqrt(np.square(norms[0]).sum())
    zero = norms[0] < small
    assert (differences[0, zero] < small).all(), names[zero][differences[0, zero] >= small]
    distances = (differences[:, ~zero] / norms[:, ~zero]).min(0)
    assert (distances < 1e-3).all(), names[~zero][distances >= 1e-3]
