"""Batches: order, bits and padding for any number of workers; every pass ends without a hang or a
stray process.
"""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from coco_files import arguments, make_coco

from datasets import build_dataset
from datasets.loader import DataLoader
from util.errors import InputError


class Numbers:
    """Item `i` is an image full of `i`, of a size that depends on `i` and the epoch; item `fails`
    raises `error`.
    """

    def __init__(self, count, fails=None, error=None, side=20, pause=0):
        self.count, self.fails, self.error, self.side, self.pause = count, fails, error, side, pause
        self.epoch, self.max_size, self.skip_bad_samples = 0, side + 3, False

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index == self.fails:
            raise self.error
        time.sleep(self.pause * (index % 3))
        shape = (3, self.side + (index + self.epoch) % 4, self.side + index % 3)
        target = {
            "image_id": 2**70 + index,
            "boxes": np.zeros((index % 2, 4), np.float32),
            "masks": np.ones((2, 3, 8), dtype=bool)[:, :, ::2],
            "scalar": np.array(index),
        }
        return np.full(shape, index, np.float32), target


def children():
    return set(multiprocessing.active_children())


@pytest.fixture(autouse=True)
def no_stray_process():
    before = children()  # Jittor keeps processes of its own for compiling
    yield
    assert children() == before


def batches(loader):
    """Yield the batches of the loader's steps."""
    for step in loader:
        yield from step


def collect(loader):
    return [(samples.tensors, samples.mask, targets) for samples, targets in batches(loader)]


def assert_same_batches(first, second):
    assert len(first) == len(second)
    for (tensors, mask, targets), (tensors2, mask2, targets2) in zip(first, second):
        assert tensors.dtype == tensors2.dtype == np.float32 and mask.dtype == mask2.dtype == bool
        assert np.array_equal(tensors, tensors2) and np.array_equal(mask, mask2)
        assert len(targets) == len(targets2)
        for target, target2 in zip(targets, targets2):
            assert target.keys() == target2.keys() and type(target["image_id"]) is type(
                target2["image_id"]
            )
            for key in target:
                assert np.asarray(target[key]).dtype == np.asarray(target2[key]).dtype
                assert np.array_equal(target[key], target2[key])


def test_padding():
    ((tensors, mask, targets),) = collect(DataLoader(Numbers(3), 3))
    assert tensors.shape == (3, 3, 22, 22) and mask.shape == (3, 22, 22)
    for index, (height, width) in enumerate([(20, 20), (21, 21), (22, 22)]):
        assert (tensors[index, :, :height, :width] == index).all() and not mask[
            index, :height, :width
        ].any()
        assert (
            mask[index].sum() == 22 * 22 - height * width
            and not tensors[index, :, mask[index]].any()
        )
    assert [target["image_id"] - 2**70 for target in targets] == [0, 1, 2]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_same_bits_for_any_number_of_workers(num_workers, drop_last):
    loaders = [
        DataLoader(
            Numbers(15, pause=0.002),
            2,
            shuffle=True,
            drop_last=drop_last,
            num_workers=workers,
            seed=5,
        )
        for workers in (0, num_workers)
    ]
    for epoch in (0, 4):
        for loader in loaders:
            loader.set_epoch(epoch)
        first, second = map(collect, loaders)
        assert len(first) == len(loaders[0]) == (7 if drop_last else 8)
        assert_same_batches(first, second)


def test_order_derives_from_seed_and_epoch_only():
    def order(seed, epoch, before=()):
        loader = DataLoader(Numbers(30), 4, shuffle=True, seed=seed)
        for earlier in before:
            loader.set_epoch(earlier)
            collect(loader)
        loader.set_epoch(epoch)
        return [target["image_id"] - 2**70 for _, targets in batches(loader) for target in targets]

    assert order(1, 3) == order(1, 3, before=(0, 1))
    assert sorted(order(1, 3)) == list(range(30))
    assert order(1, 3) != order(1, 4) and order(1, 3) != order(2, 3)


def test_without_shuffle_in_order_and_last_batch_kept():
    loaded = collect(DataLoader(Numbers(7), 3, num_workers=2))
    numbers = [[target["image_id"] - 2**70 for target in targets] for *_, targets in loaded]
    assert numbers == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_items_are_of_the_epoch_that_was_set(num_workers):
    loader = DataLoader(Numbers(4), 1, num_workers=num_workers)
    for epoch in (2, 0):
        loader.set_epoch(epoch)
        heights = [tensors.shape[2] for tensors, _, _ in collect(loader)]
        assert heights == [20 + (index + epoch) % 4 for index in range(4)]


