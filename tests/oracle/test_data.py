"""The data pipeline and COCO figures, on the same files and with the same random draws."""

import numpy as np
import pytest
from coco_files import IMAGES, arguments, make_coco

from datasets import build_dataset, get_coco_api_from_dataset
from datasets.coco_eval import CocoEvaluator

SEED = 11


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    make_coco(root)
    return root


@pytest.fixture
def compare_items(original, measured):
    """Compare items: images and boxes up to rounding, everything else exactly."""

    def compare(configuration, root, image_set, indices, epochs, masks):
        annotations = root / "annotations" / f"instances_{image_set}2017.json"
        files = ["--images", root / f"{image_set}2017", "--annotations", annotations]
        flags = ["--image_set", image_set, *["--masks"] * masks]
        draws = ["--indices", *indices, "--epochs", *epochs, "--seed", SEED]
        theirs = original("run_data.py", "items", *files, *flags, *draws)
        dataset = build_dataset(image_set, arguments(root, seed=SEED, masks=masks))
        difference = {"image": 0, "boxes": 0}
        for epoch in epochs:
            dataset.epoch = epoch
            for index in indices:
                image, target = dataset[index]
                for key, value in {"image": image, **target}.items():
                    their = theirs[f"{epoch}/{index}/{key}"]
                    if key in difference:
                        assert value.shape == their.shape
                        difference[key] = max(difference[key], np.abs(value - their).max(initial=0))
                    elif key == "image_id":
                        assert [value] == their.tolist()
                    else:
                        assert np.array_equal(value, their), (epoch, index, key)
        for key, value in difference.items():
            measured(f"{image_set} data, {key}", f"{configuration}{', masks' * masks}", value, 1e-6)

    return compare


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("image_set, epochs", [("val", [0]), ("train", [0, 1, 2, 3])])
def test_items_of_every_file_format(compare_items, synthetic, image_set, epochs, masks):
    configuration = f"{len(epochs)} x {len(IMAGES)} synthetic images"
    compare_items(configuration, synthetic, image_set, range(len(IMAGES)), epochs, masks)


@pytest.mark.coco
@pytest.mark.parametrize(
    "image_set, indices, epochs, masks",
    [
        ("val", range(0, 80, 3), [0], False),
        ("val", range(1, 80, 8), [0], True),
        ("train", range(0, 80, 4), [0, 1], False),
        ("train", range(2, 80, 4), [7], True),
    ],
)
def test_items_of_real_images(compare_items, coco_path, image_set, indices, epochs, masks):
    configuration = f"{len(epochs)} x {len(indices)} COCO images"
    compare_items(configuration, coco_path, image_set, indices, epochs, masks)


def make_detections(coco, fraction):
    """Make detections of a fraction of the objects: shifted, duplicate and wrong ones, and none in
    the last two images.
    """
    rng = np.random.default_rng(3)
    categories = sorted(coco.cats)
    detections = {}
    for image_id in sorted(coco.imgs)[:-2]:
        annotations = [ann for ann in coco.imgToAnns[image_id] * 2 if rng.random() < fraction]
        boxes = np.array([ann["bbox"] for ann in annotations], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes += rng.normal(0, 4, boxes.shape).astype(np.float32)
        labels = np.array([ann["category_id"] for ann in annotations], dtype=np.int64)
        wrong = rng.random(len(labels)) < 0.1
        labels[wrong] = rng.choice([*categories, 0], wrong.sum())
        scores = rng.integers(1, 20, len(labels)).astype(np.float32) / 20  # with ties
        detections[image_id] = {"scores": scores, "labels": labels, "boxes": boxes}
    return detections


@pytest.fixture
def compare_figures(original, measured, tmp_path):
    """Compare the COCO figures of the same detections and return the 12 of the original."""

    def compare(configuration, root, fraction):
        coco = get_coco_api_from_dataset(build_dataset("val", arguments(root)))
        detections, path = make_detections(coco, fraction), tmp_path / "detections.npz"
        np.savez(path, **{f"{i}/{key}": v for i, d in detections.items() for key, v in d.items()})
        annotations = root / "annotations" / "instances_val2017.json"
        files = ["--annotations", annotations, "--detections", path]
        theirs = original("run_data.py", "figures", *files)
        evaluator = CocoEvaluator(coco, ["bbox"])
        image_ids = list(detections)[::-1]
        for start in range(0, len(image_ids), 2):
            evaluator.update({i: detections[i] for i in image_ids[start : start + 2]})
        evaluator.accumulate()
        evaluator.summarize()
        coco_eval = evaluator.coco_eval["bbox"]
        # The tolerance is for the order of NumPy's sums, which differs between its versions.
        for part, ours in ("stats", coco_eval.stats), ("precision", coco_eval.eval["precision"]):
            measured(f"COCO {part}", configuration, np.abs(ours - theirs[part]).max(), 1e-12)
        return theirs["stats"]

    return compare


@pytest.mark.parametrize("fraction", [0, 0.6])
def test_figures(compare_figures, synthetic, fraction):
    stats = compare_figures(f"synthetic, {fraction:.0%} detected", synthetic, fraction)
    assert (0 < stats[0] < 1) == (fraction > 0)


@pytest.mark.coco
def test_figures_of_real_annotations(compare_figures, coco_path):
    stats = compare_figures("COCO, 60% detected", coco_path, 0.6)
    assert 0.1 < stats[0] < 0.9
