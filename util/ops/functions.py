"""The other operators as jt.Functions; their kernels are in kernels.h and kernels.cuh."""

from util.backend import jt

from .code import code, codes


class Product(jt.Function):
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
    source = f"""
        const int64_t m = out0_shape1, n = out0_shape2, k = in0_shape{2 if ta == "N" else 1};
        #pragma omp parallel for
        for (int64_t i = 0; i < out0_shape0; i++)
            detr::sgemm('{ta}', '{tb}', m, n, k, in0_p + i * m * k, in0_shape2,
                        in1_p + i * k * n, in1_shape2, 0.f, out0_p + i * m * n, n);
    """
    return code([batch, m, n], [a, b], source)


class Linear(jt.Function):
    def execute(self, x, weight, bias):
        self.saved, self.has_bias = (x, weight), bias is not None
        inputs = [x, weight, bias] if self.has_bias else [x, weight]
        source = f"""
            const int64_t n = in1_shape0, k = in1_shape1;
            detr::linear(in0_p, in1_p, {"in2_p" if self.has_bias else "nullptr"}, out0_p,
                         in0->num / k, n, k);
        """
        return code([*x.shape[:-1], weight.shape[0]], inputs, source)

    def grad(self, d):
        x, weight = self.saved
        source_x = """
            const int64_t n = in1_shape0, k = in1_shape1;
            detr::sgemm('N', 'N', in0->num / n, k, n, in0_p, n, in1_p, k, 0.f, out0_p, k);
        """
        source_weight = """
            const int64_t n = out0_shape0, k = out0_shape1;
            detr::sgemm('T', 'N', n, k, in0->num / n, in0_p, n, in1_p, k, 0.f, out0_p, k);
        """
        d_x = code(x.shape, [d, weight], source_x)
        d_weight = code(weight.shape, [d, x], source_weight)
        d_bias = d.reshape(-1, d.shape[-1]).sum(0) if self.has_bias else None
        return d_x, d_weight, d_bias


def relu_backward(d, y):
    return code(d.shape, [d, y], "detr::relu_backward(in0_p, in1_p, out0_p, in0->num);")


class Relu(jt.Function):
    def execute(self, x):
        self.y = code(x.shape, [x], "detr::relu(in0_p, out0_p, in0->num);")
        return self.y

    def grad(self, d):
        return relu_backward(d, self.y)


