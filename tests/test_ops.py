"""The CPU's own operators against Jittor's plain ones, which CUDA uses: results and gradients."""

import numpy as np
import pytest

from util import ops
from util.backend import jt


def arrays(*shapes, scale=1, seed=0):
    random = np.random.default_rng(seed)
    return [jt.array(random.standard_normal(shape, np.float32) * scale) for shape in shapes]


def both_ways(monkeypatch, function, inputs):
    """[result, gradient of each input] with the own operators, and with Jittor's."""
    found = []
    for own in (True, False):
        monkeypatch.setattr(ops, "_on_onednn", lambda: own)
        result = function(*inputs)
        [weight] = arrays(result.shape, seed=1)
        found.append([var.numpy() for var in (result, *jt.grad((result * weight).sum(), inputs))])
    return found


def assert_close(own, plain, tolerance=5e-6):
    assert ops.jt.compile_extern.mkl_ops is not None, (
        "without oneDNN there are no own operators to compare"
    )
    for a, b in zip(own, plain):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=tolerance * max(np.abs(b).max(), 1e-6), rtol=0)


@pytest.mark.parametrize(
    "operator, shapes",
    [(ops.bmm, ((5, 7, 33), (5, 33, 4))), (ops.bmm_transpose, ((5, 7, 33), (5, 4, 33)))],
)
def test_batched_products(operator, shapes, monkeypatch):
    assert_close(*both_ways(monkeypatch, operator, arrays(*shapes)))


@pytest.mark.parametrize(
    "rows, bias", [((7,), True), ((2, 300), True), ((2, 300), False), ((1,), True)]
)
def test_linear(rows, bias, monkeypatch):
    inputs = arrays((*rows, 33), (20, 33), (20,))
    assert_close(*both_ways(monkeypatch, ops.linear, inputs if bias else inputs[:2]))


@pytest.mark.parametrize("after", [False, True], ids=["plain", "with scale, residual and relu"])
@pytest.mark.parametrize(
    "kernel, stride, dilation", [(1, 1, 1), (1, 2, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2), (7, 2, 1)]
)
@pytest.mark.parametrize(
    "batch, channels, height, width",
    [
        (2, (64, 40), 13, 18),
        (1, (32, 96), 1, 1),
        (3, (33, 47), 2, 5),
        (1, (64, 64), 60, 131),
        (2, (3, 64), 9, 8),
    ],
)
def test_convolution(batch, channels, height, width, kernel, stride, dilation, after, monkeypatch):
    padding = dilation * (kernel // 2)
    size = [
        (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for side in (height, width)
    ]
    x, weight, bias, scale, residual = arrays(
        (batch, channels[0], height, width),
        (channels[1], channels[0], kernel, kernel),
        (channels[1],),
        (channels[1],),
        (batch, channels[1], *size),
    )

    def function(x, weight, bias, residual=None):
        return ops.conv2d(
            x,
            weight,
            bias,
            (stride, stride),
            (padding, padding),
            (dilation, dilation),
            scale if after else None,
            residual,
            relu=after,
        )

    own, plain = both_ways(monkeypatch, function, [x, weight, bias] + ([residual] if after else []))
    if after:  # a sum near zero may be cut off on one side and not on the other
        unsure = np.abs(plain[0]) < 1e-4
        assert unsure.mean() < 1 and ((own[0] > 0) == (plain[0] > 0))[~unsure].all()
        if not (((own[0] > 0) == (plain[0] > 0)).all()):
            own, plain = own[:1], plain[:1]
    assert_close(own, plain)


def test_gradient_through_frozen_weights(monkeypatch):
    x, weight, bias = arrays((1, 64, 5, 5), (64, 64, 3, 3), (64,))
    weight.stop_grad()
    bias.stop_grad()
    assert_close(
        *both_ways(monkeypatch, lambda x: ops.conv2d(x, weight, bias, padding=(1, 1)), [x])
    )


@pytest.mark.parametrize("shape", [(2, 3, 7), (3, 5, 40), (2, 540, 256)])
def test_layer_norm(shape, monkeypatch):
    norm = ops.LayerNorm(shape[-1])
    x, norm.weight, norm.bias = arrays(shape, shape[-1:], shape[-1:])
    assert_close(*both_ways(monkeypatch, lambda x, *_: norm(x), [x, norm.weight, norm.bias]))


@pytest.mark.parametrize("after", [False, True], ids=["plain", "with residual and relu"])
@pytest.mark.parametrize("shape", [(2, 3, 1, 2), (16, 5, 3, 7), (3, 64, 20, 30)])
def test_batch_norm(shape, after, monkeypatch):
    norm = ops.BatchNorm2d(shape[1])
    x, residual, norm.weight, norm.bias = arrays(shape, shape, shape[1:2], shape[1:2])
    statistics = []

    def function(x, weight, bias, residual=None):
        norm.running_mean, norm.running_var = jt.zeros(shape[1]), jt.ones(shape[1])
        norm.train()
        y = ops.norm(x, norm, residual, after)
        norm.eval()
        statistics.append(
            [
                norm.running_mean.numpy(),
                norm.running_var.numpy(),
                ops.norm(x, norm, residual, after).numpy(),
            ]
        )
        return y

    inputs = [x, norm.weight, norm.bias] + ([residual] if after else [])
    assert_close(*both_ways(monkeypatch, function, inputs), tolerance=2e-5)
    assert_close(*statistics)
    expected = 0.9 + 0.1 * x.numpy().astype(np.float64).var((0, 2, 3), ddof=1)
    np.testing.assert_allclose(statistics[0][1], expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1,), (3, 5), (70, 300), (256, 64, 3, 3)])
