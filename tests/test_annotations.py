"""Annotation files with errors: each is named in one line, or its sample is skipped."""

import copy
import errno
import unicodedata
from pathlib import Path

import pytest
from hostile_data import GOOD, PLAIN, entry, make_images, read_items

from datasets.annotations import read_annotation_file, select_images
from datasets.faults import Faults
from util.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("hostile"))


def rle(counts):
    return entry("annotations", segmentation={"size": [20, 30], "counts": counts})


NAN, INF = float("nan"), float("inf")
BAD_SEGMENTATION = "annotation 77 of image 1: segmentation is neither polygons"
BAD_BOX = "annotation 77 of image 1: bbox"
ERRORS = [
    (entry("images", file_name="gone.jpg"), "gone.jpg: no such image; 1 of the 3 images"),
    (entry("images", file_name="nowhere/gone.jpg"), "nowhere/gone.jpg: no such image"),
    (entry("images", file_name=None), "image 77: has no file_name"),
    (
        entry("images", file_name="/etc/passwd"),
        "image 77: file_name '/etc/passwd' is outside the image folder",
    ),
    (
        entry("images", file_name="../secret.png"),
        "image 77: file_name '../secret.png' is outside the image folder",
    ),
    (entry("images", height=None), "image 77: has no width and height"),
    (entry("images", width=0, height=0), "image 77: width and height [0, 0] are not"),
    (
        entry("images", width=10**6, height=10**6),
        "image 77: width and height [1000000, 1000000] are more than",
    ),
    (entry("images", id="77"), "image '77': image id '77' is not a 64-bit integer"),
    (entry("images", id=77.5), "image id 77.5 is not a 64-bit integer"),
    (entry("images", id=2**64), f"image id {2**64} is not a 64-bit integer"),
    (entry("images", id=1), "duplicate image id 1"),
    (entry("annotations", id=1), "duplicate annotation id 1"),
    (entry("annotations", image_id=[1]), "annotation 77 of image [1]: no image has this id"),
    (entry("annotations", image_id=9), "annotation 77 of image 9: no image has this id"),
    (entry("annotations", image_id=True), "annotation 77 of image True: no image has this id"),
    (entry("annotations", category_id=2), "category 2 is not listed"),
    (entry("annotations", category_id={}), "category {} is not listed"),
    (entry("annotations", category_id=None), "annotation 77 of image 1: has no category_id"),
    (entry("annotations", area="big"), "area 'big' is not a number"),
    (entry("annotations", iscrowd="no"), "iscrowd 'no' is neither"),
    (entry("annotations", bbox=None), "annotation 77 of image 1: has no bbox; add it"),
    (entry("annotations", bbox=[1, 2, 3]), BAD_BOX),
    (entry("annotations", bbox=5), BAD_BOX),
    (entry("annotations", bbox=[1, 2, 3, "4"]), BAD_BOX),
    (entry("annotations", bbox=[1, 2, 3, NAN]), BAD_BOX),
    (entry("annotations", bbox=[1, INF, 3, 4]), BAD_BOX),
    (entry("annotations", bbox=[1, 2, -3, 4]), BAD_BOX),
    (entry("annotations", bbox=[10**400, 0, 1, 1]), "is not x, y, width, height"),
    (entry("annotations", segmentation=None), "annotation 77 of image 1: has no segmentation"),
    (entry("annotations", segmentation=[[]]), BAD_SEGMENTATION),
    (entry("annotations", segmentation=[[1, 2, 3, 4]]), BAD_SEGMENTATION),
    (entry("annotations", segmentation=[[1, 2, 3, 4, 5]]), BAD_SEGMENTATION),
    (entry("annotations", segmentation=[[1, 2, 3, 4, 5, 6, 7]]), BAD_SEGMENTATION),
    (entry("annotations", segmentation=[[1, 2, 3, 4, 5, NAN]]), BAD_SEGMENTATION),
    (entry("annotations", segmentation=[[0, 0, 1e6, 0] * 1000]), BAD_SEGMENTATION),
    (entry("annotations", segmentation=[1, 2, 3, 4, 5, 6]), BAD_SEGMENTATION),
    (entry("annotations", segmentation="polygon"), BAD_SEGMENTATION),
    (entry("annotations", segmentation={"size": [1, 1], "counts": "0"}), BAD_SEGMENTATION),
    (entry("annotations", segmentation={"size": [20, 30]}), BAD_SEGMENTATION),
    (rle([700]), BAD_SEGMENTATION),
    (rle([10**12]), BAD_SEGMENTATION),
    (rle("oooooooooo"), BAD_SEGMENTATION),
    (rle("PPYo1"), BAD_SEGMENTATION),
]


