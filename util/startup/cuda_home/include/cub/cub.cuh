// The names that CUB 3 (CUDA 13) removed and Jittor uses.
#pragma once
#include_next <cub/cub.cuh>
#if CUB_VERSION >= 300000
#include <cuda/functional>
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>
namespace cub {
using Max = ::cuda::maximum<>;
template <class T>
using CountingInputIterator = thrust::counting_iterator<T>;
template <class T, class F, class Iterator>
struct TransformInputIterator : thrust::transform_iterator<F, Iterator, T> {
    __host__ __device__ TransformInputIterator(Iterator iterator, F function)
        : thrust::transform_iterator<F, Iterator, T>(iterator, function) {}
};
__device__ inline unsigned LaneId() {
    unsigned lane;
    asm("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
}
}  // namespace cub
#endif
