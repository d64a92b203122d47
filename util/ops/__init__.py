"""Operators that Jittor lacks in a fast form on the CPU. With CUDA, and without oneDNN, Jittor's own run instead of most.

In brackets: milliseconds forward and back against Jittor's, at sizes of DETR-R50's training on two cores
(`python -m tests.oracle.benchmark --rows operators`).

- `bmm`, `bmm_transpose`: Jittor computes batched matrix products and their gradients on the CPU in a plain loop on one
  core. Here each product is a call of oneDNN's sgemm, the products of a batch spread over the cores (5 : 499, 7 : 143).
- `linear`: the call of sgemm that Jittor makes, too, but on threads that have a stack for signal handlers (HandlerStack in
  kernels.h).
- `conv2d`: Jittor's convolution reorders image and weights into oneDNN's layout and back at every call. Here a 1x1
  convolution is a matrix product (41 : 64), a 3x3 one with stride 1 Winograd's F(4x4, 3x3) (41 : 79), any other the product
  of its weights and the pixels under its window (3x3 with stride 2: 86 : 89), and what follows (bias, residual, ReLU) is
  done while the result is in the cache.
- `relu` (6 : 10), `max_pool` (35 : 98): on all cores, in one pass.
- `softmax`: mask, exponential and sum in one pass over each row (5 : 57).
- `Dropout`: Jittor draws the random numbers on one core and keeps them for the gradient. Here they are a hash of a seed and
  the element's place, drawn again for the gradient (1.2 : 10.7).
- `LayerNorm` (0.3 : 2.1), `norm` (0.4 : 5.2): statistics, normalisation and what follows in one operator instead of ten.
- `norm_of_all`, `adamw`: Jittor's optimizer makes several passes over the weights; here it is one.

With CUDA these have kernels of their own, too:

- `softmax`: Jittor's has the length of a row in its source, so every size of images would be compiled anew.
- `transpose`: Jittor's needs cutt, which it downloads.
- `norm_of_all`, `adamw`: one kernel for each weight instead of several.

The kernels are in kernels.h and kernels.cuh. `tests/test_ops.py` compares each with Jittor's plain operators, and
`tests/test_cuda_kernels.py` those for CUDA with NumPy.
"""
import hashlib
from pathlib import Path

import numpy as np

from util.backend import jt, nn


def _include(name):
    """Jittor copies the header at each call, so it is short; the digest has Jittor compile anew when the file changes."""
    source = Path(__file__).with_name(name)
    return f'#include "{source}"  // {hashlib.sha1(source.read_bytes()).hexdigest()}'


HEADER, CUDA_HEADER = _include("kernels.h"), _include("kernels.cuh")
# Fewer channels make matrices too small for sgemm: with 1 instead of 32 a step of the demo takes 72 ms instead of 65.
LEAST_CHANNELS = 32
SUM_BLOCKS = 32  # partial sums of each array in norm_of_all with CUDA


def bmm(a, b):
    """float32 [N, m, k], [N, k, n] -> [N, m, n]: the product of each pair of matrices."""
    return _Product("N")(a, b) if _on_onednn() else nn.bmm(a, b)


def bmm_transpose(a, b):
    """float32 [N, m, k], [N, n, k] -> [N, m, n]: the product of each matrix with the transpose of its partner."""
    return _Product("T")(a, b) if _on_onednn() else nn.bmm_transpose(a, b)


def linear(x, weight, bias=None):
    """x [..., K], weight [N, K], bias [N] -> [..., N], float32: x times the transpose of weight, plus bias."""
    return _Linear()(x, weight, bias) if _on_onednn() else nn.linear(x, weight, bias)


class Linear(nn.Linear):

    def execute(self, x):
        return linear(x, self.weight, self.bias)


def conv2d(x, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), scale=None, residual=None, relu=False):
    """x [B, C, H, W], weight [O, C, kh, kw], scale and bias [O], residual [B, O, h, w] -> [B, O, h, w], float32.

    The convolution times scale (which has no gradient), plus bias, plus residual, then ReLU.
    """
    outputs, channels, *kernel = weight.shape
    square = all(a == b for a, b in (kernel, stride, padding, dilation))
    if _on_onednn() and square and min(outputs, channels * kernel[0] ** 2) >= LEAST_CHANNELS:
        place = kernel[0], stride[0], padding[0], dilation[0]
        if place == (1, 1, 0, 1):
            return _Conv1x1(relu)(x, weight, scale, bias, residual)
        if place == (3, 1, 1, 1) and channels >= LEAST_CHANNELS:
            return _Conv3x3(relu)(x, weight, scale, bias, residual)
        if place == (3, 1, place[3], place[3]) and channels >= LEAST_CHANNELS:
            # Every n-th pixel of every n-th row is an image of its own, of a convolution without dilation.
            residual = None if residual is None else _split(residual, place[3])
            return _join(_Conv3x3(relu)(_split(x, place[3]), weight, scale, bias, residual), place[3], *x.shape[2:])
        return _ConvAny(relu, *place[1:])(x, weight, scale, bias, residual)
    weight = weight if scale is None else weight * scale.reshape(-1, 1, 1, 1)
    return _finish(nn.conv2d(x, weight, bias, stride, padding, dilation), residual, relu)


