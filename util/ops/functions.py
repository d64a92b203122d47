"""Non-convolution operators as jt.Functions."""

import functools

from util.backend import jt

from .code import (
    ATTENTION,
    GEMM,
    LAYERS,
    NORM,
    OPTIMIZER,
    append_inputs,
    run_kernel,
    run_multi_output_kernel,
)

MAX_ARRAYS, ARRAY_BLOCKS = 32, 32  # as in shared.h, optimizer.cuh


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
    """A linear layer, with or without ReLU."""

    def __init__(self, relu):
        self.relu = relu

    def execute(self, x, weight, bias):
        inputs, [bias_pointer] = append_inputs([x, weight], bias)
        sizes = "in0->num / in1_shape1, in1_shape0, in1_shape1"
        epilogue = f"{bias_pointer}, {str(self.relu).lower()}, detr::NO_DROPOUT"
        source = f"detr::linear(in0_p, in1_p, {epilogue}, out0_p, {sizes});"
        y = run_kernel(GEMM, [*x.shape[:-1], weight.shape[0]], inputs, source)
        self.saved, self.has_bias = (x, weight, y if self.relu else None), bias is not None
        return y

    def grad(self, d):
        x, weight, y = self.saved
        d = relu_backward(d, y) if self.relu else d
        shapes = [x.shape, weight.shape] + ([weight.shape[:1]] if self.has_bias else [])
        d_bias = "out2_p" if self.has_bias else "nullptr"
        sizes = "in0->num / in2_shape0, in2_shape0, in2_shape1"
        source = f"detr::linear_backward(in0_p, in1_p, in2_p, out0_p, out1_p, {d_bias}, {sizes});"
        grads = run_multi_output_kernel(GEMM, shapes, [d, x, weight], source)
        return grads if self.has_bias else (*grads, None)


class FeedForward(jt.Function):
    """linear2(dropout(relu(linear1(x))))"""

    def __init__(self, dropout):
        self.dropout = dropout

    def execute(self, x, weight1, bias1, weight2, bias2, seed):
        inputs, [seed_pointer] = append_inputs([x, weight1, bias1, weight2, bias2], seed)
        dropout = f"{{{seed_pointer}, {self.dropout}}}"
        source = f"""
            detr::feed_forward(in0_p, in1_p, in2_p, in3_p, in4_p, {dropout}, out0_p, out1_p,
                               in0->num / in1_shape1, in1_shape0, in1_shape1);
        """
        shapes = [[*x.shape[:-1], weight1.shape[0]], x.shape]
        hidden, y = run_multi_output_kernel(GEMM, shapes, inputs, source)
        self.saved = x, hidden, weight1, weight2
        self.scale = 1 if seed is None else 1 / (1 - self.dropout)
        return y

    def grad(self, d):
        x, hidden, weight1, weight2 = self.saved
        source = f"""
            detr::feed_forward_backward(in0_p, in1_p, in2_p, in3_p, in4_p, {self.scale}, out0_p,
                                        out1_p, out2_p, out3_p, out4_p, out5_p,
                                        in1->num / in3_shape1, in3_shape0, in3_shape1);
        """
        shapes = [x.shape, weight1.shape, weight1.shape[:1], weight2.shape, weight2.shape[:1]]
        inputs = [d, *self.saved]
        *grads, _ = run_multi_output_kernel(GEMM, [*shapes, hidden.shape], inputs, source)
        return *grads, None


