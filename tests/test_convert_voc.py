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


def test_images_of_the_same_name_in_two_folders(tmp_path):
    """Each XML file is of the image beside it, or in a folder of the same name."""
    for place, xml_place in (("in/{}", "in/{}"), ("two/images/{}", "two/annotations/{}")):
        for folder, kind in (("a", 0), ("b", 1)):
            save_images(tmp_path / place.format(folder), ["1.png"])
            path = tmp_path / xml_place.format(folder) / "1.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(voc_xml("1.png", [(kind, [1, 2, 10, 10])]))
    for name in ("in", "two"):
        [(images, file)] = convert_voc(tmp_path / name, tmp_path / "out").values()
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
