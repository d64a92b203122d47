// CUDA kernels. Sizes are runtime arguments, so new image sizes need no recompilation. tests/test_cuda_kernels.py emulates them
// on the CPU, thread by thread.
#pragma once
#include <cstdint>

namespace detr {

using dim_t = int64_t;

// ---- softmax: one block per row

constexpr int ROW_THREADS = 128;

struct Max { __device__ float operator()(float a, float b) const { return a > b ? a : b; } };
struct Sum { __device__ float operator()(float a, float b) const { return a + b; } };

// Reduce x over the block; every thread gets the result.
template <class Combine> __device__ float block_reduce(float x, Combine combine) {
    __shared__ float warps[ROW_THREADS / 32];
    for (int step = 16; step; step /= 2) x = combine(x, __shfl_xor_sync(0xffffffffu, x, step));
    __syncthreads();  // wait until all threads have read the previous call's values
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = warps[0];
    for (int warp = 1; warp < ROW_THREADS / 32; warp++) x = combine(x, warps[warp]);
    return x;
}

// y [rows, n] = softmax of x [rows, n] + mask_bias [rows / rows_per_mask, n] or null
static __global__ void softmax(const float* x, const float* mask_bias, dim_t rows_per_mask, float* y, dim_t n) {
    dim_t row = blockIdx.x;
    x += row * n;
    y += row * n;
    if (mask_bias) mask_bias += row / rows_per_mask * n;
    float row_max = -3e38f, sum = 0;
    for (dim_t i = threadIdx.x; i < n; i += ROW_THREADS) row_max = Max()(row_max, mask_bias ? x[i] + mask_bias[i] : x[i]);
    row_max = block_reduce(row_max, Max());
    for (dim_t i = threadIdx.x; i < n; i += ROW_THREADS) {
        y[i] = expf((mask_bias ? x[i] + mask_bias[i] : x[i]) - row_max);
        sum += y[i];
    }
    float scale = 1 / block_reduce(sum, Sum());
    for (dim_t i = threadIdx.x; i < n; i += ROW_THREADS) y[i] *= scale;
}

// dx [rows, n] from dy and the softmax y
static __global__ void softmax_backward(const float* dy, const float* y, float* dx, dim_t n) {
    dim_t row = blockIdx.x;
    dy += row * n;
    y += row * n;
    dx += row * n;
    float sum = 0;
    for (dim_t i = threadIdx.x; i < n; i += ROW_THREADS) sum += dy[i] * y[i];
    sum = block_reduce(sum, Sum());
    for (dim_t i = threadIdx.x; i < n; i += ROW_THREADS) dx[i] = y[i] * (dy[i] - sum);
}

// ---- transpose, through tiles in shared memory so that reads and writes are coalesced; TILE x TILE_ROWS threads per tile

constexpr int TILE = 32, TILE_ROWS = 8;

// y [batch, n, m] from x [batch, m, n]; blockIdx: (tile in n, tile in m, index in the batch)
static __global__ void transpose(const float* x, float* y, dim_t m, dim_t n) {
    __shared__ float tile[TILE][TILE + 1];  // the extra column avoids bank conflicts
    x += blockIdx.z * m * n;
    y += blockIdx.z * m * n;
    dim_t top = (dim_t)blockIdx.y * TILE, left = (dim_t)blockIdx.x * TILE;
    for (int i = threadIdx.y; i < TILE; i += TILE_ROWS)
        if (top + i < m && left + threadIdx.x < n) tile[i][threadIdx.x] = x[(top + i) * n + left + threadIdx.x];
    __syncthreads();
    for (int i = threadIdx.y; i < TILE; i += TILE_ROWS)
        if (left + i < n && top + threadIdx.x < m) y[(left + i) * m + top + threadIdx.x] = tile[threadIdx.x][i];
}

// ---- optimizer

// Write one partial sum of squares per block; a single float32 accumulator would lose precision.
static __global__ void square_sums(const float* x, dim_t n, float* sums) {
    float sum = 0;
    for (dim_t i = (dim_t)blockIdx.x * ROW_THREADS + threadIdx.x; i < n; i += (dim_t)gridDim.x * ROW_THREADS) sum += x[i] * x[i];
    sum = block_reduce(sum, Sum());
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

constexpr int ELEMENT_THREADS = 256;

// AdamW step, one thread per element; arguments as detr::adamw in optimizer.h
static __global__ void adamw(const float* p, const float* v, const float* m, const float* g, const float* scale, const float* s,
                             float* p2, float* v2, float* m2, dim_t n) {
    dim_t i = (dim_t)blockIdx.x * ELEMENT_THREADS + threadIdx.x;
    if (i >= n) return;
    const float decay = s[0], b0 = s[1], c0 = s[2], b1 = s[3], c1 = s[4], step_size = s[5], root = s[6], eps = s[7];
    float d = g[i] * *scale, a = b0 * m[i] + c0 * d, q = b1 * v[i] + c1 * d * d;
    m2[i] = a;
    v2[i] = q;
    p2[i] = p[i] * decay - step_size * a / (sqrtf(q) * root + eps);
}

}  // namespace detr
