"""Read image files as RGB, in the orientation that their boxes refer to.

The same rules hold in training, evaluation, prediction and conversion. They differ from the
original's `convert("RGB")`, which ignores EXIF orientations and turns 16-bit images white.
"""

from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from util.errors import InputError

# Formats Pillow is allowed to decode. An allowlist, because it runs Ghostscript on EPS files.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jp2"}
MAX_ASPECT_RATIO = 100  # resizing a more elongated image would take gigabytes
REMEDY = "leave it out with --skip_bad_samples"
# EXIF orientation -> how to make the image upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
FLOATS = "its pixels are floats, whose range is unknown: save it with 8 or 16 bits"
DEPTHS = (8, 10, 12, 14, 16)  # bits per pixel of cameras and scanners


class Header(NamedTuple):
    """Width and height in pixels as stored, and the EXIF orientation, 1 to 8."""

    width: int
    height: int
    orientation: int

    def get_size(self, is_upright):
        """Return (width, height), as stored or upright."""
        if is_upright and self.orientation >= 5:
            return self.height, self.width
        return self.width, self.height


@contextmanager
def open_image(path, remedy=REMEDY):
    """Open an image file. remedy: end of error messages.

    Raises InputError if the file is missing, not an image, too large or too elongated, and for any
    error of the block, which decodes it.
    """
    if not path.is_file():
        raise InputError(f"{path}: cannot be read as an image (no such file); add it, or {remedy}")
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            width, height = image.size
            if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
                raise InputError(f"{path}: {width}x{height} pixels are too flat; {remedy}")
            yield image
    except InputError:
        raise
    except Exception as error:  # Pillow may raise almost any exception for a corrupt file
        raise InputError(
            f"{path}: cannot be read as an image ({error}); replace the file, or {remedy}"
        ) from error


def read_header(path, remedy=REMEDY):
    """Read the Header of an image file. remedy: end of error messages.

    Raises InputError as `open_image` does, and if the image has float pixels.
    """
    with open_image(path, remedy) as image:
        if image.mode == "F":
            raise ValueError(FLOATS)
        # Looking for EXIF data after a PNG's pixels would decode them.
        has_exif = image.format != "PNG" or "exif" in image.info
        header = Header(*image.size, get_orientation(image) if has_exif else 1)
        # Pillow turns a TIFF itself when it reads the pixels.
        return Header(*header.get_size(True), 1) if image.format == "TIFF" else header


def read_image(path, should_turn=lambda header: True, remedy=REMEDY):
    """Read an image file as RGB.

    should_turn: Header -> whether to apply the EXIF orientation; remedy: end of error messages.
    Raises InputError as `open_image` does, and if the image cannot be converted.
    """
    with open_image(path, remedy) as image:
        image.load()  # also turns a TIFF
        header = Header(*image.size, get_orientation(image))
        return turn(convert_to_rgb(image), header.orientation if should_turn(header) else 1)


def load_image(image: str | Path | Image.Image | np.ndarray) -> Image.Image:
    """Load an image for inference as RGB PIL, with its EXIF orientation applied.

    image: a path, a PIL image, or an array uint8 [H, W, 3]. Raises InputError as `read_image` does,
    and ValueError for an array of another dtype, or a PIL image that cannot be converted.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise ValueError(f"image is an array {image.dtype}: give uint8, 0 to 255")
        return convert_to_rgb(Image.fromarray(image))
    if isinstance(image, Image.Image):
        return turn(convert_to_rgb(image), get_orientation(image))
    return read_image(Path(image), remedy="leave it out")


def get_orientation(image):
    """Return the EXIF orientation, 1 to 8; 1 if the EXIF data are missing or damaged."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data do not make a photo unreadable
        return 1
    return orientation if orientation in TURNS else 1


def turn(image, orientation):
    """Apply an EXIF orientation, and drop the metadata, so that nobody applies it again."""
    if orientation in TURNS:
        image = image.transpose(TURNS[orientation])
    image.info.clear()
    return image


def convert_to_rgb(image):
    """Convert a PIL image to a new one in RGB.

    Grey images of more than 8 bits keep the highest 8 of the bits in use: of 10, 12, 14 or 16, the
    fewest that hold the image's values. Raises ValueError for pixels whose range is unknown: floats
    and 32-bit integers.
    """
    if image.mode == "F":
        raise ValueError(FLOATS)
    if image.mode.startswith("I"):  # Pillow reads some 16-bit files as mode I
        pixels = np.asarray(image)
        bits = next((bits for bits in DEPTHS if pixels.max() < 2**bits), None)
        if pixels.min() < 0 or bits is None:
            raise ValueError(
                f"its pixels are integers from {pixels.min()} to {pixels.max()}: save it with 8 or "
                "16 bits"
            )
        return Image.fromarray((pixels >> (bits - 8)).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
