"""--predict, --attention and the library: the numbers are those of the evaluation, and the pictures
can be read.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from interrupt import FLAGS
from peak_memory import measure_peak
from PIL import Image
from processes import REPO

from arguments import parse_args
from checks import find_images
from main import main
from predict import add_masks, list_detections, predict, predict_files, save, unique_names
from util.backend import jt
from util.errors import InputError
from util.pictures import draw_detections


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(checkpoint, folder of the shapes, detections of its evaluation)"""
    root = tmp_path_factory.mktemp("trained")
    flags = [*FLAGS, "--coco_path", str(root / "shapes"), "--epochs", "1", "--num_workers", "0"]
    main(parse_args([*flags, "--output_dir", str(root / "out")]))
    return (
        root / "out" / "checkpoint.pkl",
        root / "shapes",
        json.loads((root / "out" / "detections_bbox.json").read_text()),
    )


def run(trained, out, *flags):
    main(
        parse_args(
            [
                "--resume",
                str(trained[0]),
                "--device",
                "cpu",
                "--output_dir",
                str(out),
                *map(str, flags),
            ]
        )
    )
    return json.loads((out / "detections_bbox.json").read_text())


def test_detections_are_those_of_the_evaluation(trained, tmp_path, capsys):
    """The model's flags, sizes and class names come from the checkpoint."""
    found = run(trained, tmp_path, "--predict", trained[1] / "val2017", "--threshold", 0)
    assert len(found) == len(trained[2]) == 6 * 8
    for image_id in range(1, 7):
        mine, theirs = (
            [d for d in each if d["image_id"] == image_id] for each in (found, trained[2])
        )
        theirs.sort(key=lambda d: -d["score"])
        assert [d["category_id"] for d in mine] == [d["category_id"] for d in theirs]
        np.testing.assert_allclose(
            [d["score"] for d in mine], [d["score"] for d in theirs], rtol=1e-4
        )
        np.testing.assert_allclose(
            [d["bbox"] for d in mine], [d["bbox"] for d in theirs], atol=1e-3
        )
    names = {0: "class 0", 1: "circle", 2: "rectangle", 3: "triangle"}
    assert {d["category_name"] for d in found} == {names[d["category_id"]] for d in found}
    assert found[0]["file_name"] == str(trained[1] / "val2017" / "000000000001.png")
    lines = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith(str(trained[1]))
    ]
    assert len(lines) == 6 and all(
        "8 detections (" in line and " s; 00000000000" in line for line in lines
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        ".lock",
        "detections_bbox.json",
        *(f"{i:012}_detections.jpg" for i in range(1, 7)),
    }


def test_goes_on_past_what_cannot_be_read(trained, tmp_path, capsys):
    folder = tmp_path / "in" / "deep"
    folder.mkdir(parents=True)
    source = trained[1] / "val2017" / "000000000001.png"
    (tmp_path / "in" / "a.png").write_bytes(source.read_bytes())
    (folder / "a.png").write_bytes(source.read_bytes())
    (tmp_path / "in" / "b.jpg").write_bytes(b"no picture")
    (tmp_path / "in" / "notes.txt").write_text("not asked for")
    with pytest.raises(InputError, match=r"1 of 3 images failed, 2 succeeded; .*b\.jpg: cannot"):
        run(trained, tmp_path / "out", "--predict", tmp_path / "in", "--attention")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        ".lock",
        "detections_bbox.json",
        "a_detections.jpg",
        "a_attention.jpg",
        "a-2_detections.jpg",
        "a-2_attention.jpg",
    }
    assert "left out: " in capsys.readouterr().out


