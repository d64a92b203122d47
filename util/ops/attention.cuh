// Multi-head attention with CUDA.
#pragma once
# include "gemm.cuh"  // spaced: see code.py
# include "layers.cuh"

namespace detr {

static __global__ void add_projection_bias_element(float* projected, const float* bias, float scale, dim_t queries, dim_t keys,
                                                   dim_t n) {
    const dim_t i = thread_index();
    if (i >= queries + 2 * keys) return;
    const int part = i < queries ? 0 : i < queries + keys ? 1 : 2;
    const float y = projected[i] + bias[part * n + i % n];
    projected[i] = part ? y : y * scale;
}

// Add the bias [3, n] of the input projections to projected, rows of queries, keys and values, and scale the queries.
inline void add_projection_bias(float* projected, const float* bias, float scale, dim_t query_rows, dim_t key_rows, dim_t n) {
    launch(add_projection_bias_element, blocks((query_rows + 2 * key_rows) * n), THREADS, projected, bias, scale, query_rows * n,
           key_rows * n, n);
}

// d_bias [3, n] = sums of the rows of queries, keys and values
inline void sum_projected(const float* projected, float* d_bias, dim_t query_rows, dim_t key_rows, dim_t n) {
    launch(sum_columns, dim3((n + 31) / 32, 3), dim3(32, 32), projected, d_bias, query_rows, key_rows, n);
}

// c = scale * op(a) [m, k] . op(b) [k, n] for each head: one call per sample of the batch, because the heads of all samples are
// not at equal distances
inline void head_matmul(char ta, char tb, dim_t batch, dim_t heads, dim_t m, dim_t n, dim_t k, float scale, const Heads& a,
                        const Heads& b, const Heads& c) {
    if (!m || !n) return;
    const float zero = 0;
    for (dim_t i = 0; i < batch; i++)
        checkCudaErrors(cublasGemmStridedBatchedEx(
            jittor::cublas_handle, tb == 'N' ? CUBLAS_OP_N : CUBLAS_OP_T, ta == 'N' ? CUBLAS_OP_N : CUBLAS_OP_T, n, m, k, &scale,
            b.get(i, 0), CUDA_R_32F, b.row, b.head, a.get(i, 0), CUDA_R_32F, a.row, a.head, &zero,
            c.get(i, 0), CUDA_R_32F, c.row, c.head, heads, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

// weights [rows, n] = softmax of scores, which then becomes what dropout leaves of the weights
inline void softmax_dropout(float* scores, const bool* mask, dim_t rows_per_mask, const Dropout& dropout, float* weights,
                            dim_t rows, dim_t n) {
    launch(softmax_row, (unsigned)rows, THREADS, scores, mask, rows_per_mask, dropout, weights, dropout.seed ? scores : nullptr, n);
}

// From the gradient d of the dropped weights [rows, n], compute that of the scores, in place, and the dropped weights.
inline void softmax_dropout_backward(float* d, const float* weights, const Dropout& dropout, float* dropped, dim_t rows, dim_t n) {
    launch(softmax_backward_row, (unsigned)rows, THREADS, d, weights, dropout, d, dropout.seed ? dropped : nullptr, n);
}

}  // namespace detr

# include "attention_steps.h"  // spaced: see code.py
