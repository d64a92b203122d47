"""Operators that Jittor lacks in a fast form on the CPU. With CUDA, and without oneDNN, Jittor's own run instead.

`bmm` and `bmm_transpose`: Jittor computes batched matrix products and their gradients on the CPU in a plain loop on one
core. Here each product is a call of oneDNN's sgemm, the products of a batch spread over the cores.
"""
import jittor as jt
from jittor import nn

# oneDNN's sgemm takes row-major matrices. Inside the parallel region each call runs on one thread.
SGEMM_HEADER = """
#include <cstdint>
extern "C" int dnnl_sgemm(char transa, char transb, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
                          int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc);
"""
SGEMM = """
    const int64_t batch = out0_shape0, m = out0_shape1, n = out0_shape2, k = {k};
    #pragma omp parallel for
    for (int64_t i = 0; i < batch; i++)
        dnnl_sgemm('{ta}', '{tb}', m, n, k, 1.f, in0_p + i * m * k, in0_shape2, in1_p + i * k * n, in1_shape2,
                   0.f, out0_p + i * m * n, n);
"""


def bmm(a, b):
    """float32 [N, m, k], [N, k, n] -> [N, m, n]: the product of each pair of matrices."""
    return _Product()(a, b) if _on_onednn() else nn.bmm(a, b)


def bmm_transpose(a, b):
    """float32 [N, m, k], [N, n, k] -> [N, m, n]: the product of each matrix with the transpose of its partner."""
    return _ProductTransposed()(a, b) if _on_onednn() else nn.bmm_transpose(a, b)


def _on_onednn():
    return not jt.flags.use_cuda and jt.compile_extern.mkl_ops is not None


class _Product(jt.Function):
    def execute(self, a, b):
        self.saved = a, b
        return _sgemm(a, b, "N", "N")

    def grad(self, d):
        a, b = self.saved
        return _sgemm(d, b, "N", "T"), _sgemm(a, d, "T", "N")


class _ProductTransposed(jt.Function):
    def execute(self, a, b):
        self.saved = a, b
        return _sgemm(a, b, "N", "T")

    def grad(self, d):
        a, b = self.saved
        return _sgemm(d, b, "N", "N"), _sgemm(d, a, "T", "N")


def _sgemm(a, b, ta, tb):
    batch, m, k = a.shape if ta == "N" else (a.shape[0], a.shape[2], a.shape[1])
    n = b.shape[2] if tb == "N" else b.shape[1]
    source = SGEMM.format(ta=ta, tb=tb, k="in0_shape2" if ta == "N" else "in0_shape1")
    return jt.code([batch, m, n], a.dtype, [a, b], cpu_header=SGEMM_HEADER, cpu_src=source)
