// Convolutions by cuDNN, of any geometry.
#pragma once
# include "cuda.cuh"  // spaced: see code.py
#include <array>
#include <map>

namespace detr {

static __global__ void finish(float* y, Epilogue epilogue, dim_t channels, dim_t n, dim_t size) {
    const dim_t i = thread_index();
    if (i >= size) return;
    const dim_t c = i / n % channels;
    float value = epilogue.scale ? epilogue.scale[c] * y[i] : y[i];
    if (epilogue.bias) value += epilogue.bias[c];
    if (epilogue.residual) value += epilogue.residual[i];
    y[i] = epilogue.relu && value < 0 ? 0 : value;
}

// The gradient dy before the epilogue: d_residual (or null) without its scale, d_product with it. y: null without ReLU
static __global__ void finish_backward(const float* dy, const float* y, const float* scale, float* d_residual, float* d_product,
                                       dim_t channels, dim_t n, dim_t size) {
    const dim_t i = thread_index();
    if (i >= size) return;
    const float d = !y || y[i] > 0 ? dy[i] : 0;
    if (d_residual) d_residual[i] = d;
    d_product[i] = scale ? d * scale[i / n % channels] : d;
}

namespace cudnn {

// cuDNN's descriptors of a convolution. They are created once and set before each use, which costs less than to create them.
struct Descriptors {
    cudnnTensorDescriptor_t x, y;
    cudnnFilterDescriptor_t w;
    cudnnConvolutionDescriptor_t conv;

    Descriptors() {
        checkCudaErrors(cudnnCreateTensorDescriptor(&x));
        checkCudaErrors(cudnnCreateTensorDescriptor(&y));
        checkCudaErrors(cudnnCreateFilterDescriptor(&w));
        checkCudaErrors(cudnnCreateConvolutionDescriptor(&conv));
    }

