"""The model, its loss and its postprocessing."""
import util  # noqa: F401  prepares the process before the first import of jittor
import jittor as jt

from .detr import build


def build_model(args):
    """model, criterion, postprocessors for the parsed flags of `main.py`."""
    built = build(args)
    jt.sync_all()  # draws the initial weights now, with the seed set before, and not at the first step with that of dropout
    return built
