"""The learning rate falls when PyTorch's StepLR lets it fall."""
from types import SimpleNamespace

import pytest

from util.optim import StepLR

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
    for group, before in zip(resumed.param_groups, optimizer.param_groups):  # the checkpoint has the optimizer's rates
        group.update(before)
    assert begin + rates(resumed, restored, 6 - epochs_before) == whole