def test_a_fault_in_one_picture_costs_only_that_one(trained, tmp_path, monkeypatch, capsys):
    """Whatever it is; and what was detected in the others is written."""

    def fail_at_the_second(model, images, *options):
        if images[0].size == (50, 40):
            raise MemoryError("one line,\nand another")
        return predict(model, images, *options)

    monkeypatch.setattr("predict.predict", fail_at_the_second)
    for number, size in enumerate([(32, 32), (50, 40), (64, 32)]):
        Image.new("RGB", size, "red").save(tmp_path / f"{number}.png")
    with pytest.raises(
        InputError,
        match=r"1 of 3 images failed, 2 succeeded; .*/1\.png: MemoryError: "
        r"one line,\\nand another",
    ):
        run(trained, tmp_path / "out", "--predict", tmp_path / "*.png", "--threshold", 0)
    found = json.loads((tmp_path / "out" / "detections_bbox.json").read_text())
    assert {Path(detection["file_name"]).name for detection in found} == {"0.png", "2.png"}
    assert f"left out: {tmp_path}/1.png: MemoryError" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").glob("*.jpg")} == {
        "0_detections.jpg",
        "2_detections.jpg",
    }


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_name_that_cannot_be_printed_costs_nothing(trained, tmp_path, encoding):
    """In a separate process, whose output takes valid text only, as a terminal's does."""
    name = os.fsdecode(b"K\xfcche\x1b[2J.png")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "picture.png")
    (tmp_path / "picture.png").rename(tmp_path / name)
    out = tmp_path / os.fsdecode(b"\xfc")
    done = subprocess.run(
        [
            *(sys.executable, "main.py", "--predict", tmp_path / name, "--threshold", "0"),
            *("--resume", trained[0], "--device", "cpu", "--output_dir", out),
        ],
        cwd=REPO,
        env={**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert r"K\udcfcche\x1b[2J.png: 8 detections" in done.stdout
    assert "8 detections in 1 image, " in done.stdout
    found = json.loads((out / "detections_bbox.json").read_text())
    assert {Path(detection["file_name"]).name for detection in found} == {name}


def test_ctrl_c_keeps_the_results_so_far(trained, tmp_path, monkeypatch, capfd):
    def interrupt_the_second(model, images, *options):
        if images[0].size == (50, 40):
            os.kill(os.getpid(), signal.SIGINT)
        return predict(model, images, *options)

    monkeypatch.setattr("predict.predict", interrupt_the_second)
    for number, size in enumerate([(32, 32), (50, 40), (64, 32)]):
        Image.new("RGB", size, "red").save(tmp_path / f"{number}.png")
    with pytest.raises(SystemExit) as stopped:
        run(trained, tmp_path / "out", "--predict", tmp_path / "*.png", "--threshold", 0)
    assert stopped.value.code == 128 + signal.SIGINT
    assert "stopped by SIGINT: 2 of 3 images done" in capfd.readouterr().err
    found = json.loads((tmp_path / "out" / "detections_bbox.json").read_text())
    assert {Path(detection["file_name"]).name for detection in found} == {"0.png", "1.png"}


def test_a_full_disk_ends_it(trained, tmp_path, monkeypatch):
    def full(picture, path):
        raise InputError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr("predict.save", full)
    with pytest.raises(InputError, match="cannot be written"):
        run(trained, tmp_path, "--predict", trained[1] / "val2017")


def test_pictures_are_found(tmp_path):
    for name in ("b.jpg", "a.PNG", "sub/c.jpeg", "sub/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def find(*paths):
        return [
            str(path.relative_to(tmp_path))
            for path in find_images([str(tmp_path / path) for path in paths], "/nowhere")
        ]

    assert find("") == ["a.PNG", "b.jpg", "sub/c.jpeg"]
    assert find("b.jpg", "*.jpg", "sub/d.txt") == ["b.jpg", "sub/d.txt"], (
        "each once, and what is named whatever its suffix"
    )
    assert find("**/*.jpeg") == ["sub/c.jpeg"]
    for path, message in (
        ("x.jpg", "no such file"),
        ("*.gif", "no such file"),
        ("sub/d", "no such file"),
    ):
        with pytest.raises(InputError, match=message):
            find(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image in this folder"):
        find("empty")
    with pytest.raises(InputError, match="--output_dir .*out lies in .*: give another folder"):
        find_images([str(tmp_path)], tmp_path / "out")


def test_a_long_name_is_cut_for_the_results(tmp_path):
    """The file system takes 255 bytes; the name of the picture may have as many."""
    files = [Path(f"{'猫' * 83}{i}.png") for i in (1, 2)]
    one, two = unique_names(files)
    assert one == "猫" * 66 and two == f"{one}-2"
    save(Image.new("RGB", (9, 9)), tmp_path / f"{two}_detections.jpg")


def test_names_of_results():
    assert unique_names([Path(name) for name in ("x/a.jpg", "y/a.jpg", "a-2.png", "b.c.jpg")]) == [
        "a",
        "a-2",
        "a-2-2",
        "b.c",
    ]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--predict", "/nowhere/*.jpg"], r"--predict /nowhere/\*\.jpg: no such file"),
        (["--predict", "README.md", "--threshold", "-1"], "--threshold is -1.0"),
        (["--predict", "README.md", "--finetune", "w.pkl"], "--resume .*: give one of the two"),
        (
            ["--predict", "README.md", "--resume", "/nowhere/w.pkl"],
            r"/nowhere/w\.pkl: cannot be read",
        ),
        (
            ["--predict", "README.md", "--num_queries", "9"],
            "--num_queries is 9, but .* was trained with 8",
        ),
        (["--attention"], "--attention is for --predict"),
        (["--threshold", "0.5"], "--threshold is for --predict"),
    ],
)
def test_wrong_flags_are_named(trained, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        run(trained, tmp_path / "out", *flags)


def test_the_folder_of_a_training_is_refused(trained):
    with pytest.raises(InputError, match="holds a training .*, whose detections would be replaced"):
        run(trained, trained[0].parent, "--predict", "README.md")


@pytest.fixture(scope="module")
def model():
    jt.set_global_seed(0)
    return tiny.build(tiny.arguments())[0]


def test_inputs_of_the_library(model, tmp_path):
    """Paths, PIL images and arrays give the same; EXIF orientation is applied; the size of the
    picture does not matter to boxes.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 8  # to be turned by 90 degrees to the left
    turned = Image.fromarray(np.rot90(pixels, -1))
    turned.save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    results = predict(
        model,
        [pixels, Image.fromarray(pixels), tmp_path / "plain.png", str(tmp_path / "turned.png")],
        0,
        64,
    )
    for result in results:
        assert {name: (array.dtype, array.shape) for name, array in result.items()} == {
            "scores": (np.float32, (10,)),
            "labels": (np.int64, (10,)),
            "boxes": (np.float32, (10, 4)),
        }
        for name in result:
            np.testing.assert_array_equal(result[name], results[0][name])
    assert (np.diff(results[0]["scores"]) <= 0).all()
    half = predict(model, [pixels], float(results[0]["scores"][4]), 64)[0]
    assert len(half["scores"]) == 5
    with pytest.raises(
        InputError,
        match="none.jpg: cannot be read as an image .no such file.; add it, or leave it out",
    ):
        predict(model, [tmp_path / "none.jpg"])
    with pytest.raises(ValueError, match="images is 'a.jpg': give a list of images"):
        predict(model, "a.jpg")
    with pytest.raises(ValueError, match="image is an array float64: give uint8, 0 to 255"):
        predict(model, [pixels / 255])


@pytest.mark.parametrize("size", [(96, 64), (33, 200), (1, 1)])
def test_attention(model, size):
    [result] = predict(
        model, [np.zeros((size[1], size[0], 3), np.uint8)], 0, 64, 200, attention=True
    )
    h, w = result["decoder_attention"].shape[1:]
    assert len(result["decoder_attention"]) == 10 and result["encoder_attention"].shape == (
        h,
        w,
        h,
        w,
    )
    np.testing.assert_allclose(result["decoder_attention"].sum((1, 2)), 1, rtol=1e-4)
    np.testing.assert_allclose(result["encoder_attention"].sum((2, 3)), 1, rtol=1e-4)
    assert (w > h) == (size[0] > size[1]) and "decoder_attention" not in predict(
        model, [np.zeros((9, 9, 3), np.uint8)], 0, 64
    )[0]


def test_masks():
    jt.set_global_seed(0)
    masks_model = tiny.build(tiny.arguments("--masks", "--hidden_dim", 128, "--nheads", 8))[0]
    [result] = predict(masks_model, [np.zeros((30, 50, 3), np.uint8)], 0, 64)
    assert result["masks"].shape == (10, 30, 50) and result["masks"].dtype == bool
    assert predict(masks_model, [np.zeros((30, 50, 3), np.uint8)], 1, 64)[0]["masks"].shape == (
        0,
        30,
        50,
    )
    draw_detections(Image.new("RGB", (50, 30)), result, {})


def test_masks_of_a_photo_are_computed_drawn_and_encoded_one_at_a_time():
    jt.set_global_seed(0)
    masks_model = tiny.build(tiny.arguments("--masks", "--hidden_dim", 128, "--nheads", 8))[0]
    photo = Image.new("RGB", (3000, 2000))

    def detect_and_draw():
        [result] = predict(masks_model, [photo], 0, 64)
        detections = list_detections(1, "photo.jpg", result, {})
        return add_masks(detections, result["masks"]), draw_detections(photo, result, {})

    (found, drawn), peak = measure_peak(detect_and_draw)
    assert len(found) == 10 and drawn.size == photo.size
    assert peak < 85, "MB; the 10 masks of the result take 60, and one as float32 24"


def test_files_of_results_are_of_this_run(tmp_path):
    """Those of masks as well, where nothing is detected."""
    Image.new("RGB", (50, 30)).save(tmp_path / "a.png")
    flags = ["--predict", tmp_path / "a.png", "--output_dir", tmp_path, "--eval_size", 64]
    args = tiny.arguments("--masks", "--hidden_dim", 128, "--nheads", 8, *flags)
    model = tiny.build(args)[0]
    for args.threshold, count in ((0, 10), (1, 0)):
        predict_files(model, args, {})
        for kind in ("bbox", "segm"):
            found = json.loads((tmp_path / f"detections_{kind}.json").read_text())
            assert len(found) == count
