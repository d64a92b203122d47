"""Write the original's results on some of the recipe's cases, for tests that run without it.

    ORACLE_PYTHON tests/oracle/make_golden.py tests/golden/model.npz

`CASE/NAME` is what run_model.py writes, with the logits of every tenth query only; the gradients
are `CASE/grad_names` [n] and `CASE/grads` [3, n, 2] (see digest.py). `training` [5]: losses of five
steps of resnet18.
"""

import sys

import numpy as np
from digest import digest

CASES = ("resnet18", "learned", "pre-norm", "tiny", "no-objects", "more-objects-than-queries")
TRAINING_CASE, TRAINING_STEPS = "resnet18", 5


def condense(results):
    """Return what the golden file keeps of a case's results."""
    condensed = {name: value for name, value in results.items() if not name.startswith("grad/")}
    condensed["logits"] = condensed["logits"][:, :, ::10]
    names = sorted(name[len("grad/0/") :] for name in results if name.startswith("grad/0/"))
    condensed["grad_names"] = np.array(names)
    condensed["grads"] = np.stack(
        [digest({name: results[f"grad/{seed}/{name}"] for name in names}) for seed in range(3)]
    )
    return condensed


def main(path):
    import run_model  # imports PyTorch, which the tests that use `condense` do not have

    golden = {"training": run_model.train(TRAINING_CASE, TRAINING_STEPS)["losses"]}
    for case in CASES:
        golden.update(
            {f"{case}/{name}": value for name, value in condense(run_model.compare(case)).items()}
        )
    np.savez_compressed(path, **golden)


if __name__ == "__main__":
    main(sys.argv[1])