class Attention(jt.Function):
    """Multi-head attention; see `ops.attention`."""

    def __init__(self, heads, dropout):
        self.heads, self.dropout = heads, dropout

    def execute(self, query, key, value, weight, bias, out_weight, out_bias, mask, seed):
        batch, queries, width = query.shape
        keys = key.shape[1]
        inputs = [query, key, value, weight, bias, out_weight, out_bias]
        inputs, (mask_pointer, seed_pointer) = append_inputs(inputs, mask, seed)
        source = f"""
            detr::attention(in0_p, in1_p, in2_p, in3_p, in4_p, in5_p, in6_p, {mask_pointer},
                            {{{seed_pointer}, {self.dropout}}}, out0_p, out1_p, out2_p, out3_p,
                            out4_p, {self._get_shape("in0", "in1")});
        """
        scores, projected = (
            [batch, self.heads, queries, keys],
            [batch * (queries + 2 * keys), width],
        )
        shapes = [query.shape, scores, projected, query.shape, scores]
        out, *saved, _ = run_multi_output_kernel(ATTENTION, shapes, inputs, source)
        self.saved, self.seed = [query, key, value, weight, out_weight, *saved], seed
        return out, saved[0]

    def grad(self, d, _):
        query, key, value, weight, out_weight, weights, projected, _ = self.saved
        inputs, [seed] = append_inputs([d, *self.saved], self.seed)
        source = f"""
            detr::attention_backward(in0_p, in1_p, in2_p, in3_p, in4_p, in5_p, in6_p, in7_p, in8_p,
                                     {{{seed}, {self.dropout}}}, out0_p, out1_p, out2_p, out3_p,
                                     out4_p, out5_p, out6_p, out7_p, out8_p, out9_p, out10_p,
                                     {self._get_shape("in1", "in2")});
        """
        shapes = [x.shape for x in (query, key, value, weight)] + [weight.shape[:1]]
        shapes += [out_weight.shape, out_weight.shape[:1]]
        scratch = [d.shape, projected.shape, weights.shape, weights.shape]
        outputs = run_multi_output_kernel(ATTENTION, shapes + scratch, inputs, source)
        return *outputs[: len(shapes)], None, None

    def _get_shape(self, query, key):
        """Return the AttentionShape; query, key: their names in the operator."""
        size = f"{query}_shape2 / {self.heads}"
        return f"{{{query}_shape0, {self.heads}, {query}_shape1, {key}_shape1, {size}}}"


def relu_backward(d, y):
    source = "detr::relu_backward(in0_p, in1_p, out0_p, in0->num);"
    return run_kernel(LAYERS, d.shape, [d, y], source)


class Relu(jt.Function):
    def execute(self, x):
        self.y = run_kernel(LAYERS, x.shape, [x], "detr::relu(in0_p, out0_p, in0->num);")
        return self.y

    def grad(self, d):
        return relu_backward(d, self.y)


class Stack(jt.Function):
    """Stack up to MAX_ARRAYS arrays of one shape along a new axis."""

    def __init__(self, axis):
        self.axis = axis

    def execute(self, *arrays):
        return _stack(arrays, self.axis)

    def grad(self, d):
        return _unbind(d, self.axis)


class Unbind(jt.Function):
    """Split an array along an axis, which goes away."""

    def __init__(self, axis):
        self.axis = axis

    def execute(self, x):
        self.shape = x.shape
        return _unbind(x, self.axis)

    def grad(self, *grads):
        shape = next(d.shape for d in grads if d is not None)
        grads = [jt.zeros(shape) if d is None else d for d in grads]
        return _stack(grads, self.axis).reshape(self.shape)


def _stack(arrays, axis):
    shape = list(arrays[0].shape)
    source = _get_pieces([f"in{i}_p" for i in range(len(arrays))])
    outer, inner = _multiply("in0", 0, axis), _multiply("in0", axis, len(shape))
    source += f"detr::stack(pieces, out0_p, {outer}, {inner});"
    return run_kernel(LAYERS, shape[:axis] + [len(arrays)] + shape[axis:], list(arrays), source)


def _unbind(x, axis):
    shape = list(x.shape)
    source = _get_pieces([f"out{i}_p" for i in range(shape[axis])])
    outer, inner = _multiply("in0", 0, axis), _multiply("in0", axis + 1, len(shape))
    source += f"detr::unbind(in0_p, pieces, {outer}, {inner});"
    shapes = [shape[:axis] + shape[axis + 1 :] or [1]] * shape[axis]
    return run_multi_output_kernel(LAYERS, shapes, [x], source)


def _get_pieces(pointers):
    return f"detr::Pieces pieces{{{{{', '.join(pointers)}}}, {len(pointers)}}};"


