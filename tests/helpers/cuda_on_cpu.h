// Just enough of CUDA to run kernels on the CPU: the threads of a block are threads, the blocks run one after the other.
#pragma once
#include <barrier>
#include <cmath>
#include <thread>
#include <vector>

struct dim3 { unsigned x = 1, y = 1, z = 1; };

static thread_local dim3 threadIdx, blockIdx;
static dim3 gridDim, blockDim;
static std::barrier<>* block_barrier;

#define __global__
#define __device__
#define __shared__ static

static void __syncthreads() { block_barrier->arrive_and_wait(); }

static float __shfl_xor_sync(unsigned, float x, int step) {
    static float values[1024];
    unsigned me = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    values[me] = x;
    __syncthreads();
    x = values[me ^ step];
    __syncthreads();
    return x;
}

template <class Kernel> void launch(dim3 grid, dim3 block, Kernel kernel) {
    gridDim = grid;
    blockDim = block;
    for (unsigned number = 0; number < grid.x * grid.y * grid.z; number++) {
        std::barrier<> barrier(block.x * block.y * block.z);
        block_barrier = &barrier;
        std::vector<std::thread> threads;
        for (unsigned thread = 0; thread < block.x * block.y * block.z; thread++)
            threads.emplace_back([=] {
                blockIdx = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
                threadIdx = {thread % block.x, thread / block.x % block.y, thread / block.x / block.y};
                kernel();
                block_barrier->arrive_and_drop();
            });
        for (auto& thread : threads) thread.join();
    }
}
