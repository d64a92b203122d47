"""Weights and folders like those of transformers; with transformers: oracle/test_huggingface.py."""

import argparse
import json

import numpy as np
import pytest
import tiny
from same import assert_same

from arguments import apply_checkpoint_args, parse_args
from models.weights.__main__ import convert
from models.weights.checkpoint import load_checkpoint, read_class_names
from models.weights.huggingface import parse_config
from models.weights.huggingface_names import from_huggingface, is_huggingface, to_huggingface
from models.weights.model import model_state
from models.weights.safetensors_file import write_safetensors
from util.errors import InputError
from util.jittor_file import write_jittor_file

FLAGS = {
    "boxes": ["--num_classes", 5],
    "masks": ["--masks --hidden_dim 128 --nheads 8", "--num_classes", 5],
    "learned": ["--position_embedding learned --backbone resnet50", "--num_classes", 3],
}


@pytest.fixture(scope="module", params=FLAGS)
def args(request):
    return tiny.arguments(*FLAGS[request.param])


@pytest.fixture(scope="module")
def state(args):
    return model_state(tiny.build(args)[0])


def same(found, expected):
    assert_same(dict(sorted(found.items())), dict(sorted(expected.items())))


def get_new_name(name):
    """Return transformers 5's name for an older one."""
    for old, new in (
        ("backbone.conv_encoder.", "backbone."),
        ("out_proj", "o_proj"),
        (".fc", ".mlp.fc"),
        ("bbox_attention.q_linear", "bbox_attention.q_proj"),
        ("bbox_attention.k_linear", "bbox_attention.k_proj"),
        ("mask_head.lay1.", "mask_head.conv1.conv."),
        ("mask_head.gn2.", "mask_head.conv2.norm."),
        ("mask_head.adapter3.", "mask_head.fpn_stages.2.fpn_adapter."),
        ("mask_head.lay3.", "mask_head.fpn_stages.0.refine.conv."),
        ("mask_head.gn5.", "mask_head.fpn_stages.2.refine.norm."),
        ("mask_head.out_lay.", "mask_head.output_conv."),
    ):
        name = name.replace(old, new)
    return name


def test_names_go_both_ways(state):
    theirs = to_huggingface(state)
    assert is_huggingface(theirs) and not is_huggingface(state)
    assert not theirs.keys() & {n for n in state if not n.startswith(("mask_", "bbox_att"))}
    same(from_huggingface(theirs), state)
    same(from_huggingface({get_new_name(name): array for name, array in theirs.items()}), state)


def test_some_names_of_transformers(state):
    theirs = to_huggingface(state)
    prefix = "detr." if "mask_head.lay1.weight" in state else ""
    for name in (
        "model.backbone.conv_encoder.model.layer1.0.conv1.weight",
        "model.input_projection.bias",
        "model.query_position_embeddings.weight",
        "model.encoder.layers.0.self_attn.q_proj.weight",
        "model.encoder.layers.0.final_layer_norm.bias",
        "model.decoder.layers.1.encoder_attn.v_proj.bias",
        "model.decoder.layers.1.encoder_attn_layer_norm.weight",
        "model.decoder.layers.1.fc2.weight",
        "model.decoder.layernorm.weight",
        "class_labels_classifier.bias",
        "bbox_predictor.layers.2.weight",
    ):
        assert prefix + name in theirs
    np.testing.assert_array_equal(
        theirs[f"{prefix}model.decoder.layers.1.final_layer_norm.weight"],
        state[f"{prefix}transformer.decoder.layers.1.norm3.weight"],
    )


def test_the_resnet_of_transformers():
    theirs = {
        "embedder.embedder.convolution.weight": "conv1.weight",
        "embedder.embedder.normalization.running_var": "bn1.running_var",
        "encoder.stages.3.layers.0.shortcut.normalization.bias": "layer4.0.downsample.1.bias",
        "encoder.stages.2.layers.5.layer.1.convolution.weight": "layer3.5.conv2.weight",
        "encoder.stages.1.layers.3.layer.2.normalization.weight": "layer2.3.bn3.weight",
    }
    theirs = {f"model.backbone.model.{name}": ours for name, ours in theirs.items()}
    old = "model.backbone.conv_encoder.model.encoder.stages.0.layers.0.shortcut.convolution.weight"
    theirs[old] = "layer1.0.downsample.0.weight"
    found = from_huggingface({name: np.zeros(1) for name in theirs})
    assert list(found) == [f"backbone.0.body.{name}" for name in theirs.values()]


