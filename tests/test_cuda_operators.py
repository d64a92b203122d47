"""The CUDA operators, host code included, run on the CPU (cuda_on_cpu.h), against the CPU's."""

import os
import subprocess

import numpy as np
import pytest
import tiny
from processes import REPO

from util import ops
from util.backend import jt
from util.ops import code
from util.optim import build_optimizer

PAIRS = (code.GEMM, code.ATTENTION, code.CONV, code.NORM, code.LAYERS, code.OPTIMIZER)


@pytest.fixture
def on_cuda(monkeypatch):
    """Return a function that runs another one with the CUDA operators, and the CPU's otherwise."""
    emulator = f'#include "{REPO}/tests/helpers/cuda_on_cpu.h"\n'

    def run(function, *arguments):
        with monkeypatch.context() as patch:
            for module in (code, ops):
                patch.setattr(module, "uses_cuda", lambda: True)
            for pair in PAIRS:
                patch.setitem(pair, "cpu_header", emulator + pair["cuda_header"])
            return function(*arguments)

    return run


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def run_with_gradients(function, arrays):
    """Return the result of a function of Vars, and the gradients of a weighted sum of it."""
    inputs = [jt.array(array) for array in arrays]
    result = function(*inputs)
    weight = jt.array(normal(*result.shape, seed=9))
    return [var.numpy() for var in [result, *jt.grad((result * weight).sum(), inputs)]]


