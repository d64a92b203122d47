"""What the trainings of equivalence.py say: intervals, tests and a picture."""

import math

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from .report import ROOT

OUT = ROOT / "docs" / "alignment"
IN_POINTS = ("AP", "AP50", "AP75", "PQ", "SQ", "RQ")
# title -> what is compared, and with the mean of what
CHAOS = "the original one bit away − the original"
FIRST = "this project − the original"
BOTH = "this project − the mean of both"
COMPARISONS = {
    CHAOS: ("perturbed", ["original"]),
    FIRST: ("ours", ["original"]),
    BOTH: ("ours", ["original", "perturbed"]),
}


def differences(rows, study, figure, title):
    """A comparison's differences, of each seed that has all of its trainings: float64 [n].

    rows: the lines of equivalence.jsonl; figure: one of theirs; title: one of COMPARISONS. AP is in
    points.
    """
    arm, others = COMPARISONS[title]
    values = {(row["seed"], row["arm"]): row[figure] for row in rows if row["study"] == study}
    found = [
        values[seed, arm] - np.mean([values[seed, other] for other in others])
        for seed in sorted({seed for seed, _ in values})
        if all((seed, name) in values for name in (arm, *others))
    ]
    return np.array(found) * (100 if figure in IN_POINTS else 1)


def interval(values):
    """(lower, upper end) of Student's 95% confidence interval of the mean."""
    return tuple(stats.ttest_1samp(values, 0).confidence_interval(0.95))


def equivalence(values, bound):
    """p of two one-sided t-tests: the larger one of "mean <= -bound" and "mean >= bound"."""
    above = stats.ttest_1samp(values, -bound, alternative="greater").pvalue
    below = stats.ttest_1samp(values, bound, alternative="less").pvalue
    return max(above, below)


def permutation(first, second):
    """p that the means of two paired samples differ as much by chance, by swapping pairs.

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


def conclude(rows, studies):
    """The table of what decides, a row for each study."""
    lines = [
        "| study | difference | seeds | mean | 95% interval | bound | within it | two one-sided tests |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, study in studies.items():
        title = titles(study)[-1]
        values = differences(rows, name, study.figure, title)
        if len(values) < 2:
            continue
        low, high = interval(values)
        decision = "none | | |"
        if study.bound is not None:
            within = "yes" if -study.bound <= low and high <= study.bound else "no"
            p = equivalence(values, study.bound)
            decision = f"±{study.bound} | {within} | p = {p:.2g} |"
        lines.append(
            f"| {name} | {study.figure}, {title} | {len(values)} of {len(study.seeds)} | "
            f"{values.mean():+.2f} | {low:+.2f} to {high:+.2f} | {decision}"
        )
    return "\n".join(lines)


def describe(rows, name, study):
    """A study's section."""
    lines = [
        "| figure | difference | seeds | mean | 95% interval | standard deviation |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    of_study = next(row for row in rows if row["study"] == name)
    for figure in [key for key in of_study if key not in ("study", "seed", "arm", "seconds")]:
        for title in titles(study):
            values = differences(rows, name, figure, title)
            if len(values) > 1:
                low, high = interval(values)
                digits, unit = (2, ", points") if figure in IN_POINTS else (4, "")
                numbers = [f"{number:+.{digits}f}" for number in (values.mean(), low, high)]
                lines.append(
                    f"| {figure}{unit} | {title} | {len(values)} | {numbers[0]} | {numbers[1]} to "
                    f"{numbers[2]} | {values.std(ddof=1):.{digits}f} |"
                )
    text = f"## {name}\n\n" + "\n".join(lines) + "\n"
    chaos, mine = (differences(rows, name, study.figure, title) for title in (CHAOS, FIRST))
    if len(chaos) == len(mine) > 1:
        text += f"""
Permutation test of the differences of this project from the original against those of one bit away: p = {permutation(mine, chaos):.2g}.
"""
    return text


def titles(study):
    """The comparisons that a study allows, the decisive one last."""
    return [
        title for title, (arm, others) in COMPARISONS.items() if {arm, *others} <= set(study.arms)
    ]


def draw(rows, studies, path):
    """Each seed's differences, with their mean and its interval, and the bounds."""
    columns = min(3, len(studies))
    lines = math.ceil(len(studies) / columns)
    figure = Figure(figsize=(4.6 * columns, 4.6 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for axes in panels[len(studies) :]:
        axes.set_axis_off()
    for axes, (name, study) in zip(panels, studies.items()):
        labels = []
        for place, title in enumerate(titles(study)):
            values = differences(rows, name, study.figure, title)
            labels.append(title.replace(" − ", "\n− "))
            axes.plot(place + np.linspace(-0.25, 0.25, len(values)), values, "o", alpha=0.6)
            if len(values) > 1:
                mean, (low, high) = values.mean(), interval(values)
                error = [[mean - low], [high - mean]]
                axes.errorbar(place, mean, error, color="black", capsize=8, fmt="D")
        if study.bound is not None:
            axes.axhspan(-study.bound, study.bound, color="tab:green", alpha=0.12)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xticks(range(len(labels)), labels, fontsize="small")
        axes.set_xlim(-0.5, len(labels) - 0.5)
        axes.set(ylabel=f"difference of {study.figure}, points", title=name)
    figure.savefig(path, dpi=100)


def write_report(rows, studies):
    """Writes docs/alignment/equivalence.md and equivalence.png, and prints the former."""
    begun = {row["study"] for row in rows}
    studies = {name: study for name, study in studies.items() if name in begun}
    draw(rows, studies, OUT / "equivalence.png")
    hours = sum(row["seconds"] * studies[row["study"]].processes for row in rows) / 3600
    sections = "\n".join(describe(rows, name, study) for name, study in studies.items())
    text = f"""# The same detector, with many seeds

`python -m tests.oracle.equivalence --resume` trains what is missing and writes this; [plan.md](plan.md) says what was fixed
before the results were looked at. So far {len(rows)} trainings on one thread of each process, {hours:.1f} hours of a core. The table's differences are
in points; "one bit away" is the original itself, from weights that differ in their last bit: what chaos alone does.

{conclude(rows, studies)}

Each dot is a seed, the black mark the mean with its 95% interval, the green band what counts as equivalent:

![differences of AP of all seeds](equivalence.png)

{sections}"""
    (OUT / "equivalence.md").write_text(text)
    print(text)