def test_a_name_without_counterpart_stays():
    """So that the strict loading lists it."""
    names = [
        "model.decoder.layers.0.something.weight",
        "model.encoder.layers.0.self_attn.q_proj.weight",  # without k and v
        "model.backbone.model.encoder.stages.0.layers.0.layer.7.convolution.weight",
        "reference_points.weight",
    ]
    found = from_huggingface({name: np.zeros((2, 2)) for name in names})
    assert {names[0], names[1], names[3]} < found.keys() and len(found) == 4


# ---- folders


@pytest.fixture
def classes(args):
    return {} if args.num_classes == 3 else {1: "person", 4: "自行车"}


@pytest.fixture
def folder(tmp_path, args, state, classes):
    return make_folder(tmp_path, {"model": state, "args": vars(args), "classes": classes})


def make_folder(tmp_path, checkpoint):
    """Write checkpoint.pkl and convert it to a folder."""
    write_jittor_file(checkpoint, tmp_path / "checkpoint.pkl")
    options = argparse.Namespace(dilation=False, nheads=8)
    convert(tmp_path / "checkpoint.pkl", tmp_path / "folder", options)
    return tmp_path / "folder"


def test_a_folder_has_all_that_loading_needs(folder, args, state, classes):
    checkpoint = load_checkpoint(folder)
    same(checkpoint["model"], state)
    assert read_class_names(checkpoint, folder) == classes
    resumed = parse_args(["--eval", "--coco_path", ".", "--resume", str(folder)])
    apply_checkpoint_args(resumed, checkpoint, folder)
    for name in (
        "backbone dilation position_embedding enc_layers dec_layers dim_feedforward hidden_dim "
        "nheads num_queries masks num_classes"
    ).split():
        assert getattr(resumed, name) == getattr(args, name), name


def test_image_sizes_go_both_ways(tmp_path, state):
    """In all forms that preprocessor_config.json had."""
    flags = {"eval_size": 384, "max_size": 640}
    folder = make_folder(tmp_path, {"model": state, "args": flags})
    path = folder / "preprocessor_config.json"
    written = {"shortest_edge": 384, "longest_edge": 640}
    assert json.loads(path.read_text())["size"] == written
    for content, expected in (
        ({"size": written}, (384, 640)),
        ({"size": 384, "max_size": 640}, (384, 640)),
        ({"size": {"height": 300, "width": 300}}, (None, None)),
        ({}, (None, None)),
    ):
        path.write_text(json.dumps(content))
        flags = load_checkpoint(folder)["args"]
        assert (flags.get("eval_size"), flags.get("max_size")) == expected


def test_the_image_size_of_the_shapes_is_written(tmp_path, state):
    flags = {"dataset_file": "shapes", "shapes_size": 64, "eval_size": 800, "max_size": 1333}
    folder = make_folder(tmp_path, {"model": state, "args": flags})
    size = json.loads((folder / "preprocessor_config.json").read_text())["size"]
    assert size == {"shortest_edge": 64, "longest_edge": 64}


def test_a_folder_has_cocos_names_if_the_weights_have_none(tmp_path):
    folder = make_folder(tmp_path, {"model": model_state(tiny.build(tiny.arguments())[0])})
    names = json.loads((folder / "config.json").read_text())["id2label"]
    assert names["18"] == "dog" and names["90"] == "toothbrush"
    assert read_class_names(load_checkpoint(folder), folder)[18] == "dog"


def test_a_file_takes_the_config_beside_it(folder, state):
    checkpoint = load_checkpoint(folder / "model.safetensors")
    same(checkpoint["model"], state)
    assert checkpoint["args"] == load_checkpoint(folder)["args"]
    (folder / "config.json").unlink()
    assert "args" not in load_checkpoint(folder / "model.safetensors")


