// Enough of CUDA, cuBLAS and cuDNN to run the CUDA operators (util/ops/*.cuh) on the CPU, with their host code. The threads of a
// block are fibers: one runs until it has to wait for others, at a barrier or a shuffle. Blocks run one after another. What a GPU
// would refuse, or what is undefined there, stops the program. With CUDA_ON_THREADS they are threads, for ThreadSanitizer.
#pragma once
#include <ucontext.h>
#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __shared__ static

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#ifdef CUDA_ON_THREADS
#define PER_THREAD thread_local
#else
#define PER_THREAD
#endif
static PER_THREAD dim3 threadIdx;
static dim3 blockIdx, gridDim, blockDim;

namespace on_cpu {

inline void require(bool condition, const char* what) {
    if (condition) return;
    std::fprintf(stderr, "not valid with CUDA: %s\n", what);
    std::abort();
}

inline unsigned flat(dim3 thread) { return (thread.z * blockDim.y + thread.y) * blockDim.x + thread.x; }

inline void set_thread(unsigned number) {
    threadIdx = dim3(number % blockDim.x, number / blockDim.x % blockDim.y, number / blockDim.x / blockDim.y);
}

#ifdef CUDA_ON_THREADS
// ---- threads

struct Barrier {
    std::mutex mutex;
    std::condition_variable condition;
    unsigned threads = 0, waiting = 0, generation = 0;

    void release() {
        waiting = 0;
        generation++;
        condition.notify_all();
    }
    void wait() {
        std::unique_lock<std::mutex> lock(mutex);
        if (++waiting == threads) return release();
        const unsigned arrived = generation;
        condition.wait(lock, [&] { return arrived != generation; });
    }
    void leave() {  // a thread that has ended
        std::lock_guard<std::mutex> lock(mutex);
        if (--threads && waiting == threads) release();
    }
};

struct Block {
    Barrier barriers[33];  // of the block and of its warps
    std::vector<float> shuffled;
    unsigned threads = 0;
    void (*call)(void*) = nullptr;
    void* kernel = nullptr;
};

static Block block;

inline void wait(int waits_for) { block.barriers[waits_for].wait(); }

inline void run_block() {
    block.barriers[0].threads = block.threads;
    for (unsigned warp = 0; warp * 32 < block.threads; warp++)
        block.barriers[1 + warp].threads = std::min(32u, block.threads - warp * 32);
    std::vector<std::thread> threads;
    for (unsigned number = 0; number < block.threads; number++)
        threads.emplace_back([number] {
            set_thread(number);
            block.call(block.kernel);
            block.barriers[1 + number / 32].leave();
            block.barriers[0].leave();
        });
    for (std::thread& thread : threads) thread.join();
}

#else
// ---- fibers

struct Fiber {
    static constexpr size_t STACK = 65536;
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(STACK);
    dim3 thread;
    bool is_waiting = false;
    int waits_for = 0;  // 1 + warp, or 0 for the block
};

struct Block {
    std::vector<Fiber*> fibers;  // reused by later blocks
    std::vector<float> shuffled;
    ucontext_t scheduler;
    Fiber* current = nullptr;
    unsigned next = 0, threads = 0;
    void (*call)(void*) = nullptr;
    void* kernel = nullptr;
};

static Block block;

// A fiber runs one thread after another, until one of them waits.
inline void run_threads() {
    while (block.next < block.threads) {
        set_thread(block.next++);
        block.call(block.kernel);
    }
    setcontext(&block.scheduler);
}

inline void wait(int waits_for) {
    Fiber* fiber = block.current;
    fiber->thread = threadIdx;
    fiber->is_waiting = true;
    fiber->waits_for = waits_for;
    swapcontext(&fiber->context, &block.scheduler);
    threadIdx = fiber->thread;
}

static unsigned started;  // fibers of this block

inline void start_fiber() {
    if (started == block.fibers.size()) block.fibers.push_back(new Fiber);
    Fiber* fiber = block.fibers[started++];
    fiber->is_waiting = false;
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.data();
    fiber->context.uc_stack.ss_size = Fiber::STACK;
    fiber->context.uc_link = &block.scheduler;
    makecontext(&fiber->context, (void (*)())run_threads, 0);
    block.current = fiber;
    swapcontext(&block.scheduler, &fiber->context);
}

inline void resume(Fiber* fiber) {
    fiber->is_waiting = false;
    block.current = fiber;
    swapcontext(&block.scheduler, &fiber->context);
}

inline void run_block() {
    started = 0;
    block.next = 0;
    while (block.next < block.threads) start_fiber();
    for (;;) {  // every thread has ended or waits
        int waiting = 0, of_the_block = 0;
        std::vector<Fiber*> all;
        for (unsigned i = 0; i < started; i++) {
            Fiber* fiber = block.fibers[i];
            if (!fiber->is_waiting) continue;
            all.push_back(fiber);
            waiting++;
            of_the_block += fiber->waits_for == 0;
        }
        if (!waiting) return;
        if (of_the_block == waiting) {
            for (Fiber* fiber : all) resume(fiber);
            continue;
        }
        for (Fiber* fiber : all) {  // shuffles: of whole warps
            if (!fiber->waits_for || !fiber->is_waiting) continue;
            std::vector<Fiber*> warp;
            for (Fiber* other : all)
                if (other->is_waiting && other->waits_for == fiber->waits_for) warp.push_back(other);
            const unsigned first = (fiber->waits_for - 1) * 32, size = std::min(32u, block.threads - first);
            require(warp.size() == size, "a shuffle that some threads of the warp do not reach");
            for (Fiber* other : warp) resume(other);
        }
    }
}

#endif

template <class F> void call(void* kernel) { (*(F*)kernel)(); }

inline void run_grid(dim3 grid, dim3 threads, void (*call)(void*), void* kernel) {
    require(grid.x && grid.y && grid.z && grid.x <= 2147483647u && grid.y <= 65535 && grid.z <= 65535, "the grid");
    require(threads.x && threads.y && threads.z && threads.x * threads.y * threads.z <= 1024 && threads.z <= 64, "the block");
    gridDim = grid;
    blockDim = threads;
    block.threads = threads.x * threads.y * threads.z;
    block.shuffled.assign(block.threads, 0);
    block.call = call;
    block.kernel = kernel;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                blockIdx = dim3(x, y, z);
                run_block();
            }
}

}  // namespace on_cpu

