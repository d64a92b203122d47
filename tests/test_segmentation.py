"""Mask head, mask losses, and postprocessing to instance masks and panoptic images."""

import io

import numpy as np
import pytest
import tiny
from peak_memory import measure_peak
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

FLAGS = ("--masks --backbone tiny --backbone_norm batch --hidden_dim 128 --nheads 8 --dropout 0",)


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
def test_frozen_weights_do_not_change_and_the_mask_head_does(counts):
    model, criterion, _ = build("--frozen_weights", "box.pkl")
    optimizer = build_optimizer(model, tiny.arguments(*FLAGS, "--lr", 1e-3))
    before = model_state(model)
    batches = tiny.Batches([make_batch(0, counts)])
    averages = train_one_epoch(model, criterion, batches, optimizer, epoch=0, seed=0)
    changed = {name for name, array in model_state(model).items() if (array != before[name]).any()}
    trainable = {name for name in before if name.startswith(("bbox_attention", "mask_head"))}
    assert changed <= trainable
    assert np.isfinite(averages["loss"])
    if sum(counts):
        assert changed >= {name for name in trainable if name.startswith("mask_head")}
        assert averages["loss_mask"] > 0 and averages["loss_dice"] > 0
    else:
        assert averages["loss_mask"] == 0 == averages["loss_dice"]


def test_the_mask_losses_fall_in_joint_training():
    model, criterion, _ = build()
    optimizer = build_optimizer(model, tiny.arguments(*FLAGS, "--lr", 1e-3, "--lr_backbone", 1e-3))
    batches = tiny.Batches([make_batch(1)] * 5)
    losses = [train_one_epoch(model, criterion, batches, optimizer, i, 0) for i in range(3)]
    assert losses[2]["loss_mask"] < losses[0]["loss_mask"]


def test_losses_of_known_masks():
    targets = np.zeros((3, 4, 6), np.float32)
    targets[:, 1:3, 2:5] = 1
    correct, wrong, undecided = targets[0] * 40 - 20, 20 - targets[0] * 40, targets[0] * 0
    logits = jt.array(np.stack([correct, wrong, undecided]))
    dice = dice_loss(logits, jt.array(targets)).numpy()
    expected = [0, 1 - 1 / (18 + 6 + 1), 1 - (6 + 1) / (12 + 6 + 1)]
    np.testing.assert_allclose(dice, expected, atol=1e-5)
    focal = sigmoid_focal_loss(logits, jt.array(targets)).numpy()
    expected = [0, 20 * (6 * 0.25 + 18 * 0.75) / 24, np.log(2) / 4 * (6 * 0.25 + 18 * 0.75) / 24]
    np.testing.assert_allclose(focal, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "old, new", [((7, 5), (28, 21)), ((1, 1), (9, 4)), ((6, 9), (6, 9)), ((50, 84), (199, 333))]
)
def test_resize_bilinear_is_jittors_and_selects(old, new):
    masks = np.random.default_rng(0).standard_normal((3, *old), np.float32)
    expected = nn.interpolate(jt.array(masks[:, None]), size=new, mode="bilinear")[:, 0].numpy()
    np.testing.assert_allclose(resize_bilinear(masks, new), expected, atol=1e-4)
    rows, columns = np.array([0, new[0] - 1, 0]), np.arange(new[1])[::2]
    np.testing.assert_array_equal(
        resize_bilinear(masks, new, rows, columns),
        resize_bilinear(masks, new)[:, rows][:, :, columns],
    )


def test_instance_masks_are_cropped_and_resized():
    logits = np.random.default_rng(0).standard_normal((2, 13, 20, 24), np.float32)
    sizes, orig_sizes = np.array([[64, 96], [80, 64]]), np.array([[130, 201], [41, 33]])
    results = PostProcessSegm()([{}, {}], {"pred_masks": jt.array(logits)}, orig_sizes, sizes)
    for result, logit, size, orig_size in zip(results, logits, sizes, orig_sizes):
        full = resize_bilinear(logit, (80, 96))[:, : size[0], : size[1]] > 0
        rows, columns = (nearest_index(old, new) for old, new in zip(size, orig_size))
        expected = full[:, rows][:, :, columns]
        found = coco_mask.decode(result["masks"]).transpose(2, 0, 1)
        assert found.shape == (13, *orig_size)
        np.testing.assert_array_equal(found, expected)


