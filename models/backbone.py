"""ResNet backbones, and the join with the position encoding."""

from util import ops
from util.backend import jt, nn, resnet
from util.misc import NestedTensor, resize_nearest

from .architecture import BASIC_BLOCKS, DEPTHS, stage_channels
from .position_encoding import build_position_encoding


class FrozenBatchNorm2d(nn.Module):
    """BatchNorm2d with fixed statistics and affine parameters (original: `FrozenBatchNorm2d`)."""

    def __init__(self, num_features):
        super().__init__()
        self.weight = jt.ones(num_features).stop_grad()
        self.bias = jt.zeros(num_features).stop_grad()
        self.running_mean = jt.zeros(num_features).stop_grad()
        self.running_var = jt.ones(num_features).stop_grad()

    def affine(self):
        """Scale and bias [C] that it amounts to."""
        scale = self.weight / jt.sqrt(self.running_var + 1e-5)
        return scale, self.bias - self.running_mean * scale

    def execute(self, x):
        """[B, C, H, W] -> [B, C, H, W]"""
        scale, bias = self.affine()
        return x * scale.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)


def group_norm(num_features):
    """GroupNorm of 32 groups, or of groups of two channels where there are fewer than 64."""
    return nn.GroupNorm(min(32, num_features // 2), num_features)


NORMS = {"frozen": FrozenBatchNorm2d, "batch": ops.BatchNorm2d, "group": group_norm}


def conv_norm(x, conv, norm, residual=None, relu=False):
    """Convolution, normalisation, the sum with the residual, ReLU.

    Frozen BatchNorm becomes part of the convolution.
    """
    place = conv.stride, conv.padding, conv.dilation
    if isinstance(norm, FrozenBatchNorm2d):
        scale, bias = norm.affine()
        return ops.conv2d(x, conv.weight, bias, *place, scale=scale, residual=residual, relu=relu)
    return ops.norm(ops.conv2d(x, conv.weight, None, *place), norm, residual, relu)


class BasicBlock(resnet.BasicBlock):
    def execute(self, x):
        out = conv_norm(x, self.conv1, self.bn1, relu=True)
        residual = x if self.downsample is None else conv_norm(x, *self.downsample)
        return conv_norm(out, self.conv2, self.bn2, residual, relu=True)


class Bottleneck(resnet.Bottleneck):
    def execute(self, x):
        out = conv_norm(x, self.conv1, self.bn1, relu=True)
        out = conv_norm(out, self.conv2, self.bn2, relu=True)
        residual = x if self.downsample is None else conv_norm(x, *self.downsample)
        return conv_norm(out, self.conv3, self.bn3, residual, relu=True)


class TinyResNet(nn.Module):
    """A narrow ResNet for small images: a basic block per stage, stride 16, a ResNet's names."""

    def __init__(self, norm_layer):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, kernel_size=7, stride=2, padding=3, bias=False)
        # As the blocks initialise theirs.
        jt.init.relu_invariant_gauss_(self.conv1.weight, mode="fan_out")
        self.bn1 = norm_layer(16)
        self.layer1 = nn.Sequential(BasicBlock(16, 16, norm_layer=norm_layer))
        self.layer2 = self._stage(16, 32, norm_layer, stride=2)
        self.layer3 = self._stage(32, 64, norm_layer, stride=2)
        self.layer4 = self._stage(64, 128, norm_layer, stride=1)

    def _stage(self, inplanes, planes, norm_layer, stride):
        downsample = nn.Sequential(resnet.conv1x1(inplanes, planes, stride), norm_layer(planes))
        return nn.Sequential(
            BasicBlock(inplanes, planes, stride, downsample, norm_layer=norm_layer)
        )


class Backbone(nn.Module):
    """A ResNet up to its last stage.

    norm: "frozen", as in the original: the stem and stage 1 never train, the rest only if
    `train_backbone`. With "batch" or "group" everything trains, for training without ImageNet's
    weights.
    return_interm_layers: the result has the maps of all stages, for masks, and not only the last
    one's.
    Its weights are random until `models.weights.imagenet.load_backbone` fills them.
    Raises ValueError for `dilation` with a ResNet of basic blocks.
    """

    def __init__(self, name, train_backbone, dilation, norm="frozen", return_interm_layers=False):
        super().__init__()
        if dilation and name in BASIC_BLOCKS:
            raise ValueError(
                f"dilation: {name} has basic blocks; use resnet50, resnet101 or resnet152"
            )
        if name == "tiny":
            self.body = TinyResNet(NORMS[norm])
        else:
            self.body = resnet.ResNet(
                BasicBlock if name in BASIC_BLOCKS else Bottleneck,
                DEPTHS[name],
                norm_layer=NORMS[norm],
                replace_stride_with_dilation=[False, False, dilation],
            )
            del self.body.maxpool, self.body.avgpool, self.body.fc
        self.stage_channels = stage_channels(name)
        self.return_interm_layers = return_interm_layers
        for parameter_name, parameter in self.body.named_parameters():
            frozen_stage = norm == "frozen" and not parameter_name.startswith(
                ("layer2", "layer3", "layer4")
            )
            if frozen_stage or not train_backbone:
                parameter.stop_grad()

    def execute(self, samples):
        """NestedTensor [B, 3, H, W] -> list of NestedTensors, that of the last stage last.

        The last one is [B, stage_channels[-1], H/32, W/32] (DC5, tiny: H/16, W/16).
        """
        body = self.body
        x = ops.max_pool(conv_norm(samples.tensors, body.conv1, body.bn1, relu=True))
        maps = []
        for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
            x = stage(x)
            maps.append(x)
        return [
            NestedTensor(x, resize_nearest(samples.mask, x.shape[-2:]))
            for x in (maps if self.return_interm_layers else maps[-1:])
        ]


class Joiner(nn.Sequential):
    """Backbone and position encoding, as a Sequential for the original's parameter names."""

    def __init__(self, backbone, position_embedding):
        super().__init__(backbone, position_embedding)
        self.stage_channels = backbone.stage_channels

    def execute(self, samples):
        """Returns features (list of NestedTensor) and the position encoding of the last one.

        The encoding is float32 [B, hidden_dim, h, w].
        """
        features = self[0](samples)
        return features, self[1](features[-1])


def build_backbone(args):
    backbone = Backbone(
        args.backbone,
        train_backbone=args.lr_backbone > 0,
        dilation=args.dilation,
        norm=args.backbone_norm,
        return_interm_layers=args.masks,
    )
    return Joiner(backbone, build_position_encoding(args))
