"""--tensorboard: what it writes and needs, and that nothing imports the package without it."""

import io
import json
import sys

import numpy as np
import pytest
import tiny
from PIL import Image

from checks import check_args
from util.best import COCO_METRICS
from util.errors import InputError


def run(coco, output, *flags):
    tiny.train(
        "--batch_size 2 --num_workers 0", "--coco_path", coco, "--output_dir", output, *flags
    )


def read(folder):
    """Return (tag -> {epoch: value}, epoch -> JPEG) as TensorBoard shows them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), {"scalars": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    scalars = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in tags["scalars"]}
    for tag in scalars:
        assert len(scalars[tag]) == len(events.Scalars(tag)), "each epoch once"
    return scalars, {e.step: e.encoded_image_string for e in events.Images("predictions")}


def test_it_shows_what_log_txt_has_also_after_resuming(coco, tmp_path):
    pytest.importorskip("tensorboard")
    run(coco, tmp_path, "--epochs 2 --eval_interval 2 --tensorboard")
    log = (tmp_path / "log.txt").read_text()
    # As if it had been killed before the line of its last epoch was written.
    (tmp_path / "log.txt").write_text(log.splitlines(keepends=True)[0])
    resume = ["--resume", tmp_path / "checkpoint.pkl"]
    run(coco, tmp_path, "--epochs 4 --tensorboard", *resume)
    lines = [json.loads(line) for line in (tmp_path / "log.txt").read_text().splitlines()]
    scalars, images = read(tmp_path / "tensorboard")
    for name in ("loss", "loss_ce", "loss_bbox_0", "lr"):
        expected = {line["epoch"]: line[f"train_{name}"] for line in lines}
        assert scalars[f"train/{name}"] == pytest.approx(expected, rel=1e-6)
    assert list(scalars["test/AP"]) == [1, 3] and set(images) == {1, 3}
    for index, name in enumerate(COCO_METRICS):
        assert scalars[f"test/{name}"][3] == pytest.approx(lines[3]["test_coco_eval_bbox"][index])
    png, jpeg = Image.open(tmp_path / "predictions.png"), Image.open(io.BytesIO(images[3]))
    difference = np.asarray(png.convert("RGB")).astype(int) - np.asarray(jpeg)
    assert np.abs(difference).mean() < 3

    run(coco, tmp_path, "--epochs 1 --tensorboard --overwrite")
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_masks_and_panoptic_quality_have_tags_of_their_own():
    pytest.importorskip("tensorboard")
    from util.tensorboard_log import get_scalars

    line = {
        "train_lr": 0.1,
        "test_coco_eval_masks": [0.5] * 12,
        "test_PQ_all": {"pq": 1, "sq": 2, "rq": 3, "n": 4},
        "epoch": 3,
        "n_parameters": 7,
    }
    scalars = get_scalars(line)
    assert scalars["train/lr"] == 0.1 and scalars["test_masks/AR100"] == 0.5
    assert scalars["test/PQ_all_sq"] == 2 and len(scalars) == 1 + 12 + 4


def test_without_the_flag_nothing_imports_the_package(coco, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # an import of it fails
    run(coco, tmp_path, "--epochs 1")
    assert not (tmp_path / "tensorboard").exists()


def test_a_folder_that_cannot_be_created_ends_the_run_before_training(coco, tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("a file of the user's")
    with pytest.raises(InputError, match="tensorboard: is a file, but this program needs"):
        run(coco, tmp_path, "--epochs 1 --tensorboard")
    assert not (tmp_path / "checkpoint.pkl").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--eval --output_dir {out}", "--tensorboard is for training only"),
        ("", "--tensorboard needs a folder for its files: give --output_dir"),
        ("--output_dir {out}", "--tensorboard needs the package tensorboard: pip install"),
    ],
)
def test_what_it_needs(coco, tmp_path, monkeypatch, flags, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    flags = f"--tensorboard --coco_path {coco} {flags.format(out=tmp_path)}"
    with pytest.raises(InputError, match=message):
        check_args(tiny.arguments(flags))
