"""Batches of images of different sizes, and small helpers."""

import numpy as np

from util.backend import jt
from util.nearest import nearest_index


class NestedTensor:
    """A batch of images padded to one size.

    tensors: float32 [B, 3, H, W], zero on the padding (or a feature map [B, C, h, w]).
    mask: bool [B, H, W], True on the padding.
    Both are NumPy arrays when they come from the data loader and Jittor Vars after `to_jittor`.
    """

    def __init__(self, tensors, mask):
        self.tensors = tensors
        self.mask = mask

    def to_jittor(self):
        """The same batch as Jittor Vars: the one place where images go to the device."""
        return NestedTensor(jt.array(self.tensors).stop_grad(), jt.array(self.mask).stop_grad())

    def decompose(self):
        return self.tensors, self.mask


def nested_tensor_from_arrays(images):
    """Pads float32 images [3, h_i, w_i] at the bottom and right to the largest height and width.

    Returns a NestedTensor of NumPy arrays (original: `nested_tensor_from_tensor_list`).
    """
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    tensors = np.zeros((len(images), images[0].shape[0], height, width), np.float32)
    mask = np.ones((len(images), height, width), bool)
    for i, image in enumerate(images):
        _, h, w = image.shape
        tensors[i, :, :h, :w] = image
        mask[i, :h, :w] = False
    return NestedTensor(tensors, mask)


def resize_nearest(x, size):
    """Var [..., h, w] resized to size (height, width) by PyTorch's nearest interpolation."""
    rows, columns = (jt.array(nearest_index(old, new)) for old, new in zip(x.shape[-2:], size))
    *dims, rows_in, columns_in = (f"i{i}" for i in range(x.ndim))
    # Indexing would do, too, but with CUDA Jittor compiles that again for some sizes.
    return x.reindex(
        [*x.shape[:-2], *size],
        [*dims, f"@e0({rows_in})", f"@e1({columns_in})"],
        extras=[rows, columns],
    )
