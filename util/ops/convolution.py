"""Convolutions with a fused epilogue, as jt.Functions."""

import functools

from util.backend import jt, nn

from .code import CONV, WINOGRAD, append_inputs, run_kernel, run_multi_output_kernel
from .functions import relu_backward

HEADERS = {"pointwise": CONV, "im2col": CONV, "cudnn": CONV, "winograd": WINOGRAD}


class Conv(jt.Function):
    """Convolve with the kernels of a C++ namespace; scale, bias and residual may be None.

    stride, padding, dilation: ints
    """

    def __init__(self, namespace, relu, stride, padding, dilation):
        self.header, self.prefix, self.relu = HEADERS[namespace], f"detr::{namespace}::conv", relu
        self.stride, self.padding, self.dilation = stride, padding, dilation

    def execute(self, x, weight, scale, bias, residual):
        self.x, self.weight, self.scale = x, weight, scale
        self.has_residual = residual is not None
        inputs, pointers = append_inputs([x, weight], scale, bias, residual)
        epilogue = f"detr::Epilogue{{{', '.join(pointers)}, {str(self.relu).lower()}}}"
        source = f"{self.prefix}(in1_p, in0_p, {epilogue}, out0_p, {self.get_sizes('in0', 'in1')});"
        batch, _, *sides = x.shape
        outputs, _, *kernel = weight.shape
        margin = 2 * self.padding - 1
        h, w = (
            (side + margin - self.dilation * (size - 1)) // self.stride + 1
            for side, size in zip(sides, kernel)
        )
        y = run_kernel(self.header, [batch, outputs, h, w], inputs, source)
        self.y = y if self.relu else None
        return y

    def grad(self, d):
        d = relu_backward(d, self.y) if self.relu else d
        x, weight = self.x, self.weight
        inputs_x, [scale] = append_inputs([weight, d], self.scale)
        inputs_w, _ = append_inputs([d, x], self.scale)
        pointers = f"in0_p, {scale}, in1_p, out0_p"
        source_x = f"{self.prefix}_backward_input({pointers}, {self.get_sizes('out0', 'in0')});"
        source_w = f"{self.prefix}_backward_weight({pointers}, {self.get_sizes('in1', 'out0')});"
        return (
            run_kernel(self.header, x.shape, inputs_x, source_x),
            run_kernel(self.header, weight.shape, inputs_w, source_w),
            None,
            d.sum((0, 2, 3)) if self.is_wanted(3) else None,
            d if self.has_residual else None,
        )

    def is_wanted(self, index):
        """Return True if the argument of this index is a Var that needs a gradient."""
        return self.input_mask[index] >= 0

    def get_sizes(self, x, weight):
        """Return the ConvShape; x, weight: their names in the operator."""
        return _get_sizes(x, weight, self.stride, self.padding, self.dilation)


@functools.lru_cache
def _get_sizes(x, weight, *geometry):
    sizes = f"{x}_shape0, {x}_shape1, {weight}_shape0, {x}_shape2, {x}_shape3"
    kernel = f"{weight}_shape2, {weight}_shape3"
    return f"detr::ConvShape{{{sizes}, {kernel}, {', '.join(map(str, geometry))}}}"


class ConvCuda(Conv):
    """Convolve with cuDNN; all gradients but the bias's come from one operator."""

    def __init__(self, relu, stride, padding, dilation):
        super().__init__("cudnn", relu, stride, padding, dilation)

    def grad(self, d):
        inputs, pointers = append_inputs([d, self.x, self.weight], self.y, self.scale)
        outputs = [self.weight.shape]
        pointers.append("out0_p")
        is_wanted = self.is_wanted(0), self.has_residual
        for wanted, shape in zip(is_wanted, (self.x.shape, d.shape)):
            pointers.append(f"out{len(outputs)}_p" if wanted else "nullptr")
            outputs += [shape] if wanted else []
        arguments = f"in0_p, in1_p, in2_p, {', '.join(pointers)}, {self.get_sizes('in1', 'in2')}"
        source = f"{self.prefix}_backward({arguments});"
        d_weight, *grads = run_multi_output_kernel(self.header, outputs, inputs, source)
        d_x, d_residual = (grads.pop(0) if wanted else None for wanted in is_wanted)
        d_bias = None
        if self.is_wanted(3):
            d_bias = (relu_backward(d, self.y) if self.relu else d).sum((0, 2, 3))
        return d_x, d_weight, None, d_bias, d_residual


class ConvOneDNN(jt.Function):
    """Convolve with oneDNN, if there are too few channels for a matrix product.

    Jittor's tuner would substitute it for `nn.conv2d` during compilation, which changes the graph
    and so is not safe with parallel compilation.
    """

    def __init__(self, stride, padding, dilation):
        self.geometry = *stride, *padding, *dilation, 1, "abcd", "oihw", "abcd"

    def execute(self, x, weight):
        self.saved = x, weight
        return jt.compile_extern.mkl_ops.mkl_conv(x, weight, *self.geometry)

    def grad(self, d):
        x, weight = self.saved
        onednn = jt.compile_extern.mkl_ops
        d_x = onednn.mkl_conv_backward_x(weight, d, *x.shape[2:], *self.geometry)
        d_weight = onednn.mkl_conv_backward_w(x, d, *weight.shape[2:], *self.geometry)
        return d_x, d_weight


def space_to_batch(x, step):
    """Rearrange x into step * step subsampled images, zero-padded.

    [B, C, H, W] -> [step * step * B, C, ceil(H / step), ceil(W / step)]
    """
    batch, channels, height, width = x.shape
    x = nn.pad(x, (0, -width % step, 0, -height % step))
    x = x.reshape(batch, channels, x.shape[2] // step, step, x.shape[3] // step, step)
    x = x.permute(3, 5, 0, 1, 2, 4)
    return x.reshape(-1, channels, *x.shape[4:])


def batch_to_space(x, step, height, width):
    """Invert `space_to_batch`: return [B, C, height, width]."""
    x = x.reshape(step, step, -1, *x.shape[1:]).permute(2, 3, 4, 0, 5, 1)
    x = x.reshape(*x.shape[:2], x.shape[2] * step, x.shape[4] * step)
    return x[:, :, :height, :width]
