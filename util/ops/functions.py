"""Non-convolution operators as jt.Functions."""

from util.backend import jt

from .code import GEMM, LAYERS, NORM, OPTIMIZER, run_kernel, run_multi_output_kernel

MAX_ARRAYS, ARRAY_BLOCKS = 32, 32  # as in optimizer.cuh


class BatchedMatmul(jt.Function):
    """Batched a @ b, or a @ b^T if transpose is "T"."""

    def __init__(self, transpose):
        self.transpose = transpose

    def execute(self, a, b):
        self.saved = a, b
        return _batched_matmul(a, b, "N", self.transpose)

    def grad(self, d):
        a, b = self.saved
        if self.transpose == "N":
            return _batched_matmul(d, b, "N", "T"), _batched_matmul(a, d, "T", "N")
        return _batched_matmul(d, b, "N", "N"), _batched_matmul(d, a, "T", "N")


def _batched_matmul(a, b, ta, tb):
    m, k = (1, 2) if ta == "N" else (2, 1)  # axes of a
    n = 2 if tb == "N" else 1
    sizes = f"in0_shape0, in0_shape{m}, in1_shape{n}, in0_shape{k}"
    source = f"detr::batched_matmul('{ta}', '{tb}', {sizes}, in0_p, in1_p, out0_p);"
    return run_kernel(GEMM, [a.shape[0], a.shape[m], b.shape[n]], [a, b], source)


class Linear(jt.Function):
    def execute(self, x, weight, bias):
        self.saved, self.has_bias = (x, weight), bias is not None
        inputs, bias = ([x, weight, bias], "in2_p") if self.has_bias else ([x, weight], "nullptr")
        sizes = "in0->num / in1_shape1, in1_shape0, in1_shape1"
        source = f"detr::linear(in0_p, in1_p, {bias}, out0_p, {sizes});"
        return run_kernel(GEMM, [*x.shape[:-1], weight.shape[0]], inputs, source)

    def grad(self, d):
        x, weight = self.saved
        shapes = [x.shape, weight.shape] + ([weight.shape[:1]] if self.has_bias else [])
        d_bias = "out2_p" if self.has_bias else "nullptr"
        sizes = "in0->num / in2_shape0, in2_shape0, in2_shape1"
        source = f"detr::linear_backward(in0_p, in1_p, in2_p, out0_p, out1_p, {d_bias}, {sizes});"
        grads = run_multi_output_kernel(GEMM, shapes, [d, x, weight], source)
        return grads if self.has_bias else (*grads, None)


class InProjection(jt.Function):
    """Three linear layers, of query, key and value, with their weights in one array."""

    def execute(self, query, key, value, weight, bias):
        self.saved = inputs = query, key, value, weight
        source = "const int64_t n = in3_shape1;" + "".join(
            f"detr::linear(in{i}_p, in3_p + {i} * n * n, in4_p + {i} * n, out{i}_p, "
            f"in{i}->num / n, n, n);"
            for i in range(3)
        )
        shapes = [x.shape for x in inputs[:3]]
        return run_multi_output_kernel(GEMM, shapes, [*inputs, bias], source)

    def grad(self, *grads):
        *inputs, weight = self.saved
        source = "const int64_t n = in6_shape1;" + "".join(
            f"detr::linear_backward(in{i}_p, in{i + 3}_p, in6_p + {i} * n * n, out{i}_p, "
            f"out3_p + {i} * n * n, out4_p + {i} * n, in{i}->num / n, n, n);"
            for i in range(3)
        )
        shapes = [*(x.shape for x in inputs), weight.shape, weight.shape[:1]]
        return run_multi_output_kernel(GEMM, shapes, [*grads, *inputs, weight], source)


def relu_backward(d, y):
    source = "detr::relu_backward(in0_p, in1_p, out0_p, in0->num);"
    return run_kernel(LAYERS, d.shape, [d, y], source)


class Relu(jt.Function):
    def execute(self, x):
        self.y = run_kernel(LAYERS, x.shape, [x], "detr::relu(in0_p, out0_p, in0->num);")
        return self.y

    def grad(self, d):
        return relu_backward(d, self.y)


