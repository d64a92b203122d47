"""Architectures inferred from weights, and errors of `python -m models.export`.

The ONNX files themselves: oracle/test_export.py.
"""

import sys

import numpy as np
import pytest
import tiny

from models.architecture import get_architecture, infer_architecture
from models.export.__main__ import check_size_limit, main, parse_size
from models.weights.model import model_state
from models.weights.shapes import get_weight_shapes
from util.errors import InputError
from util.jittor_file import write_jittor_file

MODELS = [
    "--num_classes 5",
    "--num_classes 5 --backbone tiny --backbone_norm batch",
    "--num_classes 7 --backbone resnet50 --dilation --position_embedding learned",
    "--num_classes 3 --backbone resnet34 --backbone_norm group --pre_norm --enc_layers 0",
    "--num_classes 3 --masks --hidden_dim 128 --nheads 8",
]


@pytest.mark.parametrize("flags", MODELS)
def test_weights_determine_the_architecture_and_vice_versa(flags):
    args = tiny.arguments(flags)
    state = model_state(tiny.build(args)[0])
    expected = get_architecture(args, args.num_classes)
    if args.backbone_norm == "batch":
        expected = expected._replace(backbone_norm="frozen")
    assert infer_architecture({"model": state, "args": vars(args)}, "x.pkl") == expected
    # The original's weights come without flags.
    assert infer_architecture({"model": state}, "x.pkl", args.dilation, args.nheads) == expected
    assert get_weight_shapes(expected) == {name: value.shape for name, value in state.items()}


def test_other_weights_are_refused():
    state = model_state(tiny.build(tiny.arguments("--num_classes 5"))[0])
    for part in ("query_embed", "class_embed", "backbone.0.body.layer3.1", "transformer.decoder"):
        rest = {name: array for name, array in state.items() if not name.startswith(part)}
        with pytest.raises(InputError, match="x.pkl: not the weights of a DETR"):
            infer_architecture({"model": rest}, "x.pkl")


@pytest.mark.parametrize("encoding, limit", [("learned", 1600), ("sine", None)])
def test_a_size_beyond_the_learned_encoding_is_refused(encoding, limit):
    """No program would load such a file."""
    args = tiny.arguments("--num_classes 5 --position_embedding", encoding)
    state = model_state(tiny.build(args)[0])
    architecture = infer_architecture({"model": state, "args": vars(args)}, "x.pkl")
    check_size_limit(None, architecture)
    check_size_limit((1600, 1600), architecture)
    if limit is None:
        check_size_limit((1600, 1601), architecture)
    else:
        with pytest.raises(InputError, match="--size is 1600 1601: give 1600 pixels at most"):
            check_size_limit((1600, 1601), architecture)


@pytest.mark.parametrize("sides", [["800"], ["800", "1066", "3"], ["31", "64"], ["a", "b"], ["-1"]])
def test_a_size_is_two_sides_or_dynamic(sides):
    assert parse_size(["dynamic"]) is None and parse_size(["800", "1066"]) == (800, 1066)
    with pytest.raises(InputError, match="--size is .*: give height and width"):
        parse_size(sides)


def test_without_the_package_onnx_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    source, target = tmp_path / "a.pkl", tmp_path / "a.onnx"
    write_jittor_file({"model": {"a": np.ones(1, np.float32)}}, source)
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setattr("sys.argv", ["export", str(source), str(target)])
    with pytest.raises(SystemExit, match='pip install onnx "numpy<2"'):
        main()
    assert not target.exists()
