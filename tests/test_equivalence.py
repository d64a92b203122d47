"""The equivalence study: stored batches, and statistics on made-up results."""

import numpy as np
import pytest
from scipy import stats

from tests.oracle.equivalence import STUDIES
from tests.oracle.equivalence_report import (
    BOTH,
    CHAOS,
    FIRST,
    compute_differences,
    confidence_interval,
    equivalence_p,
    get_comparisons,
    make_conclusion,
    make_section,
    permutation_p,
    plot_differences,
)
from tests.oracle.training import MEAN, STD, load_epoch, save_epoch


def make_rows(seeds, bias=0.0):
    """Return results in which chaos moves AP by half a point."""
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(seeds):
        level = rng.uniform(0.6, 0.7)
        for arm in ("ours", "original", "perturbed"):
            ap = level + rng.normal(0, 0.005) + (bias if arm == "ours" else 0)
            rows.append({"study": "boxes", "seed": seed, "arm": arm, "AP": ap, "loss": 1 - ap})
    return rows


@pytest.mark.parametrize("masks", [False, True])
def test_stored_batches_are_loaded_bit_for_bit(masks, tmp_path):
    rng = np.random.default_rng(0)
    batches = []
    for sizes in [[(5, 7), (9, 4), (3, 3)], [(1, 1), (6, 2)]]:
        images, targets = [], []
        for objects, (height, width) in enumerate(sizes):
            pixels = rng.integers(0, 256, (3, height, width)).astype(np.float32)
            images.append((pixels / np.float32(255) - MEAN) / STD)
            targets.append(
                {"boxes": rng.random((objects, 4), np.float32), "labels": np.arange(objects)}
            )
            if masks:
                targets[-1]["masks"] = rng.random((objects, height, width)) < 0.5
        batches.append((images, targets))
    save_epoch(tmp_path / "epoch.npz", batches)
    halves = [list(load_epoch(tmp_path / "epoch.npz", rank, 2)) for rank in (0, 1)]
    for (images, targets), *parts in zip(batches, *halves, strict=True):
        for rank, (loaded_images, loaded_targets) in enumerate(parts):
            np.testing.assert_equal(loaded_images, images[rank::2])
            np.testing.assert_equal(loaded_targets, targets[rank::2])
            for loaded, target in zip(loaded_targets, targets[rank::2]):
                assert all(loaded[key].dtype == target[key].dtype for key in target)


def test_differences_are_paired_and_in_points():
    rows = make_rows(3)
    value = {(row["seed"], row["arm"]): row["AP"] for row in rows}
    expected = [100 * (value[seed, "ours"] - value[seed, "original"]) for seed in range(3)]
    assert compute_differences(rows, "boxes", "AP", FIRST) == pytest.approx(expected)
    expected = [value[s, "original"] + value[s, "perturbed"] for s in range(3)]
    expected = [100 * (value[s, "ours"] - both / 2) for s, both in enumerate(expected)]
    assert compute_differences(rows, "boxes", "AP", BOTH) == pytest.approx(expected)
    assert len(compute_differences(rows[:-1], "boxes", "AP", BOTH)) == 2, (
        "a seed without all of them"
    )
    assert compute_differences(rows, "boxes", "loss", CHAOS)[0] == pytest.approx(
        value[0, "original"] - value[0, "perturbed"]
    )


def test_interval_and_tests_by_their_formulas():
    values = np.random.default_rng(1).normal(0.1, 0.5, 16)
    half = stats.t.ppf(0.975, 15) * values.std(ddof=1) / 4
    assert confidence_interval(values) == pytest.approx(
        (values.mean() - half, values.mean() + half)
    )
    # At 5%, two one-sided tests accept what the 90% interval lies within.
    edge = abs(values.mean()) + stats.t.ppf(0.95, 15) * values.std(ddof=1) / 4
    assert equivalence_p(values, edge) == pytest.approx(0.05)
    assert equivalence_p(values, edge + 0.1) < 0.05 < equivalence_p(values, edge - 0.1)


def test_the_permutation_test_counts_all_swaps():
    first, second = np.array([1.0, 2.0, 3.0, 4.0]), np.zeros(4)
    assert permutation_p(first, second) == pytest.approx(2 / 16)
    assert permutation_p(first, first) == 1


def test_many_pairs_are_swapped_at_random():
    rng = np.random.default_rng(2)
    first, second = rng.normal(0.3, 1, 40), rng.normal(0, 1, 40)
    normal = stats.ttest_rel(first, second).pvalue
    assert permutation_p(first, second) == pytest.approx(normal, abs=0.02)


@pytest.mark.parametrize("bias, within", [(0, "yes"), (-0.01, "no")])
def test_a_fault_of_one_point_shows(bias, within):
    table = make_conclusion(make_rows(16, bias), STUDIES).splitlines()
    assert len(table) == 3, "a row for each study that has results"
    assert table[-1].startswith("| boxes | AP, this project − the mean of both | 16 of 16 |")
    assert f"| ±0.5 | {within} |" in table[-1]


def test_a_study_without_a_bound_decides_nothing():
    rows = [{**row, "study": "processes"} for row in make_rows(4)]
    row = make_conclusion(rows, STUDIES).splitlines()[-1]
    assert row.startswith("| processes | AP, this project − the mean of both | 4 of 4 |")
    assert row.endswith("| none | | |")


def test_the_report_of_a_study(tmp_path):
    rows = make_rows(16)
    section = make_section(rows, "boxes", STUDIES["boxes"])
    for title in (CHAOS, FIRST, BOTH):
        assert f"| {title} (16) |" in section
        assert f"| {compute_differences(rows, 'boxes', 'AP', title).mean():+.2f} [" in section
    assert get_comparisons(STUDIES["dropout"]) == [FIRST]
    plot_differences(rows, STUDIES, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
