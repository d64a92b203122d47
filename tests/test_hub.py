"""Published models by name, models of any checkpoint, and the README's program."""

import argparse

import numpy as np
import pytest
import tiny
from PIL import Image
from processes import REPO, run_python
from same import assert_same

from arguments import parse_args
from models import hub
from models.detr import PostProcess
from models.segmentation import PostProcessPanoptic
from models.weights.__main__ import convert
from models.weights.model import model_state
from predict import predict
from util.errors import InputError
from util.jittor_file import write_jittor_file

PANOPTIC = "--masks --dataset_file coco_panoptic"
HUB = {
    "detr_resnet50": "",
    "detr_resnet50_dc5": "--dilation",
    "detr_resnet101": "--backbone resnet101",
    "detr_resnet101_dc5": "--backbone resnet101 --dilation",
    "detr_resnet50_panoptic": PANOPTIC,
    "detr_resnet50_dc5_panoptic": f"{PANOPTIC} --dilation",
    "detr_resnet101_panoptic": f"{PANOPTIC} --backbone resnet101",
}


@pytest.mark.parametrize("name", HUB)
def test_models_by_name(name):
    """They have the flags' weights and dilation, and the right postprocessor."""
    model, postprocessor = getattr(hub, name)(return_postprocessor=True)
    assert type(postprocessor) is (PostProcessPanoptic if "panoptic" in name else PostProcess)
    other = tiny.build(parse_args(HUB[name].split()))[0]
    assert [(n, p.shape) for n, p in model.named_parameters()] == [
        (n, p.shape) for n, p in other.named_parameters()
    ]
    stage, other_stage = (getattr(m, "detr", m).backbone[0].body.layer4 for m in (model, other))
    assert stage[0].conv2.stride == other_stage[0].conv2.stride
    assert stage[1].conv2.dilation == other_stage[1].conv2.dilation


def test_the_readmes_program_runs(tmp_path):
    """In another process, where its imports come first."""
    [block] = (REPO / "README.md").read_text().split("```python\n")[1:]
    program = block.split("```")[0]
    Image.new("RGB", (64, 48)).save(tmp_path / "photo.jpg")
    names = {number: f"class {number}" for number in range(5)}
    model = tiny.build(tiny.arguments("--num_classes 5"))[0]
    write_jittor_file({"model": model_state(model), "classes": names}, tmp_path / "mine.pkl")
    program = program.replace("output/mine/checkpoint.pkl", str(tmp_path / "mine.pkl"))
    program = program.replace("photo.jpg", str(tmp_path / "photo.jpg"))
    program = program.replace("threshold=0.7", "threshold=0, size=64")
    done = run_python("-c", program, timeout=1000)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 10 and all(line.startswith("class ") for line in lines)


def test_published_weights_load_by_name(tmp_path, monkeypatch):
    """From a local folder instead of the original's address; the loading is strict."""
    model = hub.detr_resnet50(num_classes=4)
    write_jittor_file({"model": model_state(model)}, tmp_path / "detr-r50-e632da11.pth")
    monkeypatch.setattr(hub, "WEIGHTS_URL", f"{tmp_path}/")
    again = hub.detr_resnet50(pretrained=True, num_classes=4)
    assert (again.class_embed.weight.numpy() == model.class_embed.weight.numpy()).all()
    message = "detr-r50-e632da11.pth: does not fit the model: 2 of another shape .class_embed"
    with pytest.raises(InputError, match=message):
        hub.detr_resnet50(pretrained=True)


def test_weights_of_a_folder_load_by_name(tmp_path):
    """Like transformers' folders. Weights with and without dilation have the same shapes."""
    model = hub.detr_resnet50(num_classes=4)
    write_jittor_file({"model": model_state(model)}, tmp_path / "mine.pkl")
    convert(tmp_path / "mine.pkl", tmp_path / "folder", argparse.Namespace(dilation=True, nheads=8))
    again = hub.detr_resnet50_dc5(pretrained=tmp_path / "folder", num_classes=4)
    assert (again.class_embed.weight.numpy() == model.class_embed.weight.numpy()).all()
    with pytest.raises(InputError, match="folder: was trained with dilation True and 8 heads"):
        hub.detr_resnet50(pretrained=tmp_path / "folder", num_classes=4)


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--masks --hidden_dim 128 --nheads 8",
        "--pre_norm --position_embedding learned --max_size 500 --backbone_norm group",
        "--backbone tiny --backbone_norm batch --enc_layers 0 --dec_layers 1",
    ],
)
def test_any_checkpoint_loads(tmp_path, flags):
    """The model has the outputs of the saved one, and its class names."""
    args = tiny.arguments(f"--num_classes 5 {flags}")
    model = tiny.build(args)[0]
    names = {1: "cat", 4: "dog"}
    checkpoint = {"model": model_state(model), "args": vars(args), "classes": names}
    write_jittor_file(checkpoint, tmp_path / "mine.pkl")
    again, names_again = hub.load_detr(tmp_path / "mine.pkl")
    assert names_again == names
    image = np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)
    [found], [expected] = (predict(m, [image], threshold=0, size=64) for m in (again, model))
    assert ("masks" in found) == ("masks" in flags)
    if "batch" in flags:  # loaded as frozen, which rounds differently
        np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-6)
    else:
        assert_same(found, expected)


def test_the_panoptic_postprocessor_knows_things_and_stuff():
    _, postprocessor = hub.detr_resnet50_panoptic(return_postprocessor=True)
    assert postprocessor.is_thing_map[90] and not postprocessor.is_thing_map[92]
