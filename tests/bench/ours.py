"""Run one benchmark row in this project (see __main__.py)."""

import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import rows  # noqa: E402

TRANSFERS = {"numpy", "item", "tolist"}


def build(row):
    import recipe

    from tests.helpers import ours

    recipe.CASES[row] = rows.MODELS[row].flags
    return ours.build(row)


def forward(options):
    from util.backend import jt
    from util.misc import nested_tensor_from_arrays

    _, model, _, postprocessors = build(options.row)
    model.eval()
    images, _ = rows.make_batch(rows.MODELS[options.row].sizes)
    batch, sizes = nested_tensor_from_arrays(images), [image.shape[1:] for image in images]

    def step():
        with jt.no_grad():
            outputs = model(batch.to_jittor())
            results = postprocessors["bbox"](outputs, sizes)
            if "segm" in postprocessors:
                postprocessors["segm"](results, outputs, sizes, sizes)

    return rows.measure(step, options)


def make_trainer(row):
    """Return train(batches), which trains as main.py does, and make_batch(sizes)."""
    from engine import train_one_epoch
    from util.misc import nested_tensor_from_arrays
    from util.optim import build_optimizer

    args, model, criterion, _ = build(row)
    optimizer = build_optimizer(model, args)

    def make_batch(sizes):
        images, targets = rows.make_batch(sizes)
        return nested_tensor_from_arrays(images), targets

    def train(batches):
        train_one_epoch(model, criterion, batches, optimizer, 0, 0, args.clip_max_norm)

    return train, make_batch


def train(options):
    from tiny import Batches

    from tests.tools.messages import count_calls
    from util.backend import jt

    def is_transfer(function):
        owner = getattr(function, "__self__", None)
        name = function.__name__
        return name == "fetch_sync" or (name in TRANSFERS and isinstance(owner, jt.Var))

    run, make_batch = make_trainer(options.row)
    batch = make_batch(rows.MODELS[options.row].sizes)
    clock = rows.Clock(options, [batch])
    run(clock)
    counts = [count_calls(lambda: run(Batches([batch] * n)), is_transfer) for n in (1, 2)]
    return {**clock.figures(), "transfers": counts[1] - counts[0]}


def evaluate(options):
    command = [sys.executable, str(ROOT / "main.py"), "--eval", "--coco_path", options.coco_path]
    command += ["--resume", options.weights]
    start, first = time.time(), None
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("Test:") and first is None:
            first = time.time() - start
    assert process.wait() == 0, command
    seconds = time.time() - start
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    return {"seconds": seconds, "start": first, "memory": memory}


def data(options):
    import main
    from datasets import build_dataset

    args = main.parse_args(["--coco_path", options.coco_path])
    return rows.measure_data(build_dataset(options.row.split("-")[1], args))


def loader(options):
    """Load an epoch. Annotations in the user's cache are used."""
    import main
    from datasets import build_dataset
    from datasets.loader import DataLoader

    start = time.time()
    dataset = build_dataset("train", main.parse_args(["--coco_path", options.coco_path]))
    batches = DataLoader(dataset, 2, shuffle=True, drop_last=True, num_workers=2)
    return rows.measure_loader(batches, start)


def operators(_):
    """Return the milliseconds, forward and backward, of our operators and of Jittor's.

    The sizes are those of training R50.
    """
    from util import ops
    from util.backend import jt, nn

    def conv(outputs, channels, kernel, stride, height, width):
        geometry = (stride, stride), (kernel // 2, kernel // 2)
        shapes = [(2, channels, height, width), (outputs, channels, kernel, kernel), (outputs,)]
        return lambda x, weight, bias: ops.conv2d(x, weight, bias, *geometry, relu=True), shapes

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

    def measure(function, inputs):
        times = []
        for _ in range(12):
            start = time.perf_counter()
            y = function(*inputs)
            jt.sync([y, *jt.grad((y * y).sum(), inputs)])
            times.append(time.perf_counter() - start)
        return sorted(times[2:])[5] * 1000

    choose, milliseconds = ops.has_kernels, {}
    for name, (function, shapes) in cases.items():
        inputs = [jt.randn(shape) for shape in shapes]
        jt.sync(inputs)
        ops.has_kernels = choose
        own = measure(function, inputs)
        ops.has_kernels = lambda: False
        milliseconds[name] = own, measure(function, inputs)
    return milliseconds


def compilations(_):
    """Count operators that two training steps and evaluations compile, and 30 of other sizes."""
    import numpy as np
    from tiny import Batches

    from util.backend import jt
    from util.misc import nested_tensor_from_arrays

    train, make_batch = make_trainer("train")
    _, model, _, postprocessors = build("forward")
    folder = Path(jt.flags.cache_path) / "jit"

    def count_compiled():
        return len(list(folder.glob("*.so")))

    def step(sizes):
        train(Batches([make_batch(sizes)]))
        model.eval()
        with jt.no_grad():
            samples = nested_tensor_from_arrays(rows.make_batch(sizes)[0]).to_jittor()
            postprocessors["bbox"](model(samples), sizes)

    sizes = np.random.default_rng(0).integers(200, 420, (32, 2, 2)).tolist()
    sizes = [[tuple(size) for size in pair] for pair in sizes]
    before, start = count_compiled(), time.time()
    for pair in sizes[:2]:
        step(pair)
    first, seconds = count_compiled(), time.time() - start
    for pair in sizes[2:]:
        step(pair)
    return {"seconds": seconds, "first": first - before, "later": count_compiled() - first}


def main(options):
    if options.row == "eval":
        return evaluate(options)
    from util.startup.prepare import prepare_device

    start = time.time()
    prepare_device(options.device)
    from util.backend import select_device

    select_device(options.device)
    core = {"core": time.time() - start} if options.row == "compilations" else {}
    special = {"compilations": compilations, "operators": operators, "loader": loader}
    if options.row in rows.DATA:
        measure = data
    else:
        measure = special.get(options.row, forward if "forward" in options.row else train)
    return {**core, **measure(options)}


if __name__ == "__main__":
    rows.report(main(rows.parse()))
