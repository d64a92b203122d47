"""The model: names and shapes, trainable parameters, errors, and independence of padding."""

import numpy as np
import pytest
import tiny

from arguments import get_args_parser
from models.backbone import FrozenBatchNorm2d
from models.detr import PostProcess
from models.position_encoding import PositionEmbeddingLearned
from models.weights.model import load_model_state
from util.backend import jt, set_seed
from util.misc import NestedTensor


def get_trainable(model):
    return {name: p for name, p in model.named_parameters() if not p.is_stop_grad()}


def build_tiny(*flags):
    set_seed(0)
    return tiny.build(tiny.arguments(*flags))[0]


def test_detr_resnet50_has_the_originals_names_and_parameters():
    model = tiny.build(get_args_parser().parse_args([]))[0]
    names = set(model.state_dict())
    assert len(names) == 458
    assert {
        "transformer.encoder.layers.5.self_attn.in_proj_weight",
        "transformer.decoder.norm.bias",
        "class_embed.weight",
        "bbox_embed.layers.2.bias",
        "query_embed.weight",
        "input_proj.bias",
        "backbone.0.body.layer1.0.downsample.1.running_var",
    } <= names
    assert sum(p.numel() for p in get_trainable(model).values()) == 41_302_368


def test_weights_of_close_seeds_are_independent():
    weights = []
    for seed in (0, 1, 2, 3, 42, 84):
        set_seed(seed)
        weights.append(tiny.build(tiny.arguments())[0].transformer.encoder.layers[0].linear1.weight)
    correlations = np.corrcoef([weight.numpy().ravel() for weight in weights])
    off_diagonal = correlations[~np.eye(len(weights), dtype=bool)]
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(weights[0].numel()), correlations


def test_stem_and_first_stage_never_train():
    names = {name for name in get_trainable(build_tiny()) if name.startswith("backbone")}
    assert {name.split(".")[3] for name in names} == {"layer2", "layer3", "layer4"}
    assert all("conv" in name or "downsample.0" in name for name in names), "BatchNorm is frozen"


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("backbone", ["resnet18", "tiny"])
def test_with_another_norm_the_whole_backbone_trains(backbone, norm):
    model = build_tiny("--backbone", backbone, "--backbone_norm", norm)
    names = {name for name in get_trainable(model) if name.startswith("backbone")}
    assert {
        "backbone.0.body.conv1.weight",
        "backbone.0.body.bn1.weight",
        "backbone.0.body.bn1.bias",
        "backbone.0.body.layer1.0.conv1.weight",
        "backbone.0.body.layer2.0.downsample.1.bias",
    } <= names
    buffers = {name for name in model.state_dict() if name.startswith("backbone")} - names
    assert all("running" in name for name in buffers) and bool(buffers) == (norm == "batch")


def test_batch_norm_learns_its_statistics_in_training_only():
    model = build_tiny("--backbone", "tiny", "--backbone_norm", "batch")
    images = [np.random.default_rng(0).standard_normal((3, 64, 64), np.float32)]
    norm = model.backbone[0].body.bn1
    model.eval()
    model(images)["pred_logits"].sync()
    assert (norm.running_mean.numpy() == 0).all() and (norm.running_var.numpy() == 1).all()
    model.train()
    model(images)["pred_logits"].sync()
    assert (norm.running_mean.numpy() != 0).all() and (norm.running_var.numpy() != 1).all()


def test_tiny_backbone_has_stride_16():
    backbone = build_tiny("--backbone", "tiny", "--backbone_norm", "group").backbone[0]
    samples = NestedTensor(jt.zeros((2, 3, 96, 65)), jt.zeros((2, 96, 65), dtype="bool"))
    [feature] = backbone(samples)
    assert feature.tensors.shape == (2, backbone.stage_channels[-1], 6, 5)
    assert feature.mask.shape == (2, 6, 5)


def test_lr_backbone_0_freezes_the_whole_backbone():
    names = set(get_trainable(build_tiny("--lr_backbone", 0)))
    assert names and not any(name.startswith("backbone") for name in names)


def test_train_mode_does_not_unfreeze_parameters():
    model = build_tiny()
    before = set(get_trainable(model))
    model.eval()
    model.train()
    assert set(get_trainable(model)) == before


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34"])
def test_dilation_needs_bottlenecks(backbone):
    with pytest.raises(ValueError, match=f"dilation: {backbone} has basic blocks"):
        build_tiny("--backbone", backbone, "--dilation")


def test_learned_encoding_has_fifty_rows_and_columns():
    encoding = PositionEmbeddingLearned(4)
    encoded = encoding(NestedTensor(jt.zeros((2, 1, 50, 3)), None)).numpy()
    assert encoded.shape == (2, 8, 50, 3)
    np.testing.assert_array_equal(encoded[1, :4, 49, 2], encoding.col_embed.weight[2].numpy())
    np.testing.assert_array_equal(encoded[1, 4:, 49, 2], encoding.row_embed.weight[49].numpy())
    for height, width in ((51, 1), (1, 51)):
        with pytest.raises(ValueError, match=f"features: {height}x{width} cells"):
            encoding(NestedTensor(jt.zeros((1, 1, height, width)), None))


