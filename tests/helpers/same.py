"""Equality to the last bit of what checkpoints hold."""

import numpy as np


def assert_same(found, expected, place="value"):
    """Two trees of dicts, lists, tuples, arrays and numbers are equal: types, order of keys and
    every bit.
    """
    assert type(found) is type(expected), place
    if isinstance(expected, dict):
        assert list(found) == list(expected), place
        for key in expected:
            assert_same(found[key], expected[key], f"{place}[{key!r}]")
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype, place
        np.testing.assert_array_equal(found, expected, place)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), place
        for i, pair in enumerate(zip(found, expected)):
            assert_same(*pair, f"{place}[{i}]")
    else:
        assert found == expected, place
