"""Finetuning: which weights are loaded, newly initialized and not used; frozen parts."""

import numpy as np
import pytest
import tiny

from engine import train_one_epoch
from models.weights.checkpoint import count_classes, read_class_names
from models.weights.finetune import load_matching_weights, match_classes
from models.weights.model import model_state
from models.weights.names import get_coco_names
from util.backend import jt
from util.errors import InputError
from util.optim import build_optimizer


def build(*flags, seed=0):
    jt.set_global_seed(seed)
    return tiny.build(tiny.arguments(*flags))[0]


@pytest.fixture(scope="module")
def source():
    return model_state(build("--num_classes", 4, seed=1))


def test_rows_of_classes_with_the_same_name_are_kept(source, capsys):
    """Under other ids, too."""
    model = build("--num_classes", 6)
    fresh = model_state(model)
    old_classes, classes = {1: "cat", 2: "dog", 3: "sheep"}, {0: "dog", 3: "wolf", 5: "cat"}
    load_matching_weights(model, source, old_classes, classes, "w.pkl")
    found = model_state(model)
    for name in ("class_embed.weight", "class_embed.bias"):
        np.testing.assert_array_equal(found[name][[0, 5, 6]], source[name][[2, 1, 4]])
        np.testing.assert_array_equal(found[name][[1, 2, 3, 4]], fresh[name][[1, 2, 3, 4]])
    for name in set(source) - {"class_embed.weight", "class_embed.bias"}:
        np.testing.assert_array_equal(found[name], source[name], err_msg=name)
    printed = capsys.readouterr().out
    for line in (
        f"w.pkl: loaded {len(found)} of the model's {len(found)} weights; training starts at "
        "epoch 0",
        "class head: kept dog, cat, no object; newly initialized: wolf; not used: sheep",
    ):
        assert line in printed


def test_classes_beyond_the_head_have_no_row(source):
    """With --num_classes a file may list more than the model has; the last row is "no object"."""
    model = build("--num_classes", 3)
    fresh = model_state(model)
    old_classes, classes = {1: "cat", 4: "dog", 9: "sheep"}, {2: "cat", 3: "dog", 4: "sheep"}
    load_matching_weights(model, source, old_classes, classes, "w.pkl")
    found = model_state(model)["class_embed.weight"]
    np.testing.assert_array_equal(found[[2, 3]], source["class_embed.weight"][[1, 4]])
    np.testing.assert_array_equal(found[[0, 1]], fresh["class_embed.weight"][[0, 1]])


@pytest.mark.parametrize("count", [4, 25])
def test_another_number_of_queries(source, count, capsys):
    model = build("--num_classes", 4, "--num_queries", count)
    fresh = model_state(model)["query_embed.weight"]
    load_matching_weights(model, source, {1: "cat"}, {1: "cat"}, "w.pkl")
    found, kept = model_state(model)["query_embed.weight"], min(count, 10)
    np.testing.assert_array_equal(found[:kept], source["query_embed.weight"][:kept])
    np.testing.assert_array_equal(found[kept:], fresh[kept:])
    message = f"queries: kept {kept} of 10; newly initialized: {count - kept}"
    assert message in capsys.readouterr().out


def test_other_layers_are_newly_initialized_or_not_used(source, capsys):
    model = build("--num_classes", 4, "--dec_layers", 1, "--enc_layers", 2)
    load_matching_weights(model, source, {}, {1: "cat"}, "w.pkl")
    printed = capsys.readouterr().out
    assert "12 newly initialized (transformer.encoder.layers.1." in printed
    assert "18 not used (transformer.decoder.layers.1." in printed
    assert "class head: kept no object; newly initialized: cat; not used: none" in printed


def test_masks_and_boxes_fit_each_other(capsys):
    wide = ("--num_classes", 4, "--hidden_dim", 128, "--nheads", 8)
    boxes, masks = build(*wide, seed=2), build(*wide, "--masks", seed=3)
    load_matching_weights(masks, model_state(boxes), {1: "cat"}, {1: "cat"}, "w.pkl")
    state, back = model_state(masks), build(*wide, seed=4)
    load_matching_weights(back, state, {1: "cat"}, {1: "cat"}, "w.pkl")
    for name, array in model_state(boxes).items():
        if not name.startswith("class"):
            np.testing.assert_array_equal(state[f"detr.{name}"], array, name)
            np.testing.assert_array_equal(model_state(back)[name], array, name)
    assert "not used (bbox_attention." in capsys.readouterr().out


def test_another_backbone_is_an_error_and_changes_nothing(source):
    model = build("--num_classes", 4)
    before = model_state(model)
    state = {name: array for name, array in source.items() if "layer3" not in name}
    message = r"w\.pkl: has another backbone: \d+ missing \(backbone\.0\.body\.layer3"
    with pytest.raises(InputError, match=message):
        load_matching_weights(model, state, {}, {1: "cat"}, "w.pkl")
    assert all((array == before[name]).all() for name, array in model_state(model).items())


def test_match_classes():
    assert match_classes({1: "a", 2: "b", 3: "a"}, {3: "a", 1: "b", 2: "a"}) == {1: 3, 2: 1, 3: 3}


def test_names_of_published_weights():
    for logits, count in ((92, 80), (251, 133), (21, 0)):
        for name in ("class_embed.bias", "detr.class_embed.bias"):
            checkpoint = {"model": {name: np.zeros(logits, np.float32)}}
            assert len(get_coco_names(count_classes(checkpoint))) == count
    assert read_class_names({"model": {}, "classes": {1: "a\n"}}, "w.pkl") == {1: "a\\n"}
    for classes in (["cat"], {"1": "cat"}, {1: 2}):
        with pytest.raises(InputError, match="w.pkl: its classes do not map ids to names"):
            read_class_names({"model": {}, "classes": classes}, "w.pkl")


@pytest.mark.parametrize("parts", [["backbone"], ["transformer"], ["backbone", "transformer"]])
def test_frozen_parts_do_not_change(parts):
    """Neither weights nor BatchNorm's statistics; the other part and the heads do."""
    args = tiny.arguments("--freeze", *parts, "--backbone_norm batch --lr 1e-3 --lr_backbone 1e-3")
    jt.set_global_seed(0)
    model, criterion, _ = tiny.build(args)
    before = model_state(model)
    batches = tiny.Batches([tiny.make_batch(0)])
    train_one_epoch(model, criterion, batches, build_optimizer(model, args), 0, 0, 0.1)
    changed = {name for name, array in model_state(model).items() if (array != before[name]).any()}
    for part in ("backbone", "transformer"):
        assert any(name.startswith(f"{part}.") for name in changed) == (part not in parts), part
    assert "class_embed.weight" in changed and "query_embed.weight" in changed
