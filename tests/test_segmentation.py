"""Mask head, mask losses, and the way from masks to instances and panoptic images."""

import io

import numpy as np
import pytest
import tiny
from PIL import Image
from pycocotools import mask as coco_mask

from datasets.coco_panoptic import rgb2id
from engine import train_one_epoch
from models.segmentation import (
    PostProcessPanoptic,
    PostProcessSegm,
    dice_loss,
    id2rgb,
    resize_bilinear,
    sigmoid_focal_loss,
)
from models.weights.model import model_state
from util.backend import jt, nn
from util.nearest import nearest_index
from util.optim import build_optimizer

FLAGS = (
    "--masks",
    "--backbone",
    "tiny",
    "--backbone_norm",
    "batch",
    "--hidden_dim",
    "128",
    "--nheads",
    "8",
    "--dropout",
    "0",
)


def make_batch(seed, counts=(2, 1)):
    samples, targets = tiny.make_batch(seed)
    random = np.random.default_rng(seed)
    for target, count, size in zip(targets, counts, ((64, 96), (80, 64))):
        target["labels"] = random.integers(1, 91, count)
        target["boxes"] = random.uniform(0.3, 0.6, (count, 4)).astype(np.float32)
        target["masks"] = random.random((count, *size)) < 0.5
        target["size"] = np.array(size)
    return samples, targets


def build(*flags):
    jt.set_global_seed(0)
    return tiny.build(tiny.arguments(*FLAGS, *flags))


def test_names_and_shapes():
    model, _, postprocessors = build()
    names = set(model.state_dict())
    assert {
        "detr.class_embed.weight",
        "detr.backbone.0.body.conv1.weight",
        "bbox_attention.q_linear.weight",
        "bbox_attention.k_linear.bias",
        "mask_head.lay1.weight",
        "mask_head.gn5.bias",
        "mask_head.out_lay.bias",
        "mask_head.adapter3.weight",
    } <= names
    out = model(make_batch(0)[0].to_jittor())
    assert out["pred_masks"].shape == (2, 10, 20, 24), "a quarter of the padded batch"
    assert set(postprocessors) == {"bbox", "segm"}
    assert "panoptic" in build("--dataset_file", "coco_panoptic")[2]


@pytest.mark.parametrize("counts", [(2, 1), (0, 3), (0, 0)])
def test_frozen_weights_do_not_move_by_a_bit_and_the_mask_head_does(counts):
    model, criterion, _ = build("--frozen_weights", "box.pkl")
    optimizer = build_optimizer(model, tiny.arguments(*FLAGS, "--lr", 1e-3))
    before = model_state(model)
    averages = train_one_epoch(
        model, criterion, tiny.Batches([make_batch(0, counts)]), optimizer, epoch=0, seed=0
    )
    moved = {
        name
        for name, array in model_state(model).items()
        if not np.array_equal(array, before[name])
    }
    trainable = {name for name in before if name.startswith(("bbox_attention", "mask_head"))}
    assert moved <= trainable
    assert np.isfinite(averages["loss"])
    if sum(counts):
        assert moved >= {name for name in trainable if name.startswith("mask_head")}
        assert averages["loss_mask"] > 0 and averages["loss_dice"] > 0
    else:
        assert averages["loss_mask"] == 0 == averages["loss_dice"]


def test_the_mask_losses_fall_in_joint_training():
    model, criterion, _ = build()
    optimizer = build_optimizer(model, tiny.arguments(*FLAGS, "--lr", 1e-3, "--lr_backbone", 1e-3))
    batch = make_batch(1)
    losses = [
        train_one_epoch(model, criterion, tiny.Batches([batch] * 5), optimizer, epoch, 0)[
            "loss_mask"
        ]
        for epoch in range(3)
    ]
    assert losses[2] < losses[0]


def test_losses_of_known_masks():
    targets = np.zeros((3, 4, 6), np.float32)
    targets[:, 1:3, 2:5] = 1
    right, wrong, unsure = targets[0] * 40 - 20, 20 - targets[0] * 40, targets[0] * 0
    logits = jt.array(np.stack([right, wrong, unsure]))
    dice = dice_loss(logits, jt.array(targets)).numpy()
    np.testing.assert_allclose(
        dice, [0, 1 - 1 / (18 + 6 + 1), 1 - (6 + 1) / (12 + 6 + 1)], atol=1e-5
    )
    focal = sigmoid_focal_loss(logits, jt.array(targets)).numpy()
    expected = [0, 20 * (6 * 0.25 + 18 * 0.75) / 24, np.log(2) / 4 * (6 * 0.25 + 18 * 0.75) / 24]
    np.testing.assert_allclose(focal, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "old, new", [((7, 5), (28, 21)), ((1, 1), (9, 4)), ((6, 9), (6, 9)), ((50, 84), (199, 333))]
)
def test_bilinear_is_jittors_and_selects(old, new):
    masks = np.random.default_rng(0).standard_normal((3, *old), np.float32)
    expected = nn.interpolate(jt.array(masks[:, None]), size=new, mode="bilinear")[:, 0].numpy()
    np.testing.assert_allclose(resize_bilinear(masks, new), expected, atol=1e-4)
    rows, columns = np.array([0, new[0] - 1, 0]), np.arange(new[1])[::2]
    np.testing.assert_array_equal(
        resize_bilinear(masks, new, rows, columns),
        resize_bilinear(masks, new)[:, rows][:, :, columns],
    )


