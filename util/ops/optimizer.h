// AdamW and the gradient norm.
#pragma once
# include "common.h"  // spaced: see code.py

namespace detr {

// Return the sum of squares. The block size is fixed, so that it does not depend on the thread count.
inline float square_sum(const float* x, dim_t n) {
    const dim_t block = 16384, blocks = ceil_div(n, block);
    std::vector<double> sums(blocks);
    #pragma omp parallel for if (blocks > 4)
    for (dim_t b = 0; b < blocks; b++) {
        float sum[16] = {0};
        dim_t i = b * block, end = std::min(n, i + block);
        for (; i + 16 <= end; i += 16)
            for (int k = 0; k < 16; k++) sum[k] += x[i + k] * x[i + k];
        for (; i < end; i++) sum[0] += x[i] * x[i];
        for (int k = 0; k < 16; k++) sums[b] += sum[k];
    }
    double total = 0;
    for (double sum : sums) total += sum;
    return total;
}

// AdamW step with gradients scale * g: write new parameters p2, averages of squares v2 and averages m2.
// s: 1 - lr * weight_decay, b0, 1 - b0, b1, 1 - b1, lr / bias_correction0, 1 / sqrt(bias_correction1), eps
inline void adamw(const float* __restrict p, const float* __restrict v, const float* __restrict m, const float* __restrict g,
                  float scale, const float* s, float* __restrict p2, float* __restrict v2, float* __restrict m2, dim_t n) {
    const float decay = s[0], b0 = s[1], c0 = s[2], b1 = s[3], c1 = s[4], step_size = s[5], root = s[6], eps = s[7];
    #pragma omp parallel for simd if (n > 16384)
    for (dim_t i = 0; i < n; i++) {
        float d = g[i] * scale, a = b0 * m[i] + c0 * d, q = b1 * v[i] + c1 * d * d;
        m2[i] = a;
        v2[i] = q;
        p2[i] = p[i] * decay - step_size * a / (std::sqrt(q) * root + eps);
    }
}

}  // namespace detr
