"""What the trainings of equivalence.py say: intervals, tests and a picture."""

from itertools import product

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from .report import ROOT

OUT = ROOT / "docs" / "alignment"
IN_POINTS = ("AP", "AP50", "AP75")
PAIRS = {"ours": "DETR-Jittor", "perturbed": "one bit away"}
CONFIDENCE = 0.95


def differences(rows, study, arm, figure, others=("original",)):
    """arm - the mean of `others`, of each seed that has all of them: float64 [n]; of AP in points."""
    values = {(row["seed"], row["arm"]): row[figure] for row in rows if row["study"] == study}
    found = [
        values[seed, arm] - np.mean([values[seed, other] for other in others])
        for seed in sorted({seed for seed, _ in values})
        if all((seed, name) in values for name in (arm, *others))
    ]
    return np.array(found) * (100 if figure in IN_POINTS else 1)


def interval(values):
    """(mean, lower end, upper end) of Student's confidence interval."""
    mean, error = values.mean(), stats.sem(values)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * error
    return mean, mean - half, mean + half


def equivalence(values, bound):
    """p of two one-sided t-tests: the larger one of "mean <= -bound" and "mean >= bound"."""
    error, freedom = stats.sem(values), len(values) - 1
    lower = stats.t.sf((values.mean() + bound) / error, freedom)
    upper = stats.t.cdf((values.mean() - bound) / error, freedom)
    return max(lower, upper)


def permutation(first, second, limit=20):
    """p that the means of two paired samples differ as much by chance, exact: all swaps of pairs."""
    halves = (first - second)[:limit]
    signs = np.array(list(product((1, -1), repeat=len(halves))), np.int8)
    return (np.abs(signs @ halves) >= abs(halves.sum()) - 1e-12).mean()


def describe(rows, name, study):
    """A study's section."""
    figures = [key for key in rows[0] if key not in ("study", "seed", "arm", "seconds")]
    lines = [
        "| figure | of | pairs | mean difference | 95% interval | standard deviation |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for figure in figures:
        for arm, title in PAIRS.items():
            values = differences(rows, name, arm, figure)
            if len(values) > 1:
                mean, low, high = interval(values)
                digits = 2 if figure in IN_POINTS else 4
                lines.append(
                    f"| {figure}{', points' * (figure in IN_POINTS)} | {title} | {len(values)} | "
                    f"{mean:+.{digits}f} | {low:+.{digits}f} to {high:+.{digits}f} | "
                    f"{values.std(ddof=1):.{digits}f} |"
                )
    mine = differences(rows, name, "ours", "AP")
    text = [
        f"## {name}\n",
        f"`{study.flags}`, {len(mine)} of {len(study.seeds)} seeds.\n",
        *lines,
        "",
    ]
    if len(mine) > 1:
        _, low, high = interval(mine)
        within = -study.bound <= low and high <= study.bound
        text.append(
            f"The interval of AP lies {'within' if within else 'not within'} ±{study.bound} points. Two "
            f"one-sided tests of equivalence within ±{study.bound} points: p = {equivalence(mine, study.bound):.2g}."
        )
    other = differences(rows, name, "perturbed", "AP")
    if len(other) == len(mine) > 1:
        text.append(
            "Permutation test of DETR-Jittor - original against one bit away - original: "
            f"p = {permutation(mine, other):.2g}."
        )
    return "\n".join(text) + "\n"


def draw(rows, studies, path):
    """All pairs: each seed's difference from the original, with the mean and its interval."""
    figure = Figure(figsize=(4.5 * len(studies), 4.2), layout="constrained")
    for axes, (name, study) in zip(np.ravel(figure.subplots(1, len(studies))), studies.items()):
        for place, arm in enumerate(arm for arm in PAIRS if arm in study.arms):
            values = differences(rows, name, arm, "AP")
            if len(values) < 2:
                continue
            offsets = np.linspace(-0.2, 0.2, len(values))
            axes.plot(place + offsets, values, "o", color=f"C{place}", alpha=0.6)
            mean, low, high = interval(values)
            axes.errorbar(
                place, mean, [[mean - low], [high - mean]], color="black", capsize=8, fmt="D"
            )
        axes.axhspan(-study.bound, study.bound, color="tab:green", alpha=0.12)
        axes.axhline(0, color="black", linewidth=0.8)
        arms = [title for arm, title in PAIRS.items() if arm in study.arms]
        axes.set_xticks(range(len(arms)), arms)
        axes.set_xlim(-0.5, len(arms) - 0.5)
        axes.set_ylabel("AP - original's, points")
        axes.set_title(name)
    figure.savefig(path, dpi=100)


def write_report(rows, studies):
    """Writes docs/alignment/equivalence.md and equivalence.png, and prints the former."""
    studies = {
        name: study for name, study in studies.items() if any(row["study"] == name for row in rows)
    }
    draw(rows, studies, OUT / "equivalence.png")
    hours = sum(row["seconds"] for row in rows) / 2 / 3600
    sections = "\n".join(describe(rows, name, study) for name, study in studies.items())
    text = f"""# The same detector, with many seeds

`python -m tests.oracle.equivalence` trained these and wrote this; [plan.md](plan.md) says what was fixed before. {len(rows)} trainings, two at once,
took {hours:.1f} hours. Each dot is one seed: AP minus the original's from the same weights and batches. "One bit away" is the original itself, from
weights that differ in their last bit: what chaos alone does. The green band is what counts as equivalent.

![difference of AP of all pairs](equivalence.png)

{sections}"""
    (OUT / "equivalence.md").write_text(text)
    print(text)