inline void __syncthreads() { on_cpu::wait(0); }

inline float __shfl_xor_sync(unsigned mask, float x, int step) {
    on_cpu::require(mask == 0xffffffffu, "a shuffle of a part of a warp");
    const unsigned me = on_cpu::flat(threadIdx);
    on_cpu::block.shuffled[me] = x;
    on_cpu::wait(1 + me / 32);
    x = on_cpu::block.shuffled[me ^ step];
    on_cpu::wait(1 + me / 32);
    return x;
}

namespace detr {

// In place of the one in cuda.cuh
template <class... Parameters, class... Arguments>
inline void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, Arguments... arguments) {
    if (!grid.x || !grid.y || !grid.z) return;
    auto run = [=] { kernel(Parameters(arguments)...); };
    on_cpu::run_grid(grid, block, on_cpu::call<decltype(run)>, &run);
}

struct Scratch {
    std::vector<float> memory;

    explicit Scratch(size_t bytes) : memory((bytes + 3) / 4, std::numeric_limits<float>::quiet_NaN()) {}
    Scratch(const Scratch&) = delete;
    float* floats() { return memory.data(); }
};

inline size_t max_workspace() { return 4096; }

}  // namespace detr

inline void checkCudaErrors(int status) { on_cpu::require(status == 0, "a call of cuBLAS or cuDNN"); }

// ---- cuBLAS

enum { CUBLAS_OP_N, CUBLAS_OP_T, CUDA_R_32F, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT };

