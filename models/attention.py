"""Multi-head attention with the parameters of PyTorch's `nn.MultiheadAttention`."""
import math

import jittor as jt
from jittor import nn

from .ops import Dropout, bmm, bmm_transpose, softmax


class MultiheadAttention(nn.Module):
    """Scaled dot-product attention with several heads (paper, appendix A.1).

    The three input projections are packed in `in_proj_weight` [3E, E] and `in_proj_bias` [3E] (query, key, value),
    as in PyTorch, so that its weights load by name.
    """

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.in_proj_weight = nn.init.xavier_uniform((3 * embed_dim, embed_dim), "float32")
        self.in_proj_bias = nn.init.constant((3 * embed_dim,), "float32", 0.0)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        nn.init.constant_(self.out_proj.bias, 0.0)
        self.dropout = Dropout(dropout)

    def execute(self, query, key, value, key_padding_mask=None):
        """query [B, N, E], key and value [B, M, E], key_padding_mask bool [B, M] (True: ignore) -> [B, N, E].

        Every row of the mask must leave at least one key.
        """
        batch, num_queries, _ = query.shape
        q, k, v = (self._split_heads(self._project(x, i)) for i, x in enumerate((query, key, value)))
        scores = bmm_transpose(q / math.sqrt(q.shape[-1]), k)  # [B * heads, N, M]
        attention = self.dropout(softmax(scores, key_padding_mask))
        heads = bmm(attention, v).reshape(batch, self.num_heads, num_queries, -1)
        return self.out_proj(heads.transpose(0, 2, 1, 3).reshape(batch, num_queries, self.embed_dim))

    def _project(self, x, i):
        rows = slice(i * self.embed_dim, (i + 1) * self.embed_dim)
        return nn.linear(x, self.in_proj_weight[rows], self.in_proj_bias[rows])

    def _split_heads(self, x):
        """[B, N, E] -> [B * heads, N, E / heads]"""
        batch, length, _ = x.shape
        x = x.reshape(batch, length, self.num_heads, -1).transpose(0, 2, 1, 3)
        return x.reshape(batch * self.num_heads, length, -1)
