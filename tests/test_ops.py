"""Results and gradients of the oneDNN operators, compared with Jittor's."""

import numpy as np
import pytest

from util import ops
from util.backend import jt


def arrays(*shapes, scale=1, seed=0):
    random = np.random.default_rng(seed)
    return [jt.array(random.standard_normal(shape, np.float32) * scale) for shape in shapes]


def run_both(monkeypatch, function, inputs):
    """Return [result, gradient of each input] with the oneDNN operators and with Jittor's."""
    for use_onednn in (True, False):
        monkeypatch.setattr(ops, "has_kernels", lambda: use_onednn)
        result = function(*inputs)
        [weight] = arrays(result.shape, seed=1)
        yield [var.numpy() for var in (result, *jt.grad((result * weight).sum(), inputs))]


def assert_close(results, references, tolerance=5e-6):
    assert jt.compile_extern.mkl_ops is not None, "without oneDNN there is nothing to compare"
    for a, b in zip(results, references):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=tolerance * max(np.abs(b).max(), 1e-6), rtol=0)


@pytest.mark.parametrize(
    "operator, shapes",
    [(ops.bmm, ((5, 7, 33), (5, 33, 4))), (ops.bmm_transpose, ((5, 7, 33), (5, 4, 33)))],
)
def test_batched_products(operator, shapes, monkeypatch):
    assert_close(*run_both(monkeypatch, operator, arrays(*shapes)))


@pytest.mark.parametrize(
    "rows, bias", [((7,), True), ((2, 300), True), ((2, 300), False), ((1,), True)]
)
def test_linear(rows, bias, monkeypatch):
    inputs = arrays((*rows, 33), (20, 33), (20,))
    assert_close(*run_both(monkeypatch, ops.linear, inputs if bias else inputs[:2]))


def test_linear_with_relu(monkeypatch):
    function = lambda *inputs: ops.linear(*inputs, relu=True)
    assert_close(*run_both(monkeypatch, function, arrays((2, 300, 33), (20, 33), (20,))))
    assert_close(*run_both(monkeypatch, function, arrays((2, 300, 33), (20, 33))))


def test_feed_forward(monkeypatch):
    function = lambda x, *weights: ops.feed_forward(x, *make_layers(*weights), ops.Dropout(0.1))
    shapes = (2, 30, 33), (40, 33), (40,), (33, 40), (33,)
    assert_close(*run_both(monkeypatch, function, arrays(*shapes)))


ATTENTION_SHAPES = [(2, 7, 64), (2, 33, 64), (2, 33, 64), (192, 64), (192,), (64, 64), (64,)]


def make_mask():
    mask = np.zeros((2, 33), bool)
    mask[1, 20:] = True
    return jt.array(mask)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("heads", [1, 4])
def test_attention(heads, masked, monkeypatch):
    mask = make_mask() if masked else None
    weights = []

    def attend(*inputs):
        result, weight = ops.attention(*inputs, heads, mask)
        weights.append(weight.numpy())
        return result

    assert_close(*run_both(monkeypatch, attend, arrays(*ATTENTION_SHAPES, scale=0.5)))
    assert weights[0].shape == (2, heads, 7, 33)
    assert_close(*weights)
    np.testing.assert_allclose(weights[0].sum(-1), 1, rtol=1e-5)
    assert not masked or (weights[0][1, ..., 20:] == 0).all()


def attention_of_parts(query, key, value, weight, bias, out_weight, out_bias, heads, mask, dropout):
    """Compute `ops.attention` from its steps."""
    rows = [slice(64 * i, 64 * (i + 1)) for i in range(3)]
    q, k, v = (
        ops.linear(x, weight[part], bias[part])
        .reshape(2, x.shape[1], heads, -1)
        .transpose(0, 2, 1, 3)
        .reshape(2 * heads, x.shape[1], -1)
        for x, part in zip((query, key, value), rows)
    )
    weights = dropout(ops.softmax(ops.bmm_transpose(q / np.sqrt(64 / heads), k), mask))
    heads = ops.bmm(weights, v).reshape(2, heads, 7, -1).transpose(0, 2, 1, 3)
    return ops.linear(heads.reshape(2, 7, 64), out_weight, out_bias)


def make_layers(*weights):
    """Return Linear layers with these weights and biases."""
    layers = []
    for weight, bias in zip(weights[::2], weights[1::2]):
        layers.append(ops.Linear(weight.shape[1], weight.shape[0]))
        layers[-1].weight, layers[-1].bias = weight, bias
    return layers


