"""CUDA kernels of util/ops/kernels.cuh, emulated on the CPU (cuda_on_cpu.h), against NumPy."""

import ctypes
import subprocess

import numpy as np
import pytest
from processes import REPO

from util import ops

SOURCE = """
#include "tests/helpers/cuda_on_cpu.h"
#include "util/ops/kernels.cuh"
using namespace detr;
extern "C" {
void run_softmax(const float* x, const float* mask_bias, long rows_per_mask, float* y, long rows,
                 long n) {
    launch({(unsigned)rows}, {ROW_THREADS}, [=] { softmax(x, mask_bias, rows_per_mask, y, n); });
}
void run_softmax_backward(const float* dy, const float* y, float* dx, long rows, long n) {
    launch({(unsigned)rows}, {ROW_THREADS}, [=] { softmax_backward(dy, y, dx, n); });
}
void run_transpose(const float* x, float* y, long batch, long m, long n) {
    launch({unsigned(n - 1) / TILE + 1, unsigned(m - 1) / TILE + 1, (unsigned)batch},
           {TILE, TILE_ROWS}, [=] { transpose(x, y, m, n); });
}
void run_square_sums(const float* x, float* sums, long blocks, long n) {
    launch({(unsigned)blocks}, {ROW_THREADS}, [=] { square_sums(x, n, sums); });
}
void run_adamw(const float* p, const float* v, const float* m, const float* g,
               const float* scale, const float* s, float* p2, float* v2, float* m2, long n) {
    launch({unsigned(n - 1) / ELEMENT_THREADS + 1}, {ELEMENT_THREADS},
           [=] { adamw(p, v, m, g, scale, s, p2, v2, m2, n); });
}
}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "run.cc").write_text(SOURCE)
    command = f"g++ -std=c++20 -O1 -pthread -shared -fPIC -I{REPO} -o kernels.so run.cc"
    subprocess.run(command.split(), cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "kernels.so"))

    def convert(argument):
        if not isinstance(argument, np.ndarray):
            return argument if argument is None else ctypes.c_long(argument)
        assert argument.dtype == np.float32 and argument.flags.c_contiguous
        return argument.ctypes.data_as(ctypes.c_void_p)

    return lambda kernel, *arguments: library[f"run_{kernel}"](*map(convert, arguments))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def empty(*shape):
    """Return an output array of NaN, so that elements not written are detected."""
    return np.full(shape, np.nan, np.float32)


@pytest.mark.parametrize("n", [1, 31, 128, 129, 1050])
@pytest.mark.parametrize("masked", [False, True])
def test_softmax(run, n, masked):
    rows, images = 6, 2
    x, mask_bias, y = normal(rows, n) * 5, np.zeros((images, n), np.float32), empty(rows, n)
    if masked:
        mask_bias[1, n // 2 + 1 :] = -1e30
    run("softmax", x, mask_bias if masked else None, rows // images, y, rows, n)
    expected = np.exp(np.float64(x) - x.max(1, keepdims=True))
    expected *= np.repeat(mask_bias, rows // images, 0) == 0
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(y, expected, rtol=2e-6, atol=1e-9)
    assert (y[3:, n // 2 + 1 :] == 0).all() or not masked


@pytest.mark.parametrize("n", [1, 31, 129, 1050])
def test_softmax_backward(run, n):
    dy, y, dx = normal(3, n), np.abs(normal(3, n, seed=1)), empty(3, n)
    y /= y.sum(1, keepdims=True)
    run("softmax_backward", dy, y, dx, 3, n)
    expected = y * (np.float64(dy) - (np.float64(dy) * y).sum(1, keepdims=True))
    np.testing.assert_allclose(dx, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("batch, m, n", [(1, 1, 1), (2, 32, 32), (3, 33, 5), (2, 70, 101)])
def test_transpose(run, batch, m, n):
    x, y = normal(batch, m, n), empty(batch, n, m)
    run("transpose", x, y, batch, m, n)
    np.testing.assert_array_equal(y, x.transpose(0, 2, 1))


@pytest.mark.parametrize("n", [1, 127, 4096, 100_001])
def test_square_sums(run, n):
    x, sums = normal(n), empty(ops.SUM_BLOCKS)
    run("square_sums", x, sums, ops.SUM_BLOCKS, n)
    expected = (x.astype(np.float64) ** 2).sum()
    np.testing.assert_allclose(sums.sum(dtype=np.float64), expected, rtol=1e-6)


@pytest.mark.parametrize("n", [1, 256, 1000])
def test_adamw(run, n):
    p, m, g = (normal(n, seed=seed) for seed in range(3))
    v, scale = np.abs(normal(n, seed=3)), np.float32([0.7])
    decay, b0, b1, step_size, root, eps = 0.99, 0.9, 0.999, 1e-2, 3.0, 1e-8
    scalars = np.float32([decay, b0, 1 - b0, b1, 1 - b1, step_size, root, eps])
    results = [empty(n) for _ in range(3)]
    run("adamw", p, v, m, g, scale, scalars, *results, n)
    p, m, g, v = (array.astype(np.float64) for array in (p, m, g, v))
    m2, v2 = b0 * m + (1 - b0) * g * 0.7, b1 * v + (1 - b1) * (g * 0.7) ** 2
    expected = p * decay - step_size * m2 / (np.sqrt(v2) * root + eps), v2, m2
    for name, a, b in zip("pvm", results, expected):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=name)
