"""Weights and folders of transformers. With transformers itself: oracle/test_huggingface.py."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tiny
from processes import REPO

from arguments import apply_checkpoint_args, parse_args
from models.weights.__main__ import main as convert
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
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def newer(name):
    """transformers 5's name for one of its older ones."""
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
    same(from_huggingface({newer(name): array for name, array in theirs.items()}), state)


def test_some_names_as_transformers_has_them(state):
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
    ours = f"{prefix}transformer.decoder.layers.1."
    np.testing.assert_array_equal(
        theirs[f"{prefix}model.decoder.layers.1.final_layer_norm.weight"],
        state[f"{ours}norm3.weight"],
    )


def test_transformers_own_resnet():
    theirs = {
        "model.backbone.model.embedder.embedder.convolution.weight": "conv1.weight",
        "model.backbone.model.embedder.embedder.normalization.running_var": "bn1.running_var",
        "model.backbone.conv_encoder.model.encoder.stages.0.layers.0.shortcut.convolution.weight": (
            "layer1.0.downsample.0.weight"
        ),
        "model.backbone.model.encoder.stages.3.layers.0.shortcut.normalization.bias": (
            "layer4.0.downsample.1.bias"
        ),
        "model.backbone.model.encoder.stages.2.layers.5.layer.1.convolution.weight": (
            "layer3.5.conv2.weight"
        ),
        "model.backbone.model.encoder.stages.1.layers.3.layer.2.normalization.weight": (
            "layer2.3.bn3.weight"
        ),
    }
    found = from_huggingface({name: np.zeros(1) for name in theirs})
    assert list(found) == [f"backbone.0.body.{name}" for name in theirs.values()]


def test_what_has_no_counterpart_keeps_its_name():
    """So that the loading, which is strict, lists it."""
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
def folder(tmp_path, args, state):
    """What `python -m models.weights checkpoint.pkl folder` writes."""
    source = tmp_path / "checkpoint.pkl"
    classes = {1: "person", 4: "自行车"}
    if args.num_classes == 3:
        classes = {}
    write_jittor_file({"model": state, "args": vars(args), "classes": classes}, source)
    run(source, tmp_path / "folder")
    return tmp_path / "folder"


def run(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "models.weights", *map(str, arguments)],
        cwd=REPO,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_folder_has_all_that_loading_needs(folder, args, state):
    checkpoint = load_checkpoint(folder)
    same(checkpoint["model"], state)
    expected = {} if args.num_classes == 3 else {1: "person", 4: "自行车"}
    assert read_class_names(checkpoint, folder) == expected
    words = ["--eval", "--coco_path", ".", "--resume", str(folder)]
    resumed = parse_args(words)
    apply_checkpoint_args(resumed, checkpoint, folder)
    for name in (
        "backbone dilation position_embedding enc_layers dec_layers dim_feedforward hidden_dim "
        "nheads num_queries masks num_classes"
    ).split():
        assert getattr(resumed, name) == getattr(args, name), name


def test_sizes_of_images_go_both_ways(tmp_path, state):
    """In all forms that preprocessor_config.json had."""
    source, folder = tmp_path / "checkpoint.pkl", tmp_path / "folder"
    write_jittor_file({"model": state, "args": {"eval_size": 384, "max_size": 640}}, source)
    run(source, folder)
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


def test_a_folder_has_cocos_names_where_the_weights_have_none(tmp_path):
    source, folder = tmp_path / "detr.pkl", tmp_path / "folder"
    write_jittor_file({"model": model_state(tiny.build(tiny.arguments())[0])}, source)
    run(source, folder)
    names = json.loads((folder / "config.json").read_text())["id2label"]
    assert names["18"] == "dog" and names["90"] == "toothbrush"
    assert read_class_names(load_checkpoint(folder), folder)[18] == "dog"


def test_a_file_takes_the_config_beside_it(folder, state):
    same(load_checkpoint(folder / "model.safetensors")["model"], state)
    flags = load_checkpoint(folder / "model.safetensors")["args"]
    (folder / "config.json").unlink()
    assert flags == load_checkpoint(folder / "model.safetensors").get("args", flags)
    assert "args" not in load_checkpoint(folder / "model.safetensors")


