// What models/ops/__init__.py computes on the CPU. Arrays are float32, row-major and contiguous; images are [B, C, H, W].
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#include <omp.h>

extern "C" int dnnl_sgemm(char transa, char transb, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
                          int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc);

namespace detr {

typedef int64_t num;

// c [m, n] = beta * c + op(a) [m, k] . op(b) [k, n]; on one thread where the caller's region is parallel
inline void sgemm(char ta, char tb, num m, num n, num k, const float* a, num lda, const float* b, num ldb, float beta,
                  float* c, num ldc) {
    dnnl_sgemm(ta, tb, m, n, k, 1.f, a, lda, b, ldb, beta, c, ldc);
}

// Memory that a thread keeps for its next call.
inline float* scratch(int slot, num size) {
    static thread_local std::vector<float> buffers[4];
    if ((num)buffers[slot].size() < size) buffers[slot].resize(size);
    return buffers[slot].data();
}

inline num ceil_div(num a, num b) { return (a + b - 1) / b; }  // a > -b

// What follows a convolution, each where it is not null or wanted: y = scale * y + bias, of one number per channel, then
// y += residual, y = max(y, 0)
struct After {
    const float *scale, *bias, *residual;
    bool relu;

    // n results y of channel c, whose residual is at `place`
    void finish(float* y, num c, num place, num n) const {
        const float a = scale ? scale[c] : 1, b = bias ? bias[c] : 0, *r = residual ? residual + place : nullptr;
        if (r && relu) { for (num i = 0; i < n; i++) y[i] = std::max(a * y[i] + b + r[i], 0.f); }
        else if (r) { for (num i = 0; i < n; i++) y[i] = a * y[i] + b + r[i]; }
        else if (relu) { for (num i = 0; i < n; i++) y[i] = std::max(a * y[i] + b, 0.f); }
        else if (scale || bias) { for (num i = 0; i < n; i++) y[i] = a * y[i] + b; }
    }
};

// The size of the parts into which n is cut: about `wanted`, and such that the parts of a batch suit the threads.
inline num part_size(num n, num wanted, num batch) {
    num parts = ceil_div(n, wanted);
    while (batch * parts % omp_get_max_threads() && parts < n) parts++;
    return ceil_div(n, parts);
}

// 1x1 convolution: y [B, co, n] = op(w) . x [B, ci, n]. Blocks of columns whose result is finished while it is in the cache.
inline void conv1x1(char tw, const float* w, const float* x, const After& after, float* y, num batch, num ci, num co, num n) {
    num width = part_size(n, std::min<num>(std::max<num>(262144 / co, 192), 1024), batch);
    width = ceil_div(width, 16) * 16;
    num blocks = ceil_div(n, width);
    #pragma omp parallel for schedule(dynamic)
    for (num job = 0; job < batch * blocks; job++) {
        num b = job / blocks, start = job % blocks * width, m = std::min(width, n - start);
        float* out = y + b * co * n + start;
        sgemm(tw, 'N', co, m, ci, w, tw == 'N' ? ci : co, x + b * ci * n + start, n, 0.f, out, n);
        for (num c = 0; c < co; c++) after.finish(out + c * n, c, (b * co + c) * n + start, m);
    }
}

// Its weight gradient: dw [co, ci] = sum over b of dy [co, n] . x [ci, n]^T
inline void conv1x1_weight(const float* dy, const float* x, float* dw, num batch, num ci, num co, num n) {
    for (num b = 0; b < batch; b++)
        sgemm('N', 'T', co, ci, n, dy + b * co * n, n, x + b * ci * n, n, b > 0, dw, ci);
}

// ---- Any convolution, as the matrix product of its weights and the pixels under its window (im2col).

struct Window {  // of a convolution from [ci, h, w] to [co, oh, ow]
    num ci, co, h, w, kh, kw, stride, padding, dilation;
    num oh() const { return (h + 2 * padding - dilation * (kh - 1) - 1) / stride + 1; }
    num ow() const { return (w + 2 * padding - dilation * (kw - 1) - 1) / stride + 1; }
    num taps() const { return kh * kw; }
    // columns of the result for which column kx of the window lies in the image
    num begin(num kx) const { return std::max<num>(0, ceil_div(padding - kx * dilation, stride)); }
    num end(num kx) const { return std::min(ow(), ceil_div(w + padding - kx * dilation, stride)); }
    num rows_per_job(num channels) const {  // rows of the result whose pixels take about 4 MB
        return std::min(oh(), std::max<num>(1, std::max<num>(1048576 / (channels * taps()), 384) / ow()));
    }
};

// One channel x [h, w] under the window, for rows first..last of the result: col [taps, (last - first) * ow]
inline void im2col(const float* x, const Window& k, num first, num last, float* col) {
    num ow = k.ow();
    for (num ky = 0; ky < k.kh; ky++)
        for (num kx = 0; kx < k.kw; kx++)
            for (num row = first; row < last; row++, col += ow) {
                num y = row * k.stride - k.padding + ky * k.dilation, begin = k.begin(kx), end = k.end(kx);
                if (y < 0 || y >= k.h || begin >= end) { std::memset(col, 0, ow * sizeof(float)); continue; }
                const float* line = x + y * k.w - k.padding + kx * k.dilation;
                for (num j = 0; j < begin; j++) col[j] = 0;
                if (k.stride == 2) { for (num j = begin; j < end; j++) col[j] = line[2 * j]; }
                else { for (num j = begin; j < end; j++) col[j] = line[j * k.stride]; }
                for (num j = end; j < ow; j++) col[j] = 0;
            }
}

// The way back of im2col: adds col to x
inline void col2im(const float* col, const Window& k, num first, num last, float* x) {
    num ow = k.ow();
    for (num ky = 0; ky < k.kh; ky++)
        for (num kx = 0; kx < k.kw; kx++)
            for (num row = first; row < last; row++, col += ow) {
                num y = row * k.stride - k.padding + ky * k.dilation;
                if (y < 0 || y >= k.h) continue;
                float* line = x + y * k.w - k.padding + kx * k.dilation;
                for (num j = k.begin(kx); j < k.end(kx); j++) line[j * k.stride] += col[j];
            }
}

inline void conv(const float* w, const float* x, const After& after, float* y, num batch, const Window& k) {
    num n = k.oh() * k.ow(), rows = part_size(k.oh(), k.rows_per_job(k.ci), batch), blocks = ceil_div(k.oh(), rows);
    #pragma omp parallel for schedule(dynamic)
    for (num job = 0; job < batch * blocks; job++) {
        num b = job / blocks, first = job % blocks * rows, last = std::min(k.oh(), first + rows), m = (last - first) * k.ow();
        float *col = scratch(0, k.ci * k.taps() * m), *out = y + b * k.co * n + first * k.ow();
        for (num c = 0; c < k.ci; c++) im2col(x + (b * k.ci + c) * k.h * k.w, k, first, last, col + c * k.taps() * m);
        sgemm('N', 'N', k.co, m, k.ci * k.taps(), w, k.ci * k.taps(), col, m, 0.f, out, n);
        for (num c = 0; c < k.co; c++) after.finish(out + c * n, c, (b * k.co + c) * n + first * k.ow(), m);
    }
}

// dx [B, ci, h, w]; each job has channels of its own
inline void conv_input(const float* w, const float* dy, float* dx, num batch, const Window& k) {
    num n = k.oh() * k.ow(), group = std::min<num>(k.ci, 64), groups = ceil_div(k.ci, group), rows = k.rows_per_job(group);
    #pragma omp parallel for schedule(dynamic)
    for (num job = 0; job < batch * groups; job++) {
        num b = job / groups, start = job % groups * group, count = std::min(group, k.ci - start), size = k.h * k.w;
        float* out = dx + (b * k.ci + start) * size;
        std::memset(out, 0, count * size * sizeof(float));
        for (num first = 0; first < k.oh(); first += rows) {
            num last = std::min(k.oh(), first + rows), m = (last - first) * k.ow();
            float* col = scratch(0, count * k.taps() * m);
            sgemm('T', 'N', count * k.taps(), m, k.co, w + start * k.taps(), k.ci * k.taps(),
                  dy + b * k.co * n + first * k.ow(), n, 0.f, col, m);
            for (num c = 0; c < count; c++) col2im(col + c * k.taps() * m, k, first, last, out + c * size);
        }
    }
}

// dw [co, ci, kh, kw]; each job has input channels of its own
inline void conv_weight(const float* dy, const float* x, float* dw, num batch, const Window& k) {
    num n = k.oh() * k.ow(), group = std::min<num>(k.ci, 64), groups = ceil_div(k.ci, group), rows = k.rows_per_job(group);
    #pragma omp parallel for schedule(dynamic)
    for (num job = 0; job < groups; job++) {
        num start = job * group, count = std::min(group, k.ci - start);
        for (num b = 0; b < batch; b++)
            for (num first = 0; first < k.oh(); first += rows) {
                num last = std::min(k.oh(), first + rows), m = (last - first) * k.ow();
                float* col = scratch(0, count * k.taps() * m);
                for (num c = 0; c < count; c++)
                    im2col(x + (b * k.ci + start + c) * k.h * k.w, k, first, last, col + c * k.taps() * m);
                sgemm('N', 'T', k.co, count * k.taps(), m, dy + b * k.co * n + first * k.ow(), n, col, m, b + first > 0,
                      dw + start * k.taps(), k.ci * k.taps());
            }
    }
}

// ---- 3x3 convolution, stride 1, padding 1: Winograd's F(2x2, 3x3) (arXiv 1509.09308). A tile of 2x2 results comes from 4x4
// pixels; between the transforms stand 16 matrix products, with 2.25 times fewer multiplications than the plain sum.

// u [16, co, ci] of w [co, ci, 3, 3]; flipped: of w turned by 180 degrees, for the way back of gradients
inline void winograd_weights(const float* w, float* u, num co, num ci, bool flipped) {
    #pragma omp parallel for
    for (num o = 0; o < co; o++) {
        float *g = scratch(0, 21 * ci), *t = g + 9 * ci;  // g [3, 3, ci], t [4, 3, ci]
        for (int k = 0; k < 9; k++)
            for (num i = 0; i < ci; i++) g[k * ci + i] = w[(o * ci + i) * 9 + (flipped ? 8 - k : k)];
        for (num i = 0; i < 3 * ci; i++) {
            float a = g[i], b = g[3 * ci + i], c = g[6 * ci + i];
            t[i] = a;
            t[3 * ci + i] = .5f * (a + b + c);
            t[6 * ci + i] = .5f * (a - b + c);
            t[9 * ci + i] = c;
        }
        for (int k = 0; k < 4; k++) {
            const float* row = t + 3 * k * ci;
            float *u0 = u + 4 * k * co * ci + o * ci, *u1 = u0 + co * ci, *u2 = u1 + co * ci, *u3 = u2 + co * ci;
            for (num i = 0; i < ci; i++) {
                float a = row[i], b = row[ci + i], c = row[2 * ci + i];
                u0[i] = a;
                u1[i] = .5f * (a + b + c);
                u2[i] = .5f * (a - b + c);
                u3[i] = c;
            }
        }
    }
}

// One row of tiles of one channel x [h, w]: 16 rows of tw values, `step` apart. line: 4 * (2 * tw + 2) floats
inline void winograd_input(const float* x, num h, num w, num row, num tw, float* line, float* v, num step) {
    num width = 2 * tw + 2;
    const float* r[4];
    static const std::vector<float> zeros(1 << 16, 0.f);
    for (int k = 0; k < 4; k++) {
        num y = 2 * row - 1 + k;
        r[k] = y >= 0 && y < h ? x + y * w : zeros.data();
    }
    float *t0 = line, *t1 = line + width, *t2 = line + 2 * width, *t3 = line + 3 * width;
    t0[0] = t1[0] = t2[0] = t3[0] = 0;
    for (num i = 0; i < w; i++) {
        t0[i + 1] = r[0][i] - r[2][i];
        t1[i + 1] = r[1][i] + r[2][i];
        t2[i + 1] = r[2][i] - r[1][i];
        t3[i + 1] = r[1][i] - r[3][i];
    }
    for (num i = w + 1; i < width; i++) t0[i] = t1[i] = t2[i] = t3[i] = 0;
    for (int k = 0; k < 4; k++) {
        const float* t = line + k * width;
        float *v0 = v + 4 * k * step, *v1 = v0 + step, *v2 = v1 + step, *v3 = v2 + step;
        for (num j = 0; j < tw; j++) {
            float a = t[2 * j], b = t[2 * j + 1], c = t[2 * j + 2], d = t[2 * j + 3];
            v0[j] = a - c;
            v1[j] = b + c;
            v2[j] = c - b;
            v3[j] = b - d;
        }
    }
}

// The same for gradients dy [h, w] of the result: A dy A^T
inline void winograd_gradient(const float* dy, num h, num w, num row, num tw, float* line, float* v, num step) {
    num width = 2 * tw;
    const float* r[2] = {dy + 2 * row * w, dy + (2 * row + 1) * w};
    bool second = 2 * row + 1 < h;
    for (num i = 0; i < w; i++) {
        float a = r[0][i], b = second ? r[1][i] : 0;
        line[i] = a;
        line[width + i] = a + b;
        line[2 * width + i] = a - b;
        line[3 * width + i] = -b;
    }
    if (w < width) for (int k = 0; k < 4; k++) line[k * width + w] = 0;
    for (int k = 0; k < 4; k++) {
        const float* t = line + k * width;
        float *v0 = v + 4 * k * step, *v1 = v0 + step, *v2 = v1 + step, *v3 = v2 + step;
        for (num j = 0; j < tw; j++) {
            float a = t[2 * j], b = t[2 * j + 1];
            v0[j] = a;
            v1[j] = a + b;
            v2[j] = a - b;
            v3[j] = -b;
        }
    }
}

// Back from 16 rows of tw values, `step` apart, to two rows of the result. line: 4 * tw floats
inline void winograd_output(const float* m, num step, num tw, float* line) {
    for (int k = 0; k < 2; k++)
        for (num j = 0; j < tw; j++) {
            float s[4];
            for (int l = 0; l < 4; l++) {
                float a = m[(k * 4 + l) * step + j], b = m[(k * 4 + 4 + l) * step + j], c = m[(k * 4 + 8 + l) * step + j];
                s[l] = k ? a - b - c : a + b + c;
            }
            line[2 * tw * k + 2 * j] = s[0] + s[1] + s[2];
            line[2 * tw * k + 2 * j + 1] = s[1] - s[2] - s[3];
        }
}

// y [B, co, h, w] from x [B, ci, h, w] and u [16, co, ci]; with tu 'T' from u [16, ci, co]
inline void winograd(char tu, const float* u, const float* x, const After& after, float* y, num batch, num ci, num co, num h,
                     num w) {
    num th = (h + 1) / 2, tw = (w + 1) / 2;
    // rows of tiles per job: buffers of about 4 MB
    num rows = part_size(th, std::max<num>(1, std::min<num>(th, 1048576 / (16 * (ci + co) * tw))), batch);
    num chunks = ceil_div(th, rows);
    #pragma omp parallel for schedule(dynamic)
    for (num job = 0; job < batch * chunks; job++) {
        num b = job / chunks, first = job % chunks * rows, last = std::min(th, first + rows), t = (last - first) * tw;
        float *v = scratch(0, 16 * ci * t), *m = scratch(1, 16 * co * t), *line = scratch(2, 8 * tw + 8);
        for (num c = 0; c < ci; c++)
            for (num row = first; row < last; row++)
                winograd_input(x + (b * ci + c) * h * w, h, w, row, tw, line, v + c * t + (row - first) * tw, ci * t);
        for (int f = 0; f < 16; f++)
            sgemm(tu, 'N', co, t, ci, u + f * co * ci, tu == 'N' ? ci : co, v + f * ci * t, t, 0.f, m + f * co * t, t);
        for (num c = 0; c < co; c++)
            for (num row = first; row < last; row++) {
                winograd_output(m + c * t + (row - first) * tw, co * t, tw, line);
                for (num k = 0; k < 2 && 2 * row + k < h; k++) {
                    num place = ((b * co + c) * h + 2 * row + k) * w;
                    after.finish(line + 2 * tw * k, c, place, w);
                    std::memcpy(y + place, line + 2 * tw * k, w * sizeof(float));
                }
            }
    }
}

// Weight gradient dw [co, ci, 3, 3] of x [B, ci, h, w] and dy [B, co, h, w]
inline void winograd_weight(const float* dy, const float* x, float* dw, num batch, num ci, num co, num h, num w) {
    num th = (h + 1) / 2, tw = (w + 1) / 2;
    num rows = std::max<num>(1, std::min<num>(th, 4194304 / (16 * (ci + co) * tw)));
    float *v = scratch(0, 16 * ci * rows * tw), *d = scratch(1, 16 * co * rows * tw), *du = scratch(2, 16 * co * ci);
    #pragma omp parallel
    for (num b = 0; b < batch; b++)
        for (num first = 0; first < th; first += rows) {
            num last = std::min(th, first + rows), t = (last - first) * tw;
            std::vector<float> line(8 * tw + 8);
            #pragma omp for
            for (num c = 0; c < ci; c++)
                for (num row = first; row < last; row++)
                    winograd_input(x + (b * ci + c) * h * w, h, w, row, tw, line.data(), v + c * t + (row - first) * tw, ci * t);
            #pragma omp for
            for (num c = 0; c < co; c++)
                for (num row = first; row < last; row++)
                    winograd_gradient(dy + (b * co + c) * h * w, h, w, row, tw, line.data(), d + c * t + (row - first) * tw,
                                      co * t);
            #pragma omp for
            for (int f = 0; f < 16; f++)
                sgemm('N', 'T', co, ci, t, d + f * co * t, t, v + f * ci * t, t, b + first > 0, du + f * co * ci, ci);
        }
    #pragma omp parallel for
    for (num i = 0; i < co * ci; i++) {  // G^T du G
        float t[3][4];
        for (int l = 0; l < 4; l++) {
            float a = du[l * co * ci + i], b = du[(4 + l) * co * ci + i], c = du[(8 + l) * co * ci + i];
            t[0][l] = a + .5f * (b + c);
            t[1][l] = .5f * (b - c);
            t[2][l] = .5f * (b + c) + du[(12 + l) * co * ci + i];
        }
        for (int k = 0; k < 3; k++) {
            dw[i * 9 + k * 3] = t[k][0] + .5f * (t[k][1] + t[k][2]);
            dw[i * 9 + k * 3 + 1] = .5f * (t[k][1] - t[k][2]);
            dw[i * 9 + k * 3 + 2] = .5f * (t[k][1] + t[k][2]) + t[k][3];
        }
    }
}

// ---- softmax

// e^x of x <= 0, relative error 1e-7 + 5e-8 |x|, zero below -88, in a form that the compiler turns into vector instructions
inline float exponential(float x) {
    x = std::max(x, -100.f);
    float n = (float)(int)(x * 1.44269504f - .5f), r = x - n * .693359375f + n * 2.12194440e-4f;
    float p = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r
               + 1.6666665459e-1f) * r + 5.0000001201e-1f;
    int32_t bits = std::max((int32_t)n + 127, 0) << 23;
    float scale;
    std::memcpy(&scale, &bits, 4);
    return (p * r * r + r + 1) * scale;
}

