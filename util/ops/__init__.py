"""Operators that Jittor lacks in a fast form on the CPU.

With CUDA, and without oneDNN, Jittor's own run instead of most.

In brackets: milliseconds forward and back against Jittor's, at sizes of DETR-R50's training on two
cores (`python -m tests.oracle.benchmark --rows operators`).

- `bmm`, `bmm_transpose`: Jittor computes batched matrix products and their gradients on the CPU in
  a plain loop on one core. Here each product is a call of oneDNN's sgemm, the products of a batch
  spread over the cores (5 : 499, 7 : 143).
- `linear`: the call of sgemm that Jittor makes, too, but on threads that have a stack for signal
  handlers (HandlerStack in kernels.h).
- `conv2d`: Jittor's convolution reorders image and weights into oneDNN's layout and back at every
  call. Here a 1x1 convolution is a matrix product (41 : 64), a 3x3 one with stride 1 Winograd's
  F(4x4, 3x3) (41 : 79), any other the product of its weights and the pixels under its window (3x3
  with stride 2: 86 : 89), and what follows (bias, residual, ReLU) is done while the result is in
  the cache.
- `relu` (6 : 10), `max_pool` (35 : 98): on all cores, in one pass.
- `softmax`: mask, exponential and sum in one pass over each row (5 : 57).
- `Dropout`: Jittor draws the random numbers on one core and keeps them for the gradient. Here they
  are a hash of a seed and the element's place, drawn again for the gradient (1.2 : 10.7).
- `LayerNorm` (0.3 : 2.1), `norm` (0.4 : 5.2): statistics, normalisation and what follows in one
  operator instead of ten.
- `norm_of_all`, `adamw`: Jittor's optimizer makes several passes over the weights; here it is one.

With CUDA these have kernels of their own, too:

- `softmax`: Jittor's has the length of a row in its source, so Jittor would compile it again for
  every size of images.
- `transpose`: Jittor's needs cutt, which it downloads.
- `norm_of_all`, `adamw`: one kernel for each weight instead of several.

The kernels are in kernels.h and kernels.cuh. `tests/test_ops.py` compares each with Jittor's plain
operators, and `tests/test_cuda_kernels.py` those for CUDA with NumPy.
"""

import numpy as np

from util.backend import jt, nn

from . import convolution, functions
from .code import code, codes

# Fewer channels make matrices too small for sgemm: with 1 instead of 32 a step of the demo takes 72
# ms instead of 65.
MIN_CHANNELS = 32
SUM_BLOCKS = 32  # partial sums of each array in norm_of_all with CUDA


def bmm(a, b):
    """float32 [N, m, k], [N, k, n] -> [N, m, n]: the product of each pair of matrices."""
    return functions.Product("N")(a, b) if _on_onednn() else nn.bmm(a, b)


def bmm_transpose(a, b):
    """float32 [N, m, k], [N, n, k] -> [N, m, n]: each matrix times the transpose of its partner."""
    return functions.Product("T")(a, b) if _on_onednn() else nn.bmm_transpose(a, b)


def linear(x, weight, bias=None):
    """x [..., K], weight [N, K], bias [N] -> [..., N], float32: x times weight^T, plus bias"""
    return functions.Linear()(x, weight, bias) if _on_onednn() else nn.linear(x, weight, bias)


class Linear(nn.Linear):
    def execute(self, x):
        return linear(x, self.weight, self.bias)


def conv2d(
    x,
    weight,
    bias=None,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    scale=None,
    residual=None,
    relu=False,
):
    """The convolution times scale (which has no gradient), plus bias, plus residual, then ReLU.

    x [B, C, H, W], weight [O, C, kh, kw], scale and bias [O], residual [B, O, h, w]
    -> [B, O, h, w], float32
    """
    outputs, channels, *kernel = weight.shape
    square = all(a == b for a, b in (kernel, stride, padding, dilation))
    if _on_onednn() and square and min(outputs, channels * kernel[0] ** 2) >= MIN_CHANNELS:
        place = kernel[0], stride[0], padding[0], dilation[0]
        if place == (1, 1, 0, 1):
            return convolution.Conv1x1(relu)(x, weight, scale, bias, residual)
        if place == (3, 1, 1, 1) and channels >= MIN_CHANNELS:
            return convolution.Conv3x3(relu)(x, weight, scale, bias, residual)
        if place == (3, 1, place[3], place[3]) and channels >= MIN_CHANNELS:
            # Every n-th pixel of every n-th row is an image of its own, of a convolution without
            # dilation.
            step = place[3]
            residual = None if residual is None else convolution.split(residual, step)
            y = convolution.Conv3x3(relu)(convolution.split(x, step), weight, scale, bias, residual)
            return convolution.join(y, step, *x.shape[2:])
        return convolution.ConvAny(relu, *place[1:])(x, weight, scale, bias, residual)
    weight = weight if scale is None else weight * scale.reshape(-1, 1, 1, 1)
    if not _on_onednn():
        y = nn.conv2d(x, weight, bias, stride, padding, dilation)
    else:
        y = convolution.ConvOneDNN(stride, padding, dilation)(x, weight)
        y = y if bias is None else y + bias.broadcast(y.shape, [0, 2, 3])
    return _add_and_relu(y, residual, relu)


def conv(x, layer):
    """The convolution of an nn.Conv2d, x [B, C, H, W] -> [B, O, h, w]."""
    return conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation)


def relu(x):
    return functions.Relu()(x) if _on_onednn() else nn.relu(x)