def test_parts_with_an_index(folder, state):
    whole = to_huggingface(state)
    names = list(whole)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for part, of_part in parts.items():
        with open(folder / part, "wb") as file:
            write_safetensors({name: whole[name] for name in of_part}, file)
    (folder / "model.safetensors").unlink()
    weight_map = {name: part for part, of_part in parts.items() for name in of_part}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    same(load_checkpoint(folder)["model"], state)
    (folder / "two.safetensors").unlink()
    refused(folder, "index.json: two.safetensors is missing; download it, too")
    index.write_text("{}")
    refused(folder, "has no weight_map")
    index.write_text(json.dumps({"weight_map": {"a": "/etc/passwd"}}))
    refused(folder, "which is no file beside it")


def refused(folder, message):
    with pytest.raises(InputError, match=message) as error:
        load_checkpoint(folder)
    assert str(folder) in str(error.value) and str(error.value).isprintable()


def test_folders_that_cannot_be_used(folder):
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"model_type": "conditional_detr"}, "of type 'conditional_detr'; only detr is supported"),
        ({"model_type": None}, "of type None; only detr is supported"),
        ({"activation_function": "gelu"}, "its activation_function is 'gelu'; only relu"),
        ({"backbone": "swin_tiny"}, "its backbone is swin_tiny; there are resnet18, "),
        ({"backbone": "tiny"}, "its backbone is tiny; there are"),
        ({"backbone_config": []}, None),
        ({"backbone_config": [1]}, "its backbone_config is no dictionary"),
        ({"backbone_config": {"model_type": "resnet", "depths": [1]}}, r"resnet of \[1\] blocks"),
        (
            {"backbone_config": {"model_type": "resnet", "downsample_in_bottleneck": True}},
            "its backbone_config has downsample_in_bottleneck",
        ),
        ({"d_model": "256"}, "has d_model '256'; only one whole number"),
        ({"encoder_attention_heads": 4, "decoder_attention_heads": 8}, "heads 4 and .* 8; only"),
        ({"position_embedding_type": "none"}, "its position_embedding_type is 'none'"),
        ({"id2label": {"one": "x"}}, "its id2label is not a dictionary"),
        ({"id2label": {"1": 3}}, "its id2label is not a dictionary"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        if message is None:
            load_checkpoint(folder)
        else:
            refused(folder, message)
    for text, message in (("{", "is no JSON"), ("[]", "holds no JSON object")):
        (folder / "config.json").write_text(text)
        refused(folder, message)
    (folder / "model.safetensors").unlink()
    refused(folder, "has no model.safetensors or pytorch_model.bin; give a folder")


def test_configs_of_other_versions():
    """Before and after transformers 5, and the published ones."""
    old, new = (
        parse_config({"model_type": "detr", **config}, "config.json")[0]
        for config in (
            {"use_timm_backbone": True, "backbone": "resnet101", "dilation": True},
            {
                "backbone_config": {
                    "model_type": "timm_backbone",
                    "backbone": "resnet101.a1_in1k",
                    "output_stride": 16,
                }
            },
        )
    )
    assert old == new
    assert (old["backbone"], old["dilation"], old["num_queries"]) == ("resnet101", True, 100)
    own = {"model_type": "resnet", "depths": [2, 2, 2, 2], "layer_type": "basic"}
    flags, classes = parse_config(
        {"model_type": "detr", "backbone_config": own, "id2label": {"0": "LABEL_0", "2": "N/A"}},
        "config.json",
    )
    assert flags["backbone"] == "resnet18" and classes == {}


# ---- what transformers does not have


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--pre_norm", "was trained with --pre_norm, which transformers does not have"),
        ("--backbone_norm group", "--backbone_norm group"),
        ("--backbone tiny --backbone_norm batch", "--backbone tiny"),
    ],
)
def test_other_models_stay_here(tmp_path, monkeypatch, flags, message):
    args = tiny.arguments(flags, "--num_classes", 5)
    source = tmp_path / "checkpoint.pkl"
    write_jittor_file({"model": model_state(tiny.build(args)[0]), "args": vars(args)}, source)
    monkeypatch.setattr("sys.argv", ["weights", str(source), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=message):
        convert()
    assert not (tmp_path / "out").exists()
