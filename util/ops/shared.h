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

}  // namespace detr