def max_pool(x):
    """Maximum of 3x3, stride 2, padding 1: [B, C, H, W] -> [B, C, ceil(H / 2), ceil(W / 2)]"""
    if _on_onednn():
        return functions.MaxPool()(x)
    return nn.Pool(3, stride=2, padding=1, op="maximum")(x)


def softmax(x, mask=None):
    """Softmax over the last dimension of x float32 [N, m, n].

    mask: bool [B, n], N a multiple of B, for N / B neighbours each: True gives a column no share. A
    row needs one column that is not masked.
    """
    # Jittor compiles with -Ofast, which does not honour infinities: exp(-1e30 - max) is an exact
    # zero too.
    penalty = None if mask is None else mask.float32() * -1e30
    if _on_onednn() or jt.flags.use_cuda:
        return functions.Softmax()(x, penalty)
    if mask is not None:
        penalty = penalty.reshape(mask.shape[0], 1, 1, -1)
        x = (x.reshape(mask.shape[0], -1, *x.shape[1:]) + penalty).reshape(x.shape)
    return nn.softmax(x, dim=-1)


def transpose(x):
    """float32 [B, m, n] -> [B, n, m]"""
    return functions.Transpose()(x) if jt.flags.use_cuda else x.transpose(0, 2, 1)


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d, but its running variance is PyTorch's, the unbiased one."""

    def execute(self, x):
        if not self.is_train:
            return super().execute(x)
        before = self.running_var.clone()
        y = super().execute(x)
        # The batch's variance times the momentum.
        batch_share = self.running_var - before * (1 - self.momentum)
        self.running_var.update(self.running_var + batch_share * (unbiased(x) - 1))
        return y


def unbiased(x):
    """n / (n - 1) for the n values that a channel of x [B, C, H, W] has in all processes."""
    n = x.numel() // x.shape[1] * jt.world_size
    return n / max(1, n - 1)


class Dropout(nn.Dropout):
    """nn.Dropout; its randomness comes from Jittor's generator."""

    def execute(self, x):
        if _on_onednn() and self.is_train and self.p > 0:
            return functions.Dropout(self.p)(x, jt.random((2,)).stop_grad())
        return super().execute(x)


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm over the last dimension."""

    def execute(self, x):
        if _on_onednn():
            return functions.LayerNorm(self.eps)(x, self.weight, self.bias)
        return super().execute(x)


def norm(x, layer, residual=None, relu=False):
    """A normalisation layer of x [B, C, H, W], the sum with the residual, ReLU.

    One operator for BatchNorm2d in training.
    """
    if _on_onednn() and isinstance(layer, BatchNorm2d) and layer.is_train and not jt.in_mpi:
        batch_norm = functions.BatchNorm(layer.eps, relu)
        y, mean, variance = batch_norm(x, layer.weight, layer.bias, residual)
        update_average(layer.running_mean, mean, layer.momentum)
        update_average(layer.running_var, variance * unbiased(x), layer.momentum)
        return y
    return _add_and_relu(layer(x), residual, relu)


def update_average(average, value, momentum):
    average.update(average + (value.detach() - average) * momentum)


def norm_of_all(arrays):
    """The 2-norm [1] of all numbers in a list of float32 arrays.

    Added up in parts: one float32 loop over all would lose digits.
    """
    if jt.flags.use_cuda:
        sums = "".join(
            f"detr::square_sums<<<out0_shape1, detr::ROW_THREADS>>>(in{i}_p, in{i}->num, out0_p + "
            f"{i} * out0_shape1);"
            for i in range(len(arrays))
        )
        return code([len(arrays), SUM_BLOCKS], arrays, "", sums).sum(1).sum().sqrt()
    if _on_onednn():
        squares = [code([1], [x], "out0_p[0] = detr::square_sum(in0_p, in0->num);") for x in arrays]
    else:
        squares = [x.reshape(x.shape[0], -1).sqr().sum(1).sum() for x in arrays]
    return jt.concat(squares).sum().sqrt()


def adamw(params, squares, averages, grads, scale, keep, b0, b1, rate, root, eps):
    """A step of AdamW. Yields for each weight its new value, average of squares, and average.

    params, squares, averages, grads: lists of arrays. The gradients count times scale [1]; the
    numbers are those of `util.optim.AdamW`.
    """
    if _on_onednn() or jt.flags.use_cuda:
        settings = jt.array(np.float32([keep, b0, 1 - b0, b1, 1 - b1, rate, root, eps]))
        source = """
            detr::adamw(in0_p, in1_p, in2_p, in3_p, in4_p[0], in5_p, out0_p, out1_p, out2_p,
                        in0->num);
        """
        cuda_source = """
            detr::adamw<<<(in0->num - 1) / detr::ELEMENT_THREADS + 1, detr::ELEMENT_THREADS>>>(
                in0_p, in1_p, in2_p, in3_p, in4_p, in5_p, out0_p, out1_p, out2_p, in0->num);
        """
        for arrays in zip(params, squares, averages, grads):
            inputs = [*arrays, scale, settings]
            yield codes([arrays[0].shape] * 3, inputs, source, cuda_source)
        return
    for p, v, m, g in zip(params, squares, averages, grads):
        g = g * scale
        m = b0 * m + (1 - b0) * g
        v = b1 * v + (1 - b1) * g * g
        yield p * keep - rate * m / (jt.sqrt(v) * root + eps), v, m


def _on_onednn():
    return not jt.flags.use_cuda and jt.compile_extern.mkl_ops is not None


def _add_and_relu(x, residual, apply_relu):
    x = x if residual is None else x + residual
    return relu(x) if apply_relu else x