def conv(x, layer):
    """The convolution of an nn.Conv2d, x [B, C, H, W] -> [B, O, h, w]."""
    return conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation)


def relu(x):
    return _Relu()(x) if _on_onednn() else nn.relu(x)


def max_pool(x):
    """The maximum of 3x3 pixels, stride 2, padding 1: [B, C, H, W] -> [B, C, H / 2, W / 2], rounded up."""
    return _MaxPool()(x) if _on_onednn() else nn.Pool(3, stride=2, padding=1, op="maximum")(x)


def softmax(x, mask=None):
    """Softmax over the last dimension of x float32 [N, m, n].

    mask: bool [B, n], N a multiple of B, for N / B neighbours each: True gives a column no share. A row needs one
    column that is not masked.
    """
    # Jittor compiles with -Ofast, which does not honour infinities: exp(-1e30 - max) is an exact zero too.
    penalty = None if mask is None else mask.float32() * -1e30
    if _on_onednn() or jt.flags.use_cuda:
        return _Softmax()(x, penalty)
    if mask is not None:
        penalty = penalty.reshape(mask.shape[0], 1, 1, -1)
        x = (x.reshape(mask.shape[0], -1, *x.shape[1:]) + penalty).reshape(x.shape)
    return nn.softmax(x, dim=-1)


def transpose(x):
    """float32 [B, m, n] -> [B, n, m]"""
    return _Transpose()(x) if jt.flags.use_cuda else x.transpose(0, 2, 1)


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d, but its running variance is PyTorch's: n / (n - 1) times that of the batch of n values per channel."""

    def execute(self, x):
        if not self.is_train:
            return super().execute(x)
        before = self.running_var.clone()
        y = super().execute(x)
        taken = self.running_var - before * (1 - self.momentum)  # the batch's variance times the momentum
        self.running_var.update(self.running_var + taken * (unbiased(x) - 1))
        return y


def unbiased(x):
    """n / (n - 1) for the n values that a channel of x [B, C, H, W] has in all processes."""
    n = x.numel() // x.shape[1] * jt.world_size
    return n / max(1, n - 1)


