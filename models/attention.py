"""Multi-head attention with the parameters of PyTorch's `nn.MultiheadAttention`."""

import math
from contextlib import contextmanager

from util.backend import nn
from util.ops import Dropout, Linear, bmm, bmm_transpose, linear, softmax


class MultiheadAttention(nn.Module):
    """Scaled dot-product attention with several heads (paper, appendix A.1).

    The three input projections are packed in `in_proj_weight` [3E, E] and `in_proj_bias` [3E]
    (query, key, value), as in PyTorch, so that its weights load by name.

    observer: where it is set, a function that gets the attention of each call, Var [B, N, M], the
    mean over the heads.
    """

    observer = None

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.in_proj_weight = nn.init.xavier_uniform((3 * embed_dim, embed_dim), "float32")
        self.in_proj_bias = nn.init.constant((3 * embed_dim,), "float32", 0.0)
        self.out_proj = Linear(embed_dim, embed_dim)
        nn.init.constant_(self.out_proj.bias, 0.0)
        self.dropout = Dropout(dropout)

    def execute(self, query, key, value, key_padding_mask=None):
        """Attention of query to key and value.

        query [B, N, E], key and value [B, M, E], key_padding_mask bool [B, M] (True: ignore)
        -> [B, N, E]

        Every row of the mask must leave at least one key.
        """
        batch, num_queries, _ = query.shape
        q, k, v = (
            self._split_heads(self._project(x, i)) for i, x in enumerate((query, key, value))
        )
        scores = bmm_transpose(q / math.sqrt(q.shape[-1]), k)  # [B * heads, N, M]
        attention = softmax(scores, key_padding_mask)
        if self.observer:
            self.observer(attention.reshape(batch, self.num_heads, num_queries, -1).mean(1))
        attention = self.dropout(attention)
        heads = bmm(attention, v).reshape(batch, self.num_heads, num_queries, -1)
        return self.out_proj(
            heads.transpose(0, 2, 1, 3).reshape(batch, num_queries, self.embed_dim)
        )

    def _project(self, x, i):
        rows = slice(i * self.embed_dim, (i + 1) * self.embed_dim)
        return linear(x, self.in_proj_weight[rows], self.in_proj_bias[rows])

    def _split_heads(self, x):
        """[B, N, E] -> [B * heads, N, E / heads]"""
        batch, length, _ = x.shape
        x = x.reshape(batch, length, self.num_heads, -1).transpose(0, 2, 1, 3)
        return x.reshape(batch * self.num_heads, length, -1)


@contextmanager
def watch_attention(transformer):
    """Yields a dictionary that holds, after each pass, where the last layers look (NumPy float32).

    `encoder` [B, N, N]: the encoder's self attention (missing without encoder layers); `decoder`
    [B, Q, N]: the decoder's attention to the encoder's N positions. Both are means over the heads,
    and their rows sum to 1.
    """
    seen = {}
    watched = {"decoder": transformer.decoder.layers[-1].multihead_attn}
    if len(transformer.encoder.layers):
        watched["encoder"] = transformer.encoder.layers[-1].self_attn
    for name, module in watched.items():
        module.observer = lambda attention, name=name: seen.update({name: attention.numpy()})
    try:
        yield seen
    finally:
        for module in watched.values():
            module.observer = None
