"""Statistics, tables and the figure of equivalence.py's report."""

import math

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from tests.helpers.processes import REPO

OUT = REPO / "docs" / "alignment"
IN_POINTS = ("AP", "AP50", "AP75", "PQ", "SQ", "RQ")
CHAOS = "the original one bit away − the original"
FIRST = "this project − the original"
BOTH = "this project − the mean of both"
# title -> (arm, the arms whose mean is subtracted from it)
COMPARISONS = {
    CHAOS: ("perturbed", ["original"]),
    FIRST: ("ours", ["original"]),
    BOTH: ("ours", ["original", "perturbed"]),
}


def compute_differences(rows, study, figure, title):
    """Return the differences of all seeds that have every arm of a comparison: float64 [n].

    rows: the lines of equivalence.jsonl; figure: a key of theirs; title: a key of COMPARISONS.
    AP and PQ are in points.
    """
    arm, others = COMPARISONS[title]
    values = {(row["seed"], row["arm"]): row[figure] for row in rows if row["study"] == study}
    differences = [
        values[seed, arm] - np.mean([values[seed, other] for other in others])
        for seed in sorted({seed for seed, _ in values})
        if all((seed, name) in values for name in (arm, *others))
    ]
    return np.array(differences) * (100 if figure in IN_POINTS else 1)


def confidence_interval(values):
    """Return Student's 95% confidence interval of the mean: (low, high)."""
    return tuple(stats.ttest_1samp(values, 0).confidence_interval(0.95))


def equivalence_p(values, bound):
    """Return p of two one-sided t-tests: the larger one of "mean <= -bound", "mean >= bound"."""
    above = stats.ttest_1samp(values, -bound, alternative="greater").pvalue
    below = stats.ttest_1samp(values, bound, alternative="less").pvalue
    return max(above, below)


def permutation_p(first, second):
    """Return p that the means of paired samples differ as much if pairs are swapped at random.

    Exact for up to 16 pairs, from 100,000 random swaps for more.
    """
    test = stats.permutation_test(
        (first, second),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=100_000,
        batch=10_000,
        rng=np.random.default_rng(0),
    )
    return test.pvalue


def get_comparisons(study):
    """Return the titles of the comparisons that a study has arms for, the decisive one last."""
    return [t for t, (arm, others) in COMPARISONS.items() if {arm, *others} <= set(study.arms)]


def make_conclusion(rows, studies):
    """Return the table of the decisive comparisons, a row per study."""
    lines = [
        "| study | difference | seeds | mean | 95% interval | bound | within | two one-sided tests |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, study in studies.items():
        title = get_comparisons(study)[-1]
        values = compute_differences(rows, name, study.figure, title)
        if len(values) < 2:
            continue
        low, high = confidence_interval(values)
        decision = "none | | |"
        if study.bound is not None:
            within = "yes" if -study.bound <= low and high <= study.bound else "no"
            p = equivalence_p(values, study.bound)
            decision = f"±{study.bound} | {within} | p = {p:.2g} |"
        lines.append(
            f"| {name} | {study.figure}, {title} | {len(values)} of {len(study.seeds)} | "
            f"{values.mean():+.2f} | {low:+.2f} to {high:+.2f} | {decision}"
        )
    return "\n".join(lines)


def make_section(rows, name, study):
    """Return a study's section: a row per figure, a column per comparison."""
    keys = next(row for row in rows if row["study"] == name).keys()
    figures = [key for key in keys if key not in ("study", "seed", "arm", "seconds")]
    header, table = ["figure"], [[figure] for figure in figures]
    for title in get_comparisons(study):
        differences = [compute_differences(rows, name, figure, title) for figure in figures]
        count = len(differences[0])
        if count < 2:
            continue
        header.append(f"{title} ({count})")
        for figure, values, cells in zip(figures, differences, table):
            digits = 2 if figure in IN_POINTS else 4
            mean, low, high = (
                f"{value:+.{digits}f}" for value in (values.mean(), *confidence_interval(values))
            )
            cells.append(f"{mean} [{low}, {high}] {values.std(ddof=1):.{digits}f}")
    lines = [header, ["---"] * len(header), *table]
    text = "\n".join(["", *(f"| {' | '.join(cells)} |" for cells in lines), ""])
    chaos, ours = (compute_differences(rows, name, study.figure, t) for t in (CHAOS, FIRST))
    if len(chaos) == len(ours) > 1:
        text += f"\nPermutation test against one bit away: p = {permutation_p(ours, chaos):.2g}.\n"
    return f"## {name}\n{text}"


def plot_differences(rows, studies, path):
    """Plot each seed's differences, with their means, intervals and bounds, into a file."""
    columns = min(3, len(studies))
    lines = math.ceil(len(studies) / columns)
    figure = Figure(figsize=(4.6 * columns, 4.6 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for axes in panels[len(studies) :]:
        axes.set_axis_off()
    for axes, (name, study) in zip(panels, studies.items()):
        labels = []
        for x, title in enumerate(get_comparisons(study)):
            values = compute_differences(rows, name, study.figure, title)
            labels.append(title.replace(" − ", "\n− "))
            axes.plot(x + np.linspace(-0.25, 0.25, len(values)), values, "o", alpha=0.6)
            if len(values) > 1:
                mean, (low, high) = values.mean(), confidence_interval(values)
                error = [[mean - low], [high - mean]]
                axes.errorbar(x, mean, error, color="black", capsize=8, fmt="D")
        if study.bound is not None:
            axes.axhspan(-study.bound, study.bound, color="tab:green", alpha=0.12)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xticks(range(len(labels)), labels, fontsize="small")
        axes.set_xlim(-0.5, len(labels) - 0.5)
        axes.set(ylabel=f"difference of {study.figure}, points", title=name)
    figure.savefig(path, dpi=100)


def write_report(rows, studies):
    """Write docs/alignment/equivalence.md and equivalence.png, and print the former."""
    begun = {row["study"] for row in rows}
    studies = {name: study for name, study in studies.items() if name in begun}
    plot_differences(rows, studies, OUT / "equivalence.png")
    hours = sum(row["seconds"] * studies[row["study"]].processes for row in rows) / 3600
    sections = "\n".join(make_section(rows, name, study) for name, study in studies.items())
    text = f"""# The same detector, with many seeds

Written by `python -m tests.oracle.equivalence --resume`, which trains what is missing; [plan.md](plan.md) was fixed before.
{len(rows)} trainings, {hours:.1f} hours of a core. AP and PQ are in points. "One bit away" is the original from weights that differ in
their last bit.

{make_conclusion(rows, studies)}

Each dot is a seed, the black mark the mean with its 95% interval, the green band the bound:

![differences of AP of all seeds](equivalence.png)

Below: mean [95% interval] standard deviation; seeds in brackets.

{sections}"""
    (OUT / "equivalence.md").write_text(text)
    print(text)
