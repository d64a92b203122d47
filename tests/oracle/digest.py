"""Two figures per gradient, so that golden files stay small. NumPy only: both interpreters import
this file.
"""

import zlib

import numpy as np


def digest(gradients):
    """Return L2 norm and dot product with fixed signs of name -> array, sorted by name:
    float64 [n, 2].

    The signs are pseudo-random, from the name: the dot products of two gradients differ by about
    the L2 norm of their difference, which the norms alone would not show.
    """
    return np.array(
        [
            [np.linalg.norm(gradient), _signed_sum(name, gradient)]
            for name, gradient in sorted(gradients.items())
        ]
    )


def _signed_sum(name, gradient):
    random = np.random.default_rng(zlib.crc32(name.encode()))
    bits = np.unpackbits(np.frombuffer(random.bytes(gradient.size // 8 + 1), np.uint8))
    positive = bits[: gradient.size].view(bool)
    values = gradient.ravel().astype(np.float64)
    return 2 * values[positive].sum() - values.sum()
