// Matrix products by oneDNN's sgemm.
#pragma once
# include "layers.h"  // spaced: see code.py
#include <signal.h>
#include <sys/mman.h>

extern "C" int dnnl_sgemm(char transa, char transb, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
                          int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc);

namespace detr {

// Alternate signal stack of a thread. oneDNN 2.6 points the stack pointer into the heap during sgemm (oneDNN issue 4845), so a
// handler on the normal stack would overwrite arrays. Python's handlers use the alternate stack.
struct HandlerStack {
    static constexpr size_t SIZE = 65536;  // room for nested handlers
    void* memory = MAP_FAILED;

    HandlerStack() {
        stack_t current;
        sigaltstack(nullptr, &current);
        if (!(current.ss_flags & SS_DISABLE) && current.ss_size >= SIZE) return;  // already set by another operator
        memory = mmap(nullptr, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        stack_t stack{};
        stack.ss_sp = memory;
        stack.ss_size = SIZE;
        if (memory != MAP_FAILED) sigaltstack(&stack, nullptr);
    }

    ~HandlerStack() {
        if (memory == MAP_FAILED) return;
        stack_t none{};
        none.ss_flags = SS_DISABLE;
        sigaltstack(&none, nullptr);
        munmap(memory, SIZE);
    }
};

inline void use_handler_stack() { static thread_local HandlerStack stack; }

// c [m, n] = beta * c + op(a) [m, k] . op(b) [k, n]; single-threaded inside a parallel region
inline void sgemm(char ta, char tb, dim_t m, dim_t n, dim_t k, const float* a, dim_t lda, const float* b, dim_t ldb, float beta,
                  float* c, dim_t ldc) {
    if (omp_in_parallel()) {
        use_handler_stack();
    } else {
        #pragma omp parallel
        use_handler_stack();  // on every thread that oneDNN may use
    }
    dnnl_sgemm(ta, tb, m, n, k, 1.f, a, lda, b, ldb, beta, c, ldc);
}

// c [m, n] = op(a) [m, k] . op(b) [k, n], all contiguous
inline void matmul(char ta, char tb, dim_t m, dim_t n, dim_t k, const float* a, const float* b, float* c) {
    sgemm(ta, tb, m, n, k, a, ta == 'N' ? k : m, b, tb == 'N' ? n : k, 0.f, c, n);
}

// The same for each matrix of a batch
inline void batched_matmul(char ta, char tb, dim_t batch, dim_t m, dim_t n, dim_t k, const float* a, const float* b, float* c) {
    #pragma omp parallel for
    for (dim_t i = 0; i < batch; i++) matmul(ta, tb, m, n, k, a + i * m * k, b + i * k * n, c + i * m * n);
}

// y [rows, n] = x [rows, k] . w^T [k, n] + bias [n] or null, then ReLU, then dropout
inline void linear(const float* x, const float* w, const float* bias, bool relu, const Dropout& dropout, float* y, dim_t rows,
                   dim_t n, dim_t k) {
    matmul('N', 'T', rows, n, k, x, w, y);
    if (!bias && !relu) return;
    #pragma omp parallel for
    for (dim_t r = 0; r < rows; r++) {
        float* out = y + r * n;
        if (bias) for (dim_t i = 0; i < n; i++) out[i] += bias[i];
        if (relu) for (dim_t i = 0; i < n; i++) out[i] = std::max(out[i], 0.f);
        if (!dropout.seed) continue;
        const DropoutMask drop(dropout);
        for (dim_t i = 0; i < n; i++) out[i] = drop(out[i], r * n + i);
    }
}

// out [n] = sum of the rows of x [rows, n], in order, so that it does not depend on the thread count
inline void sum_rows(const float* x, float* out, dim_t rows, dim_t n) {
    const dim_t width = 64;
    #pragma omp parallel for
    for (dim_t start = 0; start < n; start += width) {
        const dim_t end = std::min(n, start + width);
        for (dim_t i = start; i < end; i++) out[i] = 0;
        for (dim_t r = 0; r < rows; r++)
            for (dim_t i = start; i < end; i++) out[i] += x[r * n + i];
    }
}

}  // namespace detr

# include "linear.h"  // spaced: see code.py
