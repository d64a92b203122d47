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
    return code([batch, m, n], [a, b], f"""
        const int64_t batch = out0_shape0, m = out0_shape1, n = out0_shape2, k = in0_shape{2 if ta == "N" else 1};
        #pragma omp parallel for
        for (int64_t i = 0; i < batch; i++)
            detr::sgemm('{ta}', '{tb}', m, n, k, in0_p + i * m * k, in0_shape2, in1_p + i * k * n, in1_shape2, 0.f,
                        out0_p + i * m * n, n);
    """)


class Linear(jt.Function):

    def execute(self, x, weight, bias):
        self.saved, self.has_bias = (x, weight), bias is not None
        inputs, added = ([x, weight, bias], "in2_p") if self.has_bias else ([x, weight], "nullptr")
        return code([*x.shape[:-1], weight.shape[0]], inputs, f"""
            const int64_t n = in1_shape0, k = in1_shape1;
            detr::linear(in0_p, in1_p, {added}, out0_p, in0->num / k, n, k);
        """)

    def grad(self, d):
        x, weight = self.saved
        dx = code(x.shape, [d, weight], """
            const int64_t n = in1_shape0, k = in1_shape1;
            detr::sgemm('N', 'N', in0->num / n, k, n, in0_p, n, in1_p, k, 0.f, out0_p, k);
        """)
        dw = code(weight.shape, [d, x], """
            const int64_t n = out0_shape0, k = out0_shape1;
            detr::sgemm('T', 'N', n, k, in0->num / n, in0_p, n, in1_p, k, 0.f, out0_p, k);
        """)
        return dx, dw, d.reshape(-1, d.shape[-1]).sum(0) if self.has_bias else None


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
        self.x = x
        self.y = code([batch, channels, (height + 1) // 2, (width + 1) // 2], [x],
                       "detr::max_pool(in0_p, out0_p, in0_shape0 * in0_shape1, in0_shape2, in0_shape3);")
        return self.y

    def grad(self, d):
        return code(self.x.shape, [d, self.x, self.y], """
            detr::max_pool_backward(in0_p, in1_p, in2_p, out0_p, in1_shape0 * in1_shape1, in1_shape2, in1_shape3);
        """)


class Softmax(jt.Function):
    def execute(self, x, penalty):
        inputs, row, added = ([x], "nullptr", "nullptr, 1") if penalty is None else (
            [x, penalty], "in1_p + i / (in0_shape0 * in0_shape1 / in1_shape0) * in0_shape2",
            "in1_p, in0_shape0 * in0_shape1 / in1_shape0")
        self.y = code(x.shape, inputs, f"""
            #pragma omp parallel for
            for (int64_t i = 0; i < in0_shape0 * in0_shape1; i++)
                detr::softmax_row(in0_p + i * in0_shape2, {row}, out0_p + i * in0_shape2, in0_shape2);
        """, f"""
            detr::softmax<<<in0_shape0 * in0_shape1, detr::ROW_THREADS>>>(in0_p, {added}, out0_p, in0_shape2);
        """)
        return self.y

    def grad(self, d):
        dx = code(d.shape, [d, self.y], """
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


class Transpose(jt.Function):
    """With CUDA only."""

    def execute(self, x):
        batch, m, n = x.shape
        return code([batch, n, m], [x], "", """
            dim3 tiles((in0_shape2 - 1) / detr::TILE + 1, (in0_shape1 - 1) / detr::TILE + 1, in0_shape0);
            detr::transpose<<<tiles, dim3(detr::TILE, detr::TILE_ROWS)>>>(in0_p, out0_p, in0_shape1, in0_shape2);
        """)

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
        source = f"const int64_t n = in1->num; detr::layer_norm(in0_p, in1_p, in2_p, {self.eps}, out0_p, in0->num / n, n);"
        return code(x.shape, [x, weight, bias], source)

    def grad(self, d):
        x, weight = self.saved
        source = f"""
            const int64_t n = in2->num;
            detr::layer_norm_backward(in0_p, in1_p, in2_p, {self.eps}, out0_p, out1_p, out2_p, in0->num / n, n);
        """
        return codes([x.shape, weight.shape, weight.shape], [d, x, weight], source)


class BatchNorm(jt.Function):
    sizes = "in0_shape0, in0_shape1, in0_shape2 * in0_shape3"

    def __init__(self, eps, relu):
        self.eps, self.relu = eps, relu

    def execute(self, x, weight, bias, residual):
        inputs, added = ([x, weight, bias], "nullptr") if residual is None else ([x, weight, bias, residual], "in3_p")
        outputs = codes([x.shape, weight.shape, weight.shape], inputs, f"""
            detr::batch_norm(in0_p, in1_p, in2_p, {self.eps}, {added}, {str(self.relu).lower()}, out0_p, out1_p, out2_p,
                             {self.sizes});
        """)
        self.has_residual = residual is not None
        self.saved = [x, weight, *outputs[1:]] + ([outputs[0]] if self.relu else [])
        return outputs

    def grad(self, d, *_):
        x, weight = self.saved[:2]
        dx, dw, db, masked = codes([x.shape, weight.shape, weight.shape, x.shape], [d, *self.saved], f"""
            detr::batch_norm_backward(in0_p, in1_p, in2_p, in3_p, in4_p, {"in5_p" if self.relu else "nullptr"}, {self.eps},
                                      out0_p, out1_p, out2_p, out3_p, {self.sizes});
        """)
        return dx, dw, db, masked if self.has_residual else None
