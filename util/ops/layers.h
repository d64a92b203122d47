// ReLU, max pooling, softmax and dropout.
#pragma once
# include "common.h"  // spaced: see code.py

namespace detr {

inline void relu(const float* x, float* y, dim_t n) {
    #pragma omp parallel for simd
    for (dim_t i = 0; i < n; i++) y[i] = std::max(x[i], 0.f);
}

// dx = dy if y > 0, else 0
inline void relu_backward(const float* dy, const float* y, float* dx, dim_t n) {
    #pragma omp parallel for simd
    for (dim_t i = 0; i < n; i++) dx[i] = y[i] > 0 ? dy[i] : 0;
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

// y [rows, n] = softmax of x [rows, n] + mask_bias [rows / rows_per_mask, n] or null; -1e30 masks to exactly 0
inline void softmax(const float* x, const float* mask_bias, dim_t rows_per_mask, float* y, dim_t rows, dim_t n) {
    #pragma omp parallel for
    for (dim_t row = 0; row < rows; row++) {
        const float *in = x + row * n, *bias = mask_bias ? mask_bias + row / rows_per_mask * n : nullptr;
        float *out = y + row * n, row_max = -3e38f, sum = 0;
        if (bias) {
            for (dim_t i = 0; i < n; i++) row_max = std::max(row_max, in[i] + bias[i]);
            for (dim_t i = 0; i < n; i++) { out[i] = fast_exp(in[i] + bias[i] - row_max); sum += out[i]; }
        } else {
            for (dim_t i = 0; i < n; i++) row_max = std::max(row_max, in[i]);
            for (dim_t i = 0; i < n; i++) { out[i] = fast_exp(in[i] - row_max); sum += out[i]; }
        }
        float scale = 1 / sum;
        for (dim_t i = 0; i < n; i++) out[i] *= scale;
    }
}

inline void softmax_backward(const float* dy, const float* y, float* dx, dim_t rows, dim_t n) {
    #pragma omp parallel for
    for (dim_t row = 0; row < rows; row++) {
        const float *d = dy + row * n, *s = y + row * n;
        float sum = 0;
        for (dim_t i = 0; i < n; i++) sum += d[i] * s[i];
        for (dim_t i = 0; i < n; i++) dx[row * n + i] = s[i] * (d[i] - sum);
    }
}

// ---- dropout

// y [n] = x / (1 - p), or 0 with probability p, by a hash of index and seed; seed: two floats in [0, 1)
inline void dropout(const float* x, const float* seed, double p, float* y, dim_t n) {
    uint32_t a = (uint32_t)(seed[0] * 16777216) << 8, b = (uint32_t)(seed[1] * 16777216) << 8, threshold = p * 4294967296.;
    float scale = 1 / (1 - p);
    #pragma omp parallel for
    for (dim_t i = 0; i < n; i++) y[i] = hash32(hash32((uint32_t)i + a) + b) < threshold ? 0 : x[i] * scale;
}

}  // namespace detr
