"""`python -m models.weights IN OUT.pth`: a checkpoint's model as a file for the original DETR."""

import argparse
import sys
from pathlib import Path

from util.errors import InputError
from util.files import replacing

from .checkpoint import load_checkpoint
from .torch_file import write_torch_file


def main():
    parser = argparse.ArgumentParser(
        prog="python -m models.weights",
        description="Write a checkpoint's model as a PyTorch file for the original DETR.",
    )
    parser.add_argument("source", metavar="IN", help="a checkpoint or weights, as for --resume")
    parser.add_argument("target", metavar="OUT.pth", help="the PyTorch file to write")
    arguments = parser.parse_args()
    try:
        if Path(arguments.source).resolve() == Path(arguments.target).resolve():
            raise InputError(f"{arguments.target}: is the input itself; name another file")
        model = load_checkpoint(arguments.source)["model"]
        with replacing(arguments.target) as file:
            write_torch_file({"model": model}, file)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