    void set(const ConvShape& k) const {
        checkCudaErrors(cudnnSetTensor4dDescriptor(x, CUDNN_TENSOR_NCHW, CUDNN_DATA_FLOAT, k.batch, k.ci, k.h, k.w));
        checkCudaErrors(cudnnSetTensor4dDescriptor(y, CUDNN_TENSOR_NCHW, CUDNN_DATA_FLOAT, k.batch, k.co, k.oh(), k.ow()));
        checkCudaErrors(cudnnSetFilter4dDescriptor(w, CUDNN_DATA_FLOAT, CUDNN_TENSOR_NCHW, k.co, k.ci, k.kh, k.kw));
        checkCudaErrors(cudnnSetConvolution2dDescriptor(conv, k.padding, k.padding, k.stride, k.stride, k.dilation, k.dilation,
                                                        CUDNN_CROSS_CORRELATION, CUDNN_DATA_FLOAT));
    }
};

inline const Descriptors& descriptors(const ConvShape& shape) {
    static const Descriptors kept;
    kept.set(shape);
    return kept;
}

template <class Algorithm> struct Plan { Algorithm algorithm; size_t workspace; };

// Return the algorithm and workspace for one of cuDNN's three operations, and keep what its queries say, which take longer than
// most convolutions: one for the algorithm per class of sizes (each power of two of h * w), one for the workspace per size. If a
// size does not allow the algorithm, or only with too large a workspace, it gets one of its own.
// find, measure: cuDNN's queries; a, b, conv, c: their descriptors
template <class Performance, class Find, class Measure, class A, class B, class C>
inline auto get_plan(const ConvShape& k, Find find, Measure measure, A a, B b, cudnnConvolutionDescriptor_t conv, C c)
    -> Plan<decltype(Performance::algo)> {
    using Algorithm = decltype(Performance::algo);
    using Key = std::array<dim_t, 10>;
    static std::map<Key, Algorithm> algorithms;
    static std::map<Key, Plan<Algorithm>> plans;
    auto key = [&](dim_t h, dim_t w) { return Key{k.batch, k.ci, k.co, h, w, k.kh, k.kw, k.stride, k.padding, k.dilation}; };
    auto query_workspace = [&](Plan<Algorithm>& plan) {
        return measure(jittor::cudnn_handle, a, b, conv, c, plan.algorithm, &plan.workspace);
    };
    // The first algorithm that cuDNN's heuristics suggest, as in PyTorch, but one with less workspace if it takes too much
    auto choose = [&] {
        Performance found[8];
        int count, best = -1;
        checkCudaErrors(find(jittor::cudnn_handle, a, b, conv, c, 8, &count, found));
        for (int i = 0; i < count; i++) {
            if (found[i].status != CUDNN_STATUS_SUCCESS) continue;
            if (found[i].memory <= max_workspace()) return found[i].algo;
            if (best < 0 || found[i].memory < found[best].memory) best = i;
        }
        if (best < 0) checkCudaErrors(CUDNN_STATUS_NOT_SUPPORTED);  // raises
        return found[best].algo;
    };

    const Key size = key(k.h, k.w);
    auto kept = plans.find(size);
    if (kept != plans.end()) return kept->second;
    dim_t log_size = 0;
    while (k.h * k.w >> log_size) log_size++;
    const Key size_class = key(log_size, 0);
    auto algorithm = algorithms.find(size_class);
    if (algorithm == algorithms.end()) algorithm = algorithms.emplace(size_class, choose()).first;
    Plan<Algorithm> plan{algorithm->second, 0};
    if (query_workspace(plan) != CUDNN_STATUS_SUCCESS || plan.workspace > max_workspace()) {
        plan.algorithm = choose();
        checkCudaErrors(query_workspace(plan));
    }
    if (plans.size() >= 100000) plans.clear();
    return plans[size] = plan;
}

inline void conv(const float* w, const float* x, const Epilogue& epilogue, float* y, const ConvShape& k) {
    if (!k.batch) return;
    const Descriptors& d = descriptors(k);
    auto plan = get_plan<cudnnConvolutionFwdAlgoPerf_t>(k, cudnnGetConvolutionForwardAlgorithm_v7,
                                                        cudnnGetConvolutionForwardWorkspaceSize, d.x, d.w, d.conv, d.y);
    Scratch workspace(plan.workspace);
    const float one = 1, zero = 0;
    checkCudaErrors(cudnnConvolutionForward(jittor::cudnn_handle, &one, d.x, x, d.w, w, d.conv, plan.algorithm,
                                            workspace.floats(), plan.workspace, &zero, d.y, y));
    const dim_t n = k.oh() * k.ow(), size = k.batch * k.co * n;
    if (epilogue.scale || epilogue.bias || epilogue.residual || epilogue.relu)
        launch(finish, blocks(size), THREADS, y, epilogue, k.co, n, size);
}

// dx [batch, ci, h, w] from the gradient dy of the convolution's output, without an epilogue
inline void conv_backward_input(const float* w, const float* dy, float* dx, const ConvShape& k, const Descriptors& d) {
    auto plan = get_plan<cudnnConvolutionBwdDataAlgoPerf_t>(k, cudnnGetConvolutionBackwardDataAlgorithm_v7,
                                                            cudnnGetConvolutionBackwardDataWorkspaceSize, d.w, d.y, d.conv, d.x);
    Scratch workspace(plan.workspace);
    const float one = 1, zero = 0;
    checkCudaErrors(cudnnConvolutionBackwardData(jittor::cudnn_handle, &one, d.w, w, d.y, dy, d.conv, plan.algorithm,
                                                 workspace.floats(), plan.workspace, &zero, d.x, dx));
}

// dw [co, ci, kh, kw] from the same
inline void conv_backward_weight(const float* dy, const float* x, float* dw, const ConvShape& k, const Descriptors& d) {
    auto plan = get_plan<cudnnConvolutionBwdFilterAlgoPerf_t>(
        k, cudnnGetConvolutionBackwardFilterAlgorithm_v7, cudnnGetConvolutionBackwardFilterWorkspaceSize, d.x, d.y, d.conv, d.w);
    Scratch workspace(plan.workspace);
    const float one = 1, zero = 0;
    checkCudaErrors(cudnnConvolutionBackwardFilter(jittor::cudnn_handle, &one, d.x, x, d.y, dy, d.conv, plan.algorithm,
                                                   workspace.floats(), plan.workspace, &zero, d.w, dw));
}

// Gradients of `conv` with its epilogue; y: output, null without ReLU; scale, dx, d_residual may be null
inline void conv_backward(const float* dy, const float* x, const float* w, const float* y, const float* scale, float* dw,
                          float* dx, float* d_residual, const ConvShape& k) {
    if (!k.batch) return;
    const dim_t n = k.oh() * k.ow(), size = k.batch * k.co * n;
    const bool has_epilogue = y || scale || d_residual;
    Scratch product(has_epilogue ? size * sizeof(float) : 0);
    if (has_epilogue)
        launch(finish_backward, blocks(size), THREADS, dy, y, scale, d_residual, product.floats(), k.co, n, size);
    if (has_epilogue) dy = product.floats();
    const Descriptors& d = descriptors(k);
    conv_backward_weight(dy, x, dw, k, d);
    if (dx) conv_backward_input(w, dy, dx, k, d);
}

}  // namespace cudnn

}  // namespace detr
