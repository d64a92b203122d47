"""Convert a checkpoint to PyTorch or transformers format: `python -m models.weights IN OUT`."""

import argparse
from pathlib import Path

from models.architecture import infer_architecture
from util.errors import InputError
from util.files import atomic_write
from util.launch import job

from .checkpoint import get_shapes_sizes, load_checkpoint
from .huggingface import check_exportable, write_folder
from .huggingface_names import to_huggingface
from .names import get_class_names
from .safetensors_file import write_safetensors
from .shapes import check_weights
from .torch_file import write_torch_file

PYTORCH_SUFFIXES = (".pth", ".pt", ".bin")


def main():
    parser = argparse.ArgumentParser(
        prog="python -m models.weights",
        description="Write a checkpoint's model as a PyTorch file for the original DETR, or as a "
        "folder or a .safetensors file for transformers.",
    )
    parser.add_argument("source", metavar="IN", help="checkpoint or weights, as for --resume")
    parser.add_argument("target", metavar="OUT", help="OUT.pth, a folder, or OUT.safetensors")
    add_architecture_flags(parser)
    arguments = parser.parse_args()
    with job():
        convert(arguments.source, Path(arguments.target), arguments)


def add_architecture_flags(parser):
    """Add the flags that weights alone do not determine."""
    when = "(needed if IN stores no flags, like the original's weights"
    parser.add_argument("--dilation", action="store_true", help=f"the model is DC5 {when})")
    text = f"number of attention heads {when}; default: 8)"
    parser.add_argument("--nheads", type=int, default=8, help=text)


def convert(source, target, options):
    """Write the model of source to target (Path). Raises InputError."""
    if Path(source).resolve() == target.resolve():
        raise InputError(f"{target}: output is the input file; give another path")
    # A numeric suffix is part of a folder's name, such as detr-v1.5.
    is_folder = target.is_dir() or not target.suffix.strip(".0123456789")
    if not is_folder and target.suffix not in (*PYTORCH_SUFFIXES, ".safetensors"):
        raise InputError(f"{target}: unknown suffix; give OUT.pth, OUT.safetensors, or a folder")
    checkpoint = load_checkpoint(source)
    model = checkpoint["model"]
    if not is_folder and target.suffix in PYTORCH_SUFFIXES:
        with atomic_write(target) as file:
            write_torch_file({"model": model}, file)
        return
    architecture = infer_architecture(checkpoint, source, options.dilation, options.nheads)
    check_weights(model, architecture, source)
    check_exportable(architecture, source)
    if is_folder:
        classes = get_class_names(checkpoint, source)
        write_folder(target, model, classes, architecture, **get_image_sizes(checkpoint))
    else:
        with atomic_write(target) as file:
            write_safetensors(to_huggingface(model), file)


def get_image_sizes(checkpoint):
    """Return a checkpoint's eval_size and max_size, if present."""
    flags = checkpoint.get("args")
    flags = {**flags, **get_shapes_sizes(flags)} if isinstance(flags, dict) else {}
    return {name: flags[name] for name in ("eval_size", "max_size") if type(flags.get(name)) is int}


if __name__ == "__main__":
    main()
