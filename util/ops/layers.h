// ReLU, max pooling, softmax and dropout.
#pragma once
# include "common.h"  // spaced: see code.py

namespace detr {

inline void relu(const float* x, float* y, dim_t n) {
    #pragma omp parallel for simd
    for (dim_t i = 0; i < n; i++) y[i] = std::max(x[i], 0.f);
}

// dx = scale * dy if y > 0, else 0
inline void relu_backward(const float* dy, const float* y, float* dx, dim_t n, float scale = 1) {
    #pragma omp parallel for simd
    for (dim_t i = 0; i < n; i++) dx[i] = y[i] > 0 ? dy[i] * scale : 0;
}

// ---- stacking

// y [outer, count, inner] from the pieces [outer, inner]
inline void stack(const Pieces& pieces, float* y, dim_t outer, dim_t inner) {
    #pragma omp parallel for
    for (dim_t o = 0; o < outer; o++)
        for (int i = 0; i < pieces.count; i++)
            std::copy_n(pieces.x[i] + o * inner, inner, y + (o * pieces.count + i) * inner);
}

// The inverse: the pieces [outer, inner] from x [outer, count, inner]
inline void unbind(const float* x, const Pieces& pieces, dim_t outer, dim_t inner) {
    #pragma omp parallel for
    for (dim_t o = 0; o < outer; o++)
        for (int i = 0; i < pieces.count; i++)
            std::copy_n(x + (o * pieces.count + i) * inner, inner, pieces.x[i] + o * inner);
}

// ---- max pooling, 3x3, stride 2, padding 1

// y [images, (h + 1) / 2, (w + 1) / 2] from x [images, h, w]
inline void max_pool(const float* x, float* y, dim_t images, dim_t h, dim_t w) {
    const dim_t oh = (h + 1) / 2, ow = (w + 1) / 2;
    #pragma omp parallel for
    for (dim_t c = 0; c < images; c++) {
        float* line = workspace(0, w + 2);
        for (dim_t row = 0; row < oh; row++) {
            const float *middle = x + (c * h + 2 * row) * w, *above = row ? middle - w : middle;
            const float *below = 2 * row + 1 < h ? middle + w : middle;
            float* out = y + (c * oh + row) * ow;
            for (dim_t i = 0; i < w; i++) line[i + 1] = std::max(std::max(above[i], middle[i]), below[i]);
            line[0] = line[1];
            line[w + 1] = line[w];
            for (dim_t j = 0; j < ow; j++) out[j] = std::max(std::max(line[2 * j], line[2 * j + 1]), line[2 * j + 2]);
        }
    }
}

// Route each dy to the first maximum in its window.
inline void max_pool_backward(const float* dy, const float* x, const float* y, float* dx, dim_t images, dim_t h, dim_t w) {
    const dim_t oh = (h + 1) / 2, ow = (w + 1) / 2;
    #pragma omp parallel for
    for (dim_t c = 0; c < images; c++) {
        const float* in = x + c * h * w;
        float* out = dx + c * h * w;
        std::memset(out, 0, h * w * sizeof(float));
        for (dim_t row = 0; row < oh; row++)
            for (dim_t column = 0; column < ow; column++) {
                const dim_t o = (c * oh + row) * ow + column, bottom = std::min(2 * row + 1, h - 1);
                dim_t i = std::max<dim_t>(2 * row - 1, 0), left = std::max<dim_t>(2 * column - 1, 0), j = left;
                while (in[i * w + j] != y[o])
                    if (j++ == std::min(2 * column + 1, w - 1)) { j = left; if (i++ == bottom) break; }
                if (i <= bottom) out[i * w + j] += dy[o];
            }
    }
}

// ---- softmax

// Vectorizable exp for x <= 0: relative error 1e-7 + 5e-8 |x|, 0 below -88
inline float fast_exp(float x) {
    x = std::max(x, -100.f);
    float n = (float)(int)(x * 1.44269504f - .5f), r = x - n * .693359375f + n * 2.12194440e-4f;
    float p = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r
               + 1.6666665459e-1f) * r + 5.0000001201e-1f;
    int32_t bits = std::max((int32_t)n + 127, 0) << 23;
    float scale;
    std::memcpy(&scale, &bits, 4);
    return (p * r * r + r + 1) * scale;
}

constexpr float MASKED = -1e30f;  // its exp is 0; not -inf, because -Ofast assumes finite math

// y [rows, n] = softmax of x [rows, n]. mask: bool [rows / rows_per_mask, n] or null; true = ignore, at least one false per row
inline void softmax(const float* x, const bool* mask, dim_t rows_per_mask, float* y, dim_t rows, dim_t n) {
    #pragma omp parallel for
    for (dim_t row = 0; row < rows; row++) {
        const float* in = x + row * n;
        float *out = y + row * n, row_max = -3e38f, sum = 0;
        if (mask) {
            const bool* ignored = mask + row / rows_per_mask * n;
            float* line = workspace(0, n);
            for (dim_t i = 0; i < n; i++) line[i] = ignored[i] ? MASKED : in[i];
            in = line;
        }
        for (dim_t i = 0; i < n; i++) row_max = std::max(row_max, in[i]);
        for (dim_t i = 0; i < n; i++) { out[i] = fast_exp(in[i] - row_max); sum += out[i]; }
        float scale = 1 / sum;
        for (dim_t i = 0; i < n; i++) out[i] *= scale;
    }
}

// dx [n] from dy and the softmax y; dx may be dy
inline void softmax_backward_row(const float* dy, const float* y, float* dx, dim_t n) {
    float sum = 0;
    for (dim_t i = 0; i < n; i++) sum += dy[i] * y[i];
    #pragma omp simd
    for (dim_t i = 0; i < n; i++) dx[i] = y[i] * (dy[i] - sum);
}

inline void softmax_backward(const float* dy, const float* y, float* dx, dim_t rows, dim_t n) {
    #pragma omp parallel for
    for (dim_t row = 0; row < rows; row++) softmax_backward_row(dy + row * n, y + row * n, dx + row * n, n);
}

// ---- dropout

inline void dropout(const float* x, const Dropout& dropout, float* y, dim_t n) {
    const DropoutMask drop(dropout);
    #pragma omp parallel for
    for (dim_t i = 0; i < n; i++) y[i] = drop(x[i], i);
}

}  // namespace detr