@pytest.mark.parametrize("data, message", ERRORS)
def test_an_error_is_named_or_its_sample_skipped(folder, capsys, data, message):
    with pytest.raises(InputError) as error:
        read_items(folder, data, True, False, PLAIN)
    assert message in str(error.value) and "annotations.json" in str(error.value)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    assert read_items(folder, data, True, True, PLAIN) == 2
    printed = capsys.readouterr().out
    assert "left out 1 bad images and annotations:" in printed and message in printed


def test_only_masks_need_segmentations_and_sizes(folder):
    data = entry("annotations", segmentation=None)
    data["images"] = entry("images", height=None, file_name="good.bmp")["images"]
    assert read_items(folder, data, False, False, PLAIN) == 3


def without(key):
    return {name: value for name, value in GOOD.items() if name != key}


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    "data, message",
    [
        ({**GOOD, "images": []}, "lists no images"),
        ({**GOOD, "images": {"1": 2}}, "'images' has to be a list"),
        (without("images"), "'images' has to be a list"),
        (without("annotations"), "has no 'annotations'; export it again, or add"),
        (without("categories"), "'categories' has to be a list"),
        ([1, 2], "'images' has to be a list"),
    ],
)
def test_a_file_without_the_three_lists_is_refused(folder, data, message, skip):
    with pytest.raises(InputError, match=f"annotations.json: {message}"):
        read_items(folder, data, False, skip, PLAIN)


@pytest.mark.parametrize("content", [b'{"images": [', b"", b"\xff\xfe\x00junk"])
def test_a_file_that_is_no_json_is_refused(tmp_path, content):
    path = tmp_path / "all.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="all.json: invalid JSON"):
        read_annotation_file(path)


def test_the_remedy_for_another_encoding(tmp_path):
    path = tmp_path / "all.json"
    path.write_bytes('{"name": "红"}'.encode("gb18030"))
    with pytest.raises(InputError, match="all.json: is not UTF-8 .*; .* iconv -f gb18030 -t utf-8"):
        read_annotation_file(path)


def test_numbers_written_as_floats(folder):
    data = copy.deepcopy(GOOD)
    for name, keys in (
        ("images", ("id", "width", "height")),
        ("annotations", ("id", "image_id", "category_id")),
        ("categories", ("id",)),
    ):
        for each in data[name]:
            each.update({key: float(each[key]) for key in keys})
    assert read_items(folder, data, True, False, PLAIN) == 2


NAMES = {
    "images\\1.png": "1.png",
    "data/images/1.png": "1.png",
    "C:\\project\\images\\1.png": "1.png",
    "/elsewhere/images/a b/2.PNG": "a b/2.PNG",
    "a%20b/2.PNG": "a b/2.PNG",
    "A B\\2.png": "a b/2.PNG",
    "./1.png": "./1.png",
    unicodedata.normalize("NFC", "é.png"): unicodedata.normalize("NFD", "é.png"),
}


@pytest.mark.parametrize("name", NAMES)
def test_paths_in_other_forms(tmp_path, name):
    root = tmp_path / "images"
    for file in NAMES.values():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    images, notes = select_images([{"id": 1, "file_name": name}], root, "ann.json", Faults())
    assert [image["file_name"] for image in images] == [NAMES[name]]
    assert len(notes) == (name != NAMES[name])


def test_absolute_paths(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    (root / "1.png").touch()
    (tmp_path / "1.png").touch()
    [image], _ = select_images([{"id": 1, "file_name": f"{root}/1.png"}], root, "", Faults())
    assert image["file_name"] == "1.png"
    with pytest.raises(InputError, match="1.png' is outside the image folder"):
        select_images([{"id": 1, "file_name": f"{tmp_path}/1.png"}], root, "", Faults())


@pytest.mark.parametrize(
    "name, files, message",
    [
        ("A.png", ["a.png", "ä.png", "a.PNG"], "A.png: no such image; .*: add them, or remove"),
        ("1.jpg", ["1.png"], "1.jpg: no such image; .*: there is .1.png.: correct file_name"),
        ("a" * 300 + ".png", [], "a.png: no such image; .*: add them, or remove them"),
        ("../" + "a" * 300 + ".png", [], "is outside the image folder"),
        ("a" * 300 + "/1.png", [], "a/1.png: no such image; .*: add them, or remove them"),
        ("%2e%2e/1.png", ["1.png"], "no such image; .*: add them, or remove them"),
    ],
)
def test_paths_in_doubt(tmp_path, name, files, message):
    root = tmp_path / "images"
    root.mkdir()
    for file in files:
        (root / file).touch()
    with pytest.raises(InputError, match=message):
        select_images([{"id": 1, "file_name": name}], root, "ann.json", Faults())


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "all.json").touch()
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=r"\.json: cannot be read \(Permission denied\)"):
        read_annotation_file(tmp_path / "all.json")