class MaxPool(jt.Function):
    def execute(self, x):
        batch, channels, height, width = x.shape
        source = """
            detr::max_pool(in0_p, out0_p, in0_shape0 * in0_shape1, in0_shape2, in0_shape3);
        """
        self.x = x
        self.y = code([batch, channels, (height + 1) // 2, (width + 1) // 2], [x], source)
        return self.y

    def grad(self, d):
        source = """
            detr::max_pool_backward(in0_p, in1_p, in2_p, out0_p, in1_shape0 * in1_shape1,
                                    in1_shape2, in1_shape3);
        """
        return code(self.x.shape, [d, self.x, self.y], source)


class Softmax(jt.Function):
    def execute(self, x, penalty):
        inputs, penalty_row, cuda_penalty = [x], "nullptr", "nullptr, 1"
        if penalty is not None:
            inputs.append(penalty)
            rows_of_penalty = "in0_shape0 * in0_shape1 / in1_shape0"  # that share one of its rows
            penalty_row = f"in1_p + i / ({rows_of_penalty}) * in0_shape2"
            cuda_penalty = f"in1_p, {rows_of_penalty}"
        source = f"""
            const int64_t n = in0_shape2;
            #pragma omp parallel for
            for (int64_t i = 0; i < in0_shape0 * in0_shape1; i++)
                detr::softmax_row(in0_p + i * n, {penalty_row}, out0_p + i * n, n);
        """
        cuda_source = f"""
            detr::softmax<<<in0_shape0 * in0_shape1, detr::ROW_THREADS>>>(
                in0_p, {cuda_penalty}, out0_p, in0_shape2);
        """
        self.y = code(x.shape, inputs, source, cuda_source)
        return self.y

    def grad(self, d):
        source = """
            const int64_t n = in0_shape2;
            #pragma omp parallel for
            for (int64_t i = 0; i < in0_shape0 * in0_shape1; i++) {
                const float *d = in0_p + i * n, *y = in1_p + i * n;
                float sum = 0;
                for (int64_t j = 0; j < n; j++) sum += d[j] * y[j];
                for (int64_t j = 0; j < n; j++) out0_p[i * n + j] = y[j] * (d[j] - sum);
            }
        """
        cuda_source = """
            detr::softmax_backward<<<in0_shape0 * in0_shape1, detr::ROW_THREADS>>>(
                in0_p, in1_p, out0_p, in0_shape2);
        """
        return code(d.shape, [d, self.y], source, cuda_source), None


class Transpose(jt.Function):
    """With CUDA only."""

    def execute(self, x):
        batch, m, n = x.shape
        cuda_source = """
            const int columns = (in0_shape2 - 1) / detr::TILE + 1;
            const int rows = (in0_shape1 - 1) / detr::TILE + 1;
            detr::transpose<<<dim3(columns, rows, in0_shape0), dim3(detr::TILE, detr::TILE_ROWS)>>>(
                in0_p, out0_p, in0_shape1, in0_shape2);
        """
        return code([batch, n, m], [x], "", cuda_source)

    def grad(self, d):
        return self.execute(d)


class Dropout(jt.Function):
    def __init__(self, p):
        self.source = f"detr::dropout(in0_p, in1_p, {p}, out0_p, in0->num);"

    def execute(self, x, seed):
        self.seed = seed
        return code(x.shape, [x, seed], self.source)

    def grad(self, d):
        return code(d.shape, [d, self.seed], self.source), None


class LayerNorm(jt.Function):
    def __init__(self, eps):
        self.eps = eps

    def execute(self, x, weight, bias):
        self.saved = x, weight
        source = f"""
            const int64_t n = in1->num;
            detr::layer_norm(in0_p, in1_p, in2_p, {self.eps}, out0_p, in0->num / n, n);
        """
        return code(x.shape, [x, weight, bias], source)

    def grad(self, d):
        x, weight = self.saved
        source = f"""
            const int64_t n = in2->num;
            detr::layer_norm_backward(in0_p, in1_p, in2_p, {self.eps}, out0_p, out1_p, out2_p,
                                      in0->num / n, n);
        """
        return codes([x.shape, weight.shape, weight.shape], [d, x, weight], source)


class BatchNorm(jt.Function):
    sizes = "in0_shape0, in0_shape1, in0_shape2 * in0_shape3"

    def __init__(self, eps, relu):
        self.eps, self.relu = eps, relu

    def execute(self, x, weight, bias, residual):
        self.has_residual = residual is not None
        inputs = [x, weight, bias, residual] if self.has_residual else [x, weight, bias]
        source = f"""
            detr::batch_norm(in0_p, in1_p, in2_p, {self.eps},
                             {"in3_p" if self.has_residual else "nullptr"},
                             {"true" if self.relu else "false"},
                             out0_p, out1_p, out2_p, {self.sizes});
        """
        y, mean, variance = codes([x.shape, weight.shape, weight.shape], inputs, source)
        self.saved = [x, weight, mean, variance, y] if self.relu else [x, weight, mean, variance]
        return y, mean, variance

    def grad(self, d, *_):
        x, weight = self.saved[:2]
        source = f"""
            detr::batch_norm_backward(in0_p, in1_p, in2_p, in3_p, in4_p,
                                      {"in5_p" if self.relu else "nullptr"}, {self.eps},
                                      out0_p, out1_p, out2_p, out3_p, {self.sizes});
        """
        d_x, d_weight, d_bias, d_residual = codes(
            [x.shape, weight.shape, weight.shape, x.shape], [d, *self.saved], source
        )
        return d_x, d_weight, d_bias, d_residual if self.has_residual else None