WITH_DROPOUT = {
    "attention": (
        lambda dropout, *inputs: ops.attention(*inputs, 4, make_mask(), dropout)[0],
        lambda dropout, *inputs: attention_of_parts(*inputs, 4, make_mask(), dropout),
        ATTENTION_SHAPES,
    ),
    "feed_forward": (
        lambda dropout, x, *weights: ops.feed_forward(x, *make_layers(*weights), dropout),
        lambda dropout, x, w1, b1, w2, b2: ops.linear(
            dropout(ops.relu(ops.linear(x, w1, b1))), w2, b2
        ),
        [(5, 40, 33), (20, 33), (20,), (33, 20), (33,)],
    ),
    "add_norm": (
        lambda dropout, x, branch: ops.add_norm(x, branch, dropout, ops.LayerNorm(40)),
        lambda dropout, x, branch: ops.LayerNorm(40)(x + dropout(branch)),
        [(5, 7, 40), (5, 7, 40)],
    ),
}


@pytest.mark.parametrize("p", [0, 0.3])
@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_dropout_in_an_operator_is_that_of_its_parts(name, p):
    dropout = ops.Dropout(p)
    dropout.train()
    *functions, shapes = WITH_DROPOUT[name]
    results = []
    for function in functions:
        inputs = arrays(*shapes, scale=0.5)
        jt.set_seed(5)
        y = function(dropout, *inputs)
        [weight] = arrays(y.shape, seed=1)
        results.append([var.numpy() for var in (y, *jt.grad((y * weight).sum(), inputs))])
    assert_close(*results)


def test_seeds_drawn_at_once_are_those_drawn_one_by_one():
    layers = [ops.Dropout(p) for p in (0.3, 0, 0.5)]
    for layer in layers:
        layer.train()
    x, results = jt.ones(1000), []
    for at_once in (True, False):
        jt.set_seed(5)
        if at_once:
            ops.draw_seeds(layers)
        results.append([layer(x).numpy() for layer in layers])
    np.testing.assert_array_equal(*results)
    assert not any(layer.seed for layer in layers), "a seed is used once"
    layers[0].eval()
    ops.draw_seeds(layers)
    assert [bool(layer.seed) for layer in layers] == [False, False, True]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("count", [1, 4, 40])
def test_stack_and_unbind(axis, count, monkeypatch):
    """40 are more than one launch takes."""
    shapes = [(3, 5)] * count
    stack = lambda *inputs: ops.stack(inputs, axis)
    assert_close(*run_both(monkeypatch, stack, arrays(*shapes)), tolerance=0)

    def weighted_sum(x):
        # The last slice has no gradient.
        return sum(y * i for i, y in enumerate(ops.unbind(x, axis)[: max(1, count - 1)]))

    shape = [3, 5]
    shape.insert(axis, count)
    assert_close(*run_both(monkeypatch, weighted_sum, arrays(shape)), tolerance=1e-6)


def test_unbind_of_a_vector():
    x = jt.array(np.float32([1, 2, 3]))
    pieces = ops.unbind(x)
    assert [piece.item() for piece in pieces] == [1, 2, 3]
    assert jt.grad(pieces[1] * 2, x).numpy().tolist() == [0, 2, 0]


@pytest.mark.parametrize("epilogue", [False, True])
@pytest.mark.parametrize(
    "kernel, stride, dilation", [(1, 1, 1), (1, 2, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2), (7, 2, 1)]
)
@pytest.mark.parametrize(
    "batch, inputs, outputs, height, width",
    [
        (2, 64, 40, 13, 18),
        (1, 32, 96, 1, 1),
        (3, 33, 47, 2, 5),
        (1, 64, 64, 60, 131),
        (2, 3, 64, 9, 8),
    ],
)
def test_convolution(
    batch, inputs, outputs, height, width, kernel, stride, dilation, epilogue, monkeypatch
):
    padding = dilation * (kernel // 2)
    h, w = (
        (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for side in (height, width)
    )
    x, weight, bias, scale, residual = arrays(
        (batch, inputs, height, width),
        (outputs, inputs, kernel, kernel),
        (outputs,),
        (outputs,),
        (batch, outputs, h, w),
    )
    geometry = (stride, stride), (padding, padding), (dilation, dilation)

    def conv(x, weight, bias, residual=None):
        used_scale = scale if epilogue else None
        return ops.conv2d(x, weight, bias, *geometry, used_scale, residual, relu=epilogue)

    variables = [x, weight, bias, residual] if epilogue else [x, weight, bias]
    result, reference = run_both(monkeypatch, conv, variables)
    if epilogue:  # near zero, ReLU may cut off one result only; then the gradients differ
        positive, positive_reference = result[0] > 0, reference[0] > 0
        unsure = np.abs(reference[0]) < 1e-4
        assert unsure.mean() < 1 and (positive == positive_reference)[~unsure].all()
        if not (positive == positive_reference).all():
            del result[1:]
    assert_close(result, reference)


def test_gradient_through_frozen_weights(monkeypatch):
    x, weight, bias = arrays((1, 64, 5, 5), (64, 64, 3, 3), (64,))
    weight.stop_grad()
    bias.stop_grad()
    conv = lambda x: ops.conv2d(x, weight, bias, padding=(1, 1))
    assert_close(*run_both(monkeypatch, conv, [x]))


@pytest.mark.parametrize("shape", [(2, 3, 7), (3, 5, 40), (2, 540, 256)])
def test_layer_norm(shape, monkeypatch):
    norm = ops.LayerNorm(shape[-1])
    x, norm.weight, norm.bias = arrays(shape, shape[-1:], shape[-1:])
    assert_close(*run_both(monkeypatch, lambda x, *_: norm(x), [x, norm.weight, norm.bias]))


@pytest.mark.parametrize("epilogue", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 1, 2), (16, 5, 3, 7), (3, 64, 20, 30)])
def test_batch_norm(shape, epilogue, monkeypatch):
    norm = ops.BatchNorm2d(shape[1])
    x, residual, norm.weight, norm.bias = arrays(shape, shape, shape[1:2], shape[1:2])
    statistics = []

    def function(x, weight, bias, residual=None):
        norm.running_mean, norm.running_var = jt.zeros(shape[1]), jt.ones(shape[1])
        norm.train()
        y = ops.norm(x, norm, residual, epilogue)
        norm.eval()
        evaluated = ops.norm(x, norm, residual, epilogue)
        statistics.append([var.numpy() for var in (norm.running_mean, norm.running_var, evaluated)])
        return y

    inputs = [x, norm.weight, norm.bias] + ([residual] if epilogue else [])
    assert_close(*run_both(monkeypatch, function, inputs), tolerance=2e-5)
    assert_close(*statistics)
    expected = 0.9 + 0.1 * x.numpy().astype(np.float64).var((0, 2, 3), ddof=1)
    np.testing.assert_allclose(statistics[0][1], expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1,), (3, 5), (70, 300), (256, 64, 3, 3)])
