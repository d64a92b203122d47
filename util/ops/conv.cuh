// Convolutions by cuDNN, of any geometry.
#pragma once
# include "cuda.cuh"  // spaced: see code.py
#include <array>
#include <map>

namespace detr {

struct Epilogue {  // y = max(scale * y + bias + residual, 0), as in common.h
    const float *scale, *bias, *residual;
    bool relu;
};

struct ConvShape {  // [batch, ci, h, w] -> [batch, co, oh, ow], as in common.h
    dim_t batch, ci, co, h, w, kh, kw, stride, padding, dilation;
    dim_t oh() const { return (h + 2 * padding - dilation * (kh - 1) - 1) / stride + 1; }
    dim_t ow() const { return (w + 2 * padding - dilation * (kw - 1) - 1) / stride + 1; }
};

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

// What cuDNN's queries said, which take longer than most convolutions: one for the algorithm per class of sizes (each power of
// two of h * w), one for its workspace per size. If a size does not allow the algorithm, or only with too large a workspace, it
// gets one of its own.
template <class Algorithm> class Plans {
    using Key = std::array<dim_t, 10>;
    std::map<Key, Algorithm> algorithms;
    std::map<Key, Plan<Algorithm>> plans;

    static Key key(const ConvShape& k, dim_t h, dim_t w) {
        return {k.batch, k.ci, k.co, h, w, k.kh, k.kw, k.stride, k.padding, k.dilation};
    }

public:
    // choose(): the algorithm; measure(algorithm, bytes): the status of the query for its workspace
    template <class Choose, class Measure> Plan<Algorithm> get(const ConvShape& shape, Choose choose, Measure measure) {
        const Key size = key(shape, shape.h, shape.w);
        auto kept = plans.find(size);
        if (kept != plans.end()) return kept->second;
        dim_t log_size = 0;
        while (shape.h * shape.w >> log_size) log_size++;
        const Key size_class = key(shape, log_size, 0);
        auto algorithm = algorithms.find(size_class);
        if (algorithm == algorithms.end()) algorithm = algorithms.emplace(size_class, choose()).first;
        Plan<Algorithm> plan{algorithm->second, 0};
        if (measure(plan.algorithm, &plan.workspace) != CUDNN_STATUS_SUCCESS || plan.workspace > max_workspace()) {
            plan.algorithm = choose();
            checkCudaErrors(measure(plan.algorithm, &plan.workspace));
        }
        if (plans.size() >= 100000) plans.clear();
        return plans[size] = plan;
    }
};

// Return the first algorithm that cuDNN's heuristics suggest, as PyTorch does, but one with less workspace if it takes too much.
template <class Performance, class Query> inline auto first_algorithm(Query query) -> decltype(Performance::algo) {
    Performance found[8];
    int count, best = -1;
    checkCudaErrors(query(8, &count, found));
    for (int i = 0; i < count; i++) {
        if (found[i].status != CUDNN_STATUS_SUCCESS) continue;
        if (found[i].memory <= max_workspace()) return found[i].algo;
        if (best < 0 || found[i].memory < found[best].memory) best = i;
    }
    if (best < 0) checkCudaErrors(CUDNN_STATUS_NOT_SUPPORTED);  // raises
    return found[best].algo;
}

inline void conv(const float* w, const float* x, const Epilogue& epilogue, float* y, const ConvShape& k) {
    if (!k.batch) return;
    const Descriptors& d = descriptors(k);
    static Plans<cudnnConvolutionFwdAlgo_t> plans;
    auto handle = jittor::cudnn_handle;
    using Performance = cudnnConvolutionFwdAlgoPerf_t;
    auto plan = plans.get(
        k,
        [&] {
            return first_algorithm<Performance>([&](int most, int* count, Performance* found) {
                return cudnnGetConvolutionForwardAlgorithm_v7(handle, d.x, d.w, d.conv, d.y, most, count, found);
            });
        },
        [&](cudnnConvolutionFwdAlgo_t algorithm, size_t* bytes) {
            return cudnnGetConvolutionForwardWorkspaceSize(handle, d.x, d.w, d.conv, d.y, algorithm, bytes);
        });
    Scratch workspace(plan.workspace);
    const float one = 1, zero = 0;
    checkCudaErrors(cudnnConvolutionForward(handle, &one, d.x, x, d.w, w, d.conv, plan.algorithm, workspace.floats(),
                                            plan.workspace, &zero, d.y, y));
    const dim_t n = k.oh() * k.ow(), size = k.batch * k.co * n;
    if (epilogue.scale || epilogue.bias || epilogue.residual || epilogue.relu)
        launch(finish, blocks(size), THREADS, y, epilogue, k.co, n, size);
}

// dx [batch, ci, h, w] from the gradient d of the convolution's output, without an epilogue
inline void conv_backward_input(const float* w, const float* d, float* dx, const ConvShape& k) {
    const Descriptors& of = descriptors(k);
    static Plans<cudnnConvolutionBwdDataAlgo_t> plans;
    auto handle = jittor::cudnn_handle;
    using Performance = cudnnConvolutionBwdDataAlgoPerf_t;
    auto plan = plans.get(
        k,
        [&] {
            return first_algorithm<Performance>([&](int most, int* count, Performance* found) {
                return cudnnGetConvolutionBackwardDataAlgorithm_v7(handle, of.w, of.y, of.conv, of.x, most, count, found);
            });
        },
        [&](cudnnConvolutionBwdDataAlgo_t algorithm, size_t* bytes) {
            return cudnnGetConvolutionBackwardDataWorkspaceSize(handle, of.w, of.y, of.conv, of.x, algorithm, bytes);
        });
    Scratch workspace(plan.workspace);
    const float one = 1, zero = 0;
    checkCudaErrors(cudnnConvolutionBackwardData(handle, &one, of.w, w, of.y, d, of.conv, plan.algorithm, workspace.floats(),
                                                 plan.workspace, &zero, of.x, dx));
}

// dw [co, ci, kh, kw] from the same
inline void conv_backward_weight(const float* d, const float* x, float* dw, const ConvShape& k) {
    const Descriptors& of = descriptors(k);
    static Plans<cudnnConvolutionBwdFilterAlgo_t> plans;
    auto handle = jittor::cudnn_handle;
    using Performance = cudnnConvolutionBwdFilterAlgoPerf_t;
    auto plan = plans.get(
        k,
        [&] {
            return first_algorithm<Performance>([&](int most, int* count, Performance* found) {
                return cudnnGetConvolutionBackwardFilterAlgorithm_v7(handle, of.x, of.y, of.conv, of.w, most, count, found);
            });
        },
        [&](cudnnConvolutionBwdFilterAlgo_t algorithm, size_t* bytes) {
            return cudnnGetConvolutionBackwardFilterWorkspaceSize(handle, of.x, of.y, of.conv, of.w, algorithm, bytes);
        });
    Scratch workspace(plan.workspace);
    const float one = 1, zero = 0;
    checkCudaErrors(cudnnConvolutionBackwardFilter(handle, &one, of.x, x, of.y, d, of.conv, plan.algorithm, workspace.floats(),
                                                   plan.workspace, &zero, of.w, dw));
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
    const float* d = has_epilogue ? product.floats() : dy;
    conv_backward_weight(d, x, dw, k);
    if (dx) conv_backward_input(w, d, dx, k);
}

}  // namespace cudnn

}  // namespace detr