inline int cublasGemmStridedBatchedEx(int, int ta, int tb, int64_t m, int64_t n, int64_t k, const void* alpha, const void* a, int,
                                      int64_t lda, int64_t stride_a, const void* b, int, int64_t ldb, int64_t stride_b,
                                      const void* beta, void* c, int, int64_t ldc, int64_t stride_c, int64_t batch, int, int) {
    const int64_t one = 1, rows_a = ta == CUBLAS_OP_N ? m : k, rows_b = tb == CUBLAS_OP_N ? k : n;
    if (lda < std::max(one, rows_a) || ldb < std::max(one, rows_b) || ldc < std::max(one, m)) return 1;
    const float scale = *(const float*)alpha, keep = *(const float*)beta;
    for (int64_t s = 0; s < batch; s++) {
        const float *A = (const float*)a + s * stride_a, *B = (const float*)b + s * stride_b;
        float* C = (float*)c + s * stride_c;
        #pragma omp parallel for
        for (int64_t j = 0; j < n; j++)
            for (int64_t i = 0; i < m; i++) {
                double sum = 0;
                for (int64_t l = 0; l < k; l++)
                    sum += (double)A[ta == CUBLAS_OP_N ? l * lda + i : i * lda + l] *
                           B[tb == CUBLAS_OP_N ? j * ldb + l : l * ldb + j];
                C[j * ldc + i] = scale * sum + (keep ? keep * C[j * ldc + i] : 0);
            }
    }
    return 0;
}

inline int cublasGemmEx(int handle, int ta, int tb, int64_t m, int64_t n, int64_t k, const void* alpha, const void* a, int type_a,
                        int64_t lda, const void* b, int type_b, int64_t ldb, const void* beta, void* c, int type_c, int64_t ldc,
                        int compute, int algorithm) {
    return cublasGemmStridedBatchedEx(handle, ta, tb, m, n, k, alpha, a, type_a, lda, 0, b, type_b, ldb, 0, beta, c, type_c, ldc,
                                      0, 1, compute, algorithm);
}

// ---- cuDNN

enum { CUDNN_TENSOR_NCHW, CUDNN_DATA_FLOAT, CUDNN_CROSS_CORRELATION, CUDNN_STATUS_SUCCESS = 0, CUDNN_STATUS_NOT_SUPPORTED = 9 };
struct on_cpu_tensor { int64_t n, c, h, w; };
struct on_cpu_filter { int64_t o, i, h, w; };
struct on_cpu_conv { int64_t padding[2], stride[2], dilation[2]; };
using cudnnTensorDescriptor_t = on_cpu_tensor*;
using cudnnFilterDescriptor_t = on_cpu_filter*;
using cudnnConvolutionDescriptor_t = on_cpu_conv*;

inline int cudnnCreateTensorDescriptor(cudnnTensorDescriptor_t* d) { *d = new on_cpu_tensor(); return 0; }
inline int cudnnCreateFilterDescriptor(cudnnFilterDescriptor_t* d) { *d = new on_cpu_filter(); return 0; }
inline int cudnnCreateConvolutionDescriptor(cudnnConvolutionDescriptor_t* d) { *d = new on_cpu_conv(); return 0; }
inline int cudnnSetTensor4dDescriptor(cudnnTensorDescriptor_t d, int, int, int64_t n, int64_t c, int64_t h, int64_t w) {
    *d = {n, c, h, w};
    return n <= 0 || c <= 0 || h <= 0 || w <= 0;
}
inline int cudnnSetFilter4dDescriptor(cudnnFilterDescriptor_t d, int, int, int64_t o, int64_t i, int64_t h, int64_t w) {
    *d = {o, i, h, w};
    return o <= 0 || i <= 0 || h <= 0 || w <= 0;
}
inline int cudnnSetConvolution2dDescriptor(cudnnConvolutionDescriptor_t d, int64_t ph, int64_t pw, int64_t sh, int64_t sw,
                                           int64_t dh, int64_t dw, int, int) {
    *d = {{ph, pw}, {sh, sw}, {dh, dw}};
    return ph < 0 || pw < 0 || sh <= 0 || sw <= 0 || dh <= 0 || dw <= 0;
}

