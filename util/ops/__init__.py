"""Fast operators for the CPU and CUDA that replace Jittor's.

Without CUDA and oneDNN they fall back to Jittor's operators. Comments compare the time of
forward and backward with Jittor's, at DETR-R50's training sizes on two cores (`python -m
tests.bench --rows operators`).
"""

import math

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
def linear(x, weight, bias=None, relu=False):
    """Return x @ weight^T + bias, after ReLU if set: float32 [..., K], [N, K], [N] -> [..., N]."""
    if has_kernels():
        return functions.Linear(relu)(x, weight, bias)
    y = nn.linear(x, weight, bias)
    return nn.relu(y) if relu else y


def feed_forward(x, layer1, layer2, dropout):
    """Return layer2(dropout(relu(layer1(x)))); layer1 and layer2: Linear layers with a bias."""
    p, seed = _get_dropout(dropout)
    if has_kernels():
        weights = layer1.weight, layer1.bias, layer2.weight, layer2.bias
        return functions.FeedForward(p)(x, *weights, seed)
    return layer2(dropout(nn.relu(layer1(x))))


def attention(
    query, key, value, weight, bias, out_weight, out_bias, heads, mask=None, dropout=None
):
    """Attend from query to key and value with several heads.

    softmax(Q K^T / sqrt(E / heads)) V for each head, where Q, K, V are linear projections of query,
    key and value; then a linear projection of all heads. A single operator, which stores less for
    backward and reads the heads where the projections wrote them.

    Args:
        query, key, value: float32 [B, N, E], [B, M, E], [B, M, E]
        weight, bias: of the three projections, [3E, E] and [3E]
        out_weight, out_bias: of the last projection, [E, E] and [E]
        mask: bool [B, M], True = ignore; each row must leave a key unmasked
        dropout: a Dropout to apply to the attention weights

    Returns: [B, N, E], and the attention weights before dropout [B, heads, N, M]
    """
    p, seed = _get_dropout(dropout)
    if has_kernels():
        inputs = query, key, value, weight, bias, out_weight, out_bias, mask, seed
        return functions.Attention(heads, p)(*inputs)
    batch, queries, width = query.shape
    rows = [slice(i * width, (i + 1) * width) for i in range(3)]
    q, k, v = (
        nn.linear(x, weight[part], bias[part])
        .reshape(batch, x.shape[1], heads, -1)
        .transpose(0, 2, 1, 3)
        .reshape(batch * heads, x.shape[1], -1)
        for x, part in zip((query, key, value), rows)
    )
    weights = softmax(nn.bmm_transpose(q / math.sqrt(q.shape[-1]), k), mask)
    results = nn.bmm(weights if dropout is None else dropout(weights), v)
    results = results.reshape(batch, heads, queries, -1).transpose(0, 2, 1, 3).reshape(query.shape)
    out = nn.linear(results, out_weight, out_bias)
    return out, weights.reshape(batch, heads, queries, -1)


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
    if has_kernels():
        return functions.Softmax()(x, mask)
    if mask is not None:
        # Jittor compiles with -Ofast, which assumes finite math: -1e30 for -inf; its exp is 0.
        mask_bias = (mask.float32() * -1e30).reshape(mask.shape[0], 1, 1, -1)
        x = (x.reshape(mask.shape[0], -1, *x.shape[1:]) + mask_bias).reshape(x.shape)
    return nn.softmax(x, dim=-1)


def stack(arrays, axis=0):
    """Stack float32 arrays of one shape along a new axis, in one launch."""
    if has_kernels() and len(arrays) <= functions.MAX_ARRAYS:
        return functions.Stack(axis)(*arrays)
    return jt.stack(arrays, axis)


def unbind(x, axis=0):
    """Return the slices of a float32 array along an axis; gradients are stacked in one launch."""
    if has_kernels() and x.shape[axis] <= functions.MAX_ARRAYS:
        return functions.Unbind(axis)(x)
    return [x[(slice(None),) * axis + (i,)] for i in range(x.shape[axis])]


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

    def __init__(self, p=0.5):
        super().__init__(p)
        self.seed = ()  # or a tuple of one Var, because Jittor takes attributes for parameters

    def execute(self, x):
        p, seed = _get_dropout(self)
        if has_kernels() and p > 0:
            return functions.Dropout(p)(x, seed)
        return super().execute(x)


def _get_dropout(layer):
    """Return the rate of a Dropout layer and a seed [2]; 0 and None if it drops nothing."""
    if layer is None or not layer.is_train or layer.p == 0:
        return 0, None
    if not has_kernels():
        return layer.p, None
    [seed], layer.seed = layer.seed or [jt.random((2,)).stop_grad()], ()
    return layer.p, seed


def draw_seeds(layers):
    """Draw the seeds of Dropout layers in one array, for the next call of each."""
    layers = [layer for layer in layers if layer.is_train and layer.p > 0]
    if layers and has_kernels():
        for layer, seed in zip(layers, jt.random((len(layers), 2)).stop_grad()):
            layer.seed = (seed,)


class LayerNorm(nn.LayerNorm):  # 0.3 ms instead of 2.1
    """nn.LayerNorm over the last dimension."""

    def execute(self, x):
        if has_kernels():
            return functions.LayerNorm(self.eps)(x, None, None, self.weight, self.bias)
        return super().execute(x)


def add_norm(x, branch, dropout, layer):
    """Return layer(x + dropout(branch)), layer: a LayerNorm."""
    p, seed = _get_dropout(dropout)
    if has_kernels():
        return functions.LayerNorm(layer.eps, p)(x, branch, seed, layer.weight, layer.bias)
    return layer(x + dropout(branch))


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
def adamw(params, exp_avg_sqs, exp_avgs, grads, scale, scalars):
    """Compute an AdamW step; yield new (param, exp_avg_sq, exp_avg) for each parameter.

    scale: [1], gradient scaling factor; scalars: [8], see optimizer.h
    """
    if has_kernels():
        step = functions.adamw_cuda if uses_cuda() else functions.adamw
        yield from step(zip(params, exp_avg_sqs, exp_avgs, grads), scale, scalars)
        return
    decay, b0, c0, b1, c1, step_size, root, eps = scalars
    for p, v, m, g in zip(params, exp_avg_sqs, exp_avgs, grads):
        g = g * scale
        m = b0 * m + c0 * g
        v = b1 * v + c1 * g * g
        yield p * decay - step_size * m / (jt.sqrt(v) * root + eps), v, m


def _add_and_relu(x, residual, apply_relu):
    x = x if residual is None else x + residual
    return relu(x) if apply_relu else x
