// Multi-head attention.
#pragma once
# include "gemm.h"  // spaced: see code.py
# include "layers.h"

namespace detr {

// Add the bias [3, n] of the input projections to projected, rows of queries, keys and values, and scale the queries.
inline void add_projection_bias(float* projected, const float* bias, float scale, dim_t query_rows, dim_t key_rows, dim_t n) {
    #pragma omp parallel for
    for (dim_t r = 0; r < query_rows + 2 * key_rows; r++) {
        float* y = projected + r * n;
        const float* b = bias + (r < query_rows ? 0 : r < query_rows + key_rows ? n : 2 * n);
        for (dim_t i = 0; i < n; i++) y[i] += b[i];
        if (r < query_rows)
            for (dim_t i = 0; i < n; i++) y[i] *= scale;
    }
}

// d_bias [3, n] = sums of the rows of queries, keys and values
inline void sum_projected(const float* projected, float* d_bias, dim_t query_rows, dim_t key_rows, dim_t n) {
    sum_rows(projected, d_bias, query_rows, n);
    for (int i = 0; i < 2; i++) sum_rows(projected + (query_rows + i * key_rows) * n, d_bias + (i + 1) * n, key_rows, n);
}

// c = scale * op(a) [m, k] . op(b) [k, n] for each head
inline void head_matmul(char ta, char tb, dim_t batch, dim_t heads, dim_t m, dim_t n, dim_t k, float scale, const Heads& a,
                        const Heads& b, const Heads& c) {
    #pragma omp parallel for
    for (dim_t i = 0; i < batch * heads; i++) {
        float* out = c.get(i / heads, i % heads);
        sgemm(ta, tb, m, n, k, a.get(i / heads, i % heads), a.row, b.get(i / heads, i % heads), b.row, 0.f, out, c.row);
        if (scale == 1) continue;
        for (dim_t row = 0; row < m; row++)
            for (dim_t column = 0; column < n; column++) out[row * c.row + column] *= scale;
    }
}

// weights [rows, n] = softmax of scores, which then becomes what dropout leaves of the weights
inline void softmax_dropout(float* scores, const bool* mask, dim_t rows_per_mask, const Dropout& dropout, float* weights,
                            dim_t rows, dim_t n) {
    softmax(scores, mask, rows_per_mask, weights, rows, n);
    if (dropout.seed) detr::dropout(weights, dropout, scores, rows * n);
}

// From the gradient d of the dropped weights [rows, n], compute that of the scores, in place, and the dropped weights.
inline void softmax_dropout_backward(float* d, const float* weights, const Dropout& dropout, float* dropped, dim_t rows, dim_t n) {
    if (!dropout.seed) return softmax_backward(d, weights, d, rows, n);
    const DropoutMask drop(dropout);
    #pragma omp parallel for
    for (dim_t row = 0; row < rows; row++) {
        float* line = workspace(0, n);
        for (dim_t i = 0; i < n; i++) {
            line[i] = drop(d[row * n + i], row * n + i);
            dropped[row * n + i] = drop(weights[row * n + i], row * n + i);
        }
        softmax_backward_row(line, weights + row * n, d + row * n, n);
    }
}

}  // namespace detr

# include "attention_steps.h"  // spaced: see code.py
