// Gradients of a linear layer, from the products of gemm.h or gemm.cuh, at whose end this is included.
#pragma once

namespace detr {

// Gradients of `linear` without ReLU: dx [rows, k], dw [n, k], and db [n] or null
inline void linear_backward(const float* dy, const float* x, const float* w, float* dx, float* dw, float* db, dim_t rows, dim_t n,
                            dim_t k) {
    matmul('N', 'N', rows, k, n, dy, w, dx);
    matmul('T', 'N', n, k, rows, dy, x, dw);
    if (db) sum_rows(dy, db, rows, n);
}

}  // namespace detr
