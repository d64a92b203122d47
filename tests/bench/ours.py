"""One row of the benchmark in this project; see benchmark.py."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers"), str(ROOT / "tests" / "oracle")]

import bench_rows  # noqa: E402

TRANSFERS = {"numpy", "item", "tolist", "fetch_sync"}


def build(row):
    import ours
    import recipe

    recipe.CASES[row] = bench_rows.MODELS[row][1]
    return ours.build(row)


def forward(options):
    from util.backend import jt
    from util.misc import nested_tensor_from_arrays

    _, model, _, postprocessors = build(options.row)
    model.eval()
    images, _ = bench_rows.make_batch(bench_rows.MODELS[options.row][2])
    batch, sizes = nested_tensor_from_arrays(images), [image.shape[1:] for image in images]

    def step():
        with jt.no_grad():
            outputs = model(batch.to_jittor())
            results = postprocessors["bbox"](outputs, sizes)
            if "segm" in postprocessors:
                postprocessors["segm"](results, outputs, sizes, sizes)

    return bench_rows.measure(step, options)


def trainer(row):
    """train(batches) trains as main.py does; batch(sizes) makes one of its batches."""
    import main
    from engine import train_one_epoch
    from util.misc import nested_tensor_from_arrays

    args, model, criterion, _ = build(row)
    optimizer = main.build_optimizer(model, args)

    def batch(sizes):
        images, targets = bench_rows.make_batch(sizes)
        return nested_tensor_from_arrays(images), targets

    def train(batches):
        train_one_epoch(model, criterion, batches, optimizer, 0, 0, args.clip_max_norm)

    return train, batch


def train(options):
    from tiny import Batches

    run, batch = trainer(options.row)
    batch = batch(bench_rows.MODELS[options.row][2])
    clock = bench_rows.Clock(options, batch)
    run(clock)
    figures = clock.figures()
    transfers = [count_transfers(lambda: run(Batches([batch] * n))) for n in (1, 2)]
    return {**figures, "transfers": transfers[1] - transfers[0]}


def count_transfers(step):
    """How often step() fetches something from the device."""
    from util.backend import jt

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
    command = [
        sys.executable,
        str(ROOT / "main.py"),
        "--eval",
        "--coco_path",
        options.coco_path,
        "--resume",
        options.weights,
    ]
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


def loader(options):
    """A pass of the training data. Annotations that are kept in the user's cache are used."""
    import main
    from datasets import build_dataset
    from datasets.loader import DataLoader

    start = time.time()
    dataset = build_dataset("train", main.parse_args(["--coco_path", options.coco_path]))
    batches = DataLoader(dataset, 2, shuffle=True, drop_last=True, num_workers=2)
    return bench_rows.measure_loader(batches, start)


def operators():
    """Milliseconds, forward and back, of each own operator and of what Jittor has in its place, at
    sizes of R50's training.
    """
    from util import ops
    from util.backend import jt, nn

    def conv(outputs, channels, kernel, stride, height, width):
        place = (stride, stride), (kernel // 2, kernel // 2)
        # noqa: E731
        function = lambda x, weight, bias: ops.conv2d(x, weight, bias, *place, relu=True)
        return function, [
            (2, channels, height, width),
            (outputs, channels, kernel, kernel),
            (outputs,),
        ]

    masked = jt.zeros((2, 540)).bool()
    dropout, layer_norm, batch_norm = ops.Dropout(0.1), ops.LayerNorm(256), nn.BatchNorm2d(64)
    dropout.train()
    batch_norm.train()
    cases = {
        "bmm_transpose [16, 540, 32]": (ops.bmm_transpose, [(16, 540, 32), (16, 540, 32)]),
        "bmm [16, 540, 540] x [16, 540, 32]": (ops.bmm, [(16, 540, 540), (16, 540, 32)]),
        "softmax [16, 540, 540]": (lambda x: ops.softmax(x, masked), [(16, 540, 540)]),
        "convolution 1x1, 256 to 1024": conv(1024, 256, 1, 1, 40, 54),
        "convolution 3x3, 256 to 256": conv(256, 256, 3, 1, 40, 54),
        "convolution 3x3, stride 2, 256 to 256": conv(256, 256, 3, 2, 80, 107),
        "max_pool [2, 64, 320, 427]": (ops.max_pool, [(2, 64, 320, 427)]),
        "relu [2, 540, 2048]": (ops.relu, [(2, 540, 2048)]),
        "Dropout [2, 540, 2048]": (dropout, [(2, 540, 2048)]),
        "LayerNorm [2, 540, 256]": (layer_norm, [(2, 540, 256)]),
        "norm, BatchNorm2d [16, 64, 24, 24]": (
            lambda x: ops.norm(x, batch_norm, relu=True),
            [(16, 64, 24, 24)],
        ),
    }

    def milliseconds(function, inputs):
        times = []
        for _ in range(12):
            start = time.perf_counter()
            y = function(*inputs)
            jt.sync([y, *jt.grad((y * y).sum(), inputs)])
            times.append(time.perf_counter() - start)
        return sorted(times[2:])[5] * 1000

    choose, found = ops._on_onednn, {}
    for name, (function, shapes) in cases.items():
        inputs = [jt.randn(shape) for shape in shapes]
        jt.sync(inputs)
        ops._on_onednn = choose
        own = milliseconds(function, inputs)
        ops._on_onednn = lambda: False
        found[name] = own, milliseconds(function, inputs)
    return found


def compilations():
    """Operators compiled in two training steps and an evaluation, and in 30 more of each with
    images of other sizes.
    """
    import numpy as np
    from tiny import Batches

    from util.backend import jt
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

    sizes = [
        [tuple(size) for size in pair]
        for pair in np.random.default_rng(0).integers(200, 420, (32, 2, 2)).tolist()
    ]
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

    start = time.time()
    runtime.prepare_device(options.device)
    from util.backend import select_device

    select_device(options.device)
    if options.row == "compilations":
        bench_rows.report({"core": time.time() - start, **compilations()})
    elif options.row == "operators":
        bench_rows.report(operators())
    elif options.row == "loader":
        print(json.dumps(loader(options)))
    elif options.row in bench_rows.DATA:
        bench_rows.report(data(options))
    else:
        bench_rows.report((forward if options.row.startswith("forward") else train)(options))
