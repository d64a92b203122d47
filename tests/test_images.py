"""Images of every mode and orientation, read by one rule."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from datasets.images import load_image, read_header, read_image
from util.errors import InputError

WIDTH, HEIGHT = 20, 15
RAMP = np.linspace(0, 1, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH)


def save(folder, values, suffix):
    Image.fromarray(values).save(folder / f"image.{suffix}")
    return folder / f"image.{suffix}"


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("bits, highest", [(16, 65535), (14, 16383), (12, 1024), (10, 256), (8, 9)])
def test_grey_of_more_than_8_bits(tmp_path, bits, highest, suffix):
    values = (RAMP * highest).round().astype(np.uint16)
    path = save(tmp_path, values, suffix)
    image = read_image(path)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image)[:, :, 0], values >> (bits - 8))
    np.testing.assert_array_equal(load_image(path), image)


def test_integers_of_32_bits_are_read_if_16_hold_them(tmp_path):
    values = (RAMP * 65535).astype(np.int32)
    image = read_image(save(tmp_path, values, "tif"))
    np.testing.assert_array_equal(np.asarray(image)[:, :, 0], values >> 8)


@pytest.mark.parametrize(
    "values, message",
    [
        (RAMP.astype(np.float32), "pixels are floats, whose range is unknown: save it with"),
        ((RAMP * 65536).astype(np.int32), "pixels are integers from 0 to 65536: save it with"),
        ((RAMP - 1).round().astype(np.int32), "pixels are integers from -1 to 0: save it with"),
    ],
)
def test_pixels_of_unknown_range_are_refused(tmp_path, values, message):
    with pytest.raises(InputError, match=f"image.tif: cannot be read as an image .its {message}"):
        read_image(save(tmp_path, values, "tif"))
    with pytest.raises(ValueError, match=message):
        load_image(Image.fromarray(values))


def make_exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_is_applied_once(tmp_path, orientation, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray((RAMP * 255).astype(np.uint8)).save(path, exif=make_exif(orientation))
    upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    image = read_image(path)
    for each in (image, load_image(image), load_image(Image.open(path))):
        np.testing.assert_array_equal(each, upright)
    assert read_header(path).get_size(is_upright=True) == upright.size


DAMAGED = [
    b"Exif\0\0garbage, not TIFF",
    b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\x006\0\0\0" + bytes(4),
    b"Exif\0\0II*\0\xff\xff\xff\x7f",
    make_exif(9).tobytes(),
]


@pytest.mark.parametrize("exif", DAMAGED)
def test_damaged_exif_data(exif):
    file = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(file, "JPEG", exif=exif)
    assert load_image(Image.open(file)).size == (WIDTH, HEIGHT)