def _multiply(name, start, end):
    """Return the C++ expression of the product of an array's sizes from axis start to end."""
    return " * ".join(["(int64)1", *(f"{name}_shape{i}" for i in range(start, end))])


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

    def execute(self, x, mask):
        inputs, args = [x], "in0_p, nullptr, 1, out0_p"
        if mask is not None:
            inputs, args = [x, mask], f"in0_p, in1_p, {self.rows} / in1_shape0, out0_p"
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
        self.source = f"detr::dropout(in0_p, {{in1_p, {p}}}, out0_p, in0->num);"

    def execute(self, x, seed):
        self.seed = seed
        return run_kernel(LAYERS, x.shape, [x, seed], self.source)

    def grad(self, d):
        return self.execute(d, self.seed), None


class LayerNorm(jt.Function):
    """LayerNorm of x, or of x + dropout(f)."""

    def __init__(self, eps, dropout=0.0):
        self.eps, self.dropout = eps, dropout

    def execute(self, x, f, seed, weight, bias):
        self.has_sum, self.seed = f is not None, seed
        inputs, (f_pointer, seed_pointer) = append_inputs([x, weight, bias], f, seed)
        source = f"""
            detr::layer_norm(in0_p, {f_pointer}, {{{seed_pointer}, {self.dropout}}}, in1_p, in2_p,
                             {self.eps}, {"out1_p" if self.has_sum else "nullptr"}, out0_p,
                             in0->num / in1->num, in1->num);
        """
        shapes = [x.shape] * (2 if self.has_sum else 1)
        y, *sums = run_multi_output_kernel(NORM, shapes, inputs, source)
        self.saved = sums[0] if self.has_sum else x, weight
        return y

    def grad(self, d):
        x, weight = self.saved
        inputs, [seed] = append_inputs([d, x, weight], self.seed)
        shapes = [x.shape, weight.shape, weight.shape] + ([] if self.seed is None else [x.shape])
        source = f"""
            detr::layer_norm_backward(in0_p, in1_p, in2_p, {self.eps}, {{{seed}, {self.dropout}}},
                                      out0_p, {"nullptr" if self.seed is None else "out3_p"},
                                      out1_p, out2_p, in0->num / in2->num, in2->num);
        """
        d_x, d_weight, d_bias, *d_f = run_multi_output_kernel(NORM, shapes, inputs, source)
        d_f = d_f[0] if d_f else d_x
        return d_x, d_f if self.has_sum else None, None, d_weight, d_bias


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
        inputs = [array for arrays in part for array in arrays]
        shapes = [arrays[0].shape for arrays in part for _ in range(3)]
        source = _get_adamw_source(len(part))
        outputs = run_multi_output_kernel(OPTIMIZER, shapes, [*inputs, scale, scalars], source)
        yield from zip(*[iter(outputs)] * 3)


@functools.lru_cache
def _get_adamw_source(count):
    lines = ["detr::Updates updates;"]
    for i in range(count):
        lines.append(f"updates.sizes[{i}] = in{4 * i}->num;")
        lines += [f"updates.{name}[{i}] = in{4 * i + k}_p;" for k, name in enumerate("pvmg")]
        lines += [f"updates.{name}2[{i}] = out{3 * i + k}_p;" for k, name in enumerate("pvm")]
    lines.append(f"detr::adamw(updates, {count}, in{4 * count}_p, in{4 * count + 1}_p);")
    return "".join(lines)


def square_sums(arrays):
    """Return partial sums of squares of each array, a list of [n, ARRAY_BLOCKS] (CUDA only)."""
    return [
        run_kernel(OPTIMIZER, [len(part), ARRAY_BLOCKS], part, _get_square_sums_source(len(part)))
        for part in _split(arrays)
    ]


@functools.lru_cache
def _get_square_sums_source(count):
    lines = [f"arrays.x[{i}] = in{i}_p; arrays.sizes[{i}] = in{i}->num;" for i in range(count)]
    return f"detr::Arrays arrays; {''.join(lines)} detr::square_sums(arrays, {count}, out0_p);"


def _split(arrays):
    return [arrays[i : i + MAX_ARRAYS] for i in range(0, len(arrays), MAX_ARRAYS)]
