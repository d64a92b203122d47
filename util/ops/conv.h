// Convolutions as matrix products: 1x1, and general by im2col. In gradients, `scale` [co] is the epilogue's, or null.
#pragma once
# include "gemm.h"  // spaced: see code.py

namespace detr {

// Return out [rows, n] = scale [rows] * w [rows, n]; out may be w.
inline const float* scale_rows(const float* w, const float* scale, float* out, dim_t rows, dim_t n) {
    #pragma omp parallel for
    for (dim_t r = 0; r < rows; r++) {
        #pragma omp simd
        for (dim_t i = 0; i < n; i++) out[r * n + i] = scale[r] * w[r * n + i];
    }
    return out;
}

// Return a block size near `target` for which the number of blocks in the batch is a multiple of the thread count.
inline dim_t block_size(dim_t n, dim_t target, dim_t batch) {
    dim_t blocks = ceil_div(n, target);
    while (batch * blocks % omp_get_max_threads() && blocks < n) blocks++;
    return ceil_div(n, blocks);
}

// ---- 1x1 convolution

namespace pointwise {

// y [batch, co, n] = op(w) . x [batch, ci, n], blocked over columns so that the epilogue runs on cached data
inline void multiply(char tw, const float* w, const float* x, const Epilogue& epilogue, float* y, dim_t batch, dim_t ci, dim_t co,
                     dim_t n) {
    dim_t width = block_size(n, std::min<dim_t>(std::max<dim_t>(262144 / co, 192), 1024), batch);
    width = ceil_div(width, 16) * 16;
    dim_t blocks = ceil_div(n, width);
    #pragma omp parallel for schedule(dynamic)
    for (dim_t job = 0; job < batch * blocks; job++) {
        dim_t b = job / blocks, start = job % blocks * width, m = std::min(width, n - start);
        float* out = y + b * co * n + start;
        sgemm(tw, 'N', co, m, ci, w, tw == 'N' ? ci : co, x + b * ci * n + start, n, 0.f, out, n);
        for (dim_t c = 0; c < co; c++) epilogue.apply(out + c * n, c, (b * co + c) * n + start, m);
    }
}

inline void conv(const float* w, const float* x, const Epilogue& epilogue, float* y, const ConvShape& k) {
    multiply('N', w, x, epilogue, y, k.batch, k.ci, k.co, k.h * k.w);
}

inline void conv_backward_input(const float* w, const float* scale, const float* dy, float* dx, const ConvShape& k) {
    if (scale) w = scale_rows(w, scale, workspace(3, k.co * k.ci), k.co, k.ci);
    multiply('T', w, dy, NO_EPILOGUE, dx, k.batch, k.co, k.ci, k.h * k.w);
}

// dw [co, ci] = sum of dy . x^T over the batch
inline void conv_backward_weight(const float* dy, const float* scale, const float* x, float* dw, const ConvShape& k) {
    dim_t n = k.h * k.w;
    for (dim_t b = 0; b < k.batch; b++)
        sgemm('N', 'T', k.co, k.ci, n, dy + b * k.co * n, n, x + b * k.ci * n, n, b > 0, dw, k.ci);
    if (scale) scale_rows(dw, scale, dw, k.co, k.ci);
}

}  // namespace pointwise

// ---- General convolution: im2col and a matrix product

namespace im2col {

// Range of output columns for which tap kx is inside the image
inline dim_t begin(const ConvShape& k, dim_t kx) { return std::max<dim_t>(0, ceil_div(k.padding - kx * k.dilation, k.stride)); }
inline dim_t end(const ConvShape& k, dim_t kx) { return std::min(k.ow(), ceil_div(k.w + k.padding - kx * k.dilation, k.stride)); }

// Return the number of output rows whose buffer takes about 4 MB.
inline dim_t rows_per_job(const ConvShape& k, dim_t channels) {
    return std::min(k.oh(), std::max<dim_t>(1, std::max<dim_t>(1048576 / (channels * k.kh * k.kw), 384) / k.ow()));
}

// Unfold one channel x [h, w] into col [kh * kw, (last - first) * ow], for output rows [first, last).
inline void unfold(const float* x, const ConvShape& k, dim_t first, dim_t last, float* col) {
    dim_t ow = k.ow();
    for (dim_t ky = 0; ky < k.kh; ky++)
        for (dim_t kx = 0; kx < k.kw; kx++)
            for (dim_t row = first; row < last; row++, col += ow) {
                dim_t y = row * k.stride - k.padding + ky * k.dilation, from = begin(k, kx), to = end(k, kx);
                if (y < 0 || y >= k.h || from >= to) { std::memset(col, 0, ow * sizeof(float)); continue; }
                const float* line = x + y * k.w - k.padding + kx * k.dilation;
                for (dim_t j = 0; j < from; j++) col[j] = 0;
                if (k.stride == 2) { for (dim_t j = from; j < to; j++) col[j] = line[2 * j]; }
                else { for (dim_t j = from; j < to; j++) col[j] = line[j * k.stride]; }
                for (dim_t j = to; j < ow; j++) col[j] = 0;
            }
}

// Add col to x, the transpose of unfold.
inline void fold(const float* col, const ConvShape& k, dim_t first, dim_t last, float* x) {
    dim_t ow = k.ow();
    for (dim_t ky = 0; ky < k.kh; ky++)
        for (dim_t kx = 0; kx < k.kw; kx++)
            for (dim_t row = first; row < last; row++, col += ow) {
                dim_t y = row * k.stride - k.padding + ky * k.dilation;
                if (y < 0 || y >= k.h) continue;
                float* line = x + y * k.w - k.padding + kx * k.dilation;
                for (dim_t j = begin(k, kx); j < end(k, kx); j++) line[j * k.stride] += col[j];
            }
}

inline void conv(const float* w, const float* x, const Epilogue& epilogue, float* y, const ConvShape& k) {
    dim_t size = k.h * k.w, n = k.oh() * k.ow(), taps = k.kh * k.kw;
    dim_t rows = block_size(k.oh(), rows_per_job(k, k.ci), k.batch), blocks = ceil_div(k.oh(), rows);
    #pragma omp parallel for schedule(dynamic)
    for (dim_t job = 0; job < k.batch * blocks; job++) {
        dim_t b = job / blocks, first = job % blocks * rows, last = std::min(k.oh(), first + rows), m = (last - first) * k.ow();
        float *col = workspace(0, k.ci * taps * m), *out = y + b * k.co * n + first * k.ow();
        for (dim_t c = 0; c < k.ci; c++) unfold(x + (b * k.ci + c) * size, k, first, last, col + c * taps * m);
        sgemm('N', 'N', k.co, m, k.ci * taps, w, k.ci * taps, col, m, 0.f, out, n);
        for (dim_t c = 0; c < k.co; c++) epilogue.apply(out + c * n, c, (b * k.co + c) * n + first * k.ow(), m);
    }
}

// Jobs own disjoint channels of dx.
inline void conv_backward_input(const float* w, const float* scale, const float* dy, float* dx, const ConvShape& k) {
    dim_t size = k.h * k.w, n = k.oh() * k.ow(), taps = k.kh * k.kw;
    dim_t group = std::min<dim_t>(k.ci, 64), groups = ceil_div(k.ci, group), rows = rows_per_job(k, group);
    if (scale) w = scale_rows(w, scale, workspace(3, k.co * k.ci * taps), k.co, k.ci * taps);
    #pragma omp parallel for schedule(dynamic)
    for (dim_t job = 0; job < k.batch * groups; job++) {
        dim_t b = job / groups, start = job % groups * group, count = std::min(group, k.ci - start);
        float* out = dx + (b * k.ci + start) * size;
        std::memset(out, 0, count * size * sizeof(float));
        for (dim_t first = 0; first < k.oh(); first += rows) {
            dim_t last = std::min(k.oh(), first + rows), m = (last - first) * k.ow();
            float* col = workspace(0, count * taps * m);
            sgemm('T', 'N', count * taps, m, k.co, w + start * taps, k.ci * taps, dy + b * k.co * n + first * k.ow(), n, 0.f, col,
                  m);
            for (dim_t c = 0; c < count; c++) fold(col + c * taps * m, k, first, last, out + c * size);
        }
    }
}

// Jobs own disjoint input channels of dw.
inline void conv_backward_weight(const float* dy, const float* scale, const float* x, float* dw, const ConvShape& k) {
    dim_t size = k.h * k.w, n = k.oh() * k.ow(), taps = k.kh * k.kw;
    dim_t group = std::min<dim_t>(k.ci, 64), groups = ceil_div(k.ci, group), rows = rows_per_job(k, group);
    #pragma omp parallel for schedule(dynamic)
    for (dim_t job = 0; job < groups; job++) {
        dim_t start = job * group, count = std::min(group, k.ci - start);
        for (dim_t b = 0; b < k.batch; b++)
            for (dim_t first = 0; first < k.oh(); first += rows) {
                dim_t last = std::min(k.oh(), first + rows), m = (last - first) * k.ow();
                float* col = workspace(0, count * taps * m);
                for (dim_t c = 0; c < count; c++)
                    unfold(x + (b * k.ci + start + c) * size, k, first, last, col + c * taps * m);
                sgemm('N', 'T', k.co, count * taps, m, dy + b * k.co * n + first * k.ow(), n, col, m, b + first > 0,
                      dw + start * taps, k.ci * taps);
            }
    }
    if (scale) scale_rows(dw, scale, dw, k.co, k.ci * taps);
}

}  // namespace im2col

}  // namespace detr
