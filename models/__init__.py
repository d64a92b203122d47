"""The model, its loss and its postprocessing."""

# Backbones whose blocks have two convolutions and cannot be dilated.
BASIC_BLOCKS = ("resnet18", "resnet34", "tiny")
# Blocks in each of a backbone's four stages.
DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
    "tiny": (1, 1, 1, 1),
}
LEARNED_CELLS = 50  # rows and columns for which position_embedding "learned" has a vector


def stage_channels(backbone):
    """Channels of the maps of a backbone's four stages."""
    width = 16 if backbone == "tiny" else 64 if backbone in BASIC_BLOCKS else 256
    return [width, 2 * width, 4 * width, 8 * width]


def largest_learned_side(backbone, dilation):
    """The longest side of an image, in pixels, for position_embedding "learned"."""
    return LEARNED_CELLS * (16 if dilation or backbone == "tiny" else 32)


def build_model(args, num_classes):
    """model, criterion, postprocessors for the parsed flags of `main.py`.

    num_classes: highest category id + 1.
    """
    from util.backend import jt

    from .detr import build

    built = build(args, num_classes)
    # draws the initial weights now, with the seed set before, and not at the first step with that
    # of dropout
    jt.sync_all()
    return built