// y = softmax of x [n] + penalty [n]; penalties of -1e30 give exact zeros
inline void softmax_row(const float* x, const float* penalty, float* y, num n) {
    float top = -3e38f, sum = 0;
    if (penalty) {
        for (num i = 0; i < n; i++) top = std::max(top, x[i] + penalty[i]);
        for (num i = 0; i < n; i++) { y[i] = exponential(x[i] + penalty[i] - top); sum += y[i]; }
    } else {
        for (num i = 0; i < n; i++) top = std::max(top, x[i]);
        for (num i = 0; i < n; i++) { y[i] = exponential(x[i] - top); sum += y[i]; }
    }
    float scale = 1 / sum;
    for (num i = 0; i < n; i++) y[i] *= scale;
}

// ---- normalisation

// sum of f(i) for i in 0..n, in 16 sums side by side: fast, and without the digits that one float32 sum loses
template <class F> inline double lane_sum(num n, F f) {
    float lanes[16] = {0};
    num i = 0;
    for (; i + 16 <= n; i += 16)
        for (int k = 0; k < 16; k++) lanes[k] += f(i + k);
    double sum = 0;
    for (; i < n; i++) sum += f(i);
    for (int k = 0; k < 16; k++) sum += lanes[k];
    return sum;
}

inline void moments(const float* x, num n, float* mean, float* variance) {
    const float m = lane_sum(n, [&](num i) { return x[i]; }) / n;
    *mean = m;
    *variance = lane_sum(n, [&](num i) { return (x[i] - m) * (x[i] - m); }) / n;
}

