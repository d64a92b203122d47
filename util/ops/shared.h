// Shared by the CPU's and the CUDA operators. Arrays are float32, row-major and contiguous; images are [B, C, H, W].
#pragma once
#include <algorithm>
#include <cstdint>

#ifdef __CUDACC__
#define DETR_DEVICE __device__
#else
#define DETR_DEVICE
#endif

namespace detr {

using dim_t = int64_t;

// Epilogue of a convolution or normalization: y = max(scale * y + bias + residual, 0), with scale and bias per channel.
// Null pointers and relu = false skip a step.
struct Epilogue {
    const float *scale, *bias, *residual;
    bool relu;

    // Apply to n outputs y of channel c; offset: position of their residual.
    void apply(float* y, dim_t c, dim_t offset, dim_t n) const {
        const float a = scale ? scale[c] : 1, b = bias ? bias[c] : 0, *r = residual ? residual + offset : nullptr;
        if (r && relu) { for (dim_t i = 0; i < n; i++) y[i] = std::max(a * y[i] + b + r[i], 0.f); }
        else if (r) { for (dim_t i = 0; i < n; i++) y[i] = a * y[i] + b + r[i]; }
        else if (relu) { for (dim_t i = 0; i < n; i++) y[i] = std::max(a * y[i] + b, 0.f); }
        else if (scale || bias) { for (dim_t i = 0; i < n; i++) y[i] = a * y[i] + b; }
    }
};

const Epilogue NO_EPILOGUE{nullptr, nullptr, nullptr, false};

struct ConvShape {  // [batch, ci, h, w] -> [batch, co, oh, ow]
    dim_t batch, ci, co, h, w, kh, kw, stride, padding, dilation;
    dim_t oh() const { return (h + 2 * padding - dilation * (kh - 1) - 1) / stride + 1; }
    dim_t ow() const { return (w + 2 * padding - dilation * (kw - 1) - 1) / stride + 1; }
};

// 32-bit hash (lowbias32 by C. Wellons)
DETR_DEVICE inline uint32_t hash32(uint32_t x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

// Dropout by a hash of seed and index. seed: two floats in [0, 1) in the memory of the device, or null to drop nothing
struct Dropout {
    const float* seed;
    uint32_t threshold;
    float scale;

    Dropout(const float* seed, double p) : seed(seed), threshold(p * 4294967296.), scale(1 / (1 - p)) {}
};

const Dropout NO_DROPOUT{nullptr, 0};

struct DropoutMask {
    uint32_t a, b, threshold;
    float scale;

    DETR_DEVICE explicit DropoutMask(const Dropout& dropout)
        : a((uint32_t)(dropout.seed[0] * 16777216) << 8), b((uint32_t)(dropout.seed[1] * 16777216) << 8),
          threshold(dropout.threshold), scale(dropout.scale) {}

    // Return x / (1 - p), or 0 with probability p; i: index of x in its array
    DETR_DEVICE float operator()(float x, dim_t i) const { return hash32(hash32((uint32_t)i + a) + b) < threshold ? 0 : x * scale; }
};

constexpr int MAX_ARRAYS = 32;  // per launch with CUDA: a kernel's arguments may take 4 KB

// Arrays [outer, inner], of which `stack` makes one [outer, count, inner]
struct Pieces {
    float* x[MAX_ARRAYS];
    int count;
};

// Matrices of the heads of an attention; distances between rows, heads and samples
struct Heads {
    float* x;
    dim_t row, head, sample;
    float* get(dim_t i, dim_t h) const { return x + i * sample + h * head; }
};

}  // namespace detr
