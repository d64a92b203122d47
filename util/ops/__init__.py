"""Fast operators for the CPU and CUDA that replace Jittor's.

Without CUDA and oneDNN they fall back to Jittor's operators. Comments compare the time of
forward and backward with Jittor's, at DETR-R50's training sizes on two cores (`python -m
tests.bench --rows operators`).
"""

import numpy as np

from util.backend import jt, nn

from . import convolution, functions
from .code import OPTIMIZER, has_kernels, run_kernel, uses_cuda

# Below this, matrices are too small for sgemm: a demo step takes 72 ms with 1, 65 ms with 32.
MIN_CHANNELS = 32


# Jittor's is a naive single-threaded loop; here one sgemm per matrix, parallel over the batch: 5 ms
# instead of 499.
def bmm(a, b):
    """Return a @ b for each matrix of a batch: float32 [N, m, k], [N, k, n] -> [N, m, n]."""
    return functions.BatchedMatmul("N")(a, b) if has_kernels() else nn.bmm(a, b)


def bmm_transpose(a, b):  # 7 ms instead of 143
    """Return a @ b^T for each matrix of a batch: float32 [N, m, k], [N, n, k] -> [N, m, n]."""
    return functions.BatchedMatmul("T")(a, b) if has_kernels() else nn.bmm_transpose(a, b)


# The same library calls as Jittor's tuner substitutes while it compiles, which is not safe with
# parallel compilation; on the CPU with a HandlerStack on each thread (gemm.h)
def linear(x, weight, bias=None):
    """Return x @ weight^T + bias: float32 [..., K], [N, K], [N] -> [..., N]."""
    return functions.Linear()(x, weight, bias) if has_kernels() else nn.linear(x, weight, bias)


def in_projection(query, key, value, weight, bias):
    """Return three linear layers: query, key, value [..., E], weight [3E, E], bias [3E]."""
    if has_kernels():
        return functions.InProjection()(query, key, value, weight, bias)
    rows = [slice(i * weight.shape[1], (i + 1) * weight.shape[1]) for i in range(3)]
    inputs = query, key, value
    return [nn.linear(x, weight[part], bias[part]) for x, part in zip(inputs, rows)]


class Linear(nn.Linear):
    def execute(self, x):
        return linear(x, self.weight, self.bias)


# Jittor reorders input and weights to oneDNN's blocked layout in every call. Here, with a fused
# epilogue: 1x1 is a matrix product (41 ms instead of 64), 3x3 with stride 1 is Winograd's
# F(4x4, 3x3) (41 instead of 79), others are im2col (3x3 with stride 2: 86 instead of 89).
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
    """Convolve, then multiply by scale, add bias and residual, and apply ReLU.

    Args:
        x: [B, C, H, W], float32 as all arrays
        weight: [O, C, kh, kw]
        scale, bias: [O]; scale has no gradient
        residual: [B, O, h, w]

    Returns: [B, O, h, w]
    """
    outputs, channels, *kernel = weight.shape
    is_square = all(a == b for a, b in (kernel, stride, padding, dilation))
    geometry = stride[0], padding[0], dilation[0]
    if uses_cuda() and is_square:
        return convolution.ConvCuda(relu, *geometry)(x, weight, scale, bias, residual)
    is_wide = min(outputs, channels * kernel[0] ** 2) >= MIN_CHANNELS
    if has_kernels() and is_square and is_wide:
        step = dilation[0]
        if kernel[0] == 1 and geometry == (1, 0, 1):
            kernels = "pointwise"
        elif kernel[0] == 3 and geometry == (1, step, step) and channels >= MIN_CHANNELS:
            kernels = "winograd"
        else:
            kernels = "im2col"
        if kernels != "winograd" or step == 1:
            return convolution.Conv(kernels, relu, *geometry)(x, weight, scale, bias, residual)
        # A dilated convolution is an undilated one of each subsampled image.
        residual = None if residual is None else convolution.space_to_batch(residual, step)
        x, (h, w) = convolution.space_to_batch(x, step), x.shape[2:]
        y = convolution.Conv(kernels, relu, 1, 1, 1)(x, weight, scale, bias, residual)
        return convolution.batch_to_space(y, step, h, w)
    weight = weight if scale is None else weight * scale.reshape(-1, 1, 1, 1)
    if has_kernels() and not uses_cuda():
        y = convolution.ConvOneDNN(stride, padding, dilation)(x, weight)
        y = y if bias is None else y + bias.broadcast(y.shape, [0, 2, 3])
    else:
        y = nn.conv2d(x, weight, bias, stride, padding, dilation)
    return _add_and_relu(y, residual, relu)


def conv(x, layer):
    """Apply an nn.Conv2d layer: [B, C, H, W] -> [B, O, h, w]."""
    return conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation)


def relu(x):  # 6 ms instead of 10
    return functions.Relu()(x) if has_kernels() else nn.relu(x)


def max_pool(x):  # 35 ms instead of 98
    """Max-pool 3x3, stride 2, padding 1: [B, C, H, W] -> [B, C, ceil(H / 2), ceil(W / 2)]."""
    if has_kernels():
        return functions.MaxPool()(x)
    return nn.Pool(3, stride=2, padding=1, op="maximum")(x)


