"""Export a checkpoint's model to ONNX: `python -m models.export IN OUT.onnx`."""

import argparse
from pathlib import Path

from models.architecture import get_max_learned_side, infer_architecture
from models.weights.__main__ import add_architecture_flags
from models.weights.checkpoint import load_checkpoint
from models.weights.names import get_class_names
from models.weights.shapes import check_weights
from util.errors import InputError
from util.files import atomic_write
from util.launch import job

MIN_OPSET = 17  # the first with LayerNormalization


def main():
    parser = argparse.ArgumentParser(
        prog="python -m models.export", description="Export a checkpoint's model to ONNX."
    )
    parser.add_argument("source", metavar="IN", help="checkpoint or weights, as for --resume")
    parser.add_argument("target", metavar="OUT.onnx", help="output file")
    text = "ONNX opset version (default: %(default)s)"
    parser.add_argument("--opset", type=int, default=MIN_OPSET, help=text)
    text = "height and width of the images in pixels (default: dynamic, any size)"
    parser.add_argument("--size", nargs="+", default=["dynamic"], metavar="SIDE", help=text)
    add_architecture_flags(parser)
    args = parser.parse_args()
    with job():
        export(args)


def export(args):
    """Write the ONNX file. Raises InputError."""
    size = parse_size(args.size)
    if Path(args.source).resolve() == Path(args.target).resolve():
        raise InputError(f"{args.target}: output is the input file; give another path")
    try:
        import onnx
    except ImportError as error:
        raise InputError(
            'the export needs the package onnx: pip install onnx "numpy<2" (Jittor needs NumPy 1)'
        ) from error
    max_opset = onnx.defs.onnx_opset_version()
    if not MIN_OPSET <= args.opset <= max_opset:
        raise InputError(f"--opset is {args.opset}: give {MIN_OPSET} to {max_opset}")
    from .detr import export_detr

    checkpoint = load_checkpoint(args.source)
    architecture = infer_architecture(checkpoint, args.source, args.dilation, args.nheads)
    check_weights(checkpoint["model"], architecture, args.source)
    check_size_limit(size, architecture)
    classes = get_class_names(checkpoint, args.source)
    model = export_detr(checkpoint["model"], architecture, classes, args.opset, size)
    onnx.checker.check_model(model, full_check=True)
    with atomic_write(args.target) as file:
        file.write(model.SerializeToString())


def parse_size(sides):
    """Parse --size: (height, width), or None for dynamic. Raises InputError."""
    if sides == ["dynamic"]:
        return None
    if len(sides) != 2 or not all(side.isdecimal() and int(side) >= 32 for side in sides):
        raise InputError(
            f"--size is {' '.join(sides)}: give height and width, 32 pixels or more, or dynamic"
        )
    return int(sides[0]), int(sides[1])


def check_size_limit(size, architecture):
    """Raise InputError if size (height, width) exceeds the learned position encoding."""
    limit = get_max_learned_side(architecture.backbone, architecture.dilation)
    if size and max(size) > limit and architecture.position_embedding == "learned":
        raise InputError(
            f"--size is {size[0]} {size[1]}: give {limit} pixels at most, the limit of the model's "
            "learned position encoding"
        )


if __name__ == "__main__":
    main()
