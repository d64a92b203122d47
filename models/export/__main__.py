"""`python -m models.export IN OUT.onnx`: export a model to ONNX, without Jittor."""

import argparse
import sys
from pathlib import Path

from models.architecture import infer_architecture, largest_learned_side
from models.weights.__main__ import add_architecture_flags
from models.weights.checkpoint import load_checkpoint
from models.weights.names import get_class_names
from models.weights.shapes import check_weights
from util.errors import InputError
from util.files import replacing

LOWEST_OPSET = 17  # the first with LayerNormalization


def main():
    parser = argparse.ArgumentParser(
        prog="python -m models.export", description="Write a checkpoint's model as an ONNX file."
    )
    parser.add_argument("source", metavar="IN", help="checkpoint or weights, as for --resume")
    parser.add_argument("target", metavar="OUT.onnx", help="file to write")
    parser.add_argument(
        "--opset", type=int, default=LOWEST_OPSET, help="version of ONNX's operators (default 17)"
    )
    parser.add_argument(
        "--size",
        nargs="+",
        default=["dynamic"],
        metavar="SIDE",
        help="height and width of the images in pixels, or dynamic (the default) for any",
    )
    add_architecture_flags(parser)
    options = parser.parse_args()
    try:
        export(options)
    except InputError as error:
        sys.exit(f"error: {error}")


def export(options):
    """Write the ONNX file. Raises InputError."""
    size = check_size(options.size)
    if Path(options.source).resolve() == Path(options.target).resolve():
        raise InputError(f"{options.target}: is the input itself; give another OUT.onnx")
    try:
        import onnx
    except ImportError as error:
        raise InputError(
            'the export needs the package onnx: pip install onnx "numpy<2" (Jittor needs NumPy 1)'
        ) from error
    highest = onnx.defs.onnx_opset_version()
    if not LOWEST_OPSET <= options.opset <= highest:
        raise InputError(f"--opset is {options.opset}: give {LOWEST_OPSET} to {highest}")
    from .detr import export_detr

    checkpoint = load_checkpoint(options.source)
    architecture = infer_architecture(checkpoint, options.source, options.dilation, options.nheads)
    check_weights(checkpoint["model"], architecture, options.source)
    check_encoding(size, architecture)
    classes = get_class_names(checkpoint, options.source)
    model = export_detr(checkpoint["model"], architecture, classes, options.opset, size)
    onnx.checker.check_model(model, full_check=True)
    with replacing(options.target) as file:
        file.write(model.SerializeToString())


def check_size(sides):
    """Return None for `dynamic`, else (height, width). Raises InputError."""
    if sides == ["dynamic"]:
        return None
    if len(sides) != 2 or not all(side.isdecimal() and int(side) >= 32 for side in sides):
        raise InputError(
            f"--size is {' '.join(sides)}: give height and width, 32 pixels or more, or dynamic"
        )
    return int(sides[0]), int(sides[1])


def check_encoding(size, architecture):
    """Raise InputError if size (height, width) exceeds the learned position encoding."""
    limit = largest_learned_side(architecture.backbone, architecture.dilation)
    if size and max(size) > limit and architecture.position_embedding == "learned":
        raise InputError(
            f"--size is {size[0]} {size[1]}: give {limit} pixels at most, the limit of the model's "
            "learned position encoding"
        )


if __name__ == "__main__":
    main()
