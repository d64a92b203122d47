// What util/ops/__init__.py computes on the CPU. Arrays are float32, row-major and contiguous; images are [B, C, H, W].
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#include <omp.h>
#include <signal.h>
#include <sys/mman.h>

extern "C" int dnnl_sgemm(char transa, char transb, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
                          int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc);

namespace detr {

typedef int64_t num;

// A stack of its own for the signal handlers of a thread. While oneDNN 2.6 multiplies, the stack pointer is an address in the heap
// (oneDNN issue 4845): without this a signal that arrives then overwrites arrays. Python's handlers use such a stack.
struct HandlerStack {
    static constexpr size_t SIZE = 65536;  // several handlers, one within the other
    void* memory = MAP_FAILED;

    HandlerStack() {
        stack_t present;
        sigaltstack(nullptr, &present);
        if (!(present.ss_flags & SS_DISABLE) && present.ss_size >= SIZE) return;  // that of another operator
        memory = mmap(nullptr, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        stack_t stack{};
        stack.ss_sp = memory;
        stack.ss_size = SIZE;
        if (memory != MAP_FAILED) sigaltstack(&stack, nullptr);
    }

    ~HandlerStack() {
        if (memory == MAP_FAILED) return;
        stack_t none{};
        none.ss_flags = SS_DISABLE;
        sigaltstack(&none, nullptr);
        munmap(memory, SIZE);
    }
};

inline void use_handler_stack() { static thread_local HandlerStack stack; }

// c [m, n] = beta * c + op(a) [m, k] . op(b) [k, n]; on one thread where the caller's region is parallel
inline void sgemm(char ta, char tb, num m, num n, num k, const float* a, num lda, const float* b, num ldb, float beta,
                  float* c, num ldc) {
    if (omp_in_parallel()) {
        use_handler_stack();
    } else {
        #pragma omp parallel
        use_handler_stack();  // in all the threads that oneDNN may use
    }
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

const After NOTHING{nullptr, nullptr, nullptr, false};

// scale times w [co, n], one number per row; scale may be null
inline const float* scaled(const float* w, const float* scale, num co, num n) {
    if (!scale) return w;
    float* out = scratch(3, co * n);
    #pragma omp parallel for
    for (num o = 0; o < co; o++)
        for (num i = 0; i < n; i++) out[o * n + i] = scale[o] * w[o * n + i];
    return out;
}

// The same in place
inline void scale_rows(float* w, const float* scale, num co, num n) {
    if (!scale) return;
    #pragma omp parallel for
    for (num o = 0; o < co; o++)
        for (num i = 0; i < n; i++) w[o * n + i] *= scale[o];
}

inline void relu(const float* x, float* y, num n) {
    #pragma omp parallel for simd
    for (num i = 0; i < n; i++) y[i] = std::max(x[i], 0.f);
}

// dx: dy where the result y is not cut
inline void relu_backward(const float* dy, const float* y, float* dx, num n) {
    #pragma omp parallel for simd
    for (num i = 0; i < n; i++) dx[i] = y[i] > 0 ? dy[i] : 0;
}

// The size of the parts into which n is cut: about `wanted`, and such that the parts of a batch suit the threads.
inline num part_size(num n, num wanted, num batch) {
    num parts = ceil_div(n, wanted);
    while (batch * parts % omp_get_max_threads() && parts < n) parts++;
    return ceil_div(n, parts);
}

// y [rows, n] = x [rows, k] . w^T [k, n] + bias [n], which may be null
inline void linear(const float* x, const float* w, const float* bias, float* y, num rows, num n, num k) {
    sgemm('N', 'T', rows, n, k, x, k, w, k, 0.f, y, n);
    if (!bias) return;
    #pragma omp parallel for
    for (num r = 0; r < rows; r++)
        for (num i = 0; i < n; i++) y[r * n + i] += bias[i];
}

// ---- 1x1 convolution, from [B, ci, n] to [B, co, n]. `scale` in the gradients is that of After.

namespace pointwise {

// y [B, co, n] = op(w) . x [B, ci, n]. Blocks of columns whose result is finished while it is in the cache.
inline void product(char tw, const float* w, const float* x, const After& after, float* y, num batch, num ci, num co, num n) {
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

inline void conv(const float* w, const float* x, const After& after, float* y, num batch, num ci, num co, num n) {
    product('N', w, x, after, y, batch, ci, co, n);
}

inline void conv_input(const float* w, const float* scale, const float* dy, float* dx, num batch, num ci, num co, num n) {
    product('T', scaled(w, scale, co, ci), dy, NOTHING, dx, batch, co, ci, n);
}

// dw [co, ci] = sum over b of dy . x^T
inline void conv_weight(const float* dy, const float* scale, const float* x, float* dw, num batch, num ci, num co, num n) {
    for (num b = 0; b < batch; b++)
        sgemm('N', 'T', co, ci, n, dy + b * co * n, n, x + b * ci * n, n, b > 0, dw, ci);
    scale_rows(dw, scale, co, ci);
}

}  // namespace pointwise

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
inline void conv_input(const float* weight, const float* scale, const float* dy, float* dx, num batch, const Window& k) {
    const float* w = scaled(weight, scale, k.co, k.ci * k.taps());
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
inline void conv_weight(const float* dy, const float* scale, const float* x, float* dw, num batch, const Window& k) {
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
    scale_rows(dw, scale, k.co, k.ci * k.taps());
}

// ---- 3x3 convolution, stride 1, padding 1: Winograd's F(4x4, 3x3) (arXiv 1509.09308). A tile of 4x4 results comes from 6x6
// pixels; between the transforms stand 36 matrix products, with 4 times fewer multiplications than the plain sum.

// The transforms in one dimension. The points of their polynomial are 0, +-a, +-b and infinity; over 256 channels the error is
// 1.4e-6 of the largest result (3.7e-6 with the usual a = 1, b = 2; 7e-7 for the plain sum in float32).
namespace winograd {

constexpr int M = 4, T = 6;  // results and pixels of a tile
constexpr float a = .75f, b = 1.5f, a2 = a * a, b2 = b * b, fa = .5f / (a2 * (a2 - b2)), fb = .5f / (b2 * (b2 - a2));

inline void pixels(const float* d, float* v) {
    float even = d[4] - b2 * d[2], odd = a * (d[3] - b2 * d[1]);
    v[0] = a2 * b2 * d[0] - (a2 + b2) * d[2] + d[4];
    v[1] = even + odd;
    v[2] = even - odd;
    even = d[4] - a2 * d[2], odd = b * (d[3] - a2 * d[1]);
    v[3] = even + odd;
    v[4] = even - odd;
    v[5] = a2 * b2 * d[1] - (a2 + b2) * d[3] + d[5];
}

inline void weights(const float* g, float* u) {
    float even = fa * (g[0] + a2 * g[2]), odd = fa * a * g[1];
    u[0] = 1 / (a2 * b2) * g[0];
    u[1] = even + odd;
    u[2] = even - odd;
    even = fb * (g[0] + b2 * g[2]), odd = fb * b * g[1];
    u[3] = even + odd;
    u[4] = even - odd;
    u[5] = g[2];
}

inline void results(const float* v, float* y) {
    float sa = v[1] + v[2], da = v[1] - v[2], sb = v[3] + v[4], db = v[3] - v[4];
    y[0] = v[0] + sa + sb;
    y[1] = a * da + b * db;
    y[2] = a2 * sa + b2 * sb;
    y[3] = a2 * a * da + b2 * b * db + v[5];
}

// The transposes of `results` and `weights`, for gradients
inline void results_back(const float* y, float* v) {
    float even = y[0] + a2 * y[2], odd = a * (y[1] + a2 * y[3]);
    v[0] = y[0];
    v[1] = even + odd;
    v[2] = even - odd;
    even = y[0] + b2 * y[2], odd = b * (y[1] + b2 * y[3]);
    v[3] = even + odd;
    v[4] = even - odd;
    v[5] = y[3];
}

inline void weights_back(const float* u, float* g) {
    float sa = fa * (u[1] + u[2]), da = fa * (u[1] - u[2]), sb = fb * (u[3] + u[4]), db = fb * (u[3] - u[4]);
    g[0] = 1 / (a2 * b2) * u[0] + sa + sb;
    g[1] = a * da + b * db;
    g[2] = a2 * sa + b2 * sb + u[5];
}

// For i in 0..n: f makes of the numbers in[place(k) + i], k in 0..from, the numbers out[k * step + i], k in 0..to
template <int from, int to, class F, class Place>
inline void transform(F f, const float* in, Place place, float* out, num step, num n) {
    #pragma GCC ivdep
    for (num i = 0; i < n; i++) {
        float before[from], after[to];
        for (int k = 0; k < from; k++) before[k] = in[place(k) + i];
        f(before, after);
        for (int k = 0; k < to; k++) out[k * step + i] = after[k];
    }
}

// out [M, count]: out[q, j] = number M * j + q of a line: `before` zeros, the n numbers of x, zeros
inline void deal(const float* x, num n, num before, float* line, float* out, num count) {
    std::memset(line, 0, M * count * sizeof(float));
    std::memcpy(line + before, x, n * sizeof(float));
    for (num j = 0; j < count; j++)
        for (int q = 0; q < M; q++) out[q * count + j] = line[M * j + q];
}

// u [T * T, co, ci] of scale (or null) times w [co, ci, 3, 3]; turned: of w turned by 180 degrees
inline void transform_weights(const float* w, const float* scale, float* u, num co, num ci, bool turned) {
    #pragma omp parallel for
    for (num o = 0; o < co; o++) {
        float *g = scratch(0, (9 + 3 * T) * ci), *s = g + 9 * ci;  // g [3, 3, ci], s [T, 3, ci]
        const float factor = scale ? scale[o] : 1;
        for (int k = 0; k < 9; k++)
            for (num i = 0; i < ci; i++) g[k * ci + i] = factor * w[(o * ci + i) * 9 + (turned ? 8 - k : k)];
        transform<3, T>(weights, g, [=](int k) { return 3 * k * ci; }, s, 3 * ci, 3 * ci);
        for (int k = 0; k < T; k++)
            transform<3, T>(weights, s + 3 * k * ci, [=](int l) { return l * ci; }, u + (T * k * co + o) * ci, co * ci, ci);
    }
}

// Row `row` of the tiles of one channel x [h, w]: T * T rows of tw values, `step` apart. s: (T + 1) * M * (tw + 1) floats
inline void transform_pixels(const float* x, num h, num w, num row, num tw, float* s, float* v, num step) {
    const num size = M * (tw + 1);
    for (int k = 0; k < T; k++) {
        num y = M * row - 1 + k;
        deal(x + y * w, y >= 0 && y < h ? w : 0, 1, s + T * size, s + k * size, tw + 1);
    }
    transform<T, T>(pixels, s, [=](int k) { return k * size; }, s, size, size);
    for (int k = 0; k < T; k++)
        transform<T, T>(pixels, s + k * size, [=](int l) { return l % M * (tw + 1) + l / M; }, v + T * k * step, step, tw);
}

// The same for gradients dy [h, w] of the result
inline void transform_gradients(const float* dy, num h, num w, num row, num tw, float* s, float* v, num step) {
    const num size = M * tw;
    for (int k = 0; k < M; k++) {
        num y = M * row + k;
        deal(dy + y * w, y < h ? w : 0, 0, s + T * size, s + k * size, tw);
    }
    transform<M, T>(results_back, s, [=](int k) { return k * size; }, s, size, size);
    for (int k = 0; k < T; k++)
        transform<M, T>(results_back, s + k * size, [=](int l) { return l * tw; }, v + T * k * step, step, tw);
}

// v [T * T, channels, tiles] of x [B, channels, h, w] for the rows first..last of the tiles of all images, by `f`, one of the
// two above; the threads of the caller's parallel region share the channels
template <class F>
inline void transform_all(F f, const float* x, num channels, num h, num w, num first, num last, float* s, float* v) {
    const num th = ceil_div(h, M), tw = ceil_div(w, M), n = (last - first) * tw;
    #pragma omp for
    for (num c = 0; c < channels; c++)
        for (num row = first; row < last; row++)
            f(x + (row / th * channels + c) * h * w, h, w, row % th, tw, s, v + c * n + (row - first) * tw, channels * n);
}

// Back from T * T rows of tw values, `step` apart, to M rows of the result at y, M * tw apart. s: T * M * tw floats
inline void transform_results(const float* v, num step, num tw, float* s, float* y) {
    const num size = M * tw;
    for (int k = 0; k < T; k++)
        transform<T, M>(results, v + T * k * step, [=](int l) { return l * step; }, s + k * size, tw, tw);
    transform<T, M>(results, s, [=](int k) { return k * size; }, s, size, size);
    for (int k = 0; k < M; k++)
        for (num j = 0; j < tw; j++)
            for (int q = 0; q < M; q++) y[k * size + M * j + q] = s[k * size + q * tw + j];
}

// dw [co, ci, 3, 3] from du [T * T, co, ci]
inline void transform_weights_back(const float* du, const float* scale, float* dw, num co, num ci) {
    constexpr int block = 64;
    #pragma omp parallel for
    for (num o = 0; o < co; o++)
        for (num i = 0; i < ci; i += block) {
            float s[3 * T * block], g[9 * block];  // s [3, T, block], g [3, 3, block]
            const float* in = du + o * ci + i;
            const num n = std::min<num>(block, ci - i);
            for (int l = 0; l < T; l++)
                transform<T, 3>(weights_back, in + l * co * ci, [=](int k) { return T * k * co * ci; }, s + l * block, T * block, n);
            for (int k = 0; k < 3; k++)
                transform<T, 3>(weights_back, s + T * k * block, [](int l) { return l * block; }, g + 3 * k * block, block, n);
            const float factor = scale ? scale[o] : 1;
            for (num j = 0; j < n; j++)
                for (int k = 0; k < 9; k++) dw[(o * ci + i + j) * 9 + k] = factor * g[k * block + j];
        }
}

// y [B, co, h, w] from x [B, ci, h, w] and u, transposed where tu is 'T'. The rows of tiles of all images are one sequence; as
// many are computed at once as take about 8 MB.
inline void product(char tu, const float* u, const float* x, const After& after, float* y, num batch, num ci, num co, num h,
                    num w) {
    const num th = ceil_div(h, M), tw = ceil_div(w, M), total = batch * th, floats = T * T * (ci + co) * tw;
    const num rows = ceil_div(total, ceil_div(total * floats, 2097152));
    float *v = scratch(0, T * T * ci * rows * tw), *p = scratch(1, T * T * co * rows * tw);
    #pragma omp parallel
    for (num first = 0; first < total; first += rows) {
        const num last = std::min(total, first + rows), n = (last - first) * tw;
        float* s = scratch(2, 2 * T * M * (tw + 1));
        transform_all(transform_pixels, x, ci, h, w, first, last, s, v);
        #pragma omp for
        for (int f = 0; f < T * T; f++)
            sgemm(tu, 'N', co, n, ci, u + f * co * ci, tu == 'N' ? ci : co, v + f * ci * n, n, 0.f, p + f * co * n, n);
        #pragma omp for
        for (num c = 0; c < co; c++)
            for (num row = first; row < last; row++) {
                float* lines = s + T * M * tw;
                transform_results(p + c * n + (row - first) * tw, co * n, tw, s, lines);
                for (num k = 0; k < M && row % th * M + k < h; k++) {
                    const num place = ((row / th * co + c) * h + row % th * M + k) * w;
                    after.finish(lines + M * tw * k, c, place, w);
                    std::memcpy(y + place, lines + M * tw * k, w * sizeof(float));
                }
            }
    }
}

inline void conv(const float* weight, const float* x, const After& after, float* y, num batch, num ci, num co, num h, num w) {
    float* u = scratch(3, T * T * co * ci);
    transform_weights(weight, nullptr, u, co, ci, false);
    product('N', u, x, after, y, batch, ci, co, h, w);
}

inline void conv_input(const float* weight, const float* scale, const float* dy, float* dx, num batch, num ci, num co, num h,
                       num w) {
    float* u = scratch(3, T * T * co * ci);
    transform_weights(weight, scale, u, co, ci, true);
    product('T', u, dy, NOTHING, dx, batch, co, ci, h, w);
}

// dw [co, ci, 3, 3] of x [B, ci, h, w] and dy [B, co, h, w]
inline void conv_weight(const float* dy, const float* scale, const float* x, float* dw, num batch, num ci, num co, num h,
                        num w) {
    const num th = ceil_div(h, M), tw = ceil_div(w, M), total = batch * th, floats = T * T * (ci + co) * tw, size = co * ci;
    const num rows = ceil_div(total, ceil_div(total * floats, 4194304));
    float *v = scratch(0, T * T * ci * rows * tw), *d = scratch(1, T * T * co * rows * tw), *du = scratch(3, T * T * size);
    #pragma omp parallel
    for (num first = 0; first < total; first += rows) {
        const num last = std::min(total, first + rows), n = (last - first) * tw;
        float* s = scratch(2, 2 * T * M * (tw + 1));
        transform_all(transform_pixels, x, ci, h, w, first, last, s, v);
        transform_all(transform_gradients, dy, co, h, w, first, last, s, d);
        #pragma omp for
        for (int f = 0; f < T * T; f++)
            sgemm('N', 'T', co, ci, n, d + f * co * n, n, v + f * ci * n, n, first > 0, du + f * size, ci);
    }
    transform_weights_back(du, scale, dw, co, ci);
}

}  // namespace winograd

// ---- maximum of 3x3 pixels, stride 2, padding 1

// y [images, (h + 1) / 2, (w + 1) / 2] from x [images, h, w]
inline void max_pool(const float* x, float* y, num images, num h, num w) {
    const num oh = (h + 1) / 2, ow = (w + 1) / 2;
    #pragma omp parallel for
    for (num c = 0; c < images; c++) {
        float* line = scratch(0, w + 2);
        for (num row = 0; row < oh; row++) {
            const float *middle = x + (c * h + 2 * row) * w, *above = row ? middle - w : middle;
            const float *below = 2 * row + 1 < h ? middle + w : middle;
            float* out = y + (c * oh + row) * ow;
            for (num i = 0; i < w; i++) line[i + 1] = std::max(std::max(above[i], middle[i]), below[i]);
            line[0] = line[1];
            line[w + 1] = line[w];
            for (num j = 0; j < ow; j++) out[j] = std::max(std::max(line[2 * j], line[2 * j + 1]), line[2 * j + 2]);
        }
    }
}

// dx: each of dy goes to the first pixel of its window that is the maximum
inline void max_pool_backward(const float* dy, const float* x, const float* y, float* dx, num images, num h, num w) {
    const num oh = (h + 1) / 2, ow = (w + 1) / 2;
    #pragma omp parallel for
    for (num c = 0; c < images; c++) {
        const float* in = x + c * h * w;
        float* out = dx + c * h * w;
        std::memset(out, 0, h * w * sizeof(float));
        for (num row = 0; row < oh; row++)
            for (num column = 0; column < ow; column++) {
                const num place = (c * oh + row) * ow + column, bottom = std::min(2 * row + 1, h - 1);
                num i = std::max<num>(2 * row - 1, 0), left = std::max<num>(2 * column - 1, 0), j = left;
                while (in[i * w + j] != y[place])
                    if (j++ == std::min(2 * column + 1, w - 1)) { j = left; if (i++ == bottom) break; }
                if (i <= bottom) out[i * w + j] += dy[place];
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