namespace on_cpu {

static const size_t WORKSPACE = 4096;  // bytes that each convolution asks for

// Algorithm 1 is the heuristics' choice for even widths, and not supported for others; 2 is for all.
inline bool supports(const on_cpu_tensor& x, int algorithm) { return algorithm == 2 || (algorithm == 1 && x.w % 2 == 0); }

template <class Algorithm> struct Performance { Algorithm algo; int status; size_t memory; };

template <class Algorithm>
int find_algorithm(const on_cpu_tensor& x, int most, int* count, Performance<Algorithm>* found) {
    require(most >= 3, "room for algorithms");
    found[0] = {Algorithm(0), CUDNN_STATUS_NOT_SUPPORTED, 0};
    found[1] = {Algorithm(3), CUDNN_STATUS_SUCCESS, 2 * WORKSPACE};  // too much
    found[2] = {Algorithm(x.w % 2 ? 2 : 1), CUDNN_STATUS_SUCCESS, WORKSPACE};
    *count = 3;
    return 0;
}

inline int measure(const on_cpu_tensor& x, int algorithm, size_t* bytes) {
    *bytes = WORKSPACE;
    return supports(x, algorithm) ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_NOT_SUPPORTED;
}

// Call f(image, output channel, input channel, output pixel, input pixel, weight) for each product; the last three are indices.
template <class F>
int for_each_product(const on_cpu_tensor& x, const on_cpu_filter& w, const on_cpu_conv& k, const on_cpu_tensor& y, int algorithm,
                     void* workspace, size_t bytes, F f) {
    for (int axis = 0; axis < 2; axis++) {
        const int64_t side = axis ? x.w : x.h, kernel = axis ? w.w : w.h, out = axis ? y.w : y.h;
        if (out != (side + 2 * k.padding[axis] - k.dilation[axis] * (kernel - 1) - 1) / k.stride[axis] + 1) return 1;
    }
    if (x.n != y.n || x.c != w.i || y.c != w.o || !supports(x, algorithm) || bytes != WORKSPACE) return 1;
    std::memset(workspace, 0xff, bytes);
    for (int64_t n = 0; n < x.n; n++)
        for (int64_t o = 0; o < w.o; o++)
            for (int64_t i = 0; i < w.i; i++)
                for (int64_t r = 0; r < y.h; r++)
                    for (int64_t u = 0; u < w.h; u++) {
                        const int64_t row = r * k.stride[0] - k.padding[0] + u * k.dilation[0];
                        if (row < 0 || row >= x.h) continue;
                        for (int64_t c = 0; c < y.w; c++)
                            for (int64_t v = 0; v < w.w; v++) {
                                const int64_t column = c * k.stride[1] - k.padding[1] + v * k.dilation[1];
                                if (column < 0 || column >= x.w) continue;
                                f(((n * w.o + o) * y.h + r) * y.w + c, ((n * w.i + i) * x.h + row) * x.w + column,
                                  ((o * w.i + i) * w.h + u) * w.w + v);
                            }
                    }
    return 0;
}

inline float* clear(void* array, int64_t size) { return (float*)std::memset(array, 0, size * sizeof(float)); }

}  // namespace on_cpu

enum cudnnConvolutionFwdAlgo_t {};
enum cudnnConvolutionBwdDataAlgo_t {};
enum cudnnConvolutionBwdFilterAlgo_t {};
using cudnnConvolutionFwdAlgoPerf_t = on_cpu::Performance<cudnnConvolutionFwdAlgo_t>;
using cudnnConvolutionBwdDataAlgoPerf_t = on_cpu::Performance<cudnnConvolutionBwdDataAlgo_t>;
using cudnnConvolutionBwdFilterAlgoPerf_t = on_cpu::Performance<cudnnConvolutionBwdFilterAlgo_t>;