def assert_equal(on_cuda, function, *shapes, limit=2e-6):
    """Compare results and gradients, relative to the largest value of each array."""
    arrays = [normal(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    expected = run_with_gradients(function, arrays)
    found = on_cuda(run_with_gradients, function, arrays)
    for a, b in zip(expected, found):
        np.testing.assert_allclose(b, a, rtol=0, atol=limit * max(1e-6, np.abs(a).max()))


@pytest.mark.parametrize("batch, m, n, k", [(1, 1, 1, 1), (5, 7, 4, 33), (2, 40, 65, 31)])
def test_matrix_products(on_cuda, batch, m, n, k):
    assert_equal(on_cuda, ops.bmm, (batch, m, k), (batch, k, n))
    assert_equal(on_cuda, ops.bmm_transpose, (batch, m, k), (batch, n, k))
    assert_equal(on_cuda, ops.linear, (batch, m, k), (n, k), (n,))
    assert_equal(on_cuda, ops.linear, (batch, m, k), (n, k))


def apply_with_dropout(function, p):
    """Return a function of Vars that calls function(dropout, *Vars), always with one seed."""
    dropout = ops.Dropout(p)
    dropout.train()

    def apply(*inputs):
        jt.set_global_seed(5)
        return function(dropout, *inputs)

    return apply


@pytest.mark.parametrize("p", [0, 0.3])
def test_feed_forward(on_cuda, p):
    layers = ops.Linear(31, 65), ops.Linear(65, 31)

    def apply(dropout, x, *weights):
        for layer, weight, bias in zip(layers, weights[::2], weights[1::2]):
            layer.weight, layer.bias = weight, bias
        return ops.feed_forward(x, *layers, dropout)

    shapes = (2, 40, 31), (65, 31), (65,), (31, 65), (31,)
    assert_equal(on_cuda, apply_with_dropout(apply, p), *shapes, limit=5e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_linear_with_relu(on_cuda, bias):
    shapes = [(2, 40, 31), (65, 31), (65,)]
    apply = lambda *inputs: ops.linear(*inputs, relu=True)
    assert_equal(on_cuda, apply, *(shapes if bias else shapes[:2]))


@pytest.mark.parametrize("p", [0, 0.3])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("heads, n, m, size", [(1, 1, 2, 3), (2, 7, 33, 5), (4, 40, 40, 8)])
def test_attention(on_cuda, heads, n, m, size, masked, p):
    mask = np.zeros((3, m), bool)
    mask[1, m // 2 + 1 :] = True
    mask = jt.array(mask) if masked else None

    def attend(dropout, *inputs):
        out, weights = ops.attention(*inputs, heads, mask, dropout)
        return out + weights.detach().sum((1, 3))[..., None]

    width = heads * size
    shapes = [(3, n, width), (3, m, width), (3, m, width), (3 * width, width), (3 * width,)]
    shapes += [(width, width), (width,)]
    assert_equal(on_cuda, apply_with_dropout(attend, p), *shapes, limit=1e-5)


@pytest.mark.parametrize("p", [0, 0.3])
@pytest.mark.parametrize("shape", [(1, 8), (3, 50, 64), (700, 33)])
def test_add_norm(on_cuda, shape, p):
    layer = ops.LayerNorm(shape[-1])

    def apply(dropout, x, branch, weight, bias):
        layer.weight, layer.bias = weight, bias
        return ops.add_norm(x, branch, dropout, layer)

    shapes = shape, shape, shape[-1:], shape[-1:]
    assert_equal(on_cuda, apply_with_dropout(apply, p), *shapes, limit=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_stack_and_unbind(on_cuda, axis):
    stack = lambda *inputs: ops.stack(inputs, axis)
    assert_equal(on_cuda, stack, *[(3, 70)] * 5, limit=0)
    unbind = lambda x: sum(y * i for i, y in enumerate(ops.unbind(x, axis)))
    assert_equal(on_cuda, unbind, (4, 5, 6), limit=0)


GEOMETRIES = [  # kernel, stride, padding, dilation
    (1, 1, 0, 1),
    (1, 2, 0, 1),
    (3, 1, 1, 1),
    (3, 2, 1, 1),
    (3, 1, 2, 2),
    (7, 2, 3, 1),
]


@pytest.mark.parametrize("kernel, stride, padding, dilation", GEOMETRIES)
@pytest.mark.parametrize("epilogue", [False, True])
def test_convolution(on_cuda, kernel, stride, padding, dilation, epilogue):
    scale = jt.array(normal(40, seed=7)).stop_grad()

    def convolve(x, w, bias=None, residual=None):
        geometry = (stride, stride), (padding, padding), (dilation, dilation)
        if not epilogue:
            return ops.conv2d(x, w, None, *geometry)
        return ops.conv2d(x, w, bias, *geometry, scale, residual, relu=True)

    side_h, side_w = ((side - 1) // stride + 1 for side in (13, 10))
    extra = [(40,), (2, 40, side_h, side_w)] if epilogue else []
    assert_equal(on_cuda, convolve, (2, 33, 13, 10), (40, 33, kernel, kernel), *extra, limit=1e-5)


def test_convolution_of_new_sizes(on_cuda):
    """Descriptors are set for each size; an algorithm that a size does not allow is replaced."""
    for size in ((1, 8, 9, 8), (2, 8, 5, 16), (1, 8, 9, 7), (1, 8, 9, 8), (3, 8, 30, 41)):
        convolve = lambda x, w: ops.conv2d(x, w, padding=(1, 1))
        assert_equal(on_cuda, convolve, size, (6, 8, 3, 3), limit=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1000), (2, 3, 33, 40)])
def test_relu(on_cuda, shape):
    assert_equal(on_cuda, ops.relu, shape)


@pytest.mark.parametrize("h, w", [(1, 1), (2, 3), (33, 40), (16, 15)])
def test_max_pool(on_cuda, h, w):
    assert_equal(on_cuda, ops.max_pool, (2, 3, h, w))


def test_max_pool_of_equal_values(on_cuda):
    """The gradient goes to the first of them, as after a ReLU."""
    x = np.maximum(normal(1, 2, 12, 11), 0)
    expected, found = (run(run_with_gradients, ops.max_pool, [x]) for run in (call, on_cuda))
    np.testing.assert_array_equal(found[1], expected[1])


def call(function, *arguments):
    return function(*arguments)


@pytest.mark.parametrize("n", [1, 31, 129, 1050])
@pytest.mark.parametrize("masked", [False, True])
def test_softmax(on_cuda, n, masked):
    mask = np.zeros((2, n), bool)
    mask[1, n // 2 + 1 :] = True
    assert_equal(
        on_cuda, lambda x: ops.softmax(x * 5, jt.array(mask) if masked else None), (6, 3, n)
    )


@pytest.mark.parametrize("batch, m, n", [(1, 1, 1), (2, 32, 32), (3, 33, 5), (2, 70, 101)])
def test_transpose(on_cuda, batch, m, n):
    assert_equal(on_cuda, ops.transpose, (batch, m, n), limit=0)


@pytest.mark.parametrize("shape", [(1, 8), (3, 50, 64), (700, 33)])
def test_layer_norm(on_cuda, shape):
    layer = ops.LayerNorm(shape[-1])

    def apply(x, weight, bias):
        layer.weight, layer.bias = weight, bias
        return layer(x)

    assert_equal(on_cuda, apply, shape, shape[-1:], shape[-1:], limit=1e-5)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(2, 5, 9, 11), (1, 3, 2, 5), (3, 40, 20, 30)])
def test_batch_norm(on_cuda, shape, relu):
    def apply(x, weight, bias, residual):
        layer = ops.BatchNorm2d(shape[1])
        layer.weight, layer.bias = weight, bias
        y = ops.norm(x, layer, residual, relu)
        statistics = (layer.running_mean * layer.running_var).reshape(1, -1, 1, 1)
        return y + statistics.stop_grad()

    assert_equal(on_cuda, apply, shape, shape[1:2], shape[1:2], shape, limit=1e-5)


def test_dropout_drops_the_same_elements(on_cuda):
    layer = ops.Dropout(0.3)
    layer.train()

    def apply(x):
        jt.set_global_seed(5)
        return layer(x)

    assert_equal(on_cuda, apply, (1000, 7), limit=0)


def test_adamw_and_norm_of_many_arrays(on_cuda):
    """More arrays than a launch takes, of very different sizes."""
    shapes = [(1,), (70, 300), (33, 16, 3, 3)] + [(7,)] * 40
    scale = jt.array(np.float32([0.7]))
    p, v, m, g = ([jt.array(normal(*shape, seed=k)) for shape in shapes] for k in range(4))
    v = [x * x for x in v]

    def step():
        scalars = jt.array(np.float32([0.99, 0.9, 0.1, 0.999, 0.001, 1e-2, 3.0, 1e-8]))
        updates = ops.adamw(p, v, m, g, scale, scalars)
        return [x.numpy() for update in updates for x in update] + [ops.norm_of_all(g).numpy()]

    for a, b in zip(step(), on_cuda(step)):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-7)


MODELS = [
    "--backbone resnet18 --masks --hidden_dim 128 --nheads 8",
    "--backbone tiny --backbone_norm batch --pre_norm",
    "--backbone tiny --backbone_norm group --position_embedding learned",
    "--backbone resnet50 --dilation --freeze backbone",
]


@pytest.mark.parametrize("flags", MODELS)
def test_a_training_step_of_a_model(on_cuda, flags):
    """Losses and gradients of two steps, with dropout, clipping and AdamW."""

    def train():
        jt.set_global_seed(3)
        args = tiny.arguments("--dropout 0.1", flags)
        model, criterion, _ = tiny.build(args)
        model.train()
        optimizer = build_optimizer(model, args)
        results = {"losses": [], "gradients": []}
        for number in range(2):
            samples, targets = tiny.make_batch(number)
            for target, size in zip(targets, ((64, 96), (80, 64))):
                target["masks"] = np.ones((1, *size), bool)
            losses = criterion(model(samples.to_jittor()), targets)
            weighted = [losses[name] * weight for name, weight in criterion.weight_dict.items()]
            optimizer.backward(sum(weighted))
            gradients = [grad for group in optimizer.param_groups for grad in group["grads"]]
            results["losses"].append(sum(weighted).numpy())
            results["gradients"].append([grad.numpy() for grad in gradients])
            optimizer.clip_grad_norm(0.1)
            optimizer.step()
        return results

    expected, found = train(), on_cuda(train)
    total = np.sqrt(sum(np.square(g).sum() for g in expected["gradients"][0]))
    for theirs, mine in zip(expected["losses"], found["losses"]):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)
    for theirs, mine in zip(zip(*expected["gradients"]), zip(*found["gradients"])):
        # A unit whose sign before a ReLU is decided by rounding changes gradients in one batch; an
        # error shows in both. Zero gradients have only rounding errors.
        distances = [
            np.linalg.norm(b - a) / max(np.linalg.norm(a), 1e-5 * total)
            for a, b in zip(theirs, mine)
        ]
        assert min(distances) < 1e-3, distances


FAULTS = {
    "a barrier is missing": ("cuda.cuh", "__syncthreads();\n    x = warps[0];", "x = warps[0];"),
    "threads leave before a shuffle": (
        "cuda.cuh",
        "x = warp_reduce(x, combine);\n    __sync",
        "if (threadIdx.x == 1) return x; x = warp_reduce(x, combine);\n    __sync",
    ),
    "the grid is too large": (
        "layers.cuh",
        "+ TILE - 1) / TILE, batch)",
        "+ TILE - 1) / TILE, 70000)",
    ),
    "a head's distance is wrong": ("attention.cuh", "b.row, b.head, a", "b.row, a.head, a"),
    "a sample is left out": ("attention.cuh", "i < batch; i++)", "i < 1; i++)"),
    "a part of the bias is another's": ("attention.cuh", "bias[part * n + i % n]", "bias[i % n]"),
    "a row length is wrong": ("gemm.cuh", "tb == 'N' ? n : k, k * n", "tb == 'N' ? k : n, k * n"),
    "the workspace is too small": (
        "conv.cuh",
        "const float one = 1, zero = 0;\n    checkCudaErrors(cudnnConvolutionForward(",
        "const float one = 1, zero = 0;\n    plan.workspace /= 2;\n"
        "    checkCudaErrors(cudnnConvolutionForward(",
    ),
    "the workspace has no limit": ("conv.cuh", "found[i].memory <= max_workspace()", "true"),
    "an algorithm is taken for all sizes": ("conv.cuh", "plan.algorithm = choose();\n", ""),
}
PROGRAM = """
#include "cuda_on_cpu.h"
#include "attention.cuh"
#include "conv.cuh"
int main() {
    float x[3 * 300], y[3 * 300];
    auto show = [&] { for (float value : y) std::printf("%a\\n", value); };
    for (int i = 0; i < 900; i++) x[i] = std::sin(i * i), y[i] = 0;
    detr::softmax(x, nullptr, 1, y, 3, 300), show();
    detr::transpose(x, y, 1, 3, 300), show();
    detr::batched_matmul('N', 'N', 2, 3, 5, 7, x, x + 400, y), show();
    float weights[48], projected[112], results[24], scratch[48];
    detr::attention(x, x + 50, x + 100, x + 200, x + 260, x + 300, x + 320, nullptr,
                    detr::NO_DROPOUT, y, weights, projected, results, scratch, {2, 2, 3, 4, 2});
    show();
    const detr::Epilogue relu{nullptr, nullptr, nullptr, true};
    detr::cudnn::conv(x, x, relu, y, {1, 2, 3, 9, 10, 3, 3, 1, 1, 1}), show();
    detr::cudnn::conv(x, x, relu, y, {1, 2, 3, 9, 11, 3, 3, 1, 1, 1}), show();
}
"""


@pytest.fixture
def run_program(tmp_path):
    """Return a function that runs a program with a change in a header: exit code and output."""

    def run(source, flags, file=None, old="", new=""):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for header in (REPO / "util" / "ops").glob("*h"):
            text = header.read_text()
            if header.name == file:
                assert text.count(old) == 1, old
                text = text.replace(old, new)
            (folder / header.name).write_text(text)
        (folder / "main.cc").write_text(source)
        command = f"g++ -std=c++14 -O1 {flags} -I{REPO}/tests/helpers -I. -o program main.cc"
        subprocess.run(command.split(), cwd=folder, check=True)
        # The fibers stay allocated.
        options = dict(ASAN_OPTIONS="detect_leaks=0", TSAN_OPTIONS="halt_on_error=1")
        environment = {**os.environ, **options}
        done = subprocess.run([folder / "program"], capture_output=True, text=True, env=environment)
        return done.returncode, done.stdout

    return run


@pytest.mark.parametrize("fault", FAULTS)
def test_the_emulation_finds_a_fault(run_program, fault):
    code, output = run_program(PROGRAM, "")
    assert code == 0 and len(output.split()) == 6 * 900
    assert run_program(PROGRAM, "", *FAULTS[fault]) != (code, output)


OVERRUNS = {
    "none": (),
    "a thread too many": ("layers.cuh", "(i < n) dx[i]", "(i <= n) dx[i]"),
    "a tile without a border": ("layers.cuh", "if (left + i < n && ", "if ("),
    "too little scratch": ("norm.cuh", "scratch((2 * rows + 2", "scratch((2 * rows + 1"),
}


@pytest.mark.parametrize("fault", OVERRUNS)
def test_operators_stay_within_their_arrays(run_program, fault):
    """By AddressSanitizer and UndefinedBehaviorSanitizer."""
    source = (REPO / "tests" / "helpers" / "cuda_operators.cc").read_text()
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=undefined"
    code, _ = run_program(source, flags, *OVERRUNS[fault])
    assert (code == 0) == (fault == "none")


RACES = {
    "none": (),
    "a barrier after writing": ("cuda.cuh", "__syncthreads();\n    x = warps[0];", "x = warps[0];"),
    "a barrier before writing": ("cuda.cuh", "__syncthreads();  // wait until", "// wait until"),
    "a barrier in a tile": ("layers.cuh", "    __syncthreads();\n", ""),
    "a barrier in a sum": ("gemm.cuh", "    __syncthreads();\n", ""),
}


@pytest.mark.soak
@pytest.mark.parametrize("fault", RACES)
def test_threads_of_a_block_wait_for_each_other(run_program, fault):
    """By ThreadSanitizer."""
    source = (REPO / "tests" / "helpers" / "cuda_operators.cc").read_text()
    flags = "-fsanitize=thread -DCUDA_ON_THREADS -pthread"
    code, _ = run_program(source, flags, *RACES[fault])
    assert (code == 0) == (fault == "none")
