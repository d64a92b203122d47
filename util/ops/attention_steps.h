// The steps of multi-head attention, from the functions of attention.h or attention.cuh, at whose end this is included.
#pragma once

namespace detr {

// Arrays of an attention of `queries` to `keys`. E = heads * size; the weights and what has their shape are [B, heads, queries, keys].
struct AttentionShape {
    dim_t batch, heads, queries, keys, size;
    dim_t width() const { return heads * size; }
    dim_t query_rows() const { return batch * queries; }
    dim_t key_rows() const { return batch * keys; }
    dim_t rows() const { return batch * heads * queries; }
    // Heads of an array [B, length, E], and of the weights
    Heads split(float* x, dim_t length) const { return {x, width(), size, length * width()}; }
    Heads weights(float* x) const { return {x, keys, queries * keys, heads * queries * keys}; }
};

// Project query [B, queries, E], key and value [B, keys, E] with w [3E, E] and b [3E], attend, and project the heads' results
// [B, queries, E] with out_w [E, E] and out_b [E] to out.
// mask: bool [B, keys] or null, true = ignore; weights: after the softmax; projected [B * (queries + 2 * keys), E]: queries, which
// are scaled, keys and values; scratch: as the weights
inline void attention(const float* query, const float* key, const float* value, const float* w, const float* b,
                      const float* out_w, const float* out_b, const bool* mask, const Dropout& dropout, float* out, float* weights,
                      float* projected, float* results, float* scratch, const AttentionShape& s) {
    const dim_t n = s.width();
    float *q = projected, *k = q + s.query_rows() * n, *v = k + s.key_rows() * n;
    matmul('N', 'T', s.query_rows(), n, n, query, w, q);
    matmul('N', 'T', s.key_rows(), n, n, key, w + n * n, k);
    matmul('N', 'T', s.key_rows(), n, n, value, w + 2 * n * n, v);
    add_projection_bias(projected, b, 1 / std::sqrt((float)s.size), s.query_rows(), s.key_rows(), n);
    const Heads q_heads = s.split(q, s.queries), k_heads = s.split(k, s.keys), v_heads = s.split(v, s.keys);
    head_matmul('N', 'T', s.batch, s.heads, s.queries, s.keys, s.size, 1, q_heads, k_heads, s.weights(scratch));
    softmax_dropout(scratch, mask, s.heads * s.queries, dropout, weights, s.rows(), s.keys);
    head_matmul('N', 'N', s.batch, s.heads, s.queries, s.size, s.keys, 1, s.weights(dropout.seed ? scratch : weights), v_heads,
                s.split(results, s.queries));
    linear(results, out_w, out_b, false, NO_DROPOUT, out, s.query_rows(), n, n);
}

// Gradients of `attention` from d_out; d, d_projected, d_scores and scratch are intermediate results.
inline void attention_backward(const float* d_out, const float* query, const float* key, const float* value, const float* w,
                               const float* out_w, float* weights, float* projected, const float* results, const Dropout& dropout,
                               float* d_query, float* d_key, float* d_value, float* dw, float* db, float* d_out_w, float* d_out_b,
                               float* d, float* d_projected, float* d_scores, float* scratch, const AttentionShape& s) {
    const dim_t n = s.width(), offset = s.query_rows() * n, size = s.key_rows() * n;
    linear_backward(d_out, results, out_w, d, d_out_w, d_out_b, s.query_rows(), n, n);
    auto q_heads = [&](float* x) { return s.split(x, s.queries); };
    auto k_heads = [&](float* x) { return s.split(x + offset, s.keys); };
    auto v_heads = [&](float* x) { return s.split(x + offset + size, s.keys); };
    head_matmul('N', 'T', s.batch, s.heads, s.queries, s.keys, s.size, 1, q_heads(d), v_heads(projected), s.weights(d_scores));
    softmax_dropout_backward(d_scores, weights, dropout, scratch, s.rows(), s.keys);
    head_matmul('T', 'N', s.batch, s.heads, s.keys, s.size, s.queries, 1, s.weights(dropout.seed ? scratch : weights), q_heads(d),
                v_heads(d_projected));
    head_matmul('N', 'N', s.batch, s.heads, s.queries, s.size, s.keys, 1 / std::sqrt((float)s.size), s.weights(d_scores),
                k_heads(projected), q_heads(d_projected));
    head_matmul('T', 'N', s.batch, s.heads, s.keys, s.size, s.queries, 1, s.weights(d_scores), q_heads(projected),
                k_heads(d_projected));
    float *dq = d_projected, *dk = dq + offset, *dv = dk + size;
    linear_backward(dq, query, w, d_query, dw, nullptr, s.query_rows(), n, n);
    linear_backward(dk, key, w + n * n, d_key, dw + n * n, nullptr, s.key_rows(), n, n);
    linear_backward(dv, value, w + 2 * n * n, d_value, dw + 2 * n * n, nullptr, s.key_rows(), n, n);
    sum_projected(d_projected, db, s.query_rows(), s.key_rows(), n);
}

}  // namespace detr