def test_optimizer_step(shape, monkeypatch):
    p, g, m, v = arrays(shape, shape, shape, shape)
    norm = np.sqrt(sum(np.square(var.numpy(), dtype=np.float64).sum() for var in (g, m)))
    results = []
    for use_onednn in (True, False):
        monkeypatch.setattr(ops, "has_kernels", lambda: use_onednn)
        scalars = jt.array(np.float32([1 - 1e-4, 0.9, 0.1, 0.999, 0.001, 1e-2, 1.5, 1e-8]))
        [new] = ops.adamw([p], [v * v], [m], [g], jt.array([0.7]), scalars)
        results.append([var.numpy() for var in new])
        rtol = 1e-6 if use_onednn else 3e-5
        np.testing.assert_allclose(ops.norm_of_all([g, m]).numpy(), norm, rtol=rtol)
    assert_close(*results)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 5, 7, 13), (1, 2, 4, 5), (3, 2, 40, 33)])
def test_max_pool(shape, monkeypatch):
    assert_close(*run_both(monkeypatch, ops.max_pool, arrays(shape)))


@pytest.mark.parametrize("scale", [0.1, 3, 100])
@pytest.mark.parametrize("masked", [False, True])
def test_softmax(scale, masked, monkeypatch):
    mask = np.zeros((2, 37), bool)
    mask[0, 30:] = mask[1, :36] = True
    mask = jt.array(mask) if masked else None
    [x] = arrays((6, 7, 37), scale=scale)
    result, reference = run_both(monkeypatch, lambda x: ops.softmax(x, mask), [x])
    for a, b in zip(result, reference):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=0)
    y = result[0]
    np.testing.assert_allclose(y.sum(-1), 1, rtol=1e-5)
    assert not masked or (y[:3, :, 30:] == 0).all() and (y[3:, :, :36] == 0).all()


def test_softmax_of_large_values():
    x = np.full((1, 1, 4), 3e4, np.float32)
    x[0, 0, 0] += 1
    expected = np.exp([1, 0, 0, 0]) / np.exp([1, 0, 0, 0]).sum()
    np.testing.assert_allclose(ops.softmax(jt.array(x)).numpy()[0, 0], expected, rtol=1e-6)


def test_dropout():
    dropout = ops.Dropout(0.3)
    x = jt.ones((200, 300))
    dropout.train()
    jt.set_seed(5)
    var = dropout(x)
    result = var.numpy()
    kept = result > 0
    np.testing.assert_allclose(result[kept], 1 / 0.7, rtol=1e-6)
    for axis, tolerance in ((None, 0.01), (0, 0.2), (1, 0.2)):
        assert np.abs(kept.mean(axis) - 0.7).max() < tolerance
    np.testing.assert_array_equal(jt.grad(var.sum(), x).numpy(), result)
    assert (dropout(x).numpy() != result).mean() > 0.3, "each call draws a new mask"
    jt.set_seed(5)
    np.testing.assert_array_equal(dropout(x).numpy(), result)
    dropout.eval()
    np.testing.assert_array_equal(dropout(x).numpy(), 1)
