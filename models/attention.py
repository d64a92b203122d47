"""Multi-head attention with the parameters of PyTorch's `nn.MultiheadAttention`."""

from contextlib import contextmanager

from util.backend import nn
from util.ops import Dropout, Linear, attention


class MultiheadAttention(nn.Module):
    """Multi-head scaled dot-product attention (paper, appendix A.1).

    The three input projections are packed in `in_proj_weight` [3E, E] and `in_proj_bias` [3E]
    (query, key, value), so that state dicts of PyTorch load unchanged.

    attention_hook: if set, called in each forward pass with the attention weights averaged over the
    heads, Var [B, N, M].
    """

    attention_hook = None

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
        """Attend from query to key and value.

        query [B, N, E], key and value [B, M, E], key_padding_mask bool [B, M] (True: ignore)
        -> [B, N, E]

        Each row of the mask must leave at least one key unmasked.
        """
        out, weights = attention(
            *(query, key, value),
            *(self.in_proj_weight, self.in_proj_bias),
            *(self.out_proj.weight, self.out_proj.bias),
            self.num_heads,
            key_padding_mask,
            self.dropout,
        )
        if self.attention_hook:
            self.attention_hook(weights.mean(1))
        return out


@contextmanager
def record_attention(transformer):
    """Yield a dict that each pass fills with the last layers' attention weights (NumPy float32).

    `encoder` [B, N, N]: self-attention (missing without encoder layers); `decoder` [B, Q, N]:
    cross-attention to the N encoder positions. Averaged over the heads; rows sum to 1.
    """
    recorded = {}
    modules = {"decoder": transformer.decoder.layers[-1].multihead_attn}
    if len(transformer.encoder.layers):
        modules["encoder"] = transformer.encoder.layers[-1].self_attn
    for name, module in modules.items():
        module.attention_hook = lambda weights, name=name: recorded.update({name: weights.numpy()})
    try:
        yield recorded
    finally:
        for module in modules.values():
            module.attention_hook = None
