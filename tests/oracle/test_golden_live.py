"""The committed golden results are what the original computes today."""

import numpy as np
from golden_file import GOLDEN, check_case, of_case
from make_golden import CASES


def test_committed_golden_results_are_the_originals(original):
    live = original("make_golden.py")
    with np.load(GOLDEN) as file:
        committed = dict(file)
    assert set(live) == set(committed)
    np.testing.assert_allclose(committed["training"], live["training"], rtol=1e-4)
    for case in CASES:
        check_case(of_case(live, case), of_case(committed, case))
