// Call each CUDA operator, forward and backward, at odd sizes on the CPU (cuda_on_cpu.h), with arrays of exactly the sizes that
// they may use. Compiled with AddressSanitizer, this finds accesses beyond an array; with ThreadSanitizer and CUDA_ON_THREADS, threads
// of a block that do not wait for each other. Prints a sum of all results.
#include "cuda_on_cpu.h"
#include "attention.cuh"
#include "conv.cuh"
#include "norm.cuh"
#include "optimizer.cuh"

using namespace detr;

#ifdef CUDA_ON_THREADS  // a thread takes long to start
const AttentionShape attention_shape{1, 1, 2, 7, 3};
const dim_t rows = 3;
const int count = 1;
#else
const AttentionShape attention_shape{2, 3, 5, 7, 3};
const dim_t rows = 9;
const int count = MAX_ARRAYS;
#endif

static std::vector<std::vector<float>> arrays;

static float* array(dim_t size) {
    arrays.emplace_back(size);
    for (dim_t i = 0; i < size; i++) arrays.back()[i] = std::sin(size + i * 0.7f);
    return arrays.back().data();
}

static void call_all(const Dropout& dropout) {
    const AttentionShape s = attention_shape;
    const dim_t e = s.width(), q = s.query_rows() * e, k = s.key_rows() * e, scores = s.rows() * s.keys;
    std::vector<char> ignored(s.key_rows());
    ignored[6] = true;
    const bool* mask = (const bool*)ignored.data();
    float *query = array(q), *key = array(k), *value = array(k), *w = array(3 * e * e), *b = array(3 * e), *out_w = array(e * e);
    float *weights = array(scores), *projected = array(q + 2 * k), *results = array(q);
    attention(query, key, value, w, b, out_w, array(e), mask, dropout, array(q), weights, projected, results, array(scores), s);
    attention_backward(array(q), query, key, value, w, out_w, weights, projected, results, dropout, array(q), array(k), array(k),
                       array(3 * e * e), array(3 * e), array(e * e), array(e), array(q), array(q + 2 * k), array(scores),
                       array(scores), s);

    const dim_t n = 37, m = 11;
    float *x = array(rows * n), *hidden = array(rows * m), *w1 = array(n * m), *w2 = array(n * m);
    feed_forward(x, w1, array(m), w2, array(n), dropout, hidden, array(rows * n), rows, m, n);
    feed_forward_backward(array(rows * n), x, hidden, w1, w2, dropout.scale, array(rows * n), array(n * m), array(m),
                          array(n * m), array(n), array(rows * m), rows, m, n);
    linear(x, w1, nullptr, true, NO_DROPOUT, array(rows * m), rows, m, n);

    float *norm_w = array(n), *sum = array(rows * n);
    layer_norm(x, array(rows * n), dropout, norm_w, array(n), 1e-5f, sum, array(rows * n), rows, n);
    layer_norm_backward(array(rows * n), sum, norm_w, 1e-5f, dropout, array(rows * n), dropout.seed ? array(rows * n) : nullptr,
                        array(n), array(n), rows, n);
    layer_norm(x, nullptr, NO_DROPOUT, norm_w, array(n), 1e-5f, nullptr, array(rows * n), rows, n);
}

static void call_others(const Dropout& dropout) {
    const dim_t n = 300;
    relu(array(n), array(n), n);
    relu_backward(array(n), array(n), array(n), n);
    detr::dropout(array(n), dropout, array(n), n);
    softmax(array(3 * n), nullptr, 1, array(3 * n), 3, n);
    softmax_backward(array(3 * n), array(3 * n), array(3 * n), 3, n);
    transpose(array(3 * 33 * 5), array(3 * 33 * 5), 3, 33, 5);
    batched_matmul('T', 'N', 3, 5, 4, 7, array(3 * 35), array(3 * 28), array(3 * 20));
    const Pieces pieces{{array(6), array(6), array(6)}, 3};
    stack(pieces, array(18), 2, 3);
    unbind(array(18), pieces, 2, 3);
    for (dim_t h : {1, 8, 9}) {
        const dim_t w = h + 2, size = 2 * h * w, pooled = 2 * ((h + 1) / 2) * ((w + 1) / 2);
        float *x = array(size), *y = array(pooled);
        max_pool(x, y, 2, h, w);
        max_pool_backward(array(pooled), x, y, array(size), 2, h, w);
    }
    const dim_t batch = 2, channels = 5, area = 77, size = batch * channels * area, c = channels;
    float *x = array(size), *y = array(size), *w = array(c), *means = array(c), *variances = array(c);
    batch_norm(x, w, array(c), 1e-5f, array(size), true, y, means, variances, batch, channels, area);
    batch_norm_backward(array(size), x, w, means, variances, y, 1e-5f, array(size), array(c), array(c), array(size), batch,
                        channels, area);
    for (dim_t kernel : {1, 3}) {
        const ConvShape shape{2, 3, 4, 9, 10, kernel, kernel, 2, kernel / 2, 1};
        const dim_t outputs = 2 * 4 * shape.oh() * shape.ow(), filters = 12 * kernel * kernel;
        float *images = array(2 * 3 * 90), *filter = array(filters), *scale = array(4), *result = array(outputs);
        cudnn::conv(filter, images, {scale, array(4), array(outputs), true}, result, shape);
        cudnn::conv_backward(array(outputs), images, filter, result, scale, array(filters), array(2 * 3 * 90), array(outputs),
                             shape);
    }
    Arrays squares{};
    Updates updates{};
    for (int i = 0; i < count; i++) {
        const dim_t size = i * 13 + 1;
        squares.x[i] = updates.p[i] = array(size);
        updates.v[i] = updates.m[i] = updates.g[i] = array(size);
        updates.p2[i] = array(size), updates.v2[i] = array(size), updates.m2[i] = array(size);
        squares.sizes[i] = updates.sizes[i] = size;
    }
    square_sums(squares, count, array(count * ARRAY_BLOCKS));
    adamw(updates, count, array(1), array(8));
}

int main() {
    float seed[2] = {0.25f, 0.75f};
#ifndef CUDA_ON_THREADS
    call_all(NO_DROPOUT);
#endif
    call_all(Dropout(seed, 0.3));
    call_others(Dropout(seed, 0.3));
    double sum = 0;
    for (const auto& values : arrays)
        for (float value : values) sum += std::isfinite(value) ? value : 0;
    std::printf("%.6g\n", sum);
}
