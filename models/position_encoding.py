"""Position encodings of the backbone's feature map: sine (paper, appendix A.4) or learned."""

import math

import numpy as np

from util import ops
from util.backend import jt, nn

from .architecture import MAX_LEARNED_POSITIONS


class PositionEmbeddingSine(nn.Module):
    """Sine encoding. Positions are counted over unpadded cells and scaled to 0..2 pi per image."""

    def __init__(self, num_pos_feats=64, temperature=10000):
        super().__init__()
        self.num_pos_feats = num_pos_feats
        exponent = np.arange(num_pos_feats // 2, dtype=np.float32) * np.float32(2 / num_pos_feats)
        # In a tuple, because Jittor takes attributes for parameters; copied to the GPU only once.
        self.wavelength = (jt.array(np.float32(temperature) ** exponent).stop_grad(),)

    def execute(self, features):
        """NestedTensor with mask [B, h, w] -> float32 [B, 2 * num_pos_feats, h, w].

        y features come before x features.
        """
        not_mask = jt.logical_not(features.mask).float32()
        # Cumulative sums, as products because Jittor's cumsum over rows runs on the CPU with CUDA.
        y = ops.bmm(_triangles(not_mask.shape[0], not_mask.shape[1]), not_mask)
        x = ops.bmm_transpose(not_mask, _triangles(not_mask.shape[0], not_mask.shape[2]))
        y = y / (not_mask.sum(1, keepdims=True) + 1e-6) * (2 * math.pi)
        x = x / (not_mask.sum(2, keepdims=True) + 1e-6) * (2 * math.pi)
        return _channels_first(jt.concat([self._features(y), self._features(x)], dim=3)).stop_grad()

    def _features(self, position):
        """[B, h, w] -> [B, h, w, num_pos_feats]: sine and cosine of each frequency, interleaved."""
        angle = position.unsqueeze(-1) / self.wavelength[0]
        waves = jt.stack([angle.sin(), angle.cos()], dim=4)
        return waves.reshape(position.shape + [self.num_pos_feats])


class PositionEmbeddingLearned(nn.Module):
    """Learned row and column embeddings for feature maps of up to 50x50 cells."""

    def __init__(self, num_pos_feats=256):
        super().__init__()
        self.row_embed = nn.Embedding(MAX_LEARNED_POSITIONS, num_pos_feats)
        self.col_embed = nn.Embedding(MAX_LEARNED_POSITIONS, num_pos_feats)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def execute(self, features):
        """NestedTensor with tensors [B, C, h, w] -> float32 [B, 2 * num_pos_feats, h, w].

        x features come before y features. Raises ValueError if h or w exceeds 50.
        """
        b, _, h, w = features.tensors.shape
        if max(h, w) > MAX_LEARNED_POSITIONS:
            raise ValueError(
                f"features: {h}x{w} cells, but the learned position encoding supports "
                f"{MAX_LEARNED_POSITIONS}x{MAX_LEARNED_POSITIONS} at most; use smaller images"
            )
        shape = [b, h, w, self.row_embed.weight.shape[1]]
        x = self.col_embed.weight[:w].broadcast(shape, [0, 1])
        y = self.row_embed.weight[:h].broadcast(shape, [0, 2])
        return _channels_first(jt.concat([x, y], dim=3))


def _triangles(batch, n):
    """Return [batch, n, n]: ones on and below the diagonal."""
    return (jt.index((batch, n, n), 1) >= jt.index((batch, n, n), 2)).float32()


def _channels_first(x):
    """[B, h, w, C] -> [B, C, h, w]"""
    b, h, w, c = x.shape
    return ops.transpose(x.reshape(b, h * w, c)).reshape(b, c, h, w)
