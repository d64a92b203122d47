"""Trains this project and the original side by side and writes the alignment report:

    python -m tests.oracle.report [--out docs/alignment] [--coco_path PATH] [--parts table steps
    demo]

Every number in the report comes from the run. Where the original's interpreter is: see conftest.py.
"""

import argparse
import datetime
import importlib.metadata
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from util.plot_utils import make_table, plot_curves, read_log

from .conftest import HERE, ORACLE_PYTHON

ROOT = HERE.parents[1]
SEEDS = (42, 1, 2, 3)  # of comparison 2
RATES = (0.1, 1)  # of comparison 1: factors of the original's learning rates
FRAMEWORKS = {
    "DETR-Jittor": (sys.executable, "train_ours.py"),
    "original": (ORACLE_PYTHON, "train_original.py"),
}
SHOWN = ("loss", "loss_ce", "loss_bbox", "loss_giou")
MODULES = (
    "backbone",
    "transformer.encoder",
    "transformer.decoder",
    "input_proj",
    "query_embed",
    "class_embed",
    "bbox_embed",
)


def run(*command, **options):
    options = {"check": True, "cwd": ROOT, "stdout": subprocess.PIPE, "text": True, **options}
    return subprocess.run([str(word) for word in command], **options).stdout


def train(folder, *options):
    """Both frameworks on the same weights and batches, at once on half of the cores each: the
    folders of their runs.
    """
    runs = {name: folder / name for name in FRAMEWORKS}
    env = {**os.environ, "OMP_NUM_THREADS": str(max(1, os.cpu_count() // 2))}
    processes = []
    for run_folder, (python, script) in zip(runs.values(), FRAMEWORKS.values()):
        command = [python, "-W", "ignore", HERE / script, *options, folder, run_folder]
        command = [str(word) for word in command]
        processes.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=env))
    codes = [process.wait() for process in processes]
    if any(codes):
        raise RuntimeError(f"{folder}: exit codes {dict(zip(FRAMEWORKS, codes))}")
    return runs


def oracle_table():
    """The section of what the alignment tests measured, the largest of all configurations."""
    output = run(sys.executable, "-m", "pytest", "-q", "tests/oracle")
    parts = {}
    rows = [line.strip("| ").split(" | ") for line in output.splitlines() if line.startswith("|")]
    for part, configuration, difference, tolerance in rows[2:]:
        parts.setdefault((part, tolerance), []).append((float(difference), configuration))
    lines = [
        "| part | configurations | largest difference | of | tolerance |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (part, tolerance), rows in parts.items():
        difference, configuration = max(rows)
        lines.append(
            f"| {part} | {len(rows)} | {difference:.1e} | {configuration if difference else 'all'} "
            f"| {tolerance} |"
        )
    return f"""## 3. Part by part

What `python -m pytest tests/oracle` measured: {output.splitlines()[-1].strip("= ")}.

{chr(10).join(lines)}
"""


def compare_steps(out, folder, coco_path):
    """Comparison 1: the report's section."""
    slow, usual = (train_steps(folder / str(rate), coco_path, rate) for rate in RATES)
    mine, theirs = (slow[name]["loss"] for name in ("DETR-Jittor", "original"))
    difference = {name: relative(mine[name], theirs[name]) for name in theirs}
    draw_steps(
        out / "steps.png",
        mine,
        theirs,
        difference,
        relative(slow["one bit away"]["loss"]["loss"], theirs["loss"]),
        SHOWN,
    )
    losses = [
        "| step | "
        + " | ".join(f"{name}, original | relative difference" for name in SHOWN)
        + " |",
        "| --- |" + " --- | --- |" * len(SHOWN),
    ]
    for step in range(len(theirs["loss"])):
        losses.append(
            f"| {step} | "
            + " | ".join(
                f"{theirs[name][step]:.4f} | {difference[name][step]:.1e}" for name in SHOWN
            )
            + " |"
        )
    distances = [
        "| module | relative L2 distance of the weights | their way in training, relative |",
        "| --- | --- | --- |",
    ]
    for module in MODULES:
        a, b, c = (
            np.concatenate(
                [value.ravel() for name, value in weights.items() if name.startswith(module)]
            )
            for weights in (
                slow["DETR-Jittor"]["weights"],
                slow["original"]["weights"],
                slow["start"],
            )
        )
        distances.append(
            f"| {module} | {np.linalg.norm(a - b) / np.linalg.norm(b):.1e} | "
            f"{np.linalg.norm(b - c) / np.linalg.norm(b):.1e} |"
        )
    rates = [
        "| learning rate, backbone's | DETR-Jittor against the original | the original against "
        "itself, one bit away |",
        "| --- | --- | --- |",
    ]
    for result in (slow, usual):
        worst = [
            relative(result[name]["loss"]["loss"], result["original"]["loss"]["loss"]).max()
            for name in ("DETR-Jittor", "one bit away")
        ]
        rates.append(
            f"| {result['flags']['lr']:.0e}, {result['flags']['lr_backbone']:.0e} | "
            + " | ".join(f"{value:.1e}" for value in worst)
            + " |"
        )
    flags = slow["flags"]
    return f"""## 1. Real images, DETR-R50, step by step

The same random initial weights and the same {len(theirs["loss"])} batches of {flags["batch_size"]} images of `coco_tiny` at a
short side of 320 pixels, dropout 0, AdamW, gradient norm clipped to {flags["clip_max_norm"]}, StepLR with a drop after
{flags["lr_drop"]} epochs of 10 steps, and the original's learning rates times {RATES[0]} ({flags["lr"]:.0e}, backbone
{flags["lr_backbone"]:.0e}). Largest relative difference at any step: of the total loss **{difference["loss"].max():.1e}**, of any
of its {len(theirs) - 1} terms {max(values.max() for name, values in difference.items() if name != "loss"):.1e}.

![losses of both frameworks and their difference](steps.png)

Why a smaller rate: AdamW's first steps are nearly the sign of the gradient times the rate, so where a gradient is not larger
than its own rounding error, a last bit decides which way a weight goes. That is a property of the training, not of a
framework: the last column is the original against itself, started from weights that differ in their last bit. Largest relative
difference of the total loss at any of the {len(theirs["loss"])} steps:

{chr(10).join(rates)}

Step by step, at the smaller rate:

{chr(10).join(losses)}

After the last step:

{chr(10).join(distances)}
"""


def train_steps(folder, coco_path, rate):
    """Both frameworks, and the original once more from weights one bit away: name -> losses and
    last weights; the start.
    """
    run(
        sys.executable,
        HERE / "train_ours.py",
        "--prepare",
        "steps",
        "--coco_path",
        coco_path,
        "--rate",
        rate,
        folder,
    )
    runs = train(folder)
    runs["one bit away"] = folder / "shaken"
    run(
        ORACLE_PYTHON,
        "-W",
        "ignore",
        HERE / "train_original.py",
        shake(folder),
        runs["one bit away"],
    )
    results = {
        name: {
            "loss": dict(np.load(path / "steps.npz")),
            "weights": dict(np.load(path / "weights.npz")),
        }
        for name, path in runs.items()
    }
    return {
        **results,
        "start": dict(np.load(folder / "weights.npz")),
        "flags": json.loads((folder / "flags.json").read_text()),
    }


def relative(mine, theirs):
    return np.abs(mine / theirs - 1)


def shake(folder):
    """The prepared training again, with weights that differ in their last bit, up or down by
    chance.
    """
    place = folder / "again"
    place.mkdir()
    (place / "epochs").symlink_to(folder / "epochs")
    shutil.copy(folder / "flags.json", place)
    rng = np.random.default_rng(0)
    with np.load(folder / "weights.npz") as weights:
        np.savez(
            place / "weights.npz",
            **{
                name: np.nextafter(
                    value,
                    np.where(rng.random(value.shape) < 0.5, -np.inf, np.inf).astype(value.dtype),
                )
                for name, value in weights.items()
            },
        )
    return place


def draw_steps(path, mine, theirs, difference, shaken, shown):
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, name in enumerate(shown):
        left.plot(theirs[name], f"C{i}-", linewidth=4, alpha=0.35, label=f"{name}, original")
        left.plot(mine[name], f"C{i}.--", label=f"{name}, DETR-Jittor")
        right.semilogy(np.maximum(difference[name], 1e-9), f"C{i}.-", label=name)
    right.semilogy(
        np.maximum(shaken, 1e-9),
        "k--",
        alpha=0.5,
        label="loss, the original against\nitself, one bit away",
    )
    right.axhline(1e-3, color="black", linestyle=":", label="tolerance of the total loss")
    for axes, title, unit in (
        (left, "losses of both", "weighted loss, no unit"),
        (right, "relative difference", "|DETR-Jittor / original − 1|"),
    ):
        axes.set_title(title)
        axes.set_xlabel("training step")
        axes.set_ylabel(unit)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    figure.savefig(path, dpi=100)


def compare_demo(out, folder, shapes):
    """Comparison 2: the report's section."""
    runs = {}
    for seed in SEEDS:
        place = folder / str(seed)
        run(sys.executable, HERE / "train_ours.py", "--prepare", "demo", "--seed", seed, place)
        paths = train(place, "--evaluate", shapes)
        for epoch in (place / "epochs").iterdir():
            epoch.unlink()  # gigabytes
        runs.update({f"{name}, seed {seed}": read_log(path) for name, path in paths.items()})
    plot_curves(runs, out / "demo.png")
    final = {
        name: np.array(
            [runs[f"{name}, seed {seed}"][-1]["test_coco_eval_bbox"][0] for seed in SEEDS]
        )
        for name in FRAMEWORKS
    }
    mine, theirs = final.values()
    rows = [
        f"| {seed} | {a:.3f} | {b:.3f} | {a - b:+.3f} |" for seed, a, b in zip(SEEDS, mine, theirs)
    ]
    rows.append(
        f"| mean | {mine.mean():.3f} | {theirs.mean():.3f} | {mine.mean() - theirs.mean():+.3f} |"
    )
    between = [abs(a - b) for aps in final.values() for a, b in itertools.combinations(aps, 2)]
    first = [
        abs(
            runs[f"DETR-Jittor, seed {s}"][0]["train_loss"]
            / runs[f"original, seed {s}"][0]["train_loss"]
            - 1
        )
        for s in SEEDS
    ]
    return f"""## 2. To a trained detector

The embedded shapes and the demo's model and schedule ({len(runs[f"original, seed {SEEDS[0]}"])} epochs). With each seed both
frameworks start from the same initial weights and take the same batches; dropout 0. Rounding makes the trajectories part after
some hundred steps, so this comparison is judged by its outcome; the other seeds show what a real difference would look like.
Mean loss of the first epoch, relative difference: {", ".join(f"{value:.1e}" for value in first)}.

![losses and AP of both frameworks](demo.png)

{make_table(runs)}

Final AP:

| seed | DETR-Jittor | original | difference |
| --- | --- | --- | --- |
{chr(10).join(rows)}

- Between the frameworks, the means of {len(SEEDS)} seeds differ by **{abs(mine.mean() - theirs.mean()):.3f}**; with the same seed they
  differ by {np.abs(mine - theirs).mean():.3f} on average, {np.abs(mine - theirs).max():.3f} at most.
- Between two seeds of one framework, final AP differs by **{np.mean(between):.3f}** on average, {max(between):.3f} at most.
"""


def versions():
    """The machine, and what runs on it: read before the report's own pictures change the working
    tree.
    """
    theirs = run(
        ORACLE_PYTHON,
        "-c",
        "import importlib.metadata as m; print(', '.join(f'{n} {m.version(n)}' for n in "
        "('python-detr', 'torch', 'torchvision', 'numpy', 'pycocotools')))",
    ).strip()
    mine = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("jittor", "numpy", "pycocotools")
    )
    processor = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return f"""- Machine: {processor}, {os.cpu_count()} cores, no GPU; {platform.system()}, Python {platform.python_version()}.
- DETR-Jittor: {mine}; commit {run("git", "describe", "--always", "--dirty").strip()}.
- The original: {theirs}."""


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "alignment")
    parser.add_argument(
        "--coco_path", type=Path, default=ROOT.parent / "shared" / "data" / "coco_tiny"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=["table", "steps", "demo"], default=["table", "steps", "demo"]
    )
    args = parser.parse_args()
    start, machine, out = time.time(), versions(), args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    sections = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if "steps" in args.parts:
            sections.append(compare_steps(out, folder / "steps", args.coco_path.resolve()))
        if "demo" in args.parts:
            from arguments import parse_args
            from datasets import build_dataset

            shapes = build_dataset("val", parse_args(["--demo"])).img_folder.parent
            sections.append(compare_demo(out, folder / "demo", shapes))
    if "table" in args.parts:
        sections.append(oracle_table())
    command = "python -m tests.oracle.report" + (
        "" if len(args.parts) == 3 else f" --parts {' '.join(args.parts)}"
    )
    (out / "README.md").write_text(f"""# DETR-Jittor and the original, side by side

Written by `{command}` on {datetime.date.today()} in {(time.time() - start) / 60:.0f} minutes; nothing in it is typed by hand.
The original runs in an interpreter of its own (`tests/oracle/make_env.sh`).

{machine}

{chr(10).join(sections)}""")


if __name__ == "__main__":
    main()
