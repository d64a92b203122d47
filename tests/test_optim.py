"""AdamW and clipping are Jittor's; the learning rate falls when PyTorch's StepLR lets it fall."""

from types import SimpleNamespace

import numpy as np
import pytest

from util.backend import jt
from util.optim import AdamW, StepLR

# learning rate of each epoch from 1e-4, by torch.optim.lr_scheduler.StepLR
EXPECTED = {1: [1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9], 2: [1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6]}


def make(step_size, lr=1e-4):
    optimizer = SimpleNamespace(param_groups=[{"lr": lr}, {"lr": lr / 10}])
    return optimizer, StepLR(optimizer, step_size)


def rates(optimizer, scheduler, epochs):
    found = []
    for _ in range(epochs):
        found.append([group["lr"] for group in optimizer.param_groups])
        scheduler.step()
    return found


@pytest.mark.parametrize("step_size", EXPECTED)
def test_both_groups_fall_together(step_size):
    for (lr, lr_backbone), expected in zip(rates(*make(step_size), 6), EXPECTED[step_size]):
        assert (lr, lr_backbone) == (pytest.approx(expected), pytest.approx(expected / 10))


@pytest.mark.parametrize("epochs_before", [1, 2, 3])
def test_a_restored_schedule_continues(epochs_before):
    whole = rates(*make(2), 6)
    optimizer, scheduler = make(2)
    begin = rates(optimizer, scheduler, epochs_before)
    resumed, restored = make(7)
    restored.load_state_dict(scheduler.state_dict())
    # The checkpoint has the optimizer's rates.
    for group, before in zip(resumed.param_groups, optimizer.param_groups):
        group.update(before)
    assert begin + rates(resumed, restored, 6 - epochs_before) == whole


@pytest.mark.parametrize("max_norm", [0.1, 1e6, None])
def test_steps_are_those_of_jittors_adamw(max_norm):
    random = np.random.default_rng(0)
    start, targets = (
        random.standard_normal((2, 300, 70), np.float32),
        random.standard_normal((5, 300, 70), np.float32),
    )
    results = []
    for kind in (AdamW, jt.optim.AdamW):
        weights = [jt.array(array) for array in start]
        optimizer = kind(
            [{"params": weights[:1], "lr": 1e-2}, {"params": weights[1:]}],
            lr=1e-3,
            weight_decay=0.1,
        )
        for target in targets:
            optimizer.backward(sum(((w - target) ** 2).sum() for w in weights))
            if max_norm is not None and kind is AdamW:
                optimizer.clip_grad_norm(max_norm)
            elif max_norm is not None:  # Jittor's own clipping loses digits of the norm
                norm = np.sqrt(
                    sum(
                        np.square(g.numpy(), dtype=np.float64).sum()
                        for group in optimizer.param_groups
                        for g in group["grads"]
                    )
                )
                for group in optimizer.param_groups:
                    for g in group["grads"]:
                        g.update(g * min(max_norm / (norm + 1e-6), 1))
            optimizer.step()
        results.append(
            [w.numpy() for w in weights]
            + [
                v.numpy()
                for group in optimizer.param_groups
                for v in (*group["m"], *group["values"])
            ]
        )
    for ours, jittors in zip(*results):
        np.testing.assert_allclose(ours, jittors, rtol=0, atol=2e-6 * np.abs(jittors).max())
    assert np.abs(results[0][0] - start[0]).max() > 0.01