class Dropout(nn.Dropout):
    """nn.Dropout; its randomness comes from Jittor's generator."""

    def execute(self, x):
        if _on_onednn() and self.is_train and self.p > 0:
            return _Dropout(self.p)(x, jt.random((2,)).stop_grad())
        return super().execute(x)


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm over the last dimension."""

    def execute(self, x):
        return _LayerNorm(self.eps)(x, self.weight, self.bias) if _on_onednn() else super().execute(x)


def norm(x, layer, residual=None, relu=False):
    """A normalisation layer of x [B, C, H, W], the sum with the residual, ReLU; one operator for BatchNorm2d in training."""
    if _on_onednn() and isinstance(layer, BatchNorm2d) and layer.is_train and not jt.in_mpi:
        y, mean, variance = _BatchNorm(layer.eps, relu)(x, layer.weight, layer.bias, residual)
        for running, now in ((layer.running_mean, mean), (layer.running_var, variance * unbiased(x))):
            running.update(running + (now.detach() - running) * layer.momentum)
        return y
    return _finish(layer(x), residual, relu)


def norm_of_all(arrays):
    """The 2-norm [1] of all numbers in a list of float32 arrays, without the digits that one float32 loop over all would lose."""
    if jt.flags.use_cuda:
        sums = "".join(f"detr::square_sums<<<out0_shape1, detr::ROW_THREADS>>>(in{i}_p, in{i}->num, out0_p + {i} * out0_shape1);"
                       for i in range(len(arrays)))
        return _code([len(arrays), SUM_BLOCKS], arrays, "", sums).sum(1).sum().sqrt()
    if _on_onednn():
        squares = [_code([1], [x], "out0_p[0] = detr::square_sum(in0_p, in0->num);") for x in arrays]
    else:
        squares = [x.reshape(x.shape[0], -1).sqr().sum(1).sum() for x in arrays]
    return jt.concat(squares).sum().sqrt()


def adamw(params, squares, averages, grads, scale, keep, b0, b1, rate, root, eps):
    """A step of AdamW. Takes lists, and gives for each weight its new value and averages of squares and of gradients.

    The gradients count times scale [1]; the numbers are those of `util.optim.AdamW`.
    """
    if _on_onednn() or jt.flags.use_cuda:
        settings = jt.array(np.float32([keep, b0, 1 - b0, b1, 1 - b1, rate, root, eps]))
        for arrays in zip(params, squares, averages, grads):
            yield _codes([arrays[0].shape] * 3, [*arrays, scale, settings],
                         "detr::adamw(in0_p, in1_p, in2_p, in3_p, in4_p[0], in5_p, out0_p, out1_p, out2_p, in0->num);", """
                detr::adamw<<<(in0->num - 1) / detr::ELEMENT_THREADS + 1, detr::ELEMENT_THREADS>>>(
                    in0_p, in1_p, in2_p, in3_p, in4_p, in5_p, out0_p, out1_p, out2_p, in0->num);
            """)
        return
    for p, v, m, g in zip(params, squares, averages, grads):
        g = g * scale
        m = b0 * m + (1 - b0) * g
        v = b1 * v + (1 - b1) * g * g
        yield p * keep - rate * m / (jt.sqrt(v) * root + eps), v, m


def _on_onednn():
    return not jt.flags.use_cuda and jt.compile_extern.mkl_ops is not None


def _finish(x, residual, cut):
    x = x if residual is None else x + residual
    return relu(x) if cut else x


def _code(shape, inputs, source, cuda_source=""):
    """The float32 result of an operator. Without cuda_source it is one of the CPU."""
    return jt.code(shape, "float32", inputs, **_sources(source, cuda_source))


def _codes(shapes, inputs, source, cuda_source=""):
    """Several results of one operator."""
    return jt.code(shapes, ["float32"] * len(shapes), inputs, **_sources(source, cuda_source))


def _sources(cpu, cuda):
    # A change of kernels.cuh leaves operators without CUDA as they are compiled.
    return dict(cpu_header=HEADER, cpu_src=cpu, cuda_header=CUDA_HEADER if cuda else "", cuda_src=cuda)


class _Product(jt.Function):
    """a times b, or with transpose "T" times the transpose of b."""

    def __init__(self, transpose):
        self.transpose = transpose

    def execute(self, a, b):
        self.saved = a, b
        return _sgemm(a, b, "N", self.transpose)

    def grad(self, d):
        a, b = self.saved
        if self.transpose == "N":
            return _sgemm(d, b, "N", "T"), _sgemm(a, d, "T", "N")
        return _sgemm(d, b, "N", "N"), _sgemm(d, a, "T", "N")


def _sgemm(a, b, ta, tb):
    batch, m, k = a.shape if ta == "N" else (a.shape[0], a.shape[2], a.shape[1])
    n = b.shape[2] if tb == "N" else b.shape[1]
    return _code([batch, m, n], [a, b], f"""
        const int64_t batch = out0_shape0, m = out0_shape1, n = out0_shape2, k = in0_shape{2 if ta == "N" else 1};
        #pragma omp parallel for
        for (int64_t i = 0; i < batch; i++)
            detr::sgemm('{ta}', '{tb}', m, n, k, in0_p + i * m * k, in0_shape2, in1_p + i * k * n, in1_shape2, 0.f,
                        out0_p + i * m * n, n);
    """)


class _Linear(jt.Function):

    def execute(self, x, weight, bias):
        self.saved, self.has_bias = (x, weight), bias is not None
        inputs, added = ([x, weight, bias], "in2_p") if self.has_bias else ([x, weight], "nullptr")
        return _code([*x.shape[:-1], weight.shape[0]], inputs, f"""
            const int64_t n = in1_shape0, k = in1_shape1;
            detr::linear(in0_p, in1_p, {added}, out0_p, in0->num / k, n, k);
        """)

    def grad(self, d):
        x, weight = self.saved
        dx = _code(x.shape, [d, weight], """
            const int64_t n = in1_shape0, k = in1_shape1;
            detr::sgemm('N', 'N', in0->num / n, k, n, in0_p, n, in1_p, k, 0.f, out0_p, k);
        """)
        dw = _code(weight.shape, [d, x], """
            const int64_t n = out0_shape0, k = out0_shape1;
            detr::sgemm('T', 'N', n, k, in0->num / n, in0_p, n, in1_p, k, 0.f, out0_p, k);
        """)
        return dx, dw, d.reshape(-1, d.shape[-1]).sum(0) if self.has_bias else None


class _Conv(jt.Function):
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
        y = _code(self.shape(x, weight), inputs, self.forward(after))
        self.y = y if self.relu else None
        return y

    def grad(self, d):
        d = _relu_backward(d, self.y) if self.relu else d
        inputs, scale = ([], "nullptr") if self.scale is None else ([self.scale], "in2_p")
        return (_code(self.x.shape, [d, self.weight, *inputs], self.backward_x(scale)),
                _code(self.weight.shape, [d, self.x, *inputs], self.backward_w(scale)), None,
                d.sum((0, 2, 3)) if self.has_bias else None, d if self.has_residual else None)

    def shape(self, x, weight):
        return [x.shape[0], weight.shape[0], *x.shape[2:]]

    def sizes(self, x, y, weight):
        """What the kernels need to know, in terms of the operator's inputs and outputs."""
        return f"{x}_shape0, {x}_shape1, {y}_shape1, {x}_shape2, {x}_shape3"

    def forward(self, after):
        return f"{self.kernels}::conv(in1_p, in0_p, {after}, out0_p, {self.sizes('in0', 'out0', 'in1')});"

    def backward_x(self, scale):
        return f"{self.kernels}::conv_input(in1_p, {scale}, in0_p, out0_p, {self.sizes('out0', 'in0', 'in1')});"

    def backward_w(self, scale):
        return f"{self.kernels}::conv_weight(in0_p, {scale}, in1_p, out0_p, {self.sizes('in1', 'in0', 'out0')});"


