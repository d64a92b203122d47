"""Exported ONNX files in ONNX Runtime and OpenVINO, against this program and the original.

All models, and a table of times: -m "soak or not soak" -s.
"""

import shutil
import statistics
import subprocess
import time

import numpy as np
import ours
import pytest
import recipe
from processes import REPO

from models.weights.model import load_model_state, model_state
from predict import predict
from util.jittor_file import write_jittor_file
from util.misc import NestedTensor, nested_tensor_from_arrays

LARGE = [(800, 1066), (640, 853), (512, 512)]
SMALL = [(160, 224), (201, 333), (64, 96)]
# (case, sizes, is static: the file is for the first size only)
FAST = [
    ("masks", SMALL, False),
    ("masks", SMALL, True),
    ("pre-norm-learned", SMALL, False),
    ("tiny", SMALL, False),
    ("group-norm", SMALL, False),
]
ALL = [
    (case, sizes, static)
    for case, sizes in (
        ("pre-norm-learned", LARGE),
        ("resnet50", LARGE),
        ("resnet50-dc5", LARGE),
        ("masks", [(320, 427), (256, 256), (200, 300)]),
    )
    for static in (False, True)
]


def make_batches(sizes):
    """Return a batch of one image for each size, and one of three images padded to it."""
    rng = np.random.default_rng(0)

    def batch(*sizes):
        images = [rng.standard_normal((3, *size), np.float32) for size in sizes]
        samples = nested_tensor_from_arrays(images)
        return {"images": samples.tensors, "mask": samples.mask}

    batches = {}
    for height, width in sizes:
        smaller = (height * 3 // 4, width), (height, width * 2 // 3)
        batches[f"{height}x{width}x1"] = batch((height, width))
        batches[f"{height}x{width}x3"] = batch((height, width), *smaller)
    return batches


def run_ours(model, batch):
    """Return the outputs, and the median seconds of some runs."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        outputs = ours.run(model, NestedTensor(batch["images"], batch["mask"]))
        seconds.append(time.perf_counter() - start)
    return outputs, statistics.median(seconds[1:])


@pytest.mark.parametrize(
    "case, sizes, static", [*FAST, *(pytest.param(*row, marks=pytest.mark.soak) for row in ALL)]
)
def test_export(original, oracle_python, tmp_path, measured, case, sizes, static):
    if static:
        sizes = sizes[:1]
    args, model, _, _ = ours.build(case)
    checkpoint = {"model": model_state(model), "args": vars(args)}
    write_jittor_file(checkpoint, tmp_path / "model.pkl")
    size = map(str, sizes[0]) if static else ["dynamic"]
    command = [oracle_python, "-m", "models.export", tmp_path / "model.pkl", tmp_path / "m.onnx"]
    subprocess.run([*map(str, command), "--size", *size], cwd=REPO, check=True)

    batches = make_batches(sizes)
    arrays = {f"{name}/{part}": a for name, batch in batches.items() for part, a in batch.items()}
    np.savez(tmp_path / "batches.npz", **arrays)
    results = original("run_export.py", case, tmp_path / "m.onnx", tmp_path / "batches.npz")
    megabytes = (tmp_path / "m.onnx").stat().st_size / 1e6
    print(f"\n{case}, {'static' if static else 'dynamic'}: {megabytes:.1f} MB")
    differences = {}
    for name, batch in batches.items():
        mine, seconds = run_ours(model, batch)
        times = {"ours": seconds}
        for runtime in ("original", "onnxruntime", "openvino"):
            times[runtime] = float(results[f"{runtime}/{name}/seconds"])
            for output, array in mine.items():
                theirs = results[f"{runtime}/{name}/{output}"]
                assert theirs.shape == array.shape
                difference = np.abs(array - theirs).max()
                if output != "boxes":
                    difference /= np.abs(array).max()
                differences.setdefault((output, runtime), []).append(difference)
        count = len(batch["images"])
        print(name, {runtime: f"{s / count * 1000:.1f} ms" for runtime, s in times.items()})
    title = f"{case}, {'static' if static else 'dynamic'}, {len(batches)} batches"
    for (output, runtime), values in differences.items():
        tolerance = 1e-5 if output == "boxes" else 1e-4
        measured(f"export: {output}, ours and {runtime}", title, max(values), tolerance)


def test_the_docs_program_finds_what_predict_finds(oracle_python, tmp_path, original, coco_path):
    """Run it as it stands except for the threshold, in the original's interpreter (no Jittor)."""
    [block] = (REPO / "docs" / "weights.md").read_text().split("```python\n")[1:]
    program = block.split("```")[0]
    photo = sorted((coco_path / "val2017").glob("*.jpg"))[0]
    shutil.copy(photo, tmp_path / "photo.jpg")
    args, model, _, _ = ours.build("resnet18")
    shapes = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    load_model_state(model, recipe.make_detector(shapes), "the recipe")
    classes = {class_id: f"name {class_id}" for class_id in range(91)}
    checkpoint = {"model": model_state(model), "args": vars(args), "classes": classes}
    write_jittor_file(checkpoint, tmp_path / "model.pkl")
    command = [oracle_python, "-m", "models.export", tmp_path / "model.pkl", tmp_path / "detr.onnx"]
    subprocess.run(list(map(str, command)), cwd=REPO, check=True)
    [result] = predict(model, [photo], threshold=0)
    scores = np.sort(result["scores"])[::-1]
    last = np.argmax(scores[4:50] - scores[5:51]) + 4  # above the widest gap
    program = program.replace("> 0.7", f"> {(scores[last] + scores[last + 1]) / 2}")
    done = subprocess.run(
        [oracle_python, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == last + 1 and {word for word, *_ in lines} == {"name"}
    for _, label, score, *box in lines:
        distance = np.abs(result["boxes"] - np.array(box, float)).max(1)
        nearest = distance.argmin()
        assert distance[nearest] < 1 and result["labels"][nearest] == int(label)
        assert abs(result["scores"][nearest] - float(score)) < 5e-3
