"""YOLO and Pascal VOC data sets as COCO's, in the layouts that tools export; splits."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from exports import CLASSES, objects, save_images
from PIL import Image
from processes import REPO

from arguments import parse_args
from datasets.annotations import load_coco
from datasets.convert.__main__ import main
from datasets.convert.split import split_coco
from datasets.convert.voc import convert_voc
from datasets.convert.yolo import convert_yolo
from util.errors import InputError

WIDTH, HEIGHT = 80, 60
IMAGES = objects(7)
NAMES = [f"photo_{number}.png" for number in range(len(IMAGES))]


def yolo_lines(boxes, as_polygon=False):
    for kind, (x, y, w, h) in boxes:
        if as_polygon:
            corners = (x, y), (x + w, y), (x + w, y + h), (x, y + h)
            sides = [side for cx, cy in corners for side in (cx / WIDTH, cy / HEIGHT)]
        else:
            sides = [(x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT]
        yield " ".join([str(kind), *(f"{side:.6f}" for side in sides)])


def write_labels(folder, polygons=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, boxes in zip(NAMES, IMAGES):
        if boxes:  # tools write no file, or an empty one, for an image without objects
            lines = yolo_lines(boxes, polygons)
            (folder / name).with_suffix(".txt").write_text("\n".join(lines) + "\n")


def ultralytics(root, polygons=False):
    """images/ and labels/ with train and val; data.yaml with `path` and a dictionary of names."""
    pytest.importorskip("yaml")
    for name in ("train", "val"):
        save_images(root / "images" / name, NAMES)
        write_labels(root / "labels" / name, polygons)
    names = "\n".join(f"  {number}: {name}" for number, name in enumerate(CLASSES))
    (root / "data.yaml").write_text(
        f"path: {root}\ntrain: images/train\nval: images/val\ntest:\nnames:\n{names}\n"
    )
    return root / "data.yaml"


def roboflow(root):
    """train/ and valid/, each with images/ and labels/; paths in data.yaml begin with ../"""
    pytest.importorskip("yaml")
    for name in ("train", "valid"):
        save_images(root / name / "images", NAMES)
        write_labels(root / name / "labels")
    (root / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\n"
        f"nc: {len(CLASSES)}\nnames: {list(CLASSES)}\n"
    )
    save_images(root / "test" / "images", NAMES[:1])
    return root


def labelimg_yolo(root):
    """Images, labels and classes.txt in one folder."""
    save_images(root, NAMES)
    write_labels(root)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


def voc_xml(name, boxes):
    parts = "".join(
        f"<object><name>{CLASSES[kind]}</name><pose>Unspecified</pose><truncated>0</truncated>"
        f"<difficult>{int(index == 1)}</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
        f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
        for index, (kind, (x, y, w, h)) in enumerate(boxes)
    )
    return (
        f"<annotation><folder>x</folder><filename>{name}</filename><size><width>{WIDTH}</width>"
        f"<height>{HEIGHT}</height><depth>3</depth></size>{parts}</annotation>"
    )


def voc2012(root):
    save_images(root / "JPEGImages", NAMES)
    (root / "Annotations").mkdir()
    (root / "ImageSets" / "Main").mkdir(parents=True)
    stems = [name.removesuffix(".png") for name in NAMES]
    for name, stem, boxes in zip(NAMES, stems, IMAGES):
        (root / "Annotations" / f"{stem}.xml").write_text(voc_xml(name, boxes))
    (root / "ImageSets" / "Main" / "train.txt").write_text("\n".join(stems) + "\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("\n".join(stems) + "\n")
    (root / "ImageSets" / "Main" / "cat_train.txt").write_text(f"{stems[0]}  1\n")
    return root


def roboflow_voc(root):
    for name in ("train", "valid"):
        save_images(root / name, NAMES)
        for image, boxes in zip(NAMES, IMAGES):
            (root / name / image).with_suffix(".xml").write_text(voc_xml(image, boxes))
    return root


def check(written, names, crowds=False):
    """Each set has all images and objects, as load_coco reads them."""
    for images, file in written.values():
        coco = load_coco(images, file, return_masks=False, num_classes=None)
        assert {i: cat["name"] for i, cat in coco.cats.items()} == names
        by_name = {image["file_name"]: i for i, image in coco.imgs.items()}
        assert sorted(by_name) == NAMES
        for name, boxes in zip(NAMES, IMAGES):
            found = coco.imgToAnns[by_name[name]]
            assert [names[ann["category_id"]] for ann in found] == [CLASSES[k] for k, _ in boxes]
            expected = np.array([box for _, box in boxes], float).reshape(-1, 4)
            np.testing.assert_allclose(
                np.array([ann["bbox"] for ann in found]).reshape(-1, 4), expected, atol=2e-3
            )
            difficult = [int(crowds and index == 1) for index in range(len(boxes))]
            assert [ann["iscrowd"] for ann in found] == difficult


NUMBERED = dict(enumerate(CLASSES))


@pytest.mark.parametrize("polygons", [False, True])
def test_yolo_of_ultralytics(tmp_path, polygons):
    written = convert_yolo(ultralytics(tmp_path, polygons), tmp_path)
    assert list(written) == ["train", "val"]
    check(written, NUMBERED)
    data = json.loads((tmp_path / "train.json").read_text())
    ann = data["annotations"][0]
    assert ann["area"] == pytest.approx(ann["bbox"][2] * ann["bbox"][3], abs=0.1)
    assert bool(ann["segmentation"]) == polygons


def test_yolo_of_roboflow(tmp_path):
    written = convert_yolo(roboflow(tmp_path), tmp_path / "out")
    assert list(written) == ["train", "val", "test"]
    del written["test"]
    check(written, NUMBERED)


def test_yolo_of_labelimg(tmp_path):
    check(convert_yolo(labelimg_yolo(tmp_path / "in"), tmp_path / "out"), NUMBERED)


def test_yolo_with_a_file_name_that_is_not_utf_8(tmp_path):
    """The annotation file is UTF-8 all the same, and its images are found."""
    source = labelimg_yolo(tmp_path / "in")
    name = os.fsdecode(b"caf\xe9")
    for path in [*source.rglob("photo_3.*")]:
        path.rename(path.with_stem(name))
    for images, file in convert_yolo(source, tmp_path / "out").values():
        names = {image["file_name"] for image in json.loads(file.read_text("utf-8"))["images"]}
        assert len(names) == len(NAMES) and f"{name}.png" in names
        load_coco(images, file, return_masks=False, num_classes=None)


def test_yolo_with_a_list_of_images(tmp_path):
    path = ultralytics(tmp_path)
    lines = "\n".join(f"./images/train/{name}" for name in NAMES)
    (tmp_path / "list.txt").write_text(lines)
    path.write_text(path.read_text().replace("images/train", "list.txt").replace("val:", "no:"))
    check(convert_yolo(path, tmp_path / "out"), NUMBERED)


def test_without_the_package_pyyaml_a_line_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "data.yaml").write_text("names: [a]")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(InputError, match="data.yaml: needs the package pyyaml: pip install pyyaml"):
        convert_yolo(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    "content, message",
    [
        ("names: [a]\ntrain: nowhere\n", "nowhere is no folder or list of images"),
        ("names: [a]\n", "names no images as train, val or test"),
        ("train: .\n", "names is no list of the classes"),
        ("[1, 2]", "names is no list of the classes"),
        ("a: [", "data.yaml: cannot be read"),
    ],
)
def test_a_bad_data_yaml_is_an_input_error(tmp_path, content, message):
    pytest.importorskip("yaml")
    (tmp_path / "data.yaml").write_text(content)
    with pytest.raises(InputError, match=message) as error:
        convert_yolo(tmp_path, tmp_path / "out")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layout", [voc2012, roboflow_voc])
def test_pascal_voc(tmp_path, layout):
    names = sorted({CLASSES[kind] for boxes in IMAGES for kind, _ in boxes})
    written = convert_voc(layout(tmp_path / "in"), tmp_path / "out")
    assert list(written) == ["train", "val"]
    check(written, dict(enumerate(names, 1)), crowds=True)


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


def test_keypoints_are_refused(tmp_path):
    path = ultralytics(tmp_path)
    path.write_text(f"{path.read_text()}kpt_shape: [12, 2]\n")
    with pytest.raises(InputError, match="data.yaml: has kpt_shape: export boxes"):
        convert_yolo(path, tmp_path / "out")


def test_text_files_of_windows(tmp_path):
    folder = labelimg_yolo(tmp_path / "in")
    for path in folder.glob("*.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    check(convert_yolo(folder, tmp_path / "out"), NUMBERED)
    (folder / "classes.txt").write_bytes("交通灯\n".encode("gbk"))
    with pytest.raises(InputError, match="classes.txt: cannot be read as UTF-8"):
        convert_yolo(folder, tmp_path / "out")


def test_an_empty_line_among_the_classes_has_a_number(tmp_path):
    folder = labelimg_yolo(tmp_path / "in")
    (folder / "classes.txt").write_text("cat\n\ntraffic light\ndog\n")
    for label in folder.glob("photo*.txt"):
        lines = label.read_text().splitlines()
        label.write_text("\n".join({"0": "0", "1": "3", "2": "2"}[x[0]] + x[1:] for x in lines))
    [(_, file)] = convert_yolo(folder, tmp_path / "out").values()
    data = json.loads(file.read_text())
    assert {c["id"]: c["name"] for c in data["categories"]} == {
        0: "cat",
        2: "traffic light",
        3: "dog",
    }


def test_absolute_and_relative_paths_in_one_list(tmp_path, monkeypatch):
    path = ultralytics(tmp_path / "in")
    text = path.read_text().replace(f"path: {tmp_path}/in", "path: .")
    path.write_text(text.replace("train: images/train", f"train: ['{tmp_path}/in/images/train']"))
    monkeypatch.chdir(tmp_path / "in")
    relative = Path("data.yaml")
    relative.write_text(relative.read_text().replace("train'", "train', images/val"))
    written = convert_yolo(relative, tmp_path / "out")
    assert len(json.loads(written["train"][1].read_text())["images"]) == 2 * len(NAMES)


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_a_photo_whose_orientation_cannot_be_told_is_refused(tmp_path, orientation):
    """The data set would show it as it is stored, and its boxes somewhere else."""
    exif = Image.Exif()
    exif[274] = orientation
    (tmp_path / "in").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "in" / "a.jpg", exif=exif)
    (tmp_path / "in" / "classes.txt").write_text("cat\n")
    with pytest.raises(InputError, match=f"a.jpg: .*EXIF orientation {orientation}.*upright"):
        convert_yolo(tmp_path / "in", tmp_path)


def test_a_turned_photo_keeps_its_boxes(tmp_path):
    """YOLO's numbers are parts of the photo as it is shown."""
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    (tmp_path / "in").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "in" / "a.jpg", exif=exif)
    (tmp_path / "in" / "a.txt").write_text("0 0.5 0.5 1 0.5\n")
    (tmp_path / "in" / "classes.txt").write_text("cat\n")
    convert_yolo(tmp_path / "in", tmp_path)
    data = json.loads((tmp_path / "train.json").read_text())
    assert (data["images"][0]["width"], data["images"][0]["height"]) == (30, 40)
    assert data["annotations"][0]["bbox"] == [0, 10, 30, 20]


