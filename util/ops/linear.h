// Gradients of a linear layer, and the feed-forward layers, from the functions of gemm.h or gemm.cuh, at whose end this is
// included.
#pragma once

namespace detr {

// Gradients of `linear` without ReLU: dx [rows, k], dw [n, k], and db [n] or null
inline void linear_backward(const float* dy, const float* x, const float* w, float* dx, float* dw, float* db, dim_t rows, dim_t n,
                            dim_t k) {
    matmul('N', 'N', rows, k, n, dy, w, dx);
    matmul('T', 'N', n, k, rows, dy, x, dw);
    if (db) sum_rows(dy, db, rows, n);
}

// hidden [rows, n] = dropout(relu(linear of x [rows, k])), and y [rows, k] = linear of it
inline void feed_forward(const float* x, const float* w1, const float* b1, const float* w2, const float* b2, const Dropout& dropout,
                         float* hidden, float* y, dim_t rows, dim_t n, dim_t k) {
    linear(x, w1, b1, true, dropout, hidden, rows, n, k);
    linear(hidden, w2, b2, false, NO_DROPOUT, y, rows, k, n);
}

// Gradients of `feed_forward`; scale: 1 / (1 - p) of its dropout. A hidden value of 0 was negative or dropped. d: that of hidden
inline void feed_forward_backward(const float* dy, const float* x, const float* hidden, const float* w1, const float* w2,
                                  float scale, float* dx, float* dw1, float* db1, float* dw2, float* db2, float* d, dim_t rows,
                                  dim_t n, dim_t k) {
    linear_backward(dy, hidden, w2, d, dw2, db2, rows, k, n);
    relu_backward(d, hidden, d, rows * n, scale);
    linear_backward(d, x, w1, dx, dw1, db1, rows, n, k);
}

}  // namespace detr
