"""Each step of a training of this project, taken again by the original from the same state:

    python -m tests.oracle.every_step [--seed 101] [--out docs/alignment/every_step.md]

This project trains the demo as in equivalence.py, with its evaluations. From its state before each
step, weights and AdamW's averages, the original takes that step in float32 and in float64. So chaos
has no part in it, and two kinds of faults show that samples of steps would miss: rare errors, and
small ones that do not average out.
"""

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.helpers.processes import ENVIRONMENT

from .conftest import HERE, ORACLE_PYTHON
from .equivalence import DEMO, RESULTS, STUDIES, Results, figures_of, prepare, validation_data
from .every_step_original import ARMS, GROUPS, MODULES
from .report import FRAMEWORKS, ROOT

OURS = "DETR-Jittor"
STUDY = "boxes, second round"


def train(seed, flags, folder):
    """Both programs side by side: (what every_step_original.py saves, this project's figures)."""
    prepared, states, out = (folder / name for name in ("prepared", "states", "errors.npz"))
    prepare(prepared, seed, flags)
    states.mkdir()
    first = STUDIES[STUDY].evaluate_from
    evaluate = ["--evaluate", validation_data(flags), "--evaluate_from", first]
    python, script = FRAMEWORKS[OURS]
    run_together(
        [python, HERE / script, *evaluate, "--states", states, prepared, folder / OURS],
        [ORACLE_PYTHON, "-W", "ignore", HERE / "every_step_original.py", prepared, states, out],
    )
    with np.load(out) as arrays:
        return dict(arrays), figures_of(folder / OURS)


def run_together(*commands):
    """Where one fails, the other would wait for it, and is ended."""
    options = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "env": ENVIRONMENT}
    processes = [
        subprocess.Popen([str(word) for word in command], **options) for command in commands
    ]
    while None in (codes := [process.poll() for process in processes]):
        if any(codes):
            for process in processes:
                process.kill()
        time.sleep(1)
    assert not any(codes), codes


def table(errors):
    """Lines of the table, one for each group of numbers, from what every_step_original.py saved."""
    for number, group in enumerate(GROUPS):
        lengths = errors["lengths"][:, number]
        cells = []
        for arm in ARMS:
            squares = errors[f"{arm}/squares"][:, number]
            along = errors[f"{arm}/along"][:, number] / lengths
            worst = np.argmax(squares / lengths)
            cells += [
                f"{np.sqrt(squares.sum() / lengths.sum()):.1e}",
                f"{np.sqrt((squares / lengths)[worst]):.1e} ({worst + 1})",
                f"{errors[f'{arm}/sum'][number] / squares.sum():.1f}",
                f"{along.mean():+.0e} ± {along.std(ddof=1) / np.sqrt(len(along)):.0e}",
            ]
        yield f"| {group} | {' | '.join(cells)} |"


def errors_of_parameters(errors, arm):
    """The relative errors of all parameters at once, step by step: float [steps]."""
    squares, lengths = (
        errors[name][:, : len(MODULES)].sum(1) for name in (f"{arm}/squares", "lengths")
    )
    return np.sqrt(squares / lengths)


def report(seed, errors, figures):
    ours, original = (errors_of_parameters(errors, arm) for arm in ARMS)
    recorded = Results(RESULTS).find(STUDY, seed, "ours")
    return f"""# Each step of a training

`python -m tests.oracle.every_step` wrote this. {OURS} trains the demo: seed {seed} of "{STUDY}", {len(errors["lengths"])} steps, with its
evaluations. From its state before each step, weights and AdamW's averages, the original takes that step in float32 and in float64. So chaos has no
part in it. An error is the difference from float64 after the step.

- *All*: the length of the errors of all steps, over that of the steps.
- *Largest*: the same of the worst step, and its number.
- *Sum*: the squared length of the sum of all errors, over the sum of their squared lengths. Independent errors have 1; if all were the same, it would
  be the number of steps.
- *Along*: the errors' part along the step, over its length: mean and standard error. Below 0, steps are too short.

| | {OURS}: all | largest | sum | along | original: all | largest | sum | along |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(table(errors))}

Over all parameters half of the steps are off by less than {np.median(ours):.1e}, the original's by less than {np.median(original):.1e}; the worst ones by {ours.max():.1e} and
{original.max():.1e}; by more than 1e-3 {(ours > 1e-3).sum()} and {(original > 1e-3).sum()} steps.

The training's AP is {figures["AP"]:.7f}; the one in equivalence.jsonl has {recorded["AP"]:.7f}.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=101)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/alignment/every_step.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("DETR_WORK")) as folder:
        text = report(options.seed, *train(options.seed, DEMO, Path(folder)))
    options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
