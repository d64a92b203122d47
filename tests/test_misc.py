"""Padding of a batch, and the source pixels of PyTorch's nearest interpolation."""

import numpy as np
import pytest

from util.misc import nested_tensor_from_arrays
from util.nearest import nearest_index


def test_images_are_padded_at_the_bottom_and_right():
    sizes = [(5, 7), (9, 3), (1, 1)]
    random = np.random.default_rng(0)
    images = [random.uniform(1, 2, (3, *size)).astype(np.float32) for size in sizes]
    tensors, mask = nested_tensor_from_arrays(images).decompose()
    assert (tensors.shape, tensors.dtype) == ((3, 3, 9, 7), np.float32)
    assert (mask.shape, mask.dtype) == ((3, 9, 7), bool)
    for image, (h, w), tensor, padding in zip(images, sizes, tensors, mask):
        np.testing.assert_array_equal(tensor[:, :h, :w], image)
        assert tensor.astype(bool).sum() == 3 * h * w, "the padding is zero"
        assert not padding[:h, :w].any() and padding.sum() == 9 * 7 - h * w


def test_a_batch_keeps_its_values_in_jittor():
    images = [np.ones((3, 2, 4), np.float32), np.ones((3, 3, 1), np.float32)]
    samples = nested_tensor_from_arrays(images)
    tensors, mask = samples.to_jittor().decompose()
    np.testing.assert_array_equal(tensors.numpy(), samples.tensors)
    np.testing.assert_array_equal(mask.numpy().astype(bool), samples.mask)


@pytest.mark.parametrize(
    "size, new_size, expected",
    [  # from torch.nn.functional.interpolate
        (25, 13, [0, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23]),
        (333, 11, [0, 30, 60, 90, 121, 151, 181, 211, 242, 272, 302]),
        (161, 6, [0, 26, 53, 80, 107, 134]),
        (7, 3, [0, 2, 4]),
        (33, 2, [0, 16]),
        (5, 5, [0, 1, 2, 3, 4]),
    ],
)
def test_nearest_index(size, new_size, expected):
    assert nearest_index(size, new_size).tolist() == expected
