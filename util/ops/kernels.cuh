// CUDA kernels of the operators in __init__.py. Sizes are run-time numbers, so images of a new size need no new kernel.
// tests/test_cuda_kernels.py runs them on the CPU, thread by thread.
#pragma once
#include <cstdint>

namespace detr {

using num = int64_t;

// ---- softmax: a block for each row

constexpr int ROW_THREADS = 128;

struct Max { __device__ float operator()(float a, float b) const { return a > b ? a : b; } };
struct Sum { __device__ float operator()(float a, float b) const { return a + b; } };

// What the block's threads have, combined, in each of them
template <class Combine> __device__ float over_block(float x, Combine combine) {
    __shared__ float warps[ROW_THREADS / 32];
    for (int step = 16; step; step /= 2) x = combine(x, __shfl_xor_sync(0xffffffffu, x, step));
    __syncthreads();  // all have read what the last call left
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = warps[0];
    for (int warp = 1; warp < ROW_THREADS / 32; warp++) x = combine(x, warps[warp]);
    return x;
}

// y [rows, n] from x [rows, n]. penalty [rows / neighbours, n], or null: is added to x
static __global__ void softmax(const float* x, const float* penalty, num neighbours, float* y, num n) {
    num row = blockIdx.x;
    x += row * n;
    y += row * n;
    if (penalty) penalty += row / neighbours * n;
    float top = -3e38f, sum = 0;
    for (num i = threadIdx.x; i < n; i += ROW_THREADS) top = Max()(top, penalty ? x[i] + penalty[i] : x[i]);
    top = over_block(top, Max());
    for (num i = threadIdx.x; i < n; i += ROW_THREADS) {
        y[i] = expf((penalty ? x[i] + penalty[i] : x[i]) - top);
        sum += y[i];
    }
    float scale = 1 / over_block(sum, Sum());
    for (num i = threadIdx.x; i < n; i += ROW_THREADS) y[i] *= scale;
}

// dx [rows, n] from d [rows, n] and the softmax y [rows, n]
static __global__ void softmax_backward(const float* d, const float* y, float* dx, num n) {
    num row = blockIdx.x;
    d += row * n;
    y += row * n;
    dx += row * n;
    float sum = 0;
    for (num i = threadIdx.x; i < n; i += ROW_THREADS) sum += d[i] * y[i];
    sum = over_block(sum, Sum());
    for (num i = threadIdx.x; i < n; i += ROW_THREADS) dx[i] = y[i] * (d[i] - sum);
}

// ---- transpose: a block of TILE x TILE_ROWS threads for each tile, so that reads and writes are both of whole rows

constexpr int TILE = 32, TILE_ROWS = 8;

// y [batch, n, m] from x [batch, m, n]; blockIdx: tile of n, tile of m, number in the batch
static __global__ void transpose(const float* x, float* y, num m, num n) {
    __shared__ float tile[TILE][TILE + 1];  // one more column, so that a column's numbers are in different banks
    x += blockIdx.z * m * n;
    y += blockIdx.z * m * n;
    num top = (num)blockIdx.y * TILE, left = (num)blockIdx.x * TILE;
    for (int i = threadIdx.y; i < TILE; i += TILE_ROWS)
        if (top + i < m && left + threadIdx.x < n) tile[i][threadIdx.x] = x[(top + i) * n + left + threadIdx.x];
    __syncthreads();
    for (int i = threadIdx.y; i < TILE; i += TILE_ROWS)
        if (left + i < n && top + threadIdx.x < m) y[(left + i) * m + top + threadIdx.x] = tile[threadIdx.x][i];
}

// ---- the optimizer

// sums, one of each block, whose sum is that of the squares of x [n]. Several, because one float32 sum of millions loses digits.
static __global__ void square_sums(const float* x, num n, float* sums) {
    float sum = 0;
    for (num i = (num)blockIdx.x * ROW_THREADS + threadIdx.x; i < n; i += (num)gridDim.x * ROW_THREADS) sum += x[i] * x[i];
    sum = over_block(sum, Sum());
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

constexpr int ELEMENT_THREADS = 256;

// A step of AdamW, as detr::adamw in kernels.h, with a thread for each weight
static __global__ void adamw(const float* p, const float* v, const float* m, const float* g, const float* scale, const float* s,
                             float* p2, float* v2, float* m2, num n) {
    num i = (num)blockIdx.x * ELEMENT_THREADS + threadIdx.x;
    if (i >= n) return;
    const float keep = s[0], b0 = s[1], c0 = s[2], b1 = s[3], c1 = s[4], rate = s[5], root = s[6], eps = s[7];
    float d = g[i] * *scale, a = b0 * m[i] + c0 * d, q = b1 * v[i] + c1 * d * d;
    m2[i] = a;
    v2[i] = q;
    p2[i] = p[i] * keep - rate * a / (sqrtf(q) * root + eps);
}

}  // namespace detr