// Rows of x [rows, n] to mean 0 and variance 1, times w, plus b
inline void layer_norm(const float* x, const float* w, const float* b, float eps, float* y, num rows, num n) {
    #pragma omp parallel for
    for (num r = 0; r < rows; r++) {
        const float* in = x + r * n;
        float *out = y + r * n, mean, variance;
        moments(in, n, &mean, &variance);
        const float scale = 1 / std::sqrt(variance + eps), shift = -mean * scale;
        for (num i = 0; i < n; i++) out[i] = (in[i] * scale + shift) * w[i] + b[i];
    }
}

// Gradients dx [rows, n], dw and db [n]; blocks of a fixed number of rows make them the same for any number of threads
inline void layer_norm_backward(const float* dy, const float* x, const float* w, float eps, float* dx, float* dw, float* db,
                                num rows, num n) {
    const num block = 32, blocks = ceil_div(rows, block);
    std::vector<float> sums(blocks * 2 * n, 0.f);
    #pragma omp parallel for
    for (num job = 0; job < blocks; job++) {
        float *sw = &sums[job * 2 * n], *sb = sw + n;
        for (num r = job * block; r < std::min(rows, (job + 1) * block); r++) {
            const float *in = x + r * n, *d = dy + r * n;
            float *out = dx + r * n, mean, variance;
            moments(in, n, &mean, &variance);
            const float scale = 1 / std::sqrt(variance + eps), shift = -mean * scale;
            const float a = lane_sum(n, [&](num i) { return d[i] * w[i]; }) / n;
            const float c = lane_sum(n, [&](num i) { return d[i] * w[i] * (in[i] * scale + shift); }) / n;
            for (num i = 0; i < n; i++) {
                const float z = in[i] * scale + shift;
                sw[i] += d[i] * z;
                sb[i] += d[i];
                out[i] = scale * (d[i] * w[i] - a - z * c);
            }
        }
    }
    for (num i = 0; i < n; i++) dw[i] = db[i] = 0;
    for (num job = 0; job < blocks; job++)
        for (num i = 0; i < n; i++) { dw[i] += sums[job * 2 * n + i]; db[i] += sums[job * 2 * n + n + i]; }
}

