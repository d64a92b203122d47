"""Annotation files with faults: each is named, or its samples are left out."""

import pytest
from hostile_data import PLAIN, entry, make_images, read_items

from util.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("hostile"))


FAULTS = [
    (
        entry("images", file_name="/etc/passwd"),
        "image 77: file_name '/etc/passwd' leaves the images' folder",
    ),
    (
        entry("images", file_name="../secret.png"),
        "image 77: file_name '../secret.png' leaves the images' folder",
    ),
    (entry("images", width=0, height=0), "image 77: width and height [0, 0] are not"),
    (
        entry("images", width=10**6, height=10**6),
        "image 77: width and height [1000000, 1000000] are more than",
    ),
    (entry("images", id="77"), "image '77': image id '77' is not a whole number"),
    (entry("images", id=77.0), "image id 77.0 is not a whole number"),
    (entry("images", id=2**64), f"image id {2**64} is not a whole number"),
    (entry("images", id=1), "image id 1 is there twice"),
    (entry("annotations", image_id=[1]), "annotation 77 of image [1]: no image with this id"),
    (entry("annotations", image_id=9), "annotation 77 of image 9: no image with this id"),
    (entry("annotations", image_id=True), "annotation 77 of image True: no image with this id"),
    (entry("annotations", category_id=2), "category 2 is not listed"),
    (entry("annotations", category_id={}), "category {} is not listed"),
    (entry("annotations", area="big"), "area 'big' is not a number"),
    (entry("annotations", iscrowd="no"), "iscrowd 'no' is neither"),
    (entry("annotations", bbox=[10**400, 0, 1, 1]), "is not x, y, width, height"),
    (entry("annotations", segmentation=[[1, 2, 3, 4, 5]]), "its segmentation is neither"),
    (
        entry("annotations", segmentation=[[1, 2, 3, 4, 5, float("nan")]]),
        "its segmentation is neither",
    ),
    (entry("annotations", segmentation=[[0, 0, 1e6, 0] * 1000]), "its segmentation is neither"),
    (
        entry("annotations", segmentation={"size": [20, 30], "counts": [700]}),
        "its segmentation is neither",
    ),
    (
        entry("annotations", segmentation={"size": [20, 30], "counts": [10**12]}),
        "its segmentation is neither",
    ),
    (
        entry("annotations", segmentation={"size": [20, 30], "counts": "oooooooooo"}),
        "its segmentation is neither",
    ),
    (
        entry("annotations", segmentation={"size": [20, 30], "counts": "PPYo1"}),
        "its segmentation is neither",
    ),
]


@pytest.mark.parametrize("data, message", FAULTS, ids=[message for _, message in FAULTS])
def test_a_fault_is_named_or_skipped(folder, capsys, data, message):
    with pytest.raises(InputError) as error:
        read_items(folder, data, True, False, PLAIN)
    assert message in str(error.value) and "annotations.json" in str(error.value)
    assert read_items(folder, data, True, True, PLAIN) == 2
    printed = capsys.readouterr().out
    assert "left out 1 bad images and annotations:" in printed and message in printed
