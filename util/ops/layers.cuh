// ReLU, max pooling, softmax, transposing and dropout with CUDA.
#pragma once
# include "cuda.cuh"  // spaced: see code.py

namespace detr {

static __global__ void relu_element(const float* x, float* y, dim_t n) {
    const dim_t i = thread_index();
    if (i < n) y[i] = x[i] < 0 ? 0 : x[i];  // NaN stays
}

inline void relu(const float* x, float* y, dim_t n) { launch(relu_element, blocks(n), THREADS, x, y, n); }

static __global__ void relu_backward_element(const float* dy, const float* y, float* dx, dim_t n, float scale) {
    const dim_t i = thread_index();
    if (i < n) dx[i] = y[i] > 0 ? dy[i] * scale : 0;
}

// dx = scale * dy if y > 0, else 0
inline void relu_backward(const float* dy, const float* y, float* dx, dim_t n, float scale = 1) {
    launch(relu_backward_element, blocks(n), THREADS, dy, y, dx, n, scale);
}

// ---- stacking, of all pieces in one launch

// Copy between pieces [outer, inner] and an array x [outer, count, inner].
template <bool to_pieces>
static __global__ void copy_pieces(Pieces pieces, float* x, dim_t inner, dim_t size) {
    const dim_t i = thread_index();
    if (i >= size) return;
    float& piece = pieces.x[i / inner % pieces.count][i / inner / pieces.count * inner + i % inner];
    if (to_pieces) piece = x[i];
    else x[i] = piece;
}

// y [outer, count, inner] from the pieces [outer, inner]
inline void stack(const Pieces& pieces, float* y, dim_t outer, dim_t inner) {
    const dim_t size = outer * pieces.count * inner;
    launch(copy_pieces<false>, blocks(size), THREADS, pieces, y, inner, size);
}

// The inverse: the pieces [outer, inner] from x [outer, count, inner]
inline void unbind(const float* x, const Pieces& pieces, dim_t outer, dim_t inner) {
    const dim_t size = outer * pieces.count * inner;
    launch(copy_pieces<true>, blocks(size), THREADS, pieces, (float*)x, inner, size);
}

// ---- max pooling, 3x3, stride 2, padding 1

struct Window {  // of an output: rows [top, bottom] and columns [left, right] of an image [h, w]
    dim_t top, bottom, left, right;
    __device__ Window(dim_t row, dim_t column, dim_t h, dim_t w)
        : top(row ? 2 * row - 1 : 0), bottom(2 * row + 1 < h ? 2 * row + 1 : h - 1),
          left(column ? 2 * column - 1 : 0), right(2 * column + 1 < w ? 2 * column + 1 : w - 1) {}
};

static __global__ void max_pool_output(const float* x, float* y, dim_t h, dim_t w, dim_t size) {
    const dim_t o = thread_index(), oh = (h + 1) / 2, ow = (w + 1) / 2;
    if (o >= size) return;
    const Window window(o / ow % oh, o % ow, h, w);
    x += o / (oh * ow) * h * w;
    float largest = x[window.top * w + window.left];
    for (dim_t i = window.top; i <= window.bottom; i++)
        for (dim_t j = window.left; j <= window.right; j++) largest = Max()(x[i * w + j], largest);
    y[o] = largest;
}

// y [images, (h + 1) / 2, (w + 1) / 2] from x [images, h, w]
inline void max_pool(const float* x, float* y, dim_t images, dim_t h, dim_t w) {
    const dim_t size = images * ((h + 1) / 2) * ((w + 1) / 2);
    launch(max_pool_output, blocks(size), THREADS, x, y, h, w, size);
}

// One thread per input: add the dy of each window of which it is the first maximum.
static __global__ void max_pool_backward_input(const float* dy, const float* x, const float* y, float* dx, dim_t h, dim_t w,
                                               dim_t size) {
    const dim_t index = thread_index(), oh = (h + 1) / 2, ow = (w + 1) / 2;
    if (index >= size) return;
    const dim_t image = index / (h * w), row = index / w % h, column = index % w;
    x += image * h * w;
    float sum = 0;
    for (dim_t r = row / 2; r <= (row + 1) / 2 && r < oh; r++)
        for (dim_t c = column / 2; c <= (column + 1) / 2 && c < ow; c++) {
            const Window window(r, c, h, w);
            const dim_t o = (image * oh + r) * ow + c;
            if (x[row * w + column] != y[o]) continue;
            bool is_first = true;
            for (dim_t i = window.top; i <= row && is_first; i++)
                for (dim_t j = window.left; j <= window.right; j++) {
                    if (i == row && j == column) break;
                    if (x[i * w + j] == y[o]) is_first = false;
                }
            if (is_first) sum += dy[o];
        }
    dx[index] = sum;
}

inline void max_pool_backward(const float* dy, const float* x, const float* y, float* dx, dim_t images, dim_t h, dim_t w) {
    launch(max_pool_backward_input, blocks(images * h * w), THREADS, dy, x, y, dx, h, w, images * h * w);
}

// ---- softmax: one block per row

constexpr float MASKED = -1e30f;  // its exp is 0

// y [rows, n] = softmax of x [rows, n], and what dropout leaves of it: dropped, null without, or x.
// mask: bool [rows / rows_per_mask, n] or null; true = ignore, at least one false per row
static __global__ void softmax_row(const float* x, const bool* mask, dim_t rows_per_mask, Dropout dropout, float* y,
                                   float* dropped, dim_t n) {
    const dim_t start = blockIdx.x * n;
    x += start;
    y += start;
    if (mask) mask += blockIdx.x / rows_per_mask * n;
    float row_max = -3e38f, sum = 0;
    for (dim_t i = threadIdx.x; i < n; i += THREADS) row_max = Max()(row_max, mask && mask[i] ? MASKED : x[i]);
    row_max = block_reduce(row_max, Max());
    for (dim_t i = threadIdx.x; i < n; i += THREADS) {
        y[i] = expf((mask && mask[i] ? MASKED : x[i]) - row_max);
        sum += y[i];
    }
    const float scale = 1 / block_reduce(sum, Sum());
    for (dim_t i = threadIdx.x; i < n; i += THREADS) {
        y[i] *= scale;
        if (dropped) dropped[start + i] = DropoutMask(dropout)(y[i], start + i);
    }
}

// dx [rows, n] from the gradient dy of the softmax y, or if dropped is not null, from that of what dropout leaves of y, which is
// computed again. dx may be dy.
static __global__ void softmax_backward_row(const float* dy, const float* y, Dropout dropout, float* dx, float* dropped, dim_t n) {
    const dim_t start = blockIdx.x * n;
    float sum = 0;
    for (dim_t i = start + threadIdx.x; i < start + n; i += THREADS)
        sum += (dropped ? DropoutMask(dropout)(dy[i], i) : dy[i]) * y[i];
    sum = block_reduce(sum, Sum());
    for (dim_t i = start + threadIdx.x; i < start + n; i += THREADS) {
        dx[i] = y[i] * ((dropped ? DropoutMask(dropout)(dy[i], i) : dy[i]) - sum);
        if (dropped) dropped[i] = DropoutMask(dropout)(y[i], i);
    }
}

inline void softmax(const float* x, const bool* mask, dim_t rows_per_mask, float* y, dim_t rows, dim_t n) {
    launch(softmax_row, (unsigned)rows, THREADS, x, mask, rows_per_mask, NO_DROPOUT, y, nullptr, n);
}

inline void softmax_backward(const float* dy, const float* y, float* dx, dim_t rows, dim_t n) {
    launch(softmax_backward_row, (unsigned)rows, THREADS, dy, y, NO_DROPOUT, dx, nullptr, n);
}

// ---- transpose, through tiles in shared memory so that reads and writes are coalesced; TILE x TILE_ROWS threads per tile

constexpr int TILE = 32, TILE_ROWS = 8;

// y [batch, n, m] from x [batch, m, n]; blockIdx: (tile in n, tile in m, index in the batch)
static __global__ void transpose_tile(const float* x, float* y, dim_t m, dim_t n) {
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

inline void transpose(const float* x, float* y, dim_t batch, dim_t m, dim_t n) {
    const dim3 tiles((n + TILE - 1) / TILE, (m + TILE - 1) / TILE, batch);
    launch(transpose_tile, tiles, dim3(TILE, TILE_ROWS), x, y, m, n);
}

// ---- dropout

static __global__ void dropout_element(const float* x, Dropout dropout, float* y, dim_t n) {
    const dim_t i = thread_index();
    if (i < n) y[i] = DropoutMask(dropout)(x[i], i);
}

inline void dropout(const float* x, const Dropout& dropout, float* y, dim_t n) {
    launch(dropout_element, blocks(n), THREADS, x, dropout, y, n);
}

}  // namespace detr