def test_optimizer_step(shape, monkeypatch):
    p, g, m, v = arrays(shape, shape, shape, shape)
    found = []
    for own in (True, False):
        monkeypatch.setattr(ops, "_on_onednn", lambda: own)
        [new] = ops.adamw(
            [p], [v * v], [m], [g], jt.array([0.7]), 1 - 1e-4, 0.9, 0.999, 1e-2, 1.5, 1e-8
        )
        found.append([var.numpy() for var in new])
        expected = np.sqrt(
            np.square(g.numpy(), dtype=np.float64).sum()
            + np.square(m.numpy(), dtype=np.float64).sum()
        )
        np.testing.assert_allclose(
            ops.norm_of_all([g, m]).numpy(), expected, rtol=1e-6 if own else 3e-5
        )
    assert_close(*found)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 5, 7, 13), (1, 2, 4, 5), (3, 2, 40, 33)])
def test_max_pool(shape, monkeypatch):
    assert_close(*both_ways(monkeypatch, ops.max_pool, arrays(shape)))


@pytest.mark.parametrize("scale", [0.1, 3, 100])
@pytest.mark.parametrize("masked", [False, True])
def test_softmax(scale, masked, monkeypatch):
    mask = np.zeros((2, 37), bool)
    mask[0, 30:] = mask[1, :36] = True
    mask = jt.array(mask) if masked else None
    [x] = arrays((6, 7, 37), scale=scale)
    own, plain = both_ways(monkeypatch, lambda x: ops.softmax(x, mask), [x])
    for a, b in zip(own, plain):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=0)
    np.testing.assert_allclose(own[0].sum(-1), 1, rtol=1e-5)
    if masked:
        assert (own[0][:3, :, 30:] == 0).all() and (own[0][3:, :, :36] == 0).all()


def test_softmax_of_numbers_that_are_far_from_zero():
    x = np.full((1, 1, 4), 3e4, np.float32)
    x[0, 0, 0] += 1
    expected = np.exp([1, 0, 0, 0]) / np.exp([1, 0, 0, 0]).sum()
    np.testing.assert_allclose(ops.softmax(jt.array(x)).numpy()[0, 0], expected, rtol=1e-6)


def test_dropout():
    dropout = ops.Dropout(0.3)
    x = jt.ones((200, 300))
    dropout.train()
    jt.set_seed(5)
    result = dropout(x)
    kept = result.numpy() > 0
    np.testing.assert_allclose(result.numpy()[kept], 1 / 0.7, rtol=1e-6)
    assert (
        abs(kept.mean() - 0.7) < 0.01
        and abs(kept.mean(0) - 0.7).max() < 0.2
        and abs(kept.mean(1) - 0.7).max() < 0.2
    )
    np.testing.assert_array_equal(jt.grad(result.sum(), x).numpy(), result.numpy())
    assert (dropout(x).numpy() != result.numpy()).mean() > 0.3, "each call draws its own"
    jt.set_seed(5)
    np.testing.assert_array_equal(dropout(x).numpy(), result.numpy())
    dropout.eval()
    np.testing.assert_array_equal(dropout(x).numpy(), 1)