def test_parts_with_an_index(folder, state):
    whole = to_huggingface(state)
    names = list(whole)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for part, part_names in parts.items():
        with open(folder / part, "wb") as file:
            write_safetensors({name: whole[name] for name in part_names}, file)
    (folder / "model.safetensors").unlink()
    weight_map = {name: part for part, part_names in parts.items() for name in part_names}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    same(load_checkpoint(folder)["model"], state)
    (folder / "two.safetensors").unlink()
    assert_refused(folder, "index.json: two.safetensors is missing; download it, too")
    index.write_text("{}")
    assert_refused(folder, "has no weight_map")
    index.write_text(json.dumps({"weight_map": {"a": "/etc/passwd"}}))
    assert_refused(folder, "not in a file beside it")


def assert_refused(folder, message):
    with pytest.raises(InputError, match=message) as error:
        load_checkpoint(folder)
    assert str(folder) in str(error.value) and str(error.value).isprintable()


def test_folders_that_cannot_be_used(folder):
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"model_type": "conditional_detr"}, "model_type is 'conditional_detr'; only detr is"),
        ({"model_type": None}, "model_type is None; only detr is supported"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu'; only relu"),
        ({"backbone": "swin_tiny"}, "backbone is swin_tiny; only resnet18, "),
        ({"backbone": "tiny"}, "backbone is tiny; only"),
        ({"backbone_config": []}, None),
        ({"backbone_config": [1]}, "backbone_config is not an object"),
        ({"backbone_config": {"model_type": "resnet", "depths": [1]}}, r"resnet of \[1\] blocks"),
        (
            {"backbone_config": {"model_type": "resnet", "downsample_in_bottleneck": True}},
            "backbone_config has downsample_in_bottleneck",
        ),
        ({"d_model": "256"}, "d_model is '256'; only one integer"),
        ({"encoder_attention_heads": 4, "decoder_attention_heads": 8}, "is 4 and .* is 8; only"),
        ({"position_embedding_type": "none"}, "position_embedding_type is 'none'"),
        ({"id2label": {"one": "x"}}, "id2label does not map ids to names"),
        ({"id2label": {"1": 3}}, "id2label does not map ids to names"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        if message is None:
            load_checkpoint(folder)
        else:
            assert_refused(folder, message)
    for text, message in (("{", "not JSON"), ("[]", "not a JSON object")):
        (folder / "config.json").write_text(text)
        assert_refused(folder, message)
    (folder / "model.safetensors").unlink()
    assert_refused(folder, "has no model.safetensors or pytorch_model.bin; give a folder")


def test_configs_of_other_versions():
    """Before and after transformers 5, and the published ones."""

    def parse(**config):
        return parse_config({"model_type": "detr", **config}, "config.json")

    timm = {"model_type": "timm_backbone", "backbone": "resnet101.a1_in1k", "output_stride": 16}
    old, _ = parse(use_timm_backbone=True, backbone="resnet101", dilation=True)
    assert parse(backbone_config=timm)[0] == old
    assert (old["backbone"], old["dilation"], old["num_queries"]) == ("resnet101", True, 100)
    own = {"model_type": "resnet", "depths": [2, 2, 2, 2], "layer_type": "basic"}
    flags, classes = parse(backbone_config=own, id2label={"0": "LABEL_0", "2": "N/A"})
    assert flags["backbone"] == "resnet18" and classes == {}


# ---- models that transformers does not support


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--pre_norm", "was trained with --pre_norm, which transformers does not support"),
        ("--backbone_norm group", "--backbone_norm group"),
        ("--backbone tiny --backbone_norm batch", "--backbone tiny"),
    ],
)
def test_other_models_are_not_converted(tmp_path, flags, message):
    args = tiny.arguments(flags, "--num_classes", 5)
    with pytest.raises(InputError, match=message):
        make_folder(tmp_path, {"model": model_state(tiny.build(args)[0]), "args": vars(args)})
    assert not (tmp_path / "folder").exists()
