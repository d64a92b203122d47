"""The transformer of DETR (paper, section 3.2 and appendix A.3).

Unlike the textbook transformer, it adds position encodings to queries and keys in every layer, its
encoder has a final norm only with pre-norm, and its decoder returns the output of every layer.
Tensors are batch first: [B, N, C].
"""

from util import ops
from util.backend import jt, nn
from util.ops import Dropout, LayerNorm, Linear

from .attention import MultiheadAttention


class Transformer(nn.Module):
    def __init__(
        self,
        d_model=256,
        nhead=8,
        num_encoder_layers=6,
        num_decoder_layers=6,
        dim_feedforward=2048,
        dropout=0.1,
        normalize_before=False,
    ):
        super().__init__()
        layer_args = (d_model, nhead, dim_feedforward, dropout, normalize_before)
        self.encoder = TransformerEncoder(
            [TransformerEncoderLayer(*layer_args) for _ in range(num_encoder_layers)],
            LayerNorm(d_model) if normalize_before else None,
        )
        self.decoder = TransformerDecoder(
            [TransformerDecoderLayer(*layer_args) for _ in range(num_decoder_layers)],
            LayerNorm(d_model),
        )
        self.d_model = d_model
        self.nhead = nhead
        self.dropouts = tuple(m for m in self.modules() if isinstance(m, Dropout))
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def execute(self, src, mask, query_embed, pos_embed):
        """Return `hs`, the output of every decoder layer, and `memory`, the encoder's output.

        src and pos_embed [B, C, h, w], mask bool [B, h, w] (True on padding), query_embed [Q, C]
        -> hs [L, B, Q, C], normalized; memory [B, C, h, w]
        """
        ops.draw_seeds(self.dropouts)
        b, c, h, w = src.shape
        src = ops.transpose(src.reshape(b, c, h * w))
        pos_embed = ops.transpose(pos_embed.reshape(b, c, h * w))
        mask = mask.reshape(b, h * w)
        query_embed = query_embed.broadcast([b] + query_embed.shape, [0])
        memory = self.encoder(src, mask, pos_embed)
        hs = self.decoder(jt.zeros_like(query_embed), memory, mask, pos_embed, query_embed)
        return hs, ops.transpose(memory).reshape(b, c, h, w)


class TransformerEncoder(nn.Module):
    def __init__(self, layers, norm):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def execute(self, src, key_padding_mask, pos):
        """src and pos [B, N, C], key_padding_mask bool [B, N] -> [B, N, C]"""
        for layer in self.layers:
            src = layer(src, key_padding_mask, pos)
        return src if self.norm is None else self.norm(src)


class TransformerDecoder(nn.Module):
    def __init__(self, layers, norm):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def execute(self, tgt, memory, key_padding_mask, pos, query_pos):
        """Return the normalized output of every layer.

        tgt and query_pos [B, Q, C], memory and pos [B, N, C], key_padding_mask bool [B, N]
        -> [L, B, Q, C]
        """
        intermediate = []
        for layer in self.layers:
            tgt = layer(tgt, memory, key_padding_mask, pos, query_pos)
            intermediate.append(self.norm(tgt))
        return ops.stack(intermediate)


class TransformerEncoderLayer(nn.Module):
    def __init__(self, d_model, nhead, dim_feedforward, dropout, normalize_before):
        super().__init__()
        self.self_attn = MultiheadAttention(d_model, nhead, dropout)
        self.dropout1 = Dropout(dropout)
        self.linear1 = Linear(d_model, dim_feedforward)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model)
        self.norm1 = LayerNorm(d_model)
        self.norm2 = LayerNorm(d_model)
        self.dropout2 = Dropout(dropout)
        self.normalize_before = normalize_before

    def execute(self, src, key_padding_mask, pos):
        if self.normalize_before:
            src = src + self.dropout1(self._attend_self(self.norm1(src), key_padding_mask, pos))
            return src + self.dropout2(self._feed_forward(self.norm2(src)))
        attended = self._attend_self(src, key_padding_mask, pos)
        src = ops.add_norm(src, attended, self.dropout1, self.norm1)
        return ops.add_norm(src, self._feed_forward(src), self.dropout2, self.norm2)

    def _attend_self(self, src, key_padding_mask, pos):
        q = k = src + pos
        return self.self_attn(q, k, src, key_padding_mask)

    def _feed_forward(self, x):
        return ops.feed_forward(x, self.linear1, self.linear2, self.dropout)


class TransformerDecoderLayer(nn.Module):
    def __init__(self, d_model, nhead, dim_feedforward, dropout, normalize_before):
        super().__init__()
        self.self_attn = MultiheadAttention(d_model, nhead, dropout)
        self.dropout1 = Dropout(dropout)
        self.multihead_attn = MultiheadAttention(d_model, nhead, dropout)
        self.dropout2 = Dropout(dropout)
        self.linear1 = Linear(d_model, dim_feedforward)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model)
        self.norm1 = LayerNorm(d_model)
        self.norm2 = LayerNorm(d_model)
        self.norm3 = LayerNorm(d_model)
        self.dropout3 = Dropout(dropout)
        self.normalize_before = normalize_before

    def execute(self, tgt, memory, key_padding_mask, pos, query_pos):
        memory_args = (memory, key_padding_mask, pos, query_pos)
        if self.normalize_before:
            tgt = tgt + self.dropout1(self._attend_self(self.norm1(tgt), query_pos))
            tgt = tgt + self.dropout2(self._attend_memory(self.norm2(tgt), *memory_args))
            return tgt + self.dropout3(self._feed_forward(self.norm3(tgt)))
        tgt = ops.add_norm(tgt, self._attend_self(tgt, query_pos), self.dropout1, self.norm1)
        tgt = ops.add_norm(tgt, self._attend_memory(tgt, *memory_args), self.dropout2, self.norm2)
        return ops.add_norm(tgt, self._feed_forward(tgt), self.dropout3, self.norm3)

    def _attend_self(self, tgt, query_pos):
        q = k = tgt + query_pos
        return self.self_attn(q, k, tgt)

    def _attend_memory(self, tgt, memory, key_padding_mask, pos, query_pos):
        return self.multihead_attn(tgt + query_pos, memory + pos, memory, key_padding_mask)

    def _feed_forward(self, x):
        return ops.feed_forward(x, self.linear1, self.linear2, self.dropout)
