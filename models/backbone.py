"""ResNet backbone with frozen BatchNorm, and its join with the position encoding."""
import jittor as jt
import jittor.models
from jittor import nn

from util.errors import InputError
from util.misc import NestedTensor, nearest_index

from .position_encoding import build_position_encoding

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
SHALLOW = ("resnet18", "resnet34")  # basic blocks: 512 channels, no dilation


class FrozenBatchNorm2d(nn.Module):
    """BatchNorm2d whose statistics and affine parameters never change (original: `FrozenBatchNorm2d`)."""

    def __init__(self, num_features):
        super().__init__()
        self.weight = jt.ones(num_features).stop_grad()
        self.bias = jt.zeros(num_features).stop_grad()
        self.running_mean = jt.zeros(num_features).stop_grad()
        self.running_var = jt.ones(num_features).stop_grad()

    def execute(self, x):
        """[B, C, H, W] -> [B, C, H, W]"""
        scale = self.weight / jt.sqrt(self.running_var + 1e-5)
        bias = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)


class Backbone(nn.Module):
    """A ResNet up to its last stage; the stem and stage 1 never train, the rest only if `train_backbone`.

    Its weights are random until `util.checkpoint.load_backbone` fills them.
    Raises InputError for `dilation` with a ResNet of basic blocks.
    """

    def __init__(self, name, train_backbone, dilation):
        super().__init__()
        if dilation and name in SHALLOW:
            raise InputError(f"--dilation needs a bottleneck ResNet, and {name} has basic blocks: "
                             "use --backbone resnet50, resnet101 or resnet152")
        self.body = getattr(jittor.models, name)(norm_layer=FrozenBatchNorm2d,
                                                 replace_stride_with_dilation=[False, False, dilation])
        del self.body.avgpool, self.body.fc
        for parameter_name, parameter in self.body.named_parameters():
            if not train_backbone or not parameter_name.startswith(("layer2", "layer3", "layer4")):
                parameter.stop_grad()
        self.num_channels = 512 if name in SHALLOW else 2048

    def execute(self, samples):
        """NestedTensor [B, 3, H, W] -> list of one NestedTensor [B, num_channels, H/32, W/32] (DC5: H/16, W/16)."""
        body = self.body
        x = body.maxpool(body.relu(body.bn1(body.conv1(samples.tensors))))
        for layer in (body.layer1, body.layer2, body.layer3, body.layer4):
            x = layer(x)
        (h, w), (big_h, big_w) = x.shape[-2:], samples.mask.shape[-2:]
        mask = samples.mask[:, jt.array(nearest_index(big_h, h))][:, :, jt.array(nearest_index(big_w, w))]
        return [NestedTensor(x, mask)]


class Joiner(nn.Sequential):
    """Backbone and position encoding, in a Sequential for the parameter names `backbone.0.…`, `backbone.1.…`."""

    def __init__(self, backbone, position_embedding):
        super().__init__(backbone, position_embedding)
        self.num_channels = backbone.num_channels

    def execute(self, samples):
        """NestedTensor -> features (list of NestedTensor), position encodings (list of [B, hidden_dim, h, w])."""
        features = self[0](samples)
        return features, [self[1](feature) for feature in features]


def build_backbone(args):
    backbone = Backbone(args.backbone, train_backbone=args.lr_backbone > 0, dilation=args.dilation)
    return Joiner(backbone, build_position_encoding(args))
