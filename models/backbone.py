"""ResNet backbones, and their combination with a position encoding."""

from util import ops
from util.backend import jt, nn, resnet
from util.misc import NestedTensor, resize_nearest

from .architecture import BASIC_BLOCK_BACKBONES, DEPTHS, get_stage_channels


class FrozenBatchNorm2d(nn.Module):
    """BatchNorm2d with fixed statistics and affine parameters."""

    def __init__(self, num_features):
        super().__init__()
        self.weight = jt.ones(num_features).stop_grad()
        self.bias = jt.zeros(num_features).stop_grad()
        self.running_mean = jt.zeros(num_features).stop_grad()
        self.running_var = jt.ones(num_features).stop_grad()
        self.kept_affine = None, None  # ids of the four and what `get_affine` computed from them

    def get_affine(self):
        """Return the equivalent scale and bias per channel, [C] each.

        They are computed once, not in each forward pass, until the buffers are replaced.
        """
        buffers = self.weight, self.bias, self.running_mean, self.running_var
        ids = [buffer.id for buffer in buffers]
        if self.kept_affine[0] != ids:
            scale = self.weight / jt.sqrt(self.running_var + 1e-5)
            bias = self.bias - self.running_mean * scale
            self.kept_affine = ids, (scale.stop_grad(), bias.stop_grad())
        return self.kept_affine[1]

    def execute(self, x):
        """[B, C, H, W] -> [B, C, H, W]"""
        scale, bias = self.get_affine()
        return x * scale.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)


def group_norm(num_features):
    """Return a GroupNorm of 32 groups, or of two channels per group if there are fewer than 64."""
    return nn.GroupNorm(min(32, num_features // 2), num_features)


NORM_LAYERS = {"frozen": FrozenBatchNorm2d, "batch": ops.BatchNorm2d, "group": group_norm}


def conv_norm(x, conv, norm, residual=None, relu=False):
    """Apply convolution and normalization, add the residual, apply ReLU.

    Frozen BatchNorm is folded into the convolution.
    """
    geometry = conv.stride, conv.padding, conv.dilation
    if isinstance(norm, FrozenBatchNorm2d):
        scale, bias = norm.get_affine()
        return ops.conv2d(x, conv.weight, bias, *geometry, scale, residual, relu)
    return ops.norm(ops.conv2d(x, conv.weight, None, *geometry), norm, residual, relu)


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
    """A narrow ResNet for small images: one basic block per stage, stride 16, ResNet's names."""

    def __init__(self, norm_layer):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, kernel_size=7, stride=2, padding=3, bias=False)
        # Initialized as in the blocks.
        jt.init.relu_invariant_gauss_(self.conv1.weight, mode="fan_out")
        self.bn1 = norm_layer(16)
        self.layer1 = nn.Sequential(BasicBlock(16, 16, norm_layer=norm_layer))
        self.layer2 = self._stage(16, 32, norm_layer, stride=2)
        self.layer3 = self._stage(32, 64, norm_layer, stride=2)
        self.layer4 = self._stage(64, 128, norm_layer, stride=1)

    def _stage(self, inplanes, planes, norm_layer, stride):
        downsample = nn.Sequential(resnet.conv1x1(inplanes, planes, stride), norm_layer(planes))
        block = BasicBlock(inplanes, planes, stride, downsample, norm_layer=norm_layer)
        return nn.Sequential(block)


class Backbone(nn.Module):
    """A ResNet without pooling and classifier.

    norm: "frozen", as in the original: the stem and layer1 never train, the rest only if
    `train_backbone`; "batch" and "group" freeze nothing, to train without ImageNet weights.
    return_interm_layers: return the feature maps of all stages, for masks, not only the last one.
    The weights are random; `models.weights.imagenet.load_backbone` loads trained ones.
    Raises ValueError if `dilation` is set for a backbone of basic blocks.
    """

    def __init__(self, name, train_backbone, dilation, norm="frozen", return_interm_layers=False):
        super().__init__()
        if dilation and name in BASIC_BLOCK_BACKBONES:
            raise ValueError(f"dilation: {name} has basic blocks; use resnet50, 101 or 152")
        if name == "tiny":
            self.body = TinyResNet(NORM_LAYERS[norm])
        else:
            self.body = resnet.ResNet(
                BasicBlock if name in BASIC_BLOCK_BACKBONES else Bottleneck,
                DEPTHS[name],
                norm_layer=NORM_LAYERS[norm],
                replace_stride_with_dilation=[False, False, dilation],
            )
            del self.body.maxpool, self.body.avgpool, self.body.fc
        self.stage_channels = get_stage_channels(name)
        self.return_interm_layers = return_interm_layers
        self.is_frozen = norm == "frozen"  # up to layer1
        trained = ("layer2", "layer3", "layer4") if self.is_frozen else ""  # prefixes of names
        for parameter_name, parameter in self.body.named_parameters():
            if not (train_backbone and parameter_name.startswith(trained)):
                parameter.stop_grad()

    def execute(self, samples):
        """NestedTensor [B, 3, H, W] -> feature maps, a list of NestedTensors, last stage last.

        The last one is [B, stage_channels[-1], H/32, W/32] (DC5, tiny: H/16, W/16).
        """
        body = self.body
        x = ops.max_pool(conv_norm(samples.tensors, body.conv1, body.bn1, relu=True))
        features = []
        for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
            x = stage(x)
            if stage is body.layer1 and self.is_frozen:
                x = x.stop_grad()  # so that layer2 computes no gradient of it
            features.append(x)
        return [
            NestedTensor(x, resize_nearest(samples.mask, x.shape[-2:]))
            for x in (features if self.return_interm_layers else features[-1:])
        ]


class Joiner(nn.Sequential):
    """Backbone and position encoding; a Sequential, so that parameter names match DETR's."""

    def __init__(self, backbone, position_embedding):
        super().__init__(backbone, position_embedding)
        self.stage_channels = backbone.stage_channels

    def execute(self, samples):
        """Return the feature maps (list of NestedTensor) and the position encoding of the last one.

        The encoding is float32 [B, hidden_dim, h, w].
        """
        features = self[0](samples)
        return features, self[1](features[-1])
