"""Looks for a systematic error of the gradients: the mean over many batches, against float64.

    python -m tests.oracle.mean_gradient [--batches 200] [--out docs/alignment/mean_gradient.md]

Rounding errors average out, a bias does not. Each framework computes the gradients of the demo's
batches in float32, and the original once more in float64; at the initial weights, and at those
that the original has after some epochs. Of n batches with independent errors the mean's error is
1 / sqrt(n) of the root mean square of theirs: their ratio is 1 for rounding alone, and sqrt(n) for
a bias alone.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

from .conftest import HERE
from .late_steps import save_states
from .report import FRAMEWORKS, MODULES, ROOT, run
from .training import weights_of

SEED = 0
EPOCHS = (1, 18, 22)  # the learning rate drops after 18


def read(path):
    """(gradients, memory-mapped [batches, numbers]; name -> where its numbers are)"""
    sizes = json.loads(path.with_suffix(".json").read_text())
    ends = np.cumsum(list(sizes.values()))
    places = {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends)}
    return np.load(path.with_suffix(".npy"), mmap_mode="r"), places


def gradients(folder, batches):
    """name -> what `read` returns, of both frameworks and of the original in float64."""
    found = {}
    for name, (python, script) in FRAMEWORKS.items():
        variants = {name: []}
        if name == "original":
            variants["float64"] = ["--double"]
        for variant, flags in variants.items():
            out = folder / variant
            command = [python, "-W", "ignore", HERE / script, "--gradients", batches, *flags]
            run(*command, folder, out)
            found[variant] = read(out)
    return found


def compare(found):
    """Rows of the table: a module, and for each framework three numbers.

    They are the error of the mean gradient, that of a batch (root mean square), both over the norm in
    float64, and their ratio times sqrt(n).
    """
    exact, places = found["float64"]
    rows = []
    for module in (*MODULES, ""):
        columns = np.concatenate(
            [
                np.arange(place.start, place.stop)
                for name, place in places.items()
                if name.startswith(module)
            ]
        )
        row = [module or "all"]
        of_module = exact[:, columns]
        norm = np.linalg.norm(of_module.mean(0))
        for name in FRAMEWORKS:
            array, own_places = found[name]
            assert own_places == places
            error = array[:, columns] - of_module
            of_mean = np.linalg.norm(error.mean(0))
            of_batches = np.sqrt((error**2).sum(1).mean())
            row += [of_mean / norm, of_batches / norm, of_mean / of_batches * len(error) ** 0.5]
        rows.append(row)
    return rows


def table(rows):
    names = [f"{name}: {what}" for name in FRAMEWORKS for what in ("mean", "a batch", "ratio")]
    lines = [f"| module | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for module, *numbers in rows:
        cells = [f"{x:.1f}" if i % 3 == 2 else f"{x:.1e}" for i, x in enumerate(numbers)]
        lines.append(f"| {module} | {' | '.join(cells)} |")
    return "\n".join(lines)


def after_epochs(folder):
    """Folders as `folder`, with the weights that the original has after EPOCHS."""
    states = folder / "states"
    save_states(folder, states, EPOCHS)
    for epoch in EPOCHS:
        trained = folder / f"trained-{epoch}"
        trained.mkdir()
        (trained / "epochs").symlink_to(folder / "epochs")
        shutil.copy(folder / "flags.json", trained)
        np.savez(trained / "weights.npz", **weights_of(states / f"{epoch:03}.npz"))
        yield f"After {epoch} epoch{'s' * (epoch > 1)}", trained


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/alignment/mean_gradient.md")
    options = parser.parse_args()
    sections = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder) / "start"
        prepare = ["--prepare", "demo", "--seed", SEED]
        run(FRAMEWORKS["DETR-Jittor"][0], HERE / "train_ours.py", *prepare, folder)
        for title, place in (("At the initial weights", folder), *after_epochs(folder)):
            found = gradients(place, options.batches)
            sections.append(f"## {title}\n\n{table(compare(found))}\n")
            del found
            for file in place.glob("*.npy"):
                file.unlink()  # gigabytes
    text = f"""# The mean gradient of {options.batches} batches

`python -m tests.oracle.mean_gradient` wrote this. Both frameworks compute the gradients of the demo's batches in float32, from the same weights;
the original does so in float64, too. "mean" is the error of the mean over all batches, "a batch" the root mean square of the errors of single
batches; both are relative to the norm of the mean in float64. "ratio" compares them: 1 where the errors of the batches are independent, as
rounding errors are, and {options.batches**0.5:.0f} where they are all the same.

{chr(10).join(sections)}"""
    options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
