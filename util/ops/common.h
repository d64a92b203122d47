// Shared by the CPU kernels.
#pragma once
# include "shared.h"  // spaced: see code.py
#include <cmath>
#include <cstring>
#include <vector>
#include <omp.h>

namespace detr {

inline dim_t ceil_div(dim_t a, dim_t b) { return (a + b - 1) / b; }  // requires a > -b

// Return a buffer of at least `size` floats, which the thread keeps for its next call.
inline float* workspace(int slot, dim_t size) {
    static thread_local std::vector<float> buffers[4];
    if ((dim_t)buffers[slot].size() < size) buffers[slot].resize(size);
    return buffers[slot].data();
}

}  // namespace detr