inline int cudnnGetConvolutionForwardAlgorithm_v7(int, cudnnTensorDescriptor_t x, cudnnFilterDescriptor_t,
                                                  cudnnConvolutionDescriptor_t, cudnnTensorDescriptor_t, int most, int* count,
                                                  cudnnConvolutionFwdAlgoPerf_t* found) {
    return on_cpu::find_algorithm(*x, most, count, found);
}
inline int cudnnGetConvolutionBackwardDataAlgorithm_v7(int, cudnnFilterDescriptor_t, cudnnTensorDescriptor_t,
                                                       cudnnConvolutionDescriptor_t, cudnnTensorDescriptor_t x, int most,
                                                       int* count, cudnnConvolutionBwdDataAlgoPerf_t* found) {
    return on_cpu::find_algorithm(*x, most, count, found);
}
inline int cudnnGetConvolutionBackwardFilterAlgorithm_v7(int, cudnnTensorDescriptor_t x, cudnnTensorDescriptor_t,
                                                         cudnnConvolutionDescriptor_t, cudnnFilterDescriptor_t, int most,
                                                         int* count, cudnnConvolutionBwdFilterAlgoPerf_t* found) {
    return on_cpu::find_algorithm(*x, most, count, found);
}
inline int cudnnGetConvolutionForwardWorkspaceSize(int, cudnnTensorDescriptor_t x, cudnnFilterDescriptor_t,
                                                   cudnnConvolutionDescriptor_t, cudnnTensorDescriptor_t, int algorithm,
                                                   size_t* bytes) {
    return on_cpu::measure(*x, algorithm, bytes);
}
inline int cudnnGetConvolutionBackwardDataWorkspaceSize(int, cudnnFilterDescriptor_t, cudnnTensorDescriptor_t,
                                                        cudnnConvolutionDescriptor_t, cudnnTensorDescriptor_t x, int algorithm,
                                                        size_t* bytes) {
    return on_cpu::measure(*x, algorithm, bytes);
}
inline int cudnnGetConvolutionBackwardFilterWorkspaceSize(int, cudnnTensorDescriptor_t x, cudnnTensorDescriptor_t,
                                                          cudnnConvolutionDescriptor_t, cudnnFilterDescriptor_t, int algorithm,
                                                          size_t* bytes) {
    return on_cpu::measure(*x, algorithm, bytes);
}

inline int cudnnConvolutionForward(int, const void*, cudnnTensorDescriptor_t dx, const float* x, cudnnFilterDescriptor_t dw,
                                   const float* w, cudnnConvolutionDescriptor_t conv, int algorithm, void* workspace,
                                   size_t bytes, const void*, cudnnTensorDescriptor_t dy, float* y) {
    on_cpu::clear(y, dy->n * dy->c * dy->h * dy->w);
    return on_cpu::for_each_product(*dx, *dw, *conv, *dy, algorithm, workspace, bytes,
                                    [=](int64_t o, int64_t i, int64_t k) { y[o] += x[i] * w[k]; });
}
inline int cudnnConvolutionBackwardData(int, const void*, cudnnFilterDescriptor_t dw, const float* w, cudnnTensorDescriptor_t dy,
                                        const float* y, cudnnConvolutionDescriptor_t conv, int algorithm, void* workspace,
                                        size_t bytes, const void*, cudnnTensorDescriptor_t dx, float* x) {
    on_cpu::clear(x, dx->n * dx->c * dx->h * dx->w);
    return on_cpu::for_each_product(*dx, *dw, *conv, *dy, algorithm, workspace, bytes,
                                    [=](int64_t o, int64_t i, int64_t k) { x[i] += y[o] * w[k]; });
}
inline int cudnnConvolutionBackwardFilter(int, const void*, cudnnTensorDescriptor_t dx, const float* x,
                                          cudnnTensorDescriptor_t dy, const float* y, cudnnConvolutionDescriptor_t conv,
                                          int algorithm, void* workspace, size_t bytes, const void*, cudnnFilterDescriptor_t dw,
                                          float* w) {
    on_cpu::clear(w, dw->o * dw->i * dw->h * dw->w);
    return on_cpu::for_each_product(*dx, *dw, *conv, *dy, algorithm, workspace, bytes,
                                    [=](int64_t o, int64_t i, int64_t k) { w[k] += x[i] * y[o]; });
}

namespace jittor {
static int cublas_handle, cudnn_handle;
}
