"""Hostile datasets: whatever they contain, an InputError of one line, or items of the right form.

DETR_CASES=10000 python -m pytest tests/test_hostile_data.py     tries more cases
"""

import json
import os
import struct
import tempfile
import warnings
from pathlib import Path

import pytest
import tiny
from hostile_data import GOOD_IMAGES, HOSTILE_IMAGES, PLAIN, entry, make_images, read_items
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets.coco import CocoDetection, make_coco_transforms
from datasets.faults import Faults
from datasets.loader import DataLoader
from main import main
from util.errors import InputError

CASES = int(os.environ.get("DETR_CASES", 300))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("hostile"))


# Any double, by its bits: hypothesis refuses to draw floats if denormals are flushed to zero (see
# util/startup/prepare.py).
FLOATS = st.binary(min_size=8, max_size=8).map(lambda content: struct.unpack("<d", content)[0])
INF = float("inf")
INTEGERS = [0, 1, -1, 2**31, 2**63, 2**64, -(2**63), 10**400]
REALS = [0.5, 1e-320, 1e7, 1e308, float("nan"), INF, -INF]
NUMBERS = st.one_of(st.sampled_from([*INTEGERS, *REALS, True, False]), st.integers(-5, 40), FLOATS)
ODD = st.one_of(
    st.none(),
    NUMBERS,
    st.text(max_size=5),
    st.lists(NUMBERS, max_size=5),
    st.dictionaries(st.text(max_size=2), NUMBERS, max_size=2),
)
BOXES = st.one_of(
    ODD,
    st.lists(NUMBERS, min_size=4, max_size=4),
    st.lists(st.integers(-5, 40), min_size=4, max_size=4),
)
COUNTS = st.one_of(
    ODD,
    st.lists(st.integers(-10, 700), max_size=6),
    st.text("0123456789:;<=>?@ABCDOPQRST`abcno\x00é", max_size=12),
    st.sampled_from([[600], [0, 600], [300, 300], "hb0", [10**12], [2**31, 2**31]]),
)
RLES = st.fixed_dictionaries(
    {
        "size": st.one_of(ODD, st.sampled_from([[20, 30], [30, 20], [10**6, 10**6]])),
        "counts": COUNTS,
    }
)
SEGMENTATIONS = st.one_of(
    ODD,
    RLES,
    st.lists(
        st.one_of(
            ODD,
            st.lists(NUMBERS, max_size=9),
            st.lists(st.integers(-5, 40), min_size=6, max_size=6),
        ),
        max_size=3,
    ),
)
OUTSIDE = ["../secret.png", "/etc/passwd", "sub/../good.jpg"]
NO_FILES = ["", ".", "a\0b", "missing.png", "sub", "fifo.png", "x" * 300 + ".jpg"]
NAMES = st.one_of(st.sampled_from([*GOOD_IMAGES] * 2 + [*HOSTILE_IMAGES, *OUTSIDE, *NO_FILES]), ODD)
IMAGES = st.fixed_dictionaries(
    {"id": st.one_of(st.integers(1, 6), ODD), "file_name": NAMES},
    optional={"width": st.one_of(st.just(30), ODD), "height": st.one_of(st.just(20), ODD)},
)
ANNOTATIONS = st.fixed_dictionaries(
    {
        "id": st.one_of(st.integers(1, 50), ODD),
        "image_id": st.one_of(st.integers(1, 6), ODD),
        "bbox": BOXES,
        "category_id": st.one_of(st.sampled_from([1, 2, 3]), ODD),
    },
    optional={
        "area": ODD,
        "iscrowd": st.one_of(st.sampled_from([0, 1]), ODD),
        "segmentation": SEGMENTATIONS,
    },
)
CATEGORIES = st.one_of(
    st.just([{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]),
    st.lists(
        st.fixed_dictionaries({"id": st.one_of(st.integers(0, 5), ODD)}, optional={"name": ODD}),
        max_size=3,
    ),
)
FILES = st.fixed_dictionaries(
    {
        "images": st.lists(IMAGES, max_size=4),
        "annotations": st.lists(ANNOTATIONS, max_size=6),
        "categories": CATEGORIES,
    },
    optional={"info": ODD},
)
QUICK = settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@QUICK
@given(data=FILES, masks=st.booleans(), skip=st.booleans(), coco=st.integers(0, 9))
def test_any_annotation_file_gives_one_line_or_items(folder, capsys, data, masks, skip, coco):
    transforms = make_coco_transforms("train") if coco == 0 else PLAIN
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about sizes
        try:
            read_items(folder, data, masks, skip, transforms)
        except InputError as error:
            assert str(error).isprintable() and str(folder) in str(error)
    capsys.readouterr()


@QUICK
@given(name=st.sampled_from(sorted(GOOD_IMAGES)), data=st.data())
def test_any_damage_to_an_image_gives_one_line_or_an_image(folder, capsys, name, data):
    content = bytearray(GOOD_IMAGES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(len(content) // 2, len(content)))]
    (folder / "images" / "damaged").write_bytes(content)
    listed = {"images": [{"id": 1, "file_name": "damaged"}], "annotations": [], "categories": []}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_items(folder, listed, False, False, PLAIN, "damaged.json")
    capsys.readouterr()


@pytest.mark.parametrize(
    "name, message",
    [
        ("bomb.png", "exceeds limit"),
        ("bomb2.png", "exceeds limit"),
        ("zero.png", "cannot be read"),
        ("empty.jpg", "cannot be read"),
        ("text.jpg", "cannot be read"),
        ("cut.jpg", "cannot be read"),
        ("postscript.jpg", "cannot identify"),
        ("fifo.png", "no such file"),
        ("sub", "no such file"),
        ("flat.png", "300x1 pixels are too flat"),
    ],
)
def test_an_unusable_image_is_named_or_skipped(folder, capsys, name, message):
    data = entry("images", file_name=name)
    dataset = build(folder, data, False)
    with pytest.raises(InputError, match=f"images/{name}: .*{message}"):
        dataset[2]
    for workers in (0, 2):
        batches = [b for [b] in DataLoader(build(folder, data, True), 2, num_workers=workers)]
        assert [len(targets) for _, targets in batches] == [2, 0] and batches[1][0] is None
        printed = f"left out 1 samples that cannot be used; the first: {folder}/images/{name}"
        assert printed in capsys.readouterr().out


def build(folder, data, skip):
    (folder / "annotations.json").write_text(json.dumps(data))
    return CocoDetection(
        folder / "images", folder / "annotations.json", PLAIN, False, 4, faults=Faults(skip)
    )


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, '{"images": ' * 50_000, '{"images": [1' + "0" * 5000 + "]}", "NaN", '"\ud800"'],
)
def test_a_hostile_json_is_an_input_error(folder, content):
    (folder / "hostile.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match="hostile.json: "):
        CocoDetection(folder / "images", folder / "hostile.json", PLAIN, False, 4)


def test_training_and_evaluation_skip_bad_samples(tmp_path, capsys):
    coco = tiny.make_coco(tmp_path / "coco")
    for image_set in ("train", "val"):
        (coco / f"{image_set}2017" / "000000000002.jpg").write_bytes(b"damaged")
        path = coco / "annotations" / f"instances_{image_set}2017.json"
        data = json.loads(path.read_text())
        data["annotations"][0]["bbox"] = [1, 2, -3, 4]
        path.write_text(json.dumps(data))
    flags = ["--epochs 1 --batch_size 1 --seed 47 --output_dir", tmp_path / "out"]
    flags += ["--coco_path", coco]
    with pytest.raises(InputError, match="annotation 1 of image 1: bbox"):
        main(tiny.arguments(*flags))
    main(tiny.arguments(*flags, "--skip_bad_samples"))
    printed = capsys.readouterr().out
    assert printed.count("left out 1 bad images and annotations:") == 2
    assert printed.count("left out 1 samples that cannot be used; the first: ") == 2
    detections = json.loads((tmp_path / "out" / "detections_bbox.json").read_text())
    assert {detection["image_id"] for detection in detections} == {1, 2, 4}, "the bad image is not"


def test_a_missing_image_is_one_bad_sample(tmp_path, capsys):
    """Its annotations are skipped without messages of their own."""
    coco = tiny.make_coco(tmp_path / "coco")
    (coco / "val2017" / "000000000002.jpg").unlink()
    path = coco / "annotations" / "instances_val2017.json"
    dataset = CocoDetection(coco / "val2017", path, PLAIN, False, None, faults=Faults(True))
    assert "left out 1 bad images and annotations:" in capsys.readouterr().out
    data = json.loads(path.read_text())
    left = [ann for ann in data["annotations"] if ann["image_id"] != 2]
    assert len(dataset.annotations.labels) == len(left) < len(data["annotations"])


def test_no_image_was_run_as_a_program():
    for folder in (Path.cwd(), Path(tempfile.gettempdir())):
        assert not (folder / "mark").exists()
