"""Position encodings of the backbone's feature map: sine (paper, appendix A.4) or learned."""

import math

import numpy as np

from util import ops
from util.backend import jt, nn

from .architecture import LEARNED_CELLS


class PositionEmbeddingSine(nn.Module):
    """Fixed sine encoding; positions count unpadded cells, scaled to 0..2 pi over each image."""

    def __init__(self, num_pos_feats=64, temperature=10000):
        super().__init__()
        self.num_pos_feats = num_pos_feats
        exponent = np.arange(num_pos_feats // 2, dtype=np.float32) * np.float32(2 / num_pos_feats)
        self.wavelength = np.float32(temperature) ** exponent

    def execute(self, tensor_list):
        """NestedTensor with mask [B, h, w] -> float32 [B, 2 * num_pos_feats, h, w].

        y features come before x features.
        """
        not_mask = jt.logical_not(tensor_list.mask).float32()
        y = not_mask.cumsum(1)
        x = not_mask.cumsum(2)
        y = y / (not_mask.sum(1, keepdims=True) + 1e-6) * (2 * math.pi)
        x = x / (not_mask.sum(2, keepdims=True) + 1e-6) * (2 * math.pi)
        return _channels_first(jt.concat([self._features(y), self._features(x)], dim=3)).stop_grad()

    def _features(self, position):
        """[B, h, w] -> [B, h, w, num_pos_feats]: sine and cosine of each frequency, interleaved."""
        angle = position.unsqueeze(-1) / jt.array(self.wavelength)
        return jt.stack([angle.sin(), angle.cos()], dim=4).reshape(
            position.shape + [self.num_pos_feats]
        )


class PositionEmbeddingLearned(nn.Module):
    """A learned vector per row and per column of a feature map of at most 50 x 50 cells."""

    def __init__(self, num_pos_feats=256):
        super().__init__()
        self.row_embed = nn.Embedding(LEARNED_CELLS, num_pos_feats)
        self.col_embed = nn.Embedding(LEARNED_CELLS, num_pos_feats)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def execute(self, tensor_list):
        """NestedTensor with tensors [B, C, h, w] -> float32 [B, 2 * num_pos_feats, h, w].

        x features come before y features.

        Raises ValueError for a feature map of more than 50 rows or columns.
        """
        b, _, h, w = tensor_list.tensors.shape
        if max(h, w) > LEARNED_CELLS:
            raise ValueError(
                f"tensor_list has {h} x {w} cells, more than the {LEARNED_CELLS} rows and columns "
                "that are learned"
            )
        shape = [b, h, w, self.row_embed.weight.shape[1]]
        x = self.col_embed.weight[:w].broadcast(shape, [0, 1])
        y = self.row_embed.weight[:h].broadcast(shape, [0, 2])
        return _channels_first(jt.concat([x, y], dim=3))


def _channels_first(x):
    """[B, h, w, C] -> [B, C, h, w]"""
    b, h, w, c = x.shape
    return ops.transpose(x.reshape(b, h * w, c)).reshape(b, c, h, w)


def build_position_encoding(args):
    num_pos_feats = args.hidden_dim // 2
    if args.position_embedding == "learned":
        return PositionEmbeddingLearned(num_pos_feats)
    return PositionEmbeddingSine(num_pos_feats)
