"""One row of the benchmark in this project; see benchmark.py."""
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "oracle")]

import bench_rows  # noqa: E402

TRANSFERS = {"numpy", "item", "tolist", "fetch_sync"}


def build(row):
    import ours
    import recipe
    recipe.CASES[row] = bench_rows.MODELS[row][1]
    return ours.build(row)


def forward(row):
    import jittor as jt
    from util.misc import nested_tensor_from_arrays
    _, model, _, postprocessors = build(row)
    model.eval()
    images, _ = bench_rows.make_batch(bench_rows.MODELS[row][2])
    batch, sizes = nested_tensor_from_arrays(images), [image.shape[1:] for image in images]

    def step():
        with jt.no_grad():
            outputs = model(batch.to_jittor())
            results = postprocessors["bbox"](outputs, sizes)
            if "segm" in postprocessors:
                postprocessors["segm"](results, outputs, sizes, sizes)
    return bench_rows.measure(row, step)


def trainer(row):
    """train(batches) trains as main.py does; batch(sizes) makes one of its batches."""
    import main
    from engine import train_one_epoch
    from models import build_model
    from util.misc import nested_tensor_from_arrays
    if row == "train-demo":
        args = main.parse_args(["--demo"])
        model, criterion, _ = build_model(args)
    else:
        args, model, criterion, _ = build(row)
    optimizer = main.build_optimizer(model, args)

    def batch(sizes):
        images, targets = bench_rows.make_batch(sizes)
        return nested_tensor_from_arrays(images), targets

    def train(batches):
        train_one_epoch(model, criterion, batches, optimizer, 0, 0, args.clip_max_norm)
    return train, batch


def train(row):
    from tiny import Batches
    run, batch = trainer(row)
    batch = batch(bench_rows.MODELS[row][2])
    clock = bench_rows.Clock(row, batch)
    run(clock)
    figures = clock.figures()
    transfers = [count_transfers(lambda: run(Batches([batch] * n))) for n in (1, 2)]
    return {**figures, "transfers": transfers[1] - transfers[0]}


def count_transfers(step):
    """How often step() fetches something from the device."""
    import jittor as jt
    count = 0

    def profile(_, event, function):
        nonlocal count
        if event == "c_call" and function.__name__ in TRANSFERS:
            owner = getattr(function, "__self__", None)
            count += function.__name__ == "fetch_sync" or isinstance(owner, jt.Var)
    sys.setprofile(profile)
    step()
    sys.setprofile(None)
    return count


def evaluate(options):
    command = [sys.executable, str(ROOT / "main.py"), "--eval", "--coco_path", options.coco_path, "--resume", options.weights]
    start, first = time.time(), None
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("Test:") and first is None:
            first = time.time() - start
    assert process.wait() == 0, command
    seconds = time.time() - start
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(json.dumps({"seconds": seconds, "start": first, "memory": memory}))


def data(options):
    import main
    from datasets import build_dataset
    args = main.parse_args(["--coco_path", options.coco_path])
    return bench_rows.measure_data(build_dataset(options.row.split("-")[1], args))


def compilations():
    """Operators compiled in two training steps and an evaluation, and in 30 more of each with images of other sizes."""
    import jittor as jt
    import numpy as np
    from tiny import Batches
    from util.misc import nested_tensor_from_arrays
    train, batch = trainer("train")
    folder = Path(jt.flags.cache_path) / "jit"

    def compiled():
        return len(list(folder.glob("*.so")))
    _, model, _, postprocessors = build("forward")

    def step(sizes):
        train(Batches([batch(sizes)]))
        model.eval()
        with jt.no_grad():
            samples = nested_tensor_from_arrays(bench_rows.make_batch(sizes)[0]).to_jittor()
            postprocessors["bbox"](model(samples), sizes)
    sizes = [[tuple(size) for size in pair] for pair in np.random.default_rng(0).integers(200, 420, (32, 2, 2)).tolist()]
    before, start = compiled(), time.time()
    for pair in sizes[:2]:
        step(pair)
    first, seconds = compiled(), time.time() - start
    for pair in sizes[2:]:
        step(pair)
    return {"seconds": seconds, "first": first - before, "later": compiled() - first}


if __name__ == "__main__":
    options = bench_rows.parse()
    if options.row == "eval":
        evaluate(options)
        sys.exit()
    from util import runtime
    runtime.select_device("cpu")
    if options.row == "compilations":
        bench_rows.report(compilations())
    elif options.row in bench_rows.DATA:
        bench_rows.report(data(options))
    else:
        bench_rows.report((forward if options.row.startswith("forward") else train)(options.row))
