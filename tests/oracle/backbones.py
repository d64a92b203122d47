"""This project's additional backbones in PyTorch: the tiny one, and trained normalisation."""

import torchvision
from detr.models.backbone import BackboneBase, Joiner
from detr.models.position_encoding import build_position_encoding
from torch import nn
from torchvision.models.resnet import BasicBlock

NORMS = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(min(32, channels // 2), channels),
}


class TinyResNet(nn.Module):
    """models.backbone.TinyResNet; the original runs the children in order, up to layer4."""

    def __init__(self, norm):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 7, 2, 3, bias=False)
        self.bn1 = norm(16)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(16, 16, norm_layer=norm))
        self.layer2 = self._stage(16, 32, norm, 2)
        self.layer3 = self._stage(32, 64, norm, 2)
        self.layer4 = self._stage(64, 128, norm, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _stage(self, inplanes, planes, norm, stride):
        downsample = nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), norm(planes))
        return nn.Sequential(BasicBlock(inplanes, planes, stride, downsample, norm_layer=norm))


class TrainedBackbone(BackboneBase):
    """The original's Backbone with trained normalisation and no frozen part."""

    def __init__(self, args):
        norm = NORMS[args.backbone_norm]
        if args.backbone == "tiny":
            body, channels = TinyResNet(norm), 128
        else:
            body = getattr(torchvision.models, args.backbone)(norm_layer=norm)
            channels = 512 if args.backbone in ("resnet18", "resnet34") else 2048
        super().__init__(body, True, channels, args.masks)
        self.requires_grad_(True)


def build_backbone(args):
    """Replace the original's function of this name."""
    backbone = TrainedBackbone(args)
    joiner = Joiner(backbone, build_position_encoding(args))
    joiner.num_channels = backbone.num_channels
    return joiner