def test_many_small_batches_behind_a_slow_one():
    class OneSlow(Numbers):
        def __getitem__(self, index):
            time.sleep(0.5 * (index == 2))
            return super().__getitem__(index)

    numbers = [
        tensors[0, 0, 0, 0]
        for tensors, _, _ in collect(DataLoader(OneSlow(1000), 1, num_workers=2))
    ]
    assert numbers == list(range(1000))


def test_a_batch_larger_than_the_ring_arrives():
    numbers = Numbers(3, side=2600)
    numbers.max_size = 100
    loaders = [DataLoader(numbers, 1, num_workers=workers) for workers in (0, 2)]
    assert_same_batches(*map(collect, loaders))


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_input_error_of_an_item(num_workers):
    loader = DataLoader(
        Numbers(20, fails=9, error=InputError("bad.jpg: cannot be read")),
        2,
        num_workers=num_workers,
    )
    seen = []
    with pytest.raises(InputError, match=r"^bad\.jpg: cannot be read$"):
        for _, targets in batches(loader):
            seen += targets
    assert len(seen) == 8  # all before the batch with item 9


def test_other_error_of_an_item_comes_with_its_traceback():
    loader = DataLoader(Numbers(20, fails=9, error=KeyError("nope")), 2, num_workers=2)
    with pytest.raises(
        RuntimeError, match=r"(?s)data worker failed at batch 4.*in __getitem__.*KeyError: 'nope'"
    ):
        collect(loader)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_truncated_image_is_named(tmp_path, num_workers):
    make_coco(tmp_path)
    path = tmp_path / "val2017" / "square.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    loader = DataLoader(build_dataset("val", arguments(tmp_path)), 2, num_workers=num_workers)
    with pytest.raises(InputError, match=r"val2017/square\.jpg: cannot be read"):
        collect(loader)


def test_fault_in_a_transform_names_the_image(tmp_path):
    make_coco(tmp_path)
    dataset = build_dataset("val", arguments(tmp_path))
    dataset.transforms = lambda image, target, rng: 1 / 0
    with pytest.raises(RuntimeError, match=r"(?s)ZeroDivisionError.*val2017/rotated\.jpg"):
        collect(DataLoader(dataset, 2, num_workers=1))


@pytest.mark.parametrize("idle", [False, True])
def test_killed_worker_is_reported(idle):
    before = children()
    steps = iter(DataLoader(Numbers(5000, pause=0 if idle else 0.01), 2, num_workers=2))
    next(steps)
    time.sleep(0.3)
    os.kill(min(child.pid for child in children() - before), signal.SIGKILL)
    with pytest.raises(InputError, match="died with exit code -9"):
        for _ in steps:
            pass


def test_leaving_a_pass_early_and_two_passes_at_once():
    loader = DataLoader(Numbers(40), 2, num_workers=2)
    before = children()
    for number, _ in enumerate(loader):
        if number == 3:
            break
    assert children() == before
    first, second = iter(loader), iter(loader)
    steps = [(next(first), next(second)) for _ in range(20)]
    assert list(first) == list(second) == []
    assert_same_batches(
        *(
            [(samples.tensors, samples.mask, targets) for [(samples, targets)] in side]
            for side in zip(*steps)
        )
    )


def test_less_than_one_batch():
    with pytest.raises(InputError, match="only 3 images"):
        DataLoader(Numbers(3), 4, drop_last=True)
    assert len(DataLoader(Numbers(3), 4)) == 1


@pytest.mark.coco
def test_real_images_with_any_number_of_workers(coco_path):
    loaders = [
        DataLoader(
            build_dataset("train", arguments(coco_path, masks=True)),
            2,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            seed=3,
        )
        for workers in (0, 2)
    ]
    for loader in loaders:
        loader.set_epoch(2)
    assert_same_batches(*map(collect, loaders))


def test_batches_of_one_step_are_those_of_as_many_processes():
    """With several processes too; a last round that is not whole is left out, and resuming starts
    at a step.
    """
    data = [number for number in range(23)]

    class Data(list):
        skip_bad_samples, max_size = False, 32

    def order(**place):
        loader = DataLoader(Data(data), 2, shuffle=True, drop_last=True, seed=3, **place)
        order = loader._order()
        return [order.batch(number) for number in range(len(order.starts))]

    processes = [order(rank=rank, world_size=4) for rank in range(4)]
    rounds = [batch for step in zip(*processes) for batch in step]
    assert order(accum_steps=4) == rounds and len(rounds) == 8
    halves = [order(rank=rank, world_size=2, accum_steps=2) for rank in range(2)]
    assert [*halves[0][:2], *halves[1][:2], *halves[0][2:], *halves[1][2:]] == rounds
