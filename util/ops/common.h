// Shared by the CPU kernels. Arrays are float32, row-major and contiguous; images are [B, C, H, W].
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#include <omp.h>

namespace detr {

using dim_t = int64_t;

inline dim_t ceil_div(dim_t a, dim_t b) { return (a + b - 1) / b; }  // requires a > -b

// Return a buffer of at least `size` floats, which the thread keeps for its next call.
inline float* workspace(int slot, dim_t size) {
    static thread_local std::vector<float> buffers[4];
    if ((dim_t)buffers[slot].size() < size) buffers[slot].resize(size);
    return buffers[slot].data();
}

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

}  // namespace detr
