"""Bitwise equality of checkpoints' content."""

import numpy as np


def assert_same(found, expected, path="value"):
    """Assert that two trees of dicts, lists, tuples, arrays and scalars are equal.

    Compares types, the order of keys, and every bit.
    """
    assert type(found) is type(expected), path
    if isinstance(expected, dict):
        assert list(found) == list(expected), path
        for key in expected:
            assert_same(found[key], expected[key], f"{path}[{key!r}]")
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype, path
        np.testing.assert_array_equal(found, expected, path)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), path
        for i, pair in enumerate(zip(found, expected)):
            assert_same(*pair, f"{path}[{i}]")
    else:
        assert found == expected, path