# One pass over each row: 5 ms instead of 57. Jittor's CUDA kernel hard-codes the row length, so it
# would be recompiled for every image size.
def softmax(x, mask=None):
    """Return the softmax over the last dimension of x float32 [N, m, n].

    mask: bool [B, n], True = ignore; each of its rows applies to N / B consecutive matrices and
        must leave a column unmasked.
    """
    # Jittor compiles with -Ofast, which assumes finite math: -1e30 for -inf; its exp is 0.
    mask_bias = None if mask is None else mask.float32() * -1e30
    if has_kernels():
        return functions.Softmax()(x, mask_bias)
    if mask is not None:
        mask_bias = mask_bias.reshape(mask.shape[0], 1, 1, -1)
        x = (x.reshape(mask.shape[0], -1, *x.shape[1:]) + mask_bias).reshape(x.shape)
    return nn.softmax(x, dim=-1)


def transpose(x):
    """Transpose matrices: float32 [B, m, n] -> [B, n, m]."""
    # Jittor's CUDA kernel needs cuTT, an extra download.
    return functions.Transpose()(x) if uses_cuda() else x.transpose(0, 2, 1)


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d with an unbiased running variance, as in PyTorch."""

    def execute(self, x):
        if not self.is_train:
            return super().execute(x)
        old_var = self.running_var.clone()
        y = super().execute(x)
        batch_term = self.running_var - old_var * (1 - self.momentum)  # momentum * variance
        self.running_var.update(self.running_var + batch_term * (_bessel_correction(x) - 1))
        return y


def _bessel_correction(x):
    """Return n / (n - 1), n = values per channel of x [B, C, H, W] over all ranks."""
    n = x.numel() // x.shape[1] * jt.world_size
    return n / max(1, n - 1)


# Jittor generates the mask on one core and stores it for backward. Here it is a hash of seed and
# index, recomputed in backward: 1.2 ms instead of 10.7.
class Dropout(nn.Dropout):
    """nn.Dropout, seeded from Jittor's generator."""

    def execute(self, x):
        if has_kernels() and self.is_train and self.p > 0:
            return functions.Dropout(self.p)(x, jt.random((2,)).stop_grad())
        return super().execute(x)


class LayerNorm(nn.LayerNorm):  # 0.3 ms instead of 2.1
    """nn.LayerNorm over the last dimension."""

    def execute(self, x):
        if has_kernels():
            return functions.LayerNorm(self.eps)(x, self.weight, self.bias)
        return super().execute(x)


def norm(x, layer, residual=None, relu=False):
    """Apply a normalization layer to x [B, C, H, W], add the residual, apply ReLU."""
    # One fused operator instead of ten: 0.4 ms instead of 5.2
    if has_kernels() and isinstance(layer, BatchNorm2d) and layer.is_train and not jt.in_mpi:
        fused = functions.BatchNorm(layer.eps, relu)
        y, mean, variance = fused(x, layer.weight, layer.bias, residual)
        variance = variance * _bessel_correction(x)
        for average, value in ((layer.running_mean, mean), (layer.running_var, variance)):
            average.update(average + (value.detach() - average) * layer.momentum)
        return y
    return _add_and_relu(layer(x), residual, relu)


def norm_of_all(arrays):
    """Return the global L2 norm [1] of a list of float32 arrays. Partial sums keep it precise."""
    if uses_cuda():
        return jt.concat(functions.square_sums(arrays)).sum(1).sum().sqrt()
    if has_kernels():
        source = "out0_p[0] = detr::square_sum(in0_p, in0->num);"
        squares = [run_kernel(OPTIMIZER, [1], [x], source) for x in arrays]
    else:
        squares = [x.reshape(x.shape[0], -1).sqr().sum(1).sum() for x in arrays]
    return jt.concat(squares).sum().sqrt()


# One pass per parameter instead of Jittor's several; with CUDA one launch for many parameters
def adamw(params, exp_avg_sqs, exp_avgs, grads, scale, decay, b0, b1, step_size, root, eps):
    """Compute an AdamW step; yield new (param, exp_avg_sq, exp_avg) for each parameter.

    scale: [1], gradient scaling factor; decay, …, eps: see `util.optim.AdamW.step`
    """
    if has_kernels():
        scalars = np.float32([decay, b0, 1 - b0, b1, 1 - b1, step_size, root, eps])
        step = functions.adamw_cuda if uses_cuda() else functions.adamw
        yield from step(zip(params, exp_avg_sqs, exp_avgs, grads), scale, jt.array(scalars))
        return
    for p, v, m, g in zip(params, exp_avg_sqs, exp_avgs, grads):
        g = g * scale
        m = b0 * m + (1 - b0) * g
        v = b1 * v + (1 - b1) * g * g
        yield p * decay - step_size * m / (jt.sqrt(v) * root + eps), v, m


def _add_and_relu(x, residual, apply_relu):
    x = x if residual is None else x + residual
    return relu(x) if apply_relu else x
