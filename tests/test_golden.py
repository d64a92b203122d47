"""Our model against stored results of the original, for machines that do not have the original.

tests/oracle/make_golden.py makes the file; tests/oracle/test_golden_live.py makes it again and
compares.
"""

import numpy as np
import ours
import pytest
from golden_file import GOLDEN, check_case, of_case
from make_golden import CASES, TRAINING_CASE, TRAINING_STEPS, condense


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.mark.parametrize("case", CASES)
def test_model(golden, case):
    check_case(of_case(golden, case), condense(ours.compare(case)))


def test_training_steps(golden):
    np.testing.assert_allclose(
        ours.train(TRAINING_CASE, TRAINING_STEPS)["losses"], golden["training"], rtol=1e-3
    )