class MaxPool(jt.Function):
    sizes = "in0_shape0 * in0_shape1, in0_shape2, in0_shape3"

    def execute(self, x):
        batch, channels, height, width = x.shape
        shape = [batch, channels, (height + 1) // 2, (width + 1) // 2]
        source = f"detr::max_pool(in0_p, out0_p, {self.sizes});"
        self.x, self.y = x, run_kernel(LAYERS, shape, [x], source)
        return self.y

    def grad(self, d):
        source = f"detr::max_pool_backward(in2_p, in0_p, in1_p, out0_p, {self.sizes});"
        return run_kernel(LAYERS, self.x.shape, [self.x, self.y, d], source)


class Softmax(jt.Function):
    rows, n = "in0_shape0 * in0_shape1", "in0_shape2"

    def execute(self, x, mask_bias):
        inputs, args = [x], "in0_p, nullptr, 1, out0_p"
        if mask_bias is not None:
            inputs, args = [x, mask_bias], f"in0_p, in1_p, {self.rows} / in1_shape0, out0_p"
        self.y = self._run("softmax", inputs, args)
        return self.y

    def grad(self, d):
        return self._run("softmax_backward", [d, self.y], "in0_p, in1_p, out0_p"), None

    def _run(self, kernel, inputs, args):
        source = f"detr::{kernel}({args}, {self.rows}, {self.n});"
        return run_kernel(LAYERS, inputs[0].shape, inputs, source)


class Transpose(jt.Function):
    """Transpose matrices (CUDA only)."""

    def execute(self, x):
        batch, m, n = x.shape
        sizes = "in0_shape0, in0_shape1, in0_shape2"
        return run_kernel(LAYERS, [batch, n, m], [x], f"detr::transpose(in0_p, out0_p, {sizes});")

    def grad(self, d):
        return self.execute(d)


class Dropout(jt.Function):
    def __init__(self, p):
        self.source = f"detr::dropout(in0_p, in1_p, {p}, out0_p, in0->num);"

    def execute(self, x, seed):
        self.seed = seed
        return run_kernel(LAYERS, x.shape, [x, seed], self.source)

    def grad(self, d):
        return self.execute(d, self.seed), None


class LayerNorm(jt.Function):
    def __init__(self, eps):
        self.eps = eps

    def execute(self, x, weight, bias):
        self.saved = x, weight
        sizes = "in0->num / in1->num, in1->num"
        source = f"detr::layer_norm(in0_p, in1_p, in2_p, {self.eps}, out0_p, {sizes});"
        return run_kernel(NORM, x.shape, [x, weight, bias], source)

    def grad(self, d):
        x, weight = self.saved
        sizes = "in0->num / in2->num, in2->num"
        args = f"in0_p, in1_p, in2_p, {self.eps}, out0_p, out1_p, out2_p, {sizes}"
        shapes = [x.shape, weight.shape, weight.shape]
        source = f"detr::layer_norm_backward({args});"
        return run_multi_output_kernel(NORM, shapes, [d, x, weight], source)


class BatchNorm(jt.Function):
    sizes = "in0_shape0, in0_shape1, in0_shape2 * in0_shape3"

    def __init__(self, eps, relu):
        self.eps, self.relu = eps, relu

    def execute(self, x, weight, bias, residual):
        self.has_residual = residual is not None
        inputs = [x, weight, bias, residual] if self.has_residual else [x, weight, bias]
        shapes = [x.shape, weight.shape, weight.shape]
        source = f"""
            detr::batch_norm(in0_p, in1_p, in2_p, {self.eps},
                             {"in3_p" if self.has_residual else "nullptr"},
                             {str(self.relu).lower()}, out0_p, out1_p, out2_p, {self.sizes});
        """
        y, mean, variance = run_multi_output_kernel(NORM, shapes, inputs, source)
        self.saved = [x, weight, mean, variance, y] if self.relu else [x, weight, mean, variance]
        return y, mean, variance

    def grad(self, d, *_):
        x, weight = self.saved[:2]
        shapes = [x.shape, weight.shape, weight.shape, x.shape]
        source = f"""
            detr::batch_norm_backward(in0_p, in1_p, in2_p, in3_p, in4_p,
                                      {"in5_p" if self.relu else "nullptr"}, {self.eps},
                                      out0_p, out1_p, out2_p, out3_p, {self.sizes});
        """
        *grads, d_residual = run_multi_output_kernel(NORM, shapes, [d, *self.saved], source)
        return *grads, d_residual if self.has_residual else None


def adamw(rows, scale, scalars):
    """Yield new (param, exp_avg_sq, exp_avg) for rows of these and a gradient; scalars: [8]."""
    source = """
        detr::adamw(in0_p, in1_p, in2_p, in3_p, in4_p[0], in5_p, out0_p, out1_p, out2_p, in0->num);
    """
    for arrays in rows:
        shapes = [arrays[0].shape] * 3
        yield run_multi_output_kernel(OPTIMIZER, shapes, [*arrays, scale, scalars], source)


def adamw_cuda(rows, scale, scalars):
    """Do the same as `adamw` with CUDA, with MAX_ARRAYS parameters per launch."""
    for part in _split(list(rows)):
        count = len(part)
        source = "detr::Updates updates;" + "".join(
            f"updates.{name}[{i}] = in{4 * i + k}_p;"
            for i in range(count)
            for k, name in enumerate("pvmg")
        )
        source += "".join(
            f"updates.sizes[{i}] = in{4 * i}->num;"
            + "".join(f"updates.{name}2[{i}] = out{3 * i + k}_p;" for k, name in enumerate("pvm"))
            for i in range(count)
        )
        source += f"detr::adamw(updates, {count}, in{4 * count}_p, in{4 * count + 1}_p);"
        inputs = [array for arrays in part for array in arrays]
        shapes = [arrays[0].shape for arrays in part for _ in range(3)]
        outputs = run_multi_output_kernel(OPTIMIZER, shapes, [*inputs, scale, scalars], source)
        yield from zip(*[iter(outputs)] * 3)


def square_sums(arrays):
    """Return partial sums of squares of each array, a list of [n, ARRAY_BLOCKS] (CUDA only)."""
    sums = []
    for part in _split(arrays):
        source = "detr::Arrays arrays;" + "".join(
            f"arrays.x[{i}] = in{i}_p; arrays.sizes[{i}] = in{i}->num;" for i in range(len(part))
        )
        source += f"detr::square_sums(arrays, {len(part)}, out0_p);"
        sums.append(run_kernel(OPTIMIZER, [len(part), ARRAY_BLOCKS], part, source))
    return sums


def _split(arrays):
    return [arrays[i : i + MAX_ARRAYS] for i in range(0, len(arrays), MAX_ARRAYS)]
