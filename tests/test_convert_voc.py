"""Pascal VOC datasets converted to COCO's format, in the layouts that tools export."""

import re
import shutil
from pathlib import Path

import pytest
from exports import CLASSES
from PIL import Image
from yolo_voc import (
    IMAGES,
    NAMES,
    assert_converted,
    load,
    make_voc_xml,
    write_roboflow_voc,
    write_voc2012,
)

from datasets.convert.voc import convert_voc
from util.errors import InputError


@pytest.mark.parametrize("write", [write_voc2012, write_roboflow_voc])
def test_pascal_voc(tmp_path, write):
    names = sorted({CLASSES[kind] for boxes in IMAGES for kind, _ in boxes})
    splits = convert_voc(write(tmp_path / "in"), tmp_path / "out")
    assert list(splits) == ["train", "val"]
    assert_converted(splits, dict(enumerate(names, 1)), crowds=True)


def test_lists_of_voc(tmp_path, capsys):
    """Names may have spaces; CVAT's only list is called default.txt, and some exports have none."""
    root = write_voc2012(tmp_path / "in")
    lists = root / "ImageSets" / "Main"
    for path in [*root.rglob("photo_3.*")]:
        path.rename(path.with_stem("photo 3"))
    for path in lists.glob("*.txt"):
        path.write_text(path.read_text().replace("photo_3", "photo 3"))
    assert len(convert_voc(root, tmp_path / "out")) == 2
    assert capsys.readouterr().out.count(f"{len(NAMES)} images") == 2
    for path in lists.glob("*.txt"):
        path.unlink()
    (lists / "default.txt").write_text("photo_0\n")
    assert list(convert_voc(root, tmp_path / "one")) == ["train"]
    assert f"{len(NAMES)} images" in capsys.readouterr().out
    (lists / "train.txt").write_text("photo_0\nnowhere\n")
    with pytest.raises(InputError, match="nowhere has neither an XML .*; add them, or correct the"):
        convert_voc(root, tmp_path / "three")


def test_lists_and_folders_from_windows(tmp_path, capsys):
    """Names have suffixes, another case, and a byte order mark or GBK."""
    root = write_voc2012(tmp_path / "in")
    for path in [*root.rglob("photo_1.*")]:
        path.rename(path.with_stem("照片"))
    (root / "Annotations" / "照片.xml").rename(root / "Annotations" / "照片.XML")
    lists = root / "ImageSets" / "Main"
    (lists / "train.txt").write_bytes(b"\xef\xbb\xbfphoto_0.xml\r\nphoto_2.PNG\r\n")
    (lists / "val.txt").rename(lists / "valid.txt")
    (lists / "valid.txt").write_bytes("照片\n照片.xml\n".encode("gbk"))
    lists.parent.rename(root / "imagesets")
    (root / "Annotations").rename(root / "annotations")
    splits = convert_voc(root, tmp_path / "out")
    names = {key: {i["file_name"] for i in load(s).imgs.values()} for key, s in splits.items()}
    assert names == {"train": {"photo_0.png", "photo_2.png"}, "val": {"照片.png"}}
    printed = capsys.readouterr().out
    assert "valid.txt: is not UTF-8: read as GB18030 (GBK), with '照片'" in printed
    assert f"{len(NAMES) - 3} of {len(NAMES)} XML files are not in train, val and left" in printed


@pytest.mark.parametrize("with_lists", [True, False])
def test_images_without_xml_have_no_objects(tmp_path, capsys, with_lists):
    root = write_voc2012(tmp_path / "in")
    (root / "Annotations" / "photo_1.xml").unlink()
    if not with_lists:
        shutil.rmtree(root / "ImageSets")
    coco = load(convert_voc(root, tmp_path / "out")["train"])
    assert not coco.imgToAnns[{i["file_name"]: i["id"] for i in coco.imgs.values()}["photo_1.png"]]
    assert re.search(r"1 of 7 images have no XML file: .*photo_1.png\n", capsys.readouterr().out)


def test_a_split_without_xml_is_an_error(tmp_path, capsys):
    """Except a test set, as competitions publish it."""
    root = write_roboflow_voc(tmp_path / "in")
    for path in (root / "valid").glob("*.xml"):
        path.unlink()
    (root / "valid").rename(root / "test")
    assert list(convert_voc(root, tmp_path / "out")) == ["train"]
    assert "test: no XML file for any image: skipping the test set" in capsys.readouterr().out
    (root / "test").rename(root / "Val")
    with pytest.raises(InputError, match="Val: no XML file for any of its 7 images"):
        convert_voc(root, tmp_path / "two")


def write_xml(folder, text, declared, encoding):
    """Write an image with one object of class `text`, its XML file in this encoding."""
    write_image(folder / "a.png", folder / "a.xml", "a.png", 0)
    xml = (folder / "a.xml").read_text().replace(CLASSES[0], text)
    declaration = f'<?xml version="1.0" encoding="{declared}"?>\n' if declared else ""
    (folder / "a.xml").write_bytes((declaration + xml).encode(encoding))
    return folder


