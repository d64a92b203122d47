"""`python -m models.weights IN OUT`: a checkpoint's model for other programs.

OUT.pth is for the original DETR; a folder, or OUT.safetensors, for transformers.
"""

import argparse
import sys
from pathlib import Path

from models.architecture import architecture_of
from util.errors import InputError
from util.files import replacing

from .checkpoint import load_checkpoint
from .huggingface import check_exportable, write_folder
from .huggingface_names import to_huggingface
from .names import names_of
from .safetensors_file import write_safetensors
from .shapes import check_weights
from .torch_file import write_torch_file

PYTORCH = (".pth", ".pt", ".bin")  # how the names of its files end


def main():
    parser = argparse.ArgumentParser(
        prog="python -m models.weights",
        description="Write a checkpoint's model as a PyTorch file for the original DETR, or as a "
        "folder (or a .safetensors file) for transformers.",
    )
    parser.add_argument("source", metavar="IN", help="a checkpoint or weights, as for --resume")
    parser.add_argument("target", metavar="OUT", help="OUT.pth, a folder, or OUT.safetensors")
    add_architecture(parser)
    arguments = parser.parse_args()
    try:
        convert(arguments.source, Path(arguments.target), arguments)
    except InputError as error:
        sys.exit(f"error: {error}")


def add_architecture(parser):
    """Adds the flags for what weights without a training's flags do not tell."""
    about = "of weights without flags, as the original's"
    parser.add_argument("--dilation", action="store_true", help=f"DC5, {about}")
    parser.add_argument("--nheads", type=int, default=8, help=f"{about}; default 8")


def convert(source, target, options):
    """Writes the model of source to target (Path). Raises InputError."""
    if Path(source).resolve() == target.resolve():
        raise InputError(f"{target}: is the input itself; name another one")
    # A suffix that is a number belongs to the name of a folder: detr-v1.5
    is_folder = target.is_dir() or not target.suffix.strip(".0123456789")
    if not is_folder and target.suffix not in (*PYTORCH, ".safetensors"):
        raise InputError(f"{target}: give OUT.pth, OUT.safetensors, or a folder")
    checkpoint = load_checkpoint(source)
    if not is_folder and target.suffix in PYTORCH:
        with replacing(target) as file:
            write_torch_file({"model": checkpoint["model"]}, file)
        return
    architecture = architecture_of(checkpoint, source, options.dilation, options.nheads)
    check_weights(checkpoint["model"], architecture, source)
    check_exportable(architecture, source)
    if is_folder:
        classes = names_of(checkpoint, source)
        write_folder(
            target, checkpoint["model"], classes, architecture, **sizes_of_images(checkpoint)
        )
    else:
        with replacing(target) as file:
            write_safetensors(to_huggingface(checkpoint["model"]), file)


def sizes_of_images(checkpoint):
    """The flags eval_size and max_size of a checkpoint, {} where it has none."""
    flags = checkpoint.get("args")
    flags = flags if isinstance(flags, dict) else {}
    return {name: flags[name] for name in ("eval_size", "max_size") if type(flags.get(name)) is int}


if __name__ == "__main__":
    main()
