// Shared by the CUDA operators. They have the names and arguments of the CPU's (gemm.h, …), so that one source calls either.
// Sizes are runtime arguments: new image sizes need no recompilation. tests/helpers/cuda_on_cpu.h runs all of it on the CPU.
#pragma once
# include "shared.h"  // spaced: see code.py
#ifdef __CUDACC__
#include <cublas_v2.h>
#include <cudnn.h>
#include "executor.h"
#include "helper_cuda.h"
#include "mem/mem_info.h"

namespace jittor {
EXTERN_LIB cublasHandle_t cublas_handle;
EXTERN_LIB cudnnHandle_t cudnn_handle;
}

namespace detr {

// Launch a kernel unless the grid is empty, which CUDA refuses.
template <class... Parameters, class... Arguments>
inline void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, Arguments... arguments) {
    if (!grid.x || !grid.y || !grid.z) return;
    kernel<<<grid, block>>>(Parameters(arguments)...);
    checkCudaErrors(cudaGetLastError());
}

// Device memory from Jittor's allocator for results, which caches what is freed; its allocator for temporary memory keeps two
// blocks and returns others to the driver. Later operators may reuse the memory: they run in the same stream.
struct Scratch {
    size_t bytes, allocation = 0;
    void* memory = nullptr;

    explicit Scratch(size_t bytes) : bytes(bytes) {
        if (bytes) memory = jittor::exe.allocator->alloc(bytes, allocation);
    }
    ~Scratch() {
        if (bytes) jittor::exe.allocator->free(memory, bytes, allocation);
    }
    Scratch(const Scratch&) = delete;
    float* floats() { return (float*)memory; }
};

// Bytes that an algorithm may use
inline size_t max_workspace() { return jittor::mem_info.total_cuda_ram / 4; }

}  // namespace detr
#endif  // else tests/helpers/cuda_on_cpu.h has these

namespace detr {

constexpr int THREADS = 256;  // per block, a multiple of the warp

inline dim3 blocks(dim_t n) { return dim3((unsigned)((n + THREADS - 1) / THREADS)); }  // one thread per element

__device__ inline dim_t thread_index() { return (dim_t)blockIdx.x * THREADS + threadIdx.x; }

struct Max { __device__ float operator()(float a, float b) const { return a > b ? a : b; } };
struct Sum { __device__ float operator()(float a, float b) const { return a + b; } };

// Reduce x over a warp, all of whose threads call it; each gets the result.
template <class Combine> __device__ inline float warp_reduce(float x, Combine combine) {
    for (int step = 16; step; step /= 2) x = combine(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

// Reduce x over a block of THREADS threads in x, all of which call it; each gets the result.
template <class Combine> __device__ inline float block_reduce(float x, Combine combine) {
    __shared__ float warps[THREADS / 32];
    x = warp_reduce(x, combine);
    __syncthreads();  // wait until all threads have read the previous call's values
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = warps[0];
    for (int warp = 1; warp < THREADS / 32; warp++) x = combine(x, warps[warp]);
    return x;
}

}  // namespace detr
