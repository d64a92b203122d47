// LayerNorm and BatchNorm with CUDA.
#pragma once
# include "cuda.cuh"  // spaced: see code.py

namespace detr {

// ---- LayerNorm: a warp per row, ROWS rows per block

constexpr int ROWS = 8;
constexpr int ROW_BLOCKS = 32;  // partial sums of each column's gradient

inline dim3 row_blocks(dim_t rows) { return dim3((unsigned)((rows + ROWS - 1) / ROWS)); }

// Compute mean and 1 / standard deviation of a row x [n].
static __device__ void row_moments(const float* x, float eps, dim_t n, float* mean, float* scale) {
    float sum = 0, squares = 0;
    for (dim_t i = threadIdx.x; i < n; i += 32) sum += x[i];
    const float m = warp_reduce(sum, Sum()) / n;
    for (dim_t i = threadIdx.x; i < n; i += 32) squares += (x[i] - m) * (x[i] - m);
    *mean = m;
    *scale = 1 / sqrtf(warp_reduce(squares, Sum()) / n + eps);
}

static __global__ void layer_norm_row(const float* x, const float* f, Dropout dropout, const float* w, const float* b, float eps,
                                      float* sum, float* y, dim_t rows, dim_t n) {
    const dim_t row = (dim_t)blockIdx.x * ROWS + threadIdx.y;
    if (row >= rows) return;
    if (f) {
        for (dim_t i = row * n + threadIdx.x; i < (row + 1) * n; i += 32)
            sum[i] = x[i] + (dropout.seed ? DropoutMask(dropout)(f[i], i) : f[i]);
        x = sum;  // each thread reads what it has written
    }
    x += row * n;
    float mean, scale;
    row_moments(x, eps, n, &mean, &scale);
    for (dim_t i = threadIdx.x; i < n; i += 32) y[row * n + i] = (x[i] - mean) * scale * w[i] + b[i];
}

// LayerNorm, with weight w [n] and bias b [n], over the rows of x [rows, n] or, if f is not null, of sum = x + dropout(f)
inline void layer_norm(const float* x, const float* f, const Dropout& dropout, const float* w, const float* b, float eps,
                       float* sum, float* y, dim_t rows, dim_t n) {
    launch(layer_norm_row, row_blocks(rows), dim3(32, ROWS), x, f, dropout, w, b, eps, sum, y, rows, n);
}

// moments [rows, 2]: mean and 1 / standard deviation
static __global__ void layer_norm_backward_row(const float* dy, const float* x, const float* w, float eps, Dropout dropout,
                                               float* dx, float* df, float* moments, dim_t rows, dim_t n) {
    const dim_t row = (dim_t)blockIdx.x * ROWS + threadIdx.y;
    if (row >= rows) return;
    x += row * n;
    dy += row * n;
    float mean, scale, sum = 0, product = 0;
    row_moments(x, eps, n, &mean, &scale);
    for (dim_t i = threadIdx.x; i < n; i += 32) {
        sum += dy[i] * w[i];
        product += dy[i] * w[i] * (x[i] - mean) * scale;
    }
    sum = warp_reduce(sum, Sum()) / n;
    product = warp_reduce(product, Sum()) / n;
    for (dim_t i = threadIdx.x; i < n; i += 32) {
        const float d = scale * (dy[i] * w[i] - sum - (x[i] - mean) * scale * product);
        dx[row * n + i] = d;
        if (df) df[row * n + i] = DropoutMask(dropout)(d, row * n + i);
    }
    if (threadIdx.x == 0) {
        moments[2 * row] = mean;
        moments[2 * row + 1] = scale;
    }
}

// Sum over every ROW_BLOCKS-th group of rows: sums [ROW_BLOCKS, 2, n] of dy * normalized x and of dy
static __global__ void layer_norm_backward_columns(const float* dy, const float* x, const float* moments, float* sums, dim_t rows,
                                                   dim_t n) {
    __shared__ float products[ROWS][32], plain[ROWS][32];
    const dim_t i = (dim_t)blockIdx.x * 32 + threadIdx.x;
    float product = 0, sum = 0;
    for (dim_t row = (dim_t)blockIdx.y * ROWS + threadIdx.y; i < n && row < rows; row += ROW_BLOCKS * ROWS) {
        product += dy[row * n + i] * (x[row * n + i] - moments[2 * row]) * moments[2 * row + 1];
        sum += dy[row * n + i];
    }
    products[threadIdx.y][threadIdx.x] = product;
    plain[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y || i >= n) return;
    for (int k = 1; k < ROWS; k++) {
        product += products[k][threadIdx.x];
        sum += plain[k][threadIdx.x];
    }
    sums[(dim_t)blockIdx.y * 2 * n + i] = product;
    sums[(dim_t)blockIdx.y * 2 * n + n + i] = sum;
}

static __global__ void layer_norm_backward_sum(const float* sums, float* dw, float* db, dim_t n) {
    const dim_t i = thread_index();
    if (i >= n) return;
    float product = 0, sum = 0;
    for (int k = 0; k < ROW_BLOCKS; k++) {
        product += sums[2 * k * n + i];
        sum += sums[2 * k * n + n + i];
    }
    dw[i] = product;
    db[i] = sum;
}

// df: null, or the gradient of f. Otherwise that is dx, without dropout.
inline void layer_norm_backward(const float* dy, const float* x, const float* w, float eps, const Dropout& dropout, float* dx,
                                float* df, float* dw, float* db, dim_t rows, dim_t n) {
    Scratch scratch((2 * rows + 2 * ROW_BLOCKS * n) * sizeof(float));
    float *moments = scratch.floats(), *sums = moments + 2 * rows;
    launch(layer_norm_backward_row, row_blocks(rows), dim3(32, ROWS), dy, x, w, eps, dropout, dx, df, moments, rows,
           n);
    launch(layer_norm_backward_columns, dim3((n + 31) / 32, ROW_BLOCKS), dim3(32, ROWS), dy, x, moments, sums, rows, n);
    launch(layer_norm_backward_sum, blocks(n), THREADS, sums, dw, db, n);
}

// ---- BatchNorm in training: a block per channel

// Return the sum of f(offset) over a channel of [batch, channels, n], to each thread of its block.
template <class F> __device__ inline float channel_sum(dim_t batch, dim_t channels, dim_t n, F f) {
    float sum = 0;
    for (dim_t k = threadIdx.x; k < batch * n; k += THREADS) sum += f((k / n * channels + blockIdx.x) * n + k % n);
    return block_reduce(sum, Sum());
}

struct Value {
    const float* x;
    __device__ float operator()(dim_t i) const { return x[i]; }
};
struct SquaredDeviation {
    const float* x;
    float mean;
    __device__ float operator()(dim_t i) const { return (x[i] - mean) * (x[i] - mean); }
};
struct MaskedGradient {  // dy where there was no ReLU or it let the value pass
    const float *dy, *y;
    __device__ float operator()(dim_t i) const { return !y || y[i] > 0 ? dy[i] : 0; }
};
struct WeightedDeviation {
    MaskedGradient d;
    const float* x;
    float mean;
    __device__ float operator()(dim_t i) const { return d(i) * (x[i] - mean); }
};

static __global__ void batch_norm_channel(const float* x, const float* w, const float* b, float eps, const float* residual,
                                          bool relu, float* y, float* means, float* variances, dim_t batch, dim_t channels,
                                          dim_t n) {
    const dim_t c = blockIdx.x;
    const float mean = channel_sum(batch, channels, n, Value{x}) / (batch * n);
    const float variance = channel_sum(batch, channels, n, SquaredDeviation{x, mean}) / (batch * n);
    const float scale = w[c] / sqrtf(variance + eps), shift = b[c] - mean * scale;
    for (dim_t k = threadIdx.x; k < batch * n; k += THREADS) {
        const dim_t i = (k / n * channels + c) * n + k % n;
        const float value = x[i] * scale + shift + (residual ? residual[i] : 0);
        y[i] = relu && value < 0 ? 0 : value;
    }
    if (threadIdx.x == 0) {
        means[c] = mean;
        variances[c] = variance;
    }
}

// x [B, C, n], with weight w, bias b, residual or null, and ReLU; means and variances: of the batch
inline void batch_norm(const float* x, const float* w, const float* b, float eps, const float* residual, bool relu, float* y,
                       float* means, float* variances, dim_t batch, dim_t channels, dim_t n) {
    launch(batch_norm_channel, (unsigned)channels, THREADS, x, w, b, eps, residual, relu, y, means, variances, batch, channels,
           n);
}

static __global__ void batch_norm_backward_channel(const float* dy, const float* x, const float* w, const float* means,
                                                   const float* variances, const float* y, float eps, float* dx, float* dw,
                                                   float* db, float* d_residual, dim_t batch, dim_t channels, dim_t n) {
    const dim_t c = blockIdx.x;
    const MaskedGradient d{dy, y};
    const float mean = means[c], scale = 1 / sqrtf(variances[c] + eps);
    const float sum = channel_sum(batch, channels, n, d);
    const float product = channel_sum(batch, channels, n, WeightedDeviation{d, x, mean});
    const float a = sum / (batch * n), b = product * scale * scale / (batch * n), factor = w[c] * scale;
    for (dim_t k = threadIdx.x; k < batch * n; k += THREADS) {
        const dim_t i = (k / n * channels + c) * n + k % n;
        d_residual[i] = d(i);
        dx[i] = factor * (d(i) - a - (x[i] - mean) * b);
    }
    if (threadIdx.x == 0) {
        db[c] = sum;
        dw[c] = product * scale;
    }
}

// y: output of the forward, null if there was no ReLU
inline void batch_norm_backward(const float* dy, const float* x, const float* w, const float* means, const float* variances,
                                const float* y, float eps, float* dx, float* dw, float* db, float* d_residual,
                                dim_t batch, dim_t channels, dim_t n) {
    launch(batch_norm_backward_channel, (unsigned)channels, THREADS, dy, x, w, means, variances, y, eps, dx, dw, db, d_residual,
           batch, channels, n);
}

}  // namespace detr