// Channels of x [B, C, n] to mean 0 and variance 1 (which are returned), times w, plus b, plus residual or null, ReLU
inline void batch_norm(const float* x, const float* w, const float* b, float eps, const float* residual, bool relu, float* y,
                       float* means, float* variances, num batch, num channels, num n) {
    std::vector<float> scales(channels), shifts(channels);
    const After after{scales.data(), shifts.data(), residual, relu};
    #pragma omp parallel for
    for (num c = 0; c < channels; c++) {
        double sum = 0, squares = 0;
        for (num i = 0; i < batch; i++) {
            const float* in = x + (i * channels + c) * n;
            sum += lane_sum(n, [&](num k) { return in[k]; });
        }
        const float mean = means[c] = sum / (batch * n);
        for (num i = 0; i < batch; i++) {
            const float* in = x + (i * channels + c) * n;
            squares += lane_sum(n, [&](num k) { return (in[k] - mean) * (in[k] - mean); });
        }
        variances[c] = squares / (batch * n);
        scales[c] = w[c] / std::sqrt(variances[c] + eps);
        shifts[c] = b[c] - mean * scales[c];
        for (num i = 0; i < batch; i++) {
            const num place = (i * channels + c) * n;
            std::memcpy(y + place, x + place, n * sizeof(float));
            after.finish(y + place, c, place, n);
        }
    }
}

