"""--overfit: can the model learn a few images?"""

import json

import numpy as np
import plain_data
import pytest
import tiny

from arguments import finish_overfit, parse_args
from checks import check_args
from datasets import build_dataset
from datasets.summary import find_images_with_boxes
from main import main
from util.best import Best
from util.errors import InputError

FLAGS = """
    --dataset_file shapes --shapes_train 6 --shapes_val 1 --shapes_size 64 --num_workers 0
    --backbone tiny --backbone_norm group --pre_norm --hidden_dim 64 --lr 2e-3 --lr_backbone 2e-3
    --overfit 2
""".split()


def test_a_model_learns_its_images(tmp_path, capsys):
    """First it gets too few steps, then it resumes."""
    out = tmp_path / "out"
    flags = "--coco_path", tmp_path / "shapes", "--output_dir", out
    message = f"does not learn these 2 images: at best AP .* after 50 steps.*{out}/predictions.png"
    with pytest.raises(InputError, match=message):
        main(tiny.arguments(*FLAGS, *flags, "--epochs", 1))
    text = capsys.readouterr().out
    assert "training on 2 images" in text and "validation images: 2" in text
    assert "training data: 6 images" in text and "validation data" not in text

    main(tiny.arguments(*FLAGS, *flags, "--resume", out / "checkpoint.pkl", "--epochs", 20))
    last = capsys.readouterr().out.splitlines()[-1]
    logs = [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]
    *earlier, ap = (log["test_coco_eval_bbox"][0] for log in logs)
    assert ap > 0.9 and max(earlier) <= 0.9 and len(logs) < 20
    learned = f"the model can learn these 2 images: AP {ap:.2f} after {50 * len(logs)} steps"
    assert last == f"{learned}; are its boxes on the objects? See {out}/predictions.png"
    assert (out / "predictions.png").exists()
    detections = json.loads((out / "detections_bbox.json").read_text())
    assert {each["image_id"] for each in detections} == {1, 2}
    args = json.loads((out / "args.json").read_text())["args"]
    assert (args["dropout"], args["batch_size"], args["patience"]) == (0, 2, 15)


def make_data(folder, per_image=1):
    plain_data.make(folder, plain_data.BOXES, per_image=per_image)
    return ["--train_images", str(folder / "images"), "--train_ann", str(folder / "ann.json")]


def test_the_images_are_the_training_images_as_in_evaluation(tmp_path):
    args = parse_args([*make_data(tmp_path), "--overfit", "3", "--eval_size", "64"])
    check_args(args)  # no validation data needed
    dataset = build_dataset("overfit", args)
    assert len(dataset) == 8 and len(dataset.coco.imgs) == 8
    for epoch in range(3):
        dataset.epoch = epoch
        image, target = dataset[0]
        assert image.shape == (3, 64, 64)
        np.testing.assert_allclose(target["boxes"], [[25 / 96, 40 / 96, 40 / 96, 20 / 96]], 1e-6)
    given = parse_args([*make_data(tmp_path / "b"), "--overfit", "3", "--batch_size", "1"])
    assert (args.batch_size, args.accum_steps, args.dropout) == (2, 1, 0)
    assert (given.batch_size, given.accum_steps) == (1, 3)
    demo = parse_args(["--demo", "--overfit", "8"])
    assert (demo.batch_size, demo.accum_steps) == (8, 1)


def test_images_without_boxes_are_passed_over(tmp_path):
    def move(data):
        for annotation in data["annotations"]:
            annotation["image_id"] = annotation["image_id"] % 3 + 4

    dataset = plain_data.make(tmp_path, plain_data.BOXES, move)(is_evaluated=True)
    assert find_images_with_boxes(dataset).tolist() == [4, 5, 6]


@pytest.mark.parametrize(
    "flags, ap, message",
    [
        (
            "",
            0.89,
            r"in part: at best AP 0.89 after 100 steps.* \(--eval_size.*give --output_dir for",
        ),
        ("--output_dir out", 0.89, "look at out/report/report.html for the AP of each class"),
        ("", 0.2, "does not learn these 8 images: at best AP 0.20 .*give --output_dir to see them"),
        ("--output_dir out", 0.2, "First look at out/predictions.png"),
    ],
)
def test_what_the_last_line_points_to(flags, ap, message):
    args, best = parse_args(["--overfit", "8", *flags.split()]), Best("AP")
    best.update(1, ap)
    with pytest.raises(InputError, match=message):
        finish_overfit(args, best, num_steps=50)


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--overfit 9", "--overfit 9: only 8 images have boxes"),
        ("--overfit 8 --eval --resume x", "--overfit trains a model: leave it out with --eval"),
        ("--overfit -1", "--overfit is -1"),
        ("--overfit 8 --batch_size 0", "--batch_size is 0"),
    ],
)
def test_errors(flags, message, tmp_path):
    data = make_data(tmp_path)
    with pytest.raises(InputError, match=message):
        main(tiny.arguments(*data, "--backbone_weights none --batch_size 1", flags))