def test_instances_are_cut_out_of_the_padding_and_resized():
    logits = np.random.default_rng(0).standard_normal((2, 13, 20, 24), np.float32)
    sizes, orig_sizes = np.array([[64, 96], [80, 64]]), np.array([[130, 201], [41, 33]])
    results = PostProcessSegm()([{}, {}], {"pred_masks": jt.array(logits)}, orig_sizes, sizes)
    for result, logit, size, orig_size in zip(results, logits, sizes, orig_sizes):
        full = resize_bilinear(logit, (80, 96))[:, : size[0], : size[1]] > 0
        expected = full[:, nearest_index(size[0], orig_size[0])][
            :, :, nearest_index(size[1], orig_size[1])
        ]
        found = coco_mask.decode(result["masks"]).transpose(2, 0, 1)
        assert found.shape == (13, *orig_size)
        np.testing.assert_array_equal(found, expected)


def panoptic(classes, rectangles, scores=None, size=(40, 60), is_thing_map=None):
    """The panoptic image of masks that are rectangles (top, left, bottom, right) in pixels; class
    99 is stuff.
    """
    masks = np.full((1, len(classes), *size), -9, np.float32)
    logits = np.zeros((1, len(classes), 251), np.float32)
    for i, (c, (top, left, bottom, right)) in enumerate(zip(classes, rectangles)):
        masks[0, i, top:bottom, left:right] = 9 + i
        logits[0, i, c] = 20 if scores is None else scores[i]
    process = PostProcessPanoptic(is_thing_map or {i: i <= 90 for i in range(250)})
    [result] = process({"pred_logits": jt.array(logits), "pred_masks": jt.array(masks)}, [size])
    return rgb2id(np.asarray(Image.open(io.BytesIO(result["png_string"])))), result["segments_info"]


def test_panoptic_image_has_a_segment_for_each_thing_and_one_for_each_stuff():
    rectangles = [(0, 0, 10, 60), (10, 0, 20, 60), (20, 0, 30, 60), (30, 0, 40, 60)]
    ids, segments = panoptic([1, 99, 2, 98], rectangles)
    assert [(s["category_id"], s["isthing"], s["area"]) for s in segments] == [
        (1, True, 600),
        (99, False, 600),
        (2, True, 600),
        (98, False, 600),
    ]
    assert [np.argwhere(ids == s["id"])[0, 0] for s in segments] == [0, 10, 20, 30]


def test_stuff_is_merged_as_in_the_original():
    """Its second mask is empty after the merge and left out; then its pixels go to the next best
    mask, not to the first.
    """
    rectangles = [(0, 0, 10, 60), (10, 0, 20, 60), (20, 0, 30, 60), (30, 0, 40, 60)]
    _, segments = panoptic([1, 99, 2, 99], rectangles)
    assert [(s["category_id"], s["area"]) for s in segments] == [(1, 1200), (99, 600), (2, 600)]


def test_panoptic_leaves_out_the_unsure_the_empty_and_the_tiny():
    ids, segments = panoptic(
        [1, 2, 3, 250], [(0, 0, 40, 60), (3, 3, 5, 5), (0, 0, 20, 60), (0, 0, 40, 60)]
    )
    assert [s["category_id"] for s in segments] == [1, 3], (
        "four pixels are too few; 250 is no object"
    )
    ids, segments = panoptic([1, 2], [(0, 0, 40, 60), (0, 0, 20, 60)], scores=[20, 1])
    assert [s["category_id"] for s in segments] == [1] and (ids == 0).all()


def test_classes_that_the_data_set_does_not_have_are_no_segments():
    """COCO's panoptic quality would end with an error at the first of them."""
    rectangles = [(0, 0, 20, 60), (20, 0, 40, 60)]
    _, segments = panoptic([1, 5], rectangles, is_thing_map={5: False})
    assert [(s["category_id"], s["isthing"]) for s in segments] == [(5, False)]


def test_panoptic_image_without_any_segment():
    ids, segments = panoptic([1], [(0, 0, 40, 60)], scores=[0])
    assert segments == [] and ids.shape == (40, 60) and (ids == 0).all()


def test_segment_ids_are_coded_as_colours():
    ids = np.array([[0, 255, 256], [65535, 65536, 256**3 - 1]])
    np.testing.assert_array_equal(rgb2id(id2rgb(ids)), ids)
