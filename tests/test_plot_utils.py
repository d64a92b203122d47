"""Plots and tables of runs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from util.errors import InputError
from util.output import OutputFolder
from util.plot_utils import make_table, plot_curves, read_log

LOSSES = ("loss", "loss_ce", "loss_bbox", "loss_giou", "class_error")


def line(epoch, ap=0.25, **more):
    losses = {f"{part}_{name}": 3.0 / (epoch + 1) for part in ("train", "test") for name in LOSSES}
    return {
        "epoch": epoch,
        "test_coco_eval_bbox": [ap, ap + 0.2, ap - 0.1] + [0.0] * 9,
        **losses,
        **more,
    }


def write(folder, lines):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.txt").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return folder


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "util.plot_utils", *map(str, arguments)],
        text=True,
        capture_output=True,
        cwd=Path(__file__).parents[1],
    )


@pytest.mark.parametrize("epochs", [1, 12, 300])
@pytest.mark.parametrize("runs", [1, 3])
def test_curves(epochs, runs, tmp_path):
    folders = [
        write(tmp_path / f"run{i}", [line(e, 0.2 + 0.1 * i + e / 600) for e in range(epochs)])
        for i in range(runs)
    ]
    plot_curves({folder.name: read_log(folder) for folder in folders}, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape == (750, 1700, 3)
    for row in (pixels[:350], pixels[350:680]):
        for panel in np.split(row, 4, axis=1):
            assert (np.ptp(panel, axis=2) > 100).any(), "every panel has a curve"
    colours = {tuple(colour) for colour in pixels[np.ptp(pixels, axis=2) > 100]}
    # Matplotlib's C0, C1, C2.
    for i, colour in enumerate([(31, 119, 180), (255, 127, 14), (44, 160, 44)]):
        assert (colour in colours) == (i < runs)


def test_the_originals_curves_are_grey(tmp_path):
    path, counts = tmp_path / "curves.png", []
    for with_reference in (False, True):
        plot_curves({"run": [line(epoch) for epoch in range(30)]}, path, with_reference)
        with Image.open(path) as picture:
            grey = (np.asarray(picture.convert("RGB")) == 153).all(axis=2)
        rows = grey[:350], grey[350:680]
        counts.append([panel.sum() for row in rows for panel in np.split(row, 4, axis=1)])
    is_drawn = np.subtract(*counts[::-1]) > 100
    # Its log has the loss, class_error, AP and AP50.
    assert is_drawn.tolist() == [True, False, False, False, True, True, True, False]


def test_a_log_is_sorted_by_epoch_and_the_last_entry_of_an_epoch_counts(tmp_path):
    folder = write(tmp_path / "run", [line(0), line(2), line(1, 0.5), line(2, 0.7)])
    with open(folder / "log.txt", "a") as file:
        file.write('{"epoch": 3, "train_lo')  # was not written to its end
    logs = read_log(folder)
    found = [(log["epoch"], log["test_coco_eval_bbox"][0]) for log in logs]
    assert found == [(0, 0.25), (1, 0.5), (2, 0.7)]
    assert read_log(folder / "log.txt") == logs


def test_a_log_without_epochs_is_numbered(tmp_path):
    """That of the original's model zoo."""
    lines = [line(0, 0.1), line(1, 0.3), line(2, 0.2)]
    for entry in lines:
        del entry["epoch"]
    logs = read_log(write(tmp_path / "run", lines))
    found = [(log["epoch"], log["test_coco_eval_bbox"][0]) for log in logs]
    assert found == [(0, 0.1), (1, 0.3), (2, 0.2)]
    with pytest.raises(InputError, match="log.txt: line 3 has no epoch, but others have"):
        read_log(write(tmp_path / "run", [line(0), line(1), lines[2]]))


def test_the_last_line_counts_without_a_line_break(tmp_path):
    """An editor may leave it so, and a resumed training must not lose it."""
    folder = write(tmp_path / "run", [line(0), line(1), line(2)])
    log = folder / "log.txt"
    log.write_text(log.read_text().rstrip("\n"))
    assert [entry["epoch"] for entry in read_log(folder)] == [0, 1, 2]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["run", "实验一", "\udcfc"])
def test_curves_without_losses_or_of_zeros(tmp_path, name):
    nothing = {"epoch": 0, "n_parameters": 1}
    zeros = {"epoch": 1, "train_loss": 0.0, "train_loss_ce": 0.0}
    for lines in ([nothing], [zeros], [nothing, zeros]):
        plot_curves({name: lines}, tmp_path / "curves.png")
        assert (tmp_path / "curves.png").stat().st_size > 0


def test_table_has_last_and_best_metrics_and_differences():
    runs = {"a": [line(0, 0.3), line(1, 0.2)], "b": [line(0, 0.25)]}
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in make_table(runs).split("\n")]
    header = "run,epochs,last AP,best AP,last AP50,best AP50,last AP75,best AP75"
    assert rows[0] == header.split(",")
    assert rows[2] == ["a", "2", "0.200", "0.300", "0.400", "0.500", "0.100", "0.200"]
    assert rows[3] == ["b", "1", "0.250", "0.250", "0.450", "0.450", "0.150", "0.150"]
    assert rows[4] == ["b − a", "", "+0.050", "-0.050", "+0.050", "-0.050", "+0.050", "-0.050"]


def test_table_of_a_run_without_evaluation():
    losses = {"epoch": 0, "train_loss": 1.0}
    *_, alone, evaluated, difference = make_table({"a": [losses], "b": [line(0)]}).split("\n")
    assert alone == "| a | 1 |" + 6 * " - |" and difference == "| b − a | |" + 6 * " - |"
    assert "-" not in evaluated


def test_command(tmp_path):
    first, second = tmp_path / "x" / "run", tmp_path / "y" / "run"
    write(first, [line(0)])
    write(second, [line(0, 0.4)])
    third = write(tmp_path / "z", [{"epoch": 0, "train_loss": 1.0}])
    result = run(first, second, third, "--out", tmp_path / "both.png", "--table")
    assert result.returncode == 0, result.stderr
    assert f"| {second} − {first} |" in result.stdout, "runs of the same name go by their paths"
    assert Image.open(tmp_path / "both.png").format == "PNG"


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "log.txt: cannot be read"),
        ("", "its log.txt has no epoch yet"),
        ("nonsense\n", "log.txt: line 1 is not that of an epoch"),
        ('{"epoch": 0}\n', "log.txt: line 1 is not that of an epoch"),
        ("[1]\n", "line 1 is not"),
        ('{"epoch": "0", "train_loss": 1}\n', "line 1 is not"),
        (b"\xff\xfe{", "log.txt: cannot be read"),
    ],
)
def test_an_invalid_log_ends_with_one_line(content, message, tmp_path):
    if content is not None:
        content = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "log.txt").write_bytes(content)
    result = run(tmp_path, "--table")
    assert result.returncode == 1 and message in result.stderr and "Traceback" not in result.stderr


def test_an_unwritable_file_ends_with_one_line(tmp_path):
    result = run(write(tmp_path / "run", [line(0)]), "--out", tmp_path / "none" / "curves.png")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "curves.png: cannot be written" in result.stderr


def test_a_training_refuses_a_folder_whose_log_it_cannot_continue(tmp_path):
    (tmp_path / "log.txt").write_text("nonsense\n")
    with pytest.raises(InputError, match="log.txt: line 1"):
        OutputFolder(tmp_path)
