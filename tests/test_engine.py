"""A training step: what moves, what does not, and when it stops; on a tiny model with made-up
batches.
"""

import numpy as np
import pytest
import tiny

from engine import train_one_epoch
from models.detr import average_boxes
from models.weights.model import model_state
from tests.tools.messages import count_calls
from util.backend import jt
from util.errors import InputError
from util.optim import build_optimizer


def make(*flags):
    args = tiny.arguments("--dropout", 0, *flags)
    jt.set_global_seed(0)
    model, criterion, _ = tiny.build(args)
    return model, criterion, build_optimizer(model, args)


def train(model, criterion, optimizer, batches, max_norm=0.1):
    """(averages, weights before, weights after)"""
    before = model_state(model)
    averages = train_one_epoch(
        model, criterion, tiny.Batches(batches), optimizer, epoch=0, seed=0, max_norm=max_norm
    )
    return averages, before, model_state(model)


def test_trainable_parameters_move_and_frozen_ones_do_not_by_a_bit():
    model, criterion, optimizer = make()
    trainable = {name for group in optimizer.param_groups for name in group["names"]}
    _, before, after = train(
        model, criterion, optimizer, [tiny.make_batch(seed) for seed in range(2)]
    )
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == trainable
    assert len(before) - len(trainable) > 60, "BatchNorm, stem and first stage are frozen"


def test_the_loss_falls_on_a_batch_seen_again_and_again():
    model, criterion, optimizer = make("--lr", 1e-3, "--lr_backbone", 1e-4)
    batch = tiny.make_batch(0)
    first, *_ = train(model, criterion, optimizer, [batch])
    train(model, criterion, optimizer, [batch] * 6)
    last, *_ = train(model, criterion, optimizer, [batch])
    assert last["loss"] < 0.8 * first["loss"]


def test_averages_have_the_weighted_and_the_unscaled_losses():
    averages, *_ = train(*make("--lr", 3e-4), [tiny.make_batch(0)])
    weighted = {
        f"{name}{suffix}": weight
        for suffix in ("", "_0")
        for name, weight in (("loss_ce", 1), ("loss_bbox", 5), ("loss_giou", 2))
    }
    assert set(averages) == {
        "lr",
        "class_error",
        "loss",
        *weighted,
        *(f"{name}_unscaled" for name in weighted),
        "class_error_unscaled",
        "cardinality_error_unscaled",
        "cardinality_error_0_unscaled",
    }
    assert averages["lr"] == 3e-4
    assert averages["loss"] == pytest.approx(sum(averages[name] for name in weighted), rel=1e-5)
    for name, weight in weighted.items():
        assert averages[name] == pytest.approx(weight * averages[f"{name}_unscaled"]), name


