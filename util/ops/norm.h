// LayerNorm and BatchNorm.
#pragma once
# include "common.h"  // spaced: see code.py

namespace detr {

// Sum f(i) over i < n in 16 float32 lanes: vectorizable, and more accurate than a single accumulator.
template <class F> inline double lane_sum(dim_t n, F f) {
    float lanes[16] = {0};
    dim_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int k = 0; k < 16; k++) lanes[k] += f(i + k);
    double sum = 0;
    for (; i < n; i++) sum += f(i);
    for (int k = 0; k < 16; k++) sum += lanes[k];
    return sum;
}

inline void moments(const float* x, dim_t n, float* mean, float* variance) {
    const float m = lane_sum(n, [&](dim_t i) { return x[i]; }) / n;
    *mean = m;
    *variance = lane_sum(n, [&](dim_t i) { return (x[i] - m) * (x[i] - m); }) / n;
}

// sum = x + dropout(f), for n elements from `start`
inline void add_dropped(const float* x, const float* f, const Dropout& dropout, dim_t start, float* sum, dim_t n) {
    if (dropout.seed) {
        const DropoutMask drop(dropout);
        // A loop of its own, so that the product is rounded, as in `dropout`; the compiler would fuse it with the addition.
        for (dim_t i = 0; i < n; i++) sum[i] = drop(f[i], start + i);
        f = sum;
    }
    #pragma omp simd
    for (dim_t i = 0; i < n; i++) sum[i] = x[i] + f[i];
}

// LayerNorm, with weight w [n] and bias b [n], over the rows of x [rows, n] or, if f is not null, of sum = x + dropout(f)
inline void layer_norm(const float* x, const float* f, const Dropout& dropout, const float* w, const float* b, float eps,
                       float* sum, float* y, dim_t rows, dim_t n) {
    #pragma omp parallel for
    for (dim_t r = 0; r < rows; r++) {
        if (f) add_dropped(x + r * n, f + r * n, dropout, r * n, sum + r * n, n);
        const float* in = (f ? sum : x) + r * n;
        float *out = y + r * n, mean, variance;
        moments(in, n, &mean, &variance);
        const float scale = 1 / std::sqrt(variance + eps), shift = -mean * scale;
        for (dim_t i = 0; i < n; i++) out[i] = (in[i] * scale + shift) * w[i] + b[i];
    }
}

// The block size is fixed, so that dw and db do not depend on the thread count.
// df: null, or the gradient of f. Otherwise that is dx, without dropout.
inline void layer_norm_backward(const float* dy, const float* x, const float* w, float eps, const Dropout& dropout, float* dx,
                                float* df, float* dw, float* db, dim_t rows, dim_t n) {
    const dim_t block = 32, blocks = ceil_div(rows, block);
    std::vector<float> sums(blocks * 2 * n, 0.f);
    #pragma omp parallel for
    for (dim_t job = 0; job < blocks; job++) {
        float *sw = &sums[job * 2 * n], *sb = sw + n;
        for (dim_t r = job * block; r < std::min(rows, (job + 1) * block); r++) {
            const float *in = x + r * n, *d = dy + r * n;
            float *out = dx + r * n, mean, variance;
            moments(in, n, &mean, &variance);
            const float scale = 1 / std::sqrt(variance + eps), shift = -mean * scale;
            const float a = lane_sum(n, [&](dim_t i) { return d[i] * w[i]; }) / n;
            const float c = lane_sum(n, [&](dim_t i) { return d[i] * w[i] * (in[i] * scale + shift); }) / n;
            for (dim_t i = 0; i < n; i++) {
                const float z = in[i] * scale + shift;
                sw[i] += d[i] * z;
                sb[i] += d[i];
                out[i] = scale * (d[i] * w[i] - a - z * c);
            }
            if (!df) continue;
            const DropoutMask drop(dropout);
            for (dim_t i = 0; i < n; i++) df[r * n + i] = drop(out[i], r * n + i);
        }
    }
    for (dim_t i = 0; i < n; i++) dw[i] = db[i] = 0;
    for (dim_t job = 0; job < blocks; job++)
        for (dim_t i = 0; i < n; i++) { dw[i] += sums[job * 2 * n + i]; db[i] += sums[job * 2 * n + n + i]; }
}

// BatchNorm in training over x [B, C, n], with weight w, bias b, residual or null, and ReLU; means and variances: of the batch
inline void batch_norm(const float* x, const float* w, const float* b, float eps, const float* residual, bool relu, float* y,
                       float* means, float* variances, dim_t batch, dim_t channels, dim_t n) {
    std::vector<float> scales(channels), shifts(channels);
    const Epilogue epilogue{scales.data(), shifts.data(), residual, relu};
    #pragma omp parallel for
    for (dim_t c = 0; c < channels; c++) {
        auto channel_mean = [&](auto f) {
            double sum = 0;
            for (dim_t i = 0; i < batch; i++) {
                const float* in = x + (i * channels + c) * n;
                sum += lane_sum(n, [&](dim_t k) { return f(in[k]); });
            }
            return sum / (batch * n);
        };
        const float mean = means[c] = channel_mean([](float v) { return v; });
        variances[c] = channel_mean([=](float v) { return (v - mean) * (v - mean); });
        scales[c] = w[c] / std::sqrt(variances[c] + eps);
        shifts[c] = b[c] - mean * scales[c];
        for (dim_t i = 0; i < batch; i++) {
            const dim_t offset = (i * channels + c) * n;
            std::memcpy(y + offset, x + offset, n * sizeof(float));
            epilogue.apply(y + offset, c, offset, n);
        }
    }
}

// y: output of the forward, null if there was no ReLU
inline void batch_norm_backward(const float* dy, const float* x, const float* w, const float* means, const float* variances,
                                const float* y, float eps, float* dx, float* dw, float* db, float* d_residual,
                                dim_t batch, dim_t channels, dim_t n) {
    #pragma omp parallel for
    for (dim_t c = 0; c < channels; c++) {
        const float mean = means[c], scale = 1 / std::sqrt(variances[c] + eps);
        double sum = 0, product = 0;
        for (dim_t i = 0; i < batch; i++) {
            const dim_t offset = (i * channels + c) * n;
            const float* in = x + offset;
            float* out = d_residual + offset;
            if (y) { for (dim_t k = 0; k < n; k++) out[k] = y[offset + k] > 0 ? dy[offset + k] : 0; }
            else { std::memcpy(out, dy + offset, n * sizeof(float)); }
            sum += lane_sum(n, [&](dim_t k) { return out[k]; });
            product += lane_sum(n, [&](dim_t k) { return out[k] * (in[k] - mean); });
        }
        db[c] = sum;
        dw[c] = product * scale;
        const float a = sum / (batch * n), b = product * scale * scale / (batch * n), factor = w[c] * scale;
        for (dim_t i = 0; i < batch; i++) {
            const dim_t offset = (i * channels + c) * n;
            for (dim_t k = 0; k < n; k++) dx[offset + k] = factor * (d_residual[offset + k] - a - (x[offset + k] - mean) * b);
        }
    }
}

}  // namespace detr
