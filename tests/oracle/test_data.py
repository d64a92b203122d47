"""Our data pipeline and COCO figures against the original's, on the same files and with the same
random draws.
"""

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
    """Compares items with the original's: image and boxes up to rounding, everything else equal."""

    def compare(configuration, root, image_set, indices, epochs, masks):
        theirs = original(
            "run_data.py",
            "items",
            "--images",
            root / f"{image_set}2017",
            "--annotations",
            root / "annotations" / f"instances_{image_set}2017.json",
            "--image_set",
            image_set,
            *["--masks"] * masks,
            "--indices",
            *indices,
            "--epochs",
            *epochs,
            "--seed",
            SEED,
        )
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
def test_items_of_every_kind_of_file(compare_items, synthetic, image_set, epochs, masks):
    compare_items(
        f"{len(epochs)} x {len(IMAGES)} synthetic images",
        synthetic,
        image_set,
        range(len(IMAGES)),
        epochs,
        masks,
    )


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
    compare_items(
        f"{len(epochs)} x {len(indices)} COCO images", coco_path, image_set, indices, epochs, masks
    )


def detections_from(coco, share):
    """Shifted ground truth, duplicates and mistakes for a share of the objects; a few images are
    not seen at all.
    """
    rng = np.random.default_rng(3)
    categories = sorted(coco.cats)
    detections = {}
    for image_id in sorted(coco.imgs)[:-2]:
        annotations = [ann for ann in coco.imgToAnns[image_id] * 2 if rng.random() < share]
        boxes = np.array([ann["bbox"] for ann in annotations], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes += rng.normal(0, 4, boxes.shape).astype(np.float32)
        labels = np.array([ann["category_id"] for ann in annotations], dtype=np.int64)
        mistaken = rng.random(len(labels)) < 0.1
        labels[mistaken] = rng.choice([*categories, 0], mistaken.sum())
        scores = rng.integers(1, 20, len(labels)).astype(np.float32) / 20  # with ties
        detections[image_id] = {"scores": scores, "labels": labels, "boxes": boxes}
    return detections


@pytest.fixture
def compare_figures(original, measured, tmp_path):
    """Compares the COCO figures of the same detections and returns them."""

    def compare(configuration, root, share):
        coco = get_coco_api_from_dataset(build_dataset("val", arguments(root)))
        detections = detections_from(coco, share)
        np.savez(
            tmp_path / "detections.npz",
            **{
                f"{image_id}/{key}": value
                for image_id, arrays in detections.items()
                for key, value in arrays.items()
            },
        )
        theirs = original(
            "run_data.py",
            "figures",
            "--annotations",
            root / "annotations" / "instances_val2017.json",
            "--detections",
            tmp_path / "detections.npz",
        )
        evaluator = CocoEvaluator(coco, ["bbox"])
        image_ids = list(detections)[::-1]
        for start in range(0, len(image_ids), 2):
            evaluator.update(
                {image_id: detections[image_id] for image_id in image_ids[start : start + 2]}
            )
        evaluator.accumulate()
        evaluator.summarize()
        coco_eval = evaluator.coco_eval["bbox"]
        # the tolerance is for the order of NumPy's sums, which differs between its versions
        for part, ours in ("stats", coco_eval.stats), ("precision", coco_eval.eval["precision"]):
            measured(f"COCO {part}", configuration, np.abs(ours - theirs[part]).max(), 1e-12)
        return theirs["stats"]

    return compare


@pytest.mark.parametrize("share", [0, 0.6])
def test_figures(compare_figures, synthetic, share):
    stats = compare_figures(f"synthetic, {share:.0%} detected", synthetic, share)
    assert (0 < stats[0] < 1) == (share > 0)


@pytest.mark.coco
def test_figures_of_real_annotations(compare_figures, coco_path):
    stats = compare_figures("COCO, 60% detected", coco_path, 0.6)
    assert 0.1 < stats[0] < 0.9
