// 3x3 convolution, stride 1, padding 1: Winograd's F(4x4, 3x3) (arXiv 1509.09308). A 4x4 output tile needs a 6x6 input tile;
// 36 matrix products between the transforms take a quarter of the multiplications of the direct convolution.
#pragma once
# include "gemm.h"  // spaced: see code.py

namespace detr { namespace winograd {

constexpr int M = 4, T = 6;  // output and input tile size

// ---- 1-D transforms, with interpolation points 0, +-a, +-b and infinity. Over 256 channels the error is 1.4e-6 of the largest
// output (3.7e-6 with the usual a = 1, b = 2; 7e-7 for the direct convolution in float32).

constexpr float a = .75f, b = 1.5f, a2 = a * a, b2 = b * b, fa = .5f / (a2 * (a2 - b2)), fb = .5f / (b2 * (b2 - a2));

inline void data_transform(const float* d, float* v) {
    float even = d[4] - b2 * d[2], odd = a * (d[3] - b2 * d[1]);
    v[0] = a2 * b2 * d[0] - (a2 + b2) * d[2] + d[4];
    v[1] = even + odd;
    v[2] = even - odd;
    even = d[4] - a2 * d[2], odd = b * (d[3] - a2 * d[1]);
    v[3] = even + odd;
    v[4] = even - odd;
    v[5] = a2 * b2 * d[1] - (a2 + b2) * d[3] + d[5];
}

inline void filter_transform(const float* g, float* u) {
    float even = fa * (g[0] + a2 * g[2]), odd = fa * a * g[1];
    u[0] = 1 / (a2 * b2) * g[0];
    u[1] = even + odd;
    u[2] = even - odd;
    even = fb * (g[0] + b2 * g[2]), odd = fb * b * g[1];
    u[3] = even + odd;
    u[4] = even - odd;
    u[5] = g[2];
}

inline void output_transform(const float* v, float* y) {
    float sa = v[1] + v[2], da = v[1] - v[2], sb = v[3] + v[4], db = v[3] - v[4];
    y[0] = v[0] + sa + sb;
    y[1] = a * da + b * db;
    y[2] = a2 * sa + b2 * sb;
    y[3] = a2 * a * da + b2 * b * db + v[5];
}

// The transposes of output_transform and filter_transform, for gradients

inline void output_transform_t(const float* y, float* v) {
    float even = y[0] + a2 * y[2], odd = a * (y[1] + a2 * y[3]);
    v[0] = y[0];
    v[1] = even + odd;
    v[2] = even - odd;
    even = y[0] + b2 * y[2], odd = b * (y[1] + b2 * y[3]);
    v[3] = even + odd;
    v[4] = even - odd;
    v[5] = y[3];
}

inline void filter_transform_t(const float* u, float* g) {
    float sa = fa * (u[1] + u[2]), da = fa * (u[1] - u[2]), sb = fb * (u[3] + u[4]), db = fb * (u[3] - u[4]);
    g[0] = 1 / (a2 * b2) * u[0] + sa + sb;
    g[1] = a * da + b * db;
    g[2] = a2 * sa + b2 * sb + u[5];
}

// ---- Transforms of arrays

// Apply f to n columns: read `from` values at in[offset(k) + i], write `to` values at out[k * stride + i].
template <int from, int to, void f(const float*, float*), class Offset>
inline void transform(const float* in, Offset offset, float* out, dim_t stride, dim_t n) {
    #pragma GCC ivdep
    for (dim_t i = 0; i < n; i++) {
        float input[from], output[to];
        for (int k = 0; k < from; k++) input[k] = in[offset(k) + i];
        f(input, output);
        for (int k = 0; k < to; k++) out[k * stride + i] = output[k];
    }
}

// Deinterleave a line with stride M, out[q, j] = line[M * j + q]: `padding` zeros, the n values of x, and zeros to M * count.
inline void deinterleave(const float* x, dim_t n, dim_t padding, float* line, float* out, dim_t count) {
    std::memset(line, 0, M * count * sizeof(float));
    std::memcpy(line + padding, x, n * sizeof(float));
    for (dim_t j = 0; j < count; j++)
        for (int q = 0; q < M; q++) out[q * count + j] = line[M * j + q];
}

// u [T * T, co, ci] from w [co, ci, 3, 3] times scale [co] or null; flip: rotate w by 180 degrees
inline void transform_filters(const float* w, const float* scale, float* u, dim_t co, dim_t ci, bool flip) {
    #pragma omp parallel for
    for (dim_t o = 0; o < co; o++) {
        float *g = workspace(0, (9 + 3 * T) * ci), *s = g + 9 * ci;  // g [3, 3, ci], s [T, 3, ci]
        const float factor = scale ? scale[o] : 1;
        for (int k = 0; k < 9; k++)
            for (dim_t i = 0; i < ci; i++) g[k * ci + i] = factor * w[(o * ci + i) * 9 + (flip ? 8 - k : k)];
        transform<3, T, filter_transform>(g, [=](int k) { return 3 * k * ci; }, s, 3 * ci, 3 * ci);
        for (int k = 0; k < T; k++)
            transform<3, T, filter_transform>(s + 3 * k * ci, [=](int l) { return l * ci; }, u + (T * k * co + o) * ci, co * ci,
                                              ci);
    }
}

// v [T * T, channels, tiles] from x [B, channels, h, w], for tile rows [first, last) of all images. f, size: data_transform, T
// for inputs; output_transform_t, M for gradients. The threads of the caller's parallel region share the channels.
// s: workspace of (T + 1) * M * (tw + 1) floats per thread
template <int size, void f(const float*, float*)>
inline void transform_tiles(const float* x, dim_t channels, dim_t h, dim_t w, dim_t first, dim_t last, float* s, float* v) {
    constexpr int border = size > M;  // pixels of the neighboring tiles on each side
    const dim_t th = ceil_div(h, M), tw = ceil_div(w, M), n = (last - first) * tw, count = tw + border, stride = M * count;
    #pragma omp for
    for (dim_t c = 0; c < channels; c++)
        for (dim_t row = first; row < last; row++) {
            const float* image = x + (row / th * channels + c) * h * w;
            float* out = v + c * n + (row - first) * tw;
            for (int k = 0; k < size; k++) {
                const dim_t y = row % th * M - border + k;
                deinterleave(image + y * w, y >= 0 && y < h ? w : 0, border, s + T * stride, s + k * stride, count);
            }
            transform<size, T, f>(s, [=](int k) { return k * stride; }, s, stride, stride);
            for (int k = 0; k < T; k++)
                transform<size, T, f>(s + k * stride, [=](int l) { return l % M * count + l / M; }, out + T * k * channels * n,
                                      channels * n, tw);
        }
}

// M output rows at y, with stride M * tw, from T * T rows of tw values with stride `stride`. s: workspace of T * M * tw floats
inline void transform_outputs(const float* v, dim_t stride, dim_t tw, float* s, float* y) {
    const dim_t size = M * tw;
    for (int k = 0; k < T; k++)
        transform<T, M, output_transform>(v + T * k * stride, [=](int l) { return l * stride; }, s + k * size, tw, tw);
    transform<T, M, output_transform>(s, [=](int k) { return k * size; }, s, size, size);
    for (int k = 0; k < M; k++)
        for (dim_t j = 0; j < tw; j++)
            for (int q = 0; q < M; q++) y[k * size + M * j + q] = s[k * size + q * tw + j];
}

// dw [co, ci, 3, 3] from du [T * T, co, ci], times scale [co] or null
inline void transform_filter_gradients(const float* du, const float* scale, float* dw, dim_t co, dim_t ci) {
    constexpr int block = 64;
    #pragma omp parallel for
    for (dim_t o = 0; o < co; o++)
        for (dim_t i = 0; i < ci; i += block) {
            float s[3 * T * block], g[9 * block];  // s [3, T, block], g [3, 3, block]
            const float* in = du + o * ci + i;
            const dim_t n = std::min<dim_t>(block, ci - i);
            for (int l = 0; l < T; l++)
                transform<T, 3, filter_transform_t>(in + l * co * ci, [=](int k) { return T * k * co * ci; }, s + l * block,
                                                    T * block, n);
            for (int k = 0; k < 3; k++)
                transform<T, 3, filter_transform_t>(s + T * k * block, [](int l) { return l * block; }, g + 3 * k * block, block,
                                                    n);
            const float factor = scale ? scale[o] : 1;
            for (dim_t j = 0; j < n; j++)
                for (int k = 0; k < 9; k++) dw[(o * ci + i + j) * 9 + k] = factor * g[k * block + j];
        }
}

// ---- Convolution and gradients; `scale` [co] is the epilogue's, or null

// y [B, co, h, w] from x [B, ci, h, w] and u [T * T, co, ci], or [T * T, ci, co] if tu is 'T'. The tile rows of all images are
// processed in chunks of about 8 MB.
inline void convolve(char tu, const float* u, const float* x, const Epilogue& epilogue, float* y, dim_t batch, dim_t ci, dim_t co,
                    dim_t h, dim_t w) {
    const dim_t th = ceil_div(h, M), tw = ceil_div(w, M), total_rows = batch * th, row_floats = T * T * (ci + co) * tw;
    const dim_t rows = ceil_div(total_rows, ceil_div(total_rows * row_floats, 2097152));
    float *v = workspace(0, T * T * ci * rows * tw), *p = workspace(1, T * T * co * rows * tw);
    #pragma omp parallel
    for (dim_t first = 0; first < total_rows; first += rows) {
        const dim_t last = std::min(total_rows, first + rows), n = (last - first) * tw;
        float* s = workspace(2, 2 * T * M * (tw + 1));
        transform_tiles<T, data_transform>(x, ci, h, w, first, last, s, v);
        #pragma omp for
        for (int f = 0; f < T * T; f++)
            sgemm(tu, 'N', co, n, ci, u + f * co * ci, tu == 'N' ? ci : co, v + f * ci * n, n, 0.f, p + f * co * n, n);
        #pragma omp for
        for (dim_t c = 0; c < co; c++)
            for (dim_t row = first; row < last; row++) {
                float* lines = s + T * M * tw;
                transform_outputs(p + c * n + (row - first) * tw, co * n, tw, s, lines);
                for (dim_t k = 0; k < M && row % th * M + k < h; k++) {
                    const dim_t offset = ((row / th * co + c) * h + row % th * M + k) * w;
                    epilogue.apply(lines + M * tw * k, c, offset, w);
                    std::memcpy(y + offset, lines + M * tw * k, w * sizeof(float));
                }
            }
    }
}

inline void conv(const float* w, const float* x, const Epilogue& epilogue, float* y, const ConvShape& k) {
    float* u = workspace(3, T * T * k.co * k.ci);
    transform_filters(w, nullptr, u, k.co, k.ci, false);
    convolve('N', u, x, epilogue, y, k.batch, k.ci, k.co, k.h, k.w);
}

inline void conv_backward_input(const float* w, const float* scale, const float* dy, float* dx, const ConvShape& k) {
    float* u = workspace(3, T * T * k.co * k.ci);
    transform_filters(w, scale, u, k.co, k.ci, true);
    convolve('T', u, dy, NO_EPILOGUE, dx, k.batch, k.co, k.ci, k.h, k.w);
}

inline void conv_backward_weight(const float* dy, const float* scale, const float* x, float* dw, const ConvShape& k) {
    const dim_t tw = ceil_div(k.w, M), total_rows = k.batch * ceil_div(k.h, M), size = k.co * k.ci;
    const dim_t row_floats = T * T * (k.ci + k.co) * tw, rows = ceil_div(total_rows, ceil_div(total_rows * row_floats, 4194304));
    float *v = workspace(0, T * T * k.ci * rows * tw), *d = workspace(1, T * T * k.co * rows * tw);
    float* du = workspace(3, T * T * size);
    #pragma omp parallel
    for (dim_t first = 0; first < total_rows; first += rows) {
        const dim_t last = std::min(total_rows, first + rows), n = (last - first) * tw;
        float* s = workspace(2, 2 * T * M * (tw + 1));
        transform_tiles<T, data_transform>(x, k.ci, k.h, k.w, first, last, s, v);
        transform_tiles<M, output_transform_t>(dy, k.co, k.h, k.w, first, last, s, d);
        #pragma omp for
        for (int f = 0; f < T * T; f++)
            sgemm('N', 'T', k.co, k.ci, n, d + f * k.co * n, n, v + f * k.ci * n, n, first > 0, du + f * size, k.ci);
    }
    transform_filter_gradients(du, scale, dw, k.co, k.ci);
}

}}  // namespace detr::winograd
