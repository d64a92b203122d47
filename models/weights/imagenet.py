"""Load weights into the backbone: torchvision's ImageNet weights, or a file."""

from util.download import download, get_user_cache
from util.errors import InputError

from .checkpoint import load_checkpoint
from .model import load_model_state

IMAGENET_WEIGHTS = {
    "resnet18": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    "resnet34": "https://download.pytorch.org/models/resnet34-b627a593.pth",
    "resnet50": "https://download.pytorch.org/models/resnet50-0676ba61.pth",
    "resnet101": "https://download.pytorch.org/models/resnet101-63fe2227.pth",
    "resnet152": "https://download.pytorch.org/models/resnet152-394f9c45.pth",
}


def load_backbone(body, spec, backbone_name):
    """Load weights into body, a backbone's ResNet without its classifier.

    spec: "imagenet" (torchvision's V1 weights, downloaded once), "none" (keep the random weights),
    or the path of a torchvision ResNet checkpoint. backbone_name: such as "resnet50". Raises
    InputError as `download`, `load_checkpoint` and `load_model_state` do, and ValueError if
    "imagenet" has no weights for the backbone.
    """
    if spec == "none":
        return
    source = spec
    if spec == "imagenet":
        if backbone_name not in IMAGENET_WEIGHTS:
            raise ValueError(f"backbone_name is {backbone_name}, which has no ImageNet weights")
        try:
            source = download(IMAGENET_WEIGHTS[backbone_name], get_user_cache())
        except InputError as error:
            remedy = "or use --backbone_weights none or --backbone_weights PATH"
            raise InputError(f"{error}, {remedy}") from error
    state = load_checkpoint(source)["model"]
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    load_model_state(body, state, source)