def test_a_loss_that_is_not_finite_stops_before_the_weights_change():
    model, criterion, optimizer = make()
    samples, targets = tiny.make_batch(0)
    targets[0]["boxes"] = np.float32([[np.nan, 0.5, 0.1, 0.1]])
    before = model_state(model)
    with pytest.raises(InputError, match="the loss is nan in epoch 0, "):
        train(model, criterion, optimizer, [(samples, targets)])
    after = model_state(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_diverged_model_stops_the_training():
    model, criterion, optimizer = make()
    model.class_embed.weight.update(model.class_embed.weight * 1e38 * 1e3)
    with pytest.raises(InputError, match="the loss is (nan|inf|-inf)"):
        train(model, criterion, optimizer, [tiny.make_batch(0)])


def test_clipping_bounds_the_norm_of_the_gradient():
    """After one step the optimizer's averages are a tenth (1 - beta0) of the gradients that were
    applied.
    """
    applied = {}
    for max_norm in (0, 0.1, 1e6):
        model, criterion, optimizer = make()
        train(model, criterion, optimizer, [tiny.make_batch(0)], max_norm)
        applied[max_norm] = 10 * np.concatenate(
            [m.numpy().ravel() for group in optimizer.param_groups for m in group["m"]]
        )
    norm = np.linalg.norm(applied[0].astype(np.float64))
    assert norm > 1, "or there is nothing to clip"
    # One float32 sum over all gradients is too small: by 5% in 41 million numbers.
    assert np.linalg.norm(applied[0.1].astype(np.float64)) == pytest.approx(0.1, rel=1e-5)
    np.testing.assert_allclose(applied[0.1], applied[0] * (0.1 / norm), atol=1e-5)
    np.testing.assert_array_equal(applied[1e6], applied[0])


@pytest.mark.parametrize("accum_steps", [2, 3])
def test_steps_of_several_batches(accum_steps):
    """The gradient is that of the mean of the batches' losses, with the mean number of boxes; the
    optimizer counts one step.
    """
    batches = [tiny.make_batch(seed) for seed in range(accum_steps)]
    batches[0][1][0].update(
        labels=np.array([5, 6, 7]),
        boxes=np.float32([[0.5, 0.5, 0.2, 0.3], [0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.4, 0.1]]),
    )
    batches[1][1][0].update(labels=np.zeros(0, np.int64), boxes=np.zeros((0, 4), np.float32))
    mean = np.mean([sum(len(target["labels"]) for target in targets) for _, targets in batches])
    model, criterion, optimizer = make()
    model.train()
    trained = [name for name, p in model.named_parameters() if not p.is_stop_grad()]
    gradients = []
    for samples, targets in batches:
        losses = criterion(model(samples.to_jittor()), targets, mean)
        loss = sum(losses[name] * weight for name, weight in criterion.weight_dict.items())
        gradients.append(
            [
                g.numpy().astype(np.float64)
                for g in jt.grad(loss, [dict(model.named_parameters())[n] for n in trained])
            ]
        )
    expected = dict(zip(trained, (sum(each) / accum_steps for each in zip(*gradients))))
    seen = []
    averages = train_one_epoch(
        model,
        criterion,
        tiny.Batches(batches, accum_steps),
        optimizer,
        0,
        0,
        after_step=lambda *now: seen.append(now[0]),
    )
    assert seen == [1] and optimizer.n_step == 1 and np.isfinite(averages["loss"])
    found = {
        name: 10 * m.numpy()
        for group in optimizer.param_groups
        for name, m in zip(group["names"], group["m"])
    }
    whole = np.sqrt(sum(np.square(value).sum() for value in expected.values()))
    for name, value in expected.items():
        assert np.linalg.norm(found[name] - value) <= 1e-5 * max(
            np.linalg.norm(value), 1e-3 * whole
        ), name


def test_dropout_depends_on_seed_epoch_and_step_only():
    def loss_in(epoch, draws):
        args = tiny.arguments("--dropout", 0.3)
        jt.set_global_seed(0)
        model, criterion, _ = tiny.build(args)
        optimizer = build_optimizer(model, args)
        jt.randn(draws).sync()  # another history of the generator
        return train_one_epoch(
            model, criterion, tiny.Batches([tiny.make_batch(0)]), optimizer, epoch, seed=7
        )["loss"]

    assert loss_in(3, draws=1) == loss_in(3, draws=50) != loss_in(4, draws=1)


@pytest.mark.parametrize(
    "targets, others, expected",
    [
        ([2, 3], [], (5, True)),
        ([2, 3], [[1, 1]], (3, True)),
        ([2, 3], [[0, 0]], (5, False)),  # at the end of a validation set
        ([2, 3], [[0, 1]], (2.5, True)),
        ([], [[4, 1]], (4, False)),
        ([0], [[0, 0]], (1, False)),
    ],
)
def test_boxes_are_averaged_over_the_processes_that_have_images(
    monkeypatch, targets, others, expected
):
    """targets: the number of objects of each image; others: what the other processes send."""
    monkeypatch.setattr(
        "util.dist.all_gather_floats", lambda values: np.array([values, *others], float)
    )
    monkeypatch.setattr("util.launch.get_world_size", lambda: 1 + len(others))
    targets = [{"labels": np.zeros(count)} for count in targets]
    assert average_boxes([targets]) == expected


def test_a_step_asks_little_of_the_host(monkeypatch):
    """On a GPU, the host limits the speed. Both devices build the same graph."""
    model, criterion, optimizer = make("--dropout", 0.1)
    copies, live = [], []
    array, backward = jt.array, optimizer.backward

    def count_copy(data, *args):
        copies.append(data.size if isinstance(data, np.ndarray) else 1)
        return array(data, *args)

    def count_live(loss):
        backward(loss)
        live.append(jt.number_of_lived_ops())

    monkeypatch.setattr(optimizer, "backward", count_live)

    def run(steps):
        batches = tiny.Batches([tiny.make_batch(0)] * steps)
        train_one_epoch(model, criterion, batches, optimizer, epoch=0, seed=0, max_norm=0.1)

    def count_operators(steps):
        with jt.profile_scope() as report:
            run(steps)
        return sum(int(row[report[0].index("Count")]) for row in report[1:])

    run(1)  # what is kept is computed now
    assert count_operators(2) - count_operators(1) <= 495  # 492, of which AdamW 152
    assert max(live) <= 295  # 291
    monkeypatch.setattr(jt, "array", count_copy)
    run(1)
    assert sum(size > 1 for size in copies) == 4, "images, mask, targets, AdamW's scalars"
    transfers = count_calls(lambda: run(1), lambda f: f.__name__ in ("numpy", "fetch_sync"))
    assert transfers == 2, "predictions and losses"