// Gradients dx, dw, db, and d, that of the residual, from dy and the result y (null where there was no ReLU)
inline void batch_norm_backward(const float* dy, const float* x, const float* w, const float* means, const float* variances,
                                const float* y, float eps, float* dx, float* dw, float* db, float* d, num batch,
                                num channels, num n) {
    #pragma omp parallel for
    for (num c = 0; c < channels; c++) {
        const float mean = means[c], scale = 1 / std::sqrt(variances[c] + eps);
        double sum = 0, product = 0;
        for (num i = 0; i < batch; i++) {
            const num place = (i * channels + c) * n;
            float* out = d + place;
            if (y) { for (num k = 0; k < n; k++) out[k] = y[place + k] > 0 ? dy[place + k] : 0; }
            else { std::memcpy(out, dy + place, n * sizeof(float)); }
            const float* in = x + place;
            sum += lane_sum(n, [&](num k) { return out[k]; });
            product += lane_sum(n, [&](num k) { return out[k] * (in[k] - mean); });
        }
        db[c] = sum;
        dw[c] = product * scale;
        const float a = sum / (batch * n), b = product * scale * scale / (batch * n), factor = w[c] * scale;
        for (num i = 0; i < batch; i++) {
            const num place = (i * channels + c) * n;
            for (num k = 0; k < n; k++) dx[place + k] = factor * (d[place + k] - a - (x[place + k] - mean) * b);
        }
    }
}

