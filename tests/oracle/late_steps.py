"""Training steps from states on the original's way through the demo, against float64:

    python -m tests.oracle.late_steps [--seed 1] [--out docs/alignment/late_steps.md]

A fault that shows late only, when the detector is good, when AdamW's averages are small, or after
the learning rate has dropped, would not show in steps from random weights. The original trains
the demo. From its state after some epochs, its weights and AdamW's averages, both frameworks take
the next steps in float32, and the original once more in float64.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from .conftest import HERE, ORACLE_PYTHON
from .report import FRAMEWORKS, ROOT, run
from .training import weights_of

OURS, ORIGINAL = FRAMEWORKS
EPOCHS = (1, 3, 6, 9, 12, 15, 17, 18, 20, 22)  # the learning rate drops after 18
STEPS = (1, 10, 50)


def save_states(folder, states, epochs):
    """Trains the original, and writes its states after some epochs as states/NNN.npz."""
    script = HERE / "late_steps_original.py"
    run(ORACLE_PYTHON, "-W", "ignore", script, folder, states, "--epochs", *epochs)


def steps_from(state, folder):
    """name -> npz of the weights after steps; of both frameworks and of the original in float64."""
    commands = {
        OURS: [FRAMEWORKS[OURS][0], HERE / "late_steps_ours.py"],
        ORIGINAL: [ORACLE_PYTHON, "-W", "ignore", HERE / "late_steps_original.py"],
    }
    commands["float64"] = [*commands[ORIGINAL], "--double"]
    for name, command in commands.items():
        out = state.with_name(f"{state.stem}-{name}.npz")
        run(*command, folder, state, "--out", out, "--steps", *STEPS)
        with np.load(out) as arrays:
            yield name, dict(arrays)


def compare(state, found):
    """Rows of the table: the number of steps, and of each framework two numbers.

    They are the distances of the trained parameters, and of BatchNorm's statistics, from those in
    float64, over the length of the way that these went.
    """
    start = {name: array.astype(np.float64) for name, array in weights_of(state).items()}
    kinds = {
        "parameters": [name for name in start if "running" not in name],
        "statistics": [name for name in start if "running" in name],
    }

    def distance(first, second, kind):
        return np.sqrt(sum(((first[n] - second[n]) ** 2).sum() for n in kinds[kind]))

    for number in STEPS:
        weights = {
            name: {n: arrays[f"{number}/{n}"].astype(np.float64) for n in start}
            for name, arrays in found.items()
        }
        exact = weights["float64"]
        yield [
            number,
            *(
                distance(weights[name], exact, kind) / distance(exact, start, kind)
                for kind in kinds
                for name in FRAMEWORKS
            ),
        ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/alignment/late_steps.md")
    options = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        folder, states = Path(folder) / "demo", Path(folder) / "states"
        prepare = ["--prepare", "demo", "--seed", options.seed]
        run(FRAMEWORKS[OURS][0], HERE / "train_ours.py", *prepare, folder)
        save_states(folder, states, EPOCHS)
        for epoch in EPOCHS:
            state = states / f"{epoch:03}.npz"
            for steps, *numbers in compare(state, dict(steps_from(state, folder))):
                cells = " | ".join(f"{number:.1e}" for number in numbers)
                lines.append(f"| {epoch} | {steps} | {cells} |")
                print(lines[-1], flush=True)
    text = f"""# Steps on the original's way

`python -m tests.oracle.late_steps` wrote this. The original trains the demo, 22 epochs with a drop of the learning rate after 18. From its state
after some epochs, weights and AdamW's averages, both frameworks take the next steps on the same batches in float32, and the original once more in
float64. The numbers are distances from float64, over the length of the way that float64 went.

| epochs | steps | parameters: {OURS} | {ORIGINAL} | statistics of BatchNorm: {OURS} | {ORIGINAL} |
| --- | --- | --- | --- | --- | --- |
{chr(10).join(lines)}
"""
    options.out.write_text(text)


if __name__ == "__main__":
    main()
