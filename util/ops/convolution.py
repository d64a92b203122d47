"""Convolutions with a fused epilogue, as jt.Functions."""

from util.backend import jt, nn

from .code import CONV, WINOGRAD, run_kernel, run_multi_output_kernel
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
        self.has_bias, self.has_residual = bias is not None, residual is not None
        inputs, epilogue = [x, weight], []
        for extra in (scale, bias, residual):
            epilogue.append("nullptr" if extra is None else f"in{len(inputs)}_p")
            inputs += [] if extra is None else [extra]
        epilogue = f"detr::Epilogue{{{', '.join(epilogue)}, {str(self.relu).lower()}}}"
        h, w = (
            (side + 2 * self.padding - self.dilation * (kernel - 1) - 1) // self.stride + 1
            for side, kernel in zip(x.shape[2:], weight.shape[2:])
        )
        sizes = self.get_sizes("in0", "in1")
        source = f"{self.prefix}(in1_p, in0_p, {epilogue}, out0_p, {sizes});"
        y = run_kernel(self.header, [x.shape[0], weight.shape[0], h, w], inputs, source)
        self.y = y if self.relu else None
        return y

    def grad(self, d):
        d = relu_backward(d, self.y) if self.relu else d
        x, weight = self.x, self.weight
        extra, scale = ([], "nullptr") if self.scale is None else ([self.scale], "in2_p")
        pointers = f"in0_p, {scale}, in1_p, out0_p"
        source_x = f"{self.prefix}_backward_input({pointers}, {self.get_sizes('out0', 'in0')});"
        source_w = f"{self.prefix}_backward_weight({pointers}, {self.get_sizes('in1', 'out0')});"
        return (
            run_kernel(self.header, x.shape, [weight, d, *extra], source_x),
            run_kernel(self.header, weight.shape, [d, x, *extra], source_w),
            None,
            d.sum((0, 2, 3)) if self.has_bias else None,
            d if self.has_residual else None,
        )

    def get_sizes(self, x, weight):
        """Return the ConvShape; x, weight: their names in the operator."""
        sizes = f"{x}_shape0, {x}_shape1, {weight}_shape0, {x}_shape2, {x}_shape3"
        geometry = f"{self.stride}, {self.padding}, {self.dilation}"
        return f"detr::ConvShape{{{sizes}, {weight}_shape2, {weight}_shape3, {geometry}}}"


class ConvCuda(Conv):
    """Convolve with cuDNN; all gradients but the bias's come from one operator."""

    def __init__(self, relu, stride, padding, dilation):
        super().__init__("cudnn", relu, stride, padding, dilation)

    def grad(self, d):
        inputs, outputs, pointers = [d, self.x, self.weight], [self.weight.shape], []
        for array in (self.y if self.relu else None, self.scale):
            pointers.append("nullptr" if array is None else f"in{len(inputs)}_p")
            inputs += [] if array is None else [array]
        pointers.append("out0_p")
        is_wanted = self.input_mask[0] >= 0, self.has_residual
        for wanted, shape in zip(is_wanted, (self.x.shape, d.shape)):
            pointers.append(f"out{len(outputs)}_p" if wanted else "nullptr")
            outputs += [shape] if wanted else []
        arguments = f"in0_p, in1_p, in2_p, {', '.join(pointers)}, {self.get_sizes('in1', 'in2')}"
        source = f"{self.prefix}_backward({arguments});"
        d_weight, *grads = run_multi_output_kernel(self.header, outputs, inputs, source)
        d_x, d_residual = (grads.pop(0) if wanted else None for wanted in is_wanted)
        if self.has_bias:
            d = relu_backward(d, self.y) if self.relu else d
        return d_x, d_weight, None, d.sum((0, 2, 3)) if self.has_bias else None, d_residual


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