// ---- optimizer

// The sum of squares; blocks of a fixed size make it the same for any number of threads
inline float square_sum(const float* x, num n) {
    const num block = 16384, blocks = ceil_div(n, block);
    std::vector<double> sums(blocks);
    #pragma omp parallel for if (blocks > 4)
    for (num b = 0; b < blocks; b++) {
        float sum[16] = {0};
        num i = b * block, end = std::min(n, i + block);
        for (; i + 16 <= end; i += 16)
            for (int k = 0; k < 16; k++) sum[k] += x[i + k] * x[i + k];
        for (; i < end; i++) sum[0] += x[i] * x[i];
        for (int k = 0; k < 16; k++) sums[b] += sum[k];
    }
    double total = 0;
    for (double sum : sums) total += sum;
    return total;
}

// A step of AdamW: new weights, averages of squares and averages; gradients count times scale. s: 1 - lr * decay, beta0,
// 1 - beta0, beta1, 1 - beta1, lr / correction0, 1 / sqrt(correction1), eps
inline void adamw(const float* __restrict p, const float* __restrict v, const float* __restrict m, const float* __restrict g,
                  float scale, const float* s, float* __restrict p2, float* __restrict v2, float* __restrict m2, num n) {
    const float keep = s[0], b0 = s[1], c0 = s[2], b1 = s[3], c1 = s[4], rate = s[5], root = s[6], eps = s[7];
    #pragma omp parallel for simd if (n > 16384)
    for (num i = 0; i < n; i++) {
        float d = g[i] * scale, a = b0 * m[i] + c0 * d, q = b1 * v[i] + c1 * d * d;
        m2[i] = a;
        v2[i] = q;
        p2[i] = p[i] * keep - rate * a / (std::sqrt(q) * root + eps);
    }
}

// ---- dropout

// A hash of 32 bits (C. Wellons' lowbias32)
inline uint32_t mix(uint32_t x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

// y [n] = x / (1 - p), or 0 with probability p. seed: two numbers in [0, 1), which decide about every element
inline void dropout(const float* x, const float* seed, double p, float* y, num n) {
    uint32_t a = (uint32_t)(seed[0] * 16777216) << 8, b = (uint32_t)(seed[1] * 16777216) << 8, limit = p * 4294967296.;
    float scale = 1 / (1 - p);
    #pragma omp parallel for
    for (num i = 0; i < n; i++) y[i] = mix(mix((uint32_t)i + a) + b) < limit ? 0 : x[i] * scale;
}

}  // namespace detr