def test_frozen_batch_norm():
    """Its constants are kept until weights are loaded."""
    norm = FrozenBatchNorm2d(3)
    names = "weight", "bias", "running_mean", "running_var"
    x = np.random.default_rng(1).standard_normal((2, 3, 4, 5), np.float32)
    for seed in range(2):
        values = np.random.default_rng(seed).uniform(0.5, 2, (4, 3)).astype(np.float32)
        load_model_state(norm, dict(zip(names, values)), "file.pkl")
        weight, bias, mean, variance = values[:, :, None, None]
        expected = (x - mean) / np.sqrt(variance + 1e-5) * weight + bias
        for _ in range(2):
            np.testing.assert_allclose(norm(jt.array(x)).numpy(), expected, atol=1e-5)
    assert sorted(norm.state_dict()) == sorted(names)


def test_dropout_works_in_training_only():
    model = build_tiny("--dropout", 0.5)
    samples, _ = tiny.make_batch(0)

    def predict():
        return model(samples.to_jittor())["pred_logits"].numpy()

    model.train()
    assert np.abs(predict() - predict()).max() > 1e-2
    model.eval()
    np.testing.assert_array_equal(predict(), predict())


@pytest.mark.parametrize("position_embedding", ["sine", "learned"])
@pytest.mark.parametrize("norm", [[], ["--pre_norm"]])
def test_masked_cells_do_not_change_the_decoder(position_embedding, norm):
    """A feature map, and the same with masked random cells at the right and bottom.

    From image to feature map padding does matter, as in the original: convolutions see it.
    """
    model = build_tiny("--position_embedding", position_embedding, *norm)
    model.eval()
    random = np.random.default_rng(0)
    small = random.standard_normal((2, 32, 3, 5), np.float32)
    large = random.standard_normal((2, 32, 6, 7), np.float32) * 100
    large[:, :, :3, :5] = small
    mask = np.ones((2, 6, 7), bool)
    mask[:, :3, :5] = False

    def decode(features, mask):
        features = NestedTensor(jt.array(features), jt.array(mask))
        return model.transformer(
            features.tensors, features.mask, model.query_embed.weight, model.backbone[1](features)
        )[0].numpy()

    masked = decode(large, mask)
    np.testing.assert_allclose(masked, decode(small, np.zeros((2, 3, 5), bool)), atol=1e-5)
    unmasked = decode(large, np.zeros_like(mask))
    assert np.abs(unmasked - masked).max() > 0.1, "the cells would matter without the mask"


@pytest.mark.parametrize(
    "flags, channels, stride", [([], 512, 32), (["--backbone", "resnet50", "--dilation"], 2048, 16)]
)
def test_feature_map_and_mask(flags, channels, stride):
    samples, _ = tiny.make_batch(0, sizes=((64, 96), (32, 96), (64, 64)))
    [features] = build_tiny(*flags).backbone[0](samples.to_jittor())
    assert features.tensors.shape == [3, channels, 64 // stride, 96 // stride]
    mask = features.mask.numpy().astype(bool)
    np.testing.assert_array_equal(mask, samples.mask[:, ::stride, ::stride])
    assert not mask[0].any() and mask[1].any() and mask[2].any()


def test_a_list_of_images_is_a_batch():
    model = build_tiny()
    model.eval()
    samples, _ = tiny.make_batch(0)
    images = [samples.tensors[0, :, :64], samples.tensors[1, :, :, :64]]
    found, expected = (model(x)["pred_boxes"].numpy() for x in (images, samples.to_jittor()))
    np.testing.assert_array_equal(found, expected)


def test_postprocess_returns_pixels_and_never_no_object():
    logits = np.zeros((2, 1, 4), np.float32)
    logits[:, 0, 3] = 9  # "no object"
    logits[:, 0, 1] = 2
    boxes = np.tile(np.float32([0.5, 0.25, 0.2, 0.5]), (2, 1, 1))
    outputs = {"pred_logits": jt.array(logits), "pred_boxes": jt.array(boxes)}
    first, second = PostProcess()(outputs, [(100, 300), (50, 20)])
    np.testing.assert_allclose(first["boxes"], [[120, 0, 180, 50]], atol=1e-4)
    np.testing.assert_allclose(second["boxes"], [[8, 0, 12, 25]], atol=1e-4)
    score = np.exp(2) / (np.exp(9) + np.exp(2) + 2)
    for result in (first, second):
        assert result["labels"].tolist() == [1]
        np.testing.assert_allclose(result["scores"], score, rtol=1e-5)


@pytest.mark.parametrize("flags", [[], ["--masks", "--hidden_dim", 128, "--nheads", 8]])
def test_no_matrix_product_runs_in_jittors_own_operator(flags):
    """On its threads a signal could overwrite memory (see HandlerStack in util/ops/gemm.h)."""
    model, criterion, _ = tiny.build(tiny.arguments(*flags))
    samples, targets = tiny.make_batch(0)
    for target in targets:
        target["masks"] = np.ones((1, *samples.tensors.shape[2:]), bool)
    with jt.profile_scope() as report:
        losses = criterion(model(samples.to_jittor()), targets)
        total = sum(losses[name] for name in criterion.weight_dict)
        jt.sync(jt.grad(total, list(get_trainable(model).values())))
    names = [row[0] for row in report[1:]]
    assert any("code" in name for name in names), names
    assert not any("mkl_matmul" in name for name in names), names
