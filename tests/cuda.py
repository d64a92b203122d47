"""Acceptance on a machine with a GPU: `python -m tests.cuda --out FOLDER` prints a table.

Each row compares the GPU with the CPU of the same machine, or measures the GPU, in a new process. A
call takes at most --minutes. Finished rows stay in FOLDER, and compiled operators in Jittor's
cache: call it again until all rows are there.

Exit code: 0 if all rows are done and within their limits, 1 if one is not, 2 without a usable GPU,
3 if rows are left.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / "tests" / "helpers"), str(REPO / "tests" / "oracle")]

OPERATOR_LIMIT, OUTPUT_LIMIT, GRADIENT_LIMIT, LOSS_LIMIT = 1e-4, 1e-4, 1e-3, 1e-3
DEMO_AP = 0.70
# Training at random image sizes: after SETTLED steps memory may grow by the factor MAX_GROWTH.
STEPS, SETTLED = 300, 150
MAX_GROWTH = 1.1


# ---- rows: functions of the folder that return (measurement, whether it is within its limit)
# Their imports of Jittor are inside, because `main` prepares the device first.


def device(_):
    from util.backend import jt

    gpu = "no nvidia-smi"
    if shutil.which("nvidia-smi"):
        query = "nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader"
        gpu = subprocess.run(query.split(), capture_output=True, text=True).stdout.strip()
        gpu = gpu.replace("\n", " and ")
    versions = f"nvcc {jt.compiler.nvcc_path} {'.'.join(map(str, jt.compiler.nvcc_version))}"
    return f"{gpu}; {versions}; architectures {list(jt.flags.cuda_archs)}", True


def operators(_):
    """Compare results and gradients of util/ops and of Jittor's layers that the models use."""
    import numpy as np

    from util import ops
    from util.backend import jt, nn
    from util.misc import resize_nearest

    mask = np.random.default_rng(0).random((2, 130)) < 0.3

    def adamw(p, v, m, g):
        scalars = jt.array(np.float32([0.99, 0.9, 0.1, 0.999, 0.001, 1e-2, 1.5, 1e-8]))
        [new] = ops.adamw([p], [v * v], [m], [g], jt.array([0.7]), scalars)
        return jt.array(np.concatenate([var.numpy() for var in new]))

    def interpolate(x):
        return nn.interpolate(x, size=(31, 45), mode="bilinear")

    cases = {
        "bmm": (ops.bmm, (5, 7, 33), (5, 33, 4)),
        "bmm_transpose": (ops.bmm_transpose, (5, 7, 33), (5, 4, 33)),
        "linear": (ops.linear, (2, 300, 33), (20, 33), (20,)),
        "linear, relu": (
            lambda *inputs: ops.linear(*inputs, relu=True),
            *[(2, 300, 33), (20, 33), (20,)],
        ),
        "attention": (
            lambda *inputs: ops.attention(*inputs, 4, jt.array(mask))[0],
            *[(2, 9, 64), (2, 130, 64), (2, 130, 64), (192, 64), (192,), (64, 64), (64,)],
        ),
        "add_norm": (
            lambda x, y: ops.add_norm(x, y, ops.Dropout(0.0), ops.LayerNorm(64)),
            *[(3, 50, 64)] * 2,
        ),
        "stack": (lambda *inputs: ops.stack(inputs, 1), *[(3, 70)] * 5),
        "unbind": (lambda x: sum(ops.unbind(x, 2)[1:]), (3, 70, 4)),
        "relu": (ops.relu, (3, 1000)),
        "max_pool": (ops.max_pool, (2, 3, 33, 40)),
        "transpose": (ops.transpose, (2, 70, 101)),
        "softmax": (ops.softmax, (16, 9, 1050)),
        "softmax, masked": (lambda x: ops.softmax(x, jt.array(mask)), (16, 9, 130)),
        "norm_of_all": (lambda *arrays: ops.norm_of_all(arrays), (1,), (70, 300), (256, 64, 3, 3)),
        "adamw": (adamw, *[(1000,)] * 4),
        "LayerNorm": (ops.LayerNorm(64), (3, 50, 64)),
        "GroupNorm": (nn.GroupNorm(8, 64), (2, 64, 9, 11)),
        "BatchNorm": (ops.BatchNorm2d(64), (2, 64, 9, 11)),
        "resize_nearest": (lambda x: resize_nearest(x, (31, 45)), (2, 8, 13, 20)),
        "interpolate": (interpolate, (2, 8, 13, 20)),
        "cumsum": (lambda x: x.cumsum(1), (2, 30, 42)),
        "argmax": (lambda x: x * (x == x.argmax(-1)[1].unsqueeze(-1)), (8, 92)),
        "log_softmax": (lambda x: nn.log_softmax(x, dim=-1), (6, 2, 100, 92)),
        "index": (lambda x: x[jt.array([1, 0, 1]), jt.array([4, 4, 2])], (2, 5, 7)),
    }
    geometries = (1, 1, 1), (1, 2, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2), (7, 2, 1)
    for kernel, stride, dilation in geometries:
        padding = dilation * (kernel // 2)
        cases[f"conv {kernel}x{kernel}, stride {stride}, dilation {dilation}"] = (
            lambda x, w, b, geometry=((stride,) * 2, (padding,) * 2, (dilation,) * 2): ops.conv2d(
                x, w, b, *geometry, relu=True
            ),
            (2, 33, 25, 30),
            (64, 33, kernel, kernel),
            (64,),
        )
    errors = {
        name: compare_devices(function, shapes, gradients=name not in ("norm_of_all", "adamw"))
        for name, (function, *shapes) in cases.items()
    }
    worst = max(errors, key=errors.get)
    beyond = [f"{name} {e:.1e}" for name, e in errors.items() if not e <= OPERATOR_LIMIT]
    measurement = f"{len(errors)} operators, largest difference {errors[worst]:.1e} ({worst})"
    if beyond:
        measurement += f"; beyond the limit: {', '.join(beyond)}"
    return measurement, not beyond


def compare_devices(function, shapes, gradients=True):
    """Return the largest difference of result and gradients between CPU and GPU.

    It is relative to the largest absolute value of each array. shapes: of the inputs.
    """
    import numpy as np

    from util.backend import jt

    results = []
    for use_cuda in (0, 1):
        jt.flags.use_cuda = use_cuda
        random = np.random.default_rng(0)
        inputs = [jt.array(random.standard_normal(shape, np.float32)) for shape in shapes]
        result = function(*inputs)
        weight = jt.array(random.standard_normal(result.shape, np.float32))
        outputs = [result]
        if gradients:
            outputs += jt.grad((result * weight).sum(), inputs)
        results.append([var.numpy() for var in outputs])
    return max(
        float(np.abs(cpu - gpu).max() / max(np.abs(cpu).max(), 1e-6)) for cpu, gpu in zip(*results)
    )


def model(case):
    """Return a row for a model that the alignment tests compare with the original on the CPU."""

    def row(_):
        import numpy as np
        import ours

        from util.backend import jt

        results = []
        for use_cuda in (0, 1):
            jt.flags.use_cuda = use_cuda
            results.append(ours.compare(case))
        cpu, gpu = results

        def difference(names, norm):
            return max(norm(cpu[name] - gpu[name]) / max(norm(cpu[name]), 1e-12) for name in names)

        outputs = difference(
            [name for name in ("logits", "boxes", "masks") if name in cpu],
            lambda x: np.abs(x).max(),
        )
        losses = difference([name for name in cpu if name.startswith("loss/")], abs)
        gradients = max(ours.gradient_distances(cpu, gpu).values())
        return (
            f"outputs {outputs:.1e}, losses {losses:.1e}, gradients {gradients:.1e} from the CPU's",
            outputs <= OUTPUT_LIMIT and losses <= LOSS_LIMIT and gradients <= GRADIENT_LIMIT,
        )

    return row


def training(_):
    import numpy as np
    import ours

    from util.backend import jt

    losses = []
    for use_cuda in (0, 1):
        jt.flags.use_cuda = use_cuda
        losses.append(ours.train("resnet50", 20)["losses"])
    error = np.abs(losses[0] / losses[1] - 1).max()
    sources = (Path(jt.flags.cache_path) / "jit").glob("*.cc")
    # Not safe with parallel compilation, see ops.convolution.ConvOneDNN
    replaced = sum("relay_groups" in path.read_text(errors="replace") for path in sources)
    return (
        f"20 steps of resnet50: losses {error:.1e} from the CPU's; Jittor's tuner replaced "
        f"{replaced} operators"
    ), error <= LOSS_LIMIT and not replaced


def demo(folder):
    """Train the demo, or resume it."""
    output = folder / "demo"
    checkpoint = output / "checkpoint.pkl"
    start = ["--resume", checkpoint] if checkpoint.exists() else ["--demo", "--overwrite"]
    command = [sys.executable, "main.py", "--device", "cuda", "--output_dir", output, *start]
    begin = time.time()
    signal.signal(signal.SIGTERM, lambda *_: None)  # wait for main.py, which saves at SIGTERM
    subprocess.run(list(map(str, command)), cwd=REPO, check=True)
    last = json.loads((output / "log.txt").read_text().splitlines()[-1])
    ap = last["test_coco_eval_bbox"][0]
    return (
        f"AP {ap:.3f} after {last['epoch'] + 1} epochs, the last call {time.time() - begin:.0f} s",
        ap >= DEMO_AP,
    )


def sizes(_):
    """Train DETR-R50 at random image sizes; measure Jittor's memory and count compiled kernels."""
    import tiny

    from arguments import parse_args
    from engine import train_one_epoch
    from util.backend import jt
    from util.optim import build_optimizer

    args = parse_args(["--backbone", "resnet50", "--backbone_weights", "none", "--device", "cuda"])
    network, criterion, _ = tiny.build(args)
    optimizer = build_optimizer(network, args)
    jit = Path(jt.flags.cache_path) / "jit"
    held, kernels = [], []

    def after_step(_step, _logger):
        held.append(jt.get_mem_info().total_cuda_used)
        kernels.append(len(list(jit.glob("*.so"))))

    batches = RandomBatches()
    train_one_epoch(
        network, criterion, batches, optimizer, 0, 0, args.clip_max_norm, after_step=after_step
    )
    compiled = kernels[-1] - kernels[1]
    settled, most = max(held[:SETTLED]), max(held)
    return (
        f"{STEPS} steps of 2 images: {compiled} kernels compiled after the second step; held "
        f"{settled / 2**30:.2f} GB after {SETTLED} steps, {most / 2**30:.2f} GB at the end"
    ), compiled == 0 and most <= MAX_GROWTH * settled


class RandomBatches:
    """In place of a data loader: STEPS batches of two images, of sizes like COCO's in training."""

    def __len__(self):
        return STEPS

    def set_epoch(self, epoch, start=0):
        pass

    def __iter__(self):
        import numpy as np

        from util.misc import nested_tensor_from_arrays

        random = np.random.default_rng(0)
        for _ in range(STEPS):
            images, targets = [], []
            for _ in range(2):
                short = random.integers(480, 800, endpoint=True)
                size = [short, min(1333, int(short * random.uniform(1.2, 1.6)))]
                if random.random() > 0.7:
                    size.reverse()
                images.append(random.standard_normal((3, *size), np.float32))
                objects = random.integers(0, 15)
                boxes = random.uniform(0.2, 0.4, (objects, 4)).astype(np.float32)
                targets.append({"labels": random.integers(1, 91, objects), "boxes": boxes})
            yield [(nested_tensor_from_arrays(images), targets)]


def speed(_):
    """Measure time, beside the original's if PyTorch is installed.

    Published for the original on a V100: 36 ms per image, 0.227 s per training step of 2 images.
    """
    from tests.bench import __main__ as bench

    results = []
    for row in ("forward", "train", "train-demo"):
        ours = bench.run("ours", row, device="cuda")
        results.append(f"{bench.rows.MODELS[row].title}: {1000 * ours['seconds']:.1f} ms")
        if Path(bench.ORACLE_PYTHON).exists():
            theirs = bench.run("original", row, device="cuda")
            results[-1] += f" (PyTorch {1000 * theirs['seconds']:.1f} ms)"
    return "; ".join(results), True


CASES = "resnet18 resnet50 resnet50-dc5 resnet101 masks group-norm tiny".split()
ROWS = {
    "device": device,
    "operators": operators,
    **{f"model {case}": model(case) for case in CASES},
    "training": training,
    "sizes": sizes,
    "speed": speed,
    "demo": demo,
}
WITH_TF32 = ("speed", "demo", "sizes")  # the others compare values


# ---- the table


def print_table(rows):
    print("| row | measured | |\n| --- | --- | --- |")
    for name in ROWS:
        measurement, is_ok = rows.get(name, ("not run yet", None))
        print(
            f"| {name} | {measurement} | {'' if is_ok is None else 'ok' if is_ok else '**no**'} |"
        )


def run_row(name, folder, seconds):
    """Return (measurement, whether it is within its limit), or None if time runs out."""
    result = folder / "row.json"
    result.unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.cuda", "--out", str(folder), "--row", name],
        cwd=REPO,
        env={**os.environ, **({} if name in WITH_TF32 else {"NVIDIA_TF32_OVERRIDE": "0"})},
        start_new_session=True,
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)  # the demo saves
        process.wait()
        return None
    if process.returncode:
        return f"failed, exit code {process.returncode}", False
    return json.loads(result.read_text())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("output/cuda"), help="folder for finished rows"
    )
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--row", choices=ROWS, help="run only this row, in this process")
    args = parser.parse_args()

    from util.errors import InputError
    from util.startup.prepare import prepare_device

    try:
        prepare_device("cuda")
        if args.row:
            from util.backend import select_device

            select_device("cuda")
    except InputError as error:
        print(f"tests.cuda needs a GPU: {error}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    if args.row:
        measurement, is_ok = ROWS[args.row](args.out)
        (args.out / "row.json").write_text(json.dumps([measurement, bool(is_ok)]))
        return 0
    end = time.time() + 60 * args.minutes
    file = args.out / "rows.json"
    rows = json.loads(file.read_text()) if file.exists() else {}
    for name in ROWS:
        is_done = rows.get(name, [None, False])[1]
        if is_done or time.time() > end:
            continue
        if (row := run_row(name, args.out, end - time.time())) is not None:
            rows[name] = row
            file.write_text(json.dumps(rows, indent=1))
    print_table(rows)
    if len(rows) < len(ROWS):
        print(f"{len(ROWS) - len(rows)} rows are left: run it again")
        return 3
    return int(not all(is_ok for _, is_ok in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