class _Conv1x1(_Conv):
    kernels = "detr::pointwise"

    def sizes(self, x, y, weight):
        return f"{x}_shape0, {x}_shape1, {y}_shape1, {x}_shape2 * {x}_shape3"


class _Conv3x3(_Conv):
    """Stride and padding 1."""
    kernels = "detr::winograd"


class _ConvAny(_Conv):
    kernels = "detr"

    def __init__(self, relu, stride, padding, dilation):
        super().__init__(relu)
        self.stride, self.padding, self.dilation = stride, padding, dilation

    def shape(self, x, weight):
        sides = [(side + 2 * self.padding - self.dilation * (kernel - 1) - 1) // self.stride + 1
                 for side, kernel in zip(x.shape[2:], weight.shape[2:])]
        return [x.shape[0], weight.shape[0], *sides]

    def sizes(self, x, y, weight):
        sides = f"{x}_shape2, {x}_shape3, {weight}_shape2, {weight}_shape3"
        window = f"detr::Window{{{x}_shape1, {y}_shape1, {sides}, {self.stride}, {self.padding}, {self.dilation}}}"
        return f"{x}_shape0, {window}"


def _split(x, step):
    """[B, C, H, W] -> [step * step * B, C, H / step, W / step], rounded up; what is missing is zero."""
    batch, channels, height, width = x.shape
    x = nn.pad(x, (0, -width % step, 0, -height % step))
    x = x.reshape(batch, channels, x.shape[2] // step, step, x.shape[3] // step, step).permute(3, 5, 0, 1, 2, 4)
    return x.reshape(-1, channels, *x.shape[4:])


def _join(x, step, height, width):
    """The way back of _split, to [B, C, height, width]."""
    x = x.reshape(step, step, -1, *x.shape[1:]).permute(2, 3, 4, 0, 5, 1)
    x = x.reshape(*x.shape[:2], x.shape[2] * step, x.shape[4] * step)
    return x[:, :, :height, :width]


class _Relu(jt.Function):

    def execute(self, x):
        self.y = _code(x.shape, [x], "detr::relu(in0_p, out0_p, in0->num);")
        return self.y

    def grad(self, d):
        return _relu_backward(d, self.y)


def _relu_backward(d, y):
    return _code(d.shape, [d, y], "detr::relu_backward(in0_p, in1_p, out0_p, in0->num);")


class _MaxPool(jt.Function):

    def execute(self, x):
        batch, channels, height, width = x.shape
        self.x = x
        self.y = _code([batch, channels, (height + 1) // 2, (width + 1) // 2], [x],
                       "detr::max_pool(in0_p, out0_p, in0_shape0 * in0_shape1, in0_shape2, in0_shape3);")
        return self.y

    def grad(self, d):
        return _code(self.x.shape, [d, self.x, self.y], """
            detr::max_pool_backward(in0_p, in1_p, in2_p, out0_p, in1_shape0 * in1_shape1, in1_shape2, in1_shape3);
        """)


class _Softmax(jt.Function):
    def execute(self, x, penalty):
        inputs, row, added = ([x], "nullptr", "nullptr, 1") if penalty is None else (
            [x, penalty], "in1_p + i / (in0_shape0 * in0_shape1 / in1_shape0) * in0_shape2",
            "in1_p, in0_shape0 * in0_shape1 / in1_shape0")
        self.y = _code(x.shape, inputs, f"""
            #pragma omp parallel for
            for (int64_t i = 0; i < in0_shape0 * in0_shape1; i++)
                detr::softmax_row(in0_p + i * in0_shape2, {row}, out0_p + i * in0_shape2, in0_shape2);
        """, f"""
            detr::softmax<<<in0_shape0 * in0_shape1, detr::ROW_THREADS>>>(in0_p, {added}, out0_p, in0_shape2);
        """)
        return self.y

    def grad(self, d):
        dx = _code(d.shape, [d, self.y], """
            const int64_t n = in0_shape2;
            #pragma omp parallel for
            for (int64_t i = 0; i < in0_shape0 * in0_shape1; i++) {
                const float *d = in0_p + i * n, *y = in1_p + i * n;
                float sum = 0;
                for (int64_t j = 0; j < n; j++) sum += d[j] * y[j];
                for (int64_t j = 0; j < n; j++) out0_p[i * n + j] = y[j] * (d[j] - sum);
            }
        """, """
            detr::softmax_backward<<<in0_shape0 * in0_shape1, detr::ROW_THREADS>>>(in0_p, in1_p, out0_p, in0_shape2);
        """)
        return dx, None


class _Transpose(jt.Function):
    """With CUDA only."""

    def execute(self, x):
        batch, m, n = x.shape
        return _code([batch, n, m], [x], "", """
            dim3 tiles((in0_shape2 - 1) / detr::TILE + 1, (in0_shape1 - 1) / detr::TILE + 1, in0_shape0);
            detr::transpose<<<tiles, dim3(detr::TILE, detr::TILE_ROWS)>>>(in0_p, out0_p, in0_shape1, in0_shape2);
        """)

    def grad(self, d):
        return self.execute(d)


class _Dropout(jt.Function):
    def __init__(self, p):
        self.source = f"detr::dropout(in0_p, in1_p, {p}, out0_p, in0->num);"

    def execute(self, x, seed):
        self.seed = seed
        return _code(x.shape, [x, seed], self.source)

    def grad(self, d):
        return _code(d.shape, [d, self.seed], self.source), None


class _LayerNorm(jt.Function):
    def __init__(self, eps):
        self.eps = eps

    def execute(self, x, weight, bias):
        self.saved = x, weight
        source = f"const int64_t n = in1->num; detr::layer_norm(in0_p, in1_p, in2_p, {self.eps}, out0_p, in0->num / n, n);"
        return _code(x.shape, [x, weight, bias], source)

    def grad(self, d):
        x, weight = self.saved
        source = f"""
            const int64_t n = in2->num;
            detr::layer_norm_backward(in0_p, in1_p, in2_p, {self.eps}, out0_p, out1_p, out2_p, in0->num / n, n);
        """
        return _codes([x.shape, weight.shape, weight.shape], [d, x, weight], source)


class _BatchNorm(jt.Function):
    sizes = "in0_shape0, in0_shape1, in0_shape2 * in0_shape3"

    def __init__(self, eps, relu):
        self.eps, self.relu = eps, relu

    def execute(self, x, weight, bias, residual):
        inputs, added = ([x, weight, bias], "nullptr") if residual is None else ([x, weight, bias, residual], "in3_p")
        outputs = _codes([x.shape, weight.shape, weight.shape], inputs, f"""
            detr::batch_norm(in0_p, in1_p, in2_p, {self.eps}, {added}, {str(self.relu).lower()}, out0_p, out1_p, out2_p,
                             {self.sizes});
        """)
        self.has_residual = residual is not None
        self.saved = [x, weight, *outputs[1:]] + ([outputs[0]] if self.relu else [])
        return outputs

    def grad(self, d, *_):
        x, weight = self.saved[:2]
        dx, dw, db, masked = _codes([x.shape, weight.shape, weight.shape, x.shape], [d, *self.saved], f"""
            detr::batch_norm_backward(in0_p, in1_p, in2_p, in3_p, in4_p, {"in5_p" if self.relu else "nullptr"}, {self.eps},
                                      out0_p, out1_p, out2_p, out3_p, {self.sizes});
        """)
        return dx, dw, db, masked if self.has_residual else None