@pytest.mark.parametrize(
    "line, fault",
    [
        ("0 0.5 0.5 0.1", "has 3 numbers after the class"),
        ("0 0.1 0.1 0.2 0.2 0.3", "has 5 numbers after the class"),
        ("9 0.5 0.5 0.1 0.1", "class 9 is not in the list of names"),
        ("cat 0.5 0.5 0.1 0.1", "holds something else than numbers"),
        ("0 1.5 0.5 0.1 0.1", "has numbers outside 0..1"),
        ("0 nan 0.5 0.1 0.1", "has numbers outside 0..1"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(tmp_path, line, fault):
    folder = labelimg_yolo(tmp_path / "in")
    label = sorted(folder.glob("photo*.txt"))[0]
    count = len(label.read_text().splitlines())
    label.write_text(label.read_text() + line + "\n")
    with pytest.raises(InputError, match=f"{label.name}, line {count + 1}: {fault}"):
        convert_yolo(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_many_bad_lines_are_one_message(tmp_path):
    folder = labelimg_yolo(tmp_path / "in")
    for label in folder.glob("photo*.txt"):
        label.write_text("0 2 2 2 2\n" * 3)
    with pytest.raises(InputError, match="line 1: .* line 2: .*; and [0-9]+ more like these"):
        convert_yolo(folder, tmp_path / "out")


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


def test_a_folder_without_a_data_set_is_an_input_error(tmp_path):
    for convert, message in (
        (convert_yolo, "has no data.yaml and no classes.txt"),
        (convert_voc, "has no XML files"),
    ):
        with pytest.raises(InputError, match=message):
            convert(tmp_path, tmp_path / "out")


def test_a_split_keeps_every_class_in_proportion(tmp_path):
    rng = np.random.default_rng(0)
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(1000)]
    annotations = []
    for image in images:
        for class_id in range(1, 6):
            if rng.random() < 0.5**class_id:
                annotations.append({"id": len(annotations) + 1, "image_id": image["id"],
                                    "category_id": class_id, "bbox": [0, 0, 1, 1]})  # fmt: skip
    source = tmp_path / "all.json"
    data = {
        "info": {"year": 1},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": str(i)} for i in range(1, 6)],
    }
    source.write_text(json.dumps(data))
    train, val = (json.loads(path.read_text()) for path in split_coco(source, 0.2, 0))
    assert len(val["images"]) == 200 and train["info"] == val["info"] == {"year": 1}
    for part, key in ((train, "images"), (val, "images")):
        ids = {image["id"] for image in part[key]}
        assert {ann["image_id"] for ann in part["annotations"]} <= ids
    assert len(train["annotations"]) + len(val["annotations"]) == len(annotations)
    for class_id in range(1, 6):
        counts = [
            len({a["image_id"] for a in part["annotations"] if a["category_id"] == class_id})
            for part in (train, val)
        ]
        assert counts[1] / sum(counts) == pytest.approx(0.2, abs=0.06), class_id
    again = split_coco(source, 0.2, 0)
    assert json.loads(again[1].read_text()) == val
    assert json.loads(split_coco(source, 0.2, 1)[1].read_text()) != val
    with pytest.raises(InputError, match="--val 0.0001: leaves one part without images"):
        split_coco(source, 0.0001, 0)
    del data["images"][5]["id"]
    source.write_text(json.dumps(data))
    with pytest.raises(InputError, match="all.json: image id None is not a whole number"):
        split_coco(source, 0.2, 0)


def test_the_command_prints_how_to_train(tmp_path, monkeypatch, capsys):
    ultralytics(tmp_path / "in")
    command = ["convert", "yolo", str(tmp_path / "in"), str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    main()
    printed = capsys.readouterr().out
    assert "train.json: 7 images, 12 boxes, 3 classes" in printed
    assert (
        f"--train_images {tmp_path}/in/images/train --train_ann {tmp_path}/out/train.json"
        in printed
    )


def test_without_a_validation_set_the_command_says_how_to_make_one(tmp_path, monkeypatch, capsys):
    """And its lines can be pasted, also with a space in a path."""
    labelimg_yolo(tmp_path / "my data")
    command = ["convert", "yolo", str(tmp_path / "my data"), str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    main()
    *_, split, train = capsys.readouterr().out.splitlines()
    words = shlex.split(split.removeprefix("no images for validation: split them with "))
    monkeypatch.setattr(sys, "argv", words[2:])
    main()
    args = parse_args(shlex.split(train.removeprefix("train with: "))[2:])
    for images, file in ((args.train_images, args.train_ann), (args.val_images, args.val_ann)):
        load_coco(Path(images), Path(file), return_masks=False, num_classes=None)


def test_converting_needs_no_jittor():
    code = "import sys; sys.modules['jittor'] = None; import datasets.convert.__main__"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0
