// Matrix products by cuBLAS, in float32.
#pragma once
# include "layers.cuh"  // spaced: see code.py

namespace detr {

// c [m, n] = op(a) [m, k] . op(b) [k, n] for each matrix of a batch, all contiguous. cuBLAS has columns where we have rows, so it
// computes c^T = op(b)^T . op(a)^T.
inline void batched_matmul(char ta, char tb, dim_t batch, dim_t m, dim_t n, dim_t k, const float* a, const float* b, float* c) {
    if (!batch || !m || !n) return;
    const float one = 1, zero = 0;
    checkCudaErrors(cublasGemmStridedBatchedEx(
        jittor::cublas_handle, tb == 'N' ? CUBLAS_OP_N : CUBLAS_OP_T, ta == 'N' ? CUBLAS_OP_N : CUBLAS_OP_T, n, m, k, &one,
        b, CUDA_R_32F, tb == 'N' ? n : k, k * n, a, CUDA_R_32F, ta == 'N' ? k : m, m * k, &zero,
        c, CUDA_R_32F, n, m * n, batch, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

inline void matmul(char ta, char tb, dim_t m, dim_t n, dim_t k, const float* a, const float* b, float* c) {
    if (!m || !n) return;
    const float one = 1, zero = 0;
    checkCudaErrors(cublasGemmEx(
        jittor::cublas_handle, tb == 'N' ? CUBLAS_OP_N : CUBLAS_OP_T, ta == 'N' ? CUBLAS_OP_N : CUBLAS_OP_T, n, m, k, &one,
        b, CUDA_R_32F, tb == 'N' ? n : k, a, CUDA_R_32F, ta == 'N' ? k : m, &zero,
        c, CUDA_R_32F, n, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

static __global__ void linear_element(float* y, const float* bias, bool relu, Dropout dropout, dim_t size, dim_t n) {
    const dim_t i = thread_index();
    if (i >= size) return;
    float value = bias ? y[i] + bias[i % n] : y[i];
    if (relu && value < 0) value = 0;
    y[i] = dropout.seed ? DropoutMask(dropout)(value, i) : value;
}

// y [rows, n] = x [rows, k] . w^T [k, n] + bias [n] or null, then ReLU, then dropout
inline void linear(const float* x, const float* w, const float* bias, bool relu, const Dropout& dropout, float* y, dim_t rows,
                   dim_t n, dim_t k) {
    matmul('N', 'T', rows, n, k, x, w, y);
    if (bias || relu) launch(linear_element, blocks(rows * n), THREADS, y, bias, relu, dropout, rows * n, n);
}

// A block per 32 columns of a part: the first has first_rows, those that follow have next_rows.
static __global__ void sum_columns(const float* x, float* out, dim_t first_rows, dim_t next_rows, dim_t n) {
    __shared__ float sums[32][33];
    const dim_t i = (dim_t)blockIdx.x * 32 + threadIdx.x, part = blockIdx.y, rows = part ? next_rows : first_rows;
    if (part) x += (first_rows + (part - 1) * next_rows) * n;
    out += part * n;
    float sum = 0;
    for (dim_t row = threadIdx.y; i < n && row < rows; row += 32) sum += x[row * n + i];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y || i >= n) return;
    for (int k = 1; k < 32; k++) sum += sums[k][threadIdx.x];
    out[i] = sum;
}

// out [n] = sum of the rows of x [rows, n]
inline void sum_rows(const float* x, float* out, dim_t rows, dim_t n) {
    launch(sum_columns, dim3((n + 31) / 32), dim3(32, 32), x, out, rows, 0, n);
}

}  // namespace detr

# include "linear.h"  // spaced: see code.py
