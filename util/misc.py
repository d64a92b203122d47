"""Padded batches of images, and nearest-neighbour resizing."""

import functools

import numpy as np

from util.backend import jt
from util.nearest import nearest_index


class NestedTensor:
    """A batch of images padded to one size.

    tensors: float32 [B, 3, H, W], zero in the padding (or a feature map [B, C, h, w]).
    mask: bool [B, H, W], True on the padding.
    NumPy arrays from the data loader, Jittor Vars after `to_jittor`.
    """

    def __init__(self, tensors, mask):
        self.tensors = tensors
        self.mask = mask

    def to_jittor(self):
        """Return the batch as Jittor Vars; the only host-to-device copy of images."""
        return NestedTensor(jt.array(self.tensors).stop_grad(), jt.array(self.mask).stop_grad())

    def decompose(self):
        return self.tensors, self.mask


def nested_tensor_from_arrays(images):
    """Pad float32 images [3, h_i, w_i] at the bottom and right to the largest height and width.

    Returns a NestedTensor of NumPy arrays. Source: `nested_tensor_from_tensor_list` of the
    original.
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


def copy_to_device(*arrays):
    """Return NumPy arrays as float32 Vars, copied to the device in one transfer."""
    flat = jt.array(np.concatenate([array.astype(np.float32).ravel() for array in arrays]))
    ends = np.cumsum([array.size for array in arrays]).tolist()
    return [flat[end - x.size : end].reshape(x.shape) for x, end in zip(arrays, ends)]


def resize_nearest(x, size):
    """Resize a Var [..., h, w] to size (height, width) by PyTorch's nearest interpolation."""
    rows, columns = (_get_index(old, new) for old, new in zip(x.shape[-2:], size))
    *dims, rows_in, columns_in = (f"i{i}" for i in range(x.ndim))
    # Not indexing, which Jittor recompiles for some sizes with CUDA.
    return x.reindex(
        [*x.shape[:-2], *size],
        [*dims, f"@e0({rows_in})", f"@e1({columns_in})"],
        extras=[rows, columns],
    )


@functools.lru_cache(maxsize=1024)
def _get_index(old, new):
    """Return `nearest_index` as a Var, which is copied to the GPU only once."""
    return jt.array(nearest_index(old, new)).stop_grad()