def test_masks_of_a_large_image_are_encoded_one_at_a_time():
    logits = np.random.default_rng(0).standard_normal((20, 13, 20), np.float32)
    size, orig_size = (130, 200), (2000, 3000)
    encode = lambda: PostProcessSegm().encode_masks(logits, size, size, orig_size)
    rles, peak = measure_peak(encode)
    assert [rle["size"] for rle in rles] == [[2000, 3000]] * 20
    assert peak < 20, "MB; one mask takes 6, and as float32 24"


def panoptic(classes, rectangles, scores=None, size=(40, 60), is_thing_map=None):
    """Return segment ids and segments for masks that are rectangles (top, left, bottom, right)."""
    masks = np.full((1, len(classes), *size), -9, np.float32)
    logits = np.zeros((1, len(classes), 251), np.float32)
    for i, (c, (top, left, bottom, right)) in enumerate(zip(classes, rectangles)):
        masks[0, i, top:bottom, left:right] = 9 + i
        logits[0, i, c] = 20 if scores is None else scores[i]
    process = PostProcessPanoptic(is_thing_map or {i: i <= 90 for i in range(250)})
    [result] = process({"pred_logits": jt.array(logits), "pred_masks": jt.array(masks)}, [size])
    return rgb2id(np.asarray(Image.open(io.BytesIO(result["png_string"])))), result["segments_info"]


STRIPES = [(0, 0, 10, 60), (10, 0, 20, 60), (20, 0, 30, 60), (30, 0, 40, 60)]


def test_things_and_stuff_become_segments():
    ids, segments = panoptic([1, 99, 2, 98], STRIPES)
    assert [s["category_id"] for s in segments] == [1, 99, 2, 98]
    assert [s["isthing"] for s in segments] == [True, False, True, False]
    assert all(s["area"] == 600 for s in segments)
    assert [np.argwhere(ids == s["id"])[0, 0] for s in segments] == [0, 10, 20, 30]


def test_stuff_is_merged_as_in_the_original():
    """Its second mask, empty after the merge, is dropped; its pixels go to the next best mask."""
    _, segments = panoptic([1, 99, 2, 99], STRIPES)
    assert [(s["category_id"], s["area"]) for s in segments] == [(1, 1200), (99, 600), (2, 600)]


def test_low_scores_no_object_and_tiny_segments_are_dropped():
    rectangles = [(0, 0, 40, 60), (3, 3, 5, 5), (0, 0, 20, 60), (0, 0, 40, 60)]
    _, segments = panoptic([1, 2, 3, 250], rectangles)
    assert [s["category_id"] for s in segments] == [1, 3], "2 has four pixels, 250 is no object"
    ids, segments = panoptic([1, 2], [(0, 0, 40, 60), (0, 0, 20, 60)], scores=[20, 1])
    assert [s["category_id"] for s in segments] == [1] and (ids == 0).all()


def test_classes_that_the_data_set_lacks_give_no_segments():
    """COCO's panoptic quality would fail at the first of them."""
    rectangles = [(0, 0, 20, 60), (20, 0, 40, 60)]
    _, segments = panoptic([1, 5], rectangles, is_thing_map={5: False})
    assert [(s["category_id"], s["isthing"]) for s in segments] == [(5, False)]


def test_a_panoptic_image_without_segments():
    ids, segments = panoptic([1], [(0, 0, 40, 60)], scores=[0])
    assert segments == [] and ids.shape == (40, 60) and (ids == 0).all()


def test_segment_ids_are_encoded_as_colors():
    ids = np.array([[0, 255, 256], [65535, 65536, 256**3 - 1]])
    np.testing.assert_array_equal(rgb2id(id2rgb(ids)), ids)