@pytest.mark.parametrize(
    "declared, encoding, is_guess",
    [
        ("gb2312", "gb2312", False),
        ("gbk", "gb18030", False),
        ("GB2312", "utf-8", False),
        ("ANSI", "gb18030", True),
        ("", "gbk", True),
        ("utf8", "utf-8", False),
        ("utf-16", "utf-8", False),  # .NET's StringWriter
        ("big5", "big5", False),
    ],
)
def test_encodings_of_xml(tmp_path, capsys, declared, encoding, is_guess):
    classes = convert_classes(write_xml(tmp_path, "交通", declared, encoding), tmp_path / "out")
    assert classes == {"a.png": "交通"}
    assert ("a.xml: is not UTF-8: read as GB18030" in capsys.readouterr().out) == is_guess


def test_an_unknown_encoding_is_an_error(tmp_path):
    root = write_xml(tmp_path / "in", "café", "ANSI", "cp1252")
    with pytest.raises(InputError, match="a.xml: is neither UTF-8 nor GB18030 .* iconv -f"):
        convert_voc(root, tmp_path / "out")


def test_difficult_objects_are_counted(tmp_path, capsys):
    for name, kind, difficult in (("a", 0, 1), ("b", 1, 0), ("c", 1, 1)):
        xml = tmp_path / f"{name}.xml"
        write_image(tmp_path / f"{name}.png", xml, f"{name}.png", kind)
        xml.write_text(xml.read_text().replace("difficult>0", f"difficult>{difficult}"))
    convert_voc(tmp_path, tmp_path / "out")
    printed = capsys.readouterr().out
    assert "2 of 3 objects are difficult, among them all of cat: they become crowds" in printed
    for name in ("b.xml", "b.png"):
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match="all 2 objects are difficult, .*; set difficult to 0"):
        convert_voc(tmp_path, tmp_path / "two")


def write_image(image, xml, filename, kind):
    """Write an image with one object of CLASSES[kind], and an XML file that says `filename`."""
    for path in (image, xml):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (80, 60)).save(image)
    xml.write_text(make_voc_xml(filename, [(kind, [1, 2, 10, 10])]))


def convert_classes(source, out):
    """Convert one split. Return a dictionary file name -> class of the only object."""
    coco = load(convert_voc(source, out)["train"])
    return {
        image["file_name"]: coco.cats[coco.imgToAnns[i][0]["category_id"]]["name"]
        for i, image in coco.imgs.items()
    }


def test_an_image_that_was_renamed_with_its_xml_file(tmp_path):
    """The XML file has the old name, which may be another image's now."""
    for name, filename, kind in (("a", "b.png", 0), ("b", "a.jpg", 1)):
        write_image(tmp_path / f"{name}.png", tmp_path / f"{name}.xml", filename, kind)
    classes = convert_classes(tmp_path, tmp_path / "out")
    assert classes == {"a.png": CLASSES[0], "b.png": CLASSES[1]}


def test_folders_val_and_valid_are_not_mixed_up(tmp_path):
    root = write_roboflow_voc(tmp_path / "in")
    (root / "valid").rename(root / "val")
    write_roboflow_voc(tmp_path / "two")
    (tmp_path / "two" / "valid").rename(root / "valid")
    with pytest.raises(InputError, match="in: has folders val and valid; remove one of them"):
        convert_voc(root, tmp_path / "out")


@pytest.mark.parametrize("images, xmls", [("", ""), ("images", "annotations")])
def test_images_of_the_same_name_in_two_folders(tmp_path, images, xmls):
    """Each XML file is of the image beside it, or in a folder of the same name."""
    for folder, kind in (("a", 0), ("b", 1)):
        image = tmp_path / "in" / images / folder / "1.png"
        write_image(image, tmp_path / "in" / xmls / folder / "1.xml", "1.png", kind)
    classes = convert_classes(tmp_path / "in", tmp_path / "out")
    assert {Path(name).parent.name: c for name, c in classes.items()} == dict(zip("ab", CLASSES))


def test_an_ambiguous_or_annotated_image_is_named(tmp_path):
    root = tmp_path / "in"
    for folder in "ab":
        write_image(root / folder / "1.png", root / folder / "1.xml", "1.png", 0)
    (root / "b" / "1.xml").rename(root / "1.xml")
    with pytest.raises(InputError, match="in/1.xml: its image may be .*in/a/1.png or .*in/b/1.png"):
        convert_voc(root, tmp_path / "out")
    (root / "1.xml").rename(root / "a" / "2.xml")
    with pytest.raises(InputError, match="2.xml: its image .*a/1.png has .*1.xml already"):
        convert_voc(root, tmp_path / "out")


REVERSED = make_voc_xml(NAMES[1], [(0, [30, 2, -10, 10])])


@pytest.mark.parametrize(
    "content, message",
    [
        ("<annotation>", "photo_1.xml: invalid XML"),
        (REVERSED.replace("ymax", "y"), "photo_1.xml, object 1: has no bndbox with four numbers"),
        (REVERSED.replace("<name>cat", "<name> "), "photo_1.xml, object 1: has no name"),
        (REVERSED, "photo_1.xml, object 1: its bndbox is reversed"),
    ],
)
def test_bad_xml_is_named(tmp_path, content, message):
    root = write_roboflow_voc(tmp_path / "in")
    (root / "train" / "photo_1.xml").write_text(content)
    with pytest.raises(InputError, match=message) as error:
        convert_voc(root, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_a_missing_image_is_named(tmp_path):
    root = write_roboflow_voc(tmp_path / "in")
    (root / "train" / "photo_1.png").unlink()
    with pytest.raises(InputError, match="photo_1.xml: its image photo_1.png is missing"):
        convert_voc(root, tmp_path / "out")
