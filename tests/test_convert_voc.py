"""Pascal VOC data sets as COCO's, in the layouts that tools export."""

from pathlib import Path

import pytest
from exports import CLASSES, save_images
from yolo_voc import IMAGES, NAMES, assert_converted, roboflow_voc, voc2012, voc_xml

from datasets.annotations import load_coco
from datasets.convert.voc import convert_voc
from util.errors import InputError


@pytest.mark.parametrize("layout", [voc2012, roboflow_voc])
def test_pascal_voc(tmp_path, layout):
    names = sorted({CLASSES[kind] for boxes in IMAGES for kind, _ in boxes})
    written = convert_voc(layout(tmp_path / "in"), tmp_path / "out")
    assert list(written) == ["train", "val"]
    assert_converted(written, dict(enumerate(names, 1)), crowds=True)


def test_lists_of_voc(tmp_path, capsys):
    """Names may have spaces; CVAT's one list is called default.txt, and some exports have none."""
    root = voc2012(tmp_path / "in")
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
    with pytest.raises(InputError, match="nowhere.xml: cannot be read .*; add it, or correct the"):
        convert_voc(root, tmp_path / "three")


def test_an_image_that_was_renamed_with_its_file(tmp_path):
    """What the file says is the name of before, which another image may have now."""
    for name, says, kind in (("a", "b.png", 0), ("b", "a.jpg", 1)):
        save_images(tmp_path / name, [f"{name}.png"])
        (tmp_path / name / f"{name}.png").rename(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.xml").write_text(voc_xml(says, [(kind, [1, 2, 10, 10])]))
    [(images, file)] = convert_voc(tmp_path, tmp_path / "out").values()
    coco = load_coco(images, file, return_masks=False, num_classes=None)
    found = {
        image["file_name"]: coco.cats[coco.imgToAnns[i][0]["category_id"]]["name"]
        for i, image in coco.imgs.items()
    }
    assert found == {"a.png": CLASSES[0], "b.png": CLASSES[1]}


def test_two_folders_for_validation_are_not_mixed_up(tmp_path):
    root = roboflow_voc(tmp_path / "in")
    (root / "valid").rename(root / "val")
    roboflow_voc(tmp_path / "two")
    (tmp_path / "two" / "valid").rename(root / "valid")
    with pytest.raises(InputError, match="in: has folders val and valid; remove one of them"):
        convert_voc(root, tmp_path / "out")


def test_a_reversed_box_is_named(tmp_path):
    folder = roboflow_voc(tmp_path / "in") / "train"
    (folder / "photo_1.xml").write_text(voc_xml(NAMES[1], [(0, [30, 2, -10, 10])]))
    with pytest.raises(InputError, match="photo_1.xml, object 1: its bndbox is reversed"):
        convert_voc(tmp_path / "in", tmp_path / "out")


def test_images_of_the_same_name_in_two_folders(tmp_path):
    """Each XML file is of the image beside it, or in a folder of the same name."""
    for place, xml_place in (("in/{}", "in/{}"), ("two/images/{}", "two/annotations/{}")):
        for folder, kind in (("a", 0), ("b", 1)):
            save_images(tmp_path / place.format(folder), ["1.png"])
            path = tmp_path / xml_place.format(folder) / "1.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(voc_xml("1.png", [(kind, [1, 2, 10, 10])]))
    for name in ("in", "two"):
        [(images, file)] = convert_voc(tmp_path / name, tmp_path / f"{name}_out").values()
        coco = load_coco(images, file, return_masks=False, num_classes=None)
        found = {
            Path(image["file_name"]).parent.name: coco.cats[annotation["category_id"]]["name"]
            for i, image in coco.imgs.items()
            for annotation in coco.imgToAnns[i]
        }
        assert found == {"a": CLASSES[0], "b": CLASSES[1]}
    xml = tmp_path / "in" / "b" / "1.xml"
    xml.rename(tmp_path / "in" / "1.xml")
    with pytest.raises(InputError, match="in/1.xml: its image may be .*in/a/1.png or .*in/b/1.png"):
        convert_voc(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "1.xml").rename(tmp_path / "in" / "a" / "2.xml")
    with pytest.raises(InputError, match="2.xml: its image .*a/1.png has .*1.xml already"):
        convert_voc(tmp_path / "in", tmp_path / "out")


def test_bad_xml_is_named(tmp_path):
    folder = roboflow_voc(tmp_path / "in") / "train"
    (folder / "photo_0.xml").write_text("<annotation>")
    (folder / "photo_1.xml").write_text(voc_xml(NAMES[1], IMAGES[1]).replace("<ymax>", "<y>", 1))
    with pytest.raises(InputError, match="photo_0.xml: cannot be read as XML") as error:
        convert_voc(tmp_path / "in", tmp_path / "out")
    assert "\n" not in str(error.value)
    roboflow_voc(tmp_path / "two")
    (tmp_path / "two" / "train" / "photo_1.png").unlink()
    with pytest.raises(InputError, match="photo_1.xml: its image photo_1.png is missing"):
        convert_voc(tmp_path / "two", tmp_path / "out")
