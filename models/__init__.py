"""The model, its loss and its postprocessing."""
import util  # noqa: F401  prepares the process before the first import of jittor

from .detr import build


def build_model(args):
    """model, criterion, postprocessors for the parsed flags of `main.py`."""
    return build(args)
