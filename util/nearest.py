"""Nearest-neighbour interpolation, as PyTorch computes it."""

import numpy as np


def nearest_index(size, new_size):
    """Return the source pixel of each pixel, int64 [new_size], when `size` pixels are resized."""
    scale = np.float32(size) / np.float32(new_size)
    index = np.floor(np.arange(new_size, dtype=np.float32) * scale).astype(np.int64)
    return np.minimum(index, size - 1)
