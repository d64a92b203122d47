"""Convolutions on the CPU, with what follows them, as jt.Functions (kernels in kernels.h)."""

from util.backend import jt, nn

from .code import code
from .functions import relu_backward


class Conv(jt.Function):
    """Inputs x, weight, and scale, bias and residual or None. A subclass names the kernels."""

    def __init__(self, relu):
        self.relu = relu

    def execute(self, x, weight, scale, bias, residual):
        self.x, self.weight, self.scale = x, weight, scale
        self.has_bias, self.has_residual = bias is not None, residual is not None
        inputs, after = [x, weight], []
        for extra in (scale, bias, residual):
            after.append("nullptr" if extra is None else f"in{len(inputs)}_p")
            inputs += [] if extra is None else [extra]
        after = f"detr::After{{{', '.join(after)}, {str(self.relu).lower()}}}"
        y = code(self.shape(x, weight), inputs, self.forward(after))
        self.y = y if self.relu else None
        return y

    def grad(self, d):
        d = relu_backward(d, self.y) if self.relu else d
        inputs, scale = ([], "nullptr") if self.scale is None else ([self.scale], "in2_p")
        return (
            code(self.x.shape, [d, self.weight, *inputs], self.backward_x(scale)),
            code(self.weight.shape, [d, self.x, *inputs], self.backward_w(scale)),
            None,
            d.sum((0, 2, 3)) if self.has_bias else None,
            d if self.has_residual else None,
        )

    def shape(self, x, weight):
        return [x.shape[0], weight.shape[0], *x.shape[2:]]

    def sizes(self, x, y, weight):
        """What the kernels need to know, in terms of the operator's inputs and outputs."""
        return f"{x}_shape0, {x}_shape1, {y}_shape1, {x}_shape2, {x}_shape3"

    def forward(self, after):
        sizes = self.sizes("in0", "out0", "in1")
        return f"{self.kernels}::conv(in1_p, in0_p, {after}, out0_p, {sizes});"

    def backward_x(self, scale):
        sizes = self.sizes("out0", "in0", "in1")
        return f"{self.kernels}::conv_input(in1_p, {scale}, in0_p, out0_p, {sizes});"

    def backward_w(self, scale):
        sizes = self.sizes("in1", "in0", "out0")
        return f"{self.kernels}::conv_weight(in0_p, {scale}, in1_p, out0_p, {sizes});"


class Conv1x1(Conv):
    kernels = "detr::pointwise"

    def sizes(self, x, y, weight):
        return f"{x}_shape0, {x}_shape1, {y}_shape1, {x}_shape2 * {x}_shape3"


class Conv3x3(Conv):
    """Stride and padding 1."""

    kernels = "detr::winograd"


class ConvAny(Conv):
    kernels = "detr"

    def __init__(self, relu, stride, padding, dilation):
        super().__init__(relu)
        self.stride, self.padding, self.dilation = stride, padding, dilation

    def shape(self, x, weight):
        sides = [
            (side + 2 * self.padding - self.dilation * (kernel - 1) - 1) // self.stride + 1
            for side, kernel in zip(x.shape[2:], weight.shape[2:])
        ]
        return [x.shape[0], weight.shape[0], *sides]

    def sizes(self, x, y, weight):
        sides = f"{x}_shape2, {x}_shape3, {weight}_shape2, {weight}_shape3"
        place = f"{self.stride}, {self.padding}, {self.dilation}"
        window = f"detr::Window{{{x}_shape1, {y}_shape1, {sides}, {place}}}"
        return f"{x}_shape0, {window}"


class ConvOneDNN(jt.Function):
    """oneDNN's own convolution, for channels that are too few for a matrix product.

    Jittor's tuner would put it in place of `nn.conv2d`, while it compiles that. Several threads
    that compile would change the graph at once then, and it has no lock.
    """

    def __init__(self, stride, padding, dilation):
        self.place = *stride, *padding, *dilation, 1, "abcd", "oihw", "abcd"

    def execute(self, x, weight):
        self.saved = x, weight
        return jt.compile_extern.mkl_ops.mkl_conv(x, weight, *self.place)

    def grad(self, d):
        x, weight = self.saved
        onednn = jt.compile_extern.mkl_ops
        d_x = onednn.mkl_conv_backward_x(weight, d, *x.shape[2:], *self.place)
        d_weight = onednn.mkl_conv_backward_w(x, d, *weight.shape[2:], *self.place)
        return d_x, d_weight


def split(x, step):
    """[B, C, H, W] -> [step * step * B, C, ceil(H / step), ceil(W / step)], padded with zeros."""
    batch, channels, height, width = x.shape
    x = nn.pad(x, (0, -width % step, 0, -height % step))
    x = x.reshape(batch, channels, x.shape[2] // step, step, x.shape[3] // step, step).permute(
        3, 5, 0, 1, 2, 4
    )
    return x.reshape(-1, channels, *x.shape[4:])


def join(x, step, height, width):
    """The way back of split, to [B, C, height, width]."""
    x = x.reshape(step, step, -1, *x.shape[1:]).permute(2, 3, 4, 0, 5, 1)
    x = x.reshape(*x.shape[:2], x.shape[2] * step, x.shape[4] * step)
    return x[:, :, :height, :width]
