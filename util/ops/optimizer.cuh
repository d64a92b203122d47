// AdamW and the gradient norm with CUDA: many arrays per launch, because most are small.
#pragma once
# include "cuda.cuh"  // spaced: see code.py

namespace detr {

constexpr int ARRAY_BLOCKS = 32;  // per array

struct Arrays {
    const float* x[MAX_ARRAYS];
    dim_t sizes[MAX_ARRAYS];
};

// Write one partial sum of squares per block; a single float32 accumulator would lose precision.
static __global__ void square_sums_block(Arrays arrays, float* sums) {
    const float* x = arrays.x[blockIdx.y];
    float sum = 0;
    for (dim_t i = thread_index(); i < arrays.sizes[blockIdx.y]; i += ARRAY_BLOCKS * THREADS) sum += x[i] * x[i];
    sum = block_reduce(sum, Sum());
    if (threadIdx.x == 0) sums[blockIdx.y * ARRAY_BLOCKS + blockIdx.x] = sum;
}

// sums [count, ARRAY_BLOCKS] of `count` arrays
inline void square_sums(const Arrays& arrays, int count, float* sums) {
    launch(square_sums_block, dim3(ARRAY_BLOCKS, count), THREADS, arrays, sums);
}

struct Updates {  // arguments of detr::adamw in optimizer.h
    const float *p[MAX_ARRAYS], *v[MAX_ARRAYS], *m[MAX_ARRAYS], *g[MAX_ARRAYS];
    float *p2[MAX_ARRAYS], *v2[MAX_ARRAYS], *m2[MAX_ARRAYS];
    dim_t sizes[MAX_ARRAYS];
};

static __global__ void adamw_block(Updates updates, const float* scale, const float* s) {
    const int k = blockIdx.y;
    const float *p = updates.p[k], *v = updates.v[k], *m = updates.m[k], *g = updates.g[k];
    float *p2 = updates.p2[k], *v2 = updates.v2[k], *m2 = updates.m2[k];
    const float decay = s[0], b0 = s[1], c0 = s[2], b1 = s[3], c1 = s[4], step_size = s[5], root = s[6], eps = s[7];
    for (dim_t i = thread_index(); i < updates.sizes[k]; i += ARRAY_BLOCKS * THREADS) {
        float d = g[i] * *scale, a = b0 * m[i] + c0 * d, q = b1 * v[i] + c1 * d * d;
        m2[i] = a;
        v2[i] = q;
        p2[i] = p[i] * decay - step_size * a / (sqrtf(q) * root + eps);
    }
}

inline void adamw(const Updates& updates, int count, const float* scale, const float* scalars) {
    launch(adamw_block, dim3(ARRAY_BLOCKS, count), THREADS, updates, scale, scalars);
}

}  // namespace detr
